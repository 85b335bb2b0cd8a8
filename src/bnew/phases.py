"""The phases of a transposed convolution: it is several convolutions at stride 1, whose results interleave.

Along an axis of stride s, padding p and dilation d, result o is Σ in[(o + p − d k) / s] · w[k] over the taps
k for which the place is a whole number. The results r, s + r, 2 s + r, … are phase r, 0 ≤ r < s. All of them
have the same taps, and result s q + r reads in[q + (r + p − d k) / s]: each phase is a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Place: TypeAlias = tuple[int, int]  # numbers of a phase along both axes


@dataclass(frozen=True)
class Phase:
    """A phase along one axis: result q reads the places q + first, q + first + step, … with these taps."""

    first: int
    step: int
    taps: tuple[int, ...]

    @property
    def last(self) -> int:
        """The last place that result 0 reads."""
        return self.first + self.step * (len(self.taps) - 1)

    @property
    def window(self) -> tuple[int, int, int]:
        """What it reads: the first place, the step, and the number of taps."""
        return self.first, self.step, len(self.taps)


def of_axis(taps: int, stride: int, padding: int, dilation: int) -> list[Phase]:
    """The phases of an axis, in order; a phase without taps is 0."""
    found = []
    for r in range(stride):
        # Of a larger tap, the place comes before that of a smaller one.
        own = [k for k in reversed(range(taps)) if (r + padding - dilation * k) % stride == 0]
        first = (r + padding - dilation * own[0]) // stride if own else 0
        step = dilation // math.gcd(dilation, stride) if len(own) > 1 else 1
        found.append(Phase(first, step, tuple(own)))
    return found


@dataclass(frozen=True)
class Phases:
    """The phases along both axes.

    One convolution computes the phases of a run: neighbours, row by row, that read the same places. Its
    output channels are (groups, phases of the run, C_out / groups).
    """

    rows: Sequence[Phase]
    columns: Sequence[Phase]
    groups: int = 1

    @classmethod
    def of(
        cls,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int = 1,
    ) -> Phases:
        """The phases of a layer; each setting has a number for the rows and one for the columns."""
        rows, columns = (of_axis(*axis) for axis in zip(kernel, stride, padding, dilation, strict=True))
        return cls(rows, columns, groups)

    @property
    def runs(self) -> list[list[Place]]:
        """The phases of each convolution; of several groups, all phases together or each alone."""
        places = list(product(range(len(self.rows)), range(len(self.columns))))
        runs = [list(run) for _, run in groupby(places, key=self._window)]
        return runs if len(runs) == 1 or self.groups == 1 else [[place] for place in places]

    def _window(self, place: Place) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        return self.rows[place[0]].window, self.columns[place[1]].window

    def taps(self, place: Place) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The taps of a phase along both axes."""
        return self.rows[place[0]].taps, self.columns[place[1]].taps

    @property
    def counts(self) -> list[Place]:
        """The number of taps of each phase along both axes."""
        return [(len(row.taps), len(column.taps)) for row in self.rows for column in self.columns]

    def is_zero(self, place: Place) -> bool:
        """Whether a phase has no taps."""
        return not all(self.taps(place))

    @property
    def convolutions(self) -> int:
        """How many runs have taps."""
        return sum(not self.is_zero(run[0]) for run in self.runs)

    @property
    def starts(self) -> tuple[int, int]:
        """The first q, along both axes, of what the convolutions compute: at most 0."""
        rows, columns = (min([0, *(-phase.first for phase in along)]) for along in (self.rows, self.columns))
        return rows, columns

    def interleaved(self, parts: Sequence[npt.NDArray[Any]], size: tuple[int, int]) -> npt.NDArray[Any]:
        """Results (N, C_out, H, W) of the size (H, W) from those of all convolutions that have taps."""
        rest = iter(parts)
        images, _, height, width = parts[0].shape
        steps = len(self.rows), len(self.columns)
        found: npt.NDArray[Any] | None = None
        for run in self.runs:
            if self.is_zero(run[0]):
                continue
            part = next(rest).reshape(images, self.groups, len(run), -1, height, width)
            if found is None:
                outputs = self.groups * part.shape[3]
                found = np.zeros((images, outputs, height * steps[0], width * steps[1]), part.dtype)
            for number, (y, x) in enumerate(run):
                own = part[:, :, number].reshape(images, -1, height, width)
                found[:, :, y :: steps[0], x :: steps[1]] = own
        assert found is not None
        top, left = (-start * step for start, step in zip(self.starts, steps, strict=True))
        return found[:, :, top : top + size[0], left : left + size[1]]
