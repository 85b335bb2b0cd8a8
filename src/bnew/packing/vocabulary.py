"""The vocabulary of a packed file: one row for each operator and each step, in the words of docs/format.md.

A row holds all that bnew knows of an operator or a step: its fields in the file, the shape of its result, the
ATen operators that become it, and its effect on exact numbers. Reading, fusion and the file's reader use
these rows. docs/format.md, the engine and tests/packed_reference.py describe the same vocabulary
independently, and a test compares the names.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

from bnew.packing import arithmetic, choices, lowering, norms, rules, spatial, weights
from bnew.packing.arithmetic import exact
from bnew.packing.pieces import Rule
from bnew.packing.values import Formula, Lowering, Shape

Node: TypeAlias = Mapping[str, Any]  # of the file's graph


class Takes(Enum):
    """The input of an operator."""

    REAL = "a real value"
    BITS = "bits"
    LIST = "a list of real values"


class Argument(Enum):
    """The argument of a step in the file."""

    NUMBERS = "the name of a tensor of numbers per channel"
    VALUE = "the name of a real value"
    SETTING = "two bounds, or nothing"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The properties that operators and steps share. The defaults are the cautious choice."""

    aten: Mapping[str, Lowering] = field(default_factory=dict)
    """ATen operators that become this one, and the functions that lower them."""
    formulas: Mapping[str, Formula] = field(default_factory=dict)
    """ATen operators that may end a formula for this one; tried before :attr:`aten`."""
    held: Rule | None = None
    """Its effect on exact numbers. None: any number may result, so a ``torch.sign`` after it is refused."""


@dataclass(frozen=True, kw_only=True)
class Operator(Row):
    """The operator of a node."""

    takes: Takes = Takes.REAL
    fields: Sequence[str] = ()
    """Fields of the node, without those that name tensors."""
    tensors: Sequence[str] = ()
    """Fields that name tensors."""
    shape: Callable[[Node, Sequence[Shape]], Shape] = lambda node, inputs: inputs[0]
    """(node, shapes of its inputs) → (C, H, W) of the result."""
    moves: bool = False
    """Whether every number of the result is a number of the input, so that signs stay signs."""


@dataclass(frozen=True, kw_only=True)
class Step(Row):
    """A pointwise operation, which is stored in the node before it."""

    argument: Argument


# ------------------------------------------------------------------------------------------------ shapes


def _convolved(node: Node, inputs: Sequence[Shape]) -> Shape:
    _, height, width = inputs[0]
    top, left, bottom, right = node["padding"]
    (sy, sx), (dy, dx), (kh, kw) = node["stride"], node["dilation"], node["kernel"]
    rows = (height + top + bottom - dy * (kh - 1) - 1) // sy + 1
    return node["channels"][1], rows, (width + left + right - dx * (kw - 1) - 1) // sx + 1


def _sized(node: Node, inputs: Sequence[Shape]) -> Shape:
    height, width = node["size"]
    return inputs[0][0], height, width


def _joined(node: Node, inputs: Sequence[Shape]) -> Shape:
    return sum(shape[0] for shape in inputs), *inputs[0][1:]


def _flat(node: Node, inputs: Sequence[Shape]) -> Shape:
    return math.prod(inputs[0]), 1, 1


# ------------------------------------------------------------------------------------------- vocabulary


_CONV = ("channels", "kernel", "stride", "padding", "dilation", "groups")

OPERATORS: Mapping[str, Operator] = {
    "conv": Operator(
        fields=_CONV,
        tensors=["weight"],
        shape=_convolved,
        aten={  # or binary_conv, if the layer is binary
            "linear": weights.linear,
            "conv2d": weights.conv,
            "convolution": weights.convolution,
        },
        held=rules.conv,
    ),
    "binary_conv": Operator(
        takes=Takes.BITS, fields=_CONV, tensors=["weight"], shape=_convolved, held=rules.binary_conv
    ),
    "max_pool": Operator(
        fields=["kernel", "stride", "padding", "dilation", "size"],
        shape=_sized,
        aten=dict.fromkeys(["max_pool2d", "max_pool2d_with_indices"], spatial.max_pool),
        held=rules.same,
        moves=True,  # padding is never the maximum
    ),
    "avg_pool": Operator(
        fields=["kernel", "stride", "padding", "size", "count_padding"],
        shape=_sized,
        aten={"avg_pool2d": spatial.avg_pool},
        held=rules.avg_pool,
    ),
    "adaptive_avg_pool": Operator(
        fields=["size"],
        shape=_sized,
        aten={
            **dict.fromkeys(["adaptive_avg_pool2d", "_adaptive_avg_pool2d"], spatial.adaptive_avg_pool),
            "mean": spatial.mean,
        },
        held=rules.adaptive_avg_pool,
    ),
    "resize_nearest": Operator(
        fields=["size", "scale"],
        shape=_sized,
        aten=dict.fromkeys(["upsample_nearest2d", "_upsample_nearest_exact2d"], spatial.resize_nearest),
        held=rules.same,
        moves=True,
    ),
    "layer_norm": Operator(
        fields=["eps"],
        aten=dict.fromkeys(["layer_norm", "native_layer_norm"], norms.layer_norm),
        formulas={"div": norms.quotient, "mul": norms.product},
    ),
    "identity": Operator(moves=True),  # a node that only has steps; no ATen operator becomes it
    "concat": Operator(
        takes=Takes.LIST,
        shape=_joined,
        aten={"cat": lowering.concat},
        held=rules.concat,
        moves=True,
    ),
    "flatten": Operator(
        shape=_flat,
        aten=dict.fromkeys(
            ["view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze"], lowering.reshape
        ),
        held=rules.flatten,
        moves=True,
    ),
    "softmax": Operator(aten=dict.fromkeys(["softmax", "_softmax"], lowering.softmax), held=rules.softmax),
}

STEPS: Mapping[str, Step] = {
    "scale": Step(
        argument=Argument.NUMBERS,
        aten={
            "div": arithmetic.div,
            "neg": exact(arithmetic.neg),
            "_native_batch_norm_legit_no_training": norms.batch_norm,
        },
        held=rules.scale,
    ),
    "shift": Step(argument=Argument.NUMBERS, held=rules.shift),
    "add": Step(
        argument=Argument.VALUE,
        aten={  # of a constant: shift
            "add": exact(arithmetic.add),
            "sub": exact(arithmetic.sub),
            "rsub": exact(arithmetic.rsub),
        },
        held=rules.add,
    ),
    "multiply": Step(
        argument=Argument.VALUE,
        aten={
            "mul": exact(arithmetic.mul),  # of a constant: scale
            "silu": lowering.gated("sigmoid"),
            "hardswish": lowering.gated("hard_sigmoid"),
        },
        held=rules.multiply,
    ),
    "prelu": Step(
        argument=Argument.NUMBERS,
        aten={
            **dict.fromkeys(["prelu", "_prelu_kernel"], lowering.prelu),
            "leaky_relu": lowering.leaky_relu,
        },
        held=rules.prelu,
    ),
    "clamp": Step(
        argument=Argument.SETTING,
        aten={
            **dict.fromkeys(["clamp", "clamp_min"], lowering.clamp),
            "clamp_max": lowering.clamp_max,
            "hardtanh": lowering.hardtanh,
            "relu": lowering.relu,
            "relu6": lowering.relu6,
        },
        held=rules.clamp,
    ),
    "sigmoid": Step(
        argument=Argument.SETTING,
        aten={"sigmoid": lowering.pointwise("sigmoid")},
        held=rules.sigmoid,
    ),
    "hard_sigmoid": Step(
        argument=Argument.SETTING,
        aten={"hardsigmoid": lowering.pointwise("hard_sigmoid")},
        held=rules.hard_sigmoid,
    ),
    # In float32, gelu(v) is exactly v far above 0 and exactly 0 far below. It has no rule for exact numbers.
    "gelu": Step(
        argument=Argument.SETTING,
        aten={"gelu": lowering.gelu},  # or gelu_tanh
    ),
    "gelu_tanh": Step(argument=Argument.SETTING),
    # A sign that does not become bits.
    "sign": Step(
        argument=Argument.SETTING,
        aten={
            **dict.fromkeys(["sign", "sgn"], choices.sign),
            "ge": choices.compare(operator.ge, strict=False, high=1),
            "gt": choices.compare(operator.gt, strict=True, high=1),
            "le": choices.compare(operator.le, strict=True, high=0),
            "lt": choices.compare(operator.lt, strict=False, high=0),
            **dict.fromkeys(["logical_not", "bitwise_not"], choices.negation),
            "where": exact(choices.where),
        },
        held=rules.sign,
    ),
}

# ATen operators that become no operator and no step of their own.
_NOTHING: Mapping[str, Lowering] = {
    **dict.fromkeys(["_to_copy", "to", "type_as"], arithmetic.to),
    "getitem": lowering.first,
    "expand": lowering.expand,
    "permute": norms.permute,
    "transpose": norms.transpose,
    "slice": lowering.whole,
    **dict.fromkeys(["pad", "constant_pad_nd"], spatial.pad),  # part of the convolution after it
}

ROWS: Mapping[str, Row] = {**OPERATORS, **STEPS}

# Name of an ATen operator, without its overload → the function that lowers it.
ATEN: Mapping[str, Lowering] = {
    **_NOTHING,
    **{name: lower for row in ROWS.values() for name, lower in row.aten.items()},
}

FORMULAS: Mapping[str, Formula] = {
    name: formula for row in ROWS.values() for name, formula in row.formulas.items()
}
