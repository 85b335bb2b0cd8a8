"""What a person sees of a fit: what was chosen, how far the whole is, and the time left for the whole."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from bnew.display import duration
from bnew.fit.plan import NAMES, Clock
from bnew.text import counted, percent, printable

if TYPE_CHECKING:
    from bnew.training.loop import Trainer

EVERY = 15.0  # seconds between lines where there is no terminal


class Screen:
    """Lines on standard error, and below them a bar for the whole where that is a terminal."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.console = quiet, Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self.done = 0.0
        """The share of the whole that is done; it never gets less."""

    def say(self, line: str) -> None:
        """Print a line."""
        if not self.quiet:
            self.console.print(f"bnew: {escape(printable(line))}", soft_wrap=not self.console.is_terminal)

    def show(self, table: RenderableType) -> None:
        """Print a table."""
        if not self.quiet:
            self.console.print(table)

    @property
    def has_bar(self) -> bool:
        """Whether a bar is shown."""
        return self._progress is not None

    def move(self, done: float, line: str) -> None:
        """Show that a share ``done`` of the whole is done."""
        self.done = max(self.done, done)
        if self._progress is not None:
            self._progress.update(self._task, completed=self.done, description=escape(printable(line)))

    @contextmanager
    def bar(self) -> Iterator[None]:
        """Show the bar. Meanwhile the parts of bnew that are called say nothing but warnings."""
        columns = (BarColumn(bar_width=16), TextColumn("{task.percentage:>3.0f} % {task.description}"))
        logger = logging.getLogger("bnew")
        level = logger.level
        logger.setLevel(logging.WARNING)
        try:
            if self.quiet or not self.console.is_terminal:
                yield
                return
            with Progress(*columns, console=self.console, transient=True) as self._progress:
                self._task = self._progress.add_task("", total=1.0)
                self._progress.update(self._task, completed=self.done)
                yield
        finally:
            self._progress = None
            logger.setLevel(level)


def ended_early(stage: str, epochs: int, planned: int) -> str:
    """What is said of a stage for which there was less time than planned."""
    return f"{NAMES[stage]} ended after {epochs} of {counted(planned, 'epoch')}, as its time was used up"


class FirstEpoch(Exception):
    """The first epoch of a fit is trained and saved, so lengths can follow from its time."""


class Watch:
    """A callback of the training loop: counts the time of its stage and shows how far the whole is.

    Args:
        stage: the stage that is trained.
        seconds: stage → seconds that it takes by the plan, in order.
        clock: the time used.
        screen: what shows it.
        deadline: the seconds of ``clock`` after which no epoch begins that would not end by then.
        measures: raise :class:`FirstEpoch` before the second epoch.
    """

    def __init__(
        self,
        stage: str,
        seconds: Mapping[str, float],
        clock: Clock,
        screen: Screen,
        deadline: float | None = None,
        measures: bool = False,
    ) -> None:
        self.stage, self.clock, self.screen = stage, clock, screen
        self.deadline, self.measures = deadline, measures
        stages = list(seconds)
        before = sum(seconds[each] for each in stages[: stages.index(stage)])
        whole = sum(seconds.values())
        self.planned, self.left_planned = seconds[stage], whole - before
        # What is left begins where the bar is, also if there is more of it than was thought.
        self.begin = max(screen.done, before / whole)
        self.validated = ""
        self.said = clock.now()

    def on_train_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        """Let the fit look at the time of the first epoch."""
        if self.measures and epoch == 1:
            raise FirstEpoch
        self.clock.count("between")

    def on_train_batch_end(self, trainer: Trainer, epoch: int, step: int) -> None:
        """Move the bar."""
        share = step / trainer.total_steps
        self.screen.move(self.done(share), self._line(epoch, trainer.recipe.epochs, share))

    def on_train_epoch_end(self, trainer: Trainer, epoch: int, row: Mapping[str, Any]) -> None:
        """Count the epoch's time, and end the stage if there is none for another; say a line now and then."""
        took = self.clock.count(self.stage)
        self.validated = f", validation {percent(row['val_accuracy'], 1)}"
        last, now = epoch + 1 == trainer.recipe.epochs, self.clock.now()
        deadline = None if self.measures else self.deadline
        if not last and deadline is not None and self.clock.total + took > deadline:
            trainer.should_stop = last = True
            self.screen.say(ended_early(self.stage, epoch + 1, trainer.recipe.epochs))
        if last or (not self.screen.has_bar and now - self.said > EVERY):
            self.said = now
            share = 1.0 if last else trainer.state.step / trainer.total_steps
            self.screen.say(self._line(epoch, trainer.recipe.epochs, share))

    def done(self, share: float) -> float:
        """The share of the whole that is done when ``share`` of this stage is."""
        return self.begin + (1 - self.begin) * share * self.planned / self.left_planned

    def left(self, share: float) -> float:
        """Seconds left for the whole when ``share`` of this stage is done.

        What is left by the plan, times how much slower than planned this stage has been so far. Until it has
        shown that, the plan counts as a tenth of the stage.
        """
        used = self.clock.stages.get(self.stage, 0.0) + self.clock.now() - self.clock.since
        factor = (used + 0.1 * self.planned) / ((share + 0.1) * self.planned)
        return (self.left_planned - share * self.planned) * factor

    def _line(self, epoch: int, epochs: int, share: float) -> str:
        left = duration(5 * round(self.left(share) / 5))
        return f"{NAMES[self.stage]}, epoch {epoch + 1}/{epochs}{self.validated}; {left} left"
