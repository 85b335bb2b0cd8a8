"""The operators that are imported, ONNX's and QONNX's: one row each, a function of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bnew.errors import BnewError
from bnew.importing import activations, norms, recurrent, resizing, shapes, windows
from bnew.importing.graph import QONNX, Array, Node

_LARGEST_BITS = 16


@dataclass(frozen=True)
class Row:
    """An operator: ``function(node, *inputs)`` returns its result, or several.

    The inputs at the places of ``numbers`` are arrays of NumPy, because the shape of the result, or what is
    computed at all, depends on them. They must not depend on the image. ``whole``
    computes whole numbers, such as lengths, which are arrays; by default, ONNX's own reference.
    """

    function: Callable[..., Any]
    numbers: tuple[int, ...] = ()
    whole: Callable[..., Any] | None = None


def _plainly(function: Callable[..., Any]) -> Row:
    """A function of the inputs alone."""
    return Row(lambda node, *inputs: function(*inputs))


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Row:
    """A function of two, for any number of inputs."""

    return Row(lambda node, *inputs: reduce(function, inputs))


def _reduced(how: Callable[..., Tensor]) -> Row:
    return Row(lambda node, x, axes=None: shapes.reduced(node, x, axes, how), numbers=(1,))


# ------------------------------------------------------------------------------------- signs and quantizers


def signs(x: Tensor) -> Tensor:
    """+1 where x ≥ 0, else −1."""
    return torch.where(x >= 0, 1.0, -1.0)


def _bipolar(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    """QONNX's BipolarQuant: ``scale`` where x ≥ 0, else −``scale``."""
    return signs(x) * scale


# Rounding mode → from which number on one bit without a sign is 1, and whether that number itself is 1.
_FROM = {
    "ROUND": (0.5, False), "HALF_EVEN": (0.5, False), "HALF_DOWN": (0.5, False), "HALF_UP": (0.5, True),
    "CEIL": (0.0, False), "UP": (0.0, False), "FLOOR": (1.0, True), "DOWN": (1.0, True),
}  # fmt: skip
_ROUNDED = {
    "ROUND": torch.round, "HALF_EVEN": torch.round, "CEIL": torch.ceil, "FLOOR": torch.floor,
    "DOWN": torch.trunc,
}  # fmt: skip


def _quant(node: Node, x: Tensor, scale: Tensor, zero_point: Array, bits: Array) -> Tensor:
    """QONNX's Quant or IntQuant: ``(q − zero_point) · scale`` with q = round(clamp(x / scale + zero_point)).

    One bit with a sign is +1 where x / scale + zero_point ≥ 0, else −1, as QONNX itself computes it.
    """
    width = float(bits.item())
    if not (width.is_integer() and 1 <= width <= _LARGEST_BITS):
        raise BnewError(f"it has {width:g} bits, and whole numbers from 1 to {_LARGEST_BITS} are imported")
    mode = str(node.attributes.get("rounding_mode", "ROUND")).upper()
    signed, narrow = bool(node.attributes.get("signed", 1)), bool(node.attributes.get("narrow", 0))
    moved = bool(zero_point.any())
    offset = torch.tensor(zero_point, dtype=x.dtype) if moved else None
    value = x / scale
    value = value if offset is None else value + offset
    if width == 1 and signed:
        result = signs(value)
    elif width == 1 and not narrow:
        limit, equal = _looked_up(mode, _FROM)
        result = torch.where(value >= limit if equal else value > limit, 1.0, 0.0)
    else:
        half = 2 ** (int(width) - 1)
        least, most = (narrow - half, half - 1) if signed else (0, 2 * half - 1 - narrow)
        result = _looked_up(mode, _ROUNDED)(value.clamp(least, most))
    result = result if offset is None else result - offset
    return result * scale


def _looked_up(mode: str, table: Mapping[str, Any]) -> Any:
    if mode not in table:
        raise BnewError(f"its rounding_mode is '{mode}', and imported are {', '.join(table)}")
    return table[mode]


def _quantize(node: Node, x: Tensor, scale: Tensor, zero_point: Array | None = None) -> Tensor:
    """clamp(round(x / scale) + zero point), whole numbers, which are real ones here."""
    limits = np.iinfo(np.uint8 if zero_point is None else zero_point.dtype)
    if zero_point is None and node.attributes.get("output_dtype", 0):
        raise BnewError("it has a type and no zero point")
    scale, offset = _along(node, x, scale, zero_point)
    return ((x / scale).round() + offset).clamp(int(limits.min), int(limits.max))


def _dequantize(node: Node, x: Tensor, scale: Tensor, zero_point: Array | None = None) -> Tensor:
    """(x − zero point) · scale."""
    scale, offset = _along(node, x, scale, zero_point)
    return (x.to(scale.dtype) - offset) * scale


def _along(node: Node, x: Tensor, scale: Tensor, zero_point: Array | None) -> tuple[Tensor, Tensor | int]:
    """Scale and zero point: one for all, or along an axis."""
    if node.attributes.get("block_size", 0):
        raise BnewError("its scales are for blocks")
    shape = [1] * x.dim()
    if scale.numel() > 1:
        shape[node.attributes.get("axis", 1)] = -1
    moved = zero_point is not None and zero_point.any()
    return scale.reshape(shape), torch.tensor(zero_point).to(scale.dtype).reshape(shape) if moved else 0


def _where(node: Node, condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition.bool(), yes, no)


# ---------------------------------------------------------------------------------------- layers


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha · A · B + beta · C, with A and B transposed or not."""
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    a = a.t() if node.attributes.get("transA", 0) else a
    weight = b if node.attributes.get("transB", 0) else b.t()
    if alpha == beta == 1 and c is not None and c.shape == weight.shape[:1]:
        return F.linear(a, weight, c)
    product = F.linear(a, weight)
    product = product if alpha == 1 else product * alpha
    return product if c is None or beta == 0 else product + (c if beta == 1 else c * beta)


# --------------------------------------------------------------------------------------------- activations


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Row:
    def over(node: Node, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return function(x, node.attributes.get("axis", -1))
        axis = node.attributes.get("axis", 1) % x.dim()  # before, over all dimensions from the axis on
        return function(x, axis) if axis == x.dim() - 1 else function(x.flatten(axis), axis).view_as(x)

    return Row(over)


# ------------------------------------------------------------------------------------------------- the rest


_TYPES = {1: torch.float32, 11: torch.float64, 9: torch.bool, 6: torch.int32, 7: torch.int64}


def _cast(node: Node, x: Tensor) -> Tensor:
    to = node.attributes["to"]
    if to not in _TYPES:
        raise BnewError("it casts to a type that rounds or cannot hold a real number")
    return x.to(_TYPES[to])


def _dropout(node: Node, x: Tensor, ratio: Array | None = None, training: Array | None = None) -> Tensor:
    if training is not None and training.any():
        raise BnewError("it is in training mode: export the network in eval mode")
    return x


def _place(how: str) -> Row:
    def found(node: Node, x: Tensor) -> Tensor:
        if node.attributes.get("select_last_index", 0):
            raise BnewError("it takes the last of several equal numbers")
        axis, keep = node.attributes.get("axis", 0), bool(node.attributes.get("keepdims", 1))
        result: Tensor = getattr(x, how)(axis, keepdim=keep)
        return result

    return Row(found)


def _largest_is_1(x: Tensor, axis: int) -> Tensor:
    return F.one_hot(x.argmax(axis), x.shape[axis]).movedim(-1, axis).to(x.dtype)


def _top_k(node: Node, x: Tensor, k: Array) -> tuple[Tensor, ...]:
    axis, largest = node.attributes.get("axis", -1), bool(node.attributes.get("largest", 1))
    return tuple(torch.topk(x, int(k.item()), axis, largest))


def _one_hot(node: Node, x: Tensor, depth: Array, values: Array) -> Tensor:
    """The second of two values at the place x of a new axis, else the first."""
    off, on = map(float, values)
    axis = node.attributes.get("axis", -1)
    return F.one_hot(x.long(), int(depth.item())).movedim(-1, axis).float() * (on - off) + off


def _sums(node: Node, x: Tensor, axis: Array) -> Tensor:
    """Sums of the numbers up to each place, or from it on."""
    if node.attributes.get("exclusive", 0):
        raise BnewError("its sums leave out the place itself")
    dim = int(axis.item())
    if node.attributes.get("reverse", 0):
        return x.flip(dim).cumsum(dim).flip(dim)
    return x.cumsum(dim)


OPERATORS: Mapping[str, Row] = {
    "Sign": _plainly(torch.sign),
    "SignOfShiftedSign": _plainly(lambda x, shift: signs(x)),
    f"{QONNX[0]}.BipolarQuant": Row(_bipolar),
    **dict.fromkeys([f"{QONNX[0]}.Quant", f"{QONNX[0]}.IntQuant"], Row(_quant, numbers=(2, 3))),
    "QuantizeLinear": Row(_quantize, numbers=(2,)),
    "DequantizeLinear": Row(_dequantize, numbers=(2,)),
    "Greater": _plainly(torch.gt),
    "GreaterOrEqual": _plainly(torch.ge),
    "Less": _plainly(torch.lt),
    "LessOrEqual": _plainly(torch.le),
    "Equal": _plainly(torch.eq),
    "Not": _plainly(torch.logical_not),
    "And": _plainly(torch.logical_and),
    "Or": _plainly(torch.logical_or),
    "Xor": _plainly(torch.logical_xor),
    "Where": Row(_where),
    "Conv": Row(windows.conv),
    "ConvTranspose": Row(windows.conv_transpose),
    "Gemm": Row(_gemm),
    "MatMul": _plainly(torch.matmul),
    "LSTM": Row(recurrent.lstm, numbers=(4,)),
    "GRU": Row(recurrent.gru, numbers=(4,)),
    "RNN": Row(recurrent.rnn, numbers=(4,)),
    "Einsum": Row(lambda node, *inputs: torch.einsum(node.attributes["equation"], *inputs)),
    "BatchNormalization": Row(norms.batch_norm),
    "LayerNormalization": Row(norms.layer_norm),
    "RMSNormalization": Row(norms.rms_norm),
    "GroupNormalization": Row(norms.group_norm),
    "InstanceNormalization": Row(norms.instance_norm),
    "LpNormalization": Row(norms.lp_norm),
    "LRN": Row(norms.local_response_norm),
    "Relu": _plainly(F.relu),
    "Clip": Row(activations.clip, numbers=(1, 2)),
    "PRelu": Row(activations.prelu),
    "LeakyRelu": Row(lambda node, x: F.leaky_relu(x, node.attributes.get("alpha", 0.01))),
    "Elu": Row(lambda node, x: F.elu(x, node.attributes.get("alpha", 1.0))),
    "Selu": Row(activations.selu),
    "Celu": Row(lambda node, x: F.celu(x, node.attributes.get("alpha", 1.0))),
    "ThresholdedRelu": Row(lambda node, x: F.threshold(x, node.attributes.get("alpha", 1.0), 0.0)),
    "Shrink": Row(activations.shrink),
    "Swish": Row(lambda node, x: x * torch.sigmoid(x * node.attributes.get("alpha", 1.0))),
    "Mish": _plainly(F.mish),
    "Gelu": Row(activations.gelu),
    "HardSigmoid": Row(activations.hard_sigmoid),
    "HardSwish": _plainly(F.hardswish),
    "Sigmoid": _plainly(torch.sigmoid),
    "Softplus": _plainly(F.softplus),
    "Softsign": _plainly(F.softsign),
    "Tanh": _plainly(torch.tanh),
    "Abs": _plainly(torch.abs),
    "Ceil": _plainly(torch.ceil),
    "Floor": _plainly(torch.floor),
    "Round": _plainly(torch.round),
    "Erf": _plainly(torch.erf),
    "Sinh": _plainly(torch.sinh),
    "Cosh": _plainly(torch.cosh),
    "Exp": _plainly(torch.exp),
    "Log": _plainly(torch.log),
    "Neg": _plainly(torch.neg),
    "Reciprocal": _plainly(torch.reciprocal),
    "Sqrt": _plainly(torch.sqrt),
    "Add": _plainly(torch.add),
    "Sub": _plainly(torch.sub),
    "Mul": _plainly(torch.mul),
    "Div": _plainly(torch.div),
    "Pow": _plainly(torch.pow),
    "Sum": _folded(torch.add),
    "Mean": Row(lambda node, *inputs: reduce(torch.add, inputs) / len(inputs)),
    "Max": _folded(torch.maximum),
    "Min": _folded(torch.minimum),
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Hardmax": _softmax(_largest_is_1),
    "ArgMax": _place("argmax"),
    "ArgMin": _place("argmin"),
    "TopK": Row(_top_k, numbers=(1,)),
    "OneHot": Row(_one_hot, numbers=(1, 2)),
    "CumSum": Row(_sums, numbers=(1,)),
    "MaxPool": Row(windows.max_pool),
    "AveragePool": Row(windows.average_pool),
    "GlobalAveragePool": Row(windows.global_average),
    "GlobalMaxPool": Row(windows.global_largest),
    "Pad": Row(windows.pad, numbers=(1, 2, 3)),
    "Resize": Row(resizing.resize, numbers=(1, 2, 3)),
    "Upsample": Row(resizing.upsample, numbers=(1,)),
    "Col2Im": Row(windows.col2im, numbers=(1, 2)),
    "DepthToSpace": Row(windows.depth_to_space),
    "SpaceToDepth": Row(windows.space_to_depth),
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(torch.sum),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMin": _reduced(torch.amin),
    "ReduceProd": _reduced(shapes.product),
    "ReduceL1": _reduced(lambda x, axes, keepdim: x.abs().sum(axes, keepdim=keepdim)),
    "ReduceL2": _reduced(lambda x, axes, keepdim: torch.linalg.vector_norm(x, 2, axes, keepdim)),
    "ReduceSumSquare": _reduced(lambda x, axes, keepdim: x.square().sum(axes, keepdim=keepdim)),
    "ReduceLogSum": _reduced(lambda x, axes, keepdim: x.sum(axes, keepdim=keepdim).log()),
    "ReduceLogSumExp": _reduced(torch.logsumexp),
    "Shape": Row(shapes.shape),
    "Size": Row(lambda node, x: np.array(x.numel())),
    "Reshape": Row(shapes.reshape, numbers=(1,)),
    "Expand": Row(shapes.expand, numbers=(1,)),
    "Flatten": Row(shapes.flatten),
    "Transpose": Row(shapes.transpose),
    "Tile": Row(shapes.tile, numbers=(1,)),
    "Trilu": Row(shapes.triangle, numbers=(1,)),
    "Squeeze": Row(shapes.squeeze, numbers=(1,)),
    "Unsqueeze": Row(shapes.unsqueeze, numbers=(1,)),
    "Concat": Row(shapes.concat),
    "Split": Row(shapes.split, numbers=(1,)),
    "Slice": Row(shapes.slice_, numbers=(1, 2, 3, 4)),
    "Gather": Row(shapes.gather, numbers=(1,)),
    "Identity": _plainly(lambda x: x),
    "Cast": Row(_cast),
    "Dropout": Row(_dropout, numbers=(1, 2)),
}
# These become numbers before the network runs: all that they need is in the file.
CONSTANT = frozenset(["Constant", "ConstantOfShape", "Range"])
