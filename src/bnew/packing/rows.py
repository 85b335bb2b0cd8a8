"""What the vocabulary's rows hold, and the shapes of operators' results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

from bnew.packing.pieces import Rule
from bnew.packing.values import Formula, Lowering, Shape

Node: TypeAlias = Mapping[str, Any]  # of the file's graph


class Takes(Enum):
    """The input of an operator."""

    REAL = "a real value"
    BITS = "bits"
    LIST = "a list of real values"
    NOTHING = "nothing"


class Argument(Enum):
    """The argument of a step in the file."""

    NUMBERS = "the name of a tensor of numbers per channel"
    VALUE = "the name of a real value"
    SETTING = "two bounds, or nothing"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The properties that operators and steps share. The defaults are the cautious choice."""

    aten: Mapping[str, Lowering] = field(default_factory=dict)
    """ATen operators that become this one, and the functions that lower them."""
    formulas: Mapping[str, Formula] = field(default_factory=dict)
    """ATen operators that may end a formula for this one; tried before :attr:`aten`."""
    held: Rule | None = None
    """Its effect on exact numbers. None: any number may result, so a ``torch.sign`` after it is refused."""


@dataclass(frozen=True, kw_only=True)
class Operator(Row):
    """The operator of a node."""

    takes: Takes = Takes.REAL
    fields: Sequence[str] = ()
    """Fields of the node, without those that name tensors."""
    optional: Sequence[str] = ()
    """Fields that may be left out."""
    tensors: Sequence[str] = ()
    """Fields that name tensors."""
    shape: Callable[[Node, Sequence[Shape]], Shape] = lambda node, inputs: inputs[0]
    """(node, shapes of its inputs) → (C, H, W) of the result."""
    moves: bool = False
    """Whether every number of the result is a number of the input, so that signs stay signs."""


@dataclass(frozen=True, kw_only=True)
class Step(Row):
    """A pointwise operation, which is stored in the node before it."""

    argument: Argument


# ------------------------------------------------- shapes, from the node and the shapes of its inputs


def windows(
    size: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int]
) -> list[int]:
    """How many windows there are along each axis of images of this size, whose borders count."""
    axes = zip(size, kernel, dilation, stride, strict=True)
    return [(n - d * (k - 1) - 1) // s + 1 for n, k, d, s in axes]


def convolved(node: Node, inputs: Sequence[Shape]) -> Shape:
    """The shape after a window that slides over the image."""
    _, height, width = inputs[0]
    top, left, bottom, right = node["padding"]
    whole = height + top + bottom, width + left + right
    rows, columns = windows(whole, node["kernel"], node["dilation"], node["stride"])
    return node["channels"][1], rows, columns


def sized(node: Node, inputs: Sequence[Shape]) -> Shape:
    """The shape with the node's own height and width."""
    height, width = node["size"]
    return inputs[0][0], height, width


def joined(node: Node, inputs: Sequence[Shape]) -> Shape:
    """The channels of all inputs."""
    return sum(shape[0] for shape in inputs), *inputs[0][1:]


def below(node: Node, inputs: Sequence[Shape]) -> Shape:
    """The rows of all inputs."""
    channels, _, width = inputs[0]
    return channels, sum(shape[1] for shape in inputs), width


def beside(node: Node, inputs: Sequence[Shape]) -> Shape:
    """The columns of all inputs."""
    channels, height, _ = inputs[0]
    return channels, height, sum(shape[2] for shape in inputs)


def padded(node: Node, inputs: Sequence[Shape]) -> Shape:
    """The shape with a border."""
    channels, height, width = inputs[0]
    top, left, bottom, right = node["padding"]
    return channels, top + height + bottom, left + width + right


def given(node: Node, inputs: Sequence[Shape]) -> Shape:
    """The node's own shape."""
    channels, height, width = node["shape"]
    return channels, height, width


def multiplied(node: Node, inputs: Sequence[Shape]) -> Shape:
    """The shape of a product of matrices."""
    (_, height, width), (channels, _, columns) = inputs
    return columns if node["transposed"] else channels, height, width


def best(node: Node, inputs: Sequence[Shape]) -> Shape:
    """One number for each place."""
    return 1, *inputs[0][1:]


def flat(node: Node, inputs: Sequence[Shape]) -> Shape:
    """A vector of all numbers."""
    return math.prod(inputs[0]), 1, 1
