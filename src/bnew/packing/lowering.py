"""ATen's operators without weights, and what each is to the packed file."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from bnew.packing.held import held
from bnew.packing.pieces import Held
from bnew.packing.reading import Numbers, Operand, Operation, Refused, Shape, Table, Value
from bnew.packing.spatial import SPATIAL


def _first(op: Operation, x: Value, index: int) -> Value:
    if index != 0:
        raise Refused("only the first of several results can be packed")
    return x


def _to(op: Operation, x: Value, *_: Any, **__: Any) -> Value:
    dtype = op.node.meta["val"].dtype
    # Whole numbers hold what a comparison chooses between; unsigned ones would wrap around below 0.
    whole = x.op == "choice" and not dtype.is_complex and dtype not in (torch.bool, torch.uint8)
    if dtype.is_floating_point:
        return x
    if not whole:
        raise Refused(f"its result is of {dtype}")
    result = op.make("choice", *x.inputs, numbers=np.trunc(x.numbers), shape=x.shape)
    return _representable(op, result)


def _representable(op: Operation, value: Value) -> Value:
    """The value, unless it is of bools or whole numbers that cannot hold it, and PyTorch would wrap."""
    dtype = op.node.meta["val"].dtype
    if dtype.is_floating_point:
        return value
    if dtype.is_complex or value.op != "choice":
        raise Refused(f"its result is of {dtype}")
    low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    whole = value.numbers == np.trunc(value.numbers)
    if not np.all(whole & (value.numbers >= low) & (value.numbers <= high)):
        raise Refused(f"its result is of {dtype}, which cannot hold it")
    return value


def _exact(lower: Callable[..., Value]) -> Callable[..., Value]:
    """``lower``, refused where the result is of bools or whole numbers that cannot hold it."""
    return lambda op, *arguments, **options: _representable(op, lower(op, *arguments, **options))


# ------------------------------------------------------------------------------------------- arithmetic


def _add(op: Operation, a: Operand, b: Operand, alpha: float = 1) -> Value:
    left, right = op.numbers(a), op.numbers(b)
    if right is not None:
        return shifted(op, a, right if alpha == 1 else alpha * right)
    if alpha != 1:
        b = scaled(op, b, np.array([float(alpha)]))
    if left is not None:
        return shifted(op, b, left)
    return _joined(op, "add", a, b, operator.add)


def _sub(op: Operation, a: Operand, b: Operand, alpha: float = 1) -> Value:
    return _add(op, a, b, -alpha)


def _rsub(op: Operation, a: Operand, b: Operand, alpha: float = 1) -> Value:
    return _add(op, b, a, -alpha)


def _mul(op: Operation, a: Operand, b: Operand) -> Value:
    left, right = op.numbers(a), op.numbers(b)
    if right is not None:
        return scaled(op, a, right)
    if left is not None:
        return scaled(op, b, left)
    return _joined(op, "multiply", a, b, operator.mul)


def _div(op: Operation, a: Operand, b: Operand, rounding_mode: str | None = None) -> Value:
    numbers = op.numbers(b)
    if numbers is None or rounding_mode is not None:
        raise Refused("only plain division by a constant is packed")
    if not np.all(numbers):
        raise Refused("it divides by 0")
    return scaled(op, a, 1 / numbers)


def _neg(op: Operation, x: Value) -> Value:
    return scaled(op, x, np.array([-1.0]))


def shifted(op: Operation, x: Operand, numbers: Numbers) -> Value:
    """x + numbers."""
    assert isinstance(x, Value)
    if x.op == "choice":
        return op.make("choice", *x.inputs, numbers=x.numbers + numbers, shape=x.shape)
    return op.make("shift", x, numbers=numbers, shape=x.shape)


def scaled(op: Operation, x: Operand, numbers: Numbers) -> Value:
    """x · numbers."""
    assert isinstance(x, Value)
    make = partial(op.make, shape=x.shape)
    if x.op == "choice":
        return make("choice", *x.inputs, numbers=x.numbers * numbers)
    # The magnitude m of binary weights costs no numbers of its own where a scale s follows:
    # (m v) s = v (m s), and (m v + b) s = (v + b / m) (m s).
    if "magnitude" in x.fields:
        return make("scale", *x.inputs, numbers=x.numbers * numbers)
    if x.op == "shift" and "magnitude" in x.inputs[0].fields:
        (before,) = x.inputs
        centred = make("shift", *before.inputs, numbers=x.numbers / before.numbers)
        return make("scale", centred, numbers=before.numbers * numbers)
    return make("scale", x, numbers=numbers)


def _joined(op: Operation, step: str, a: Operand, b: Operand, join: Callable[[Any, Any], Any]) -> Value:
    """Two values added or multiplied."""
    assert isinstance(a, Value)
    assert isinstance(b, Value)
    if a.op == b.op == "choice":
        b = _of_same(op, a, b)
        if a.inputs == b.inputs:
            return op.make("choice", *a.inputs, numbers=join(a.numbers, b.numbers), shape=a.shape)
    a, b = op.real(a), op.real(b)
    # To the file, a value that is laid side by side with itself is the value itself: channels modulo.
    if b.shape == op.shape and ((_repeats(a) and not _repeats(b)) or (_repeats(b) and a.shape != op.shape)):
        a, b = b, a
    b = b.inputs[0] if _repeats(b) else b
    if op.shape not in (a.shape, b.shape) or not all(_fits(v.shape, op.shape) for v in (a, b)):
        raise Refused("its inputs differ in shape in a way that the packed file does not know")
    return op.make(step, a, b)


def _repeats(value: Value) -> bool:
    return value.op == "concat" and len(set(value.inputs)) == 1


def _fits(shape: Shape, result: Shape) -> bool:
    """Whether a value of that shape can be added to one of shape ``result``."""
    return result[0] % shape[0] == 0 and shape[1:] in (result[1:], (1, 1))


# ------------------------------------------------------------------------------------------------ signs


def _sign(op: Operation, x: Value) -> Value:
    if x.op == "choice":  # the sign of one of two numbers
        return op.make("choice", *x.inputs, numbers=np.sign(x.numbers), shape=x.shape)
    found = _held(op, x)
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


def _compare(join: Callable[[Any, Any], Any], strict: bool, high: int) -> Callable[..., Value]:
    """1 or 0: ``high`` where x − y ≥ 0 or, if ``strict``, where x − y > 0, which is not y − x ≥ 0."""

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
    return replace(result, fields={**result.fields, "opposite_of": x})


def _of_same(op: Operation, a: Value, b: Value) -> Value:
    """Choice ``b`` by what choice ``a`` is by, if the one is by x and the other by −x, both but for 0."""
    (x,), (y,) = a.inputs, b.inputs
    if y.fields.get("opposite_of") is not x and x.fields.get("opposite_of") is not y:
        return b
    if np.any(_held(op, x).at_zero):
        return b
    return op.make("choice", x, numbers=b.numbers[::-1], shape=b.shape)


def _held(op: Operation, value: Value) -> Held:
    """At which numbers the value is held, and not by a coincidence of roundings."""
    return held(value, op.once(("held",), dict))


def _not(op: Operation, x: Value) -> Value:
    if x.op != "choice" or (op.name == "bitwise_not" and op.node.meta["val"].dtype != torch.bool):
        raise Refused("only the negation of a comparison is packed")
    return op.make("choice", *x.inputs, numbers=1.0 - (x.numbers != 0), shape=x.shape)


def _where(op: Operation, condition: Value, yes: Operand, no: Operand) -> Value:
    high, low = op.numbers(yes), op.numbers(no)
    if condition.op != "choice" or high is None or low is None:
        raise Refused("it is packed only where a comparison chooses between two constants")
    if condition.shape != op.shape:
        raise Refused("what a comparison chooses between is larger than what is compared")
    return op.make("choice", *condition.inputs, numbers=np.where(condition.numbers != 0, high, low))


# ------------------------------------------------------------------------------------------ activations


def _clamp(op: Operation, x: Value, min: Operand | None = None, max: Operand | None = None) -> Value:
    limits: list[float | None] = []
    for limit in (min, max):
        numbers = None if limit is None else op.numbers(limit)
        if limit is not None and (numbers is None or len(numbers) > 1):
            raise Refused("its limits are not the same two numbers everywhere")
        with np.errstate(over="ignore"):
            limits.append(
                None if numbers is None else float(np.float32(numbers[0]))
            )  # as it is compared with
    if any(limit is not None and math.isnan(limit) for limit in limits):
        raise Refused("one of its limits is NaN")
    if limits[0] == math.inf or limits[1] == -math.inf:
        raise Refused("its limits leave no finite number")
    limits = [None if limit is None or math.isinf(limit) else limit for limit in limits]
    if limits == [None, None]:
        return x
    return op.make("clamp", op.real(x), step=limits)


def _clamp_max(op: Operation, x: Value, max: Operand) -> Value:
    return _clamp(op, x, max=max)


def _hardtanh(op: Operation, x: Value, min_val: float = -1, max_val: float = 1) -> Value:
    return _clamp(op, x, min_val, max_val)


def _relu(op: Operation, x: Value) -> Value:
    return _clamp(op, x, 0)


def _relu6(op: Operation, x: Value) -> Value:
    return _clamp(op, x, 0, 6)


def _prelu(op: Operation, x: Value, slope: Value) -> Value:
    if not slope.constant:
        raise Refused("its slope depends on the input")
    # (C) is per channel here, whatever the rank.
    numbers = op.once(("slope", slope), lambda: slope.tensor.detach().double().cpu().reshape(-1).numpy())
    return op.make("prelu", op.real(x), numbers=numbers)


def _leaky_relu(op: Operation, x: Value, negative_slope: float = 0.01) -> Value:
    return op.make("prelu", op.real(x), numbers=np.array([negative_slope]))


def _pointwise(step: str) -> Callable[[Operation, Value], Value]:
    return lambda op, x: op.make(step, op.real(x), step={})


def _gated(gate: str) -> Callable[[Operation, Value], Value]:
    """x · gate(x)."""
    return lambda op, x: op.make("multiply", op.real(x), op.make(gate, op.real(x), step={}))


def _softmax(op: Operation, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    if dim % op.rank != 1:
        raise Refused("softmax is packed only over the channels")
    return op.make("softmax", op.real(x))


# ----------------------------------------------------------------------------------------------- shapes


def _reshape(op: Operation, x: Value, *_: Any, **__: Any) -> Value:
    if op.shape == x.shape:
        return x
    if op.shape == (int(np.prod(x.shape)), 1, 1):
        return op.make("flatten", op.real(x))
    raise Refused("a value is reshaped to a vector only")


def _expand(op: Operation, x: Value, *_: Any, **__: Any) -> Value:
    if not _fits(x.shape, op.shape):
        raise Refused("a value is expanded only over height and width")
    return x  # what it is multiplied with or added to has the size


def _slice(op: Operation, x: Value, *_: Any, **__: Any) -> Value:
    if op.shape != x.shape:
        raise Refused("a part of a value is not packed, only the whole")
    return x


def _concat(op: Operation, parts: Sequence[Value], dim: int = 0) -> Value:
    if dim % op.rank != 1:
        raise Refused("values are packed side by side only as channels (dim 1)")
    if any(part.constant for part in parts):
        raise Refused("one of the values side by side is a constant")
    return op.make("concat", *map(op.real, parts))


OPERATORS: Table = {
    **dict.fromkeys(["_to_copy", "to", "type_as"], _to),
    "getitem": _first,
    "add": _exact(_add),
    "sub": _exact(_sub),
    "rsub": _exact(_rsub),
    "mul": _exact(_mul),
    "div": _div,
    "neg": _exact(_neg),
    "sign": _sign,
    "sgn": _sign,
    "ge": _compare(np.greater_equal, False, 1),
    "gt": _compare(np.greater, True, 1),
    "le": _compare(np.less_equal, True, 0),
    "lt": _compare(np.less, False, 0),
    **dict.fromkeys(["logical_not", "bitwise_not"], _not),
    "where": _exact(_where),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp_max,
    "hardtanh": _hardtanh,
    "relu": _relu,
    "relu6": _relu6,
    "prelu": _prelu,
    "_prelu_kernel": _prelu,
    "leaky_relu": _leaky_relu,
    "sigmoid": _pointwise("sigmoid"),
    "hardsigmoid": _pointwise("hard_sigmoid"),
    "silu": _gated("sigmoid"),
    "hardswish": _gated("hard_sigmoid"),
    "softmax": _softmax,
    "_softmax": _softmax,
    **dict.fromkeys(["view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze"], _reshape),
    "expand": _expand,
    "slice": _slice,
    "cat": _concat,
    **SPATIAL,
}
