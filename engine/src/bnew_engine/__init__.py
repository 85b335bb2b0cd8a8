"""Runs packed binary networks as real bits: ``load(file)`` → :class:`Model`, ``model(images)`` → logits.

NumPy is all that it needs. A file comes from ``bnew pack``; docs/format.md says what is in it.

The instruction set is found out at run time: AVX-512 VPOPCNTDQ, AVX2 or NEON, else plain C++. The environment
variable ``BNEW_ENGINE_ISA`` forces a lower one. Whatever the instruction set and the number of threads, the
results are the same to the last bit.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

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


def load(
    file: str | os.PathLike[str] | bytes | bytearray | memoryview,
    threads: SupportsIndex = 1,
    isa: str | None = None,
    max_macs: SupportsIndex | None = None,
    max_bytes: SupportsIndex | None = None,
) -> Model:
    """Read a packed network.

    Args:
        file: the name of a ``.bnew`` file, or its content as bytes. A name is not bytes: ``os.fsdecode`` it.
        threads: how many threads compute side by side.
        isa: one of :func:`isas`, to force it.
        max_macs: the most work that an image may take, in real multiply-accumulates. None: what the file's
            size and its input's shape justify (docs/format.md, "Limits").
        max_bytes: the most memory that the weights may take, and a run. None: likewise.

    Raises:
        EngineError: the file is missing, damaged or of another version, asks for more than the limits, or a
            value is impossible.
    """
    options = (
        _whole("threads", threads, 1024),
        _text("isa", "" if isa is None else isa),
        0 if max_macs is None else _whole("max_macs", max_macs, _LARGEST_LIMIT),
        0 if max_bytes is None else _whole("max_bytes", max_bytes, _LARGEST_LIMIT),
    )
    if isinstance(file, bytes | bytearray | memoryview):
        content = bytes(file)
        if int.from_bytes(content[:8], "little") > len(content) - 8:
            raise EngineError(
                f"the {len(content)} bytes given are not the content of a packed file, or it is cut short: "
                "give all of it, or the file's name as a str or an os.PathLike"
            )
        return Model(_engine.Model.from_content(content, *options), lambda: content, options)
    path = _path(file)
    engine = _engine.Model(path, *options)
    found = os.path.abspath(path)  # wherever the process is when it is read again
    return Model(engine, lambda: _unchanged(found, engine.checksum), options)


class Model:
    """A packed network, see :func:`load`. Calls may come from several Python threads at once.

    It can be pickled and copied, as for worker processes. The pickle holds the file's content: the copy is
    the same network wherever it is unpickled. A model that was loaded by its file's name reads the file again
    for it, and :class:`EngineError` is raised if the file is missing or another by now. Load the content as
    bytes where the file may change; the model then keeps it in memory, beside its own weights.
    """

    def __new__(cls, engine: object = None, *rest: object) -> Model:  # noqa: D102
        if not isinstance(engine, _engine.Model):
            raise EngineError("a Model is not made directly: call bnew_engine.load")
        return super().__new__(cls)

    def __init__(
        self, engine: _engine.Model, content: Callable[[], bytes], options: tuple[int, str, int, int]
    ) -> None:
        self._engine = engine
        self._content = content
        self._options = options

    def __reduce__(self) -> tuple[Any, ...]:
        threads, isa, max_macs, max_bytes = self._options
        return load, (self._content(), threads, isa or None, max_macs or None, max_bytes or None)

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
        images = _array("images", images)
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
            EngineError: as :meth:`__call__`, for float32; the values take more than the ``max_bytes`` of
                :func:`load`.
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
        name = _text("name", name)
        signs = _array("signs", signs, np.float32)
        if signs.ndim != 4:
            raise EngineError(f"signs has shape {signs.shape}, but must be (N, C, H, W)")
        signs = np.require(signs, np.float32, ["C", "ALIGNED"])
        parts = [self._engine.convolve(name, image[None]) for image in signs]
        if not parts:
            raise EngineError("signs is empty")
        return np.concatenate(parts).astype(np.int32)

    def profile(self, image: NDArray[Any], repeats: SupportsIndex | None = None) -> list[StageTime]:
        """Median time of each stage for one image (1, C, H, W) of float32.

        Args:
            image: the image.
            repeats: how often it is computed. None: 100 times, or fewer, at least once, if these would take
                more than 2⁴⁰ multiply-accumulates: about a minute.

        Raises:
            EngineError: another shape or type, no repeats, or more than one that together take more than
                2⁴⁸ multiply-accumulates.
        """
        count = self._repeats(repeats)
        image = self._floats(image, self.input_shape)
        if len(image) != 1:
            raise EngineError(f"image has shape {image.shape}: give one image")
        return [StageTime(*row) for row in self._engine.profile(image, count)]

    def _repeats(self, repeats: SupportsIndex | None) -> int:
        macs = max(1, int(self._engine.macs))
        if repeats is None:
            return max(1, min(_PROFILE_REPEATS, _PROFILE_MACS // macs))
        count = _whole("repeats", repeats, 2**31 - 1)
        most = max(1, _MOST_PROFILE_MACS // macs)
        if count > most:
            raise EngineError(
                f"repeats is {count}, but an image takes {macs // 10**6} million multiply-accumulates: ask "
                f"for at most {most}"
            )
        return count

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
        images = _array("images", images)
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


_LARGEST_LIMIT = 2**60
_PROFILE_REPEATS, _PROFILE_MACS, _MOST_PROFILE_MACS = 100, 2**40, 2**48


def _whole(name: str, value: object, most: int) -> int:
    """The whole number from 1 to ``most``, of whatever integer type."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = 0
    if not 1 <= number <= most:
        raise EngineError(f"{name} is {value!r}, but must be a whole number from 1 to {most}")
    return number


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise EngineError(f"{name} is {value!r}, but must be a str")
    return value


def _array(name: str, value: object, dtype: type[np.float32] | None = None) -> NDArray[Any]:
    try:
        return np.asarray(value, dtype)
    except (TypeError, ValueError) as error:
        raise EngineError(f"{name} cannot be made an array of numbers: {error}") from None


def _path(file: object) -> bytes:
    try:
        path = os.fsencode(file)  # type: ignore[arg-type]
    except TypeError:
        raise EngineError(
            f"file is {file!r}, but must be a str or an os.PathLike, or the content of a packed file as bytes"
        ) from None
    except UnicodeEncodeError:
        raise EngineError(f"{file!r} is no path: it has half of a character in it") from None
    if b"\0" in path:
        raise EngineError(f"{file!r} is no path: it has a zero in it")
    return path


def _unchanged(path: bytes, checksum: int) -> bytes:
    """The content of the file, which must be the one that was loaded."""
    again = "load it again, or its content as bytes, which a Model keeps"
    try:
        content = Path(os.fsdecode(path)).read_bytes()
    except OSError as error:
        raise EngineError(
            f"{path!r} cannot be read again to copy its model ({error.strerror}): {again}"
        ) from None
    try:
        same = _engine.checksum(content) == checksum
    except EngineError:
        same = False
    if not same:
        raise EngineError(
            f"{path!r} has changed since it was loaded, and its model cannot be copied: {again}"
        )
    return content
