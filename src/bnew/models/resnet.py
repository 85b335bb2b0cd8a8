"""torchvision's ResNets: real networks that serve as teachers."""

from __future__ import annotations

import torchvision
from torch import nn


def resnet(name: str, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """``torchvision.models.<name>`` with random weights (arXiv 1512.03385).

    Args:
        name: for example resnet18 or resnet34.
        num_classes, in_channels: sizes of output and input.

    (N, in_channels, H, W) → (N, num_classes); made for H = W = 224, the total stride is 32.
    """
    model: nn.Module = torchvision.models.get_model(name, num_classes=num_classes)
    if in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    return model
