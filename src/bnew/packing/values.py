"""Values of a network's graph in the operators and steps of the packed file, see :mod:`vocabulary`."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
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

    def beside(self, operator: str) -> Place:
        """The place of an operator that another one needs before it: the layer's own name stays free."""
        return replace(self, layer=f"{self.layer}.{operator}" if self.layer else operator)

    def __str__(self) -> str:
        layer = f"in layer '{self.layer}'" if self.layer else "in the model itself"
        return f"{self.operator} {layer}" + (f", {self.source}" if self.source else "")


@dataclass(frozen=True, eq=False)
class Value:
    """A value in the network: the result of ``op`` on ``inputs``.

    ``op`` is an operator or a step of docs/format.md, or one of

    * ``input``: an input of the model, ``argument`` is its name;
    * ``evaluated``: ``tensor``, the same for every image, which no operator needs to compute;
    * ``view``: its input as the tensor of ``notes["layout"]``, see :mod:`bnew.packing.views`;
    * ``bits``: the sign of its input, as bits;
    * ``padding``: its input with a border, as the operator ``pad``, which a convolution may take over;
    * ``choice``: ``numbers[0]`` where its input is at least 0, else ``numbers[1]``;
    * ``refused``: a value that the file cannot express. ``notes["why"]`` says why; it is empty if a refused
      input says it.

    In the file, an operator has ``fields`` and ``tensors``, by name. A step has ``numbers``, a second input,
    or an ``argument``. The other attributes serve the reading: ``terms`` are the terms of a sum with their
    factors, and ``notes`` are facts for later operators: ``notes["call"]`` is the call that it comes from.
    ``index`` numbers the values in an order in which they can be computed.
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
        return self.op == "evaluated"


Operand: TypeAlias = Value | float
# (operation, *arguments in the order of the ATen operator's schema) → what the operator becomes.
Lowering: TypeAlias = Callable[..., Value]
# The same; None if the operator does not end the formula.
Formula: TypeAlias = Callable[..., Value | None]


class Refused(Exception):
    """An operator cannot be packed; the message says why."""


def reachable(*outputs: Value) -> list[Value]:
    """Every value that ``outputs`` need, in the order in which they can be computed.

    Raises:
        BnewError: one of them is refused; the message says which, where and why.
    """
    order = ancestors(*outputs)
    refused = [value for value in order if value.op == "refused" and value.notes["why"]]
    if refused:
        value = refused[0]
        error = BnewError(f"{value.place} cannot be packed: {value.notes['why']}")
        raise error from value.notes.get("error")
    return order


def ancestors(*values: Value, known: Container[Value] = ()) -> list[Value]:
    """The values and all that they need, except for constants and ``known``, in the order of computation."""
    found: set[Value] = set()
    todo = [*values]
    while todo:
        value = todo.pop()
        if value not in found and value not in known:
            found.add(value)
            todo += [needed for needed in value.inputs if not needed.constant]
    return sorted(found, key=lambda value: value.index)
