"""What a network computes, read by ``torch.export``, in the operators and steps of the packed file.

Every operator of the exported graph becomes a :class:`Value`. What depends on no image is evaluated at once.
Nothing is refused before it is known to be needed: what cancels out may be anything.
"""

from __future__ import annotations

import logging
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from bnew.errors import BnewError
from bnew.layers import BinaryConv2d, BinaryLinear

_log = logging.getLogger("bnew")

Numbers: TypeAlias = npt.NDArray[np.float64]  # one a channel, or one for all channels
Shape: TypeAlias = tuple[int, int, int]

# Images at once while the graph is read. No size in a network is likely to be the same by chance, so that
# what mixes images, or counts on their number, shows.
_BATCH = 7


@dataclass(frozen=True)
class Place:
    """Where in the model something is computed: layer, operator and line of source ("" if not known)."""

    layer: str
    operator: str
    source: str

    def __str__(self) -> str:
        layer = f"layer '{self.layer}'" if self.layer else "the model itself"
        return f"{layer}, {self.source}" if self.source else layer


@dataclass(frozen=True, eq=False)
class Value:
    """A value in the network: what ``op`` makes of ``inputs``.

    ``op`` is an operator or a step of docs/format.md with its ``fields``, or one of

    * ``input``: the image;
    * ``constant``: ``tensor``, the same for every image;
    * ``bits``: the sign of its input, as bits;
    * ``choice``: ``numbers[0]`` where its input is at least 0, else ``numbers[1]``;
    * ``refused``: what has no place in the file; ``fields["why"]`` says why.

    ``numbers`` are those of a step, float64. ``terms`` says what the value is a sum of, with factors, if it
    is one. ``index`` numbers values in the order in which they can be computed.
    """

    op: str
    index: int
    place: Place
    shape: Shape | None
    inputs: tuple[Value, ...] = ()
    numbers: Numbers | None = None
    weight: npt.NDArray[Any] | None = None
    tensor: Tensor | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    terms: Mapping[Value, float] = field(default_factory=dict)

    @property
    def constant(self) -> bool:
        """Whether it is the same for every image."""
        return self.op == "constant"


Operand: TypeAlias = Value | float


class _Refused(Exception):
    """An operator cannot be packed; the message says why."""


def read(model: nn.Module, example: Tensor) -> Value:
    """The network's output for a batch like ``example`` (N, C, H, W) or (N, C), as a :class:`Value`.

    The model is left as it was, on its device and in its training modes.

    Raises:
        BnewError: the model does not take the example, has several outputs, or cannot be exported.
    """
    with _evaluating(model), torch.no_grad():
        try:
            model(example)
        except Exception as error:  # whatever a model of a user's own raises
            raise BnewError(
                f"{type(model).__name__} does not take an example of shape {tuple(example.shape)}: {error}"
            ) from error
        try:
            batch = example[:1].expand(_BATCH, *example.shape[1:]).contiguous()
            program = torch.export.export(model, (batch,)).run_decompositions({})
        except Exception as error:
            why = str(error).strip().split("\n", 1)[0]
            raise BnewError(
                f"{type(model).__name__} cannot be read by torch.export for {_BATCH} images at once, which "
                f"packing needs (any number of images, no branches on their values): {why}"
            ) from error
        return _Reader(model, program).output()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


class _Reader:
    """The exported graph, node by node."""

    def __init__(self, model: nn.Module, program: torch.export.ExportedProgram) -> None:
        self.model = model
        self.program = program
        self.counter = count()
        self.values: dict[fx.Node, Value] = {}
        self.known: dict[Any, Any] = {}  # what was made before from the very same things

    def output(self) -> Value:
        """Read all nodes; the value of the output."""
        tensors = {**self.program.state_dict, **self.program.constants}
        constants = {
            spec.arg.name: tensors[spec.target] for spec in self.program.graph_signature.input_specs
            if spec.target is not None
        }  # fmt: skip
        outputs: Sequence[Any] = ()
        for node in self.program.graph.nodes:
            operation = Operation(self, node)
            if node.op == "placeholder":
                constant = constants.get(node.name)
                kind = "input" if constant is None else "constant"
                self.values[node] = operation.make(kind, tensor=constant)
            elif node.op == "output":
                outputs = node.args[0]
            else:
                self.values[node] = operation.value()
        if len(outputs) != 1 or not isinstance(outputs[0], fx.Node):
            raise BnewError(
                f"{type(self.model).__name__} has {len(outputs)} outputs: packing needs one tensor"
            )
        output = self.values[outputs[0]]
        if output.constant:
            raise BnewError(f"the output of {type(self.model).__name__} does not depend on its input")
        return Operation(self, outputs[0]).real(output)


class Operation:
    """One node of the exported graph while it is read: makes values at its place and of its shape."""

    def __init__(self, reader: _Reader, node: fx.Node) -> None:
        self.reader = reader
        self.node = node
        result = node.meta.get("val")
        result = result[0] if isinstance(result, tuple | list) and result else result
        self.size: tuple[int, ...] = tuple(result.shape) if isinstance(result, Tensor) else ()
        self.rank = len(self.size)
        self.shape = _shape(self.size)
        self.module, self.place = self._where()

    def _where(self) -> tuple[nn.Module, Place]:
        stack = list(self.node.meta.get("nn_module_stack", {}).values())
        # A second call of the same module is path@1.
        path = re.sub(r"@\d+", "", stack[-1][0]) if stack else ""
        module = self.reader.model.get_submodule(path)
        frames = re.findall(r'File "([^"]+)", line (\d+)', self.node.meta.get("stack_trace") or "")
        own = [(file, line) for file, line in frames if "/torch/" not in file.replace("\\", "/")]
        source = f"{Path(own[-1][0]).name} line {own[-1][1]}" if own else ""
        return module, Place(path, self.name, source)

    @property
    def name(self) -> str:
        """The operator's, without what tells its variants apart."""
        target = self.node.target
        packet = getattr(target, "overloadpacket", target)
        return str(getattr(packet, "__name__", packet))

    def value(self) -> Value:
        """What the node gives; made once for each operator on the same values."""
        arguments, options = self._map(self.node.args), self._map(self.node.kwargs)
        key = ("node", self.node.target, _hashable(arguments), _hashable(options))
        if key not in self.reader.known:
            self.reader.known[key] = self._value(arguments, options)
        value = self.reader.known[key]
        assert isinstance(value, Value)
        return value

    def _map(self, arguments: Any) -> Any:
        values: Any = self.reader.values
        return fx.node.map_arg(arguments, lambda node: values[node])

    def _value(self, arguments: Sequence[Any], options: Mapping[str, Any]) -> Value:
        inputs = _values(arguments)
        terms = _terms(self.name, arguments, options)
        if len(terms) == 1:  # the rest has cancelled out, as in the straight-through trick out − y + y
            ((rest, factor),) = terms.items()
            if factor == 1 and (rest.constant or rest.shape == self.shape):
                return rest
        if self.name in _FILLED or all(value.constant for value in inputs):
            value = self._evaluated(arguments, options)
        else:
            try:
                value = self._lowered(arguments, options, inputs)
            except _Refused as refused:
                value = self.make("refused", *inputs, why=str(refused))
        return replace(value, terms=terms) if terms else value

    def _lowered(self, arguments: Any, options: Any, inputs: Sequence[Value]) -> Value:
        if any(value.op == "refused" and "padding" not in value.fields for value in inputs):
            raise _Refused("")  # that one says why
        if self.name not in OPERATORS:
            raise _Refused("there is no such operator in a packed file")
        if self.shape is None:
            raise _Refused("its result is no batch of images or vectors, or their number has changed")
        if self.name not in _BROADCASTS:
            self._check_expanded()
        return OPERATORS[self.name](self, *arguments, **options)

    def _check_expanded(self) -> None:
        for node in self.node.all_input_nodes:
            value, result = self.reader.values[node], node.meta.get("val")
            if (
                not value.constant
                and isinstance(result, Tensor)
                and _shape(tuple(result.shape)) != value.shape
            ):
                raise _Refused("an expanded value is packed only where it is added or multiplied")

    def _evaluated(self, arguments: Any, options: Any) -> Value:
        if self.name in _FILLED:  # ones_like(x) and the like, whatever x is
            arguments = (torch.empty(self.size), *arguments[1:])
        tensors = fx.node.map_aggregate(
            (tuple(arguments), dict(options)), lambda a: a.tensor if isinstance(a, Value) else a
        )
        result = self.node.target(*tensors[0], **tensors[1])  # type: ignore[operator]
        return self.make("constant", tensor=result)

    def make(
        self,
        op: str,
        *inputs: Value,
        numbers: Numbers | None = None,
        weight: npt.NDArray[Any] | None = None,
        tensor: Tensor | None = None,
        shape: Shape | None = None,
        **fields: Any,
    ) -> Value:
        """A new value at this place, of this operation's shape if no other is given.

        Raises:
            _Refused: ``numbers`` are not one a channel.
        """
        shape = shape or self.shape
        if numbers is not None and (shape is None or numbers.shape[-1] not in (1, shape[0])):
            raise _Refused("its constant has another number of channels than its input")
        index = next(self.reader.counter)
        return Value(op, index, self.place, shape, inputs, numbers, weight, tensor, fields)

    def once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made once for each key."""
        if key not in self.reader.known:
            self.reader.known[key] = make()
        return self.reader.known[key]

    def numbers(self, operand: Operand) -> Numbers | None:
        """A number or a constant as numbers per channel; None for other values.

        Raises:
            _Refused: the constant differs from place to place, or from image to image.
        """
        if not isinstance(operand, Value):
            return np.array([float(operand)])
        if operand.tensor is None:
            return None
        tensor = operand.tensor
        key = ("numbers", operand, self.rank)
        numbers: Numbers = self.once(key, lambda: _per_channel(tensor, self.rank))
        return numbers

    def real(self, value: Value) -> Value:
        """The value as a real one: a choice becomes sign, scale and shift."""
        if value.op != "choice":
            return value
        assert value.numbers is not None

        def make() -> Value:
            high, low = value.numbers if value.numbers is not None else ()
            half, middle = (high - low) / 2, (high + low) / 2
            result = self.make("sign", *value.inputs, shape=value.shape)
            if np.any(half != 1):
                result = self.make("scale", result, numbers=half, shape=value.shape)
            if np.any(middle != 0):
                result = self.make("shift", result, numbers=middle, shape=value.shape)
            return result

        result: Value = self.once(("real", value), make)
        return result

    def bits(self, value: Value) -> tuple[Value, float] | None:
        """``(b, a)`` with value = a · b where b is of ±1; None if it is not so."""
        factor = 1.0
        if value.op == "choice":
            high, low = value.numbers if value.numbers is not None else ()
            if np.any(high != -low) or np.any(high != high[0]) or high[0] == 0:
                return None
            factor, source = float(high[0]), value.inputs[0]
        elif _is_sign(value):
            source = value.inputs[0] if value.op == "sign" else value
        else:
            return None
        return self.once(("bits", source), lambda: self.make("bits", source, shape=source.shape)), factor


def _is_sign(value: Value) -> bool:
    """Whether every place of a real value is 1 or −1."""
    keeps = value.op in ("max_pool", "concat", "flatten")  # the padding of max_pool never wins
    return value.op == "sign" or (keeps and all(map(_is_sign, value.inputs)))


def _shape(size: Sequence[int]) -> Shape | None:
    """(C, H, W) of a batch of that size, a vector being (C, 1, 1); None if it is no batch of images."""
    if not 2 <= len(size) <= 4 or size[0] != _BATCH:
        return None
    channels, height, width = (*size[1:], 1, 1)[:3]
    return channels, height, width


def _values(arguments: Any) -> list[Value]:
    found: list[Value] = []
    fx.node.map_aggregate(arguments, lambda a: found.append(a) if isinstance(a, Value) else None)
    return found


def _hashable(arguments: Any) -> Any:
    if isinstance(arguments, Mapping):
        return tuple((name, _hashable(value)) for name, value in arguments.items())
    return tuple(map(_hashable, arguments)) if isinstance(arguments, list | tuple) else arguments


def _terms(name: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> dict[Value, float]:
    """What a sum or a difference of values is the sum of, without what cancels out; empty for all others."""
    if name not in ("add", "sub") or not all(isinstance(value, Value) for value in arguments):
        return {}
    alpha = options.get("alpha", 1)
    terms: dict[Value, float] = {}
    for value, factor in zip(arguments, (1, alpha if name == "add" else -alpha), strict=True):
        for term, times in (value.terms or {value: 1}).items():
            terms[term] = terms.get(term, 0) + factor * times
    return {term: times for term, times in terms.items() if times}


def _per_channel(tensor: Tensor, rank: int) -> Numbers:
    """A tensor that is added to (N, C, ...) values of that rank, as its numbers per channel."""
    if tensor.ndim > rank:
        raise _Refused("its constant has more dimensions than its input")
    wide = tensor.detach().double().cpu().reshape((1,) * (rank - tensor.ndim) + tensor.shape)
    for dim in (d for d in range(rank) if d != 1):
        first = wide.narrow(dim, 0, 1)
        if not torch.equal(wide, first.expand_as(wide)):
            raise _Refused("its constant differs from place to place, not only from channel to channel")
        wide = first
    return np.asarray(wide.reshape(-1).numpy())


# ------------------------------------------------------------------------------------------- operators

OPERATORS: dict[str, Callable[..., Value]] = {}
# Their operands need not be of one shape.
_BROADCASTS = frozenset(["add", "sub", "rsub", "mul", "expand"])
# Constants whatever their argument is.
_FILLED = frozenset(["ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full"])


def _lowers(*names: str) -> Callable[[Callable[..., Value]], Callable[..., Value]]:
    """Registers what to make of ATen's operators ``names``; the arguments are those of their schema."""

    def register(function: Callable[..., Value]) -> Callable[..., Value]:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


@_lowers("clone", "contiguous", "detach", "alias", "lift_fresh_copy", "dropout")
def _same(op: Operation, x: Value, *_: Any, **__: Any) -> Value:
    return x


@_lowers("getitem")
def _getitem(op: Operation, x: Value, index: int) -> Value:
    if index != 0:
        raise _Refused("only the first result of the operator before it can be packed")
    return x


@_lowers("_to_copy", "to", "type_as")
def _to(op: Operation, x: Value, *_: Any, **__: Any) -> Value:
    dtype = op.node.meta["val"].dtype
    signed = dtype.is_floating_point or dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
    if not (dtype.is_floating_point or (x.op == "choice" and signed)):
        raise _Refused(f"its result is of {dtype}")
    return x


# Arithmetic


@_lowers("add")
def _add(op: Operation, a: Operand, b: Operand, alpha: float = 1) -> Value:
    left, right = op.numbers(a), op.numbers(b)
    if right is not None:
        return _shifted(op, a, right if alpha == 1 else alpha * right)
    if alpha != 1:
        b = _scaled(op, b, np.array([float(alpha)]))
    if left is not None:
        return _shifted(op, b, left)
    return _combined(op, "add", a, b, operator.add)


@_lowers("sub")
def _sub(op: Operation, a: Operand, b: Operand, alpha: float = 1) -> Value:
    return _add(op, a, b, -alpha)


@_lowers("rsub")
def _rsub(op: Operation, a: Operand, b: Operand, alpha: float = 1) -> Value:
    return _add(op, b, a, -alpha)


@_lowers("mul")
def _mul(op: Operation, a: Operand, b: Operand) -> Value:
    left, right = op.numbers(a), op.numbers(b)
    if right is not None:
        return _scaled(op, a, right)
    if left is not None:
        return _scaled(op, b, left)
    return _combined(op, "multiply", a, b, operator.mul)


@_lowers("div")
def _div(op: Operation, a: Operand, b: Operand, rounding_mode: str | None = None) -> Value:
    numbers = op.numbers(b)
    if numbers is None or rounding_mode is not None:
        raise _Refused("only division by a constant can be packed")
    return _scaled(op, a, 1 / numbers)


@_lowers("neg")
def _neg(op: Operation, x: Value) -> Value:
    return _scaled(op, x, np.array([-1.0]))


def _shifted(op: Operation, x: Operand, numbers: Numbers) -> Value:
    assert isinstance(x, Value)
    if x.op == "choice" and x.numbers is not None:
        return op.make("choice", *x.inputs, numbers=x.numbers + numbers, shape=x.shape)
    return op.make("shift", x, numbers=numbers, shape=x.shape)


def _scaled(op: Operation, x: Operand, numbers: Numbers) -> Value:
    assert isinstance(x, Value)
    if x.op == "choice" and x.numbers is not None:
        return op.make("choice", *x.inputs, numbers=x.numbers * numbers, shape=x.shape)
    # The magnitude m of binary weights costs no numbers of its own where a scale follows:
    # (m v) s = v (m s), and (m v + b) s = (v + b / m) (m s).
    if "magnitude" in x.fields and x.numbers is not None:
        return op.make("scale", *x.inputs, numbers=x.numbers * numbers, shape=x.shape)
    before = x.inputs[0] if x.op == "shift" else x
    if "magnitude" in before.fields and before.numbers is not None and x.numbers is not None:
        shifted = op.make("shift", *before.inputs, numbers=x.numbers / before.numbers, shape=x.shape)
        return op.make("scale", shifted, numbers=before.numbers * numbers, shape=x.shape)
    return op.make("scale", x, numbers=numbers, shape=x.shape)


def _combined(op: Operation, step: str, a: Operand, b: Operand, join: Callable[[Any, Any], Any]) -> Value:
    assert isinstance(a, Value)
    assert isinstance(b, Value)
    if a.op == b.op == "choice" and a.inputs == b.inputs:
        return op.make("choice", *a.inputs, numbers=join(a.numbers, b.numbers))
    a, b = op.real(a), op.real(b)
    # A value that is laid side by side with itself is the value itself to the file: channels modulo.
    if _repeats(a) and not _repeats(b):
        a, b = b, a
    b = b.inputs[0] if _repeats(b) else b
    assert op.shape is not None
    if op.shape not in (a.shape, b.shape) or not all(_fits(v.shape, op.shape) for v in (a, b)):
        raise _Refused("the shapes of its inputs differ in a way that the packed file does not know")
    return op.make(step, a, b)


def _repeats(value: Value) -> bool:
    return value.op == "concat" and len(set(value.inputs)) == 1


def _fits(shape: Shape | None, result: Shape) -> bool:
    """Whether a value of that shape can be added to one of shape ``result``."""
    return shape is not None and result[0] % shape[0] == 0 and shape[1:] in (result[1:], (1, 1))


# Signs


@_lowers("sign", "sgn")
def _sign(op: Operation, x: Value) -> Value:
    return _choice(op, x, 1, -1)


def _choice(op: Operation, x: Value, high: float, low: float) -> Value:
    numbers = np.array([[float(high)], [float(low)]])
    if x.op == "choice" and x.numbers is not None:
        return op.make("choice", *x.inputs, numbers=np.where(x.numbers >= 0, *numbers))
    return op.make("choice", x, numbers=numbers)


def _compares(high: int, low: int) -> Callable[..., Value]:
    """1 or 0, by the sign of x − y; where that is 0 it counts as positive, as everywhere in bnew."""

    def lower(op: Operation, x: Value, y: Operand) -> Value:
        numbers = op.numbers(y)
        if numbers is None or x.constant:
            raise _Refused("only comparisons with a constant can be packed")
        return _choice(op, _shifted(op, x, -numbers) if np.any(numbers) else x, high, low)

    return lower


_lowers("ge", "gt")(_compares(1, 0))
_lowers("le", "lt")(_compares(0, 1))


@_lowers("logical_not", "bitwise_not")
def _not(op: Operation, x: Value) -> Value:
    if x.op != "choice" or x.numbers is None:
        raise _Refused("only the negation of a comparison can be packed")
    return op.make("choice", *x.inputs, numbers=1.0 - (x.numbers != 0))


@_lowers("where")
def _where(op: Operation, condition: Value, yes: Operand, no: Operand) -> Value:
    high, low = op.numbers(yes), op.numbers(no)
    if condition.op != "choice" or condition.numbers is None or high is None or low is None:
        raise _Refused("it is packed only where it chooses between two constants by a comparison")
    chosen = np.where(condition.numbers != 0, high, low)
    return op.make("choice", *condition.inputs, numbers=chosen)


# Activations


@_lowers("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max")
def _clamp(op: Operation, x: Value, *limits: Operand | None, **named: Operand | None) -> Value:
    lowest, highest = _LIMITS[op.name](*limits, **named)
    if isinstance(lowest, Value) or isinstance(highest, Value):
        raise _Refused("its limits are tensors")
    return op.make("clamp", op.real(x), step=[lowest, highest])


_LIMITS: dict[str, Callable[..., tuple[Operand | None, Operand | None]]] = {
    "relu": lambda: (0, None),
    "relu6": lambda: (0, 6),
    "hardtanh": lambda min_val=-1, max_val=1: (min_val, max_val),
    "clamp": lambda min=None, max=None: (min, max),
    "clamp_min": lambda min: (min, None),
    "clamp_max": lambda max: (None, max),
}


@_lowers("prelu", "_prelu_kernel", "leaky_relu")
def _prelu(op: Operation, x: Value, slope: Operand = 0.01) -> Value:
    if op.name == "prelu" and isinstance(slope, Value) and slope.tensor is not None and slope.tensor.ndim:
        numbers: Numbers | None = op.once(  # (C) is per channel here, whatever the rank
            ("slope", slope), lambda: slope.tensor.detach().double().cpu().reshape(-1).numpy()
        )
    else:
        numbers = op.numbers(slope)
    if numbers is None:
        raise _Refused("its slope depends on the input")
    return op.make("prelu", op.real(x), numbers=numbers)


@_lowers("sigmoid")
def _sigmoid(op: Operation, x: Value) -> Value:
    return op.make("sigmoid", op.real(x), step={})


@_lowers("hardsigmoid")
def _hard_sigmoid(op: Operation, x: Value) -> Value:
    return op.make("hard_sigmoid", op.real(x), step={})


@_lowers("silu")
def _silu(op: Operation, x: Value) -> Value:
    return op.make("multiply", op.real(x), _sigmoid(op, x))


@_lowers("hardswish")
def _hard_swish(op: Operation, x: Value) -> Value:
    return op.make("multiply", op.real(x), _hard_sigmoid(op, x))


@_lowers("softmax", "_softmax")
def _softmax(op: Operation, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    if dim % op.rank != 1:
        raise _Refused("softmax is packed only over the channels")
    return op.make("softmax", op.real(x))


# Shapes


@_lowers("view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "expand", "slice", "unflatten")
def _reshape(op: Operation, x: Value, *_: Any, **__: Any) -> Value:
    assert op.shape is not None
    assert x.shape is not None
    if op.shape == x.shape:
        return x
    if op.name == "expand" and _fits(x.shape, op.shape):
        return x  # what it is multiplied with gives the size
    if op.name != "slice" and op.shape == (int(np.prod(x.shape)), 1, 1):
        return op.make("flatten", op.real(x))
    raise _Refused("a value can be reshaped to a vector only")


@_lowers("cat", "concat")
def _concat(op: Operation, parts: Sequence[Value], dim: int = 0) -> Value:
    if dim % op.rank != 1:
        raise _Refused("values are packed side by side only as channels (dim 1)")
    if any(part.constant for part in parts):
        raise _Refused("one of the values beside each other is a constant")
    return op.make("concat", *map(op.real, parts))


# Pools


def _pair(numbers: int | Sequence[int]) -> list[int]:
    pair = [numbers] if isinstance(numbers, int) else list(numbers)
    return pair * 2 if len(pair) == 1 else pair


def _sides(padding: int | Sequence[int]) -> list[int]:
    """[top, left, bottom, right]."""
    return _pair(padding) * 2


def _pool(op: Operation, kind: str, x: Value, **fields: Any) -> Value:
    assert op.shape is not None
    return op.make(kind, op.real(x), **fields, size=list(op.shape[1:]))


@_lowers("max_pool2d", "max_pool2d_with_indices")
def _max_pool(
    op: Operation,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Value:
    return _pool(
        op,
        "max_pool",
        x,
        kernel=_pair(kernel),
        stride=_pair(stride or kernel),
        padding=_sides(padding),
        dilation=_pair(dilation),
    )


@_lowers("avg_pool2d")
def _avg_pool(
    op: Operation,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    if divisor_override is not None:
        raise _Refused("its divisor is overridden")
    return _pool(
        op,
        "avg_pool",
        x,
        kernel=_pair(kernel),
        stride=_pair(stride or kernel),
        padding=_sides(padding),
        count_padding=count_include_pad,
    )


@_lowers("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive_avg_pool(op: Operation, x: Value, size: Sequence[int]) -> Value:
    return _pool(op, "adaptive_avg_pool", x)


@_lowers("mean")
def _mean(op: Operation, x: Value, dims: Sequence[int] = (), keepdim: bool = False, **_: Any) -> Value:
    if sorted(dim % 4 for dim in dims) != [2, 3] or op.rank != (4 if keepdim else 2):
        raise _Refused("a mean is packed only over height and width")
    return _pool(op, "adaptive_avg_pool", x)


# Layers


@_lowers("_native_batch_norm_legit_no_training")
def _batch_norm(
    op: Operation,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    variance: Value,
    momentum: float,
    eps: float,
) -> Value:
    if not all(value is None or value.constant for value in (weight, bias, mean, variance)):
        raise _Refused("its numbers depend on the input")

    def fold() -> tuple[Numbers, Numbers]:
        # γ (v − μ) / √(σ² + ε) + β = s v + (β − μ s) with s = γ / √(σ² + ε)
        mu, var = _vector(mean), _vector(variance)
        gamma = np.ones_like(mu) if weight is None else _vector(weight)
        beta = np.zeros_like(mu) if bias is None else _vector(bias)
        scale = gamma / np.sqrt(var + eps)
        return scale, beta - mu * scale

    scale, shift = op.once(("norm", weight, bias, mean, variance, eps), fold)
    return _shifted(op, _scaled(op, op.real(x), scale), shift)


def _vector(value: Value) -> Numbers:
    assert value.tensor is not None
    return np.asarray(value.tensor.detach().double().cpu().reshape(-1).numpy())


@_lowers("pad", "constant_pad_nd")
def _pad(op: Operation, x: Value, sides: Sequence[int], *how: Any, **named: Any) -> Value:
    modes = [a for a in (*how, *named.values()) if isinstance(a, str) and a != "constant"]
    if modes:
        raise _Refused(f"padding of mode '{modes[0]}' is not packed, only that by zeros")
    filled = any(a for a in (*how, *named.values()) if not isinstance(a, str))
    left, right, top, bottom = (*sides, 0, 0)[:4]
    if filled or len(sides) > 4 or min(sides) < 0:
        raise _Refused("padding is packed only by zeros, around the image")
    # Refused unless a convolution takes it over.
    why = "padding is packed only right before a convolution"
    return op.make("refused", x, why=why, padding=[top, left, bottom, right])


@_lowers("linear")
def _linear(op: Operation, x: Value, weight: Value, bias: Value | None = None) -> Value:
    if op.rank != 2:
        raise _Refused("a linear layer is packed only for vectors (N, C)")
    return _layer(op, x, weight, bias, stride=[1, 1], padding=[0] * 4, dilation=[1, 1], groups=1)


@_lowers("conv2d")
def _conv(
    op: Operation,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Sequence[int] = (1,),
    padding: str | Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Value:
    if not weight.constant or weight.tensor is None:
        raise _Refused("its weights depend on the input")
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(_pair(dilation), weight.tensor.shape[2:], strict=True)]
        before = [n // 2 for n in total]
        sides = [*before, *(n - b for n, b in zip(total, before, strict=True))]
    else:
        sides = [0] * 4 if isinstance(padding, str) else _sides(padding)
    return _layer(
        op, x, weight, bias, stride=_pair(stride), padding=sides, dilation=_pair(dilation), groups=groups
    )


@_lowers("convolution")
def _convolution(
    op: Operation,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    if transposed or op.rank != 4:
        raise _Refused("only two-dimensional convolutions can be packed, and no transposed ones")
    return _conv(op, x, weight, bias, stride, padding, dilation, groups)


def _layer(
    op: Operation, x: Value, weight: Value, bias: Value | None, padding: list[int], **fields: Any
) -> Value:
    """A convolution or a linear layer: binary if its input comes from a sign and its weights are ±m[o]."""
    if weight.tensor is None or (bias is not None and not bias.constant):
        raise _Refused("its weights depend on the input")
    if "padding" in x.fields and x.op == "refused":
        padding = [a + b for a, b in zip(padding, x.fields["padding"], strict=True)]
        (x,) = x.inputs
    tensor = weight.tensor.detach().cpu()
    tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
    assert x.shape is not None
    fields = {
        "channels": [x.shape[0], len(tensor)],
        "kernel": list(tensor.shape[2:]),
        **fields,
        "padding": padding,
    }
    magnitudes: Numbers | None = op.once(("magnitudes", weight), lambda: _magnitudes(tensor))
    if magnitudes is None and isinstance(op.module, BinaryConv2d | BinaryLinear):
        sizes = tensor.double().abs()
        raise _Refused(
            f"the weights of this {type(op.module).__name__} are not of one magnitude per output channel "
            f"(they go from {sizes.min():.3g} to {sizes.max():.3g}): freeze() the method first, or pack a "
            "run's best weights"
        )
    bits = op.bits(x)
    if bits is not None and magnitudes is not None:
        if not np.all(magnitudes):
            zeros = int((tensor == 0).sum())
            raise _Refused(f"{zeros} of its binary weights are 0, but a bit is +1 or −1: replace them")
        source, factor = bits
        packed = op.once(("packed", weight), lambda: pack_bits(tensor.double().numpy()))
        value = op.make("binary_conv", source, weight=packed, **fields)
        if np.any(magnitudes * factor != 1):
            value = op.make("scale", value, numbers=magnitudes * factor, magnitude=True)
    else:
        if bits is not None:
            _log.warning(
                "%s: its input is a sign, but its weights are of several magnitudes: packed as a real layer",
                op.place,
            )
        elif isinstance(op.module, BinaryConv2d | BinaryLinear):
            _log.warning("%s: its input is not a sign: packed as a real layer", op.place)
        real = op.once(("weights", weight), lambda: tensor.double().numpy())
        value = op.make("conv", op.real(x), weight=real, **fields)
    return value if bias is None else _shifted(op, value, op.once(("bias", bias), lambda: _vector(bias)))


def _magnitudes(weight: Tensor) -> Numbers | None:
    """m[o] with every weight of output channel o at m[o] or −m[o], m[o] = 0 if some are 0; else None.

    To a relative 1e-5, and to an absolute 3e-7 where that is more: (out − y) + y leaves such rounding.
    """
    rows = np.abs(weight.double().numpy().reshape(len(weight), -1))
    zero = rows == 0
    mean = rows.sum(1, keepdims=True) / np.maximum((~zero).sum(1, keepdims=True), 1)
    tolerance = np.maximum(1e-5 * mean, np.minimum(3e-7, 1e-3 * mean))
    if not np.all(zero | (np.abs(rows - mean) <= tolerance)):
        return None
    mean = np.where(np.abs(mean - 1) < 1e-6, 1, mean)[:, 0]
    return np.where(zero.any(1), 0, mean)


def pack_bits(weight: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """Signs of weights (C_out, C_in / groups, kh, kw) as the file's words, (C_out, ⌈K / 32⌉)."""
    rows = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1) >= 0
    padded = np.zeros((len(rows), -(-rows.shape[1] // 32) * 32), bool)
    padded[:, : rows.shape[1]] = rows
    return np.packbits(padded, axis=1, bitorder="little").view("<u4").astype(np.uint32)


def reachable(output: Value) -> list[Value]:
    """Every value that ``output`` needs, in the order in which they can be computed.

    Raises:
        BnewError: one of them is refused; says which, where and why.
    """
    found: set[Value] = set()
    todo: list[Value] = [output]
    while todo:
        value = todo.pop()
        if value not in found:
            found.add(value)
            todo.extend(_inputs(value))
    order = sorted(found, key=lambda value: value.index)
    for value in order:
        if value.op == "refused" and value.fields["why"]:
            raise BnewError(f"{value.place.operator} ({value.place}) cannot be packed: {value.fields['why']}")
    return order


def _inputs(value: Value) -> Iterable[Value]:
    return (v for v in value.inputs if not v.constant)
