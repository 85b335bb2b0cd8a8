"""A packed file as whole numbers: what its C code computes with --fixed, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bnew.deploy.c99.fixed import Fixed, in_fixed_point
from bnew.deploy.c99.interpreting import Interpreter
from bnew.deploy.c99.ranges import checked_images
from bnew.deploy.c99.reading import read_stages
from bnew.text import percent

Array: TypeAlias = npt.NDArray[Any]
Bytes: TypeAlias = npt.NDArray[np.uint8]

SAMPLE = 256
"""How many images the ranges of numbers are measured on."""


def as_bytes(images: Array, mean: Sequence[float], std: Sequence[float]) -> Bytes:
    """Normalised images (N, C, H, W) as the bytes (N, H, W, C) that they were made of."""
    means, stds = (np.array(numbers)[:, None, None] for numbers in (mean, std))
    pixels = np.rint((images * stds + means) * 255)
    return np.ascontiguousarray(np.clip(pixels, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


class FixedNetwork:
    """Computes a packed file as its C code does with --fixed, to the last bit.

    Args:
        file: the packed file.
        sample: images (N, H, W, C) of bytes, on which the ranges of numbers are measured.

    Raises:
        BnewError: as of :func:`bnew.export_c`.
    """

    def __init__(self, file: str | Path, sample: Bytes) -> None:
        read = read_stages(file)
        self._output, image = read.output, read.graph["input"]
        self._mean, self._std = image["mean"], image["std"]
        stages, exponents = in_fixed_point(tuple(read), checked_images(sample, tuple(read)))
        self._unit = 2.0 ** -exponents[self._output]
        self._interpreter = Interpreter(stages, Fixed(stages))

    def __call__(self, images: Bytes, batch: int = 64) -> npt.NDArray[np.float32]:
        """The numbers (N, C, H, W) that the result stands for, (N, C) of a 1×1 one, of bytes (N, H, W, C).

        Raises:
            BnewError: the images have another size than the file's.
        """
        images = checked_images(images, self._interpreter.stages)
        starts = range(0, len(images), batch)
        parts = [self._interpreter(images[start : start + batch])[self._output] for start in starts]
        numbers = (np.concatenate(parts) * self._unit).astype(np.float32).transpose(0, 3, 1, 2)
        return numbers.reshape(numbers.shape[:2]) if numbers.shape[2:] == (1, 1) else numbers

    def of_normalised(self, images: Array) -> npt.NDArray[np.float32]:
        """The same of normalised images (N, C, H, W)."""
        return self(as_bytes(images, self._mean, self._std))


@dataclass
class FixedCheck:
    """What 16-bit fixed point changes, over all images: prints as one line."""

    network: FixedNetwork
    images: int = 0
    same: int = 0
    """Images whose greatest number is in the same channel as in the packed file."""
    hits: int | None = None
    """Correct classes, of a classifier."""
    largest: float = 0.0
    """The largest difference."""

    def add(self, images: Array, packed: Array, labels: Any) -> None:
        """Count a batch of normalised images and the packed file's results; ``labels`` if it classifies."""
        fixed = self.network.of_normalised(images)
        classes = fixed.argmax(1)
        self.images += len(packed)
        self.same += int((classes == packed.argmax(1)).reshape(len(packed), -1).all(1).sum())
        self.largest = max(self.largest, float(np.abs(fixed - packed).max()))
        if packed.ndim == 2:
            self.hits = (self.hits or 0) + int((classes == np.asarray(labels)).sum())

    def __str__(self) -> str:
        right = "" if self.hits is None else f"accuracy {percent(self.hits / self.images)}, "
        same = percent(self.same / self.images)
        return (
            f"16-bit fixed point: {right}the packed file's class in {same} of images, its results differ by "
            f"{self.largest:.2g} at most"
        )
