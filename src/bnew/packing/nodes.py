"""The sizes of what the nodes of an exported graph compute."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from bnew.packing.values import Shape

# Batch size while the graph is read. Hardly any other size in a network is 11, so the shapes show an operator
# that mixes images or depends on their number.
BATCH = 11


def size_of(node: fx.Node) -> tuple[int, ...]:
    """The size of the node's result, or of its first result if there are several; () if it is not fixed."""
    result = node.meta.get("val")
    result = result[0] if isinstance(result, tuple | list) and result else result
    return tuple(result.shape) if isinstance(result, Tensor) and has_fixed_size(result) else ()


def has_fixed_size(tensor: Tensor) -> bool:
    """Whether the size of a tensor of the graph does not depend on numbers."""
    return all(isinstance(length, int) for length in tensor.shape)


def shape_of(size: Sequence[int]) -> Shape:
    """(C, H, W) of a batch of that size; (C, 1, 1) of vectors; zeros if it is no batch of either."""
    if not 2 <= len(size) <= 4 or size[0] != BATCH:
        return 0, 0, 0
    channels, height, width = (*size[1:], 1, 1)[:3]
    return channels, height, width
