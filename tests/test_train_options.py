"""What a run may be asked for beside its method: each against a reference, and resumed as if unbroken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MACHINE, RECIPE, STEPS, Crash, at_step, crash, kill_at_step, outcome

from bnew.errors import BnewError
from bnew.layers import binary_parameters
from bnew.recipe import Recipe
from bnew.training.loop import train
from bnew.training.networks import build_model
from bnew.training.optimizers import make_optimizer

ADAMW = RECIPE.replace(epochs=2, freeze=0.5, optimizer="adamw", weight_decay=0.1)


def resumed_as_unbroken(recipe: Recipe, folder: Path) -> None:
    """Killed within the first epoch and broken off within the second, ``recipe`` ends as without it."""
    machine = replace(MACHINE, save_every=2)
    unbroken = train(recipe, folder / "unbroken", machine)
    kill_at_step(recipe, folder / "killed", machine, 3)
    with at_step(STEPS + 3, crash), pytest.raises(Crash):
        train(recipe, folder / "killed", machine)
    assert outcome(train(recipe, folder / "killed", machine)) == outcome(unbroken)


@pytest.mark.parametrize("method", ["bnew", "ste", "real"])
def test_adamw_is_adam_and_a_shrinking_that_spares_binary_weights(method: str) -> None:
    torch.manual_seed(0)
    steps: dict[float, dict[str, torch.Tensor]] = {}
    model = build_model(RECIPE, 10, 1)
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    grads = {name: torch.randn_like(p) for name, p in first.items()}
    for decay, optimizer in ((0.1, "adamw"), (0.0, "adam")):
        recipe = RECIPE.replace(method=method, optimizer=optimizer, weight_decay=decay, lr=0.05)
        model.load_state_dict(first, strict=False)
        for name, p in model.named_parameters():
            p.grad = grads[name].clone()
        make_optimizer(recipe, model).step()
        steps[decay] = {name: p.detach().clone() for name, p in model.named_parameters()}
    binary = {id(p) for p in binary_parameters(model)}
    assert binary
    for name, p in model.named_parameters():
        is_binary = id(p) in binary
        shrunk = 0 if is_binary and method != "real" else 0.05 * 0.1
        torch.testing.assert_close(steps[0.1][name], steps[0.0][name] - shrunk * first[name])


def test_a_run_with_adamw_resumes(tmp_path: Path) -> None:
    resumed_as_unbroken(ADAMW, tmp_path)


def test_adamw_by_force(tmp_path: Path) -> None:
    with at_step(STEPS, crash), pytest.raises(Crash):
        train(ADAMW.replace(optimizer="adam"), tmp_path, MACHINE)
    with pytest.raises(BnewError, match="optimizer is 'adam' there and 'adamw' here"):
        train(ADAMW, tmp_path, MACHINE)
    groups: list[dict[str, Any]] = []
    with at_step(STEPS + 1, lambda training: groups.extend(training.optimizer.param_groups)):
        train(ADAMW, tmp_path, replace(MACHINE, force=True))
    assert {group["decoupled_weight_decay"] for group in groups} == {True}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
