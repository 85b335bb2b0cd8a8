"""Reads the graph of a model by ``torch.export`` and leaves the model as it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo import OptimizedModule
from torch.export.graph_signature import OutputKind
from torch.export.passes import move_to_device_pass
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bnew.errors import BnewError
from bnew.modes import evaluating
from bnew.packing.decompositions import table
from bnew.packing.inputs import Inputs

_STATE = frozenset([OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION])


class NotTaken(BnewError):
    """The model does not take the example."""


@dataclass(frozen=True)
class Trace:
    """A model without its wrappers, its exported program, and the nodes of its inputs and outputs by name.

    Outputs without names, such as those of a tuple, have the name "".
    """

    model: nn.Module
    program: torch.export.ExportedProgram
    inputs: Mapping[str, fx.Node]
    outputs: list[tuple[str, fx.Node]]


@contextmanager
def traced(model: nn.Module, inputs: Inputs, images: int) -> Iterator[Trace]:
    """Yield the trace of the model in eval mode, for batches of ``images`` images like those of ``inputs``.

    The model has no wrappers (see :func:`unwrapped`). Afterwards its modes and buffers are as they were. The
    inputs are never changed.

    Raises:
        BnewError: the model has a lazy layer that was never called, does not take the example, cannot be
            exported, returns something else than tensors, or its output depends on a buffer that its calls
            change.
    """
    kind = type(model).__name__
    for name, module in model.named_modules():
        if any(map(is_lazy, [*module.parameters(recurse=False), *module.buffers(recurse=False)])):
            what = f"{type(module).__name__} '{name}'" if name else type(module).__name__
            raise BnewError(
                f"{kind} has a {what} that was never called, so it has no weights yet: call "
                "the model with a batch, and train it or load its weights"
            )
        if any(
            tensor.is_meta for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        ):
            raise BnewError(
                f"{kind} is on the device 'meta', without numbers: load its weights on the CPU first"
            )
    with _evaluating(model) as before, torch.no_grad():
        try:
            _call(model, inputs.changed(torch.clone))  # the model may change its inputs
        except Exception as error:  # a user's model may raise anything
            raise NotTaken(f"{kind} does not take {inputs.sizes}: {_first_line(error)}") from error
        try:
            few, many = (_numbers(model, inputs.images(n)) for n in (2, 3))
            batch = inputs.images(images)
            with warnings.catch_warnings():  # a recurrent layer assigns its weights, which are then restored
                warnings.filterwarnings("ignore", "The tensor attributes .* were assigned during export")
                program = torch.export.export(model, batch.args, dict(batch.kwargs), strict=False)
            program = _on_cpu(program).run_decompositions(dict(table()))
        except Exception as error:
            raise BnewError(
                f"torch.export cannot read {kind} for {images} images at once, which packing needs (no "
                f"branches on values, any number of images): {_first_line(error)}"
            ) from error
        for (operator, number), other in zip(few, many, strict=False):
            if (operator, number) != other:
                raise BnewError(
                    f"{kind} computes with the number of images ({operator} with {number} for 2 of them, but "
                    f"{other[0]} with {other[1]} for 3): a packed file computes each image by itself"
                )
        outputs = _outputs(kind, program)
        # torch.export does not report every buffer that is assigned.
        after = dict(model.named_buffers())
        changed = {name for name in before if name not in after or not torch.equal(before[name], after[name])}
        _check_state(kind, program, [node for _, node in outputs], changed)
        yield Trace(model, program, _inputs(program, inputs), outputs)


def _on_cpu(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with its tensors on the CPU, where it is read, and its operators making theirs there."""
    made = [*program.state_dict.values(), *program.constants.values()]
    made += [tensor for node in program.graph.nodes for tensor in pytree.tree_leaves(node.meta.get("val"))]
    if all(tensor.device.type == "cpu" for tensor in made if isinstance(tensor, Tensor)):
        return program
    return move_to_device_pass(program, "cpu")


def _call(model: nn.Module, inputs: Inputs) -> Any:
    return model(*inputs.args, **inputs.kwargs)


def _numbers(model: nn.Module, inputs: Inputs) -> list[tuple[str, str]]:
    """(Operator, number) for each single number that the model computes with; the model stays as it is."""
    numbers = _Numbers()
    with _evaluating(model), numbers:
        _call(model, inputs)
    return numbers.found


class _Numbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the single numbers, and tensors of one, among the arguments of all operators.

    Integers that are sizes, dimensions or indices do not count.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[tuple[str, str]] = []

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function.overloadpacket.__name__)
        known = [] if name == "arange" else function._schema.arguments  # it makes indices
        for place, argument in enumerate(known):
            value = args[place] if place < len(args) else (kwargs or {}).get(argument.name)
            if isinstance(value, Tensor) and value.dim() == 0:
                self.found.append((name, f"{value.item():.5g}"))
            elif isinstance(value, float) or (type(value) is int and "int" not in str(argument.type)):
                self.found.append((name, f"{value:.5g}"))
        return function(*args, **(kwargs or {}))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without wrappers that run it on several devices or compile it."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model, OptimizedModule):
            model = model._orig_mod
        else:
            return model


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    """Put the model in eval mode; afterwards its modes and buffers are as they were.

    Yields the values of its buffers by name, as they were before.
    """
    # TorchScript modules keep their buffers elsewhere. torch.export refuses them.
    plain = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    buffers = {module: dict(module._buffers) for module in plain}
    values = {name: (b, b.clone()) for name, b in model.named_buffers() if not is_lazy(b)}
    try:
        with evaluating(model):
            yield {name: before for name, (_, before) in values.items()}
    finally:
        for module, of in buffers.items():
            module._buffers.clear()
            module._buffers.update(of)
        with torch.no_grad():
            for buffer, before in values.values():
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def _inputs(program: torch.export.ExportedProgram, inputs: Inputs) -> dict[str, fx.Node]:
    """The nodes of the graph's inputs by name."""
    nodes = {node.name: node for node in program.graph.nodes}
    given = program.graph_signature.user_inputs
    assert program.call_spec.in_spec is not None
    args, kwargs = pytree.tree_unflatten(list(given), program.call_spec.in_spec)
    places = [*args, *(kwargs[name] for name in inputs.kwargs)]
    return {name: nodes[place] for name, place in zip(inputs.names, places, strict=True)}


def _outputs(kind: str, program: torch.export.ExportedProgram) -> list[tuple[str, fx.Node]]:
    """The outputs of the graph by name. Changed inputs and changed buffers do not count as outputs.

    Raises:
        BnewError: one of them is no tensor, or some have names and others do not.
    """
    (results,) = (node.args[0] for node in program.graph.nodes if node.op == "output")
    assert isinstance(results, tuple | list)
    specs = program.graph_signature.output_specs
    found = [node for node, spec in zip(results, specs, strict=True) if spec.kind is OutputKind.USER_OUTPUT]
    nodes = [node for node in found if isinstance(node, fx.Node)]
    if not nodes or len(nodes) < len(found):
        raise BnewError(f"{kind} returns something else than tensors, which packing needs")
    structure = pytree.tree_unflatten(list(range(len(found))), program.call_spec.out_spec)
    names = dict(named(structure))
    if len({bool(name) for name in names.values()}) > 1:
        raise BnewError(f"{kind} returns tensors with and without names: return a dict, or a tuple")
    return [(names[place], node) for place, node in enumerate(nodes)]


def named(structure: Any, name: str = "") -> Iterator[tuple[Any, str]]:
    """(Tensor, name) of each tensor of a result: its keys joined by dots; "" in plain sequences."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(structure, Mapping):
        items = structure.items()
    elif hasattr(structure, "_fields"):
        items = zip(structure._fields, structure, strict=True)
    elif isinstance(structure, tuple | list):
        items = ((str(i) if name else "", each) for i, each in enumerate(structure))
    else:
        yield structure, name
        return
    for key, each in items:
        yield from named(each, f"{name}.{key}" if name else str(key))


def _check_state(
    kind: str, program: torch.export.ExportedProgram, outputs: Sequence[fx.Node], changed: Set[str]
) -> None:
    """Check that the output does not depend on a buffer that calls of the model have ``changed``.

    Raises:
        BnewError: it does.
    """
    signature = program.graph_signature
    changed = changed | {str(spec.target) for spec in signature.output_specs if spec.kind in _STATE}
    state = {spec.arg.name: spec.target for spec in signature.input_specs if spec.target in changed}
    seen: set[fx.Node] = set()
    todo = [*outputs]
    while todo:
        node = todo.pop()
        if node.name in state:
            raise BnewError(
                f"{kind} changes its '{state[node.name]}' in every call and its output depends on it, but a "
                "packed file has no state: make it constant in eval mode"
            )
        todo += [needed for needed in node.all_input_nodes if needed not in seen]
        seen.update(node.all_input_nodes)
