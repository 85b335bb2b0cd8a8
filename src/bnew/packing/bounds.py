"""Between which numbers a value stays, and whether it may be infinite or NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import TypeAlias

import numpy as np

from bnew.packing.values import Value, ancestors

Range: TypeAlias = tuple[float, float]  # infinite limits: any finite number

_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_EXPONENT = 88.0  # exp of it is finite in float32
_LEAST = 2.0**-126  # 1 / of less may be infinite in float32
_WHOLE: Range = (-math.inf, math.inf)


def bounds(value: Value, found: dict[Value, Range | None]) -> Range | None:
    """The least and the greatest number that a value can be; None if it may be infinite or NaN.

    A number that is too large for float32 only because the network's numbers grew does not count, unless it
    is known how far they grow. ``found`` keeps the results.
    """
    for each in ancestors(value, known=found):
        inputs = [found[v] for v in each.inputs if not v.constant]
        known = [limits for limits in inputs if limits is not None]
        limits = _of(each, known) if len(known) == len(inputs) else None
        too_large = limits is not None and any(_LARGEST < abs(limit) < math.inf for limit in limits)
        found[each] = None if too_large else limits
    return found[value]


def _spanned(numbers: object) -> Range | None:
    array = np.asarray(numbers, np.float64)
    return (float(array.min()), float(array.max())) if np.isfinite(array).all() and array.size else None


def _of(value: Value, inputs: Sequence[Range]) -> Range | None:
    if value.op == "multiply" and value.inputs[0] is value.inputs[1]:
        return _magnitude(_times(*inputs))
    if value.op in _STEPS:
        return _STEPS[value.op](*inputs)
    if value.op in _PLACES:
        low, high = zip(*inputs, strict=True)
        ends = [*low, *high, *([0.0] if value.op == "avg_pool" else [])]
        ends += [value.fields.get("value", 0.0)] if value.op in ("pad", "padding") else []
        return min(ends), max(ends)
    match value.op:
        case "choice":
            return _spanned(value.numbers)
        case "argmax":
            return 0.0, float(value.inputs[0].shape[0] - 1)
        case "constant":
            return _spanned(value.tensors["weight"])
        case "clamp":
            ends = np.clip(np.array(inputs[0]), *value.argument)
            return float(ends[0]), float(ends[1])
        case "scale":
            numbers = _spanned(value.numbers)
            return None if numbers is None else _times(inputs[0], numbers)
        case "shift":
            numbers = _spanned(value.numbers)
            return None if numbers is None else _plus(inputs[0], numbers)
        case "prelu":
            numbers = _spanned(value.numbers)
            below = None if numbers is None else _times((min(inputs[0][0], 0.0), 0.0), numbers)
            return None if below is None else (min(below), max(*below, inputs[0][1]))
    return _WHOLE if value.op in _FINITE else None  # also of an operator that is not known here


def _plus(x: Range, y: Range) -> Range:
    return x[0] + y[0], x[1] + y[1]


def _times(x: Range, y: Range) -> Range:
    ends = [0.0 if 0 in (a, b) else a * b for a, b in product(x, y)]
    return min(ends), max(ends)


def _magnitude(x: Range) -> Range:
    most = max(abs(x[0]), abs(x[1]))
    return (0.0 if x[0] <= 0 <= x[1] else min(abs(x[0]), abs(x[1]))), most


def _exp(x: Range) -> Range | None:
    return (math.exp(x[0]), math.exp(x[1])) if x[1] <= _LARGEST_EXPONENT else None


def _log(x: Range) -> Range | None:
    return (math.log(x[0]), math.inf if x[1] == math.inf else math.log(x[1])) if x[0] > _LEAST else None


def _sqrt(x: Range) -> Range | None:
    return (math.sqrt(x[0]), math.sqrt(x[1])) if x[0] >= 0 else None


def _reciprocal(x: Range) -> Range | None:
    return (1 / x[1], 1 / x[0]) if x[0] > _LEAST or x[1] < -_LEAST else None


def _gate(x: Range) -> Range:
    return -1.0, max(x[1], 0.0)


_STEPS: Mapping[str, Callable[..., Range | None]] = {
    "add": _plus,
    "multiply": _times,
    "exp": _exp,
    "log": _log,
    "sqrt": _sqrt,
    "reciprocal": _reciprocal,
    "abs": _magnitude,
    "round": lambda x: (float(np.rint(x[0])), float(np.rint(x[1]))),
    "softplus": lambda x: (0.0, math.inf),
    "log_softmax": lambda x: (-math.inf, 0.0),
    **dict.fromkeys(["elu", "gelu", "gelu_tanh", "silu", "hard_swish", "mish"], _gate),
    **dict.fromkeys(["sigmoid", "hard_sigmoid", "softmax"], lambda x: (0.0, 1.0)),
    **dict.fromkeys(["sign", "tanh", "softsign", "l2_norm"], lambda x: (-1.0, 1.0)),
}
# Sums and products of finite numbers, and quotients by what is above 0.
_FINITE = {
    *("input", "bits", "conv", "binary_conv", "matmul", "layer_norm", "rms_norm", "group_norm"),
}
# Their results are numbers of their inputs, or means of them.
_PLACES = {
    *("adaptive_avg_pool", "avg_pool", "concat", "concat_columns", "concat_rows", "flatten", "identity"),
    *("max_pool", "pad", "padding", "rearrange", "resize_bilinear", "resize_nearest", "view"),
}
