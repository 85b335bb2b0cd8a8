"""Memory and work that a file asks for: counted, and refused before any is spent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import amplified
import numpy as np
import pytest
from bnew_engine import EngineError, load
from tiny import Network, quarters, signs


def test_small_files_do_not_ask_for_endless_memory_or_time() -> None:
    """What each takes is refused before it is spent: none comes near the gigabytes that it asks for."""
    done = subprocess.run([sys.executable, amplified.__file__], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == amplified.CASES.keys()
    if "ASAN_OPTIONS" not in os.environ:
        assert max(line["MiB"] for line in found.values()) < 250
    by = {
        "million multiply-accumulates for an image: the limit, by the file's size and its input's": [
            "steps_of_a_wide_value",
            "borders_of_one_kernel",
            "windows_of_every_kind",
            "groups_that_do_not_fit",
            "pools_with_large_windows",
            "enlargements",
            "a_wide_image",
            "borders_of_values",
            "products_of_wide_rows",
        ],
        "MiB of memory: the limit, by the file's size, is": [
            "numbers_of_a_wide_value",
            "signs_of_a_wide_value",
            "one_tensor_of_many_nodes",
            "pools_of_tall_images",
            "rearrangements_of_tall_images",
        ],
        "its JSON has more than 1048576 values": ["many_values_of_json", "many_classes"],
        "loads": ["enlargements_in_turns", "strips_of_many_stages", "a_long_name_with_many_inputs"],
    }
    for message, names in by.items():
        for name in names:
            assert message in found[name]["said"], name
    assert sorted(name for names in by.values() for name in names) == sorted(found)


def one_convolution(shape: tuple[int, int, int], weight: Any, **fields: Any) -> bytes:
    network = Network(shape)
    binary = fields.get("binary", False)
    network.conv(network.bits("input") if binary else "input", weight, **fields)
    return network.bytes()


@pytest.mark.parametrize(
    ("content", "macs"),
    [
        # 8 for each number of a result, a product each; channels are computed in sixteens.
        (one_convolution((32, 5, 6), np.ones((10, 32, 3, 3), np.float32)), 12 * (8 * 10 + 16 * 32 * 9)),
        # The bits are a result too; 64 products count as one.
        (
            one_convolution((64, 5, 6), np.ones((10, 64, 3, 3), np.float32), binary=True),
            30 * 8 * 64 + 12 * (8 * 10 + 16 * 9),
        ),
        # With groups, bits become real numbers, and the padding becomes a value.
        (
            one_convolution(
                (32, 5, 6),
                np.ones((32, 16, 3, 3), np.float32),
                binary=True,
                groups=2,
                padding=[1, 0, 0, 0],
                pad_value=1,
            ),
            30 * 8 * 32 + 30 * 8 * 32 + 36 * (8 + 1) * 32 + 16 * (8 * 32 + 32 * 16 * 9),
        ),
        # One output channel for one input channel; else groups are laid together with zeros between them.
        (
            one_convolution((32, 5, 6), np.ones((32, 1, 3, 3), np.float32), groups=32),
            12 * (8 * 32 + 32 * 9),
        ),
        (
            one_convolution((32, 5, 6), np.ones((32, 4, 3, 3), np.float32), groups=8),
            12 * (8 * 32 + 32 * 16 * 9),
        ),
    ],
)
def test_work_is_counted_as_it_is_done(content: bytes, macs: int) -> None:
    assert load(content, max_macs=macs).profile(np.zeros((1, *load(content).input_shape), np.float32), 1)
    with pytest.raises(EngineError, match="the limit is 0 million; give a larger max_macs"):
        load(content, max_macs=macs - 1)


def test_work_of_other_operators() -> None:
    pool: dict[str, Any] = {"kernel": [3, 2], "stride": [2, 2], "padding": [1] * 4, "dilation": [1, 1]}
    for op, fields, macs in [
        ("max_pool", pool | {"size": [4, 4]}, 16 * 2 * (8 + 6)),
        ("adaptive_avg_pool", {"size": [2, 2]}, 4 * 2 * (8 + 36)),
        ("resize_nearest", {"size": [4, 5], "scale": [2, 1.6]}, 20 * 2 * (8 + 1)),
        ("resize_bilinear", {"size": [4, 5], "scale": [2, 1.6], "corners": False}, 20 * 2 * (8 + 4)),
        ("pad", {"padding": [1, 2, 3, 4], "mode": "replicate"}, 12 * 14 * 2 * (8 + 1)),
        ("layer_norm", {"eps": 1e-5}, 128 * (8 + 2)),
        ("group_norm", {"eps": 1e-5, "groups": 2}, 128 * (8 + 2) + 2 * 256),
        ("argmax", {}, 64 * (8 + 2)),
        ("softmax", {}, 128 * (8 + 16)),
        ("flatten", {}, 128 * 8),
        (
            "rearrange",
            {"shape": [4, 1, 8], "sizes": [32], "strides": [2], "offset": 3},
            32 * (8 + 1),
        ),
    ]:
        network = Network((2, 8, 8))
        network.node(op, "input", **fields)
        load(network.bytes(), max_macs=macs)
        with pytest.raises(EngineError, match="max_macs"):
            load(network.bytes(), max_macs=macs - 1)


def test_work_of_products() -> None:
    """In each of 3 rows: 5 × 16 × 20 products, 16 × 20 numbers that are laid, and 512; 8 for each result."""
    network = Network((20, 3, 5))
    network.node("matmul", ["input", "input"], transposed=True)
    macs = 3 * (5 * 16 * 20 + 16 * 20 + 512 + 8 * 5 * 5)
    load(network.bytes(), max_macs=macs)
    with pytest.raises(EngineError, match="max_macs"):
        load(network.bytes(), max_macs=macs - 1)


def test_memory_is_limited() -> None:
    network = Network((16, 512, 512))
    x = network.conv("input", np.ones((16, 16, 1, 1), np.float32))
    network.node("softmax", network.node("flatten", network.node("adaptive_avg_pool", x, size=[1, 1])))
    megabyte = 1 << 20
    model = load(network.bytes(), max_bytes=64 * megabyte)
    with pytest.raises(
        EngineError, match=r"a run of the network would take 3. MiB of memory: the limit is 1 "
    ):
        load(network.bytes(), max_bytes=megabyte)
    with pytest.raises(EngineError, match=r"what its nodes hold, up to node 0 .'n0'., would take 0 MiB"):
        load(network.bytes(), max_bytes=1000)
    image = np.zeros((1, 16, 512, 512), np.float32)
    assert model(image).shape == (1, 16)
    with pytest.raises(
        EngineError, match=r"the values of the network would take .. MiB of memory: the limit is"
    ):
        model.values(image)


def test_repeats_have_a_limit_of_their_own() -> None:
    content = one_convolution((16, 64, 64), np.ones((16, 16, 3, 3), np.float32))
    image = np.zeros((1, 16, 64, 64), np.float32)
    model = load(content, max_macs=10**7)
    assert len(model.profile(image)) == len(model.profile(image, 11)) == 2
    with pytest.raises(
        EngineError,
        match=r"repeats is 2147483647, but an image takes 9 million .*: ask for at most 30108758$",
    ):
        model.profile(image, 2**31 - 1)


class Work:
    """Stands for an engine whose images take so many multiply-accumulates; keeps what it is asked for."""

    graph = '{"input": {}}'
    inputs = (("input", (1, 1, 1)),)

    def __init__(self, macs: float) -> None:
        self.macs = macs
        self.repeats: list[int] = []

    def profile(self, image: Any, repeats: int) -> list[Any]:
        """Computes nothing."""
        self.repeats.append(repeats)
        return []


@pytest.mark.parametrize(
    ("macs", "repeats"), [(0.0, 100), (2.0**33, 100), (2.0**35, 32), (2.0**40, 1), (2.0**50, 1)]
)
def test_large_networks_are_repeated_less_often(macs: float, repeats: int) -> None:
    model = load(one_convolution((1, 1, 1), np.ones((1, 1, 1, 1), np.float32)))
    work = Work(macs)
    model._engine = work  # type: ignore[assignment]
    model.profile(np.zeros((1, 1, 1, 1), np.float32))
    assert work.repeats == [repeats]


def binary_layers(
    channels: int, groups: int, layers: int, shape: tuple[int, int, int], kernel: int = 3
) -> Network:
    """Binary convolutions one after the other, in groups, each with a scale and a shortcut."""
    network = Network(shape)
    random = np.random.default_rng(0)
    x = network.conv("input", quarters(random, channels, shape[0], 1, 1))
    for _ in range(layers):
        weight = signs(random, channels, channels // groups, kernel, kernel)
        scale = {"scale": network.tensor(np.ones(channels))}
        padding = [kernel // 2] * 4
        x = network.conv(
            network.bits(x), weight, binary=True, groups=groups, padding=padding, then=[scale, {"add": x}]
        )
    return network


@pytest.mark.parametrize("groups", [2, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("kernel", [1, 3])
def test_binary_groups_are_within_the_limits(groups: int, kernel: int) -> None:
    """From one channel a group, which is depthwise, to half of them; narrow ones are computed with zeros."""
    content = binary_layers(128, groups, 3, (3, 512, 512), kernel).bytes()
    assert load(content).input_shape == (3, 512, 512)


def test_many_binary_weights_in_groups_are_within_the_limits() -> None:
    """19 million: as real numbers they take 300 MB, with the zeros between them."""
    network = Network((4096, 1, 1))
    weight = np.ones((4096, 512, 3, 3), np.float32)
    network.conv(network.bits("input"), weight, binary=True, groups=8, padding=[1] * 4)
    network.conv(network.bits("input"), weight[:, :2], binary=True, groups=2048, padding=[1] * 4)
    assert load(network.bytes()).input_shape == (4096, 1, 1)


def test_memory_for_a_while_is_given_back() -> None:
    """Each layer needs as much again while it is laid, and no two at the same time."""
    layers = 20
    network = Network((1024, 1, 1))
    for _ in range(layers):
        network.conv(network.bits("input"), np.ones((1024, 1024, 1, 1), np.float32), binary=True)
    kept = layers * 1024 * 1024 // 8
    load(network.bytes(), max_bytes=int(3.5 * kept))


def test_large_networks_are_within_the_limits() -> None:
    """A segmentation of large images, and a convolution with a weight for every pixel."""
    random = np.random.default_rng(0)
    network = Network((3, 4096, 4096))
    x = network.conv("input", quarters(random, 64, 3, 3, 3), stride=[2, 2], padding=[1] * 4)
    for _ in range(8):
        weight = signs(random, 64, 64, 3, 3)
        x = network.conv(network.bits(x), weight, binary=True, padding=[1] * 4, then=[{"add": x}])
    network.conv(x, quarters(random, 21, 64, 1, 1))
    assert load(network.bytes()).input_shape == (3, 4096, 4096)
    network = Network((1, 100, 100))
    network.conv(network.bits("input"), np.ones((1, 1, 100, 100), np.float32), binary=True, padding=[99] * 4)
    load(network.bytes())
    network = Network((1, 2**20, 1))
    x = network.node("identity", "input")
    for _ in range(9):
        x = network.conv(x, np.ones((1, 1, 3, 1), np.float32), padding=[1, 0, 1, 0])
    load(network.bytes())


def test_the_most_stages() -> None:
    network = Network((1, 1, 1))
    network.node("identity", "input", then=[{"sign": {}}] * 20000)
    with pytest.raises(EngineError, match="the network has more than 16384 stages"):
        load(network.bytes())
