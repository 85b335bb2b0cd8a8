"""torchvision's ResNets: real networks that serve as teachers."""

from __future__ import annotations

import torchvision
from torch import nn


def resnet18(num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """``torchvision.models.resnet18``, newly initialised (arXiv 1512.03385).

    Args:
        num_classes, in_channels: sizes of output and input.

    (N, in_channels, H, W) → (N, num_classes); made for H = W = 224, the total stride is 32.
    """
    return _resnet("resnet18", num_classes, in_channels)


def resnet34(num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """``torchvision.models.resnet34``, see :func:`resnet18`."""
    return _resnet("resnet34", num_classes, in_channels)


def _resnet(name: str, num_classes: int, in_channels: int) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(name, num_classes=num_classes)
    if in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    return model
