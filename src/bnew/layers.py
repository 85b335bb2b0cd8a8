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


def _pool(x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int]) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.max_pool2d_with_indices(x, kernel_size, stride, padding)  # type: ignore[no-any-return]


def _pool_backward(
    grad: Tensor, x: Tensor, indices: Tensor, kernel_size: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    backward = torch.ops.aten.max_pool2d_with_indices_backward
    return backward(grad, x, kernel_size, stride, padding, [1, 1], False, indices)  # type: ignore[no-any-return]


_max_pool2d = torch.library.custom_op("bnew::max_pool2d", _pool, mutates_args=())
_max_pool2d_backward = torch.library.custom_op("bnew::max_pool2d_backward", _pool_backward, mutates_args=())
# PyTorch's own operators also compute the shapes of their results.
_max_pool2d.register_fake(_pool)
_max_pool2d_backward.register_fake(_pool_backward)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *ctx.sizes = inputs
    ctx.save_for_backward(x, output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return _max_pool2d_backward(grad, *ctx.saved_tensors, *ctx.sizes), None, None, None


_max_pool2d.register_autograd(_backward, setup_context=_keep_for_backward)


class MaxPool2d(nn.MaxPool2d):
    """``torch.nn.MaxPool2d``, which torch.compile does not compile on a CPU.

    The backward kernel that torch.compile generates takes several times as long as PyTorch's own. Pools with
    dilation, ceil_mode, return_indices or different sizes in the two directions are compiled as usual.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H_out, W_out)."""
        given = (self.kernel_size, self.stride, self.padding)
        sizes = [[size, size] for size in given if isinstance(size, int)]
        plain = len(sizes) == 3 and self.dilation == 1 and not (self.ceil_mode or self.return_indices)
        if not (plain and torch.compiler.is_dynamo_compiling() and input.device.type == "cpu"):
            return super().forward(input)  # type: ignore[no-any-return]
        return _max_pool2d(input, *sizes)[0]  # type: ignore[no-any-return]


class _BinaryLayer(nn.Module):
    """What both binary layers share: ``input_sign``, and its old name ``activation`` for one release."""

    input_sign: nn.Module

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
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        _rename(state_dict, prefix)
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
        self.input_sign = _checked_sign(input_sign) or RSign(in_channels, shift=False)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, C_out, H_out, W_out)."""
        return super().forward(self.input_sign(input))


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
        self.input_sign = _checked_sign(input_sign) or RSign(in_features, shift=False)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features)."""
        rows = self.input_sign(input.reshape(-1, self.in_features))
        return super().forward(rows.view_as(input))


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
