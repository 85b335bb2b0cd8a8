"""The public name of :mod:`bnew.training.loop`."""

from bnew.training.loop import Trainer, train

__all__ = ["Trainer", "train"]
