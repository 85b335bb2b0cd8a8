"""Lowers ATen's operators that put tensors side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bnew.packing.arithmetic import to
from bnew.packing.layouts import IMAGE, Layout
from bnew.packing.reshaping import part, reshaped
from bnew.packing.values import Refused, Value
from bnew.packing.views import arranged, fits_channels, is_arranged, placed, resized, shown, view

if TYPE_CHECKING:
    from bnew.packing.operation import Operation


def concat(op: Operation, parts: Sequence[Value], dim: int = 0) -> Value:
    """All parts, one after the other along a dimension."""
    nodes = op.node.args[0]
    assert isinstance(nodes, list | tuple)
    return joined(op, list(zip(parts, map(op.size_of, nodes), strict=True)), dim % op.rank)


def stack(op: Operation, parts: Sequence[Value], dim: int = 0) -> Value:
    """All parts along a new dimension."""
    nodes = op.node.args[0]
    assert isinstance(nodes, list | tuple)
    dim %= op.rank
    found = [_with_dimension(op, x, node, dim) for x, node in zip(parts, nodes, strict=True)]
    return joined(op, found, dim)


def copied(op: Operation, _: Value, x: Value, *__: Any) -> Value:
    """The numbers of ``x``, written over a tensor of another one's size."""
    if x.constant:
        return op.derived(x, lambda tensor: tensor.to(op.dtype).expand(op.size))
    source, layout = shown(op, to(op, x), op.size_of(op.node.args[1]))
    return view(op, source, layout.expanded(op.size))


def slice_written(
    op: Operation,
    x: Value,
    new: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    """``x`` with other numbers at some indices of a dimension."""
    dim %= op.rank
    first, last, _ = slice(start, end).indices(op.size[dim])
    if step != 1:
        return _written_in_steps(op, x, new, dim, first, step)
    return _written(op, x, (new, op.size_of(op.node.args[1])), dim, first, max(first, last))


def _written_in_steps(op: Operation, x: Value, new: Value, dim: int, first: int, step: int) -> Value:
    """``x`` with other numbers at each index ``first`` + i · ``step`` of a dimension."""
    count, rest = divmod(op.size[dim], step)
    size = op.size_of(op.node.args[1])
    if rest or first >= step or size[dim] != count:
        raise Refused("indices with gaps are packed only if they divide a dimension into equal steps")
    inner = op.with_sizes((*op.size[:dim], count, step, *op.size[dim + 1 :]))
    if x.tensor is not None:
        x = op.derived(x, lambda tensor: tensor.expand(op.size).reshape(inner.size))
    else:
        x = view(op, *reshaped(op, *shown(op, x, op.size), inner.size))
    part = _with_dimension(op, new, op.node.args[1], dim + 1)
    result = _written(inner, x, part, dim + 1, first, first + 1)
    return view(op, *reshaped(op, *shown(op, result, inner.size), op.size))


def select_written(op: Operation, x: Value, new: Value, dim: int, index: int) -> Value:
    """``x`` with other numbers at one index of a dimension."""
    dim, index = dim % op.rank, index % op.size[dim]
    return _written(op, x, _with_dimension(op, new, op.node.args[1], dim), dim, index, index + 1)


def _written(
    op: Operation, x: Value, middle: tuple[Value, Sequence[int]], dim: int, first: int, last: int
) -> Value:
    pieces = [middle]
    for start, count, place in ((0, first, 0), (last, op.size[dim] - last, 2)):
        size = (*op.size[:dim], count, *op.size[dim + 1 :])
        if x.tensor is not None:
            kept = op.make("evaluated", tensor=x.tensor.narrow(dim, start, count))
        elif count:
            kept = view(op, *part(op, x, op.size, dim, start, 1, count))
        else:
            continue
        pieces.insert(place, (kept, size))
    return joined(op, pieces, dim)


def _with_dimension(op: Operation, x: Value, node: Any, dim: int) -> tuple[Value, list[int]]:
    """A part with a new dimension of size 1, and its size."""
    size = list(op.size_of(node))
    if x.tensor is not None:
        x = op.make("evaluated", tensor=x.tensor.unsqueeze(dim))
    else:
        source, layout = shown(op, x, size)
        x = view(op, source, Layout((*layout.dims[:dim], (), *layout.dims[dim:]), layout.offset))
    size.insert(dim, 1)
    return x, size


def joined(op: Operation, parts: Sequence[tuple[Value, Sequence[int]]], dim: int) -> Value:
    """Tensors of the given sizes, one after the other along ``dim``."""
    parts = [(x, size) for x, size in parts if 0 not in size]
    given = [shown(op, x, size) for x, size in parts if not x.constant]
    # As they are stored, if all of them have the dimension as channels and the same pixels.
    first, order = given[0]
    still = len(given) == len(parts) and all(
        fits_channels(op, source, layout, dim)
        and source.shape[1:] == first.shape[1:]
        and resized(layout, dim, source.shape[0], 1) == resized(order, dim, first.shape[0], 1)
        for source, layout in given
    )
    if still:
        total = sum(source.shape[0] for source, _ in given)
        whole = resized(order, dim, first.shape[0], total)
        return view(op, _concat(op, "concat", [source for source, _ in given], 0), whole)
    # Else one part after the other as rows, columns or channels, whichever moves the fewest.
    part = order.of_image()
    others = [d for d in range(len(part.dims)) if d != dim and part.dims[d]]
    channel = min(others, key=lambda d: min(abs(s) for _, s in part.dims[d]), default=None)
    pixels = [d for d in others if d != channel]
    depth = [] if channel is None else [channel]
    ways: list[tuple[str, int, tuple[list[int], list[int], list[int]]]] = [
        ("concat_columns", 2, (pixels, [dim], depth)),
        ("concat_rows", 1, ([dim], pixels, depth)),
        ("concat", 0, (others[:-1], others[-1:], [dim])),
    ]
    ways = ways if depth else ways[2:]
    kept = [sum(is_arranged(op, *each, *groups) for each in given) for _, _, groups in ways]
    kind, axis, groups = ways[kept.index(max(kept))]
    found = [_stored(op, x, size, dim, order, groups) for x, size in parts]
    dims = list(order.dims)
    dims[dim] = ((sum(size[dim] for _, size in parts), 0),)
    whole = placed(Layout(tuple(dims)), [d for group in groups for d in group])
    return view(op, _concat(op, kind, found, axis), whole)


def _concat(op: Operation, kind: str, parts: Sequence[Value], axis: int) -> Value:
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return op.make(kind, *map(op.real, parts), shape=(shape[0], shape[1], shape[2]))


def _stored(
    op: Operation,
    x: Value,
    size: Sequence[int],
    dim: int,
    like: Layout,
    groups: tuple[Sequence[int], Sequence[int], Sequence[int]],
) -> Value:
    """A part with these dimensions as rows, columns and channels; ``like`` is the layout of another part."""
    if any(stride == IMAGE for _, stride in like.dims[dim]):
        raise Refused("it mixes images or depends on their number")
    if not x.constant:
        return arranged(op, *shown(op, x, size), *groups)
    dims = list(like.dims)
    dims[dim] = ((size[dim], 0),)
    layout = placed(Layout(tuple(dims)), [d for group in groups for d in group])
    part = layout.of_image()
    height, width, depth = (math.prod(part.size[d] for d in group) for group in groups)
    return op.stored_constant(x, layout, (depth, height, width))


def roll(op: Operation, x: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> Value:
    """Dimensions turned: what leaves at the end comes in at the front."""
    if not dims:
        raise Refused("it is packed only with its dimensions named")
    for shift, dim in zip(shifts, (dim % op.rank for dim in dims), strict=True):
        total = op.size[dim]
        shift %= total
        if shift:
            ends = [(total - shift, shift), (0, total - shift)]
            pieces = [view(op, *part(op, x, op.size, dim, start, 1, n)) for start, n in ends]
            sizes = [(*op.size[:dim], n, *op.size[dim + 1 :]) for _, n in ends]
            x = joined(op, list(zip(pieces, sizes, strict=True)), dim)
    return x
