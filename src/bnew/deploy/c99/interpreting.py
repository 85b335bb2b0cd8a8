"""Stages computed in NumPy, in an arithmetic of choice: the readable twin of kernels.c.

Values lie as (N, H, W, C); bits are ±1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bnew.deploy.c99.stages import Stage, Value

Numbers: TypeAlias = npt.NDArray[Any]
Bools: TypeAlias = npt.NDArray[np.bool_]


class Arithmetic(Protocol):
    """What numbers are and how a stage ends; ``s`` is the place of the stage in its list."""

    def mean(self, sums: Numbers, places: int) -> Numbers:
        """Sums of so many numbers, divided by it."""

    def finish(self, s: int, sums: Numbers, other: Numbers | None) -> Numbers:
        """What the steps behind an operator make of its numbers."""

    def is_set(self, s: int, numbers: Numbers) -> Bools:
        """Which bits are set."""


class Interpreter:
    """Computes the stages of a network for batches of images."""

    def __init__(self, stages: Iterable[Stage], arithmetic: Arithmetic) -> None:
        self.stages = tuple(stages)
        self.arithmetic = arithmetic

    def __call__(self, images: npt.NDArray[np.uint8]) -> dict[Value, Numbers]:
        """All values for images (N, H, W, C) of bytes."""
        values: dict[Value, Numbers] = {}
        for s, stage in enumerate(self.stages):
            numbers = self._stage(s, stage, images, values)
            if stage.real:
                values[stage.real] = numbers
            if stage.signs:
                values[stage.signs] = np.where(self.arithmetic.is_set(s, numbers), 1, -1).astype(np.float32)
        return values

    def _stage(
        self, s: int, stage: Stage, images: npt.NDArray[np.uint8], values: dict[Value, Numbers]
    ) -> Numbers:
        if stage.kind == "image":
            return self.arithmetic.finish(s, images.astype(np.int64), None)
        assert stage.source is not None
        x = values[stage.source]
        if stage.kind == "flatten":
            return x.transpose(0, 3, 1, 2).reshape(len(x), 1, 1, -1)
        if stage.window:
            x = convolved(stage, x)
        elif stage.kind == "pool":
            x = self._pooled(stage, x)
        if stage.end.other is None:
            return self.arithmetic.finish(s, x, None)
        other = values[stage.end.other]
        return self.arithmetic.finish(s, x, np.tile(other, (1, 1, 1, stage.shape[0] // other.shape[3])))

    def _pooled(self, stage: Stage, x: Numbers) -> Numbers:
        made = np.empty((len(x), *stage.shape[1:], stage.shape[0]), x.dtype)
        for y, rows in enumerate(stage.spans[0]):
            for column, columns in enumerate(stage.spans[1]):
                window = x[
                    :,
                    rows.first : rows.last : stage.dilation[0],
                    columns.first : columns.last : stage.dilation[1],
                ]
                made[:, y, column] = (
                    self.arithmetic.mean(window.sum((1, 2)), rows.places * columns.places)
                    if stage.mean
                    else window.max((1, 2))
                )
        return made


def convolved(stage: Stage, x: Numbers) -> Numbers:
    """The sums of a convolution, exact as long as they are whole numbers below 2⁵³ (binary ones: 2²⁴)."""
    weights = stage.weights
    assert weights is not None
    if stage.kind == "binary_conv":
        weights = _unpacked(stage, weights)
    else:
        x, weights = x.astype(np.float64), weights.astype(np.float64)
    groups, height, width = stage.groups, *stage.shape[1:]
    sums: Numbers = np.zeros(1, x.dtype)
    kernels = weights.reshape(groups, -1, np.prod(weights.shape[1:3]), weights.shape[3])
    for place, kernel in zip(_windows(stage, x), kernels.transpose(2, 0, 3, 1), strict=True):
        sums = sums + place.reshape(-1, groups, kernel.shape[1]).transpose(1, 0, 2) @ kernel
    return sums.transpose(1, 0, 2).reshape(-1, height, width, len(weights))


def _windows(stage: Stage, x: Numbers) -> Iterator[Numbers]:
    """What each place of the kernel sees: (N, H', W', C)."""
    window = stage.window
    assert window is not None
    top, left, bottom, right = window.pad
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=stage.pad_value)
    for ky in range(window.kernel[0]):
        for kx in range(window.kernel[1]):
            y, column = ky * window.dilation[0], kx * window.dilation[1]
            yield x[
                :,
                y : y + (stage.shape[1] - 1) * window.stride[0] + 1 : window.stride[0],
                column : column + (stage.shape[2] - 1) * window.stride[1] + 1 : window.stride[1],
            ]


def _unpacked(stage: Stage, words: Numbers) -> Numbers:
    """±1 of the bits of a binary convolution: (O, rows, columns, C)."""
    assert stage.window is not None
    assert stage.source is not None
    shape = (*stage.window.kernel, stage.source.shape[0])
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), axis=1, bitorder="little")
    return (2 * bits[:, : np.prod(shape)].astype(np.float32) - 1).reshape(len(words), *shape)
