"""What a fit has made: one table, JSON, and the page beside the file; without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from bnew.display import Shown, new_table
from bnew.errors import BnewError
from bnew.shares import interval_of
from bnew.text import percent, printable

MOST_CLASSES = 20


@dataclass(frozen=True, repr=False)
class Fitted(Shown):
    """The result of :func:`bnew.fit`; prints as a table."""

    file: Path
    """The packed network."""
    page: Path
    """The HTML page."""
    runs: Path
    """The folder of the runs, of which the last one is the network in PyTorch."""
    data: Mapping[str, Any]
    """All numbers, plain data for JSON: ``evaluation`` as of :class:`bnew.results.evaluation.Evaluation`,
    ``file_bytes``, ``float_bytes``, ``milliseconds`` by runtime, ``seconds``, ``chosen``, ``remarks``."""

    @property
    def accuracy(self) -> float:
        """The share of test images that the packed network gets right."""
        return float(self.data["evaluation"]["top1"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"file": str(self.file), "page": str(self.page), "runs": str(self.runs), **self.data}

    @classmethod
    def read(cls, path: Path, file: Path, page: Path, runs: Path) -> Fitted:
        """The result in a file.

        Raises:
            BnewError: it is damaged.
        """
        try:
            return cls(file, page, runs, json.loads(path.read_text()))
        except (ValueError, OSError) as error:
            raise BnewError(f"{path} is damaged ({error}): delete it and start the command again") from None

    def totals(self) -> list[tuple[str, str]]:
        """What there is to say of the whole, as pairs."""
        data, found = self.data, self.data["evaluation"]
        rows = [
            (
                "test accuracy",
                f"{percent(found['top1'], 1)}   (95 %: {interval_of(found['top1_interval'], 1)})",
            ),
            ("test images", f"{found['images']:,}"),
            ("file", f"{size_of(data['file_bytes'])}   (as floats {size_of(data['float_bytes'])})"),
        ]
        (engine, ours), *others = data["milliseconds"].items()
        rows.append((f"one image, {engine}", f"{ours:.3f} ms   (one thread)"))
        rows += [
            (f"as floats, {name}", f"{theirs:.3f} ms   ({theirs / ours:.1f} times)")
            for name, theirs in others
        ]
        return rows

    def __rich__(self) -> RenderableType:
        whole = new_table("", "")
        whole.show_header = False
        for name, value in self.totals():
            whole.add_row(Text(name), Text(value))
        classes = new_table("class", numbers=("images", "right", "95 % interval"), widest=30)
        rows = sorted(
            self.data["evaluation"]["classes"], key=lambda row: (row["recall"] is None, row["recall"])
        )
        for row in rows[:MOST_CLASSES]:
            interval = None if row["recall"] is None else (row["recall_low"], row["recall_high"])
            classes.add_row(
                Text(printable(row["class"])), f"{row['images']:,}", percent(row["recall"], 1),
                interval_of(interval, 1),
            )  # fmt: skip
        more = (
            [f"{len(rows) - MOST_CLASSES} more classes are on the page"] if len(rows) > MOST_CLASSES else []
        )
        files = Text(printable(f"network: {self.file}\npage:    {self.page}").replace("\\n", "\n"))
        return Group(whole, classes, *more, files)


def size_of(count: int) -> str:
    """A number of bytes, as people read it."""
    for unit, size in (("MB", 1_000_000), ("kB", 1_000)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
