"""Runs packed binary networks as real bits: ``load(path)`` → :class:`Model`, ``model(images)`` → logits.

NumPy is all that it needs. A file comes from ``bnew pack``; docs/format.md says what is in it.

The instruction set is found out at run time: AVX-512 VPOPCNTDQ, AVX2 or NEON, else plain C++. The environment
variable ``BNEW_ENGINE_ISA`` forces a lower one. Whatever the instruction set and the number of threads, the
results are the same to the last bit.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnew_engine import _engine
from bnew_engine._engine import EngineError

__all__ = ["EngineError", "Model", "StageTime", "isa", "isas", "load", "register_peak"]
__version__ = "0.1.0"


@dataclass(frozen=True)
class StageTime:
    """A stage of a network and how long it takes."""

    name: str
    """The layer's place in the model."""
    op: str
    seconds: float


def isas() -> tuple[str, ...]:
    """The instruction sets that this machine can run, the best first."""
    return tuple(_engine.instruction_sets())


def isa() -> str:
    """The instruction set that is used: the best, or the one that ``BNEW_ENGINE_ISA`` names.

    Raises:
        EngineError: ``BNEW_ENGINE_ISA`` names one that this machine cannot run.
    """
    return _engine.instruction_set()


def register_peak(isa: str, seconds: float = 0.2) -> float:
    """Binary multiply-accumulates a second that ``isa`` does in registers, the limit of its kernels.

    Raises:
        EngineError: this machine cannot run ``isa``.
    """
    return _engine.register_peak(isa, seconds)


def load(path: str | bytes | os.PathLike[str], threads: int = 1, isa: str | None = None) -> Model:
    """Read a packed network.

    Args:
        path: a ``.bnew`` file.
        threads: how many threads compute side by side.
        isa: one of :func:`isas`, to force it.

    Raises:
        EngineError: the file is missing, damaged or of another version, or a value is impossible.
    """
    if type(threads) is not int or not 1 <= threads <= 1024:
        raise EngineError(f"threads is {threads!r}, but must be a whole number from 1 to 1024")
    name = os.fsencode(path)
    if b"\0" in name:
        raise EngineError(f"{path!r} is no path: it has a zero in it")
    return Model(_engine.Model(name, threads, isa or ""))


class Model:
    """A packed network, see :func:`load`. Calls may come from several Python threads at once."""

    def __init__(self, engine: _engine.Model) -> None:
        self._engine = engine

    def __call__(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Logits of a batch.

        Args:
            images: float32 (N, C, H, W), normalised as in training, or (N, C) if the input is a vector; or
                uint8 images (N, H, W, C), which are normalised inside.

        Returns:
            float32 (N, classes); (N, C, H, W) of a network whose output is an image.

        Raises:
            EngineError: another shape or type, or numbers that are not finite.
        """
        images = np.asarray(images)
        if images.dtype == np.uint8:
            c, h, w = self.input_shape
            self._check(images, (h, w, c), "uint8 images (N, H, W, C)")
            result = self._engine.run_bytes(np.ascontiguousarray(images))
        else:
            result = self._engine.run_floats(self._floats(images, self.input_shape))
        return result[:, :, 0, 0] if result.shape[2:] == (1, 1) else result

    def values(self, images: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Every named value of the file for a batch, (N, C, H, W); bits as −1 and +1. Slow: for checks.

        Raises:
            EngineError: as :meth:`__call__`, for float32.
        """
        images = self._floats(images, self.input_shape)
        found = [dict(self._engine.values(image[None])) for image in images]
        return (
            {name: np.concatenate([values[name] for values in found]) for name in found[0]} if found else {}
        )

    def convolve(self, name: str, signs: NDArray[Any]) -> NDArray[np.int32]:
        """The integers that a binary convolution gives, before anything is done with them. Slow: for checks.

        Args:
            name: the node's name; its op is binary_conv.
            signs: (N, C_in, H, W) of −1 and +1.

        Returns:
            (N, C_out, H_out, W_out).

        Raises:
            EngineError: no such node, another shape, or other numbers.
        """
        signs = np.asarray(signs, np.float32)
        if signs.ndim != 4:
            raise EngineError(f"signs has shape {signs.shape}, but must be (N, C, H, W)")
        signs = np.require(signs, np.float32, ["C", "ALIGNED"])
        parts = [self._engine.convolve(name, image[None]) for image in signs]
        if not parts:
            raise EngineError("signs is empty")
        return np.concatenate(parts).astype(np.int32)

    def profile(self, image: NDArray[Any], repeats: int = 100) -> list[StageTime]:
        """Median time of each stage for one image (1, C, H, W) of float32.

        Raises:
            EngineError: another shape or type, or no repeats.
        """
        if repeats < 1:
            raise EngineError(f"repeats is {repeats}, but must be at least 1")
        image = self._floats(image, self.input_shape)
        if len(image) != 1:
            raise EngineError(f"image has shape {image.shape}: give one image")
        return [StageTime(*row) for row in self._engine.profile(image, repeats)]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        c, h, w = self._engine.input
        return c, h, w

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty if the file has none."""
        return tuple(self._engine.classes)

    @property
    def graph(self) -> dict[str, Any]:
        """The graph as docs/format.md describes it."""
        graph: dict[str, Any] = json.loads(self._engine.graph)
        return graph

    @property
    def threads(self) -> int:
        """How many threads compute side by side."""
        return self._engine.threads

    @property
    def isa(self) -> str:
        """The instruction set of this model's kernels."""
        return self._engine.isa

    def _floats(self, images: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
        images = np.asarray(images)
        if images.dtype.kind != "f":
            raise EngineError(
                f"images are {images.dtype}, but must be float32 (N, C, H, W) or uint8 (N, H, W, C)"
            )
        if (*images.shape[1:], 1, 1) == shape:
            images = images[:, :, None, None]
        self._check(images, shape, "float32 (N, C, H, W)")
        return np.require(images, np.float32, ["C", "ALIGNED"])

    @staticmethod
    def _check(images: NDArray[Any], shape: tuple[int, ...], kind: str) -> None:
        if images.ndim != 4 or images.shape[1:] != shape:
            wanted = ", ".join(map(str, ("N", *shape)))
            raise EngineError(f"images have shape {images.shape}, but {kind} must have ({wanted})")
