"""Networks as C: the same bits as the engine's scalar kernels, by every compiler that is there."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_code import (
    BARE,
    BOARDS,
    SANITIZERS,
    STRICT,
    WAYS,
    Array,
    Random,
    compiled,
    computed,
    installed,
    on_board,
    residual,
    run_tool,
    section_sizes,
    some_images,
)
from helpers import MACHINE, RECIPE
from PIL import Image
from tiny import Network, powers, signs

from bnew.deploy.c99.export import CODE, Exported, export_c, identifier
from bnew.deploy.c99.fixed import Fixed, affine, applied, thresholds, whole_weights
from bnew.deploy.c99.interpreting import Interpreter
from bnew.deploy.c99.network import FixedNetwork, as_bytes
from bnew.deploy.c99.reading import read_stages
from bnew.deploy.c99.sample import validation_images
from bnew.deploy.c99.stages import Epilogue, FixedEpilogue, Stage
from bnew.deploy.c99.writing import kernels, literal, text
from bnew.deploy.pack_run import pack_run
from bnew.deploy.verify import verify, verify_run
from bnew.errors import BnewError
from bnew.models.trained import pretrained_card
from bnew.results.run import Run
from bnew.text import percent
from bnew.training.loop import train
from bnew.training.run_data import load_run_data

bnew_engine = pytest.importorskip("bnew_engine")


def assert_same_bits(found: Array, expected: Array) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.reshape(found.shape).view(np.uint32))


def check(path: Path, tmp_path: Path, *compiler: str) -> Exported:
    """The C code of a packed file gives the engine's bits."""
    exported = export_c(path, tmp_path / "c", name="net")
    images = some_images(exported.stages[0].shape)
    expected = bnew_engine.load(path, isa="scalar")(images).reshape(len(images), -1)
    found, classes = computed(compiled(exported, *compiler), "net", images, expected.shape[1])
    assert_same_bits(found, expected)
    assert not classes or classes == expected.argmax(1).tolist()
    return exported


@pytest.mark.parametrize("seed", range(24))
def test_random_networks_give_the_engines_bits(seed: int, tmp_path: Path) -> None:
    way = [way for way in WAYS.values() if shutil.which(way[0])]
    if not way:
        pytest.skip("no compiler of C is installed")
    check(Random(seed).net.write(tmp_path / "m.bnew"), tmp_path, *way[seed % len(way)])


@installed("gcc")
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    for seed in range(100, 106):
        path = Random(seed).net.write(tmp_path / "m.bnew")
        exported = export_c(path, tmp_path, name="net")
        images = some_images(exported.stages[0].shape)
        expected = bnew_engine.load(path, isa="scalar")(images).reshape(len(images), -1)
        assert_same_bits(sanitized(exported, images, np.float32, tmp_path), expected)


def sanitized(exported: Exported, images: Array, dtype: Any, folder: Path) -> Array:
    """Results (N, size) of a program that is watched by sanitizers."""
    (folder / "main.c").write_text(
        """
        #include <stdio.h>
        #include "net.h"
        int main(void) {
            static uint8_t image[NET_HEIGHT * NET_WIDTH * NET_CHANNELS];
            static net_number out[NET_OUTPUTS];
            while (fread(image, sizeof image, 1, stdin)) {
                net_run(image, out);
                fwrite(out, sizeof out, 1, stdout);
            }
            return 0;
        }
        """
    )
    program = folder / "program"
    run_tool("gcc", *STRICT, *SANITIZERS, folder / "main.c", exported.source, "-o", program)
    done = subprocess.run(
        [program], input=images.tobytes(), capture_output=True, check=False, env={"LD_PRELOAD": ""}
    )
    assert done.returncode == 0, done.stderr.decode()
    return np.frombuffer(done.stdout, dtype).reshape(len(images), -1)


@pytest.mark.parametrize("way", WAYS)
def test_residual_network(way: str, tmp_path: Path) -> None:
    """What memory is planned for: rings at the start, shortcuts in place, channels of all kinds."""
    if not shutil.which(WAYS[way][0]):
        pytest.skip(f"not installed: {WAYS[way][0]}")
    exported = check(residual().write(tmp_path / "m.bnew"), tmp_path, *WAYS[way])
    assert set(exported.memory.feeds) >= {0, 1}  # the image feeds the first layer, and that the pool
    whole = 4 * 20 * 12 * 12  # of a shortcut; the first layer alone has four times that
    assert whole < exported.ram < 2 * whole
    assert exported.ram >= max(exported.memory.live)


@installed("gcc")
def test_a_shortcut_stays_while_windows_read_it(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    net = Network((1, 9, 9), mean=[0.5], std=[0.2])
    three: dict[str, Any] = {"padding": [1] * 4}
    x = net.conv("input", powers(random, 4, 1, 3, 3), **three)
    x = net.conv(x, powers(random, 4, 4, 3, 3), **three, then=[{"add": x}])
    between = net.conv(x, powers(random, 4, 4, 5, 5), padding=[2] * 4)
    x = net.conv(between, powers(random, 4, 4, 1, 1), then=[{"add": x}])
    net.conv(x, powers(random, 4, 4, 3, 3))
    check(net.write(tmp_path / "m.bnew"), tmp_path, *WAYS["gcc -O2"])


@installed("gcc")
def test_sizes_that_are_rules(tmp_path: Path) -> None:
    """A file for images of any size, as C for the size that it names."""
    net = Network((2, 9, 11), mean=[0.5, 0.4], std=[0.2, 0.3], any_size=True)
    window: dict[str, Any] = {"kernel": [2, 3], "stride": [2, 2], "padding": [0, 1, 0, 1]}
    x = net.node("max_pool", "input", **window, dilation=[1, 1], size="ceil")
    x = net.node("avg_pool", x, **window, size="floor", count_padding=False, sign={})
    net.conv(f"{x}.bits", signs(np.random.default_rng(0), 3, 2, 2, 2), binary=True)
    check(net.write(tmp_path / "m.bnew"), tmp_path, *WAYS["gcc -O2"])


def rounding() -> Network:
    """Whole-number sums in halves, quarters and more, near 0 and where floats begin to be whole."""
    random = np.random.default_rng(4)
    net = Network((1, 9, 9), mean=[0.5], std=[0.2])
    x = net.conv("input", powers(random, 15, 1, 3, 3), padding=[1] * 4)
    factors = net.tensor(
        [1, -1, 0.5, -0.5, 0.25, 1.5, 0.001, 0.5, -0.5, 0.5, 0.5, -0.5, 1, 1e6, 2.0**23, -1e9]
    )
    shifts = net.tensor([0, 0, 0, 0, 0, 0.5, 0, *(n * 2.0**22 for n in (1, -1, 1.5, 2, -2, 4, 0, 0, 0))])
    then = [{"scale": factors}, {"shift": shifts}, {"round": {}}]
    net.conv(net.bits(x), signs(random, 16, 15, 3, 3), binary=True, padding=[1] * 4, then=then)
    return net


@pytest.mark.parametrize("way", WAYS)
def test_rounding_is_to_the_even_one_of_two(way: str, tmp_path: Path) -> None:
    if not shutil.which(WAYS[way][0]):
        pytest.skip(f"not installed: {WAYS[way][0]}")
    net = rounding()
    check(net.write(tmp_path / "m.bnew"), tmp_path, *WAYS[way])
    images = some_images((1, 9, 9))
    found = bnew_engine.load(tmp_path / "m.bnew", isa="scalar")(images)
    assert net.graph["nodes"][-1]["then"].pop() == {"round": {}}
    before = bnew_engine.load(net.write(tmp_path / "m.bnew"), isa="scalar")(images)
    np.testing.assert_array_equal(found, np.rint(before))
    halves = np.abs(before % 1) == 0.5
    assert np.any(halves & (before > 2**22))
    assert np.any(halves & (np.abs(before) < 1) & (before < 0))


# --------------------------------------------------------------------------------------- digits, boards


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(RECIPE, tmp_path_factory.mktemp("c") / "digits", MACHINE)


@pytest.fixture(scope="session")
def digits(run: Run) -> tuple[Path, Array, Array]:
    """A network trained for a second; all test images as bytes, and the engine's results."""
    path = run.path.parent / "digits.bnew"
    packed = pack_run(run, path, MACHINE)
    images = np.concatenate(
        [x.numpy() for x, _ in load_run_data(run, MACHINE).batches("test", train=False).epoch(0)]
    )
    images = as_bytes(images, *(packed.graph["input"][key] for key in ("mean", "std")))
    return path, images, bnew_engine.load(path, isa="scalar")(images)


@pytest.mark.parametrize("way", WAYS)
def test_all_digits_give_the_engines_bits(
    way: str, digits: tuple[Path, Array, Array], tmp_path: Path
) -> None:
    if not shutil.which(WAYS[way][0]):
        pytest.skip(f"not installed: {WAYS[way][0]}")
    path, images, expected = digits
    library = compiled(export_c(path, tmp_path), *WAYS[way])
    found, classes = computed(library, "digits", images, 10)
    assert len(images) == 359
    assert_same_bits(found, expected)
    assert classes == expected.argmax(1).tolist()


@pytest.mark.parametrize("board", BOARDS)
def test_boards_give_the_same_bits(board: str, digits: tuple[Path, Array, Array], tmp_path: Path) -> None:
    path, images, expected = digits
    exported = export_c(path, tmp_path, name="network", flash=256 << 10, ram=64 << 10)
    found, classes = on_board(board, tmp_path, images[:4])
    assert_same_bits(found.view(np.float32), expected[:4])
    assert classes == expected[:4].argmax(1).tolist()
    sizes = section_sizes(BARE[BOARDS[board]], tmp_path / board / "network.elf")
    assert sizes[".text"] < exported.flash + 2 * CODE  # with a library of floats where the chip has none
    assert exported.ram <= sizes[".bss"] < exported.ram + 300  # an image, its result


@installed("arm-none-eabi-gcc")
def test_flash_is_what_the_compiler_says(tmp_path: Path) -> None:
    for name, net in (("residual", residual()), ("random", Random(1).net)):
        exported = export_c(net.write(tmp_path / "m.bnew"), tmp_path, name=name)
        made = exported.source.with_suffix(".o")
        run_tool("arm-none-eabi-gcc", *STRICT, "-mcpu=cortex-m4", "-O2", "-c", exported.source, "-o", made)
        sizes = section_sizes("arm-none-eabi-gcc", made)
        constants = exported.flash - CODE
        assert constants - 64 * len(exported.stages) < sizes[".rodata"] <= constants
        assert sizes[".text"] < CODE
        assert sizes[".bss"] == exported.ram


# --------------------------------------------------------------------------------------- fixed point


def twin(path: Path, exported: Exported, images: Array) -> Array:
    """What the exported stages of whole numbers give in NumPy, (N, size)."""
    output = read_stages(path).output
    values = Interpreter(exported.stages, Fixed(exported.stages))(images)
    return values[output].transpose(0, 3, 1, 2).reshape(len(images), -1)


@pytest.mark.parametrize("seed", range(30, 42))
def test_random_networks_in_fixed_point(seed: int, tmp_path: Path) -> None:
    """C is the twin in NumPy, bit by bit, and both are near the engine."""
    way = [way for way in WAYS.values() if shutil.which(way[0])]
    if not way:
        pytest.skip("no compiler of C is installed")
    path = Random(seed).net.write(tmp_path / "m.bnew")
    images = some_images(bnew_engine.load(path).input_shape, 12)
    exported = export_c(path, tmp_path / "c", name="net", fixed=images[:8])
    assert exported.exponent is not None
    assert exported.ram <= export_c(path, tmp_path / "f", name="net").ram + 4 * 80  # a pixel's sums are words
    expected = twin(path, exported, images)
    library = compiled(exported, *way[seed % len(way)])
    found, classes = computed(library, "net", images, expected.shape[1], np.int16)
    np.testing.assert_array_equal(found, expected)
    assert not classes or classes == expected.argmax(1).tolist()
    floats = bnew_engine.load(path, isa="scalar")(images).reshape(len(images), -1)
    differences = np.abs(found * 2.0**-exported.exponent - floats)
    # A bit may be another one in a network of bits, where a number is 0 but for rounding.
    assert np.median(differences) <= 0.002 * np.abs(floats).max()


@installed("gcc")
def test_whole_numbers_saturate(tmp_path: Path) -> None:
    """Numbers that are larger than on the sample become the largest, in C as in NumPy."""
    net = Network((1, 4, 4), mean=[0.0], std=[1.0])
    net.conv("input", np.full((2, 1, 3, 3), 7.0, np.float32))
    path = net.write(tmp_path / "m.bnew")
    bright = np.full((2, 4, 4, 1), 255, np.uint8)
    spot = np.zeros_like(bright)
    spot[:, 1, 1] = 255
    exported = export_c(path, tmp_path / "c", name="net", fixed=spot)
    found, _ = computed(compiled(exported, *WAYS["gcc -O2"]), "net", bright, 8, np.int16)
    assert (found == 32767).all()
    np.testing.assert_array_equal(found, twin(path, exported, bright))


def test_sums_of_whole_numbers_cannot_overflow() -> None:
    """The largest numbers of 16 bits times 128 weights stay below 2³¹, and weights use their bits."""
    random = np.random.default_rng(0)
    for shape in ((4, 3, 3, 3), (2, 1, 1, 1), (3, 3, 3, 512), (2, 1, 1, 9000)):
        small = 1e-9 * random.random(shape)
        for weights in (random.standard_normal(shape), np.ones(shape), np.zeros(shape), small):
            stage = Stage("conv", "conv", (shape[0], 1, 1), weights=weights.astype(np.float32))
            whole, bits = whole_weights(stage)
            each = np.abs(whole.reshape(shape[0], -1).astype(np.int64))
            sums = np.array([np.convolve(row, np.ones(128, int)) for row in each])
            assert (sums * 32768 < 2**31).all()
            if weights.any():
                assert (np.maximum(sums.max(1) / 2, each.max(1)) > 0.4 * 32768).all()
            unit = 2.0 ** -bits.reshape(-1, 1, 1, 1).astype(float)
            assert (np.abs(whole * unit - np.asarray(stage.weights)) <= 0.5 * unit).all()


@installed("gcc")
def test_layers_of_many_products_in_fixed_point(tmp_path: Path) -> None:
    """2,048 products of the largest numbers, of one sign, are summed as they are: by fours, and alone."""
    net = Network((8, 16, 16), mean=[0.0] * 8, std=[1.0] * 8)
    x = net.node("flatten", "input")
    net.conv(x, np.full((7, 2048, 1, 1), 0.25, np.float32))
    path = net.write(tmp_path / "m.bnew")
    images = np.stack([np.full((16, 16, 8), value, np.uint8) for value in (255, 200, 0)])
    exported = export_c(path, tmp_path / "c", name="net", fixed=images)
    found, _ = computed(compiled(exported, *WAYS["gcc -O2"]), "net", images, 7, np.int16)
    np.testing.assert_array_equal(found, twin(path, exported, images))
    np.testing.assert_array_equal(found, sanitized(exported, images, np.int16, tmp_path / "c"))
    exact = bnew_engine.load(path)(images)
    np.testing.assert_allclose(found * 2.0 ** -(exported.exponent or 0), exact, atol=0.1)


WINDOWS: dict[str, dict[str, Any]] = {
    "all in the padding": {"kernel": (1, 3), "stride": (3, 3), "padding": (1, 2, 1, 2), "dilation": (1, 3)},
    "padding larger than the kernel": {"kernel": (2, 1), "stride": (2, 1), "padding": (5, 0, 0, 4)},
    "1x1 with padding and stride": {"kernel": (1, 1), "stride": (2, 3), "padding": (0, 1, 2, 0), "groups": 6},
    "gaps": {"kernel": (2, 3), "padding": (0, 3, 5, 0), "dilation": (3, 2), "groups": 2},
    "the image": {"kernel": (2, 3), "groups": 3},
}


@installed("gcc")
@pytest.mark.parametrize("window", WINDOWS)
def test_windows_at_the_edges(window: str, tmp_path: Path) -> None:
    """Few rows, of which a ring may keep one that no window reads; 5 outputs a group."""
    random = np.random.default_rng(5)
    fields: dict[str, Any] = {"groups": 1, **WINDOWS[window]}
    groups = fields["groups"]
    net = Network((6, 2, 3), mean=[0.4] * 6, std=[0.2] * 6)
    weight = random.standard_normal((5 * groups, 6 // groups, *fields.pop("kernel"))).astype(np.float32)
    net.conv("input", weight, then=[{"shift": net.tensor([0.1])}], **fields)
    path = net.write(tmp_path / "m.bnew")
    images = some_images((6, 2, 3))
    expected = bnew_engine.load(path, isa="scalar")(images).reshape(len(images), -1)
    exported = export_c(path, tmp_path, name="net")
    assert_same_bits(sanitized(exported, images, np.float32, tmp_path), expected)
    exported = export_c(path, tmp_path, name="net", fixed=images)
    results = sanitized(exported, images, np.int16, tmp_path)
    np.testing.assert_array_equal(results, twin(path, exported, images))


def near_the_engine(net: Network, images: Array, tmp_path: Path, share: float) -> None:
    """C is the twin in NumPy, and differs from the engine by at most this share of the largest number."""
    path = net.write(tmp_path / "m.bnew")
    exported = export_c(path, tmp_path / "c", name="net", fixed=images)
    expected = bnew_engine.load(path)(images).reshape(len(images), -1)
    library = compiled(exported, *WAYS["gcc -O2"])
    found, _ = computed(library, "net", images, expected.shape[1], np.int16)
    np.testing.assert_array_equal(found, twin(path, exported, images))
    differences = np.abs(found * 2.0 ** -(exported.exponent or 0) - expected)
    assert differences.max() <= share * np.abs(expected).max()


@installed("gcc")
@pytest.mark.parametrize(
    "steps",
    [
        ({"clamp": [0, 1]}, {"scale": 1000.0}),
        ({"clamp": [0, 1]}, {"scale": 1e-3}),
        ({"scale": 1e-3}, {"multiply": "large"}),
        ({"scale": 1e-5}, {"multiply": "large"}, {"hard_sigmoid": {}}, {"scale": 1e4}),
        ({"multiply": "tiny"}, {"scale": 1e4}),
    ],
)
def test_steps_between_small_and_large_numbers(steps: tuple[dict[str, Any], ...], tmp_path: Path) -> None:
    """Numbers before a product, and those behind a scale, have exponents of their own."""
    net = Network((2, 5, 5), mean=[0.3] * 2, std=[0.2] * 2)
    for name, scale in (("large", 2000.0), ("tiny", 1e-4)):
        net.node("identity", "input", name=name, then=[{"scale": net.tensor([scale])}])
    then = [
        {kind: net.tensor([argument]) if isinstance(argument, float) else argument}
        for step in steps
        for kind, argument in step.items()
    ]
    net.node("identity", "input", then=then)
    near_the_engine(net, some_images((2, 5, 5), 8), tmp_path, 0.002)


@installed("gcc")
def test_channels_that_never_change(tmp_path: Path) -> None:
    """Batch norm's scale is 316 there, and scale and shift cancel each other."""
    net = Network((1, 4, 4), mean=[0.0], std=[1.0])
    scale, shift = net.tensor([316.0, -316.0, 0.1]), net.tensor([-316 * 9 + 0.7, 316 * 9 - 0.3, 0.2])
    ones = net.node("identity", "input", real=False, sign={"shift": net.tensor([0.5])}) + ".bits"
    net.conv(ones, np.ones((3, 1, 3, 3), np.float32), binary=True, then=[{"scale": scale}, {"shift": shift}])
    near_the_engine(net, some_images((1, 4, 4)), tmp_path, 0.0002)


@installed("gcc")
def test_sums_that_cancel(tmp_path: Path) -> None:
    """A shift of 2,700 leaves numbers up to 2 of the sums."""
    random = np.random.default_rng(0)
    net = Network((3, 8, 8), mean=[0.0] * 3, std=[1 / 255] * 3)
    then = [{"shift": net.tensor([-2700.0])}, {"scale": net.tensor([0.1])}]
    net.conv("input", np.ones((4, 3, 3, 3), np.float32), then=then)
    near_the_engine(net, random.integers(98, 103, (4, 8, 8, 3), dtype=np.uint8), tmp_path, 0.0005)


@installed("gcc")
def test_the_largest_number_of_many(tmp_path: Path) -> None:
    """A maximum of more than 32,767 numbers is no sum."""
    net = Network((1, 190, 190), mean=[0.3], std=[0.2])
    window: dict[str, Any] = {"kernel": [190, 190], "stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1]}
    net.node("max_pool", "input", **window, size=[1, 1])
    near_the_engine(net, some_images((1, 190, 190), 1), tmp_path, 0.0001)


def test_affine_numbers() -> None:
    """v scale + shift, rounded once for the product and once for the sum; large and small factors."""
    random = np.random.default_rng(1)
    scale = np.array([0.0, 1.0, -1.0, 1e-9, 300.0, -0.33, 2.0**-14, 32767.0])
    shift = random.standard_normal(len(scale))
    for exponent_in, exponent in ((0, 12), (12, 3), (7, 7)):
        made = affine(scale, shift, len(scale), exponent_in, exponent)
        v = random.integers(-32768, 32768, (1000, len(scale)))
        exact = np.clip(
            v * 2.0**-exponent_in * scale + shift, -(2.0 ** (15 - exponent)), 32767 * 2.0**-exponent
        )
        found = applied(made, v) * 2.0**-exponent
        relative = np.abs(v * 2.0**-exponent_in * scale) * 2.0**-14  # a factor has 15 bits
        assert (np.abs(found - exact) <= relative + 1.01 * 2.0**-exponent).all()
        assert np.abs(made["times"].astype(int)).max() <= 32767
        assert made["by"].max() <= 30


def test_thresholds_are_exact() -> None:
    """A bit is set for the same whole numbers as for the reals that they stand for."""
    scale = np.array([1.0, -2.0, 0.0, 0.0, 0.5], np.float32)
    shift = np.array([0.25, 0.5, 0.0, -1.0, -3.0], np.float32)
    end = Epilogue(sign_scale=scale, sign_shift=shift)
    made = FixedEpilogue(3, **thresholds(end, 3))
    v = np.arange(-40, 41)[:, None] * np.ones(5, int)
    stage = Stage("s", "pointwise", (5, 1, 1), end=made)
    np.testing.assert_array_equal(Fixed([stage]).is_set(0, v), v / 8 * scale + shift >= 0)
    made = FixedEpilogue(3, **thresholds(Epilogue(sign_shift=shift), 3))
    np.testing.assert_array_equal(Fixed([replace(stage, end=made)]).is_set(0, v), v / 8 >= shift)


@installed("gcc")
def test_sanitizers_find_nothing_in_fixed_point(tmp_path: Path) -> None:
    """Also where numbers are far from those of the sample."""
    for seed in range(200, 206):
        path = Random(seed).net.write(tmp_path / "m.bnew")
        images = some_images(bnew_engine.load(path).input_shape, 4)
        exported = export_c(path, tmp_path, name="net", fixed=images[:1] // 64)
        results = sanitized(exported, images, np.int16, tmp_path)
        np.testing.assert_array_equal(results, twin(path, exported, images))


def test_verify_says_what_fixed_point_changes(run: Run, digits: tuple[Path, Array, Array]) -> None:
    path, images, expected = digits
    found = FixedNetwork(path, validation_images(run, MACHINE))(images)
    checked = verify_run(path, run, MACHINE, fixed=True)
    assert checked.ok
    assert checked.fixed is not None
    assert checked.fixed.images == len(images)
    assert checked.fixed.same == (found.argmax(1) == expected.argmax(1)).sum()
    assert checked.fixed.largest == pytest.approx(np.abs(found - expected).max(), rel=1e-4)
    assert f"16-bit fixed point: accuracy {percent((checked.fixed.hits or 0) / len(images))}" in str(checked)
    assert "fixed point" not in str(verify_run(path, run, MACHINE))
    by_path = verify(path, run.path, fixed=validation_images(run, MACHINE), sample=3)
    assert by_path.sample == 3
    assert by_path.fixed is not None
    assert by_path.fixed.largest == checked.fixed.largest


def test_fixed_point_takes_images_of_one_size(tmp_path: Path) -> None:
    """A file for images of any size is computed for the size that it names."""
    net = Network((1, 6, 6), mean=[0.5], std=[0.2], any_size=True)
    net.conv("input", np.ones((1, 1, 3, 3), np.float32))
    network = FixedNetwork(net.write(tmp_path / "m.bnew"), some_images((1, 6, 6)))
    for size in (5, 8):
        with pytest.raises(BnewError, match=r"must be uint8 \(N, 6, 6, 1\)"):
            network(some_images((1, size, size)))


def test_a_trained_network_in_fixed_point(digits: tuple[Path, Array, Array]) -> None:
    """The digits that come with bnew: all classes but a few in a thousand are those of floats."""
    _, images, _ = digits
    path = pretrained_card("digits").packed
    floats = bnew_engine.load(path)(images)
    fixed = FixedNetwork(path, images[:100])(images)
    assert (fixed.argmax(1) == floats.argmax(1)).mean() > 0.99
    assert np.median(np.abs(fixed - floats)) < 0.005 * np.abs(floats).max()


@pytest.mark.parametrize("board", BOARDS)
def test_boards_in_fixed_point(
    board: str, run: Run, digits: tuple[Path, Array, Array], tmp_path: Path
) -> None:
    path, images, _ = digits
    exported = export_c(path, tmp_path, name="network", fixed=validation_images(run, MACHINE))
    expected = twin(path, exported, images[:4])
    found, classes = on_board(board, tmp_path, images[:4])
    np.testing.assert_array_equal(found.astype(np.uint16).view(np.int16), expected)
    assert classes == expected.argmax(1).tolist()
    if board == "cortex-m3":  # no library of floats
        names = run_tool("arm-none-eabi-nm", tmp_path / board / "network.elf")
        assert not re.findall(r"__aeabi_[fd]\w+", names)


@pytest.mark.parametrize("board", BOARDS)
def test_boards_convolve_in_fixed_point(board: str, tmp_path: Path) -> None:
    """More products than 32 bits hold, an odd number of them, groups, gaps; two at once where a chip can."""
    random = np.random.default_rng(3)
    net = Network((3, 9, 9), mean=[0.5] * 3, std=[0.2] * 3)
    x = net.conv("input", random.standard_normal((6, 3, 7, 7)).astype(np.float32), padding=[3] * 4)
    gaps: dict[str, Any] = {"groups": 6, "dilation": [2, 2], "padding": [2] * 4}
    x = net.conv(x, random.standard_normal((6, 1, 3, 3)).astype(np.float32), **gaps)
    x = net.conv(x, random.standard_normal((10, 3, 3, 2)).astype(np.float32), groups=2, stride=[2, 2])
    x = net.node("flatten", x)
    net.conv(x, random.standard_normal((9, 160, 1, 1)).astype(np.float32))
    path = net.write(tmp_path / "m.bnew")
    images = np.concatenate([some_images((3, 9, 9)), np.full((1, 9, 9, 3), 255, np.uint8)])
    exported = export_c(path, tmp_path, name="network", fixed=images)
    found, _ = on_board(board, tmp_path, images)
    expected = twin(path, exported, images)
    np.testing.assert_array_equal(found.astype(np.uint16).view(np.int16), expected)
    if BOARDS[board] == "arm":
        code = run_tool("arm-none-eabi-objdump", "-d", tmp_path / board / "network.elf")
        assert ("smlad" in code) == (board != "cortex-m3")


def test_fixed_point_needs_images(
    cli: Any, run: Run, digits: tuple[Path, Array, Array], tmp_path: Path
) -> None:
    path, images, _ = digits
    code, _, err = cli("export", path, tmp_path / "c", "--format", "c", "--fixed")
    assert (code, "give some dozens like those of the task by --images" in err) == (2, True)
    for words, message in (
        (("--images", "x.png"), "--images is for --fixed"),
        (("--fixed", "--images", tmp_path / "x.png"), "x.png"),
    ):
        code, _, err = cli("export", path, tmp_path / "c", "--format", "c", *words)
        assert (code, message in err, len(err.splitlines())) == (2, True, 1)
    code, _, err = cli("export", run.path, tmp_path / "x.onnx", "--fixed")
    assert (code, "--fixed is for --format c" in err) == (2, True)
    wrong: Any
    for wrong in (images[:0], images[:4].astype(np.float32), images[:4].transpose(0, 3, 1, 2), images[0]):
        with pytest.raises(BnewError, match=r"must be uint8 \(N, 8, 8, 1\)"):
            export_c(path, tmp_path / "c", fixed=wrong)
    for i, image in enumerate(images[:20]):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i}.png")
    pictures: tuple[Any, ...] = ("--images", tmp_path / "*.png")
    for source, options, name in ((path, pictures, "digits"), (run.path, (), "birealnet8")):
        code, _, err = cli("export", source, tmp_path / "d", "--format", "c", "--fixed", *options)
        assert (code, err) == (0, "")
        assert f"#define {name.upper()}_EXPONENT" in (tmp_path / "d" / f"{name}.h").read_text()


@pytest.mark.parametrize(
    ("scale", "refusal"),
    [(1e6, "numbers up to .*, more than 16 bits hold"), (1e-5, "numbers of 1e-05 at most, smaller than 16")],
)
def test_numbers_that_16_bits_cannot_hold(scale: float, refusal: str, tmp_path: Path) -> None:
    net = Network((1, 4, 4), mean=[0.0], std=[1.0])
    net.node("identity", "input", name="a", then=[{"scale": net.tensor([scale])}])
    images = some_images((1, 4, 4))
    with pytest.raises(BnewError, match=f"layer 'a' has {refusal}"):
        export_c(net.write(tmp_path / "m.bnew"), tmp_path / "c", fixed=images)
    assert not (tmp_path / "c").exists()


# --------------------------------------------------------------------------------------- command, refusals


def test_command(cli: Any, run: Run, digits: tuple[Path, Array, Array], tmp_path: Path) -> None:
    path, *_ = digits
    code, out, err = cli("export", path, tmp_path / "a", "--format", "c", "--flash", "256k", "--ram", "64k")
    assert (code, err) == (0, "")
    assert all(len(line) <= 80 for line in out.splitlines()[:-1])
    assert "binary_conv" in out
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["digits.c", "digits.h"]
    code, *_ = cli("export", run.path, tmp_path / "m", "--format", "c")
    assert code == 0
    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == ["birealnet8.c", "birealnet8.h"]
    code, *_ = cli("export", run.path, tmp_path / "b", "--format", "c", "--name", "digits")
    assert code == 0
    for name in ("digits.c", "digits.h"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


MISTAKES = {
    "flash": (("--flash", "9k"), "bytes of flash, and 9,216 are there; the largest layers are blocks_"),
    "ram": (("--ram", "100"), "bytes of RAM, and 100 are there; the largest layers are"),
    "size": (("--ram", "64kb"), "--ram is '64kb', and must be a number of bytes, such as 256k or 1M"),
    "name": (("--name", "+"), "'+' has no letter that a name in C can have: give one by --name"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes(what: str, cli: Any, digits: tuple[Path, Array, Array], tmp_path: Path) -> None:
    words, message = MISTAKES[what]
    code, _, err = cli("export", digits[0], tmp_path / "c", "--format", "c", *words)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "c").exists()


def test_more_mistakes(cli: Any, run: Run, digits: tuple[Path, Array, Array], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = cli("export", digits[0], tmp_path / "file", "--format", "c")
    assert (code, "could not make the folder" in err) == (2, True)
    code, _, err = cli("export", run.path, tmp_path / "x.onnx", "--ram", "64k")
    assert (code, "--ram is for --format c" in err) == (2, True)
    code, _, err = cli("export", run.path, tmp_path / "x.onnx", "--name", "")
    assert (code, "--name is for --format c" in err) == (2, True)
    code, _, err = cli("export", digits[0], tmp_path / "x.onnx")
    assert (code, "is a file, and ONNX is made of a run: " in err) == (2, True)


def refused(net: Network, tmp_path: Path) -> str:
    with pytest.raises(BnewError) as raised:
        export_c(net.write(tmp_path / "m.bnew"), tmp_path / "c", name="net")
    assert not (tmp_path / "c").exists()
    return str(raised.value)


def test_refusals_name_what_is_missing(tmp_path: Path) -> None:
    image = {"mean": [0.5], "std": [0.5]}
    net = Network((1, 4, 4), **image)
    net.node("softmax", "input", name="head")
    assert refused(net, tmp_path).startswith(
        "node 'head' is the operator 'softmax', which has no kernel in C"
    )
    net = Network((1, 4, 4), **image)
    net.node("identity", "input", name="head", then=[{"tanh": {}}])
    assert refused(net, tmp_path).startswith("node 'head' has the step 'tanh', which has no kernel in C")
    net = Network((2, 4, 4), mean=[0.5] * 2, std=[0.5] * 2)
    weight = signs(np.random.default_rng(0), 4, 1, 1, 1)
    net.conv(net.bits("input"), weight, binary=True, groups=2)
    assert "'binary_conv' with groups" in refused(net, tmp_path)
    net = Network((1, 4, 4))
    net.node("identity", "input")
    assert "pack it with mean and std" in refused(net, tmp_path)
    net = Network((1, 1, 40000), **image)
    window: dict[str, Any] = {"kernel": [1, 2], "stride": [1, 2], "padding": [0] * 4, "dilation": [1, 1]}
    net.node("max_pool", "input", **window, size=[1, 20000], name="pool")
    assert "layer 'pool' reads an image of 1×40000 places" in refused(net, tmp_path)
    net = Network((1, 4, 4), **image)
    net.node("identity", "input", then=[{"scale": net.tensor([np.nan])}])
    assert "weights that are not finite" in refused(net, tmp_path)
    net = Network((1, 4, 4), **image)
    net.node("identity", "input")
    net.graph["outputs"] = [
        {"value": net.graph.pop("output"), "size": [16]},
        {"value": "input", "size": [16]},
    ]
    assert "has 2 results" in refused(net, tmp_path)


# ------------------------------------------------------------------------------------------- writing


def test_parts_of_the_kernels() -> None:
    every = kernels({"CONV", "BINARY_CONV", "POOL", "POINTWISE", "FLATTEN", "FLOAT", "FIXED"})
    assert not re.findall("^#.*NEEDS_", every + kernels(set()), re.MULTILINE)
    assert all(f"static void {kind}_row" in every for kind in ("conv", "binary_conv", "pool", "flatten"))
    assert "binary_conv" not in kernels({"CONV"})


@installed("gcc")
def test_names_and_texts(tmp_path: Path) -> None:
    """Names that C has, or that are no names in C; classes with quotes and trigraphs."""
    net = Network((1, 4, 4), mean=[0.5], std=[0.5])
    net.graph["classes"] = ['"quoted"', "??/", "été", "back\\slash"]
    x = "input"
    for name in ("float", "1.0", "a b", "a_b", "pixel", "a.b", "_", "a_sign", "a"):
        sign = {"scale": net.tensor([2.0])}
        x = net.node("identity", x, name=name, then=[{"shift": net.tensor([0.5])}], sign=sign)
    mean = net.node("adaptive_avg_pool", x, size=[1, 1])
    net.conv(mean, np.ones((4, 1, 1, 1), np.float32), name="int")
    exported = check(net.write(tmp_path / "m.bnew"), tmp_path, *WAYS["gcc -O2"])
    assert len({stage.name for stage in exported.stages}) == len(exported.stages)
    texts = (ctypes.c_char_p * 4).in_dll(compiled(exported, *WAYS["gcc -O2"]), "net_classes")
    assert [each.decode() for each in texts if each] == net.graph["classes"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x-1.y", "x_1_y"),
        ("9net", "net_9net"),
        ("int", "int"),
        ("string", "net_string"),
        ("Time", "net_Time"),
    ],
)
def test_names_begin_functions_and_files(name: str, expected: str) -> None:
    assert identifier(name) == expected


FUSED = """
#include <math.h>
#include <stdio.h>
static uint64_t state = 88172645463325252u;
static uint32_t drawn(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 20);
}
/* Few bits and exponents close together: halves, cancellation, numbers below normal ones, and all others. */
static float some(int kind) {
    uint32_t word = drawn();
    const uint32_t exponents[] = {word >> 23 & 255, 127 - word % 30, word % 70, 110 + word % 40};
    float value;
    if (word & 1 << 9) word &= 0x807ff000 >> (word & 7);
    word = (word & 0x807fffff) | exponents[kind] << 23;
    memcpy(&value, &word, sizeof value);
    return value;
}
int main(void) {
    long i;
    for (i = 0; i < 2000000; ++i) {
        /* At times a b is a little less than half of the smallest float, and c is an odd number of those. */
        const int small = i % 16 == 15;
        const float a = small ? 0x1.000002p-75f : some(i % 4);
        const float b = small ? 0x1.fffffcp-76f : i & 64 && i % 16 == 7 ? 0 * a : some(i / 4 % 4);
        const float c = small    ? (float)(drawn() >> 9 | 1) * 0x1p-149f
                        : i & 32 ? some(i / 64 % 4)
                        : i & 16 ? -(a * b)
                                 : 0 * a;
        const float found = fused(a, b, c), expected = fmaf(a, b, c);
        if (memcmp(&found, &expected, sizeof found) != 0 && !(found != found && expected != expected)) {
            printf("%a %a %a: %a, not %a\\n", a, b, c, found, expected);
            return 1;
        }
    }
    return 0;
}
"""


@installed("gcc")
@pytest.mark.parametrize("flags", [(), ("-D__SOFTFP__",), ("-mfma",)])
def test_products_and_sums_are_rounded_once(flags: tuple[str, ...], tmp_path: Path) -> None:
    """Against the C library's: in double precision, by whole numbers, and by an instruction."""
    (tmp_path / "main.c").write_text(kernels({"FLOAT"}) + FUSED)
    run_tool(
        "gcc", *STRICT, "-Wno-unused-function", "-O2", "-ffp-contract=off", *flags,
        tmp_path / "main.c", "-o", tmp_path / "main", "-lm",
    )  # fmt: skip
    run_tool(tmp_path / "main")


def test_numbers_are_written_as_they_are() -> None:
    random = np.random.default_rng(0)
    numbers = random.integers(0, 2**32, 2000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    assert (np.array([literal(each).removesuffix("f") for each in numbers], np.float32) == numbers).all()
    assert literal(np.float32(-0.0)) == "-0.0f"
    assert text("a?b") == '"a\\077b"'
