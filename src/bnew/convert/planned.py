"""What is to become of each layer of a network."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from bnew.display import Shown, as_text, new_table, some, width
from bnew.text import printable

SCALE, SHORTCUT = "scale", "shortcut"


@dataclass(frozen=True)
class PlannedLayer:
    """What :func:`bnew.binarize` does to one module.

    ``kind`` is the module's type, ``becomes`` the type that it gets ("" if it stays as it is), ``reason``
    says why, ``parts`` what it gets besides: :data:`SCALE`, :data:`SHORTCUT`.
    """

    name: str
    kind: str
    becomes: str
    reason: str
    parts: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """What it is afterwards: ``BinaryConv2d + scale``; "" if it stays as it is."""
        return " + ".join((self.becomes, *self.parts))

    @property
    def binarize(self) -> bool:
        """Whether the layer gets binary weights and inputs."""
        return self.becomes.startswith("Binary")


class Plan(Shown, list[PlannedLayer]):
    """The rows of a plan, in the order in which the model registers them; prints as a table."""

    def __rich__(self) -> Table:
        table = new_table("layer", "is", "becomes", "why")
        for row in self:
            cells = (row.name or "the model", row.kind, row.outcome, row.reason)
            table.add_row(*(Text(printable(cell)) for cell in cells), style=None if row.becomes else "dim")
        return table

    @property
    def outcome(self) -> str:
        """The plan in a few lines: how many layers become what, why, and the first of their names."""
        table = Table.grid(padding=(0, 2))
        for (becomes, reason), rows in self._groups().items():
            cells = (f"  {len(rows)}", becomes or "stays real", f"{reason}:", _names(rows))
            table.add_row(*(Text(printable(cell)) for cell in cells))
        return as_text(table, width())

    @property
    def why(self) -> str:
        """The reasons in one line, each with the first of its layers."""
        return "; ".join(f"{reason}: {_names(rows)}" for (_, reason), rows in self._groups().items())

    def _groups(self) -> dict[tuple[str, str], list[PlannedLayer]]:
        """The rows by what becomes of them and why."""
        groups: dict[tuple[str, str], list[PlannedLayer]] = {}
        for row in self:
            groups.setdefault((row.outcome, row.reason), []).append(row)
        return groups


def _names(rows: list[PlannedLayer]) -> str:
    return some([row.name or "the model" for row in rows], 3)
