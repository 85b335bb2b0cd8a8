"""Lowers ATen's operators on the height and width of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import wraps
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from bnew.packing.arithmetic import scaled
from bnew.packing.indexing import taken
from bnew.packing.joining import joined
from bnew.packing.layouts import IMAGE, standard
from bnew.packing.reductions import largest
from bnew.packing.reshaping import bordered, part
from bnew.packing.values import Lowering, Refused, Value
from bnew.packing.views import seen, shown, view

if TYPE_CHECKING:
    from bnew.packing.operation import Operation


def on_images(lower: Lowering) -> Lowering:
    """``lower`` for inputs (N, C, H, W) only; PyTorch would take (N, C, L) for one image (C, H, W)."""

    @wraps(lower)
    def checked(op: Operation, x: Value, *arguments: Any, **options: Any) -> Value:
        if op.input_rank != 4:
            raise Refused(
                f"it is packed only for images (N, C, H, W), and its input has {op.input_rank} dimensions"
            )
        return lower(op, x, *arguments, **options)

    return checked


def pair(numbers: int | Sequence[int]) -> list[int]:
    """[y, x] from two numbers, or from one for both axes."""
    both = [numbers] if isinstance(numbers, int) else list(numbers)
    return both * 2 if len(both) == 1 else both


def along(number: int | Sequence[int]) -> int:
    """The number of the one axis of (N, C, L)."""
    return number if isinstance(number, int) else number[0]


def sides(padding: int | Sequence[int]) -> list[int]:
    """[top, left, bottom, right] from padding that is the same on both sides of an axis."""
    return pair(padding) * 2


@on_images
def max_pool(
    op: Operation,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Value:
    """The largest number of each window. Refused if a window lies wholly in the padding.

    A border of −∞ before it is part of the padding.
    """
    around = sides(padding)
    if x.op == "padding" and x.fields["mode"] == "constant" and x.fields["value"] == -math.inf:
        around = [a + b for a, b in zip(around, x.fields["padding"], strict=True)]
        (x,) = x.inputs
    window: dict[str, Any] = {
        "kernel": pair(kernel),
        "stride": pair(stride or kernel),
        "padding": around,
        "dilation": pair(dilation),
        "size": list(op.shape[1:]),
        "ceil": bool(ceil_mode),  # for sizes.py
    }
    for axis in (0, 1):
        first = np.arange(window["size"][axis]) * window["stride"][axis] - window["padding"][axis]
        taps = first[:, None] + np.arange(window["kernel"][axis]) * window["dilation"][axis]
        if not np.any((taps >= 0) & (taps < x.shape[axis + 1]), axis=1).all():
            raise Refused("one of its windows lies wholly in the padding, where the result is -inf")
    return op.make("max_pool", op.real(x), fields=window)


@on_images
def avg_pool(
    op: Operation,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    """The mean of each window; the sum by ``divisor_override``, if that is given."""
    window: dict[str, Any] = {
        "kernel": pair(kernel),
        "stride": pair(stride or kernel),
        "padding": sides(padding),
        "size": list(op.shape[1:]),
        "count_padding": count_include_pad,
        "ceil": bool(ceil_mode),  # for sizes.py
    }
    if divisor_override is None:
        return op.make("avg_pool", op.real(x), fields=window)
    ends = (
        (n - 1) * s + k for n, s, k in zip(window["size"], window["stride"], window["kernel"], strict=True)
    )
    if any(end > n + 2 * p for end, n, p in zip(ends, x.shape[1:], window["padding"], strict=False)):
        raise Refused("its divisor is overridden, and one of its windows is cut off")
    means = op.make("avg_pool", op.real(x), fields={**window, "count_padding": True})
    return scaled(op, means, np.array([math.prod(window["kernel"]) / divisor_override]))


def on_lines(lower: Lowering) -> Lowering:
    """``lower``, which takes images, for (N, C, L), stored as a column of pixels."""

    @wraps(lower)
    def lowered(op: Operation, x: Value, *numbers: Any, **options: Any) -> Value:
        if op.input_rank != 3:
            raise Refused("it is packed only for batches (N, C, L)")
        # Along the width, windows have one place, and nothing is added.
        width = [1, 1, 0, 1]
        wide = [
            [along(n), w] if isinstance(n, int | list | tuple) and not isinstance(n, bool) and n != [] else n
            for n, w in zip(numbers, (*width, 1, 1), strict=False)
        ]
        return lower(op.with_rank(4), x, *wide, *numbers[len(wide) :], **options)

    return lowered


max_pool1d = on_lines(max_pool)
avg_pool1d = on_lines(avg_pool)


@on_images
def adaptive_avg_pool(op: Operation, x: Value, size: Sequence[int]) -> Value:
    """The mean of each window, with one window per place of the result."""
    return op.make("adaptive_avg_pool", op.real(x), fields={"size": list(op.shape[1:])})


@on_images
def resize_nearest(op: Operation, x: Value, size: Sequence[int] | None = None, *factors: Any) -> Value:
    """Row and column i of the result are number ⌊i · scale⌋ of the input.

    Rows and columns are taken by number if PyTorch takes another one for some i. ``factors`` are the sizes of
    the result divided by those of the input, as one list or as two arguments; None: computed from the sizes.
    """
    given = factors[0] if factors and isinstance(factors[0], list | tuple) else factors
    given = (*(given or ()), None, None)[:2]
    fields: dict[str, Any] = {"size": list(op.shape[1:]), "scale": []}
    rows_and_columns = np.indices(x.shape[1:], np.float32)
    for axis, factor in zip((0, 1), given, strict=True):
        before, after = np.float32(x.shape[axis + 1]), np.float32(op.shape[axis + 1])
        scale = np.float32(1 / factor) if factor else before / after
        places = np.minimum(np.floor(np.arange(after, dtype=np.float32) * scale), before - 1)
        taken = op.of(rows_and_columns[None, None, axis])[0, 0]
        if np.any(taken != (places if axis else places[:, None])):
            return _resized_by_places(op, x)
        fields["scale"].append(float(scale))
    return op.make("resize_nearest", op.real(x), fields=fields)


def _resized_by_places(op: Operation, x: Value) -> Value:
    size = list(op.input_size)
    pictures = np.indices(x.shape[1:], np.float32)
    for axis in (0, 1):
        found = op.of(pictures[None, None, axis])[0, 0]
        x = taken(op, x, size, axis + 2, (found[0] if axis else found[:, 0]).astype(int))
        size[axis + 2] = op.size[axis + 2]
    return x


@on_images
def resize_bilinear(op: Operation, x: Value, size: Any, corners: bool, *factors: Any) -> Value:
    """Means of the four nearest places. ``factors`` as in :func:`resize_nearest`."""
    given = factors[0] if factors and isinstance(factors[0], list | tuple) else factors
    given = (*(given or ()), None, None)[:2]
    scale = []
    for before, after, factor in zip(x.shape[1:], op.shape[1:], given, strict=True):
        if corners:
            scale.append(float(np.float32(before - 1) / np.float32(after - 1)) if after > 1 else 0.0)
        else:
            scale.append(float(np.float32(1 / factor)) if factor else float(np.float32(before / after)))
    fields = {"size": list(op.shape[1:]), "scale": scale, "corners": bool(corners)}
    return op.make("resize_bilinear", op.real(x), fields=fields)


@on_images
def adaptive_max_pool(op: Operation, x: Value, size: Sequence[int]) -> Value:
    """The largest number of each window."""
    kernel, stride = [], []
    for before, after in zip(x.shape[1:], op.shape[1:], strict=True):
        first = [i * before // after for i in range(after)]
        last = [-(-(i + 1) * before // after) for i in range(after)]
        sizes = {b - a for a, b in zip(first, last, strict=True)}
        steps = {b - a for a, b in pairwise(first)}
        if len(sizes) > 1 or len(steps) > 1:
            return _largest_of_windows(op, x)
        kernel.append(sizes.pop())
        stride.append(steps.pop() if steps else 1)
    return max_pool(op, x, kernel, stride)


def _largest_of_windows(op: Operation, x: Value) -> Value:
    """The same for windows that differ in size: one window after the other, first along the height."""
    size = list(op.input_size)
    for dim in (2, 3):
        before, after = size[dim], op.size[dim]
        found = []
        for i in range(after):
            start, end = i * before // after, -(-(i + 1) * before // after)
            window = view(op, *part(op, x, size, dim, start, 1, end - start))
            inner = op.with_input_size((*size[:dim], end - start, *size[dim + 1 :]))
            found.append((largest(inner, window, [dim], True), (*size[:dim], 1, *size[dim + 1 :])))
        x = joined(op, found, dim)
        size[dim] = after
    return x


def pad(op: Operation, x: Value, amounts: Sequence[int], *how: Any, **named: Any) -> Value:
    """Numbers around the image, in front of the channels or behind them; negative ones cut."""
    settings = [*how, *named.values()]  # mode and value
    mode = next((s for s in settings if isinstance(s, str)), "constant")
    value = next((s for s in settings if isinstance(s, int | float)), 0)
    return padded(op, x, amounts, mode, op.in_type(float(value)))


def reflected(op: Operation, x: Value, amounts: Sequence[int]) -> Value:
    """The image reflected around its border."""
    return padded(op, x, amounts, "reflect")


def replicated(op: Operation, x: Value, amounts: Sequence[int]) -> Value:
    """The border repeated."""
    return padded(op, x, amounts, "replicate")


def padded(op: Operation, x: Value, amounts: Sequence[int], mode: str, value: float = 0) -> Value:
    """Each dimension with so many numbers before it and behind it, the last dimension first."""
    ends = list(zip(amounts[::2], amounts[1::2], strict=True))
    rank = len(op.input_size)
    size = list(op.input_size)
    for dim, (before, after) in zip(range(rank)[::-1], ends, strict=False):
        if min(before, after) < 0:
            first, last = max(-before, 0), size[dim] - max(-after, 0)
            x = view(op, *part(op, x, size, dim, first, 1, last - first))
            size[dim] = last - first
    grown = [(max(a, 0), max(b, 0)) for a, b in ends] + [(0, 0)] * (rank - len(ends))
    source, layout = shown(op, x, size)
    order = layout.order_of(standard(source.shape, op.images, 4)) if rank == 4 else None
    if order is not None and order != sorted(order):  # (N, H, W, C), say: the image itself gets the border
        sides = [(size[dim], grown[::-1][dim]) for dim in map(order.index, range(4))]
        inside = op.with_input_size([n for n, _ in sides])
        image = padded(inside, source, [n for _, ends in sides[::-1] for n in ends], mode, value)
        source, layout = seen(op, image, [n + sum(ends) for n, ends in sides])
        return view(op, source, layout.permuted(order))
    if any(grown[-1]) and any(stride == IMAGE for _, stride in layout.dims[0]):
        raise Refused("it adds images")
    spatial = rank - 2 if rank in (3, 4) and layout.dims[0] == ((op.images, IMAGE),) else 0
    if any(map(any, grown[:spatial])):
        (left, right), (top, bottom) = grown[0], grown[1]
        if rank == 3:
            (top, bottom), (left, right) = grown[0], (0, 0)
        x = bordered(op, x, [top, left, bottom, right], mode, value)
        for dim in range(rank - spatial, rank):
            size[dim] += sum(grown[rank - 1 - dim])
    for dim in range(1 if spatial else 0, rank - spatial):
        before, after = grown[rank - 1 - dim]
        if before or after:
            if mode != "constant":
                raise Refused(f"channels are not padded by '{mode}'")
            pieces = [(op.filled(value), (*size[:dim], n, *size[dim + 1 :])) for n in (before, after)]
            size[dim] += before + after
            middle = (x, (*size[:dim], size[dim] - before - after, *size[dim + 1 :]))
            x = joined(op, [pieces[0], middle, pieces[1]], dim)
    return x


adaptive_avg_pool1d = on_lines(adaptive_avg_pool)
