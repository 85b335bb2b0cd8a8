"""Layouts of tensors: every change of one shows the same numbers as PyTorch's change of the tensor."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, arange

from bnew.packing.layouts import Layout, in_memory, loops

SIZES = st.lists(st.sampled_from([1, 2, 3, 4, 6, 8]), min_size=1, max_size=4)


def factors(total: int, data: st.DataObject) -> list[int]:
    """Some sizes with the product ``total``."""
    sizes: list[int] = []
    while total > 1 and len(sizes) < 4:
        part = data.draw(st.sampled_from([n for n in range(1, total + 1) if total % n == 0]))
        sizes.append(part)
        total //= part
    return [*sizes, total]


def changed(layout: Layout, tensor: Tensor, data: st.DataObject) -> tuple[Layout, Tensor]:
    """The layout and the tensor after one change."""
    rank = tensor.dim()
    dim = data.draw(st.integers(0, rank - 1))
    match data.draw(st.sampled_from(["permute", "reshape", "slice", "expand", "select"])):
        case "permute":
            order = data.draw(st.permutations(range(rank)))
            return layout.permuted(order), tensor.permute(order)
        case "reshape":
            size = factors(tensor.numel(), data)
            new = layout.reshaped(size)
            return (layout, tensor) if new is None else (new, tensor.reshape(size))
        case "slice":
            start = data.draw(st.integers(0, tensor.size(dim) - 1))
            step = data.draw(st.integers(1, 3))
            count = data.draw(st.integers(1, (tensor.size(dim) - 1 - start) // step + 1))
            new = layout.sliced(dim, start, step, count)
            part = tensor.narrow(dim, start, (count - 1) * step + 1)
            index = [slice(None)] * dim + [slice(None, None, step)]
            return (layout, tensor) if new is None else (new, part[tuple(index)])
        case "expand":
            size = [n if n > 1 else data.draw(st.sampled_from([1, 3])) for n in tensor.shape]
            return layout.expanded(size), tensor.expand(size)
        case _:
            alone = [d for d in range(rank) if tensor.size(d) == 1]
            return (layout.without(alone[0]), tensor.squeeze(alone[0])) if alone else (layout, tensor)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_layout_follows_the_tensor(data: st.DataObject) -> None:
    size = data.draw(SIZES)
    layout, tensor = in_memory(size), arange(math.prod(size)).reshape(size)
    for _ in range(data.draw(st.integers(1, 6))):
        if tensor.dim() == 0:
            break
        layout, tensor = changed(layout, tensor, data)
    assert layout.size == tuple(tensor.shape)
    assert np.array_equal(layout.places(), tensor.numpy())
    complete = sorted(layout.places().reshape(-1)) == list(range(math.prod(size)))
    assert layout.fills(math.prod(size)) == complete


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_loops_are_over_the_same_numbers(data: st.DataObject) -> None:
    size = data.draw(SIZES)
    one = in_memory(size)
    tensor = arange(math.prod(size)).reshape(size)
    order = data.draw(st.permutations(range(len(size))))
    other = in_memory([size[dim] for dim in order]).permuted(np.argsort(order).tolist())
    for _ in range(2):
        new = factors(tensor.numel(), data)
        if (a := one.reshaped(new)) is not None and (b := other.reshaped(new)) is not None:
            one, other = a, b
    found = loops(one, other)
    if found is not None:
        first = Layout(tuple(((n, s),) for n, s, _ in found)).places().reshape(-1)
        second = Layout(tuple(((n, t),) for n, _, t in found)).places().reshape(-1)
        pairs = set(zip(one.places().reshape(-1).tolist(), other.places().reshape(-1).tolist(), strict=True))
        assert set(zip(first.tolist(), second.tolist(), strict=True)) == pairs


def test_what_axes_do_not_allow() -> None:
    turned = in_memory([3, 4]).permuted([1, 0])
    assert turned.reshaped([12]) is not None  # nested axes
    assert turned.reshaped([6, 2]) is None  # 6 is not made of 4 and 3
    assert turned.reshaped([12]).sliced(0, 1, 1, 5) is None  # type: ignore[union-attr]
