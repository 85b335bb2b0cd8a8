"""How results are shown: tables that fit a terminal, and in a file and a notebook have their full width."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Iterable

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table

WIDTH = 140


def new_table(
    *titles: str, numbers: Iterable[str] = (), title: str | None = None, widest: int | None = None
) -> Table:
    """A table of texts, and then of ``numbers``, which stand at the right of their columns.

    Texts wrap; if their columns have at most ``widest`` characters, they end with an ellipsis there.
    """
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left"
    )
    for heading in titles:
        if widest is None:
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, max_width=widest, no_wrap=True, overflow="ellipsis")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


class Fitting:
    """The first of several ways to show the same that is not wider than the terminal, or else the last."""

    def __init__(self, *ways: RenderableType) -> None:
        self.ways = ways

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        anywhere = options.update(width=1000)
        fitting = (w for w in self.ways if Measurement.get(console, anywhere, w).maximum <= options.max_width)
        yield next(fitting, self.ways[-1])


def show(shown: RenderableType) -> None:
    """Print tables to the standard output: as wide as the terminal, or in a file as wide as they are."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(shown)
    else:
        print(as_text(shown, width()))


def width() -> int:
    """That of the terminal; where the output is none, as in a file, COLUMNS, or else :data:`WIDTH`."""
    console = Console()
    return console.width if console.is_terminal or "COLUMNS" in os.environ else WIDTH


def short(number: int) -> str:
    """``number`` in at most five characters: 9,999, 36.9k, 1.68G."""
    if number < 10_000:
        return f"{number:,}"
    value, units = number / 1000, "kMGTPE"
    while value >= 999.5:
        value, units = value / 1000, units[1:]
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}{units[0]}"


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 10:
        return f"{seconds:.2g} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def as_text(shown: RenderableType, width: int = WIDTH) -> str:
    """A table of rich, or several, as plain text."""
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(shown)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def some(names: Iterable[str], most: int = 5) -> str:
    """``a, b, c and 4 more``: the first ``most`` names, or all if there is but one more."""
    names = list(names)
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


class Line:
    """Prints as its ``__repr__``, in a notebook too."""

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return f'<pre style="white-space: pre; overflow-x: auto">{html.escape(str(self))}</pre>'


class Shown(Line):
    """Prints as the tables of its ``__rich__``, in a notebook too."""

    def __rich__(self) -> RenderableType:
        raise NotImplementedError

    def __repr__(self) -> str:
        return as_text(self.__rich__(), width())

    __str__ = __repr__
