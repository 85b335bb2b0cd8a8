"""BNext (arXiv 2211.12933): MobileNet's outline, with a channel attention around every binary convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnew.errors import BnewError
from bnew.layers import BinaryConv2d, RSign


class Recoupling(nn.Module):
    """A binary convolution and its *information recoupling*: channels weighted by what is around them.

    ::

        y = PReLU(BN(conv(sign(x + b), W)))
        z = SE(s x' + (1 − s) y) · y

    x' is x, averaged over 2×2 pixels where the convolution strides. s is a share per channel, kept in [0, 1],
    which starts at 1/2. SE is squeeze-and-excite (arXiv 1709.01507): the mean over all pixels → linear to
    C/8 → ReLU → linear to C → sigmoid.

    (N, C, H, W) → z (N, C, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(self, channels: int, kernel_size: int, stride: int, surrogate: str) -> None:
        super().__init__()
        self.conv = BinaryConv2d(
            channels,
            channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            bias=False,
            input_sign=RSign(channels, surrogate),
        )
        self.norm = nn.BatchNorm2d(channels)
        self.activation = nn.PReLU(channels)
        self.share = nn.Parameter(torch.full((1, channels, 1, 1), 0.5))
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 8, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 8, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor, smaller: Tensor) -> Tensor:
        """x (N, C, H, W) and x' (N, C, H', W') → z (N, C, H', W')."""
        if self.training:
            with torch.no_grad():
                self.share.clamp_(0, 1)
        y = self.activation(self.norm(self.conv(x)))
        z: Tensor = self.excite(y + self.share * (smaller - y)) * y
        return z


class FeedForward(nn.Module):
    """``y = x' + BN(recoupling(x))``; x' is x, averaged over 2×2 pixels where the convolution strides.

    (N, C, H, W) → (N, C, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(self, channels: int, kernel_size: int, stride: int, surrogate: str) -> None:
        super().__init__()
        self.recoupling = Recoupling(channels, kernel_size, stride, surrogate)
        self.smaller = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H', W')."""
        smaller = self.smaller(x)
        y: Tensor = smaller + self.norm(self.recoupling(x, smaller))
        return y


class Attention(FeedForward):
    """``y = r + BN(recoupling(x) · r)`` with ``r = PReLU(x)``, averaged as x' is: each element is weighted.

    (N, C, H, W) → (N, C, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(self, channels: int, kernel_size: int, stride: int, surrogate: str) -> None:
        super().__init__(channels, kernel_size, stride, surrogate)
        self.activation = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H', W')."""
        real = self.smaller(self.activation(x))
        y: Tensor = real + self.norm(self.recoupling(x, self.smaller(x)) * real)
        return y


class Doubled(nn.Module):
    """Two 1×1 :class:`FeedForward` side by side, (N, C, H, W) → (N, 2C, H, W)."""

    def __init__(self, channels: int, surrogate: str) -> None:
        super().__init__()
        self.left = FeedForward(channels, 1, 1, surrogate)
        self.right = FeedForward(channels, 1, 1, surrogate)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 2C, H, W)."""
        return torch.cat((self.left(x), self.right(x)), 1)


class BNext(nn.Module):
    """BNext (arXiv 2211.12933), of which BNext-T is the smallest.

    3×3 convolution to ``width`` channels, stride 2 (real) → batch norm → blocks to 2, then 4, 8, 16 and 32
    times as many channels → PReLU → global average pool → linear (real). A block is a 3×3 binary convolution,
    in an :class:`Attention` in every second block and a :class:`FeedForward` in the others, and a 1×1 one
    in a :class:`FeedForward`, or two of them where the width doubles. The first block of the last four
    widths strides.

    The defaults are BNext-T. Its binary weights and multiply-accumulates are those of ReActNet-A, 28,253,184
    and 4.82 billion, its parameters 30,853,276 with 1000 classes. PReLUs that the authors' code has and does
    not use are left out.

    Args:
        num_classes, in_channels: sizes of output and input.
        width: channels of the first convolution, a multiple of eight.
        blocks: how many there are of each of the last four widths.
        surrogate: gradient of sign, see :func:`bnew.sign`; published is the same, but clipped at 1.5.

    Raises:
        BnewError: ``width`` is not a multiple of eight.

    (N, in_channels, H, W) → (N, num_classes); made for H = W = 224, the total stride is 32.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: int = 32,
        blocks: Sequence[int] = (2, 2, 6, 2),
        surrogate: str = "clipped_identity",
    ) -> None:
        super().__init__()
        if width % 8:
            raise BnewError(f"BNext's width is {width}, but must be a multiple of eight")
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
        ]
        sections = [2 * width] + [
            4 * width * 2**section for section, n in enumerate(blocks) for _ in range(n)
        ]
        for number, c_out in enumerate(sections):
            stride = 2 if c_out > width and number else 1
            spatial = Attention if number % 2 else FeedForward
            layers += [
                spatial(width, 3, stride, surrogate),
                Doubled(width, surrogate) if c_out > width else FeedForward(width, 1, 1, surrogate),
            ]
            width = c_out
        self.features = nn.Sequential(*layers, nn.PReLU(width))
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits
