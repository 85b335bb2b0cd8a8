"""Bi-Real Net for small images, and the block with one binary convolution that it shares with ReActNet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from bnew.layers import BinaryConv2d, BinaryLinear, ChannelScale, RPReLU, RSign
from bnew.models.pooling import MaxPool2d


class BinaryBlock(nn.Module):
    """One binary convolution with a shortcut around it.

    ``y = RPReLU(shortcut(x) + BN(s · conv(sign(x + b), W)))``

    A shortcut around *every* convolution carries the real values past each sign (Bi-Real Net,
    arXiv 1808.00278). The shifts and the PReLU are ReActNet's (arXiv 2003.03488).

    Args:
        c_in, c_out: channels.
        kernel_size: odd; the padding keeps the size.
        stride: 1 or 2.
        shortcut: module for the real path; None: :func:`projection` where the shape changes.
        scale: use a learnable scale per output channel before the batch norm.
        shift: use learnable shifts, before the sign and around the PReLU.
        prelu: use PReLU, else ReLU.
        surrogate: gradient of sign, see :func:`bnew.sign`.

    (N, c_in, H, W) → (N, c_out, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        shortcut: nn.Module | None = None,
        scale: bool = True,
        shift: bool = True,
        prelu: bool = True,
        surrogate: str = "polynomial",
    ) -> None:
        super().__init__()
        self.conv = BinaryConv2d(
            c_in,
            c_out,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            bias=False,
            input_sign=RSign(c_in, surrogate, shift),
        )
        self.scale = ChannelScale(c_out) if scale else nn.Identity()
        self.norm = nn.BatchNorm2d(c_out)
        self.shortcut = shortcut or projection(c_in, c_out, stride)
        self.activation = RPReLU(c_out, shift, prelu)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) → (N, c_out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        y: Tensor = self.activation(self.shortcut(x) + self.norm(self.scale(self.conv(x))))
        return y


def projection(c_in: int, c_out: int, stride: int, conv: Callable[..., nn.Module] = nn.Conv2d) -> nn.Module:
    """The shortcut of a block: 2×2 average pool if it strides, 1×1 convolution and batch norm if it widens.

    The pool rounds sizes up, as a 3×3 convolution with stride 2 and padding 1 does. So odd sizes work too.
    """
    pool = [nn.AvgPool2d(2, stride, ceil_mode=True)] if stride > 1 else []
    widen = [conv(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out)] if c_in != c_out else []
    layers = [*pool, *widen]
    return nn.Sequential(*layers) if layers else nn.Identity()


class BiRealNet(nn.Module):
    """Bi-Real Net with ReActNet's shifts, for CIFAR-10, CIFAR-100 and digits: the paper's student.

    3×3 convolution to 16 channels → batch norm → 3×3 max pool, stride 2 → three stages of ``blocks``
    :class:`BinaryBlock`, 16, 32 and 64 channels, the later two starting with stride 2 → global average
    pool → linear. First convolution, shortcuts and classifier are real.

    Bi-Real Net: arXiv 1808.00278; this outline: Paren and Poudel, BMVC 2022. With ``blocks=6`` and ten
    classes it has 275,786 parameters, 267,264 of them binary.

    Args:
        num_classes, in_channels: sizes of output and input.
        blocks: blocks per stage.
        scale, shift, prelu, surrogate: see :class:`BinaryBlock`; the published ablations.
        binary_ends: ablation. The first convolution takes the sign of the (normalised, shifted) image, and
            the classifier the sign of the pooled features. The classifier keeps a real bias. With ``scale``
            it has a scale per class, without which the logits of ±1 weights could not be small.
        binary_shortcut: ablation. The shortcuts' 1×1 convolutions are binary too.

    (N, in_channels, H, W) → (N, num_classes); any H and W, made for 8 to 32.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        blocks: int = 6,
        *,
        scale: bool = True,
        shift: bool = True,
        prelu: bool = True,
        surrogate: str = "polynomial",
        binary_ends: bool = False,
        binary_shortcut: bool = False,
    ) -> None:
        super().__init__()
        rsign = partial(RSign, surrogate=surrogate, shift=shift)

        def binary_conv(c_in: int, *args: Any, **kwargs: Any) -> BinaryConv2d:
            return BinaryConv2d(c_in, *args, input_sign=rsign(c_in), **kwargs)

        width = 16
        first = binary_conv if binary_ends else nn.Conv2d
        self.stem = nn.Sequential(
            first(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            MaxPool2d(3, stride=2, padding=1),
        )
        layers = []
        for c_out, first_stride in ((16, 1), (32, 2), (64, 2)):
            for stride in (first_stride, *(1,) * (blocks - 1)):
                shortcut = projection(width, c_out, stride, binary_conv if binary_shortcut else nn.Conv2d)
                block = BinaryBlock(
                    width,
                    c_out,
                    stride=stride,
                    shortcut=shortcut,
                    scale=scale,
                    shift=shift,
                    prelu=prelu,
                    surrogate=surrogate,
                )
                layers.append(block)
                width = c_out
        self.blocks = nn.Sequential(*layers)
        self.classifier: nn.Module = nn.Linear(width, num_classes)
        if binary_ends:
            self.classifier = nn.Sequential(
                BinaryLinear(width, num_classes, input_sign=rsign(width)),
                ChannelScale(num_classes) if scale else nn.Identity(),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.blocks(self.stem(x)).mean((2, 3)))
        return logits
