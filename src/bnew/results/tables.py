"""The tables of a run's folder, which grow epoch by epoch."""

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
    """The tables of the folder ``path``, as CSV files."""

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
            raise BnewError(
                f"could not write {path}: {error}; free disk space, then start the same command again"
            ) from error

    def rows(self, table: str = "metrics") -> list[dict[str, str]]:
        """The rows of ``table``.csv; none if there is no such file."""
        try:
            with open(self.path / f"{table}.csv", newline="") as file:
                return list(csv.DictReader(file))
        except FileNotFoundError:
            return []

    def rewind(self, epoch: int) -> None:
        """Drop the rows of ``epoch`` and later: a resumed run writes them again."""
        for table in TABLES:
            # A row that was cut short by a kill lacks fields.
            kept = [row for row in self.rows(table) if None not in row.values() and int(row["epoch"]) < epoch]
            path = self.path / f"{table}.csv"
            if kept:
                write_atomically(path, partial(write_rows, rows=kept, header=True))
            else:
                path.unlink(missing_ok=True)
