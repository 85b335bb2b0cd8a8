"""Errors of PyTorch that end a run, in words that say what to do."""

from __future__ import annotations

from bnew.errors import BnewError, ProcessLost, first_line, is_out_of_memory
from bnew.recipe import Recipe
from bnew.results.run import Run
from bnew.training.distributed import is_lost
from bnew.training.machine import Machine


def explained(
    error: Exception, run: Run, recipe: Recipe, machine: Machine, world_size: int
) -> Exception | None:
    """What ``error`` means for ``run``: too little memory, a lost process; None: it is what it says."""
    if is_out_of_memory(error):
        parts = f", each share of it in {machine.accumulate} parts" if machine.accumulate > 1 else ""
        processes = f" on {world_size} devices" if world_size > 1 else ""
        saved = f"; the checkpoint in {run.path} is kept, and --force continues from it" if run.newest else ""
        return BnewError(
            f"there is not enough memory for batches of {recipe.batch_size} images{processes}{parts} "
            f"({first_line(error)}): give --accumulate {2 * machine.accumulate} to compute a batch in more "
            f"parts, or a smaller --batch-size{saved}"
        )
    if isinstance(error, RuntimeError) and world_size > 1 and is_lost(error):
        return ProcessLost(
            f"another of the {world_size} processes that train {run.path} was lost ({first_line(error)}): "
            "start the same command again to resume from the last checkpoint"
        )
    return None
