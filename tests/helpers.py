"""Short runs on scikit-learn's digits, and ways to break them; child processes import this too."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bnew.packing.checksum import sealed
from bnew.recipe import Recipe
from bnew.results.run import Run
from bnew.training.loop import Trainer, train
from bnew.training.machine import Machine

# The command line: its words → exit code, output and errors.
Cli = Callable[..., tuple[int, str, str]]

# New processes in a moment: forks of one that has loaded bnew, and has no threads.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["bnew.training.loop", "pytest"])

MACHINE = Machine(device="cpu", compile=False, quiet=True)
# 1,295 images for training, so 6 steps an epoch, the last one smaller.
RECIPE = Recipe(data="digits", model="birealnet8", method="bnew", epochs=1, batch_size=256)
STEPS = 6
TEACHER = RECIPE.replace(model="wideresnet22", method=None, optimizer="sgd", lr=0.1)


def threads() -> list[str]:
    """The names of this process's threads, as Linux knows them."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


class Crash(Exception):
    """An end that nothing in the program expects."""


def crash(training: Trainer) -> None:
    raise Crash


def crash_with(error: Exception) -> Callable[[Trainer], None]:
    def crash(training: Trainer) -> None:
        raise error

    return crash


def fill_with_nan(training: Trainer) -> None:
    next(training.module.parameters()).data.fill_(torch.nan)


def send(number: int) -> Callable[[Trainer], None]:
    return lambda training: signal.raise_signal(number)


def at_step(step: int, action: Callable[[Trainer], object]) -> AbstractContextManager[Any]:
    """Inside, every run does ``action`` in the middle of its optimizer step number ``step``, from 0."""
    targets = Trainer.targets

    def patched(self: Trainer, x: Tensor, y: Tensor) -> Tensor:
        if self.state.step == step:
            action(self)
        return targets(self, x, y)

    return mock.patch.object(Trainer, "targets", patched)


def train_until_killed(
    recipe: Recipe, path: Path, machine: Machine, step: int, says: Connection | None = None
) -> None:
    torch.set_num_threads(1)

    def kill(_: Trainer) -> None:
        if says:
            says.send([child.pid for child in multiprocessing.active_children()])
        os.kill(os.getpid(), signal.SIGKILL)

    with at_step(step, kill):
        train(recipe, path, machine)


def kill_at_step(recipe: Recipe, path: Path, machine: Machine, step: int) -> list[int]:
    """Train in another process, which ``kill -9`` ends in the middle of ``step``; what it had started."""
    said, says = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=train_until_killed, args=(recipe, path, machine, step, says))
    process.start()
    says.close()
    started: list[int] = said.recv()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return started


def outcome(run: Run) -> dict[str, Any]:
    """All that a run leaves behind, but for its times."""
    tables = {name: run.rows(name) for name in ("metrics", "layers", "histogram")}
    summary = run.summary | {"train_seconds": 0}
    return {
        **{name: [row | {"seconds": "", "data_wait": ""} for row in rows] for name, rows in tables.items()},
        "summary": summary,
        "best": run.best.read_bytes(),
    }


def resealed(data: bytes) -> bytes:
    """The content of a packed file, changed on purpose, with the checksum that it has now."""
    return sealed(re.sub(rb'"crc32":"\w{8}"', b'"crc32":"00000000"', data, count=1))
