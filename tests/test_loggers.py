"""Loggers of Lightning Fabric, and Weights & Biases."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import MACHINE, RECIPE, STEPS, Crash, at_step, crash
from lightning_fabric.loggers.logger import Logger

from bnew.errors import BnewError
from bnew.training.loop import train

RUN = RECIPE.replace(method="ste", epochs=2)


class Notes(Logger):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "notes"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.told.append((step, dict(metrics)))


def test_a_logger_gets_every_epoch_and_the_test(tmp_path: Path) -> None:
    notes = Notes()
    run = train(RUN, tmp_path / "run", MACHINE, loggers=[notes])
    assert [step for step, _ in notes.told] == [0, 1, 2]
    for (_, told), row in zip(notes.told[:2], run.rows("metrics"), strict=True):
        assert {name: str(value) for name, value in told.items()} == dict(row)
    assert notes.told[2][1]["test_accuracy"] == run.summary["test_accuracy"]


def test_a_run_is_one_run_of_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    begun: list[dict[str, Any]] = []
    init = wandb.init

    def noted(**options: Any) -> object:
        begun.append(options)
        return init(**options)

    monkeypatch.setattr(wandb, "init", noted)
    machine = replace(MACHINE, wandb="project")
    with at_step(STEPS + 1, crash), pytest.raises(Crash):
        train(RUN, tmp_path / "a" / "run", machine)
    assert wandb.run is None
    train(RUN, tmp_path / "a" / "run", machine)
    train(RUN, tmp_path / "a" / "other", machine)
    assert [each["id"] == begun[0]["id"] for each in begun] == [True, True, False]
    assert (begun[0]["project"], begun[0]["name"], begun[0]["group"]) == ("project", "run", "a")
    assert begun[0]["config"]["method"] == "ste"
    assert (tmp_path / "a" / "run" / "wandb").is_dir()


def test_without_weights_and_biases_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "wandb":
            raise ModuleNotFoundError("No module named 'wandb'")
        return found(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BnewError, match=r"--wandb needs .*: install bnew\[wandb\]"):
        train(RUN, tmp_path / "run", replace(MACHINE, wandb="project"))


def test_without_a_key_nothing_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")

    def refused(**options: Any) -> None:
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refused)
    with pytest.raises(BnewError, match=r"cannot be used \(No API key .*WANDB_MODE=offline"):
        train(RUN, tmp_path / "run", replace(MACHINE, wandb="project"))
    assert not (tmp_path / "run" / "metrics.csv").exists()
