"""The loss of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bnew.data.batches import Dataset
from bnew.errors import BnewError, unknown
from bnew.recipe import Recipe
from bnew.text import elided


def make_loss(recipe: Recipe, data: Dataset, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The recipe's loss of logits (N, K) and labels (N,) or a teacher's shares (N, K): a mean over N images.

    With class weights, too, it is the sum over the images divided by their number, not by the sum of their
    weights: the loss of a batch then does not depend on the parts in which it is computed.

    Raises:
        BnewError: see :func:`class_weights`.
    """
    if not recipe.label_smoothing and not recipe.class_weights:
        return F.cross_entropy
    weight = class_weights(recipe.class_weights, data)
    weight = None if weight is None else weight.to(device)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = recipe.label_smoothing
        total = F.cross_entropy(logits, labels, weight, reduction="sum", label_smoothing=smoothing)
        return total / len(labels)

    return loss


def class_weights(wanted: Mapping[str, float] | str, data: Dataset) -> Tensor | None:
    """The weight of each class of ``data``, (K,) in float32, or None if there are none.

    ``balanced`` is N / (K · n), for N training images, of which n are of the class: over the training images,
    the mean weight is 1. Of numbers by class, a class that is not named has the weight 1.

    Raises:
        BnewError: a name is no class of ``data``, or a class to be balanced has no training images.
    """
    if not wanted:
        return None
    if isinstance(wanted, str):
        counts = np.bincount(data.labels("train"), minlength=data.num_classes)
        if lacking := [name for name, count in zip(data.classes, counts, strict=True) if not count]:
            raise BnewError(
                f"there are no training images of {elided(lacking)}, so nothing can balance the classes: "
                "give the weights as numbers, such as --class-weights cat=2"
            )
        return torch.from_numpy(counts.sum() / (len(counts) * counts)).float()
    for name in wanted:
        if name not in data.classes:
            raise unknown("class in class_weights", name, data.classes)
    return torch.tensor([float(wanted.get(name, 1)) for name in data.classes])


def mixed(recipe: Recipe, images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The images (N, C, H, W) and labels (N,) that a step trains on: as they are, or mixed in pairs.

    With α = ``recipe.mixup`` (mixup, arXiv 1710.09412)::

        x_i ← λ x_i + (1 − λ) x_j,    y_i ← λ y_i + (1 − λ) y_j,    λ ~ Beta(α, α)

    One λ for all of them, and j a random permutation of i; labels become shares of the classes, (N, K).
    """
    if not recipe.mixup:
        return images, labels
    share = float(torch.distributions.Beta(recipe.mixup, recipe.mixup).sample())
    other = torch.randperm(len(labels)).to(labels.device)
    targets = F.one_hot(labels, num_classes).to(images.dtype)
    return images.lerp(images[other], 1 - share), targets.lerp(targets[other], 1 - share)
