"""The public name of :mod:`bnew.recipe` and :mod:`bnew.experiments.published`."""

from bnew.experiments.published import CIFAR10, DIGITS, EXPERIMENTS, IMAGENET, Experiment
from bnew.recipe import Recipe

__all__ = ["CIFAR10", "DIGITS", "EXPERIMENTS", "IMAGENET", "Experiment", "Recipe"]
