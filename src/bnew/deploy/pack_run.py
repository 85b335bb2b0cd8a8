"""Packs a run's best weights."""

from __future__ import annotations

from pathlib import Path

import torch

from bnew.deploy.trained import trained
from bnew.errors import BnewError
from bnew.layers import binary_parameters
from bnew.packing.file import PackedFile
from bnew.packing.packer import pack
from bnew.results.packed import record_packed
from bnew.results.run import Run
from bnew.training.machine import Machine


def pack_run(
    run: Run, path: str | Path, machine: Machine, *, half: bool = False, any_size: bool = False
) -> PackedFile:
    """Pack the best weights of a run by :func:`pack`, with mean, std, size and classes of its images.

    The size of the file is recorded in the run's folder, for its report.

    The images are needed only for a run of an earlier version of bnew, which did not record these.

    Raises:
        BnewError: there is no such run, its weights are not binary, or it cannot be packed.
    """
    model, prepared = trained(run, machine)
    if not run.recipe.ends_binary and binary_parameters(model):
        which = f"phase 1 (--method {run.recipe.method})" if run.recipe.method else "no method"
        raise BnewError(
            f"{run.path} is a run of {which}, whose weights are real: pack one of phase 2 that starts from "
            f"it, such as of bnew train --method bnew --init {run.path}"
        )
    packed = pack(
        model,
        torch.zeros(1, *prepared.size),
        path,
        mean=prepared.mean,
        std=prepared.std,
        resize=prepared.resize,
        classes=prepared.classes,
        half=half,
        any_size=any_size,
    )
    record_packed(run, Path(path), packed.file_bytes)
    return packed
