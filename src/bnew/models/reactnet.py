"""ReActNet (arXiv 2003.03488) for ImageNet: the MobileNet outline and the ResNet-18 outline."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnew.models.birealnet import BinaryBlock
from bnew.models.pooling import MaxPool2d


class _Twice(nn.Module):
    """The shortcut of a convolution that doubles the width: the input, concatenated with itself."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 2C, H, W)."""
        return torch.cat((x, x), 1)


def _mobile_block(c_in: int, c_out: int, stride: int, surrogate: str) -> nn.Sequential:
    """A block with a 3×3 binary convolution, then a block with a 1×1 one.

    Where the width doubles, ReActNet runs two 1×1 convolutions C → C on the same signs, adds the same
    input to each and concatenates. This is the same as one convolution C → 2C plus the doubled input.
    """
    wider = nn.Identity() if c_in == c_out else _Twice()
    return nn.Sequential(
        BinaryBlock(c_in, c_in, 3, stride, scale=False, surrogate=surrogate),
        BinaryBlock(c_in, c_out, 1, shortcut=wider, scale=False, surrogate=surrogate),
    )


class _ReActNet(nn.Module):
    """Layers → global average pool → real linear."""

    def __init__(self, layers: list[nn.Module], width: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class ReActNetA(_ReActNet):
    """ReActNet-A: MobileNet's outline in binary 3×3 and 1×1 convolutions (arXiv 2003.03488).

    3×3 convolution to 32 channels, stride 2 (real) → batch norm → blocks to 64, 128, 128, 256, 256,
    512 ×6, 1024, 1024 channels, stride 2 where the width grows, except to 64 → global average pool → linear
    (real). With 1000 classes it has 29,343,592 parameters, 28,253,184 of them binary.

    Args:
        num_classes, in_channels: sizes of output and input.
        surrogate: gradient of sign, see :func:`bnew.sign`.

    (N, in_channels, H, W) → (N, num_classes); made for H = W = 224, the total stride is 32.
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, surrogate: str = "polynomial") -> None:
        width = 32
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
        ]
        for c_out in (64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024):
            stride = 2 if c_out > width and c_out != 64 else 1
            layers.append(_mobile_block(width, c_out, stride, surrogate))
            width = c_out
        super().__init__(layers, width, num_classes)


class ReActNet18(_ReActNet):
    """ReActNet on the outline of ResNet-18 (arXiv 2003.03488).

    7×7 convolution to 64 channels, stride 2 (real) → batch norm → 3×3 max pool, stride 2 → four stages of
    four :class:`~bnew.models.birealnet.BinaryBlock` (ResNet's two basic blocks, a shortcut around each
    convolution), 64, 128, 256 and 512 channels, the later three starting with stride 2 → global average
    pool → linear (real).

    Args:
        num_classes, in_channels: sizes of output and input.
        surrogate: gradient of sign, see :func:`bnew.sign`.

    (N, in_channels, H, W) → (N, num_classes); made for H = W = 224, the total stride is 32.
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, surrogate: str = "polynomial") -> None:
        width = 64
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            MaxPool2d(3, stride=2, padding=1),
        ]
        for c_out, first_stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            for stride in (first_stride, 1, 1, 1):
                layers.append(BinaryBlock(width, c_out, 3, stride, surrogate=surrogate))
                width = c_out
        super().__init__(layers, width, num_classes)
