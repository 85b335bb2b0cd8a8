"""The layers of a binarized network.

One convention holds in training, in packed files and in every kernel:
**sign(x) = +1 if x >= 0, else −1. It never returns 0.**
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnew.deprecated import renamed_argument, warn_of
from bnew.errors import BnewError, kind_of, lookup

T = TypeVar("T")
Size: TypeAlias = int | tuple[int, int]

# d sign(x) / dx as the backward pass pretends it to be, as a function of x.
SURROGATES: dict[str, Callable[[Tensor], Tensor]] = {
    # Bi-Real Net's piecewise polynomial (arXiv 1808.00278): 2 - 2|x| for |x| < 1, else 0.
    "polynomial": lambda x: (2 - 2 * x.abs()).relu_(),
    # The straight-through estimator (arXiv 1602.02830): 1 for |x| < 1, else 0.
    "clipped_identity": lambda x: (x.abs() < 1).to(x.dtype),
}


def hard_sign(x: Tensor) -> Tensor:
    """+1 where ``x >= 0``, else −1; same shape, dtype and memory format. It defines no gradient."""
    return (x >= 0).to(x.dtype).mul_(2).sub_(1)  # several times faster than torch.where on a CPU


class _Sign(torch.autograd.Function):
    """sign with a surrogate gradient. Saves only its input for the backward pass. Works with torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, surrogate: str) -> Tensor:
        return hard_sign(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        x, ctx.surrogate = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * SURROGATES[ctx.surrogate](x), None


def sign(x: Tensor, surrogate: str = "polynomial") -> Tensor:
    """Binarize activations: ``y = +1 if x >= 0 else −1``.

    The gradient is that of a surrogate s, ``dL/dx = dL/dy · s'(x)``:

    * ``polynomial`` (default): ``s'(x) = 2 − 2|x|`` for ``|x| < 1``, else 0
      (Bi-Real Net, arXiv 1808.00278);
    * ``clipped_identity``: ``s'(x) = 1`` for ``|x| < 1``, else 0 (arXiv 1602.02830).

    Any shape. The result has the shape, dtype and memory format of ``x``.

    Raises:
        BnewError: ``surrogate`` is not one of the above.
    """
    lookup("surrogate gradient", surrogate, SURROGATES)
    return _sign(x, surrogate)


@torch.fx.wrap  # torch.fx cannot trace into an autograd function: record the call
def _sign(x: Tensor, surrogate: str) -> Tensor:
    return _Sign.apply(x, surrogate)  # type: ignore[no-any-return]


@torch.fx.wrap  # torch.fx cannot iterate over dimensions either
def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """``values`` (C,) as (1, C, 1, ...), which broadcasts over ``like`` (N, C, ...)."""
    return values.view(1, -1, *(1,) * (like.dim() - 2))


class RSign(nn.Module):
    """ReActNet's sign (arXiv 2003.03488): ``y = sign(x + b)`` with a learnable shift ``b`` per channel.

    Input and output (N, C, ...). ``shift=False`` leaves ``b`` out: ``y = sign(x)``. The gradient is that of
    :func:`sign` at ``x + b``.

    Raises:
        BnewError: unknown ``surrogate``.
    """

    def __init__(self, channels: int, surrogate: str = "polynomial", shift: bool = True) -> None:
        super().__init__()
        lookup("surrogate gradient", surrogate, SURROGATES)
        self.surrogate = surrogate
        self.shift = nn.Parameter(torch.zeros(channels)) if shift else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) → (N, C, ...) in {−1, +1}."""
        if self.shift is not None:
            x = x + _per_channel(self.shift, x)
        return sign(x, self.surrogate)

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        shift = "shift=False" if self.shift is None else str(self.shift.numel())
        return f"{shift}, surrogate={self.surrogate!r}"


class RPReLU(nn.Module):
    """ReActNet's activation (arXiv 2003.03488): ``y = PReLU(x + b; a) + c`` with a, b, c per channel.

    ``PReLU(v; a) = v`` for ``v >= 0``, else ``a v``. ``a`` starts at 0.25, ``b`` and ``c`` at 0.
    Input and output (N, C, ...). Two published ablations: ``shift=False`` leaves out ``b`` and ``c``;
    ``prelu=False`` uses ReLU in place of PReLU.
    """

    def __init__(self, channels: int, shift: bool = True, prelu: bool = True) -> None:
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(channels)) if shift else None
        self.slope = nn.Parameter(torch.full((channels,), 0.25)) if prelu else None
        self.shift_out = nn.Parameter(torch.zeros(channels)) if shift else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) → (N, C, ...)."""
        if self.shift_in is not None:
            x = x + _per_channel(self.shift_in, x)
        x = F.relu(x) if self.slope is None else F.prelu(x, self.slope)
        if self.shift_out is not None:
            x = x + _per_channel(self.shift_out, x)
        return x


class ChannelScale(nn.Module):
    """``y = s x`` with a learnable scale ``s`` per channel, initially 1. (N, C, ...) → (N, C, ...)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) → (N, C, ...)."""
        return x * _per_channel(self.scale, x)


class _BinaryLayer(nn.Module):
    """What both binary layers share: signs going in, and what may follow the product with the weight."""

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
        """``values`` (C_out,) as they broadcast over the output: channels are last, or before two sides."""
        return values if isinstance(self, nn.Linear) else values.view(-1, 1, 1)

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


class BinaryConv2d(_BinaryLayer, nn.Conv2d):
    """Binary convolution: ``y = conv(input_sign(x), W) [+ bias]``, zero padding after the sign.

    ``input_sign`` is the module that binarizes the input, (N, C_in, H, W) → the same in {−1, +1}; None is
    ``RSign(in_channels, shift=False)``, that is, plain :func:`sign`. The weight is an ordinary parameter; a
    method of :mod:`bnew.methods` decides its values and makes it ±1 (or ± a scale per output channel). A
    weight that no method looks after stays real: that is phase 1 without the clipping.

    :func:`bnew.binarize` may add two parts, ``y = s · conv(input_sign(x), W) [+ bias] [+ x]``:
    ``output_scale``, a learnable s of each output channel where no norm follows, and ``shortcut``, where
    input and output have one shape.

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
        self.set_up(_checked_sign(input_sign) or RSign(in_channels, shift=False))

    def forward(self, input: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, C_out, H_out, W_out)."""
        bias = self.bias if self.output_scale is None else None
        return self._finished(self._conv_forward(self.input_sign(input), self.weight, bias), input)


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


def check_module(function: str, model: object) -> None:
    """Raise BnewError if ``function`` was given something else than a network."""
    if not isinstance(model, nn.Module):
        raise BnewError(f"{function} was given {kind_of(model)}, but needs a torch.nn.Module")


def named_binary_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Layer name and weight of every :class:`BinaryConv2d` and :class:`BinaryLinear`, each weight once."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, module in model.named_modules():
        if isinstance(module, BinaryConv2d | BinaryLinear):
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
