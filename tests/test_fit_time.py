"""A time is a promise: what a fit plans and does by a clock that only the tests move."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import Crash
from test_fit_folder import make, three_digits

import bnew
from bnew.errors import BnewError
from bnew.fit import planning, stages, timing
from bnew.fit.choose import OVER, TIMING, deadlines, refitted
from bnew.fit.folder import look
from bnew.fit.plan import Clock, Plan, Wanted
from bnew.fit.planning import Planner
from bnew.fit.reading import bring
from bnew.fit.result import Fitted
from bnew.fit.showing import Screen, Watch
from bnew.fit.stages import fit
from bnew.recipe import Recipe
from bnew.training.loop import Trainer
from bnew.training.machine import Machine


def crash_with_any(*_: object) -> None:
    raise Crash


class Time:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Busy:
    """A machine on which a training step takes ``really`` seconds, where those timed before take ``step``."""

    def __init__(self, patch: pytest.MonkeyPatch, step: float, really: float | None = None) -> None:
        self.time, self.step, self.timed = Time(), step, list[str]()
        self.really = step if really is None else really
        patch.setattr(planning, "step_seconds", self.step_seconds)
        patch.setattr(stages, "now", self.time)
        patch.setattr("bnew.fit.measure._in_onnx", lambda twin, x: {})
        patch.setattr("bnew.fit.measure.SECONDS", 0.02)
        move = Watch.on_train_batch_end

        def on_train_batch_end(watch: Watch, trainer: Trainer, epoch: int, step: int) -> None:
            self.time.seconds += self.really
            move(watch, trainer, epoch, step)

        patch.setattr(Watch, "on_train_batch_end", on_train_batch_end)
        self.shown = list[float]()
        """What :meth:`Screen.move` is told, before it takes the largest of it."""
        show = Screen.move

        def listen(screen: Screen, done: float, line: str) -> None:
            if "timing" not in line:
                self.shown.append(done)
            show(screen, done, line)

        patch.setattr(Screen, "move", listen)

    def step_seconds(self, recipe: Recipe, *_: Any) -> tuple[float, int]:
        """Two steps, of which the larger networks need thrice the time."""
        self.timed.append(recipe.model)
        step = self.step * (1 if recipe.model == "birealnet8" else 3)
        self.time.seconds += 2 * step
        return step, 0


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return three_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("photos"), {"a": 40, "b": 40}, side=64)


def planner(folder: Path, work: Path, minutes: float, busy: Busy) -> Planner:
    machine, clock = Machine(str(work / "images"), device="cpu"), Clock(work / "clock.json", busy.time)
    return Planner(look(folder), work, Wanted(minutes=minutes), machine, clock, Screen(True))


def test_a_slow_machine_gets_the_smallest_plan(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = Busy(monkeypatch, step=2.5)
    plan = planner(photos, tmp_path, 1.0, busy).plan()
    assert busy.timed == ["birealnet8"]
    assert plan.recipes["phase2"].image_size == 32
    assert busy.time.seconds - 1000 <= TIMING * 60
    assert sum(plan.seconds.values()) + plan.seconds["end"] < (1 + OVER) * 60


def test_much_time_gets_the_best_network(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = Busy(monkeypatch, step=0.01)
    plan = planner(photos, tmp_path, 60.0, busy).plan()
    assert busy.timed[:3] == ["birealnet8", "birealnet20", "reactnet18"]
    assert plan.recipes["phase2"].model == "reactnet18"


def test_what_cannot_be_done_is_said_before_the_images_are_read(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "bring", crash_with_any)
    busy = Busy(monkeypatch, step=20.0)
    with pytest.raises(
        BnewError, match=r"--minutes 1 is too short here and now: .* give --minutes (\d+)"
    ) as refused:
        planner(photos, tmp_path, 1.0, busy).plan()
    assert "\n" not in str(refused.value)
    wanted = float(str(refused.value).rpartition("--minutes ")[2].partition(" ")[0])
    with pytest.raises(Crash):  # with what it asks for, it goes on to the images
        planner(photos, tmp_path, wanted, busy).plan()


def test_after_the_images_are_read_nothing_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = Busy(monkeypatch, step=0.5)

    def slowly(*given: Any) -> object:
        busy.time.seconds += 100
        return bring(*given)

    monkeypatch.setattr(planning, "bring", slowly)
    plan = planner(photos, tmp_path, 1.0, busy).plan()
    assert {stage: recipe.epochs for stage, recipe in plan.recipes.items()} == {"phase1": 1, "phase2": 1}


def test_timing_steps_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of ten seconds: one is enough where there are five, three where there are 25."""
    import torch

    recipe = Recipe(data="folder", model="birealnet8", method="clip", image_size=8, batch_size=2)
    for most, steps in ((5.0, 1), (25.0, 3), (1000.0, 4)):
        readings: list[float] = []

        def now(readings: list[float] = readings) -> float:
            readings.append(10.0 * len(readings))
            return readings[-1]

        seconds, _ = timing.step_seconds(recipe, 2, 3, torch.device("cpu"), most, now)
        assert seconds == 10
        assert len(readings) == steps + 1


# ---------------------------------------------------------------------- the whole

MINUTES = 1.0


def fitted(digits: Path, file: Path) -> Fitted:
    return fit(digits, file, minutes=MINUTES, model="birealnet8", device="cpu", quiet=True)


@pytest.mark.parametrize(("really", "epochs"), [(1.0, (2, 4)), (2.0, (1, 2)), (3.0, (1, 1)), (0.5, (4, 9))])
def test_lengths_follow_from_the_first_epoch(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, really: float, epochs: tuple[int, int]
) -> None:
    """Planned for steps of one second; whatever they take, the whole ends in its time if it can.

    The bar does not go back where plans change.
    """
    busy = Busy(monkeypatch, 1.0, really)
    done = fitted(digits, tmp_path / "model.bnew")
    assert tuple(done.data["epochs"].values()) == epochs
    assert busy.time.seconds - 1000 == pytest.approx(done.data["seconds"])
    assert done.data["seconds"] < 60 * MINUTES * (1 + OVER) - 15  # the end takes no time here
    assert busy.shown == sorted(busy.shown)
    assert 0 < busy.shown[-1] < 1
    plan = Plan.read(done.runs / "plan.json")
    assert plan.settled
    for stage, recipe in plan.recipes.items():
        assert (
            bnew.results.Run(done.runs / stage).recipe.epochs == recipe.epochs == done.data["epochs"][stage]
        )


@pytest.fixture(scope="session")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A fit that nothing stops."""
    with pytest.MonkeyPatch.context() as patch:
        Busy(patch, 1.0, 2.0)
        return fitted(digits, tmp_path_factory.mktemp("whole") / "model.bnew")


@pytest.mark.parametrize("where", ["first epoch", "before the run", "phase2"])
def test_a_stopped_fit_keeps_the_lengths_it_had(
    digits: Path, whole: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    file = tmp_path / "model.bnew"
    with monkeypatch.context() as patch:
        Busy(patch, 1.0, 2.0)
        if where == "before the run":
            patch.setattr(stages, "write_json", crash_with_any)
        else:
            start, at = Watch.on_train_epoch_start, ("phase1", 1) if where == "first epoch" else (where, 1)

            def on_train_epoch_start(watch: Watch, trainer: Trainer, epoch: int) -> None:
                if (watch.stage, epoch) == at:
                    raise Crash
                start(watch, trainer, epoch)

            patch.setattr(Watch, "on_train_epoch_start", on_train_epoch_start)
        with pytest.raises(Crash):
            fitted(digits, file)
    Busy(monkeypatch, 1.0, 2.0)
    done = fitted(digits, file)
    assert done.data["epochs"] == whole.data["epochs"] == {"phase1": 1, "phase2": 2}
    assert file.read_bytes() == whole.file.read_bytes()


def test_a_stage_that_becomes_too_slow_ends_early(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = Busy(monkeypatch, 1.0)
    said: list[str] = []
    monkeypatch.setattr(Screen, "say", lambda screen, line: said.append(line))
    count = Clock.count

    def slower(clock: Clock, stage: str) -> float:
        if stage == "phase2":
            busy.really = 3.0
        return count(clock, stage)

    monkeypatch.setattr(Clock, "count", slower)
    done = fitted(digits, tmp_path / "model.bnew")
    assert Plan.read(done.runs / "plan.json").recipes["phase2"].epochs > done.data["epochs"]["phase2"] >= 1
    assert done.data["seconds"] < 60 * MINUTES * (1 + OVER)
    assert "of 4 epochs" in " ".join(done.data["chosen"])
    assert re.search(r"^phase 2, epoch \d/4, .*; \d+ s left$", said[-1])  # those of packing


# ---------------------------------------------------------------------- what is shown


def test_a_person_sees_how_many_images_are_read(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Screen, "move", lambda screen, done, line: said.append(line))
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    machine, clock = Machine(str(tmp_path / "images"), device="cpu"), Clock(tmp_path / "clock.json")
    wanted = Wanted(epochs=3, model="birealnet8")
    Planner(look(digits), tmp_path, wanted, machine, clock, Screen(True)).plan()
    read = [f"looking at the images: {done} of 120" for done in range(1, 121)]
    assert said == [*read, "timing a few steps of birealnet8"]


def test_a_screen_does_not_go_back() -> None:
    screen = Screen(True)
    screen.move(0.5, "")
    screen.move(0.25, "")
    assert screen.done == 0.5


def test_the_time_left_is_that_of_the_whole(tmp_path: Path) -> None:
    time = Time()
    clock = Clock(tmp_path / "clock.json", time)
    seconds = {"phase1": 100.0, "phase2": 200.0, "end": 20.0}
    time.seconds += 100
    clock.count("phase1")
    watch = Watch("phase1", seconds, clock, Screen(True))
    assert watch.left(1.0) == pytest.approx(220)
    assert watch.left(0.5) == pytest.approx(270 * 110 / 60)  # twice as slow as planned, nearly
    time.seconds += 5
    assert clock.total == 105
    assert Clock(tmp_path / "clock.json", time).total == 100  # a pause does not count


def test_phase_2_gets_the_time_that_is_left(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the epochs if phase 1 took twice as long as planned, and no less is planned for the end."""
    busy = Busy(monkeypatch, 1.0)
    plan = planner(digits, tmp_path, 6.0, busy).plan().with_epochs({"phase1": 50, "phase2": 100})
    seconds = {"phase1": 50.0, "phase2": 100.0, "end": 20.0}
    plan = Plan(**{**vars(plan), "seconds": seconds})
    settling = planner(digits, tmp_path, 6.0, busy)
    settling.clock.stages = {}
    monkeypatch.setattr(planning, "Run", lambda path: SimpleNamespace(epochs=50))
    busy.time.seconds += 100
    settling.clock.count("phase1")
    settled = settling.settled(plan)
    left = 0.98 * 360 - 40 - 100
    assert settled.recipes["phase2"].epochs == int(left / 2.0)
    assert settled.settled
    assert settled.seconds["phase2"] == pytest.approx(settled.recipes["phase2"].epochs)
    assert plan.recipes["phase1"] == settled.recipes["phase1"]


def test_the_method_follows_from_the_length_of_phase_2(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planner(digits, tmp_path, 6.0, Busy(monkeypatch, 1.0)).plan()
    assert plan.recipes["phase2"].method == "ste"
    assert plan.with_epochs({"phase2": 4000 // plan.steps_per_epoch + 1}).recipes["phase2"].method == "bnew"


def test_shares_of_the_time() -> None:
    assert refitted({"phase1": 4, "phase2": 8}, 0.5) == {"phase1": 2, "phase2": 4}
    assert refitted({"phase1": 4, "phase2": 8}, 0.1) == {"phase1": 1, "phase2": 1}
    assert refitted({"phase1": 100, "phase2": 200}, 2.0) == {"phase1": 100, "phase2": 200}
    assert deadlines(120.0, with_float=False) == pytest.approx({"phase1": 60.0, "phase2": 120.0})
    assert deadlines(100.0, with_float=True) == pytest.approx(
        {"float": 40.0, "phase1": 62.5, "phase2": 100.0}
    )
