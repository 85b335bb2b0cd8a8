"""Small files that ask for much memory or work, each in its own way: ``python amplified.py`` loads them all.

Prints for each its size, what ``load`` says, and the seconds and the memory that this took.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from bnew_engine import EngineError, load
from tiny import Network, file_bytes, header_and_body

WIDE = 2**20
CASES: dict[str, Callable[[], bytes]] = {}


def case(make: Callable[[], Network | bytes]) -> Callable[[], bytes]:
    """Adds the file to the cases."""

    def content() -> bytes:
        made = make()
        return made if isinstance(made, bytes) else made.bytes()

    CASES[make.__name__] = content
    return content


def wide(network: Network) -> str:
    """A value of as many channels as there may be, from one of one channel."""
    half = network.node("concat", ["input"] * 1024)
    return network.node("concat", [half] * 1024)


@case
def steps_of_a_wide_value() -> Network:
    network = Network((1, 1, 1))
    network.node("identity", wide(network), then=[{"sign": {}}] * 900)
    return network


@case
def numbers_of_a_wide_value() -> Network:
    network = Network((1, 1, 1))
    scale = network.tensor([1])
    network.node("identity", wide(network), then=[{"scale": scale}] * 500)
    return network


@case
def signs_of_a_wide_value() -> Network:
    network = Network((1, 1, 1))
    x = wide(network)
    for _ in range(80):
        network.bits(x)
    return network


@case
def borders_of_one_kernel() -> Network:
    """Each node has a table of all the ways in which its window may lie at the border."""
    network = Network((1, 300, 300))
    bits = network.bits("input")
    network.conv(bits, np.ones((1, 1, 300, 300), np.float32), binary=True, padding=[299] * 4)
    last = network.graph["nodes"][-1]
    network.graph["nodes"] += [{**last, "name": f"m{i}", "output": f"m{i}"} for i in range(60)]
    return network


@case
def one_tensor_of_many_nodes() -> Network:
    network = Network((2**14, 1, 1))
    network.conv("input", np.ones((1, 2**14, 1, 1), np.float32))
    last = network.graph["nodes"][-1]
    network.graph["nodes"] += [{**last, "name": f"m{i}", "output": f"m{i}"} for i in range(400)]
    return network


@case
def windows_of_every_kind() -> Network:
    """Rows of a tall image, each with taps of its own."""
    network = Network((1, 4096, 1))
    bits = network.bits("input")
    network.conv(bits, np.ones((1, 1, 4096, 1), np.float32), binary=True, padding=[4095, 0, 4095, 0])
    last = network.graph["nodes"][-1]
    network.graph["nodes"] += [{**last, "name": f"m{i}", "output": f"m{i}"} for i in range(60)]
    return network


@case
def groups_that_do_not_fit() -> Network:
    network = Network((1, 1, 1))
    x = network.conv("input", np.zeros((2 * 30011, 1, 1, 1), np.float16).astype(np.float32))
    network.conv(x, np.zeros((2 * 30011, 2, 1, 1), np.float32), groups=30011)
    return network


def pools(image: list[int], **fields: Any) -> Network:
    network = Network((1, *image))
    for _ in range(60):
        network.node("max_pool", "input", stride=[1, 1], dilation=[1, 1], size=image, **fields)
    return network


@case
def pools_with_large_windows() -> Network:
    return pools([1024, 1024], kernel=[1025, 1025], padding=[512] * 4)


@case
def pools_of_tall_images() -> Network:
    return pools([WIDE, 1], kernel=[1, 1], padding=[0] * 4)


@case
def enlargements() -> Network:
    network = Network((1, 1, 1))
    for _ in range(100):
        network.node("adaptive_avg_pool", "input", size=[2**14, 2**14])
    return network


@case
def enlargements_in_turns() -> Network:
    network = Network((1, 1, 1))
    x = "input"
    for i in range(120):
        x = network.node("adaptive_avg_pool", x, size=[2**10, 2**9] if i % 2 else [2, 2])
    return network


@case
def a_wide_image() -> Network:
    network = Network((3, 224, 224))
    x = "input"
    for _ in range(7):
        x = network.node("concat", [x] * 3)
    network.node("identity", x, then=[{"sign": {}}] * 900)
    return network


@case
def strips_of_many_stages() -> Network:
    network = Network((1, 4096, 40))
    network.node("identity", "input", then=[{"sign": {}}] * 900)
    return network


@case
def borders_of_values() -> Network:
    network = Network((1, 1, 1))
    x = "input"
    for _ in range(40):
        x = network.conv(x, np.ones((1, 1, 1, 1), np.float32), padding=[4096] * 4)
        x = network.node("adaptive_avg_pool", x, size=[1, 1])
    return network


@case
def products_of_wide_rows() -> Network:
    network = Network((1, 1, 2**15))
    network.node("matmul", ["input", "input"], transposed=True)
    return network


@case
def rearrangements_of_tall_images() -> Network:
    network = Network((1, WIDE, 1))
    for _ in range(60):
        network.node("rearrange", "input", shape=[1, WIDE, 1], sizes=[WIDE], strides=[1], offset=0)
    return network


@case
def a_long_name_with_many_inputs() -> Network:
    network = Network((1, 1, 1))
    network.node("concat", ["input"] * 60_000, name="n" * 300_000)
    return network


@case
def many_values_of_json() -> bytes:
    text = b"[" + b"0," * 8_000_000 + b"0]"
    return len(text).to_bytes(8, "little") + text


@case
def many_classes() -> bytes:
    network = Network((1, 1, 1))
    network.node("identity", "input")
    network.graph["classes"] = [""] * 1_500_000
    return file_bytes(*header_and_body(network.graph, network.tensors))


def main() -> None:
    """Try them all; the memory is the most that any so far has taken."""
    contents = {name: make() for name, make in CASES.items()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, content in contents.items():
        started = time.perf_counter()
        try:
            load(content)
            said = "loads"
        except EngineError as error:
            said = str(error)
        seconds = round(time.perf_counter() - started, 2)
        mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        print(
            json.dumps({"name": name, "bytes": len(content), "seconds": seconds, "MiB": mib, "said": said}),
            flush=True,
        )


if __name__ == "__main__":
    main()
