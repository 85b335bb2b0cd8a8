"""Where the numbers of a run go besides its folder: loggers of Lightning Fabric, and Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from bnew.errors import BnewError, first_line
from bnew.recipe import Recipe
from bnew.results.run import Run

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger


@contextmanager
def logging_to(
    run: Run, recipe: Recipe, given: Sequence[Logger], wandb: str | None
) -> Iterator[list[Logger]]:
    """Fabric's loggers of ``run``: those ``given``, and one for the project ``wandb`` of Weights & Biases.

    A run of bnew is one run there, named by its folder, which a resumed run continues.

    Raises:
        BnewError: Weights & Biases is not installed, or lets nobody in.
    """
    if wandb is None:
        yield list(given)
        return
    try:
        import wandb as library
        from lightning.pytorch.loggers import WandbLogger
    except ImportError as error:
        raise BnewError(f"--wandb needs a package that is missing ({error}): install bnew[wandb]") from None
    place = run.path.resolve()
    identity = blake2b(str(place).encode(), digest_size=6).hexdigest()
    logger: Any = WandbLogger(
        project=wandb,
        name=place.name,
        group=place.parent.name,
        id=identity,
        resume="allow",
        save_dir=str(place),
        config=recipe.to_dict(),
    )
    try:
        _ = logger.experiment  # begins the run there, before anything is computed here
    except Exception as error:  # the library's errors have no common base
        raise BnewError(
            f"Weights & Biases cannot be used ({first_line(error)}): log in by `wandb login`, set "
            "WANDB_MODE=offline, or leave out --wandb"
        ) from error
    code = 1
    try:
        yield [*given, logger]
        code = 0
    finally:  # so that the next run of this process does not continue this one
        library.finish(exit_code=code)


def log(fabric: Any, row: Mapping[str, Any], step: int) -> None:
    """Send the numbers of ``row`` to all loggers of ``fabric``."""
    fabric.log_dict({name: value for name, value in row.items() if isinstance(value, int | float)}, step=step)
