"""Loads the network that a run has trained."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from bnew.data.preparation import Preparation
from bnew.results.groups import best_run
from bnew.results.run import Run
from bnew.training.machine import Machine
from bnew.training.networks import load_model
from bnew.training.run_data import preparation_of


def load(run: str | Path | Run, *, data_dir: str | None = None) -> nn.Module:
    """The network of a run with its best weights, in eval mode, on the CPU.

    It takes images (N, C, H, W). ``bnew.results.Run(path).preparation`` says how to prepare them.

    Args:
        run: the run's folder; or a folder above runs, for the run with the best validation accuracy.
        data_dir: folder of the data sets. Only a run of an earlier version of bnew needs its images.

    Raises:
        BnewError: there is no such run, or its weights are missing or damaged.
    """
    return trained(as_run(run), Machine(data_dir=data_dir, device="cpu"))[0]


def as_run(run: str | Path | Run) -> Run:
    """The run at a path, see :func:`bnew.results.groups.best_run`."""
    return run if isinstance(run, Run) else best_run(run)


def trained(run: Run, machine: Machine) -> tuple[nn.Module, Preparation]:
    """The network of ``run`` with its best weights, in eval mode, and how its images are prepared.

    The images are needed only for a run of an earlier version of bnew, which did not record the preparation.

    Raises:
        BnewError: there is no such run, or its weights are missing or damaged.
    """
    prepared = preparation_of(run, machine)
    return load_model(run, prepared.num_classes, prepared.size[0]), prepared
