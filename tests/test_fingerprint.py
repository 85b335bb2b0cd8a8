"""Which images a data set has: what changes it, what does not, and how a difference is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import make_folder
from test_streaming import opened

from bnew.data import sources as data
from bnew.data.batches import Dataset
from bnew.data.fingerprint import differences, retouched, short
from bnew.data.in_memory import Split
from bnew.errors import BnewError

PARTS = ("train", "val", "test")


def in_memory(folder: Path, workers: int = 1) -> Dataset:
    data._load.cache_clear()
    return data.load("folder", folder, workers=workers)


LOADERS = pytest.mark.parametrize("load", [in_memory, opened])


@LOADERS
def test_it_is_json_and_the_same_again(load: Callable[..., Dataset], tmp_path: Path) -> None:
    folder = make_folder(tmp_path, PARTS, 3)
    found = load(folder).fingerprint
    assert set(found) == {"classes", *PARTS}
    assert json.loads(json.dumps(found)) == found == load(folder, workers=2).fingerprint
    assert differences(json.loads(json.dumps(found)), found) == []


@LOADERS
def test_another_process_finds_the_same(load: Callable[..., Dataset], tmp_path: Path) -> None:
    folder = make_folder(tmp_path, PARTS, 3)
    name = "folder" if load is in_memory else "imagenet"
    code = f"from bnew.data import load; print(load({name!r}, {str(folder)!r}, image_size=8).fingerprint)"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert process.stdout.strip() == str(load(folder).fingerprint)


@LOADERS
def test_a_copied_folder(load: Callable[..., Dataset], tmp_path: Path) -> None:
    """Other times alone, as of files that are unpacked anew, make no other images."""
    here = make_folder(tmp_path / "here", PARTS, 3)
    there = shutil.copytree(here, tmp_path / "there")
    for path in there.glob("train/*/*"):
        os.utime(path, (1, 1))
    before, now = (load(folder).fingerprint for folder in (here, there))
    assert differences(before, now) == []
    assert retouched(before, now) == ([] if load is in_memory else ["train"])
    assert short(before) == short(now)


@LOADERS
def test_a_darker_copy_of_the_folder(load: Callable[..., Dataset], tmp_path: Path) -> None:
    here = make_folder(tmp_path / "here", PARTS, 3)
    there = shutil.copytree(here, tmp_path / "there")
    for path in there.glob("*/*/*"):
        time_of = path.stat().st_mtime
        Image.fromarray(np.asarray(Image.open(path)) // 64).save(path)
        os.utime(path, (time_of, time_of))
    before, now = (load(folder).fingerprint for folder in (here, there))
    what = "contents" if load is in_memory else "sizes and sample"
    assert differences(before, now) == [f"{part}: other {what}" for part in PARTS]
    assert short(before) != short(now)


@LOADERS
def test_an_image_more_and_a_class_renamed(load: Callable[..., Dataset], tmp_path: Path) -> None:
    folder = make_folder(tmp_path, PARTS, 3)
    before = load(folder).fingerprint
    shutil.copy(folder / "train" / "ant" / "000.png", folder / "train" / "ant" / "003.png")
    assert differences(before, load(folder).fingerprint) == ["train had 6 images and has 7"]
    (folder / "train" / "ant" / "003.png").unlink()
    for part in PARTS:
        (folder / part / "bee").rename(folder / part / "wasp")
    renamed = differences(before, load(folder).fingerprint)
    assert renamed[0] == "classes: other names"


def test_a_split_that_one_side_lacks() -> None:
    some, more = {"train": {"images": 1}}, {"train": {"images": 1}, "val": {"images": 2}}
    assert differences(some, more) == ["val is new"]
    assert differences(more, some) == ["val is missing"]


def test_labels_and_the_order_count() -> None:
    split = Split(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.tensor([0, 1, 0, 1]))
    others = (split[torch.tensor([1, 0, 3, 2])], Split(split.images, 1 - split.labels))
    assert all(other.fingerprint() != split.fingerprint() for other in others)


def test_contents_of_one_size_are_told_apart_by_a_sample(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, PARTS, 3)
    before = opened(folder).fingerprint
    for path in folder.glob("val/*/*"):
        path.write_bytes(path.read_bytes()[::-1])
    assert differences(before, opened(folder).fingerprint) == ["val: other sample"]


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    loaded = opened(make_folder(tmp_path, PARTS, 3))
    (tmp_path / "val" / "bee" / "001.png").unlink()
    with pytest.raises(BnewError, match=r"has changed \(.*val/bee/001.png"):
        _ = loaded.fingerprint
