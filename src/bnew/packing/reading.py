"""Translates a network's exported graph into the operators and steps of the packed file.

Every operator of the exported graph becomes a :class:`Value`. A value that does not depend on the image is
evaluated at once. A value that cannot be packed is an error only if the output needs it: it may cancel out.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from bnew.errors import BnewError
from bnew.packing.arithmetic import check_precision
from bnew.packing.inputs import Inputs
from bnew.packing.nodes import BATCH, has_fixed_size, size_of
from bnew.packing.operation import Operation, Shared
from bnew.packing.placing import PLACING
from bnew.packing.reshaping import reshaped
from bnew.packing.tracing import Trace, traced
from bnew.packing.values import Array, Lowering, Refused, Value, ancestors
from bnew.packing.views import shown, view
from bnew.packing.vocabulary import ATEN, FORMULAS

# Operators that return their argument.
_SAME = frozenset(["clone", "contiguous", "detach", "alias", "lift_fresh_copy", "dropout"])
_NAMED = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
# Operators whose result is constant, whatever their first argument is.
_FILLED = frozenset(["ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full", "fill"])


@dataclass(frozen=True)
class Output:
    """A result of a model: its value, its name ("" if it has none), its size for one image, and its kind."""

    value: Value
    name: str
    size: tuple[int, ...]
    integers: bool = False


def read(model: nn.Module, inputs: Inputs, lattices: Mapping[str, Array]) -> list[Output]:
    """The model's outputs, for images like those of ``inputs``.

    ``lattices`` (2, C), by the inputs' names, have the step and the offset of an image's numbers, where they
    are known: channel c holds ``lattice[1, c] + n · lattice[0, c]`` with whole n.

    Raises:
        BnewError: see :func:`bnew.packing.tracing.traced`; or the outputs do not depend on an input.
    """
    with traced(model, inputs, BATCH) as trace:
        return _Reader(trace, inputs.tensors[0].dtype, lattices).outputs()


class _Reader:
    """The exported graph, node by node."""

    def __init__(self, trace: Trace, dtype: torch.dtype, lattices: Mapping[str, Array]) -> None:
        self.trace = trace
        self.lattices = lattices
        self.shared = Shared(dict(trace.model.named_modules()), dtype)
        self.values: dict[fx.Node, Value] = {}

    def outputs(self) -> list[Output]:
        """Read all nodes and return the outputs."""
        program = self.trace.program
        tensors: dict[str, Any] = {**program.state_dict, **program.constants}
        specs = program.graph_signature.input_specs
        constants = {spec.arg.name: tensors[spec.target] for spec in specs if spec.target is not None}
        names = {node: name for name, node in self.trace.inputs.items()}
        for node in program.graph.nodes:
            if node.op == "output":
                break
            operation = Operation(self.shared, node)
            if node.op != "placeholder":
                self.values[node] = self._read(operation)
            elif node.name in constants:
                self.values[node] = operation.make("evaluated", tensor=constants[node.name])
            else:
                lattice = self.lattices.get(names[node])
                self.values[node] = operation.make("input", argument=names[node], notes={"lattice": lattice})
        outputs = [
            Output(self._result(node), name, size_of(node)[1:], _is_integer(node.meta["val"].dtype))
            for name, node in self.trace.outputs
        ]
        needed = set(ancestors(*(output.value for output in outputs)))
        if unused := [name for node, name in names.items() if self.values[node] not in needed]:
            raise BnewError(
                f"the output of {type(self.trace.model).__name__} does not depend on its input "
                f"'{unused[0]}': pack a model without it"
            )
        return outputs

    def _result(self, node: fx.Node) -> Value:
        output, last = self.values[node], Operation(self.shared, node)
        if output.constant:
            raise BnewError(f"the output of {type(self.trace.model).__name__} does not depend on its input")
        try:
            if len(last.size) > 4:  # the file names its dimensions
                flat = (last.images, math.prod(last.size[1:]))
                output = view(last, *reshaped(last, *shown(last, output, last.size), flat))
            return last.real(output)
        except Refused as refused:
            return last.make("refused", output, notes={"why": str(refused)})

    def _read(self, op: Operation) -> Value:
        """The value of the operation: the same object for the same operator on the same values."""
        values: Any = self.values
        arguments: Any = fx.node.map_arg(op.node.args, lambda node: values[node])
        options: Any = fx.node.map_arg(op.node.kwargs, lambda node: values[node])
        sizes = tuple(map(size_of, op.node.all_input_nodes))
        key = ("node", op.node.target, _hashable(arguments), _hashable(options), sizes)
        value: Value = op.once(key, lambda: self._value(op, arguments, options))
        return value

    def _value(self, op: Operation, arguments: Sequence[Any], options: Mapping[str, Any]) -> Value:
        op.call = (op.name, tuple(arguments), options)
        terms = _terms(op, arguments, **options)
        if len(terms) == 1:  # the others have cancelled out, like y in the straight-through trick out − y + y
            ((rest, factor),) = terms.items()
            if factor == 1 and _is_whole(op, rest):
                return rest
        inputs = [self.values[node] for node in op.node.all_input_nodes]
        if op.name in _SAME:
            return inputs[0]
        try:
            result = op.node.meta.get("val")
            if isinstance(result, Tensor) and not has_fixed_size(result):
                raise Refused("the size of its result depends on numbers")
            if op.name in _FILLED or all(value.constant for value in inputs):
                value = _evaluated(op, arguments, options)
            else:
                value = _lowered(op, arguments, options, inputs)
        except Refused as refused:
            value = op.make("refused", *inputs, notes={"why": str(refused)})
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            why = f"bnew did not expect its arguments ({type(error).__name__}: {error}), please report this"
            value = op.make("refused", *inputs, notes={"why": why, "error": error})
        return replace(value, terms=terms) if terms else value


def _terms(op: Operation, arguments: Sequence[Any], alpha: float = 1, **_: Any) -> dict[Value, float]:
    """Term → factor of a sum or a difference, without terms that cancel; empty for other operators.

    A sum with a constant is one term.
    """
    if op.name not in ("add", "sub") or not all(isinstance(a, Value) for a in arguments):
        return {}
    if len({argument.constant for argument in arguments}) > 1:
        return {}
    terms: dict[Value, float] = {}
    for value, factor in zip(arguments, (1, alpha if op.name == "add" else -alpha), strict=True):
        for term, times in (value.terms or {value: 1}).items():
            terms[term] = terms.get(term, 0) + factor * times
    return {term: times for term, times in terms.items() if times}


def _is_whole(op: Operation, value: Value) -> bool:
    """Whether the value has the size of the result, so that nothing is to be repeated."""
    if value.tensor is not None:
        return tuple(value.tensor.shape) == op.size
    if value.op == "view":
        return bool(value.notes["layout"].size == op.size)
    return value.shape == op.shape


def _evaluated(op: Operation, arguments: Any, options: Any) -> Value:
    random = torch.Tag.nondeterministic_seeded in getattr(op.node.target, "tags", ())
    if random and (op.name != "scaled_dot_product_attention" or any(arguments[4:5])):
        raise Refused("its result is random")
    if op.name in _FILLED:  # ones_like(x) and the like, whatever x is
        if any(isinstance(argument, Value) and not argument.constant for argument in arguments[1:]):
            raise Refused("its number depends on the input")
        like = op.node.args[0].meta["val"]  # type: ignore[union-attr]
        arguments = (torch.empty(op.size, dtype=like.dtype), *arguments[1:])

    def given(argument: Any) -> Any:
        tensor = argument.tensor if isinstance(argument, Value) else argument
        return tensor.contiguous() if isinstance(tensor, Tensor) else tensor

    args, kwargs = fx.node.map_aggregate((tuple(arguments), dict(options)), given)
    return op.make("evaluated", tensor=op.node.target(*args, **kwargs))  # type: ignore[operator]


def _lowered(
    op: Operation, arguments: Sequence[Any], options: Mapping[str, Any], inputs: list[Value]
) -> Value:
    formula = FORMULAS.get(op.name)
    if formula and (whole := formula(op, *arguments, **options)):
        return whole
    if any(value.op == "refused" and "parts" not in value.notes for value in inputs):
        raise Refused("")  # the refused input says why
    if op.name not in ATEN:
        raise Refused("there is no such operator in a packed file")
    if op.name not in PLACING:
        options = _without_type(op, options)
    lower = ATEN[op.name]
    _check_arguments(op, lower, arguments, options)
    result = lower(op, *arguments, **options)
    several = not isinstance(op.node.meta["val"], Tensor)
    return result if several or op.name in PLACING else check_precision(op, result)


def _without_type(op: Operation, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options without ``dtype``, in which PyTorch computes: float32 or more is as good as float32.

    Raises:
        Refused: it cuts the input's numbers to whole ones.
    """
    dtype = options.get("dtype")
    before = op.dtype_of(op.node.args[0])
    if dtype is not None and (dtype.is_complex or (_is_real(before) and not _is_real(dtype))):
        raise Refused(f"its argument 'dtype' is {dtype}, in which its input is rounded: round it before")
    return {name: value for name, value in options.items() if name != "dtype"}


def _is_real(dtype: torch.dtype | None) -> bool:
    return dtype is not None and dtype.is_floating_point


def _check_arguments(op: Operation, lower: Lowering, arguments: Sequence[Any], options: Any) -> None:
    """Check that ``lower`` knows all arguments of the operator.

    Raises:
        Refused: it does not; PyTorch's schema names the one that it does not know.
    """
    known = inspect.signature(lower)  # of the function that the adaptors wrap
    try:
        known.bind(op, *arguments, **options)
    except TypeError:
        pass
    else:
        return
    places = [parameter for parameter in known.parameters.values() if parameter.kind not in _NAMED][1:]
    schema = getattr(op.node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else []
    further = [
        *names[len(places) : len(arguments)],
        *(name for name in options if name not in known.parameters),
    ]
    raise Refused(
        f"its argument '{further[0]}' is not packed" if further else "it is packed only with other arguments"
    )


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _hashable(arguments: Any) -> Any:
    if isinstance(arguments, Mapping):
        return tuple((name, _hashable(value)) for name, value in arguments.items())
    if isinstance(arguments, list | tuple):
        return tuple(map(_hashable, arguments))
    return (type(arguments), arguments) if isinstance(arguments, int | float) else arguments  # 1 is no True
