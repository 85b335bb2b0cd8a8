"""Networks that are not bnew's, written as most people write them, for images of 32×32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation


class Block(nn.Module):
    """Two convolutions and a shortcut, with ReLU as a function."""

    def __init__(self, width: int, wider: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, wider, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wider)
        self.squeeze = SqueezeExcitation(wider, wider // 4) if squeeze else nn.Identity()
        self.shortcut = nn.Sequential()
        if stride != 1 or width != wider:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width, wider, 1, stride, bias=False), nn.BatchNorm2d(wider)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.squeeze(self.bn2(self.conv2(y)))
        return F.relu(y + self.shortcut(x))


class ResNet20(nn.Module):
    """CIFAR's ResNet-20 (arXiv 1512.03385), with 1×1 convolutions on the shortcuts.

    With ``squeeze``, squeeze-and-excite (arXiv 1709.01507) in each block. With ``stride`` 2, its first
    convolution halves the sides of the image: a quarter of the work.
    """

    def __init__(self, num_classes: int = 10, squeeze: bool = False, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, stride, 1, bias=False), nn.BatchNorm2d(16)
        widths = [16] * 3 + [32] * 3 + [64] * 3
        self.layers = nn.Sequential(
            *(
                Block(before, width, 1 + (width > before), squeeze)
                for before, width in zip([16, *widths], widths, strict=False)
            )
        )
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, num_classes)."""
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def vgg_small(num_classes: int = 10, width: int = 128) -> nn.Module:
    """VGG-small of the literature on binary networks: six convolutions with batch norm, and a classifier."""
    layers: list[nn.Module] = []
    channels = 3
    for wider in (width, 2 * width, 4 * width):
        for last in (False, True):
            layers += [nn.Conv2d(channels, wider, 3, 1, 1, bias=False)]
            layers += [nn.MaxPool2d(2)] * last + [nn.BatchNorm2d(wider), nn.ReLU(inplace=True)]
            channels = wider
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 16, num_classes))


def resnet18(num_classes: int = 10) -> nn.Module:
    """torchvision's, its 7×7 stem and pool replaced by a 3×3 convolution."""
    model: nn.Module = torchvision.models.resnet18(num_classes=num_classes)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": ResNet20,
    "vgg_small": vgg_small,
    "resnet18": resnet18,
    "se_resnet20": partial(ResNet20, squeeze=True),
    "resnet20_half": partial(ResNet20, stride=2),
    "se_resnet20_half": partial(ResNet20, squeeze=True, stride=2),
}
