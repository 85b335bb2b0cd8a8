"""Lowers ATen's signs, comparisons and conditions: choices between two numbers, or between two values."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bnew.packing.adaptors import anywhere, joins, together
from bnew.packing.arithmetic import add, in_float32, mul, scaled, shifted, sub
from bnew.packing.bounds import bounds
from bnew.packing.ties import compared_before
from bnew.packing.values import Lowering, Operand, Refused, Value

if TYPE_CHECKING:
    from bnew.packing.operation import Operation

Side: TypeAlias = tuple[Any, Sequence[int]]  # an operand and its size

MASKED = -1e30  # exp of it is 0, and it is finite


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


# ------------------------------------------------------------------------------------------ comparisons


def compare(join: Callable[[Any, Any], Any], strict: bool, high: int) -> Lowering:
    """The lowering of the comparison ``join`` of x and y, whose result is 1 or 0.

    It is ``high`` where x − y ≥ 0, else 1 − ``high``. If ``strict``, the condition is x − y > 0, computed as
    not (y − x ≥ 0).
    """

    def lower(op: Operation, x: Operand, y: Operand) -> Value:
        if (exactly := compared_before(op, x, y, join)) is not None:
            return exactly
        found = _compared(op, x, y)
        if isinstance(found, tuple):
            choice, numbers = found
            return op.make("choice", *choice.inputs, numbers=join(choice.numbers, numbers).astype(np.float64))
        if not strict:
            return op.make("choice", found, numbers=np.array([[high], [1.0 - high]]))
        opposite = op.once(("opposite", found), lambda: _opposite(op, found))
        return op.make("choice", opposite, numbers=np.array([[1.0 - high], [high]]))

    return lower


def equal(op: Operation, x: Operand, y: Operand) -> Value:
    """1 where x = y, else 0."""
    least = compared_before(op, x, y, operator.ge)
    more = compared_before(op, x, y, operator.gt)
    if least is not None and more is not None:
        return op.make("multiply", op.real(least), op.real(negated(op, more)))
    found = _compared(op, x, y)
    if isinstance(found, tuple):
        choice, numbers = found
        same = (choice.numbers == numbers).astype(np.float64)
        return op.make("choice", *choice.inputs, numbers=same)
    opposite = op.once(("opposite", found), lambda: _opposite(op, found))
    sides = (op.make("choice", side, numbers=np.array([[1.0], [0.0]])) for side in (found, opposite))
    return op.make("multiply", *map(op.real, sides))


def different(op: Operation, x: Operand, y: Operand) -> Value:
    """1 where x ≠ y, else 0."""
    return negated(op, equal(op, x, y))


def _compared(op: Operation, x: Operand, y: Operand) -> Value | tuple[Value, Any]:
    """x − y, or a choice x and the numbers y."""
    numbers = op.numbers(y)
    if numbers is not None and not np.all(np.isfinite(numbers)):
        raise Refused("it compares with NaN or an infinite number")
    if isinstance(x, Value) and x.op == "choice" and numbers is not None:
        return x, in_float32(numbers, op.dtype_of(op.node.args[0]))
    if numbers is not None and isinstance(x, Value) and not x.constant:
        difference = shifted(op, x, -numbers) if np.any(numbers) else x
        key: Any = ("difference", x, tuple(numbers))
    else:
        for side in (x, y):
            check_finite(op, side, "it compares with a value that may be infinite or NaN")
        difference = sub(op, x, y)
        key = ("difference", x, y, op.layout)
        if difference.op == "choice":
            return difference, np.zeros(1)
    result: Value = op.once(key, lambda: difference)
    return result


def _opposite(op: Operation, x: Value) -> Value:
    """−x, for a comparison."""
    result = scaled(op, x, np.array([-1.0]))
    return replace(result, notes={**result.notes, "opposite_of": x})


# ---------------------------------------------------------------------------------------------- conditions


def negation(op: Operation, x: Value) -> Value:
    """1 where x is 0, else 0."""
    is_bool = str(op.dtype_of(op.node.args[0])) == "torch.bool"
    if x.op == "choice" and (is_bool or op.name != "bitwise_not"):
        return op.make("choice", *x.inputs, numbers=1.0 - (x.numbers != 0), shape=x.shape)
    if not is_bool:
        raise Refused("only the negation of a comparison is packed")
    return negated(op, x)


def negated(op: Operation, x: Value) -> Value:
    """1 − x."""
    return shifted(op, scaled(op, x, np.array([-1.0])), np.array([1.0]))


def logical(lower: Callable[..., Value]) -> Lowering:
    """``lower`` for two conditions."""

    def checked(op: Operation, x: Operand, y: Operand) -> Value:
        if any(str(op.dtype_of(node)) != "torch.bool" for node in op.node.args[:2]):
            raise Refused("it is packed only for comparisons")
        return joins(lower)(op, *(_truth(op, side) for side in (x, y)))

    return checked


def both(op: Operation, x: Operand, y: Operand) -> Value:
    """1 where both conditions hold."""
    return mul(op, x, y)


def either(op: Operation, x: Operand, y: Operand) -> Value:
    """1 where one of two conditions holds, or both: x + y − x · y."""
    return sub(op, add(op, x, y), mul(op, x, y))


def _truth(op: Operation, x: Operand) -> Operand:
    if not isinstance(x, Value):
        return float(bool(x))
    return op.derived(x, lambda tensor: tensor.bool().float()) if x.constant else x


# ----------------------------------------------------------------------------------- choosing between values


def where(op: Operation, condition: Value, yes: Operand, no: Operand) -> Value:
    """``yes`` where the condition is not 0, else ``no``."""
    sides = zip((condition, yes, no), map(op.size_of, op.node.args[:3]), strict=True)
    return chosen(op, *sides)


def filled(op: Operation, x: Value, mask: Value, number: Operand) -> Value:
    """``number`` where the mask is not 0, else x."""
    first, second, third = op.node.args[:3]
    if isinstance(number, Value) and number.constant:
        number = op.derived(number, lambda tensor: tensor.to(op.dtype))
    elif not isinstance(number, Value):
        number = op.in_type(number)
    sides = ((mask, second), (number, third), (x, first))
    return chosen(op, *((side, op.size_of(node)) for side, node in sides))


def chosen(op: Operation, condition: Side, yes: Side, no: Side) -> Value:
    """c · ``yes`` + (1 − c) · ``no``, where the condition c is 1 or 0; exact, for finite numbers.

    Raises:
        Refused: one of the values may be infinite or NaN where it is not chosen, so that its product with 0
            would not be 0.
    """
    mask, size = condition
    if mask.constant:
        holds = op.derived(mask, lambda tensor: tensor.bool().float())
        fails = op.derived(holds, lambda ones: 1 - ones)
    else:
        holds, fails = mask, anywhere(negated)(op.with_sizes(size), mask)
    parts = [
        part
        for c, (x, own) in ((holds, yes), (fails, no))
        if (part := _product(op, (c, size), (x, own), mask.constant)) is not None
    ]
    if not parts:
        return op.derived(op.filled(0), lambda tensor: tensor.expand(op.size))
    if len(parts) == 1:
        source, reached = parts[0]
        return _broadcast(op, source, reached)
    return together(op, add, *parts)


def _product(op: Operation, c: Side, x: Side, constant: bool) -> Side | None:
    """c · x and its size; None if x is 0."""
    reached = np.broadcast_shapes(tuple(c[1]), tuple(x[1]))
    operand = x[0] if isinstance(x[0], Value) else op.filled(float(x[0]))
    tensor = operand.tensor
    if tensor is None:
        check_finite(op, operand, "one of its values may be infinite or NaN where it is not chosen")
    else:
        if constant:
            mask: Any = c[0].tensor
            tensor = tensor.expand(reached).masked_fill(mask == 0, 0)
            operand = op.make("evaluated", tensor=tensor)
        if not bool(tensor.any()):
            return None
        if not bool(tensor.isfinite().all()):
            operand = _hidden(op, operand, constant)
        if constant:
            return operand, reached
    return together(op, mul, c, (operand, x[1])), reached


def _broadcast(op: Operation, x: Value, size: Sequence[int]) -> Value:
    return anywhere(lambda op, x: x)(op.with_input_size(size), x)


def check_finite(op: Operation, x: Operand, why: str) -> None:
    """Check that a value is finite whatever the image is; ``why`` says what for.

    Raises:
        Refused: it may be infinite or NaN.
    """
    if isinstance(x, Value) and not x.constant and bounds(x, op.once(("bounds",), dict)) is None:
        raise Refused(f"{why}: clamp what is divided by or what a root, a logarithm or exp is taken of")


# --------------------------------------------------------------------------------------------- −∞ as a mask


def hiding(lower: Lowering) -> Lowering:
    """``lower``, but a constant's −∞ becomes a number that a softmax makes 0, if one follows."""

    @wraps(lower)
    def lowered(op: Operation, *operands: Any, **options: Any) -> Value:
        def change(x: Any) -> Any:
            tensor = x.tensor if isinstance(x, Value) else None
            infinite = tensor is not None and tensor.is_floating_point() and bool(tensor.isinf().any())
            return _hidden(op, x, True) if infinite else x

        return lower(op, *map(change, operands), **options)

    return lowered


def _hidden(op: Operation, x: Value, constant: bool) -> Value:
    """A constant with :data:`MASKED` in place of −∞.

    Raises:
        Refused: the result is used by something else than a softmax, or every number of a softmax is hidden.
    """
    tensor: Any = x.tensor
    if bool((tensor.isinf() & (tensor > 0)).any()) or bool(tensor.isnan().any()):
        raise Refused("its constant is NaN or infinite")
    dims = _softmax_dims(op.node)
    if not dims:
        raise Refused("its constant is infinite, which is packed only right before a softmax")
    whole = tensor.expand(op.size)
    if not constant or any(bool(whole.isneginf().all(dim).any()) for dim in dims):
        raise Refused("it may hide every number of a softmax, whose result is then NaN; use a finite number")
    return op.derived(x, lambda tensor: tensor.clamp(min=MASKED))


def _softmax_dims(node: Any) -> set[int]:
    """The dimensions, from the last, of the softmaxes that use a node; empty if anything else uses it."""
    found: set[int] = set()
    for user in node.users:
        if user.op == "output":
            return set()
        name = str(getattr(getattr(user.target, "overloadpacket", user.target), "__name__", user.target))
        size, before = (each.meta["val"].shape for each in (user, node))
        if name in ("softmax", "_softmax"):
            dims = {user.args[1] % len(size) - len(size)}
        elif name in ("view", "reshape", "_unsafe_view") and size[-1] == before[-1]:
            dims = _softmax_dims(user) & {-1}
        elif name in ("add", "masked_fill", "dropout", "clone", "contiguous") and size == before:
            dims = _softmax_dims(user)
        else:
            dims = set()
        if not dims:
            return set()
        found |= dims
    return found
