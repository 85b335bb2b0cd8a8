"""The layers of a binarized network; those of :mod:`bnew.pointwise` are found here too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnew.binary import BinaryBase, checked_sign
from bnew.binary import with_present_names as with_present_names
from bnew.deprecated import renamed_argument
from bnew.errors import BnewError, kind_of
from bnew.phases import Phases
from bnew.pointwise import SURROGATES as SURROGATES
from bnew.pointwise import ChannelScale as ChannelScale
from bnew.pointwise import RPReLU as RPReLU
from bnew.pointwise import RSign as RSign
from bnew.pointwise import hard_sign as hard_sign
from bnew.pointwise import sign as sign

Size: TypeAlias = int | tuple[int, int]


class _BinaryConv(BinaryBase):
    """What binary convolutions share: the border."""

    pad_value: int = 0  # of layers, too, that binarize() made

    def _set_up_conv(self, channels: int, input_sign: object, pad_value: int) -> None:
        if type(pad_value) is not int or pad_value not in (-1, 0, 1):
            raise BnewError(f"pad_value is {pad_value!r}, but must be 0, 1 or -1")
        if pad_value and self.padding_mode != "zeros":
            raise BnewError(f"pad_value is {pad_value}, but padding_mode {self.padding_mode!r} has its own")
        self.pad_value = pad_value
        self.set_up(checked_sign(input_sign) or RSign(channels, shift=False))

    def product(self, signs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution of ``signs`` (N, C_in, ...), with its border, by ``weight``."""
        conv = cast("nn.Conv1d | nn.Conv2d", self)
        if not self.pad_value:
            return cast(Tensor, conv._conv_forward(signs, weight, bias))
        signs = F.pad(signs, conv._reversed_padding_repeated_twice, value=self.pad_value)
        function = F.conv1d if isinstance(self, nn.Conv1d) else F.conv2d
        return function(signs, weight, bias, conv.stride, 0, conv.dilation, conv.groups)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C_in, ...) → (N, C_out, ...), the sides as of the real convolution."""
        weight, bias = cast(Tensor, self.weight), cast("Tensor | None", self.bias)
        bias = bias if self.output_scale is None else None
        return self._finished(self.product(self.input_sign(input), weight, bias), input)

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return super().extra_repr() + f", pad_value={self.pad_value}" * (self.pad_value != 0)


class BinaryConv2d(_BinaryConv, nn.Conv2d):
    """Binary convolution: ``y = conv(input_sign(x), W) [+ bias]``, padded after the sign.

    ``input_sign`` is the module that binarizes the input, (N, C_in, H, W) → the same in {−1, +1}; None is
    ``RSign(in_channels, shift=False)``, that is, plain :func:`sign`. The weight is an ordinary parameter; a
    method of :mod:`bnew.methods` decides its values and makes it ±1 (or ± a scale per output channel). A
    weight that no method looks after stays real: that is phase 1 without the clipping.

    :func:`bnew.binarize` may add two parts, ``y = s · conv(input_sign(x), W) [+ bias] [+ x]``:
    ``output_scale``, a learnable s of each output channel where no norm follows, and ``shortcut``, where
    input and output have one shape.

    ``pad_value`` is what stands around the signs: 0, or a sign, 1 or −1, as in Larq (``pad_values=1``).

    Shapes, other arguments and errors as ``torch.nn.Conv2d``; only ``padding_mode="zeros"`` is binary in
    the packed file, as the other modes are rare and refused there.
    """

    @renamed_argument("activation", "input_sign")
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: str | Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        input_sign: nn.Module | None = None,
        pad_value: int = 0,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._set_up_conv(in_channels, input_sign, pad_value)


class BinaryConv1d(_BinaryConv, nn.Conv1d):
    """Binary convolution of (N, C_in, L), (N, C_out, L_out); see :class:`BinaryConv2d`.

    ``input_sign`` sees (N, C_in, L). Other arguments and errors as ``torch.nn.Conv1d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: str | int | tuple[int] = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        input_sign: nn.Module | None = None,
        pad_value: int = 0,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._set_up_conv(in_channels, input_sign, pad_value)


class BinaryConvTranspose2d(_BinaryConv, nn.ConvTranspose2d):
    """Binary transposed convolution: ``y = conv_transpose(input_sign(x), W) [+ bias]``.

    With stride s, padding p and dilation d, along each axis::

        y[o] = Σ_k input_sign(x)[(o + p − d k) / s] · W[k]

    over the taps k for which the place is a whole number. Places outside the input add nothing; with
    ``pad_value`` 1 or −1, signs stand there. The weight is (C_in, C_out / groups, kh, kw): output channels
    are its second dimension, and magnitudes are means over all others.

    (N, C_in, H, W) → (N, C_out, (H − 1) s − 2 p + d (kh − 1) + output_padding + 1, …). All else is as of
    :class:`BinaryConv2d`; other arguments and errors as of ``torch.nn.ConvTranspose2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        input_sign: nn.Module | None = None,
        pad_value: int = 0,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
            device,
            dtype,
        )
        self._set_up_conv(in_channels, input_sign, pad_value)

    @property
    def transposed_groups(self) -> int:
        """See :func:`bnew.binary.channel_sizes`."""
        return self.groups

    @property
    def phases(self) -> Phases:
        """The convolutions at stride 1 that compute the layer."""
        padding = cast(Sequence[int], self.padding)
        return Phases.of(self.kernel_size, self.stride, padding, self.dilation, self.groups)

    def product(
        self,
        signs: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        output_padding: Sequence[int] | None = None,
    ) -> Tensor:
        """The transposed convolution of ``signs`` (N, C_in, H, W), with its border, by ``weight``."""
        extra = list(self.output_padding if output_padding is None else output_padding)
        padding = list(cast(Sequence[int], self.padding))
        if self.pad_value:  # a border as wide as any result reaches, which the padding then cuts off
            reach = zip(self.dilation, self.kernel_size, extra, self.stride, strict=True)
            border = [-(-(d * (k - 1) + more) // s) for d, k, more, s in reach]
            height, width = border
            signs = F.pad(signs, (width, width, height, height), value=self.pad_value)
            padding = [p + s * n for p, s, n in zip(padding, self.stride, border, strict=True)]
        return F.conv_transpose2d(
            signs, weight, bias, self.stride, padding, extra, self.groups, self.dilation
        )

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, C_in, H, W) → (N, C_out, H', W'); ``output_size`` as of ``torch.nn.ConvTranspose2d``."""
        settings: Any = self.stride, self.padding, self.kernel_size, 2, self.dilation
        extra = self._output_padding(input, output_size, *settings)
        bias = self.bias if self.output_scale is None else None
        return self._finished(self.product(self.input_sign(input), self.weight, bias, extra), input)


class BinaryLinear(BinaryBase, nn.Linear):
    """Binary linear layer: ``y = input_sign(x) Wᵀ [+ bias]``; see :class:`BinaryConv2d`.

    Input (..., in_features), output (..., out_features); ``input_sign`` sees (N, in_features).
    """

    @renamed_argument("activation", "input_sign")
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        input_sign: nn.Module | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.set_up(checked_sign(input_sign) or RSign(in_features, shift=False))

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features)."""
        signs = self.input_sign(input.reshape(-1, self.in_features)).view_as(input)
        bias = self.bias if self.output_scale is None else None
        return self._finished(F.linear(signs, self.weight, bias), input)


BinaryLayer: TypeAlias = BinaryConv1d | BinaryConv2d | BinaryConvTranspose2d | BinaryLinear


def check_module(function: str, model: object) -> None:
    """Raise BnewError if ``function`` was given something else than a network."""
    if not isinstance(model, nn.Module):
        raise BnewError(f"{function} was given {kind_of(model)}, but needs a torch.nn.Module")


def named_binary_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Layer name and weight of every binary layer, each weight once."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, module in model.named_modules():
        if isinstance(module, BinaryLayer):
            weight = cast(nn.Parameter, module.weight)  # Conv2d's annotation says Tensor
            found.setdefault(id(weight), (name, weight))
    return list(found.values())


def binary_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The weights that a method binarizes: those of all binary layers."""
    return [weight for _, weight in named_binary_parameters(model)]


def real_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All other parameters: first and last layer, batch norms, shifts, scales, biases."""
    binary = {id(weight) for weight in binary_parameters(model)}
    return [p for p in model.parameters() if id(p) not in binary]
