"""What is held out of training images: it stays out, when images are added; copies stay together."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import make_folder, rows
from test_streaming import opened
from torch import Tensor

from bnew import data
from bnew.copies import Numbers, near_copies, same_files
from bnew.errors import BnewError
from bnew.folders import flattened, list_folder
from bnew.holdout import hold_out, hold_out_by_name, position

PARTS = ("test", "val")
ORDER = {"test": 0, "val": 1, "train": 2}


def divided(
    names: Sequence[str], parts: Sequence[str] = PARTS, copies: Numbers | None = None
) -> dict[str, str]:
    """Name → the split it is in."""
    classes = sorted({name.split("/")[1] for name in names})
    labels = np.array([classes.index(name.split("/")[1]) for name in names])
    copies = np.arange(len(names)) if copies is None else copies
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
            shown = pictures[names[rng.integers(len(names))]]
            pictures[name] = shown
            if rng.random() < 0.3:  # it is a copy of a second picture too, which makes them one
                other = pictures[names[rng.integers(len(names))]]
                pictures = {n: shown if picture == other else picture for n, picture in pictures.items()}
            names = sorted([*names, name])
            copies = np.unique([pictures[n] for n in names], return_inverse=True)[1]
            after = divided(names, copies=copies)
            assert all(ORDER[after[n]] >= ORDER[part] for n, part in before.items())
            for picture in set(pictures.values()):
                assert len({after[n] for n in names if pictures[n] == picture}) == 1
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


def test_a_class_of_copies_is_said_to_be_absent(caplog: pytest.LogCaptureFixture) -> None:
    names = some_names(60, 0)
    copies = np.array([0 if "/c1/" in name else i for i, name in enumerate(names, 1)])
    split = divided(names, copies=copies)
    assert {split[name] for name in names if "/c1/" in name} == {"train"}
    assert [message.split(",")[0] for message in caplog.messages] == [
        "test has no image of 'c1'",
        "val has no image of 'c1'",
    ]
    with pytest.raises(BnewError, match="no image is left for test that is not a copy of a training image"):
        divided(names, copies=np.zeros(60, np.int64))


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


def tensor(images: Sequence[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def test_pictures_saved_and_scaled_anew_are_copies() -> None:
    pictures = [picture(seed) for seed in range(30)]
    ways = [
        pictures,
        [saved(image, "PNG") for image in pictures],
        [saved(image, "JPEG", quality=90) for image in pictures],
        [saved(image, "JPEG", quality=75) for image in pictures],
        [saved(image, "WEBP", quality=85) for image in pictures],
        [image.resize((48, 48)).resize((64, 64)) for image in pictures],
    ]
    same = near_copies(tensor([image for way in ways for image in way])).reshape(len(ways), 30)
    assert (same == same[0]).all()
    assert len(set(same[0])) == 30


def test_plain_pictures_are_copies_only_if_equal() -> None:
    """Of one colour; with one dot; of noise that is next to nothing; a slope."""
    plain = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).expand(256, 3, 16, 16)
    assert len(set(near_copies(plain))) == 256
    dots = torch.full((200, 3, 32, 32), 90, dtype=torch.uint8)
    for i in range(200):
        dots[i, :, i // 32, i % 32] = 255
    assert len(set(near_copies(dots))) == 200
    noise = torch.randint(100, 103, (300, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    assert len(set(near_copies(noise))) == 300
    slopes = torch.stack([torch.arange(32).mul(k).byte().expand(3, 32, 32) for k in range(1, 8)])
    assert len(set(near_copies(slopes))) == 7
    assert len(set(near_copies(torch.cat([plain, plain])))) == 256


def test_pictures_that_differ_in_colour_alone_are_no_copies() -> None:
    grey = torch.randint(60, 200, (1, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    reddish = grey + torch.tensor([58, 0, -152]).view(3, 1, 1) // 4  # of the same lightness
    assert len(set(near_copies(torch.cat([grey.expand(1, 3, 16, 16), reddish]).byte()))) == 2


def test_handwritten_digits_are_no_copies() -> None:
    """Though there are many of each that look alike."""
    digits = data.load_in_memory("digits")
    assert len(set(near_copies(digits.train.images))) == len(digits.train)


def test_same_files(tmp_path: Path) -> None:
    content = {
        "a": b"x" * 20_000,
        "b": b"x" * 20_000,
        "c": b"x" * 19_999 + b"y",
        "d": b"",
        "e": b"",
        "f": b"z",
    }
    for name, value in content.items():
        (tmp_path / name).write_bytes(value)
    for workers in (1, 3):
        a, b, c, d, e, f = same_files([tmp_path / name for name in content], workers)
        assert (a, d) == (b, e)
        assert len({a, c, d, f}) == 4
    with pytest.raises(BnewError, match=r"cannot be read \(.*gone"):
        same_files([tmp_path / "a", tmp_path / "gone"], 1)


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
            picture(100 * label + i).save(tmp_path / "train" / name / f"{i:03}.png")
    _, listed = list_folder(tmp_path)
    held = [n for n in flattened(listed["train"])[0] if position(n) < 0.2]
    other = next(f"train/bee/x{i}.jpg" for i in range(99) if position(f"train/bee/x{i}.jpg") > 0.5)
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
