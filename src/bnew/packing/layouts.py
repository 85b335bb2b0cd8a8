"""Layouts: where in a stored value the numbers of a tensor are.

A stored value (C, H, W) holds its numbers row by row, column by column, channels innermost: number (c, y, x)
is at place (y · W + x) · C + c. A tensor that shows the value in another shape or order is a :class:`Layout`.
Transposing, splitting or slicing a tensor changes its layout alone, and costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import numpy as np

from bnew.packing.values import Array, Shape

Axis: TypeAlias = tuple[int, int]  # size and stride
Axes: TypeAlias = tuple[Axis, ...]  # from the outermost to the innermost
Loop: TypeAlias = tuple[int, int, int]  # size, stride in one layout, stride in another

IMAGE = 1 << 40  # the stride from image to image: a value is stored for each image


@dataclass(frozen=True)
class Layout:
    """The places of a tensor's numbers.

    Each dimension is one axis, or several nested ones: the number with the indices i of all axes is at place
    ``offset + Σ i · stride``. A dimension of size 1 has no axis. A stride of 0 repeats numbers. The axis over
    the images has the stride :data:`IMAGE`.
    """

    dims: tuple[Axes, ...]
    offset: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(map(merged, self.dims)))

    @property
    def size(self) -> tuple[int, ...]:
        """The sizes of the dimensions."""
        return tuple(math.prod(size for size, _ in axes) for axes in self.dims)

    @property
    def axes(self) -> Axes:
        """The axes of all dimensions, in their order."""
        return tuple(chain.from_iterable(self.dims))

    @property
    def images(self) -> int:
        """The number of images that the tensor has; 0 if it is not a multiple of whole images."""
        found = [size for size, stride in self.axes if stride == IMAGE]
        return found[0] if len(found) == 1 and all(s in (0, IMAGE) or s < IMAGE for _, s in self.axes) else 0

    def of_image(self) -> Layout:
        """The part of the first image: dimensions without the axis over the images."""
        return Layout(
            tuple(tuple(axis for axis in axes if axis[1] != IMAGE) for axes in self.dims), self.offset
        )

    def places(self) -> Array:
        """The place of each number, as an array of the tensor's size."""
        places = np.array(self.offset)
        for size, stride in self.axes:
            places = places[..., None] + np.arange(size) * stride
        return places.reshape(self.size)

    def fills(self, count: int) -> bool:
        """Whether each image has each of ``count`` places exactly once."""
        expected = 1
        for size, stride in sorted(self.of_image().axes, key=lambda axis: axis[1]):
            if stride != expected:
                return False
            expected *= size
        return self.offset == 0 and expected == count

    # ------------------------------------------------------------------------------ other dimensions

    def permuted(self, order: Sequence[int]) -> Layout:
        """The dimensions in another order."""
        return Layout(tuple(self.dims[dim] for dim in order), self.offset)

    def order_of(self, other: Layout) -> list[int] | None:
        """The order in which this is ``other.permuted(order)``; None if there is none."""
        rest, order = list(range(len(other.dims))), list[int]()
        for axes in self.dims:
            found = next((dim for dim in rest if other.dims[dim] == axes), None)
            if found is None:
                return None
            rest.remove(found)
            order.append(found)
        return order if not rest and self.offset == other.offset else None

    def expanded(self, size: Sequence[int]) -> Layout:
        """Dimensions of size 1 repeated, and new ones in front."""
        dims = ((),) * (len(size) - len(self.dims)) + self.dims
        return Layout(
            tuple(
                ((new, 0),) if new > 1 and not axes else axes for new, axes in zip(size, dims, strict=True)
            ),
            self.offset,
        )

    def sliced(self, dim: int, start: int, step: int, count: int) -> Layout | None:
        """``count`` numbers of a dimension, from ``start`` on in steps; None if axes do not allow it."""
        axes = self.dims[dim]
        total = self.size[dim]
        if (start, step, count) == (0, 1, total):
            return self
        if not axes:
            return self if count == 1 else None
        *outer, (size, stride) = axes
        rest = total // size
        if rest > 1:
            # Whole runs of the inner axis, or a part of one run.
            if step == 1 and start % size == 0 and count % size == 0:
                inner = Layout((tuple(outer),), 0).sliced(0, start // size, 1, count // size)
                if inner is not None:
                    new = (*inner.dims[0], (size, stride))
                    return self._with(dim, new, self.offset + inner.offset)
            first, last = start, start + (count - 1) * step
            if first // size != last // size:
                return None
            run = Layout((tuple(outer),), 0).sliced(0, first // size, 1, 1)
            if run is None:
                return None
            new_offset = self.offset + run.offset + first % size * stride
            return self._with(dim, ((count, stride * step),), new_offset)
        return self._with(dim, ((count, stride * step),), self.offset + start * stride)

    def without(self, dim: int) -> Layout:
        """The layout without a dimension of size 1."""
        return Layout(self.dims[:dim] + self.dims[dim + 1 :], self.offset)

    def _with(self, dim: int, axes: Axes, offset: int) -> Layout:
        return Layout((*self.dims[:dim], axes, *self.dims[dim + 1 :]), offset)

    def reshaped(self, size: Sequence[int]) -> Layout | None:
        """Dimensions of other sizes, for the numbers in their order; None if axes cannot be split so."""
        rest = list(merged(self.axes))
        dims: list[Axes] = []
        for want in reversed(size):
            axes: list[Axis] = []
            while want > 1:
                length, stride = rest.pop()
                part = math.gcd(want, length)
                if part == 1 or (part < length and part < want):
                    return None
                if part < length:
                    rest.append((length // part, stride * part))
                axes.insert(0, (part, stride))
                want //= part
            dims.insert(0, tuple(axes))
        return Layout(tuple(dims), self.offset)


def merged(axes: Sequence[Axis]) -> Axes:
    """The axes without those of size 1, and neighbours that are one axis as one."""
    result: list[Axis] = []
    for size, stride in axes:
        if size == 1:
            continue
        if result and result[-1][1] == stride * size:
            result[-1] = (result[-1][0] * size, stride)
        else:
            result.append((size, stride))
    return tuple(result)


def in_memory(size: Sequence[int]) -> Layout:
    """A tensor whose numbers lie in the order of their dimensions."""
    strides = np.cumprod([1, *size[:0:-1]])[::-1].tolist()
    return Layout(tuple(((n, s),) for n, s in zip(size, strides, strict=True)))


def standard(shape: Shape, images: int, rank: int) -> Layout:
    """A stored value as the tensor (N, C, H, W), or the first ``rank`` of these dimensions."""
    channels, height, width = shape
    dims = (((images, IMAGE),), ((channels, 1),), ((height, width * channels),), ((width, channels),))
    return Layout((*dims, *[()] * rank)[:rank])


def loops(one: Layout, other: Layout) -> tuple[Loop, ...] | None:
    """Both layouts of a tensor as loops over the same axes; None if their axes do not fit."""
    found: list[Loop] = []
    for first, second in zip(one.dims, other.dims, strict=True):
        own = _together(list(first), list(second))
        if own is None:
            return None
        found += own
    return tuple(found)


def _together(first: list[Axis], second: list[Axis]) -> list[Loop] | None:
    found: list[Loop] = []
    while first and second:
        (a, s), (b, t) = first.pop(), second.pop()
        part = math.gcd(a, b)
        if part not in (a, b):
            return None
        if part < a:
            first.append((a // part, s * part))
        if part < b:
            second.append((b // part, t * part))
        found.insert(0, (part, s, t))
    return None if first or second else found
