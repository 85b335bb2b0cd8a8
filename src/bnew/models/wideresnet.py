"""Pre-activation wide ResNet: the real-valued teacher of the CIFAR experiments."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    """Two 3×3 convolutions, each after batch norm and ReLU, and a shortcut.

    Where the shape changes, the shortcut is a 1×1 convolution of the input after batch norm and ReLU.
    (N, c_in, H, W) → (N, c_out, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        reshapes = stride != 1 or c_in != c_out
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if reshapes else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) → (N, c_out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        active = F.relu(self.norm1(x))
        if self.shortcut is not None:
            x = self.shortcut(active)
        y: Tensor = x + self.conv2(F.relu(self.norm2(self.conv1(active))))
        return y


class WideResNet(nn.Module):
    """Pre-activation wide ResNet (arXiv 1605.07146), all real, of depth 6 ``blocks`` + 4.

    3×3 convolution to 16 channels → three stages of ``blocks`` blocks, 16, 32 and 64 times ``widen``
    channels, the later two starting with stride 2 → batch norm → ReLU → global average pool → linear.

    Args:
        num_classes, in_channels: sizes of output and input.
        blocks: blocks per stage; 3 gives depth 22.
        widen: factor of the stages' widths.

    (N, in_channels, H, W) → (N, num_classes); any H and W, made for 8 to 32.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, blocks: int = 3, widen: int = 1) -> None:
        super().__init__()
        width = 16
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        layers = []
        for c_out, first_stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            for stride in (first_stride, *(1,) * (blocks - 1)):
                layers.append(_Block(width, c_out, stride))
                width = c_out
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.classifier(F.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))
        return logits
