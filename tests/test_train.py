"""The training loop: whatever breaks a run, it goes on as if nothing had been."""

from __future__ import annotations

import logging
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    MACHINE,
    RECIPE,
    STEPS,
    TEACHER,
    Crash,
    at_step,
    crash,
    crash_with,
    fill_with_nan,
    kill_at_step,
    outcome,
    send,
)
from safetensors.torch import save_file
from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]
from test_data import make_folder
from torch import Tensor, nn

from bnew import registry
from bnew.data.in_memory import MemoryBatches
from bnew.data.sources import load_in_memory
from bnew.errors import BnewError, Interrupted, NumericalError
from bnew.files import write_json
from bnew.layers import binary_parameters
from bnew.methods import BNEW
from bnew.models import create_model
from bnew.results.run import Run
from bnew.training.evaluation import Meter, evaluate, evaluate_run
from bnew.training.loop import Trainer, train
from bnew.training.machine import Machine, make_fabric
from bnew.training.networks import build_model, load_model, load_weights
from bnew.training.provenance import BYSTANDERS, code_hash, conditions, environment, used_modules

# Four epochs, frozen after two: every method, optimizer and schedule.
RECIPES = {
    "bnew": RECIPE.replace(epochs=4, freeze=0.5),
    "ste": RECIPE.replace(epochs=4, freeze=0.5, method="ste", optimizer="sgd", schedule="cosine"),
    "bmd": RECIPE.replace(epochs=4, freeze=0.5, method="bmd", schedule="step", milestones=(0.3, 0.6)),
    "bop": RECIPE.replace(epochs=4, freeze=0.5, method="bop", method_options={"gamma": 0.01}),
}
SCHEDULED = {"bnew": ["reg"], "ste": [], "bmd": ["beta"], "bop": ["gamma"]}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("unbroken")
    return {name: train(recipe, folder / name, MACHINE) for name, recipe in RECIPES.items()}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(TEACHER, tmp_path_factory.mktemp("real") / "teacher", MACHINE)


# Going on


@pytest.mark.parametrize("method", RECIPES)
@pytest.mark.parametrize(
    ("step", "action", "error"),
    [
        pytest.param(STEPS, crash, Crash, id="between epochs"),
        pytest.param(STEPS + 2, send(signal.SIGINT), Interrupted, id="in mid-epoch"),
        pytest.param(2 * STEPS - 1, send(signal.SIGTERM), Interrupted, id="in an epoch's last step"),
        pytest.param(3 * STEPS + 1, send(signal.SIGINT), Interrupted, id="after freezing"),
    ],
)
def test_a_stopped_run_ends_like_an_unbroken_one(
    unbroken: dict[str, Run], tmp_path: Path, method: str, step: int, action: Any, error: type[Exception]
) -> None:
    with at_step(step, action), pytest.raises(error):
        train(RECIPES[method], tmp_path, MACHINE)
    assert not Run(tmp_path).done
    assert outcome(train(RECIPES[method], tmp_path, MACHINE)) == outcome(unbroken[method])


@pytest.mark.parametrize("step", [STEPS + 3, 2 * STEPS], ids=["in mid-epoch", "after an epoch's last step"])
def test_a_killed_run_ends_like_an_unbroken_one(unbroken: dict[str, Run], tmp_path: Path, step: int) -> None:
    machine = replace(MACHINE, save_every=2)
    kill_at_step(RECIPES["bnew"], tmp_path, machine, step)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["step"] == step // 2 * 2
    assert outcome(train(RECIPES["bnew"], tmp_path, machine)) == outcome(unbroken["bnew"])


def test_killed_at_the_end_of_an_epoch_before_it_is_recorded(
    unbroken: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = replace(MACHINE, save_every=STEPS)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_end_epoch", lambda self, *_: crash(self))
        with pytest.raises(Crash):
            train(RECIPES["bnew"], tmp_path, machine)
    assert outcome(train(RECIPES["bnew"], tmp_path, machine)) == outcome(unbroken["bnew"])


def test_a_run_of_one_step_an_epoch_can_be_stopped(tmp_path: Path) -> None:
    recipe = RECIPE.replace(epochs=3, batch_size=2000)
    with at_step(1, send(signal.SIGINT)), pytest.raises(Interrupted, match=r"epoch 2 of 3.*same command"):
        train(recipe, tmp_path, MACHINE)
    assert len(Run(tmp_path).rows()) == 2


def test_a_finished_run_is_kept(unbroken: dict[str, Run]) -> None:
    before = {path: path.stat().st_mtime_ns for path in unbroken["ste"].path.iterdir()}
    train(RECIPES["ste"], unbroken["ste"].path, MACHINE)
    assert {path: path.stat().st_mtime_ns for path in unbroken["ste"].path.iterdir()} == before


# Accidents


def test_nan_ends_the_run_and_spares_the_checkpoint(unbroken: dict[str, Run], tmp_path: Path) -> None:
    sentence = r"loss became NaN or infinite in epoch 2, by step 12.*checkpoint.*last\.pt.*learning rate"
    with at_step(STEPS + 1, fill_with_nan), pytest.raises(NumericalError, match=sentence):
        train(RECIPES["bnew"], tmp_path, MACHINE)
    assert outcome(train(RECIPES["bnew"], tmp_path, MACHINE)) == outcome(unbroken["bnew"])


def test_nan_from_the_very_last_step(tmp_path: Path) -> None:
    with at_step(STEPS - 1, fill_with_nan), pytest.raises(NumericalError, match="in epoch 1, by step 6"):
        train(RECIPE, tmp_path, MACHINE)
    assert not Run(tmp_path).last.exists()


def test_a_rate_that_is_much_too_high(tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match=r"lower the learning rate \(1e\+30\)"):
        train(RECIPE.replace(lr=1e30), tmp_path, MACHINE)
    assert not Run(tmp_path).last.exists()


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files cannot grow beyond ``size`` bytes: writing fails half way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("name", "size"), [("best.safetensors", 200_000), ("last.pt", 500_000)], ids=["weights", "state"]
)
def test_a_full_disk_spares_the_checkpoint(
    unbroken: dict[str, Run], tmp_path: Path, name: str, size: int
) -> None:
    with at_step(STEPS, crash), pytest.raises(Crash):
        train(RECIPES["bnew"], tmp_path, MACHINE)
    before = (tmp_path / name).read_bytes()
    with room_for(size), pytest.raises(BnewError, match=f"could not write .*{name}.*is kept"):
        train(RECIPES["bnew"], tmp_path, MACHINE)
    assert (tmp_path / name).read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(f".{name}")]
    assert outcome(train(RECIPES["bnew"], tmp_path, MACHINE)) == outcome(unbroken["bnew"])


@pytest.fixture
def stopped(tmp_path: Path) -> Run:
    """A run with one epoch of two."""
    with at_step(STEPS, crash), pytest.raises(Crash):
        train(RECIPE.replace(epochs=2), tmp_path, MACHINE)
    return Run(tmp_path)


def test_bad_weights_are_refused(stopped: Run, teacher: Run) -> None:
    whole = stopped.best.read_bytes()
    stopped.best.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BnewError, match=r"best\.safetensors is cut short.*train that run again"):
        evaluate_run(stopped, MACHINE)
    stopped.best.write_bytes(teacher.best.read_bytes())
    with pytest.raises(BnewError, match=r"best\.safetensors is of another model"):
        evaluate_run(stopped, MACHINE)
    stopped.best.unlink()
    with pytest.raises(BnewError, match="has not finished an epoch"):
        evaluate_run(stopped, MACHINE)


@pytest.mark.parametrize("options", [{}, {"binary_ends": True}])
def test_weights_for_another_number_of_classes(tmp_path: Path, options: dict[str, bool]) -> None:
    run = Run(tmp_path)
    save_file(create_model("birealnet8", num_classes=7, **options).state_dict(), run.best)
    with pytest.raises(BnewError, match=r"best\.safetensors has 7 classes and the data 10 classes: give the"):
        load_weights(create_model("birealnet8", **options), run)
    for name in ("birealnet20", "wideresnet22"):
        with pytest.raises(BnewError, match="is of another model"):
            load_weights(create_model(name), run)
    with pytest.raises(BnewError, match="is of another model"):
        load_weights(create_model("birealnet8", in_channels=1, **options), run)


def test_weights_of_a_run_of_an_earlier_version(tmp_path: Path) -> None:
    """They are called by the names of then, activation in place of input_sign, and in the checksum too."""
    run, model = Run(tmp_path), create_model("birealnet8")
    state = create_model("birealnet8").state_dict()
    save_file(
        {name.replace(".input_sign.", ".activation."): value for name, value in state.items()}, run.best
    )
    load_weights(model, run)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# Bad input


def test_a_run_in_use(tmp_path: Path) -> None:
    def second(training: Trainer) -> None:
        train(RECIPE, tmp_path, MACHINE)

    with at_step(1, second), pytest.raises(BnewError, match="another process is training"):
        train(RECIPE, tmp_path, MACHINE)


def test_another_recipe_in_the_folder(stopped: Run, unbroken: dict[str, Run]) -> None:
    for run in (stopped, unbroken["bnew"]):
        with pytest.raises(BnewError, match=r"another recipe \(lr is 0.01 there and 0.5 here\)"):
            train(run.recipe.replace(lr=0.5), run.path, MACHINE)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "wideresnet22"}, "no binary layers"),
        ({"teacher": "../nowhere"}, "there is no such folder"),
        ({"init": "../nowhere"}, "there is no such folder"),
        ({"batch_size": 647}, "1295 images in batches of 647 leave a batch of one"),
    ],
)
def test_what_a_run_lacks(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BnewError, match=sentence):
        train(RECIPE.replace(**changes), tmp_path / "run", MACHINE)


def test_a_mistake_does_not_claim_the_folder(tmp_path: Path) -> None:
    with pytest.raises(BnewError, match="unknown data set"):
        train(RECIPE.replace(data="digts"), tmp_path, MACHINE)
    assert train(RECIPE, tmp_path, MACHINE).done


@pytest.mark.parametrize("place", ["new", "deep/er/new", "mine"])
def test_a_refused_run_leaves_no_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(BnewError, match="unknown data set"):
        train(RECIPE.replace(data="digts"), tmp_path / place, MACHINE)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model": "birealnet20"},
            r"birealnet8 on digits, and this run birealnet20 on digits .*--model bireal",
        ),
        (
            {"model_options": {"scale": False, "binary_ends": True}},
            r"birealnet8 on digits, and this run birealnet8 with scale=False, binary_ends=True on .*--model",
        ),
    ],
)
def test_a_start_of_another_model(
    unbroken: dict[str, Run], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    recipe = RECIPE.replace(init=str(unbroken["bnew"].path), **changes)
    with pytest.raises(BnewError, match=rf"--init .* does not fit: it is {said}.* phase 1 \(--method clip\)"):
        train(recipe, tmp_path / "run", MACHINE)


def test_a_start_on_other_data(tmp_path: Path, unbroken: dict[str, Run]) -> None:
    """In colour, and with three classes."""
    folder = make_folder(tmp_path / "images", ("train", "test"))
    recipe = RECIPE.replace(data="folder", init=str(unbroken["bnew"].path))
    with pytest.raises(
        BnewError,
        match=r"it is birealnet8 on digits, and this run birealnet8 on folder .*: give --data digits",
    ):
        train(recipe, tmp_path / "run", replace(MACHINE, data_dir=str(folder)))


@pytest.mark.parametrize(
    "fails",
    [
        pytest.param(lambda _: torch.empty(10**15), id="the machine's"),  # PyTorch's own error
        pytest.param(crash_with(torch.OutOfMemoryError("CUDA out of memory. Tried to")), id="a device's"),
        pytest.param(crash_with(MemoryError()), id="Python's"),
    ],
)
def test_out_of_memory(unbroken: dict[str, Run], tmp_path: Path, fails: Callable[[Trainer], Any]) -> None:
    said = r"not enough memory for batches of 256 images.*--accumulate 2.* smaller --batch-size.*--force"
    with at_step(STEPS + 2, fails), pytest.raises(BnewError, match=said):
        train(RECIPES["bnew"], tmp_path, MACHINE)
    assert outcome(train(RECIPES["bnew"], tmp_path, MACHINE)) == outcome(unbroken["bnew"])


def test_another_error_is_not_one_of_memory(tmp_path: Path) -> None:
    with at_step(2, crash_with(RuntimeError("size mismatch"))), pytest.raises(RuntimeError, match="mismatch"):
        train(RECIPE, tmp_path, MACHINE)


def test_an_unfinished_start_is_refused(stopped: Run, tmp_path: Path) -> None:
    with pytest.raises(BnewError, match="is not finished"):
        train(RECIPE.replace(init=str(stopped.path)), tmp_path / "run", MACHINE)


def test_a_begun_run_needs_its_start_no_more(unbroken: dict[str, Run], tmp_path: Path) -> None:
    recipe = RECIPE.replace(init="../start", epochs=2)
    shutil.copytree(unbroken["bnew"].path, tmp_path / "start")
    with at_step(STEPS + 1, crash), pytest.raises(Crash):
        train(recipe, tmp_path / "run", MACHINE)
    shutil.rmtree(tmp_path / "start")
    assert train(recipe, tmp_path / "run", MACHINE).done


def test_a_run_begun_again_says_each_epoch_once(tmp_path: Path) -> None:
    recipe = RECIPE.replace(epochs=2)
    with at_step(STEPS + 1, crash), pytest.raises(Crash):
        train(recipe, tmp_path, MACHINE)
    Run(tmp_path).last.unlink()
    assert [row["epoch"] for row in train(recipe, tmp_path, MACHINE).rows()] == ["0", "1"]


def test_a_batch_with_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = MemoryBatches.epoch

    def spoilt(
        self: MemoryBatches, epoch: int, start: int = 0
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for i, (x, y) in enumerate(batches(self, epoch, start)):
            yield (torch.full_like(x, torch.nan) if i == 2 and self.train else x), y

    monkeypatch.setattr(MemoryBatches, "epoch", spoilt)
    with pytest.raises(NumericalError, match="NaN or infinite in epoch 1"):
        train(RECIPE, tmp_path, MACHINE)


def test_a_teacher_of_another_data_set(tmp_path: Path) -> None:
    Run(tmp_path / "teacher").path.mkdir()
    Run(tmp_path / "teacher").begin(TEACHER.replace(data="mnist"), {})
    with pytest.raises(BnewError, match=r"teacher .* was trained on mnist, .* student trains on digits"):
        train(RECIPE.replace(teacher="../teacher"), tmp_path / "run", MACHINE)


# What is learnt, and what is recorded


def test_the_distillation_loss(teacher: Run, unbroken: dict[str, Run], tmp_path: Path) -> None:
    start = unbroken["bnew"]
    links = {name: os.path.relpath(run.path, tmp_path) for name, run in
             {"teacher": teacher, "init": start}.items()}  # fmt: skip
    recipe = RECIPE.replace(method="clip", batch_size=2000, **links)
    (row,) = train(recipe, tmp_path, MACHINE).rows()

    data = load_in_memory("digits")
    ((x, _),) = data.batches("train", 2000, train=True).epoch(0)
    networks = {}
    for name, run in {"teacher": teacher, "student": start}.items():
        networks[name] = load_model(run, data.num_classes, data.in_channels).train()
    with torch.no_grad():
        targets = networks["teacher"].eval()(x).softmax(1)
        by_hand = -(targets * networks["student"](x).log_softmax(1)).sum(1).mean()
    assert float(row["train_loss"]) == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize("classes", [10, 100])
def test_the_meter(classes: int) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(50, classes), torch.randint(classes, (50,))
    logits[range(0, 50, 3), labels[::3]] += 4
    meter = Meter(classes, torch.device("cpu"))
    for part in (slice(0, 7), slice(7, 30), slice(30, 50)):
        meter.update(F.cross_entropy(logits[part], labels[part]), logits[part], labels[part])
    means = meter.result(make_fabric(MACHINE))
    rank = (logits > logits[torch.arange(50), labels][:, None]).sum(1)
    assert means["accuracy"] == pytest.approx((rank == 0).float().mean().item())
    assert means["loss"] == pytest.approx(F.cross_entropy(logits, labels).item())
    if classes == 100:
        assert means["top5"] == pytest.approx((rank < 5).float().mean().item())
        assert means["top5"] > means["accuracy"]
    else:
        assert "top5" not in means


def test_evaluation_counts_every_image_once() -> None:
    data = load_in_memory("digits")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10))
    ((x, y),) = data.batches("test", len(data.test), train=False)
    with torch.no_grad():
        logits = model.eval()(x)
    result = evaluate(model.train(), data.batches("test", 100, train=False), make_fabric(MACHINE), 10)
    assert result["accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item(), abs=1e-9)
    assert result["loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-6)


def test_evaluation_leaves_each_module_in_its_mode() -> None:
    batches = load_in_memory("digits").batches("test", 100, train=False)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 10)))
    model[2].eval()  # as one freezes statistics
    for mode in (True, False):
        model[1].train(mode)
        before = [module.training for module in model.modules()]
        evaluate(model, batches, make_fabric(MACHINE), 10)
        assert [module.training for module in model.modules()] == before


def test_evaluation_where_a_process_has_no_share_of_the_last_batch() -> None:
    data = load_in_memory("digits")
    size = len(data.test) - 1  # the last batch is one image
    parts = [
        evaluate(nn.Flatten(), data.batches("test", size, train=False, rank=r, world_size=2), fabric, 10)
        for fabric in [make_fabric(MACHINE)]
        for r in (0, 1)
    ]
    assert all(torch.isfinite(torch.tensor(list(part.values()))).all() for part in parts)


@pytest.mark.parametrize("method", RECIPES)
def test_what_is_recorded(unbroken: dict[str, Run], method: str) -> None:
    run, recipe = unbroken[method], RECIPES[method]
    rows = run.rows()
    assert list(rows[0]) == [
        "epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
        *SCHEDULED[method], "distance", "share_at_one", "flips", "seconds",
        "data_wait",
    ]  # fmt: skip
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    last_steps = [(epoch + 1) * STEPS - 1 for epoch in range(4)]
    assert [float(row["lr"]) for row in rows] == [recipe.lr_at(step / (4 * STEPS)) for step in last_steps]
    assert [(float(row["distance"]), float(row["share_at_one"])) for row in rows[2:]] == [(0, 1)] * 2
    # Layer by layer it adds up to the same.
    layers = run.rows("layers")
    sizes = {name: w.numel() for name, w in build_model(recipe, 10, 1).named_parameters()}
    names = list(dict.fromkeys(row["layer"] for row in layers))
    assert len(layers) == 4 * len(names)
    for row in rows:
        parts = [part for part in layers if part["epoch"] == row["epoch"]]
        assert sum(int(part["flips"]) for part in parts) == int(row["flips"])
        weights = [sizes.get(part["layer"]) or sizes[f"{part['layer']}.weight"] for part in parts]
        for key in ("distance", "share_at_one"):
            mean = sum(n * float(part[key]) for n, part in zip(weights, parts, strict=True)) / sum(weights)
            assert mean == pytest.approx(float(row[key]))
    # The summary is of the best epoch, the earliest of several.
    best = max(rows, key=lambda row: float(row["val_accuracy"]))
    assert (run.summary["best_epoch"], run.summary["val_accuracy"]) == (
        int(best["epoch"]), float(best["val_accuracy"]),
    )  # fmt: skip
    assert run.summary["distance_before_freezing"] == float(rows[1]["distance"])
    assert run.summary["steps"] == 4 * STEPS
    assert run.summary["test_accuracy"] == evaluate_run(run, MACHINE).accuracy
    assert run.summary["val_accuracy"] == evaluate_run(run, MACHINE, "val").accuracy


def test_the_cost_of_freezing(tmp_path: Path) -> None:
    """A push too weak to move any weight is phase 1, so that gives the accuracy just before freezing."""
    options = {"strength": 1e-9, "fill": None}
    recipe = RECIPE.replace(epochs=2, freeze=0.5, method_options=options, binary_lr=1.0)
    run = train(recipe, tmp_path / "bnew", MACHINE)
    real = train(recipe.replace(method="clip", method_options={}, freeze=1), tmp_path / "clip", MACHINE)
    before, after = (float(r.rows()[0]["val_accuracy"]) for r in (real, run))
    assert before != after
    assert run.summary["freezing_cost"] == before - after
    assert run.summary["distance_before_freezing"] == float(real.rows()[0]["distance"])


def test_tensorboard_shows_each_epoch_once(tmp_path: Path) -> None:
    recipe = RECIPE.replace(epochs=2)
    kill_at_step(recipe, tmp_path, MACHINE, STEPS)
    time.sleep(1)  # TensorBoard orders its files by the second they were begun in
    run = train(recipe, tmp_path, MACHINE)
    events, rows = event_accumulator.EventAccumulator(str(tmp_path)), run.rows()
    events.Reload()
    for name in rows[0]:
        assert [event.step for event in events.Scalars(name)] == [0, 1]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(
            [float(r[name]) for r in rows]
        )
    layer = run.rows("layers")[0]["layer"]
    assert f"flips/{layer}" in events.Tags()["scalars"]
    assert events.Tags()["histograms"] == ["binary weights"]


def test_the_rate_of_the_binary_weights(tmp_path: Path) -> None:
    """By SGD without momentum: their steps alone are four times as long."""
    steps: dict[float, list[Tensor]] = {}
    for rate in (1.0, 4.0):
        recipe = RECIPE.replace(method="real", optimizer="sgd", momentum=0.0, binary_lr=rate)
        weights: list[list[Tensor]] = []

        def look(training: Trainer, seen: list[list[Tensor]] = weights) -> None:
            binary = binary_parameters(training.module)[0]
            real = next(training.module.parameters())
            seen.append([p.detach().clone() for p in (binary, real)])

        with at_step(0, look), at_step(1, look):
            run = train(recipe, tmp_path / str(rate), MACHINE)
        assert float(run.rows()[0]["lr"]) == pytest.approx(0.01 / STEPS)  # that of the last step
        before, after = weights
        steps[rate] = [a - b for a, b in zip(after, before, strict=True)]
    torch.testing.assert_close(steps[4.0][0], 4 * steps[1.0][0], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(steps[4.0][1], steps[1.0][1])


def test_what_a_method_chose_is_said_stored_and_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The rule for short runs follows from the number of steps; what the recipe says goes before it."""
    caplog.set_level("INFO", "bnew")
    rates: list[set[float]] = []

    def look(training: Trainer) -> None:
        rates.append({group["rate"] for group in training.optimizer.param_groups})

    recipe = RECIPE.replace(epochs=3, freeze=0.7)  # frozen after two epochs of three
    with at_step(1, look):
        run = train(recipe, tmp_path / "default", MACHINE)
        given = recipe.replace(method_options={"strength": 12.0, "ramp": 1.0, "fill": None}, binary_lr=2.0)
        other = train(given, tmp_path / "given", MACHINE)
    by_rule = BNEW([nn.Parameter(torch.ones(1, 1))], 3 * STEPS, freeze_at=2 / 3).settings
    assert run.environment["method"] == by_rule
    assert by_rule == pytest.approx(
        {"strength": 35.2, "reg": by_rule["reg"], "ramp": 4.0, "fill": 0.54, "binary_lr": 8.0}
    )
    assert other.environment["method"] == pytest.approx(
        {"strength": 12.0, "reg": 12 / 19, "ramp": 1.0, "fill": None, "binary_lr": 2.0}
    )
    assert rates == [{1.0, 8.0}, {1.0, 2.0}]
    assert "bnew, 18 steps: strength 35.2, reg 4.273, ramp 4, fill 0.54, binary_lr 8" in caplog.text


# Another recipe, other code


def test_a_run_does_not_go_on_with_other_code(
    unbroken: dict[str, Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = RECIPES["bnew"]
    with at_step(STEPS, crash), pytest.raises(Crash):
        train(recipe, tmp_path, MACHINE)
    now = conditions(recipe, MACHINE)
    monkeypatch.setattr("bnew.training.loop.conditions", lambda *_: now | {"bnew.layers": "0123456789ab"})
    said = f"bnew.layers is '{now['bnew.layers']}' there and '0123456789ab' here"
    with pytest.raises(BnewError, match=rf"holds a run under other conditions \({said}\): .* --force"):
        train(recipe, tmp_path, MACHINE)
    run = train(recipe, tmp_path, replace(MACHINE, force=True))
    assert said in caplog.text
    assert run.environment["forced"] == [said]
    assert outcome(run) == outcome(unbroken["bnew"])
    monkeypatch.undo()
    train(recipe, tmp_path, MACHINE)  # what is done is no more to be gone on with


def test_another_recipe_by_force(tmp_path: Path) -> None:
    with at_step(STEPS, crash), pytest.raises(Crash):
        train(RECIPES["bnew"], tmp_path, MACHINE)
    other = RECIPES["bnew"].replace(lr=0.02, binary_lr=3.0, weight_decay=1e-3)
    with pytest.raises(BnewError, match=r"another recipe \(lr is 0.01 there and 0.02 here, .* --force"):
        train(other, tmp_path, MACHINE)
    groups: list[dict[str, Any]] = []
    with at_step(STEPS + 2, lambda training: groups.extend(training.optimizer.param_groups)):
        run = train(other, tmp_path, replace(MACHINE, force=True))
    assert {group["rate"] for group in groups} == {1.0, 3.0}
    assert {group["weight_decay"] for group in groups} == {1e-3}
    assert run.recipe == other
    assert "lr is 0.01 there and 0.02 here" in run.environment["forced"]
    with pytest.raises(BnewError, match=r"here\): choose another folder$"):  # force is for what goes on
        train(RECIPES["bnew"], tmp_path, replace(MACHINE, force=True))


def test_another_way_to_compute(tmp_path: Path) -> None:
    with at_step(STEPS, crash), pytest.raises(Crash):
        train(RECIPES["bnew"], tmp_path, MACHINE)
    others: dict[str, dict[str, Any]] = {
        "precision is '32-true' there and 'bf16-mixed' here": {"precision": "bf16-mixed"},
        "batch_norm_parts is 1 there and 2 here": {"accumulate": 2},
        "batch_norm_parts is 1 there and 6 here": {"accumulate": 2, "devices": 3, "sync_batch_norm": False},
    }
    for said, options in others.items():
        with pytest.raises(BnewError, match=rf"under other conditions \({said}\)"):
            train(RECIPES["bnew"], tmp_path, replace(MACHINE, **options))
    train(RECIPES["bnew"], tmp_path, replace(MACHINE, precision="bf16-mixed", force=True))


def test_killed_before_its_environment_was_recorded(tmp_path: Path) -> None:
    recipe = RECIPES["bnew"].replace(epochs=1)
    write_json(tmp_path / "recipe.json", recipe.to_dict())
    assert train(recipe, tmp_path, MACHINE).done


def test_mixed_precision(tmp_path: Path) -> None:
    """The step is computed in bfloat16, and ends binary and near float32's accuracy all the same."""
    recipe = RECIPE.replace(epochs=6)
    mixed = train(recipe, tmp_path / "mixed", replace(MACHINE, precision="bf16-mixed"))
    plain = train(recipe, tmp_path / "plain", MACHINE)
    assert mixed.rows()[0]["train_loss"] != plain.rows()[0]["train_loss"]
    for name in ("train_loss", "train_accuracy"):
        assert float(mixed.rows()[-1][name]) == pytest.approx(float(plain.rows()[-1][name]), rel=0.15)
    assert mixed.summary["distance"] == 0
    tested = evaluate_run(mixed, MACHINE)  # in float32, as the packed network computes
    assert mixed.summary["test_loss"] == pytest.approx(tested.loss, rel=1e-5)


def test_the_code_that_decides_is_all_there_is() -> None:
    """Every module that training loads either decides its outcome or is named here."""
    script = (
        "import sys, bnew.training.loop; print(*(name for name in sys.modules if name.startswith('bnew.')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.removeprefix("bnew.") for name in done.stdout.split()}
    bystanders = {
        "deprecated", "display", "errors", "facts", "files", "lazy", "process", "references", "registry",
        "results",
        "results.evaluation", "results.markup", "results.metrics", "results.mistakes", "results.run",
        "results.tables", "shares", "text",
        "train",
    } | {"data", "methods", "models", "training"}  # fmt: skip
    used = set().union(
        *(used_modules(RECIPE.replace(method=name)) for name in registry.METHODS),
        used_modules(RECIPE.replace(method=None, method_options={})),
        *(used_modules(RECIPE.replace(model=name)) for name in registry.MODELS),
    )
    deciding = {f"bnew.{name}" for name in loaded - bystanders - set(BYSTANDERS)}
    assert deciding <= used
    assert all(name.startswith("bnew.models.") for name in used - deciding)  # loaded with the first of them
    settings = {"torch", "torchvision", "precision", "batch_norm_parts"}
    rows = {"method bnew", "model birealnet8", "data set digits"}
    assert set(conditions(RECIPE, MACHINE)) == {*used_modules(RECIPE), *rows, *settings}


def test_code_that_a_run_does_not_use_does_not_decide_it() -> None:
    ste, bop = (set(used_modules(RECIPE.replace(method=name))) for name in ("ste", "bop"))
    assert "bnew.methods.ste" in ste - bop
    assert "bnew.methods.bop" in bop - ste
    assert "bnew.methods.base" in ste & bop
    reactnet = set(used_modules(RECIPE.replace(model="reactnet_a")))
    assert {"bnew.models.reactnet", "bnew.models.birealnet"} <= reactnet
    assert "bnew.models.wideresnet" not in reactnet


def test_what_a_row_of_the_registry_decides_is_a_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what is only shown: another colour is the same run."""
    before = conditions(RECIPE, MACHINE)
    row = registry.METHODS["bnew"]
    monkeypatch.setitem(registry.METHODS, "bnew", replace(row, label="other", color="#000000"))
    assert conditions(RECIPE, MACHINE) == before
    monkeypatch.setitem(registry.METHODS, "bnew", replace(row, freeze=0.9))
    monkeypatch.setitem(registry.DATASETS, "digits", replace(registry.DATASETS["digits"], flip=True))
    monkeypatch.setitem(registry.MODELS, "birealnet8", replace(registry.MODELS["birealnet8"], options={}))
    after = conditions(RECIPE, MACHINE)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"method bnew", "model birealnet8", "data set digits"}


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ('"""Other text."""\n\n# A comment.\ndef f(x):\n    """More."""\n    return x + 1\n', True),
        ("def f(x): return (x + 1)", True),
        ("def f(x):\n    return x + 2\n", False),
        ('def f(x):\n    "no docstring" + x\n    return x + 1\n', False),
    ],
)
def test_a_comment_is_not_other_code(tmp_path: Path, other: str, same: bool) -> None:
    (tmp_path / "a.py").write_text('def f(x):\n    """Adds 1."""\n    return x + 1\n')
    (tmp_path / "b.py").write_text(other)
    assert (code_hash(tmp_path / "a.py") == code_hash(tmp_path / "b.py")) == same


# Machines


def test_compiled_is_the_same_network(
    unbroken: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a compiler that takes seconds, in place of inductor's minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    recipe = RECIPES["bnew"].replace(epochs=1)
    (compiled,) = train(recipe, tmp_path / "compiled", replace(MACHINE, compile=True)).rows()
    (plain,) = train(recipe, tmp_path / "plain", MACHINE).rows()
    assert float(compiled["train_loss"]) == pytest.approx(float(plain["train_loss"]), rel=1e-4)
    assert float(compiled["distance"]) == pytest.approx(float(plain["distance"]), rel=1e-4)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is as the system's library keeps it")
def test_memory_is_kept_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    make_fabric(Machine(device="cpu"))
    assert os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    make_fabric(Machine(device="cpu"))
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/usr/bin/bnew", "train", "--out", "my run"], "bnew train --out 'my run'"),
        (["/home/me/bnew/__main__.py", "models"], "python -m bnew models"),
        (["train.py", "--lr", "1"], None),  # what it calls is not known
        (["/site-packages/ray/default_worker.py"], None),
        ([], None),
    ],
)
def test_the_command_line_is_recorded(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], command: str | None
) -> None:
    monkeypatch.setattr("sys.argv", argv)
    assert environment(make_fabric(MACHINE))["command"] == command


# Callbacks


class Heard:
    """What a run calls, in order."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.stop_after = stop_after

    def on_train_start(self, trainer: Trainer) -> None:
        self.calls.append(("start", trainer.state.step))

    def on_train_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        self.calls.append(("epoch", epoch))

    def on_train_batch_end(self, trainer: Trainer, epoch: int, step: int) -> None:
        assert step == trainer.method.step == trainer.state.step
        self.calls.append(("step", step))

    def on_train_epoch_end(self, trainer: Trainer, epoch: int, row: dict[str, Any]) -> None:
        self.calls.append(("row", epoch, row["val_accuracy"]))
        trainer.should_stop = epoch == self.stop_after

    def on_train_end(self, trainer: Trainer) -> None:
        assert trainer.run.done
        self.calls.append(("end",))


def test_callbacks(unbroken: dict[str, Run], tmp_path: Path) -> None:
    """Each is called in its place, and what they see is what is recorded; a listener changes nothing."""
    heard = Heard()
    run = train(RECIPES["bnew"], tmp_path, MACHINE, callbacks=[heard, object()])
    assert outcome(run) == outcome(unbroken["bnew"])
    expected: list[tuple[Any, ...]] = [("start", 0)]
    for epoch, row in enumerate(run.rows()):
        expected.append(("epoch", epoch))
        expected += [("step", epoch * STEPS + step + 1) for step in range(STEPS)]
        expected.append(("row", epoch, float(row["val_accuracy"])))
    assert heard.calls == [*expected, ("end",)]


@pytest.mark.parametrize("killed", [False, True])
def test_a_callback_ends_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture, killed: bool) -> None:
    """After the epoch, with the test; also where the run is killed between them."""
    caplog.set_level(logging.INFO, "bnew")
    recipe = RECIPES["bnew"]
    if killed:
        with mock.patch.object(Trainer, "finish", crash), pytest.raises(Crash):
            train(recipe, tmp_path, MACHINE, callbacks=[Heard(stop_after=0)])
    run = train(recipe, tmp_path, MACHINE, callbacks=[] if killed else [Heard(stop_after=0)])
    assert [row["epoch"] for row in run.rows()] == ["0"]
    assert (run.epochs, run.summary["epochs"], run.summary["steps"]) == (1, 1, STEPS)
    assert run.summary["best_epoch"] == 0
    assert run.done
    assert repr(run).endswith(f", stopped after epoch 1 of {recipe.epochs}>")
    if not killed:
        assert f"{tmp_path} is stopped after 1 of {recipe.epochs} epochs, by a callback" in caplog.messages


class Patience:
    """Ends a run after so many epochs without a better validation; its count is saved with the run."""

    def __init__(self) -> None:
        self.counted: list[float] = []
        self.best: Tensor | None = None

    def on_train_epoch_end(self, trainer: Trainer, epoch: int, row: dict[str, Any]) -> None:
        self.counted.append(row["val_accuracy"])
        self.best = torch.tensor(max(self.counted))

    def state_dict(self) -> dict[str, Any]:
        return {"counted": self.counted, "best": self.best, "nothing": None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counted, self.best = state["counted"], state["best"]


def test_a_callback_goes_on_with_what_it_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe, whole, first, second = RECIPES["bnew"], Patience(), Patience(), Patience()
    train(recipe, tmp_path / "whole", MACHINE, callbacks=[whole, Patience()])
    with at_step(STEPS + 1, crash), pytest.raises(Crash):
        train(recipe, tmp_path / "killed", MACHINE, callbacks=[first, Patience()])
    assert len(first.counted) == 1
    train(recipe, tmp_path / "killed", MACHINE, callbacks=[second])
    assert (second.counted, second.best) == (whole.counted, whole.best)
    assert "the run was saved with a callback Patience 2, which it now lacks" in caplog.messages


class Pair(NamedTuple):
    a: int


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"a": [{"b": object()}]}, "holds an object, but"),
        ({"a": Pair(1)}, "holds a Pair"),
        ({"a": np.float64(1)}, "holds "),
        ([1], "is a list of 1, but must be a dict"),
    ],
)
def test_a_callback_keeps_plain_values_alone(tmp_path: Path, state: Any, said: str) -> None:
    callback = Patience()
    callback.state_dict = lambda: state  # type: ignore[method-assign]
    with pytest.raises(BnewError, match=rf"state_dict\(\) of callback Patience {said}"):
        train(RECIPES["bnew"], tmp_path, MACHINE, callbacks=[callback])


class Average:
    """Of the weights; made at the start, and kept as a module's state dict is."""

    def on_train_start(self, trainer: Trainer) -> None:
        self.average = OrderedDict(trainer.module.state_dict())
        self.epochs: list[int] = []

    def on_train_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        self.epochs.append(epoch)
        trainer.should_stop = np.False_  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        return self.average

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state


def test_a_run_with_a_state_of_weights_resumes_within_an_epoch(tmp_path: Path) -> None:
    callback = Average()
    machine = replace(MACHINE, save_every=1)
    with at_step(STEPS + 2, crash), pytest.raises(Crash):
        train(RECIPES["bnew"], tmp_path, machine, callbacks=[callback])
    assert callback.epochs == [0, 1]
    again = Average()
    train(RECIPES["bnew"], tmp_path, machine, callbacks=[again])
    assert again.loaded.keys() == callback.average.keys()
    assert again.epochs == list(range(2, RECIPES["bnew"].epochs))  # epoch 1 had begun


@pytest.mark.parametrize(
    ("callbacks", "said"),
    [
        (Patience(), "callbacks is a Patience, but must be a list"),
        ([Patience], r"the class Patience, .* Patience\(\)"),
    ],
)
def test_what_is_no_callback(tmp_path: Path, callbacks: Any, said: str) -> None:
    with pytest.raises(BnewError, match=said):
        train(RECIPES["bnew"], tmp_path / "run", MACHINE, callbacks=callbacks)
    assert not (tmp_path / "run").exists()
