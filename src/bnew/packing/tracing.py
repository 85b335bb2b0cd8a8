"""Reads the graph of a model by ``torch.export`` and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch._dynamo import OptimizedModule
from torch.export.graph_signature import OutputKind
from torch.nn.parameter import is_lazy

from bnew.errors import BnewError
from bnew.modes import evaluating

_STATE = frozenset([OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION])


@dataclass(frozen=True)
class Trace:
    """A model without its wrappers, its exported program, and the node of the one output."""

    model: nn.Module
    program: torch.export.ExportedProgram
    output: fx.Node


@contextmanager
def traced(model: nn.Module, example: Tensor, images: int) -> Iterator[Trace]:
    """Yield the trace of the model in eval mode, for a batch of ``images`` images like ``example`` (N, ...).

    Wrappers that run a model on several devices or compile it are removed. Afterwards the model's modes and
    buffers are as they were. The example is never changed.

    Raises:
        BnewError: the model does not take the example, cannot be exported, does not return exactly one
            tensor, or its output depends on a buffer that its calls change.
    """
    model = _unwrapped(model)
    kind = type(model).__name__
    with _evaluating(model) as before, torch.no_grad():
        try:
            model(example.clone())  # the model may change its input
        except Exception as error:  # a user's model may raise anything
            raise BnewError(
                f"{kind} does not take an example of shape {tuple(example.shape)}: {_first_line(error)}"
            ) from error
        try:
            batch = example[:1].expand(images, *example.shape[1:]).contiguous()
            program = torch.export.export(model, (batch,), strict=False).run_decompositions({})
        except Exception as error:
            raise BnewError(
                f"torch.export cannot read {kind} for {images} images at once, which packing needs (no "
                f"branches on values, any number of images): {_first_line(error)}"
            ) from error
        output = _output(kind, program)
        # torch.export does not report every buffer that is assigned.
        after = dict(model.named_buffers())
        changed = {name for name in before if name not in after or not torch.equal(before[name], after[name])}
        _check_state(kind, program, output, changed)
        yield Trace(model, program, output)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _unwrapped(model: nn.Module) -> nn.Module:
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


def _output(kind: str, program: torch.export.ExportedProgram) -> fx.Node:
    """The one output of the graph. Changed inputs and changed buffers do not count as outputs.

    Raises:
        BnewError: there is not exactly one, or it is no tensor.
    """
    (results,) = (node.args[0] for node in program.graph.nodes if node.op == "output")
    assert isinstance(results, tuple | list)
    specs = program.graph_signature.output_specs
    outputs = [node for node, spec in zip(results, specs, strict=True) if spec.kind is OutputKind.USER_OUTPUT]
    if len(outputs) != 1 or not isinstance(outputs[0], fx.Node):
        raise BnewError(f"{kind} has {len(outputs)} outputs, but packing needs one tensor")
    return outputs[0]


def _check_state(
    kind: str, program: torch.export.ExportedProgram, output: fx.Node, changed: Set[str]
) -> None:
    """Check that the output does not depend on a buffer that calls of the model have ``changed``.

    Raises:
        BnewError: it does.
    """
    signature = program.graph_signature
    changed = changed | {str(spec.target) for spec in signature.output_specs if spec.kind in _STATE}
    state = {spec.arg.name: spec.target for spec in signature.input_specs if spec.target in changed}
    seen: set[fx.Node] = set()
    todo = [output]
    while todo:
        node = todo.pop()
        if node.name in state:
            raise BnewError(
                f"{kind} changes its '{state[node.name]}' in every call and its output depends on it, but a "
                "packed file has no state: make it constant in eval mode"
            )
        todo += [needed for needed in node.all_input_nodes if needed not in seen]
        seen.update(node.all_input_nodes)
