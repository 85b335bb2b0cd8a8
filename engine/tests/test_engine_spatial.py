"""Operators that move, pad and multiply places, on every instruction set, against the reference reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bnew_engine import EngineError, isas, load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_engine_kernels import check
from tiny import Network, powers, quarters, signs

FIXTURE = [HealthCheck.function_scoped_fixture]  # a path that each example writes anew
SEEDS = st.integers(0, 2**32 - 1)
IMAGES = st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(1, 7))


def ride(random: np.random.Generator, network: Network, channels: int, kind: str) -> dict[str, Any]:
    """Steps and signs behind an operator, of some kind; exact for a few quarters."""
    scale, shift = (network.tensor(quarters(random, channels)) for _ in range(2))
    then: list[dict[str, Any]] = [{"scale": scale}, {"shift": shift}, {"clamp": [-2, None]}]
    rides: dict[str, dict[str, Any]] = {
        "plain": {},
        "steps": {"then": then},
        "signs": {"sign": {"shift": shift}},
        "both": {"then": then, "sign": {}},
        "bits alone": {"real": False, "sign": {}},
    }
    return rides[kind]


RIDES = st.sampled_from(["plain", "steps", "signs", "both", "bits alone"])


def read_bits(random: np.random.Generator, network: Network, name: str, channels: int) -> None:
    """Uses all values, so that the network's output depends on them."""
    if network.graph["nodes"][-1].get("sign"):
        network.conv(f"{name}.bits", signs(random, 3, channels, 1, 1), binary=True)


# ------------------------------------------------------------------------------------- rearrange


@st.composite
def nests(draw: st.DrawFn, numbers: int) -> tuple[list[int], list[int], list[int], int]:
    """Shape, sizes, strides and offset of any loops over so many numbers."""
    channels = [draw(st.integers(1, 5)) for _ in range(draw(st.integers(0, 3)))]
    places = [draw(st.integers(1, 4)) for _ in range(draw(st.integers(0, 3)))]
    sizes = [*places, *channels] or [1]
    low, high = 0, 0  # of all positions
    strides: list[int] = []
    for size in reversed(sizes):
        room = max(0, numbers - 1 - (high - low)) // max(1, size - 1)
        stride = draw(st.sampled_from([-1, 0, 1, 2, int(np.prod(sizes)), -7, room, -room]))
        stride = int(np.clip(stride, -room, room))
        strides.insert(0, stride)
        low, high = min(low, low + (size - 1) * stride), max(high, high + (size - 1) * stride)
    offset = draw(st.integers(-low, numbers - 1 - high))
    c, places_ = int(np.prod(channels)), int(np.prod(places))
    height = draw(st.sampled_from([n for n in range(1, places_ + 1) if places_ % n == 0]))
    at = len(places)  # of the channels' outermost loop; it may go on to the places
    if places and channels and strides[at - 1] == strides[at] * sizes[at]:
        sizes[at - 1 : at + 1] = [sizes[at - 1] * sizes[at]]
        del strides[at - 1]
    return [c, height, places_ // height], sizes, strides, offset


@settings(max_examples=200, deadline=None, suppress_health_check=FIXTURE)
@given(st.data(), IMAGES, st.booleans(), RIDES, SEEDS)
def test_rearrange(
    tmp_path: Path, data: Any, image: tuple[int, int, int], border: bool, kind: str, seed: int
) -> None:
    """Any loops, with and without a carry from the channels to the places, and gaps in the input's memory."""
    random = np.random.default_rng(seed)
    shape, sizes, strides, offset = data.draw(nests(int(np.prod(image))))
    network = Network(image)
    source = network.node("identity", "input") if seed % 2 else "input"
    if border:  # zeros lie around the input
        network.conv(source, powers(random, 1, image[0], 3, 3), padding=[1, 2, 1, 0], name="other")
    fields = {"shape": shape, "sizes": sizes, "strides": strides, "offset": offset}
    name = network.node("rearrange", source, **fields, **ride(random, network, shape[0], kind))
    read_bits(random, network, name, shape[0])
    check(network, tmp_path, quarters(random, 2, *image))


def rearranged(network: Network, expression: str, shape: tuple[int, int, int]) -> str:
    """A few ways to write it, on an image of 24 channels, 4 × 6."""
    fields: dict[str, tuple[list[int], list[int], int]] = {
        "transpose": ([6, 4, 24], [24, 144, 1], 0),
        "channels last": ([24, 4, 6], [1, 144, 24], 0),
        "flip": ([4, 6, 24], [-144, -24, 1], 3 * 144 + 5 * 24),
        "flip channels": ([4, 6, 24], [144, 24, -1], 23),
        "slice": ([2, 2, 8], [288, 72, 3], 145),
        "shuffle": ([4, 2, 6, 2, 6], [144, 2, 24, 1, 4], 0),
        "unshuffle": ([2, 3, 24, 2, 2], [288, 48, 1, 144, 24], 0),
        "heads": ([4, 3, 6, 8], [144, 8, 24, 1], 0),
        "repeat": ([4, 2, 6, 24], [144, 0, 24, 1], 0),
        "flatten": ([24, 4, 6], [1, 144, 24], 0),
    }
    sizes, strides, offset = fields[expression]
    return network.node("rearrange", "input", shape=list(shape), sizes=sizes, strides=strides, offset=offset)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("expression", "torch_of", "shape"),
    [
        ("transpose", lambda x: x.transpose(2, 3), (24, 6, 4)),
        ("channels last", lambda x: x.permute(0, 3, 1, 2), (6, 24, 4)),
        ("flip", lambda x: x.flip(2, 3), (24, 4, 6)),
        ("flip channels", lambda x: x.flip(1), (24, 4, 6)),
        ("slice", lambda x: x[:, 1::3, 1::2, 0::3], (8, 2, 2)),
        ("shuffle", lambda x: x.unfold(2, 1, 1).squeeze(4), (6, 8, 12)),
        ("heads", lambda x: x.unflatten(1, (3, 8)).movedim(1, 2).flatten(2, 3), None),
        ("repeat", lambda x: x.repeat_interleave(2, 2), (24, 8, 6)),
        ("flatten", lambda x: x.flatten(1)[:, :, None, None], (576, 1, 1)),
    ],
)
def test_rearrange_is_pytorch_s(
    expression: str, torch_of: Any, shape: tuple[int, int, int] | None, threads: int
) -> None:
    torch = pytest.importorskip("torch")
    x = torch.arange(2 * 24 * 4 * 6, dtype=torch.float32).reshape(2, 24, 4, 6)
    if expression == "shuffle":
        expected = torch.nn.functional.pixel_shuffle(x, 2)
    elif expression == "heads":  # the heads of a row lie one after the other
        expected = x.reshape(2, 3, 8, 4, 6).permute(0, 2, 3, 1, 4).reshape(2, 8, 4, 18)
    else:
        expected = torch_of(x)
    network = Network((24, 4, 6))
    rearranged(network, expression, tuple(expected.shape[1:]))
    for isa in isas():
        found = load(network.bytes(), threads, isa=isa)(x.numpy())
        np.testing.assert_array_equal(found.reshape(expected.shape), expected.numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [1] * 13, "strides": [1] * 13}, "must have 1 to 12 'sizes', and as many 'strides'"),
        ({"sizes": [], "strides": []}, "must have 1 to 12 'sizes', and as many 'strides'"),
        ({"strides": [24, 1]}, "must have 1 to 12 'sizes', and as many 'strides'"),
        ({"sizes": [4, 0, 6]}, "'sizes' must be a whole number from 1 to 2147483648"),
        ({"sizes": [5, 6, 4], "strides": [0] * 3}, "'sizes' gives more numbers than 'shape' has"),
        ({"sizes": [2**31] * 3, "strides": [0] * 3}, "'sizes' gives more numbers than 'shape' has"),
        ({"sizes": [3, 6, 4]}, "'sizes' gives fewer numbers than 'shape' has"),
        ({"offset": 1}, "reads numbers that its input does not have"),
        ({"offset": -1}, "'offset' must be a whole number from 0 to 2147483648"),
        ({"strides": [24, 4, -1]}, "reads numbers that its input does not have"),
        ({"strides": [2**31] * 3}, "reads numbers that its input does not have"),
        ({"strides": [-(2**31)] * 3}, "reads numbers that its input does not have"),
        ({"strides": [2**31 + 1] * 3}, "'strides' must be a whole number from -2147483648 to 2147483648"),
        ({"sizes": [16, 6], "strides": [1, 16]}, "has loops that do not end with the channels of a pixel"),
        ({"sizes": [32, 3], "strides": [1, 32]}, "has loops that do not end with the channels of a pixel"),
        ({"shape": [4, 4]}, "'shape' must have 3 numbers"),
        ({"more": 1}, "has 'more', which is not known"),
    ],
)
def test_refused_loops(change: dict[str, Any], message: str) -> None:
    network = Network((4, 4, 6))
    fields: dict[str, Any] = {"shape": [4, 4, 6], "sizes": [4, 6, 4], "strides": [24, 4, 1], "offset": 0}
    network.node("rearrange", "input", **fields | change)
    with pytest.raises(EngineError) as caught:
        load(network.bytes())
    assert message in str(caught.value)


# -------------------------------------------------------------------------------------- constant


@settings(max_examples=60, deadline=None, suppress_health_check=FIXTURE)
@given(IMAGES, st.sampled_from(["one", "channels", "all"]), st.booleans(), RIDES, SEEDS)
def test_constant(
    tmp_path: Path, shape: tuple[int, int, int], numbers: str, half: bool, kind: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    network = Network((3, 2, 2))
    given = {"one": (1,), "channels": shape[:1], "all": shape}[numbers]
    weight = network.tensor(quarters(random, *given), np.float16 if half else np.float32)
    rides = ride(random, network, shape[0], kind)
    network.node("constant", None, name="c", weight=weight, shape=list(shape), **rides)
    if kind == "bits alone":
        network.node("identity", "input")
    else:  # it is joined like every other value
        network.node("identity", "c", then=[{"add": "c"}])
    check(network, tmp_path, quarters(random, 2, 3, 2, 2))


def test_refused_constants() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"weight": "two"}, "'weight' must have the numbers of 'shape', or one for each channel, or 1"),
        ({"weight": "flat"}, "'weight' must have the numbers of 'shape', or one for each channel, or 1"),
        ({"weight": "words"}, "'weight' must be real, not U32"),
        ({"weight": "none"}, "it has no tensor 'none'"),
        ({"weight": "one", "input": "input"}, "has 'input', which is not known"),
        ({"weight": "one", "shape": [3, 0, 1]}, "'shape' must be a whole number from 1 to"),
        ({"weight": "one", "shape": [2**20, 2**20, 1]}, "(1048576, 1048576, 1) is too large"),
    ]
    for fields, message in cases:
        network = Network((3, 2, 2))
        network.tensors = {
            "two": np.zeros(2, np.float32),
            "flat": np.zeros(12, np.float32),
            "one": np.zeros(1, np.float32),
            "words": np.zeros(1, np.uint32),
        }
        node = {"op": "constant", "name": "c", "shape": [3, 2, 2], "output": "c", **fields}
        network.graph |= {"nodes": [node], "output": "c"}
        with pytest.raises(EngineError) as caught:
            load(network.bytes())
        assert message in str(caught.value)


# ---------------------------------------------------------------------------------------- matmul


@settings(max_examples=120, deadline=None, suppress_health_check=FIXTURE)
@given(
    depth=st.integers(1, 40),
    rows=st.integers(1, 4),
    columns=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    transposed=st.booleans(),
    kind=RIDES,
    seed=SEEDS,
)
def test_matmul(
    tmp_path: Path,
    depth: int,
    rows: int,
    columns: tuple[int, int],
    transposed: bool,
    kind: str,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    first, second = (depth, rows, columns[0]), (depth, rows, columns[1])
    if not transposed:
        second = (columns[1], rows, depth)
    network = Network(first)
    weight = network.tensor(powers(random, *second))
    network.node("constant", None, name="b", weight=weight, shape=list(second))
    rides = ride(random, network, columns[1], kind)
    name = network.node("matmul", ["input", "b"], transposed=transposed, **rides)
    read_bits(random, network, name, columns[1])
    if seed % 3 == 0:  # a border lies between the rows
        network.conv("b", powers(random, 2, second[0], 3, 3), padding=[1] * 4)
        network.conv("input", powers(random, 2, depth, 3, 3), padding=[1] * 4)
    check(network, tmp_path, quarters(random, 2, *first))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_matmul_of_itself_is_pytorch_s(transposed: bool, threads: int) -> None:
    """Parts of several threads begin within a row."""
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 65, 3, 65)).astype(np.float32)
    network = Network((65, 3, 65))
    network.node("matmul", ["input", "input"], transposed=transposed)
    matrices = torch.from_numpy(x).permute(0, 2, 3, 1).double()
    expected = matrices @ (matrices.mT if transposed else matrices)
    found = [load(network.bytes(), threads, isa=isa)(x) for isa in isas()]
    np.testing.assert_allclose(found[0], expected.permute(0, 3, 1, 2), 1e-5, 1e-4)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_refused_products() -> None:
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        (["input"], {"transposed": True}, "'inputs' must name two values"),
        (["input"] * 3, {"transposed": True}, "'inputs' must name two values"),
        (["input"] * 2, {}, "has no 'transposed'"),
        (["input"] * 2, {"transposed": 1}, "'transposed' is not true or false"),
        (["input"] * 2, {"transposed": False}, "multiplies (4, 2, 3) by (4, 2, 3), which does not fit"),
        (["input", "mean"], {"transposed": True}, "multiplies (4, 2, 3) by (4, 1, 1), which does not fit"),
        (["input", "i.bits"], {"transposed": True}, "takes a real value, and 'i.bits' is bits"),
    ]
    for inputs, fields, message in cases:
        network = Network((4, 2, 3))
        network.node("adaptive_avg_pool", "input", size=[1, 1], name="mean")
        network.node("identity", "input", sign={}, name="i")
        network.node("matmul", inputs, **fields)
        with pytest.raises(EngineError) as caught:
            load(network.bytes())
        assert message in str(caught.value)


# ------------------------------------------------------------------------------------------- pad


@settings(max_examples=80, deadline=None, suppress_health_check=FIXTURE)
@given(
    IMAGES,
    st.lists(st.integers(0, 4), min_size=4, max_size=4),
    st.sampled_from(["constant", "reflect", "replicate", "circular"]),
    RIDES,
    SEEDS,
)
def test_pad(
    tmp_path: Path, image: tuple[int, int, int], padding: list[int], mode: str, kind: str, seed: int
) -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(seed)
    if mode in ("reflect", "circular"):
        padding = [min(p, image[1 + axis % 2] - (mode == "reflect")) for axis, p in enumerate(padding)]
    value: dict[str, Any] = {"value": float(quarters(random))} if mode == "constant" else {}
    network = Network(image)
    rides = ride(random, network, image[0], kind)
    name = network.node("pad", "input", padding=padding, mode=mode, **value, **rides)
    read_bits(random, network, name, image[0])
    x = quarters(random, 2, *image)
    check(network, tmp_path, x)
    if kind == "plain":
        top, left, bottom, right = padding
        expected = torch.nn.functional.pad(
            torch.from_numpy(x), (left, right, top, bottom), mode, value.get("value")
        )
        np.testing.assert_array_equal(load(network.bytes())(x).reshape(expected.shape), expected)


def test_refused_paddings() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"mode": "mirror"}, "'mode' is 'mirror', which is not known"),
        ({"mode": 1}, "'mode' is not a string"),
        ({"mode": "constant"}, "has no 'value'"),
        ({"mode": "constant", "value": 1e300}, "'value' is too large"),
        ({"mode": "replicate", "value": 0}, "has 'value', which is not known"),
        ({"padding": [-1, 0, 0, 0]}, "'padding' must be a whole number from 0 to 1048576"),
        ({"padding": [0, 0, 0]}, "'padding' must have 4 numbers"),
        ({"padding": [0, 0, 2, 0]}, "'padding' is too large for 'reflect' of (4, 2, 3)"),
        ({"padding": [0, 4, 0, 0], "mode": "circular"}, "'padding' is too large for 'circular' of (4, 2, 3)"),
        ({"padding": [2**20] * 4, "mode": "replicate"}, "(4, 2097154, 2097155) is too large"),
    ]
    for fields, message in cases:
        network = Network((4, 2, 3))
        network.node("pad", "input", **{"padding": [1, 1, 1, 1], "mode": "reflect"} | fields)
        with pytest.raises(EngineError) as caught:
            load(network.bytes())
        assert message in str(caught.value)


def test_a_pad_value_is_a_sign() -> None:
    for value in (0, 2, -2, 0.5, None, True):
        network = Network((4, 2, 3))
        weight = np.ones((4, 4, 3, 3), np.float32)
        network.conv(network.bits("input"), weight, binary=True, padding=[1] * 4, pad_value=value)
        with pytest.raises(EngineError, match=r"'pad_value' (must be|is not) "):
            load(network.bytes())


# ------------------------------------------------------------------------------- resize_bilinear


@settings(max_examples=80, deadline=None, suppress_health_check=FIXTURE)
@given(
    image=st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(1, 30)),
    size=st.tuples(st.integers(1, 61), st.integers(1, 61)),
    corners=st.booleans(),
    kind=st.sampled_from(["plain", "steps"]),
    seed=SEEDS,
)
def test_resize_bilinear_is_pytorch_s(
    tmp_path: Path,
    image: tuple[int, int, int],
    size: tuple[int, int],
    corners: bool,
    kind: str,
    seed: int,
) -> None:
    """Larger and smaller, to any size."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(seed)
    x = quarters(random, 2, *image)
    network = Network(image)
    pairs = list(zip(image[1:], size, strict=True))
    scale = [float(np.float32(i) / np.float32(n)) for i, n in pairs]
    if corners:
        scale = [float(np.float32(i - 1) / np.float32(n - 1)) if n > 1 else 0.0 for i, n in pairs]
    rides = ride(random, network, image[0], kind)
    network.node("resize_bilinear", "input", size=list(size), scale=scale, corners=corners, **rides)
    check(network, tmp_path, x, exact=False)
    if kind == "plain":
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(x), size, mode="bilinear", align_corners=corners
        ).numpy()
        found = load(network.bytes())(x).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, 1e-5, 1e-5)


def test_refused_sizes() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"scale": [1, -0.5]}, "'scale' must be a number from 0 on"),
        ({"scale": [1, 1e300]}, "'scale' must be a number from 0 on"),
        ({"scale": [1]}, "'scale' must have 2 numbers"),
        ({"size": [0, 1]}, "'size' must be a whole number from 1 to 1048576"),
        ({"corners": 0}, "'corners' is not true or false"),
    ]
    for fields, message in cases:
        network = Network((4, 2, 3))
        given: dict[str, Any] = {"size": [4, 6], "scale": [0.5, 0.5], "corners": False}
        network.node("resize_bilinear", "input", **given | fields)
        with pytest.raises(EngineError) as caught:
            load(network.bytes())
        assert message in str(caught.value)
