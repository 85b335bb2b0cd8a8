"""QuickNet (arXiv 2011.09398, Larq Zoo 2.0): a ResNet outline whose only binary layers are 3×3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnew.errors import BnewError
from bnew.layers import BinaryConv2d, RSign


class QuickNetBlock(nn.Module):
    """``y = x + BN(ReLU(conv(sign(x), W)))``, with a 3×3 convolution, and +1 around the signs.

    (N, C, H, W) → the same.
    """

    def __init__(self, channels: int, surrogate: str) -> None:
        super().__init__()
        sign = RSign(channels, surrogate, shift=False)
        self.conv = BinaryConv2d(channels, channels, 3, padding=1, bias=False, input_sign=sign, pad_value=1)
        self.activation = nn.ReLU()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        y: Tensor = x + self.norm(self.activation(self.conv(x)))
        return y


class Blur(nn.Conv2d):
    """Each channel by [1, 2, 1] ⊗ [1, 2, 1] / 16 with stride 2 (arXiv 1904.11486); it is not trained."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False)
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.weight = nn.Parameter(line.outer(line).expand(channels, 1, 3, 3).clone(), requires_grad=False)


def _narrower(c_in: int, c_out: int) -> list[nn.Module]:
    """Between two sections: half the size, other channels."""
    return [
        nn.ReLU(),
        nn.MaxPool2d(2, stride=1),
        Blur(c_in),
        nn.Conv2d(c_in, c_out, 1, bias=False),
        nn.BatchNorm2d(c_out),
    ]


class QuickNet(nn.Module):
    """QuickNet, as Larq Zoo has it (arXiv 2011.09398).

    3×3 convolution to a quarter of the first width, stride 2 → batch norm → ReLU → depthwise 3×3 convolution,
    stride 2 → batch norm without weights → 1×1 convolution → batch norm → four sections of
    :class:`QuickNetBlock`, and between two of them ReLU → 2×2 max pool with stride 1 → :class:`Blur` → 1×1
    convolution → batch norm → at the end ReLU → global average pool → linear. Only the blocks are binary.

    With 1000 classes, counted as in Larq Zoo, with two numbers for each channel of any batch norm, the
    parameters are those published: 12,655,688 (small), 13,234,088 and 23,342,248 (large). The convolutions
    with stride 2 of the stem pad all sides alike, where Keras pads only right and bottom.

    Args:
        num_classes, in_channels: sizes of output and input.
        widths, blocks: channels of each section, the first a multiple of four, and how many blocks it has.
        surrogate: gradient of sign, see :func:`bnew.sign`; published is the same, but clipped at 1.25.

    Raises:
        BnewError: ``widths`` and ``blocks`` do not fit each other.

    (N, in_channels, H, W) → (N, num_classes); made for H = W = 224, the total stride is 32.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (4, 4, 4, 4),
        surrogate: str = "clipped_identity",
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or not widths or widths[0] % 4 or min(*widths, *blocks) < 1:
            raise BnewError(
                f"QuickNet has the widths {tuple(widths)} and the blocks {tuple(blocks)}, but needs a width "
                "and a number of blocks for each section, and a first width that is a multiple of four"
            )
        width, quarter = widths[0], widths[0] // 4
        layers: list[Any] = [
            nn.Conv2d(in_channels, quarter, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(quarter),
            nn.ReLU(),
            nn.Conv2d(quarter, quarter, 3, stride=2, padding=1, groups=quarter, bias=False),
            nn.BatchNorm2d(quarter, affine=False),
            nn.Conv2d(quarter, width, 1, bias=False),
            nn.BatchNorm2d(width),
        ]
        for section, (c_out, count) in enumerate(zip(widths, blocks, strict=True)):
            layers += _narrower(width, c_out) if section else []
            layers += [QuickNetBlock(c_out, surrogate) for _ in range(count)]
            width = c_out
        self.features = nn.Sequential(*layers, nn.ReLU())
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits
