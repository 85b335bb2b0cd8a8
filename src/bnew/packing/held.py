"""At which numbers a value of the graph is held: those that it takes exactly, and not by chance.

``torch.sign`` of exactly 0 is 0, but a bit is +1 or −1. A value that is 0 by a coincidence of roundings may
get any sign. A value that is 0 wherever a ReLU is closed, or whenever a sum of signs comes out even, may not.
The table :data:`HELD` tells the two apart: it says what each operator does to the numbers at which its inputs
are held. An operator that is not in it may give any number, 0 as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from functools import reduce
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F

from bnew.packing.exported import Array, Numbers, Value, ancestors
from bnew.packing.pieces import (
    ANY,
    WIDEST,
    Held,
    Piece,
    Slopes,
    anything,
    common_step,
    hull,
    is_whole,
    itself,
    mixed,
    only_where,
    pieced,
    plus,
    step_product,
    tiled,
)  # fmt: skip


def held(value: Value, known: MutableMapping[Value, Held]) -> Held:
    """At which numbers the value is held; ``known`` keeps what has been found."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for each in ancestors(value, known):
            inputs = [known[needed] for needed in each.inputs if not needed.constant]
            known[each] = HELD.get(each.op, anything)(each, *inputs)
    return known[value]


# ------------------------------------------------------------------------------------------------ steps


def _scaled(value: Value, x: Held, numbers: Numbers | None = None) -> Held:
    factors = (value.numbers if numbers is None else numbers) + np.zeros(value.shape[0])
    kept = np.where(factors == 0, np.nan, factors)  # what is multiplied by 0 is held at 0
    pieces: list[Piece] = [(step * np.abs(kept), offset * kept) for step, offset in x.pieces]
    pieces.append((0.0, only_where(factors == 0)))
    return pieced(value, pieces, _times(x.slopes, factors.min(), factors.max()))


def _times(slopes: Slopes, low: float, high: float) -> Slopes:
    """Slopes times any factor from ``low`` to ``high``."""
    ends = [
        [slope * factor if factor else 0.0 for slope in of for factor in (low, high)]
        for of in slopes.values()
    ]
    return {root: (min(of), max(of)) for root, of in zip(slopes, ends, strict=True)}


def _shifted(value: Value, x: Held, numbers: Numbers | None = None) -> Held:
    shift = value.numbers if numbers is None else numbers
    return pieced(value, [(step, plus(offset, shift)) for step, offset in x.pieces], x.slopes)


def _clamped(value: Value, x: Held, limits: Sequence[float | None] | None = None) -> Held:
    low, high = limits or value.fields["step"]
    pieces: list[Piece] = [
        (step, np.where(step == 0, np.clip(offset, low, high), offset)) for step, offset in x.pieces
    ]
    if x.varies:
        pieces += [(0.0, limit) for limit in (low, high) if limit is not None]
    return pieced(value, pieces, hull(x.slopes, dict.fromkeys(x.slopes, (0.0, 0.0))))


def _prelu(value: Value, x: Held) -> Held:
    single = x.steps == 0
    positive = Held(x.steps, np.where(single & (x.offsets < 0), np.nan, x.offsets), x.slopes)
    negative = Held(x.steps, np.where(single & (x.offsets >= 0), np.nan, x.offsets), x.slopes)
    below = _scaled(value, negative)
    return pieced(value, [*positive.pieces, *below.pieces], hull(x.slopes, below.slopes))


def _sigmoid(value: Value, x: Held) -> Held:
    """Of a sum of whole numbers only 0 has a sigmoid, 1/2, that a constant is likely to hit."""
    pieces = [
        (step, np.where(step == 0, 1 / (1 + np.exp(-offset)), only_where(np.isinf(step))))
        for step, offset in x.pieces
    ]
    return pieced(value, [*pieces, (0.0, only_where(x.at_zero, 0.5))], itself(value))


def _hard_sigmoid(value: Value, x: Held) -> Held:
    sixth = _scaled(value, x, np.array([1 / 6]))
    return _clamped(value, _shifted(value, sixth, np.array([0.5])), (0.0, 1.0))


def _sign(value: Value, x: Held) -> Held:
    return pieced(value, [(0.0, 1.0), (0.0, -1.0)], {})


def _choice(value: Value, x: Held) -> Held:
    return pieced(value, [(0.0, numbers) for numbers in value.numbers], {})


def _added(value: Value, x: Held, y: Held) -> Held:
    x, y = (tiled(part, value.shape[0]) for part in (x, y))
    slopes = hull(x.slopes, y.slopes)
    for root in x.slopes.keys() & y.slopes.keys():
        (low, high), (low2, high2) = x.slopes[root], y.slopes[root]
        slopes[root] = (low + low2, high + high2)
        if low + low2 <= 0 <= high + high2:
            return anything(value, x, y)
    pieces: list[Piece] = [(common_step(s, t), plus(a, b)) for (s, a), (t, b) in product(x.pieces, y.pieces)]
    # Of two steps without a common one, such as those of two batch norms, only 0 + 0 is no coincidence.
    pieces.append((0.0, only_where(x.at_zero & y.at_zero)))
    return pieced(value, pieces, slopes | itself(value))


def _multiplied(value: Value, x: Held, y: Held) -> Held:
    x, y = (tiled(part, value.shape[0]) for part in (x, y))
    pieces: list[Piece] = [
        (reduce(common_step, (step_product(s, b), step_product(t, a), step_product(s, t))), a * b)
        for (s, a), (t, b) in product(x.pieces, y.pieces)
    ]
    pieces.append((0.0, only_where(x.at_zero | y.at_zero)))
    if not (x.pieces or y.pieces):
        return pieced(value, pieces, itself(value))
    # Where one is held, the product follows the other.
    unbounded = dict.fromkeys([*x.slopes, *y.slopes], (-np.inf, np.inf))
    return pieced(value, pieces, unbounded | itself(value))


# -------------------------------------------------------------------------------------------- operators


def _input(value: Value) -> Held:
    """Images are continuous, except for channels in which bytes of one kind, such as black, are exactly 0."""
    return pieced(value, [(0.0, only_where(value.fields["zero"]))], itself(value))


def _max_pool(value: Value, x: Held) -> Held:
    return x


def _bits(value: Value, x: Held) -> Held:
    return x  # nothing but a binary convolution reads it


def _concat(value: Value, *parts: Held) -> Held:
    pieces: list[Piece] = []
    start = 0
    for part in parts:
        stop = start + part.steps.shape[1]
        for row in part.pieces:
            wide = np.full((2, value.shape[0]), np.nan)
            wide[:, start:stop] = row
            pieces.append((wide[0], wide[1]))
        start = stop
    return pieced(value, pieces, hull(*(part.slopes for part in parts)))


def _flatten(value: Value, x: Held) -> Held:
    places = value.shape[0] // x.steps.shape[1]
    return Held(np.repeat(x.steps, places, axis=1), np.repeat(x.offsets, places, axis=1), x.slopes)


def _softmax(value: Value, x: Held) -> Held:
    if x.pieces or value.shape[0] == 1:
        return anything(value)
    return pieced(value, [], itself(value))


def _avg_pool(value: Value, x: Held) -> Held:
    (before,) = value.inputs
    fields = value.fields
    places, padded = [], []
    for axis in (0, 1):
        size, kernel, padding = before.shape[axis + 1], fields["kernel"][axis], fields["padding"]
        first = np.arange(fields["size"][axis]) * fields["stride"][axis] - padding[axis]
        last = first + kernel
        places.append(np.minimum(last, size) - np.maximum(first, 0))
        padded.append(np.minimum(last, size + padding[axis + 2]) - first)
    counts = np.outer(*places)
    divisors = np.outer(*padded) if fields["count_padding"] else counts
    return _averaged(value, x, set(zip(counts.flat, divisors.flat, strict=True)))


def _adaptive_avg_pool(value: Value, x: Held) -> Held:
    (before,) = value.inputs
    spans = []
    for size, results in zip(before.shape[1:], value.fields["size"], strict=True):
        i = np.arange(results)
        spans.append(-(-(i + 1) * size // results) - i * size // results)
    return _averaged(value, x, {(count, count) for count in np.unique(np.outer(*spans))})


def _averaged(value: Value, x: Held, windows: Iterable[tuple[int, int]]) -> Held:
    """Sums of n values divided by d, for every window (n, d)."""
    pieces: list[Piece] = [(0.0, only_where(x.at_zero))]
    if x.pieces:
        step, offset = mixed(x.pieces)
        groups: list[Piece] = [(step, offset)]
        if np.isnan(step).any():  # no mixture, then: each by itself, and what are single numbers together
            groups += [(s, np.where(np.isnan(step), o, np.nan)) for s, o in x.pieces]
            single = [(s, np.where(s == 0, o, np.nan)) for s, o in x.pieces]
            groups.append(mixed(single))
        pieces += [(s / d, o * (n / d)) for n, d in windows for s, o in groups]
    return pieced(value, pieces, itself(value))


def _conv(value: Value, x: Held) -> Held:
    """Held at 0 where all that it sums up is 0, or where it sums up nothing.

    Sums of other held numbers are no coincidence if the weights are multiples of one number; these are not
    followed further.
    """
    assert value.weight is not None
    (before,) = value.inputs
    top, left, bottom, right = value.fields["padding"]
    used = torch.from_numpy((value.weight != 0).astype(np.float32))

    def uses(channels: Array) -> Array:
        """(C_out, places): whether it sums up one of these channels there."""
        plane = torch.from_numpy(channels.astype(np.float32))[None, :, None, None].expand(1, *before.shape)
        plane = F.pad(plane, (left, right, top, bottom))
        options = {name: value.fields[name] for name in ("stride", "dilation", "groups")}
        return np.asarray(F.conv2d(plane, used, **options)[0].flatten(1).numpy() > 0)

    zero = ~uses(~x.at_zero)
    known = np.all(np.isnan(x.offsets) | ((x.steps == 0) & (x.offsets == 0)), axis=0)
    others = uses(~known) & ~uses(~x.anywhere)
    unknown = np.any(others, axis=1) & (
        _are_multiples(value.weight) | np.any(uses(np.any(np.isinf(x.steps), axis=0)), axis=1)
    )
    return pieced(value, [(0.0, only_where(np.any(zero, axis=1))), (ANY, only_where(unknown))], itself(value))


def _are_multiples(weights: Array) -> Array:
    """(C_out), whether the greatest weights of a row are multiples of one number."""
    rows = np.sort(np.abs(weights.reshape(len(weights), -1).astype(np.float64)))[:, -32:]
    shares = rows / rows[:, -1:]
    fits = np.zeros(len(rows), bool)
    for times in range(1, WIDEST + 1):
        fits |= np.all((rows == 0) | is_whole(shares * times), axis=1)
    return fits


def _binary_conv(value: Value, _: Held) -> Held:
    """A sum of n signs: an even whole number if n is even, an odd one if n is odd."""
    (before,) = value.inputs
    fields = value.fields
    taps = []
    for axis in (0, 1):
        first = np.arange(value.shape[axis + 1]) * fields["stride"][axis] - fields["padding"][axis]
        places = first[:, None] + np.arange(fields["kernel"][axis]) * fields["dilation"][axis]
        taps.append(np.sum((places >= 0) & (places < before.shape[axis + 1]), axis=1))
    counts = np.outer(*taps) * (fields["channels"][0] // fields["groups"])
    return pieced(value, [(2.0, float(parity)) for parity in np.unique(counts % 2)], {})


# What each operator and step of the file does. One that is missing may give any number.
HELD: Mapping[str, Callable[..., Held]] = {
    "input": _input,
    "conv": _conv,
    "binary_conv": _binary_conv,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "concat": _concat,
    "flatten": _flatten,
    "softmax": _softmax,
    "bits": _bits,
    "choice": _choice,
    "scale": _scaled,
    "shift": _shifted,
    "add": _added,
    "multiply": _multiplied,
    "prelu": _prelu,
    "clamp": _clamped,
    "sigmoid": _sigmoid,
    "hard_sigmoid": _hard_sigmoid,
    "sign": _sign,
}
