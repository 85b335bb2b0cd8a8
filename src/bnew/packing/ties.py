"""Comparisons of values that may be exactly equal: rounding must not tell what PyTorch's does not."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bnew.packing.arithmetic import shifted
from bnew.packing.values import Array, Operand, Value

if TYPE_CHECKING:
    from bnew.packing.operation import Operation

# PyTorch rounds after each of these; the engine may round v · s + t once, and keep what PyTorch loses.
_SINGLE = frozenset(["add", "sub", "rsub", "mul", "div", "neg"])
_MIRRORED: Mapping[Any, Any] = {
    operator.ge: operator.le,
    operator.gt: operator.lt,
    operator.le: operator.ge,
    operator.lt: operator.gt,
}
_LAST = 0x7F7FFFFF  # the bits of the largest float32


def compared_before(op: Operation, x: Operand, y: Operand, join: Callable[[Any, Any], Any]) -> Value | None:
    """The comparison of x = v · s + t with constants as one of v with the number where PyTorch's turns.

    None if x is no such value, or is not equal to the constants by construction. Example: the mean of 49
    conditions, times 49, compared with 24.
    """
    if not isinstance(x, Value) or x.constant:
        x, y, join = y, x, _MIRRORED[join]
    limits = op.numbers(y)
    if not isinstance(x, Value) or x.constant or limits is None or not np.all(np.isfinite(limits)):
        return None
    source, steps = x, list[Value]()
    while source.op in ("scale", "shift") and source.notes["call"][0] in _SINGLE:
        steps.insert(0, source)
        (source,) = source.inputs
    rising = np.prod([np.sign(step.numbers[0]) for step in steps if step.op == "scale"])
    if (
        all(step.op != "scale" for step in steps)
        or any(
            np.any(np.sign(step.numbers) != np.sign(step.numbers[0])) for step in steps if step.op == "scale"
        )
        or rising == 0
        or str(op.shared.dtype) != "torch.float32"
        or not np.any(op.held(shifted(op, x, -limits)).known_at_zero)
    ):
        return None

    def holds(v: Array) -> Array:
        for step in steps:
            numbers = step.numbers.astype(np.float32)
            if step.op == "shift":
                v = v + numbers
            else:
                is_quotient = step.notes["call"][0] == "div"
                v = v / (1 / step.numbers).astype(np.float32) if is_quotient else v * numbers
        return np.asarray(join(v, limits.astype(np.float32)))

    from_there_on = (join in (operator.ge, operator.gt)) == (rising > 0)
    first = _first(lambda v: holds(v) == from_there_on, x.shape[0])
    if not np.all(np.isfinite(first)):
        return None
    high = float(from_there_on)
    return op.make("choice", shifted(op, source, -first), numbers=np.array([[high], [1 - high]]))


def _first(holds: Callable[[Array], Array], count: int) -> Array:
    """(count,) the least float32 for which a condition holds, as for all greater ones; ∞ if for none."""
    low, high = np.full(count, -_LAST - 1, np.int64), np.full(count, _LAST + 1, np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        while np.any(high - low > 1):
            middle = (low + high) // 2  # float32 are ordered as their bits are, with their sign
            bits = np.abs(middle).astype(np.uint32).view(np.float32)
            found = holds(np.where(middle < 0, -bits, bits))
            low, high = np.where(found, low, middle), np.where(found, middle, high)
    bits = np.minimum(np.abs(high), _LAST).astype(np.uint32).view(np.float32).astype(np.float64)
    numbers = np.where(high < 0, -bits, bits)
    return np.where((high > _LAST) | (high == -_LAST), np.inf, numbers)
