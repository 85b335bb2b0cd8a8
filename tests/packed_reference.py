"""A slow, readable reader and interpreter of the packed file, from docs/format.md alone: the oracle.

It knows all that the page allows; :func:`check_tidy` is what ``bnew.pack`` promises besides.

Everything is float64 until a node gives its value, which is float32, so that a test can tell rounding from
mistakes.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DTYPES = {"U32": "<u4", "F32": "<f4", "F16": "<f2"}
FIELDS = {
    "conv": {"weight", "channels", "kernel", "stride", "padding", "dilation", "groups"},
    "max_pool": {"kernel", "stride", "padding", "dilation", "size"},
    "avg_pool": {"kernel", "stride", "padding", "size", "count_padding"},
    "adaptive_avg_pool": {"size"},
    "resize_nearest": {"size", "scale"},
    "layer_norm": {"eps"},
    "identity": set(),
    "concat": set(),
    "flatten": set(),
    "softmax": set(),
}
FIELDS["binary_conv"] = FIELDS["conv"]
# What a step has: the name of a tensor or of a value, two bounds, or nothing.
STEPS = {
    "scale": "T",
    "shift": "T",
    "add": "V",
    "multiply": "V",
    "prelu": "T",
    "clamp": "[lo, hi]",
    "sigmoid": "{}",
    "hard_sigmoid": "{}",
    "sign": "{}",
    "gelu": "{}",
    "gelu_tanh": "{}",
}


@dataclass
class PackedFile:
    """Header and tensors of a file, checked against docs/format.md."""

    graph: dict[str, Any]
    tensors: dict[str, Array]
    header_bytes: int

    @property
    def tensor_bytes(self) -> int:
        return sum(array.nbytes for array in self.tensors.values())


def load(path: str | Path) -> PackedFile:
    data = Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert set(metadata) - {"crc32"} == {"format", "version", "graph"}
    if "crc32" in metadata:
        digits = data.index(b'"crc32":"', 8, 8 + length) + 9
        assert metadata["crc32"] == data[digits : digits + 8].decode()
        assert metadata["crc32"] == f"{zlib.crc32(data[:digits] + b'0' * 8 + data[digits + 8 :]):08x}"
    assert (metadata["format"], metadata["version"]) == ("bnew", "1")
    body = data[8 + length :]
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        assert begin == end, "gap or overlap"
        dtype = np.dtype(DTYPES[entry["dtype"]])
        assert stop - begin == dtype.itemsize * int(np.prod(entry["shape"]))
        tensors[name] = np.frombuffer(body[begin:stop], dtype).reshape(entry["shape"])
        end = stop
    assert end == len(body), "bytes left over"
    graph = json.loads(metadata["graph"])
    check(graph, tensors)
    return PackedFile(graph, tensors, 8 + length)


def check(graph: dict[str, Any], tensors: dict[str, Array]) -> None:
    """Every field is known, every name is given before it is used, and real where real is needed."""
    assert set(graph) - {"classes"} == {"input", "nodes", "output"}
    image = graph["input"]
    assert set(image) - {"mean", "std", "resize"} == {"name", "shape"}
    assert ("mean" in image) == ("std" in image)
    if "resize" in image:
        assert all(a >= b for a, b in zip(image["resize"], image["shape"][1:], strict=True))
    kinds = {image["name"]: "real"}

    def give(name: str, kind: str) -> None:
        assert name not in kinds, f"{name} is given twice"
        kinds[name] = kind

    def use(name: str, kind: str) -> None:
        assert kinds[name] == kind, f"{name} is {kinds[name]}, not {kind}"

    for node in graph["nodes"]:
        feeds = "inputs" if node["op"] == "concat" else "input"
        assert FIELDS[node["op"]] | {"op", "name", feeds} == set(node) - {"then", "output", "sign"}
        assert "output" in node or "sign" in node
        for name in node["inputs"] if feeds == "inputs" else [node["input"]]:
            use(name, "bits" if node["op"] == "binary_conv" else "real")
        if "weight" in node:
            c_in, c_out = node["channels"]
            shape = (c_out, c_in // node["groups"], *node["kernel"])
            if node["op"] == "binary_conv":
                shape = (c_out, -(-int(np.prod(shape[1:])) // 32))
            assert tensors[node["weight"]].shape == shape
            assert (tensors[node["weight"]].dtype == np.uint32) == (node["op"] == "binary_conv")
        for step in node.get("then", []):
            ((kind, argument),) = step.items()
            match STEPS[kind]:
                case "T":
                    assert tensors[argument].ndim == 1
                case "V":
                    use(argument, "real")
                case "[lo, hi]":
                    assert len(argument) == 2
                case "{}":
                    assert argument == {}
        if "output" in node:
            give(node["output"], "real")
        if "sign" in node:
            assert set(node["sign"]) - {"scale", "shift"} == {"output"}
            assert all(tensors[name].ndim == 1 for key, name in node["sign"].items() if key != "output")
            give(node["sign"]["output"], "bits")
    use(graph["output"], "real")


def check_tidy(file: PackedFile) -> None:
    """Nothing in the file is there in vain, every layer has a name of its own, and tensors are aligned."""
    names = [node["name"] for node in file.graph["nodes"]]
    assert len(set(names)) == len(names), "node names are not unique"
    given, used, named = set(), {file.graph["output"]}, set()
    for node in file.graph["nodes"]:
        sign = node.get("sign", {})
        given |= {part["output"] for part in (node, sign) if "output" in part}
        used |= set(node.get("inputs") or [node["input"]])
        named |= {node["weight"]} if "weight" in node else set()
        named |= {name for key, name in sign.items() if key != "output"}
        for step in node.get("then", []):
            ((kind, argument),) = step.items()
            if STEPS[kind] in ("T", "V"):
                (named if STEPS[kind] == "T" else used).add(argument)
    assert given <= used, "a value is never used"
    assert set(file.tensors) == named, "a tensor is never used"
    sizes = [array.itemsize for array in file.tensors.values()]  # in the order of their bytes
    assert sizes == sorted(sizes, reverse=True), "a tensor is not aligned"


def unpack(words: Array, c_in: int, kernel: tuple[int, int]) -> Array:
    """Words (C_out, ⌈K / 32⌉) → ±1 (C_out, C_in / groups, kh, kw)."""
    kh, kw = kernel
    weight = np.empty((len(words), c_in, kh, kw))
    for o, row in enumerate(words):
        for c in range(c_in):
            for y in range(kh):
                for x in range(kw):
                    i = (y * kw + x) * c_in + c
                    weight[o, c, y, x] = 1 if int(row[i // 32]) >> (i % 32) & 1 else -1
    bits = sum(int(word).bit_count() for word in words.flat)
    assert bits == (weight > 0).sum(), "bits from K on are not clear"
    return weight


def windows(x: Array, node: dict[str, Any], size: tuple[int, int], fill: float) -> Array:
    """(N, C, H, W) → (N, C, H', W', kh, kw): the places of each window; ``fill`` outside the image."""
    (kh, kw), (sy, sx), (top, left, bottom, right) = node["kernel"], node["stride"], node["padding"]
    dy, dx = node.get("dilation", [1, 1])
    # Windows of a size that was rounded up reach beyond the padding.
    wide = np.pad(
        x, ((0, 0), (0, 0), (top, bottom + sy + dy * kh), (left, right + sx + dx * kw)), constant_values=fill
    )
    rows = np.arange(size[0])[:, None] * sy + np.arange(kh) * dy
    columns = np.arange(size[1])[:, None] * sx + np.arange(kw) * dx
    return wide[:, :, rows[:, None, :, None], columns[None, :, None, :]]


def convolve(x: Array, weight: Array, node: dict[str, Any]) -> Array:
    (kh, kw), (sy, sx), (top, left, bottom, right) = node["kernel"], node["stride"], node["padding"]
    dy, dx = node["dilation"]
    height = (x.shape[2] + top + bottom - dy * (kh - 1) - 1) // sy + 1
    width = (x.shape[3] + left + right - dx * (kw - 1) - 1) // sx + 1
    patches = windows(x, node, (height, width), 0)
    parts = zip(np.split(patches, node["groups"], 1), np.split(weight, node["groups"], 0), strict=True)
    return np.concatenate([np.einsum("nchwyx,ocyx->nohw", p, w, optimize=True) for p, w in parts], 1)


def max_pool(x: Array, node: dict[str, Any]) -> Array:
    return np.asarray(windows(x, node, tuple(node["size"]), -np.inf).max((-2, -1)))


def avg_pool(x: Array, node: dict[str, Any]) -> Array:
    sums = windows(x, node, tuple(node["size"]), 0).sum((-2, -1))
    inside = np.ones((1, 1, *x.shape[2:]))
    if node["count_padding"]:
        top, left, bottom, right = node["padding"]
        inside = np.ones((1, 1, x.shape[2] + top + bottom, x.shape[3] + left + right))
        node = {**node, "padding": [0, 0, 0, 0]}
    return np.asarray(sums / windows(inside, node, tuple(node["size"]), 0).sum((-2, -1)))


def adaptive_avg_pool(x: Array, node: dict[str, Any]) -> Array:
    h, w = node["size"]
    height, width = x.shape[2:]
    out = np.empty((*x.shape[:2], h, w))
    for i in range(h):
        for j in range(w):
            rows = slice(i * height // h, -(-(i + 1) * height // h))
            columns = slice(j * width // w, -(-(j + 1) * width // w))
            out[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    return out


def resize_nearest(x: Array, node: dict[str, Any]) -> Array:
    for axis in (2, 3):
        size, scale = node["size"][axis - 2], np.float32(node["scale"][axis - 2])
        places = np.floor(np.arange(size, dtype=np.float32) * scale)
        x = x.take(np.minimum(places, x.shape[axis] - 1).astype(int), axis)
    return x


def layer_norm(x: Array, node: dict[str, Any]) -> Array:
    difference = x - x.mean(1, keepdims=True)
    variance = (difference**2).mean(1, keepdims=True)
    return np.asarray(difference / np.sqrt(variance + np.float32(node["eps"])))


def erf(x: Array) -> Array:
    return np.asarray(np.vectorize(math.erf, [np.float64])(x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def sign(v: Array) -> Array:
    return np.where(v >= 0, 1.0, -1.0)


class Reference:
    """Runs a packed file; ``values`` and ``integers`` (of binary convolutions, by node) of the last batch."""

    def __init__(self, path: str | Path) -> None:
        self.file = load(path)
        self.values: dict[str, Array] = {}
        self.integers: dict[str, Array] = {}

    def __call__(self, x: Array) -> Array:
        """float (N, C, H, W), or bytes (N, H, W, C), to the output; a vector as (N, C)."""
        graph = self.file.graph
        image = graph["input"]
        if x.dtype == np.uint8:
            x = ((x / 255 - image["mean"]) / image["std"]).transpose(0, 3, 1, 2)
        assert list(x.shape[1:]) == image["shape"]
        self.values = {image["name"]: x.astype(np.float32)}
        self.integers = {}
        for node in graph["nodes"]:
            self._run(node)
        out = self.values[graph["output"]]
        return out[:, :, 0, 0] if out.shape[2:] == (1, 1) else out

    def _numbers(self, name: str, channels: int) -> Array:
        numbers = self.file.tensors[name].astype(np.float64)
        assert numbers.shape in ((1,), (channels,))
        return numbers[:, None, None]

    def _run(self, node: dict[str, Any]) -> None:
        v = self._operate(node)
        for step in node.get("then", []):
            ((kind, argument),) = step.items()
            v = self._step(v, kind, argument)
        if "output" in node:
            self.values[node["output"]] = v.astype(np.float32)
        if "sign" in node:
            for kind in ("scale", "shift"):
                if kind in node["sign"]:
                    v = self._step(v, kind, node["sign"][kind])
            self.values[node["sign"]["output"]] = sign(v)

    def _operate(self, node: dict[str, Any]) -> Array:
        names = node.get("inputs") or [node["input"]]
        inputs = [self.values[name].astype(np.float64) for name in names]
        x = inputs[0]
        match node["op"]:
            case "conv":
                return convolve(x, self.file.tensors[node["weight"]].astype(np.float64), node)
            case "binary_conv":
                words = self.file.tensors[node["weight"]]
                weight = unpack(words, node["channels"][0] // node["groups"], node["kernel"])
                self.integers[node["name"]] = convolve(x, weight, node)
                return self.integers[node["name"]]
            case "max_pool":
                return max_pool(x, node)
            case "avg_pool":
                return avg_pool(x, node)
            case "adaptive_avg_pool":
                return adaptive_avg_pool(x, node)
            case "resize_nearest":
                return resize_nearest(x, node)
            case "layer_norm":
                return layer_norm(x, node)
            case "identity":
                return x
            case "concat":
                return np.concatenate(inputs, 1)
            case "flatten":
                return x.reshape(len(x), -1, 1, 1)
            case "softmax":
                return softmax(x)
        raise AssertionError(node["op"])

    def _step(self, v: Array, kind: str, argument: Any) -> Array:
        channels = v.shape[1]
        match kind:
            case "scale":
                return v * self._numbers(argument, channels)
            case "shift":
                return v + self._numbers(argument, channels)
            case "prelu":
                return np.where(v >= 0, v, v * self._numbers(argument, channels))
            case "add" | "multiply":
                other = self.values[argument].astype(np.float64)
                assert channels % other.shape[1] == 0
                assert other.shape[2:] in (v.shape[2:], (1, 1))
                other = other[:, np.arange(channels) % other.shape[1]]
                return v + other if kind == "add" else v * other
            case "clamp":
                lowest, highest = argument
                v = v if lowest is None else np.maximum(v, lowest)
                return v if highest is None else np.minimum(v, highest)
            case "sigmoid":
                return np.asarray(1 / (1 + np.exp(-v)))
            case "hard_sigmoid":
                return np.clip(v / 6 + 0.5, 0, 1)
            case "sign":
                return sign(v)
            case "gelu":
                return np.asarray(v / 2 * (1 + erf(v / math.sqrt(2))))
            case "gelu_tanh":
                return np.asarray(v / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))))
        raise AssertionError(kind)
