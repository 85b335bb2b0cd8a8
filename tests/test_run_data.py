"""A run and its images: prepared as they were in training wherever they are, and never silently others."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers import MACHINE, RECIPE, at_step, send
from PIL import Image

from bnew.cli import main
from bnew.data.holdout import HELD_OUT, RULE, hold_out
from bnew.data.in_memory import MemoryDataset
from bnew.data.preparation import Preparation
from bnew.data.streaming import open_folder
from bnew.deploy.inference import Timings, bench, predict
from bnew.deploy.onnx import export_run
from bnew.deploy.pack_run import pack_run
from bnew.deploy.verify import verify_run
from bnew.errors import BnewError, Interrupted
from bnew.experiments import launch
from bnew.experiments.plan import Stage
from bnew.packing.file import PackedFile
from bnew.recipe import Recipe
from bnew.results.run import Run
from bnew.training.evaluation import evaluate_run, load_run
from bnew.training.loop import train
from bnew.training.machine import Machine
from bnew.training.networks import load_teacher
from bnew.training.run_data import load_data, load_run_data

CLASSES = ("ant", "bee", "cow")
FOLDER = RECIPE.replace(data="folder", method="ste", epochs=6, batch_size=20, lr=0.01)


def write_images(root: Path, parts: tuple[str, ...] = ("train", "test"), size: int = 8) -> Path:
    """Noisy squares whose brightness is their class: bright, brighter, brightest; 20 of each in each part."""
    rng = np.random.default_rng(0)
    for part in parts:
        for level, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(20):
                pixels = 90 + 60 * level + rng.integers(-25, 26, (size, size, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


def at(folder: Path) -> Machine:
    return replace(MACHINE, data_dir=str(folder))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Run:
    run = train(FOLDER, tmp_path_factory.mktemp("runs") / "run", at(pictures))
    assert run.summary["test_accuracy"] > 0.6
    return run


@pytest.fixture(scope="module")
def dark(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The pictures at a third of their brightness."""
    folder = shutil.copytree(pictures, tmp_path_factory.mktemp("copies") / "dark")
    for path in folder.glob("*/*/*.png"):
        Image.fromarray(np.asarray(Image.open(path)) // 3).save(path)
    return folder


@pytest.fixture
def without_data(run: Run, tmp_path: Path) -> Run:
    """The run, its images lost."""
    copy = Run(shutil.copytree(run.path, tmp_path / "alone"))
    environment = copy.environment | {"data_dir": str(tmp_path / "lost")}
    (copy.path / "environment.json").write_text(json.dumps(environment))
    return copy


def of_before(run: Run, path: Path) -> Run:
    """A copy of the run as an earlier version left it, which did not record what it held out."""
    copy = Run(shutil.copytree(run.path, path))
    (copy.path / "data.json").unlink()
    return copy


# What a run records


def test_a_run_records_how_its_images_are_prepared(run: Run, pictures: Path) -> None:
    data = load_data(FOLDER, at(pictures))
    assert run.preparation == data.preparation == Preparation(CLASSES, (3, 8, 8), data.mean, data.std)
    assert run.fingerprint == data.fingerprint


SPOILT: dict[str, tuple[str, Any, str]] = {
    "no mean": ("mean", None, "mean is None, but must be one number for each of 3 channels"),
    "short mean": ("mean", [0.5], "must be one number for each of 3 channels"),
    "NaN": ("mean", [0.5, 0.5, float("nan")], "must be one number for each of 3 channels"),
    "std of 0": ("std", [0.2, 0.2, 0], "must be one positive number for each of 3 channels"),
    "huge": ("std", [10**400] * 3, "must be one positive number"),
    "a class twice": ("classes", ["ant", "ant", "cow"], "must be the different names of at least one class"),
    "no class": ("classes", [], "must be the different names"),
    "text": ("classes", "abc", "must be the different names"),
    "size": ("size", [3, 8], "must be three positive whole numbers"),
    "truth": ("size", [3, 8, True], "must be three positive whole numbers"),
    "resize": ("resize", [4, 9], "must be null, or a height and a width of at least"),
    "unknown": ("stdd", [1], "unknown field of a preparation 'stdd': did you mean 'std'?"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_damaged_record_is_one_sentence(run: Run, tmp_path: Path, what: str) -> None:
    name, value, said = SPOILT[what]
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    path = copy.path / "data.json"
    data = json.loads(path.read_text())
    data["preparation"][name] = value
    path.write_text(json.dumps(data))
    with pytest.raises(BnewError) as caught:
        evaluate_run(copy, MACHINE)
    assert str(caught.value).startswith(f"{path} is damaged (")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ('{"preparation": [1]}', r"is damaged \(the preparation is \[1\], but must be an object\)"),
        ('{"preparation": {"std": [1]}}', "the preparation has no classes"),
    ],
)
def test_a_record_that_is_something_else(run: Run, tmp_path: Path, content: str, said: str) -> None:
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    (copy.path / "data.json").write_text(content)
    with pytest.raises(BnewError, match=said):
        pack_run(copy, tmp_path / "model.bnew", MACHINE)
    (copy.path / "data.json").write_text('{"fingerprint": [1]}')
    with pytest.raises(BnewError, match=r"is damaged \(the fingerprint is \[1\]\)"):
        train(FOLDER, copy.path, at(tmp_path))


# Other images


def test_darker_images_stay_dark(run: Run, dark: Path, tmp_path: Path) -> None:
    """They are normalised with the run's own mean and std, in PyTorch and packed alike."""
    pytest.importorskip("bnew_engine")
    accuracy = evaluate_run(run, at(dark)).accuracy
    assert accuracy == pytest.approx(1 / 3)  # all of them are darker than the darkest class
    assert accuracy < run.summary["test_accuracy"]
    pack_run(run, tmp_path / "model.bnew", MACHINE)
    paths = sorted((dark / "test").glob("*/*.png"))
    found = list(predict(tmp_path / "model.bnew", paths, top=1))
    assert np.mean([each.classes[0][0] == each.path.parent.name for each in found]) == accuracy
    verified = verify_run(tmp_path / "model.bnew", run, at(dark))
    assert verified.problems == ()
    assert verified.hits == (20, 20)


def test_images_of_another_size_are_brought_to_that_of_the_run(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    for path in (pictures / "test").glob("*/*.png"):
        copy = tmp_path / path.parent.name / path.name
        copy.parent.mkdir(exist_ok=True)
        Image.open(path).resize((16, 24), Image.Resampling.NEAREST).save(copy)
    data = load_run_data(run, at(tmp_path))
    assert data.image_size == (3, 8, 8)
    assert evaluate_run(run, at(tmp_path)).accuracy > 0.6


def test_a_folder_of_classes_alone_is_evaluated_as_a_whole(
    run: Run, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bnew")
    expected = run.summary["test_accuracy"]
    assert evaluate_run(run, at(pictures / "test")).accuracy == expected
    assert caplog.messages == [f"{pictures / 'test'}: 60 images of 3 of the network's classes"]
    with pytest.raises(BnewError, match="has class folders, and no folder val: leave out --split"):
        evaluate_run(run, at(pictures / "test"), "val")


def test_other_parts(run: Run, pictures: Path, tmp_path: Path) -> None:
    """Of another folder a part is a whole folder; what is held out of it, only the run's own images know."""
    (tmp_path / "valid").symlink_to(pictures / "test")
    for split in ("test", "val"):
        assert evaluate_run(run, at(tmp_path), split).accuracy == run.summary["test_accuracy"]
    with pytest.raises(BnewError, match=r"has no folder train, and not the images that .* was trained on"):
        evaluate_run(run, at(tmp_path), "train")
    with pytest.raises(BnewError, match="nowhere' does not exist"):
        evaluate_run(run, at(tmp_path / "nowhere"))


def test_a_folder_without_the_images_is_never_the_run_itself(tmp_path: Path) -> None:
    """Digits come with scikit-learn: whatever --data-dir says, they are there."""
    digits = train(RECIPE, tmp_path / "run", at(tmp_path / "data"))
    own, there = (evaluate_run(digits, machine).to_dict() for machine in (MACHINE, at(tmp_path / "data")))
    assert own == there  # the same images
    (tmp_path / "file").touch()
    (tmp_path / "empty/notes").mkdir(parents=True)
    for of in (digits, of_before(digits, tmp_path / "before")):
        for wrong, said in (
            ("nowhere", "nowhere' does not exist: give --data-dir a folder"),
            ("file", "file' does not exist"),
            ("empty", "has no class folders with images, and digits does not come from a folder: leave out"),
        ):
            with pytest.raises(BnewError, match=said):
                evaluate_run(of, at(tmp_path / wrong))
            with pytest.raises(BnewError, match=said):
                load_run(of, at(tmp_path / wrong))


def test_a_published_set_is_not_fetched_into_a_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images of another folder are asked for, so those of the set are no answer."""
    digits = train(RECIPE, tmp_path / "run", at(tmp_path / "data"))
    recipe = json.loads((digits.path / "recipe.json").read_text()) | {"data": "mnist"}
    (digits.path / "recipe.json").write_text(json.dumps(recipe))
    asked: list[bool] = []

    def fetch(name: str, data_dir: Path, *, download: bool, **options: Any) -> Any:
        asked.append(download)
        raise BnewError("not there")

    monkeypatch.setattr("bnew.training.run_data.load", fetch)
    (tmp_path / "photos").mkdir()
    for machine in (at(tmp_path / "photos"), at(tmp_path / "data"), MACHINE):
        with pytest.raises(BnewError, match="not there"):
            evaluate_run(Run(digits.path), machine)
    assert asked == [False, True, True]


def test_a_moved_copy_is_the_own_folder(run: Run, pictures: Path, dark: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(pictures, tmp_path / "copy")
    assert evaluate_run(run, at(copy), "val").accuracy == run.summary["val_accuracy"]
    with pytest.raises(BnewError, match="has no folder val, and not the images that"):
        evaluate_run(run, at(dark), "val")


@pytest.mark.parametrize("lacking", ["ant", "bee"])
def test_classes_that_lack_are_said_and_the_others_keep_their_numbers(
    run: Run, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, lacking: str
) -> None:
    caplog.set_level(logging.INFO, "bnew")
    rest = [name for name in CLASSES if name != lacking]
    for name in rest:
        (tmp_path / name).symlink_to(pictures / "test" / name)
    data = load_run_data(run, at(tmp_path))
    assert isinstance(data, MemoryDataset)
    assert data.classes == CLASSES
    assert sorted(set(data.test.labels.tolist())) == [CLASSES.index(name) for name in rest]
    assert f"40 images of 2 of the network's classes; none of {lacking}" in caplog.text


def test_classes_that_the_run_does_not_know_are_named(run: Run, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures / "test", tmp_path / "more" / "test")
    (tmp_path / "more/test/bee").rename(tmp_path / "more/test/wasp")
    said = r"does not know \('wasp'\): .* knows ant, bee, cow"
    for folder in ("more", "more/test"):
        with pytest.raises(BnewError, match=said):
            evaluate_run(run, at(tmp_path / folder))


def test_a_class_may_be_called_like_a_part(run: Run, pictures: Path, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    data = json.loads((copy.path / "data.json").read_text())
    data["preparation"]["classes"] = ["ant", "bee", "train"]
    (copy.path / "data.json").write_text(json.dumps(data))
    shutil.copytree(pictures / "test", tmp_path / "images")
    (tmp_path / "images/cow").rename(tmp_path / "images/train")
    assert evaluate_run(copy, at(tmp_path / "images")).accuracy == run.summary["test_accuracy"]


def test_images_that_changed_since_are_said(
    run: Run, pictures: Path, dark: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the run's own place too, they are prepared with what was trained with."""
    place = shutil.copytree(dark, tmp_path / "place")
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    environment = copy.environment | {"data_dir": str(place)}
    (copy.path / "environment.json").write_text(json.dumps(environment))
    assert evaluate_run(copy, MACHINE).accuracy == pytest.approx(1 / 3)
    assert "the images have changed since" in caplog.text
    assert "test: other contents" in caplog.text


def test_a_run_on_named_data_takes_a_folder_of_images(tmp_path: Path) -> None:
    """Never its own data set in place of the images that were asked for."""
    run = train(RECIPE, tmp_path / "run", MACHINE)
    data = load_data(RECIPE, MACHINE)
    assert isinstance(data, MemoryDataset)
    kept = data.test.labels == 3
    (tmp_path / "images/3").mkdir(parents=True)
    for i, image in enumerate(data.test.images[kept]):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"images/3/{i}.png")
    _, found = load_run(run, at(tmp_path / "images"))
    x, y = next(iter(found.batches("test", train=False).epoch(0)))
    own, labels = next(iter(data.batches("test", train=False).epoch(0)))
    torch.testing.assert_close(x.sum(), own[labels == 3].sum())
    assert y.tolist() == [3] * int(kept.sum())
    (tmp_path / "images/3").rename(tmp_path / "images/three")
    with pytest.raises(BnewError, match=r"does not know \('three'\)"):
        load_run(run, at(tmp_path / "images"))


def test_streamed_images(pictures: Path, dark: Path, tmp_path: Path) -> None:
    recipe = FOLDER.replace(data="imagenet", image_size=8, epochs=1)
    machine = replace(MACHINE, decode_threads=1)
    run = train(recipe, tmp_path / "run", replace(machine, data_dir=str(pictures)))
    assert run.preparation is not None
    assert (run.preparation.size, run.preparation.resize) == ((3, 8, 8), (9, 9))
    own = evaluate_run(run, machine).to_dict()
    for folder in (pictures, pictures / "test"):
        assert evaluate_run(run, replace(machine, data_dir=str(folder))).to_dict() == own
    assert evaluate_run(run, replace(machine, data_dir=str(dark))).to_dict() != own
    # An experiment whose runs are done is not done for other images.
    stages = [Stage("run", recipe)]
    assert launch.run(stages, tmp_path, replace(machine, data_dir=str(pictures))) == {}
    with pytest.raises(BnewError, match=r"run holds a run on other images \(train: other sizes"):
        launch.run(stages, tmp_path, replace(machine, data_dir=str(dark)))


# No images


def test_pack_needs_no_images(run: Run, without_data: Run, tmp_path: Path) -> None:
    packed = pack_run(without_data, tmp_path / "alone.bnew", MACHINE)
    pack_run(run, tmp_path / "model.bnew", MACHINE)
    assert (tmp_path / "alone.bnew").read_bytes() == (tmp_path / "model.bnew").read_bytes()
    assert packed.graph["classes"] == list(CLASSES)


def test_export_needs_no_images(
    run: Run, without_data: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    check = export_run(without_data, tmp_path / "alone.onnx", MACHINE)
    assert check is not None
    assert "of 100 generated images PyTorch's class" in str(check)
    assert "checking on generated images, as those of the run cannot be had: the data folder" in caplog.text
    with pytest.raises(BnewError, match="nowhere' does not exist"):  # those that were asked for, or none
        export_run(run, tmp_path / "model.onnx", at(tmp_path / "nowhere"))


def test_export_is_checked_on_the_images_that_are_named(
    without_data: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[torch.Tensor] = []
    monkeypatch.setattr("bnew.deploy.onnx.export_onnx", lambda model, images, path, kind: used.append(images))
    export_run(without_data, tmp_path / "model.onnx", at(pictures / "test"))
    own, _ = next(iter(load_data(FOLDER, at(pictures)).batches("test", train=False).epoch(0)))
    assert torch.equal(used[0], own)


# Runs of before


def test_a_run_of_before_is_used_on_its_own_images_alone(
    run: Run, pictures: Path, dark: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = of_before(run, tmp_path / "old")
    for machine in (MACHINE, at(pictures)):
        assert evaluate_run(old, machine).accuracy == run.summary["test_accuracy"]
    assert "does not record how its images were prepared" in caplog.text
    for use in (evaluate_run, lambda run, machine: pack_run(run, tmp_path / "m", machine)):
        with pytest.raises(BnewError, match=r"does not record how .* so leave out --data-dir"):
            use(old, at(dark))
    pack_run(old, tmp_path / "old.bnew", MACHINE)
    assert PackedFile.read(tmp_path / "old.bnew").graph["classes"] == list(CLASSES)


def test_a_stopped_run_of_before_is_resumed_where_nothing_is_held_out(pictures: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pictures, tmp_path / "pictures")
    shutil.copytree(folder / "test", folder / "val")
    whole = train(FOLDER, tmp_path / "whole", at(folder))
    with pytest.raises(Interrupted), at_step(7, send(2)):
        train(FOLDER, tmp_path / "stopped", at(folder))
    old = of_before(Run(tmp_path / "stopped"), tmp_path / "old")
    finished = train(FOLDER, old.path, at(folder))
    assert finished.preparation == whole.preparation
    assert finished.best.read_bytes() == whole.best.read_bytes()


def by_count(
    names: Sequence[str], labels: Any, classes: Any, copies: Any, parts: Sequence[str], val_split: None
) -> dict[str, npt.NDArray[np.int64]]:
    """What was held out of a user's own images before it was by name."""
    held, kept = {}, torch.arange(len(names))
    for part in parts:
        rest, out = hold_out(len(kept), HELD_OUT[part])
        held[part], kept = kept[out].numpy(), kept[rest]
    return held | {"train": kept.numpy()}


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_a_run_that_held_out_by_count_is_never_tested_on_what_it_was_trained_on(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(pictures / "train", folder / "train")
    recipe = FOLDER.replace(data=name, image_size=8, epochs=2)
    machine = replace(at(folder), decode_threads=1)
    with monkeypatch.context() as before:
        before.setattr("bnew.data.sources.hold_out_by_name", by_count)
        before.setattr("bnew.data.streaming.hold_out_by_name", by_count)
        trained = train(recipe, tmp_path / "trained", machine)
        with pytest.raises(Interrupted), at_step(2, send(2)):
            train(recipe, tmp_path / "stopped", machine)
    forget()
    done, stopped = (of_before(Run(tmp_path / n), tmp_path / f"old {n}") for n in ("trained", "stopped"))
    said = "may have been trained on images that are now held out as .*, as the rule .* has changed since"
    for split in ("test", "val"):
        with pytest.raises(BnewError, match=said):
            evaluate_run(done, machine, split)
    with pytest.raises(BnewError, match=said):
        train(recipe, stopped.path, machine)
    with pytest.raises(BnewError, match=said):
        train(recipe.replace(init=str(done.path)), tmp_path / "next", machine)
    assert trained.hold_out is not None
    shutil.copytree(pictures / "test", folder / "test")
    shutil.copytree(pictures / "test", folder / "val")
    forget()
    assert 0 <= evaluate_run(done, machine).accuracy <= 1


def test_a_part_that_is_removed_is_not_held_out_of_what_was_trained_on(
    pictures: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pictures, tmp_path / "mine")
    done = train(FOLDER.replace(epochs=1), tmp_path / "run", at(folder))
    assert done.hold_out == {"rule": RULE, "parts": ["val"]}
    shutil.rmtree(folder / "test")
    forget()
    with pytest.raises(BnewError, match="now held out as test, as the folder had other parts then"):
        evaluate_run(done, MACHINE)


# A run and other images


@pytest.fixture
def stopped(pictures: Path, tmp_path: Path) -> Run:
    shutil.copytree(pictures, tmp_path / "mine")
    with pytest.raises(Interrupted), at_step(7, send(2)):
        train(FOLDER, tmp_path / "stopped", at(tmp_path / "mine"))
    return Run(tmp_path / "stopped")


def add_a_picture(folder: Path, dark: Path) -> Path:
    shutil.copy(folder / "train/ant/0.png", folder / "test/ant/20.png")
    return folder


def forget() -> None:
    """Of what this process has read of folders."""
    from bnew.data import sources as module

    module._load.cache_clear()
    open_folder.cache_clear()


CHANGES: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "a picture more": (add_a_picture, "test had 60 images and has 61"),
    "another folder": (
        lambda folder, dark: dark,
        "train: other contents.*they were in '.*mine' and are in '.*dark'",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_run_is_not_resumed_on_other_images(
    stopped: Run, dark: Path, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    change, said = CHANGES[what]
    before = {path.name: path.read_bytes() for path in stopped.path.iterdir() if path.is_file()}
    folder = change(tmp_path / "mine", dark)
    forget()
    with pytest.raises(BnewError, match=rf"holds a run on other images \(.*{said}.*--force$"):
        train(FOLDER, stopped.path, at(folder))
    assert {path.name: path.read_bytes() for path in stopped.path.iterdir() if path.is_file()} == before
    forced = train(FOLDER, stopped.path, replace(at(folder), force=True))
    assert forced.done
    assert any(change.startswith("data: ") for change in forced.environment["forced"])
    assert f"{stopped.path} is resumed although" in caplog.text
    assert forced.fingerprint == load_data(FOLDER, at(folder)).fingerprint
    assert [int(row["epoch"]) for row in forced.rows()] == list(range(FOLDER.epochs))


@pytest.mark.parametrize("force", [False, True])
def test_a_finished_run_is_not_done_for_other_images(
    run: Run, pictures: Path, dark: Path, tmp_path: Path, force: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(FOLDER, run.path, at(pictures)).done
    with pytest.raises(
        BnewError, match=r"on other images \(.*train: other contents.*\): choose another folder$"
    ):
        train(FOLDER, run.path, replace(at(dark), force=force))
    assert train(FOLDER, run.path, at(tmp_path / "lost")).done
    assert "images cannot be checked" in caplog.text


# Teachers


def test_a_teacher_takes_images_as_its_own_were(run: Run, dark: Path, pictures: Path, tmp_path: Path) -> None:
    """What a student on darker images, with another mean, is taught is what the teacher makes of them."""
    student = Run(tmp_path / "student")
    images, _ = next(iter(load_run_data(run, at(dark)).batches("test", train=False).epoch(0)))
    data = load_data(FOLDER, at(dark))
    same, _ = next(iter(data.batches("test", train=False).epoch(0)))
    link = str(run.path)
    with torch.no_grad():
        expected = load_teacher(link, student, load_data(FOLDER, at(pictures)))(images)
        torch.testing.assert_close(load_teacher(link, student, data)(same), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(BnewError, match="was trained on other classes than the student's"):
        load_teacher(link, student, replace(data, classes=("bee", "ant", "cow")))


# Unfinished runs


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What bnew has warned of since this was asked last."""
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    return said


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Run:
    path = tmp_path_factory.mktemp("runs") / "unfinished"
    with pytest.raises(Interrupted), at_step(7, send(2)):
        train(FOLDER, path, at(pictures))
    return Run(path)


@pytest.fixture(scope="module")
def packed(unfinished: Run) -> Path:
    path = unfinished.path.parent / "model.bnew"
    pack_run(unfinished, path, MACHINE)
    return path


USES = ("eval RUN --device cpu", "pack RUN NEW", "verify FILE RUN", "bench FILE --run RUN", "export RUN NEW")


@pytest.mark.parametrize("command", USES)
def test_an_unfinished_run_is_said(
    unfinished: Run,
    packed: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("bnew_engine")
    # What takes time and is not in question.
    monkeypatch.setattr("bnew.deploy.inference.bench", create_autospec(bench, return_value=Timings(())))
    monkeypatch.setattr("bnew.deploy.onnx.export_onnx", lambda model, images, path, kind: path.touch())
    names = {"RUN": str(unfinished.path), "FILE": str(packed), "NEW": str(tmp_path / "new")}
    warnings(caplog)
    with pytest.raises(SystemExit) as ended:
        main([names.get(word, word) for word in command.split()])
    assert ended.value.code == 0
    said = f"{unfinished.path} is unfinished (epoch 2 of 6): these are its best weights so far"
    assert warnings(caplog) == [said]


def test_a_finished_run_is_said_nothing_of(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate_run(run, MACHINE)
    pack_run(run, tmp_path / "model.bnew", MACHINE)
    assert warnings(caplog) == []


def test_preparation_is_plain_data() -> None:
    made = Preparation(("a", "é\udcff"), (1, 4, 6), (0.5,), (0.25,), (5, 6))
    assert Preparation.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_begin_again_keeps_the_record(tmp_path: Path) -> None:
    prepared = Preparation(("a",), (1, 4, 6), (0.5,), (0.25,))
    (tmp_path / "run").mkdir()
    for contents in ("1", "2"):
        Run(tmp_path / "run").begin(Recipe(), {}, prepared, {"train": {"contents": contents}})
    run = Run(tmp_path / "run")
    assert run.fingerprint == {"train": {"contents": "2"}}
    assert run.environment["forced"] == ["data: train: other contents"]
