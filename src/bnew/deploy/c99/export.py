"""Exports a packed file as C99, with a table of what it takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.table import Table

from bnew.deploy.c99 import writing
from bnew.deploy.c99.fixed import in_fixed_point
from bnew.deploy.c99.memory import Memory, plan
from bnew.deploy.c99.ranges import checked_images
from bnew.deploy.c99.reading import read_stages
from bnew.deploy.c99.stages import Stage
from bnew.deploy.limits import BY_SIZE, Limits
from bnew.display import Line, new_table
from bnew.errors import BnewError
from bnew.files import write_atomically
from bnew.text import printable

CODE = 6 << 10
"""The flash that is reckoned for the kernels' machine code: it is smaller on Cortex-M and RISC-V, by -Os."""

HEADERS = (
    "arm_acle|assert|complex|ctype|errno|fenv|float|inttypes|iso646|limits|locale|math|setjmp|signal|stdarg|"
    "stdbool|stddef|stdint|stdio|stdlib|string|tgmath|time|wchar|wctype"
)
"""C's own: a file of such a name, such as string.h, would be included in place of it."""


@dataclass(frozen=True, repr=False)
class Exported(Line):
    """The files that were written and what each stage takes; prints as a table."""

    source: Path
    header: Path
    stages: tuple[Stage, ...]
    memory: Memory
    exponent: int | None = None
    """Of the result in fixed point; None for floats."""

    @property
    def flash(self) -> int:
        """The bytes of constants, and those that are reckoned for code."""
        return CODE + sum(stage.constants for stage in self.stages)

    @property
    def ram(self) -> int:
        """The bytes of the arena; the stack, of some hundred bytes, comes on top."""
        return self.memory.bytes

    @property
    def macs(self) -> int:
        """Multiply-accumulates of an image, binary ones and real ones."""
        return sum(stage.macs for stage in self.stages)

    def __repr__(self) -> str:
        """One line: files and sizes."""
        return printable(
            f"<Exported '{self.source}' and '{self.header.name}': {self.flash:,} bytes of flash, "
            f"{self.ram:,} of RAM, {self.macs:,} multiply-accumulates>"
        )

    def __rich__(self) -> Table:
        table = new_table("layer", "kernel", numbers=("result", "MACs", "flash", "RAM"))
        for stage, live in zip(self.stages, self.memory.live, strict=True):
            table.add_row(
                stage.name,
                stage.kind,
                "×".join(map(str, stage.shape)),
                f"{stage.macs:,}" if stage.macs else "",
                f"{stage.constants:,}" if stage.constants else "",
                f"{live:,}",
            )
        table.add_row("code, reckoned", "", "", "", f"{CODE:,}", "")
        table.add_section()
        table.add_row("total", "", "", f"{self.macs:,}", f"{self.flash:,}", f"{self.ram:,}")
        return table


def export_c(
    path: str | Path,
    folder: str | Path,
    *,
    name: str | None = None,
    flash: int | None = None,
    ram: int | None = None,
    fixed: npt.NDArray[np.uint8] | None = None,
    limits: Limits = BY_SIZE,
) -> Exported:
    """Write a packed file as ``name.c`` and ``name.h`` into ``folder``, which is made if it is missing.

    Args:
        path: the packed file, with mean and std of its images.
        folder: where the two files are written.
        name: a C identifier, by which the functions begin; by default, from the packed file's name.
        flash, ram: the bytes that the chip has; None for any number.
        fixed: images (N, H, W, C) of bytes, some dozens that are like those of the task. Then all numbers are
            16-bit fixed point, for a chip without a floating-point unit, with ranges as these images have
            them. None: numbers are floats.
        limits: what the file may ask for.

    Raises:
        BnewError: the file is damaged, has an operator without a kernel in C, or does not fit; or the files
            cannot be written. Then nothing is written.
    """
    stages = read_stages(path, limits)
    made, output = tuple(stages), stages.output
    exponent, number_bytes = None, 4
    if fixed is not None:
        made, exponents = in_fixed_point(made, checked_images(fixed, made))
        exponent, number_bytes = exponents[output], 2
    folder, name = Path(folder), identifier(name or Path(path).stem)
    memory = plan(made, output, number_bytes)
    exported = Exported(folder / f"{name}.c", folder / f"{name}.h", made, memory, exponent)
    _check(exported, flash, ram)
    classes: Sequence[str] = stages.graph.get("classes", ())
    image = made[0].real
    assert image is not None
    header = writing.header(name, output, image, exported.ram, classes, exponent)
    source = writing.source(name, made, output, exported.memory, classes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BnewError(f"could not make the folder {folder}: {error.strerror}") from None
    write_atomically(exported.source, lambda beside: beside.write_text(source, "utf-8"))
    write_atomically(exported.header, lambda beside: beside.write_text(header, "utf-8"))
    return exported


def identifier(name: str) -> str:
    """``name`` as a C identifier that names no header of C's own.

    Raises:
        BnewError: nothing of it can be in one.
    """
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    if not plain:
        raise BnewError(f"'{name}' has no letter that a name in C can have: give one by --name")
    taken = plain[0].isdigit() or re.fullmatch(HEADERS, plain, re.IGNORECASE)
    return f"net_{plain}" if taken else plain


def _check(exported: Exported, flash: int | None, ram: int | None) -> None:
    """Refuse what does not fit, with the layers that take most."""
    needs = (
        ("flash", exported.flash, flash, [stage.constants for stage in exported.stages]),
        ("RAM", exported.ram, ram, exported.memory.live),
    )
    for what, needed, there, each in needs:
        if there is not None and needed > there:
            largest = sorted(zip(each, exported.stages, strict=True), key=lambda row: -row[0])[:3]
            layers = ", ".join(f"{stage.name} ({size:,})" for size, stage in largest)
            raise BnewError(
                f"the network needs {needed:,} bytes of {what}, and {there:,} are there; the largest layers "
                f"are {layers}: make them smaller, or choose a larger chip"
            )
