"""A run's checkpoints: files with a checksum. Nothing is restored before the whole file is checked.

A checkpoint is the output of ``torch.save``, followed by a line with the SHA-256 of all bytes before it::

    bnew checkpoint 1 sha256 <64 hexadecimal digits>

``torch.load`` reads it like any other file of PyTorch. Older versions of bnew wrote no such line; their files
are checked by the CRC-32 of each part.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch

from bnew.errors import BnewError, first_line, is_out_of_memory
from bnew.files import write_atomically
from bnew.results.run import Run

MARK = b"\nbnew checkpoint 1 sha256 "
_DIGITS = 64
_CHUNK = 1 << 20
# How the end record of a zip file without a comment begins, and its length.
_ZIP_END, _ZIP_END_SIZE = b"PK\x05\x06", 22


class Unusable(BnewError):
    """A run cannot resume from this checkpoint; the message says why, without the file's name."""


class _Hashed:
    """A file to write to, which hashes what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.flush = file.flush

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)


def save(run: Run, state: Mapping[str, Any]) -> None:
    """Write ``state``, of tensors and plain values, as the last checkpoint of ``run``; keep the one before.

    Raises:
        BnewError: writing failed; the old checkpoints are kept.
    """
    write_atomically(run.last, lambda path: write_checkpoint(state, path), keep=run.previous)


def load(run: Run, path: Path, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The content of ``path``, a checkpoint of ``run``; ``check`` raises Unusable if it does not fit.

    Raises:
        BnewError: the run cannot resume from it; the message says from where it can resume instead.
    """
    try:
        return _load(run, path, check)
    except Unusable as error:
        raise BnewError(f"{path} {error}: {_instead(run, path, check)}") from error


def _instead(run: Run, path: Path, check: Callable[[dict[str, Any]], None]) -> str:
    """What the user should do if ``path`` is unusable."""
    if path != run.last or not run.previous.exists():
        return "delete it to start the run from its beginning"
    try:
        step = _load(run, run.previous, check)["step"]
    except BnewError:
        return f"delete it and {run.previous.name} to start the run from its beginning"
    return f"delete it to continue from step {step}, which is saved in {run.previous.name}"


def _load(run: Run, path: Path, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """:func:`load`, but raises Unusable, which does not say from where to resume instead."""
    try:
        state = read_checkpoint(path)
    except OSError as error:
        raise BnewError(
            f"{path} cannot be read ({error}): make it readable, then start the same command again"
        ) from error
    _complete(state)
    check(state)
    if state["best_sha256"] is not None and run.best_of(state["best_sha256"]) is None:
        raise Unusable(
            f"belongs to other weights than {run.best.name}, which was damaged, replaced or deleted"
        )
    return state


def _complete(state: dict[str, Any]) -> None:
    """Add the entries that earlier versions of bnew did not record."""
    state.setdefault("best_sha256", None)
    state.setdefault("should_stop", False)
    state.setdefault("stopped", False)
    state.setdefault("callbacks", {})


def write_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write ``state``, of tensors and plain values, to ``path``, with its checksum.

    Raises:
        OSError, RuntimeError: writing failed; torch reports a full disk as a RuntimeError.
    """
    with open(path, "wb") as file:
        hashed = _Hashed(file)
        torch.save(state, cast(IO[bytes], hashed))
        hashed.write(MARK)
        file.write(hashed.sha256.hexdigest().encode())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of ``path``, with all tensors on the CPU; runs no pickled code.

    Raises:
        Unusable: the content has changed since it was written, or ``path`` is not a file or not a checkpoint.
        OSError, MemoryError, RuntimeError: it cannot be read, or there is not enough memory for it.
    """
    check_is_file(path)
    with open(path, "rb") as file:
        _check_whole(file)
        file.seek(0)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a file that is not a checkpoint
            if is_out_of_memory(error) or isinstance(error, OSError):
                raise
            raise Unusable(f"is not a checkpoint of bnew ({first_line(error)})") from error
    if not isinstance(state, dict):
        raise Unusable("is not a checkpoint of bnew (it holds no dictionary)")
    return state


def check_is_file(path: Path) -> None:
    """Raise Unusable for a pipe, a device or a folder: opening or reading it might block forever."""
    if path.exists() and not path.is_file():
        raise Unusable("is not a file, but a folder, a pipe or a device")


def _check_whole(file: IO[bytes]) -> None:
    """Raise Unusable unless the checksum of ``file`` is right."""
    size = file.seek(0, os.SEEK_END)
    end = len(MARK) + _DIGITS
    file.seek(max(size - end, 0))
    tail = file.read()
    if len(tail) == end and tail.startswith(MARK):
        file.seek(0)
        hashed = hashlib.sha256()
        left = size - _DIGITS
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            hashed.update(chunk)
            left -= len(chunk)
        if hashed.hexdigest().encode() != tail[-_DIGITS:]:
            raise Unusable("is damaged: its content does not have the checksum that it carries")
        return
    if not tail[-_ZIP_END_SIZE:].startswith(_ZIP_END):
        raise Unusable("is cut short or damaged, or not a checkpoint")
    try:
        part = zipfile.ZipFile(file).testzip()
    except Exception as error:  # zipfile raises many kinds for a damaged file
        raise Unusable(f"is cut short or damaged ({first_line(error)})") from error
    if part is not None:
        raise Unusable(f"is damaged: '{part}' in it does not have the checksum that it carries")
