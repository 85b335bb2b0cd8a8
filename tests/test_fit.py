"""From a folder to a packed file in one call: done once, stopped and resumed, refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bnew_engine
import pytest
from helpers import Crash, crash
from test_fit_folder import make, three_digits

import bnew
from bnew.errors import BnewError
from bnew.files import write_json
from bnew.fit import stages
from bnew.fit.plan import Plan
from bnew.fit.showing import Watch
from bnew.fit.stages import fit
from bnew.results import run as run_files
from bnew.training.loop import Trainer


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return three_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ONNX export, which takes seconds, and short timings."""
    monkeypatch.setattr("bnew.fit.measure._in_onnx", lambda twin, x: {})
    monkeypatch.setattr("bnew.fit.measure.SECONDS", 0.02)
    monkeypatch.setattr("bnew.fit.timing.SECONDS", 0.0)


OPTIONS: dict[str, Any] = {"epochs": 3, "model": "birealnet8", "device": "cpu"}


@pytest.fixture(scope="session")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a fit that nothing stopped."""
    file = tmp_path_factory.mktemp("whole") / "model.bnew"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bnew.fit.measure._in_onnx", lambda twin, x: {})
        patch.setattr("bnew.fit.measure.SECONDS", 0.02)
        fit(digits, file, **OPTIONS, quiet=True)
    return file


def test_a_fit_leaves_a_file_a_page_and_numbers(digits: Path, whole: Path) -> None:
    done = fit(digits, whole, **OPTIONS)
    assert tuple(bnew_engine.load(whole).classes) == ("0", "1", "7")
    by_engine = bnew.evaluate(whole, data_dir=digits)  # all of the images, the originals
    assert by_engine.images == 120
    assert done.data["evaluation"]["images"] < 40
    assert 0 <= done.accuracy <= 1
    assert done.data["file_bytes"] == whole.stat().st_size < done.data["float_bytes"]
    assert set(done.data["milliseconds"]) == {"bnew-engine", "PyTorch"}
    assert done.data["epochs"] == {"phase1": 1, "phase2": 2}
    text = str(done)
    assert "test accuracy" in text
    assert max(map(len, text.splitlines())) <= 80
    page = done.page.read_text("utf-8")
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", page)
    assert "How it was made" in page
    json.dumps(done.to_dict())


def test_the_network_gets_the_pixels_of_the_originals(digits: Path, whole: Path) -> None:
    """The packed file on the test images' originals is as good as the result says."""
    run = bnew.results.Run(whole.with_suffix(".fit") / "phase2")
    assert run.recipe.data == "grey_folder"
    assert run.preparation is not None
    assert run.preparation.size == (1, 8, 8)
    tested = fit(digits, whole, **OPTIONS, quiet=True).data["evaluation"]
    assert tested["top1"] == pytest.approx(run.summary["test_accuracy"])


def test_a_finished_fit_is_only_shown(
    digits: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "train", crash)
    before = whole.read_bytes()
    done = fit(digits, whole, **OPTIONS)
    assert "already done" in capfd.readouterr().err
    assert whole.read_bytes() == before
    assert done.accuracy == fit(digits, whole, **OPTIONS, quiet=True).accuracy


def test_other_options_or_images_are_refused(digits: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(BnewError, match="--epochs is 3 there and 5 here"):
        fit(digits, whole, **{**OPTIONS, "epochs": 5}, quiet=True)
    other = make(tmp_path / "other", {"0": 5, "1": 5})
    with pytest.raises(BnewError, match=r"the images in '.*other' are others"):
        fit(other, whole, **OPTIONS, quiet=True)


def test_a_file_of_something_else_is_kept(digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.bnew"
    file.write_text("mine")
    with pytest.raises(BnewError, match="is there already"):
        fit(digits, file, **OPTIONS, quiet=True)
    assert file.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [file]


# ---------------------------------------------------------------------- stopped and resumed


def stopped_in_epoch(stage: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_train_epoch_start(watch: Watch, trainer: Trainer, epoch: int) -> None:
        if (watch.stage, epoch) == (stage, number):
            raise Crash

    monkeypatch.setattr(Watch, "on_train_epoch_start", on_train_epoch_start, raising=False)


@pytest.mark.parametrize(
    "where", ["before the plan", "phase1", "between", "phase2", "pack_run", "write_page", "write_json"]
)
def test_a_stopped_fit_ends_as_if_it_had_not_been(
    digits: Path, whole: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.bnew"
    with monkeypatch.context() as patch:
        if where == "before the plan":
            patch.setattr(Plan, "write", crash_with_any)
        elif where == "phase2":
            stopped_in_epoch("phase2", 1, patch)
        elif where in ("phase1", "between"):
            stopped_in_epoch("phase1" if where == "phase1" else "phase2", 0, patch)
        else:
            patch.setattr(stages, where, crash_with_any)
        with pytest.raises(Crash):
            fit(digits, file, **OPTIONS, quiet=True)
    done = fit(digits, file, **OPTIONS, quiet=True)
    assert file.read_bytes() == whole.read_bytes()
    expected = fit(digits, whole, **OPTIONS, quiet=True)
    for same in ("evaluation", "epochs", "accuracies", "file_bytes"):
        wanted = (
            {**expected.data[same], "network": str(file)} if same == "evaluation" else expected.data[same]
        )
        assert done.data[same] == wanted


def crash_with_any(*_: object, **__: object) -> None:
    raise Crash


def test_a_killed_fit_resumes(digits: Path, whole: Path, tmp_path: Path) -> None:
    """By SIGKILL, wherever it is, until it gets to its end."""
    file = tmp_path / "model.bnew"
    words = ["fit", str(digits), str(file), "--epochs", "3", "--model", "birealnet8", "--device", "cpu"]
    work = file.with_suffix(".fit")
    command = [sys.executable, "-m", "bnew", *words]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (work / "phase2" / "recipe.json").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    fit(digits, file, **OPTIONS, quiet=True)
    assert file.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("name", ["data.json", "environment.json", "recipe.json"])
def test_a_run_that_is_killed_while_it_begins_resumes(
    digits: Path, whole: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.bnew"

    def write_until(path: Path, data: object) -> None:
        write_json(path, data)
        if path.parts[-2:] == ("phase2", name):
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(run_files, "write_json", write_until)
        with pytest.raises(Crash):
            fit(digits, file, **OPTIONS, quiet=True)
    fit(digits, file, **OPTIONS, quiet=True)
    assert file.read_bytes() == whole.read_bytes()


def test_a_damaged_plan_is_named(digits: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.parent, tmp_path / "copy")
    (tmp_path / "copy" / "model.fit" / "plan.json").write_text("{")
    with pytest.raises(BnewError, match=r"plan.json is damaged .* delete the folder"):
        fit(digits, tmp_path / "copy" / "model.bnew", **OPTIONS, quiet=True)


# ---------------------------------------------------------------------- what cannot be had


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"minutes": 1, "epochs": 4}, "give one of them"),
        ({"minutes": 0}, "minutes is 0"),
        ({"epochs": 1}, "at least 2"),
        ({"method": "clip"}, "stay real: choose one of bnew, ste"),
        ({"method": "stee"}, "unknown method"),
        ({"model": "birealnet9"}, "unknown model"),
        ({"model_options": {"blocks": 2}}, "give --model too"),
        ({"model": "birealnet8", "pretrained": True}, "comes without weights"),
        ({"model": "birealnet8", "weights": "none.pt"}, "there is no file"),
        ({"image_size": 0}, "image_size is 0"),
    ],
)
def test_what_cannot_be_had_is_refused(
    digits: Path, tmp_path: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(BnewError, match=said) as refused:
        fit(digits, tmp_path / "model.bnew", **options, quiet=True)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
    assert not os.listdir(tmp_path)


def test_a_bad_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(BnewError, match="has no images"):
        fit(tmp_path / "images", tmp_path / "model.bnew", quiet=True)
    assert os.listdir(tmp_path) == ["images"]


def test_weights_of_floats_are_trained_first_and_teach(digits: Path, tmp_path: Path) -> None:
    import torch
    import torchvision

    weights = tmp_path / "floats.pt"
    torch.save(torchvision.models.resnet18(num_classes=9).state_dict(), weights)
    done = fit(
        digits, tmp_path / "model.bnew", epochs=3, model="torchvision:resnet18", weights=weights,
        image_size=32, device="cpu", quiet=True,
    )  # fmt: skip
    assert list(done.data["epochs"]) == ["float", "phase1", "phase2"]
    recipe = bnew.results.Run(done.runs / "phase2").recipe
    assert recipe.teacher == "../float"
    assert recipe.init == "../phase1"
