"""Lowers ATen's operators that show the same numbers in another order, shape or part, or join them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from bnew.packing.layouts import Axis, Layout, standard
from bnew.packing.rows import windows
from bnew.packing.values import Refused, Value
from bnew.packing.views import (
    Stored,
    arranged,
    canonical,
    placed,
    seen,
    shown,
    stored,
    view,
    with_channels,
)  # fmt: skip

if TYPE_CHECKING:
    from bnew.packing.operation import Operation


def permute(op: Operation, x: Value, dims: Sequence[int]) -> Value:
    """Another order of the dimensions."""
    source, layout = seen(op, x, op.input_size)
    return view(op, source, layout.permuted([dim % op.rank for dim in dims]))


def transpose(op: Operation, x: Value, first: int, second: int) -> Value:
    """:func:`permute` of two dimensions."""
    order = list(range(op.rank))
    order[first], order[second] = order[second], order[first]
    return permute(op, x, order)


def turned(op: Operation, x: Value) -> Value:
    """:func:`permute` of the two dimensions of a matrix."""
    return permute(op, x, range(op.rank)[::-1])


def move(op: Operation, x: Value, before: Sequence[int], after: Sequence[int]) -> Value:
    """Dimensions at other places."""
    order = [dim for dim in range(op.rank) if dim not in {d % op.rank for d in before}]
    for dim, place in sorted(zip(before, after, strict=True), key=lambda pair: pair[1] % op.rank):
        order.insert(place % op.rank, dim % op.rank)
    return permute(op, x, order)


def reshape(op: Operation, x: Value, *_: Any, **__: Any) -> Value:
    """The same numbers, in their order, with dimensions of other sizes."""
    if op.dtype != op.dtype_of(op.node.args[0]):
        raise Refused(f"it takes the bits of its input for those of {op.dtype}")
    source, layout = shown(op, x, op.input_size)
    return view(op, *reshaped(op, source, layout, op.size))


def reshaped(op: Operation, source: Value, layout: Layout, size: Sequence[int]) -> Stored:
    """The same numbers with dimensions of other sizes; moved where the layout cannot be split so."""
    new = layout.reshaped(size)
    if new is not None:
        return source, new
    # Stored in the order of the dimensions, they can be split anywhere.
    source, layout = stored_in_order(op, source, layout)
    new = layout.reshaped(size)
    if new is None:
        raise Refused("it mixes images or depends on their number")
    return source, new


def stored_in_order(op: Operation, source: Value, layout: Layout) -> Stored:
    """A stored value with the tensor's numbers in the order of its dimensions."""
    dims = range(len(layout.dims))
    return arranged(op, source, layout, [], [], dims), placed(layout, dims)


def expand(op: Operation, x: Value, *_: Any, **__: Any) -> Value:
    """Dimensions of size 1 repeated."""
    source, layout = shown(op, x, op.input_size)
    return view(op, source, layout.expanded(op.size))


def repeat(op: Operation, x: Value, times: Sequence[int]) -> Value:
    """Whole dimensions repeated, one after the other."""
    source, layout = shown(op, x, op.input_size)
    new = layout.expanded([1] * (len(times) - len(layout.dims)) + list(layout.size))
    if times[0] != 1:
        raise Refused("it repeats images")
    dims = (new.dims[0], *(((n, 0), *axes) for n, axes in zip(times[1:], new.dims[1:], strict=True)))
    return view(op, source, Layout(dims, new.offset))


def repeat_interleave(op: Operation, x: Value, times: Any, dim: int | None = None, **_: Any) -> Value:
    """Each index of a dimension repeated."""
    if dim is None or not isinstance(times, int):
        raise Refused("it is packed only for one number of repeats, of one dimension")
    source, layout = shown(op, x, op.input_size)
    dims = list(layout.dims)
    dims[dim] = (*dims[dim], (times, 0))
    return view(op, source, Layout(tuple(dims), layout.offset))


def part(op: Operation, x: Value, size: Sequence[int], dim: int, start: int, step: int, count: int) -> Stored:
    """``count`` indices of a dimension, from ``start`` on in steps, of a tensor of ``size``."""
    source, layout = shown(op, x, size)
    new = layout.sliced(dim, start, step, count)
    if new is None:
        source, layout = with_channels(op, source, layout, dim)
        new = layout.sliced(dim, start, step, count)
    if new is None or new.images != op.images:
        raise Refused("it takes some of the images")
    return source, new


def slice_(
    op: Operation, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    """Some indices of a dimension, in steps."""
    dim %= op.rank
    first, _, _ = slice(start, end, step).indices(op.input_size[dim])
    return view(op, *part(op, x, op.input_size, dim, first, step, op.size[dim]))


def narrow(op: Operation, x: Value, dim: int, start: int, length: int) -> Value:
    """``length`` indices of a dimension, from ``start`` on."""
    return slice_(op, x, dim, start, start + length)


def select(op: Operation, x: Value, dim: int, index: int) -> Value:
    """One index of a dimension."""
    dim %= len(op.input_size)
    source, layout = part(op, x, op.input_size, dim, index % op.input_size[dim], 1, 1)
    return view(op, source, layout.without(dim))


def diagonal(op: Operation, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    """The numbers whose indices of two dimensions are equal, or differ by ``offset``."""
    rank = len(op.input_size)
    dims = (dim1 % rank, dim2 % rank)
    count = op.size[-1]
    for dim, start in zip(dims, (max(-offset, 0), max(offset, 0)), strict=True):
        source, layout = part(op, x, op.input_size, dim, start, 1, count)
        x = view(op, source, layout)
        op = op.with_input_size(layout.size)
    source, layout = shown(op, x, op.input_size)
    if any(len(layout.dims[dim]) > 1 for dim in dims):
        source, layout = stored_in_order(op, source, layout)
    stride = sum(s for dim in dims for _, s in layout.dims[dim])
    kept = [axes for dim, axes in enumerate(layout.dims) if dim not in dims]
    return view(op, source, Layout((*kept, ((count, stride),)), layout.offset))


def flip(op: Operation, x: Value, dims: Sequence[int]) -> Value:
    """The indices of some dimensions backwards."""
    for dim in (dim % op.rank for dim in dims):
        count = op.size[dim]
        x = view(op, *part(op, x, op.size, dim, count - 1, -1, count))
    return x


def unfold(op: Operation, x: Value, dim: int, size: int, step: int) -> Value:
    """Windows of a dimension, which may overlap, with their places as a new last dimension."""
    dim %= len(op.input_size)
    source, axis, layout = _one_axis(op, x, dim)
    _, stride = axis
    dims = [*layout.dims, ((size, stride),)]
    dims[dim] = ((op.size[dim], stride * step),)
    return view(op, source, Layout(tuple(dims), layout.offset))


def im2col(
    op: Operation,
    x: Value,
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Value:
    """The windows of images, (N, C · kh · kw, places)."""
    if op.input_rank != 4:
        raise Refused("it is packed only for images (N, C, H, W)")
    x = bordered(op, x, [*padding, *padding]) if any(padding) else x
    dims = list(standard(x.shape, op.images, 4).dims)
    height, width = windows(x.shape[1:], kernel, dilation, stride)
    inside: list[Axis] = []
    places: list[Axis] = []
    for (_, step), k, d, s, n in zip(
        ((x.shape[1], x.shape[2] * x.shape[0]), (x.shape[2], x.shape[0])),
        kernel, dilation, stride, (height, width), strict=True,
    ):  # fmt: skip
        inside.append((k, d * step))
        places.append((n, s * step))
    return view(op, op.real(x), Layout((dims[0], (*dims[1], *inside), tuple(places))))


def bordered(
    op: Operation, x: Value, border: Sequence[int], mode: str = "constant", number: float = 0
) -> Value:
    """A stored value with a border (top, left, bottom, right), which a convolution may take over."""
    x = op.real(x) if x.op == "padding" else stored(op, x)
    top, left, bottom, right = border
    fields = {"padding": list(border), "mode": mode, **({"value": number} if mode == "constant" else {})}
    shape = (x.shape[0], x.shape[1] + top + bottom, x.shape[2] + left + right)
    return op.make("padding", x, shape=shape, fields=fields)


def _one_axis(op: Operation, x: Value, dim: int) -> tuple[Value, Axis, Layout]:
    """A stored value, and a layout in which dimension ``dim`` is one axis."""
    source, layout = shown(op, x, op.input_size)
    if len(layout.dims[dim]) != 1:
        source, layout = with_channels(op, source, layout, dim)
    return source, layout.dims[dim][0], layout


def split(op: Operation, x: Value, sizes: int | Sequence[int], dim: int = 0) -> Value:
    """Parts of a dimension, one after the other; ``sizes`` is that of each, or of all but the last."""
    dim %= len(op.input_size)
    total = op.input_size[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    parts, start = [], 0
    for count in sizes:
        parts.append(view(op, *part(op, x, op.input_size, dim, start, 1, count)))
        start += count
    return several(op, x, parts)


def chunk(op: Operation, x: Value, chunks: int, dim: int = 0) -> Value:
    """:func:`split` into as many parts, all but the last of one size."""
    return split(op, x, -(-op.input_size[dim] // chunks), dim)


def unbind(op: Operation, x: Value, dim: int = 0) -> Value:
    """Each index of a dimension."""
    dim %= len(op.input_size)
    found = (part(op, x, op.input_size, dim, i, 1, 1) for i in range(op.input_size[dim]))
    return several(op, x, (view(op, source, layout.without(dim)) for source, layout in found))


def several(op: Operation, x: Value, parts: Iterable[Value]) -> Value:
    """Several results, of which ``getitem`` takes one."""
    return op.make("refused", x, notes={"why": "several results are used as one", "parts": list(parts)})


def getitem(op: Operation, x: Value, index: int) -> Value:
    """One of several results."""
    if "parts" in x.notes:
        result: Value = x.notes["parts"][index]
        return result
    if index != 0:
        raise Refused("only the first of several results can be packed")
    return x


def glu(op: Operation, x: Value, dim: int = -1) -> Value:
    """The first half of a dimension times the sigmoid of the second."""
    dim %= op.rank
    count = op.size[dim]
    halves = [part(op, x, op.input_size, dim, start, 1, count) for start in (0, count)]
    (first, layout), (second, _) = (canonical(op, *half, dim) for half in halves)
    gate = op.make("sigmoid", op.real(second), shape=second.shape, argument={})
    return view(op, op.make("multiply", op.real(first), gate, shape=first.shape), layout)


# ------------------------------------------------------------------------------------ channels and pixels


def pixel_shuffle(op: Operation, x: Value, factor: int) -> Value:
    """(C · r², H, W) → (C, r · H, r · W)."""
    _, channels, height, width = op.size
    inner = (channels, factor, factor, height // factor, width // factor)
    return _shuffled(op, x, inner, (0, 1, 4, 2, 5, 3))


def pixel_unshuffle(op: Operation, x: Value, factor: int) -> Value:
    """(C, r · H, r · W) → (C · r², H, W)."""
    _, channels, height, width = op.input_size
    inner = (channels, height // factor, factor, width // factor, factor)
    return _shuffled(op, x, inner, (0, 1, 3, 5, 2, 4))


def channel_shuffle(op: Operation, x: Value, groups: int) -> Value:
    """The channels of all groups in turns."""
    _, channels, *rest = op.size
    order = (0, 2, 1, *range(3, 3 + len(rest)))
    return _shuffled(op, x, (groups, channels // groups, *rest), order)


def _shuffled(op: Operation, x: Value, inner: Sequence[int], order: Sequence[int]) -> Value:
    source, layout = shown(op, x, op.input_size)
    source, layout = reshaped(op, source, layout, (op.input_size[0], *inner))
    return view(op, *reshaped(op, source, layout.permuted(order), op.size))
