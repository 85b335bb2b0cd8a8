"""Small packed files, written from docs/format.md alone: no torch, no bnew."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
DTYPES = {"uint32": "U32", "float32": "F32", "float16": "F16"}


def header_and_body(graph: Mapping[str, Any], tensors: Mapping[str, Array]) -> tuple[dict[str, Any], bytes]:
    """What a file consists of, for :func:`file_bytes`."""
    metadata = {"format": "bnew", "version": "1", "graph": json.dumps(graph)}
    header: dict[str, Any] = {"__metadata__": metadata}
    body = b""
    for name, array in tensors.items():
        data = np.ascontiguousarray(array).tobytes()
        offsets = [len(body), len(body) + len(data)]
        header[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        body += data
    return header, body


def file_bytes(header: Mapping[str, Any], body: bytes) -> bytes:
    """The bytes of a file."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def sealed(header: Mapping[str, Any], body: bytes) -> bytes:
    """The bytes of a file with a checksum."""
    metadata = {**header["__metadata__"], "crc32": "0" * 8}
    text = json.dumps({**header, "__metadata__": metadata}, separators=(",", ":")).encode()
    data = len(text).to_bytes(8, "little") + text + body
    return data.replace(b'"crc32":"' + b"0" * 8, f'"crc32":"{zlib.crc32(data):08x}'.encode(), 1)


def words_of(weight: Array) -> Array:
    """±1 (C_out, C_in / groups, kh, kw) → the words of the file."""
    bits = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1) > 0
    bits = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 32)))
    return np.packbits(bits, axis=1, bitorder="little").view(np.uint32)


class Network:
    """A graph that grows node by node, with its tensors.

    Nodes give values called as they are, ``name`` (real) and ``name.bits``.
    """

    def __init__(self, shape: Sequence[int], **image: Any) -> None:
        self.graph: dict[str, Any] = {
            "input": {"name": "input", "shape": [int(size) for size in shape], **image},
            "nodes": [],
        }
        self.tensors: dict[str, Array] = {}

    def tensor(self, array: Any, dtype: Any = np.float32) -> str:
        """Keep a tensor; its name."""
        name = f"t{len(self.tensors)}"
        self.tensors[name] = np.asarray(array, dtype)
        return name

    def node(
        self,
        op: str,
        source: str | Sequence[str] | None,
        *,
        then: Sequence[dict[str, Any]] = (),
        real: bool = True,
        sign: dict[str, Any] | None = None,
        name: str | None = None,
        **fields: Any,
    ) -> str:
        """Add a node and make its real value the network's output; its name."""
        name = name or f"n{len(self.graph['nodes'])}"
        node = {"op": op, "name": name, **fields}
        if source is not None:
            node |= {"input": source} if isinstance(source, str) else {"inputs": list(source)}
        if then:
            node["then"] = list(then)
        if real:
            node["output"] = self.graph["output"] = name
        if sign is not None:
            node["sign"] = {**sign, "output": f"{name}.bits"}
        self.graph["nodes"].append(node)
        return name

    def bits(self, source: str) -> str:
        """The signs of a real value."""
        return self.node("identity", source, real=False, sign={}) + ".bits"

    def conv(
        self,
        source: str,
        weight: Array,
        *,
        binary: bool = False,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0, 0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        **rest: Any,
    ) -> str:
        """A convolution; ``binary`` of bits with ±1."""
        return self.node(
            "binary_conv" if binary else "conv",
            source,
            weight=self.tensor(words_of(weight), np.uint32) if binary else self.tensor(weight),
            channels=[weight.shape[1] * groups, len(weight)],
            kernel=list(weight.shape[2:]),
            stride=list(stride),
            padding=list(padding),
            dilation=list(dilation),
            groups=groups,
            **rest,
        )

    def bytes(self) -> bytes:
        """The file."""
        return file_bytes(*header_and_body(self.graph, self.tensors))

    def write(self, path: Path) -> Path:
        """Write the file; its path."""
        path.write_bytes(self.bytes())
        return path


def signs(random: np.random.Generator, *shape: int) -> Array:
    """Random ±1."""
    return random.choice(np.array([-1, 1], np.float32), shape)


def quarters(random: np.random.Generator, *shape: int) -> Array:
    """Random multiples of 1/4 in [−2, 2]: a few sums and products of them are exact in float32."""
    return (random.integers(-8, 9, shape) / 4).astype(np.float32)


def powers(random: np.random.Generator, *shape: int) -> Array:
    """Random 0, ±1/2, ±1, ±2: products of any number of them are exact in float32."""
    return random.choice(np.array([-2, -1, -0.5, 0, 0.5, 1, 2], np.float32), shape)


def several(height: int = 5, width: int = 6) -> Network:
    """Several inputs, ``left`` of bytes too, that are joined, convolved, signed and returned as they are."""
    random = np.random.default_rng(3)
    network = Network((3, height, width))
    numbers = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.3]}
    network.graph["inputs"] = [
        {"name": "left", "shape": [3, height, width], **numbers},
        {"name": "right", "shape": [8, height, width]},
        {"name": "more", "shape": [2, 1, 1]},
    ]
    del network.graph["input"]
    three: dict[str, Any] = {"padding": [1] * 4}
    left = network.conv("left", quarters(random, 8, 3, 3, 3), **three, then=[{"add": "right"}], sign={})
    right = network.conv("right", quarters(random, 8, 8, 1, 1), then=[{"clamp": [0, None]}])
    both = network.conv(f"{left}.bits", signs(random, 8, 8, 3, 3), binary=True, **three)
    both = network.node("concat", [both, right, "left"], then=[{"scale": network.tensor([0.5])}])
    gate = network.conv("more", quarters(random, 19, 2, 1, 1))
    both = network.node("identity", both, then=[{"multiply": gate}])
    mean = network.node("adaptive_avg_pool", both, size=[1, 1])
    network.graph["outputs"] = [{"value": name} for name in (both, mean, "more")]
    del network.graph["output"]
    return network


def everything() -> Network:
    """Every operator; convolutions large enough to be split among threads, the rest too small."""
    random = np.random.default_rng(7)
    network = Network((3, 33, 35), mean=[0.5, 0.4, 0.3], std=[0.25, 0.2, 0.3])
    three: dict[str, Any] = {"padding": [1] * 4}
    stem = network.conv("input", quarters(random, 64, 3, 3, 3), stride=[2, 2], **three, sign={})
    weight = signs(random, 64, 64, 3, 3)
    then = [{"scale": network.tensor(quarters(random, 64))}, {"add": stem}]
    then += [{"prelu": network.tensor(quarters(random, 64))}]
    x = network.conv(f"{stem}.bits", weight, binary=True, **three, then=then, sign={}, pad_value=1)
    grouped = network.conv(
        f"{x}.bits", signs(random, 64, 8, 3, 3), binary=True, groups=8, **three, stride=[2, 2], pad_value=-1
    )
    small = network.node(
        "max_pool", x, kernel=[2, 2], stride=[2, 2], padding=[0, 0, 1, 1], dilation=[1, 1], size=[9, 9]
    )
    mean = network.node("adaptive_avg_pool", small, size=[1, 1])
    gate = network.conv(mean, quarters(random, 4, 64, 1, 1), then=[{"clamp": [0, None]}])
    gate = network.conv(gate, quarters(random, 64, 4, 1, 1), then=[{"hard_sigmoid": {}}])
    small = network.node("identity", small, then=[{"multiply": gate}, {"scale": network.tensor([0.25])}])
    deep = network.conv(small, quarters(random, 64, 1, 3, 3), groups=64, **three)
    joined = network.node("concat", [small, grouped, deep])
    even = network.node(
        "avg_pool", joined, kernel=[3, 3], stride=[3, 3], padding=[0] * 4, size=[3, 3], count_padding=True
    )
    even = network.node("layer_norm", even, eps=1e-5, then=[{"gelu": {}}])
    even = network.node("resize_nearest", even, size=[5, 4], scale=[0.6, 0.75], then=[{"gelu_tanh": {}}])
    heads: dict[str, Any] = {"sizes": [5, 3, 4, 64], "strides": [4 * 192, 64, 192, 1], "offset": 0}
    even = network.node("rearrange", even, shape=[64, 5, 12], **heads)
    scores = network.node("matmul", [even, even], transposed=True, then=[{"scale": network.tensor([1 / 64])}])
    even = network.node("matmul", [scores, even], transposed=False)
    back: dict[str, Any] = {"sizes": [5, 4, 3, 64], "strides": [12 * 64, 64, 4 * 64, 1], "offset": 0}
    places = network.tensor(quarters(random, 192, 5, 4))
    more = network.node("constant", None, weight=places, shape=[192, 5, 4])
    even = network.node("rearrange", even, shape=[192, 5, 4], **back, then=[{"add": more}])
    even = network.node("pad", even, padding=[1, 0, 2, 1], mode="reflect")
    even = network.node("pad", even, padding=[0, 1, 0, 0], mode="constant", value=0.5)
    even = network.node("resize_bilinear", even, size=[5, 4], scale=[1.6, 1.5], corners=False)
    even = network.node("group_norm", even, groups=6, eps=1e-5, then=[{"elu": {}}])
    even = network.node("rms_norm", even, eps=1e-5, then=[{"silu": {}}])
    even = network.node("l2_norm", even, eps=1e-5, then=[{"softplus": {}}])
    even = network.node("log_softmax", even)
    best = network.node("argmax", even, then=[{"scale": network.tensor([0.01])}])
    even = network.node("identity", even, then=[{"multiply": best}])
    flat = network.node("flatten", even)
    last = network.conv(flat, quarters(random, 10, 192 * 20, 1, 1), then=[{"scale": network.tensor([0.01])}])
    network.node("softmax", last)
    network.graph["classes"] = [f"class {i}" for i in range(10)]
    return network
