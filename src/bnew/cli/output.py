"""What several commands print, and how."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from bnew.errors import BnewError


def check_format(as_json: bool, as_csv: bool) -> None:
    """Check that at most one format is asked for.

    Raises:
        BnewError: both are.
    """
    if as_json and as_csv:
        raise BnewError("--json and --csv are two formats: give one of them")


def as_json(data: Any) -> str:
    """``data`` as JSON on one line, in ASCII. What JSON has no number for, such as infinity, is null."""
    return json.dumps(_finite(data), allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def put(text: object) -> None:
    """Print ``text`` as a line at once. If nobody reads any more, as after ``| head``, exit."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.exit(unread())


def unread() -> int:
    """Write no more, as nobody reads; the exit code, that of a program that SIGPIPE ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
    return 141


def put_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print ``rows``, which have the same fields, as CSV, each as soon as it is there."""
    for number, row in enumerate(rows):
        if number == 0:
            put(_as_csv(row))
        put(_as_csv(row.values()))


def _as_csv(cells: Iterable[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def say_broken(errors: Iterable[BnewError]) -> int:
    """Print the errors of images that could not be read; the exit code: 2 if there are any."""
    code = 0
    for error in errors:
        print(f"bnew: error: {error}", file=sys.stderr)
        code = 2
    return code
