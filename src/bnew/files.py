"""Atomic writes: a file is written completely or not at all."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bnew.errors import BnewError


def write_atomically(path: Path, write: Callable[[Path], object], keep: Path | None = None) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    ``path`` always holds either its old content or all of the new. With ``keep``, the old content becomes the
    file ``keep``. On a file system without hard links, a kill between the two renames leaves ``keep`` and no
    ``path``.

    Raises:
        BnewError: writing failed, or ``path`` is a folder; it is unchanged.
    """
    if path.is_dir():
        raise BnewError(f"could not write {path}: that is a folder, so name a file in it")
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.touch()
        mode = beside.stat().st_mode  # follows the umask, which safetensors ignores
        write(beside)
        beside.chmod(mode)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            _replace_and_keep(path, beside, keep)
        else:
            os.replace(beside, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as a RuntimeError
        if not path.parent.is_dir():
            raise BnewError(f"could not write {path}: there is no folder {path.parent}") from error
        raise BnewError(
            f"could not write {path}: {error}; its old content is kept; "
            "free disk space or check the permissions, then start the same command again"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def _replace_and_keep(path: Path, new: Path, keep: Path) -> None:
    """Rename ``path`` to ``keep`` and ``new`` to ``path``, so that one of the two always exists."""
    link = keep.with_name(f".{keep.name}.{os.getpid()}")
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links
        os.replace(path, keep)
        try:
            os.replace(new, path)
        except BaseException:
            os.replace(keep, path)
            raise
        return
    try:
        os.replace(link, keep)
    finally:
        link.unlink(missing_ok=True)  # os.replace does nothing if `keep` was already the same file
    os.replace(new, path)


def sha256_of(path: Path) -> str | None:
    """The SHA-256 of a file in hexadecimal; None if there is no file."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as JSON, atomically."""
    write_atomically(path, lambda p: p.write_text(json.dumps(data, indent=2) + "\n"))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], header: bool) -> None:
    """Append ``rows``, which have the same columns, to a CSV file; ``header``: write the names first."""
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if header:
            writer.writeheader()
        writer.writerows(rows)
