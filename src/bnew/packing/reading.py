"""What a network computes, read by ``torch.export``, in the operators and steps of the packed file.

Every operator of the exported graph becomes a :class:`Value`. What depends on no image is evaluated at once.
Nothing is refused before it is known to be needed: what cancels out may be anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from bnew.errors import BnewError
from bnew.packing.tracing import Trace, traced

Array: TypeAlias = npt.NDArray[Any]
Numbers: TypeAlias = npt.NDArray[np.float64]  # one a channel, or one for all channels
Shape: TypeAlias = tuple[int, int, int]

# Images at once while the graph is read. No size in a network is likely to be the same by chance, so that
# what mixes images, or counts on their number, shows.
_BATCH = 7
# Their result is their argument.
_SAME = frozenset(["clone", "contiguous", "detach", "alias", "lift_fresh_copy", "dropout"])
# Constants whatever their first argument is.
_FILLED = frozenset(["ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full"])
# Their operands need not be of one shape.
_BROADCASTS = frozenset(["add", "sub", "rsub", "mul", "div", "neg", "expand"])


@dataclass(frozen=True)
class Place:
    """Where in the model something is computed: layer, operator and line of source ("" if not known)."""

    layer: str
    operator: str
    source: str

    @property
    def name(self) -> str:
        """The layer's, or the operator's where the model itself computes it."""
        return self.layer or self.operator

    def __str__(self) -> str:
        layer = f"in layer '{self.layer}'" if self.layer else "in the model itself"
        return f"{self.operator} {layer}" + (f", {self.source}" if self.source else "")


@dataclass(frozen=True, eq=False)
class Value:
    """A value in the network: what ``op`` makes of ``inputs``.

    ``op`` is an operator or a step of docs/format.md, with its ``weight`` and ``fields``, or one of

    * ``input``: the image;
    * ``constant``: ``tensor``, the same for every image;
    * ``bits``: the sign of its input, as bits;
    * ``choice``: ``numbers[0]`` where its input is at least 0, else ``numbers[1]``;
    * ``refused``: what has no place in the file; ``fields["why"]`` says why, or an input does.

    ``numbers`` are those of a step. ``terms`` says what the value is a sum of, with factors, if it is one.
    Values are numbered (``index``) in the order in which they can be computed.
    """

    op: str
    index: int
    place: Place
    shape: Shape  # zeros if it is no batch of images or vectors
    inputs: tuple[Value, ...] = ()
    numbers: Numbers = field(default_factory=lambda: np.empty(0))
    weight: Array | None = None
    tensor: Tensor = field(default_factory=lambda: torch.empty(0))
    fields: Mapping[str, Any] = field(default_factory=dict)
    terms: Mapping[Value, float] = field(default_factory=dict)

    @property
    def constant(self) -> bool:
        """Whether it is the same for every image."""
        return self.op == "constant"


Operand: TypeAlias = Value | float
# ATen's operator → what it is to the packed file; the arguments after the first are those of its schema.
Table: TypeAlias = Mapping[str, Callable[..., Value]]


class Refused(Exception):
    """An operator cannot be packed; the message says why."""


def read(model: nn.Module, example: Tensor, table: Table, zero: npt.ArrayLike = False) -> Value:
    """The model's output for images like ``example`` (N, C, H, W), or vectors (N, C).

    ``zero`` says, for all channels or each (C), whether an image often has exact zeros in it.

    Raises:
        BnewError: see :func:`bnew.packing.tracing.traced`; or the output does not depend on the input.
    """
    with traced(model, example, _BATCH) as trace:
        return _Reader(trace, table, zero).output()


class _Reader:
    """The exported graph, node by node."""

    def __init__(self, trace: Trace, table: Table, zero: npt.ArrayLike) -> None:
        self.trace = trace
        self.table = table
        self.zero = zero
        self.modules = dict(trace.model.named_modules())
        self.indices = count()
        self.values: dict[fx.Node, Value] = {}
        self.known: dict[Any, Any] = {}  # what was made before from the very same things

    def output(self) -> Value:
        """Read all nodes; the value of the output."""
        program = self.trace.program
        tensors: dict[str, Any] = {**program.state_dict, **program.constants}
        inputs = program.graph_signature.input_specs
        constants = {spec.arg.name: tensors[spec.target] for spec in inputs if spec.target is not None}
        for node in program.graph.nodes:
            if node.op == "output":
                break
            operation = Operation(self, node)
            if node.op != "placeholder":
                self.values[node] = operation.value()
            elif node.name in constants:
                self.values[node] = operation.make("constant", tensor=constants[node.name])
            else:
                self.values[node] = operation.make("input", zero=self.zero)
        output = self.values[self.trace.output]
        if output.constant:
            raise BnewError(f"the output of {type(self.trace.model).__name__} does not depend on its input")
        last = Operation(self, self.trace.output)
        if output.shape != last.shape:
            return last.make("refused", output, why="the output is an expanded value")
        return last.real(output)


class Operation:
    """One node of the exported graph while it is read; makes values at its place and of its shape."""

    def __init__(self, reader: _Reader, node: fx.Node) -> None:
        self.reader = reader
        self.node = node
        target = getattr(node.target, "overloadpacket", node.target)
        self.name = str(getattr(target, "__name__", target))  # without what tells its variants apart
        size = _size(node)
        self.rank = len(size)
        self.shape = _shape(size)
        first = node.args[0] if node.args else None
        self.input_rank = len(_size(first)) if isinstance(first, fx.Node) else 0
        calls = list(node.meta.get("nn_module_stack", {}).values())
        path = calls[-1][0] if calls else ""
        if path not in reader.modules:  # some releases of PyTorch write a module's second call as path@1
            path = re.sub(r"@\d+(?=\.|$)", "", path)
        self.module = reader.modules.get(path)  # none if the model is a graph that was exported before
        frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
        own = [f"{Path(file).name} line {line}" for file, line in frames if "torch" not in Path(file).parts]
        self.place = Place(path, self.name, own[-1] if own else "")

    def value(self) -> Value:
        """What the node gives; made once for each operator on the same values."""
        values: Any = self.reader.values
        arguments: Any = fx.node.map_arg(self.node.args, lambda node: values[node])
        options: Any = fx.node.map_arg(self.node.kwargs, lambda node: values[node])
        key = ("node", self.node.target, _hashable(arguments), _hashable(options))
        value: Value = self.once(key, lambda: self._value(arguments, options))
        return value

    def _value(self, arguments: Sequence[Any], options: Mapping[str, Any]) -> Value:
        terms = self._terms(arguments, **options)
        if len(terms) == 1:  # the rest has cancelled out, as in the straight-through trick out − y + y
            ((rest, factor),) = terms.items()
            if factor == 1 and rest.shape == self.shape and rest.tensor.shape == self._constant_size(rest):
                return rest
        inputs = [self.reader.values[node] for node in self.node.all_input_nodes]
        if self.name in _SAME:
            return inputs[0]
        if self.name in _FILLED or all(value.constant for value in inputs):
            value = self._evaluated(arguments, options)
        else:
            try:
                value = self._lowered(arguments, options, inputs)
            except Refused as refused:
                value = self.make("refused", *inputs, why=str(refused))
        return replace(value, terms=terms) if terms else value

    def _constant_size(self, value: Value) -> tuple[int, ...]:
        return _size(self.node) if value.constant else (0,)

    def _terms(self, arguments: Sequence[Any], alpha: float = 1, **_: Any) -> dict[Value, float]:
        """What a sum or a difference of values is the sum of, without what cancels; empty for all others."""
        if self.name not in ("add", "sub") or not all(isinstance(a, Value) for a in arguments):
            return {}
        terms: dict[Value, float] = {}
        for value, factor in zip(arguments, (1, alpha if self.name == "add" else -alpha), strict=True):
            for term, times in (value.terms or {value: 1}).items():
                terms[term] = terms.get(term, 0) + factor * times
        return {term: times for term, times in terms.items() if times}

    def _evaluated(self, arguments: Any, options: Any) -> Value:
        if self.name in _FILLED:  # ones_like(x) and the like, whatever x is
            arguments = (torch.empty(_size(self.node)), *arguments[1:])
        args, kwargs = fx.node.map_aggregate(
            (tuple(arguments), dict(options)), lambda a: a.tensor if isinstance(a, Value) else a
        )
        return self.make("constant", tensor=self.node.target(*args, **kwargs))  # type: ignore[operator]

    def _lowered(self, arguments: Sequence[Any], options: Mapping[str, Any], inputs: list[Value]) -> Value:
        if any(value.op == "refused" and "padding" not in value.fields for value in inputs):
            raise Refused("")  # that one says why
        if self.name not in self.reader.table:
            raise Refused("there is no such operator in a packed file")
        if not any(self.shape):
            raise Refused("its result is no batch of images or vectors, or their number has changed")
        for node in self.node.all_input_nodes:
            value = self.reader.values[node]
            expanded = not value.constant and _shape(_size(node)) != value.shape
            if expanded and self.name not in _BROADCASTS:
                raise Refused("an expanded value is packed only where it is added or multiplied")
        return self.reader.table[self.name](self, *arguments, **options)

    def make(
        self,
        op: str,
        *inputs: Value,
        numbers: Numbers | None = None,
        weight: Array | None = None,
        tensor: Tensor | None = None,
        shape: Shape | None = None,
        place: Place | None = None,
        **fields: Any,
    ) -> Value:
        """A new value, at this operation's place and of its shape if no others are given.

        Raises:
            Refused: ``numbers`` are not one a channel.
        """
        shape = shape or self.shape
        if numbers is not None and numbers.shape[-1] not in (1, shape[0]):
            raise Refused("its constant has another number of channels than its input")
        given = {"numbers": numbers, "weight": weight, "tensor": tensor}
        given = {name: array for name, array in given.items() if array is not None}
        index = next(self.reader.indices)
        return Value(op, index, place or self.place, shape, inputs, fields=fields, **given)  # type: ignore[arg-type]

    def once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made once for each key."""
        if key not in self.reader.known:
            self.reader.known[key] = make()
        return self.reader.known[key]

    def numbers(self, operand: Operand) -> Numbers | None:
        """A number or a constant as numbers per channel; None for other values.

        Raises:
            Refused: the constant differs from place to place, or from image to image.
        """
        if not isinstance(operand, Value):
            return np.array([float(operand)])
        if not operand.constant:
            return None
        tensor = operand.tensor
        numbers: Numbers = self.once(("numbers", operand, self.rank), lambda: _per_channel(tensor, self.rank))
        return numbers

    def real(self, value: Value) -> Value:
        """The value as a real one: a choice becomes sign, scale and shift."""
        if value.op != "choice":
            return value

        def make() -> Value:
            high, low = value.numbers
            half, middle = (high - low) / 2, (high + low) / 2
            new = partial(self.make, shape=value.shape, place=value.place)
            result = new("sign", *value.inputs, step={})
            result = new("scale", result, numbers=half) if np.any(half != 1) else result
            return new("shift", result, numbers=middle) if np.any(middle != 0) else result

        result: Value = self.once(("real", value), make)
        return result

    def bits(self, value: Value) -> tuple[Value, float] | None:
        """``(b, a)`` with value = a · b where b is bits; None if it is not so."""
        factor = 1.0
        if value.op == "choice":
            high, low = value.numbers
            factor, source = float(high[0]), value.inputs[0]
            if factor == 0 or np.any(high != factor) or np.any(low != -factor):
                return None
        elif _is_sign(value):
            source = value.inputs[0] if value.op == "sign" else value
        else:
            return None
        make = partial(self.make, "bits", source, shape=source.shape, place=value.place)
        return self.once(("bits", source), make), factor


def _is_sign(value: Value) -> bool:
    """Whether every place of a real value is 1 or −1."""
    keeps = value.op in ("max_pool", "concat", "flatten")  # the padding of max_pool never wins
    return value.op == "sign" or (keeps and all(map(_is_sign, value.inputs)))


def _size(node: fx.Node) -> tuple[int, ...]:
    """The size of what the node gives, of its first result if there are several."""
    result = node.meta.get("val")
    result = result[0] if isinstance(result, tuple | list) and result else result
    return tuple(result.shape) if isinstance(result, Tensor) else ()


def _shape(size: Sequence[int]) -> Shape:
    """(C, H, W) of a batch of that size, a vector being (C, 1, 1); zeros if it is no batch of images."""
    if not 2 <= len(size) <= 4 or size[0] != _BATCH:
        return 0, 0, 0
    channels, height, width = (*size[1:], 1, 1)[:3]
    return channels, height, width


def _hashable(arguments: Any) -> Any:
    if isinstance(arguments, Mapping):
        return tuple((name, _hashable(value)) for name, value in arguments.items())
    return tuple(map(_hashable, arguments)) if isinstance(arguments, list | tuple) else arguments


def _per_channel(tensor: Tensor, rank: int) -> Numbers:
    """A tensor that is joined with (N, C, ...) values of that rank, as its numbers per channel."""
    if tensor.ndim > rank:
        raise Refused("its constant has more dimensions than its input")
    wide = tensor.detach().double().cpu().reshape((1,) * (rank - tensor.ndim) + tensor.shape)
    for dim in (d for d in range(rank) if d != 1):
        first = wide.narrow(dim, 0, 1)
        if not torch.equal(wide, first.expand_as(wide)):
            raise Refused("its constant differs from place to place, not only from channel to channel")
        wide = first
    return np.asarray(wide.reshape(-1).numpy())


def reachable(output: Value) -> list[Value]:
    """Every value that ``output`` needs, in the order in which they can be computed.

    Raises:
        BnewError: one of them is refused; says which, where and why.
    """
    order = ancestors(output)
    for value in order:
        if value.op == "refused" and value.fields["why"]:
            raise BnewError(f"{value.place} cannot be packed: {value.fields['why']}")
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
