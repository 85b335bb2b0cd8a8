"""Runs of 200 epochs beside the authors' log of theirs: for docs/results/authors-log.md.

python benchmarks/authors_log.py runs/authors/bnew runs/authors/ste

Draws training accuracy, validation accuracy and mean distance to ±1 by epoch, and prints a table and how far
each run is from the log.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import tyro
from matplotlib.figure import Figure

from bnew.registry import GREY, method_row
from bnew.results.pictures import draw_svg
from bnew.results.run import Run
from comparing import table

# The authors' log has per cent, a run has shares.
LOGGED = {"train_accuracy_pct": 1.0, "val_accuracy_pct": 1.0, "distance": 1.0}
OURS = {"train_accuracy": 100.0, "val_accuracy": 100.0, "distance": 1.0}
TITLES = ("training accuracy, %", "validation accuracy, %", "mean distance to ±1")
DIGITS = (2, 2, 4)
SHOWN = (1, 2, 5, 10, 20, 50, 75, 100, 125, 150, 160, 170, 180, 181, 185, 190, 195, 200)
"""Epochs of the table, from 1."""


@dataclass(frozen=True)
class Options:
    """Compare runs of 200 epochs with the authors' log."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """The folders of the runs."""
    out: Path = Path("docs/results/authors-log")
    """Where the log, authors.csv, is, and where the pictures go."""


@dataclass(frozen=True)
class Course:
    """What a run did by epoch: accuracies in % and the distance, in the order of TITLES."""

    label: str
    color: str
    values: tuple[Mapping[int, float], ...]

    @classmethod
    def read(cls, label: str, color: str, path: Path, columns: Mapping[str, float]) -> Course:
        """From a CSV; ``columns``: name → factor."""
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        values = tuple(
            {int(row["epoch"]) + 1: factor * float(row[name]) for row in rows if row[name]}
            for name, factor in columns.items()
        )
        return cls(label, color, values)


def picture(number: int, courses: Iterable[Course], height: float = 3.4) -> str:
    """The values of one kind by epoch, as SVG."""

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for course in courses:
            values = course.values[number]
            dots = len(values) < 100  # the authors logged few validations
            style = {"marker": ".", "ls": ""} if dots else {"lw": 1.4}
            ax.plot(list(values), list(values.values()), color=course.color, label=course.label, **style)
        ax.set_xlabel("epoch")
        ax.set_ylabel(TITLES[number])
        ax.grid(axis="y", color=GREY, alpha=0.2, lw=0.6)
        ax.legend(frameon=False)

    return draw_svg(draw, height)


def farthest(course: Course, log: Course, number: int) -> str:
    """The largest difference from the log, and its epoch."""
    ours, theirs = course.values[number], log.values[number]
    epoch = max(ours.keys() & theirs.keys(), key=lambda e: abs(ours[e] - theirs[e]))
    return f"{ours[epoch] - theirs[epoch]:+.{DIGITS[number]}f} in epoch {epoch}"


def main(options: Options) -> None:
    log = Course.read("the authors' log", GREY, options.out / "authors.csv", LOGGED)
    courses = [log]
    for path in options.runs:
        row = method_row(Run(path).recipe.method)
        courses.append(Course.read(row.label, row.color, path / "metrics.csv", OURS))
    for number, name in enumerate(("training", "validation", "distance")):
        (options.out / f"{name}.svg").write_text(picture(number, courses) + "\n")
    head = ("epoch", *(f"{course.label}: {title}" for title in TITLES for course in courses))
    lines = [
        [str(epoch)]
        + [
            f"{course.values[number][epoch]:.{DIGITS[number]}f}" if epoch in course.values[number] else "–"
            for number in range(len(TITLES))
            for course in courses
        ]
        for epoch in SHOWN
    ]
    print(table(head, lines))
    for course in courses[1:]:
        print(f"\n{course.label}: best validation accuracy {max(course.values[1].values()):.2f} %")
        print("Farthest from the log:")
        for number, title in enumerate(TITLES):
            print(f"- {title}: {farthest(course, log, number)}")


if __name__ == "__main__":
    main(tyro.cli(Options))
