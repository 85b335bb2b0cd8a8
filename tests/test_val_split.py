"""The share of the training images that is held out for validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import MACHINE, RECIPE
from PIL import Image

from bnew.data.batches import Dataset
from bnew.data.holdout import held_out, hold_out
from bnew.data.sources import load
from bnew.errors import BnewError
from bnew.training.evaluation import evaluate_run
from bnew.training.loop import train


def pictures(root: Path, parts: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    for part, count in parts.items():
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{part}{i}.png")
    return root


def share(data: Dataset) -> float:
    train, val = data.counts["train"], data.counts["val"]
    return val / (train + val)


def test_published_images_are_held_out_by_count() -> None:
    plain, third = load("digits"), load("digits", val_split=1 / 3)
    assert share(third) == pytest.approx(1 / 3, abs=1e-3)
    assert third.counts["test"] == plain.counts["test"]
    assert share(load("digits", val_split=0.1)) == share(plain)
    assert load("digits", val_split=0.1).fingerprint == plain.fingerprint


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_images_of_a_folder_are_held_out_by_name(name: str, tmp_path: Path) -> None:
    root = pictures(tmp_path, {"train": 150, "test": 3})
    assert share(load(name, root, image_size=8, val_split=0.4)) == pytest.approx(0.4, abs=0.1)
    assert share(load(name, root, image_size=8)) == pytest.approx(0.1, abs=0.06)


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_it_is_refused_where_there_are_images_for_validation(name: str, tmp_path: Path) -> None:
    root = pictures(tmp_path, {"train": 5, "val": 3, "test": 3})
    with pytest.raises(BnewError, match=r"leave out --val-split"):
        load(name, root, image_size=8, val_split=0.4)


def test_phase_2_holds_out_what_phase_1_did(tmp_path: Path) -> None:
    phase1 = RECIPE.replace(method="clip", val_split=0.3)
    train(phase1, tmp_path / "clip", MACHINE)
    with pytest.raises(BnewError, match=r"another share .* give --val-split 0\.3"):
        train(RECIPE.replace(init="../clip"), tmp_path / "other", MACHINE)
    run = train(RECIPE.replace(init="../clip", val_split=0.3), tmp_path / "same", MACHINE)
    assert run.summary["train_images"] == load("digits", val_split=0.3).counts["train"]
    assert evaluate_run(run, MACHINE).accuracy == pytest.approx(run.summary["test_accuracy"])
    train(RECIPE.replace(method="clip"), tmp_path / "plain", MACHINE)
    with pytest.raises(BnewError, match=r"another share .* give no --val-split"):
        train(RECIPE.replace(init="../plain", val_split=0.3), tmp_path / "third", replace(MACHINE))


@pytest.mark.parametrize(
    ("share", "count", "wanted"), [(0.3, 10, 3), (0.7, 10, 7), (0.29, 100, 29), (0.9, 2, 1)]
)
def test_a_share_is_rounded_down_once(share: float, count: int, wanted: int) -> None:
    kept, out = hold_out(count, held_out(share)["val"])
    assert len(out) == wanted
    assert sorted([*kept.tolist(), *out.tolist()]) == list(range(count))


def test_a_share_leaves_some_images() -> None:
    with pytest.raises(BnewError, match="val_split is 0, but must be between 0 and 1, and neither"):
        RECIPE.replace(val_split=0)
    assert load("digits", val_split=0.9999).counts["train"] >= 1
