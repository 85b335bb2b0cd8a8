"""What bnew's networks as C take on chips without SIMD, beside the same convolutions in int8.

python benchmarks/microcontroller.py

Instructions per image, counted by QEMU (-icount shift=0), for random weights of the networks and a random
image: they do not depend on these but for a few branches. The programs that it needs are named in
examples/microcontroller/Makefile.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

import bnew
from bnew.deploy.c99.export import CODE, Exported, export_c
from bnew.deploy.c99.stages import Stage
from bnew.training.machine import Machine, make_fabric
from bnew.training.provenance import environment
from comparing import table
from engine import binary_model

EXAMPLE = Path(__file__).parent.parent / "examples" / "microcontroller"
BOARDS = {
    "cortex-m3": "Cortex-M3, no FPU",
    "cortex-m4": "Cortex-M4F",
    "cortex-m7": "Cortex-M7F",
    "rv32imac": "RISC-V, rv32imac, no FPU",
    "rv32imafc": "RISC-V, rv32imafc",
}


@dataclass(frozen=True)
class Options:
    """Count instructions on emulated chips."""

    models: tuple[str, ...] = ("birealnet8", "birealnet20")
    """Networks for images of 3×32×32 and ten classes."""
    out: Path = Path("docs/results/microcontroller.md")
    """The report."""


def main(options: Options) -> None:
    machine = environment(make_fabric(Machine(device="cpu")))
    counts, sizes = [], []
    for name in options.models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            model, example = binary_model(name, 32, 10)
            bnew.pack(model, example, folder / "m.bnew", mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
            exported = export_c(folder / "m.bnew", folder / "binary", name="network")
            write_int8(exported, folder / "int8")
            for board, chip in BOARDS.items():
                (binary, text), (rival, rival_text) = (
                    run(folder / kind, board) for kind in ("binary", "int8")
                )
                counts.append(
                    (name, chip, f"{binary / 1e6:.1f}", f"{rival / 1e6:.1f}", f"{rival / binary:.1f}")
                )
                if board == "cortex-m4":
                    kib = [f"{size / 1024:.1f}" for size in (text, exported.flash, exported.ram, rival_text)]
                    sizes.append((name, f"{exported.macs / 1e6:.1f}", *kib))
    report = f"""# Networks as C on microcontrollers

Written by `python benchmarks/microcontroller.py`; commit {machine["commit"]}.

Images of 3×32×32, ten classes, random weights. arm-none-eabi-gcc and riscv64-unknown-elf-gcc with `-O2`.

## Memory

KiB on the Cortex-M4F. "Linked" is code, constants and the example's own code; "reckoned" is what
`bnew export` prints: constants, and {CODE >> 10} KiB for code. RAM is the arena; the stack is below 1 KiB.
The last column is the flash of the same convolutions with int8 weights.

{table(("", "million MACs", "flash, linked", "flash, reckoned", "RAM", "int8: flash, linked"), sizes)}

## Instructions

Million instructions per image, as QEMU counts them with `-icount shift=0`. They are not cycles: a load or a
product may take several. int8 is plain C of the convolutions alone (benchmarks/int8.c), without pools and
shortcuts. CMSIS-NN is not measured. Its kernels use the DSP instructions of the Cortex-M4 and M7, which make
two products in one: expect less there than this int8 needs.

{table(("", "chip", "bnew", "int8", "ratio"), counts)}

Without an FPU, most instructions go into the real numbers: the first layer, scales and shortcuts, whose
multiply-adds are computed by whole numbers. There int8 needs fewer instructions, and a binary network saves
flash alone.
"""
    options.out.write_text(report, "utf-8")
    print(report)


def run(folder: Path, board: str) -> tuple[int, int]:
    """Instructions for an image, and the bytes of flash, of ``network.c`` in a folder."""
    image = np.random.default_rng(0).integers(0, 256, 3 * 32 * 32, dtype=np.uint8)
    (folder / "images").write_bytes(image.tobytes())
    command = ["make", "--silent", "-C", str(EXAMPLE), board, f"BUILD={folder}", "FLASH=1M", "RAM=256K"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tool = "arm-none-eabi-size" if board.startswith("cortex") else "riscv64-unknown-elf-size"
    sized = subprocess.run([tool, folder / board / "network.elf"], capture_output=True, text=True, check=True)
    (count,) = re.findall(r"(\d+) instructions", printed)
    return int(count), int(sized.stdout.splitlines()[1].split()[0])


def write_int8(exported: Exported, folder: Path) -> None:
    """The convolutions of a network in int8, one after the other, with random weights."""
    folder.mkdir()
    (folder / "network.h").write_text(exported.header.read_text("utf-8"), "utf-8")
    layers = [stage for stage in exported.stages if stage.window]
    largest = max(np.prod(shape) for stage in layers for shape in (stage.shape, source_of(stage)))
    window = max(source_of(stage)[0] * stage.window.kernel[0] ** 2 for stage in layers if stage.window)
    random = np.random.default_rng(0)
    constants = "\n".join(line for i, stage in enumerate(layers) for line in int8_layer(i, stage, random))
    rows = ",\n".join(fields(i, stage) for i, stage in enumerate(layers))
    (folder / "layers.h").write_text(f"{constants}\nstatic const struct layer layers[] = {{\n{rows}\n}};\n")
    code = (Path(__file__).parent / "int8.c").read_text("utf-8")
    sizes = f"#define LARGEST {largest}\n#define WINDOW {window}\n"
    (folder / "network.c").write_text(sizes + code, "utf-8")


def source_of(stage: Stage) -> tuple[int, int, int]:
    """The shape of a stage's input."""
    assert stage.source is not None
    return stage.source.shape


def int8_layer(i: int, stage: Stage, random: np.random.Generator) -> Iterator[str]:
    """Weights and factors of layer ``i``."""
    assert stage.window is not None
    count = stage.shape[0] * source_of(stage)[0] * stage.window.kernel[0] ** 2
    for kind, of, numbers in (
        ("weights", "int8_t", random.integers(-127, 128, count)),
        ("factors", "int32_t", random.integers(1 << 20, 1 << 24, stage.shape[0])),
    ):
        yield f"static const {of} {kind}_{i}[] = {{{', '.join(map(str, numbers))}}};"


def fields(i: int, stage: Stage) -> str:
    """The fields of ``struct layer`` of int8.c."""
    assert stage.window is not None
    window, (channels, height, width) = stage.window, source_of(stage)
    numbers = (channels, height, width, stage.shape[0], window.kernel[0], window.stride[0], window.pad[0])
    return f"    {{{', '.join(map(str, (*numbers, *stage.shape[1:])))}, weights_{i}, factors_{i}}}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Options))
