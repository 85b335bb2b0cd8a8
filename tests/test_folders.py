"""What of a folder is images, and what is said of the rest."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from test_data import make_folder
from test_streaming import opened

from bnew.data import sources as data
from bnew.data.image_folder import list_folder
from bnew.data.images import suffixes
from bnew.errors import BnewError

PARTS = ("train", "val", "test")


def left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is warned of when a folder is loaded into memory, twice, and streamed."""
    with caplog.at_level(logging.WARNING, "bnew"):
        data._load.cache_clear()
        data.load_in_memory("folder", folder, image_size=8)
        data.load_in_memory("folder", folder, image_size=8)
        in_memory = caplog.messages[:]
        caplog.clear()
        opened(folder)
    assert caplog.messages == in_memory
    return in_memory


# Parts


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_val_may_be_called_otherwise(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    make_folder(tmp_path, ("train", name, "test"), 4)
    assert left_out(tmp_path, caplog) == []
    loaded = data.load_in_memory("folder", tmp_path)
    assert [len(part) for part in (loaded.train, loaded.val, loaded.test)] == [8, 8, 8]
    pixels = np.asarray(Image.open(tmp_path / name / "ant" / "000.png")).transpose(2, 0, 1)
    assert np.array_equal(loaded.val.images[0].numpy(), pixels)
    assert opened(tmp_path).splits["val"].path(0) == tmp_path / name / "ant" / "000.png"


def test_two_folders_for_val(tmp_path: Path) -> None:
    make_folder(tmp_path, ("train", "val", "valid"), 4)
    for name in ("folder", "imagenet"):
        with pytest.raises(BnewError, match="folders val and valid, both for val"):
            data.load(name, tmp_path)


def test_a_class_that_valid_lacks_is_named_with_its_folder(tmp_path: Path) -> None:
    make_folder(tmp_path, ("train", "valid"), 4)
    (tmp_path / "valid" / "bee").rename(tmp_path / "wasp")
    with pytest.raises(BnewError, match="train has a class 'bee' that valid"):
        list_folder(tmp_path)


# Images


def test_nested_pictures_are_of_the_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_folder(tmp_path, PARTS, 4)
    for depth, path in enumerate(("monday", "monday/morning/early")):
        folder = tmp_path / "train" / "bee" / path
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (depth, 0, 0)).save(folder / "000.png")
    assert left_out(tmp_path, caplog) == []
    classes, listed = list_folder(tmp_path)
    assert classes == ("ant", "bee")
    assert listed["train"]["bee"][-2:] == [
        "train/bee/monday/000.png",
        "train/bee/monday/morning/early/000.png",
    ]
    loaded = data.load_in_memory("folder", tmp_path)
    assert loaded.train.labels.tolist() == [0] * 4 + [1] * 6
    assert loaded.train.images[-2:, 0, 0, 0].tolist() == [0, 1]
    assert len(opened(tmp_path).splits["train"]) == 10


def test_only_nested_pictures(tmp_path: Path) -> None:
    make_folder(tmp_path / "here", PARTS, 4)
    for part in PARTS:
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / "here" / part / name).rename(tmp_path / part / name / "all")
    assert [len(by_class["bee"]) for by_class in list_folder(tmp_path)[1].values()] == [4, 4, 4]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    make_folder(tmp_path / "real", ("ant", "bee"), 2)
    (tmp_path / "data" / "train").mkdir(parents=True)
    for name in ("ant", "bee"):
        (tmp_path / "data" / "train" / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "real" / "ant" / "again").symlink_to(tmp_path / "real" / "ant")
    _, listed = list_folder(tmp_path / "data")
    assert [name.removeprefix("train/") for name in listed["train"]["ant"]] == [
        f"ant/{name}/{i:03}.png" for name in ("ant", "bee") for i in range(2)
    ]


def test_every_kind_that_pillow_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """.heic where there is a plug-in."""
    make_folder(tmp_path, PARTS, 2)
    kinds = ["jpg", "JPG", "jpeg", "jfif", "jpe", "png", "gif", "bmp", "tif", "tiff", "webp", "ppm", "tga"]
    kinds += [kind for kind in ("avif", "heic") if f".{kind}" in suffixes()]
    assert "avif" in kinds or not features.check("avif")
    for number, kind in enumerate(kinds):
        pixels = np.full((8, 8, 3), 10 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "test" / "bee" / f"x{number:02}.{kind}")
    assert left_out(tmp_path, caplog) == []
    loaded = data.load_in_memory("folder", tmp_path)
    found = loaded.test.images[4:].float().mean((1, 2, 3))
    assert found.tolist() == pytest.approx([10 * number for number in range(len(kinds))], abs=3)


# What is left out


def test_what_is_left_out_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnew.data.image_folder.suffixes", lambda: suffixes() - {".heic", ".avif"})
    make_folder(tmp_path, PARTS, 2)
    for path in (
        "train/ant/a.HEIC", "train/bee/b/c.heic", "val/bee/d.heic", "test/ant/e.avif", "train/bee/f.txt",
        "train/ant/g", "train/readme.txt", "train/h.jpg", "val/i.png", "train/ant/.l.txt", "train/.j/k.txt",
    ):  # fmt: skip
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("no image")
    for folder in ("extra", ".git"):
        (tmp_path / folder).mkdir()
    for name in ("labels.csv", "cat.png", ".hidden"):
        (tmp_path / name).write_text("beside the parts")
    assert left_out(tmp_path, caplog) == [
        f"{tmp_path}: left out 11 files (3 .heic (install pillow-heif), 3 images outside of a class folder, "
        "2 .txt, 1 .avif (install pillow-avif-plugin), 1 .csv, 1 without a suffix) and the folder 'extra'"
    ]


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_folder(tmp_path, PARTS, 2)
    (tmp_path / "train" / "ant" / ".DS_Store").write_text("hidden")
    assert left_out(tmp_path, caplog) == []


def test_a_class_of_images_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnew.data.image_folder.suffixes", lambda: suffixes() - {".heic"})
    make_folder(tmp_path, PARTS, 2)
    for i in range(2):
        os.rename(tmp_path / "val" / "bee" / f"00{i}.png", tmp_path / "val" / "bee" / f"00{i}.heic")
    with pytest.raises(BnewError, match=r"val/bee' has no images but 2 \.heic \(install pillow-heif\):"):
        list_folder(tmp_path)
