"""What a run saves while it trains, and how it goes on from that."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bnew.files import sha256_of, write_atomically
from bnew.methods.ride import STATE
from bnew.training import checkpoint
from bnew.training.fitting import check_state
from bnew.training.loop_state import LoopState

if TYPE_CHECKING:
    from bnew.training.loop import Trainer

logger = logging.getLogger("bnew")


class Saver:
    """The checkpoints of a run, of which the first process writes, and its best weights."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def save_best(self) -> None:
        """Write the weights as they are as those of the best epoch."""
        trainer = self.trainer
        if trainer.fabric.is_global_zero:
            weights = {name: t.contiguous() for name, t in trainer.module.state_dict().items()}
            write_atomically(trainer.run.best, partial(save_file, weights), keep=trainer.run.previous_best)
            trainer.state.best_sha256 = sha256_of(trainer.run.best)
        trainer.state.best_sha256 = trainer.fabric.broadcast(trainer.state.best_sha256)

    def share_broken(self) -> dict[str, str]:
        """The broken images that any process has met, which from now on all of them know.

        Raises:
            BnewError: there are too many.
        """
        trainer = self.trainer
        if trainer.data.max_broken and trainer.fabric.world_size > 1:
            parts: list[Any] = [None] * trainer.fabric.world_size
            torch.distributed.all_gather_object(parts, trainer.data.broken)
            for part in parts:
                trainer.data.add_broken(part)
        return trainer.data.broken

    def _to_save(self, meter: Tensor, broken: dict[str, str]) -> dict[str, Any]:
        """All that a resumed run needs, with the sums and the broken images of all processes."""
        trainer = self.trainer
        optimizer = dict(trainer.optimizer.state_dict())
        return {
            "model": dict(trainer.module.state_dict()),
            "method": optimizer.pop(STATE),
            "optimizer": optimizer,
            **trainer.state.to_dict(),
            "meter": meter,
            "precision": trainer.fabric.strategy.precision.state_dict(),  # of 16-mixed, how losses are scaled
            "broken": broken,
        }

    def save(self) -> None:
        """Write a checkpoint, from which the same command goes on."""
        trainer = self.trainer
        state = self._to_save(trainer.meter.total(trainer.fabric), self.share_broken())
        if trainer.fabric.is_global_zero:
            checkpoint.save(trainer.run, state)
        trainer.fabric.barrier()  # an error of the first one is to be known to all before they go on

    def resume(self, path: Path) -> None:
        """Continue from the checkpoint ``path``, of which nothing is restored before all of it is checked.

        Raises:
            BnewError: it is damaged or does not fit this run; says from where the run can continue instead.
        """
        trainer = self.trainer
        names: dict[Tensor, str] = {p: name for name, p in trainer.module.named_parameters()}

        def check(state: dict[str, Any]) -> None:
            check_state(
                state,
                self._to_save(trainer.meter.sums, {}),
                trainer.optimizer.optimizer,
                names,
                forced=trainer.machine.force,
            )

        state = checkpoint.load(trainer.run, path, check)
        self.restore(state)
        logger.info("going on from step %d of %d", trainer.state.step, trainer.total_steps)

    def restore(self, state: dict[str, Any]) -> None:
        """Take up where ``state`` was, which is checked."""
        trainer = self.trainer
        trainer.module.load_state_dict(state["model"])
        # The settings are those of the recipe, not of what was saved.
        settings = trainer.optimizer.state_dict()["param_groups"]
        trainer.optimizer.load_state_dict(
            {"state": state["optimizer"]["state"], "param_groups": settings, STATE: state["method"]}
        )
        trainer.state = LoopState.from_dict(state)
        if state["precision"]:  # empty of a run that goes on by force and had no 16-mixed
            trainer.fabric.strategy.precision.load_state_dict(state["precision"])
        trainer.data.broken.update(state["broken"])
        trainer.fabric.barrier()  # all have looked at the best weights
        if trainer.fabric.is_global_zero:
            trainer.meter.sums.copy_(state["meter"])  # the sum over the processes, as many as there were
            if trainer.state.best_sha256 is not None:
                trainer.run.take_best(trainer.state.best_sha256)
