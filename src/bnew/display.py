"""How results are shown: as plain text of their full width, the same in a terminal, a file and a notebook."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable

from rich.console import Console, RenderableType

WIDTH = 140


def as_text(shown: RenderableType) -> str:
    """A table of rich, or several, as plain text."""
    console = Console(file=io.StringIO(), width=WIDTH)
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
        return as_text(self.__rich__())

    __str__ = __repr__
