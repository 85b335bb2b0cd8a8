"""load() and Model: threads, strips of rows, input of every kind, what is forced and what is refused."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import bnew_engine
import numpy as np
import pytest
from bnew_engine import EngineError, Model, isas, load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import Array, Network, everything, powers, quarters, signs

PACKAGE = Path(bnew_engine.__file__).parent
SANITIZED = pytest.mark.skipif("ASAN_OPTIONS" in os.environ, reason="under a sanitizer")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return everything().write(tmp_path_factory.mktemp("model") / "m.bnew")


@pytest.fixture(scope="module")
def images() -> Array:
    return np.random.default_rng(0).standard_normal((7, 3, 33, 35)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(path: Path, images: Array) -> Array:
    model = load(path)
    return np.concatenate([model(image[None]) for image in images])


# ---------------------------------------------------------------------------------- threads, batches


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_batches_give_the_same_bits(
    path: Path, images: Array, expected: Array, threads: int, isa: str
) -> None:
    model = load(path, threads, isa)
    assert (model.threads, model.isa) == (threads, isa)
    for count in (1, 2, 3, 7):
        np.testing.assert_array_equal(model(images[:count]), expected[:count])
    np.testing.assert_allclose(expected.sum(1), 1, 1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_calls_from_several_python_threads(path: Path, images: Array, expected: Array, threads: int) -> None:
    model = load(path, threads)

    def call(i: int) -> None:
        for _ in range(20):
            np.testing.assert_array_equal(model(images[i : i + 3]), expected[i : i + 3])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))


ROW_BY_ROW = ["conv", "binary", "binary", "max_pool", "avg_pool", "identity", "depthwise"]
ROW_BY_ROW += ["layer_norm", "softmax", "resize_nearest", "resize_bilinear", "pad"]


@st.composite
def layers(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Layers that can be computed row by row; sizes are taken from what comes out."""

    def pair(least: int, most: int) -> list[int]:
        return [draw(st.integers(least, most)), draw(st.integers(least, most))]

    found = []
    for _ in range(draw(st.integers(2, 7))):
        kind = draw(st.sampled_from(ROW_BY_ROW))
        kernel = pair(1, 3)
        padding = [draw(st.integers(0, 3)) for _ in range(4)]
        if "pool" in kind:  # every window has a place in the image
            padding = [min(p, k - 1) for p, k in zip(padding, kernel * 2, strict=True)]
        found.append(
            {
                "kind": kind,
                "kernel": kernel,
                "stride": draw(st.sampled_from([[1, 1], [1, 1], [1, 1], [2, 1], [1, 2], [2, 2], [3, 1]])),
                "padding": padding,
                "dilation": [1, 1]
                if kind == "avg_pool"
                else draw(st.sampled_from([[1, 1], [1, 1], [2, 2], [3, 1]])),
                "mode": draw(st.sampled_from(["constant", "reflect", "replicate", "circular"])),
                "pad_value": draw(st.sampled_from([{}, {"pad_value": 1}, {"pad_value": -1}])),
                "join": draw(st.sampled_from([None, None, "add", "multiply"])),
            }
        )
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers(), st.integers(10, 160), st.integers(0, 1), st.integers(0, 2**32 - 1))
def test_strips_of_rows_change_nothing(
    tmp_path: Path, chain: list[dict[str, Any]], height: int, more: int, seed: int
) -> None:
    """Large values are computed some rows at a time, here with paddings, strides and joins of every kind."""
    random = np.random.default_rng(seed)
    channels = 17 if more else 16
    shape = [channels, height, 20000 // height]
    network = Network(shape)
    sizes = {"input": shape[1:]}
    x = "input"
    for layer in chain:
        size = [
            (
                s
                + layer["padding"][a]
                + layer["padding"][a + 2]
                - layer["dilation"][a] * (layer["kernel"][a] - 1)
                - 1
            )
            // layer["stride"][a]
            + 1
            for a, s in enumerate(sizes[x])
        ]
        if min(size) < 1:
            continue
        if layer["kind"] in ("identity", "layer_norm", "softmax"):
            size = sizes[x]
        if layer["kind"] == "pad":
            if min(sizes[x]) < 4:
                continue
            size = [s + layer["padding"][a] + layer["padding"][a + 2] for a, s in enumerate(sizes[x])]
        if "resize" in layer["kind"]:  # larger or smaller, by other factors in height and width
            size = [
                max(1, s * k // t) for s, k, t in zip(sizes[x], layer["kernel"], layer["stride"], strict=True)
            ]
            if size[0] * size[1] > 60000:
                continue
        then: list[dict[str, Any]] = [{"scale": network.tensor(powers(random, channels) / 4)}]
        alike = [name for name, other in sizes.items() if other == size]
        if layer["join"] and alike:
            then.append({layer["join"]: alike[random.integers(len(alike))]})
        then.append({"clamp": [-4, 4]})
        fields = {key: layer[key] for key in ("stride", "padding", "dilation")}
        if layer["kind"] == "conv":
            x = network.conv(x, quarters(random, channels, channels, *layer["kernel"]), **fields, then=then)
        elif layer["kind"] == "depthwise":
            weight = quarters(random, channels, 1, *layer["kernel"])
            x = network.conv(x, weight, **fields, groups=channels, then=then)
        elif layer["kind"] == "binary":
            weight = signs(random, channels, channels, *layer["kernel"])
            fields |= layer["pad_value"]
            x = network.conv(network.bits(x), weight, binary=True, **fields, then=then)
        elif layer["kind"] == "identity":
            x = network.node("identity", x, then=then)
        elif layer["kind"] == "layer_norm":
            x = network.node("layer_norm", x, eps=1e-5, then=then)
        elif layer["kind"] == "pad":
            value = {"value": 0.5} if layer["mode"] == "constant" else {}
            fields = {"padding": layer["padding"], "mode": layer["mode"], **value}
            x = network.node("pad", x, **fields, then=then)
        elif layer["kind"] == "resize_bilinear":
            scale = [float(np.float32(s) / np.float32(n)) for s, n in zip(sizes[x], size, strict=True)]
            x = network.node("resize_bilinear", x, size=size, scale=scale, corners=False, then=then)
        elif layer["kind"] == "softmax":
            x = network.node("softmax", x, then=then)
        elif layer["kind"] == "resize_nearest":
            scale = [float(np.float32(s) / np.float32(n)) for s, n in zip(sizes[x], size, strict=True)]
            x = network.node("resize_nearest", x, size=size, scale=scale, then=then)
        else:
            fields["kernel"], fields["size"] = layer["kernel"], size
            if layer["kind"] == "avg_pool":
                del fields["dilation"]
                fields["count_padding"] = False
            x = network.node(layer["kind"], x, **fields, then=then)
        sizes[x] = size
    network.node("identity", x)
    path = network.write(tmp_path / "m.bnew")
    image = quarters(random, 2, *shape)
    results = []
    for threads in (1, 2, 3, 5):
        model = load(path, threads)
        results += [model(image), model(image)]  # the second time, memory is what the first left behind
    whole = model.values(image)[network.graph["output"]]
    for result in results:
        np.testing.assert_array_equal(result.reshape(whole.shape), whole)


def test_a_row_of_padding_alone_waits_for_its_strip(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    network = Network((16, 16, 2048))
    first = network.conv("input", quarters(random, 16, 16, 1, 1))
    late = network.conv(first, quarters(random, 16, 16, 3, 1), dilation=[3, 1])  # needs seven rows
    early = network.conv(late, quarters(random, 16, 16, 1, 1), padding=[1, 0, 0, 0])  # needs none at first
    network.node("identity", early)
    image = quarters(random, 1, 16, 16, 2048)
    model = load(network.write(tmp_path / "m.bnew"))
    for _ in range(2):  # the second time, memory is what the first left behind
        np.testing.assert_array_equal(model(image), model.values(image)[network.graph["output"]])


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation", "stride"),
    [(3, 1, 2, 1), (2, 1, 2, 1), (3, 1, 3, 1), (2, 2, 3, 1), (3, 2, 3, 2)],
)
def test_a_dilated_window_reaches_back(
    tmp_path: Path, kernel: int, padding: int, dilation: int, stride: int
) -> None:
    """A later window may begin further up in the image than the one before, of which a tap was padding."""
    random = np.random.default_rng(0)
    network = Network((16, 128, 128))
    first = network.conv("input", quarters(random, 16, 16, 1, 1))
    size = (128 + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    pooled = network.node(
        "max_pool",
        first,
        kernel=[kernel] * 2,
        stride=[stride] * 2,
        padding=[padding] * 4,
        dilation=[dilation] * 2,
        size=[size] * 2,
    )
    network.conv(pooled, quarters(random, 4, 16, 1, 1))
    network.node("identity", network.graph["nodes"][-1]["output"])
    image = quarters(random, 1, 16, 128, 128)
    path = network.write(tmp_path / "m.bnew")
    for threads in (1, 2, 3):
        model = load(path, threads)
        np.testing.assert_array_equal(model(image), model.values(image)[network.graph["output"]])


FORK = """
import os, sys, time
import numpy as np
from bnew_engine import load
path, count = sys.argv[1], int(sys.argv[2])
x = np.load(sys.argv[3])
model = load(path, 3)
before = model(x)
time.sleep(0.1)  # until the threads sleep
child = os.fork()
if child == 0:
    same = np.array_equal(model(x), before) and np.array_equal(load(path, 2)(x), before)
    del model  # must not wait for threads that only the parent has
    os._exit(0 if same else 1)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(model(x), before)
"""


def run_python(
    code: str, *arguments: Any, timeout: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_a_fork_goes_on_without_the_threads(path: Path, images: Array, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images[:1])
    done = run_python(FORK, path, 3, tmp_path / "x.npy")
    assert done.returncode == 0, done.stderr


@SANITIZED
def test_threads_that_cannot_be_started(path: Path) -> None:
    code = """
import resource, sys
from bnew_engine import EngineError, load
load(sys.argv[1])
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (600 << 20), now + (600 << 20)))
try:
    load(sys.argv[1], 1024)
except EngineError as error:
    print(error)
"""
    done = run_python(code, path)
    assert done.returncode == 0, done.stderr
    assert "of 1024 threads could be started: ask for fewer" in done.stdout


# ---------------------------------------------------------------------------------------------- input


def test_every_layout_and_kind_of_float(path: Path, images: Array, expected: Array) -> None:
    model = load(path)
    turned = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    spread = np.zeros((14, 3, 33, 70), np.float32)[::2, :, :, ::2]
    spread[:] = images
    readonly = images.copy()
    readonly.flags.writeable = False
    unaligned = np.frombuffer(b"\0" + images.tobytes(), np.uint8)[1:].view(np.float32).reshape(images.shape)
    for x in (
        turned,
        spread,
        images[::-1][::-1],
        readonly,
        unaligned,
        images.astype(">f4"),
        images.astype(np.float64),
    ):
        np.testing.assert_array_equal(model(x), expected)
    half = images.astype(np.float16)
    np.testing.assert_array_equal(model(half), model(half.astype(np.float32)))
    np.testing.assert_array_equal(model(images.tolist()), expected)


def test_vectors(tmp_path: Path) -> None:
    """(N, C) is as good as (N, C, 1, 1), and bytes are images all the same."""
    random = np.random.default_rng(0)
    network = Network((20, 1, 1))
    network.conv("input", quarters(random, 5, 20, 1, 1))
    model = load(network.write(tmp_path / "m.bnew"))
    x = quarters(random, 3, 20)
    np.testing.assert_array_equal(model(x), model(x[:, :, None, None]))
    assert model(x).shape == (3, 5)
    with pytest.raises(EngineError, match=r"shape \(3, 19\), but"):
        model(x[:, :19])


def test_lines(tmp_path: Path) -> None:
    """(N, C, L) is as good as (N, C, L, 1); results have their width."""
    random = np.random.default_rng(0)
    network = Network((4, 7, 1))
    network.conv("input", quarters(random, 5, 4, 3, 1))
    model = load(network.write(tmp_path / "m.bnew"))
    x = quarters(random, 3, 4, 7)
    np.testing.assert_array_equal(model(x), model(x[..., None]))
    assert model(x).shape == (3, 5, 5, 1)
    for wrong in (x[:, :3], x[:, :, :6], x.transpose(0, 2, 1)):
        with pytest.raises(EngineError, match=r"float32 \(N, C, H, W\) must have \(N, 4, 7, 1\)"):
            model(wrong)


def test_bytes_are_normalised(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    mean, std = np.array([0.5, 0.4, 0.3, 0.1]), np.array([0.25, 0.2, 0.3, 1.0])
    network = Network((4, 6, 5), mean=mean.tolist(), std=std.tolist())
    network.conv("input", quarters(random, 5, 4, 3, 3))
    model = load(network.write(tmp_path / "m.bnew"))
    images = random.integers(0, 256, (3, 6, 5, 4), np.uint8)
    floats = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(model(images), model(floats), 1e-4, 1e-4)
    np.testing.assert_array_equal(model(images[:, ::-1][:, ::-1]), model(images))
    with pytest.raises(
        EngineError, match=r"images have shape \(3, 4, 6, 5\), but uint8 images \(N, H, W, C\)"
    ):
        model(images.transpose(0, 3, 1, 2))
    del network.graph["input"]["mean"], network.graph["input"]["std"]
    with pytest.raises(EngineError, match="does not say how bytes become input"):
        load(network.write(tmp_path / "m.bnew"))(images)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.zeros((3, 33, 35), np.float32),
            r"images have shape \(3, 33, 35\), but float32 \(N, C, H, W\) must",
        ),
        (np.zeros((1, 33, 35, 3), np.float32), r"must have \(N, 3, 33, 35\)"),
        (np.zeros((1, 3, 35, 33), np.float32), r"must have \(N, 3, 33, 35\)"),
        (np.float32(0), r"images have shape \(\)"),
        (np.zeros((1, 3, 33, 35), np.int32), "images are int32, but must be float32"),
        (np.zeros((1, 3, 33, 35), bool), "images are bool"),
        (np.zeros((1, 3, 33, 35), np.complex64), "images are complex64"),
        (None, "images are object"),
        ("cat.png", "images are <U7"),
    ],
)
def test_wrong_input(path: Path, x: Any, message: str) -> None:
    model = load(path)
    with pytest.raises(EngineError, match=message):
        model(x)
    with pytest.raises(EngineError):
        model.values(x)
    with pytest.raises(EngineError):
        model.profile(x)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.filterwarnings("ignore:overflow")
def test_numbers_that_are_not_finite(
    path: Path, images: Array, expected: Array, number: float, threads: int
) -> None:
    model = load(path, threads)
    for place in [(0, 0, 0, 0), (2, 2, 32, 34)]:
        x = images[:3].astype(np.float64)
        x[place] = number
        for call in (model, model.values):
            with pytest.raises(EngineError, match="the input has numbers that are not finite"):
                call(x)
    np.testing.assert_array_equal(model(images), expected)  # and all goes on


def test_an_empty_batch(path: Path) -> None:
    for threads in (1, 2):
        model = load(path, threads)
        assert model(np.zeros((0, 3, 33, 35), np.float32)).shape == (0, 10)
        assert model(np.zeros((0, 33, 35, 3), np.uint8)).shape == (0, 10)
        assert model.values(np.zeros((0, 3, 33, 35), np.float32)) == {}


def test_an_image_may_come_out(tmp_path: Path) -> None:
    network = Network((3, 4, 5))
    network.conv("input", np.ones((2, 3, 1, 1), np.float32))
    model = load(network.write(tmp_path / "m.bnew"))
    assert model(np.zeros((2, 3, 4, 5), np.float32)).shape == (2, 2, 4, 5)
    network.graph["output"] = "input"
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(load(network.write(tmp_path / "m.bnew"))(x), x)


# ------------------------------------------------------------------------------- what a model says


def test_what_a_model_says(path: Path, images: Array) -> None:
    model = load(str(path), 2)
    assert model.input_shape == (3, 33, 35)
    assert model.classes == tuple(f"class {i}" for i in range(10))
    assert model.graph == everything().graph
    stages = model.profile(images[:1], 3)
    names = {node["name"] for node in model.graph["nodes"]}
    assert {stage.name for stage in stages} == names | {"input"}
    assert all(stage.seconds >= 0 for stage in stages)
    with pytest.raises(EngineError, match="give one image"):
        model.profile(images)
    for repeats in (0, -1):
        with pytest.raises(EngineError, match=f"repeats is {repeats}, but must be a whole number from 1"):
            model.profile(images[:1], repeats)


def test_convolve_says_what_is_wrong(path: Path) -> None:
    model = load(path)
    name = next(node["name"] for node in model.graph["nodes"] if node["op"] == "binary_conv")
    right = np.ones((1, 64, 17, 18), np.float32)
    with pytest.raises(EngineError, match="there is no binary_conv called 'n0'"):
        model.convolve("n0", right)
    with pytest.raises(EngineError, match=r"takes \(64, 17, 18\), not \(64, 18, 17\)"):
        model.convolve(name, right.transpose(0, 1, 3, 2))
    with pytest.raises(EngineError, match=r"must be \(N, C, H, W\)"):
        model.convolve(name, right[0])
    with pytest.raises(EngineError, match=r"must be -1 and \+1"):
        model.convolve(name, 2 * right)
    with pytest.raises(EngineError, match="signs is empty"):
        model.convolve(name, right[:0])


@pytest.mark.parametrize("kind", [int, np.int64, np.int8, np.uint16])
def test_whole_numbers_of_every_type(path: Path, kind: Any) -> None:
    assert load(path, threads=kind(2)).threads == 2
    assert load(path, max_bytes=np.int64(10**8), max_macs=np.uint32(10**8)).threads == 1
    assert len(load(path).profile(np.zeros((1, 3, 33, 35), np.float32), kind(2))) > 1


@pytest.mark.parametrize("limit", [0, -1, 2**60 + 1, 2.0, True, "2", np.bool_(True)])
def test_wrong_limits(path: Path, limit: Any) -> None:
    for name in ("max_macs", "max_bytes"):
        with pytest.raises(
            EngineError, match=f"{name} is .*, but must be a whole number from 1 to 1152921504"
        ):
            load(path, **{name: limit})


def test_wrong_types(path: Path) -> None:
    wrong: Any = 3
    with pytest.raises(EngineError, match="isa is 3, but must be a str"):
        load(path, isa=wrong)
    with pytest.raises(EngineError, match="name is 3, but must be a str"):
        load(path).convolve(wrong, np.ones((1, 64, 17, 18), np.float32))
    with pytest.raises(EngineError, match="images cannot be made an array of numbers"):
        load(path)([[1.0], [1.0, 2.0]])
    with pytest.raises(EngineError, match="signs cannot be made an array of numbers"):
        load(path).convolve("x", "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [(), (3,), (None,), (3, bytes, ())])
def test_a_model_comes_from_load_alone(arguments: tuple[Any, ...]) -> None:
    for make in (Model, partial(Model.__new__, Model)):
        with pytest.raises(EngineError, match=r"^a Model is not made directly: call bnew_engine.load$"):
            make(*arguments)


@pytest.mark.parametrize("threads", [0, -1, 1025, 2.0, True, np.bool_(True), "2", None])
def test_wrong_threads(path: Path, threads: Any) -> None:
    with pytest.raises(EngineError, match="must be a whole number from 1 to 1024"):
        load(path, threads)


def test_wrong_instruction_set(path: Path) -> None:
    with pytest.raises(
        EngineError, match="the instruction set 'mmx' is not one that this machine can run: choose among"
    ):
        load(path, isa="mmx")
    with pytest.raises(EngineError, match="'mmx'"):
        bnew_engine.register_peak("mmx")
    assert isas()[-1] == "scalar"
    assert bnew_engine.isa() in isas()
    for isa in isas():
        assert bnew_engine.register_peak(isa, 0.01) > 0


def test_the_environment_forces_an_instruction_set(path: Path) -> None:
    code = "import sys, bnew_engine; print(bnew_engine.isa(), bnew_engine.load(sys.argv[1]).isa)"
    for isa in isas():
        assert run_python(code, path, BNEW_ENGINE_ISA=isa).stdout.split() == [isa, isa]
    assert run_python(code, path, BNEW_ENGINE_ISA="").stdout.split() == [isas()[0]] * 2
    failed = run_python(code, path, BNEW_ENGINE_ISA="mmx")
    assert failed.returncode == 1
    assert "EngineError: the instruction set 'mmx' (BNEW_ENGINE_ISA) is not one" in failed.stderr


# ---------------------------------------------------------------------------- what is installed


def test_nothing_but_numpy() -> None:
    code = """
import sys, numpy
before = set(sys.modules)
import bnew_engine
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) - set(sys.stdlib_module_names) <= {"bnew_engine", "numpy"}
    assert importlib.metadata.requires("bnew-engine") == ["numpy>=1.26"]


def test_bnew_run(path: Path, images: Array, expected: Array, tmp_path: Path) -> None:
    """The example of the C++ interface: no Python."""
    images.tofile(tmp_path / "x.f32")
    command = [PACKAGE / "bin" / "bnew-run", path, tmp_path / "x.f32", tmp_path / "y.f32"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *lines, time = done.stdout.splitlines()
    assert lines == [f"{i}: class {best}" for i, best in enumerate(expected.argmax(1))]
    assert time.endswith(f"ms an image, {bnew_engine.isa()}")
    np.testing.assert_array_equal(
        np.fromfile(tmp_path / "y.f32", np.float32).reshape(expected.shape), expected
    )
    assert subprocess.run(command[:2], capture_output=True, check=True).stdout.startswith(b"0: class ")


def test_bnew_run_says_what_is_wrong(path: Path, tmp_path: Path) -> None:
    (tmp_path / "x.f32").write_bytes(b"\0" * 10)
    program = PACKAGE / "bin" / "bnew-run"
    wrong: list[tuple[list[Any], str]] = [
        ([], "usage: bnew-run"),
        (["none.bnew"], "bnew-run: error: none.bnew: could not be opened: No such file"),
        ([path, tmp_path / "x.f32"], "not a whole number of images of 3465 numbers"),
        ([path, tmp_path / "none"], "could not be opened"),
        ([path, tmp_path], "Is a directory"),
        ([path, os.devnull], "not a whole number of images"),
    ]
    for arguments, message in wrong:
        done = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert done.returncode == 2
        assert message in done.stderr


def test_bnew_run_shows_no_control_characters(tmp_path: Path) -> None:
    program = PACKAGE / "bin" / "bnew-run"
    network = Network((2, 1, 1))
    network.node("identity", "input", name="\x1b[31m")
    network.graph["classes"] = ["\x1b[2J\u202e", "b"]
    done = subprocess.run([program, network.write(tmp_path / "m.bnew")], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("0: \\x1b[2J\\u202e\n")
    network.graph["nodes"][0]["op"] = "x\x1b"
    done = subprocess.run([program, network.write(tmp_path / "m.bnew")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "node 0 ('\\x1b[31m') has op 'x\\x1b', which is not known" in done.stderr
    network = Network((1, 1, 1))
    network.node("adaptive_avg_pool", "input", size=[2**15, 2**15])
    done = subprocess.run([program, network.write(tmp_path / "m.bnew")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "million multiply-accumulates for an image: the limit" in done.stderr


@SANITIZED
def test_kernels_share_no_code() -> None:
    """What is compiled for one instruction set must never be linked into the rest."""
    symbols = subprocess.run(
        ["nm", PACKAGE / "lib" / "libbnew.a"], capture_output=True, text=True, check=True
    ).stdout
    for member in symbols.split("\n\n"):
        if member.split(".")[0] in ("avx2", "avx512_vpopcntdq", "neon"):
            kinds = [line.split()[-2] for line in member.splitlines()[1:]]
            assert "T" not in kinds
            assert "W" not in kinds
