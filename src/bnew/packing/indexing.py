"""Lowers ATen's operators that take or write numbers at constant indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from bnew.packing.choices import chosen
from bnew.packing.joining import joined
from bnew.packing.layouts import IMAGE, Axis, Layout
from bnew.packing.reshaping import part, reshaped, stored_in_order
from bnew.packing.values import Array, Refused, Value
from bnew.packing.views import shown, view

if TYPE_CHECKING:
    from bnew.packing.operation import Operation

_MOST_PIECES = 512


def index(op: Operation, x: Value, indices: Sequence[Value | None]) -> Value:
    """x[…, i, j, …] with constant whole numbers i, j of neighbouring dimensions."""
    used = [dim for dim, each in enumerate(indices) if each is not None]
    first, last = used[0], used[-1]
    if used != list(range(first, last + 1)):
        raise Refused("it is packed only for indices of neighbouring dimensions")
    length = op.input_size[first : last + 1]
    numbers = [_numbers(each) for each in indices[first:]]
    numbers = [np.where(each < 0, each + n, each) for each, n in zip(numbers, length, strict=True)]
    together = np.broadcast_arrays(*numbers)
    places = sum(each * math.prod(length[i + 1 :]) for i, each in enumerate(together))
    if first == 0:
        raise Refused("it takes some of the images")
    source, layout = shown(op, x, op.input_size)
    flat = (*op.input_size[:first], math.prod(length), *op.input_size[last + 1 :])
    source, layout = reshaped(op, source, layout, flat)
    found = taken(op, view(op, source, layout), flat, first, np.asarray(places).reshape(-1))
    size = (*flat[:first], np.size(places), *flat[first + 1 :])
    return view(op, *reshaped(op, *shown(op, found, size), op.size))


def index_select(op: Operation, x: Value, dim: int, indices: Value) -> Value:
    """Some indices of a dimension."""
    return taken(op, x, op.input_size, dim % op.rank, _numbers(indices).reshape(-1))


def gather(op: Operation, x: Value, dim: int, indices: Value, **_: Any) -> Value:
    """For each place of ``indices``, the number with that index of a dimension."""
    dim %= op.rank
    numbers = _numbers(indices)
    if dim == 0 or not np.array_equal(numbers, np.broadcast_to(numbers[:1], numbers.shape)):
        raise Refused("its indices differ from image to image")
    across = numbers[0].swapaxes(0, dim - 1).reshape(numbers.shape[dim], -1)
    if np.array_equal(across, np.broadcast_to(across[:, :1], across.shape)):
        for other, (count, total) in enumerate(zip(numbers.shape, op.input_size, strict=True)):
            if other != dim and count < total:
                x = view(op, *part(op, x, op.input_size, other, 0, 1, count))
                op = op.with_input_size((*op.input_size[:other], count, *op.input_size[other + 1 :]))
        return taken(op, x, op.input_size, dim, across[:, 0])
    grid = list(np.indices(numbers.shape[1:]))
    grid[dim - 1] = numbers[0]
    places = np.ravel_multi_index(grid, op.input_size[1:]).reshape(-1)
    flat = (op.input_size[0], math.prod(op.input_size[1:]))
    source, layout = reshaped(op, *shown(op, x, op.input_size), flat)
    found = taken(op, view(op, source, layout), flat, 1, places)
    return view(op, *reshaped(op, *shown(op, found, (flat[0], places.size)), op.size))


def index_put(
    op: Operation, x: Value, indices: Sequence[Value | None], new: Value, accumulate: bool = False
) -> Value:
    """``x`` with other numbers where a condition holds, or constant ones at constant indices."""
    if accumulate:
        raise Refused("numbers that are added at indices are not packed")
    if all(each is None or each.constant for each in indices):
        return written(op, x, indices, new)
    nodes: Any = op.node.args[1]
    (at, *more) = [dim for dim, each in enumerate(indices) if each is not None]
    mask = indices[at]
    assert mask is not None
    is_one = new.tensor is not None and new.tensor.numel() == 1
    if is_one and not more and str(op.dtype_of(nodes[at])) == "torch.bool":
        before = op.size_of(nodes[at])
        size = (*(1,) * at, *before, *(1,) * (op.rank - at - len(before)))
        source = view(op, *reshaped(op, *shown(op, mask, before), size))
        number = op.derived(new, lambda tensor: tensor.reshape(()))
        return chosen(op, (source, size), (number, ()), (x, op.size))
    raise Refused("it is packed only where a condition chooses the places of one constant number")


def written(op: Operation, x: Value, *arguments: Any, **options: Any) -> Value:
    """``x`` with constant numbers at constant places, by an operator that writes them."""
    if options:
        raise Refused("it is packed only for numbers that replace others")
    on_zeros, on_ones = (op.on(number, arguments) for number in (0, 1))
    places = op.make("evaluated", tensor=on_zeros == on_ones)
    numbers = op.make("evaluated", tensor=on_zeros)
    return chosen(op, (places, op.size), (numbers, op.size), (x, op.size))


# ---------------------------------------------------------------------------------------------- helpers


def _numbers(indices: Any) -> Array:
    if indices is None or indices.tensor is None:
        raise Refused("its indices depend on the input")
    if str(indices.tensor.dtype) in ("torch.bool", "torch.uint8"):
        raise Refused("a mask as an index is not packed: multiply with it, or use whole numbers")
    return np.asarray(indices.tensor.cpu().numpy())


def taken(op: Operation, x: Value, size: Sequence[int], dim: int, places: Array) -> Value:
    """A tensor of ``size`` with these indices of a dimension, in their order."""
    places = np.where(places < 0, places + size[dim], places)
    if dim == 0:
        raise Refused("it takes some of the images")
    if not places.size:
        raise Refused("it takes no numbers")
    nest = _nested(places)
    if len(nest) == 1 and nest[0][1]:
        return view(op, *part(op, x, size, dim, int(places[0]), nest[0][1], len(places)))
    source, layout = shown(op, x, size)
    if any(stride == IMAGE for _, stride in layout.dims[dim]):
        raise Refused("it mixes images or depends on their number")
    pieces = _runs(places)
    if nest or len(pieces) > _MOST_PIECES:
        if len(layout.dims[dim]) > 1:
            source, layout = stored_in_order(op, source, layout)
        ((_, stride),) = layout.dims[dim] or ((1, 0),)
    if nest:
        dims = list(layout.dims)
        dims[dim] = tuple((count, step * stride) for count, step in nest)
        return view(op, source, Layout(tuple(dims), layout.offset + int(places[0]) * stride))
    if len(pieces) > _MOST_PIECES:
        raise Refused(f"its indices have {len(pieces)} pieces, and at most {_MOST_PIECES} are packed")
    found = [
        (view(op, *part(op, x, size, dim, start, step, count)), (*size[:dim], count, *size[dim + 1 :]))
        for start, step, count in pieces
    ]
    return joined(op, found, dim)


def _nested(places: Array) -> list[Axis]:
    """The places as at most three nested loops, (count, step) each; empty if they are none."""
    loops: list[Axis] = []
    starts = [int(place) for place in places]
    while len(starts) > 1 and len(loops) < 3:
        step = starts[1] - starts[0]
        run = next((i for i, (a, b) in enumerate(pairwise(starts), 1) if b - a != step), len(starts))
        if len(starts) % run:
            return []
        rows = np.reshape(starts, (-1, run))
        if np.any(rows - rows[:, :1] != np.arange(run) * step):
            return []
        loops.insert(0, (run, step))
        starts = [int(start) for start in rows[:, 0]]
    return loops or [(1, 1)] if len(starts) == 1 else []


def _runs(places: Array) -> list[tuple[int, int, int]]:
    """The places as runs (start, step, count) one after the other; the step is not 0."""
    runs: list[list[int]] = []
    for place in map(int, places):
        start, step, count = runs[-1] if runs else (0, 0, 0)
        if count == 1 and place != start:
            runs[-1] = [start, place - start, 2]
        elif count > 1 and place == start + count * step:
            runs[-1][2] += 1
        else:
            runs.append([place, 1, 1])
    return [(start, step, count) for start, step, count in runs]
