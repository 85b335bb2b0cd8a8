"""Moving averages of weights, and runs that end when validation no longer improves."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from helpers import MACHINE, RECIPE, STEPS, at_step
from safetensors.torch import load_file
from test_train_options import resumed_as_unbroken
from torch import Tensor, nn

from bnew.errors import BnewError
from bnew.layers import named_binary_parameters
from bnew.registry import METHODS
from bnew.training.averaging import Average, averaged
from bnew.training.evaluation import evaluate_run
from bnew.training.loop import Trainer, train

EMA = RECIPE.replace(epochs=1, ema=0.8)


def test_the_average_equals_its_twin() -> None:
    torch.manual_seed(0)
    w = torch.randn(5)
    average = Average({"w": w}, 0.7)
    twin = w.clone().double()
    for step in range(1, 30):
        w.add_(torch.randn(5))
        average.update()
        decay = min(0.7, (1 + step) / (10 + step))
        twin = decay * twin + (1 - decay) * w.double()
        held = w.clone()
        with average.in_place():
            torch.testing.assert_close(w.double(), twin, atol=1e-5, rtol=1e-5)
        assert torch.equal(w, held)


class Shared(nn.Module):
    """Two layers share their weights; a buffer is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.mask: Tensor
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))


def test_shared_weights_are_averaged_once_and_masks_of_infinite_numbers_not_at_all() -> None:
    model = Shared()
    average = averaged(EMA, model)
    first = model.first.weight.detach().clone()
    model.first.weight.data += 1
    average.update()
    with average.in_place():
        torch.testing.assert_close(model.second.weight, first + 9 / 11)
        assert torch.equal(model.mask, torch.full((2, 2), -torch.inf).triu(1))
    assert torch.equal(model.second.weight, first + 1)
    assert not any(tensor.isnan().any() for tensor in model.state_dict().values())


def test_a_network_that_shares_weights_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sharing.py").write_text(
        "from torch import nn\n\n\n"
        "def net(num_classes):\n"
        "    layers = [nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, num_classes)]\n"
        "    layers[2].weight = layers[1].weight\n"
        "    return nn.Sequential(*layers)\n"
    )
    run = train(EMA.replace(model="sharing:net", method=None), tmp_path / "run", MACHINE)
    saved = load_file(run.best)
    assert torch.equal(saved["1.weight"], saved["2.weight"])
    assert evaluate_run(run, MACHINE).accuracy == pytest.approx(run.summary["test_accuracy"])


class Twin:
    """The average of all that a network holds, as a callback."""

    def on_train_start(self, trainer: Trainer) -> None:
        self.binary = {f"{name}.weight" for name, _ in named_binary_parameters(trainer.module)}
        self.average = self.held(trainer)

    def on_train_batch_end(self, trainer: Trainer, epoch: int, step: int) -> None:
        decay = min(0.8, (1 + step) / (10 + step))
        for name, now in self.held(trainer).items():
            self.average[name] = self.average[name] * decay + (1 - decay) * now

    @staticmethod
    def held(trainer: Trainer) -> dict[str, Tensor]:
        return {n: t.double() for n, t in trainer.module.state_dict().items() if t.is_floating_point()}


@pytest.mark.parametrize("method", ["bnew", "ste", "clip", None])
def test_what_is_validated_saved_and_tested_is_the_average(method: str | None, tmp_path: Path) -> None:
    twin = Twin()
    run = train(EMA.replace(method=method), tmp_path / "run", MACHINE, callbacks=[twin])
    saved = load_file(run.best)
    assert twin.binary <= saved.keys()
    for name, wanted in twin.average.items():
        if name in twin.binary and method in ("bnew", "ste"):
            assert (saved[name].abs() == 1).all()
        else:
            torch.testing.assert_close(saved[name].double(), wanted, atol=1e-5, rtol=1e-5)
    assert evaluate_run(run, MACHINE).accuracy == pytest.approx(run.summary["test_accuracy"])


def test_an_average_resumes_as_if_unbroken(tmp_path: Path) -> None:
    resumed_as_unbroken(EMA.replace(epochs=2, freeze=0.5), tmp_path)


def test_a_checkpoint_of_before_averages_resumes(tmp_path: Path) -> None:
    from bnew.training import checkpoint

    recipe = RECIPE.replace(epochs=2)
    save = checkpoint.save

    def without(run: object, state: dict[str, object]) -> None:
        save(run, {k: v for k, v in state.items() if k != "average"})  # type: ignore[arg-type]

    def stop(training: Trainer) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", without)
        with at_step(STEPS + 2, stop), pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "run", MACHINE)
    unbroken = train(recipe, tmp_path / "unbroken", MACHINE)
    assert train(recipe, tmp_path / "run", MACHINE).best.read_bytes() == unbroken.best.read_bytes()


# --------------------------------------------------------------------------------------- patience


def test_a_run_ends_when_validation_no_longer_improves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accuracies = iter([0.3, 0.5, 0.4, 0.5, 0.6, 0.6, 0.1, 0.2, 0.9])
    validate = Trainer.validate
    monkeypatch.setattr(Trainer, "validate", lambda self: validate(self) | {"accuracy": next(accuracies)})
    recipe = RECIPE.replace(method="ste", epochs=9, patience=3)
    caplog.set_level(logging.INFO)
    run = train(recipe, tmp_path / "run", MACHINE)
    assert run.summary["epochs"] == 8
    assert run.summary["best_epoch"] == 4
    assert "is stopped after 8 of 9 epochs, as validation has not improved since epoch 5" in caplog.text


def test_patience_resumes_as_if_unbroken(tmp_path: Path) -> None:
    resumed_as_unbroken(RECIPE.replace(method="ste", epochs=6, patience=1, lr=0.3), tmp_path)


def test_patience_is_refused_where_weights_become_binary_over_the_run() -> None:
    for name, row in METHODS.items():
        if row.gradual:
            with pytest.raises(BnewError, match=f"{name} takes the whole run to make weights binary"):
                RECIPE.replace(method=name, patience=2)
        else:
            assert RECIPE.replace(method=name, patience=2).patience == 2
    bops = {"bop", "bop2nd"}  # whose weights are binary from the start; their rates follow the length
    wanted = {name for name, row in METHODS.items() if row.load().needs_total_steps} - bops
    assert {name for name, row in METHODS.items() if row.gradual} == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 2, "method": "clip", "epochs": 4, "freeze": 0.5}, "before its weights are frozen"),
        ({"mixup": 1e-50}, "which mixes nothing"),
        ({"ema": 1}, "ema is 1, but must be between 0 and 1, and neither"),
        ({"ema": 1.5}, "ema is 1.5, but must be a number between 0 and 1"),
        ({"patience": 0, "method": "ste"}, "patience is 0, but must be a whole number at least 1"),
    ],
)
def test_bad_input_is_explained(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BnewError, match=message):
        RECIPE.replace(**changes)
