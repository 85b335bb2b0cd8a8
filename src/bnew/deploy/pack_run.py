"""A run's best weights become a packed file."""

from __future__ import annotations

from pathlib import Path

import torch

from bnew.deploy.trained import trained
from bnew.errors import BnewError
from bnew.layers import binary_parameters
from bnew.packing.file import PackedFile
from bnew.packing.packer import pack
from bnew.results.run import Run
from bnew.training.machine import Machine


def pack_run(run: Run, path: str | Path, machine: Machine, *, half: bool = False) -> PackedFile:
    """:func:`pack` the best weights of a run, for images that are prepared as its own were.

    No image is needed, except of a run of an earlier version, which does not say how they were prepared.

    Raises:
        BnewError: no such run, or it cannot be packed.
    """
    model, prepared = trained(run, machine)
    if not run.recipe.ends_binary and binary_parameters(model):
        which = f"phase 1 (--method {run.recipe.method})" if run.recipe.method else "no method"
        raise BnewError(
            f"{run.path} is a run of {which}, whose weights are real: pack one of phase 2 that starts from "
            f"it, such as of bnew train --method bnew --init {run.path}"
        )
    return pack(
        model,
        torch.zeros(1, *prepared.size),
        path,
        mean=prepared.mean,
        std=prepared.std,
        resize=prepared.resize,
        classes=prepared.classes,
        half=half,
    )
