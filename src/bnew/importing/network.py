"""An imported graph as a module of PyTorch, which packing reads as any other network."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from bnew.errors import BnewError, first_line
from bnew.importing import operators, tflite_operators
from bnew.importing.graph import Array, Graph, Node, merged
from bnew.importing.operators import CONSTANT, Row
from bnew.text import elided

OPERATORS: Mapping[str, Row] = {**operators.OPERATORS, **tflite_operators.OPERATORS}

# A number of the graph is an array if it does not depend on the image's numbers, else a tensor.
Number: TypeAlias = Tensor | Array


class Layer(nn.Module):
    """A node of the graph. It is a module so that messages name it."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node

    def forward(self, *inputs: Number | None) -> tuple[Number, ...]:
        """The node's results.

        Raises:
            BnewError: it computes something that is not imported; the message names it.
        """
        return evaluated(self.node, inputs)


class ImportedNetwork(nn.Module):
    """The network of a file: (N, ...) images → the result, or a dict of several by name.

    Its input is (N, C, H, W), (N, C, L) or (N, C). What does not depend on the image is computed at once.

    Raises:
        BnewError: the graph has operators that are not imported, all of which are named.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.nodes = merged(graph)
        unknown = {node.kind: node.name for node in self.nodes if node.kind not in CONSTANT.union(OPERATORS)}
        if unknown:
            named = elided(
                [f"{kind.removeprefix('tflite.')} (node '{name}')" for kind, name in unknown.items()]
            )
            raise BnewError(f"the file has operators that are not imported: {named}")
        self.constants: dict[str, Array] = dict(graph.constants)
        self.running: list[tuple[Node, str]] = []  # nodes that depend on the image, and their layer's name
        self.held: dict[str, str] = {}  # constants that a layer takes as a tensor, and their buffer's name
        for node in self.nodes:
            given = [None if name is None else self.constants.get(name, name) for name in node.inputs]
            if any(isinstance(each, str) for each in given):
                layer = self._free(node.name)
                self.add_module(layer, Layer(node))
                self.running.append((node, layer))
            else:
                results = evaluated(node, [each for each in given if not isinstance(each, str)])
                self.constants |= zip(node.outputs, map(_array, results), strict=True)
        for node, _ in self.running:
            for place, name in enumerate(node.inputs):
                real = name in self.constants and self.constants[name].dtype.kind == "f"
                if name and real and place not in OPERATORS[node.kind].numbers:
                    self._hold(name)

    def _hold(self, constant: str) -> None:
        if constant not in self.held:
            self.held[constant] = self._free(constant)
            self.register_buffer(self.held[constant], _tensor(self.constants[constant]))

    def _free(self, name: str) -> str:
        """``name`` as a part of a module may be called, and not yet taken."""
        plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "node"
        plain = f"_{plain}" if plain[0].isdigit() else plain
        names = chain([plain], (f"{plain}_{number}" for number in count(2)))
        return next(each for each in names if not hasattr(self, each))

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Images or vectors → what the graph returns."""
        return self.run(images, lambda node, name, inputs: self.get_submodule(name)(*inputs))

    def run(
        self, images: Tensor, compute: Callable[[Node, str, Sequence[Number | None]], Sequence[Number]]
    ) -> Tensor | dict[str, Tensor]:
        """The graph's results, with each node that depends on the image computed by ``compute``.

        It takes the node, its layer's name and its inputs, and returns its results.
        """
        values: dict[str, Number] = {self.graph.input: images}
        for node, name in self.running:
            row = OPERATORS[node.kind]
            inputs = [self._input(values, row, place, each) for place, each in enumerate(node.inputs)]
            values |= zip(node.outputs, compute(node, name, inputs), strict=True)
        results = {name: _tensor(self._value(values, name)) for name in self.graph.outputs}
        return results if len(results) > 1 else next(iter(results.values()))

    def _value(self, values: Mapping[str, Number], name: str) -> Number:
        return values[name] if name in values else self.constants[name]

    def _input(self, values: Mapping[str, Number], row: Row, place: int, name: str | None) -> Number | None:
        if name is None:
            return None
        if name in self.held and place not in row.numbers:
            return self.get_buffer(self.held[name])
        return self._value(values, name)


def evaluated(node: Node, inputs: Sequence[Number | None]) -> tuple[Number, ...]:
    """The results of a node; those of whole numbers that do not depend on the image are arrays.

    Raises:
        BnewError: it computes something that is not imported; the message names it.
    """
    try:
        row = OPERATORS.get(node.kind)
        whole = not any(map(_is_real, inputs))
        if row is None or (whole and row.whole is None):
            results = _by_reference(node, inputs)
        elif whole and row.whole is not None:
            results = row.whole(node, *inputs)
        else:
            results = row.function(node, *_given(row, inputs))
    except KeyError as error:  # an attribute
        raise BnewError(f"{node} is not imported: the file does not say its {error}") from error
    except Exception as error:  # PyTorch and the reference may raise anything
        raise BnewError(f"{node} is not imported: {first_line(error)}") from error
    results = results if isinstance(results, tuple) else (results,)
    if len(results) < len(node.outputs):
        raise BnewError(f"{node} is not imported: it has {len(node.outputs)} results")
    return results[: len(node.outputs)]


def _given(row: Row, inputs: Sequence[Number | None]) -> list[Number | None]:
    """The inputs as a row's function takes them."""
    if any(torch.is_tensor(inputs[place]) for place in row.numbers if place < len(inputs)):
        raise BnewError("what it computes depends on the image's numbers, which is not imported")
    return [
        each if each is None or place in row.numbers else _tensor(each) for place, each in enumerate(inputs)
    ]


def _is_real(number: Number | None) -> bool:
    return isinstance(number, Tensor) or (number is not None and number.dtype.kind == "f")


def _by_reference(node: Node, inputs: Sequence[Any]) -> tuple[Array, ...]:
    """The results for whole numbers, such as lengths, by ONNX's own reference, in the file's opset."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    names = [name or "" for name in node.inputs]
    opset = [helper.make_opsetid("", node.opset)]
    function = helper.make_function("bnew", "node", sorted({*names} - {""}), node.outputs, node.protos, opset)
    given = {name: each for name, each in zip(names, inputs, strict=True) if name}
    results = ReferenceEvaluator(function).run(None, given, attributes={})
    return tuple(np.asarray(each) for each in results)


def _array(number: Number) -> Array:
    return number.numpy() if isinstance(number, Tensor) else number


def _tensor(number: Number) -> Tensor:
    return number if isinstance(number, Tensor) else torch.tensor(number)
