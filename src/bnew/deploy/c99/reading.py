"""A packed file's nodes become stages, as in the engine's plan (engine/cpp/plan.cpp)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from bnew.deploy.c99.folding import STEPS, Chain
from bnew.deploy.c99.stages import Epilogue, Floats, Shape, Span, Stage, Value, Window
from bnew.deploy.inference import load_engine
from bnew.deploy.limits import BY_SIZE, Limits
from bnew.errors import BnewError
from bnew.packing.file import PackedFile
from bnew.packing.sizes import settled

Tensors: TypeAlias = Mapping[str, npt.NDArray[Any]]

MOST_PLACES = 32767
"""Along an axis, of what a pool reads: ``struct span`` in kernels.c."""


def read_stages(path: str | Path, limits: Limits = BY_SIZE) -> Stages:
    """The stages of a packed file.

    Raises:
        BnewError: the file is damaged, or has what C has no kernel for, see :class:`Stages`.
    """
    packed = PackedFile.read(path)
    load_engine(path, limits=limits)  # checks every field
    tensors = load_file(path)
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise BnewError(f"{path} has weights that are not finite, which C code cannot hold")
    return Stages(packed.graph, tensors)


class Stages:
    """The stages of a file's graph, in the order of its nodes. Iterates over them.

    Raises:
        BnewError: an operator or a step has no kernel in C, or images of bytes cannot be read.
    """

    def __init__(self, graph: Mapping[str, Any], tensors: Tensors) -> None:
        self.graph = graph
        self._tensors = tensors
        self._made: list[Stage] = []
        self._values: dict[str, Value] = {}
        self._names = set[str]()
        if "input" not in graph:
            raise BnewError(
                f"the network takes {len(graph['inputs'])} inputs, and C code is written for one image: run "
                "it with bnew-engine"
            )
        self._add_image(graph["input"])
        for node in graph["nodes"]:
            self._add_node(node)
        if "output" not in graph:
            raise BnewError(f"the network has {len(graph['outputs'])} results, and C code is written for one")
        self.output = self._values[graph["output"]]

    def __iter__(self) -> Iterator[Stage]:
        return iter(self._made)

    def _add_image(self, image: Mapping[str, Any]) -> None:
        if "mean" not in image:
            raise BnewError(
                "the file does not say how bytes of an image become numbers: pack it with mean and std, as "
                "bnew.pack(..., mean=..., std=...) or bnew import --mean ... --std ... does"
            )
        # (b / 255 - mean) / std = b / (255 std) - mean / std
        mean, std = (np.array(image[key], np.float32).astype(np.float64) for key in ("mean", "std"))
        end = Epilogue(scale=(1 / (255.0 * std)).astype(np.float32), shift=(-mean / std).astype(np.float32))
        value = self._value(image["name"], tuple(image["shape"]))
        self._made.append(Stage(self._named("image"), "image", value.shape, end=end, real=value))

    def _add_node(self, node: Mapping[str, Any]) -> None:
        read = READERS.get(node["op"])
        if read is None or (node["op"] == "binary_conv" and node["groups"] != 1):
            what = "'binary_conv' with groups" if read else f"'{node['op']}'"
            raise BnewError(
                f"node '{node['name']}' is the operator {what}, which has no kernel in C yet: run this "
                "network with bnew-engine"
            )
        source = self._values[node["input"]]
        node = settled(node, [source.shape], {name: value.shape for name, value in self._values.items()})
        stage = read(Stage(self._named(node["name"]), "pointwise", source.shape, source), node, self._tensors)
        if stage.kind == "flatten" and ("then" in node or "sign" in node):
            stage = self._next(stage)
        steps = list(self._steps(node, stage.shape))
        while True:
            chain = Chain(stage.shape[0])
            while steps and chain.take(*steps[0]):
                del steps[0]
            stage = replace(stage, end=chain.epilogue())
            if not steps:
                break
            stage = self._next(stage)
        if "output" in node:
            stage = replace(stage, real=self._value(node["output"], stage.shape))
        if "sign" in node:
            stage = self._signed(stage, node["sign"])
        self._made.append(stage)

    def _next(self, stage: Stage) -> Stage:
        """Add the stage with a new value as its result. Returns a stage of steps that reads it."""
        value = self._value(f" {stage.name}", stage.shape)  # no name of the file begins so
        self._made.append(replace(stage, real=value))
        return Stage(self._named(f"{stage.name}_then"), "pointwise", stage.shape, value)

    def _signed(self, stage: Stage, sign: Mapping[str, str]) -> Stage:
        channels = stage.shape[0]
        shift = self._numbers(sign["shift"], channels) if "shift" in sign else np.zeros(channels, np.float32)
        scale = self._numbers(sign["scale"], channels) if "scale" in sign else None
        assert isinstance(stage.end, Epilogue)
        end = replace(stage.end, sign_scale=scale, sign_shift=-shift if scale is None else shift)
        return replace(stage, end=end, signs=self._value(sign["output"], stage.shape, is_bits=True))

    def _steps(self, node: Mapping[str, Any], shape: Shape) -> Iterator[tuple[str, Any]]:
        for step in node.get("then", ()):
            ((kind, argument),) = step.items()
            if kind not in STEPS:
                raise BnewError(
                    f"node '{node['name']}' has the step '{kind}', which has no kernel in C yet: run this "
                    "network with bnew-engine"
                )
            if kind in ("scale", "shift", "prelu"):
                argument = self._numbers(argument, shape[0])
            elif kind in ("add", "multiply"):
                argument = self._values[argument]
            elif kind == "clamp":
                low, high = argument
                argument = (-math.inf if low is None else low, math.inf if high is None else high)
            yield kind, argument

    def _numbers(self, name: str, channels: int) -> Floats:
        return np.broadcast_to(self._tensors[name].astype(np.float32), (channels,))

    def _value(self, name: str, shape: Shape, *, is_bits: bool = False) -> Value:
        self._values[name] = value = Value(name, shape, is_bits)
        return value

    def _named(self, name: str) -> str:
        """A new name in C, like ``name``."""
        plain = re.sub(r"\W", "_", name, flags=re.ASCII) or "stage"
        plain = f"_{plain}" if plain[0].isdigit() else plain
        unique, number = plain, 2
        while unique in self._names:
            unique, number = f"{plain}_{number}", number + 1
        self._names.add(unique)
        return unique


# -------------------------------------------------------------------------------------- operators


def _windowed(stage: Stage, node: Mapping[str, Any]) -> Stage:
    """With the window of a convolution, its shape and its multiply-accumulates."""
    window = Window(*(tuple(node[key]) for key in ("kernel", "stride", "dilation", "padding")))
    channels_in, channels_out = node["channels"]
    sizes = (
        (
            size
            + window.pad[axis]
            + window.pad[axis + 2]
            - window.dilation[axis] * (window.kernel[axis] - 1)
            - 1
        )
        // window.stride[axis]
        + 1
        for axis, size in enumerate(stage.shape[1:])
    )
    shape = (channels_out, *sizes)
    macs = math.prod(shape) * channels_in // node["groups"] * math.prod(window.kernel)
    return replace(stage, kind=node["op"], window=window, groups=node["groups"], shape=shape, macs=macs)


def _conv(stage: Stage, node: Mapping[str, Any], tensors: Tensors) -> Stage:
    weights = tensors[node["weight"]].astype(np.float32).transpose(0, 2, 3, 1)
    return replace(_windowed(stage, node), weights=np.ascontiguousarray(weights))


def _binary_conv(stage: Stage, node: Mapping[str, Any], tensors: Tensors) -> Stage:
    made = _windowed(stage, node)
    return replace(made, weights=tensors[node["weight"]], pad_value=node.get("pad_value", 0))


def _cut(node: Mapping[str, Any], axis: int, size: int) -> Iterator[Span]:
    """Windows along an axis, cut at the image's edge."""
    kernel, stride, before, after = (
        node["kernel"][axis],
        node["stride"][axis],
        node["padding"][axis],
        node["padding"][axis + 2],
    )
    dilation = node.get("dilation", (1, 1))[axis]
    for i in range(node["size"][axis]):
        first = i * stride - before
        until = first + (kernel - 1) * dilation + 1
        padded = min(until, size + after) - first
        first += max(-(first // dilation), 0) * dilation
        yield Span(first, min(until, size), padded if node.get("count_padding") else min(until, size) - first)


def _adaptive(node: Mapping[str, Any], axis: int, size: int) -> Iterator[Span]:
    count = node["size"][axis]
    for i in range(count):
        first, last = i * size // count, -(-(i + 1) * size // count)
        yield Span(first, last, last - first)


def _pool(
    windows: Callable[[Mapping[str, Any], int, int], Iterator[Span]], mean: bool
) -> Callable[[Stage, Mapping[str, Any], Tensors], Stage]:
    def read(stage: Stage, node: Mapping[str, Any], tensors: Tensors) -> Stage:
        channels, height, width = stage.shape
        if max(height, width) > MOST_PLACES:
            raise BnewError(
                f"layer '{stage.name}' reads an image of {height}×{width} places, and pools in C take "
                f"{MOST_PLACES:,} along an axis at most: make it smaller before"
            )
        return replace(
            stage,
            kind="pool",
            mean=mean,
            shape=(channels, *node["size"]),
            dilation=tuple(node.get("dilation", (1, 1))),
            spans=(tuple(windows(node, 0, height)), tuple(windows(node, 1, width))),
        )

    return read


def _identity(stage: Stage, node: Mapping[str, Any], tensors: Tensors) -> Stage:
    return stage


def _flatten(stage: Stage, node: Mapping[str, Any], tensors: Tensors) -> Stage:
    return replace(stage, kind="flatten", shape=(math.prod(stage.shape), 1, 1))


READERS: Mapping[str, Callable[[Stage, Mapping[str, Any], Tensors], Stage]] = {
    "conv": _conv,
    "binary_conv": _binary_conv,
    "max_pool": _pool(_cut, mean=False),
    "avg_pool": _pool(_cut, mean=True),
    "adaptive_avg_pool": _pool(_adaptive, mean=True),
    "identity": _identity,
    "flatten": _flatten,
}
"""Operators of the packed file that have a kernel in C."""
