"""Views: tensors that show a stored value in another order, shape or part, and what it takes to store them.

A value with the pseudo-operator ``view`` is its input as the tensor of ``notes["layout"]``. An operator on
single numbers works on the stored value, and its result has the same layout. An operator over the channels
needs one dimension to be the stored channels. Only where no stored value fits, numbers are moved: by the
file's ``rearrange``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bnew.packing.layouts import IMAGE, Axes, Axis, Layout, loops, merged, standard
from bnew.packing.values import Array, Refused, Shape, Value

if TYPE_CHECKING:
    from bnew.packing.operation import Operation

Stored: TypeAlias = tuple[Value, Layout]  # a stored value, and a layout that fills it


def count(shape: Shape) -> int:
    """The number of numbers of a stored value."""
    return math.prod(shape)


def view(op: Operation, source: Value, layout: Layout) -> Value:
    """``source`` as a tensor of that layout; itself if that is how it is stored."""
    rank = len(layout.dims)
    is_all = math.prod(source.shape[max(rank - 1, 0) :]) == 1  # the tensor has all dimensions of the value
    if rank <= 4 and is_all and layout == standard(source.shape, op.images, rank):
        return source
    key = ("view", source, layout)
    result: Value = op.once(
        key, lambda: op.make("view", source, shape=op.shape_of(layout.size), notes={"layout": layout})
    )
    return result


def shown(op: Operation, x: Value, size: Sequence[int]) -> Stored:
    """The stored value behind ``x``, which is a tensor of ``size``, and its layout; it may not fill it."""
    source, layout = seen(op, x, size)
    return op.real(source) if source.op == "padding" else source, layout


def seen(op: Operation, x: Value, size: Sequence[int]) -> Stored:
    """:func:`shown`, but the value may be one with a border that is not stored yet."""
    if x.op == "view":
        return x.inputs[0], x.notes["layout"]
    return x, standard(x.shape, op.images, len(size)).expanded(size)


def _order(layout: Layout, *groups: Sequence[int]) -> tuple[list[Axes], Shape]:
    """The axes of the dimensions that are rows, columns and channels, and the shape that they make."""
    part = layout.of_image()
    axes = [merged([axis for dim in dims for axis in part.dims[dim]]) for dims in groups]
    height, width, depth = (math.prod(size for size, _ in own) for own in axes)
    return axes, (depth, height, width)


def is_arranged(
    op: Operation,
    source: Value,
    layout: Layout,
    rows: Sequence[int],
    columns: Sequence[int],
    channels: Sequence[int],
) -> bool:
    """Whether the tensor is stored with these dimensions as rows, columns and channels."""
    groups, shape = _order(layout, rows, columns, channels)
    axes = merged([axis for own in groups for axis in own])
    return shape == source.shape and layout.offset == 0 and axes == merged([(count(shape), 1)])


def arranged(
    op: Operation,
    source: Value,
    layout: Layout,
    rows: Sequence[int],
    columns: Sequence[int],
    channels: Sequence[int],
) -> Value:
    """The tensor stored with these dimensions as rows, columns and channels, all of them; moved if needed.

    Raises:
        Refused: it has not one axis over all images.
    """
    if layout.images != op.images:
        raise Refused("it mixes images or depends on their number")
    if is_arranged(op, source, layout, rows, columns, channels):
        return source
    groups, shape = _order(layout, rows, columns, channels)
    whole = standard(source.shape, op.images, 4).of_image()
    if shape == (count(source.shape), 1, 1) and (groups[2], layout.offset) == (merged(whole.axes), 0):
        return _moved(op, "flatten", source, shape, {})
    return rearranged(op, source, shape, [axis for axes in groups for axis in axes], layout.offset)


def rearranged(op: Operation, source: Value, shape: Shape, axes: Sequence[Axis], offset: int) -> Value:
    """The numbers of ``source`` at the places of nested axes, in the order in which ``shape`` is stored."""
    axes = axes or [(1, 1)]
    fields = {
        "shape": list(shape),
        "sizes": [size for size, _ in axes],
        "strides": [stride for _, stride in axes],
        "offset": offset,
    }
    return _moved(op, "rearrange", source, shape, fields)


def _moved(op: Operation, kind: str, source: Value, shape: Shape, fields: dict[str, Any]) -> Value:
    """``source`` moved by an operator; of a sign, what it is the sign of is moved."""
    place = op.place.beside(kind)

    def make() -> Value:
        if source.op == "choice" and source.numbers.shape[1] == 1:
            (before,) = source.inputs
            moved = op.make(kind, op.real(before), shape=shape, fields=fields, place=place)
            return op.make("choice", moved, numbers=source.numbers, shape=shape)
        return op.make(kind, op.real(source), shape=shape, fields=fields, place=place)

    value: Value = op.once(("moved", kind, source, shape, str(fields)), make)
    return value


def stored(op: Operation, x: Value) -> Value:
    """The value stored as the tensor (N, C, H, W) that it is, or (N, C, L), or (N, C).

    Raises:
        Refused: it has more dimensions, or its first is not over the images.
    """
    if x.op != "view":
        return x
    source, layout = x.inputs[0], x.notes["layout"]
    if len(layout.dims) > 4:
        raise Refused(f"its input has {len(layout.dims)} dimensions, and at most 4 are packed here")
    if layout.dims[0] != ((op.images, IMAGE),):
        raise Refused("its input is no batch of images or vectors, or their number has changed")
    dims = range(1, len(layout.dims))
    return arranged(op, source, layout, dims[1:2], dims[2:3], dims[:1])


def settled(op: Operation, x: Value, size: Sequence[int]) -> Stored:
    """A stored value that the tensor fills: the present one, or one with its numbers only."""
    source, layout = shown(op, x, size)
    if layout.images == op.images and layout.fills(count(source.shape)):
        return source, layout
    dims = range(len(size))

    def least(dim: int) -> float:
        return min((abs(s) for n, s in layout.dims[dim] if 0 < abs(s) < IMAGE), default=math.inf)

    wanted = [dim for dim in dims if layout.of_image().dims[dim]]
    channel = min(reversed(wanted), key=least, default=len(size) - 1)
    return with_channels(op, source, layout, channel)


def with_channels(op: Operation, source: Value, layout: Layout, dim: int) -> Stored:
    """A stored value whose channels are dimension ``dim``, and which the tensor fills.

    The other dimensions are its pixels in any order.
    """
    if fits_channels(op, source, layout, dim):
        return source, layout
    return canonical(op, source, layout, dim)


def canonical(op: Operation, source: Value, layout: Layout, dim: int) -> Stored:
    """The same, stored with ``dim`` as its channels, and the other dimensions in order as its pixels."""
    if any(stride == IMAGE for _, stride in layout.dims[dim]):
        raise Refused("it mixes images or depends on their number")
    part = layout.of_image()
    others = [d for d in range(len(layout.dims)) if d != dim and part.dims[d]]
    new = arranged(op, source, layout, others[:-1], others[-1:], [dim])
    return new, placed(layout, [*others, dim])


def fits_channels(op: Operation, source: Value, layout: Layout, dim: int) -> bool:
    """Whether dimension ``dim`` is the channels of the stored value, which the tensor fills."""
    channels = source.shape[0]
    return (
        layout.images == op.images
        and layout.fills(count(source.shape))
        and layout.dims[dim] == Layout((((channels, 1),),)).dims[0]
    )


def placed(layout: Layout, order: Sequence[int]) -> Layout:
    """The layout of the same tensor stored in the order of its dimensions ``order``, the last innermost."""
    dims: list[Axes] = [()] * len(layout.dims)
    stride = 1
    for dim in range(len(dims)):
        if dim not in order:
            dims[dim] = tuple(axis for axis in layout.dims[dim] if axis[1] == IMAGE)
    for dim in reversed(order):
        axes: list[Axis] = []
        for size, s in reversed(layout.dims[dim]):
            axes.insert(0, (size, IMAGE if s == IMAGE else stride))
            stride *= 1 if s == IMAGE else size
        dims[dim] = tuple(axes)
    return Layout(tuple(dims))


def resized(layout: Layout, dim: int, before: int, after: int) -> Layout:
    """The layout when dimension ``dim``, the channels, has ``after`` numbers in place of ``before``."""
    dims = [
        tuple((size, s if s == IMAGE else s // before * after) for size, s in axes) for axes in layout.dims
    ]
    dims[dim] = ((after, 1),)
    return Layout(tuple(dims))


def beside(op: Operation, main: Value, layout: Layout, other: Value, its: Layout) -> Value:
    """The other operand as the file's steps want it beside ``main``: see docs/format.md, "Steps"."""
    if its == layout and other.shape == main.shape:
        return other
    shared = loops(layout, its)
    if shared is None:  # axes that do not nest: one of them is moved
        source, its = with_channels(op, other, its, len(its.dims) - 1)
        shared = loops(layout, its)
        if shared is None:
            raise Refused("its inputs differ in shape in a way that the packed file does not know")
        other = source
    channels, height, width = main.shape
    pixels, inner = [], []
    for size, stride, t in sorted(shared, key=lambda loop: -loop[1]):
        if stride == IMAGE:
            if t != IMAGE:
                raise Refused("it mixes images or depends on their number")
        elif stride >= channels:
            pixels.append((size, t))
        elif size * stride <= channels:
            inner.append((size, t))
        else:
            part = channels // stride
            pixels.append((size // part, t * part))
            inner.append((part, t))
    own = other.shape[0]
    repeated = tuple(inner)
    while repeated and repeated[0][1] == 0:  # channels beyond the other's own
        repeated = repeated[1:]
    depth = math.prod(size for size, _ in repeated)
    once = merged(repeated) == Layout((((depth, 1),),)).dims[0]
    if its.offset == 0 and once and depth == own:
        if all(t == 0 for _, t in pixels) and other.shape[1:] == (1, 1):
            return other
        if merged(pixels) == merged(((height * width, own),)) and other.shape[1:] == (height, width):
            return other
    depth = depth if channels % depth == 0 else channels
    axes = (*pixels, *repeated) if depth != channels else (*pixels, *inner)
    still = all(t == 0 for _, t in pixels)
    if still:  # the same for every place
        axes = axes[len(pixels) :]
    shape = (depth, 1, 1) if still else (depth, height, width)
    return rearranged(op, other, shape, axes, its.offset)


def memory(op: Operation, tensor: Array, layout: Layout, shape: Shape) -> Array:
    """A constant that is broadcast to a tensor of ``layout``, as the numbers (C, H, W) of a stored value.

    Raises:
        Refused: it differs from image to image.
    """
    full = np.broadcast_to(tensor, layout.size).reshape([size for size, _ in layout.axes])
    for axis, (_, stride) in enumerate(layout.axes):
        if stride == IMAGE:
            first = full.take([0], axis)
            if not np.array_equal(full, np.broadcast_to(first, full.shape), equal_nan=True):
                raise Refused("its constant differs from image to image")
            full = first
    part = layout.of_image()
    flat = np.empty(count(shape), full.dtype)
    flat[part.places()] = full.reshape(part.size)
    channels, height, width = shape
    return flat.reshape(height, width, channels).transpose(2, 0, 1)
