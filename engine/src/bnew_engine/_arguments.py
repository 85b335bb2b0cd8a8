"""Checks of arguments before they go to C++, and of a file that is read again."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnew_engine import _engine
from bnew_engine._engine import EngineError


def whole(name: str, value: object, most: int) -> int:
    """``value`` as an int, from any integer type.

    Raises:
        EngineError: it is not a whole number from 1 to ``most``.
    """
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = 0
    if not 1 <= number <= most:
        raise EngineError(f"{name} is {value!r}, but must be a whole number from 1 to {most}")
    return number


def two_sizes(name: str, value: object) -> tuple[int, int]:
    """``value``, a height and a width.

    Raises:
        EngineError: it is not two whole numbers from 1 to 2²⁰.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise EngineError(f"{name} is {value!r}, but must be a height and a width")
    return whole(name, value[0], 2**20), whole(name, value[1], 2**20)


def text(name: str, value: object) -> str:
    """``value``, which must be a string.

    Raises:
        EngineError: it is not.
    """
    if not isinstance(value, str):
        raise EngineError(f"{name} is {value!r}, but must be a str")
    return value


def array(name: str, value: object, dtype: type[np.float32] | None = None) -> NDArray[Any]:
    """``value`` as an array.

    Raises:
        EngineError: NumPy cannot make it one.
    """
    try:
        return np.asarray(value, dtype)
    except (TypeError, ValueError) as error:
        raise EngineError(f"{name} cannot be made an array of numbers: {error}") from None


def path_bytes(file: object) -> bytes:
    """The path as the file system encodes it.

    Raises:
        EngineError: it is no path.
    """
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


def unchanged(path: bytes, checksum: int) -> bytes:
    """The content of the file, which must still have ``checksum``.

    Raises:
        EngineError: the file cannot be read, or has changed.
    """
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
