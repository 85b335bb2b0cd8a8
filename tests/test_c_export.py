"""Networks as C: the same bits as the engine's scalar kernels, by every compiler that is there."""

from __future__ import annotations

import ctypes
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_code import (
    BARE,
    BOARDS,
    STRICT,
    WAYS,
    Digits,
    Random,
    assert_same_bits,
    compiled,
    computed,
    installed,
    on_board,
    residual,
    run_tool,
    sanitized,
    section_sizes,
    some_images,
)
from tiny import Network, powers, signs

from bnew.deploy.c99.export import CODE, Exported, export_c, identifier
from bnew.deploy.c99.writing import kernels, literal, text
from bnew.errors import BnewError
from bnew.results.run import Run

bnew_engine = pytest.importorskip("bnew_engine")


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


@pytest.mark.parametrize("way", WAYS)
def test_all_digits_give_the_engines_bits(way: str, digits: Digits, tmp_path: Path) -> None:
    if not shutil.which(WAYS[way][0]):
        pytest.skip(f"not installed: {WAYS[way][0]}")
    path, images, expected = digits
    library = compiled(export_c(path, tmp_path), *WAYS[way])
    found, classes = computed(library, "digits", images, 10)
    assert len(images) == 359
    assert_same_bits(found, expected)
    assert classes == expected.argmax(1).tolist()


@pytest.mark.parametrize("board", BOARDS)
def test_boards_give_the_same_bits(board: str, digits: Digits, tmp_path: Path) -> None:
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


# --------------------------------------------------------------------------------------- command, refusals


def test_command(cli: Any, digits_run: Run, digits: Digits, tmp_path: Path) -> None:
    path, *_ = digits
    code, out, err = cli("export", path, tmp_path / "a", "--format", "c", "--flash", "256k", "--ram", "64k")
    assert (code, err) == (0, "")
    assert all(len(line) <= 80 for line in out.splitlines()[:-1])
    assert "binary_conv" in out
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["digits.c", "digits.h"]
    code, *_ = cli("export", digits_run.path, tmp_path / "m", "--format", "c")
    assert code == 0
    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == ["birealnet8.c", "birealnet8.h"]
    code, *_ = cli("export", digits_run.path, tmp_path / "b", "--format", "c", "--name", "digits")
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
def test_mistakes(what: str, cli: Any, digits: Digits, tmp_path: Path) -> None:
    words, message = MISTAKES[what]
    code, _, err = cli("export", digits[0], tmp_path / "c", "--format", "c", *words)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "c").exists()


def test_more_mistakes(cli: Any, digits_run: Run, digits: Digits, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = cli("export", digits[0], tmp_path / "file", "--format", "c")
    assert (code, "could not make the folder" in err) == (2, True)
    code, _, err = cli("export", digits_run.path, tmp_path / "x.onnx", "--ram", "64k")
    assert (code, "--ram is for --format c" in err) == (2, True)
    code, _, err = cli("export", digits_run.path, tmp_path / "x.onnx", "--name", "")
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
