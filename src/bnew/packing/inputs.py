"""The inputs of a model: an example of each, its name, and how the model's ``forward`` gets it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor, nn

from bnew.errors import BnewError

Example: TypeAlias = Tensor | Sequence[Tensor] | Mapping[str, Tensor]

ONLY = "input"  # the name of a single input


@dataclass(frozen=True)
class Inputs:
    """Batches for a model's inputs: in order, ``args``, then by name, ``kwargs``.

    ``names`` are those of all, in the order of the parameters of ``forward``; a single input is ``input``.
    """

    args: tuple[Tensor, ...]
    kwargs: Mapping[str, Tensor]
    names: tuple[str, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The batch of each input, in the order of ``names``."""
        return (*self.args, *self.kwargs.values())

    @property
    def sizes(self) -> str:
        """The sizes of all batches, for messages."""
        sizes = [str(tuple(tensor.shape)) for tensor in self.tensors]
        if len(sizes) == 1:
            return f"an example of shape {sizes[0]}"
        named = (f"'{name}' {size}" for name, size in zip(self.names, sizes, strict=True))
        return f"examples of shapes {', '.join(named)}"

    def changed(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same with another tensor in place of each."""
        kwargs = {name: change(tensor) for name, tensor in self.kwargs.items()}
        return replace(self, args=tuple(map(change, self.args)), kwargs=kwargs)

    def images(self, count: int) -> Inputs:
        """The same with ``count`` times the first image of each."""
        return self.changed(lambda tensor: tensor[:1].expand(count, *tensor.shape[1:]).contiguous())


def inputs_of(model: nn.Module, example: Example) -> Inputs:
    """The model's inputs: one tensor, several in the order of its parameters, or several by their names.

    Raises:
        BnewError: one of them cannot be an input of a packed file, they are no arguments of the model, or
            their numbers of images or types differ.
    """
    inputs = bound(model, example)
    if unfit := [name for name in inputs.names if not name or not name.isprintable()]:
        raise BnewError(f"an example input is called {unfit[0]!r}: give it a name that can be shown")
    for name, tensor in zip(inputs.names, inputs.tensors, strict=True):
        _check("the example input" if len(inputs.names) == 1 else f"the example input '{name}'", tensor)
    first = inputs.tensors[0]
    for name, tensor in zip(inputs.names, inputs.tensors, strict=True):
        if len(tensor) != len(first) or tensor.dtype != first.dtype:
            raise BnewError(
                f"the example input '{inputs.names[0]}' is {len(first)} images of {first.dtype}, and "
                f"'{name}' {len(tensor)} of {tensor.dtype}: give as many of each, of one type"
            )
    return inputs


def bound(model: nn.Module, example: Example) -> Inputs:
    """The inputs as the model's ``forward`` gets them, with the names of its parameters.

    Raises:
        BnewError: there is none, or they are no arguments of the model.
    """
    if isinstance(example, Tensor):
        return Inputs((example,), {}, (ONLY,))
    args, kwargs = ((), example) if isinstance(example, Mapping) else (example, {})
    if not isinstance(args, tuple | list) or not (args or kwargs):
        raise BnewError(NO_TENSOR.format("the example input"))
    try:
        found = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise BnewError(f"{type(model).__name__} does not take these example inputs: {error}") from None
    parameters = found.signature.parameters
    names: list[str] = []
    for name, value in found.arguments.items():
        match parameters[name].kind:
            case inspect.Parameter.VAR_POSITIONAL:
                names += [f"{name}.{place}" for place in range(len(value))]
            case inspect.Parameter.VAR_KEYWORD:
                names += value
            case _:
                names.append(name)
    return Inputs(found.args, found.kwargs, tuple(names) if len(names) > 1 else (ONLY,))


NO_TENSOR = "{} is no tensor of floating-point numbers: packing needs a batch of images"


def _check(what: str, example: Any) -> None:
    if not isinstance(example, Tensor) or not example.is_floating_point():
        raise BnewError(NO_TENSOR.format(what))
    shape = tuple(example.shape)
    if len(shape) not in (2, 3, 4) or 0 in shape:
        raise BnewError(
            f"{what} has shape {shape}, but must be (N, C, H, W), (N, C, L) for a network of lines, or "
            "(N, C) for one of vectors"
        )
