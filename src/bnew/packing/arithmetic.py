"""Lowers ATen's sums, products and conversions, with a constant or of two values."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from bnew.packing.bounds import bounds
from bnew.packing.values import Lowering, Numbers, Operand, Refused, Value

if TYPE_CHECKING:
    from bnew.packing.operation import Operation


_LARGEST_WHOLE = 2**24  # float32 holds all whole numbers up to it


def to(op: Operation, x: Value, *_: Any, **__: Any) -> Value:
    """A conversion to another type. Only a choice between two numbers may become whole numbers.

    One to a type that rounds is refused, unless the images are of such a type themselves.
    """
    dtype = op.dtype
    # Not bool and uint8: they would change the numbers, uint8 by wrapping around below 0.
    whole = x.op == "choice" and not dtype.is_complex and str(dtype) not in ("torch.bool", "torch.uint8")
    if dtype.is_floating_point:
        return check_precision(op, x)
    if not whole:
        if str(op.dtype_of(op.node.args[0])) == "torch.bool" and not dtype.is_complex:
            return x  # 0 and 1
        raise Refused(f"its result is of {dtype}")
    result = op.make("choice", *x.inputs, numbers=np.trunc(x.numbers), shape=x.shape)
    return _representable(op, result)


def check_precision(op: Operation, value: Value) -> Value:
    """The value itself.

    Raises:
        Refused: PyTorch's result is of a type that rounds more than float32, and than the images' own type.
    """
    low = op.dtype.is_floating_point and op.dtype.itemsize < min(4, op.shared.dtype.itemsize)
    whole = value.op == "choice" and np.all(
        (value.numbers == np.trunc(value.numbers)) & (np.abs(value.numbers) <= 256)
    )
    if low and not whole:
        raise Refused(f"its result is of {op.dtype}, but a packed file computes in float32")
    return value


def _representable(op: Operation, value: Value) -> Value:
    """The value itself.

    Raises:
        Refused: PyTorch's result is of bools or whole numbers that cannot hold it, and would wrap around.
    """
    if op.dtype.is_floating_point or value.constant:
        return value
    if op.dtype.is_complex:
        raise Refused(f"its result is of {op.dtype}")
    low, high = op.whole_numbers
    if value.op != "choice":
        least, most = bounds(value, op.once(("bounds",), dict)) or (-math.inf, math.inf)
        if least < max(low, -_LARGEST_WHOLE) or most > min(high, _LARGEST_WHOLE):
            raise Refused(f"its result is of {op.dtype}")
        return value
    whole = value.numbers == np.trunc(value.numbers)
    if not np.all(whole & (value.numbers >= low) & (value.numbers <= high)):
        raise Refused(f"its result is of {op.dtype}, which cannot hold it")
    return value


def exact(lower: Lowering) -> Lowering:
    """``lower``, but results of bools or whole numbers that cannot hold them are refused."""

    @wraps(lower)
    def lowered(op: Operation, *arguments: Any, **options: Any) -> Value:
        return _representable(op, lower(op, *arguments, **options))

    return lowered


def add(op: Operation, a: Operand, b: Operand, alpha: float = 1) -> Value:
    """a + alpha · b."""
    a, b, left, right = _operands(op, a, b)
    if right is not None:
        return shifted(op, a, right if alpha == 1 else alpha * right)
    if alpha != 1:
        b = scaled(op, b, np.array([float(alpha)]))
    if left is not None:
        return shifted(op, b, left)
    return _joined(op, "add", a, b, operator.add)


def sub(op: Operation, a: Operand, b: Operand, alpha: float = 1) -> Value:
    """a − alpha · b."""
    return add(op, a, b, -alpha)


def rsub(op: Operation, a: Operand, b: Operand, alpha: float = 1) -> Value:
    """b − alpha · a."""
    return add(op, b, a, -alpha)


def mul(op: Operation, a: Operand, b: Operand) -> Value:
    """a · b."""
    a, b, left, right = _operands(op, a, b)
    if right is not None:
        return scaled(op, a, right)
    if left is not None:
        return scaled(op, b, left)
    return _joined(op, "multiply", a, b, operator.mul)


def div(op: Operation, a: Operand, b: Operand, rounding_mode: str | None = None) -> Value:
    """a / b."""
    if rounding_mode is not None:
        raise Refused("a division that is rounded is packed only as // by a constant")
    numbers = op.numbers(b)
    if numbers is not None:
        if not np.all(numbers):
            raise Refused("it divides by 0")
        return scaled(op, a, 1 / numbers)
    assert isinstance(b, Value)
    divisor = op.real(b)
    return mul(op, a, op.make("reciprocal", divisor, shape=divisor.shape, argument={}))


def neg(op: Operation, x: Value) -> Value:
    """−x."""
    return scaled(op, x, np.array([-1.0]))


def _operands(
    op: Operation, a: Operand, b: Operand
) -> tuple[Operand, Operand, Numbers | None, Numbers | None]:
    """Both operands, and their numbers if they are constants with the same number at each place."""
    left, right = op.numbers(a), op.numbers(b)
    if left is None and isinstance(a, Value) and a.constant:
        a = op.real(a)
    if right is None and isinstance(b, Value) and b.constant:
        b = op.real(b)
    return a, b, left, right


def in_float32(numbers: Numbers, dtype: Any) -> Numbers:
    """The numbers as PyTorch has them, which it may compare with others; as they are in another type."""
    return numbers.astype(np.float32).astype(np.float64) if str(dtype) == "torch.float32" else numbers


def shifted(op: Operation, x: Operand, numbers: Numbers) -> Value:
    """x + numbers."""
    assert isinstance(x, Value)
    if x.op == "choice":
        total = in_float32(x.numbers + numbers, op.dtype)
        return op.make("choice", *x.inputs, numbers=total, shape=x.shape)
    return op.make("shift", x, numbers=numbers, shape=x.shape)


def scaled(op: Operation, x: Operand, numbers: Numbers) -> Value:
    """x · numbers."""
    assert isinstance(x, Value)
    make = partial(op.make, shape=x.shape)
    if x.op == "choice":
        return make("choice", *x.inputs, numbers=in_float32(x.numbers * numbers, op.dtype))
    # The magnitude m of binary weights and a scale s after it become one scale:
    # (m v) s = v (m s), and (m v + b) s = (v + b / m) (m s).
    if "magnitude" in x.notes:
        return make("scale", *x.inputs, numbers=x.numbers * numbers)
    if x.op == "shift" and "magnitude" in x.inputs[0].notes:
        (before,) = x.inputs
        centred = make("shift", *before.inputs, numbers=x.numbers / before.numbers)
        return make("scale", centred, numbers=before.numbers * numbers)
    return make("scale", x, numbers=numbers)


def _joined(op: Operation, step: str, a: Operand, b: Operand, join: Callable[[Any, Any], Any]) -> Value:
    """Two values added or multiplied: ``step`` is the step in the file, ``join`` does the same to numbers."""
    assert isinstance(a, Value)
    assert isinstance(b, Value)
    if a.op == b.op == "choice":
        b = _of_same(op, a, b)
        if a.inputs == b.inputs:
            numbers = in_float32(join(a.numbers, b.numbers), op.dtype)
            return op.make("choice", *a.inputs, numbers=numbers, shape=a.shape)
    a, b = op.real(a), op.real(b)
    # The file repeats the channels of an operand that has fewer. So a value that is concatenated with itself
    # is replaced by the value.
    if b.shape == op.shape and ((_repeats(a) and not _repeats(b)) or (_repeats(b) and a.shape != op.shape)):
        a, b = b, a
    b = b.inputs[0] if _repeats(b) else b
    return op.make(step, a, b)


def _repeats(value: Value) -> bool:
    return value.op == "concat" and len(set(value.inputs)) == 1


def _of_same(op: Operation, a: Value, b: Value) -> Value:
    """Choice ``b``, rewritten as a choice by the input of ``a``, if one chooses by x and the other by −x.

    At exactly 0 both inputs are at least 0, so ``b`` is returned unchanged if x may be held at 0.
    """
    (x,), (y,) = a.inputs, b.inputs
    if y.notes.get("opposite_of") is not x and x.notes.get("opposite_of") is not y:
        return b
    if np.any(op.held(x).at_zero):
        return b
    return op.make("choice", x, numbers=b.numbers[::-1], shape=b.shape)
