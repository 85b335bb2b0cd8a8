"""Turns a network's outputs into probabilities of classes, if its graph tells what they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bnew_engine._engine import EngineError

Shapes: TypeAlias = Mapping[str, tuple[int, int, int]]


class Result(NamedTuple):
    """What the file says of a result of a network."""

    name: str
    """Empty if it has none."""
    size: list[int]
    """Of its dimensions for one image."""
    numbers: int
    """How many it has for one image."""
    integers: bool
    """Whether they are whole."""


class Predictions(NamedTuple):
    """The likeliest classes of N images and their probabilities, the likeliest first."""

    classes: NDArray[np.object_]
    """(N, top) names."""
    probabilities: NDArray[np.float64]
    """(N, top) numbers from 0 to 1."""


def output_kind(graph: Mapping[str, Any], shapes: Shapes) -> str:
    """How :func:`likeliest` gets probabilities from the outputs.

    ``softmax``: their softmax, computed here. ``own softmax``: the outputs themselves, which are a softmax.
    ``sigmoid``: the outputs themselves, which are between 0 and 1 and independent of each other.
    ``logistic``: the logistic function of the one output.

    Args:
        graph: the graph as in docs/format.md.
        shapes: (C, H, W) of every value, by name.

    Raises:
        EngineError: the output is an image, or consists of probabilities that were altered.
    """
    output = graph["output"] if "output" in graph else graph["outputs"][0]["value"]
    outputs, height, width = shapes[output]
    if (height, width) != (1, 1):
        raise EngineError(
            f"the output is an image of {outputs}×{height}×{width} numbers, and no classes: call the model "
            "that bnew_engine.load returns, for these numbers"
        )
    kinds = {"softmax": "own softmax", "sigmoid": "sigmoid"}
    kinds["numbers"] = "logistic" if outputs == 1 else "softmax"
    ending = _endings(graph, shapes).get(output, "numbers")
    if ending not in kinds:
        raise EngineError(
            "the output is made of probabilities that were scaled, shifted, added, multiplied or joined, and "
            "what it means is not in the file: call the model of bnew_engine.load for these numbers"
        )
    return kinds[ending]


def likeliest(outputs: NDArray[Any], kind: str, classes: Sequence[str], top: int) -> Predictions:
    """The ``top`` likeliest classes from the network's outputs (N, C); ``kind`` is :func:`output_kind`."""
    shares = _shares(outputs.astype(np.float64), kind)
    best = np.argsort(-shares, axis=1, kind="stable")[:, :top]
    names = np.array(classes or [f"class {i}" for i in range(shares.shape[1])], object)
    return Predictions(names[best], np.take_along_axis(shares, best, 1))


def _shares(outputs: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    if kind == "softmax":
        exponentials = np.exp(outputs - outputs.max(1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(1, keepdims=True))
    if kind == "logistic":
        return np.asarray(0.5 + 0.5 * np.tanh(outputs / 2))  # 1 / (1 + exp(−v)), without overflow
    return outputs


def _endings(graph: Mapping[str, Any], shapes: Shapes) -> dict[str, str]:
    """The kind of numbers that the real values of the nodes have, by name.

    ``softmax``: the result of a softmax. ``sigmoid``: independent numbers between 0 and 1. ``altered``: one
    of these two, but scaled, shifted, added, multiplied or joined. ``numbers``: any others.
    """
    endings: dict[str, str] = {}
    for node in graph["nodes"]:
        names = node["inputs"] if "inputs" in node else [node["input"]] if "input" in node else []
        if "output" in node:
            inputs = {endings.get(name, "numbers") for name in names}
            vectors = len(names) == 1 and shapes[names[0]][1:] == (1, 1)
            endings[node["output"]] = _ending_of_node(node, endings, inputs, vectors)
    return endings


def _ending_of_node(
    node: Mapping[str, Any], endings: Mapping[str, str], inputs: set[str], vectors: bool
) -> str:
    """:func:`_endings` of a node's result, from the ``endings`` of all values and of its ``inputs``."""
    ending = _ending_of_operator(node["op"], inputs, vectors)
    for kind, of in _steps(node):
        if kind in ("sigmoid", "hard_sigmoid"):
            ending = "sigmoid"
        elif kind == "clamp":
            ending = _clamped(ending, *of)
        elif kind in ("add", "multiply"):
            other = endings.get(of, "numbers")
            ending = "numbers" if "numbers" in (ending, other) else "altered"
        # prelu keeps numbers that are not negative; exp of a log softmax is a softmax.
        elif kind == "exp" or (kind != "prelu" and ending != "numbers"):
            ending = "altered"
    return ending


def _clamped(ending: str, low: float | None, high: float | None) -> str:
    """The ending after a clamp: [0, 1] turns numbers into a ``sigmoid``; a range beside it alters shares."""
    if ending == "numbers":
        return "sigmoid" if (low, high) == (0, 1) else "numbers"
    leaves_some = (low is None or low < 1) and (high is None or high > 0)
    return ending if leaves_some else "altered"


def _ending_of_operator(op: str, inputs: set[str], vectors: bool) -> str:
    if op in ("softmax", "argmax"):
        return "softmax" if op == "softmax" else "altered"
    keeps = (
        "identity", "flatten", "concat", "concat_rows", "concat_columns", "rearrange", "pad", "max_pool",
        "avg_pool", "adaptive_avg_pool", "resize_nearest", "resize_bilinear",
    )  # fmt: skip
    if op not in keeps:
        return "numbers"
    if len(inputs) > 1:
        return "altered"
    (before,) = inputs
    if op == "pad" and before != "numbers":
        return "altered"
    # A flattened image, some numbers of a vector, and pooling other than by means change the sum of a softmax
    # from 1.
    whole = op in ("identity", "adaptive_avg_pool", "resize_nearest", "resize_bilinear")
    whole = whole or (vectors and op != "rearrange")
    return "altered" if before == "softmax" and not whole else before


def _steps(node: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return ((kind, of) for step in node.get("then", ()) for kind, of in step.items())
