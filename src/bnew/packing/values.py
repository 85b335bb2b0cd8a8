"""Values of a network's graph in the operators and steps of the packed file, see :mod:`vocabulary`."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bnew.errors import BnewError

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = npt.NDArray[Any]
Numbers: TypeAlias = npt.NDArray[np.float64]  # one per channel, or one for all channels
Shape: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Place:
    """Where in the model something is computed: layer, operator and line of source ("" if not known)."""

    layer: str
    operator: str
    source: str

    @property
    def name(self) -> str:
        """The layer's name, or the operator's if the model itself computes it."""
        return self.layer or self.operator

    def __str__(self) -> str:
        layer = f"in layer '{self.layer}'" if self.layer else "in the model itself"
        return f"{self.operator} {layer}" + (f", {self.source}" if self.source else "")


@dataclass(frozen=True, eq=False)
class Value:
    """A value in the network: the result of ``op`` on ``inputs``.

    ``op`` is an operator or a step of docs/format.md, or one of

    * ``input``: the image;
    * ``constant``: ``tensor``, the same for every image;
    * ``bits``: the sign of its input, as bits;
    * ``choice``: ``numbers[0]`` where its input is at least 0, else ``numbers[1]``;
    * ``refused``: a value that the file cannot express. ``notes["why"]`` says why; it is empty if a refused
      input says it. ``notes["call"]`` is the call that was refused. Without it, the value waits for an
      operator that takes it over, as a convolution takes over padding.

    In the file, an operator has ``fields`` and ``tensors``, by name. A step has ``numbers``, a second input,
    or an ``argument``. The other attributes serve the reading: ``terms`` are the terms of a sum with their
    factors, and ``notes`` are facts for later operators. ``index`` numbers the values in an order in which
    they can be computed.
    """

    op: str
    index: int
    place: Place
    shape: Shape  # zeros if it is no batch of images or vectors
    inputs: tuple[Value, ...] = ()
    numbers: Numbers = field(default_factory=lambda: np.empty(0))
    argument: Any = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Array] = field(default_factory=dict)
    tensor: Tensor | None = None
    terms: Mapping[Value, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def constant(self) -> bool:
        """Whether it is the same for every image."""
        return self.op == "constant"


Operand: TypeAlias = Value | float
# (operation, *arguments in the order of the ATen operator's schema) → what the operator becomes.
Lowering: TypeAlias = Callable[..., Value]
# The same; None if the operator does not end the formula.
Formula: TypeAlias = Callable[..., Value | None]


class Refused(Exception):
    """An operator cannot be packed; the message says why."""


def reachable(output: Value) -> list[Value]:
    """Every value that ``output`` needs, in the order in which they can be computed.

    Raises:
        BnewError: one of them is refused; the message says which, where and why.
    """
    order = ancestors(output)
    refused = [value for value in order if value.op == "refused" and value.notes["why"]]
    if refused:
        # A refused call explains more than a value that waits for its next operator.
        value = next((each for each in refused if "call" in each.notes), refused[0])
        raise BnewError(f"{value.place} cannot be packed: {value.notes['why']}")
    return order


def ancestors(value: Value, known: Container[Value] = ()) -> list[Value]:
    """The value and all that it needs, except for constants and ``known``, in the order of computation."""
    found: set[Value] = set()
    todo = [value]
    while todo:
        value = todo.pop()
        if value not in found and value not in known:
            found.add(value)
            todo += [needed for needed in value.inputs if not needed.constant]
    return sorted(found, key=lambda value: value.index)
