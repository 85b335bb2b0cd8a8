"""How large numbers become within the steps of each stage, measured on images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bnew.deploy.c99.interpreting import Bools, Interpreter, Numbers
from bnew.deploy.c99.stages import Epilogue, Stage
from bnew.errors import BnewError


@dataclass
class Largest:
    """The largest magnitudes within the steps of a stage."""

    first: float = 0.0
    """Before they are multiplied by another value."""
    middle: float = 0.0
    """After that, or from the start, to the activation."""
    last: float = 0.0
    """After the scale and shift that follow it."""


class Reals:
    """Arithmetic of real numbers, which notes how large they become."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages
        self.largest = [Largest() for _ in stages]

    def mean(self, sums: Numbers, places: int) -> Numbers:
        """The quotient."""
        return sums / places

    def finish(self, s: int, sums: Numbers, other: Numbers | None) -> Numbers:
        """See ``finish`` in kernels.c."""
        end = self._end(s)
        v = sums * floats(end.scale, 1) + floats(end.shift, 0)
        v = self._seen(s, "first" if end.multiply else "middle", v)
        if other is not None:
            v = self._seen(s, "middle", v * other if end.multiply else v + other)
        v = self._seen(s, "middle", _activated(end, v))
        if end.shift_out is None:
            return v
        return self._seen(s, "last", v * floats(end.scale_out, 1) + floats(end.shift_out, 0))

    def is_set(self, s: int, numbers: Numbers) -> Bools:
        """See ``is_set`` in kernels.c."""
        end = self._end(s)
        assert end.sign_shift is not None
        if end.sign_scale is None:
            above: Bools = numbers >= floats(end.sign_shift, 0)
        else:
            above = numbers * floats(end.sign_scale, 1) + floats(end.sign_shift, 0) >= 0
        return above

    def _end(self, s: int) -> Epilogue:
        end = self.stages[s].end
        assert isinstance(end, Epilogue)
        return end

    def _seen(self, s: int, where: str, v: Numbers) -> Numbers:
        most = max(getattr(self.largest[s], where), float(np.abs(v).max(initial=0)))
        setattr(self.largest[s], where, most)
        return v


def floats(numbers: Any, missing: float) -> Any:
    """In double precision; ``missing`` where there are none."""
    return missing if numbers is None else numbers.astype(np.float64)


def _activated(end: Epilogue, v: Numbers) -> Numbers:
    hard = np.clip(v / 6 + 0.5, 0, 1)
    activations: Mapping[str, Callable[[], Numbers]] = {
        "none": lambda: v,
        "prelu": lambda: np.where(v >= 0, v, v * floats(end.slope, 1)),
        "clamp": lambda: np.clip(v, *end.bounds),
        "sign": lambda: np.where(v >= 0, 1.0, -1.0),
        "hard_sigmoid": lambda: hard,
        "hard_swish": lambda: v * hard,
        "abs": lambda: np.abs(v),
        "round": lambda: np.rint(v),
    }
    return activations[end.activation]()


def largest_numbers(stages: Sequence[Stage], images: npt.NDArray[np.uint8], batch: int = 32) -> list[Largest]:
    """How large numbers become within the steps of each stage, on images (N, H, W, C)."""
    reals = Reals(stages)
    interpreter = Interpreter(stages, reals)
    for start in range(0, len(images), batch):
        interpreter(images[start : start + batch])
    return reals.largest


def checked_images(images: npt.NDArray[np.uint8], stages: Sequence[Stage]) -> npt.NDArray[np.uint8]:
    """The images, if they are what the network takes.

    Raises:
        BnewError: there are none, or they are no bytes (N, H, W, C) of the network's size.
    """
    channels, height, width = stages[0].shape
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[1:] != (height, width, channels)
        or not len(images)
    ):
        raise BnewError(
            f"the images for fixed point are {images.dtype} of shape {images.shape}, but must be uint8 "
            f"(N, {height}, {width}, {channels}), and one at least"
        )
    return images
