"""Files that are written whole or not at all."""

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
    """Let ``write`` fill a file beside ``path``, then put it in place at once.

    Whatever happens on the way, ``path`` holds either what it held or the whole of the new content. With
    ``keep``, that file becomes what ``path`` held. On a file system without hard links a kill may then leave
    ``keep`` alone, where ``path`` was just renamed.

    Raises:
        BnewError: it could not be written; ``path`` is as it was.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.touch()
        mode = beside.stat().st_mode  # by the umask, which safetensors does not follow
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
            f"could not write {path}: {error}; what it held before is kept; "
            "make room or check the permissions, then start the same command again"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def _replace_and_keep(path: Path, new: Path, keep: Path) -> None:
    """Put ``new`` in the place of ``path``, and what ``path`` held in the place of ``keep``."""
    link = keep.with_name(f".{keep.name}.{os.getpid()}")
    try:
        os.link(path, link)
    except OSError:  # there are no hard links here
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
        link.unlink(missing_ok=True)  # it stays if `keep` was the same file already
    os.replace(new, path)


def sha256_of(path: Path) -> str | None:
    """The SHA-256 of a file in hexadecimal digits; None where there is no file."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, data: Any) -> None:
    """``data`` as JSON, atomically."""
    write_atomically(path, lambda p: p.write_text(json.dumps(data, indent=2) + "\n"))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], header: bool) -> None:
    """Append rows of the same columns to a CSV file."""
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if header:
            writer.writeheader()
        writer.writerows(rows)
