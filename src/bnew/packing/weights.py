"""Lowers convolutions and linear layers, and finds those that are binary."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bnew.packing.arithmetic import shifted
from bnew.packing.spatial import on_images, pair, sides
from bnew.packing.values import Array, Numbers, Refused, Value

if TYPE_CHECKING:
    from bnew.packing.reading import Operation

_log = logging.getLogger("bnew")


def linear(op: Operation, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """A linear layer of vectors (N, C), as a 1×1 convolution."""
    if op.rank != 2:
        raise Refused("a linear layer is packed only for vectors (N, C)")
    return _layer(op, x, weight, bias, stride=[1, 1], padding=[0] * 4, dilation=[1, 1], groups=1)


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


@on_images
def convolution(
    op: Operation,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    """ATen's general convolution, to which the others may decompose."""
    if transposed:
        raise Refused("a transposed convolution is not packed")
    return conv(op, x, weight, bias, stride, padding, dilation, groups)


def _layer(
    op: Operation, x: Value, weight: Value, bias: Value | None, padding: list[int], **fields: Any
) -> Value:
    """A convolution. It is binary if its input comes from a sign and its weights are ±m[o] per output o."""
    if x.constant or not weight.constant or (bias is not None and not bias.constant):
        raise Refused("its weights depend on the input")
    if "padding" in x.notes:
        padding = [a + b for a, b in zip(padding, x.notes["padding"], strict=True)]
        (x,) = x.inputs
    weights = op.weights(weight)
    sizes = {"channels": [x.shape[0], len(weights)], "kernel": list(weights.shape[2:])}
    fields = {**sizes, **fields, "padding": padding}
    meant = op.binary_layer
    bits = op.bits(x)
    magnitude: Numbers | None = None
    if meant is not None or bits is not None:
        magnitude = op.once(("magnitude", weight), lambda: magnitudes(weights))
    if meant is not None and magnitude is None:
        least, most = np.abs(weights).min(), np.abs(weights).max()
        raise Refused(
            f"the weights of this {meant} are not of one magnitude per output channel "
            f"(they go from {least:.3g} to {most:.3g}): freeze() the method first, or pack a run's best "
            "weights"
        )
    if bits is not None and magnitude is not None:
        zeros = np.count_nonzero(weights == 0)
        if zeros:
            raise Refused(f"{zeros} of its binary weights are 0, but a bit is +1 or −1: replace them")
        source, factor = bits
        words = op.once(("words", weight), lambda: pack_bits(weights))
        value = op.make("binary_conv", source, tensors={"weight": words}, fields=fields)
        if np.any(magnitude * factor != 1):
            value = op.make("scale", value, numbers=magnitude * factor, notes={"magnitude": True})
    else:
        if bits is not None:
            _log.warning(
                "%s: its input is a sign, but its weights have several magnitudes: a real layer", op.place
            )
        elif meant is not None:
            _log.warning("%s: its input is not a sign: a real layer", op.place)
        value = op.make("conv", op.real(x), tensors={"weight": weights}, fields=fields)
    return value if bias is None else shifted(op, value, op.array(bias))


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
