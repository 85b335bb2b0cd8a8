"""Brings the images of a folder to one size, once, and counts what is odd about them.

Each readable image becomes a PNG ``<part>/<class>/<file>.png`` of exactly the pixels that the network gets of
its file, so no later step decodes large photographs again. They are read as data set ``folder``, or
``grey_folder`` if no image has a colour.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.table import Table
from rich.text import Text

from bnew.data.copies import SIDE, Pictures
from bnew.data.images import Rendition, read_with_rendition
from bnew.display import new_table
from bnew.errors import BnewError, first_line
from bnew.files import write_atomically
from bnew.fit.folder import FEWEST, Folder
from bnew.text import elided, printable

MOST_ROWS = 20  # classes in the table
SAMPLE = 8  # images by which the time for all is estimated


@dataclass(frozen=True)
class ClassCount:
    """What is known of the images of a class."""

    name: str
    images: int
    """How many can be read."""
    copies: int
    """How many of them show what another image of the class shows."""
    unreadable: int


@dataclass(frozen=True)
class Census:
    """What reading all images has shown; plain data."""

    classes: tuple[ClassCount, ...]
    parts: Mapping[str, int]
    """Part → how many of its images can be read."""
    grey: bool
    """Whether no image has a colour."""
    sides: tuple[int, int]
    """The shorter side of the smallest and of the largest image, in pixels."""
    shared: int
    """How many images of val and test are also in train."""
    broken: tuple[str, ...]
    """What is wrong with the first files that cannot be read."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Census:
        """The inverse of :meth:`to_dict`."""
        rows = tuple(ClassCount(**row) for row in data["classes"])
        return cls(
            **{**data, "classes": rows, "sides": tuple(data["sides"]), "broken": tuple(data["broken"])}
        )

    def table(self) -> Table:
        """What is known of each class; of many, of those with the most and the fewest images."""
        rows = sorted(self.classes, key=lambda row: -row.images)
        shown = rows if len(rows) <= MOST_ROWS else [*rows[: MOST_ROWS // 2], *rows[-MOST_ROWS // 2 :]]
        small, large = self.sides
        sides = f"{small}" if small == large else f"{small} to {large}"
        title = f"{len(rows)} classes, shorter side {sides} pixels"
        table = new_table("class", numbers=("images", "copies", "unreadable"), title=title, widest=30)
        for row in shown:
            counts = (row.images, row.copies, row.unreadable)
            table.add_row(Text(printable(row.name)), *(f"{count:,}" for count in counts))
        totals = [sum(each) for each in zip(*((r.images, r.copies, r.unreadable) for r in rows), strict=True)]
        table.add_section()
        table.add_row("all", *(f"{total:,}" for total in totals))
        return table

    def remarks(self) -> list[str]:
        """What a user should know of these images, one sentence each."""
        said = []
        most, least = (f(self.classes, key=lambda row: row.images) for f in (max, min))
        if most.images > 3 * least.images:
            said.append(
                f"'{most.name}' has {most.images / least.images:.1f} times as many images as '{least.name}': "
                "look at the accuracy of each class, not only at that of all"
            )
        if unreadable := sum(row.unreadable for row in self.classes):
            said.append(
                f"{unreadable:,} files cannot be read and are left out; of the first: {self.broken[0]}"
            )
        if copies := sum(row.copies for row in self.classes):
            said.append(f"{copies:,} images show the same as another one of their class")
        if self.shared:
            said.append(
                f"{self.shared:,} images of val or test are copies of training images: the accuracy on them "
                "is too high"
            )
        return said


def bring(
    found: Folder, size: int, into: Path, workers: int, step: Callable[[int], object] = lambda done: None
) -> Census:
    """Write the images of ``found`` below ``into``, covering ``size``×``size`` pixels, and count them.

    Args:
        found: the images.
        size: the side in pixels.
        into: a folder; files that are there are written again.
        workers: the number of threads.
        step: called with the number of images that are done.

    Raises:
        BnewError: too few images of a class can be read, or one cannot be written.
    """
    files = found.paths
    grey, sides = np.zeros(len(files), bool), np.zeros(len(files), np.int64)
    digests, small = np.empty(len(files), "V16"), np.zeros((len(files), 3, SIDE, SIDE), np.uint8)
    broken: dict[int, str] = {}

    def take(number: int) -> None:
        part, name, path = files[number]
        try:
            pixels, rendition, side = _read(found.root / path, size)
        except BnewError as error:
            broken[number] = first_line(error)
            return
        grey[number], sides[number] = _is_grey(rendition.pixels) and _is_grey(pixels), side
        digests[number], small[number] = rendition.digest, rendition.pixels.transpose(2, 0, 1)
        target = into / part / name / f"{found.name_of(path)}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, lambda file: Image.fromarray(pixels).save(file, "PNG", compress_level=1))

    with ThreadPoolExecutor(workers) as pool:
        for number, _ in enumerate(pool.map(take, range(len(files)))):
            step(number + 1)
    _check_enough(found, broken)
    labels = np.array([found.classes.index(name) for _, name, _ in files])
    readable = np.array([number not in broken for number in range(len(files))])
    parts = np.array([part for part, _, _ in files])
    pictures = Pictures(torch.from_numpy(small), digests, labels)
    numbers = np.flatnonzero(readable)
    train, others = (np.flatnonzero(readable & mask) for mask in (parts == "train", parts != "train"))
    copies = pictures.repeated(numbers)
    rows = tuple(
        ClassCount(
            name,
            int(readable[labels == label].sum()),
            int(copies[labels[numbers] == label].sum()),
            int((~readable[labels == label]).sum()),
        )
        for label, name in enumerate(found.classes)
    )
    return Census(
        rows,
        {part: int((readable & (parts == part)).sum()) for part in found.files},
        bool(grey[readable].all()),
        (int(sides[readable].min()), int(sides[readable].max())),
        int(pictures.near(others, train).sum()) if len(others) else 0,
        tuple(broken[number] for number in sorted(broken)[:5]),
    )


def reading_seconds(found: Folder, size: int, workers: int, now: Callable[[], float]) -> float:
    """How long :func:`bring` will take, about, by a few of the images."""
    paths = found.paths
    sample = paths[:: -(-len(paths) // SAMPLE)]
    began = now()
    for _, _, path in sample:
        with suppress(BnewError):
            _read(found.root / path, size)
    return (now() - began) / len(sample) * len(paths) / workers


def _read(path: Path, size: int) -> tuple[npt.NDArray[np.uint8], Rendition, int]:
    """The image's pixels, its rendition and its shorter side."""
    pixels, rendition = read_with_rendition(path, "RGB", (size, size), SIDE)
    with path.open("rb") as file, Image.open(file) as image:
        return pixels, rendition, min(image.size)


def _is_grey(pixels: npt.NDArray[np.uint8]) -> bool:
    return bool((pixels == pixels[:, :, :1]).all())


def _check_enough(found: Folder, broken: Mapping[int, str]) -> None:
    """Check that enough images of each class can be read.

    Raises:
        BnewError: they cannot.
    """
    left = Counter((part, name) for number, (part, name, _) in enumerate(found.paths) if number not in broken)
    first = broken[min(broken)] if broken else ""
    for part, classes in found.files.items():
        fewest = FEWEST - len(found.files) + 1 if part == "train" else 1
        short = [f"'{name}'" for name in classes if left[part, name] < fewest]
        if short:
            raise BnewError(
                f"too few images of {elided(short)} can be read for {part}, {fewest} are needed ({first}): "
                "repair or replace them, or remove the folder"
            )
