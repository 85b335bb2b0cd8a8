"""What the tests of C code share: compilers, and networks of all its operators."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from helpers import MACHINE
from tiny import Network, powers, signs, words_of

from bnew.deploy.c99.export import Exported
from bnew.deploy.c99.folding import STEPS
from bnew.deploy.c99.network import as_bytes
from bnew.deploy.pack_run import pack_run
from bnew.results.run import Run
from bnew.training.run_data import load_run_data

bnew_engine = pytest.importorskip("bnew_engine")

STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
# Contraction where the compiler may do it, and where the target has a fused multiply-add.
WAYS = {
    "gcc -O2": ("gcc", *STRICT, "-O2"),
    "gcc -Os": ("gcc", *STRICT, "-Os"),
    "gcc -O3 with FMA": ("gcc", "-std=gnu99", "-O3", "-march=x86-64-v3", "-ffp-contract=fast"),
    "clang -O2": ("clang", *STRICT, "-O2"),
    "clang -O3 with FMA": ("clang", "-std=gnu99", "-O3", "-march=x86-64-v3", "-ffp-contract=fast"),
}
Array = np.typing.NDArray[Any]
Digits: TypeAlias = tuple[Path, Array, Array]
BOARDS = {
    "cortex-m3": "arm",
    "cortex-m4": "arm",
    "cortex-m7": "arm",
    "rv32imac": "riscv32",
    "rv32imafc": "riscv32",
}
BARE = {"arm": "arm-none-eabi-gcc", "riscv32": "riscv64-unknown-elf-gcc"}
EXAMPLE = Path(__file__).parent.parent / "examples" / "microcontroller"


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


def some_images(shape: tuple[int, int, int], count: int = 3) -> Array:
    channels, height, width = shape
    return np.random.default_rng(1).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def computed(
    library: ctypes.CDLL, name: str, images: Array, size: int, dtype: Any = np.float32
) -> tuple[Array, list[int]]:
    """Results (N, size) and classes, of images (N, H, W, C)."""
    out = np.full((len(images), size), -12345, dtype)
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


def on_board(board: str, folder: Path, images: Array) -> tuple[Array, list[int]]:
    """Bits (N, size) and classes that an emulated board prints for ``folder/network.c``."""
    tools = (BARE[BOARDS[board]], f"qemu-system-{BOARDS[board]}", "make")
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    (folder / "images").write_bytes(images.tobytes())
    printed = run_tool("make", "-C", EXAMPLE, board, f"BUILD={folder}", "CFLAGS=-DPRINT_BITS", timeout=300)
    lines = re.findall(r"^image \d+: class (\d) (.*)$", printed, re.MULTILINE)
    assert int(re.findall(r"^(\d+) instructions", printed, re.MULTILINE)[0]) > 1000
    found = np.array([[int(each, 16) for each in row.split()] for _, row in lines], np.uint32)
    return found, [int(number) for number, _ in lines]


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


def all_digits(run: Run) -> Digits:
    """A run's packed file, all its test images as bytes, and the results of the engine's scalar kernels."""
    path = run.path.parent / "digits.bnew"
    of_image = pack_run(run, path, MACHINE).graph["input"]
    batches = load_run_data(run, MACHINE).batches("test", train=False).epoch(0)
    images = as_bytes(np.concatenate([x.numpy() for x, _ in batches]), of_image["mean"], of_image["std"])
    return path, images, bnew_engine.load(path, isa="scalar")(images)


def section_sizes(compiler: str, file: Path) -> dict[str, int]:
    rows = run_tool(compiler.removesuffix("gcc") + "size", "-A", file).splitlines()
    return {row.split()[0]: int(row.split()[1]) for row in rows if row.startswith(".")}


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
