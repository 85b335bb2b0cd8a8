"""Lowers ATen's activations, and its operators that only change a value's shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bnew.packing.arithmetic import fits
from bnew.packing.values import Lowering, Operand, Refused, Value

if TYPE_CHECKING:
    from bnew.packing.reading import Operation


def clamp(op: Operation, x: Value, min: Operand | None = None, max: Operand | None = None) -> Value:
    """min(max(x, ``min``), ``max``)."""
    limits: list[float | None] = []
    for limit in (min, max):
        numbers = None if limit is None else op.numbers(limit)
        if limit is not None and (numbers is None or len(numbers) > 1):
            raise Refused("its limits are not the same two numbers everywhere")
        with np.errstate(over="ignore"):
            limits.append(
                None if numbers is None else float(np.float32(numbers[0]))
            )  # PyTorch compares in float32
    if any(limit is not None and math.isnan(limit) for limit in limits):
        raise Refused("one of its limits is NaN")
    if limits[0] == math.inf or limits[1] == -math.inf:
        raise Refused("its limits leave no finite number")
    limits = [None if limit is None or math.isinf(limit) else limit for limit in limits]
    if limits == [None, None]:
        return x
    return op.make("clamp", op.real(x), argument=limits)


def clamp_max(op: Operation, x: Value, max: Operand) -> Value:
    """min(x, ``max``)."""
    return clamp(op, x, max=max)


def hardtanh(op: Operation, x: Value, min_val: float = -1, max_val: float = 1) -> Value:
    """min(max(x, ``min_val``), ``max_val``)."""
    return clamp(op, x, min_val, max_val)


def relu(op: Operation, x: Value) -> Value:
    """max(x, 0)."""
    return clamp(op, x, 0)


def relu6(op: Operation, x: Value) -> Value:
    """min(max(x, 0), 6)."""
    return clamp(op, x, 0, 6)


def prelu(op: Operation, x: Value, slope: Value) -> Value:
    """x where x ≥ 0, else x · slope."""
    if not slope.constant:
        raise Refused("its slope depends on the input")
    # (C) is per channel here, whatever the rank.
    return op.make("prelu", op.real(x), numbers=op.array(slope))


def leaky_relu(op: Operation, x: Value, negative_slope: float = 0.01) -> Value:
    """x where x ≥ 0, else x · ``negative_slope``."""
    return op.make("prelu", op.real(x), numbers=np.array([negative_slope]))


def pointwise(step: str) -> Lowering:
    """The lowering to a step without an argument."""
    return lambda op, x: op.make(step, op.real(x), argument={})


def gelu(op: Operation, x: Value, approximate: str = "none") -> Value:
    """x · Φ(x), or its approximation by tanh."""
    return op.make("gelu_tanh" if approximate == "tanh" else "gelu", op.real(x), argument={})


def gated(gate: str) -> Lowering:
    """The lowering to x · gate(x)."""
    return lambda op, x: op.make("multiply", op.real(x), op.make(gate, op.real(x), argument={}))


def softmax(op: Operation, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    """exp(x) / Σ exp(x), over the channels."""
    if dim % op.rank != 1:
        raise Refused("softmax is packed only over the channels")
    return op.make("softmax", op.real(x))


# ----------------------------------------------------------------------------------------------- shapes


def first(op: Operation, x: Value, index: int) -> Value:
    """The first of several results."""
    if index != 0:
        raise Refused("only the first of several results can be packed")
    return x


def reshape(op: Operation, x: Value, *_: Any, **__: Any) -> Value:
    """(N, C, H, W) as (N, C · H · W), or unchanged."""
    if op.shape == x.shape:
        return x
    if op.shape == (int(np.prod(x.shape)), 1, 1):
        return op.make("flatten", op.real(x))
    raise Refused("a value is reshaped to a vector only")


def expand(op: Operation, x: Value, *_: Any, **__: Any) -> Value:
    """x itself: the sum or product that uses it repeats it over height and width."""
    if not fits(x.shape, op.shape):
        raise Refused("a value is expanded only over height and width")
    return x  # the other operand of the sum or product has the full size


def whole(op: Operation, x: Value, *_: Any, **__: Any) -> Value:
    """A slice, if it is the whole value."""
    if op.shape != x.shape:
        raise Refused("a part of a value is not packed, only the whole")
    return x


def concat(op: Operation, parts: Sequence[Value], dim: int = 0) -> Value:
    """The channels of all parts, one part after the other."""
    if dim % op.rank != 1:
        raise Refused("values are packed side by side only as channels (dim 1)")
    if any(part.constant for part in parts):
        raise Refused("one of the values side by side is a constant")
    return op.make("concat", *map(op.real, parts))
