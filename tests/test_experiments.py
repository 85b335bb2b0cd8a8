"""Experiments: what is planned, and that stages fail, stop and go on by themselves."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MACHINE, RECIPE, STEPS, kill_at_step, train_until_killed

from bnew import registry
from bnew.errors import BnewError
from bnew.experiments import launch
from bnew.experiments.plan import ABLATIONS, Stage, plan
from bnew.experiments.published import EXPERIMENTS
from bnew.files import write_json
from bnew.results.run import Run
from bnew.training.machine import Machine

METHODS = ("bnew", "ste", "bmd", "bop")

# Plans


def by_name(stages: Sequence[Stage]) -> dict[str, Stage]:
    named = {stage.name: stage for stage in stages}
    assert len(named) == len(stages)
    return named


def test_the_published_plan() -> None:
    stages = by_name(plan("cifar10"))
    assert set(stages) == {f"plain/{name}/seed{seed}" for name in ("clip", *METHODS) for seed in range(5)}
    for name, stage in stages.items():
        _, method, seed = name.split("/")
        start = f"plain/clip/{seed}"
        assert stage.needs == (() if method == "clip" else (start,))
        assert stage.recipe.epochs == (200 if method == "clip" else 1000)
        assert f"seed{stage.recipe.seed}" == seed
        assert stage.recipe.init == (None if method == "clip" else f"../../../{start}")
    assert stages["plain/ste/seed0"].recipe == EXPERIMENTS["cifar10"].phase2["ste"].replace(
        init="../../../plain/clip/seed0"
    )


def test_methods_that_the_paper_does_not_compare_are_run_on_request() -> None:
    stages = by_name(plan("cifar100", methods=("diode", "bnew"), seeds=(3,)))
    assert set(stages) == {f"plain/{name}/seed3" for name in ("clip", "diode", "bnew")}
    recipe = stages["plain/diode/seed3"].recipe
    assert (recipe.method, recipe.epochs, recipe.data, recipe.seed) == ("diode", 1000, "cifar100", 3)
    assert recipe.method_options == registry.METHODS["diode"].published
    assert by_name(plan("digits", methods=("proxquant",)))["plain/proxquant/seed0"].recipe.epochs == 20
    others = [name for name, row in registry.METHODS.items() if row.phase == 2 and name not in METHODS]
    assert list(EXPERIMENTS["cifar10"].on_request) == others
    with pytest.raises(BnewError, match="unknown method of phase 2 'diode'"):
        plan("imagenet", methods=("diode",))


@pytest.mark.parametrize("options", [{}, {"distill": True}, {"distill": True, "ablations": True}])
def test_every_stage_comes_after_what_it_needs_and_finds_it(options: dict[str, Any]) -> None:
    before: set[str] = set()
    out = Path("/out")
    for stage in plan("cifar100", seeds=(0, 7), **options):
        assert before.issuperset(stage.needs)
        links = [link for link in (stage.recipe.teacher, stage.recipe.init) if link is not None]
        found = [(out / stage.name / link).resolve().relative_to(out).as_posix() for link in links]
        assert found == list(stage.needs)
        assert all(need.endswith(f"seed{stage.recipe.seed}") for need in stage.needs)
        before.add(stage.name)


def test_the_distilled_plan() -> None:
    stages = by_name(plan("cifar100", methods=("ste",), seeds=(3,), distill=True))
    assert list(stages) == ["teacher/wideresnet22/seed3", "distilled/clip/seed3", "distilled/ste/seed3"]
    teacher, clip, ste = stages.values()
    assert (teacher.recipe.method, teacher.recipe.teacher) == (None, None)
    assert clip.recipe.teacher == ste.recipe.teacher == "../../../teacher/wideresnet22/seed3"
    assert {stage.recipe.data for stage in stages.values()} == {"cifar100"}


def test_the_ablations() -> None:
    stages = by_name(plan("cifar100", methods=("bnew", "ste"), seeds=(0,), distill=True, ablations=True))
    assert {name.split("/")[0] for name in stages} == {"teacher", "distilled", *ABLATIONS}
    assert not any(f"{name}/ste/seed0" in stages for name in ABLATIONS)
    for name, variant in ABLATIONS.items():
        recipe = stages[f"{name}/bnew/seed0"].recipe
        assert recipe.model_options == variant.model_options
        assert recipe.epochs == 1000 * variant.phase2_length
        if name == "no-phase1":
            assert recipe.init is None
            assert "no-phase1/clip/seed0" not in stages
        elif variant.model_options:
            assert stages[f"{name}/clip/seed0"].recipe.model_options == variant.model_options
        else:  # the same phase 1, run once
            assert recipe.init == "../../../distilled/clip/seed0"
        strength = recipe.method_options["strength"]
        assert strength == pytest.approx(35.2 * variant.phase2_length)  # the published λ


# What an earlier version wrote as recipe.json of runs of BNEW: the experiment, its scale, and the content.
_CIFAR10: dict[str, Any] = {
    "data": "cifar10", "model": "birealnet20", "model_options": {}, "method": "bnew",
    "method_options": {"strength": 35.2, "ramp": 1.0}, "epochs": 1000, "batch_size": 128,
    "optimizer": "adam", "lr": 0.01, "binary_lr": 1.0, "momentum": 0.9, "weight_decay": 0.0,
    "decayed": "all", "schedule": "linear", "milestones": [0.5, 0.75], "freeze": None,
    "init": "../../../plain/clip/seed0", "teacher": None, "image_size": None, "seed": 0,
}  # fmt: skip
_CIFAR10_SHORT = _CIFAR10 | {
    "method_options": {"strength": 14.329586710099036, "ramp": 2.4564560522315806, "fill": 0.54},
    "epochs": 50,
    "binary_lr": 3.314454017339987,
}
_DIGITS = _CIFAR10 | {
    "data": "digits",
    "model": "birealnet8",
    "method_options": {"strength": 15.2, "ramp": 4.0, "fill": 0.54},
    "epochs": 20,
    "batch_size": 64,
    "binary_lr": 8.0,
}
_IMAGENET = _CIFAR10 | {
    "data": "imagenet",
    "model": "reactnet_a",
    "method_options": {"strength": 2.335425, "scale": True, "ramp": 1.0},
    "epochs": 401,
    "batch_size": 220,
    "lr": 0.001,
    "schedule": "linear_by_epoch",
    "freeze": 1.0,
    "init": "../../../distilled/step1/seed0",
    "teacher": "torchvision:resnet34",
    "image_size": 224,
}
EARLIER = {
    "cifar10": ("cifar10", 1.0, _CIFAR10),
    "cifar10, no ramp": ("cifar10", 1.0, _CIFAR10 | {"method_options": {"strength": 35.2}}),
    "cifar10, short": ("cifar10", 0.05, _CIFAR10_SHORT),
    "digits": ("digits", 1.0, _DIGITS),
    "imagenet": ("imagenet", 1.0, _IMAGENET),
}


@pytest.mark.parametrize("case", EARLIER)
def test_runs_that_an_earlier_version_finished_are_done(tmp_path: Path, case: str) -> None:
    """They are neither refused nor run again, whatever the order of the options in their recipe.json."""
    name, scale, written = EARLIER[case]
    stages = plan(name, methods=("bnew",), seeds=(0,), epochs_scale=(scale,))
    (stage,) = (replace(stage, needs=()) for stage in stages if stage.recipe.method == "bnew")
    run = Run(tmp_path / stage.name)
    run.path.mkdir(parents=True)
    write_json(run.path / "recipe.json", written)
    write_json(run.path / "summary.json", {"test_accuracy": 0.5})
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    assert run.changes(stage.recipe) == []
    assert launch.run([stage], tmp_path, MACHINE) == {}
    assert {name: (run.path / name).read_bytes() for name in before} == before
    other = {**written, "method_options": {**written["method_options"], "ramp": 3.0}}
    write_json(run.path / "recipe.json", other)
    with pytest.raises(BnewError, match=r"another recipe \(method_options is .* choose another folder$"):
        launch.run([stage], tmp_path, MACHINE)


@pytest.mark.parametrize(
    ("scale", "first", "second"), [((0.1,), 20, 100), ((0.5, 0.02), 100, 20), ((0.005, 0.001), 1, 1)]
)
def test_scaled_epochs(scale: tuple[float, ...], first: int, second: int) -> None:
    for stage in plan("cifar10", seeds=(0,), distill=True, epochs_scale=scale):
        assert stage.recipe.epochs == (second if stage.recipe.method in METHODS else first)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "cifar1"}, "unknown experiment 'cifar1': did you mean 'cifar10"),
        ({"methods": ("bnw",)}, "unknown method of phase 2 'bnw': did you mean 'bnew'"),
        ({"methods": ("clip",)}, "unknown method of phase 2 'clip'"),
        ({"methods": ()}, "at least one method and one seed"),
        ({"seeds": ()}, "at least one method and one seed"),
        ({"seeds": (1, 1)}, "name one twice"),
        ({"seeds": (-1,)}, "seed is -1"),
        ({"epochs_scale": (1, 1, 1, 1)}, "one to three factors, not 4"),
        (
            {"epochs_scale": (0.001,)},
            "clip times 0.001 leave none: .* at least 0.005, which is one",
        ),
        ({"steps": ("step3",)}, "unknown step of cifar10 'step3'"),
        ({"steps": ("finetune",)}, "unknown step of cifar10 'finetune'"),
        (
            {"name": "imagenet", "methods": ("ste",), "steps": ("finetune",)},
            "no finetune is published for ste",
        ),
        ({"name": "imagenet", "teacher": "runs/nothing"}, "runs/nothing is not the folder of a run"),
        ({"epochs_scale": (0,)}, "must be a positive number"),
        ({"ablations": True}, "add --distill"),
    ],
)
def test_bad_plans(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BnewError, match=sentence):
        plan(**{"name": "cifar10", **options})


# Running


def kill_those_of_seed_1(stage: Stage, out: Path, machine: Machine, threads: int, says: Any) -> None:
    """In the stage's process, in place of ``_run_stage``."""
    if stage.recipe.seed == 1:
        train_until_killed(stage.recipe, out / stage.name, machine, 3)
    launch._run_stage(stage, out, machine, threads, says)


def test_failures_stay_alone_and_only_what_is_missing_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [
        Stage("good", RECIPE),
        Stage("corrupt", RECIPE.replace(method="clip")),
        Stage("killed", RECIPE.replace(method="ste", seed=1)),
        Stage("heir", RECIPE.replace(init="../corrupt"), ("good", "corrupt")),
        Stage("heir of heir", RECIPE.replace(init="../heir"), ("heir",)),
    ]
    corrupt = tmp_path / "corrupt" / "last.pt"
    corrupt.parent.mkdir()
    corrupt.write_text("this is no checkpoint")
    with monkeypatch.context() as patch:
        patch.setattr(launch, "_run_stage", kill_those_of_seed_1)
        failed = launch.run(stages, tmp_path, MACHINE, workers=2)
    assert set(failed) == {"corrupt", "killed", "heir", "heir of heir"}
    assert "last.pt is cut short" in failed["corrupt"]
    assert failed["killed"] == "its process died with exit code -9"
    assert failed["heir"] == "corrupt did not finish"
    assert failed["heir of heir"] == "heir did not finish"

    corrupt.unlink()
    written = (tmp_path / "good" / "summary.json").stat().st_mtime_ns
    assert launch.run(stages, tmp_path, MACHINE, workers=2) == {}
    assert all(Run(tmp_path / stage.name).done for stage in stages)
    assert (tmp_path / "good" / "summary.json").stat().st_mtime_ns == written


def test_stages_side_by_side_are_no_more_than_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = []

    def counting_wait(sentinels: Sequence[int]) -> list[Any]:
        running.append(len(sentinels))
        return multiprocessing.connection.wait(sentinels)

    monkeypatch.setattr(launch, "wait", counting_wait)
    stages = [Stage(f"{seed}", RECIPE.replace(seed=seed)) for seed in range(3)]
    assert launch.run(stages, tmp_path, MACHINE, workers=2) == {}
    assert max(running) == 2


def test_stopping_lets_every_stage_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [Stage(f"{seed}", RECIPE.replace(epochs=10_000, seed=seed)) for seed in range(2)]

    def stop_once_all_have_begun(sentinels: object) -> None:
        deadline = time.monotonic() + 60
        while not all(Run(tmp_path / stage.name).last.exists() for stage in stages):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "wait", stop_once_all_have_begun)
    with pytest.raises(KeyboardInterrupt):
        launch.run(stages, tmp_path, replace(MACHINE, save_every=10_000), workers=2)
    for stage in stages:
        run = Run(tmp_path / stage.name)
        state = torch.load(run.last, weights_only=True)
        assert 0 < state["step"] < stage.recipe.epochs * STEPS
        assert len(run.rows()) == state["step"] // STEPS
        with run.locked():  # its process is gone
            pass


def test_another_recipe_in_a_folder_is_refused_before_anything_runs(tmp_path: Path) -> None:
    Run(tmp_path / "b").path.mkdir()
    Run(tmp_path / "b").begin(RECIPE, {})
    with pytest.raises(BnewError, match=r"another recipe \(lr is 0.01 there and 0.5 here\)"):
        launch.run([Stage("a", RECIPE), Stage("b", RECIPE.replace(lr=0.5))], tmp_path, MACHINE)
    assert not (tmp_path / "a").exists()


def test_a_killed_stage_goes_on(tmp_path: Path) -> None:
    recipe = RECIPE.replace(epochs=2)
    kill_at_step(recipe, tmp_path / "run", MACHINE, STEPS + 1)
    assert launch.run([Stage("run", recipe)], tmp_path, MACHINE) == {}
    assert [row["epoch"] for row in Run(tmp_path / "run").rows()] == ["0", "1"]
