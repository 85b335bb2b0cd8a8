"""Sets of numbers at which a value is held: an offset plus whole multiples of a step, per channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import TypeAlias

import numpy as np

from bnew.packing.values import Array, Value

Piece: TypeAlias = tuple[Array | float, Array | float]  # step and offset, a number or one per channel
Slopes: TypeAlias = Mapping[Value, Array]  # of (S, 2, C): least and greatest of each of S ranges

ANY = np.inf  # a step: any number
WIDEST = 256  # a quotient of whole numbers up to this is no coincidence
ROUNDING = 2.0**-24  # of float32, relative
_MOST_ROUNDING = 1e-4  # of a step: beyond it, every number would be near a multiple of a fine step
_MOST_PIECES = 64
_MOST_SLOPES = 16


@dataclass(frozen=True, eq=False)
class Held:
    """The numbers at which a value is held, in pieces; a value without pieces is continuous.

    Piece p holds channel c at ``offsets[p, c] + n · steps[p, c]`` for every whole n. A step of 0 means one
    number, an infinite step any number. An offset of NaN means that the channel lacks the piece.

    ``slopes`` has the values on which this one depends linearly wherever it is not held, with ranges of the
    slope per channel. For a leaky ReLU of x, these are two ranges of one number each, 1 and 0.1. A channel
    that does not depend on a value has slope 0. Two values that depend on the same one may cancel each other,
    such as x and relu(−x).

    ``unknown`` is True if a channel may be any number because an operator has no rule. It is False if the
    reason is that the mean and std of the image are not known.
    """

    steps: Array  # (P, C)
    offsets: Array  # (P, C)
    slopes: Slopes = field(default_factory=dict)
    unknown: bool = False

    @property
    def pieces(self) -> list[tuple[Array, Array]]:
        """Step and offset of each piece, both (C)."""
        return list(zip(self.steps, self.offsets, strict=True))

    @property
    def anywhere(self) -> Array:
        """(C), whether a channel is held at any number at all."""
        return np.asarray(np.any(~np.isnan(self.offsets), axis=0))

    @property
    def at_zero(self) -> Array:
        """(C), whether a channel is held at 0, or at any number."""
        return self.known_at_zero | self.at_any

    @property
    def known_at_zero(self) -> Array:
        """(C), whether a channel is held at 0 by a piece with a finite step."""
        with np.errstate(divide="ignore", invalid="ignore"):
            multiple = self.offsets / self.steps
            tolerance = np.minimum(ROUNDING * np.abs(multiple), _MOST_ROUNDING)
            whole = (np.abs(multiple - np.rint(multiple)) <= tolerance) & ~np.isinf(self.steps)
        zero = np.where(self.steps == 0, self.offsets == 0, whole)
        return np.asarray(np.any(zero & ~np.isnan(self.offsets), axis=0))

    @property
    def at_any(self) -> Array:
        """(C), whether a channel may be any number."""
        return np.asarray(np.any(np.isinf(self.steps), axis=0))

    @property
    def varies(self) -> bool:
        """Whether it takes more than single numbers, so that a clamp may hold it at a limit too."""
        return bool(self.slopes) or bool(np.any(self.steps > 0))


# (value, *Held of its inputs) → Held of the value.
Rule: TypeAlias = Callable[..., Held]


def pieced(value: Value, pieces: Iterable[Piece], slopes: Slopes) -> Held:
    """Held at these pieces: each once, without those that no channel has. Any number if they are too many."""
    channels = (value.shape[0],)
    rows = {}
    for step, offset in pieces:
        missing = np.isnan(step) | np.isnan(offset)
        row = (np.where(missing, np.nan, part) + np.zeros(channels) for part in (step, offset))
        step, offset = row
        if not np.isnan(offset).all():
            rows[step.tobytes(), offset.tobytes()] = step, offset
    if len(rows) > _MOST_PIECES:
        return anything(value)
    table = np.array(list(rows.values()), np.float64).reshape(len(rows), 2, *channels)
    return Held(table[:, 0], table[:, 1], slopes)


def only_where(condition: Array, number: float = 0.0) -> Array:
    """The offset of a piece that the other channels do not have."""
    return np.where(condition, number, np.nan)


def itself(value: Value) -> dict[Value, Array]:
    """The slopes of a value that depends linearly on no other value: 1 for itself."""
    return {value: np.ones((1, 2, value.shape[0]))}


def times(slopes: Slopes, factors: Array) -> dict[Value, Array]:
    """Slopes times a factor per channel."""
    kept = np.where(factors == 0, np.nan, factors)  # 0 · ∞ is 0 here
    return {
        root: np.sort(np.nan_to_num(ranges * kept, nan=0, posinf=np.inf, neginf=-np.inf), axis=1)
        for root, ranges in slopes.items()
    }


def either(*slopes: Slopes) -> dict[Value, Array]:
    """The ranges of all slopes together."""
    roots = dict.fromkeys(root for of in slopes for root in of)
    return {root: _few(np.concatenate([of[root] for of in slopes if root in of])) for root in roots}


def summed(x: Slopes, y: Slopes) -> tuple[dict[Value, Array], bool]:
    """The slopes of a sum, and whether two may cancel each other in one of them."""
    slopes, cancels = {**x, **y}, False
    for root in x.keys() & y.keys():
        a, b = x[root][:, None], y[root][None]
        total = a + b
        both = np.any(a != 0, axis=2) & np.any(b != 0, axis=2)
        cancels |= bool(np.any(both & (total[:, :, 0] <= 0) & (total[:, :, 1] >= 0)))
        slopes[root] = _few(total.reshape(-1, *total.shape[2:]))
    return slopes, cancels


def _few(ranges: Array) -> Array:
    """Each range once; if they are too many, a single range that covers all."""
    ranges = np.unique(ranges, axis=0)
    if len(ranges) <= _MOST_SLOPES:
        return ranges
    return np.stack([ranges[:, 0].min(0), ranges[:, 1].max(0)])[None]


def plus(a: Array | float, b: Array | float) -> Array:
    """a + b; exactly 0 where they cancel except for float32's rounding."""
    total = np.asarray(a + b)
    return np.where(np.abs(total) <= ROUNDING * np.maximum(np.abs(a), np.abs(b)), 0.0, total)


def step_product(a: Array | float, b: Array | float) -> Array:
    """|a · b|; 0 where one of them is 0, even if the other is infinite."""
    return np.where((a == 0) | (b == 0), 0.0, np.abs(a * b))


def common_step(a: Array, b: Array) -> Array:
    """The greatest number of which both are multiples; NaN if their quotient is not one of small numbers."""
    small, large = np.minimum(a, b), np.maximum(a, b)
    if not np.any(small):
        return large
    quotients = (small / large)[:, None] * np.arange(1, WIDEST + 1)
    fits = is_whole(quotients)
    common = np.where(fits.any(1), large / (fits.argmax(1) + 1), np.nan)
    return np.where((small == 0) | np.isinf(large), large, common)


def is_whole(numbers: Array) -> Array:
    """Whether they are 1, 2, 3 … except for rounding."""
    near = np.rint(numbers)
    return np.asarray((near >= 1) & (np.abs(numbers - near) <= 4 * ROUNDING * near))


def mixed(pieces: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """One piece that has the numbers of all pieces; a step of NaN in channels where there is none."""
    steps, offsets = (np.array(part) for part in zip(*pieces, strict=True))
    first = np.fmin.reduce(offsets)
    distances = np.nan_to_num(np.concatenate([steps, np.abs(offsets - first)]), posinf=ANY)
    return reduce(common_step, distances), first


def tiled(x: Held, channels: int) -> Held:
    """``x`` with its channels repeated until they are ``channels``, as the file joins values."""
    copies = channels // x.steps.shape[1]
    return of_channels(x, np.tile(np.arange(x.steps.shape[1]), copies))


def of_channels(x: Held, channels: Array) -> Held:
    """The channels of ``x`` with these numbers."""
    slopes = {root: ranges[..., channels] for root, ranges in x.slopes.items()}
    return Held(x.steps[:, channels], x.offsets[:, channels], slopes)


def anything(value: Value, *_: Held) -> Held:
    """Any number, including 0, where there is no rule."""
    channels = (1, value.shape[0])
    return Held(np.full(channels, ANY), np.zeros(channels), itself(value), unknown=True)


def whole(value: Value, *_: Held) -> Held:
    """Any whole number, including 0."""
    return pieced(value, [(1.0, 0.0)], {})
