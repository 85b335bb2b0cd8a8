"""The work and the memory that a packed file may ask of the engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The most that a packed file may ask for.

    None: a limit that follows from the file's size and its input's shape, see docs/format.md, "Limits".
    """

    max_macs: int | None = None
    """The most work for one image, in real multiply-accumulates. Default: by the file's size."""
    max_bytes: int | None = None
    """The most memory for the weights, and for computing an image, in bytes. Default: by the file's size."""


BY_SIZE = Limits()
