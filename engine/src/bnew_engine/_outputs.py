"""What a network's outputs mean: probabilities of classes, as far as its graph says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnew_engine._engine import EngineError


class Predictions(NamedTuple):
    """The likeliest classes of N images and their probabilities, the likeliest first."""

    classes: NDArray[np.object_]
    """(N, top) names."""
    probabilities: NDArray[np.float64]
    """(N, top) numbers from 0 to 1."""


def output_kind(graph: Mapping[str, Any], shape: tuple[int, int, int]) -> str:
    """What the probabilities of :func:`likeliest` are.

    ``softmax``: of the network's numbers, taken here; ``own softmax``: the network's own. ``sigmoid``: the
    network's own numbers between 0 and 1, independent of each other. ``logistic``: of the one number that it
    returns.

    Args:
        graph: as in docs/format.md.
        shape: (C, H, W) of the output.

    Raises:
        EngineError: the output is an image, or it is made of probabilities that were altered.
    """
    outputs, height, width = shape
    if (height, width) != (1, 1):
        raise EngineError(
            f"the output is an image of {outputs}×{height}×{width} numbers, and no classes: call the model "
            "that bnew_engine.load returns, for these numbers"
        )
    kinds = {"softmax": "own softmax", "sigmoid": "sigmoid"}
    kinds["numbers"] = "logistic" if outputs == 1 else "softmax"
    ending = _ending(graph)
    if ending not in kinds:
        raise EngineError(
            "the output is made of probabilities that were scaled, shifted, added, multiplied or joined, and "
            "what it means is not in the file: call the model of bnew_engine.load for these numbers"
        )
    return kinds[ending]


def likeliest(outputs: NDArray[Any], kind: str, classes: Sequence[str], top: int) -> Predictions:
    """The ``top`` likeliest classes by the network's outputs (N, C), of :func:`output_kind` ``kind``."""
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


def _ending(graph: Mapping[str, Any]) -> str:
    """What the output is: of a ``softmax``; of a ``sigmoid``, each number between 0 and 1 by itself;
    ``altered``, if these were scaled, shifted, added, multiplied or joined; or ``numbers`` of any size.
    """
    shapes: dict[str, tuple[int, ...]] = {graph["input"]["name"]: tuple(graph["input"]["shape"])}
    endings: dict[str, str] = {}
    for node in graph["nodes"]:
        names = node["inputs"] if node["op"] == "concat" else [node["input"]]
        shape = _result_shape(node, [shapes[name] for name in names])
        if "sign" in node:
            shapes[node["sign"]["output"]] = shape
        if "output" in node:
            shapes[node["output"]] = shape
            inputs = {endings.get(name, "numbers") for name in names}
            vectors = len(names) == 1 and shapes[names[0]][1:] == (1, 1)
            endings[node["output"]] = _ending_of_node(node, endings, inputs, vectors)
    return endings.get(graph["output"], "numbers")


def _ending_of_node(
    node: Mapping[str, Any], endings: Mapping[str, str], inputs: set[str], vectors: bool
) -> str:
    """That of a node's result, from those of all values and of its ``inputs``."""
    ending = _ending_of_operator(node["op"], inputs, vectors)
    for kind, of in _steps(node):
        if kind in ("sigmoid", "hard_sigmoid"):
            ending = "sigmoid"
        elif kind == "clamp":
            ending = _clamped(ending, *of)
        elif kind in ("add", "multiply"):
            other = endings.get(of, "numbers")
            ending = "numbers" if "numbers" in (ending, other) else "altered"
        elif kind != "prelu" and ending != "numbers":  # prelu changes nothing of what is never negative
            ending = "altered"
    return ending


def _clamped(ending: str, low: float | None, high: float | None) -> str:
    """The ending of what is clamped: 0 to 1 makes shares of numbers, and other limits may leave none."""
    if ending == "numbers":
        return "sigmoid" if (low, high) == (0, 1) else "numbers"
    leaves_some = (low is None or low < 1) and (high is None or high > 0)
    return ending if leaves_some else "altered"


def _ending_of_operator(op: str, inputs: set[str], vectors: bool) -> str:
    if op == "softmax":
        return "softmax"
    keeps = (
        "identity", "flatten", "concat", "max_pool", "avg_pool", "adaptive_avg_pool", "resize_nearest",
    )  # fmt: skip
    if op not in keeps:
        return "numbers"
    if len(inputs) > 1:
        return "altered"
    (before,) = inputs
    # Of several places, or pooled otherwise than by means, the shares of all classes no longer sum to 1.
    whole = vectors or op in ("identity", "adaptive_avg_pool", "resize_nearest")
    return "altered" if before == "softmax" and not whole else before


def _steps(node: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return ((kind, of) for step in node.get("then", ()) for kind, of in step.items())


def _result_shape(node: Mapping[str, Any], inputs: list[tuple[int, ...]]) -> tuple[int, ...]:
    channels, height, width = inputs[0]
    if node["op"] in ("conv", "binary_conv"):
        top, left, bottom, right = node["padding"]
        (sy, sx), (dy, dx), (kh, kw) = node["stride"], node["dilation"], node["kernel"]
        rows = (height + top + bottom - dy * (kh - 1) - 1) // sy + 1
        return node["channels"][1], rows, (width + left + right - dx * (kw - 1) - 1) // sx + 1
    if node["op"] == "flatten":
        return channels * height * width, 1, 1
    if node["op"] == "concat":
        return sum(shape[0] for shape in inputs), height, width
    if "size" in node:
        return channels, node["size"][0], node["size"][1]
    return channels, height, width
