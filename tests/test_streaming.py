"""Images that are read when they are needed: what is augmented how, what is broken, who dies."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import make_folder, write_images
from torch import Tensor
from torchvision.transforms import v2

from bnew.data import streaming, transforms
from bnew.data.batches import Batches
from bnew.data.sources import load
from bnew.data.streaming import StreamedDataset, read
from bnew.data.transforms import lighting
from bnew.errors import BnewError
from bnew.recipe import Recipe
from bnew.results.run import Run
from bnew.training.loop import train
from bnew.training.machine import Machine

SIDE = 16
MACHINE = Machine(device="cpu", compile=False, quiet=True, decode_threads=1)
RECIPE = Recipe(data="imagenet", model="birealnet8", method="clip", image_size=SIDE, epochs=2, batch_size=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 20 images each to train on, and as many to validate."""
    return make_folder(tmp_path / "images", ("train", "val"))


def opened(folder: Path, workers: int = 1, max_broken: int = 0) -> StreamedDataset:
    streaming.open_folder.cache_clear()  # what is broken is counted anew
    loaded = load("imagenet", folder, image_size=SIDE, workers=workers, max_broken=max_broken)
    assert isinstance(loaded, StreamedDataset)
    return loaded


def epoch(batches: Batches, number: int = 0, start: int = 0) -> tuple[Tensor, Tensor]:
    xs, ys = zip(*batches.epoch(number, start), strict=True)
    return torch.cat(xs), torch.cat(ys)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# What is read


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        (("train",), (35, 5, 5)),  # a tenth is held out, and tested on too
        (("train", "val"), (40, 40, 40)),  # as ImageNet is
        (("train", "test"), (35, 5, 40)),
        (("train", "val", "test"), (40, 40, 40)),
    ],
)
def test_layouts(
    tmp_path: Path, parts: tuple[str, ...], sizes: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="bnew"):
        loaded = opened(make_folder(tmp_path, parts))
    assert ("there is no folder val" in caplog.text) == ("val" not in parts)
    assert tuple(len(loaded.splits[name]) for name in ("train", "val", "test")) == sizes
    assert (loaded.classes, loaded.image_size) == (("ant", "bee"), (3, SIDE, SIDE))
    held = {bytes(name) for name in loaded.splits["val"].names}
    assert not held & {bytes(name) for name in loaded.splits["train"].names}
    assert loaded.splits["val"].labels.max() == 1


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
def test_every_mode_is_read_in_colour(tmp_path: Path, mode: str) -> None:
    write_images(tmp_path, 1, (9, 7), mode)
    (path,) = tmp_path.iterdir()
    image = read(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert image.shape == (3, 7, 9)
    assert (
        np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2
    )  # of CMYK, which Pillow converts
    if mode == "L":
        assert torch.equal(image[0], image[2])


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_are_left_to_pillow(tmp_path: Path, kind: str) -> None:
    pixels = np.full((5, 6, 3), 200, np.uint8)
    path = tmp_path / f"image.{kind.lower()}"
    Image.fromarray(pixels).save(path, format=kind)
    assert torch.equal(read(path), torch.from_numpy(pixels).permute(2, 0, 1))


def test_validation_is_the_centre(tmp_path: Path) -> None:
    """224 of 256 pixels, here 16 of 18: against torchvision's own transforms on Pillow's images."""
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            write_images(tmp_path / part / name, 3, (40, 30))
    loaded = opened(tmp_path)
    x, y = epoch(loaded.batches("val", train=False))
    plain = v2.Compose([v2.Resize(18), v2.CenterCrop(16), v2.PILToTensor()])
    paths = sorted((tmp_path / "val").glob("*/*"))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (loaded.mean, loaded.std))
    for image, path in zip(x, paths, strict=True):
        expected = (plain(Image.open(path)).float() / 255 - mean) / std
        assert ((image - expected).abs() * std * 255).max() < 1.01  # one level, of rounding
    assert y.tolist() == [0, 0, 0, 1, 1, 1]


def test_lighting_is_alexnets() -> None:
    """Along each principal component, of the standard deviation 0.1 times its eigenvalue."""
    torch.manual_seed(0)
    noise = torch.stack([lighting() for _ in range(20_000)]).double()
    vectors = transforms.EIGENVECTORS.double()
    assert torch.allclose(vectors.T @ vectors, torch.eye(3, dtype=torch.float64), atol=1e-3)
    along = noise @ vectors
    expected = 0.1 * transforms.EIGENVALUES.double()
    assert torch.allclose(along.std(0), expected, rtol=0.03)
    assert torch.allclose(along.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-3)


def test_training_images_are_crops_with_lighting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image has one colour: a crop keeps it, lighting moves it as a whole, normalisation is exact."""
    make_folder(tmp_path, ("val",), 1)
    for number, name in enumerate(("ant", "bee")):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (30, 20), (60, 100, 60 * number)).save(folder / f"{i}.png")
    loaded = opened(tmp_path)
    moved = torch.tensor([0.05, -0.02, 0.01])

    def pixels() -> tuple[Tensor, Tensor]:
        x, y = epoch(loaded.batches("train", 6, train=True))
        x = x * torch.tensor(loaded.std).view(3, 1, 1) + torch.tensor(loaded.mean).view(3, 1, 1)
        assert torch.allclose(x, x[..., :1, :1].expand_as(x), atol=1e-5)
        return x[:, :, 0, 0] - torch.tensor([[60, 100, 60.0 * label] for label in y.tolist()]) / 255, y

    noise, _ = pixels()
    assert len(set(noise[:, 1].tolist())) == len(noise)  # each image has its own
    monkeypatch.setattr(streaming, "lighting", lambda: moved)
    noise, labels = pixels()
    assert torch.allclose(noise, moved.expand_as(noise), atol=1e-5)
    assert set(labels.tolist()) == {0, 1}


def test_crops_are_of_many_sizes_and_flipped(tmp_path: Path) -> None:
    make_folder(tmp_path, ("val",), 1)
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))  # grows to the right
    for name in ("ant", "bee"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(40):
            Image.fromarray(np.stack([ramp] * 3, 2)).save(tmp_path / "train" / name / f"{i}.png")
    x, _ = epoch(opened(tmp_path).batches("train", 24, train=True))
    slopes = x[:, 0, 8, -1] - x[:, 0, 8, 0]
    assert 0.25 < (slopes > 0).float().mean() < 0.75
    widths = slopes.abs() / slopes.abs().max()
    assert widths.min() < 0.5
    assert (widths > 0.9).any()


# The same whatever computes it


def test_an_epoch_is_the_same_whatever_the_workers(folder: Path) -> None:
    one, two = (opened(folder, workers).batches("train", 16, train=True, seed=3) for workers in (1, 2))
    first, labels = epoch(one)
    for same in (epoch(one), epoch(two)):
        assert torch.equal(same[0], first)
        assert torch.equal(same[1], labels)
    assert not torch.equal(epoch(one, 1)[0], first)
    other = opened(folder).batches("train", 16, train=True, seed=4)
    assert not torch.equal(epoch(other)[0], first)
    rest, _ = epoch(one, start=1)
    assert torch.equal(rest, first[16:])


@pytest.mark.parametrize("train_too", [True, False])
def test_processes_share_the_batches(folder: Path, train_too: bool) -> None:
    loaded = opened(folder)
    split = "train" if train_too else "val"
    whole = list(loaded.batches(split, 15, train=train_too).epoch(1))
    shares = [
        list(loaded.batches(split, 15, train=train_too, rank=r, world_size=2).epoch(1)) for r in range(2)
    ]
    for (x, y), (x0, y0), (x1, y1) in zip(whole, *shares, strict=True):
        assert torch.equal(x[0::2], x0)
        assert torch.equal(x[1::2], x1)
        assert torch.equal(torch.cat((y[0::2], y[1::2])), torch.cat((y0, y1)))


# What is wrong


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was warned of; another test may have had more than that logged."""
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_class_folder_missing_in_val(folder: Path) -> None:
    (folder / "val" / "bee").rename(folder / "wasp")
    with pytest.raises(BnewError, match="train has a class 'bee' that val"):
        opened(folder)


def test_an_empty_class(folder: Path) -> None:
    for path in (folder / "train" / "ant").iterdir():
        path.unlink()
    with pytest.raises(BnewError, match=r"the class folder '.*train/ant' has no images: add some or remove"):
        opened(folder)


def test_a_broken_image_is_named_counted_and_replaced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = folder / "train" / "ant" / "003.png"
    cut_short(broken)
    batches = opened(folder, max_broken=2).batches("train", 16, train=True)
    with caplog.at_level("WARNING", "bnew"):
        for number in range(2):
            x, y = epoch(batches, number)
            assert len(x) == 40
            assert y.sum() == 20
    (said,) = warnings(caplog)
    assert said.startswith(f"left out: '{broken}' (")
    assert "number 1 of this process, of at most 2" in said


def test_a_broken_image_is_not_validated_on(folder: Path) -> None:
    cut_short(folder / "val" / "bee" / "000.png")
    x, y = epoch(opened(folder, max_broken=1).batches("val", 16, train=False))
    assert len(x) == len(y) == 39
    assert y.sum() == 19


def test_a_damaged_header_of_a_jpeg(folder: Path) -> None:
    """It says that the image has 65,500² pixels, which would be 12 GiB."""
    path = folder / "train" / "ant" / "huge.jpg"
    Image.new("RGB", (20, 20)).save(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\xc0") + 5  # height and width in the start of frame
    content[start : start + 4] = (65500).to_bytes(2, "big") * 2
    path.write_bytes(content)
    with pytest.raises(BnewError, match=r"cannot read the image '.*huge.jpg'"):
        read(path)


@pytest.mark.parametrize("limit", [0, 1])
def test_too_many_broken_images(folder: Path, limit: int) -> None:
    for i in range(2):
        cut_short(folder / "train" / "ant" / f"00{i}.png")
    batches = opened(folder, max_broken=limit).batches("train", 16, train=True)
    for _ in range(2):  # and again, if asked again
        with pytest.raises(BnewError, match=rf"is broken .* {limit} other .*--max-broken above {limit}"):
            epoch(batches)


def test_more_are_known_to_be_broken_than_are_allowed_now(folder: Path) -> None:
    """As when a run goes on with a lower limit."""
    loaded = opened(folder, max_broken=1)
    loaded.broken.update({"a": "why", "b": "why"})
    loaded.add_broken({"a": "why"})
    with pytest.raises(BnewError, match="--max-broken above 1"):
        loaded.add_broken({"c": "why"})


def test_files_that_cannot_be_read_are_not_broken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that has gone is no reason to train on other images."""

    def gone(path: Path) -> Tensor:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(streaming, "read", gone)
    with pytest.raises(BnewError, match=r"images cannot be read \(.*Input/output error"):
        epoch(opened(folder, max_broken=100).batches("train", 16, train=True))


def test_an_error_in_reading_is_no_death(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(path: Path) -> Tensor:
        raise RuntimeError("no such transform")

    monkeypatch.setattr(streaming, "read", wrong)
    with pytest.raises(RuntimeError, match="no such transform"):
        epoch(opened(folder).batches("train", 16, train=True))


def test_readers_are_shared_among_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnew.training.machine.cores", lambda: 64)
    assert Machine().readers == 64
    assert Machine(devices=4).readers == 16
    assert Machine(devices=4, decode_threads=3).readers == 3
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("LOCAL_WORLD_SIZE", "8"), ("WORLD_SIZE", "16")):
        monkeypatch.setenv(name, value)
    assert Machine().readers == 8


def test_a_broken_jpeg_in_train_is_in_the_outcome(folder: Path, tmp_path: Path) -> None:
    broken = folder / "train" / "ant" / "zzz.jpg"
    Image.new("RGB", (20, 20)).save(broken)
    cut_short(broken)
    streaming.open_folder.cache_clear()
    machine = Machine(str(folder), device="cpu", compile=False, quiet=True, decode_threads=1)
    run = train(RECIPE, tmp_path / "run", machine)
    assert run.summary["broken_images"] == [str(broken)]
    assert run.summary["train_images"] == 41


def children() -> set[int]:
    """The processes that this one has started, by number."""
    me, found = os.getpid(), set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[1]) == me and words[0] != "Z":
            found.add(int(status.parent.name))
    return found


def killing(before: set[int]) -> None:
    for process in children() - before:
        os.kill(process, signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux to find a process's children")
def test_a_killed_reading_process_is_replaced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = opened(folder)
    expected = epoch(loaded.batches("train", 4, train=True))
    before = children()
    xs, ys = [], []
    for number, (x, y) in enumerate(loaded.batches("train", 4, train=True).epoch(0)):
        if number == 1:
            killing(before)
            time.sleep(0.2)  # were it to raise an error just anywhere, it would be here
        xs.append(x)
        ys.append(y)
    assert torch.equal(torch.cat(xs), expected[0])
    assert torch.equal(torch.cat(ys), expected[1])
    (said,) = warnings(caplog)
    assert said.startswith("a process that reads images died")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux to find a process's children")
def test_reading_processes_that_die_at_one_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_batch: Callable[[Any, Any], Any] = streaming._Reader.__getitem__

    def deadly(self: Any, batch: Any) -> Any:
        if 7 in batch[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        return read_batch(self, batch)

    monkeypatch.setattr(streaming._Reader, "__getitem__", deadly)
    with pytest.raises(BnewError, match=r"died twice .*--decode-threads"):
        epoch(opened(folder).batches("train", 4, train=True))


def test_a_run_that_is_killed_goes_on(folder: Path, tmp_path: Path) -> None:
    """With images that are read when they are needed, as with those in memory."""
    from helpers import kill_at_step

    machine = Machine(str(folder), device="cpu", compile=False, quiet=True, decode_threads=1, save_every=2)
    readers = kill_at_step(RECIPE, tmp_path / "killed", machine, 4)
    assert readers
    until = time.monotonic() + 60
    while any(Path(f"/proc/{reader}").exists() for reader in readers):  # they notice, and end
        assert time.monotonic() < until
        time.sleep(0.1)
    assert Run(tmp_path / "killed").last.exists()
    killed, unbroken = (train(RECIPE, tmp_path / name, machine) for name in ("killed", "unbroken"))
    assert killed.best.read_bytes() == unbroken.best.read_bytes()
    assert killed.summary | {"train_seconds": 0} == unbroken.summary | {"train_seconds": 0}
    assert all(0 <= float(row["data_wait"]) <= 1 for row in killed.rows())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are not forked")
def test_reading_processes_are_forked_also_in_a_stage(folder: Path) -> None:
    """The default of a process of the fork server starts another such server, and each imports PyTorch."""
    default, before = multiprocessing.get_start_method(allow_none=True), multiprocessing.active_children()
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        batches = opened(folder).batches("train", 4, train=True).epoch(0)
        next(iter(batches))
        started = [process for process in multiprocessing.active_children() if process not in before]
    finally:
        multiprocessing.set_start_method(default, force=True)
    assert {type(process).__name__ for process in started} == {"ForkProcess"}


def test_the_share_of_time_that_training_waits(folder: Path, tmp_path: Path) -> None:
    """0.3 seconds for each of the three batches of an epoch."""
    batches = streaming.StreamedBatches.epoch

    def slow(self: Any, epoch: int, start: int = 0) -> Any:
        for batch in batches(self, epoch, start):
            time.sleep(0.3 if self.train and epoch else 0.0)
            yield batch

    machine = replace(MACHINE, data_dir=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming.StreamedBatches, "epoch", slow)
        rows = train(RECIPE, tmp_path / "slow", machine).rows()
    first, second = (float(row["seconds"]) for row in rows)
    assert 0.89 / (second - first) <= float(rows[1]["data_wait"]) < 1
