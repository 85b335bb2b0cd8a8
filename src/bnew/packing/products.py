"""Lowers ATen's products of matrices, and attention made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bnew.packing.arithmetic import scaled
from bnew.packing.choices import MASKED
from bnew.packing.layouts import IMAGE, Layout, in_memory
from bnew.packing.values import Refused, Value
from bnew.packing.views import arranged, beside, is_arranged, placed, shown, view
from bnew.packing.weights import linear

if TYPE_CHECKING:
    from bnew.packing.operation import Operation


def matmul(op: Operation, a: Value, b: Value) -> Value:
    """a · b, matrices in the last two dimensions."""
    sizes = [op.size_of(node) for node in op.node.args[:2]]
    if b.constant and len(sizes[1]) == 2:
        return linear(op, a, op.derived(b, lambda weight: weight.t()))
    if len(sizes[1]) == 1 and b.constant:
        result = linear(op, a, op.derived(b, lambda vector: vector.unsqueeze(0)))
        source, layout = shown(op, result, (*op.size, 1))
        return view(op, source, layout.without(op.rank))
    if min(map(len, sizes)) < 2:
        raise Refused("a product with a vector is packed only if that is constant, and on the right")
    result, layout = _product(op, a, sizes[0], b, sizes[1])
    return view(op, result, layout)


def added(op: Operation, bias: Value, a: Value, b: Value, *, beta: float = 1, alpha: float = 1) -> Value:
    """bias + a · b, for constants ``bias`` and b: a linear layer."""
    if not (bias.constant and b.constant) or (beta, alpha) != (1, 1):
        raise Refused("only a sum with a product by a constant matrix is packed")
    op = op.with_input(op.node.args[1])
    return linear(op, a, op.derived(b, lambda weight: weight.t()), bias)


def einsum(op: Operation, equation: str, operands: Sequence[Value], **_: Any) -> Value:
    """A product of two tensors, summed over the letters that the result lacks."""
    inputs, _arrow, out = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    nodes = op.node.args[1]
    assert isinstance(nodes, list | tuple)
    sizes = [op.size_of(node) for node in nodes]
    whole = "".join([*letters, out])
    if len(letters) != 2 or not out or "." in whole or any(len(set(own)) < len(own) for own in letters):
        raise Refused(f"einsum is packed only for two tensors without repeated letters, not for '{equation}'")
    if operands[0].constant:  # a constant comes second
        letters, sizes, operands = letters[::-1], sizes[::-1], operands[::-1]
    first, second = letters
    batch = [a for a in first if a in second and a in out]
    summed = [a for a in first if a in second and a not in out]
    alone = [[a for a in own if a not in other] for own, other in ((first, second), (second, first))]
    if any(a not in out for own in alone for a in own):
        raise Refused(
            f"einsum is packed only where each letter is in the result or in both, not '{equation}'"
        )
    length = {a: n for own, size in zip(letters, sizes, strict=True) for a, n in zip(own, size, strict=True)}

    def grouped(x: Value, own: str, size: Sequence[int], *groups: Sequence[str]) -> Value:
        if x.constant:
            order = [own.index(a) for group in groups for a in group]
            new = [math.prod(length[a] for a in group) for group in groups]
            return op.derived(x, lambda tensor: tensor.permute(order).reshape(new))
        source, layout = shown(op, x, size)
        dims = (sum((layout.dims[own.index(a)] for a in group), ()) for group in groups)
        return view(op, source, Layout(tuple(dims), layout.offset))

    each = [[a] for a in batch]
    left = grouped(operands[0], first, sizes[0], *each, alone[0], summed)
    right = grouped(operands[1], second, sizes[1], *each, summed, alone[1])
    rows, inner, columns = (math.prod(length[a] for a in group) for group in (alone[0], summed, alone[1]))
    before = [length[a] for a in batch]
    result, layout = _product(op, left, (*before, rows, inner), right, (*before, inner, columns))
    order = [*batch, *alone[0], *alone[1]]
    split = layout.reshaped([length[a] for a in order])
    assert split is not None
    return view(op, result, split.permuted([order.index(a) for a in out]))


def resampled(op: Operation, x: Value, *_: Any, **__: Any) -> Value:
    """A resize that weighs whole rows and whole columns, such as a bicubic one: a linear layer per axis."""
    from torch import from_numpy

    size = list(op.input_size)
    swapped = {2: (0, 1, 3, 2), 3: (0, 1, 2, 3)}  # the axis comes last; the same order puts it back
    for axis, order in swapped.items():
        basis = np.zeros((size[axis], 1, 1, *op.input_size[2:]), np.float32)
        for i, picture in enumerate(basis):
            picture[0, 0].swapaxes(0, axis - 2)[i] = 1
        rows = [op.of(picture)[0, 0].swapaxes(0, axis - 2)[:, 0] for picture in basis]
        weight = op.make("evaluated", tensor=from_numpy(np.stack(rows, 1)))
        turned = [size[dim] for dim in order]
        source, layout = shown(op, x, size)
        made = linear(op.with_input_size(turned), view(op, source, layout.permuted(order)), weight)
        size[axis] = turned[-1] = op.size[axis]
        source, layout = shown(op, made, turned)
        x = view(op, source, layout.permuted(order))
    return x


def attention(
    op: Operation,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    dropout: float = 0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """softmax(q · kᵀ · scale + mask) · v, with tokens and channels in the last two dimensions."""
    if dropout or enable_gqa:
        raise Refused("dropout and grouped queries are not packed")
    q, k, v = (op.size_of(node) for node in op.node.args[:3])
    depth = q[-1]
    turned = (*k[:-2], k[-1], k[-2])
    if key.constant:
        key = op.derived(key, lambda tensor: tensor.mT)
    weights, layout = _product(op, query, q, key, turned, turned=True)
    weights = scaled(op, weights, np.array([1 / math.sqrt(depth) if scale is None else scale]))
    if causal:
        rows, columns = q[-2], k[-2]
        mask = op.derived(None, lambda _: _upper(rows, columns))
    if mask is not None:
        weights = _masked(op, weights, layout, mask, op.size_of(op.node.args[3]) if not causal else ())
    weights = op.make("softmax", weights, shape=weights.shape)
    result, layout = _product(op, view(op, weights, layout), (*q[:-1], k[-2]), value, v)
    return view(op, result, layout)


def _upper(rows: int, columns: int) -> Any:
    import torch

    return torch.ones(rows, columns, dtype=torch.bool).tril()


def _masked(op: Operation, weights: Value, layout: Layout, mask: Value, size: Sequence[int]) -> Value:
    """The weights before their softmax with a mask: of bools, which are log(1) and log(0), or of numbers."""
    if mask.constant:

        def numbers(tensor: Any) -> Any:
            if not tensor.dtype.is_floating_point:
                tensor = tensor.float().log()
            if bool((tensor.isneginf().any(-1) & (tensor <= MASKED).all(-1)).any()):
                raise Refused("its mask hides every token from one of them, where PyTorch's result is 0")
            return tensor.clamp(min=MASKED)

        other = op.stored_constant(op.derived(mask, numbers), layout, weights.shape)
    else:
        if not op.node.args[3].meta["val"].dtype.is_floating_point:  # type: ignore[union-attr]
            raise Refused("its mask of bools depends on the input")
        source, its = shown(op, mask, size)
        other = beside(op, weights, layout, op.real(source), its.expanded(layout.size))
    return op.make("add", weights, other, shape=weights.shape)


def _product(
    op: Operation, a: Value, first: Sequence[int], b: Value, second: Sequence[int], turned: bool = False
) -> tuple[Value, Layout]:
    """The stored product of tensors of the sizes ``first`` and ``second``, and its layout.

    If ``turned``, the last two dimensions of ``b`` are the other way round in the graph.
    """
    batch = np.broadcast_shapes(tuple(first[:-2]), tuple(second[:-2]))
    if a.constant:
        source, other = shown(op, b, second)
        one, its = _operand(op, a, first, batch, other.expanded((*batch, *second[-2:])))
    else:
        one, its = _operand(op, a, first, batch)
    if turned and not b.constant:
        source, other = shown(op, b, (*second[:-2], second[-1], second[-2]))
        rank = len(other.dims)
        other = other.permuted([*range(rank - 2), rank - 1, rank - 2]).expanded((*batch, *second[-2:]))
        two = source
    else:
        two, other = _operand(op, b, second, batch, its)
    rows = list(range(len(batch)))
    m, k = len(batch), len(batch) + 1
    for each, dims in ((its, [k] if b.constant else [m, k]), (other, [m, k])):
        if any(s == IMAGE for dim in dims for _, s in each.dims[dim]):
            raise Refused("it mixes images or depends on their number")
    if not b.constant and _images(its) != _images(other):
        raise Refused("it mixes images or depends on their number")
    left = op.real(arranged(op, one, its, rows, [m], [k]))
    # As it is stored, if its rows or its columns are the channels; a constant is stored with columns as them.
    close = not b.constant and is_arranged(op, two, other, rows, [k], [m])
    right = two if b.constant or close else arranged(op, two, other, rows, [m], [k])
    right = op.real(right)
    shape = (second[-1], left.shape[1], left.shape[2])
    constant = a.constant or b.constant
    why = "its weights differ within an image" if constant else "both of its factors depend on the input"
    value = op.make("matmul", left, right, shape=shape, fields={"transposed": close}, notes={"real": why})
    layout = Layout((*its.dims[:-2], its.dims[-2], other.dims[-1]))
    return value, placed(layout, range(len(layout.dims)))


def _images(layout: Layout) -> list[tuple[int, int]]:
    """Where the axis over the images is: its dimension, and its place among the axes there."""
    return [(dim, i) for dim, axes in enumerate(layout.dims) for i, (_, s) in enumerate(axes) if s == IMAGE]


def _operand(
    op: Operation, x: Value, size: Sequence[int], batch: Sequence[int], beside: Layout | None = None
) -> tuple[Value, Layout]:
    """An operand of a product, repeated over ``batch``; a constant has the batch of the one beside it."""
    whole = (*batch, *size[-2:])
    if not x.constant:
        source, layout = shown(op, x, size)
        return source, layout.expanded(whole)
    assert beside is not None
    plain = in_memory(whole[-2:]).dims
    layout = placed(Layout((*beside.dims[:-2], *plain)), range(len(whole)))
    part = layout.of_image().size
    shape = (whole[-1], math.prod(part[:-2]), whole[-2])
    return op.stored_constant(x, layout, shape), layout
