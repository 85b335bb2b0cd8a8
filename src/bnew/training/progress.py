"""The progress display of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bnew.text import printable


@contextmanager
def display(name: str, epochs: int, total_steps: int, done: int, quiet: bool) -> Iterator[Show]:
    """A progress bar with the remaining time of a run of ``total_steps`` steps; nothing if ``quiet``."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed}/{task.total} steps"),
        TimeRemainingColumn(),
    )
    terminal = Console().is_terminal  # in a file, each update of the bar would stay as a line
    with Progress(*columns, disable=quiet or not terminal) as progress:
        task = progress.add_task(escape(printable(name)), total=total_steps, completed=done)
        yield Show(progress, task, epochs, quiet)


class Show:
    """The progress display: a bar in a terminal, and one line per epoch."""

    def __init__(self, progress: Progress, task: TaskID, epochs: int, quiet: bool) -> None:
        self.progress, self.task, self.epochs, self.quiet = progress, task, epochs, quiet

    @classmethod
    def nothing(cls) -> Show:
        """A display that shows nothing."""
        progress = Progress(disable=True)
        return cls(progress, progress.add_task("", total=None), 0, quiet=True)

    def step(self, epoch: int, step: int) -> None:
        """Show that ``step`` steps are done; ``epoch`` counts from 0."""
        self.progress.update(self.task, completed=step, description=f"epoch {epoch + 1}/{self.epochs}")

    def epoch(self, epoch: int, step: int, row: Mapping[str, Any]) -> None:
        """Show the row of the metrics of ``epoch``, from 0, which ended with ``step``."""
        self.step(epoch, step)
        if not self.quiet:
            self.progress.console.print(
                f"epoch {epoch + 1:>4}/{self.epochs}  loss {row['train_loss']:.4f}  "
                f"train {row['train_accuracy']:.2%}  val {row['val_accuracy']:.2%}  "
                f"distance {row['distance']:.4f}  at ±1 {row['share_at_one']:.1%}  flips {row['flips']}  "
                f"waited for data {row['data_wait']:.0%}",
                soft_wrap=True,  # do not wrap lines in a file
            )
