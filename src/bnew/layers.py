"""The layers of a binarized network; those of :mod:`bnew.pointwise` are found here too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnew.deprecated import renamed_argument, warn_of
from bnew.errors import BnewError, kind_of
from bnew.pointwise import SURROGATES as SURROGATES
from bnew.pointwise import ChannelScale as ChannelScale
from bnew.pointwise import RPReLU as RPReLU
from bnew.pointwise import RSign as RSign
from bnew.pointwise import hard_sign as hard_sign
from bnew.pointwise import sign as sign

T = TypeVar("T")
Size: TypeAlias = int | tuple[int, int]


class _BinaryLayer(nn.Module):
    """What all binary layers share: signs going in, and what may follow the product with the weight."""

    input_sign: nn.Module
    output_scale: nn.Parameter | None
    shortcut: bool

    def set_up(self, input_sign: nn.Module, shortcut: bool = False) -> None:
        """What a real layer lacks that becomes binary: signs going in, no scale, perhaps a shortcut."""
        self.input_sign = input_sign
        self.register_parameter("output_scale", None)
        self.shortcut = shortcut

    def add_scale(self) -> None:
        """Give the layer a learnable scale s of each output channel, so that its weight may be of any size.

        ``s = mean|W|``, which fits signs best (XNOR-Net, arXiv 1603.05279), and ``W ← W / s``: the layer
        computes what it did. Of a channel of zeros s is 1.
        """
        weight = cast(nn.Parameter, self.weight)
        with torch.no_grad():
            scale = weight.abs().flatten(1).mean(1)
            scale[scale == 0] = 1
            weight.div_(scale.view(-1, *(1,) * (weight.dim() - 1)))
        self.output_scale = nn.Parameter(scale)

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        parts = (self.output_scale is not None) * ["output_scale"] + self.shortcut * ["shortcut"]
        return ", ".join([super().extra_repr(), *parts])

    def _along_channels(self, values: Tensor) -> Tensor:
        """``values`` (C_out,) as they broadcast over the output: channels are last, or before its sides."""
        return values.view(-1, *(1,) * (cast(Tensor, self.weight).dim() - 2))

    def _finished(self, product: Tensor, input: Tensor) -> Tensor:
        """``s · product + bias``, and the input where the layer has a shortcut."""
        if self.output_scale is not None:
            product = product * self._along_channels(self.output_scale)
            if self.bias is not None:
                product = product + self._along_channels(cast(Tensor, self.bias))
        return product + input if self.shortcut else product

    @property
    def activation(self) -> nn.Module:
        """The old name of ``input_sign``."""
        warn_of("activation of a binary layer", "input_sign")
        return self.input_sign

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "activation":
            warn_of("activation of a binary layer", "input_sign")
            name = "input_sign"
        super().__setattr__(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        modules = state["_modules"]  # of a model that was pickled as a whole
        if "activation" in modules:
            modules["input_sign"] = modules.pop("activation")
        state["_parameters"].setdefault("output_scale", None)
        state.setdefault("shortcut", False)
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        _rename(state_dict, prefix)
        if self.output_scale is not None and f"{prefix}weight" in state_dict:
            # Of a layer without a scale, whose weight has its size.
            state_dict.setdefault(f"{prefix}output_scale", torch.ones_like(self.output_scale))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _rename(state: dict[str, Any], prefix: str) -> None:
    """Move what ``state`` has of the layer at ``prefix`` under an old name to the present one."""
    old = f"{prefix}activation."
    for key in [key for key in state if key.startswith(old)]:
        state[f"{prefix}input_sign.{key.removeprefix(old)}"] = state.pop(key)


def with_present_names(state: Mapping[str, T], model: nn.Module) -> dict[str, T]:
    """A state dict of ``model`` with the names that its tensors have now; ``load_state_dict`` takes both.

    Before ``input_sign`` had this name, the shift of a binary layer was ``<layer>.activation.shift``.
    """
    renamed = dict(state)
    for name, module in model.named_modules():
        if isinstance(module, _BinaryLayer):
            _rename(renamed, f"{name}." if name else "")
    return renamed


def _checked_sign(given: object) -> nn.Module | None:
    if given is None or isinstance(given, nn.Module):
        return given
    raise BnewError(f"input_sign is {kind_of(given)}, but must be a module, such as bnew.RSign(channels)")


class _BinaryConv(_BinaryLayer):
    """What binary convolutions share: the border."""

    pad_value: int = 0  # of layers, too, that binarize() made

    def _set_up_conv(self, channels: int, input_sign: object, pad_value: int) -> None:
        if type(pad_value) is not int or pad_value not in (-1, 0, 1):
            raise BnewError(f"pad_value is {pad_value!r}, but must be 0, 1 or -1")
        if pad_value and self.padding_mode != "zeros":
            raise BnewError(f"pad_value is {pad_value}, but padding_mode {self.padding_mode!r} has its own")
        self.pad_value = pad_value
        self.set_up(_checked_sign(input_sign) or RSign(channels, shift=False))

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


class BinaryLinear(_BinaryLayer, nn.Linear):
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
        self.set_up(_checked_sign(input_sign) or RSign(in_features, shift=False))

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features)."""
        signs = self.input_sign(input.reshape(-1, self.in_features)).view_as(input)
        bias = self.bias if self.output_scale is None else None
        return self._finished(F.linear(signs, self.weight, bias), input)


BinaryLayer: TypeAlias = BinaryConv1d | BinaryConv2d | BinaryLinear


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
