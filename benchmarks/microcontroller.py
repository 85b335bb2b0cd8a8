"""What bnew's networks as C take on microcontrollers, beside the same convolutions in int8.

python benchmarks/microcontroller.py --cmsis-nn FOLDER

Instructions per image, counted by QEMU (-icount shift=0), for random weights of the networks and a random
image: they do not depend on these but for a few branches. The programs that it needs are named in
examples/microcontroller/Makefile. FOLDER is CMSIS-NN, which a wheel on PyPI carries:

    pip download --no-deps aidge-export-arm-cortexm==0.2.1
    python -m zipfile -e aidge_export_arm_cortexm-0.2.1-py3-none-any.whl build/wheel
    python benchmarks/microcontroller.py --cmsis-nn build/wheel/aidge_export_arm_cortexm/_CMSIS-NN/CMSIS-NN
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import tyro

import bnew
from bnew.deploy.c99.export import CODE, Exported, export_c
from bnew.deploy.c99.stages import Stage
from bnew.training.machine import Machine, make_fabric
from bnew.training.provenance import environment
from comparing import table
from engine import binary_model

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples" / "microcontroller"
BOARDS = {
    "cortex-m3": "Cortex-M3, no FPU",
    "cortex-m4": "Cortex-M4F",
    "cortex-m7": "Cortex-M7F",
    "rv32imac": "RISC-V, rv32imac, no FPU",
    "rv32imafc": "RISC-V, rv32imafc",
}
ZERO_POINT = -128
"""Of all activations, as in int8.c."""
CMSIS_NN = "CMSIS-NN"
INT8 = ("int8", CMSIS_NN)
"""The contenders in int8: all of them must give the same numbers."""
OURS = ("bnew", "bnew--fixed")


@dataclass(frozen=True)
class Options:
    """Count instructions on emulated chips."""

    models: tuple[str, ...] = ("birealnet8", "birealnet20")
    """Networks for images of 3×32×32 and ten classes."""
    cmsis_nn: Path | None = None
    """CMSIS-NN's folder, with Include and Source. Without it, it is not measured."""
    out: Path = Path("docs/results/microcontroller.md")
    """The report."""


@dataclass(frozen=True)
class Contender:
    """``network.c`` and ``network.h`` in a folder, and the compiler's flags."""

    folder: Path
    flags: str = ""

    def run(self, board: str, *flags: str) -> str:
        """What the example prints for an image."""
        image = np.random.default_rng(0).integers(0, 256, 3 * 32 * 32, dtype=np.uint8)
        (self.folder / "images").write_bytes(image.tobytes())
        command = ["make", "--silent", "-C", str(EXAMPLE), board, f"BUILD={self.folder}"]
        command += ["FLASH=1M", "RAM=256K", f"CFLAGS={' '.join((self.flags, *flags))}"]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout

    def instructions(self, board: str) -> int:
        """Instructions for an image."""
        (count,) = re.findall(r"(\d+) instructions", self.run(board))
        return int(count)

    def numbers(self, board: str) -> list[str]:
        """The bits of the results."""
        return re.findall(r" ([0-9a-f]{8})\b", self.run(board, "-DPRINT_BITS"))

    def flash(self, board: str) -> int:
        """The bytes of flash of what was run last."""
        tool = "arm-none-eabi-size" if board.startswith("cortex") else "riscv64-unknown-elf-size"
        command = [tool, str(self.folder / board / "network.elf")]
        sized = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        return int(sized.splitlines()[1].split()[0])


def main(options: Options) -> None:
    machine = environment(make_fabric(Machine(device="cpu")))
    counts, sizes = [], []
    for name in options.models:
        with tempfile.TemporaryDirectory() as temporary:
            exported, contenders = written(name, Path(temporary), options.cmsis_nn)
            rivals = [kind for kind in INT8 if kind in contenders]
            for board, chip in BOARDS.items():
                check(exported["bnew"], contenders, board)
                took = {kind: contender.instructions(board) for kind, contender in contenders.items()}
                millions = [f"{count / 1e6:.1f}" for count in took.values()]
                better = min(took[kind] for kind in OURS)
                ratios = [f"{took[rival] / better:.2f}" for rival in rivals]
                counts.append((name, chip, *millions, *ratios))
                if board == "cortex-m4":
                    flash = [contender.flash(board) for contender in contenders.values()]
                    ram, reckoned = ([getattr(exported[k], what) for k in OURS] for what in ("ram", "flash"))
                    kib = [f"{size / 1024:.1f}" for size in (*ram, *reckoned, *flash)]
                    sizes.append((name, f"{exported['bnew'].macs / 1e6:.1f}", *kib))
    flash_of = [f"{kind}: flash, linked" for kind in contenders]
    ratios_to = [f"{rival} / the better" for rival in rivals]
    ours = [f"{kind}: {what}" for what in ("RAM", "flash, reckoned") for kind in OURS]
    report = f"""# Networks as C on microcontrollers

Written by `python benchmarks/microcontroller.py{" --cmsis-nn FOLDER" if options.cmsis_nn else ""}`; \
commit {machine["commit"]}.

Images of 3×32×32, ten classes, random weights. arm-none-eabi-gcc and riscv64-unknown-elf-gcc with `-O2`.

int8 is the convolutions alone, without pools and shortcuts (benchmarks/int8.c), one after the other, with
biases, zero points and TensorFlow Lite's rescaling: per channel a multiplier and a shift, rounded twice and
clamped. The column int8 is plain C. {about_cmsis_nn(options.cmsis_nn)}

## Memory

KiB on the Cortex-M4F. "Linked" is code, constants and the example's own code; "reckoned" is what
`bnew export` prints: constants, and {CODE >> 10} KiB for code. RAM is the arena; the stack is below 1 KiB.

{table(("", "million MACs", *ours, *flash_of), sizes)}

## Instructions

Million instructions per image, as QEMU counts them with `-icount shift=0`; a loop of two million must come
out right before anything is counted. They are not cycles: a load or a product may take several, and a
Cortex-M7 runs two instructions at once where it can.

{table(("", "chip", *contenders, *ratios_to), counts)}

The ratio is to the better of bnew's two. Without an FPU, most instructions of bnew with floats go into the
first layer, scales and shortcuts, whose multiply-adds are computed by whole numbers: there, and only there,
`--fixed` is what to take.
"""
    options.out.write_text(report, "utf-8")
    print(report)


def about_cmsis_nn(folder: Path | None) -> str:
    """What the report says of it."""
    if folder is None:
        return "CMSIS-NN was not measured."
    header = (folder / "Include" / "arm_nnfunctions.h").read_text("utf-8")
    date, revision = re.findall(r"\$(?:Date|Revision):\s*(.+)", header)
    return f"""CMSIS-NN is Arm's kernels for the
same layers (`arm_convolve_wrapper_s8`; arm_nnfunctions.h {revision} of {date}). On the Cortex-M4
and M7 they use the DSP instructions, which make two products in one; on the other chips they are C too. Both
columns gave the same numbers in all layers on all chips."""


def written(
    name: str, folder: Path, cmsis_nn: Path | None
) -> tuple[dict[str, Exported], dict[str, Contender]]:
    """What bnew writes for a network, and all contenders."""
    model, example = binary_model(name, 32, 10)
    bnew.pack(model, example, folder / "m.bnew", mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
    sample = np.random.default_rng(1).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    exported = {
        kind: export_c(folder / "m.bnew", folder / kind, name="network", fixed=images)
        for kind, images in zip(OURS, (None, sample), strict=True)
    }
    contenders = {kind: Contender(folder / kind) for kind in OURS}
    contenders["int8"] = int8(exported["bnew"], folder / "int8")
    if cmsis_nn:
        contenders[CMSIS_NN] = int8(exported["bnew"], folder / "cmsis_nn", cmsis_nn.resolve())
    return exported, contenders


def check(exported: Exported, contenders: dict[str, Contender], board: str) -> None:
    """That two million instructions are counted right, and that all in int8 give the same numbers."""
    with tempfile.TemporaryDirectory() as folder:
        counted = Contender(code(exported, Path(folder) / "loop", "loop.c")).instructions(board)
    if abs(counted - 2_000_000) > 1000:
        raise RuntimeError(f"{board}: QEMU counts {counted} instructions for a loop of 2000000")
    found = {kind: contenders[kind].numbers(board) for kind in INT8 if kind in contenders}
    if any(numbers != found["int8"] for numbers in found.values()):
        raise RuntimeError(f"{board}: the numbers differ: {found}")


def code(exported: Exported, folder: Path, source: str, defines: str = "") -> Path:
    """A folder with a C file of this benchmark in the place of a network."""
    folder.mkdir()
    (folder / "network.h").write_text(exported.header.read_text("utf-8"), "utf-8")
    (folder / "network.c").write_text(defines + (HERE / source).read_text("utf-8"), "utf-8")
    return folder


def int8(exported: Exported, folder: Path, cmsis_nn: Path | None = None) -> Contender:
    """The convolutions of a network in int8, one after the other, with random weights."""
    layers = [stage for stage in exported.stages if stage.window]
    largest = max(np.prod(shape) for stage in layers for shape in (stage.shape, source_of(stage)))
    code(
        exported,
        folder,
        "int8.c",
        f"#define LARGEST {largest}\n#define WINDOW {max(map(window_of, layers))}\n",
    )
    random = np.random.default_rng(0)
    constants = "\n".join(
        f"static const {of} {kind}_{i}[] = {{{', '.join(map(str, numbers))}}};"
        for i, stage in enumerate(layers)
        for kind, of, numbers in int8_layer(stage, random, folded=cmsis_nn is None)
    )
    rows = ",\n".join(fields(i, stage) for i, stage in enumerate(layers))
    (folder / "layers.h").write_text(f"{constants}\nstatic const struct layer layers[] = {{\n{rows}\n}};\n")
    includes = f"-DCMSIS_NN -isystem {cmsis_nn}/Include -isystem {cmsis_nn}/Source" if cmsis_nn else ""
    return Contender(folder, includes)


def source_of(stage: Stage) -> tuple[int, int, int]:
    """The shape of a stage's input."""
    assert stage.source is not None
    return stage.source.shape


def window_of(stage: Stage) -> int:
    """The number of inputs of one output."""
    assert stage.window is not None
    return source_of(stage)[0] * stage.window.kernel[0] * stage.window.kernel[1]


def int8_layer(
    stage: Stage, random: np.random.Generator, folded: bool
) -> Iterator[tuple[str, str, npt.NDArray[np.integer]]]:
    """Constants of a layer whose results spread over int8; ``folded`` biases contain the zero point."""
    channels, window = stage.shape[0], window_of(stage)
    weights = random.integers(-127, 128, (channels, window))
    biases = random.integers(-1000, 1001, channels)
    spread = np.sqrt(window) * 73 * 42  # of weights, and of what a ReLU leaves of 60
    fractions, exponents = np.frexp(random.uniform(0.5, 1.5, channels) * 60 / spread)
    yield "weights", "int8_t", weights.ravel()
    yield "biases", "int32_t", biases - folded * ZERO_POINT * weights.sum(1)
    yield "multipliers", "int32_t", np.rint(fractions * 2.0**31).astype(np.int64)
    yield "shifts", "int32_t", exponents


def fields(i: int, stage: Stage) -> str:
    """The fields of ``struct layer`` of int8.c."""
    assert stage.window is not None
    window, (channels, height, width) = stage.window, source_of(stage)
    numbers = (channels, height, width, stage.shape[0], window.kernel[0], window.stride[0], window.pad[0])
    constants = (f"{kind}_{i}" for kind in ("weights", "biases", "multipliers", "shifts"))
    return f"    {{{', '.join(map(str, (*numbers, *stage.shape[1:], *constants)))}}}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Options))
