"""What was packed from a run, and how fast it is: packed.json in the run's folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnew.errors import BnewError
from bnew.files import sha256_of, write_json
from bnew.results.run import Run

logger = logging.getLogger("bnew")

NAME = "packed.json"


def packed_of(run: Run) -> dict[str, Any]:
    """``bytes`` of the file that was packed last from the best weights of ``run``, and its time.

    The time is that of one image on one thread, as ``seconds_per_image``, on the CPU ``cpu``; it is there
    once the file was timed as one of this run. Empty if nothing was packed, or from other weights.
    """
    try:
        found = json.loads((run.path / NAME).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    same = isinstance(found, dict) and run.done and found.get("best_sha256") == _best(run)
    return found if same else {}


def record_packed(run: Run, file: Path, bytes_of_file: int) -> None:
    """Record that ``file`` was packed from the best weights of a finished run; or warn that it cannot be."""
    if not run.done:  # it may get better weights
        return
    _write(run, {"bytes": bytes_of_file, "sha256": sha256_of(file), "best_sha256": _best(run)})


def record_time(run: Run, file: Path, seconds_per_image: float, cpu: str) -> None:
    """Record the time of one image on one thread, if ``file`` is what was packed last from ``run``."""
    found = packed_of(run)
    if found.get("sha256") == sha256_of(file):
        _write(run, {**found, "seconds_per_image": seconds_per_image, "cpu": cpu})


def _best(run: Run) -> str | None:
    """The checksum of the best weights of ``run``."""
    return run.summary.get("best_sha256") or sha256_of(run.best)


def _write(run: Run, what: Mapping[str, Any]) -> None:
    try:
        write_json(run.path / NAME, what)
    except BnewError as error:  # such as a folder that others own
        logger.warning("the report will not show the packed file: %s", error)
