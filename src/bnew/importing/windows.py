"""ONNX's operators on windows of images and lines, as functions of PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from bnew.errors import BnewError
from bnew.importing.graph import Array, Node

Sides = tuple[list[int], list[int]]  # before and behind each axis


def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution of lines or images, with any border."""
    convolve = {1: F.conv1d, 2: F.conv2d}[_axes(x)]
    strides, dilations = _numbers(node, "strides", x), _numbers(node, "dilations", x)
    before, after = sides(node, x, weight.shape[2:], strides, dilations)
    groups = node.attributes.get("group", 1)
    if before == after:
        return convolve(x, weight, bias, strides, before, dilations, groups)
    return convolve(F.pad(x, around(before, after)), weight, bias, strides, 0, dilations, groups)


def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A transposed convolution: ``pads`` cut what it computes, and ``output_padding`` adds at the end."""
    convolve = {1: F.conv_transpose1d, 2: F.conv_transpose2d}[_axes(x)]
    strides, dilations = _numbers(node, "strides", x), _numbers(node, "dilations", x)
    more = list(node.attributes.get("output_padding", [0] * len(strides)))
    before, after = _cut(node, x, weight.shape[2:], strides, dilations, more)
    # As many places less on both sides, and the difference more at the end.
    further = [m + a - b for m, a, b in zip(more, before, after, strict=True)]
    groups = node.attributes.get("group", 1)
    fits = zip(further, strides, dilations, strict=True)
    if all(0 <= n < max(stride, dilation) for n, stride, dilation in fits):
        return convolve(x, weight, bias, strides, before, further, groups, dilations)
    whole = convolve(x, weight, bias, strides, 0, more, groups, dilations)
    return F.pad(whole, around([-n for n in before], [-n for n in after]))


def _cut(
    node: Node,
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    more: list[int],
) -> Sides:
    """How much of a transposed convolution is cut; what a wanted size lacks is added to ``more``."""
    how, wanted = node.attributes.get("auto_pad", "NOTSET"), node.attributes.get("output_shape")
    if wanted is None and how not in ("SAME_UPPER", "SAME_LOWER"):
        return sides(node, x, kernel, strides, dilations)
    lengths = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    lengths = lengths if wanted is None else wanted[-len(kernel) :]
    totals = [
        s * (n - 1) + m + (k - 1) * d + 1 - length
        for n, k, s, d, m, length in zip(x.shape[2:], kernel, strides, dilations, more, lengths, strict=True)
    ]
    if wanted is not None:
        more[:] = [m + max(-total, 0) for m, total in zip(more, totals, strict=True)]
    less = [max(total, 0) // 2 for total in totals]
    rest = [max(total, 0) - n for total, n in zip(totals, less, strict=True)]
    return (less, rest) if how == "SAME_UPPER" else (rest, less)


def max_pool(node: Node, x: Tensor) -> Tensor:
    """The largest number of each window; the border is never the largest."""
    pool = {1: F.max_pool1d, 2: F.max_pool2d}[_axes(x)]
    kernel, strides, dilations = node.attributes["kernel_shape"], *_steps(node, x)
    before, after = sides(node, x, kernel, strides, dilations)
    if before != after or any(2 * side > size for side, size in zip(before, kernel, strict=True)):
        x, before = F.pad(x, around(before, after), value=-torch.inf), [0] * len(before)
    return pool(x, kernel, strides, before, dilations, ceil_mode=bool(node.attributes.get("ceil_mode", 0)))


def average_pool(node: Node, x: Tensor) -> Tensor:
    """The mean of each window, with the border or without."""
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d}[_axes(x)]
    kernel, strides, dilations = node.attributes["kernel_shape"], *_steps(node, x)
    if any(each != 1 for each in dilations):
        raise BnewError("its windows have gaps")
    before, after = sides(node, x, kernel, strides, dilations)
    counted = bool(node.attributes.get("count_include_pad", 0))
    whole = bool(node.attributes.get("ceil_mode", 0))
    if before == after and all(2 * side <= size for side, size in zip(before, kernel, strict=True)):
        return pool(x, kernel, strides, before, whole, counted)
    if whole:
        raise BnewError("it rounds its size up and has a border that differs between two sides")
    border = around(before, after)
    means = pool(F.pad(x, border), kernel, strides)
    if counted:
        return means
    inside = F.pad(torch.ones(1, 1, *x.shape[2:]), border)  # the share of each window that is in the image
    return means / pool(inside, kernel, strides)


def global_average(node: Node, x: Tensor) -> Tensor:
    """The mean of each channel; sides of length 1."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


def global_largest(node: Node, x: Tensor) -> Tensor:
    """The largest number of each channel; sides of length 1."""
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


def pad(
    node: Node, x: Tensor, pads: Array | None = None, value: Array | None = None, axes: Array | None = None
) -> Tensor:
    """Numbers around a tensor; negative sides cut."""
    given = node.attributes.get("pads", node.attributes.get("paddings")) if pads is None else pads.tolist()
    if given is None:
        raise BnewError("it does not say how much it adds")
    mode = str(node.attributes.get("mode", "constant"))
    if mode not in _MODES:
        raise BnewError(f"its mode is '{mode}'")
    number = node.attributes.get("value", 0.0) if value is None or not value.size else value.item()
    dims = range(x.dim()) if axes is None else [int(axis) % x.dim() for axis in axes.tolist()]
    before, after = [0] * x.dim(), [0] * x.dim()
    for place, dim in enumerate(dims):
        before[dim], after[dim] = given[place], given[place + len(dims)]
    if not any(before + after):
        return x
    if mode == "constant":
        return F.pad(x, around(before, after), value=float(number))
    if any(before[:2] + after[:2]):
        raise BnewError(f"its mode is '{mode}', and it adds images or channels")
    return F.pad(x, around(before[2:], after[2:]), _MODES[mode])


def depth_to_space(node: Node, x: Tensor) -> Tensor:
    """Channels become pixels."""
    size = node.attributes["blocksize"]
    if node.attributes.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    n, c, h, w = x.shape
    parts = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // size**2, h * size, w * size)


def space_to_depth(node: Node, x: Tensor) -> Tensor:
    """Pixels become channels."""
    size = node.attributes["blocksize"]
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * size**2, h // size, w // size)


def _axes(x: Tensor) -> int:
    if x.dim() not in (3, 4):
        raise BnewError(f"its input has {x.dim()} dimensions, and only lines and images are imported")
    return x.dim() - 2


def _numbers(node: Node, name: str, x: Tensor) -> list[int]:
    return list(node.attributes.get(name, [1] * (x.dim() - 2)))


def _steps(node: Node, x: Tensor) -> tuple[list[int], list[int]]:
    return _numbers(node, "strides", x), _numbers(node, "dilations", x)


def sides(
    node: Node, x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Sides:
    """How much the border adds before and behind each axis."""
    how = node.attributes.get("auto_pad", "NOTSET")
    if how == "NOTSET":
        pads = node.attributes.get("pads", [0] * 2 * len(kernel))
        return list(pads[: len(kernel)]), list(pads[len(kernel) :])
    if how == "VALID":
        return [0] * len(kernel), [0] * len(kernel)
    if how not in ("SAME_UPPER", "SAME_LOWER"):
        raise BnewError(f"its auto_pad is '{how}'")
    totals = [
        max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    ]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (less, more) if how == "SAME_UPPER" else (more, less)


def around(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """As ``F.pad`` takes it: the last axis first."""
    return list(chain.from_iterable(zip(reversed(before), reversed(after), strict=True)))


def col2im(node: Node, x: Tensor, image: Array, block: Array) -> Tensor:
    """Windows (N, C · kh · kw, places) summed where they overlap."""
    strides, dilations = (node.attributes.get(name, [1] * len(block)) for name in ("strides", "dilations"))
    pads = node.attributes.get("pads", [0] * 2 * len(block))
    before, after = pads[: len(block)], pads[len(block) :]
    whole = [int(n) + b + a for n, b, a in zip(image, before, after, strict=True)]
    summed = F.fold(x, tuple(whole), tuple(block.tolist()), tuple(dilations), 0, tuple(strides))
    return F.pad(summed, around([-n for n in before], [-n for n in after]))
