"""Which images a folder has, what is odd about them, and what is chosen for them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from bnew.data.images import read_image
from bnew.display import duration
from bnew.errors import BnewError
from bnew.fit.choose import (
    BATCH,
    FOR_PHOTOS,
    MOST_EPOCHS,
    SMALLEST_BATCH,
    Budget,
    Candidate,
    affordable,
    batch_size,
    candidates,
    data_set,
    divided,
    epochs_of_stages,
    expected_counts,
    learning_rate,
    method_for,
)
from bnew.fit.folder import look, typical_side
from bnew.fit.reading import Census, bring


def make(folder: Path, counts: dict[str, int], side: int = 8, mode: str = "RGB", seed: int = 0) -> Path:
    """Images of noise, ``folder/<class>/<number>.png``."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{number}.png")
    return folder


def three_digits(folder: Path) -> Path:
    """Three digits, forty images each."""
    found = load_digits()
    for name in ("0", "1", "7"):
        (folder / name).mkdir()
        for number in (found.target == int(name)).nonzero()[0][:40]:
            pixels = (found.images[number] * 15.9375).astype("uint8")
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


# ---------------------------------------------------------------------- what a folder has


def test_class_folders(tmp_path: Path) -> None:
    found = look(make(tmp_path, {"a dog": 3, "é 猫": 4}))
    assert found.classes == ("a dog", "é 猫")
    assert {name: len(paths) for name, paths in found.files["train"].items()} == {"a dog": 3, "é 猫": 4}
    assert not found.in_parts
    assert found.root == tmp_path


def test_parts_are_honoured_and_archives_are_entered(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        make(tmp_path / "archive" / "images" / part, {"a": 2, "b": 2})
    (tmp_path / "archive" / "images" / "labels").mkdir()
    found = look(tmp_path)
    assert list(found.files) == ["train", "val", "test"]
    assert found.in_parts
    assert found.root == tmp_path / "archive" / "images"
    assert found.files["val"]["a"] == ["valid/a/0.png", "valid/a/1.png"]
    assert "'labels'" in found.notes[0]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert look(make(tmp_path, {"train": 3, "car": 3})).classes == ("car", "train")


def test_other_files_and_empty_folders_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "nothing").mkdir()
    with caplog.at_level(logging.WARNING, "bnew"):
        found = look(tmp_path)
    assert found.classes == ("a", "b")
    assert "'nothing'" in found.notes[0]
    assert "1 .txt" in caplog.text


def test_test_images_without_classes_are_left_out(tmp_path: Path) -> None:
    make(tmp_path / "train", {"a": 3, "b": 3})
    make(tmp_path, {"test": 3})
    found = look(tmp_path)
    assert list(found.files) == ["train"]
    assert "'test'" in found.notes[0]


def one_class(folder: Path) -> None:
    make(folder, {"a": 5})


def no_images(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "x.txt").write_text("x")


def no_classes(folder: Path) -> None:
    make(folder.parent, {folder.name: 3})


def three_images(folder: Path) -> None:
    make(folder, {"a": 1, "b": 2})


def only_test(folder: Path) -> None:
    make(folder / "test", {"a": 3, "b": 3})
    make(folder / "val", {"a": 3, "b": 3})


def parts_below_classes(folder: Path) -> None:
    for name in ("a", "b"):
        make(folder / name, {"train": 3, "test": 3})


def another_class_in_test(folder: Path) -> None:
    make(folder / "train", {"a": 3, "b": 3})
    make(folder / "test", {"a": 3, "b": 3, "c": 3})


def a_class_that_test_lacks(folder: Path) -> None:
    make(folder / "train", {"a": 3, "b": 3})
    make(folder / "test", {"a": 3})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: None, "has no images: put them there as CLASS"),
        (one_class, "has the one class 'a'"),
        (no_images, "has no images"),
        (no_classes, "has images but no class folders"),
        (three_images, r"need at least 3 images"),
        (only_test, "but no train"),
        (parts_below_classes, "put the parts above the classes"),
        (another_class_in_test, "test has a class 'c' that train does not have"),
        (a_class_that_test_lacks, "train has a class 'b' that test does not have"),
    ],
)
def test_bad_folders_are_refused_in_one_sentence(tmp_path: Path, spoil: object, said: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(BnewError, match=said) as refused:
        look(folder)
    assert "\n" not in str(refused.value)


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BnewError, match="does not exist"):
        look(tmp_path / "none")
    with pytest.raises(BnewError, match="is a file"):
        look(tmp_path / "file")


def test_the_typical_side(tmp_path: Path) -> None:
    make(tmp_path, {"a": 3}, side=10)
    make(tmp_path, {"b": 4}, side=30)
    assert typical_side(look(tmp_path)) == 30
    for path in tmp_path.glob("*/*"):
        path.write_bytes(b"x")
    with pytest.raises(BnewError, match="none of the images"):
        typical_side(look(tmp_path))


# ---------------------------------------------------------------------- bringing them to one size


def test_images_of_all_modes_are_brought_to_one_size(tmp_path: Path) -> None:
    source = make(tmp_path / "images", {"a b": 3, "é": 3}, side=20)
    Image.new("CMYK", (30, 20), (0, 255, 0, 0)).save(source / "é" / "cmyk.jpg")
    Image.new("RGBA", (9, 40), (10, 20, 30, 0)).save(source / "é" / "rgba.png")
    Image.new("L", (8, 8), 90).save(source / "é" / "grey.png")
    Image.new("RGB", (4000, 3000), (1, 2, 3)).save(source / "é" / "large.jpg")
    found = look(source)
    census = bring(found, 16, tmp_path / "out", 2)
    assert census.parts == {"train": 10}
    assert not census.grey
    assert census.sides == (8, 3000)
    for _, name, path in found.paths:
        copy = tmp_path / "out" / "train" / name / f"{Path(path).name}.png"
        assert np.array_equal(read_image(copy, "RGB"), read_image(source / path, "RGB", (16, 16)))
    assert Census.from_dict(census.to_dict()) == census


def test_grey_images_stored_in_colour_are_grey(tmp_path: Path) -> None:
    source = make(tmp_path / "images", {"a": 3, "b": 3}, mode="L")
    assert bring(look(source), 8, tmp_path / "out", 1).grey


def test_copies_and_unreadable_files_are_counted(tmp_path: Path) -> None:
    source = tmp_path / "images"
    make(source / "train", {"a": 4, "b": 4}, side=64)
    make(source / "test", {"a": 2, "b": 2}, side=64, seed=1)
    (source / "train" / "a" / "again.png").write_bytes((source / "train" / "a" / "0.png").read_bytes())
    (source / "test" / "b" / "leaked.png").write_bytes((source / "train" / "b" / "1.png").read_bytes())
    (source / "train" / "b" / "broken.png").write_bytes(b"\x89PNG no")
    census = bring(look(source), 16, tmp_path / "out", 1)
    a, b = census.classes
    assert (a.images, a.copies, a.unreadable) == (7, 2, 0)
    assert (b.images, b.copies, b.unreadable) == (7, 2, 1)
    assert census.shared == 1
    assert "broken.png" in census.broken[0]
    assert len(census.remarks()) == 3
    assert not list((tmp_path / "out").rglob("*broken*"))


def test_a_class_of_unreadable_files_is_refused(tmp_path: Path) -> None:
    source = make(tmp_path / "images", {"a": 3, "b": 3})
    for path in (source / "b").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(BnewError, match="too few images of 'b' can be read") as refused:
        bring(look(source), 8, tmp_path / "out", 1)
    assert "\n" not in str(refused.value)


def test_imbalance_is_said(tmp_path: Path) -> None:
    source = make(tmp_path / "images", {"many": 20, "few": 4})
    said = bring(look(source), 8, tmp_path / "out", 1).remarks()
    assert "'many' has 5.0 times as many images as 'few'" in said[0]


# ---------------------------------------------------------------------- what is chosen


@pytest.mark.parametrize("images", [3, 17, 100, 129, 540, 5000, 50_001])
def test_a_batch_never_leaves_one_image(images: int) -> None:
    batch = batch_size(images)
    assert images % batch != 1
    assert batch <= BATCH
    assert batch >= SMALLEST_BATCH - 1
    assert images < 1000 or images / batch >= 15


def test_small_images_keep_their_size_and_large_ones_are_scaled_down() -> None:
    assert {each.image_size for each in candidates(8)} == {8}
    assert {each.image_size for each in candidates(5)} == {8}
    assert {each.image_size for each in candidates(55)} == {48}
    assert [each.image_size for each in candidates(500)][:3] == [128, 96, 64]
    assert candidates(500, "birealnet8", 32) == [Candidate("birealnet8", 32, FOR_PHOTOS["birealnet8"])]


def test_the_best_network_that_the_time_allows() -> None:
    options = candidates(500)
    budgets = {each: Budget(0.1 * (5 - rank), 20, 60, 32) for rank, each in enumerate(options)}
    assert affordable(budgets, 1e6) == options[0]
    assert affordable(budgets, 1.0) == options[-1]
    seconds = [float(2**power) for power in range(4, 20)]
    ranks = [options.index(affordable(budgets, time)) for time in seconds]
    assert ranks == sorted(ranks, reverse=True)  # more time never makes the choice worse


def test_the_epochs_fit_into_the_time() -> None:
    budget = Budget(step=0.1, steps_per_epoch=20, val_images=60, batch=32, saving=0.5)
    assert budget.epoch == pytest.approx(0.1 * (20 + 60 / 32 / 3) + 0.5)
    assert budget.scaled(64, 128).step == pytest.approx(0.4)
    for with_float in (False, True):
        lengths = epochs_of_stages(300, budget, with_float)
        cost = {"float": 1.0, "phase1": 4 / 3 if with_float else 1, "phase2": 4 / 3 if with_float else 1}
        took = sum(cost[stage] * epochs * budget.epoch for stage, epochs in lengths.items())
        assert 0.9 * 300 < took < 1.05 * 300
    assert sum(epochs_of_stages(1e9, budget, False).values()) == MOST_EPOCHS
    assert epochs_of_stages(3, budget, False) == {"phase1": 1, "phase2": 1}
    assert epochs_of_stages(3, budget, True) == {"float": 1, "phase1": 1, "phase2": 1}


def test_images_are_tiny_only_where_there_is_hardly_any_time() -> None:
    *others, last = candidates(500, in_time=True)
    assert {each.image_size for each in others} == {128, 96, 64}
    assert last == Candidate("birealnet8", 32)
    assert 32 not in {each.image_size for each in candidates(500)}
    budgets = {each: Budget(0.1, 20, 60, 32).scaled(64, each.image_size) for each in (others[-1], last)}
    epoch = budgets[others[-1]].epoch
    assert affordable(budgets, 4.1 * epoch) == others[-1]
    assert affordable(budgets, 3.9 * epoch) == last


def test_images_to_train_on_are_those_that_are_not_held_out() -> None:
    assert expected_counts({"train": 1000}) == {"train": 720, "val": 80}
    assert expected_counts({"train": 1000, "test": 10}) == {"train": 900, "val": 100}
    assert expected_counts({"train": 1000, "val": 50, "test": 10}) == {"train": 1000, "val": 50}
    assert expected_counts({"train": 1000, "val": 50}) == {"train": 900, "val": 100}  # val is for the test


def test_each_stage_has_an_epoch() -> None:
    assert divided(2, False) == {"phase1": 1, "phase2": 1}
    assert divided(3, True) == {"float": 1, "phase1": 1, "phase2": 2}
    assert divided(30, False) == {"phase1": 10, "phase2": 20}


def test_the_rate_follows_the_batch() -> None:
    assert learning_rate("birealnet20", 128) == 0.01
    assert learning_rate("birealnet20", 32) == 0.005
    assert learning_rate("timm:resnet18", 128) < learning_rate("birealnet20", 128)


def test_short_runs_take_ste_and_letters_are_not_mirrored() -> None:
    assert (method_for(100), method_for(100_000)) == ("ste", "bnew")
    assert (data_set(True, 128), data_set(False, 64), data_set(False, 32)) == (
        "grey_folder",
        "photos",
        "folder",
    )


def test_durations() -> None:
    assert [duration(each) for each in (0.047, 45, 200, 7500)] == [
        "0.047 s",
        "45 s",
        "3 min 20 s",
        "2 h 5 min",
    ]


def test_the_table_of_many_classes_is_short(tmp_path: Path) -> None:
    from bnew.display import as_text
    from bnew.fit.reading import ClassCount

    rows = tuple(ClassCount(f"class {number} [red]", number, 0, 1) for number in range(100))
    text = as_text(Census(rows, {"train": 1}, False, (8, 9), 0, ()).table())
    assert "100 classes, shorter side 8 to 9 pixels" in text
    assert "class 99 [red]" in text
    assert "4,950" in text
    assert len(text.splitlines()) < 30
