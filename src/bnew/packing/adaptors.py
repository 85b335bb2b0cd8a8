"""Makes functions that lower stored values take tensors of any layout: the vocabulary wraps them in these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from bnew.packing.layouts import standard
from bnew.packing.values import Lowering, Value
from bnew.packing.views import Stored, beside, count, settled, shown, stored, view, with_channels

if TYPE_CHECKING:
    from bnew.packing.operation import Operation


def as_stored(lower: Lowering) -> Lowering:
    """``lower`` for values that are stored as the tensors (N, C, H, W), (N, C, L) or (N, C) that they are."""

    @wraps(lower)
    def lowered(op: Operation, x: Value, *arguments: Any, **options: Any) -> Value:
        return lower(op, op.real(x) if x.op == "padding" else x, *arguments, **options)

    return as_stored_or_padded(lowered)


def as_stored_or_padded(lower: Lowering) -> Lowering:
    """:func:`as_stored`, but the value may be one with a border that is not stored yet."""

    def change(op: Operation, x: Any) -> Any:
        return stored(op, x) if isinstance(x, Value) else x

    @wraps(lower)
    def lowered(op: Operation, *arguments: Any, **options: Any) -> Value:
        named = {name: change(op, x) for name, x in options.items()}
        return lower(op, *(change(op, x) for x in arguments), **named)

    return lowered


def anywhere(lower: Lowering) -> Lowering:
    """``lower``, an operator on single numbers, for a first argument of any layout."""

    @wraps(lower)
    def lowered(op: Operation, x: Value, *arguments: Any, **options: Any) -> Value:
        if not isinstance(x, Value) or x.constant or x.op == "refused":
            return lower(op, x, *arguments, **options)
        source, layout = shown(op, x, op.input_size)
        source, layout = settled(op, view(op, source, layout.expanded(op.size)), op.size)
        result = lower(op.inside(source, layout), source, *arguments, **options)
        return view(op, result, layout)

    return lowered


def per_channel(lower: Lowering, dim: int = 1) -> Lowering:
    """``lower``, an operator with numbers for each index of dimension ``dim``, for any layout."""

    @wraps(lower)
    def lowered(op: Operation, x: Value, *arguments: Any, **options: Any) -> Value:
        if x.op != "view":
            return lower(op, x, *arguments, **options)
        source, layout = with_channels(op, *shown(op, x, op.input_size), dim)
        return view(op, lower(op.inside(source, layout), source, *arguments, **options), layout)

    return lowered


def joins(lower: Callable[..., Value]) -> Lowering:
    """``lower``, an operator on pairs of numbers, for two operands that are broadcast, of any layouts."""

    @wraps(lower)
    def lowered(op: Operation, a: Any, b: Any, *arguments: Any, **options: Any) -> Value:
        first, second = map(op.size_of, op.node.args[:2])
        return together(op, lower, (a, first), (b, second), *arguments, **options)

    return lowered


def together(
    op: Operation,
    lower: Callable[..., Value],
    first: tuple[Any, Sequence[int]],
    second: tuple[Any, Sequence[int]],
    *arguments: Any,
    **options: Any,
) -> Value:
    """``lower`` for two operands of the given sizes that are broadcast, of any layouts."""
    (a, _), (b, _) = first, second
    values = [side for side in (first, second) if isinstance(side[0], Value) and not side[0].constant]
    whole = np.broadcast_shapes(tuple(first[1]), tuple(second[1]))
    if len(values) < 2:
        x, size = values[0] if values else second
        if x.op == "refused":
            return lower(op, a, b, *arguments, **options)
        source, layout = shown(op, x, size)
        source, layout = settled(op, view(op, source, layout.expanded(whole)), whole)
        inner = op.inside(source, layout)
        result = lower(inner, *((source, b) if x is a else (a, source)), *arguments, **options)
        return view(op, result, layout)
    sides = [_expanded(op, v, size, whole) for v, size in (first, second)]
    filled = [layout.images == op.images and layout.fills(count(v.shape)) for v, layout in sides]
    best = filled.index(True) if any(filled) else 0
    if all(filled) and sides[0][1] != sides[1][1]:  # that which is stored as (N, C, H, W)
        best = int(sides[1][1] == standard(sides[1][0].shape, op.images, len(whole)))
    main, layout = sides[best]
    if not filled[best]:
        main, layout = settled(op, view(op, main, layout), whole)
    other = beside(op, main, layout, *sides[1 - best])
    inner = op.inside(main, layout)
    pair = (main, other) if best == 0 else (other, main)
    return view(op, lower(inner, *pair, *arguments, **options), layout)


def _expanded(op: Operation, x: Value, size: Sequence[int], whole: Sequence[int]) -> Stored:
    source, layout = shown(op, x, size)
    return source, layout.expanded(whole)
