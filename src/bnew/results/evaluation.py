"""How good a network is on labelled images: the numbers, as tables, JSON and CSV; without torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bnew.display import Shown, new_table
from bnew.errors import BnewError
from bnew.results.metrics import Integers, Mistake, Tally
from bnew.results.mistakes import write_page
from bnew.shares import interval_of, wilson
from bnew.text import percent, printable

MOST_CLASSES = 20  # that are all shown; of more, those with the lowest recall
LOWEST = 10
MOST_PAIRS = 10
WIDTH = 80


@dataclass(frozen=True)
class ClassResult:
    """What a network gets right of a class. Shares are None where there is nothing to divide by."""

    name: str
    images: int
    """How many images are of this class."""
    predicted: int
    """How many images got this class."""
    right: int
    """How many images of this class got it."""

    @property
    def recall(self) -> float | None:
        """The share of the images of this class that got it."""
        return self.right / self.images if self.images else None

    @property
    def precision(self) -> float | None:
        """The share of the images that got this class and are of it."""
        return self.right / self.predicted if self.predicted else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of :attr:`recall`."""
        return wilson(self.right, self.images) if self.images else None

    def to_dict(self) -> dict[str, Any]:
        """Counts, recall with its 95 % interval, and precision."""
        low, high = self.interval or (None, None)
        return {
            "class": self.name, "images": self.images, "predicted": self.predicted, "right": self.right,
            "recall": self.recall, "recall_low": low, "recall_high": high, "precision": self.precision,
        }  # fmt: skip


@dataclass(frozen=True)
class Confused:
    """How often images of the class ``label`` got the class ``predicted``, and as a share of its images."""

    label: str
    predicted: str
    times: int
    share: float


@dataclass(frozen=True, repr=False, eq=False)
class Evaluation(Shown):
    """The result of :func:`bnew.evaluate`; prints as tables.

    Shares are between 0 and 1, intervals are Wilson's at 95 %, and the loss is in nats.
    """

    network: str
    """The run's folder or the file."""
    data: str
    """Which images, such as ``digits, test``."""
    classes: tuple[str, ...]
    confusion: Integers
    """(classes, classes): how many images of class i (row) got class j (column)."""
    loss: float | None
    """The mean of −log p; None if the network's outputs are independent probabilities."""
    top5_hits: int
    mistakes: tuple[Mistake, ...] = ()
    """The worst, as many as were asked for."""
    unreadable: int = 0
    """Images that could not be read and do not count."""

    @classmethod
    def of(
        cls, tally: Tally, network: object, data: str, classes: Sequence[str], unreadable: int = 0
    ) -> Evaluation:
        """What has been counted.

        Raises:
            BnewError: there are no images.
        """
        if not tally.images:
            raise BnewError(f"{network} cannot be evaluated: there are no images ({data})")
        loss = None if tally.outputs == "sigmoid" else tally.loss / tally.images
        return cls(
            str(network), data, tuple(classes), tally.confusion, loss, tally.top5, tally.mistakes, unreadable
        )

    @property
    def images(self) -> int:
        """The number of images."""
        return int(self.confusion.sum())

    @property
    def hits(self) -> int:
        """The number of images that got their class."""
        return int(np.trace(self.confusion))

    @property
    def accuracy(self) -> float:
        """The share of images that got their class: top-1."""
        return self.hits / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of :attr:`accuracy`."""
        return wilson(self.hits, self.images)

    @property
    def top5(self) -> float | None:
        """The share of images whose class is among the five likeliest; None for five classes or fewer."""
        return self.top5_hits / self.images if len(self.classes) > 5 else None

    @property
    def top5_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of :attr:`top5`."""
        return None if self.top5 is None else wilson(self.top5_hits, self.images)

    @cached_property
    def per_class(self) -> tuple[ClassResult, ...]:
        """Counts, recall and precision of each class, in the order of :attr:`classes`."""
        counts = (self.confusion.sum(1), self.confusion.sum(0), self.confusion.diagonal())
        return tuple(map(ClassResult, self.classes, *(count.tolist() for count in counts)))

    def confused(self, most: int = MOST_PAIRS) -> list[Confused]:
        """The pairs of classes that are most often confused, the most frequent first."""
        wrong = self.confusion - np.diag(self.confusion.diagonal())
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        return [
            Confused(
                self.classes[i],
                self.classes[j],
                int(wrong[i, j]),
                float(wrong[i, j] / self.confusion[i].sum()),
            )
            for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
            if wrong[i, j]
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; without the mistakes' pictures."""
        return {
            "network": self.network, "data": self.data, "images": self.images, "unreadable": self.unreadable,
            "top1": self.accuracy, "top1_interval": self.interval,
            "top5": self.top5, "top5_interval": self.top5_interval, "loss": self.loss,
            "classes": [each.to_dict() for each in self.per_class], "confusion": self.confusion.tolist(),
        }  # fmt: skip

    def to_csv(self) -> str:
        """A row for each class, with the fields of :meth:`ClassResult.to_dict`."""
        rows = [{**each.to_dict(), "class": printable(each.name)} for each in self.per_class]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def write_page(self, path: str | Path) -> None:
        """Write one HTML page with the numbers and the worst mistakes as pictures.

        Raises:
            BnewError: it cannot be written.
        """
        write_page(self, Path(path))

    def __rich__(self) -> RenderableType:
        left_out = f", {self.unreadable:,} more could not be read" if self.unreadable else ""
        title = Text(printable(f"{self.network}: {self.images:,} images ({self.data}){left_out}"))
        parts: list[RenderableType] = [title, self._totals(), self._of_classes()]
        pairs = self.confused()
        if matrix := self._matrix():
            parts.append(matrix)
        elif pairs:
            parts.append(_pairs(pairs))
        return Group(*parts)

    def totals(self) -> list[tuple[str, str, str]]:
        """Name, value and interval of each number about all images, as people read them."""
        rows = [("top-1", percent(self.accuracy), interval_of(self.interval))]
        if self.top5 is not None and self.top5_interval is not None:
            rows.append(("top-5", percent(self.top5), interval_of(self.top5_interval)))
        return rows if self.loss is None else [*rows, ("loss", f"{self.loss:.4f}", "")]

    def _totals(self) -> Table:
        table = new_table("", numbers=("value", "95 % interval"))
        for row in self.totals():
            table.add_row(*row)
        return table

    def shown_classes(self) -> tuple[list[ClassResult], str]:
        """All classes; of many, those with the lowest recall, and what is to be said of the others."""
        if len(self.classes) <= MOST_CLASSES:
            return list(self.per_class), ""
        present = sorted((each for each in self.per_class if each.images), key=lambda each: each.recall or 0)
        shown, others = present[:LOWEST], present[LOWEST:]
        least = others[0].recall if others else None
        said = [f"{len(others):,} more have a recall of at least {percent(least, 1)}"] if others else []
        if absent := len(self.classes) - len(present):
            said.append(f"{absent:,} have no images")
        return shown, "; ".join(said)

    def _of_classes(self) -> RenderableType:
        shown, others = self.shown_classes()
        table = new_table("class", numbers=("images", "recall", "95 % interval", "precision"), widest=24)
        for each in shown:
            shares = percent(each.recall, 1), interval_of(each.interval, 1), percent(each.precision, 1)
            table.add_row(Text(printable(each.name)), f"{each.images:,}", *shares)
        return Group(table, others) if others else table

    def _matrix(self) -> RenderableType | None:
        """The confusion matrix, if it fits into 80 columns and is not of many classes."""
        if len(self.classes) > MOST_CLASSES:
            return None
        names = [printable(name) for name in self.classes]
        last = str(len(names) - 1)
        digits = max(len(str(self.confusion.max())), len(last))
        longest = max(map(cell_len, names))
        short = longest <= digits  # else the columns have the classes' numbers
        label = longest if short else min(longest, 16) + len(last) + 1
        if label + len(names) * (digits + 1) > WIDTH:
            return None
        table = Table(box=None, padding=(0, 1, 0, 0))
        table.add_column("", width=label, no_wrap=True, overflow="ellipsis")
        for number, name in enumerate(names):
            table.add_column(Text(name if short else str(number)), width=digits, justify="right")
        for number, (name, row) in enumerate(zip(names, self.confusion.tolist(), strict=True)):
            title = name if short else f"{number:>{len(last)}} {name}"
            table.add_row(Text(title), *(str(count) if count else "·" for count in row))
        return Group("How many images of each class (row) got each class (column):", table)


def _pairs(pairs: Sequence[Confused]) -> RenderableType:
    table = new_table("class", "taken for", numbers=("times", "of the class"), widest=24)
    for pair in pairs:
        table.add_row(
            Text(printable(pair.label)),
            Text(printable(pair.predicted)),
            f"{pair.times:,}",
            percent(pair.share, 1),
        )
    return Group("The classes that are confused most often:", table)
