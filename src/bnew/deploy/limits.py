"""What a packed file may ask of the engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The most that a packed file may ask for; None is what its size and its input's shape justify.

    See docs/format.md, "Limits".
    """

    max_macs: int | None = None
    """The most work for an image, in real multiply-accumulates."""
    max_bytes: int | None = None
    """The most memory that the weights may take, and a run, in bytes."""


BY_SIZE = Limits()
