"""What is held out of training images: it stays out, when images are added; copies stay together."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import make_folder, rows
from test_streaming import opened
from torch import Tensor

from bnew.data import copies
from bnew.data import sources as data
from bnew.data.copies import SIDE, Copies, Mask, Numbers, Pictures, SameFiles
from bnew.data.holdout import _moved, hold_out, hold_out_by_name, position
from bnew.data.image_folder import flattened, list_folder
from bnew.data.in_memory import Split
from bnew.errors import BnewError
from bnew.registry import DATASETS

PARTS = ("test", "val")
ORDER = {"test": 0, "val": 1, "train": 2}


@dataclass
class Shown:
    """Copies by the number of the picture that each image shows; equal ones by another number, if given."""

    labels: Numbers
    pictures: Numbers
    contents: Numbers | None = None

    def near(self, images: Numbers, others: Numbers) -> Mask:
        return self._among(self.pictures, images, others)

    def equal(self, images: Numbers, others: Numbers) -> Mask:
        return self._among(self.pictures if self.contents is None else self.contents, images, others)

    def _among(self, numbers: Numbers, images: Numbers, others: Numbers) -> Mask:
        keys = list(zip(self.labels.tolist(), numbers.tolist(), strict=True))
        there = {keys[i] for i in others}
        return np.array([keys[i] in there for i in images], bool)


def of_classes(names: Sequence[str]) -> Numbers:
    return np.unique([name.split("/")[1] for name in names], return_inverse=True)[1]


def divided(
    names: Sequence[str], parts: Sequence[str] = PARTS, copies: Copies | None = None
) -> dict[str, str]:
    """Name → the split it is in."""
    classes = sorted({name.split("/")[1] for name in names})
    labels = np.array([classes.index(name.split("/")[1]) for name in names])
    copies = Shown(labels, np.arange(len(names))) if copies is None else copies
    held = hold_out_by_name(names, labels, classes, copies, parts)
    assert sorted(i for numbers in held.values() for i in numbers) == list(range(len(names)))
    return {names[i]: part for part, numbers in held.items() for i in numbers}


def some_names(count: int, seed: int, classes: int = 3) -> list[str]:
    rng = np.random.default_rng(seed)
    return sorted(f"train/c{i % classes}/{rng.integers(10**9):09}.jpg" for i in range(count))


# By name


@pytest.mark.parametrize("parts", [PARTS, ("val",)])
@pytest.mark.parametrize("count", [15, 60, 240])
def test_an_image_more_moves_none_out_of_training(count: int, parts: tuple[str, ...]) -> None:
    """As it did by counts: with one more, 16 of 24 test images had been trained on before."""
    added = 0
    for seed in range(60):
        names = some_names(count, seed)
        try:
            before = divided(names, parts)
        except BnewError:  # a small class
            continue
        for name in some_names(20, 1000 + seed):
            names = sorted([*names, name])
            after = divided(names, parts)
            assert all(ORDER[after[name]] >= ORDER[part] for name, part in before.items())
            before, added = after, added + 1
    assert added > 1000


def test_copies_that_are_added_move_none_out_of_training() -> None:
    """They may join what was no copy before, and that may have been held out."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        names = some_names(200, seed)
        pictures = {name: name for name in names}  # the picture that it shows
        before = divided(names)
        for name in some_names(30, 1000 + seed):
            pictures[name] = pictures[names[rng.integers(len(names))]]
            names = sorted([*names, name])
            shown = np.unique([pictures[n] for n in names], return_inverse=True)[1]
            after = divided(names, copies=Shown(of_classes(names), shown))
            assert all(ORDER[after[n]] >= ORDER[part] for n, part in before.items())
            for picture in set(pictures.values()):
                for label in range(3):
                    of_class = [n for n in names if pictures[n] == picture and f"/c{label}/" in n]
                    assert len({after[n] for n in of_class}) <= 1
            before = after


def test_without_a_class_of_its_own_numbers_a_name_alone_decides() -> None:
    names = some_names(3000, 0)
    split = divided(names)
    half = divided(names[::2])
    assert {name: split[name] for name in names[::2]} == half
    for name in names:
        u = position(name)
        assert split[name] == ("test" if u < 0.2 else "val" if u < 0.28 else "train")


def test_the_shares_are_those_of_chance() -> None:
    """Within 4 standard deviations of the binomial distribution."""
    count = 20_000
    for parts, shares in ((PARTS, {"test": 0.2, "val": 0.08}), (("val",), {"val": 0.1})):
        split = list(divided(some_names(count, 7, classes=10), parts).values())
        for part, share in shares.items():
            assert abs(split.count(part) - count * share) <= 4 * (count * share * (1 - share)) ** 0.5


def test_every_class_is_in_every_split() -> None:
    for seed in range(100):
        split = divided(some_names(40, seed, classes=4))
        for label in range(4):
            assert {part for name, part in split.items() if f"/c{label}/" in name} == set(ORDER)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images_in_a_class(count: int) -> None:
    names = [*some_names(20, 0, 1), *(f"train/d/{i}.jpg" for i in range(count))]
    message = rf"the class 'd' has too few training images \({count}\): .* for test and val, .* make a folder"
    with pytest.raises(BnewError, match=message):
        divided(names)


def test_a_name_has_one_position_however_its_accents_are_written() -> None:
    assert position("train/a/caf\u00e9.jpg") == position("train/a/cafe\u0301.jpg")
    assert position("train/a/x.jpg") == position("valid/a/x.jpg") != position("train/b/x.jpg")
    assert 0 <= position("train/a/\udcff.jpg") < 1  # a name that is not UTF-8
    assert position("train/a/x.jpg") == pytest.approx(0.8891997638828109)  # for ever


def test_a_class_of_equal_pixels_is_said_to_be_absent(caplog: pytest.LogCaptureFixture) -> None:
    names = some_names(60, 0)
    labels = of_classes(names)
    split = divided(names, copies=Shown(labels, np.where(labels == 1, 0, np.arange(1, 61))))
    assert {split[name] for name in names if "/c1/" in name} == {"train"}
    assert [re.split("[,:]", message)[0] for message in caplog.messages] == [
        "in 'c1' nearly all images look alike",
        "test has no image of 'c1'",
        "val has no image of 'c1'",
    ]
    with pytest.raises(BnewError, match="no image is left for test whose pixels are not those of a training"):
        divided(names, copies=Shown(labels, np.zeros(60, np.int64)))


def test_a_class_that_looks_alike_is_divided_by_equal_pixels(caplog: pytest.LogCaptureFixture) -> None:
    names = some_names(60, 0)
    labels = of_classes(names)
    alike = Shown(labels, np.where(labels == 1, 0, np.arange(1, 61)), contents=np.arange(60))
    assert divided(names, copies=alike) == divided(names)
    assert "in 'c1' nearly all images look alike" in caplog.text


# By count: published sets stay as they are


def test_published_splits_are_unchanged(tmp_path: Path) -> None:
    """As they were published with results: CIFAR's 45,000 and 5,000, and those of digits."""
    kept, held = hold_out(50_000, 10)
    assert (len(kept), len(held)) == (45_000, 5_000)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(50_000))
    order = torch.randperm(50_000, generator=torch.Generator().manual_seed(1234))
    assert torch.equal(held, order[:5000].sort().values)
    assert held[:5].tolist() == [10, 16, 21, 57, 61]
    labels = [0, 4, 5, 8, 3, 8, 5, 5, 8, 8, 5, 0, 0, 6, 3, 4, 9, 0, 5, 1]
    digits = data.load_in_memory("digits")
    assert (len(digits.train), len(digits.val), len(digits.test)) == (1295, 143, 359)
    assert digits.test.labels[:20].tolist() == labels
    assert {part: digits.fingerprint[part]["contents"] for part in ORDER} == {
        "test": "123f968be2131a57408eb4638820e894",
        "val": "8eebbfc1d1becf2180b5cbaea816dbdc",
        "train": "2b2d2676366080d7fef8ffc2426d1c18"
    }  # fmt: skip
    assert (digits.held_out, digits.in_channels) == ((), 1)


def test_cifar_is_divided_as_it_was_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its training images keep their order, and 5,000 are held out by count."""
    number = torch.arange(50_000)
    images = (number.view(-1, 1, 1, 1) // torch.tensor([1, 256, 1]).view(1, 3, 1, 1) % 256).byte()
    names = tuple(map(str, range(10)))
    fetched = {
        "train": Split(images.expand(-1, -1, 1, 1), number % 10),
        "test": Split(images[:7], number[:7] % 10),
    }
    source = replace(DATASETS["cifar10"], fetch=lambda folder, download: data.Parts(names, fetched))
    monkeypatch.setitem(DATASETS, "cifar10", source)
    loaded = data.load_in_memory("cifar10", tmp_path)
    kept, held = hold_out(50_000, 10)
    for split, numbers in ((loaded.train, kept), (loaded.val, held)):
        assert torch.equal(split.images, images[numbers])
        assert torch.equal(split.labels, numbers % 10)
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (45_000, 5_000, 7)
    data._load.cache_clear()


def test_a_folder_of_a_published_set_is_held_out_by_count(tmp_path: Path) -> None:
    make_folder(tmp_path / "cifar10", ("train", "test"))
    cifar = data.load_in_memory("cifar10", tmp_path)
    both = data.load_in_memory("folder", tmp_path / "cifar10")
    everything = torch.cat([both.train.images, both.val.images])
    assert (len(cifar.train), len(cifar.val), len(cifar.test)) == (36, 4, 40)
    files = sorted((tmp_path / "cifar10" / "train").glob("*/*"))
    held = [np.asarray(Image.open(files[i])) for i in hold_out(40, 10)[1].tolist()]
    assert np.array_equal(cifar.val.images.permute(0, 2, 3, 1).numpy(), np.stack(held))
    assert len(everything) == 40


# Copies


def picture(seed: int, side: int = 64) -> Image.Image:
    """Soft blobs of many colours with a few hard edges, as a photograph has."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).copy()
    for _ in range(4):
        top, left = rng.integers(0, side // 2, 2)
        pixels[top : top + side // 3, left : left + side // 4] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str, **options: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file).convert("RGB")


def pictures(images: Sequence[Image.Image], labels: Numbers | None = None) -> Pictures:
    """What their files would be compared by."""
    parts = [image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0) for image in images]
    renditions = np.stack([np.atleast_3d(np.asarray(part)) for part in parts]).transpose(0, 3, 1, 2)
    digests = np.array([blake2b(i.tobytes(), digest_size=16).digest() for i in images], "V16")
    labels = np.zeros(len(images), np.int64) if labels is None else labels
    return Pictures(torch.from_numpy(renditions), digests, labels)


def of_pixels(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def copied(images: Sequence[Image.Image]) -> int:
    """How many of the first half have a copy in the second."""
    half = len(images) // 2
    return int(pictures(images).near(np.arange(half), np.arange(half, len(images))).sum())


def test_pictures_saved_and_scaled_anew_are_copies() -> None:
    originals = [picture(seed, 224) for seed in range(30)]
    ways = [[saved(image, "JPEG", quality=quality) for image in originals] for quality in (30, 50, 75, 95)]
    ways += [[saved(image, "PNG") for image in originals]]
    ways += [[saved(image, "WEBP", quality=80) for image in originals]]
    ways += [[image.resize((side, side)) for image in originals] for side in (112, 160, 300, 448)]
    for way in ways:
        assert copied([*way, *originals]) == 30
        found = pictures([*way, *originals])
        rest = [found.near(np.array([i]), np.delete(np.arange(30, 60), i))[0] for i in range(30)]
        assert not any(rest)
        other_class = Pictures(found.renditions, found.digests, np.repeat([0, 1], 30))
        assert not other_class.near(np.arange(30), np.arange(30, 60)).any()


def test_plain_pictures_are_copies_only_if_equal() -> None:
    """Of one colour; with one dot; of noise that is next to nothing; a slope."""
    plain = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).expand(256, 3, 16, 16)
    dots = torch.full((200, 3, 32, 32), 90, dtype=torch.uint8)
    for i in range(200):
        dots[i, :, i // 32, i % 32] = 255
    noise = torch.randint(100, 103, (300, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    slopes = torch.stack([torch.arange(32).mul(k).byte().expand(3, 32, 32) for k in range(1, 8)])
    for images in (plain[torch.randperm(256)], dots, noise, slopes):
        assert copied(of_pixels(images)) == 0
    assert copied(of_pixels(torch.cat([plain, plain]))) == 256


def test_pictures_that_differ_in_colour_alone_are_no_copies() -> None:
    grey = torch.randint(60, 200, (1, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    reddish = grey + torch.tensor([58, 0, -152]).view(3, 1, 1) // 4  # of the same lightness
    assert copied(of_pixels(torch.cat([grey.expand(1, 3, 16, 16), reddish]).byte())) == 0


def test_handwritten_digits_are_no_copies() -> None:
    """Though there are many of each that look alike."""
    digits = data.load_in_memory("digits")
    images = [Image.fromarray(image[0].numpy()) for image in digits.train.images]
    found = pictures(images, digits.train.labels.numpy())
    assert not found.near(np.arange(0, 1295, 2), np.arange(1, 1295, 2)).any()


class Like:
    """Images on a line: each is like its neighbours."""

    def near(self, images: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.array([bool({i - 1, i + 1} & set(others.tolist())) for i in images.tolist()], bool)

    equal = near


def test_likeness_is_handed_on() -> None:
    """0 is like 1, 1 like 2, and 2 is trained on: none of the three is tested on."""
    split = np.array([0, 0, 2, 9, 0, 9, 1, 9, 0, 1, 1, 2]) % 9  # 9 stands for what is like nothing
    members = np.array([0, 1, 2, 4, 6, 8, 9, 10, 11])
    assert _moved(split, Like().near, members)[members].tolist() == [2, 2, 2, 0, 1, 2, 2, 2, 2]


def test_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those alone are read that have the size of another of their class."""
    content = {
        "a": b"x" * 20_000,
        "b": b"x" * 19_999 + b"y",
        "c": b"",
        "d": b"z",
        "e": b"z" * 7,
        "f": b"z" * 7,
    }
    content |= {"A": b"x" * 20_000, "C": b"", "D": b"zz", "E": b"z" * 7, "G": b"u" * 9}
    for name, value in content.items():
        (tmp_path / name).write_bytes(value)
    read: list[str] = []
    digest = copies.file_digest

    def seen(path: bytes) -> bytes:
        read.append(path.decode()[-1])
        return digest(path)

    monkeypatch.setattr(copies, "file_digest", seen)
    paths = [str(tmp_path / name).encode() for name in content]
    labels = np.array([0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    for workers in (1, 3):
        found = SameFiles(paths, labels, workers).near(np.arange(6), np.arange(6, 11))
        assert found.tolist() == [True, False, True, False, True, False]
    assert sorted(set(read)) == ["A", "C", "E", "a", "b", "c", "e"]
    with pytest.raises(BnewError, match=r"cannot be read \(.*gone"):
        SameFiles([*paths, str(tmp_path / "gone").encode()], np.zeros(12, np.int64), 1).near(
            np.arange(6), np.arange(6, 12)
        )


# Of folders


def files_of(folder: Path) -> dict[bytes, str]:
    """Pixels of a ``folder``'s image → its split."""
    data._load.cache_clear()
    loaded = data.load_in_memory("folder", folder)
    return {image: part for part in ORDER for image in rows(getattr(loaded, part))}


def test_a_picture_more_in_a_folder(tmp_path: Path) -> None:
    before = files_of(make_folder(tmp_path, count=30))
    assert set(before.values()) == set(ORDER)
    new = Image.fromarray(np.random.default_rng(5).integers(0, 256, (8, 8, 3), np.uint8))
    for i in range(10):
        new.save(tmp_path / "train" / "ant" / f"{i:03}_new.png")
        after = files_of(tmp_path)
        assert all(ORDER[after[image]] >= ORDER[part] for image, part in before.items())
        (tmp_path / "train" / "ant" / f"{i:03}_new.png").unlink()


def test_copies_in_a_folder_are_trained_on_with_what_they_copy(tmp_path: Path) -> None:
    """Every image that is held out is copied to a name that is trained on, and back."""
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(20):
            picture(100 * label + i, 128).save(tmp_path / "train" / name / f"{i:03}.png")
    _, listed = list_folder(tmp_path)
    held = [n for n in flattened(listed["train"])[0] if position(n) < 0.2]
    other = next(f"train/ant/x{i}.jpg" for i in range(99) if position(f"train/ant/x{i}.jpg") > 0.5)
    before = files_of(tmp_path)
    pixels = np.asarray(Image.open(tmp_path / held[0])).transpose(2, 0, 1).tobytes()
    assert before[pixels] == "test"
    Image.open(tmp_path / held[0]).save(tmp_path / other, quality=85)
    after = files_of(tmp_path)
    assert after[pixels] == "train"
    assert {image: part for image, part in after.items() if image in before and image != pixels} == {
        image: part for image, part in before.items() if image != pixels
    }


def test_a_streamed_folder_holds_out_by_name_and_content(tmp_path: Path) -> None:
    make_folder(tmp_path, count=30)

    def splits() -> dict[str, str]:
        loaded = opened(tmp_path)
        return {n.decode(): part for part in ("train", "val") for n in loaded.splits[part].names}

    before = splits()
    held = [name for name, part in before.items() if part == "val"]
    assert held == sorted(name for name in before if position(name) < 0.1)
    copy = next(f"train/ant/x{i}.png" for i in range(99) if position(f"train/ant/x{i}.png") > 0.5)
    shutil.copy(tmp_path / held[0], tmp_path / copy)
    assert splits() == before | {copy: "train", held[0]: "train"}


@pytest.mark.parametrize("side", [64, 224])
def test_pictures_of_a_fixed_camera_are_different_ones(
    tmp_path: Path, side: int, caplog: pytest.LogCaptureFixture
) -> None:
    """One scene and a camera's noise; half of the pictures show a defect."""
    rng = np.random.default_rng(0)
    scene = np.asarray(picture(7, side)).astype(float)
    for number in range(100):
        name = ("bad", "good")[number % 2]
        pixels = scene + rng.normal(0, 8, scene.shape)
        if name == "bad":
            top, left = rng.integers(0, side - 9, 2)
            pixels[top : top + 9, left : left + 9] = 20
        (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / f"train/{name}/{number:03}.png")
    split = files_of(tmp_path)
    names = flattened(list_folder(tmp_path)[1]["train"])[0]
    assert sorted(split.values()) == sorted(divided(names).values())
    assert "look alike" not in caplog.text


def test_what_is_held_out_depends_on_files_alone(tmp_path: Path) -> None:
    """Not on the size that images are brought to: there, some become the same."""
    rng = np.random.default_rng(0)
    for number in range(60):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        pixels[4:12, 4:12] = number // 20
        name = ("ant", "bee")[number % 2]
        (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"train/{name}/{number:03}.png")
    sizes = []
    for size in (1, 4, 16):
        data._load.cache_clear()
        loaded = data.load_in_memory("folder", tmp_path, image_size=size)
        sizes.append((len(loaded.train), len(loaded.val), len(loaded.test)))
    assert len(set(sizes)) == 1
