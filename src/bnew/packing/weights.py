"""Lowers convolutions and linear layers, and finds those that are binary."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bnew.packing.arithmetic import shifted
from bnew.packing.spatial import along, on_images, pair, sides
from bnew.packing.values import Array, Numbers, Refused, Value
from bnew.packing.views import resized, shown, view, with_channels

if TYPE_CHECKING:
    from bnew.packing.operation import Operation

_log = logging.getLogger("bnew")


def linear(op: Operation, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """A linear layer over the last dimension, as a 1×1 convolution."""
    if not isinstance(x, Value) or x.constant:
        raise Refused("its weights depend on the input")
    last = len(op.input_size) - 1
    if last == 0:
        raise Refused("it mixes images or depends on their number")
    source, layout = with_channels(op, *shown(op, x, op.input_size), last)
    outputs, inputs = op.weights(weight).shape[:2]
    inner = op.inside(source, layout, channels=outputs)
    result = _layer(inner, source, weight, bias, stride=[1, 1], padding=[0] * 4, dilation=[1, 1], groups=1)
    return view(op, result, resized(layout, last, inputs, outputs))


@on_images
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
    """A convolution. ``padding`` is ``"same"``, ``"valid"``, or numbers for both sides of each axis."""
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(pair(dilation), op.weights(weight).shape[2:], strict=True)]
        around = [n // 2 for n in total] + [n - n // 2 for n in total]
    else:
        around = [0] * 4 if isinstance(padding, str) else sides(padding)
    return _layer(
        op, x, weight, bias, stride=pair(stride), padding=around, dilation=pair(dilation), groups=groups
    )


def conv1d(
    op: Operation,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: int | Sequence[int] = (1,),
    padding: str | int | Sequence[int] = (0,),
    dilation: int | Sequence[int] = (1,),
    groups: int = 1,
) -> Value:
    """A convolution of (N, C, L), which is stored as a column of pixels."""
    if op.input_rank != 3:
        raise Refused("it is packed only for batches (N, C, L)")
    if padding == "same":
        total = along(dilation) * (op.weights(weight).shape[2] - 1)
        around = [total // 2, 0, total - total // 2, 0]
    else:
        before = 0 if isinstance(padding, str) else along(padding)
        around = [before, 0, before, 0]
    return _layer(
        op,
        x,
        weight,
        bias,
        stride=[along(stride), 1],
        padding=around,
        dilation=[along(dilation), 1],
        groups=groups,
    )


def _layer(
    op: Operation, x: Value, weight: Value, bias: Value | None, padding: list[int], **fields: Any
) -> Value:
    """A convolution. It is binary if its input comes from a sign and its weights are ±m[o] per output o."""
    if x.constant or not weight.constant or (bias is not None and not bias.constant):
        raise Refused("its weights depend on the input")
    weights = op.weights(weight)
    if x.op == "padding":
        if x.fields["mode"] == "constant" and x.fields["value"] == 0:
            padding = [a + b for a, b in zip(padding, x.fields["padding"], strict=True)]
            (x,) = x.inputs
        elif not any(padding) and (sign := border_of_signs(op, x)) and magnitudes(weights) is not None:
            padding = x.fields["padding"]
            fields["pad_value"] = sign
            (x,) = x.inputs
        else:
            x = op.real(x)
    sizes = {"channels": [x.shape[0], len(weights)], "kernel": list(weights.shape[2:])}
    fields = {**sizes, **fields, "padding": padding}
    if apart := _apart(op, x, weights):
        value = _split(op, x, *apart, fields)
    elif found := signs(op, x, weights, ("magnitude", weight)):
        source, magnitude = found
        words = op.once(("words", weight), lambda: pack_bits(weights))
        value = op.make("binary_conv", source, tensors={"weight": words}, fields=fields)
        value = of_magnitude(op, value, magnitude)
    else:
        notes = {"real": why_real(op, x, weights)}
        value = op.make("conv", op.real(x), tensors={"weight": weights}, fields=fields, notes=notes)
    return value if bias is None else shifted(op, value, op.array(bias))


def _apart(op: Operation, x: Value, weights: Array) -> tuple[Array, Numbers] | None:
    """α · S and β of a layer of signs with weights α · S + β, where S is ±1; α and β are per output channel.

    None if the weights are ± one magnitude or of more than two values, or the layer is bnew's own.
    """
    if op.binary_layer is not None or op.bits(x) is None:
        return None
    rows, low, high = _limits(weights)
    if not np.all((rows == low) | (rows == high)) or np.any(low == high) or not np.any(low + high):
        return None
    if np.all(weights) and magnitudes(weights) is not None:
        return None
    half = (high - low) / 2
    return np.where(rows == high, half, -half).reshape(weights.shape), ((high + low) / 2)[:, 0]


def _limits(weights: Array) -> tuple[Array, Array, Array]:
    """Weights as a row per output channel, and the least and the greatest of each."""
    rows = weights.reshape(len(weights), -1).astype(np.float64)
    return rows, rows.min(1, keepdims=True), rows.max(1, keepdims=True)


def why_real(op: Operation, x: Value, weights: Array) -> str:
    """Why a layer of ``weights``, one row per output channel, is packed as a real one."""
    several = "its weights have several magnitudes"
    if op.bits(x):
        return several
    rows, low, high = _limits(weights)
    two = np.all((rows == low) | (rows == high)) or (np.all(weights) and magnitudes(weights) is not None)
    return "its input is not a sign" if two else f"its input is not a sign; {several}"


def _split(op: Operation, x: Value, signs: Array, middle: Numbers, fields: dict[str, Any]) -> Value:
    """A convolution of bits by α · S + β: one by α · S, and β times the sums of the windows.

    The sums are a binary convolution too, with one output channel per group.
    """
    from torch import from_numpy

    def layer(op: Operation, x: Value, weights: Array, **changed: Any) -> Value:
        weight = op.make("evaluated", tensor=from_numpy(weights.astype(np.float32)))
        given = {name: fields[name] for name in ("stride", "padding", "dilation", "groups")}
        return _layer(op, x, weight, None, **{**given, **changed})

    groups = fields["groups"]
    sums = layer(op.beside("windows", channels=groups), x, np.ones((groups, *signs.shape[1:])))
    plain = {"stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1]}
    spread = layer(op.beside("middle"), sums, middle.reshape(-1, 1, 1, 1), **plain)
    return op.make("add", layer(op, x, signs), spread)


def signs(op: Operation, x: Value, weights: Array, known_as: tuple[Any, ...]) -> tuple[Value, Numbers] | None:
    """The bits that a binary layer sees, and the magnitudes of its products; None if the layer is real.

    ``weights`` have one row per output channel, and ``known_as`` is the key of their magnitudes.

    Raises:
        Refused: the weights of a layer that is meant to be binary are not.
    """
    meant = op.binary_layer
    bits = op.bits(x)
    magnitude: Numbers | None = None
    if meant is not None or bits is not None:
        magnitude = op.once(known_as, lambda: magnitudes(weights))
    if meant is not None and magnitude is None:
        least, most = np.abs(weights).min(), np.abs(weights).max()
        raise Refused(
            f"the weights of this {meant} are not of one magnitude per output channel "
            f"(they go from {least:.3g} to {most:.3g}): freeze() the method first, or pack a run's best "
            "weights"
        )
    if bits is None or magnitude is None:
        if bits is not None:
            _log.warning(
                "%s: its input is a sign, but its weights have several magnitudes: a real layer", op.place
            )
        elif meant is not None:
            _log.warning("%s: its input is not a sign: a real layer", op.place)
        return None
    zeros = np.count_nonzero(weights == 0)
    if zeros:
        raise Refused(f"{zeros} of its binary weights are 0, but a bit is +1 or −1: replace them")
    source, factor = bits
    return source, magnitude * factor


def of_magnitude(op: Operation, products: Value, magnitude: Numbers) -> Value:
    """The products of signs times the magnitude of each output channel."""
    if np.all(magnitude == 1):
        return products
    return op.make("scale", products, numbers=magnitude, notes={"magnitude": True})


def border_of_signs(op: Operation, x: Value) -> int:
    """+1 or −1, if the value is a sign with a border of +1 or −1, times a common factor; else 0."""
    bits = op.bits(x.inputs[0])
    if bits is None or x.fields["mode"] != "constant" or abs(x.fields["value"]) != abs(bits[1]):
        return 0
    return 1 if x.fields["value"] == bits[1] else -1


def magnitudes(weights: Array) -> Numbers | None:
    """m (C_out) such that every weight of output channel o is m[o], −m[o] or 0; None if there is no such m.

    Magnitudes may differ from m[o] by a relative 1e-5, or by an absolute 3e-7 where that is more. Weights
    that were computed as (out − y) + y have such rounding errors.
    """
    rows = np.abs(weights.reshape(len(weights), -1).astype(np.float64))
    zero = rows == 0
    mean = rows.sum(1) / np.maximum((~zero).sum(1), 1)
    tolerance = np.maximum(1e-5 * mean, np.minimum(3e-7, 1e-3 * mean))
    if not np.all(zero | (np.abs(rows - mean[:, None]) <= tolerance[:, None])):
        return None
    return np.where(np.abs(mean - 1) < 1e-6, 1, mean)


def pack_bits(weights: Array) -> npt.NDArray[np.uint32]:
    """Signs of weights (C_out, C_in / groups, kh, kw) as the file's words (C_out, ⌈K / 32⌉)."""
    rows = weights.transpose(0, 2, 3, 1).reshape(len(weights), -1) >= 0
    bits = np.zeros((len(rows), -(-rows.shape[1] // 32) * 32), bool)
    bits[:, : rows.shape[1]] = rows
    return np.packbits(bits, axis=1, bitorder="little").view("<u4").astype(np.uint32)
