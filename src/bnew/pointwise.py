"""Sign with its gradients, and what binary networks compute beside products.

One convention holds in training, in packed files and in every kernel:
**sign(x) = +1 if x >= 0, else −1. It never returns 0.**
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnew.errors import lookup

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
