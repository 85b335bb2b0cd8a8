"""Lowers ATen's signs and comparisons to choices between two numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bnew.packing.arithmetic import scaled, shifted
from bnew.packing.values import Lowering, Operand, Refused, Value

if TYPE_CHECKING:
    from bnew.packing.operation import Operation


def sign(op: Operation, x: Value) -> Value:
    """+1 or −1. Refused where x may be exactly 0, except by a coincidence of rounding."""
    if x.op == "choice":  # the sign of one of two numbers
        return op.make("choice", *x.inputs, numbers=np.sign(x.numbers), shape=x.shape)
    found = op.held(x)
    zero = "its input may be exactly 0"
    if np.any(found.known_at_zero):
        why = f"{zero}, as pixels, sums of signs or what follows a relu may"
        advice = "compare with >= or > instead"
    elif np.any(found.at_any):
        why = f"bnew cannot tell whether {zero}"
        advice = "compare with >= or > instead, or give mean and std if it is made of the image's own numbers"
    else:
        return op.make("choice", x, numbers=np.array([[1.0], [-1.0]]))
    raise Refused(f"{why}, where torch.sign is 0 but a bit is +1 or -1; {advice}")


def compare(join: Callable[[Any, Any], Any], strict: bool, high: int) -> Lowering:
    """The lowering of the comparison ``join`` of x with a constant y, whose result is 1 or 0.

    It is ``high`` where x − y ≥ 0, else 1 − ``high``. If ``strict``, the condition is x − y > 0, computed as
    not (y − x ≥ 0).
    """

    def lower(op: Operation, x: Value, y: Operand) -> Value:
        numbers = op.numbers(y)
        if numbers is None or x.constant:
            raise Refused("only comparison with a constant is packed")
        if x.shape != op.shape:
            raise Refused("a value is compared only with a constant that is not larger than it")
        if x.op == "choice":
            return op.make("choice", *x.inputs, numbers=join(x.numbers, numbers).astype(np.float64))
        if not np.all(np.isfinite(numbers)):
            raise Refused("it compares with NaN or an infinite number")
        difference = shifted(op, x, -numbers) if np.any(numbers) else x
        key = ("difference", x, tuple(numbers))
        difference = op.once(key, lambda: difference)
        if not strict:
            return op.make("choice", difference, numbers=np.array([[high], [1.0 - high]]))
        opposite = op.once(("opposite", difference), lambda: _opposite(op, difference))
        return op.make("choice", opposite, numbers=np.array([[1.0 - high], [high]]))

    return lower


def _opposite(op: Operation, x: Value) -> Value:
    """−x, for a comparison."""
    result = scaled(op, x, np.array([-1.0]))
    return replace(result, notes={**result.notes, "opposite_of": x})


def negation(op: Operation, x: Value) -> Value:
    """1 where x is 0, else 0."""
    if x.op != "choice" or (op.name == "bitwise_not" and str(op.dtype) != "torch.bool"):
        raise Refused("only the negation of a comparison is packed")
    return op.make("choice", *x.inputs, numbers=1.0 - (x.numbers != 0), shape=x.shape)


def where(op: Operation, condition: Value, yes: Operand, no: Operand) -> Value:
    """``yes`` where the condition is not 0, else ``no``."""
    high, low = op.numbers(yes), op.numbers(no)
    if condition.op != "choice" or high is None or low is None:
        raise Refused("it is packed only where a comparison chooses between two constants")
    if condition.shape != op.shape:
        raise Refused("what a comparison chooses between is larger than what is compared")
    return op.make("choice", *condition.inputs, numbers=np.where(condition.numbers != 0, high, low))
