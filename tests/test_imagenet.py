"""ImageNet's experiment: what is planned, its schedules, its teachers, and all of it on a small folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock
from urllib.error import URLError

import numpy as np
import pytest
import torch
from helpers import Cli
from test_cli import bnew
from test_data import make_folder
from test_streaming import opened
from torch import nn
from torchvision.models import ResNet34_Weights, resnet34

from bnew.errors import BnewError
from bnew.experiments.plan import plan
from bnew.experiments.published import IMAGENET
from bnew.layers import binary_parameters
from bnew.methods import create_method
from bnew.models import create_model
from bnew.packing.file import PackedFile
from bnew.recipe import Recipe
from bnew.results.groups import best_run
from bnew.results.run import Run
from bnew.training.machine import Machine
from bnew.training.networks import load_teacher
from bnew.training.optimizers import make_optimizer

__all__ = ["bnew"]  # a fixture

STEPS_AN_EPOCH = {256: 5005, 220: 5824}  # of 1,281,167 images


def published(method: str = "bnew", **options: Any) -> dict[str, Recipe]:
    return {
        stage.name.split("/")[1]: stage.recipe for stage in plan("imagenet", methods=(method,), **options)
    }


# As published


def test_the_plan() -> None:
    stages = plan("imagenet")
    assert [stage.name for stage in stages] == [
        "distilled/step1/seed0",
        "distilled/bnew/seed0",
        "distilled/bnew-finetune/seed0",
    ]
    assert [stage.needs for stage in stages] == [(), (stages[0].name,), (stages[1].name,)]
    step1, step2, finetune = (stage.recipe for stage in stages)
    assert (step1.init, step2.init, finetune.init) == (
        None,
        "../../../distilled/step1/seed0",
        "../../../distilled/bnew/seed0",
    )
    for recipe in (step1, step2, finetune):
        assert (recipe.model, recipe.data, recipe.image_size) == ("reactnet_a", "imagenet", 224)
        assert recipe.teacher == "torchvision:resnet34"
        assert recipe.optimizer == "adam"
    assert [(r.epochs, r.batch_size, r.lr) for r in (step1, step2, finetune)] == [
        (128, 256, 1.25e-3),
        (401, 220, 1e-3),
        (200, 220, 1e-3),
    ]
    assert (step1.weight_decay, step1.decayed) == (1e-5, "convolutions")
    assert step2.weight_decay == finetune.weight_decay == 0
    assert (step1.freeze_epoch, step2.freeze_epoch, finetune.freeze_epoch) == (128, 401, 0)
    assert (step1.ends_binary, step2.ends_binary, finetune.ends_binary) == (False, True, True)


def test_the_plan_of_ste_and_of_no_teacher() -> None:
    recipes = published("ste", teacher="none")
    assert list(recipes) == ["step1", "ste"]
    assert recipes["ste"].method_options == {"scale": True}
    assert (recipes["ste"].epochs, recipes["ste"].batch_size, recipes["ste"].lr) == (128, 256, 1.25e-3)
    assert {recipe.teacher for recipe in recipes.values()} == {None}


def test_steps_and_changes() -> None:
    stages = plan("imagenet", steps=("step2", "finetune"), changes={"model": "reactnet18", "image_size": 32})
    assert [stage.step for stage in stages] == ["step2", "finetune"]
    assert {(s.recipe.model, s.recipe.image_size) for s in stages} == {("reactnet18", 32)}


def test_a_run_as_teacher(tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "teacher")
    run.path.mkdir(parents=True)
    run.begin(Recipe(), {})
    (stage,) = plan("imagenet", steps=("step1",), teacher=str(run.path), out=tmp_path / "runs" / "imagenet")
    assert stage.recipe.teacher is not None
    found = tmp_path / "runs" / "imagenet" / stage.name / stage.recipe.teacher
    assert found.resolve() == run.path.resolve()


def test_the_regulariser_of_all_401_epochs() -> None:
    """λ_e = λ (e + 1) / E at the last step of epoch e, with λ = 1e-6; evenly from there to the next."""
    recipe = published()["bnew"]
    steps = STEPS_AN_EPOCH[recipe.batch_size]
    method = create_method(
        "bnew", [nn.Parameter(torch.zeros(1, 1))], recipe.epochs * steps, **recipe.method_options
    )
    for epoch in range(401):
        method.step = (epoch + 1) * steps - 1  # of the epoch's last step
        assert method.schedule()["reg"] == pytest.approx(1e-6 * (epoch + 1) / 401, rel=1e-12)
        for step in (0, steps // 2):
            method.step = epoch * steps + step
            assert method.schedule()["reg"] == pytest.approx(1e-6 * (epoch + (step + 1) / steps) / 401)


def test_the_rate_falls_by_epoch() -> None:
    for recipe in published().values():
        steps = STEPS_AN_EPOCH[recipe.batch_size]
        total = recipe.epochs * steps
        for epoch in range(recipe.epochs):
            for step in (0, steps // 2, steps - 1):
                rate = recipe.lr_at((epoch * steps + step) / total)
                assert rate == pytest.approx(recipe.lr * (1 - epoch / recipe.epochs), rel=1e-12)


def test_what_decays_are_the_convolutions() -> None:
    with torch.device("meta"):
        model = create_model("reactnet_a")
    groups = make_optimizer(IMAGENET.phase1, model).param_groups
    assert {group["weight_decay"] for group in groups} == {1e-5, 0.0}
    decayed = [p for group in groups if group["weight_decay"] for p in group["params"]]
    assert sum(p.numel() for p in decayed) == 28_253_184 + 3 * 32 * 9
    assert {p.dim() for p in decayed} == {4}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_short_run_is_pushed_more() -> None:
    """Its own steps do not take its weights far; at full length, and beyond, it is the published λ."""
    recipe = IMAGENET.phase2["bnew"]
    pushes = [recipe.scaled(factor).method_options["strength"] for factor in (2, 1, 0.5, 0.1, 0.01)]
    assert pushes[0] == pushes[1] == pytest.approx(2.335, abs=0.001)
    assert pushes[1:] == sorted(pushes[1:])
    assert pushes[-1] < 9


# Teachers


@pytest.fixture
def thousand(tmp_path: Path) -> Path:
    """A folder of a thousand classes, of one image each."""
    folder = make_folder(tmp_path / "images", ("train", "val"), count=1)
    for part in ("train", "val"):
        image = (folder / part / "ant" / "000.png").read_bytes()
        for i in range(998):
            (folder / part / f"c{i:03}").mkdir()
            (folder / part / f"c{i:03}" / "0.png").write_bytes(image)
    return folder


def test_torchvisions_teacher(thousand: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file that is there; no pickle but of tensors."""
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path / "hub"))
    data, run = opened(thousand), Run(tmp_path / "run")
    with mock.patch("torch.hub.urlopen", side_effect=URLError("no network")):
        with pytest.raises(BnewError, match=r"weights of resnet34 are incomplete in .*resnet34-b627a593.pth"):
            load_teacher("torchvision:resnet34", run, data)
        file = tmp_path / "hub" / "checkpoints" / Path(ResNet34_Weights.IMAGENET1K_V1.url).name
        file.parent.mkdir(parents=True, exist_ok=True)
        own = resnet34()
        torch.save(own.state_dict(), file)
        teacher = load_teacher("torchvision:resnet34", run, data)
        x = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(teacher(x), own.eval()(x), rtol=1e-4, atol=1e-3)
        torch.save({"fc": Recipe()}, file)  # anything but tensors is refused
        with pytest.raises(BnewError, match="the weights of resnet34 are incomplete in"):
            load_teacher("torchvision:resnet34", run, data)


def test_a_teacher_of_other_classes(tmp_path: Path) -> None:
    data = opened(make_folder(tmp_path, ("train", "val"), count=2))
    with pytest.raises(BnewError, match=r"resnet34 knows ImageNet's 1000 classes and the data has 2:"):
        load_teacher("torchvision:resnet34", Run(tmp_path), data)
    with pytest.raises(BnewError, match="unknown network of torchvision 'resnet35': did you mean 'resnet"):
        load_teacher("torchvision:resnet35", Run(tmp_path), data)


# From end to end


def test_all_steps_on_a_small_folder(bnew: Cli, tmp_path: Path) -> None:
    """With a teacher of one's own; the last step's weights are ± one magnitude per channel."""
    folder = make_folder(tmp_path / "images", ("train", "val"), count=12)
    options = (
        f"--data-dir {folder} --image-size 32 --batch-size 8 --device cpu --compile False --quiet "
        "--decode-threads 1"
    )
    code, _, err = bnew(
        f"train --data imagenet --model birealnet8 --epochs 1 {options} --out {tmp_path / 'teacher'}"
    )
    assert code == 0, err
    words = (
        f"reproduce imagenet --model birealnet8 --teacher {tmp_path / 'teacher'} --epochs-scale 0.008 0.0025 "
        f"0.005 {options} --out {tmp_path / 'out'}"
    )
    code, out, err = bnew(words)
    assert code == 0, err
    # The steps stand in their order.
    table = (tmp_path / "out" / "report.md").read_text()
    names = ("real weights (step1)", "| BNEW", "weights frozen (bnew-finetune)")
    steps = [table.index(name) for name in names]
    assert steps == sorted(steps)
    assert "69.4" not in out  # what was published on ImageNet is not beside other images
    run = Run(tmp_path / "out" / "distilled" / "bnew-finetune" / "seed0")
    assert run.summary["last_val_accuracy"] <= run.summary["val_accuracy"]
    from bnew.training.networks import load_model

    for weight in binary_parameters(load_model(run, 2, 3)):
        sizes = weight.detach().abs().flatten(1)
        assert torch.equal(sizes, sizes[:, :1].expand_as(sizes))
        assert not torch.equal(sizes, torch.ones_like(sizes))

    code, out, _ = bnew(f"pack {tmp_path / 'out'} {tmp_path / 'model.bnew'}")
    assert code == 0
    assert bnew(f"verify {tmp_path / 'model.bnew'} {tmp_path / 'out'}")[0] == 0

    # From the files, an image is brought to size as in validation: within one grey level.
    from bnew.data.images import read_image
    from bnew.training.run_data import load_run_data

    data = load_run_data(best_run(tmp_path / "out"), Machine(device="cpu"), "val")
    seen = torch.cat([x for x, _ in data.batches("val", train=False)])
    entry = PackedFile.read(tmp_path / "model.bnew").graph["input"]
    assert entry["resize"] == [37, 37]
    paths = sorted((folder / "val").glob("*/*"))
    pixels = np.stack([read_image(path, "RGB", (32, 32), entry["resize"]) for path in paths])
    mean, std = (torch.tensor(entry[name]) for name in ("mean", "std"))
    read = (torch.from_numpy(pixels) / 255 - mean) / std
    levels = (255 * (seen.movedim(1, -1) - read) * std).abs()
    assert levels.max() < 1.01
    assert levels.mean() < 0.05
