"""Larq's packed signs, and the numbers of its binary convolutions as they are here.

Larq Compute Engine packs the signs of 32 channels of a pixel in an int32: a set bit is −1, and the first
channel is the lowest bit. Here such a tensor holds the signs themselves.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace

import numpy as np

from bnew.errors import BnewError
from bnew.importing.graph import Array, Node

CHANNELS = 32  # in a word of packed signs


def with_signs(node: Node, packs: bool, constants: MutableMapping[str, Array]) -> Node:
    """An LceBconv2d with its weights as signs, and thresholds of its integers; both become constants.

    Args:
        node: as the file has it.
        packs: whether its result is packed signs.
        constants: of the file.

    Raises:
        BnewError: something is missing or of another shape.
    """
    if len(node.inputs) != 5:
        raise BnewError(
            f"LceBconv2d '{node.name}' is not imported: it has {len(node.inputs)} inputs; Larq Compute "
            "Engine 0.5 and later write files that are imported"
        )
    words = constants.get(node.inputs[1] or "")
    channels = node.attributes.get("channels_in", 0)
    if words is None or words.dtype != np.int32 or words.ndim != 4 or not words.size:
        raise BnewError(f"LceBconv2d '{node.name}' is not imported: its weights are no packed signs")
    groups, rest = divmod(-(-channels // CHANNELS), words.shape[3])
    own, more = divmod(channels, max(groups, 1))
    if (
        channels < 1
        or groups < 1
        or rest
        or more
        or (groups > 1 and own % CHANNELS)
        or -(-own // CHANNELS) != words.shape[3]
    ):
        raise BnewError(
            f"LceBconv2d '{node.name}' is not imported: its {words.shape[3]} words of weights are not "
            f"for {channels} channels"
        )
    signs = f"{node.inputs[1]} of {own} channels"
    constants[signs] = unpacked(words, own).transpose(0, 3, 1, 2).copy()
    numbers: tuple[str | None, ...] = node.inputs[2:4]
    if packs:
        limits = constants.get(node.inputs[4] or "")
        if limits is None or limits.dtype != np.int32 or limits.shape != words.shape[:1]:
            raise BnewError(f"LceBconv2d '{node.name}' is not imported: it has no thresholds")
        # A bit is set, and the sign −1, where more than the threshold of the products are −1.
        total = own * words.shape[1] * words.shape[2]
        least = total - 2 * limits.astype(np.int64)
        name = f"{node.name}: least sums"
        numbers = (name,)
        constants[name] = least.astype(np.float32).reshape(-1, 1, 1)
    elif None in numbers:
        raise BnewError(f"LceBconv2d '{node.name}' is not imported: it has no multiplier or no bias")
    attributes = {**node.attributes, "groups": groups}
    return replace(node, inputs=(node.inputs[0], signs, *numbers), attributes=attributes)


def unpacked(words: Array, channels: int) -> Array:
    """(…, words) of int32 → (…, channels) of signs: a set bit is −1, and the lowest bit comes first."""
    bits = np.unpackbits(
        np.ascontiguousarray(words.astype("<i4")).view(np.uint8), axis=-1, bitorder="little", count=channels
    )
    return (1 - 2 * bits.astype(np.float32)).astype(np.float32)
