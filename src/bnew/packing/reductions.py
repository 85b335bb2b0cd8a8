"""Lowers ATen's means, sums, extremes, variances and lengths over any dimensions: each is a pool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bnew.packing.activations import maximum, minimum, pointwise
from bnew.packing.adaptors import anywhere, joins
from bnew.packing.arithmetic import scaled
from bnew.packing.layouts import IMAGE, Axes, Layout
from bnew.packing.reshaping import several
from bnew.packing.values import Lowering, Refused, Value
from bnew.packing.views import arranged, beside, count, placed, resized, shown, view, with_channels

if TYPE_CHECKING:
    from bnew.packing.operation import Operation

Dims: TypeAlias = int | Sequence[int] | None


def mean(op: Operation, x: Value, dims: Dims = None, keepdim: bool = False) -> Value:
    """The mean over some dimensions."""
    source, layout, order = _with_pixels(op, x, dims)
    return _shown(op, _mean(op, source, order), layout, order, dims, keepdim)


def total(op: Operation, x: Value, dims: Dims = None, keepdim: bool = False) -> Value:
    """The sum over some dimensions."""
    source, layout, order = _with_pixels(op, x, dims)
    if np.any(op.held(source).anywhere):  # it may be compared with a number that it is exactly
        result = _counted(op, source, order)
    else:
        result = scaled(op, _mean(op, source, order), np.array([float(_places(op, dims))]))
    return _shown(op, result, layout, order, dims, keepdim)


def largest(op: Operation, x: Value, dims: Dims = None, keepdim: bool = False) -> Value:
    """The largest number over some dimensions."""
    source, layout, order = _with_pixels(op, x, dims)
    return _shown(op, _largest(op, source, order), layout, order, dims, keepdim)


def smallest(op: Operation, x: Value, dims: Dims = None, keepdim: bool = False) -> Value:
    """The smallest number over some dimensions."""
    source, layout, order = _with_pixels(op, x, dims)
    minus = np.array([-1.0])
    result = scaled(op, _largest(op, scaled(op, source, minus), order), minus)
    return _shown(op, result, layout, order, dims, keepdim)


def of_conditions(reduce: Lowering) -> Lowering:
    """``reduce`` for conditions only: whether one holds, or all."""

    @wraps(reduce)
    def lowered(op: Operation, x: Value, *arguments: Any, **options: Any) -> Value:
        if str(op.dtype_of(op.node.args[0])) != "torch.bool":
            raise Refused("it is packed only for comparisons")
        return reduce(op, x, *arguments, **options)

    return lowered


def largest_and_place(op: Operation, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """The largest numbers along a dimension and where they are; or the larger of two values."""
    return _found(op, x, dim, keepdim, (largest, place, maximum))


def smallest_and_place(op: Operation, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """The smallest numbers along a dimension and where they are; or the smaller of two values."""
    return _found(op, x, dim, keepdim, (smallest, least_place, minimum))


def _found(op: Operation, x: Value, dim: Any, keepdim: bool, ways: Sequence[Lowering]) -> Value:
    extreme, where, of_two = ways
    if isinstance(dim, Value):
        return joins(of_two)(op, x, dim)
    if dim is None:
        return extreme(op, x)
    return several(op, x, [extreme(op, x, dim, keepdim), where(op, x, dim, keepdim)])


def extremes(op: Operation, x: Value, *, dim: int | None = None, keepdim: bool = False) -> Value:
    """The smallest and the largest numbers."""
    return several(op, x, [smallest(op, x, dim, keepdim), largest(op, x, dim, keepdim)])


def variance_and_mean(op: Operation, x: Value, *arguments: Any, **options: Any) -> Value:
    """The variance and the mean over some dimensions."""
    dims = arguments[0] if arguments else None
    keep = options.get("keepdim", arguments[2] if len(arguments) > 2 else False)
    return several(op, x, [variance(op, x, *arguments, **options), mean(op, x, dims, keep)])


def variance(
    op: Operation,
    x: Value,
    dims: Dims = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Value:
    """The variance over some dimensions: Σ (x − m)² / (n − correction)."""
    source, layout, order = _with_pixels(op, x, dims)
    negative = scaled(op, _mean(op, source, order), np.array([-1.0]))
    m = beside(op, source, _full(op, layout, order, dims), negative, _reduced(op, layout, order, dims))
    centred = op.make("add", source, m, shape=source.shape)
    square = op.make("multiply", centred, centred, shape=source.shape)
    n = _places(op, dims)
    divisor = n - ((1 if unbiased else 0) if correction is None else correction)
    if divisor <= 0:
        raise Refused("it is the variance of too few numbers")
    result = _mean(op, square, order)
    if divisor != n:
        result = scaled(op, result, np.array([n / divisor]))
    return _shown(op, result, layout, order, dims, keepdim)


def deviation(op: Operation, x: Value, *arguments: Any, **options: Any) -> Value:
    """The square root of the variance."""
    result = variance(op, x, *arguments, **options)
    source, layout = shown(op, result, op.size)
    return view(op, op.make("sqrt", source, shape=source.shape, argument={}), layout)


def length(op: Operation, x: Value, order: float = 2, dims: Dims = None, keepdim: bool = False) -> Value:
    """√(Σ x²) over some dimensions; of order 1 the sum of |x|, of order ∞ the largest |x|."""
    if order in (1, math.inf):
        size = anywhere(pointwise("abs"))(op.with_sizes(op.input_size), x)
        return (total if order == 1 else largest)(op, size, dims, keepdim)
    if order != 2:
        raise Refused(f"a norm of order {order} is not packed, only those of orders 1, 2 and infinity")
    source, layout, placing = _with_pixels(op, x, dims)
    square = op.make("multiply", source, source, shape=source.shape)
    result = scaled(op, _mean(op, square, placing), np.array([float(_places(op, dims))]))
    result = op.make("sqrt", result, shape=result.shape, argument={})
    return _shown(op, result, layout, placing, dims, keepdim)


def place(op: Operation, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    """The number of the largest number along a dimension; the first of equal ones, or of NaNs."""
    if dim is None:
        raise Refused("it joins images: give a dimension")
    dim %= len(op.input_size)
    source, layout = with_channels(op, *shown(op, x, op.input_size), dim)
    result = op.make("argmax", op.real(source), shape=(1, *source.shape[1:]))
    layout = resized(layout, dim, op.input_size[dim], 1)
    return view(op, result, layout if keepdim else layout.without(dim))


def least_place(op: Operation, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    """The number of the smallest number along a dimension."""
    source, layout = shown(op, x, op.input_size)
    negative = view(op, scaled(op, op.real(source), np.array([-1.0])), layout)
    return place(op, negative, dim, keepdim)


# ---------------------------------------------------------------------------------------------- helpers

# None: all pixels are reduced, and the channels are kept. Else the dimensions that are rows and channels.
Order: TypeAlias = tuple[list[int], list[int]] | None


def _normal(op: Operation, dims: Dims) -> list[int]:
    rank = len(op.input_size)
    if dims is None or (not isinstance(dims, int) and not dims):
        dims = list(range(rank))
    return [dim % rank for dim in ([dims] if isinstance(dims, int) else dims)]


def _places(op: Operation, dims: Dims) -> int:
    return math.prod(op.input_size[dim] for dim in _normal(op, dims))


def _with_pixels(op: Operation, x: Value, dims: Dims) -> tuple[Value, Layout, Order]:
    """A stored value in which the dimensions are all pixels, or all columns of each row."""
    over = _normal(op, dims)
    source, layout = shown(op, x, op.input_size)
    if any(stride == IMAGE for dim in over for _, stride in layout.dims[dim]):
        raise Refused("it joins images")
    part = layout.of_image()
    kept = [dim for dim in range(len(part.dims)) if dim not in over and part.dims[dim]]
    channels = source.shape[0]
    inside = [axis for dim in kept for axis in part.dims[dim]]
    fills = layout.images == op.images and layout.fills(count(source.shape))
    depth = math.prod(n for n, _ in inside)
    if fills and depth == channels and all(n * s <= channels for n, s in inside):
        return op.real(source), layout, None
    channel = min(reversed(kept), key=lambda dim: min(abs(s) for _, s in part.dims[dim]), default=None)
    rows, last = [dim for dim in kept if dim != channel], [] if channel is None else [channel]
    return op.real(arranged(op, source, layout, rows, over, last)), layout, (rows, last)


def _mean(op: Operation, source: Value, order: Order) -> Value:
    size = [1 if order is None else source.shape[1], 1]
    shape = (source.shape[0], size[0], 1)
    return op.make("adaptive_avg_pool", source, shape=shape, fields={"size": size})


def _counted(op: Operation, source: Value, order: Order) -> Value:
    """The sum, exact for whole numbers: the mean of as many places as a power of 2, times their number."""
    channels, height, width = source.shape
    window = (height if order is None else 1, width)
    kernel = [1 << (n - 1).bit_length() for n in window]
    below, right = (k - n for k, n in zip(kernel, window, strict=True))
    fields = {
        "kernel": kernel,
        "stride": kernel,
        "padding": [0, 0, below, right],
        "size": [height // window[0], 1],
        "count_padding": True,
        "ceil": False,  # for sizes.py
    }
    mean = op.make("avg_pool", source, shape=(channels, height // window[0], 1), fields=fields)
    return scaled(op, mean, np.array([float(math.prod(kernel))]))


def _largest(op: Operation, source: Value, order: Order) -> Value:
    channels, height, width = source.shape
    window = [height if order is None else 1, width]
    size = [height // window[0], 1]
    fields = {"kernel": window, "stride": window, "padding": [0] * 4, "dilation": [1, 1], "size": size}
    return op.make("max_pool", source, shape=(channels, size[0], 1), fields=fields)


def _full(op: Operation, layout: Layout, order: Order, dims: Dims) -> Layout:
    """The layout of the tensor before the reduction."""
    if order is None:
        return layout
    return placed(layout, [*order[0], *_normal(op, dims), *order[1]])


def _reduced(op: Operation, layout: Layout, order: Order, dims: Dims) -> Layout:
    """The layout of the result, with dimensions of size 1, as broadcast to the tensor before it."""
    over = _normal(op, dims)
    kept: list[Axes] = [() if dim in over else axes for dim, axes in enumerate(layout.dims)]
    new = Layout(tuple(kept))
    new = new if order is None else placed(new, [*order[0], *order[1]])
    return new.expanded(op.input_size)


def _shown(op: Operation, result: Value, layout: Layout, order: Order, dims: Dims, keepdim: bool) -> Value:
    over = _normal(op, dims)
    new = _reduced(op, layout, order, dims)
    kept = [() if dim in over else axes for dim, axes in enumerate(new.dims) if keepdim or dim not in over]
    return view(op, result, Layout(tuple(kept)))
