"""The table of results: a row per group of runs, and then published references."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from rich.console import Group as Together
from rich.table import Table
from rich.text import Text

from bnew.display import Fitting, Shown, duration, new_table
from bnew.registry import METHODS, dataset_row
from bnew.results.groups import Group, group_by_recipe
from bnew.results.pictures import label
from bnew.results.references import MISSING, REFERENCES, Reference
from bnew.results.run import Run
from bnew.text import printable


@dataclass(frozen=True)
class Column:
    """A column: its title, a short one for a terminal, its cell, and which of its values is the best."""

    title: str
    short: str
    cell: Callable[[Group], str]
    key: str = ""
    best: Callable[[Iterable[float]], float] | None = None
    """``max`` or ``min``."""


def _cell(key: str, show: Callable[[float], str], spread: bool = True) -> Callable[[Group], str]:
    """Mean and, if ``spread``, standard deviation of ``key``; how many runs have it, if not all."""

    def cell(group: Group) -> str:
        values = group.values(key)
        if not values:
            return MISSING
        text = show(group.mean(key))
        std = group.std(key)
        if spread and std is not None:
            text += f" ± {show(std)}"
        return text if len(values) == len(group.runs) else f"{text} ({len(values)} of {len(group.runs)})"

    return cell


def points(share: float) -> str:
    """Without the sign: "97.25"."""
    return f"{100 * share:.2f}".replace("-", "−")


def _epochs(group: Group) -> str:
    """ "200"; or "120 of 200", "90–120 of 200", where callbacks stopped runs early."""
    planned = group.recipe.epochs
    trained = sorted({run.epochs for run in group.runs})
    if trained == [planned]:
        return str(planned)
    return f"{'–'.join(map(str, dict.fromkeys((trained[0], trained[-1]))))} of {planned}"


COLUMNS = (
    Column("Method", "method", label),
    Column("Variant", "variant", lambda group: group.variant or MISSING),
    Column("Data set", "data", lambda group: group.data),
    Column("Model", "model", lambda group: group.recipe.model),
    Column("Test accuracy, %", "test %", _cell("test_accuracy", points), "test_accuracy", max),
    Column("Best validation accuracy, %", "best\nval %", _cell("val_accuracy", points), "val_accuracy", max),
    Column("Epochs", "epochs", _epochs),
    Column("n", "n", lambda group: str(len(group.runs))),
    Column(
        "Distance to ±1 before freezing", "distance\nto ±1",
        _cell("distance_before_freezing", lambda d: f"{d:.2g}", spread=False),
    ),
    Column("Freezing cost, points", "freezing\ncost", _cell("freezing_cost", points), "freezing_cost", min),
    Column("Training time per run", "time", _cell("train_seconds", duration, spread=False)),
)  # fmt: skip
TEXTS = 4  # the first of them

NOTES = (
    "Mean ± sample standard deviation (n − 1) over n runs that differ only in their seeds; a single run has "
    "no ±. “(k of n)”: only k of the runs have the value.",
    "Validation and test accuracy are those of the epoch with the best validation accuracy, with binary "
    "weights; for phase 1 and real networks, with real weights.",
    "Bold: the best of the networks that end with binary weights, on the same data set.",
    "Freezing cost: validation accuracy just before freezing minus that just after, in percentage points. "
    "Methods that never freeze have none.",
    "Training time depends on the machine and on other programs that ran at the same time.",
)
PUBLISHED = (
    "Rows in italics are reference points from the sources in brackets. They were trained with other "
    "recipes, so they show the state of the field, not which method is better."
)


@dataclass(frozen=True)
class Row:
    """A cell per column, and the numbers of those that hold the best value of their column."""

    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()
    published: bool = False


def sorted_groups(runs: Iterable[Run]) -> list[Group]:
    """Groups, sorted by data set, model and variant, then by method; with frozen weights throughout, last."""
    rank = {method: i for i, method in enumerate((None, *METHODS))}
    return sorted(
        group_by_recipe(runs),
        key=lambda g: (
            g.recipe.data,
            *panel(g),
            g.recipe.freeze_epoch == 0,
            rank.get(g.recipe.method, len(rank)),
            g.name,
        ),
    )


def panel(group: Group) -> tuple[str, str, str]:
    """Data set, model and variant: the groups of one picture have the same."""
    return group.data, group.recipe.model, group.variant


def _reference_row(reference: Reference) -> Row:
    r = reference
    known = {
        "Method": f"{r.name} [{r.source}]", "Variant": "published, other recipe", "Data set": r.data,
        "Model": r.model, "Test accuracy, %": r.test, "Best validation accuracy, %": r.val,
        "Epochs": r.epochs,
    }  # fmt: skip
    return Row(tuple(known.get(column.title, MISSING) for column in COLUMNS), published=True)


def _with_best(rows: Sequence[Row], groups: Sequence[Group]) -> list[Row]:
    """``rows`` of ``groups``, with the best values of each column, as they are shown, marked."""
    marked = list(rows)
    binary = [i for i, group in enumerate(groups) if group.recipe.ends_binary]
    for number, column in enumerate(COLUMNS):
        having = [i for i in binary if column.best is not None and groups[i].values(column.key)]
        if len(having) < 2:
            continue
        assert column.best is not None
        means = {i: round(groups[i].mean(column.key), 4) for i in having}  # as shown, in percent
        for i in having:
            if means[i] == column.best(means.values()):
                marked[i] = replace(marked[i], best=marked[i].best | {number})
    return marked


def _rows(groups: Sequence[Group]) -> list[Row]:
    """The groups' rows; those of each data set are followed by its published references."""
    rows: list[Row] = []
    for data in dict.fromkeys(group.recipe.data for group in groups):
        here = [group for group in groups if group.recipe.data == data]
        for images in dict.fromkeys(group.data for group in here):
            alike = [group for group in here if group.data == images]
            cells = [Row(tuple(column.cell(group) for column in COLUMNS)) for group in alike]
            rows += _with_best(cells, alike)
        # A folder may hold any images: the number of classes says whether they are the published ones.
        classes = dataset_row(data).classes
        if classes is None or any(g.values("classes") == [classes] * len(g.runs) for g in here):
            rows += [_reference_row(r) for r in REFERENCES if r.data == data]
    return rows


class Comparison(Shown):
    """The table of ``runs``; prints as a table that fits the terminal."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.groups = sorted_groups(runs)
        self.rows = _rows(self.groups)

    @property
    def notes(self) -> tuple[str, ...]:
        """What explains the table, a sentence or two each."""
        return (*NOTES, *([PUBLISHED] if any(row.published for row in self.rows) else ()))

    def same(self) -> dict[int, str]:
        """Column → cell, of data set, model and n where all runs have the same."""
        own = [row.cells for row in self.rows if not row.published]
        titles = ("Data set", "Model", "n")
        numbers = [i for i, column in enumerate(COLUMNS) if column.title in titles]
        return {i: own[0][i] for i in numbers if own and {cells[i] for cells in own} == {own[0][i]}}

    def shown(self) -> list[int]:
        """The columns that are not the same throughout and not empty."""
        same = self.same()
        empty = [i for i in range(len(COLUMNS)) if all(row.cells[i] == MISSING for row in self.rows)]
        return [i for i in range(len(COLUMNS)) if i not in same and i not in empty]

    def heading(self) -> str:
        """What is the same for all runs: ``digits · birealnet8 · 3 runs each``."""
        texts = []
        for i, cell in self.same().items():
            runs = COLUMNS[i].title == "n"
            texts.append(f"{cell} run{'s' * (cell != '1')} each" if runs else cell)
        return " · ".join(texts)

    def markdown(self) -> str:
        """The whole table in Markdown."""
        titles = " | ".join(column.title for column in COLUMNS)
        lines = [f"| {titles} |", f"|{'---|' * TEXTS}{'---:|' * (len(COLUMNS) - TEXTS)}"]
        for row in self.rows:
            cells = [escape_markdown(cell) for cell in row.cells]
            if row.published:
                cells = [cell if cell == MISSING else f"*{cell}*" for cell in cells]
            marked = (f"**{cell}**" if i in row.best else cell for i, cell in enumerate(cells))
            lines.append(f"| {' | '.join(marked)} |")
        return "\n".join(lines)

    def __rich__(self) -> Together:
        columns = self.shown()
        without = [[i for i in columns if COLUMNS[i].title not in left_out] for left_out in (
            (), ("Training time per run",),
            ("Training time per run", "Distance to ±1 before freezing"),
            ("Training time per run", "Distance to ±1 before freezing", "Freezing cost, points", "Epochs"),
        )]  # fmt: skip
        return Together(Text(printable(self.heading())), "", Fitting(*map(self._table, without)))

    def _table(self, columns: Sequence[int]) -> Table:
        texts = [COLUMNS[i].short for i in columns if i < TEXTS]
        table = new_table(*texts, numbers=(COLUMNS[i].short for i in columns if i >= TEXTS))
        table.columns[0].max_width = 24
        for row in self.rows:
            styles = ["bold" if i in row.best else "" for i in columns]
            cells = (printable(row.cells[i]) for i in columns)
            texts_of = (Text(cell, style) for cell, style in zip(cells, styles, strict=True))
            table.add_row(*texts_of, style="dim italic" if row.published else None)
        return table


def escape_markdown(text: str) -> str:
    """``text`` on one line, as Markdown that shows just it."""
    return re.sub(r"([\\`*_{}\[\]<>|&#~])", r"\\\1", " ".join(printable(text).split()))
