"""The operators that are imported, ONNX's and QONNX's: one row each, a function of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnew.errors import BnewError
from bnew.importing import shapes, windows
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

    def all_of(node: Node, first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = function(first, other)
        return first

    return Row(all_of)


def _reduced(how: str) -> Row:
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


def _where(node: Node, condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition.bool(), yes, no)


# ---------------------------------------------------------------------------------------- layers and norms


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


def _batch_norm(node: Node, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if node.attributes.get("training_mode", 0) or len(node.outputs) > 1:
        raise BnewError("it is in training mode: export the network in eval mode")
    return F.batch_norm(x, mean, var, scale, shift, eps=node.attributes.get("epsilon", 1e-5))


def _layer_norm(node: Node, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    if len(node.outputs) > 1:
        raise BnewError("its mean and variance are results too")
    sizes = x.shape[node.attributes.get("axis", -1) :]
    scale = scale.expand(sizes)
    shift = None if shift is None else shift.expand(sizes)
    return F.layer_norm(x, sizes, scale, shift, node.attributes.get("epsilon", 1e-5))


# --------------------------------------------------------------------------------------------- activations


def _clip(node: Node, x: Tensor, least: Array | None = None, most: Array | None = None) -> Tensor:
    """min(max(x, least), most); both are attributes before opset 11."""
    limits = [
        node.attributes.get(name) if given is None else given.item()
        for name, given in (("min", least), ("max", most))
    ]
    return x if limits == [None, None] else x.clamp(*limits)


def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    """x where x ≥ 0, else x · slope; one slope, or one per channel."""
    if slope.numel() == 1:
        return F.prelu(x, slope.reshape(1))
    whole = (1,) * (x.dim() - slope.dim()) + tuple(slope.shape)
    if math.prod(whole) != whole[1]:
        raise BnewError("its slopes are not one per channel")
    return F.prelu(x, slope.reshape(-1))


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Row:
    def over(node: Node, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return function(x, node.attributes.get("axis", -1))
        axis = node.attributes.get("axis", 1) % x.dim()  # before, over all dimensions from the axis on
        return function(x, axis) if axis == x.dim() - 1 else function(x.flatten(axis), axis).view_as(x)

    return Row(over)


def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.attributes.get("approximate", "none"))


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    alpha, beta = (float(node.attributes.get(name, usual)) for name, usual in (("alpha", 0.2), ("beta", 0.5)))
    return (x * alpha + beta).clamp(0, 1)


def _selu(node: Node, x: Tensor) -> Tensor:
    alpha = float(node.attributes.get("alpha", 1.6732631921768188))
    return F.elu(x, alpha) * float(node.attributes.get("gamma", 1.0507010221481323))


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


def _argmax(node: Node, x: Tensor) -> Tensor:
    if node.attributes.get("select_last_index", 0):
        raise BnewError("it takes the last of several largest numbers")
    return x.argmax(node.attributes.get("axis", 0), keepdim=bool(node.attributes.get("keepdims", 1)))


OPERATORS: Mapping[str, Row] = {
    "Sign": _plainly(torch.sign),
    "SignOfShiftedSign": _plainly(lambda x, shift: signs(x)),
    f"{QONNX[0]}.BipolarQuant": Row(_bipolar),
    **dict.fromkeys([f"{QONNX[0]}.Quant", f"{QONNX[0]}.IntQuant"], Row(_quant, numbers=(2, 3))),
    "Greater": _plainly(torch.gt),
    "GreaterOrEqual": _plainly(torch.ge),
    "Less": _plainly(torch.lt),
    "LessOrEqual": _plainly(torch.le),
    "Not": _plainly(torch.logical_not),
    "Where": Row(_where),
    "Conv": Row(windows.conv),
    "Gemm": Row(_gemm),
    "MatMul": _plainly(torch.matmul),
    "BatchNormalization": Row(_batch_norm),
    "LayerNormalization": Row(_layer_norm),
    "Relu": _plainly(F.relu),
    "Clip": Row(_clip, numbers=(1, 2)),
    "PRelu": Row(_prelu),
    "LeakyRelu": Row(lambda node, x: F.leaky_relu(x, node.attributes.get("alpha", 0.01))),
    "Elu": Row(lambda node, x: F.elu(x, node.attributes.get("alpha", 1.0))),
    "Selu": Row(_selu),
    "Gelu": Row(_gelu),
    "HardSigmoid": Row(_hard_sigmoid),
    "HardSwish": _plainly(F.hardswish),
    "Sigmoid": _plainly(torch.sigmoid),
    "Softplus": _plainly(F.softplus),
    "Tanh": _plainly(torch.tanh),
    "Abs": _plainly(torch.abs),
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
    "Max": _folded(torch.maximum),
    "Min": _folded(torch.minimum),
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "ArgMax": Row(_argmax),
    "MaxPool": Row(windows.max_pool),
    "AveragePool": Row(windows.average_pool),
    "GlobalAveragePool": Row(windows.global_average),
    "GlobalMaxPool": Row(windows.global_largest),
    "Pad": Row(windows.pad, numbers=(1, 2, 3)),
    "DepthToSpace": Row(windows.depth_to_space),
    "SpaceToDepth": Row(windows.space_to_depth),
    "ReduceMean": _reduced("mean"),
    "ReduceSum": _reduced("sum"),
    "ReduceMax": _reduced("amax"),
    "ReduceMin": _reduced("amin"),
    "Shape": Row(shapes.shape),
    "Reshape": Row(shapes.reshape, numbers=(1,)),
    "Expand": Row(shapes.expand, numbers=(1,)),
    "Flatten": Row(shapes.flatten),
    "Transpose": Row(shapes.transpose),
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
CONSTANT = frozenset(["Constant", "ConstantOfShape", "Range", "Equal", "Tile"])
