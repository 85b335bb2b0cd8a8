"""A run's checkpoints: files with a checksum, of which nothing is restored before all of it is checked.

Such a file is what ``torch.save`` writes, and then a line with the SHA-256 of all bytes before its digits::

    bnew checkpoint 1 sha256 <64 hexadecimal digits>

``torch.load`` reads it as any other file of PyTorch's. Files without that line, of bnew before it had it, are
checked by the CRC-32 of each of their parts.
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
# The last bytes of a zip file without a comment: how they begin, and how many they are.
_ZIP_END, _ZIP_END_SIZE = b"PK\x05\x06", 22


class Unusable(BnewError):
    """A checkpoint that cannot be resumed from; the message says what its file is, without its name."""


class _Hashed:
    """A file to write to, and the digest of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.flush = file.flush

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)


def save(run: Run, state: Mapping[str, Any]) -> None:
    """Write ``state``, of tensors and plain values, as the last checkpoint of ``run``; keep the one before.

    Raises:
        BnewError: it could not be written; what was saved before is kept.
    """
    write_atomically(run.last, lambda path: write_checkpoint(state, path), keep=run.previous)


def load(run: Run, path: Path, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """What ``path``, a checkpoint of ``run``, holds; ``check`` raises Unusable for what does not fit.

    Raises:
        BnewError: it cannot be resumed from; says from where the run can continue instead.
    """
    try:
        return _load(run, path, check)
    except Unusable as error:
        raise BnewError(f"{path} {error}: {_instead(run, path, check)}") from error


def _instead(run: Run, path: Path, check: Callable[[dict[str, Any]], None]) -> str:
    """What to do where ``path`` is unusable."""
    if path != run.last or not run.previous.exists():
        return "delete it to start the run from its beginning"
    try:
        step = _load(run, run.previous, check)["step"]
    except BnewError:
        return f"delete it and {run.previous.name} to start the run from its beginning"
    return f"delete it to continue from step {step}, which is saved in {run.previous.name}"


def _load(run: Run, path: Path, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """:func:`load`, which raises Unusable without saying what to do instead."""
    try:
        state = read_checkpoint(path)
    except OSError as error:
        raise BnewError(f"{path} cannot be read ({error}): make it readable, then start again") from error
    _complete(state)
    check(state)
    if state["best_sha256"] is not None and run.best_of(state["best_sha256"]) is None:
        raise Unusable(
            f"belongs to other weights than {run.best.name}, which was damaged, replaced or deleted"
        )
    return state


def _complete(state: dict[str, Any]) -> None:
    """Add what earlier versions of bnew did not record."""
    state.setdefault("best_sha256", None)
    state.setdefault("stopped", False)
    if isinstance(method := state.get("method"), dict):
        method.setdefault("started", True)  # they saved after attach alone


def write_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write ``state``, of tensors and plain values, to ``path``, hashed on the way.

    Raises:
        OSError, RuntimeError: it could not be written; torch reports a full disk as the second.
    """
    with open(path, "wb") as file:
        hashed = _Hashed(file)
        torch.save(state, cast(IO[bytes], hashed))
        hashed.write(MARK)
        file.write(hashed.sha256.hexdigest().encode())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What is saved in ``path``, with all tensors on the CPU; no pickled code is run.

    Raises:
        Unusable: a bit of it is not as it was written, it is no file or no checkpoint.
        OSError, MemoryError, RuntimeError: it could not be read, or there is not enough memory for it.
    """
    check_is_file(path)
    with open(path, "rb") as file:
        _check_whole(file)
        file.seek(0)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for what is no checkpoint
            if is_out_of_memory(error) or isinstance(error, OSError):
                raise
            raise Unusable(f"is not a checkpoint of bnew ({first_line(error)})") from error
    if not isinstance(state, dict):
        raise Unusable("is not a checkpoint of bnew (it holds no dictionary)")
    return state


def check_is_file(path: Path) -> None:
    """Raise Unusable for a pipe, a device or a folder: to open or read it might wait without end."""
    if path.exists() and not path.is_file():
        raise Unusable("is not a file, but a folder, a pipe or a device")


def _check_whole(file: IO[bytes]) -> None:
    """Raise Unusable unless all of ``file`` is as it was written."""
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
    except Exception as error:  # the module raises many kinds for a file that is damaged
        raise Unusable(f"is cut short or damaged ({first_line(error)})") from error
    if part is not None:
        raise Unusable(f"is damaged: '{part}' in it does not have the checksum that it carries")
