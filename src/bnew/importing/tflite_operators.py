"""TensorFlow Lite's and Larq's operators, one row each, as functions of PyTorch.

A tensor of four dimensions is (N, C, H, W) here and (N, H, W, C) in the file. Options are called as in
TensorFlow Lite's schema. What a function returns must have the shape that the file says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bnew.errors import BnewError
from bnew.importing import tflite_shapes as shapes
from bnew.importing import windows
from bnew.importing.graph import Array, Node
from bnew.importing.operators import Row, signs
from bnew.importing.tflite_file import TFLITE

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


def _looked_up(table: Mapping[int, Any], number: int, what: str) -> Any:
    if number not in table:
        raise BnewError(f"its {what} is number {number}, which is not known")
    return table[number]


def _activated(node: Node, x: Tensor) -> Tensor:
    number = node.attributes.get("FusedActivationFunction", 0)
    result: Tensor = _looked_up(_ACTIVATIONS, number, "activation")(x)
    return result


def _plainly(function: Callable[..., Any]) -> Row:
    """A function of the inputs alone."""
    return Row(lambda node, *inputs: function(*inputs))


def _together(function: Callable[..., Tensor]) -> Row:
    """A function of tensors that broadcast, and the activation behind it."""
    return Row(lambda node, *inputs: _activated(node, function(*shapes.aligned(node, *inputs))))


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
        "kernel_shape": list(kernel), "strides": strides, "dilations": dilations, "group": groups,
        "auto_pad": how,
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
    lengths = (length + int(pair.sum()) for length, pair in zip(shapes.last(x).shape, sides, strict=True))
    shapes.has_shape(node, 0, [*lengths])
    order = [0, 3, 1, 2] if x.dim() == 4 else range(x.dim())
    around = [int(each) for axis in reversed(order) for each in sides[axis]]
    return F.pad(x, around, value=0.0 if value is None else float(value.item()))


def _mirrored(node: Node, x: Tensor, sides: Array) -> Tensor:
    if node.attributes.get("Mode", 0) != 0 or x.dim() != 4 or sides[[0, 3]].any():
        raise BnewError("it repeats the edge, or adds images or channels")
    return F.pad(x, [int(each) for axis in (2, 1) for each in sides[axis]], "reflect")


def _blocks(function: Callable[[Node, Tensor], Tensor]) -> Row:
    return Row(
        lambda node, x: function(replace(node, attributes={"blocksize": node.attributes["BlockSize"]}), x)
    )


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


def _quantize(node: Node, x: Tensor) -> Tensor:
    """+1 where x ≥ 0 or x is true, else −1."""
    if x.dtype == torch.bool:
        return torch.where(x, 1.0, -1.0)
    if not x.is_floating_point():
        raise BnewError("its input is of whole numbers")
    return signs(x)


def _dequantize(node: Node, x: Tensor) -> Tensor:
    """The signs, or as bools whether they are +1."""
    return x > 0 if node.attributes["results"][0].type == "BOOL" else x


def _binary_conv(node: Node, x: Tensor, weight: Tensor, first: Tensor, shift: Tensor | None = None) -> Tensor:
    """Larq's LceBconv2d: activation(conv(x, weight)) · multiplier + bias, or its signs by thresholds.

    The border is of zeros or of ones. The sign is +1 where the sum of the products is at least ``first``.
    """
    node = _of_larq(node)
    padded, ones = _windows(node, x, weight.shape[2:]), node.attributes["pad_values"]
    if x.shape[1] != weight.shape[1] * node.attributes["groups"]:
        raise BnewError(f"its weights are for {weight.shape[1]} channels, and it gets {x.shape[1]}")
    if any(numbers is not None and numbers.numel() != len(weight) for numbers in (first, shift)):
        raise BnewError(f"it has not one multiplier and bias for each of its {len(weight)} results")
    if ones not in (0, 1):
        raise BnewError(f"its pad_values is {ones}")
    same = padded.attributes["auto_pad"] != "VALID"
    if same and not ones and (shift is None or node.attributes["FusedActivationFunction"]):
        raise BnewError(
            "it has a border of zeros, and thresholds or an activation, which Larq does not compute"
        )
    if same and ones:
        before, after = windows.sides(
            padded, x, *(padded.attributes[name] for name in ("kernel_shape", "strides", "dilations"))
        )
        x = F.pad(x, windows.around(before, after), value=1.0)
        node = replace(node, attributes={**node.attributes, "Padding": 1})
    sums = _conv(node, x, weight)
    if shift is None:
        return torch.where(sums >= first, 1.0, -1.0)
    return sums * first.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1)


def _binary_pool(node: Node, x: Tensor) -> Tensor:
    result: Tensor = _pool(windows.max_pool).function(_of_larq(node), x)
    return result


# ------------------------------------------------------------------------------------ layers and reductions


def _fully_connected(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if node.attributes.get("WeightsFormat", 0) or weight.dim() != 2:
        raise BnewError("its weights are shuffled")
    if node.attributes.get("KeepNumDims", False):
        return _activated(node, shapes.first(F.linear(shapes.last(x), weight, bias)))
    x = shapes.flat(x)
    if x.shape[1] != weight.shape[1]:
        raise BnewError(f"its weights are for {weight.shape[1]} numbers, and an image has {x.shape[1]}")
    if bias is not None and len(bias) != len(weight):
        raise BnewError(f"it has {len(bias)} biases for {len(weight)} results")
    return _activated(node, F.linear(x, weight, bias))


def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    """x where x ≥ 0, else x · slope; one slope, or one per channel."""
    channels = x.shape[1] if x.dim() == 4 else x.shape[-1]
    if slope.numel() not in (1, channels) or (slope.numel() > 1 and shapes.last(slope).shape[-1] != channels):
        raise BnewError("its slopes are not one per channel")
    if x.dim() == 3:
        raise BnewError("its input has three dimensions")
    return F.prelu(x, slope.reshape(-1))


def _softmax(node: Node, x: Tensor) -> Tensor:
    beta = node.attributes["Beta"]
    return torch.softmax(x if beta == 1 else x * beta, shapes.axis_of(-1, x))


def _concat(node: Node, *parts: Tensor) -> Tensor:
    return _activated(node, torch.cat(parts, shapes.axis_of(node.attributes["Axis"], parts[0])))


def _cast(node: Node, x: Tensor) -> Tensor:
    """The options say a type too, but TensorFlow Lite goes by the result's."""
    kind = shapes.TYPES[node.attributes["results"][0].type]
    if x.is_floating_point() and kind != torch.float32:
        raise BnewError("it casts real numbers to whole ones, or rounds them")
    return x.to(kind)


def _whole_cast(node: Node, x: Array) -> Array | Tensor:
    kind = node.attributes["results"][0].type
    if kind == "FLOAT32":
        return shapes.first(torch.tensor(x, dtype=torch.float32))
    if kind not in ("INT32", "INT64"):
        raise BnewError(f"it casts whole numbers to {kind.lower()}")
    return x.astype(np.int64)


def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh" if node.attributes.get("Approximate", False) else "none")


_ROWS: Mapping[str, Row] = {
    "LceQuantize": Row(_quantize),
    "LceDequantize": Row(_dequantize),
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
    "SOFTMAX": Row(_softmax),
    "LOG_SOFTMAX": _plainly(lambda x: torch.log_softmax(x, shapes.axis_of(-1, x))),
    "ABS": _plainly(torch.abs),
    "EXP": _plainly(torch.exp),
    "LOG": _plainly(torch.log),
    "NEG": _plainly(torch.neg),
    "SQRT": _plainly(torch.sqrt),
    "RSQRT": _plainly(torch.rsqrt),
    "SQUARE": _plainly(torch.square),
    "MEAN": Row(shapes.reduced("mean"), numbers=(1,)),
    "SUM": Row(shapes.reduced("sum"), numbers=(1,)),
    "REDUCE_MAX": Row(shapes.reduced("amax"), numbers=(1,)),
    "REDUCE_MIN": Row(shapes.reduced("amin"), numbers=(1,)),
    "CONCATENATION": Row(_concat),
    "SPLIT": Row(lambda node, axis, x: shapes.split(node, x, axis), numbers=(0,)),
    "SPLIT_V": Row(lambda node, x, sizes, axis: shapes.split(node, x, axis, sizes.tolist()), numbers=(1, 2)),
    "RESHAPE": Row(shapes.reshape, numbers=(1,)),
    "TRANSPOSE": Row(shapes.in_their_order(shapes.transpose), numbers=(1,)),
    "SQUEEZE": Row(shapes.in_their_order(shapes.squeeze)),
    "EXPAND_DIMS": Row(shapes.in_their_order(shapes.unsqueeze), numbers=(1,)),
    "STRIDED_SLICE": Row(shapes.in_their_order(shapes.strided), numbers=(1, 2, 3)),
    "SLICE": Row(shapes.in_their_order(shapes.slice_), numbers=(1, 2)),
    "SHAPE": Row(shapes.shape),
    "CAST": Row(_cast),
    "DEQUANTIZE": _plainly(lambda x: x.float()),
}


def _refused(node: Node, *inputs: Any) -> Any:
    raise BnewError("it computes whole numbers, or nothing that depends on the image")


# What computes with lengths, as arrays.
_WHOLE: Mapping[str, Callable[..., Any]] = {
    "STRIDED_SLICE": shapes.strided,
    "SLICE": shapes.slice_,
    "PACK": lambda node, *parts: np.stack(parts, node.attributes.get("Axis", 0)),
    "CONCATENATION": lambda node, *parts: np.concatenate(parts, node.attributes.get("Axis", 0)),
    "REDUCE_PROD": lambda node, lengths, axes: np.prod(lengths),
    "CAST": _whole_cast,
}


def _checked(name: str) -> Row:
    """The row, with results of the type and the shape that the file says."""
    row = _ROWS.get(name, Row(_refused))

    def function(node: Node, *inputs: Any) -> Any:
        results = row.function(node, *inputs)
        for place, result in enumerate(results if isinstance(results, tuple) else (results,)):
            if torch.is_tensor(result):
                shapes.agrees(node, place, result)
        return results

    return replace(row, function=function, whole=_WHOLE.get(name, _refused))


OPERATORS: Mapping[str, Row] = {f"{TFLITE}.{name}": _checked(name) for name in {**_ROWS, **_WHOLE}}
