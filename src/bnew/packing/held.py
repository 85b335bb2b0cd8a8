"""At which numbers a value of the graph is held: those that it takes exactly, and not by chance.

``torch.sign`` of exactly 0 is 0, but a bit is +1 or −1. A value that is 0 by a coincidence of roundings may get
any sign. A value that is 0 wherever a ReLU is closed, or whenever a sum of signs comes out even, may not. This
module tells the two apart by what each operator does to the numbers at which its inputs are held. An operator
that it does not know may give any number, 0 as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import product
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

from bnew.packing.exported import Array, Numbers, Value, ancestors

Piece: TypeAlias = tuple[Array | float, Array | float]  # step and offset, a number or one per channel
Slopes: TypeAlias = Mapping[Value, tuple[float, float]]

_ROUNDING = 2.0**-24  # of float32, relative
_WIDEST = 256  # a quotient of whole numbers up to this is no coincidence
_MOST_PIECES = 64
_ANY = np.inf  # a step: any number


@dataclass(frozen=True, eq=False)
class Held:
    """The numbers at which a value is held, in pieces; a value without pieces is continuous.

    Piece p holds channel c at ``offsets[p, c] + n · steps[p, c]`` for every whole n. A step of 0 is one number,
    an infinite one is any number, and an offset of NaN says that the channel has no such piece.

    ``slopes`` names the values that this one follows in a straight line wherever it is not held, with the least
    and the greatest slope. Two that follow the same one may cancel each other, such as x and relu(−x).
    """

    steps: Array  # (P, C)
    offsets: Array  # (P, C)
    slopes: Slopes = field(default_factory=dict)

    @property
    def pieces(self) -> list[Piece]:
        """Step and offset of each piece, both (C)."""
        return list(zip(self.steps, self.offsets, strict=True))

    @property
    def anywhere(self) -> Array:
        """(C), whether a channel is held at any number at all."""
        return np.asarray(np.any(~np.isnan(self.offsets), axis=0))

    @property
    def at_zero(self) -> Array:
        """(C), whether a channel is held at 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            multiple = self.offsets / self.steps
            whole = np.abs(multiple - np.rint(multiple)) <= _ROUNDING * np.abs(multiple)
        zero = np.where(self.steps == 0, self.offsets == 0, whole | np.isinf(self.steps))
        return np.asarray(np.any(zero & ~np.isnan(self.offsets), axis=0))

    @property
    def varies(self) -> bool:
        """Whether it takes more numbers than its single ones, so that a limit may hold it too."""
        return bool(self.slopes) or bool(np.any(self.steps > 0))


def held(value: Value, known: MutableMapping[Value, Held]) -> Held:
    """At which numbers the value is held; ``known`` keeps what has been found."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for each in ancestors(value, known):
            inputs = [known[needed] for needed in each.inputs if not needed.constant]
            known[each] = HELD.get(each.op, _anything)(each, *inputs)
    return known[value]


def _held(value: Value, pieces: Iterable[Piece], slopes: Slopes) -> Held:
    """Each piece once, without those that no channel has; any number if there are too many."""
    channels = (value.shape[0],)
    rows = {}
    for step, offset in pieces:
        missing = np.isnan(step) | np.isnan(offset)
        row = (np.where(missing, np.nan, part) + np.zeros(channels) for part in (step, offset))
        step, offset = row
        if not np.isnan(offset).all():
            rows[step.tobytes(), offset.tobytes()] = step, offset
    if len(rows) > _MOST_PIECES:
        return _anything(value)
    table = np.array(list(rows.values()), np.float64).reshape(len(rows), 2, *channels)
    return Held(table[:, 0], table[:, 1], slopes)


def _only_where(condition: Array, number: float = 0.0) -> Array:
    """The offset of a piece that the other channels do not have."""
    return np.where(condition, number, np.nan)


def _itself(value: Value) -> dict[Value, tuple[float, float]]:
    return {value: (1.0, 1.0)}


def _plus(a: Array | float, b: Array | float) -> Array:
    """a + b; exactly 0 where they cancel but for float32's rounding."""
    total = np.asarray(a + b)
    return np.where(np.abs(total) <= _ROUNDING * np.maximum(np.abs(a), np.abs(b)), 0.0, total)


def _product(a: Array | float, b: Array | float) -> Array:
    """|a · b|, 0 where one of them is, even if the other is infinite."""
    return np.where((a == 0) | (b == 0), 0.0, np.abs(a * b))


def _common(a: Array, b: Array) -> Array:
    """The greatest number of which both are multiples; NaN where their quotient is none of small numbers."""
    small, large = np.minimum(a, b), np.maximum(a, b)
    if not np.any(small):
        return large
    quotients = (small / large)[:, None] * np.arange(1, _WIDEST + 1)
    fits = _is_whole(quotients)
    common = np.where(fits.any(1), large / (fits.argmax(1) + 1), np.nan)
    return np.where((small == 0) | np.isinf(large), large, common)


def _is_whole(numbers: Array) -> Array:
    """Whether they are 1, 2, 3 … but for rounding."""
    near = np.rint(numbers)
    return np.asarray((near >= 1) & (np.abs(numbers - near) <= 4 * _ROUNDING * near))


def _mixed(pieces: Sequence[Piece]) -> Piece:
    """One piece that has all numbers between the pieces; NaN in channels where there is none such."""
    steps, offsets = (np.array(part) for part in zip(*pieces, strict=True))
    first = np.fmin.reduce(offsets)
    distances = np.nan_to_num(np.concatenate([steps, np.abs(offsets - first)]), posinf=_ANY)
    return reduce(_common, distances), first


def _tiled(x: Held, channels: int) -> Held:
    """Channels modulo, as the file joins values."""
    times = (1, channels // x.steps.shape[1])
    return Held(np.tile(x.steps, times), np.tile(x.offsets, times), x.slopes)


def _hull(*slopes: Slopes) -> dict[Value, tuple[float, float]]:
    """The least and the greatest slope of all."""
    roots = {root: [of[root] for of in slopes if root in of] for of in slopes for root in of}
    return {root: (min(low for low, _ in all_), max(high for _, high in all_)) for root, all_ in roots.items()}


# ------------------------------------------------------------------------------------------------ steps


def _scaled(value: Value, x: Held, numbers: Numbers | None = None) -> Held:
    factors = (value.numbers if numbers is None else numbers) + np.zeros(value.shape[0])
    kept = np.where(factors == 0, np.nan, factors)  # what is multiplied by 0 is held at 0
    pieces = [(step * np.abs(kept), offset * kept) for step, offset in x.pieces]
    pieces.append((0.0, _only_where(factors == 0)))
    return _held(value, pieces, _times(x.slopes, factors.min(), factors.max()))


def _times(slopes: Slopes, low: float, high: float) -> Slopes:
    """Slopes times any factor from ``low`` to ``high``."""
    ends = [[slope * factor if factor else 0.0 for slope in of for factor in (low, high)] for of in slopes.values()]
    return {root: (min(of), max(of)) for root, of in zip(slopes, ends, strict=True)}


def _shifted(value: Value, x: Held, numbers: Numbers | None = None) -> Held:
    shift = value.numbers if numbers is None else numbers
    return _held(value, [(step, _plus(offset, shift)) for step, offset in x.pieces], x.slopes)


def _clamped(value: Value, x: Held, limits: Sequence[float | None] | None = None) -> Held:
    low, high = limits or value.fields["step"]
    pieces: list[Piece] = [
        (step, np.where(step == 0, np.clip(offset, low, high), offset)) for step, offset in x.pieces
    ]
    if x.varies:
        pieces += [(0.0, limit) for limit in (low, high) if limit is not None]
    return _held(value, pieces, _hull(x.slopes, dict.fromkeys(x.slopes, (0.0, 0.0))))


def _prelu(value: Value, x: Held) -> Held:
    single = x.steps == 0
    positive = Held(x.steps, np.where(single & (x.offsets < 0), np.nan, x.offsets), x.slopes)
    negative = Held(x.steps, np.where(single & (x.offsets >= 0), np.nan, x.offsets), x.slopes)
    below = _scaled(value, negative)
    return _held(value, [*positive.pieces, *below.pieces], _hull(x.slopes, below.slopes))


def _sigmoid(value: Value, x: Held) -> Held:
    """Of a sum of whole numbers only 0 has a sigmoid, 1/2, that a constant is likely to hit."""
    pieces = [(step, np.where(step == 0, 1 / (1 + np.exp(-offset)), _only_where(np.isinf(step)))) for step, offset in x.pieces]
    return _held(value, [*pieces, (0.0, _only_where(x.at_zero, 0.5))], _itself(value))


def _hard_sigmoid(value: Value, x: Held) -> Held:
    sixth = _scaled(value, x, np.array([1 / 6]))
    return _clamped(value, _shifted(value, sixth, np.array([0.5])), (0.0, 1.0))


def _sign(value: Value, x: Held) -> Held:
    return _held(value, [(0.0, 1.0), (0.0, -1.0)], {})


def _choice(value: Value, x: Held) -> Held:
    return _held(value, [(0.0, numbers) for numbers in value.numbers], {})


def _added(value: Value, x: Held, y: Held) -> Held:
    x, y = (_tiled(part, value.shape[0]) for part in (x, y))
    slopes = _hull(x.slopes, y.slopes)
    for root in x.slopes.keys() & y.slopes.keys():
        (low, high), (low2, high2) = x.slopes[root], y.slopes[root]
        slopes[root] = (low + low2, high + high2)
        if low + low2 <= 0 <= high + high2:
            return _anything(value, x, y)
    pieces: list[Piece] = [
        (_common(s, t), _plus(a, b)) for (s, a), (t, b) in product(x.pieces, y.pieces)
    ]
    # Of two steps without a common one, such as those of two batch norms, only 0 + 0 is no coincidence.
    pieces.append((0.0, _only_where(x.at_zero & y.at_zero)))
    return _held(value, pieces, slopes | _itself(value))


def _multiplied(value: Value, x: Held, y: Held) -> Held:
    x, y = (_tiled(part, value.shape[0]) for part in (x, y))
    pieces: list[Piece] = [
        (reduce(_common, (_product(s, b), _product(t, a), _product(s, t))), a * b)
        for (s, a), (t, b) in product(x.pieces, y.pieces)
    ]
    pieces.append((0.0, _only_where(x.at_zero | y.at_zero)))
    if not (x.pieces or y.pieces):
        return _held(value, pieces, _itself(value))
    # Where one is held, the product follows the other.
    unbounded = dict.fromkeys([*x.slopes, *y.slopes], (-np.inf, np.inf))
    return _held(value, pieces, unbounded | _itself(value))


# -------------------------------------------------------------------------------------------- operators


def _anything(value: Value, *_: Held) -> Held:
    channels = (1, value.shape[0])
    return Held(np.full(channels, _ANY), np.zeros(channels), _itself(value))


def _input(value: Value) -> Held:
    """Images are continuous, except for channels in which bytes of one kind, such as black, are exactly 0."""
    return _held(value, [(0.0, _only_where(value.fields["zero"]))], _itself(value))


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
    return _held(value, pieces, _hull(*(part.slopes for part in parts)))


def _flatten(value: Value, x: Held) -> Held:
    places = value.shape[0] // x.steps.shape[1]
    return Held(np.repeat(x.steps, places, axis=1), np.repeat(x.offsets, places, axis=1), x.slopes)


def _softmax(value: Value, x: Held) -> Held:
    if x.pieces or value.shape[0] == 1:
        return _anything(value)
    return _held(value, [], _itself(value))


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
    pieces: list[Piece] = [(0.0, _only_where(x.at_zero))]
    if x.pieces:
        step, offset = _mixed(x.pieces)
        groups: list[Piece] = [(step, offset)]
        if np.isnan(step).any():  # no mixture, then: each by itself, and what are single numbers together
            groups += [(s, np.where(np.isnan(step), o, np.nan)) for s, o in x.pieces]
            single = [(s, np.where(s == 0, o, np.nan)) for s, o in x.pieces]
            groups.append(_mixed(single))
        pieces += [(s / d, o * (n / d)) for n, d in windows for s, o in groups]
    return _held(value, pieces, _itself(value))


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
    mixed = uses(~known) & ~uses(~x.anywhere)
    unknown = mixed.any(1) & (_are_multiples(value.weight) | uses(np.isinf(x.steps).any(0)).any(1))
    return _held(
        value, [(0.0, _only_where(zero.any(1))), (_ANY, _only_where(unknown))], _itself(value)
    )


def _are_multiples(weights: Array) -> Array:
    """(C_out), whether the greatest weights of a row are multiples of one number."""
    rows = np.sort(np.abs(weights.reshape(len(weights), -1).astype(np.float64)))[:, -32:]
    shares = rows / rows[:, -1:]
    fits = np.zeros(len(rows), bool)
    for times in range(1, _WIDEST + 1):
        fits |= np.all((rows == 0) | _is_whole(shares * times), axis=1)
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
    return _held(value, [(2.0, float(parity)) for parity in np.unique(counts % 2)], {})


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
