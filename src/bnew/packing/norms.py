"""Lowers batch norm, and layer norm as PyTorch's operator or written out as a formula.

In the formulas of a layer norm, m and s are the mean and the variance of x over its channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bnew.packing.arithmetic import scaled, shifted
from bnew.packing.values import Numbers, Operand, Refused, Value

if TYPE_CHECKING:
    from bnew.packing.reading import Operation


_PERMUTED = "dimensions are permuted only around a layer norm: the channels last before it, and back after it"


def batch_norm(
    op: Operation,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    variance: Value,
    momentum: float,
    eps: float,
) -> Value:
    """γ (x − μ) / √(σ² + ε) + β, folded into a scale and a shift."""
    if not all(value is None or value.constant for value in (weight, bias, mean, variance)):
        raise Refused("its numbers depend on the input")

    def fold() -> tuple[Numbers, Numbers]:
        # γ (v − μ) / √(σ² + ε) + β = s v + (β − μ s) with s = γ / √(σ² + ε)
        mu, var = op.array(mean), op.array(variance)
        gamma = np.ones_like(mu) if weight is None else op.array(weight)
        beta = np.zeros_like(mu) if bias is None else op.array(bias)
        scale = gamma / np.sqrt(var + eps)
        return scale, beta - mu * scale

    scale, shift = op.once(("norm", weight, bias, mean, variance, eps), fold)
    return shifted(op, scaled(op, op.real(x), scale), shift)


def layer_norm(
    op: Operation,
    x: Value,
    size: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Value:
    """(x − m) / √(s + ε) · weight + bias, over the channels, which are the last dimension."""
    last = x.notes.get("channels_last")
    before = last or x
    vector = op.rank == 2 or (len(size) == op.rank - 1 and before.shape[1:] == (1, 1))
    if not vector and (last is None or len(size) != 1):
        raise Refused("it is packed only over the channels, of vectors or of images (N, H, W, C)")
    result = _normalised(op, before, eps)
    if weight is not None:
        result = scaled(op, result, op.array(weight))
    if bias is not None:
        result = shifted(op, result, op.array(bias))
    return result if last is None else _channels_last(op, result, x.notes["order"])


def _normalised(op: Operation, x: Value, eps: float) -> Value:
    if not np.float32(eps) > 0:
        raise Refused(f"its eps is {eps}, but must be above 0")
    return op.make("layer_norm", op.real(x), shape=x.shape, fields={"eps": float(eps)})


def permute(op: Operation, x: Value, dims: Sequence[int]) -> Value:
    """Another order of the dimensions: channels last for a layer norm, and back."""
    order = [dim % op.rank for dim in dims]
    if order == sorted(order):
        return x
    if "channels_last" in x.notes and [x.notes["order"][dim] for dim in order] == list(range(op.rank)):
        back: Value = x.notes["channels_last"]
        return back
    if order[0] != 0 or order[-1] != 1 or x.op == "refused":
        raise Refused(_PERMUTED)
    return _channels_last(op, x, order)


def transpose(op: Operation, x: Value, first: int, second: int) -> Value:
    """:func:`permute` of two dimensions."""
    order = list(range(op.rank))
    order[first], order[second] = order[second], order[first]
    return permute(op, x, order)


def _channels_last(op: Operation, x: Value, order: Sequence[int]) -> Value:
    """``x`` in another order of its dimensions. Refused, unless the next operator takes it over."""
    return op.make("refused", x, notes={"why": _PERMUTED, "channels_last": x, "order": order})


# ----------------------------------------------------------------------- layer norm written as a formula


def quotient(op: Operation, a: Operand, b: Operand, **options: Any) -> Value | None:
    """The layer norm (x − m) / √(s + ε); None if a / b is another quotient."""
    match _call(b):
        case "sqrt", (total,), _ if not options:
            return _formula(op, a, total)
    return None


def product(op: Operation, a: Operand, b: Operand) -> Value | None:
    """The layer norm (x − m) · (s + ε)^−½; None if a · b is another product."""
    for centred, factor in ((a, b), (b, a)):
        match _call(factor):
            case "rsqrt", (total,), _:
                return _formula(op, centred, total)
    return None


def _formula(op: Operation, centred: Operand, total: Operand) -> Value | None:
    """The layer norm of x, if ``centred`` is x − m and ``total`` is s + ε of the same x."""
    x = _centred(centred)
    match _call(total):
        case "add", (variance, float(eps)), {**options} if not options:
            if x is not None and _varies_by(variance) is x and x.shape == op.shape:
                return _normalised(op, x, eps)
    return None


def _centred(value: Operand) -> Value | None:
    """x, if the value is x − m."""
    match _call(value):
        case "sub", (Value() as x, mean), {**options} if not options and _mean(mean) is x:
            return x
    return None


def _varies_by(value: Operand) -> Value | None:
    """x, if the value is s, for example as the mean of (x − m)²."""
    match _call(value):
        case "var", (Value() as x, *rest), options if _is_biased(*rest, **options):
            return x
        case "getitem", (both, 0), _:
            return _moments(both)
    match _call(_mean(value)):
        case ("pow", (centred, 2), _) | ("square", (centred,), _):
            return _centred(centred)
        case "mul", (a, b), _ if a is b:
            return _centred(a)
    return None


def _mean(value: Operand) -> Value | None:
    """x, if the value is m."""
    match _call(value):
        case "mean", (Value() as x, [1], True), {**options} if not options:
            return x
        case "getitem", (both, 1), _:
            return _moments(both)
    return None


def _moments(value: Operand) -> Value | None:
    """x, if the value is the pair (s, m)."""
    match _call(value):
        case "var_mean", (Value() as x, *rest), options if _is_biased(*rest, **options):
            return x
    return None


def _is_biased(
    dims: Sequence[int] = (), unbiased: bool = True, keepdim: bool = False, *, correction: float = 1
) -> bool:
    """Whether a variance with these arguments is over the channels and divides by n, not by n − 1."""
    return list(dims) == [1] and keepdim and (not unbiased or correction == 0)


def _call(value: Operand | None) -> tuple[Any, ...] | None:
    """(ATen operator, arguments, options) that a refused value comes from; None for other values."""
    return value.notes.get("call") if isinstance(value, Value) else None
