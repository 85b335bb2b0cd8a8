"""The progress display of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from bnew.text import percent
from bnew.training.loop_state import LoopState

# What a row of an epoch shows: heading, width, and how; where there is less room, only the first of them.
COLUMNS: tuple[tuple[str, int, Callable[[Mapping[str, Any]], str]], ...] = (
    ("epoch", 9, lambda row: row["epoch"]),
    ("loss", 7, lambda row: f"{row['train_loss']:.4f}"),
    ("train", 8, lambda row: percent(row["train_accuracy"])),
    ("val", 9, lambda row: f"{percent(row['val_accuracy'])}{'*' if row['best'] else ' '}"),
    ("distance", 8, lambda row: f"{row['distance']:.4f}"),
    ("at ±1", 7, lambda row: percent(row["share_at_one"], 1)),
    ("flips", 8, lambda row: f"{row['flips']}"),
    ("images/s", 8, lambda row: f"{row['rate']:,.0f}"),
    ("waited", 6, lambda row: percent(row["data_wait"], 0)),
)
OF_BINARY_WEIGHTS = ("distance", "at ±1", "flips")


@contextmanager
def display(
    epochs: int, total_steps: int, state: LoopState, images_per_step: float, quiet: bool, binary: bool = True
) -> Iterator[Show]:
    """What a person sees of a run that is at ``state``: a row per epoch, and a bar below them.

    There is no bar where each update of it would stay as a line: in a file, and in a dumb terminal. If
    ``quiet``, nothing is shown. A network that has no ``binary`` weights has no columns for them.
    """
    console = Console(highlight=False)
    bar = console.is_terminal and not console.is_dumb_terminal and not quiet
    with Progress(*_columns(console.width, images_per_step), console=console, disable=not bar) as progress:
        show = Show(progress, epochs, total_steps, state, images_per_step, quiet, binary)
        yield show
        show.end()


class Show:
    """The progress display: a bar in a terminal, and a row per epoch."""

    def __init__(
        self,
        progress: Progress,
        epochs: int,
        total_steps: int | None,
        state: LoopState,
        images_per_step: float,
        quiet: bool,
        binary: bool = True,
    ) -> None:
        self.progress, self.epochs, self.images_per_step, self.quiet = (
            progress, epochs, images_per_step, quiet,
        )  # fmt: skip
        self.task = progress.add_task("", total=total_steps, completed=state.step, best="")
        self.best = state.best.get("accuracy", -1.0)
        self.last = state.step, state.seconds
        width = progress.console.width if progress.console.is_terminal else 80
        known = [c for c in COLUMNS if binary or c[0] not in OF_BINARY_WEIGHTS]
        self.columns = [c for i, c in enumerate(known) if sum(w + 1 for _, w, _ in known[: i + 1]) <= width]
        self.headed = False
        if state.best:
            self._say_best(int(state.best["epoch"]))

    @classmethod
    def nothing(cls) -> Show:
        """A display that shows nothing."""
        return cls(Progress(disable=True), 0, None, LoopState(), 0, quiet=True)

    def step(self, epoch: int, step: int) -> None:
        """Show that ``step`` steps are done; ``epoch`` counts from 0."""
        if not self.progress.disable:
            self.progress.update(self.task, completed=step, description=f"epoch {epoch + 1}/{self.epochs}")

    def epoch(self, epoch: int, state: LoopState, row: Mapping[str, Any]) -> None:
        """Show the row of the metrics of ``epoch``, from 0, which ended at ``state``."""
        self.step(epoch, state.step)
        (step, seconds), self.last = self.last, (state.step, state.seconds)
        better = row["val_accuracy"] > self.best
        if better:
            self.best = row["val_accuracy"]
            self._say_best(epoch)
        if self.quiet:
            return
        shown = {
            **row,
            "epoch": f"{epoch + 1}/{self.epochs}",
            "best": better,
            "rate": (state.step - step) * self.images_per_step / max(state.seconds - seconds, 1e-9),
        }
        if not self.headed:
            self._print([heading + " " * (heading == "val") for heading, _, _ in self.columns])
            self.headed = True
        self._print([show(shown) for _, _, show in self.columns])

    def end(self) -> None:
        """Show that the run has ended, which may be before its last epoch."""
        task = next(task for task in self.progress.tasks if task.id == self.task)
        self.progress.update(self.task, total=task.completed)

    def _say_best(self, epoch: int) -> None:
        self.progress.update(self.task, best=f"best {percent(self.best)} in {epoch + 1}")

    def _print(self, cells: list[str]) -> None:
        widths = (width for _, width, _ in self.columns)
        line = " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        self.progress.console.print(line, markup=False, soft_wrap=True)  # in a file, lines are not wrapped


# ---------------------------------------------------------------------- the bar


def _columns(width: int, images_per_step: float) -> list[ProgressColumn]:
    """The epoch, a bar, and beside it as much as ``width`` has room for."""
    bar = BarColumn(bar_width=min(30, max(5, width - 75)))
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), bar, Share(), Clock()]
    if width >= 60:
        columns.insert(3, Rate(images_per_step))
    if width >= 80:
        columns.append(TextColumn("{task.fields[best]}"))
    return columns


class Share(ProgressColumn):
    """The share that is done; 100 % only at the end."""

    def render(self, task: Task) -> Text:
        """In percent."""
        return Text(f"{percent(int(task.percentage) / 100, 0):>5}")


class Rate(ProgressColumn):
    """Images per second."""

    def __init__(self, images_per_step: float) -> None:
        super().__init__()
        self.images_per_step = images_per_step

    def render(self, task: Task) -> Text:
        """The rate, once it is known."""
        rate = task.finished_speed or task.speed
        return Text(f"{rate * self.images_per_step:,.0f} images/s" if rate else "")


class Clock(ProgressColumn):
    """The time that has passed, and the time left."""

    def render(self, task: Task) -> Text:
        """``1:05, 0:12 left``, without what is not known yet."""
        passed, left = _clock(task.elapsed or 0), task.time_remaining
        return Text(passed if left is None or task.finished else f"{passed}, {_clock(left)} left")


def _clock(seconds: float) -> str:
    """``0:59``, or ``1:00:00``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
