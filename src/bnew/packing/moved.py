"""Rules, as in :mod:`rules`, of operators that move numbers and put others beside them."""

from __future__ import annotations

import numpy as np

from bnew.packing.pieces import Held, either, of_channels, pieced
from bnew.packing.values import Value


def rearrange(value: Value, x: Held) -> Held:
    """Each channel has the pieces of all channels that its numbers come from."""
    numbers = np.array(value.fields["offset"])
    for size, stride in zip(value.fields["sizes"], value.fields["strides"], strict=True):
        numbers = numbers[..., None] + np.arange(size) * stride
    sources = np.sort(numbers.reshape(-1, value.shape[0]) % x.steps.shape[1], axis=0)
    parts = [of_channels(x, channels) for channels in np.unique(sources, axis=0)]
    return pieced(
        value, [piece for part in parts for piece in part.pieces], either(*(p.slopes for p in parts))
    )


def pad(value: Value, x: Held) -> Held:
    """The numbers of the input, and the constant beside them."""
    constant = value.fields.get("value")
    if constant is None or not any(value.fields["padding"]):
        return x
    beside = {root: np.zeros((1, *ranges.shape[1:])) for root, ranges in x.slopes.items()}
    return pieced(value, [*x.pieces, (0.0, constant)], either(x.slopes, beside))


def beside(value: Value, *parts: Held) -> Held:
    """The numbers of all parts, which have the same channels."""
    pieces = [piece for part in parts for piece in part.pieces]
    return pieced(value, pieces, either(*(part.slopes for part in parts)))
