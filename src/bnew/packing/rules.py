"""Rules: at which numbers the result of an operator or a step is held. :mod:`vocabulary` assigns them.

A rule takes the value and the :class:`Held` of each input. In the formulas, v is the input, T the step's
numbers per channel and V a second input.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import product

import numpy as np

from bnew.packing.pieces import (
    ANY,
    ROUNDING,
    WIDEST,
    Held,
    Piece,
    Rule,
    Slopes,
    anything,
    common_step,
    either,
    is_whole,
    itself,
    mixed,
    of_channels,
    only_where,
    pieced,
    plus,
    step_product,
    summed,
    tiled,
    times,
)  # fmt: skip
from bnew.packing.values import Array, Numbers, Value

# ------------------------------------------------------------------------------------------------ steps


def scale(value: Value, x: Held, numbers: Numbers | None = None) -> Held:
    """v · T."""
    factors = (value.numbers if numbers is None else numbers) + np.zeros(value.shape[0])
    kept = np.where(factors == 0, np.nan, factors)  # a product with 0 is held at 0: the last piece
    pieces: list[Piece] = [(step * np.abs(kept), offset * kept) for step, offset in x.pieces]
    pieces.append((0.0, only_where(factors == 0)))
    return pieced(value, pieces, times(x.slopes, factors))


def shift(value: Value, x: Held, numbers: Numbers | None = None) -> Held:
    """v + T."""
    shift = value.numbers if numbers is None else numbers
    return pieced(value, [(step, plus(offset, shift)) for step, offset in x.pieces], x.slopes)


def clamp(value: Value, x: Held, limits: Sequence[float | None] | None = None) -> Held:
    """min(max(v, low), high). A value that varies is held at the limits too."""
    low, high = limits or value.argument
    pieces: list[Piece] = [
        (step, np.where(step == 0, np.clip(offset, low, high), offset)) for step, offset in x.pieces
    ]
    if x.varies:
        pieces += [(0.0, limit) for limit in (low, high) if limit is not None]
    closed = {root: np.zeros((1, *ranges.shape[1:])) for root, ranges in x.slopes.items()}
    return pieced(value, pieces, either(x.slopes, closed))


def prelu(value: Value, x: Held, numbers: Numbers | None = None) -> Held:
    """v where v ≥ 0, else v · T."""
    single = x.steps == 0
    positive = Held(x.steps, np.where(single & (x.offsets < 0), np.nan, x.offsets), x.slopes)
    negative = Held(x.steps, np.where(single & (x.offsets >= 0), np.nan, x.offsets), x.slopes)
    below = scale(value, negative, numbers)
    return pieced(value, [*positive.pieces, *below.pieces], either(x.slopes, below.slopes))


def sigmoid(value: Value, x: Held) -> Held:
    """1 / (1 + exp(−v)), in float32 exactly 1 from about v = 17 on.

    Of the sigmoids of whole numbers, a constant can equal only that of 0, which is 1/2.
    """
    pieces: list[Piece] = [
        (step, np.where(step == 0, 1 / (1 + np.exp(-offset)), only_where(np.isinf(step))))
        for step, offset in x.pieces
    ]
    if x.varies:
        pieces.append((0.0, 1.0))
    return pieced(value, [*pieces, (0.0, only_where(x.known_at_zero, 0.5))], itself(value))


def absolute(value: Value, x: Held) -> Held:
    """v where v ≥ 0, else −v."""
    return prelu(value, x, np.array([-1.0]))


def hard_sigmoid(value: Value, x: Held) -> Held:
    """min(max(v / 6 + 1/2, 0), 1)."""
    sixth = scale(value, x, np.array([1 / 6]))
    return clamp(value, shift(value, sixth, np.array([0.5])), (0.0, 1.0))


def sign(value: Value, x: Held) -> Held:
    """Held at +1 and −1."""
    return pieced(value, [(0.0, 1.0), (0.0, -1.0)], {})


def choice(value: Value, x: Held) -> Held:
    """Held at its two numbers."""
    return pieced(value, [(0.0, numbers) for numbers in value.numbers], {})


def add(value: Value, *terms: Held) -> Held:
    """v + V, or a sum of more or fewer terms if some have cancelled out."""
    return reduce(partial(_sum, value), (tiled(term, value.shape[0]) for term in terms))


def _sum(value: Value, x: Held, y: Held) -> Held:
    slopes, cancels = summed(x.slopes, y.slopes)
    if cancels:
        return anything(value)
    pieces: list[Piece] = [(common_step(s, t), plus(a, b)) for (s, a), (t, b) in product(x.pieces, y.pieces)]
    # If two steps have no common step, such as those of two batch norms, every exact sum except for 0 + 0 is
    # a coincidence.
    pieces.append((0.0, only_where(x.known_at_zero & y.known_at_zero)))
    return pieced(value, pieces, slopes | itself(value))


def multiply(value: Value, x: Held, y: Held) -> Held:
    """v · V, held at 0 where one of them is."""
    x, y = (tiled(part, value.shape[0]) for part in (x, y))
    pieces: list[Piece] = [
        (reduce(common_step, (step_product(s, b), step_product(t, a), step_product(s, t))), a * b)
        for (s, a), (t, b) in product(x.pieces, y.pieces)
    ]
    pieces.append((0.0, only_where(x.known_at_zero | y.known_at_zero)))
    pieces.append((ANY, only_where(x.at_any | y.at_any)))
    if not (x.pieces or y.pieces):
        return pieced(value, pieces, itself(value))
    # Where one is held, the product follows the other.
    every = np.stack([np.full(value.shape[0], limit) for limit in (-np.inf, np.inf)])[None]
    unbounded = dict.fromkeys([*x.slopes, *y.slopes], every)
    return pieced(value, pieces, unbounded | itself(value))


def gated(gate: Rule) -> Rule:
    """v · gate(v)."""
    return lambda value, x: multiply(value, x, gate(value, x))


# -------------------------------------------------------------------------------------------- operators


def image(value: Value) -> Held:
    """Bytes b as (b / 255 − mean) / std. Their step and offset are in the note ``lattice``, (2, C).

    Without mean and std, any number. But it does not count as unknown: its sums with weights that are no
    multiples of one number are continuous.
    """
    lattice = value.notes["lattice"]
    if lattice is None:
        return replace(anything(value), unknown=False)
    return pieced(value, [(lattice[0], lattice[1])], {})


def same(value: Value, x: Held) -> Held:
    """All or some numbers of the input, perhaps in other places."""
    return x


def concat(value: Value, *parts: Held) -> Held:
    """Pieces of each part, in its channels."""
    pieces: list[Piece] = []
    slopes: list[dict[Value, Array]] = []
    start = 0
    for part in parts:
        stop = start + part.steps.shape[1]
        for row in part.pieces:
            wide = np.full((2, value.shape[0]), np.nan)
            wide[:, start:stop] = row
            pieces.append((wide[0], wide[1]))
        slopes.append({})
        for root, ranges in part.slopes.items():
            slopes[-1][root] = np.zeros((len(ranges), 2, value.shape[0]))
            slopes[-1][root][..., start:stop] = ranges
        start = stop
    return pieced(value, pieces, either(*slopes))


def flatten(value: Value, x: Held) -> Held:
    """Each channel becomes one channel per place."""
    channels = x.steps.shape[1]
    return of_channels(x, np.repeat(np.arange(channels), value.shape[0] // channels))


def softmax(value: Value, x: Held) -> Held:
    """Continuous, unless its input is held somewhere or is one channel."""
    if x.pieces or value.shape[0] == 1:
        return anything(value)
    return pieced(value, [], itself(value))


def avg_pool(value: Value, x: Held) -> Held:
    """Means of windows, which may be smaller at the border."""
    (before,) = value.inputs
    fields = value.fields
    places, padded = [], []
    for axis in (0, 1):
        size, kernel, padding = before.shape[axis + 1], fields["kernel"][axis], fields["padding"]
        first = np.arange(fields["size"][axis]) * fields["stride"][axis] - padding[axis]
        last = first + kernel
        places.append(np.minimum(last, size) - np.maximum(first, 0))
        padded.append(np.minimum(last, size + padding[axis + 2]) - first)
    counts = np.outer(*places)
    divisors = np.outer(*padded) if fields["count_padding"] else counts
    return _averaged(value, x, set(zip(counts.flat, divisors.flat, strict=True)))


def adaptive_avg_pool(value: Value, x: Held) -> Held:
    """Means of windows, which may differ in size."""
    (before,) = value.inputs
    spans = []
    for size, results in zip(before.shape[1:], value.fields["size"], strict=True):
        i = np.arange(results)
        spans.append(-(-(i + 1) * size // results) - i * size // results)
    return _averaged(value, x, {(count, count) for count in np.unique(np.outer(*spans))})


def _averaged(value: Value, x: Held, windows: Collection[tuple[int, int]]) -> Held:
    """Sums of n values divided by d, for each window (n, d): n/d times the value where it is constant."""
    pieces: list[Piece] = [(0.0, only_where(x.known_at_zero))]
    if x.pieces:
        step, offset = mixed(x.pieces)
        groups: list[Piece] = [(step, offset)]
        if np.isnan(step).any():  # no common step: each piece alone, and the single numbers together
            groups += [(s, np.where(np.isnan(step), o, np.nan)) for s, o in x.pieces]
            single = [(s, np.where(s == 0, o, np.nan)) for s, o in x.pieces]
            groups.append(mixed(single))
        pieces += [(s / d, o * (n / d)) for n, d in windows for s, o in groups]
    flat = (times(x.slopes, np.full(value.shape[0], n / d)) for n, d in windows)
    return pieced(value, pieces, either(itself(value), *flat))


def conv(value: Value, x: Held) -> Held:
    """Held at sums of held numbers, and at 0 where a sum is 0 by construction.

    A sum is 0 by construction if it has no terms, if all its terms are 0, or if the image has one colour
    there and the weights sum to 0. If the weights are no multiples of one number, all other exact sums are
    coincidences.
    """
    import torch  # packing has loaded it, and reading a file does not need it
    import torch.nn.functional as F

    (before,) = value.inputs
    weight = value.tensors["weight"].astype(np.float64)
    top, left, bottom, right = value.fields["padding"]

    def sums(channels: Array, weights: Array) -> Array:
        """(C_out, places): the convolution of an image with one number per channel."""
        plane = torch.from_numpy(channels.astype(np.float64))[None, :, None, None].expand(1, *before.shape)
        plane = F.pad(plane, (left, right, top, bottom))
        options = {name: value.fields[name] for name in ("stride", "dilation", "groups")}
        return np.asarray(F.conv2d(plane, torch.from_numpy(weights), **options)[0].flatten(1).numpy())

    def uses(channels: Array) -> Array:
        """(C_out, places): whether a sum has a term of one of these channels."""
        return np.asarray(sums(channels, (weight != 0).astype(np.float64)) > 0)

    zero = np.any(~uses(~x.known_at_zero), axis=1) | _balanced(value, x)
    pieces: list[Piece] = [(0.0, only_where(zero))]
    if x.unknown:
        pieces.append((ANY, only_where(np.any(uses(x.at_any), axis=1))))
    unit = _units(weight)
    only_zero = np.all(np.isnan(x.offsets) | ((x.steps == 0) & (x.offsets == 0)), axis=0)
    slopes = either(itself(value), _blurred(value, x))
    if np.isnan(unit).all() or only_zero.all():
        return pieced(value, pieces, slopes)
    step, offset = mixed(x.pieces)
    step = np.where(x.anywhere & np.isnan(step), ANY, np.nan_to_num(step, posinf=ANY))
    step = unit * np.repeat(_common_steps(step, value.fields["groups"]), len(unit) // value.fields["groups"])
    places = uses(~only_zero) & ~uses(~x.anywhere)
    pieces.append((0.0, only_where(np.isnan(step) & ~np.isnan(unit) & np.any(places, axis=1))))
    offsets = np.where(places, sums(np.nan_to_num(offset), weight), np.nan)
    pieces += [(step, each) for each in np.unique(np.round(offsets / unit[:, None], 9), axis=1).T * unit]
    return pieced(value, pieces, slopes)


def _blurred(value: Value, x: Held) -> Slopes:
    """The slopes of a depthwise convolution, such as a blur, where its input is constant; else none."""
    weight = value.tensors["weight"].astype(np.float64)
    if weight.shape[1] != 1:
        return {}
    outputs, channels = len(weight), x.steps.shape[1]
    source = of_channels(x, np.repeat(np.arange(channels), outputs // channels))
    return times(source.slopes, weight.sum((1, 2, 3)))


def _balanced(value: Value, x: Held) -> Array:
    """(C_out): whether the weights sum to 0 for each channel, or over channels with the same pieces.

    In the second case, the sum is 0 for grey, and for an image of one colour that was flattened.
    """
    groups, weight = value.fields["groups"], value.tensors["weight"].astype(np.float64)
    outputs = len(weight)
    weight = weight.reshape(outputs, weight.shape[1], -1)
    alike = np.arange(x.steps.shape[1])
    if np.any(x.steps > 0):
        columns = np.nan_to_num(np.concatenate([x.steps, x.offsets]), nan=-1.0, posinf=ANY)
        kinds = np.unique(columns, axis=1, return_inverse=True)[1].reshape(-1)
        alike = np.where(np.any(x.steps > 0, axis=0), kinds, len(alike) + alike)
    balanced = np.zeros(outputs, bool)
    for own, rows in zip(alike.reshape(groups, -1), np.split(np.arange(outputs), groups), strict=True):
        member = (own[:, None] == np.unique(own)).astype(np.float64)  # (C_in / groups, kinds)
        total, size = (part.sum(2) @ member for part in (weight[rows], np.abs(weight[rows])))
        balanced[rows] = np.all(np.abs(total) <= 4 * ROUNDING * size, axis=1)
    return balanced


def _common_steps(steps: Array, groups: int) -> Array:
    """(groups): the step of sums over the channels of each group, from ``steps`` (C)."""
    return np.array(
        [reduce(common_step, np.unique(own)[:, None])[0] for own in steps.reshape(groups, -1)], np.float64
    )


def _units(weights: Array) -> Array:
    """(C_out): a number of which the greatest weights of a row are multiples; NaN if there is none."""
    rows = np.sort(np.abs(weights.reshape(len(weights), -1)))[:, -32:]
    shares = rows / rows[:, -1:]
    units = np.full(len(rows), np.nan)
    for parts in range(WIDEST, 0, -1):
        fits = np.all((rows == 0) | is_whole(shares * parts), axis=1)
        units = np.where(fits & (rows[:, -1] > 0), rows[:, -1] / parts, units)
    return units


def binary_conv(value: Value, _: Held) -> Held:
    """A sum of n signs: an even whole number if n is even, an odd one if n is odd."""
    (before,) = value.inputs
    fields = value.fields
    taps = []
    for axis in (0, 1):
        first = np.arange(value.shape[axis + 1]) * fields["stride"][axis] - fields["padding"][axis]
        places = first[:, None] + np.arange(fields["kernel"][axis]) * fields["dilation"][axis]
        inside = (places >= 0) & (places < before.shape[axis + 1]) | ("pad_value" in fields)
        taps.append(np.sum(inside, axis=1))
    counts = np.outer(*taps) * (fields["channels"][0] // fields["groups"])
    return pieced(value, [(2.0, float(parity)) for parity in np.unique(counts % 2)], {})
