"""The public name of :mod:`bnew.training.loop`."""

from bnew.training.loop import train

__all__ = ["train"]
