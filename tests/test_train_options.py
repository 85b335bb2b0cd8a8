"""What a run may be asked for beside its method: each against a reference, and resumed as if unbroken."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from helpers import MACHINE, RECIPE, STEPS, Crash, at_step, crash, kill_at_step, outcome

from bnew.cli import main
from bnew.data.sources import load_in_memory
from bnew.errors import BnewError
from bnew.layers import binary_parameters
from bnew.recipe import Recipe
from bnew.training.evaluation import Meter
from bnew.training.loop import train
from bnew.training.losses import class_weights, make_loss
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


def by_hand(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """Per image, the mean over the spread target of −w_c · log p_c."""
    target = F.one_hot(labels, logits.shape[1]) * (1 - smoothing) + smoothing / logits.shape[1]
    return -(target * weights * logits.log_softmax(1)).sum(1)


BALANCED: dict[str, Any] = {"class_weights": "balanced"}
LOSSES: list[dict[str, Any]] = [
    {"label_smoothing": 0.2},
    BALANCED,
    {"class_weights": {"3": 4, "7": 0.25}, "label_smoothing": 0.1},
]


def weights_of(changes: dict[str, Any]) -> torch.Tensor:
    """The weights of the digits' classes."""
    labels = load_in_memory("digits").train.labels
    if changes.get("class_weights") == "balanced":
        return torch.stack([len(labels) / (10 * (labels == c).sum()) for c in range(10)])
    return torch.tensor([float(changes.get("class_weights", {}).get(str(c), 1)) for c in range(10)])


@pytest.mark.parametrize("changes", LOSSES)
def test_the_loss_is_the_same_in_any_parts(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(23, 10), torch.randint(10, (23,))
    loss = make_loss(RECIPE.replace(**changes), load_in_memory("digits"), torch.device("cpu"))
    wanted = by_hand(logits, labels, weights_of(changes), changes.get("label_smoothing", 0)).mean()
    torch.testing.assert_close(loss(logits, labels), wanted)
    parts = zip(logits.tensor_split(4), labels.tensor_split(4), strict=True)
    torch.testing.assert_close(sum(loss(x, y) * len(y) / 23 for x, y in parts), wanted)


def test_what_trains_by_default_is_pytorchs_cross_entropy() -> None:
    assert make_loss(RECIPE, load_in_memory("digits"), torch.device("cpu")) is F.cross_entropy


def test_balanced_classes_weigh_as_much_as_their_images() -> None:
    data = load_in_memory("digits")
    weights = class_weights("balanced", data)
    assert weights is not None
    each = weights[data.train.labels].double()
    assert each.mean().item() == pytest.approx(1, rel=1e-6)
    for label in range(10):
        assert each[data.train.labels == label].sum().item() == pytest.approx(len(each) / 10, rel=1e-6)


@pytest.mark.parametrize("changes", LOSSES)
def test_a_run_is_trained_by_this_loss(tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = RECIPE.replace(method="real", batch_size=2000, **changes)
    seen: list[torch.Tensor] = []
    update = Meter.update

    def seeing(meter: Meter, *batch: torch.Tensor) -> None:
        seen.extend(batch)
        update(meter, *batch)

    with mock.patch.object(Meter, "update", seeing):
        train(recipe, tmp_path, MACHINE)
    loss, logits, labels = seen[:3]
    wanted = by_hand(logits, labels, weights_of(changes), changes.get("label_smoothing", 0)).mean()
    torch.testing.assert_close(loss, wanted)


def test_a_run_with_another_loss_resumes(tmp_path: Path) -> None:
    recipe = RECIPE.replace(epochs=2, freeze=0.5, label_smoothing=0.1, **BALANCED)
    resumed_as_unbroken(recipe, tmp_path)


def test_a_recipe_is_read_with_the_loss_that_it_was_written_with() -> None:
    for changes in LOSSES:
        recipe = RECIPE.replace(**changes)
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    earlier = {k: v for k, v in RECIPE.to_dict().items() if k not in ("label_smoothing", "class_weights")}
    assert Recipe.from_dict(earlier).meaning() == RECIPE.meaning()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label_smoothing": 1}, "nothing would be learnt"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5, but must be a number between 0 and 1"),
        ({"class_weights": "balancd"}, "class_weights is 'balancd', but must be 'balanced'"),
        ({"class_weights": [1, 2]}, "or numbers by class"),
        ({"class_weights": {3: 2.0}}, "a class's name is a text"),
        ({"class_weights": {"3": 0}}, "the weight of class '3' is 0, but must be a positive number"),
        ({"class_weights": {"3": math.nan}}, "but must be a positive number"),
        ({"teacher": "t", "label_smoothing": 0.1}, "leave out the teacher, or label_smoothing$"),
        ({"teacher": "t", **BALANCED}, "leave out the teacher, or class_weights$"),
    ],
)
def test_a_loss_that_cannot_be(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BnewError, match=sentence):
        RECIPE.replace(**changes)


def test_weights_of_classes_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BnewError, match="unknown class in class_weights '12'"):
        train(RECIPE.replace(class_weights={"12": 2}), tmp_path, MACHINE)
    data = load_in_memory("digits")
    few = replace(data, train=data.train[data.train.labels != 4])
    with pytest.raises(BnewError, match="there are no training images of 4, so nothing can balance"):
        class_weights("balanced", few)


@pytest.mark.parametrize(
    ("words", "weights"), [(["balanced"], "balanced"), (["0=2", "3=0.5"], {"0": 2, "3": 0.5})]
)
def test_class_weights_on_the_command_line(words: list[str], weights: Any, tmp_path: Path) -> None:
    trained = mock.patch("bnew.training.loop.train", side_effect=BnewError("seen"))
    with trained as called, pytest.raises(SystemExit):
        main(["train", "--data", "digits", "--out", str(tmp_path), "--class-weights", *words])
    assert called.call_args.args[0].class_weights == weights


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
