"""What a person sees while a fit trains: how far the whole is, and the time left for the whole."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from bnew.fit.choose import duration
from bnew.fit.plan import Clock
from bnew.text import printable

if TYPE_CHECKING:
    from bnew.training.loop import Trainer

EVERY = 15.0  # seconds between lines where there is no terminal
# The words for a stage.
NAMES = {
    "float": "floats",
    "phase1": "phase 1",
    "phase2": "phase 2",
    "end": "packing and measuring",
}


@contextmanager
def showing(quiet: bool) -> Iterator[Progress]:
    """A bar for the whole; nothing if ``quiet``, and no bar where there is no terminal."""
    columns = (
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, disable=quiet or not Console().is_terminal, transient=True) as progress:
        yield progress


class Watch:
    """A callback of the training loop: counts the time of its stage and shows the whole.

    Args:
        stage: the stage that is trained.
        seconds: stage → seconds that it takes by the plan, in order.
        clock: the time used.
        progress: what shows it.
        quiet: print nothing.
    """

    def __init__(
        self, stage: str, seconds: Mapping[str, float], clock: Clock, progress: Progress, quiet: bool
    ) -> None:
        self.stage, self.seconds, self.clock, self.progress, self.quiet = stage, seconds, clock, progress, quiet
        self.row: Mapping[str, Any] = {}
        self.said = self.since = time.perf_counter()
        whole = sum(seconds.values())
        self.task = progress.tasks[0].id if progress.tasks else progress.add_task("", total=whole)

    def on_train_batch_end(self, trainer: Trainer, epoch: int, step: int) -> None:
        """Move the bar."""
        self._show(trainer, epoch, step)

    def on_train_epoch_end(self, trainer: Trainer, epoch: int, row: Mapping[str, Any]) -> None:
        """Count the epoch's time; print a line now and then where there is no bar."""
        self.row = row
        now = time.perf_counter()
        self.clock.add(self.stage, now - self.since)
        self.since = now
        self._show(trainer, epoch, trainer.state.step)
        last = epoch + 1 == trainer.recipe.epochs
        if not self.quiet and self.progress.disable and (last or now - self.said > EVERY):
            self.said = now
            print(self._line(trainer, epoch, trainer.state.step), flush=True)

    def left(self, share: float) -> float:
        """Seconds left for the whole when ``share`` of this stage is done.

        What is left by the plan, times how much slower than planned this stage has been so far.
        """
        stages = list(self.seconds)
        planned = self.seconds[self.stage]
        later = sum(self.seconds[each] for each in stages[stages.index(self.stage) + 1 :])
        used = self.clock.stages.get(self.stage, 0.0) + time.perf_counter() - self.since
        # A stage has shown how fast it is when a tenth of it is done; until then the plan counts too.
        factor = (used + 0.1 * planned) / ((share + 0.1) * planned)
        return ((1 - share) * planned + later) * factor

    def _show(self, trainer: Trainer, epoch: int, step: int) -> None:
        if self.progress.disable:
            return
        stages = list(self.seconds)
        before = sum(self.seconds[each] for each in stages[: stages.index(self.stage)])
        done = before + self.seconds[self.stage] * step / trainer.total_steps
        line = escape(self._line(trainer, epoch, step))
        self.progress.update(self.task, completed=done, description=line)

    def _line(self, trainer: Trainer, epoch: int, step: int) -> str:
        validated = f", val {self.row['val_accuracy']:.1%}" if self.row else ""
        left = duration(5 * round(self.left(step / trainer.total_steps) / 5))
        return printable(
            f"{NAMES[self.stage]}, epoch {epoch + 1}/{trainer.recipe.epochs}{validated}, {left} left in all"
        )
