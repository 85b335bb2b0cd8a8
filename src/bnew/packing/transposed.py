"""Lowers transposed convolutions: to convolutions whose channels are shuffled into pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bnew.packing.arithmetic import shifted
from bnew.packing.layouts import Layout, standard
from bnew.packing.reshaping import reshaped
from bnew.packing.rows import windows
from bnew.packing.spatial import on_images, pair
from bnew.packing.values import Array, Refused, Value
from bnew.packing.views import canonical, shown, stored, view
from bnew.packing.weights import (
    border_of_signs,
    conv,
    conv1d,
    magnitudes,
    of_magnitude,
    pack_bits,
    signs,
    why_real,
)
from bnew.phases import Phase, Phases, Place

if TYPE_CHECKING:
    from bnew.packing.operation import Operation


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
        return transposed_conv(op, x, weight, bias, stride, padding, output_padding, groups, dilation)
    lower = conv1d if op.input_rank == 3 else conv
    return lower(op, x, weight, bias, stride, padding, dilation, groups)


@on_images
def transposed_conv(
    op: Operation,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Value:
    """A transposed convolution, by the convolutions of its :class:`phases <bnew.phases.Phases>`.

    It is binary if its input comes from a sign and its weights are ±m[o] per output channel o.
    """
    if x.constant or not weight.constant or (bias is not None and not bias.constant):
        raise Refused("its weights depend on the input")
    weights = op.weights(weight)
    inputs, each, *kernel = weights.shape
    apart = weights.reshape(groups, inputs // groups, each, *kernel)
    weights = apart.swapaxes(1, 2).reshape(groups * each, inputs // groups, *kernel)
    steps, before, gaps = pair(stride), pair(padding), pair(dilation)
    phases = Phases.of(kernel, steps, before, gaps, groups)
    pad_value, has_bits = 0, not np.any(weights == 0)
    if x.op == "padding":
        (image,), border = x.inputs, x.fields["padding"]
        moved = [p - s * n for p, s, n in zip(before, steps, border[:2], strict=True)]
        inside = Phases.of(kernel, steps, moved, gaps, groups)
        zeros = x.fields["mode"] == "constant" and x.fields["value"] == 0
        sign = border_of_signs(op, x) if has_bits and magnitudes(weights) is not None else 0
        if zeros or (sign and _stays_within(op, image, border, inside)):
            x, phases, pad_value = image, inside, sign
        else:
            x = op.real(x)
    found = None
    if has_bits or op.binary_layer:
        found = signs(op, x, weights, ("magnitude of a transposed one", weight, groups))
    if found is None:
        return _real(op, x, weights, bias, phases)
    source, magnitude = found
    value = _products(op, source, weight, weights, phases, pad_value)
    value = of_magnitude(op, value, magnitude)
    return value if bias is None else shifted(op, value, op.array(bias))


def _stays_within(op: Operation, x: Value, border: Sequence[int], phases: Phases) -> bool:
    """Whether the results read no place beyond a border (top, left, bottom, right) of ``x``."""
    for axis, along in enumerate((phases.rows, phases.columns)):
        for r, phase in enumerate(along):
            last = (op.size[2 + axis] - 1 - r) // len(along) + phase.last
            beyond = phase.first < -border[axis] or last >= x.shape[1 + axis] + border[2 + axis]
            if phase.taps and beyond:
                return False
    return True


def _products(
    op: Operation, source: Value, weight: Value, weights: Array, phases: Phases, pad_value: int
) -> Value:
    """The products of the signs ``source`` and ``weights``: a binary convolution for each run of phases."""
    outputs, groups = len(weights), phases.groups
    height, width = sizes = [
        _count(along, start, source.shape[1 + axis], op.size[2 + axis])
        for axis, (along, start) in enumerate(zip((phases.rows, phases.columns), phases.starts, strict=True))
    ]
    parts = []
    for run in phases.runs:
        shape = (outputs * len(run), height, width)
        if phases.is_zero(run[0]):
            parts.append(op.stored_constant(op.filled(0.0), standard(shape, op.images, 4), shape))
            continue
        each = [weights[:, :, rows][..., columns] for rows, columns in map(phases.taps, run)]
        # (phases, g · C_out, …) → (g, phases, C_out, …)
        full = np.stack([own.reshape(groups, -1, *own.shape[1:]) for own in each], 1)
        full = full.reshape(-1, *full.shape[3:])
        fields = {
            "channels": [source.shape[0], len(full)],
            "kernel": list(full.shape[2:]),
            "stride": [1, 1],
            **_window(phases, run[0], source.shape[1:], sizes),
            "groups": groups,
            **({"pad_value": pad_value} if pad_value else {}),
        }
        key = ("words", weight, groups, tuple(map(phases.taps, run)))
        words = op.once(key, partial(pack_bits, full))
        parts.append(op.make("binary_conv", source, shape=shape, tensors={"weight": words}, fields=fields))
    steps = len(phases.rows), len(phases.columns)
    shape = (outputs * steps[0] * steps[1], height, width)
    value = parts[0] if len(parts) == 1 else op.make("concat", *parts, shape=shape)
    blocks = groups if len(parts) == 1 else 1
    apart = (op.images, blocks, *steps, outputs // blocks, height, width)
    return stored(op, _interleaved(op, value, apart, (0, 1, 4, 5, 2, 6, 3), phases.starts))


def _count(along: Sequence[Phase], start: int, size: int, results: int) -> int:
    """How many results of each phase are computed: all, and more where the padding would be negative."""
    stops = [size - phase.last for phase in along if phase.taps]
    return max(-(-results // len(along)), *stops) - start


def _window(phases: Phases, place: Place, image: Sequence[int], sizes: Sequence[int]) -> dict[str, list[int]]:
    """Padding and dilation of the convolution of a phase, whose results have these ``sizes``."""
    both = [phases.rows[place[0]], phases.columns[place[1]]]
    before = [-phase.first - start for phase, start in zip(both, phases.starts, strict=True)]
    after = [
        count + phase.last - phase.first - size - n
        for count, phase, size, n in zip(sizes, both, image, before, strict=True)
    ]
    return {"padding": before + after, "dilation": [phase.step for phase in both]}


def _interleaved(
    op: Operation, value: Value, apart: Sequence[int], order: Sequence[int], starts: Sequence[int]
) -> Value:
    """Channels that are phases as pixels: the result, a view of ``value`` or of its numbers.

    ``value`` has the dimensions ``apart``, in the order ``order`` images, groups, channels, rows and their
    phases, columns and their phases.
    """
    layout = standard(value.shape, op.images, 4).reshaped(apart)
    assert layout is not None
    images, group, channel, row, y, column, x = layout.permuted(order).dims
    whole = Layout((images, group + channel, row + y, column + x))
    steps = [apart[order[4]], apart[order[6]]]
    for dim, start, step in zip((2, 3), starts, steps, strict=True):
        found = whole.sliced(dim, -start * step, 1, op.size[dim])
        if found is None:
            value, whole = canonical(op, value, whole, 1)
            found = whole.sliced(dim, -start * step, 1, op.size[dim])
            assert found is not None
        whole = found
    return view(op, value, whole)


def _real(op: Operation, x: Value, weights: Array, bias: Value | None, phases: Phases) -> Value:
    """One convolution of the taps of all phases; those that a phase does not have are 0."""
    outputs, channels, *taps = weights.shape
    (top, rows), (left, columns) = map(_table, (phases.rows, phases.columns), taps)
    steps = len(phases.rows), len(phases.columns)
    # (C_out, C_in, kh, kw) → (C_out, ry, rx, C_in, taps)
    full = np.einsum("oiyx,ray,sbx->orsiab", weights.astype(np.float64), rows, columns)
    made = full.reshape(-1, channels, *full.shape[4:])
    sizes = [-(-n // s) for n, s in zip(op.size[2:], steps, strict=True)]
    inputs, height, width = x.shape
    bottom = sizes[0] - height - top + made.shape[2] - 1
    right = sizes[1] - width - left + made.shape[3] - 1
    fields = {
        "channels": [inputs, len(made)],
        "kernel": list(made.shape[2:]),
        "stride": [1, 1],
        "padding": [top, left, max(bottom, 0), max(right, 0)],
        "dilation": [1, 1],
        "groups": phases.groups,
    }
    shape = (len(made), sizes[0] + max(-bottom, 0), sizes[1] + max(-right, 0))
    notes = {"real": why_real(op, x, weights)}
    value = op.make("conv", op.real(x), shape=shape, tensors={"weight": made}, fields=fields, notes=notes)
    if bias is not None:
        value = op.make("shift", value, numbers=np.repeat(op.array(bias), steps[0] * steps[1]), shape=shape)
    apart = (op.images, 1, outputs, *steps, *shape[1:])
    return _interleaved(op, value, apart, (0, 1, 2, 5, 3, 6, 4), (0, 0))


def _table(along: Sequence[Phase], taps: int) -> tuple[int, Array]:
    """Rows before the image that the convolution reads, and (phases, its taps, taps of the layer): 0 or 1."""
    own = [phase for phase in along if phase.taps]
    first = min([0, *(phase.first for phase in own)])
    last = max([0, *(phase.last for phase in own)])
    table = np.zeros((len(along), last - first + 1, taps))
    for r, phase in enumerate(along):
        for number, tap in enumerate(phase.taps):
            table[r, phase.first + phase.step * number - first, tap] = 1
    return -first, table


def fold(
    op: Operation,
    x: Value,
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Value:
    """Windows (N, C · kh · kw, places) summed where they overlap: a transposed convolution of ones."""
    if op.input_rank != 3:
        raise Refused("it is packed only for batches (N, C · kh · kw, places)")
    taps = kernel[0] * kernel[1]
    weights = np.tile(np.eye(taps).reshape(1, taps, *kernel), (op.size[1], 1, 1, 1))
    whole = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    places = windows(whole, kernel, dilation, stride)
    source, layout = shown(op, x, op.input_size)
    apart = view(op, *reshaped(op, source, layout, (*op.input_size[:2], *places)))
    phases = Phases.of(kernel, stride, padding, dilation, op.size[1])
    return _real(op, stored(op, apart), weights, None, phases)
