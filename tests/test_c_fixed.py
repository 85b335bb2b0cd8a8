"""Networks as C in fixed point: the bits of their twin in NumPy, and near the engine."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_code import (
    BOARDS,
    WAYS,
    Array,
    Digits,
    Random,
    assert_same_bits,
    compiled,
    computed,
    installed,
    on_board,
    run_tool,
    sanitized,
    some_images,
)
from helpers import MACHINE
from PIL import Image
from tiny import Network

from bnew.deploy.c99.export import Exported, export_c
from bnew.deploy.c99.fixed import Fixed, affine, applied, thresholds, whole_weights
from bnew.deploy.c99.interpreting import Interpreter
from bnew.deploy.c99.network import FixedNetwork
from bnew.deploy.c99.reading import read_stages
from bnew.deploy.c99.sample import validation_images
from bnew.deploy.c99.stages import Epilogue, FixedEpilogue, Stage
from bnew.deploy.verify import verify, verify_run
from bnew.errors import BnewError
from bnew.models.trained import pretrained_card
from bnew.results.run import Run
from bnew.text import percent

bnew_engine = pytest.importorskip("bnew_engine")


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


def test_verify_says_what_fixed_point_changes(digits_run: Run, digits: Digits) -> None:
    path, images, expected = digits
    found = FixedNetwork(path, validation_images(digits_run, MACHINE))(images)
    checked = verify_run(path, digits_run, MACHINE, fixed=True)
    assert checked.ok
    assert checked.fixed is not None
    assert checked.fixed.images == len(images)
    assert checked.fixed.same == (found.argmax(1) == expected.argmax(1)).sum()
    assert checked.fixed.largest == pytest.approx(np.abs(found - expected).max(), rel=1e-4)
    assert f"16-bit fixed point: accuracy {percent((checked.fixed.hits or 0) / len(images))}" in str(checked)
    assert "fixed point" not in str(verify_run(path, digits_run, MACHINE))
    by_path = verify(path, digits_run.path, fixed=validation_images(digits_run, MACHINE), sample=3)
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


def test_a_trained_network_in_fixed_point(digits: Digits) -> None:
    """The digits that come with bnew: all classes but a few in a thousand are those of floats."""
    _, images, _ = digits
    path = pretrained_card("digits").packed
    floats = bnew_engine.load(path)(images)
    fixed = FixedNetwork(path, images[:100])(images)
    assert (fixed.argmax(1) == floats.argmax(1)).mean() > 0.99
    assert np.median(np.abs(fixed - floats)) < 0.005 * np.abs(floats).max()


@pytest.mark.parametrize("board", BOARDS)
def test_boards_in_fixed_point(board: str, digits_run: Run, digits: Digits, tmp_path: Path) -> None:
    path, images, _ = digits
    exported = export_c(path, tmp_path, name="network", fixed=validation_images(digits_run, MACHINE))
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


def test_fixed_point_needs_images(cli: Any, digits_run: Run, digits: Digits, tmp_path: Path) -> None:
    path, images, _ = digits
    code, _, err = cli("export", path, tmp_path / "c", "--format", "c", "--fixed")
    assert (code, "give some dozens like those of the task by --images" in err) == (2, True)
    for words, message in (
        (("--images", "x.png"), "--images is for --fixed"),
        (("--fixed", "--images", tmp_path / "x.png"), "x.png"),
    ):
        code, _, err = cli("export", path, tmp_path / "c", "--format", "c", *words)
        assert (code, message in err, len(err.splitlines())) == (2, True, 1)
    code, _, err = cli("export", digits_run.path, tmp_path / "x.onnx", "--fixed")
    assert (code, "--fixed is for --format c" in err) == (2, True)
    wrong: Any
    for wrong in (images[:0], images[:4].astype(np.float32), images[:4].transpose(0, 3, 1, 2), images[0]):
        with pytest.raises(BnewError, match=r"must be uint8 \(N, 8, 8, 1\)"):
            export_c(path, tmp_path / "c", fixed=wrong)
    for i, image in enumerate(images[:20]):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i}.png")
    pictures: tuple[Any, ...] = ("--images", tmp_path / "*.png")
    for source, options, name in ((path, pictures, "digits"), (digits_run.path, (), "birealnet8")):
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
