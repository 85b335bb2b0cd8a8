"""The checksum of a packed file, see docs/format.md."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from bnew.errors import BnewError


def sealed(content: bytes) -> bytes:
    """The content of a packed file, with its checksum written into the header's field for it."""
    return content.replace(_field("0" * 8), _field(f"{zlib.crc32(content):08x}"), 1)


def _field(digits: str) -> bytes:
    """The checksum's field in the header. No text there has these bytes, since its quotes are escaped."""
    return f'"crc32":"{digits}"'.encode()


def is_whole(path: Path, header_bytes: int, stored: Any) -> bool:
    """Whether ``stored`` is the file's checksum: the CRC-32 of its bytes, with zeros for these digits."""
    try:
        with open(path, "rb") as file:
            header = file.read(header_bytes)
            if not isinstance(stored, str) or not stored.isascii() or _field(stored) not in header:
                return False
            checksum = zlib.crc32(header.replace(_field(stored), _field("0" * 8), 1))
            while chunk := file.read(1 << 20):
                checksum = zlib.crc32(chunk, checksum)
    except OSError as error:
        raise BnewError(f"cannot read '{path}': {error.strerror}") from None
    return stored == f"{checksum:08x}"
