"""Saves a run's checkpoints and best weights, and resumes from them."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bnew.files import sha256_of, write_atomically
from bnew.layers import with_present_names
from bnew.methods.ride import STATE
from bnew.training import callbacks, checkpoint
from bnew.training.fitting import check_state
from bnew.training.loop_state import LoopState

if TYPE_CHECKING:
    from bnew.training.loop import Trainer

logger = logging.getLogger("bnew")


class Saver:
    """Writes, in the first process, and reads a run's checkpoints and its best weights."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    @property
    def callbacks(self) -> list[object]:
        """The user's own; Fabric has no public name for those that it calls."""
        return self.trainer.fabric._callbacks

    def save_best(self) -> None:
        """Write the current weights as the best ones."""
        trainer = self.trainer
        if trainer.fabric.is_global_zero:
            form = torch.contiguous_format  # copies: the file has no tensors that share memory
            weights = {name: t.clone(memory_format=form) for name, t in trainer.module.state_dict().items()}
            write_atomically(trainer.run.best, partial(save_file, weights), keep=trainer.run.previous_best)
            trainer.state.best_sha256 = sha256_of(trainer.run.best)
        trainer.state.best_sha256 = trainer.fabric.broadcast(trainer.state.best_sha256)

    def share_broken(self) -> dict[str, str]:
        """Share the broken images that each process has found with all processes; returns them.

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
        """Everything that a resumed run needs; ``meter`` and ``broken`` are of all processes."""
        trainer = self.trainer
        optimizer = dict(trainer.optimizer.state_dict())
        return {
            "model": dict(trainer.module.state_dict()),
            "method": optimizer.pop(STATE),
            "optimizer": optimizer,
            "average": trainer.average.state_dict(),
            **trainer.state.to_dict(),
            "meter": meter,
            "precision": trainer.fabric.strategy.precision.state_dict(),  # the loss scale of 16-mixed
            "broken": broken,
            "callbacks": {},
        }

    def save(self) -> None:
        """Write a checkpoint, from which the same command resumes."""
        trainer = self.trainer
        state = self._to_save(trainer.meter.total(trainer.fabric), self.share_broken())
        state["callbacks"] = callbacks.states(self.callbacks)
        if trainer.fabric.is_global_zero:
            checkpoint.save(trainer.run, state)
        trainer.fabric.barrier()  # no process may continue before the first one has written the file

    def resume(self, path: Path) -> None:
        """Resume from the checkpoint ``path``; nothing is restored before all of it is checked.

        Raises:
            BnewError: it is damaged or does not fit this run; the message says from where the run can resume
                instead.
        """
        trainer = self.trainer
        names: dict[Tensor, str] = {p: name for name, p in trainer.module.named_parameters()}

        def check(state: dict[str, Any]) -> None:
            if isinstance(model := state.get("model"), dict):
                state["model"] = with_present_names(model, trainer.module)
            state.setdefault("average", {})  # an earlier version had none
            check_state(
                state,
                self._to_save(trainer.meter.sums, {}),
                trainer.optimizer.optimizer,
                names,
                forced=trainer.machine.force,
            )

        state = checkpoint.load(trainer.run, path, check)
        self.restore(state)
        logger.info("resuming from step %d of %d", trainer.state.step, trainer.total_steps)

    def restore(self, state: dict[str, Any]) -> None:
        """Restore ``state``, which must have been checked."""
        trainer = self.trainer
        trainer.module.load_state_dict(state["model"])
        # The settings come from the recipe, not from the checkpoint.
        settings = trainer.optimizer.state_dict()["param_groups"]
        trainer.optimizer.load_state_dict(
            {"state": state["optimizer"]["state"], "param_groups": settings, STATE: state["method"]}
        )
        trainer.average.load_state_dict(state["average"])
        trainer.state = LoopState.from_dict(state)
        if state["precision"]:  # empty if --force has changed the precision to 16-mixed
            trainer.fabric.strategy.precision.load_state_dict(state["precision"])
        trainer.data.broken.update(state["broken"])
        callbacks.restore(self.callbacks, state["callbacks"])
        trainer.fabric.barrier()  # all processes have read the best weights
        if trainer.fabric.is_global_zero:
            trainer.meter.sums.copy_(state["meter"])  # the sum over all processes, so only in one
            if trainer.state.best_sha256 is not None:
                trainer.run.take_best(trainer.state.best_sha256)
