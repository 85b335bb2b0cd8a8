"""Damaged files by the thousand: ``python mutations.py FOLDER SEED`` loads them all, and runs what loads.

In a process of its own, so that a crash is seen as one. Prints how many of each kind were refused and ran.
"""

from __future__ import annotations

import copy
import json
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bnew_engine import EngineError, load
from tiny import Array, Network, file_bytes, header_and_body, quarters, several, signs

VALUES: list[Any] = [
    *(None, True, False, "", "x", "input", "n1", [], {}, [0], [[]], {"a": 1}),
    *(
        -1,
        0,
        1,
        2,
        3,
        7,
        64,
        4096,
        4097,
        65536,
        2**20,
        2**20 + 1,
        2**31 - 1,
        2**31,
        2**32,
        2**53,
        2**63,
        2**64,
    ),
    *(-(2**31), -(2**63), 0.5, 1e-320, 1e300, -1e300),
    *([2**31, 2**31], [1, 2, 3, 4], [1 << 20] * 3, [1 << 40] * 2, "U32", "F32", "F16", "I64"),
]


def victim() -> Network:
    """A small network with every operator, every step and every kind of tensor."""
    random = np.random.default_rng(0)
    network = Network((3, 8, 7), any_size=True, mean=[0.5, 0.4, 0.3], std=[0.25, 0.2, 0.3])
    pool: dict[str, Any] = {"kernel": [2, 3], "stride": [2, 2], "padding": [1, 1, 0, 1], "size": "floor"}
    then = [{"scale": network.tensor([0.5])}, {"shift": network.tensor(quarters(random, 18))}]
    x = network.conv("input", quarters(random, 18, 3, 3, 3), padding=[1] * 4, then=then, sign={})
    then = [{"scale": network.tensor(quarters(random, 18), np.float16)}, {"add": x}]
    then += [{"prelu": network.tensor(quarters(random, 18))}]
    scale, shift = network.tensor(quarters(random, 18)), network.tensor([0.25])
    weight = signs(random, 18, 18, 3, 3)
    y = network.conv(
        f"{x}.bits",
        weight,
        binary=True,
        padding=[1, 0, 1, 2],
        then=then,
        sign={"scale": scale, "shift": shift},
    )
    z = network.conv(
        f"{y}.bits",
        signs(random, 6, 9, 2, 2),
        binary=True,
        groups=2,
        dilation=[2, 1],
        stride=[1, 2],
        pad_value=1,
    )
    z = network.node(
        "adaptive_avg_pool", z, size=[4, 4], then=[{"sigmoid": {}}, {"hard_sigmoid": {}}, {"sign": {}}]
    )
    most = network.node("max_pool", y, **pool, dilation=[1, 1], then=[{"clamp": [-1, None]}])
    even = network.node("avg_pool", y, **pool, count_padding=True)
    gate = network.node("adaptive_avg_pool", even, size=[1, 1])
    deep = network.conv(most, quarters(random, 18, 1, 1, 1), groups=18, then=[{"multiply": gate}])
    deep = network.node("layer_norm", deep, eps=1e-5, then=[{"gelu": {}}, {"gelu_tanh": {}}])
    deep = network.node("group_norm", deep, groups=3, eps=1e-5, then=[{"silu": {}}, {"hard_swish": {}}])
    deep = network.node("rms_norm", deep, eps=1e-5, then=[{"mish": {}}, {"softplus": {}}, {"elu": {}}])
    deep = network.node(
        "l2_norm", deep, eps=1e-5, then=[{"softsign": {}}, {"tanh": {}}, {"round": {}}, {"exp": {}}]
    )
    deep = network.node(
        "log_softmax", deep, then=[{"abs": {}}, {"log": {}}, {"sqrt": {}}, {"reciprocal": {}}]
    )
    deep = network.node("resize_nearest", deep, size={"times": [1, 1]}, scale=[1, 0.75])
    turn: dict[str, Any] = {"sizes": [[1, 0, 1], 4, 3, 6], "strides": [18, [18, 1, 0], 6, -1], "offset": 5}
    deep = network.node("rearrange", deep, shape=[18, 4, 4], like=even, **turn)
    places = network.tensor(quarters(random, 18, 4, 4))
    more = network.node("constant", None, weight=places, shape=[18, 4, 4], then=[{"add": deep}])
    scores = network.node("matmul", [deep, more], transposed=True)
    deep = network.node("matmul", [scores, deep], transposed=False)
    deep = network.node("pad", deep, padding=[1, 2, 0, 1], mode="circular")
    deep = network.node("pad", deep, padding=[1, 0, 0, 1], mode="constant", value=-1.5)
    deep = network.node("resize_bilinear", deep, size=even, scale="size", corners=True)
    best = network.node("argmax", deep, then=[{"scale": network.tensor([0.5])}])
    deep = network.node("identity", deep, then=[{"add": best}])
    flat = network.node("flatten", network.node("concat", [z, deep, even]))
    network.node("softmax", network.conv(flat, quarters(random, 5, 42 * 16, 1, 1)))
    network.graph["classes"] = ["ä", "b", "c", "d", "e"]
    return network


def leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container inside, with every key or place in it."""
    places = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, inner in places:
        yield value, key
        if isinstance(inner, dict | list):
            yield from leaves(inner)


def field_mutations(random: np.random.Generator) -> Iterator[bytes]:
    """Each field of the header and of the graph: several other values; left out; another beside it."""
    with_sizes = several()
    for one in with_sizes.graph["inputs"]:
        one["size"] = list(one["shape"])
    for network in (victim(), with_sizes):
        yield from fields_of(network, random)


def fields_of(network: Network, random: np.random.Generator) -> Iterator[bytes]:
    """The same of one network."""
    graph, (header, body) = network.graph, header_and_body(network.graph, network.tensors)

    def damaged(place: int, in_graph: bool, value: Any) -> bytes:
        new_graph, new_header = copy.deepcopy(graph), copy.deepcopy(header)
        container, key = list(leaves(new_graph if in_graph else new_header))[place]
        if value is leaves:
            del container[key]
        elif value is copy and isinstance(container, dict):
            container["another"] = container[key]
        elif value is copy:
            container.insert(key, container[key])
        else:
            container[key] = value
        if in_graph:
            new_header["__metadata__"]["graph"] = json.dumps(new_graph)
        return file_bytes(new_header, body)

    for in_graph in (False, True):
        for place in range(len(list(leaves(graph if in_graph else header)))):
            yield damaged(place, in_graph, leaves)
            yield damaged(place, in_graph, copy)
            for i in random.choice(len(VALUES), 9, replace=False):
                yield damaged(place, in_graph, VALUES[i])


def byte_mutations(random: np.random.Generator, count: int = 1500) -> Iterator[bytes]:
    """Bytes overwritten, taken out and put in, most of them in the header."""
    data = victim().bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    for _ in range(count):
        damaged = bytearray(data)
        for _ in range(random.integers(1, 4)):
            at = int(random.integers(0, [9, end, end, end, len(data)][random.integers(5)]))
            kind = random.integers(6)
            if kind == 0:
                del damaged[at : at + int(random.integers(1, 9))]
            elif kind == 1:
                damaged[at:at] = random.bytes(int(random.integers(1, 9)))
            elif kind == 2:
                damaged[at : at + 1] = bytes([random.integers(256)])
            else:
                damaged[at : at + 1] = random.choice(list(b'0123456789-.eE"{}[],: \\u\x80\xff')).tobytes()[:1]
        yield bytes(damaged)


def truncations(random: np.random.Generator) -> Iterator[bytes]:
    """Cut at every region, or with something behind."""
    data = victim().bytes()
    cuts = {*range(17), *random.integers(0, len(data), 200).tolist(), len(data) - 1}
    end = 8 + int.from_bytes(data[:8], "little")
    cuts |= {end - 1, end, end + 1}
    for cut in sorted(cuts):
        yield data[:cut]
        yield len(data[:cut]).to_bytes(8, "little") + data[8:cut]
    for more in (b"\0", b"\0" * 8, data):
        yield data + more


def attempt(path: Path, image: Array) -> str:
    """Load a file; run what loads."""
    try:
        model = load(path)
    except EngineError as error:
        text = str(error)
        assert text.startswith(f"{path}: ")
        assert len(text) > len(f"{path}: ") + 10
        assert text.isprintable()
        return "refused"
    if sum(np.prod(one.shape) for one in model.inputs) < 1e5:
        x = [np.resize(image, (2, *one.shape)) for one in model.inputs]
        results = model(*x)
        assert all(len(each) == 2 for each in (results if isinstance(results, list) else [results]))
        try:
            model.values(*(each[:1] for each in x))
        except EngineError as error:  # all values at the same time may be too much
            if "the values of the network would take" not in str(error):
                raise
    return "ran"


def main(folder: Path, seed: int) -> None:
    """Try them all."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if now < 1 << 40:  # not under a sanitizer, which takes all addresses for itself
        resource.setrlimit(resource.RLIMIT_AS, (now + (2 << 30), now + (2 << 30)))
    image = quarters(np.random.default_rng(0), 2, 3, 8, 7)
    path = folder / "damaged.bnew"
    for kind in (truncations, field_mutations, byte_mutations):
        counts: Counter[str] = Counter()
        for data in kind(np.random.default_rng(seed)):
            path.write_bytes(data)
            counts[attempt(path, image)] += 1
        print(json.dumps({"kind": kind.__name__, **counts}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
