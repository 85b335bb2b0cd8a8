"""The work and the memory that a packed file may ask of the engine, and the engine that it needs."""

from __future__ import annotations

from dataclasses import dataclass

from bnew.errors import BnewError

REVISION = 1  # of bnew-engine, the least that runs what bnew packs, see engine/cpp/bindings.cpp


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


def check_revision(engine: object) -> None:
    """Check that the module bnew_engine is not of an older build, which may have the same version.

    Raises:
        BnewError: it is.
    """
    if (found := getattr(engine, "revision", 0)) < REVISION:
        raise BnewError(
            f"the installed bnew-engine is an older build (revision {found}) than this bnew needs "
            f"({REVISION}): pip install --force-reinstall --no-deps ./engine in a checkout of bnew"
        )
