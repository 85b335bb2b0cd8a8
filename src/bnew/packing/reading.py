"""Translates a network's exported graph into the operators and steps of the packed file.

Every operator of the exported graph becomes a :class:`Value`. A value that does not depend on the image is
evaluated at once. A value that cannot be packed is an error only if the output needs it: it may cancel out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from bnew.errors import BnewError
from bnew.layers import BinaryConv2d, BinaryLinear
from bnew.packing.held import held
from bnew.packing.pieces import Held
from bnew.packing.tracing import Trace, traced
from bnew.packing.values import Array, Numbers, Operand, Place, Refused, Shape, Value
from bnew.packing.vocabulary import ATEN, FORMULAS, OPERATORS

# Batch size while the graph is read. Hardly any other size in a network is 7, so the shapes show an operator
# that mixes images or depends on their number.
_BATCH = 7
# Operators that return their argument.
_SAME = frozenset(["clone", "contiguous", "detach", "alias", "lift_fresh_copy", "dropout"])
# Operators whose result is constant, whatever their first argument is.
_FILLED = frozenset(["ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full"])
# Operators whose operands may differ in shape.
_BROADCASTS = frozenset(["add", "sub", "rsub", "mul", "div", "neg", "expand"])


def read(model: nn.Module, example: Tensor, lattice: Array | None = None) -> Value:
    """The value of the model's output, for images like ``example`` (N, C, H, W) or vectors (N, C).

    ``lattice`` (2, C) has the step and the offset of an image's numbers, if they are known: channel c holds
    ``lattice[1, c] + n · lattice[0, c]`` with whole n.

    Raises:
        BnewError: see :func:`bnew.packing.tracing.traced`; or the output does not depend on the input.
    """
    with traced(model, example, _BATCH) as trace:
        return _Reader(trace, lattice).output()


class _Reader:
    """The exported graph, node by node."""

    def __init__(self, trace: Trace, lattice: Array | None) -> None:
        self.trace = trace
        self.lattice = lattice
        self.modules = dict(trace.model.named_modules())
        self.indices = count()
        self.values: dict[fx.Node, Value] = {}
        self.known: dict[Any, Any] = {}  # results of Operation.once

    def output(self) -> Value:
        """Read all nodes and return the value of the output."""
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
                self.values[node] = operation.make("input", notes={"lattice": self.lattice})
        output = self.values[self.trace.output]
        if output.constant:
            raise BnewError(f"the output of {type(self.trace.model).__name__} does not depend on its input")
        last = Operation(self, self.trace.output)
        if output.shape != last.shape:
            return last.make("refused", output, notes={"why": "the output is an expanded value"})
        return last.real(output)


class Operation:
    """One node of the exported graph while it is read; makes values at its place and of its shape."""

    def __init__(self, reader: _Reader, node: fx.Node) -> None:
        self.reader = reader
        self.node = node
        target = getattr(node.target, "overloadpacket", node.target)
        self.name = str(getattr(target, "__name__", target))  # without its overload
        size = _size(node)
        self.rank = len(size)
        self.shape = _shape(size)
        first = node.args[0] if node.args else None
        self.input_rank = len(_size(first)) if isinstance(first, fx.Node) else 0
        calls = list(node.meta.get("nn_module_stack", {}).values())
        path = calls[-1][0] if calls else ""
        if path not in reader.modules:  # some releases of PyTorch write a module's second call as path@1
            path = re.sub(r"@\d+(?=\.|$)", "", path)
        module = reader.modules.get(path)  # None if torch.export made the model
        binary = isinstance(module, BinaryConv2d | BinaryLinear)
        self.binary_layer = type(module).__name__ if binary else None  # the class, if it is bnew's
        frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
        own = [f"{Path(file).name} line {line}" for file, line in frames if "torch" not in Path(file).parts]
        self.place = Place(path, self.name, own[-1] if own else "")

    @property
    def dtype(self) -> torch.dtype:
        """The type of the node's result."""
        dtype: torch.dtype = self.node.meta["val"].dtype
        return dtype

    @property
    def whole_numbers(self) -> tuple[int, int]:
        """The least and the greatest number that a result of whole numbers or bools can hold."""
        if self.dtype == torch.bool:
            return 0, 1
        limits = torch.iinfo(self.dtype)
        return limits.min, limits.max

    def value(self) -> Value:
        """The node's value: the same object for the same operator on the same values."""
        values: Any = self.reader.values
        arguments: Any = fx.node.map_arg(self.node.args, lambda node: values[node])
        options: Any = fx.node.map_arg(self.node.kwargs, lambda node: values[node])
        key = ("node", self.node.target, _hashable(arguments), _hashable(options))
        value: Value = self.once(key, lambda: self._value(arguments, options))
        return value

    def _value(self, arguments: Sequence[Any], options: Mapping[str, Any]) -> Value:
        terms = self._terms(arguments, **options)
        if len(terms) == 1:  # the others have cancelled out, like y in the straight-through trick out − y + y
            ((rest, factor),) = terms.items()
            whole = rest.tensor is None or tuple(rest.tensor.shape) == _size(self.node)
            if factor == 1 and rest.shape == self.shape and whole:
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
                call = (self.name, tuple(arguments), options)
                value = self.make("refused", *inputs, notes={"why": str(refused), "call": call})
        return replace(value, terms=terms) if terms else value

    def _terms(self, arguments: Sequence[Any], alpha: float = 1, **_: Any) -> dict[Value, float]:
        """Term → factor of a sum or a difference, without terms that cancel; empty for other operators."""
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
        formula = FORMULAS.get(self.name)
        if formula and (whole := formula(self, *arguments, **options)):
            return whole
        if any("call" in value.notes for value in inputs):
            raise Refused("")  # the refused input says why
        if self.name not in ATEN:
            raise Refused("there is no such operator in a packed file")
        if not any(self.shape):
            raise Refused("its result is no batch of images or vectors, or their number has changed")
        for node in self.node.all_input_nodes:
            value = self.reader.values[node]
            expanded = not value.constant and _shape(_size(node)) != value.shape
            if expanded and self.name not in _BROADCASTS:
                raise Refused("an expanded value is packed only where it is added or multiplied")
        return ATEN[self.name](self, *arguments, **options)

    def make(
        self,
        op: str,
        *inputs: Value,
        shape: Shape | None = None,
        numbers: Numbers | None = None,
        **carried: Any,
    ) -> Value:
        """A new value. By default, its place and shape are those of this operation.

        ``carried`` are further attributes of :class:`Value`.

        Raises:
            Refused: ``numbers`` are neither one number nor one per channel.
        """
        shape = shape or self.shape
        if numbers is not None and numbers.shape[-1] not in (1, shape[0]):
            raise Refused("its constant has another number of channels than its input")
        if numbers is not None:
            carried["numbers"] = numbers
        carried.setdefault("place", self.place)
        return Value(op, next(self.reader.indices), shape=shape, inputs=inputs, **carried)

    def once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """The result of ``make``, which is called once for each key."""
        if key not in self.reader.known:
            self.reader.known[key] = make()
        return self.reader.known[key]

    def numbers(self, operand: Operand) -> Numbers | None:
        """A number or a constant as numbers per channel, (1,) or (C,); None for other values.

        Raises:
            Refused: the constant differs between places or between images.
        """
        if not isinstance(operand, Value):
            return np.array([float(operand)])
        if not operand.constant:
            return None
        tensor = operand.tensor
        assert tensor is not None
        numbers: Numbers = self.once(("numbers", operand, self.rank), lambda: _per_channel(tensor, self.rank))
        return numbers

    def array(self, value: Value) -> Numbers:
        """A constant's numbers as a flat array.

        Raises:
            Refused: the value is not constant.
        """
        tensor = value.tensor
        if tensor is None:
            raise Refused("its numbers depend on the input")
        flat = tensor.detach().reshape(-1)
        array: Numbers = self.once(("array", value), lambda: flat.double().cpu().numpy())
        return array

    def weights(self, value: Value) -> Array:
        """A layer's weights (C_out, C_in / groups, kh, kw); of a linear layer, kh and kw are 1.

        Raises:
            Refused: they are not constant.
        """
        tensor = value.tensor
        if tensor is None:
            raise Refused("its weights depend on the input")
        shape = (*tensor.shape, 1, 1)[:4]
        weights: Array = self.once(
            ("weights", value), lambda: tensor.detach().float().cpu().reshape(shape).numpy()
        )
        return weights

    def of(self, picture: Array) -> Array:
        """PyTorch's result with ``picture`` as the first argument and the node's own further arguments."""
        function: Any = self.node.target
        result: Tensor = function(torch.from_numpy(picture), *self.node.args[1:], **self.node.kwargs)
        return np.asarray(result.numpy())

    def held(self, value: Value) -> Held:
        """The numbers at which the value is held, see :mod:`bnew.packing.held`."""
        return held(value, self.once(("held",), dict))

    def real(self, value: Value) -> Value:
        """The value as real numbers: a choice becomes a sign, a scale and a shift."""
        if value.op != "choice":
            return value

        def make() -> Value:
            high, low = value.numbers
            half, middle = (high - low) / 2, (high + low) / 2
            new = partial(self.make, shape=value.shape, place=value.place)
            result = new("sign", *value.inputs, argument={})
            result = new("scale", result, numbers=half) if np.any(half != 1) else result
            return new("shift", result, numbers=middle) if np.any(middle != 0) else result

        result: Value = self.once(("real", value), make)
        return result

    def bits(self, value: Value) -> tuple[Value, float] | None:
        """``(b, a)`` with value = a · b, where b is bits; None if the value has no such form."""
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
    """Whether every number of a real value is 1 or −1."""
    moves = value.op in OPERATORS and OPERATORS[value.op].moves
    return value.op == "sign" or (moves and all(map(_is_sign, value.inputs)))


def _size(node: fx.Node) -> tuple[int, ...]:
    """The size of the node's result, or of its first result if there are several."""
    result = node.meta.get("val")
    result = result[0] if isinstance(result, tuple | list) and result else result
    return tuple(result.shape) if isinstance(result, Tensor) else ()


def _shape(size: Sequence[int]) -> Shape:
    """(C, H, W) of a batch of that size; (C, 1, 1) of vectors; zeros if it is no batch of either."""
    if not 2 <= len(size) <= 4 or size[0] != _BATCH:
        return 0, 0, 0
    channels, height, width = (*size[1:], 1, 1)[:3]
    return channels, height, width


def _hashable(arguments: Any) -> Any:
    if isinstance(arguments, Mapping):
        return tuple((name, _hashable(value)) for name, value in arguments.items())
    return tuple(map(_hashable, arguments)) if isinstance(arguments, list | tuple) else arguments


def _per_channel(tensor: Tensor, rank: int) -> Numbers:
    """The numbers per channel, (1,) or (C,), of a tensor that is broadcast to (N, C, ...) of that rank.

    Raises:
        Refused: the tensor has more dimensions, or differs along another dimension than the channels.
    """
    if tensor.ndim > rank:
        raise Refused("its constant has more dimensions than its input")
    wide = tensor.detach().double().cpu().reshape((1,) * (rank - tensor.ndim) + tensor.shape)
    for dim in (d for d in range(rank) if d != 1):
        first = wide.narrow(dim, 0, 1)
        if not torch.equal(wide, first.expand_as(wide)):
            raise Refused("its constant differs from place to place, not only from channel to channel")
        wide = first
    return np.asarray(wide.reshape(-1).numpy())
