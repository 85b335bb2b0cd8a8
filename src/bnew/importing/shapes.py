"""ONNX's operators that show numbers in another shape or order, as functions of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bnew.errors import BnewError
from bnew.importing.graph import Array, Node


def shape(node: Node, x: Tensor) -> Array:
    """The lengths of a tensor, as numbers that the graph may compute with."""
    lengths = list(x.shape)[slice(node.attributes.get("start", 0), node.attributes.get("end"))]
    return np.array(lengths, np.int64)


def reshape(node: Node, x: Tensor, given: Array | None = None) -> Tensor:
    """The same numbers in another shape.

    A file for a fixed number of images has it in its shapes; here it stands for any number.
    """
    wanted = _axes_of(node, given, "shape") or []
    if not node.attributes.get("allowzero", 0):
        wanted = [x.shape[dim] if length == 0 else length for dim, length in enumerate(wanted)]
    return x.reshape(_for_batch(node, x, wanted))


def _for_batch(node: Node, x: Tensor, wanted: list[int]) -> list[int]:
    if wanted and node.batch is not None and wanted[0] == node.batch:
        return [x.shape[0], *wanted[1:]]
    return wanted


def expand(node: Node, x: Tensor, given: Array) -> Tensor:
    """Repeated along axes of length 1."""
    wanted = given.tolist()
    rank = max(len(wanted), x.dim())
    if len(wanted) == x.dim():
        wanted = _for_batch(node, x, wanted)
    lengths = [1] * (rank - len(wanted)) + wanted
    own = [1] * (rank - x.dim()) + list(x.shape)
    return x.expand([a if b == 1 else b for a, b in zip(own, lengths, strict=True)])


def flatten(node: Node, x: Tensor) -> Tensor:
    """A matrix: the dimensions before an axis, and those from it on."""
    axis = node.attributes.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1:
        return x.flatten(1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(node: Node, x: Tensor) -> Tensor:
    """Another order of the dimensions; by default the opposite one."""
    return x.permute(node.attributes.get("perm", list(range(x.dim()))[::-1]))


def squeeze(node: Node, x: Tensor, given: Array | None = None) -> Tensor:
    """Without dimensions of length 1; by default without all of them but the batch's."""
    axes = _axes_of(node, given)
    if axes is None:
        axes = [dim for dim in range(1, x.dim()) if x.shape[dim] == 1]
        if node.batch == 1:
            raise BnewError("it removes all dimensions of length 1, and that of the images too")
    lengths = list(x.shape)
    dims = {axis % x.dim() for axis in axes}
    if any(lengths[dim] != 1 for dim in dims):
        raise BnewError("it removes a dimension that is not of length 1")
    return x.reshape([length for dim, length in enumerate(lengths) if dim not in dims])


def unsqueeze(node: Node, x: Tensor, given: Array | None = None) -> Tensor:
    """With new dimensions of length 1."""
    axes = _axes_of(node, given) or []
    rank = x.dim() + len(axes)
    for axis in sorted(each % rank for each in axes):
        x = x.unsqueeze(axis)
    return x


def concat(node: Node, *parts: Tensor) -> Tensor:
    """One tensor behind the other."""
    return torch.cat(parts, node.attributes.get("axis", 1))


def split(node: Node, x: Tensor, given: Array | None = None) -> tuple[Tensor, ...]:
    """Parts along an axis."""
    axis = node.attributes.get("axis", 0)
    sizes = _axes_of(node, given, "split")
    if sizes is None:
        length, parts = x.shape[axis], len(node.outputs)
        sizes = [-(-length // parts)] * (parts - 1)
        sizes.append(length - sum(sizes))
    ends = np.cumsum(sizes)
    return tuple(x.narrow(axis, int(end) - size, size) for size, end in zip(sizes, ends, strict=True))


def slice_(
    node: Node,
    x: Tensor,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Tensor:
    """Some indices of each axis."""
    first, last = _axes_of(node, starts, "starts") or [], _axes_of(node, ends, "ends") or []
    dims = _axes_of(node, axes) or range(len(first))
    strides = [1] * len(first) if steps is None else steps.tolist()
    if any(stride < 1 for stride in strides):
        raise BnewError("it goes backwards")
    index = [slice(None)] * x.dim()
    for dim, start, end, stride in zip(dims, first, last, strides, strict=True):
        index[dim] = slice(start, end, stride)
    return x[tuple(index)]


def gather(node: Node, x: Tensor, indices: Array) -> Tensor:
    """The given indices of an axis."""
    axis = node.attributes.get("axis", 0)
    if indices.ndim == 0:
        return x.select(axis, int(indices))
    if indices.ndim > 1:
        raise BnewError("its indices have several dimensions")
    lengths = x.shape[axis]
    places = [int(index) % lengths for index in indices]
    return torch.cat([x.narrow(axis, place, 1) for place in places], axis)


def _axes_of(node: Node, given: Array | None, name: str = "axes") -> list[int] | None:
    """Whole numbers that are an input in later opsets, and an attribute in earlier ones."""
    if given is not None:
        return [int(number) for number in np.atleast_1d(given)]
    found = node.attributes.get(name)
    return None if found is None else list(found)


def tile(node: Node, x: Tensor, repeats: Array) -> Tensor:
    """The tensor several times along each axis."""
    return x.repeat(repeats.tolist())


def triangle(node: Node, x: Tensor, diagonal: Array | None = None) -> Tensor:
    """The upper or the lower triangle of matrices; 0 elsewhere."""
    k = 0 if diagonal is None else int(diagonal.item())
    return x.triu(k) if node.attributes.get("upper", 1) else x.tril(k)


def reduced(node: Node, x: Tensor, given: Array | None, how: Callable[..., Tensor]) -> Tensor:
    """A tensor reduced over axes by ``how(x, axes, keepdim=)``; by default over all."""
    axes = _axes_of(node, given)
    if not axes:
        if node.attributes.get("noop_with_empty_axes", 0):
            return x
        axes = list(range(x.dim()))
    return how(x, tuple(axes), keepdim=bool(node.attributes.get("keepdims", 1)))


def product(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """The product over axes, one after the other."""
    for axis in sorted((each % x.dim() for each in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x
