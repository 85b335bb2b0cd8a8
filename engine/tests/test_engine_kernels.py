"""Every kernel of every instruction set that this machine can run, against the reference reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import packed_reference
import pytest
from bnew_engine import isas, load
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny import Array, Network, powers, quarters, signs

FIXTURE = [HealthCheck.function_scoped_fixture]  # a path that each example writes anew
CHANNELS = st.one_of(
    st.integers(1, 140),
    st.sampled_from([15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 192, 255, 256, 257, 512, 1025]),
)
SEEDS = st.integers(0, 2**32 - 1)
ROUNDED = (
    *("sigmoid", "hard_sigmoid", "gelu", "gelu_tanh", "silu", "hard_swish"),
    *("mish", "softplus", "elu", "softsign", "tanh"),
)
Thing = TypeVar("Thing")


@st.composite
def convolutions(draw: st.DrawFn, channels: st.SearchStrategy[int]) -> dict[str, Any]:
    """Channels, image and window of a convolution whose result has at least one place."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 5, 16]))
    c_in, c_out = draw(channels), draw(st.integers(1, 130))
    if groups > 1:
        c_in, c_out = -(-min(c_in, 100) // groups) * groups, -(-c_out // groups) * groups
    kernel = [draw(st.integers(1, 5)) for _ in range(2)] if draw(st.booleans()) else [3, 3]
    stride = [draw(st.integers(1, 3)) for _ in range(2)]
    dilation = [draw(st.sampled_from([1, 1, 2, 3])) for _ in range(2)]
    padding = [draw(st.integers(0, 3)) for _ in range(4)]
    size = []
    for axis in range(2):
        least = dilation[axis] * (kernel[axis] - 1) + 1 - padding[axis] - padding[axis + 2]
        size.append(max(1, least) + draw(st.integers(0, 7)))
    return {
        "shape": (c_in, *size),
        "weight": (c_out, c_in // groups, *kernel),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }


def window(case: dict[str, Any]) -> dict[str, Any]:
    return {
        "kernel": case["weight"][2:],
        **{key: case[key] for key in ("stride", "padding", "dilation", "groups")},
    }


def binary_network(case: dict[str, Any], weight: Array, **more: int) -> Network:
    network = Network(case["shape"])
    fields = {key: case[key] for key in ("stride", "padding", "dilation", "groups")} | more
    network.conv(network.bits("input"), weight, binary=True, name="conv", **fields)
    return network


@settings(max_examples=250, deadline=None, suppress_health_check=FIXTURE)
@given(convolutions(CHANNELS), SEEDS, st.sampled_from([{}, {"pad_value": 1}, {"pad_value": -1}]))
def test_binary_convolution(tmp_path: Path, case: dict[str, Any], seed: int, padded: dict[str, int]) -> None:
    """Taps in the padding add nothing, or count as bits of a sign."""
    random = np.random.default_rng(seed)
    weight = signs(random, *case["weight"])
    path = binary_network(case, weight, **padded).write(tmp_path / "m.bnew")
    x = signs(random, 1, *case["shape"])
    expected = packed_reference.convolve(x.astype(np.float64), weight, window(case) | padded)
    for isa in isas():
        model = load(path, isa=isa)
        assert model.isa == isa
        np.testing.assert_array_equal(model.convolve("conv", x), expected)
        np.testing.assert_array_equal(np.atleast_3d(model(x).T).T.reshape(expected.shape), expected)


@pytest.mark.parametrize("value", [1, -1])
@pytest.mark.parametrize("channels", [16, 1024, 7281, 7282])
def test_counts_reach_their_limits(tmp_path: Path, channels: int, value: int) -> None:
    """All of up to 65,538 bits alike, and all different: no lane of a kernel overflows."""
    weight = np.full((17, channels, 3, 3), value, np.float32)
    case: dict[str, Any] = {"shape": (channels, 3, 4), "stride": [1, 1], "padding": [0] * 4}
    case |= {"dilation": [1, 1], "groups": 1}
    path = binary_network(case, weight).write(tmp_path / "m.bnew")
    for isa in isas():
        model = load(path, isa=isa)
        for sign in (1, -1):
            found = model.convolve("conv", np.full((1, *case["shape"]), sign, np.float32))
            np.testing.assert_array_equal(found, np.full((1, 17, 1, 2), sign * value * channels * 9))


def test_the_scalar_kernel_is_pytorch_s(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    for c_in, groups, stride, padding, dilation in [
        (3, 1, 1, 0, 1),
        (40, 1, 2, 1, 1),
        (66, 1, 1, 2, 2),
        (64, 4, 1, 1, 1),
    ]:
        weight = signs(random, 20, c_in // groups, 3, 3)
        case: dict[str, Any] = {"shape": (c_in, 9, 8), "stride": [stride] * 2, "padding": [padding] * 4}
        case |= {"dilation": [dilation] * 2, "groups": groups}
        path = binary_network(case, weight).write(tmp_path / "m.bnew")
        x = signs(random, 2, c_in, 9, 8)
        expected = torch.nn.functional.conv2d(
            torch.from_numpy(x), torch.from_numpy(weight), None, stride, padding, dilation, groups
        )
        np.testing.assert_array_equal(load(path, isa="scalar").convolve("conv", x), expected.numpy())


@settings(max_examples=120, deadline=None, suppress_health_check=FIXTURE)
@given(convolutions(st.integers(1, 70)), SEEDS, st.booleans())
def test_real_convolution(tmp_path: Path, case: dict[str, Any], seed: int, half: bool) -> None:
    random = np.random.default_rng(seed)
    network = Network(case["shape"])
    weight = quarters(random, *case["weight"])
    network.conv("input", weight, **{key: case[key] for key in ("stride", "padding", "dilation", "groups")})
    if half:
        network.tensors["t0"] = weight.astype(np.float16)
    check(network, tmp_path, quarters(random, 2, *case["shape"]))


@settings(max_examples=30, deadline=None, suppress_health_check=FIXTURE)
@given(convolutions(st.just(1)), st.integers(2, 130), SEEDS)
def test_depthwise_convolution(tmp_path: Path, case: dict[str, Any], channels: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = (channels, *case["shape"][1:])
    network = Network(shape)
    fields = {key: case[key] for key in ("stride", "padding", "dilation")}
    network.conv("input", quarters(random, channels, 1, *case["weight"][2:]), groups=channels, **fields)
    check(network, tmp_path, quarters(random, 2, *shape))


def bits_of(array: Array) -> Array:
    """Floats as integers, so that zeros of different signs differ; one NaN is as good as another."""
    array = np.ascontiguousarray(array, np.float32)
    return np.where(np.isnan(array), np.float32(np.nan), array).view(np.uint32)


def check(network: Network, tmp_path: Path, x: Array, exact: bool = True) -> None:
    """All values are the same bits on every instruction set, and the reference's, or nearly."""
    path = network.write(tmp_path / "m.bnew")
    reference = packed_reference.Reference(path)
    output = reference(x)
    first: dict[str, Array] = {}
    for isa in isas():
        model = load(path, isa=isa)
        assert model.isa == isa
        values = model.values(x)
        assert set(values) == set(reference.values)
        for name, value in values.items():
            if exact:
                np.testing.assert_array_equal(value, reference.values[name], err_msg=f"{isa}, {name}")
            else:
                np.testing.assert_allclose(
                    value, reference.values[name], 1e-5, 1e-5, err_msg=f"{isa}, {name}"
                )
            np.testing.assert_array_equal(bits_of(value), bits_of(first.setdefault(name, value)), err_msg=isa)
        result = model(x)
        assert result.shape == output.shape
        assert result.dtype == np.float32
        np.testing.assert_array_equal(
            bits_of(result).reshape(-1), bits_of(values[network.graph["output"]]).reshape(-1)
        )


@st.composite
def steps(draw: st.DrawFn, joined: list[str]) -> list[dict[str, Any]]:
    """Kinds of steps; ``joined`` names values to add and multiply with."""
    kinds: list[st.SearchStrategy[dict[str, Any]]] = [
        st.sampled_from([{"scale": None}, {"shift": None}, {"prelu": None}, {"sign": {}}, {"round": {}}]),
        st.tuples(st.sampled_from([None, -1.5, 0]), st.sampled_from([None, 0, 1, 6])).map(
            lambda bounds: {"clamp": list(bounds)}
        ),
        st.tuples(st.sampled_from(["add", "multiply"]), st.sampled_from(joined)).map(
            lambda join: {join[0]: join[1]}
        ),
    ]
    found = draw(st.lists(st.one_of(kinds), max_size=4))
    if draw(st.integers(0, 4)) == 0:  # these round: nothing may depend on their last bit
        found.append({draw(st.sampled_from(ROUNDED)): {}})
    return found


def numbers(random: np.random.Generator, network: Network, channels: int) -> str:
    return network.tensor(powers(random, 1 if random.random() < 0.2 else channels))


def one_of_each(random: np.random.Generator, c_out: int, c_in: int) -> Array:
    """Weights of a 1 × 1 convolution: each output channel is some input channel times a power of two."""
    weight = np.zeros((c_out, c_in, 1, 1), np.float32)
    weight[np.arange(c_out), random.integers(c_in, size=c_out), 0, 0] = powers(random, c_out)
    return weight


def finish(network: Network) -> None:
    """The output comes from all values, so that the reference finds none unused."""
    ends = [node["output"] for node in network.graph["nodes"] if "output" in node]
    largest = [
        network.node(
            "max_pool", end, kernel=[9, 9], stride=[1, 1], padding=[0] * 4, dilation=[1, 1], size=[1, 1]
        )
        for end in ends
    ]
    network.node("concat", largest)


@settings(max_examples=250, deadline=None, suppress_health_check=FIXTURE)
@given(
    op=st.sampled_from(["identity", "binary_conv", "conv", "depthwise", "max_pool", "concat", "flatten"]),
    factors=st.tuples(st.integers(1, 6), st.integers(1, 24)),
    then=steps(["same", "everywhere", "divisor", "input"]),
    sign=st.sampled_from(["none", "plain", "shift", "scale", "both"]),
    real=st.booleans(),
    seed=SEEDS,
)
def test_epilogues(
    tmp_path: Path,
    op: str,
    factors: tuple[int, int],
    then: list[dict[str, Any]],
    sign: str,
    real: bool,
    seed: int,
) -> None:
    """Every step in any order, behind every kind of stage, with and without bits."""
    random = np.random.default_rng(seed)
    channels, divisor = factors[0] * factors[1], factors[1]
    size = [1, 1] if op == "flatten" else [3, 4]
    three: dict[str, Any] = {"kernel": [3, 3], "stride": [1, 1], "dilation": [1, 1], "padding": [1] * 4}
    network = Network((channels, *size))
    network.conv("input", one_of_each(random, channels, channels), name="same")
    network.conv("input", one_of_each(random, divisor, channels), name="divisor")
    network.node("max_pool", "input", **three | {"kernel": [9, 9]}, size=[1, 1], name="everywhere")
    for step in then:
        ((kind, argument),) = step.items()
        if argument is None:
            step[kind] = numbers(random, network, channels)
    rest: dict[str, Any] = {"then": then, "name": "out", "real": real}
    exact = not any(kind in step for step in then for kind in ROUNDED)
    if sign == "none" or not exact:
        rest["real"] = True
    else:
        given = [key for key in ("scale", "shift") if sign in (key, "both")]
        rest["sign"] = {key: numbers(random, network, channels) for key in given}
    match op:
        case "binary_conv":
            source = network.bits("input")
            network.conv(source, signs(random, channels, channels, 1, 1), binary=True, **rest)
        case "conv":
            network.conv("input", one_of_each(random, channels, channels), **rest)
        case "depthwise":
            weight = powers(random, channels, 1, 3, 3)
            network.conv("input", weight, groups=channels, padding=[1] * 4, **rest)
        case "max_pool":
            network.node("max_pool", "input", **three, size=size, **rest)
        case "concat":
            network.node("concat", ["input"], **rest)
        case _:
            network.node(op, "input", **rest)
    if "sign" in rest:
        network.conv("out.bits", signs(random, 17, channels, 1, 1), binary=True)
    finish(network)
    check(network, tmp_path, powers(random, 2, channels, *size), exact)


@settings(max_examples=80, deadline=None, suppress_health_check=FIXTURE)
@given(
    op=st.sampled_from(["max_pool", "avg_pool", "adaptive_avg_pool"]),
    channels=st.integers(1, 70),
    image=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    windows=st.lists(st.integers(1, 4), min_size=6, max_size=6),
    padding=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    count_padding=st.booleans(),
    seed=SEEDS,
)
def test_pools(
    tmp_path: Path,
    op: str,
    channels: int,
    image: tuple[int, int],
    windows: list[int],
    padding: list[int],
    size: tuple[int, int],
    count_padding: bool,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    network = Network((channels, *image))
    fields: dict[str, Any] = {"size": list(size)}
    if op != "adaptive_avg_pool":
        kernel, stride, dilation = windows[:2], windows[2:4], windows[4:] if op == "max_pool" else [1, 1]
        fields |= {"kernel": kernel, "stride": stride, "padding": padding}
        fields |= {"dilation": dilation} if op == "max_pool" else {"count_padding": count_padding}
        for axis in range(2):  # every window has a place in the image
            first = np.arange(size[axis]) * stride[axis] - padding[axis]
            places = first[:, None] + np.arange(kernel[axis]) * dilation[axis]
            inside = np.atleast_1d(((places >= 0) & (places < image[axis])).any(1))
            fields["size"][axis] = max(1, int(np.argmin(inside)) if not inside.all() else size[axis])
            assume(inside[0])
    network.node(op, "input", **fields)
    check(network, tmp_path, quarters(random, 2, channels, *image), exact=op == "max_pool")


@settings(max_examples=40, deadline=None, suppress_health_check=FIXTURE)
@given(
    parts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    image=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=SEEDS,
)
def test_concat_flatten_and_softmax(
    tmp_path: Path, parts: list[int], image: tuple[int, int], seed: int
) -> None:
    random = np.random.default_rng(seed)
    network = Network((7, *image))
    values = [network.conv("input", quarters(random, part, 7, 1, 1)) for part in parts]
    joined = network.node("concat", [*values, "input", values[0]])
    flat = network.node("flatten", joined)
    network.node(
        "concat", [network.node("softmax", flat), network.node("flatten", network.node("softmax", joined))]
    )
    check(network, tmp_path, quarters(random, 2, 7, *image), exact=False)


@settings(max_examples=60, deadline=None, suppress_health_check=FIXTURE)
@given(
    channels=st.one_of(st.integers(1, 70), st.sampled_from([257, 1025])),
    image=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    eps=st.sampled_from([1e-12, 1e-5, 0.5]),
    seed=SEEDS,
)
def test_layer_norm(tmp_path: Path, channels: int, image: tuple[int, int], eps: float, seed: int) -> None:
    """Of images, pixel by pixel, and of a vector; with weight and bias, which are steps."""
    random = np.random.default_rng(seed)
    network = Network((channels, *image))
    then = [{kind: network.tensor(quarters(random, channels))} for kind in ("scale", "shift")]
    x = network.node("layer_norm", "input", eps=eps, then=then)
    mean = network.node("adaptive_avg_pool", "input", size=[1, 1])
    network.node("concat", [network.node("flatten", x), network.node("layer_norm", mean, eps=eps)])
    # What is alike must be equal, or eps alone decides what rounding leaves of it.
    check(
        network,
        tmp_path,
        quarters(random, 2, channels, *image) if channels > 1 else np.ones((1, 1, *image)),
        False,
    )


def test_layer_norm_is_pytorch_s(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(1)
    x, weight, bias = (random.standard_normal(n).astype(np.float32) for n in ((3, 40, 5, 6), 40, 40))
    network = Network((40, 5, 6))
    then = [{"scale": network.tensor(weight)}, {"shift": network.tensor(bias)}]
    network.node("layer_norm", "input", eps=1e-6, then=then)
    x = 3 * x + 100  # far from zero: the mean must be taken away before the squares
    expected = torch.nn.functional.layer_norm(
        torch.from_numpy(x).double().movedim(1, 3),
        (40,),
        *map(torch.from_numpy, map(np.float64, (weight, bias))),
        1e-6,
    )
    np.testing.assert_allclose(load(network.bytes())(x), expected.movedim(3, 1), 1e-4, 2e-5)


@settings(max_examples=60, deadline=None, suppress_health_check=FIXTURE)
@given(
    channels=st.integers(1, 40),
    image=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    size=st.tuples(st.integers(1, 61), st.integers(1, 61)),
    seed=SEEDS,
)
def test_resize_nearest_is_pytorch_s(
    tmp_path: Path, channels: int, image: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    """Larger and smaller, to any size: PyTorch's places, whose product is rounded to float32."""
    torch = pytest.importorskip("torch")
    x = quarters(np.random.default_rng(seed), 2, channels, *image)
    network = Network((channels, *image))
    scale = [float(np.float32(i) / np.float32(n)) for i, n in zip(image, size, strict=True)]
    network.node("resize_nearest", "input", size=list(size), scale=scale)
    check(network, tmp_path, x)
    expected = torch.nn.functional.interpolate(torch.from_numpy(x), size, mode="nearest").numpy()
    np.testing.assert_array_equal(load(network.bytes())(x).reshape(expected.shape), expected)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize(("step", "approximate"), [("gelu", "none"), ("gelu_tanh", "tanh")])
def test_gelu_is_pytorch_s(step: str, approximate: str, isa: str) -> None:
    """To 1e-6 near zero, where it matters, and everywhere: it ends at 0 and at v, however far out."""
    torch = pytest.importorskip("torch")
    x = np.concatenate(
        [np.linspace(-12, 12, 40001), *(s * np.logspace(-38, 38, 500) for s in (-1, 1)), [0.0]]
    )
    x = x.astype(np.float32)
    network = Network((1, 1, len(x)))
    network.node("identity", "input", then=[{step: {}}])
    found = load(network.bytes(), isa=isa)(x.reshape(1, 1, 1, -1)).reshape(-1)
    expected = torch.nn.functional.gelu(torch.from_numpy(x).double(), approximate=approximate).numpy()
    np.testing.assert_allclose(found, expected, 3e-7, 1e-6)
    assert (found[x < -9] == 0).all()
    np.testing.assert_array_equal(found[x > 9], x[x > 9])


def test_filled_up_channels_never_give_bits(tmp_path: Path) -> None:
    """What fills up a pixel's channels may be anything, infinity too, and still gives clear bits."""
    largest = np.float32(np.finfo(np.float32).max)
    network = Network((16, 1, 1))
    twice = [{"scale": network.tensor([2])}]
    infinite = network.node("identity", "input", then=twice)  # in memory that the next values will take
    narrow = network.conv(
        infinite,
        np.zeros((3, 16, 1, 1), np.float32),
        then=[{"clamp": [0, 1]}, {"shift": network.tensor([1])}],
    )
    copied = network.node("flatten", network.node("flatten", network.node("flatten", narrow)))
    network.node("identity", copied, real=False, sign={}, name="last")
    network.conv("last.bits", np.ones((1, 3, 1, 1), np.float32), binary=True)
    path = network.write(tmp_path / "m.bnew")
    for isa in isas():
        assert load(path, isa=isa)(np.full((1, 16, 1, 1), largest, np.float32)) == 3, isa


class Grower:
    """Grows a network by random nodes, each reading any value that is there."""

    def __init__(self, random: np.random.Generator, shape: tuple[int, int, int]) -> None:
        self.random = random
        self.network = Network(shape)
        self.shapes = {"input": shape}
        self.bits: list[str] = []

    def any_of(self, things: Sequence[Thing]) -> Thing:
        return things[int(self.random.integers(len(things)))]

    def then(self, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
        fits = [
            name
            for name, (c, h, w) in self.shapes.items()
            if shape[0] % c == 0 and (h, w) in (shape[1:], (1, 1))
        ]
        found: list[dict[str, Any]] = []
        for _ in range(self.random.integers(0, 5)):
            kind = self.any_of(["scale", "shift", "prelu", "add", "add", "clamp", "sign"])
            if kind == "add":
                found += [{"add": self.any_of(fits)}] if fits else []
            elif kind == "clamp":
                found.append({"clamp": [-4, self.any_of([None, 4])]})
            else:
                numbers = self.random.choice(np.array([-1, -0.5, 0.5, 1]), shape[0])
                found.append({kind: {} if kind == "sign" else self.network.tensor(numbers)})
        return [*found, {"clamp": [-32, 32]}]

    def grow(self) -> None:
        source = self.any_of(list(self.shapes))
        c, h, w = self.shapes[source]
        kernel, stride = [self.any_of([1, 1, 2, 3]) for _ in range(2)], self.any_of([1, 1, 1, 2])
        padding = [int(self.random.integers(0, k)) for k in kernel * 2]
        op = self.any_of(
            ["identity", "conv", "conv", "binary", "binary", "binary", "depthwise", "max_pool", "concat"]
        )
        bits = source if op != "binary" or not self.bits else self.any_of(self.bits).removesuffix(".bits")
        c, h, w = self.shapes[bits]
        height = (h + padding[0] + padding[2] - kernel[0]) // stride + 1
        width = (w + padding[1] + padding[3] - kernel[1]) // stride + 1
        if min(height, width) < 1:
            return
        c_out = self.any_of([1, 7, 16, 16, 24, 32, 40])
        window: dict[str, Any] = {"stride": [stride] * 2, "padding": padding, "dilation": [1, 1]}
        fields: dict[str, Any] = {}
        shape = (c, height, width)
        weight = np.zeros(0)
        match op:
            case "conv" | "binary":
                groups = self.any_of([g for g in (1, 1, 2, 8) if c % g == 0])
                shape = (-(-c_out // groups) * groups, height, width)
                weight = signs(self.random, shape[0], c // groups, *kernel)
                if op == "conv":  # one tap alone, so that sums stay exact
                    weight *= self.random.random(weight.shape) < 1 / weight[0].size
                fields = window | {"groups": groups}
            case "depthwise":
                weight, fields = signs(self.random, c, 1, *kernel), window | {"groups": c}
            case "max_pool":
                fields = window | {"kernel": kernel, "size": [height, width]}
            case "identity":
                shape = (c, h, w)
            case "concat":
                alike = [name for name, other in self.shapes.items() if other[1:] == (h, w)]
                parts = [self.any_of(alike) for _ in range(self.random.integers(1, 4))]
                shape = (sum(self.shapes[part][0] for part in parts), h, w)
                if shape[0] > 100:
                    return
        fields["then"] = self.then(shape)
        if self.random.random() < 0.5:
            keys = [key for key in ("scale", "shift") if self.random.random() < 0.4]
            fields["sign"] = {key: numbers(self.random, self.network, shape[0]) for key in keys}
        if op == "binary":
            name = f"{bits}.bits" if f"{bits}.bits" in self.bits else self.network.bits(bits)
            made = self.network.conv(name, weight, binary=True, **fields)
        elif op in ("conv", "depthwise"):
            made = self.network.conv(source, weight, **fields)
        else:
            made = self.network.node(op, parts if op == "concat" else source, **fields)
        self.shapes[made] = shape
        if "sign" in fields:
            self.bits.append(f"{made}.bits")


@settings(max_examples=150, deadline=None, suppress_health_check=FIXTURE)
@given(st.integers(1, 14), st.integers(1, 20), st.tuples(st.integers(1, 9), st.integers(1, 9)), SEEDS)
def test_random_networks(
    tmp_path: Path, nodes: int, channels: int, image: tuple[int, int], seed: int
) -> None:
    """Values that share memory and have borders of several readers, in any order."""
    random = np.random.default_rng(seed)
    grower = Grower(random, (channels, *image))
    for _ in range(nodes):
        grower.grow()
    for name in grower.bits:
        grower.network.conv(
            name, signs(random, 3, grower.shapes[name.removesuffix(".bits")][0], 1, 1), binary=True
        )
    grower.network.node("identity", "input")
    finish(grower.network)
    check(grower.network, tmp_path, quarters(random, 2, channels, *image))
