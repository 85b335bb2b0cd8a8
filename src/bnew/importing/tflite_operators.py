"""TensorFlow Lite's and Larq's operators, one row each, as functions of PyTorch.

A tensor of four dimensions is (N, C, H, W) here and (N, H, W, C) in the file. Options are called as in
TensorFlow Lite's schema. What a function returns must have the shape that the file says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnew.errors import BnewError
from bnew.importing import windows
from bnew.importing.graph import Array, Node
from bnew.importing.operators import Row, bits
from bnew.importing.tflite_file import CHANNELS, TFLITE

_PADDING = {0: "SAME_UPPER", 1: "VALID"}
_ACTIVATIONS: Mapping[int, Callable[[Tensor], Tensor]] = {
    0: lambda x: x,
    1: F.relu,
    2: lambda x: x.clamp(-1, 1),
    3: lambda x: x.clamp(0, 6),
    4: torch.tanh,
}
# Windows that are larger than an image by more would fill the memory with its border.
_LARGEST_WINDOW = 64


def _last(x: Tensor) -> Tensor:
    """A tensor in the order of the file."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def _first(x: Tensor) -> Tensor:
    """A tensor of the file in ours."""
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x


def _axis(axis: int, x: Tensor) -> int:
    """Where an axis of the file is here."""
    axis = int(axis)
    if not -x.dim() <= axis < x.dim():
        raise BnewError(f"it has no axis {axis}")
    return (0, 2, 3, 1)[axis % 4] if x.dim() == 4 else axis % x.dim()


def _aligned(*tensors: Tensor) -> list[Tensor]:
    """Tensors that broadcast as in the file, where the last axes come together."""
    most = max(x.dim() for x in tensors)
    if most < 4:
        return list(tensors)
    return [x if x.dim() in (0, 4) else _wide(x) for x in tensors]


def _wide(x: Tensor) -> Tensor:
    """Fewer than four dimensions of the file as four of ours."""
    lengths = [1] * (4 - x.dim()) + list(x.shape)
    if lengths[1] == lengths[2] == 1:
        return x.reshape(lengths[0], lengths[3], 1, 1)
    return _first(x.reshape(lengths))


def _activated(node: Node, x: Tensor) -> Tensor:
    return _looked_up(_ACTIVATIONS, node.attributes.get("FusedActivationFunction", 0), "activation")(x)


def _looked_up(table: Mapping[int, Any], number: int, what: str) -> Any:
    if number not in table:
        raise BnewError(f"its {what} is number {number}, which is not known")
    return table[number]


def _plainly(function: Callable[..., Any]) -> Row:
    """A function of the inputs alone."""
    return Row(lambda node, *inputs: function(*inputs))


def _together(function: Callable[..., Tensor]) -> Row:
    """A function of tensors that broadcast, and the activation behind it."""
    return Row(lambda node, *inputs: _activated(node, function(*_aligned(*inputs))))


def _in_their_order(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a tensor in the order of the file."""

    def turned(node: Node, x: Tensor, *numbers: Any) -> Any:
        return _first(function(node, _last(x), *numbers))

    return turned


# --------------------------------------------------------------------------------------------- windows


def _windows(node: Node, x: Tensor, kernel: Sequence[int], groups: int = 1) -> Node:
    """A node with its options called as ONNX calls them."""
    options = node.attributes
    dilations = [options.get("DilationHFactor", 1), options.get("DilationWFactor", 1)]
    strides = [options["StrideH"], options["StrideW"]]
    if x.dim() != 4 or min(*strides, *dilations, *kernel) < 1:
        raise BnewError(f"its windows are {list(kernel)}, its strides {strides}, its dilations {dilations}")
    for side, size, dilation in zip(x.shape[2:], kernel, dilations, strict=True):
        if (size - 1) * dilation >= max(2 * side, _LARGEST_WINDOW):
            raise BnewError(f"a window of {size} pixels at distances of {dilation} is too large for {side}")
    how = _looked_up(_PADDING, options["Padding"], "padding")
    named = {
        "kernel_shape": list(kernel), "strides": strides, "dilations": dilations, "group": groups, "auto_pad": how,
    }  # fmt: skip
    return replace(node, attributes=named)


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    groups, rest = divmod(x.shape[1], weight.shape[1])
    if rest:
        raise BnewError(f"its weights are for {weight.shape[1]} channels, and it gets {x.shape[1]}")
    result = windows.conv(_windows(node, x, weight.shape[2:], groups), x, weight, bias)
    return _activated(node, result)


def _depthwise(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _conv(node, x, weight.transpose(0, 1), bias)


def _pool(function: Callable[[Node, Tensor], Tensor]) -> Row:
    def of(node: Node, x: Tensor) -> Tensor:
        kernel = [node.attributes["FilterHeight"], node.attributes["FilterWidth"]]
        return _activated(node, function(_windows(node, x, kernel), x))

    return Row(of)


def _pad(node: Node, x: Tensor, sides: Array, value: Array | None = None) -> Tensor:
    """Numbers around a tensor."""
    if sides.shape != (x.dim(), 2) or (sides < 0).any():
        raise BnewError(f"its borders are {sides.tolist()}")
    lengths = (length + int(pair.sum()) for length, pair in zip(_last(x).shape, sides, strict=True))
    _has_shape(node, 0, [*lengths])
    order = [0, 3, 1, 2] if x.dim() == 4 else range(x.dim())
    around = [int(each) for axis in reversed(order) for each in sides[axis]]
    return F.pad(x, around, value=0.0 if value is None else float(value.item()))


def _mirrored(node: Node, x: Tensor, sides: Array) -> Tensor:
    if node.attributes.get("Mode", 0) != 0 or x.dim() != 4 or sides[[0, 3]].any():
        raise BnewError("it repeats the edge, or adds images or channels")
    return F.pad(x, [int(each) for axis in (2, 1) for each in sides[axis]], "reflect")


def _blocks(function: Callable[[Node, Tensor], Tensor]) -> Row:
    return Row(lambda node, x: function(replace(node, attributes={"blocksize": node.attributes["BlockSize"]}), x))


# ------------------------------------------------------------------------------------------------ Larq


_LARQ = {
    "StrideH": "stride_height", "StrideW": "stride_width", "DilationHFactor": "dilation_height_factor",
    "DilationWFactor": "dilation_width_factor", "FusedActivationFunction": "fused_activation_function",
    "Padding": "padding", "FilterHeight": "filter_height", "FilterWidth": "filter_width", "groups": "groups",
    "pad_values": "pad_values", "results": "results",
}  # fmt: skip


def _of_larq(node: Node) -> Node:
    """A node of Larq with its options called as TensorFlow Lite's."""
    own = node.attributes
    return replace(node, attributes={ours: own[theirs] for ours, theirs in _LARQ.items() if theirs in own})


def _binary_conv(node: Node, x: Tensor, weight: Tensor, first: Tensor, shift: Tensor | None = None) -> Tensor:
    """Larq's LceBconv2d: activation(conv(x, weight)) · multiplier + bias, or its signs by thresholds.

    The border is of zeros or of ones. The sign is +1 where the sum of the products is at least ``first``.
    """
    node = _of_larq(node)
    padded, ones = _windows(node, x, weight.shape[2:]), node.attributes["pad_values"]
    if ones not in (0, 1):
        raise BnewError(f"its pad_values is {ones}")
    same = padded.attributes["auto_pad"] != "VALID"
    if same and not ones and (shift is None or node.attributes["FusedActivationFunction"]):
        raise BnewError("it has a border of zeros, and thresholds or an activation, which Larq does not compute")
    if same and ones:
        before, after = windows.sides(padded, x, *(padded.attributes[name] for name in ("kernel_shape", "strides", "dilations")))
        x = F.pad(x, windows.around(before, after), value=1.0)
        node = replace(node, attributes={**node.attributes, "Padding": 1})
    sums = _conv(node, x, weight)
    if shift is None:
        return torch.where(sums >= first, 1.0, -1.0)
    return sums * first.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1)


def _binary_pool(node: Node, x: Tensor) -> Tensor:
    return _pool(windows.max_pool).function(_of_larq(node), x)


# ------------------------------------------------------------------------------------ layers and reductions


def _fully_connected(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if node.attributes.get("WeightsFormat", 0) or weight.dim() != 2:
        raise BnewError("its weights are shuffled")
    if node.attributes.get("KeepNumDims", False):
        return _activated(node, _first(F.linear(_last(x), weight, bias)))
    x = _flat(x)
    if x.shape[1] != weight.shape[1]:
        raise BnewError(f"its weights are for {weight.shape[1]} numbers, and an image has {x.shape[1]}")
    return _activated(node, F.linear(x, weight, bias))


def _flat(x: Tensor) -> Tensor:
    """The numbers of each image, in the order of the file."""
    return x.flatten(1) if x.dim() == 4 and x.shape[2:].numel() == 1 else _last(x).flatten(1)


def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    """x where x ≥ 0, else x · slope; one slope, or one per channel."""
    channels = x.shape[1] if x.dim() == 4 else x.shape[-1]
    if slope.numel() not in (1, channels) or (slope.numel() > 1 and max(_last(slope).shape[-1:]) != channels):
        raise BnewError("its slopes are not one per channel")
    if x.dim() == 3:
        raise BnewError("its input has three dimensions")
    return F.prelu(x, slope.reshape(-1))


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Row:
    def over(node: Node, x: Tensor) -> Tensor:
        beta = float(node.attributes.get("Beta", 1.0))
        return function(x if beta == 1 else x * beta, _axis(-1, x))

    return Row(over)


def _reduced(how: str) -> Row:
    """A tensor reduced over axes."""

    def over(node: Node, x: Tensor, axes: Array) -> Tensor:
        keep = bool(node.attributes.get("KeepDims", False))
        dims = {_axis(axis, x) for axis in axes.reshape(-1)}
        if not keep and x.dim() == 4 and not dims >= {2, 3}:
            return getattr(_last(x), how)(tuple((0, 3, 1, 2)[dim] for dim in dims))  # type: ignore[no-any-return]
        return getattr(x, how)(tuple(dims), keepdim=keep)  # type: ignore[no-any-return]

    return Row(over, numbers=(1,))


def _argmax(node: Node, x: Tensor, axis: Array) -> Tensor:
    return _last(x).argmax(int(axis.item()))


# ---------------------------------------------------------------------------------------------- shapes


def _has_shape(node: Node, place: int, shape: list[int]) -> None:
    """Refuses a result whose shape is not the one in the file, except for the number of images."""
    info = node.attributes["results"][place]
    said = list(info.shape)
    words = [*shape[:-1], -(-shape[-1] // CHANNELS)] if info.bits and shape else shape
    if len(said) != len(shape) or said[1:] != words[1:]:
        raise BnewError(f"its result has the shape {words} here and {said} in the file")


def _reshape(node: Node, x: Tensor, given: Array | None = None) -> Tensor:
    """The same numbers, in the order of the file, in another shape."""
    new = node.attributes.get("NewShapeAsNumpy", 0) if given is None else given
    wanted = [] if isinstance(new, int) else [int(length) for length in new.reshape(-1)]
    if x.dim() > 1 and wanted and wanted[0] in (node.batch, -1):
        wanted = [x.shape[0], *wanted[1:]]
    if len(wanted) == 2 and wanted[0] == x.shape[0]:
        return _flat(x).reshape(wanted)
    if len(wanted) == 4 and wanted[1] == wanted[2] == 1:
        return _flat(x).reshape(wanted[0], wanted[3], 1, 1)
    return _first(_last(x).reshape(wanted))


def _transpose(node: Node, x: Tensor, order: Array) -> Tensor:
    return x.permute([int(axis) for axis in order])


def _squeeze(node: Node, x: Tensor) -> Tensor:
    dims = node.attributes.get("SqueezeDimsAsNumpy", 0)
    if isinstance(dims, int):
        raise BnewError("it does not say which dimensions it removes")
    places = {int(dim) % x.dim() for dim in dims}
    if any(x.shape[place] != 1 for place in places):
        raise BnewError("it removes a dimension that is not of length 1")
    return x.reshape([length for place, length in enumerate(x.shape) if place not in places])


def _unsqueeze(node: Node, x: Tensor, axis: Array) -> Tensor:
    return x.unsqueeze(int(axis.item()))


def _concat(node: Node, *parts: Tensor) -> Tensor:
    return _activated(node, torch.cat(parts, _axis(node.attributes["Axis"], parts[0])))


def _split(node: Node, x: Tensor, axis: Array, sizes: Sequence[int] | None = None) -> tuple[Tensor, ...]:
    dim = _axis(axis.item(), x)
    if sizes is None:
        size, rest = divmod(x.shape[dim], len(node.outputs))
        if rest:
            raise BnewError(f"{x.shape[dim]} does not divide by {len(node.outputs)}")
        sizes = [size] * len(node.outputs)
    return torch.split(x, list(sizes), dim)


def _strided(node: Node, x: Tensor, begin: Array, end: Array, steps: Array) -> Tensor:
    """Some indices of each axis."""
    masks = node.attributes
    if masks.get("EllipsisMask", 0) or masks.get("NewAxisMask", 0) or (steps < 1).any():
        raise BnewError("it adds or skips axes, or goes backwards")
    index: list[Any] = []
    for place, (start, stop, step) in enumerate(zip(begin, end, steps, strict=True)):
        if masks.get("ShrinkAxisMask", 0) >> place & 1:
            index.append(int(start))
            continue
        first = None if masks.get("BeginMask", 0) >> place & 1 else int(start)
        last = None if masks.get("EndMask", 0) >> place & 1 else int(stop)
        if place == 0 and x.dim() > 1 and (first or 0) == 0 and last in (None, node.batch) and step == 1:
            last = None  # all images
        index.append(slice(first, last, int(step)))
    return x[tuple(index)]


def _slice(node: Node, x: Tensor, begin: Array, size: Array) -> Tensor:
    index = [
        slice(int(start), None if length == -1 or (place == 0 and length == node.batch) else int(start + length))
        for place, (start, length) in enumerate(zip(begin, size, strict=True))
    ]
    return x[tuple(index)]


def _shape(node: Node, x: Tensor) -> Array:
    return torch.tensor(list(_last(x).shape), dtype=torch.int32).numpy()


def _cast(node: Node, x: Tensor) -> Tensor:
    types = {0: torch.float32, 1: torch.float32, 2: torch.int32, 4: torch.int64, 6: torch.bool}
    kind = _looked_up(types, node.attributes.get("OutDataType", 0), "type")
    if x.is_floating_point() and kind != torch.float32:
        raise BnewError("it casts real numbers to whole ones")
    return x.to(kind)


def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh" if node.attributes.get("Approximate", False) else "none")


_ROWS: Mapping[str, Row] = {
    "LceQuantize": _plainly(bits),
    "LceDequantize": _plainly(lambda x: x),
    "LceBconv2d": Row(_binary_conv),
    "LceBMaxPool2d": Row(_binary_pool),
    "CONV_2D": Row(_conv),
    "DEPTHWISE_CONV_2D": Row(_depthwise),
    "FULLY_CONNECTED": Row(_fully_connected),
    "MAX_POOL_2D": _pool(windows.max_pool),
    "AVERAGE_POOL_2D": _pool(windows.average_pool),
    "PAD": Row(_pad, numbers=(1,)),
    "PADV2": Row(_pad, numbers=(1, 2)),
    "MIRROR_PAD": Row(_mirrored, numbers=(1,)),
    "DEPTH_TO_SPACE": _blocks(windows.depth_to_space),
    "SPACE_TO_DEPTH": _blocks(windows.space_to_depth),
    "ADD": _together(torch.add),
    "SUB": _together(torch.sub),
    "MUL": _together(torch.mul),
    "DIV": _together(torch.div),
    "MAXIMUM": _together(torch.maximum),
    "MINIMUM": _together(torch.minimum),
    "POW": _together(torch.pow),
    "SQUARED_DIFFERENCE": _together(lambda x, y: torch.square(x - y)),
    "GREATER": _together(torch.gt),
    "GREATER_EQUAL": _together(torch.ge),
    "LESS": _together(torch.lt),
    "LESS_EQUAL": _together(torch.le),
    "SELECT_V2": _together(torch.where),
    "LOGICAL_NOT": _plainly(torch.logical_not),
    "RELU": _plainly(F.relu),
    "RELU6": _plainly(lambda x: x.clamp(0, 6)),
    "RELU_N1_TO_1": _plainly(lambda x: x.clamp(-1, 1)),
    "RELU_0_TO_1": _plainly(lambda x: x.clamp(0, 1)),
    "PRELU": Row(_prelu),
    "LEAKY_RELU": Row(lambda node, x: F.leaky_relu(x, node.attributes["Alpha"])),
    "ELU": _plainly(F.elu),
    "GELU": Row(_gelu),
    "HARD_SWISH": _plainly(F.hardswish),
    "LOGISTIC": _plainly(torch.sigmoid),
    "TANH": _plainly(torch.tanh),
    "SOFTMAX": _softmax(torch.softmax),
    "LOG_SOFTMAX": _softmax(torch.log_softmax),
    "ABS": _plainly(torch.abs),
    "EXP": _plainly(torch.exp),
    "LOG": _plainly(torch.log),
    "NEG": _plainly(torch.neg),
    "SQRT": _plainly(torch.sqrt),
    "RSQRT": _plainly(torch.rsqrt),
    "SQUARE": _plainly(torch.square),
    "MEAN": _reduced("mean"),
    "SUM": _reduced("sum"),
    "REDUCE_MAX": _reduced("amax"),
    "REDUCE_MIN": _reduced("amin"),
    "REDUCE_PROD": _plainly(lambda lengths, axes: lengths.prod()),
    "ARG_MAX": Row(_argmax, numbers=(1,)),
    "CONCATENATION": Row(_concat),
    "SPLIT": Row(lambda node, axis, x: _split(node, x, axis), numbers=(0,)),
    "SPLIT_V": Row(lambda node, x, sizes, axis: _split(node, x, axis, sizes.tolist()), numbers=(1, 2)),
    "RESHAPE": Row(_reshape, numbers=(1,)),
    "TRANSPOSE": Row(_in_their_order(_transpose), numbers=(1,)),
    "SQUEEZE": Row(_in_their_order(_squeeze)),
    "EXPAND_DIMS": Row(_in_their_order(_unsqueeze), numbers=(1,)),
    "STRIDED_SLICE": Row(_in_their_order(_strided), numbers=(1, 2, 3)),
    "SLICE": Row(_in_their_order(_slice), numbers=(1, 2)),
    "SHAPE": Row(_shape),
    "PACK": Row(lambda node, *parts: torch.stack(parts, node.attributes.get("Axis", 0))),
    "CAST": Row(_cast),
    "DEQUANTIZE": _plainly(lambda x: x.float()),
}


def _checked(row: Row) -> Row:
    """The row, with results of the shape that the file says; whole numbers are computed by it, too."""

    def function(node: Node, *inputs: Any) -> Any:
        results = row.function(node, *inputs)
        for place, result in enumerate(results if isinstance(results, tuple) else (results,)):
            if torch.is_tensor(result) and result.is_floating_point():
                _has_shape(node, place, list(_last(result).shape))
        return results

    return replace(row, function=function, reference=False)


OPERATORS: Mapping[str, Row] = {f"{TFLITE}.{name}": _checked(row) for name, row in _ROWS.items()}
