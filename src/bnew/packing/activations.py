"""Lowers ATen's activations."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from bnew.packing import choices
from bnew.packing.adaptors import anywhere, together
from bnew.packing.arithmetic import add, mul, scaled, shifted
from bnew.packing.bounds import bounds
from bnew.packing.values import Lowering, Numbers, Operand, Refused, Value
from bnew.packing.views import shown, view, with_channels

if TYPE_CHECKING:
    from bnew.packing.operation import Operation

_LARGEST_EXPONENT = 16
_MOST_STEPS = 64  # of a rounding
_FINEST = 2.0**-10  # multiples of a multiple of it are exact in float32
_SLACK = 1e-5  # relative, for limits that float32 rounds
_LARGEST_LIMIT = 256  # of a clamp per channel: (x − limit) + limit loses what is small beside the limit


def clamp(op: Operation, x: Value, min: Operand | None = None, max: Operand | None = None) -> Value:
    """min(max(x, ``min``), ``max``)."""
    limits: list[float | None] = []
    for limit, lower in ((min, True), (max, False)):
        numbers = None if limit is None else op.numbers(limit)
        if limit is not None and numbers is None:
            raise Refused("its limits depend on the input")
        if numbers is not None and len(set(numbers)) > 1:
            x, numbers = _clamped_per_channel(op, x, numbers, lower=lower), None
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


def limited(op: Operation, x: Value, min: Operand | None = None, max: Operand | None = None) -> Value:
    """:func:`clamp` with limits that may be values, for tensors of any layout."""
    size = op.input_size
    for limit, lower in ((min, maximum), (max, minimum)):
        if isinstance(limit, Value):
            is_second = lower is minimum and op.name == "clamp"
            further = [*op.node.args[1:], *op.node.kwargs.values()]
            node = op.node.kwargs.get("max") or further[-1] if is_second else further[0]
            x = together(op, lower, (x, size), (limit, op.size_of(node)))
            size = op.size
        elif limit is not None:
            bound = {"min" if lower is maximum else "max": limit}
            x = anywhere(clamp)(op.with_input_size(size), x, **bound)
    return x


def limited_above(op: Operation, x: Value, max: Operand) -> Value:
    """min(x, ``max``), for tensors of any layout."""
    return limited(op, x, max=max)


def _clamped_per_channel(op: Operation, x: Value, limits: Numbers, *, lower: bool) -> Value:
    """max(x, ``limits``) or min(x, ``limits``), as max(x − limits, 0) + limits."""
    if not np.all(np.abs(limits) <= _LARGEST_LIMIT):
        raise Refused(f"its limits differ between channels, and one is not between ±{_LARGEST_LIMIT}")
    centred = shifted(op, op.real(x), -limits)
    return shifted(op, op.make("clamp", centred, argument=[0, None] if lower else [None, 0]), limits)


def maximum(op: Operation, a: Operand, b: Operand) -> Value:
    """max(a, b)."""
    return _further(op, a, b, clamp, operator.ge, 1)


def minimum(op: Operation, a: Operand, b: Operand) -> Value:
    """min(a, b)."""
    return _further(op, a, b, clamp_max, operator.le, 0)


def _further(
    op: Operation, a: Operand, b: Operand, limit: Lowering, join: Callable[[Any, Any], Any], high: int
) -> Value:
    """``limit`` for a constant; of two values, a where ``join`` holds, else b."""
    for x, other in ((a, b), (b, a)):
        if op.numbers(other) is not None:
            return limit(op, x, other)
    holds = choices.compare(join, strict=not high, high=high)(op, a, b)
    return add(op, mul(op, holds, a), mul(op, choices.negated(op, holds), b))


def threshold(op: Operation, x: Value, least: float, value: float) -> Value:
    """x where x > ``least``, else ``value``."""
    if least == value:
        return clamp(op, x, least)
    above = choices.compare(operator.gt, strict=True, high=1)(op, x, least)
    kept = mul(op, x, above)
    return add(op, kept, shifted(op, scaled(op, above, np.array([-float(value)])), np.array([float(value)])))


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


def rrelu(
    op: Operation, x: Value, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, *_: Any
) -> Value:
    """A leaky ReLU with the mean of both slopes, as in eval mode."""
    if training:
        raise Refused("in training mode, its slopes are random")
    return leaky_relu(op, x, (lower + upper) / 2)


def pointwise(step: str) -> Lowering:
    """The lowering to a step without an argument."""
    return lambda op, x: op.make(step, op.real(x), argument={})


def rounded(op: Operation, x: Value, *, decimals: int = 0) -> Value:
    """The nearest whole number, of two the even one."""
    if decimals:
        raise Refused(f"with decimals={decimals}, it is not packed: multiply, round and divide instead")
    return op.make("round", op.real(x), argument={})


def gelu(op: Operation, x: Value, approximate: str = "none") -> Value:
    """x · Φ(x), or its approximation by tanh."""
    return op.make("gelu_tanh" if approximate == "tanh" else "gelu", op.real(x), argument={})


def elu(op: Operation, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    """``scale`` · x where x ≥ 0, else ``scale`` · ``alpha`` · (exp(``input_scale`` · x) − 1)."""
    if not (input_scale > 0 and math.isfinite(alpha) and math.isfinite(scale)):
        raise Refused("its numbers are not finite, or the scale of its input is not above 0")
    result = op.make("elu", _times(op, x, input_scale), argument={})
    if alpha * input_scale != 1:
        result = op.make("prelu", result, numbers=np.array([alpha * input_scale]))
    return _times(op, result, scale / input_scale)


def selu(op: Operation, x: Value) -> Value:
    """:func:`elu` with the two numbers of its paper."""
    return elu(op, x, 1.6732632423543772, 1.0507009873554805)


def celu(op: Operation, x: Value, alpha: float = 1) -> Value:
    """x where x ≥ 0, else ``alpha`` · (exp(x / ``alpha``) − 1)."""
    if not alpha > 0:
        raise Refused("its alpha is not above 0")
    return elu(op, x, alpha, 1, 1 / alpha)


def softplus(op: Operation, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    """log(1 + exp(``beta`` · x)) / ``beta``; x itself beyond the threshold, where both are the same."""
    if not beta > 0:
        raise Refused("its beta is not above 0")
    if not (threshold > 0 and math.exp(-threshold) <= 2**-24 * threshold):
        raise Refused("beyond its threshold, it jumps to its input")
    return _times(op, op.make("softplus", _times(op, x, beta), argument={}), 1 / beta)


def log_sigmoid(op: Operation, x: Value) -> Value:
    """log(1 / (1 + exp(−x))) = −softplus(−x)."""
    return _times(op, op.make("softplus", _times(op, x, -1), argument={}), -1)


def softsign(op: Operation, x: Operand, divisor: Operand) -> Value | None:
    """x / (1 + |x|), if the divisor is 1 + |x|; else None."""
    match divisor:
        case Value(op="shift", inputs=(Value(op="abs", inputs=(same,)),)) if same is x:
            if np.all(divisor.numbers == 1):
                return op.make("softsign", same, argument={})
    return None


def rsqrt(op: Operation, x: Value) -> Value:
    """1 / √x."""
    return op.make("reciprocal", op.make("sqrt", op.real(x), argument={}), argument={})


def square(op: Operation, x: Value) -> Value:
    """x²."""
    return power(op, x, 2)


def power(op: Operation, x: Operand, exponent: Operand) -> Value:
    """x to a constant exponent: by products and a root, or exp(exponent · log(x)).

    The base may be the constant instead, if it is above 0.
    """
    base = op.numbers(x)
    if base is not None and isinstance(exponent, Value) and not exponent.constant:
        if not np.all(base > 0):
            raise Refused("its base is constant and not above 0")
        return op.make("exp", scaled(op, op.real(exponent), np.log(base)), argument={})
    numbers = op.numbers(exponent)
    if numbers is None or not isinstance(x, Value) or not np.all(np.isfinite(numbers)):
        raise Refused("a power is packed only with a constant exponent or a constant base")
    real = op.real(x)
    wanted = float(numbers[0])
    size = abs(wanted)
    if len(set(numbers)) > 1 or size not in (0.5, *range(1, _LARGEST_EXPONENT + 1)):
        if any(numbers == np.trunc(numbers)):  # whose powers are known for numbers below 0 too
            raise Refused(
                f"it has whole exponents, of which only one from ±1 to ±{_LARGEST_EXPONENT} is packed"
            )
        logarithm = op.make("log", real, argument={})
        return op.make("exp", scaled(op, logarithm, numbers), argument={})
    result = op.make("sqrt", real, argument={}) if size == 0.5 else real
    for digit in f"{int(size):b}"[1:]:  # from the highest: squares, and products with x
        result = op.make("multiply", result, result)
        result = op.make("multiply", result, real) if digit == "1" else result
    return op.make("reciprocal", result, argument={}) if wanted < 0 else result


def in_whole_numbers(place: Callable[[int], tuple[float, bool]]) -> Lowering:
    """The lowering of a rounding of x, whose limits are known, to whole numbers.

    ``place``: k → (the least x that becomes k + 1, whether it does so itself). The result is a sum of
    comparisons. With a ``unit``, x / ``unit`` is rounded.
    """

    def lower(op: Operation, x: Value, unit: float = 1) -> Value:
        limits = bounds(x, op.once(("bounds",), dict)) or (-math.inf, math.inf)
        low, high = (limit / unit for limit in limits)
        if not high - low <= _MOST_STEPS:
            raise Refused(
                "it is packed only for numbers between limits, such as those of a clamp, that are at most "
                f"{_MOST_STEPS} apart"
            )
        slack = _SLACK * max(1, abs(low), abs(high))
        first, last = math.floor(low - slack) - 1, math.ceil(high + slack) + 1
        steps = [(limit, closed) for limit, closed in map(place, range(first, last)) if limit <= high + slack]
        active = [(limit, closed) for limit, closed in steps if limit >= low - slack]
        # Half a sign for each step that may be taken or not; the steps before these are taken.
        middle = first + len(steps) - len(active) / 2
        halves = [op.real(_half_a_sign(op, x, limit * unit, closed)) for limit, closed in active]
        if not halves:
            return op.filled(middle)
        total = reduce(lambda a, b: op.make("add", a, b), halves)
        return shifted(op, total, np.array([float(middle)]))

    return lower


floor = in_whole_numbers(lambda k: (k + 1, True))


def floor_divide(op: Operation, x: Value, divisor: Operand) -> Value:
    """⌊x / ``divisor``⌋."""
    numbers = op.numbers(divisor)
    if numbers is None or len(numbers) > 1 or not numbers[0] > 0 or numbers[0] % _FINEST:
        raise Refused("it is packed only for one constant divisor above 0 that is a multiple of 1/1024")
    return floor(op, x, float(numbers[0]))


def remainder(op: Operation, x: Value, divisor: Operand) -> Value:
    """x − ``divisor`` · ⌊x / ``divisor``⌋."""
    whole = floor_divide(op, x, divisor)
    assert not isinstance(divisor, Value) or divisor.tensor is not None
    (number,) = op.numbers(divisor)  # type: ignore[misc]
    result = add(op, x, mul(op, whole, -float(number)))
    return clamp(op, result, 0, float(number))  # as it is already, which tells later operators


def _half_a_sign(op: Operation, x: Value, limit: float, closed: bool) -> Value:
    """1/2 where x > ``limit``, or x ≥ ``limit`` if it is ``closed``; else −1/2."""
    join = operator.ge if closed else operator.gt
    holds = choices.compare(join, strict=not closed, high=1)(op, x, float(limit))
    return shifted(op, holds, np.array([-0.5]))


def _times(op: Operation, x: Value, factor: float) -> Value:
    real = op.real(x)
    return real if factor == 1 else scaled(op, real, np.array([float(factor)]))


def over_channels(name: str) -> Lowering:
    """The lowering to ``softmax`` or ``log_softmax``, over a dimension."""

    def lower(op: Operation, x: Value, dim: int, *_: Any, **__: Any) -> Value:
        source, layout = with_channels(op, *shown(op, x, op.input_size), dim % op.rank)
        return view(op, op.make(name, op.real(source), shape=source.shape), layout)

    return lower
