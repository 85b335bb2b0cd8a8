"""TensorFlow Lite's operators that show numbers in another shape or order, and which axis is which.

A tensor of four dimensions is (N, C, H, W) here and (N, H, W, C) in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnew.errors import BnewError
from bnew.importing.graph import Array, Node
from bnew.importing.tflite_binary import CHANNELS

# The types of tensors here by the file's.
TYPES = {
    "FLOAT32": torch.float32, "FLOAT16": torch.float16, "INT32": torch.int32, "INT64": torch.int64,
    "BOOL": torch.bool,
}  # fmt: skip


def last(x: Tensor) -> Tensor:
    """A tensor in the order of the file."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def first(x: Tensor) -> Tensor:
    """A tensor of the file in ours."""
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


def axis_of(axis: int, x: Tensor) -> int:
    """Where an axis of the file is here."""
    axis = int(axis)
    if not -x.dim() <= axis < x.dim():
        raise BnewError(f"it has no axis {axis}")
    return (0, 2, 3, 1)[axis % 4] if x.dim() == 4 else axis % x.dim()


def aligned(node: Node, *tensors: Tensor) -> list[Tensor]:
    """Tensors that broadcast as in the file, where the last axes come together.

    In a file for one image, (1, C) of the image broadcasts over pixels; here each image has its own.
    """
    most = max(x.dim() for x in tensors)
    return [_wide(node, place, x, most) for place, x in enumerate(tensors)]


def _wide(node: Node, place: int, x: Tensor, most: int) -> Tensor:
    """A tensor of fewer dimensions of the file as one of more of ours."""
    if x.dim() in (0, most):
        return x
    of_images = not node.attributes["held"][place]
    if of_images and (node.batch != 1 or x.dim() < 2):
        raise BnewError("the images are not the first axis of all that it computes with")
    one = [1] * (most - x.dim())
    lengths = [x.shape[0], *one, *x.shape[1:]] if of_images else [*one, *x.shape]
    if most == 4 and lengths[1] == lengths[2] == 1:
        return x.reshape(lengths[0], lengths[3], 1, 1)
    return first(x.reshape(lengths))


def in_their_order(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a tensor in the order of the file."""

    def turned(node: Node, x: Tensor, *numbers: Any) -> Any:
        return first(function(node, last(x), *numbers))

    return turned


def flat(x: Tensor) -> Tensor:
    """The numbers of each image, in the order of the file."""
    return x.flatten(1) if x.dim() == 4 and x.shape[2:].numel() == 1 else last(x).flatten(1)


def reduced(how: str) -> Callable[[Node, Tensor, Array], Tensor]:
    """A tensor reduced over axes by the method ``how``."""

    def over(node: Node, x: Tensor, axes: Array) -> Tensor:
        keep = bool(node.attributes.get("KeepDims", False))
        dims = {axis_of(axis, x) for axis in axes.reshape(-1)}
        if 0 in dims and x.dim() > 1 and not node.attributes["held"][0]:
            raise BnewError("it reduces over the images")
        if not keep and x.dim() == 4 and not dims >= {2, 3}:
            theirs = tuple((0, 3, 1, 2)[dim] for dim in dims)
            return getattr(last(x), how)(theirs)  # type: ignore[no-any-return]
        return getattr(x, how)(tuple(dims), keepdim=keep)  # type: ignore[no-any-return]

    return over


def agrees(node: Node, place: int, result: Tensor) -> None:
    """Refuses a result whose type or shape is not the one in the file."""
    info = node.attributes["results"][place]
    if result.dtype != (torch.float32 if info.bits else TYPES[info.type]):
        raise BnewError(f"its result is {result.dtype} here and {info.type.lower()} in the file")
    has_shape(node, place, list(last(result).shape))


def has_shape(node: Node, place: int, shape: list[int]) -> None:
    """Refuses a result whose shape is not the one in the file, except for the number of images."""
    info = node.attributes["results"][place]
    said = list(info.shape)
    words = [*shape[:-1], -(-shape[-1] // CHANNELS)] if info.bits and shape else shape
    if len(said) != len(shape) or said[1:] != words[1:]:
        raise BnewError(f"its result has the shape {words} here and {said} in the file")


def _of_images(node: Node, x: Tensor) -> bool:
    """Whether the first axis is of images: not that of a constant, or of lengths."""
    return x.ndim > 1 and not node.attributes["held"][0]


def reshape(node: Node, x: Tensor, given: Array | None = None) -> Tensor:
    """The same numbers, in the order of the file, in another shape."""
    new = node.attributes.get("NewShapeAsNumpy", 0) if given is None else given
    wanted = [] if isinstance(new, int) else [int(length) for length in new.reshape(-1)]
    if _of_images(node, x) and wanted and wanted[0] in (node.batch, -1):
        wanted = [x.shape[0], *wanted[1:]]
    if len(wanted) == 2 and wanted[0] == x.shape[0]:
        return flat(x).reshape(wanted)
    if len(wanted) == 4 and wanted[1] == wanted[2] == 1:
        return flat(x).reshape(wanted[0], wanted[3], 1, 1)
    return first(last(x).reshape(wanted))


def transpose(node: Node, x: Tensor, order: Array) -> Tensor:
    """Another order of the axes."""
    return x.permute([int(axis) for axis in order])


def squeeze(node: Node, x: Tensor) -> Tensor:
    """Without dimensions of length 1."""
    dims = node.attributes.get("SqueezeDimsAsNumpy", 0)
    if isinstance(dims, int):
        raise BnewError("it does not say which dimensions it removes")
    places = {int(dim) % x.dim() for dim in dims}
    if any(x.shape[place] != 1 for place in places):
        raise BnewError("it removes a dimension that is not of length 1")
    return x.reshape([length for place, length in enumerate(x.shape) if place not in places])


def unsqueeze(node: Node, x: Tensor, axis: Array) -> Tensor:
    """With a new dimension of length 1."""
    return x.unsqueeze(int(axis.item()))


def split(node: Node, x: Tensor, axis: Array, sizes: Sequence[int] | None = None) -> tuple[Tensor, ...]:
    """Parts along an axis, of equal or of given sizes."""
    dim = axis_of(axis.item(), x)
    if dim == 0:
        raise BnewError("it splits the images")
    if sizes is None:
        size, rest = divmod(x.shape[dim], len(node.outputs))
        if rest:
            raise BnewError(f"{x.shape[dim]} does not divide by {len(node.outputs)}")
        sizes = [size] * len(node.outputs)
    return torch.split(x, list(sizes), dim)


def strided(node: Node, x: Tensor, begin: Array, end: Array, steps: Array) -> Tensor:
    """Some indices of each axis."""
    masks = node.attributes
    if any(masks.get(name, 0) for name in ("EllipsisMask", "NewAxisMask", "Offset")) or (steps < 1).any():
        raise BnewError("it adds or skips axes, goes backwards, or says lengths for ends")
    index: list[Any] = []
    for place, (start, stop, step) in enumerate(zip(begin, end, steps, strict=True)):
        if masks.get("ShrinkAxisMask", 0) >> place & 1:
            index.append(int(start))
            continue
        first = None if masks.get("BeginMask", 0) >> place & 1 else int(start)
        last = None if masks.get("EndMask", 0) >> place & 1 else int(stop)
        everything = (first or 0) == 0 and last in (None, node.batch) and step == 1
        if place == 0 and everything and _of_images(node, x):
            last = None  # all images
        index.append(slice(first, last, int(step)))
    return x[tuple(index)]


def slice_(node: Node, x: Tensor, begin: Array, size: Array) -> Tensor:
    """So many indices of each axis; −1: all that follow."""
    index = []
    for place, (start, length) in enumerate(zip(begin, size, strict=True)):
        images = place == 0 and start == 0 and length == node.batch and _of_images(node, x)
        index.append(slice(int(start), None if length == -1 or images else int(start + length)))
    return x[tuple(index)]


def shape(node: Node, x: Tensor) -> Array:
    """The lengths of a tensor in the file's order, as numbers that the graph may compute with."""
    return np.array(last(x).shape, np.int64)
