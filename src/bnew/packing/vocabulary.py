"""The vocabulary of a packed file: one row for each operator and each step, in the words of docs/format.md.

A row holds all that bnew knows of an operator or a step: its fields in the file, the shape of its result, the
ATen operators that become it, and its effect on exact numbers. Reading, fusion and the file's reader use
these rows. docs/format.md, the engine and tests/packed_reference.py describe the same vocabulary
independently, and a test compares the names.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

from bnew.packing import (
    activations,
    arithmetic,
    choices,
    formulas,
    joining,
    moved,
    norms,
    parts,
    products,
    reductions,
    reshaping,
    rows,
    rules,
    spatial,
    transposed,
    weights,
)  # fmt: skip
from bnew.packing.adaptors import anywhere, as_stored, as_stored_or_padded, joins, per_channel
from bnew.packing.arithmetic import exact
from bnew.packing.pieces import whole
from bnew.packing.placing import PLACING
from bnew.packing.rows import Argument, Operator, Row, Step, Takes
from bnew.packing.values import Formula, Lowering

_CONV = ("channels", "kernel", "stride", "padding", "dilation", "groups")

OPERATORS: Mapping[str, Operator] = {
    "conv": Operator(
        fields=_CONV,
        tensors=["weight"],
        shape=rows.convolved,
        aten={  # or binary_conv, if the layer is binary
            "linear": weights.linear,
            "addmm": products.added,
            "conv2d": parts.conv,
            "conv1d": as_stored_or_padded(weights.conv1d),
            "conv_transpose2d": as_stored_or_padded(transposed.transposed_conv),
            "col2im": transposed.fold,
            **dict.fromkeys(
                ["upsample_bicubic2d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa"],
                products.resampled,
            ),
            "convolution": as_stored_or_padded(transposed.convolution),
        },
        held=rules.conv,
    ),
    "binary_conv": Operator(
        takes=Takes.BITS,
        fields=_CONV,
        optional=["pad_value"],
        tensors=["weight"],
        shape=rows.convolved,
        held=rules.binary_conv,
    ),
    "max_pool": Operator(
        fields=["kernel", "stride", "padding", "dilation", "size"],
        shape=rows.sized,
        aten={
            **dict.fromkeys(["max_pool2d", "max_pool2d_with_indices"], as_stored_or_padded(spatial.max_pool)),
            "max_pool1d": as_stored_or_padded(spatial.max_pool1d),
            "adaptive_max_pool2d": as_stored(spatial.adaptive_max_pool),
            "amax": reductions.largest,
            "amin": reductions.smallest,
            "any": reductions.of_conditions(reductions.largest),
            "all": reductions.of_conditions(reductions.smallest),
            "max": reductions.largest_and_place,
            "min": reductions.smallest_and_place,
            "aminmax": reductions.extremes,
        },
        held=rules.same,
        moves=True,  # padding is never the maximum
    ),
    "avg_pool": Operator(
        fields=["kernel", "stride", "padding", "size", "count_padding"],
        shape=rows.sized,
        aten={"avg_pool2d": as_stored(spatial.avg_pool), "avg_pool1d": as_stored(spatial.avg_pool1d)},
        held=rules.avg_pool,
    ),
    "adaptive_avg_pool": Operator(
        fields=["size"],
        shape=rows.sized,
        aten={
            **dict.fromkeys(
                ["adaptive_avg_pool2d", "_adaptive_avg_pool2d"], as_stored(spatial.adaptive_avg_pool)
            ),
            "adaptive_avg_pool1d": as_stored(spatial.adaptive_avg_pool1d),
            "mean": reductions.mean,
            "sum": exact(reductions.total),
            "var": reductions.variance,
            "std": reductions.deviation,
            "var_mean": reductions.variance_and_mean,
            "linalg_vector_norm": reductions.length,
        },
        held=rules.adaptive_avg_pool,
    ),
    "resize_nearest": Operator(
        fields=["size", "scale"],
        shape=rows.sized,
        aten=dict.fromkeys(
            ["upsample_nearest2d", "_upsample_nearest_exact2d"], as_stored(spatial.resize_nearest)
        ),
        held=rules.same,
        moves=True,
    ),
    "layer_norm": Operator(
        fields=["eps"],
        aten=dict.fromkeys(["layer_norm", "native_layer_norm"], norms.layer_norm),
        formulas={"div": formulas.quotient, "mul": formulas.product},
    ),
    "rms_norm": Operator(fields=["eps"], aten={"rms_norm": norms.rms_norm}),
    "l2_norm": Operator(fields=["eps"]),  # only by a formula
    "group_norm": Operator(
        fields=["groups", "eps"],
        aten={
            "group_norm": as_stored(norms.group_norm),
            "native_group_norm": as_stored(norms.native_group_norm),
            "instance_norm": as_stored(norms.instance_norm),
        },
    ),
    "rearrange": Operator(
        fields=["shape", "sizes", "strides", "offset"],
        optional=["like"],
        shape=rows.given,
        held=moved.rearrange,
        moves=True,
    ),
    "constant": Operator(takes=Takes.NOTHING, fields=["shape"], tensors=["weight"], shape=rows.given),
    "matmul": Operator(
        takes=Takes.LIST,
        fields=["transposed"],
        shape=rows.multiplied,
        aten={
            **dict.fromkeys(["matmul", "bmm", "mm"], products.matmul),
            "einsum": products.einsum,
            "scaled_dot_product_attention": products.attention,
        },
    ),
    "pad": Operator(
        fields=["padding", "mode"],
        optional=["value"],  # of the mode "constant"
        shape=rows.padded,
        held=moved.pad,
        aten={
            **dict.fromkeys(["pad", "constant_pad_nd"], spatial.pad),
            **dict.fromkeys(["reflection_pad1d", "reflection_pad2d"], spatial.reflected),
            **dict.fromkeys(["replication_pad1d", "replication_pad2d"], spatial.replicated),
        },
    ),
    "resize_bilinear": Operator(
        fields=["size", "scale", "corners"],
        shape=rows.sized,
        aten={"upsample_bilinear2d": as_stored(spatial.resize_bilinear)},
    ),
    "identity": Operator(moves=True),  # a node that only has steps; no ATen operator becomes it
    "concat": Operator(
        takes=Takes.LIST,
        shape=rows.joined,
        aten={"cat": joining.concat, "stack": joining.stack},
        held=rules.concat,
        moves=True,
    ),
    "concat_rows": Operator(takes=Takes.LIST, shape=rows.below, held=moved.beside, moves=True),
    "concat_columns": Operator(takes=Takes.LIST, shape=rows.beside, held=moved.beside, moves=True),
    "flatten": Operator(shape=rows.flat, held=rules.flatten, moves=True),
    "softmax": Operator(
        aten=dict.fromkeys(["softmax", "_softmax"], activations.over_channels("softmax")), held=rules.softmax
    ),
    "argmax": Operator(shape=rows.best, aten={"argmax": reductions.place, "argmin": reductions.least_place}),
    "log_softmax": Operator(
        aten=dict.fromkeys(["log_softmax", "_log_softmax"], activations.over_channels("log_softmax"))
    ),
}

STEPS: Mapping[str, Step] = {
    "scale": Step(
        argument=Argument.NUMBERS,
        aten={
            "div": joins(arithmetic.div),
            "neg": anywhere(exact(arithmetic.neg)),
            "_native_batch_norm_legit_no_training": per_channel(norms.batch_norm),
        },
        held=rules.scale,
    ),
    "shift": Step(argument=Argument.NUMBERS, held=rules.shift),
    "add": Step(
        argument=Argument.VALUE,
        aten={  # of a constant: shift
            "add": choices.hiding(joins(exact(arithmetic.add))),
            "sub": joins(exact(arithmetic.sub)),
            "rsub": joins(exact(arithmetic.rsub)),
        },
        held=rules.add,
    ),
    "multiply": Step(
        argument=Argument.VALUE,
        aten={
            "mul": joins(exact(arithmetic.mul)),  # of a constant: scale
            "pow": joins(activations.power),  # products with itself
            "square": anywhere(activations.square),
            "glu": reshaping.glu,
        },
        held=rules.multiply,
    ),
    "prelu": Step(
        argument=Argument.NUMBERS,
        aten={
            **dict.fromkeys(["prelu", "_prelu_kernel"], per_channel(activations.prelu)),
            "leaky_relu": anywhere(activations.leaky_relu),
            "rrelu": anywhere(activations.rrelu),
        },
        held=rules.prelu,
    ),
    "clamp": Step(
        argument=Argument.SETTING,
        aten={
            "clamp": activations.limited,
            "clamp_min": activations.limited,
            "clamp_max": activations.limited_above,
            "hardtanh": anywhere(activations.hardtanh),
            "relu": anywhere(activations.relu),
            "relu6": anywhere(activations.relu6),
            **dict.fromkeys(["maximum", "fmax"], joins(activations.maximum)),
            **dict.fromkeys(["minimum", "fmin"], joins(activations.minimum)),
            "threshold": anywhere(activations.threshold),
        },
        held=rules.clamp,
    ),
    "sigmoid": Step(
        argument=Argument.SETTING,
        aten={"sigmoid": anywhere(activations.pointwise("sigmoid"))},
        held=rules.sigmoid,
    ),
    "hard_sigmoid": Step(
        argument=Argument.SETTING,
        aten={"hardsigmoid": anywhere(activations.pointwise("hard_sigmoid"))},
        held=rules.hard_sigmoid,
    ),
    # In float32, gelu(v) is exactly v far above 0 and exactly 0 far below. It has no rule for exact numbers.
    "gelu": Step(
        argument=Argument.SETTING,
        aten={"gelu": anywhere(activations.gelu)},  # or gelu_tanh
    ),
    "gelu_tanh": Step(argument=Argument.SETTING),
    "silu": Step(
        argument=Argument.SETTING,
        aten={"silu": anywhere(activations.pointwise("silu"))},
        held=rules.gated(rules.sigmoid),
    ),
    "hard_swish": Step(
        argument=Argument.SETTING,
        aten={"hardswish": anywhere(activations.pointwise("hard_swish"))},
        held=rules.gated(rules.hard_sigmoid),
    ),
    "mish": Step(argument=Argument.SETTING, aten={"mish": anywhere(activations.pointwise("mish"))}),
    "softplus": Step(
        argument=Argument.SETTING,
        aten={
            "softplus": anywhere(activations.softplus),
            **dict.fromkeys(["log_sigmoid", "log_sigmoid_forward"], anywhere(activations.log_sigmoid)),
        },
    ),
    "elu": Step(
        argument=Argument.SETTING,
        aten={
            "elu": anywhere(activations.elu),
            "selu": anywhere(activations.selu),
            "celu": anywhere(activations.celu),
        },
    ),
    "softsign": Step(argument=Argument.SETTING),  # only by a formula
    "tanh": Step(argument=Argument.SETTING, aten={"tanh": anywhere(activations.pointwise("tanh"))}),
    "exp": Step(argument=Argument.SETTING, aten={"exp": anywhere(activations.pointwise("exp"))}),
    "log": Step(argument=Argument.SETTING, aten={"log": anywhere(activations.pointwise("log"))}),
    "sqrt": Step(argument=Argument.SETTING, aten={"sqrt": anywhere(activations.pointwise("sqrt"))}),
    "reciprocal": Step(
        argument=Argument.SETTING,
        aten={
            "reciprocal": anywhere(activations.pointwise("reciprocal")),
            "rsqrt": anywhere(activations.rsqrt),
        },
    ),
    "abs": Step(
        argument=Argument.SETTING, aten={"abs": anywhere(activations.pointwise("abs"))}, held=rules.absolute
    ),
    "round": Step(argument=Argument.SETTING, aten={"round": anywhere(activations.rounded)}, held=whole),
    # A sign that does not become bits.
    "sign": Step(
        argument=Argument.SETTING,
        aten={
            **dict.fromkeys(["sign", "sgn"], anywhere(choices.sign)),
            "eq": joins(choices.equal),
            "ne": joins(choices.different),
            "ge": joins(choices.compare(operator.ge, strict=False, high=1)),
            "gt": joins(choices.compare(operator.gt, strict=True, high=1)),
            "le": joins(choices.compare(operator.le, strict=True, high=0)),
            "lt": joins(choices.compare(operator.lt, strict=False, high=0)),
            **dict.fromkeys(["logical_not", "bitwise_not"], anywhere(choices.negation)),
            **dict.fromkeys(["logical_and", "bitwise_and", "__and__"], choices.logical(choices.both)),
            **dict.fromkeys(["logical_or", "bitwise_or", "__or__"], choices.logical(choices.either)),
            **dict.fromkeys(["logical_xor", "bitwise_xor", "__xor__"], choices.logical(choices.different)),
            "floor": anywhere(activations.floor),
            "ceil": anywhere(activations.in_whole_numbers(lambda k: (k, False))),
            "trunc": anywhere(activations.in_whole_numbers(lambda k: (k + (k >= 0), k >= 0))),
            "floor_divide": anywhere(activations.floor_divide),
            "remainder": anywhere(activations.remainder),
            "where": exact(choices.where),
            "masked_fill": exact(choices.filled),
        },
        held=rules.sign,
    ),
}

ROWS: Mapping[str, Row] = {**OPERATORS, **STEPS}

# Name of an ATen operator, without its overload → the function that lowers it.
ATEN: Mapping[str, Lowering] = {
    **PLACING,
    **{name: lower for row in ROWS.values() for name, lower in row.aten.items()},
}

FORMULAS: Mapping[str, Formula] = {
    name: formula for row in ROWS.values() for name, formula in row.formulas.items()
}
