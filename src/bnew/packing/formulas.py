"""Finds norms and activations that are written out in simpler operators.

m and s are the mean and the variance of x over one dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bnew.packing.activations import softsign
from bnew.packing.norms import normalised
from bnew.packing.values import Operand, Value
from bnew.packing.views import shown, view, with_channels

if TYPE_CHECKING:
    from bnew.packing.operation import Operation


def quotient(op: Operation, a: Operand, b: Operand, **options: Any) -> Value | None:
    """The layer norm (x − m) / √(s + ε), or one of its relatives; None if a / b is another quotient."""
    if options:
        return None
    match _call(b):
        case "sqrt", (total,), _:
            return _formula(op, a, total)
        case "expand", (divisor, *_), _:
            return _scaled_to_1(op, a, divisor)
    return _scaled_to_1(op, a, b) or softsign(op, a, b)


def _scaled_to_1(op: Operation, x: Operand, divisor: Operand) -> Value | None:
    """x / max(‖x‖, ε), if that is the divisor."""
    match _call(divisor):
        case "clamp_min", (norm, float(eps)), _:
            match _call(norm):
                case "linalg_vector_norm", (Value() as of, 2, [dim], True), {**others} if not others:
                    if of is x:
                        return _over(op, "l2_norm", of, dim % op.rank, eps)
    return None


def product(op: Operation, a: Operand, b: Operand) -> Value | None:
    """The layer norm (x − m) · (s + ε)^−½; None if a · b is another product."""
    for centred, factor in ((a, b), (b, a)):
        match _call(factor):
            case "rsqrt", (total,), _:
                return _formula(op, centred, total)
    return None


def _formula(op: Operation, centred: Operand, total: Operand) -> Value | None:
    """The layer norm of x, if ``centred`` is x − m and ``total`` is s + ε of the same x.

    The RMS norm, if ``centred`` is x and ``total`` the mean of x² + ε.
    """
    match _call(total):
        case "add", (variance, float(eps)), {**options} if not options:
            found = _centred(op, centred)
            if found is not None and _varies_by(op, variance) == found:
                return _over(op, "layer_norm", *found, eps)
            mean = _mean(op, variance)
            if mean is not None and _squared(mean[0]) is centred:
                return _over(op, "rms_norm", centred, mean[1], eps)
    return None


def _over(op: Operation, name: str, x: Operand, dim: int, eps: float) -> Value | None:
    assert isinstance(x, Value)
    source, layout = shown(op, x, op.size)
    if layout.size != op.size:
        return None
    source, layout = with_channels(op, source, layout, dim)
    return view(op, normalised(op.inside(source, layout), name, source, eps), layout)


def _centred(op: Operation, value: Operand | None) -> tuple[Value, int] | None:
    """x and the dimension, if the value is x − m."""
    match _call(value):
        case "sub", (Value() as x, mean), {**options} if not options:
            found = _mean(op, mean)
            return found if found is not None and found[0] is x else None
    return None


def _varies_by(op: Operation, value: Operand) -> tuple[Value, int] | None:
    """x and the dimension, if the value is s, for example as the mean of (x − m)²."""
    match _call(value):
        case "var", (Value() as x, *rest), options:
            return _biased(op, x, *rest, **options)
        case "getitem", (both, 0), _:
            return _moments(op, both)
    mean = _mean(op, value)
    found = None if mean is None else _centred(op, _squared(mean[0]))
    return found if found is not None and mean is not None and found[1] == mean[1] else None


def _squared(value: Operand) -> Any:
    """x, if the value is x²."""
    match _call(value):
        case ("pow", (x, 2), _) | ("square", (x,), _):
            return x
        case "mul", (a, b), _ if a is b:
            return a
    return None


def _mean(op: Operation, value: Operand) -> tuple[Value, int] | None:
    """x and the dimension, if the value is m."""
    match _call(value):
        case "mean", (Value() as x, [dim], True), {**options} if not options:
            return x, dim % op.rank
        case "getitem", (both, 1), _:
            return _moments(op, both)
    return None


def _moments(op: Operation, value: Operand) -> tuple[Value, int] | None:
    """x and the dimension, if the value is the pair (s, m)."""
    match _call(value):
        case "var_mean", (Value() as x, *rest), options:
            return _biased(op, x, *rest, **options)
    return None


def _biased(
    op: Operation,
    x: Value,
    dims: Sequence[int] = (),
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float = 1,
) -> tuple[Value, int] | None:
    """x and the dimension, if a variance with these arguments is over one and divides by n, not by n − 1."""
    if len(dims) == 1 and keepdim and (not unbiased or correction == 0):
        return x, dims[0] % op.rank
    return None


def _call(value: Operand | None) -> tuple[Any, ...] | None:
    """(ATen operator, arguments, options) that a value comes from; None for other values."""
    return value.notes.get("call") if isinstance(value, Value) else None
