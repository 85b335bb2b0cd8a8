"""Networks of several inputs: the same bits everywhere; each field of a file is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bnew_engine import EngineError, Input, isas, load
from tiny import Array, Network, quarters, several


def images(count: int, height: int = 5, width: int = 6) -> list[Array]:
    random = np.random.default_rng(1)
    return [
        quarters(random, count, 3, height, width),
        quarters(random, count, 8, height, width),
        quarters(random, count, 2),
    ]


def slow(network: Network, left: Array, right: Array, more: Array) -> list[Array]:
    """What the network of :func:`tiny.several` computes, in float64 by NumPy."""
    weights = [network.tensors[f"t{i}"].astype(np.float64) for i in (0, 1)]
    words = np.unpackbits(network.tensors["t2"].view(np.uint8), axis=1, bitorder="little")[:, :72]
    binary = (2.0 * words - 1).reshape(8, 3, 3, 8).transpose(0, 3, 1, 2)
    gate = np.einsum("nc,oc->no", more, network.tensors["t4"][:, :, 0, 0].astype(np.float64))
    signed = np.where(windows(left, weights[0]) + right >= 0, 1.0, -1.0)
    parts = [windows(signed, binary), np.maximum(windows(right, weights[1]), 0), left]
    both = 0.5 * np.concatenate(parts, 1) * gate[:, :, None, None]
    return [both, both.mean((2, 3)), more]


def windows(x: Array, weight: Array) -> Array:
    """A convolution with zeros around x."""
    border = weight.shape[2] // 2
    x = np.pad(x, ((0, 0), (0, 0), (border, border), (border, border)))
    found = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))
    return np.asarray(np.einsum("nchwyx,ocyx->nohw", found, weight))


@pytest.mark.parametrize("size", [(5, 6), (210, 190)])  # the second is computed in strips and bands
def test_several_inputs_on_every_instruction_set(size: tuple[int, int]) -> None:
    network = several(*size)
    content = network.bytes()
    given = images(3, *size)
    first = load(content)(*given)
    for found, expected in zip(first, slow(network, *given), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for isa in isas():
        for threads in (1, 2, 3):
            model = load(content, threads=threads, isa=isa)
            for count in (1, 3):
                for found, expected in zip(model(*(x[:count] for x in given)), first, strict=True):
                    np.testing.assert_array_equal(found, expected[:count])


def test_bytes_of_one_input() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3)).astype(np.uint8)
    model = load(several().bytes())
    mean, std = (np.array(numbers, np.float32) for numbers in (model.inputs[0].mean, model.inputs[0].std))
    left = ((pixels / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    _, right, more = images(2)
    for found, expected in zip(model(pixels, right, more), model(left, right, more), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    values = model.values(left=left, right=right, more=more)
    for name, given in (("left", left), ("right", right), ("more", more[:, :, None, None])):
        np.testing.assert_array_equal(values[name], given)


def test_what_a_model_says_of_its_inputs() -> None:
    model = load(several().bytes())
    assert [one.name for one in model.inputs] == ["left", "right", "more"]
    assert model.inputs[1:] == (Input("right", (8, 5, 6), (8, 5, 6)), Input("more", (2, 1, 1), (2,)))
    assert "3×5×6 and 8×5×6 and 2×1×1 → 19×5×6 and 19 and 2" in repr(model)
    assert model.profile([x[:1] for x in images(1)], 2)[0].name == "input"
    alone = Network((2, 3, 4))
    alone.node("identity", "input")
    assert load(alone.bytes()).inputs == (Input("input", (2, 3, 4), (2, 3, 4)),)


# What is done to the inputs of a file, and what load() says of it.
WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "none": (lambda graph: graph["inputs"].clear(), "its graph's 'inputs' must be two or more: one alone"),
    "one": (lambda graph: graph["inputs"].__delitem__(slice(1, 3)), "'inputs' must be two or more"),
    "neither": (lambda graph: graph.pop("inputs"), "its graph has no 'input'"),
    "both": (lambda graph: graph.update(input=graph["inputs"][0]), "has 'input', which is not known"),
    "no list": (lambda graph: graph.update(inputs={}), "its graph, 'inputs' is not a list"),
    "the same name": (
        lambda graph: graph["inputs"][1].update(name="left"),
        "input 1 gives 'left', a name that",
    ),
    "no name": (lambda graph: graph["inputs"][1].update(name=""), "input 1 gives a value without a name"),
    "any size": (
        lambda graph: graph["inputs"][0].update(any_size=True),
        "input 0 has 'any_size', which is not",
    ),
    "resize": (lambda graph: graph["inputs"][0].update(resize=[9, 9]), "input 0 has 'resize', which is not"),
    "mean alone": (lambda graph: graph["inputs"][0].pop("std"), "input 0 has only one of 'mean' and 'std'"),
    "std": (
        lambda graph: graph["inputs"][0].update(std=[1, 0, 1]),
        "input 0 has an 'std' that is not above 0",
    ),
    "shape": (lambda graph: graph["inputs"][2].update(shape=[2, 1]), "input 2, 'shape' must have 3 numbers"),
    "too large": (lambda graph: graph["inputs"][2].update(shape=[2**20] * 3), "is too large"),
}


@pytest.mark.parametrize("what", WRONG)
def test_fields_of_inputs_are_checked(what: str) -> None:
    change, message = WRONG[what]
    network = several()
    change(network.graph)
    with pytest.raises(EngineError) as caught:
        load(network.bytes())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_grow_with_every_input() -> None:
    """A layer that all inputs use does its work for each of them."""
    weight = np.ones((8, 8, 3, 3), np.float32)

    def network(count: int, size: int) -> bytes:
        made = Network((8, size, size))
        made.graph["inputs"] = [{"name": f"x{i}", "shape": [8, size, size]} for i in range(count)]
        del made.graph["input"]
        found = [
            made.node("adaptive_avg_pool", made.conv(f"x{i}", weight), size=[1, 1]) for i in range(count)
        ]
        made.node("concat", found)
        return made.bytes()

    assert len(load(network(8, 512)).inputs) == 8
    with pytest.raises(EngineError, match="give a larger max_bytes"):
        load(network(8, 512), max_bytes=1 << 20)
