"""The tables of a run's folder, an epoch after the other."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bnew.errors import BnewError
from bnew.files import write_atomically, write_rows

TABLES = ("metrics", "layers", "histogram")


class Tables:
    """Those of the folder ``path``, as CSV files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, table: str, *rows: Mapping[str, Any]) -> None:
        """Add rows to ``table``.csv."""
        if not rows:
            return
        path = self.path / f"{table}.csv"
        try:
            write_rows(path, rows, header=not path.exists())
        except OSError as error:
            raise BnewError(f"could not write {path}: {error}; make room, then start again") from error

    def rows(self, table: str = "metrics") -> list[dict[str, str]]:
        """The rows of ``table``.csv; none if there is no such file."""
        try:
            with open(self.path / f"{table}.csv", newline="") as file:
                return list(csv.DictReader(file))
        except FileNotFoundError:
            return []

    def rewind(self, epoch: int) -> None:
        """Drop what the tables say of ``epoch`` and later: a resumed run will say it again."""
        for table in TABLES:
            # A row that a kill cut short has fields missing.
            kept = [row for row in self.rows(table) if None not in row.values() and int(row["epoch"]) < epoch]
            path = self.path / f"{table}.csv"
            if kept:
                write_atomically(path, partial(write_rows, rows=kept, header=True))
            else:
                path.unlink(missing_ok=True)
