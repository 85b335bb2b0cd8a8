"""Makes functions that lower stored values take tensors of any layout: the vocabulary wraps them in these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bnew.packing.layouts import standard
from bnew.packing.values import Lowering, Value
from bnew.packing.views import Stored, beside, count, settled, shown, stored, view, with_channels

if TYPE_CHECKING:
    from bnew.packing.operation import Operation


def as_stored(lower: Lowering) -> Lowering:
    """``lower`` for values that are stored as the tensors (N, C, H, W), (N, C, L) or (N, C) that they are."""
    return as_stored_or_padded(
        lambda op, x, *arguments, **options: lower(
            op, op.real(x) if x.op == "padding" else x, *arguments, **options
        )
    )


def as_stored_or_padded(lower: Lowering) -> Lowering:
    """:func:`as_stored`, but the value may be one with a border that is not stored yet."""

    def change(op: Operation, x: Any) -> Any:
        return stored(op, x) if isinstance(x, Value) else x

    def lowered(op: Operation, *arguments: Any, **options: Any) -> Value:
        named = {name: change(op, x) for name, x in options.items()}
        return lower(op, *(change(op, x) for x in arguments), **named)

    return lowered


def anywhere(lower: Lowering) -> Lowering:
    """``lower``, an operator on single numbers, for a first argument of any layout."""

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

    def lowered(op: Operation, x: Value, *arguments: Any, **options: Any) -> Value:
        if x.op != "view":
            return lower(op, x, *arguments, **options)
        source, layout = with_channels(op, *shown(op, x, op.input_size), dim)
        return view(op, lower(op.inside(source, layout), source, *arguments, **options), layout)

    return lowered


def joins(lower: Callable[..., Value]) -> Lowering:
    """``lower``, an operator on pairs of numbers, for two operands that are broadcast, of any layouts."""

    def lowered(op: Operation, a: Any, b: Any, *arguments: Any, **options: Any) -> Value:
        first, second = (isinstance(v, Value) and not v.constant for v in (a, b))
        whole = op.size
        if not (first and second):
            x, node = (a, op.node.args[0]) if first else (b, op.node.args[1])
            if x.op == "refused":
                return lower(op, a, b, *arguments, **options)
            size = op.size_of(node)
            source, layout = shown(op, x, size)
            source, layout = settled(op, view(op, source, layout.expanded(whole)), whole)
            inner = op.inside(source, layout)
            result = lower(inner, *((source, b) if first else (a, source)), *arguments, **options)
            return view(op, result, layout)
        sides = [
            _expanded(op, v, op.size_of(node), whole)
            for v, node in zip((a, b), op.node.args[:2], strict=True)
        ]
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

    return lowered


def _expanded(op: Operation, x: Value, size: Sequence[int], whole: Sequence[int]) -> Stored:
    source, layout = shown(op, x, size)
    return source, layout.expanded(whole)
