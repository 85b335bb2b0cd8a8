"""A slow, readable reader and interpreter of the packed file, from docs/format.md alone: the oracle.

It knows all that the page allows; :func:`check_tidy` is what ``bnew.pack`` promises besides.

Everything is float64 until a node gives its value, which is float32, so that a test can tell rounding from
mistakes.
"""

from __future__ import annotations

import itertools
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
    "rms_norm": {"eps"},
    "l2_norm": {"eps"},
    "group_norm": {"groups", "eps"},
    "identity": set(),
    "concat": set(),
    "concat_rows": set(),
    "concat_columns": set(),
    "flatten": set(),
    "softmax": set(),
    "rearrange": {"shape", "sizes", "strides", "offset"},
    "constant": {"shape", "weight"},
    "pad": {"padding", "mode"},
    "resize_bilinear": {"size", "scale", "corners"},
    "matmul": {"transposed"},
    "log_softmax": set(),
    "argmax": set(),
}
FIELDS["binary_conv"] = FIELDS["conv"]
OPTIONAL = {"binary_conv": {"pad_value"}, "pad": {"value"}, "rearrange": {"like"}}
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
    "silu": "{}",
    "hard_swish": "{}",
    "mish": "{}",
    "softplus": "{}",
    "elu": "{}",
    "softsign": "{}",
    "tanh": "{}",
    "exp": "{}",
    "log": "{}",
    "sqrt": "{}",
    "reciprocal": "{}",
    "abs": "{}",
    "round": "{}",
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


def inputs_of(graph: dict[str, Any]) -> list[dict[str, Any]]:
    return graph["inputs"] if "inputs" in graph else [graph["input"]]


def outputs_of(graph: dict[str, Any]) -> list[dict[str, Any]]:
    return graph["outputs"] if "outputs" in graph else [{"value": graph["output"]}]


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
    assert ("input" in graph) != ("inputs" in graph)
    assert ("output" in graph) != ("outputs" in graph)
    assert set(graph) - {"classes", "input", "inputs", "output", "outputs"} == {"nodes"}
    alone = {"resize", "any_size"} if "input" in graph else set[str]()
    for image in inputs_of(graph):
        assert set(image) - {"mean", "std", "size"} - alone == {"name", "shape"}
        if "size" in image:
            assert "any_size" not in image
            assert [*image["size"], 1, 1][:3] == image["shape"]
        assert image.get("any_size", True) is True
        assert ("mean" in image) == ("std" in image)
        if "resize" in image:
            assert all(a >= b for a, b in zip(image["resize"], image["shape"][1:], strict=True))
    kinds = {image["name"]: "real" for image in inputs_of(graph)}
    assert len(kinds) == len(inputs_of(graph)) > ("inputs" in graph)

    def give(name: str, kind: str) -> None:
        assert name not in kinds, f"{name} is given twice"
        kinds[name] = kind

    def use(name: str, kind: str) -> None:
        assert kinds[name] == kind, f"{name} is {kinds[name]}, not {kind}"

    for node in graph["nodes"]:
        lists = node["op"] in ("concat", "concat_rows", "concat_columns", "matmul")
        feeds = {"inputs"} if lists else set() if node["op"] == "constant" else {"input"}
        left_out = {"then", "output", "sign"} | OPTIONAL.get(node["op"], set())
        assert FIELDS[node["op"]] | {"op", "name"} | feeds == set(node) - left_out
        assert node.get("pad_value", 1) in (1, -1)
        assert ("value" in node) == (node.get("mode") == "constant")
        assert "output" in node or "sign" in node
        for name in names_of(node):
            use(name, "bits" if node["op"] == "binary_conv" else "real")
        if node["op"] == "constant":
            given = tensors[node["weight"]].shape
            assert given in ((1,), (node["shape"][0],), tuple(node["shape"]))
        elif "weight" in node:
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
    for entry in outputs_of(graph):
        use(entry["value"], "real")
        assert set(entry) - {"name", "size", "integers"} == {"value"}
    names = [entry["name"] for entry in outputs_of(graph) if "name" in entry]
    assert len(set(names)) == len(names)
    assert len(names) in (0, len(outputs_of(graph)))


def places(size: int, before: int, after: int, node: dict[str, Any], axis: int) -> int:
    """How many windows a pool has along an axis, counted one by one."""
    reach = node.get("dilation", [1, 1])[axis] * (node["kernel"][axis] - 1) + 1
    step, count = node["stride"][axis], 0
    while count * step + reach <= before + size + after:
        count += 1
    if node["size"] == "ceil":  # one more, if some places are left, and it does not begin behind the image
        left = before + size + after - ((count - 1) * step + reach)
        count += left > 0 and count * step < before + size
        count -= left <= 0 and (count - 1) * step >= before + size
    return count


def with_sizes(
    node: dict[str, Any], shape: tuple[int, ...], shapes: dict[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The node with numbers in place of what follows from the sizes of values, (C, H, W)."""
    if node["op"] == "rearrange":
        _, height, width = shapes[node["like"]] if "like" in node else shape

        def number(rule: Any) -> Any:
            return rule[0] * height ** rule[1] * width ** rule[2] if isinstance(rule, list) else rule

        lists = {field: [number(rule) for rule in node[field]] for field in ("shape", "sizes", "strides")}
        return {**node, **lists, "offset": number(node["offset"])}
    size: Any = node.get("size")
    if node["op"] in ("max_pool", "avg_pool") and isinstance(size, str):
        assert size in ("floor", "ceil")
        top, left, bottom, right = node["padding"]
        ends = [(top, bottom), (left, right)]
        return {**node, "size": [places(shape[1 + a], *ends[a], node, a) for a in (0, 1)]}
    if node["op"] in ("resize_nearest", "resize_bilinear"):
        if isinstance(size, str):
            size = shapes[size][1:]
        elif isinstance(size, dict):
            assert set(size) == {"times"}
            size = [int(shape[1 + a] * size["times"][a]) for a in (0, 1)]
        scale = node["scale"]
        if scale == "size":
            less = int(node.get("corners", False))
            pairs = [(np.float32(shape[1 + a] - less), np.float32(size[a] - less)) for a in (0, 1)]
            scale = [before / after if after else 0.0 for before, after in pairs]
        return {**node, "size": list(size), "scale": scale}
    return node


def names_of(node: dict[str, Any]) -> list[str]:
    """The names of a node's inputs."""
    return node["inputs"] if "inputs" in node else [node["input"]] if "input" in node else []


def check_tidy(file: PackedFile) -> None:
    """Nothing in the file is there in vain, every layer has a name of its own, and tensors are aligned."""
    names = [node["name"] for node in file.graph["nodes"]]
    assert len(set(names)) == len(names), "node names are not unique"
    given, used, named = set(), {entry["value"] for entry in outputs_of(file.graph)}, set()
    for node in file.graph["nodes"]:
        sign = node.get("sign", {})
        given |= {part["output"] for part in (node, sign) if "output" in part}
        used |= set(names_of(node))
        used |= {node[field] for field in ("like", "size") if isinstance(node.get(field), str)}
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
    patches = windows(x, node, (height, width), node.get("pad_value", 0))
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


def rearrange(x: Array, node: dict[str, Any]) -> Array:
    numbers = x.transpose(0, 2, 3, 1).reshape(len(x), -1)  # the channel is fastest
    places = []
    for indices in itertools.product(*map(range, node["sizes"])):
        places.append(node["offset"] + sum(i * t for i, t in zip(indices, node["strides"], strict=True)))
    assert min(places) >= 0
    channels, height, width = node["shape"]
    return numbers[:, places].reshape(len(x), height, width, channels).transpose(0, 3, 1, 2)


def pad(x: Array, node: dict[str, Any]) -> Array:
    top, left, bottom, right = node["padding"]
    around = ((0, 0), (0, 0), (top, bottom), (left, right))
    match node["mode"]:
        case "constant":
            return np.pad(x, around, constant_values=np.float32(node["value"]))
        case "reflect":
            assert max(top, bottom) < x.shape[2]
            assert max(left, right) < x.shape[3]
            return np.pad(x, around, "reflect")
        case "replicate":
            return np.pad(x, around, "edge")
        case "circular":
            assert max(top, bottom) <= x.shape[2]
            assert max(left, right) <= x.shape[3]
            return np.pad(x, around, "wrap")
    raise AssertionError(node["mode"])


def resize_bilinear(x: Array, node: dict[str, Any]) -> Array:
    for axis in (2, 3):
        count, scale, size = node["size"][axis - 2], np.float32(node["scale"][axis - 2]), x.shape[axis]
        places, half = np.arange(count, dtype=np.float32), np.float32(0.5)
        places = (places + half) * scale - half if not node["corners"] else places * scale
        places = np.clip(places, 0, None)
        lower = np.minimum(np.floor(places), size - 1)
        shape = [-1 if a == axis else 1 for a in range(4)]
        weight = np.minimum(places - lower, 1).astype(np.float64).reshape(shape)
        upper = np.minimum(lower + 1, size - 1)
        x = x.take(lower.astype(int), axis) * (1 - weight) + x.take(upper.astype(int), axis) * weight
    return x


def matmul(a: Array, b: Array, transposed: bool) -> Array:
    a, b = a.transpose(0, 2, 3, 1), b.transpose(0, 2, 3, 1)  # (N, H, W, C): matrices W × C
    return (a @ (b.swapaxes(2, 3) if transposed else b)).transpose(0, 3, 1, 2)


def rms_norm(x: Array, node: dict[str, Any]) -> Array:
    return np.asarray(x / np.sqrt((x**2).mean(1, keepdims=True) + np.float32(node["eps"])))


def l2_norm(x: Array, node: dict[str, Any]) -> Array:
    return np.asarray(x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), np.float32(node["eps"])))


def group_norm(x: Array, node: dict[str, Any]) -> Array:
    parts = np.split(x, node["groups"], 1)
    normal = [
        (part - part.mean((1, 2, 3), keepdims=True))
        / np.sqrt(part.var((1, 2, 3), keepdims=True) + np.float32(node["eps"]))
        for part in parts
    ]
    return np.concatenate(normal, 1)


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
        self.images = 0

    def __call__(self, *images: Array) -> Any:
        """float (N, C, H, W), or bytes (N, H, W, C), to the output or outputs; a vector as (N, C)."""
        graph = self.file.graph
        self.values, self.integers = {}, {}
        for image, x in zip(inputs_of(graph), images, strict=True):
            if x.dtype == np.uint8:
                x = ((x / 255 - image["mean"]) / image["std"]).transpose(0, 3, 1, 2)
            assert list(x.shape[1:]) == image["shape"] or (
                image.get("any_size") and x.shape[1] == image["shape"][0]
            )
            self.values[image["name"]] = x.astype(np.float32)
            self.images = len(x)
        for node in graph["nodes"]:
            self._run(node)
        if "outputs" in graph:
            found = [self._result(**each) for each in graph["outputs"]]
            if "name" in graph["outputs"][0]:
                return {each["name"]: out for each, out in zip(graph["outputs"], found, strict=True)}
            return found if len(found) > 1 else found[0]
        return self._result(graph["output"])

    def _result(
        self, value: str, size: list[int] | None = None, name: str = "", integers: bool = False
    ) -> Array:
        out = self.values[value]
        out = np.rint(out).astype(np.int64) if integers else out
        if size is not None:
            return out.reshape(len(out), *size)
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
        inputs = [self.values[name].astype(np.float64) for name in names_of(node)]
        x = inputs[0] if inputs else np.empty(0)
        if inputs:
            node = with_sizes(node, x.shape[1:], {name: v.shape[1:] for name, v in self.values.items()})
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
            case "rms_norm":
                return rms_norm(x, node)
            case "l2_norm":
                return l2_norm(x, node)
            case "group_norm":
                return group_norm(x, node)
            case "identity":
                return x
            case "concat":
                return np.concatenate(inputs, 1)
            case "concat_rows":
                return np.concatenate(inputs, 2)
            case "concat_columns":
                return np.concatenate(inputs, 3)
            case "flatten":
                return x.reshape(len(x), -1, 1, 1)
            case "softmax":
                return softmax(x)
            case "rearrange":
                return rearrange(x, node)
            case "constant":
                numbers = self.file.tensors[node["weight"]].astype(np.float64)
                wide = numbers if numbers.ndim == 3 else numbers[:, None, None]
                return np.broadcast_to(wide, (self.images, *node["shape"]))
            case "pad":
                return pad(x, node)
            case "resize_bilinear":
                return resize_bilinear(x, node)
            case "matmul":
                return matmul(inputs[0], inputs[1], node["transposed"])
            case "argmax":
                return np.asarray(x.argmax(1, keepdims=True))
            case "log_softmax":
                x = x - x.max(1, keepdims=True)
                return np.asarray(x - np.log(np.exp(x).sum(1, keepdims=True)))
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
            case "silu":
                return np.asarray(v / (1 + np.exp(-v)))
            case "hard_swish":
                return v * np.clip(v / 6 + 0.5, 0, 1)
            case "mish":
                return np.asarray(v * np.tanh(np.logaddexp(0, v)))
            case "softplus":
                return np.asarray(np.logaddexp(0, v))
            case "elu":
                return np.where(v >= 0, v, np.expm1(np.minimum(v, 0)))
            case "softsign":
                return np.asarray(v / (1 + np.abs(v)))
            case "tanh" | "exp" | "log" | "sqrt" | "reciprocal" | "abs" | "round":
                return np.asarray(getattr(np, kind)(v))
        raise AssertionError(kind)
