"""16-bit fixed point, for chips without a floating-point unit: stages whose constants are whole numbers.

A value has an exponent e, and its number q of 16 bits stands for q · 2^−e. The largest number that was seen
on images is in the upper half of the range. Within a stage, numbers before a product and those after the
activation have exponents of their own. Every scale becomes a factor of 16 bits and a shift, see ``struct
affine`` in kernels.c.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bnew.deploy.c99.interpreting import Bools, Numbers
from bnew.deploy.c99.ranges import Largest, floats, largest_numbers
from bnew.deploy.c99.stages import AFFINE, Epilogue, FixedEpilogue, Stage, Value
from bnew.errors import BnewError
from bnew.text import printable

LARGEST = 32767
MOST_EXPONENT = 20
LEAST = 2.0 ** (7 - MOST_EXPONENT)
"""The largest number of a stage has seven bits at least."""
CHUNK = 128
"""The products that kernels.c adds in 32 bits."""


def affine(
    scale: npt.ArrayLike, shift: npt.ArrayLike, channels: int, exponent_in: Any, exponent: int, most: int = 30
) -> npt.NDArray[Any]:
    """v scale + shift as ``struct affine``, from numbers of one exponent to those of another.

    The factor has as many bits as 16 bits hold; ``most`` is the largest shift. What rounding, or its limit,
    changes of it is made up for at the v where the result is nearest to 0: there both terms may be large.
    """
    factor = np.broadcast_to(
        np.asarray(scale, np.float64) * 2.0 ** (exponent - np.asarray(exponent_in)), channels
    )
    with np.errstate(divide="ignore"):
        by = np.floor(np.log2(LARGEST / np.abs(factor)))
    by = np.clip(by, 0, most)
    made = np.zeros(channels, AFFINE)
    made["times"] = np.clip(np.rint(factor * 2.0**by), -LARGEST, LARGEST)
    made["by"] = np.where(made["times"] == 0, 0, by)
    add = np.asarray(shift, np.float64) * 2.0**exponent
    zero = np.rint(np.divide(-add, factor, out=np.zeros(channels), where=made["times"] != 0))
    zero = np.clip(zero, -(2.0**most), 2.0**most)
    add = add + zero * (factor - made["times"] * 2.0**-by)
    made["add"] = np.clip(np.rint(add), -(2**30), 2**30)
    return made


# ---------------------------------------------------------------------------------------- rounding


def in_fixed_point(
    stages: Sequence[Stage], images: npt.NDArray[np.uint8]
) -> tuple[tuple[Stage, ...], dict[Value, int]]:
    """Stages of whole numbers, and the exponent of each value, with ranges as on ``images`` (N, H, W, C).

    Raises:
        BnewError: numbers are larger than 16 bits hold.
    """
    exponents: dict[Value, int] = {}
    made = []
    for stage, largest in zip(stages, largest_numbers(stages, images), strict=True):
        fixed, exponent = _fixed(stage, largest, exponents)
        made.append(fixed)
        exponents.update(dict.fromkeys(fixed.results, exponent))
    return tuple(made), exponents


def _exponent(largest: float) -> int:
    """Of numbers up to ``largest``."""
    return MOST_EXPONENT if largest == 0 else min(math.floor(math.log2(LARGEST / largest)), MOST_EXPONENT)


def _fixed(stage: Stage, largest: Largest, exponents: Mapping[Value, int]) -> tuple[Stage, int]:
    """A stage with constants that are whole numbers, and the exponent of its result."""
    end, channels = stage.end, stage.shape[0]
    assert isinstance(end, Epilogue)
    source = exponents.get(stage.source, 0) if stage.source and not stage.source.is_bits else 0
    if stage.kind == "flatten":
        return replace(stage, end=FixedEpilogue(source)), source
    one = 1.0 if end.activation in ("sign", "hard_sigmoid", "hard_swish", "round") else 0.0
    middle = max(largest.middle, one)
    _check_sizes(stage, max(largest.first, middle, largest.last))
    _check_smallness(stage, min(middle, largest.last or middle))
    first = exponent = _exponent(middle)
    passes_on = stage.kind in ("pool", "pointwise") and end.scale is None
    if end.multiply:
        first = _exponent(largest.first)
    if passes_on:
        first = min(first, source)
    if end.other is not None and end.multiply:  # a product is shifted right by 30 at most
        exponent = min(exponent, first + exponents[end.other])
        first = min(first, exponent + 30 - exponents[end.other])
    else:
        exponent = first
    weights = stage.weights
    fixed = FixedEpilogue(exponent, activation=end.activation, other=end.other, multiply=end.multiply)
    scale, shift = floats(end.scale, 1), floats(end.shift, 0)
    if stage.kind == "conv":
        weights, bits = whole_weights(stage)
        fixed = replace(fixed, sums=affine(scale, shift, channels, source + bits, first, most=46))
    elif not (passes_on and first == source):
        fixed = replace(fixed, scale=affine(scale, shift, channels, source, first))
    if end.other is not None:
        more = min(exponent - exponents[end.other], 15)  # of numbers that are not 0, no more fit
        by = first + exponents[end.other] - exponent if end.multiply else max(-more, 0)
        fixed = replace(fixed, other_times=1 << max(more, 0), other_by=by)
    if end.slope is not None:
        fixed = replace(fixed, slope=affine(floats(end.slope, 1), 0, channels, 0, 0))
    if end.activation.startswith("hard_"):
        fixed = replace(fixed, sixth=affine(1 / 6, 0.5, 1, exponent, exponent))
    if end.activation == "clamp":
        low, high = (float(np.clip(np.rint(b * 2.0**exponent), -LARGEST - 1, LARGEST)) for b in end.bounds)
        fixed = replace(fixed, bounds=(int(low), int(high)))
    result = exponent
    if end.shift_out is not None:
        result = _exponent(largest.last)
        out = affine(floats(end.scale_out, 1), floats(end.shift_out, 0), channels, exponent, result)
        fixed = replace(fixed, scale_out=out)
    if end.sign_shift is not None:
        fixed = replace(fixed, **thresholds(end, result))
    return replace(stage, end=fixed, weights=weights), result


def _check_sizes(stage: Stage, largest: float) -> None:
    terms = 1
    if stage.mean:
        terms = math.prod(max(span.places for span in spans) for spans in stage.spans)
    if stage.kind == "binary_conv" and stage.window and stage.source:
        terms = math.prod(stage.window.kernel) * stage.source.shape[0]
    if largest > LARGEST or terms > LARGEST:
        what = f"numbers up to {largest:,.0f}" if largest > LARGEST else f"sums of {terms:,} numbers"
        raise BnewError(
            printable(f"layer '{stage.name}' has {what}, more than 16 bits hold: export it without --fixed")
        )


def _check_smallness(stage: Stage, largest: float) -> None:
    if 0 < largest < LEAST:
        what = f"layer '{stage.name}' has numbers of {largest:.1g} at most, smaller than 16 bits hold"
        raise BnewError(printable(f"{what}: export it without --fixed"))


def whole_weights(stage: Stage) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    """Weights of 16 bits, and the exponent of each output channel: 128 products in a row fit 32 bits."""
    weights = np.asarray(stage.weights, np.float64)
    each = np.abs(weights.reshape(len(weights), -1))
    so_far = np.pad(np.cumsum(each, 1), ((0, 0), (1, 0)))
    in_a_row = so_far[:, min(CHUNK, each.shape[1]) :] - so_far[:, : max(each.shape[1] - CHUNK, 0) + 1]
    room = 65535 - CHUNK / 2  # rounding adds at most half to each
    with np.errstate(divide="ignore"):
        bits = np.floor(np.log2(np.minimum(LARGEST / each.max(1), room / in_a_row.max(1))))
    bits = np.where(np.isfinite(bits), bits, 0)
    whole = np.rint(weights * 2.0 ** bits.reshape(-1, 1, 1, 1))
    return whole.astype(np.int16), bits.astype(np.int64)


def thresholds(end: Epilogue, exponent: int) -> dict[str, Any]:
    """v scale + shift ≥ 0 as v ≥ threshold; as −v ≥ threshold where the scale is negative."""
    assert end.sign_shift is not None
    shift = end.sign_shift.astype(np.float64)
    if end.sign_scale is None:
        return {"sign_shift": _threshold(np.ceil(shift * 2.0**exponent))}
    scale = end.sign_scale.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = -shift / scale * 2.0**exponent
    least = np.where(scale > 0, np.ceil(at), np.ceil(-at))
    least = np.where(scale == 0, shift < 0, least)  # never or always: 0 v ≥ 1 or 0
    direction = np.sign(scale).astype(np.int8)
    return {"sign_scale": None if (direction > 0).all() else direction, "sign_shift": _threshold(least)}


def _threshold(least: Numbers) -> npt.NDArray[np.int32]:
    return np.clip(least, -LARGEST - 2, LARGEST + 2).astype(np.int32)


# ---------------------------------------------------------------------------------------- computing


class Fixed:
    """Arithmetic of whole numbers, bit by bit that of kernels.c."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages

    def mean(self, sums: Numbers, places: int) -> Numbers:
        """See ``quotient``."""
        return (2 * sums + places) // (2 * places)

    def finish(self, s: int, sums: Numbers, other: Numbers | None) -> Numbers:
        """See ``finish``."""
        end, v = self._end(s), sums.astype(np.int64)
        for first in (end.sums, end.scale):
            v = v if first is None else applied(first, v)
        if other is not None and end.multiply:
            v = _held(_rounded(v * other, end.other_by))
        elif other is not None:
            v = _held(v + _rounded(other * end.other_times, end.other_by))
        v = self._activated(end, v)
        return v if end.scale_out is None else applied(end.scale_out, v)

    def is_set(self, s: int, numbers: Numbers) -> Bools:
        """See ``is_set``."""
        end = self._end(s)
        assert end.sign_shift is not None
        above: Bools = (1 if end.sign_scale is None else end.sign_scale) * numbers >= end.sign_shift
        return above

    def _end(self, s: int) -> FixedEpilogue:
        end = self.stages[s].end
        assert isinstance(end, FixedEpilogue)
        return end

    @staticmethod
    def _activated(end: FixedEpilogue, v: Numbers) -> Numbers:
        one = 1 << end.exponent
        if end.activation == "prelu":
            return np.where(v >= 0, v, applied(end.slope, v))
        if end.activation == "clamp":
            return np.clip(v, *end.bounds)
        if end.activation == "sign":
            return np.where(v >= 0, one, -one)
        if end.activation == "abs":
            return _held(np.abs(v))
        if end.activation == "round":
            return _held(np.rint(v / one).astype(np.int64) * one)
        if end.activation == "none":
            return v
        hard = np.clip(applied(end.sixth, v), 0, one)
        return hard if end.activation == "hard_sigmoid" else _rounded(v * hard, end.exponent)


def _held(v: Numbers) -> Numbers:
    return np.clip(v, -LARGEST - 1, LARGEST)


def _rounded(v: Numbers, by: Any) -> Numbers:
    quotients: Numbers = (v + ((1 << by) >> 1)) >> by
    return quotients


def applied(affine: Any, v: Numbers) -> Numbers:
    """See ``applied`` and, of larger numbers, ``from_sum``."""
    times, by = (affine[field].astype(np.int64) for field in ("times", "by"))
    return _held(_rounded(v * times, by) + affine["add"])
