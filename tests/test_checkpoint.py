"""Checkpoints: what is damaged or does not fit is refused in one sentence, and the one before is offered."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MACHINE, RECIPE, STEPS, Crash, at_step, crash, outcome

from bnew.errors import BnewError
from bnew.methods.base import Binarizer
from bnew.recipe import Recipe
from bnew.results.run import Run
from bnew.training.checkpoint import MARK, Unusable, read_checkpoint, write_checkpoint
from bnew.training.evaluation import evaluate_run
from bnew.training.loop import Trainer, train

# Three epochs, frozen after two; saved in mid-epoch too.
STE = RECIPE.replace(epochs=3, freeze=0.7, method="ste", optimizer="sgd")
# With this strength the second epoch is better than the first.
BNEW = RECIPE.replace(epochs=3, freeze=0.7, method_options={"strength": 35.0})
OFTEN = replace(MACHINE, save_every=4)


def stop(recipe: Any, path: Path, step: int) -> Run:
    with at_step(step, crash), pytest.raises(Crash):
        train(recipe, path, OFTEN)
    return Run(path)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(BNEW, tmp_path_factory.mktemp("unbroken"), OFTEN)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was saved in the middle of its second epoch, and before at the end of the first."""
    return stop(BNEW, tmp_path_factory.mktemp("begun"), STEPS + 3)


@pytest.fixture
def stopped(begun: Run, tmp_path: Path) -> Run:
    shutil.copytree(begun.path, tmp_path / "run")
    return Run(tmp_path / "run")


@contextmanager
def in_time(seconds: int = 30) -> Iterator[None]:
    """What takes longer ends the tests."""
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def change(run: Run, edit: Callable[[dict[str, Any]], object]) -> None:
    """Let the last checkpoint, with a right checksum, hold something else."""
    state = read_checkpoint(run.last)
    edit(state)
    write_checkpoint(state, run.last)


# Damage


def test_a_flipped_bit_anywhere_is_refused(begun: Run, tmp_path: Path) -> None:
    whole = begun.last.read_bytes()
    draw = random.Random(0)
    middle = range(0, len(whole), len(whole) // 200)
    positions = [*range(80), *middle, *range(len(whole) - len(MARK) - 150, len(whole))]
    copy = tmp_path / "last.pt"
    for position in positions:
        copy.write_bytes(whole)
        flip(copy, position, draw.randrange(8))
        with pytest.raises(Unusable, match="damaged"):
            read_checkpoint(copy)
    for size in draw.sample(range(len(whole) - 64), 50):
        copy.write_bytes(whole[:size])
        with pytest.raises(Unusable, match="cut short"):
            read_checkpoint(copy)


def test_torch_reads_a_checkpoint_too(begun: Run) -> None:
    plain, checked = torch.load(begun.last, weights_only=True), read_checkpoint(begun.last)
    assert plain.keys() == checked.keys()
    assert all(torch.equal(plain["model"][name], value) for name, value in checked["model"].items())


def test_a_damaged_checkpoint_and_the_one_before(stopped: Run, unbroken: Run) -> None:
    assert read_checkpoint(stopped.last)["step"] == STEPS + 2
    flip(stopped.last, len(stopped.last.read_bytes()) // 2)
    said = (
        rf"last\.pt is damaged: .* delete it to continue from step {STEPS}, which is saved in previous\.pt$"
    )
    before = {path.name: path.read_bytes() for path in stopped.path.iterdir()}
    with pytest.raises(BnewError, match=said):
        train(BNEW, stopped.path, OFTEN)
    assert {path.name: path.read_bytes() for path in stopped.path.iterdir()} == before
    stopped.last.unlink()
    assert outcome(train(BNEW, stopped.path, OFTEN)) == outcome(unbroken)


def test_both_checkpoints_are_damaged(stopped: Run) -> None:
    for path in (stopped.last, stopped.previous):
        flip(path, 5000)
    with pytest.raises(
        BnewError, match=r"last\.pt is damaged: .* delete it and previous\.pt to start the run"
    ):
        train(BNEW, stopped.path, OFTEN)
    stopped.last.unlink()
    with pytest.raises(
        BnewError, match=r"previous\.pt is damaged: .* delete it to start the run from its beg"
    ):
        train(BNEW, stopped.path, OFTEN)


def test_from_the_one_before_where_the_best_weights_were_of_a_later_epoch(tmp_path: Path) -> None:
    """Its own best weights are there too, should the later epoch not be the better one this time."""
    unbroken = train(BNEW, tmp_path / "unbroken", MACHINE)
    with at_step(2 * STEPS + 1, crash), pytest.raises(Crash):
        train(BNEW, tmp_path / "run", MACHINE)
    run = Run(tmp_path / "run")
    first, second = read_checkpoint(run.previous), read_checkpoint(run.last)
    assert first["best"]["epoch"] < second["best"]["epoch"]
    assert run.best_of(first["best_sha256"]) == run.previous_best
    assert run.best_of(second["best_sha256"]) == run.best
    run.last.unlink()
    with at_step(STEPS + 1, crash), pytest.raises(Crash):
        train(BNEW, run.path, MACHINE)
    assert run.best_of(first["best_sha256"]) == run.best
    assert outcome(train(BNEW, run.path, MACHINE)) == outcome(unbroken)


@pytest.mark.parametrize(
    ("name", "kept"), [("last.pt", "previous.pt"), ("best.safetensors", "previous_best.safetensors")]
)
@pytest.mark.parametrize("which", [1, 2], ids=["between the renames", "after both"])
def test_killed_while_a_file_is_put_in_place(
    unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kept: str, which: int
) -> None:
    """At the end of the second epoch."""
    rename, calls = os.replace, [0]

    def killed(source: Path, target: Path) -> None:
        rename(source, target)
        if Path(target).name in (name, kept) and epochs_recorded(tmp_path, name):
            calls[0] += 1
            if calls[0] == which:
                raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Crash):
            train(BNEW, tmp_path, OFTEN)
    assert calls[0] == which
    assert (tmp_path / name).is_file()
    assert outcome(train(BNEW, tmp_path, OFTEN)) == outcome(unbroken)


def epochs_recorded(path: Path, name: str) -> bool:
    """Whether the file ``name`` is the one that is written at the end of the second epoch."""
    return len(Run(path).rows()) == (2 if name == "last.pt" else 1)


def test_a_checkpoint_of_before_has_no_checksum(stopped: Run, unbroken: Run, tmp_path: Path) -> None:
    state = read_checkpoint(stopped.last)
    del state["best_sha256"]
    torch.save(state, stopped.last)
    whole = stopped.last.read_bytes()
    copy = tmp_path / "copy"
    large = [tensor for tensor in state["model"].values() if tensor.numel() > 100]
    assert len(large) > 5
    for tensor in large:
        copy.write_bytes(whole)
        flip(copy, whole.index(bytes(tensor.untyped_storage())) + 3, 6)
        with pytest.raises(Unusable, match="damaged"):
            read_checkpoint(copy)
    assert outcome(train(BNEW, stopped.path, OFTEN)) == outcome(unbroken)


@pytest.mark.parametrize("recipe", [BNEW, STE], ids=["bnew", "ste"])
def test_a_run_that_an_earlier_version_saved(tmp_path: Path, recipe: Recipe) -> None:
    """Its checkpoint has all but what is new."""
    run = stop(recipe, tmp_path / "run", STEPS + 3)
    shutil.copytree(run.path, tmp_path / "new")
    state = read_checkpoint(run.last)
    del state["best_sha256"], state["method"]["started"]
    torch.save(state, run.last)
    run.previous.unlink()
    assert MARK not in run.last.read_bytes()
    resumed = train(recipe, run.path, OFTEN)
    assert outcome(resumed) == outcome(train(recipe, tmp_path / "new", OFTEN))


def test_no_file(stopped: Run) -> None:
    said = r"last\.pt is not a file, but .* delete it to continue from step 6"
    stopped.last.unlink()
    os.mkfifo(stopped.last)
    with in_time(), pytest.raises(BnewError, match=said):
        train(BNEW, stopped.path, OFTEN)
    stopped.last.unlink()
    stopped.last.mkdir()
    with pytest.raises(BnewError, match=said):
        train(BNEW, stopped.path, OFTEN)


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_no_code_of_a_checkpoint_is_run(stopped: Run, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    write_checkpoint({"model": Malicious(mark)}, stopped.last)
    with pytest.raises(BnewError, match=r"last\.pt is not a checkpoint of bnew .* delete it to continue"):
        train(BNEW, stopped.path, OFTEN)
    assert not mark.exists()
    torch.save([1, 2], stopped.last)
    with pytest.raises(BnewError, match=r"last\.pt is not a checkpoint of bnew .* delete it to continue"):
        train(BNEW, stopped.path, OFTEN)


# Best weights


def test_best_weights_that_are_not_those_of_the_checkpoint(stopped: Run) -> None:
    whole = stopped.best.read_bytes()
    said = r"last\.pt belongs to other weights than best\.safetensors, which was damaged, replaced or deleted"
    flip(stopped.best, len(whole) // 2)
    with pytest.raises(BnewError, match=said):
        train(BNEW, stopped.path, OFTEN)
    stopped.best.unlink()
    with pytest.raises(BnewError, match=said):
        train(BNEW, stopped.path, OFTEN)
    stopped.best.write_bytes(whole)
    assert train(BNEW, stopped.path, OFTEN).done


def test_best_weights_are_checked_before_the_test(stopped: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Trainer.finish

    def spoilt(self: Trainer) -> None:
        flip(self.run.best, 20_000)
        finish(self)

    monkeypatch.setattr(Trainer, "finish", spoilt)
    with pytest.raises(BnewError, match=r"best\.safetensors is not as that run wrote it"):
        train(BNEW, stopped.path, OFTEN)
    assert not stopped.done


def test_best_weights_of_a_finished_run(unbroken: Run, tmp_path: Path) -> None:
    shutil.copytree(unbroken.path, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert evaluate_run(run, MACHINE).accuracy == unbroken.summary["test_accuracy"]
    flip(run.best, len(run.best.read_bytes()) - 100)
    with pytest.raises(
        BnewError, match=r"best\.safetensors is not as that run wrote it.*train that run again"
    ):
        evaluate_run(run, MACHINE)
    run.best.unlink()
    os.mkfifo(run.best)
    with in_time(), pytest.raises(BnewError, match=r"best\.safetensors is not a file, but"):
        evaluate_run(run, MACHINE)


# What does not fit


def momentum(state: dict[str, Any], name: str, value: torch.Tensor) -> None:
    next(iter(state["optimizer"]["state"].values()))[name] = value


MISFITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "momentum of another shape": (
        lambda s: momentum(s, "exp_avg", torch.zeros(3)),
        r"optimizer's state of 'stem.*weight'\['exp_avg'\] is float32 of shape \(3,\), and here it is float",
    ),
    "momentum of another type": (
        lambda s: momentum(s, "exp_avg", s["optimizer"]["state"][0]["exp_avg"].long()),
        r"\['exp_avg'\] is int64 of shape",
    ),
    "steps": (lambda s: momentum(s, "step", torch.ones(2)), r"\['step'\] is float32 of shape \(2,\)"),
    "no second momentum": (lambda s: s["optimizer"]["state"][0].pop("exp_avg_sq"), "has no 'exp_avg_sq'"),
    "another optimizer": (
        lambda s: s["optimizer"]["state"].update({0: {"momentum_buffer": torch.zeros(3)}}),
        "has no 'exp_avg'",
    ),
    "a parameter too many": (lambda s: s["optimizer"]["state"].update({999: {}}), "no parameter, 999"),
    "groups": (lambda s: s["optimizer"]["param_groups"].pop(), "its optimizer has other parameters"),
    "no optimizer": (lambda s: s.update(optimizer=3), "not an optimizer's state"),
    "weights": (lambda s: s["model"].popitem(), "its model has no '"),
    "weights too many": (lambda s: s["model"].update(x=torch.zeros(1)), "its model has 'x', which this"),
    "weights of another shape": (
        lambda s: s["model"].update({next(iter(s["model"])): torch.zeros(5)}),
        r"its model\['.*'\] is float32 of shape \(5,\), and here",
    ),
    "method": (lambda s: s["method"].update(method="STE"), "its method has the method STE, not BNEW"),
    "signs": (lambda s: s["method"]["last_signs"].pop(), r"its method\['last_signs'\] is a list of"),
    "frozen": (lambda s: s["method"].update(frozen=1), r"its method\['frozen'\] is of type int"),
    "meter": (lambda s: s.update(meter=torch.zeros(5)), r"its meter is float32 of shape \(5,\)"),
    "step": (lambda s: s.update(step="7"), "its step is of type str, and here it is of type int"),
    "seconds": (lambda s: s.update(seconds=(1.0, 2.0)), "its seconds is a list of 2, and here it is a"),
    "best": (lambda s: s["best"].pop("epoch"), "its best has no epoch or no accuracy"),
    "broken images": (lambda s: s.update(broken={"a": 1}), r"its broken\['a'\] is of type int"),
    "no step": (lambda s: s.pop("step"), "its content has no 'step'"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISFITS)
def test_what_does_not_fit_is_refused_before_anything_is_restored(
    stopped: Run, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    edit, said = MISFITS[what]
    change(stopped, edit)
    monkeypatch.setattr("bnew.training.saving.Saver.restore", lambda *_: pytest.fail("restored"))
    with pytest.raises(
        BnewError, match=rf"last\.pt does not fit this run: .*{said}.*delete it to continue from"
    ):
        train(BNEW, stopped.path, OFTEN)


@pytest.mark.parametrize("step", [STEPS + 1, 2 * STEPS + 3], ids=["before freezing", "after"])
def test_a_latent_copy_and_momenta_of_sgd(tmp_path: Path, step: int) -> None:
    run = stop(STE, tmp_path, step)

    def edit(state: dict[str, Any]) -> None:
        state["method"]["latent"] = [torch.zeros(2)]

    whole = run.last.read_bytes()
    change(run, edit)
    with pytest.raises(BnewError, match=r"its method\['latent'\] is a list of 1, and here it is a list of"):
        train(STE, tmp_path, OFTEN)
    run.last.write_bytes(whole)
    change(run, lambda state: momentum(state, "momentum_buffer", torch.zeros(2)))
    with pytest.raises(BnewError, match=r"\['momentum_buffer'\] is float32 of shape \(2,\)"):
        train(STE, tmp_path, OFTEN)
    run.last.write_bytes(whole)
    assert train(STE, tmp_path, OFTEN).done


def test_no_momentum_by_force(tmp_path: Path) -> None:
    """The momenta are dropped, and so are not in the way of the next resume."""
    run = stop(STE, tmp_path, STEPS + 1)
    without = STE.replace(momentum=0.0)
    with at_step(STEPS + 3, crash), pytest.raises(Crash):
        train(without, tmp_path, replace(MACHINE, save_every=1, force=True))
    entries = read_checkpoint(run.last)["optimizer"]["state"].values()
    assert not any("momentum_buffer" in entry for entry in entries)
    assert train(without, tmp_path, replace(MACHINE, save_every=1)).done


def test_another_precision_by_force(stopped: Run) -> None:
    exact = replace(OFTEN, precision="64-true", force=True)
    assert train(BNEW, stopped.path, exact).environment["forced"]


def test_an_error_of_our_own_is_not_blamed_on_the_checkpoint(
    stopped: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Binarizer, state: dict[str, Any]) -> None:
        raise KeyError("a mistake in the program")

    with monkeypatch.context() as patch:
        patch.setattr(Binarizer, "load_state_dict", broken)
        with pytest.raises(KeyError, match="a mistake in the program"):
            train(BNEW, stopped.path, OFTEN)
    assert train(BNEW, stopped.path, OFTEN).done
