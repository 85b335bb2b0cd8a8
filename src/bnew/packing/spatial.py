"""Lowers ATen's operators on the height and width of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bnew.packing.values import Lowering, Refused, Value

if TYPE_CHECKING:
    from bnew.packing.reading import Operation


def on_images(lower: Lowering) -> Lowering:
    """``lower`` for inputs (N, C, H, W) only; PyTorch would take (N, C, L) for one image (C, H, W)."""

    def checked(op: Operation, x: Value, *arguments: Any, **options: Any) -> Value:
        if op.input_rank != 4:
            raise Refused(
                f"it is packed only for images (N, C, H, W), and its input has {op.input_rank} dimensions"
            )
        return lower(op, x, *arguments, **options)

    return checked


def pair(numbers: int | Sequence[int]) -> list[int]:
    """[y, x] from two numbers, or from one for both axes."""
    both = [numbers] if isinstance(numbers, int) else list(numbers)
    return both * 2 if len(both) == 1 else both


def sides(padding: int | Sequence[int]) -> list[int]:
    """[top, left, bottom, right] from padding that is the same on both sides of an axis."""
    return pair(padding) * 2


@on_images
def max_pool(
    op: Operation,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Value:
    """The largest number of each window. Refused if a window lies wholly in the padding."""
    window: dict[str, Any] = {
        "kernel": pair(kernel),
        "stride": pair(stride or kernel),
        "padding": sides(padding),
        "dilation": pair(dilation),
        "size": list(op.shape[1:]),
    }
    for axis in (0, 1):
        first = np.arange(window["size"][axis]) * window["stride"][axis] - window["padding"][axis]
        taps = first[:, None] + np.arange(window["kernel"][axis]) * window["dilation"][axis]
        if not np.any((taps >= 0) & (taps < x.shape[axis + 1]), axis=1).all():
            raise Refused("one of its windows lies wholly in the padding, where the result is -inf")
    return op.make("max_pool", op.real(x), fields=window)


@on_images
def avg_pool(
    op: Operation,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    """The mean of each window."""
    if divisor_override is not None:
        raise Refused("its divisor is overridden")
    window = {
        "kernel": pair(kernel),
        "stride": pair(stride or kernel),
        "padding": sides(padding),
        "size": list(op.shape[1:]),
        "count_padding": count_include_pad,
    }
    return op.make("avg_pool", op.real(x), fields=window)


@on_images
def adaptive_avg_pool(op: Operation, x: Value, size: Sequence[int]) -> Value:
    """The mean of each window, with one window per place of the result."""
    return op.make("adaptive_avg_pool", op.real(x), fields={"size": list(op.shape[1:])})


@on_images
def mean(op: Operation, x: Value, dims: Sequence[int] = (), keepdim: bool = False, **_: Any) -> Value:
    """The mean over height and width."""
    if sorted(dim % 4 for dim in dims) != [2, 3] or op.rank != (4 if keepdim else 2):
        raise Refused("a mean is packed only over height and width")
    return op.make("adaptive_avg_pool", op.real(x), fields={"size": [1, 1]})


@on_images
def resize_nearest(op: Operation, x: Value, size: Sequence[int] | None = None, *factors: Any) -> Value:
    """Row and column i of the result are number ⌊i · scale⌋ of the input.

    Refused if PyTorch takes another row or column for some i. ``factors`` are the sizes of the result divided
    by those of the input, as one list or as two arguments; None: computed from the sizes.
    """
    given = factors[0] if factors and isinstance(factors[0], list | tuple) else factors
    given = (*(given or ()), None, None)[:2]
    fields: dict[str, Any] = {"size": list(op.shape[1:]), "scale": []}
    rows_and_columns = np.indices(x.shape[1:], np.float32)
    for axis, factor in zip((0, 1), given, strict=True):
        before, after = np.float32(x.shape[axis + 1]), np.float32(op.shape[axis + 1])
        scale = np.float32(1 / factor) if factor else before / after
        places = np.minimum(np.floor(np.arange(after, dtype=np.float32) * scale), before - 1)
        taken = op.of(rows_and_columns[None, None, axis])[0, 0]
        if np.any(taken != (places if axis else places[:, None])):
            raise Refused("it takes other places than ⌊i · scale⌋")
        fields["scale"].append(float(scale))
    return op.make("resize_nearest", op.real(x), fields=fields)


@on_images
def pad(op: Operation, x: Value, amounts: Sequence[int], *how: Any, **named: Any) -> Value:
    """Zeros around the image. The convolution after it takes them over."""
    settings = [*how, *named.values()]  # mode and value
    mode = next((s for s in settings if isinstance(s, str)), "constant")
    if mode != "constant":
        raise Refused(f"padding_mode '{mode}' is not packed, only padding by zeros")
    left, right, top, bottom = (*amounts, 0, 0)[:4]
    filled = any(s for s in settings if not isinstance(s, str))
    if filled or len(amounts) > 4 or min(amounts) < 0:
        raise Refused("padding is packed only by zeros, around the image")
    # Refused unless a convolution takes it over.
    why = "padding is packed only right before a convolution"
    return op.make("refused", x, notes={"why": why, "padding": [top, left, bottom, right]})
