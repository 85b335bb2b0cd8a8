"""Networks as C: the same bits as the engine's scalar kernels, by every compiler that is there."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import MACHINE, RECIPE
from tiny import Network, powers, signs, words_of

from bnew.deploy.c99.export import CODE, Exported, export_c
from bnew.deploy.c99.folding import STEPS
from bnew.deploy.c99.writing import kernels, real, text
from bnew.deploy.pack_run import pack_run
from bnew.errors import BnewError
from bnew.results.run import Run
from bnew.training.loop import train
from bnew.training.run_data import load_run_data

bnew_engine = pytest.importorskip("bnew_engine")

STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
BOARDS = {
    "cortex-m3": "arm",
    "cortex-m4": "arm",
    "cortex-m7": "arm",
    "rv32imac": "riscv32",
    "rv32imafc": "riscv32",
}
BARE = {"arm": "arm-none-eabi-gcc", "riscv32": "riscv64-unknown-elf-gcc"}
EXAMPLE = Path(__file__).parent.parent / "examples" / "microcontroller"
# Contraction where the compiler may do it, and where the target has a fused multiply-add.
WAYS = {
    "gcc -O2": ("gcc", *STRICT, "-O2"),
    "gcc -Os": ("gcc", *STRICT, "-Os"),
    "gcc -O3 with FMA": ("gcc", "-std=gnu99", "-O3", "-march=x86-64-v3", "-ffp-contract=fast"),
    "clang -O2": ("clang", *STRICT, "-O2"),
    "clang -O3 with FMA": ("clang", "-std=gnu99", "-O3", "-march=x86-64-v3", "-ffp-contract=fast"),
}
Array = np.typing.NDArray[Any]


def installed(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if not shutil.which(tool)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def run_tool(*command: object, timeout: float | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compiled(exported: Exported, *compiler: str) -> ctypes.CDLL:
    library = exported.source.with_suffix(".so")
    library.unlink(missing_ok=True)
    run_tool(*compiler, "-shared", "-fPIC", exported.source, "-o", library)
    fresh = library.with_name(f"{library.stem}{len(list(library.parent.iterdir()))}.so")
    library.rename(fresh)  # a name that was loaded before would be the old library
    return ctypes.CDLL(str(fresh))


def computed(library: ctypes.CDLL, name: str, images: Array, size: int) -> tuple[Array, list[int]]:
    """Results (N, size) and classes, of images (N, H, W, C)."""
    out = np.full((len(images), size), np.nan, np.float32)
    run, predict = (getattr(library, f"{name}_{function}", None) for function in ("run", "predict"))
    assert run is not None
    classes = []
    for image, to in zip(images, out, strict=True):
        data = np.ascontiguousarray(image)
        assert run(data.ctypes.data_as(ctypes.c_void_p), to.ctypes.data_as(ctypes.c_void_p)) == 0
        classes += [predict(data.ctypes.data_as(ctypes.c_void_p))] if predict else []
    assert run(None, None) == -1
    return out, classes


def assert_same_bits(found: Array, expected: Array) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.reshape(found.shape).view(np.uint32))


def some_images(shape: tuple[int, int, int], count: int = 3) -> Array:
    channels, height, width = shape
    return np.random.default_rng(1).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def check(path: Path, tmp_path: Path, *compiler: str) -> Exported:
    """The C code of a packed file gives the engine's bits."""
    exported = export_c(path, tmp_path / "c", name="net")
    images = some_images(exported.stages[0].shape)
    expected = bnew_engine.load(path, isa="scalar")(images).reshape(len(images), -1)
    found, classes = computed(compiled(exported, *compiler), "net", images, expected.shape[1])
    assert_same_bits(found, expected)
    assert not classes or classes == expected.argmax(1).tolist()
    return exported


# ------------------------------------------------------------------------------------------ networks


class Random:
    """A network of a dozen nodes, drawn from the operators and steps that there are in C."""

    def __init__(self, seed: int) -> None:
        self.random = random = np.random.default_rng(seed)
        shape = random.integers((1, 5, 5), (5, 14, 14)).tolist()
        mean, std = random.random((2, shape[0]))
        self.net = Network(shape, mean=mean.tolist(), std=(std + 0.1).tolist())
        self.real = {"input": tuple(shape)}
        self.bits: dict[str, tuple[int, ...]] = {}
        for op in random.choice(
            ["conv", "binary", "binary", "max_pool", "avg_pool", "adaptive", "identity"], 12
        ):
            getattr(self, f"add_{op}")(*self.pick(self.bits if op == "binary" and self.bits else self.real))
        if random.random() < 0.5:
            source, shape = self.pick(self.real)
            self.add("flatten", source, (int(np.prod(shape)), 1, 1))

    def pick(self, values: dict[str, tuple[int, ...]]) -> tuple[str, tuple[int, ...]]:
        """One of the last values, so that most are used."""
        items = list(values.items())[-4:]
        return items[self.random.integers(len(items))]

    def floats(self, *shape: int) -> Array:
        return self.random.standard_normal(shape).astype(np.float32)

    def numbers(self, channels: int) -> str:
        dtype = (np.float32, np.float16)[self.random.integers(2)]
        return self.net.tensor(self.floats(channels if self.random.random() < 0.8 else 1), dtype)

    def step(self, kind: str, shape: tuple[int, ...]) -> dict[str, Any] | None:
        if kind in ("scale", "shift", "prelu"):
            return {kind: self.numbers(shape[0])}
        if kind == "clamp":
            return {kind: [(-0.5, None)[self.random.integers(2)], (1.5, None)[self.random.integers(2)]]}
        if kind not in ("add", "multiply"):
            return {kind: {}}
        other, of = self.pick(self.real)
        fits = shape[0] % of[0] == 0 and of[1:] in (shape[1:], (1, 1))
        return {kind: other} if fits else None

    def add(self, op: str, source: str, shape: tuple[int, ...], **fields: Any) -> None:
        steps = [self.step(str(kind), shape) for kind in self.random.choice(STEPS, self.random.integers(5))]
        sign = None
        if self.random.random() < 0.7:
            sign = {key: self.numbers(shape[0]) for key in ("scale", "shift") if self.random.random() < 0.5}
        name = self.net.node(op, source, then=[step for step in steps if step], sign=sign, **fields)
        self.real[name] = shape
        if sign is not None:
            self.bits[f"{name}.bits"] = shape

    def window(self, shape: tuple[int, ...], most_padding: int) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Fields of a window that fits, and the size of the result."""
        kernel, dilation = self.random.integers(1, 4, 2), self.random.integers(1, 3, 2)
        dilation[kernel == 1] = 1
        room = np.array(shape[1:])
        dilation[dilation * (kernel - 1) >= room] = 1
        kernel = np.minimum(kernel, room)
        stride = self.random.integers(1, 4, 2)
        padding = self.random.integers(0, np.minimum(np.tile(kernel, 2), most_padding + 1))
        size = (room + padding[:2] + padding[2:] - dilation * (kernel - 1) - 1) // stride + 1
        fields = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        return {key: value.tolist() for key, value in fields.items()}, tuple(size.tolist())

    def add_conv(self, source: str, shape: tuple[int, ...]) -> None:
        window, size = self.window(shape, 2)
        groups = int(self.random.choice([1, shape[0]]))
        out = groups * int(self.random.integers(1, 40 if groups == 1 else 3))
        weight = self.net.tensor(self.floats(out, shape[0] // groups, *window["kernel"]))
        channels = [shape[0], out]
        self.add("conv", source, (out, *size), weight=weight, channels=channels, groups=groups, **window)

    def add_binary(self, source: str, shape: tuple[int, ...]) -> None:
        if source in self.real:  # no bits yet
            return self.add_conv(source, shape)
        window, size = self.window(shape, 2)
        out = int(self.random.choice([1, 7, 16, 32, 33, 64, 70]))
        words = words_of(signs(self.random, out, shape[0], *window["kernel"]))
        fields: dict[str, Any] = {"weight": self.net.tensor(words, np.uint32), "channels": [shape[0], out]}
        if self.random.random() < 0.4:
            fields["pad_value"] = int(self.random.choice([-1, 1]))
        self.add("binary_conv", source, (out, *size), groups=1, **fields, **window)

    def add_max_pool(self, source: str, shape: tuple[int, ...]) -> None:
        window, size = self.window(shape, 0)
        self.add("max_pool", source, (shape[0], *size), size=list(size), **window)

    def add_avg_pool(self, source: str, shape: tuple[int, ...]) -> None:
        kernel = np.minimum(self.random.integers(1, 4, 2), shape[1:])
        padding = np.tile(kernel // 2, 2)
        size = [int(n) for n in (np.array(shape[1:]) + 2 * (kernel // 2) - kernel) // kernel + 1]
        fields = {"kernel": kernel, "stride": kernel, "padding": padding}
        self.add(
            "avg_pool", source, (shape[0], *size), size=size, count_padding=bool(self.random.integers(2)),
            **{key: value.tolist() for key, value in fields.items()},
        )  # fmt: skip

    def add_adaptive(self, source: str, shape: tuple[int, ...]) -> None:
        size = self.random.integers(1, np.array(shape[1:]) + 1).tolist()
        self.add("adaptive_avg_pool", source, (shape[0], *size), size=size)

    def add_identity(self, source: str, shape: tuple[int, ...]) -> None:
        self.add("identity", source, shape)


@pytest.mark.parametrize("seed", range(24))
def test_random_networks_give_the_engines_bits(seed: int, tmp_path: Path) -> None:
    way = [way for way in WAYS.values() if shutil.which(way[0])]
    if not way:
        pytest.skip("no compiler of C is installed")
    check(Random(seed).net.write(tmp_path / "m.bnew"), tmp_path, *way[seed % len(way)])


@installed("gcc")
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(
        """
        #include <stdio.h>
        #include "net.h"
        int main(void) {
            static uint8_t image[NET_HEIGHT * NET_WIDTH * NET_CHANNELS];
            static float out[NET_OUTPUTS];
            while (fread(image, sizeof image, 1, stdin)) {
                net_run(image, out);
                fwrite(out, sizeof out, 1, stdout);
            }
            return 0;
        }
        """
    )
    for seed in range(100, 106):
        path = Random(seed).net.write(tmp_path / "m.bnew")
        exported = export_c(path, tmp_path, name="net")
        program = tmp_path / "program"
        run_tool("gcc", *STRICT, *SANITIZERS, tmp_path / "main.c", exported.source, "-o", program)
        images = some_images(exported.stages[0].shape)
        done = subprocess.run(
            [program], input=images.tobytes(), capture_output=True, check=False, env={"LD_PRELOAD": ""}
        )
        assert done.returncode == 0, done.stderr.decode()
        expected = bnew_engine.load(path, isa="scalar")(images).reshape(len(images), -1)
        assert_same_bits(np.frombuffer(done.stdout, np.float32).reshape(len(images), -1), expected)


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


def residual() -> Network:
    random = np.random.default_rng(3)
    net = Network((3, 24, 24), mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.3])
    three: dict[str, Any] = {"padding": [1] * 4}
    net.conv("input", powers(random, 20, 3, 3, 3), **three)
    pool: dict[str, Any] = {
        "kernel": [3, 3],
        "stride": [2, 2],
        "padding": [1] * 4,
        "dilation": [1, 1],
        "size": [12, 12],
    }
    x = net.node("max_pool", "n0", **pool, sign={})
    for _ in range(3):
        scale = net.tensor(random.standard_normal(20))
        then = [{"scale": scale}, {"add": x}, {"prelu": scale}]
        x = net.conv(f"{x}.bits", signs(random, 20, 20, 3, 3), binary=True, **three, then=then, sign={})
    mean = net.node("adaptive_avg_pool", x, size=[1, 1])
    net.conv(mean, powers(random, 10, 20, 1, 1))
    return net


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
    mean, std = (np.array(packed.graph["input"][key])[:, None, None] for key in ("mean", "std"))
    images = np.rint((images * std + mean) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
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
    tools = (BARE[BOARDS[board]], f"qemu-system-{BOARDS[board]}", "make")
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    path, images, expected = digits
    exported = export_c(path, tmp_path, name="network", flash=256 << 10, ram=64 << 10)
    (tmp_path / "images").write_bytes(images[:4].tobytes())
    printed = run_tool("make", "-C", EXAMPLE, board, f"BUILD={tmp_path}", "CFLAGS=-DPRINT_BITS", timeout=300)
    lines = re.findall(r"^image \d+: class (\d) (.*)$", printed, re.MULTILINE)
    found = np.array([[int(each, 16) for each in row.split()] for _, row in lines], np.uint32)
    assert_same_bits(found.view(np.float32), expected[:4])
    assert [int(number) for number, _ in lines] == expected[:4].argmax(1).tolist()
    assert int(re.findall(r"^(\d+) instructions", printed, re.MULTILINE)[0]) > exported.macs / 10
    sizes = section_sizes(BARE[BOARDS[board]], tmp_path / board / "network.elf")
    assert sizes[".text"] < exported.flash + 2 * CODE  # with a library of floats where the chip has none
    assert exported.ram <= sizes[".bss"] < exported.ram + 300  # an image, its result


def section_sizes(compiler: str, file: Path) -> dict[str, int]:
    rows = run_tool(compiler.removesuffix("gcc") + "size", "-A", file).splitlines()
    return {row.split()[0]: int(row.split()[1]) for row in rows if row.startswith(".")}


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


def test_command(cli: Any, run: Run, digits: tuple[Path, Array, Array], tmp_path: Path) -> None:
    path, *_ = digits
    code, out, err = cli("export", path, tmp_path / "a", "--format", "c", "--flash", "256k", "--ram", "64k")
    assert (code, err) == (0, "")
    assert all(len(line) <= 80 for line in out.splitlines()[:-1])
    assert "binary_conv" in out
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["digits.c", "digits.h"]
    code, *_ = cli("export", run.path, tmp_path / "b", "--format", "c")
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
    every = kernels({"CONV", "BINARY_CONV", "POOL", "POINTWISE", "FLATTEN"})
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
static float number(int kind) {
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
        const float a = small ? 0x1.000002p-75f : number(i % 4);
        const float b = small ? 0x1.fffffcp-76f : number(i / 4 % 4);
        const float c = small    ? (float)(drawn() >> 9 | 1) * 0x1p-149f
                        : i & 32 ? number(i / 64 % 4)
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
    (tmp_path / "main.c").write_text(kernels(set()) + FUSED)
    run_tool(
        "gcc", *STRICT, "-Wno-unused-function", "-O2", "-ffp-contract=off", *flags,
        tmp_path / "main.c", "-o", tmp_path / "main", "-lm",
    )  # fmt: skip
    run_tool(tmp_path / "main")


def test_numbers_are_written_as_they_are() -> None:
    random = np.random.default_rng(0)
    numbers = random.integers(0, 2**32, 2000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    assert (np.array([real(each).removesuffix("f") for each in numbers], np.float32) == numbers).all()
    assert real(-0.0) == "-0.0f"
    assert text("a?b") == '"a\\077b"'
