"""Crops, flips and lighting noise of images that are read when they are needed."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

# The share of a validation image's shorter side that the crop keeps: 224 of 256 pixels.
CENTRE = 224 / 256
# Lighting noise (AlexNet, NeurIPS 2012): along the principal components of ImageNet's colours (the columns),
# in proportion to their eigenvalues, for pixel values in [0, 1].
LIGHTING = 0.1
EIGENVALUES = torch.tensor((0.2175, 0.0188, 0.0045))
EIGENVECTORS = torch.tensor(
    ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
)


def training_transform(side: int, augment: str | None = None) -> v2.Transform:
    """What training does to an image: one of a recipe's names of augmentation, to ``side``² pixels.

    By default a random crop of 8 to 100 % of the image, scaled to ``side``² pixels and flipped half of the
    time; *resized_crop* is the same, and *trivial* also changes it by TrivialAugment. *flip_crop* takes a
    random crop of the image scaled as for validation.
    """
    parts: list[v2.Transform] = [v2.RandomResizedCrop(side, scale=(0.08, 1.0), antialias=True)]
    if augment == "none":
        return validation_transform(side)
    if augment == "flip_crop":
        parts = [v2.Resize(covered(side), antialias=True), v2.RandomCrop(side)]
    parts.append(v2.RandomHorizontalFlip())
    return v2.Compose([*parts, v2.TrivialAugmentWide()] if augment == "trivial" else parts)


def covered(side: int) -> int:
    """The length that a validation image's shorter side is scaled to before the centre crop of ``side``."""
    return round(side / CENTRE)


def validation_transform(side: int) -> v2.Transform:
    """The centre crop of ``side``² pixels after scaling the shorter side to ``side`` · 256/224."""
    return v2.Compose([v2.Resize(covered(side), antialias=True), v2.CenterCrop(side)])


def lighting() -> Tensor:
    """Random lighting noise for one image, (3,): added to red, green and blue in [0, 1]."""
    return EIGENVECTORS @ (EIGENVALUES * torch.randn(3) * LIGHTING)
