"""Lowers convolutions of parts of images, such as windows, which are a part of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from bnew.packing.adaptors import as_stored_or_padded
from bnew.packing.joining import joined
from bnew.packing.layouts import IMAGE, Axis, Layout
from bnew.packing.spatial import pair, sides
from bnew.packing.values import Value
from bnew.packing.views import arranged, placed, shown, view
from bnew.packing.weights import conv as conv_of_images
from bnew.packing.weights import linear

if TYPE_CHECKING:
    from bnew.packing.operation import Operation

_whole = as_stored_or_padded(conv_of_images)
_CHANNELS_LAST, _CHANNELS_SECOND = (0, 2, 3, 1), (0, 3, 1, 2)


def conv(
    op: Operation,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Sequence[int] = (1,),
    padding: str | Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Value:
    """A convolution of images, or of parts (N · parts, C, H, W) of each image."""
    size = op.input_size
    images = len(size) != 4 or x.op != "view" or x.notes["layout"].dims[0] == ((op.images, IMAGE),)
    if images or isinstance(padding, str) or weight.tensor is None:
        return _whole(op, x, weight, bias, stride, padding, dilation, groups)
    if weight.tensor.shape[2:] == (1, 1) and groups == 1 and {*stride, *padding} == {0, 1}:
        return _of_pixels(op, x, weight, bias)
    return _below(op, x, weight, bias, pair(stride), sides(padding), pair(dilation), groups)


def _of_pixels(op: Operation, x: Value, weight: Value, bias: Value | None) -> Value:
    """A 1×1 convolution: a linear layer over the channels."""
    turned = [op.input_size[dim] for dim in _CHANNELS_LAST]
    source, layout = shown(op, x, op.input_size)
    x = view(op, source, layout.permuted(_CHANNELS_LAST))
    result = linear(op.with_input_size(turned), x, weight, bias)
    source, layout = shown(op, result, [op.size[dim] for dim in _CHANNELS_LAST])
    return view(op, source, layout.permuted(_CHANNELS_SECOND))


def _below(
    op: Operation,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Value:
    """A convolution of the parts of an image, one below the other, each with its own padding."""
    top, left, bottom, _ = padding
    batch, channels, height, width = op.input_size
    below = bottom + -(top + height + bottom) % stride[0]
    pieces = [(op.filled(0), (batch, channels, n, width)) for n in (top, below)]
    size: Any = (batch, channels, top + height + below, width)
    x = joined(op, [pieces[0], (x, op.input_size), pieces[1]], 2)
    source, layout = shown(op, x, size)
    source = op.real(arranged(op, source, layout, [0, 2], [3], [1]))
    layout = placed(layout, [0, 2, 3, 1])
    inner = copy(op)
    _, outputs, rows, columns = op.size
    window = dilation[0] * (op.weights(weight).shape[2] - 1) + 1
    inner.shape = (outputs, (source.shape[1] - window) // stride[0] + 1, columns)
    inner.input_rank = 4
    result = conv_of_images(inner, source, weight, bias, stride, [0, left], dilation, groups)
    own: list[Axis] = []
    step = size[2] // stride[0] * columns * outputs
    for n, s in reversed(layout.dims[0]):
        own.insert(0, (n, IMAGE if s == IMAGE else step))
        step *= 1 if s == IMAGE else n
    dims = (tuple(own), ((outputs, 1),), ((rows, columns * outputs),), ((columns, outputs),))
    return view(op, result, Layout(dims))
