"""Sets of numbers at which a value is held: whole multiples of a step and an offset, channel by channel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import TypeAlias

import numpy as np

from bnew.packing.exported import Array, Value

Piece: TypeAlias = tuple[Array | float, Array | float]  # step and offset, a number or one per channel
Slopes: TypeAlias = Mapping[Value, tuple[float, float]]

ANY = np.inf  # a step: any number
WIDEST = 256  # a quotient of whole numbers up to this is no coincidence
_ROUNDING = 2.0**-24  # of float32, relative
_MOST_PIECES = 64


@dataclass(frozen=True, eq=False)
class Held:
    """The numbers at which a value is held, in pieces; a value without pieces is continuous.

    Piece p holds channel c at ``offsets[p, c] + n · steps[p, c]`` for every whole n. A step of 0 is one
    number, an infinite one is any number, and an offset of NaN says that the channel has no such piece.

    ``slopes`` names the values that this one follows in a straight line wherever it is not held, with the
    least and the greatest slope. Two that follow the same one may cancel each other, such as x and relu(−x).
    """

    steps: Array  # (P, C)
    offsets: Array  # (P, C)
    slopes: Slopes = field(default_factory=dict)

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


def pieced(value: Value, pieces: Iterable[Piece], slopes: Slopes) -> Held:
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
        return anything(value)
    table = np.array(list(rows.values()), np.float64).reshape(len(rows), 2, *channels)
    return Held(table[:, 0], table[:, 1], slopes)


def only_where(condition: Array, number: float = 0.0) -> Array:
    """The offset of a piece that the other channels do not have."""
    return np.where(condition, number, np.nan)


def itself(value: Value) -> dict[Value, tuple[float, float]]:
    """The slopes of a value that follows no other in a straight line."""
    return {value: (1.0, 1.0)}


def plus(a: Array | float, b: Array | float) -> Array:
    """a + b; exactly 0 where they cancel but for float32's rounding."""
    total = np.asarray(a + b)
    return np.where(np.abs(total) <= _ROUNDING * np.maximum(np.abs(a), np.abs(b)), 0.0, total)


def step_product(a: Array | float, b: Array | float) -> Array:
    """|a · b|, 0 where one of them is, even if the other is infinite."""
    return np.where((a == 0) | (b == 0), 0.0, np.abs(a * b))


def common_step(a: Array, b: Array) -> Array:
    """The greatest number of which both are multiples; NaN where their quotient is none of small numbers."""
    small, large = np.minimum(a, b), np.maximum(a, b)
    if not np.any(small):
        return large
    quotients = (small / large)[:, None] * np.arange(1, WIDEST + 1)
    fits = is_whole(quotients)
    common = np.where(fits.any(1), large / (fits.argmax(1) + 1), np.nan)
    return np.where((small == 0) | np.isinf(large), large, common)


def is_whole(numbers: Array) -> Array:
    """Whether they are 1, 2, 3 … but for rounding."""
    near = np.rint(numbers)
    return np.asarray((near >= 1) & (np.abs(numbers - near) <= 4 * _ROUNDING * near))


def mixed(pieces: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """One piece that has all numbers between the pieces; NaN in channels where there is none such."""
    steps, offsets = (np.array(part) for part in zip(*pieces, strict=True))
    first = np.fmin.reduce(offsets)
    distances = np.nan_to_num(np.concatenate([steps, np.abs(offsets - first)]), posinf=ANY)
    return reduce(common_step, distances), first


def tiled(x: Held, channels: int) -> Held:
    """Channels modulo, as the file joins values."""
    times = (1, channels // x.steps.shape[1])
    return Held(np.tile(x.steps, times), np.tile(x.offsets, times), x.slopes)


def hull(*slopes: Slopes) -> dict[Value, tuple[float, float]]:
    """The least and the greatest slope of all."""
    roots = {root: [of[root] for of in slopes if root in of] for of in slopes for root in of}
    return {
        root: (min(low for low, _ in all_), max(high for _, high in all_)) for root, all_ in roots.items()
    }


def anything(value: Value, *_: Held) -> Held:
    """What is not known: any number, 0 as well."""
    channels = (1, value.shape[0])
    return Held(np.full(channels, ANY), np.zeros(channels), itself(value))
