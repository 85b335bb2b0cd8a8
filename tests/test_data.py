"""Data sets and batches; every image here is made by the tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from urllib.error import URLError
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

from bnew.data import sources as data
from bnew.data.in_memory import (
    Augmentation,
    MemoryBatches,
    MemoryDataset,
    Split,
    crop_and_flip,
    scale_and_flip,
)
from bnew.errors import BnewError
from bnew.registry import DATASETS


def write_images(folder: Path, count: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    """``count`` images of random pixels, (width, height) ``size``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(crc32(bytes(folder)))  # other images in every folder
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    for i in range(count):
        pixels = rng.integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
        Image.fromarray(pixels, mode).save(folder / f"{i:03}.{'jpg' if mode == 'CMYK' else 'png'}")


def make_folder(root: Path, parts: tuple[str, ...] = ("train",), count: int = 20) -> Path:
    for part in parts:
        for name in ("ant", "bee"):
            write_images(root / part / name, count)
    return root


def make_dataset(count: int = 50, padding: int = 2, flip: bool = True) -> MemoryDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 6, 10), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(count))  # the label tells which image it is
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    return MemoryDataset(
        name="test",
        classes=("a", "b"),
        mean=mean,
        std=std,
        train=split,
        val=split,
        test=split,
        augmentation=Augmentation(padding, flip),
    )


def concatenated(batches: MemoryBatches, epoch: int = 0, start: int = 0) -> tuple[Tensor, Tensor]:
    xs, ys = zip(*batches.epoch(epoch, start), strict=True)
    return torch.cat(xs), torch.cat(ys)


def rows(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


# Data sets


def test_digits() -> None:
    digits = data.load_in_memory("digits")
    assert digits.image_size == (1, 8, 8)
    assert digits.in_channels == 1
    assert digits.num_classes == 10
    assert (len(digits.train), len(digits.val), len(digits.test)) == (1295, 143, 359)
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.images.max() == 255
    assert digits.train.labels.dtype == torch.int64
    assert digits.augmentation == Augmentation(padding=1, flip=False)
    pixels = digits.train.images.double() / 255
    assert digits.mean == pytest.approx((pixels.mean().item(),))
    assert digits.std == pytest.approx((pixels.std(correction=0).item(),))


def test_loading_twice_gives_the_same_object(tmp_path: Path) -> None:
    assert data.load_in_memory("digits", tmp_path) is data.load_in_memory("digits", str(tmp_path))


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        (("train",), (26, 3, 11)),
        (("train", "test"), (35, 5, 40)),
        (("train", "val"), (35, 5, 40)),  # val is the test set
        (("train", "val", "test"), (40, 40, 40)),
    ],
)
def test_folder_layouts(tmp_path: Path, parts: tuple[str, ...], sizes: tuple[int, ...]) -> None:
    loaded = data.load_in_memory("folder", make_folder(tmp_path, parts))
    assert tuple(map(len, (loaded.train, loaded.val, loaded.test))) == sizes
    assert loaded.classes == ("ant", "bee")
    assert loaded.augmentation == Augmentation(padding=1, flip=True)


def test_the_sizes_of_a_folder_are_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_folder(tmp_path / "cifar10", ("train", "test"))
    for name, folder in (("folder", tmp_path / "cifar10"), ("cifar10", tmp_path), ("digits", tmp_path)):
        with caplog.at_level("INFO", "bnew"):
            data.load_in_memory(name, folder)
            data.load_in_memory(name, folder)
    said = f"{tmp_path / 'cifar10'}: 2 classes; {{}} to validate, 40 to test"
    assert caplog.messages == [
        said.format(sizes) for sizes in ("35 images to train on, 5", "36 images to train on, 4")
    ]


def test_folder_holds_out_disjoint_parts(tmp_path: Path) -> None:
    loaded = data.load_in_memory("folder", make_folder(tmp_path))
    parts = [rows(part) for part in (loaded.train, loaded.val, loaded.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 40


def test_folder_does_not_depend_on_workers(tmp_path: Path) -> None:
    make_folder(tmp_path, count=80)
    one, four = (data.load_in_memory("folder", tmp_path, workers=workers) for workers in (1, 4))
    assert torch.equal(one.train.images, four.train.images)
    assert torch.equal(one.train.labels, four.train.labels)


def test_folder_reads_classes_and_files_in_sorted_order(tmp_path: Path) -> None:
    make_folder(tmp_path, ("train", "val", "test"), count=3)
    (tmp_path / "test" / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "test" / ".hidden").mkdir()
    for hidden in ("._000.png", ".DS_Store", ".png"):
        (tmp_path / "test" / "ant" / hidden).write_text("no image")
    loaded = data.load_in_memory("folder", tmp_path)
    assert loaded.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    files = sorted((tmp_path / "test").glob("*/0*.png"))
    for file, image in zip(files, loaded.test.images, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_folder_converts_to_rgb(tmp_path: Path, mode: str) -> None:
    make_folder(tmp_path)
    write_images(tmp_path / "train" / "cow", 5, mode=mode)
    assert data.load_in_memory("folder", tmp_path).image_size == (3, 8, 8)


def test_named_data_set_from_folder(tmp_path: Path) -> None:
    make_folder(tmp_path / "mnist", ("train", "test"))
    mnist = data.load_in_memory("mnist", tmp_path, download=False)
    assert mnist.image_size == (1, 8, 8)
    assert mnist.augmentation == Augmentation(padding=2, flip=False)


def test_cifar_folder_keeps_the_published_normalisation(tmp_path: Path) -> None:
    make_folder(tmp_path / "cifar10", ("train", "test"))
    cifar = data.load_in_memory("cifar10", tmp_path, download=False)
    assert cifar.mean == pytest.approx((0.4914, 0.4824, 0.4467), abs=1e-4)
    assert cifar.std == pytest.approx((0.2471, 0.2435, 0.2616), abs=1e-4)


def test_image_size_resizes_the_shorter_side_and_crops_the_centre(tmp_path: Path) -> None:
    for name, size in (("ant", (30, 10)), ("bee", (10, 20))):
        write_images(tmp_path / "train" / name, 5, size)
    # Left third red, middle third green, right third blue: the centre is green.
    stripes = np.repeat(np.eye(3, dtype=np.uint8)[None] * 255, 10, axis=1).repeat(10, axis=0)
    for part in ("val", "test"):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(stripes).save(tmp_path / part / name / "0.png")
    loaded = data.load_in_memory("folder", tmp_path, image_size=10)
    assert loaded.image_size == (3, 10, 10)
    assert torch.equal(loaded.test.images[0, 1], torch.full((10, 10), 255, dtype=torch.uint8))
    assert not loaded.test.images[0, [0, 2]].any()


def test_image_size_of_a_bundled_set() -> None:
    digits = data.load_in_memory("digits", image_size=16)
    assert digits.image_size == (1, 16, 16)
    assert digits.augmentation.padding == 2


# What torchvision downloads, by stand-ins for its files


def test_cifar_by_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(self: datasets.CIFAR10, root: Path, train: bool, download: bool) -> None:
        count = 20 if train else 4
        self.data = np.arange(count * 2 * 5 * 3, dtype=np.uint8).reshape(count, 2, 5, 3)
        self.targets = [i % 2 for i in range(count)]
        self.classes = ["cat", "dog"]

    monkeypatch.setattr(datasets.CIFAR10, "__init__", init)
    cifar = data.load_in_memory("cifar10", tmp_path)
    assert cifar.image_size == (3, 2, 5)
    assert cifar.classes == ("cat", "dog")
    assert (len(cifar.train), len(cifar.val), len(cifar.test)) == (18, 2, 4)
    assert cifar.test.images[0, :, 0, 1].tolist() == [3, 4, 5]
    assert cifar.test.labels.tolist() == [0, 1, 0, 1]


def test_svhn_by_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(self: datasets.SVHN, root: Path, split: str, download: bool) -> None:
        count = {"train": 20, "test": 4}[split]
        self.data = np.zeros((count, 3, 32, 32), np.uint8)
        self.labels = np.arange(count) % 10

    monkeypatch.setattr(datasets.SVHN, "__init__", init)
    svhn = data.load_in_memory("svhn", tmp_path)
    assert svhn.image_size == (3, 32, 32)
    assert svhn.classes == tuple("0123456789")
    assert svhn.augmentation == Augmentation(padding=4, flip=False)
    assert all(np.isfinite(1 / np.array(svhn.std)))  # though all pixels are the same


def write_mnist(raw: Path) -> None:
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 4)):
        header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + bytes(count * 28 * 28))
        header = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big")
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + bytes(count))


def test_mnist_by_torchvision(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    mnist = data.load_in_memory("mnist", tmp_path)
    assert mnist.image_size == (1, 28, 28)
    assert (len(mnist.train), len(mnist.val), len(mnist.test)) == (18, 2, 4)


@pytest.mark.parametrize("size", [0, 2, 10, 16, 5000])
def test_half_extracted_mnist_is_refused(tmp_path: Path, size: int) -> None:
    raw = tmp_path / "MNIST" / "raw"
    write_mnist(raw)
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:size])
    with pytest.raises(BnewError, match=r"put MNIST/raw/\*-ubyte.gz there"):
        data.load_in_memory("mnist", tmp_path)


def test_half_downloaded_cifar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(bytes(1000))
    with pytest.raises(BnewError, match="not found or corrupted"):
        data.load_in_memory("cifar10", tmp_path, download=False)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("svhn", "train_32x32.mat and test_32x32.mat"),
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "FashionMNIST/raw"),
    ],
)
def test_failed_download_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", fail)
    with pytest.raises(BnewError) as caught:
        data.load_in_memory(name, tmp_path / "new")
    message = str(caught.value)
    assert f"{name}/train/<class>" in message
    assert files in message
    assert str(tmp_path / "new") in message
    assert "\n" not in message


def test_download_can_be_forbidden(tmp_path: Path) -> None:
    with pytest.raises(BnewError, match="was not downloaded"):
        data.load_in_memory("cifar100", tmp_path / "new", download=False)
    assert not (tmp_path / "new").exists()


# Mistakes in the input


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(BnewError, match="did you mean 'cifar10'"):
        data.load("cifar-10")
    assert data.list_datasets() == sorted(DATASETS)


@pytest.mark.parametrize(("option", "value"), [("image_size", 0), ("workers", -1)])
def test_options_out_of_range(option: str, value: int) -> None:
    with pytest.raises(BnewError, match=f"is {value}: give"):
        data.load("digits", **{option: value})  # type: ignore[arg-type]


def test_folder_missing(tmp_path: Path) -> None:
    with pytest.raises(BnewError, match=r"missing' does not exist: .*train/<class>"):
        data.load_in_memory("folder", tmp_path / "missing")


def test_folder_without_train(tmp_path: Path) -> None:
    with pytest.raises(BnewError, match="has no folder train"):
        data.load_in_memory("folder", tmp_path)


def test_folder_empty(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(BnewError, match="train' has no class folders"):
        data.load_in_memory("folder", tmp_path)


def test_folder_with_one_class(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "ant", 3)
    with pytest.raises(BnewError, match="has the one class 'ant'"):
        data.load_in_memory("folder", tmp_path)


def test_too_few_images_to_hold_some_out(tmp_path: Path) -> None:
    with pytest.raises(BnewError, match="too few training images"):
        data.load_in_memory("folder", make_folder(tmp_path, count=1))


def test_class_folder_without_images(tmp_path: Path) -> None:
    (make_folder(tmp_path) / "train" / "cow").mkdir()
    with pytest.raises(BnewError, match="cow' has no images"):
        data.load_in_memory("folder", tmp_path)


@pytest.mark.parametrize(("part", "other"), [("test", "train"), ("train", "test")])
def test_class_names_differ(tmp_path: Path, part: str, other: str) -> None:
    make_folder(tmp_path, ("train", "test"))
    write_images(tmp_path / part / "cow", 2)
    with pytest.raises(BnewError, match=f"{part} has a class 'cow' that {other}"):
        data.load_in_memory("folder", tmp_path)


def test_named_folder_without_test(tmp_path: Path) -> None:
    make_folder(tmp_path / "cifar10")
    with pytest.raises(BnewError, match="cifar10' has a folder train but no test"):
        data.load_in_memory("cifar10", tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_broken_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    broken = make_folder(tmp_path) / "train" / "bee" / "007.png"
    broken.write_bytes(broken.read_bytes()[:-60] if content is None else content)
    with pytest.raises(BnewError, match=r"cannot read the image '.*bee/007\.png'"):
        data.load_in_memory("folder", tmp_path)


@pytest.mark.parametrize("part", ["train", "test"])
def test_images_of_different_sizes(tmp_path: Path, part: str) -> None:
    make_folder(tmp_path, ("train", "test"))
    write_images(tmp_path / part / "bee", 1, (9, 7))
    with pytest.raises(BnewError, match=r"bee/000\.png' is 9×7 and '.*' is 8×8: give --image-size"):
        data.load_in_memory("folder", tmp_path)


# MemoryBatches


def slow_augmentation(image: np.ndarray, top: int, left: int, flip: bool, padding: int) -> np.ndarray:
    """One image (C, H, W), pixel by pixel."""
    _, height, width = image.shape
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            source_row = row + top - padding
            source_column = (width - 1 - column if flip else column) + left - padding
            if 0 <= source_row < height and 0 <= source_column < width:
                out[:, row, column] = image[:, source_row, source_column]
    return out


def bilinear(image: np.ndarray, row: float, column: float) -> float:
    """The value at a place in pixels, whose centres are whole numbers."""
    row, column = (min(max(v, 0.0), n - 1.0) for v, n in zip((row, column), image.shape, strict=True))
    top, left = int(row), int(column)
    bottom, right = (min(v + 1, n - 1) for v, n in zip((top, left), image.shape, strict=True))
    down, across = row - top, column - left
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return float(upper * (1 - down) + lower * down)


def test_parts_of_images_are_scaled_as_by_a_slow_twin() -> None:
    count, height, width = 5, 6, 9
    images = torch.randint(256, (count, 1, height, width), dtype=torch.uint8)
    dataset = dataclasses.replace(
        make_dataset(count),
        train=Split(images, torch.arange(count)),
        augmentation=Augmentation(0, True, 0.25),
    )
    places, flips = dataset.batches("train", 2, train=True)._draw(torch.Generator().manual_seed(3))
    area = places[:, 0] * places[:, 1]
    assert area.min() >= 0.25 - 1e-6
    assert (places[:, 2:].abs() <= 1 - places[:, :2] + 1e-6).all()  # all of the part is in the image
    found = scale_and_flip(images, places, flips)
    for image, (high, wide, down, across), flip, got in zip(images, places, flips, found, strict=True):
        for i in range(height):
            for j in range(width):
                column = width - 1 - j if flip else j
                at = (
                    height * ((down + 1) / 2 + high * ((i + 0.5) / height - 0.5)) - 0.5,
                    width * ((across + 1) / 2 + wide * ((column + 0.5) / width - 0.5)) - 0.5,
                )
                expected = bilinear(image[0].numpy().astype(float), *map(float, at))
                assert got[0, i, j].item() == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_crop_and_flip_equals_its_slow_twin(padding: int) -> None:
    images = make_dataset().train.images
    generator = torch.Generator().manual_seed(1)
    offsets = torch.randint(2 * padding + 1, (len(images), 2), generator=generator)
    flips = torch.randint(2, (len(images),), generator=generator).bool()
    fast = crop_and_flip(images, offsets, flips, padding)
    for i, image in enumerate(images.numpy()):
        top, left = offsets[i].tolist()
        slow = slow_augmentation(image, top, left, bool(flips[i]), padding)
        assert np.array_equal(fast[i].numpy(), slow)


@pytest.mark.parametrize("flip", [False, True])
def test_training_batches_are_augmented_images_normalised(flip: bool) -> None:
    dataset = make_dataset(count=300, padding=1, flip=flip)
    x, y = concatenated(MemoryBatches(dataset.train, dataset, 128, train=True))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (dataset.mean, dataset.std))
    seen = set()
    for pixels, label in zip(((x * std + mean) * 255).round().byte().numpy(), y.tolist(), strict=True):
        image = dataset.train.images[label].numpy()
        seen |= {
            (top, left, flipped)
            for top in range(3)
            for left in range(3)
            for flipped in (False, True)
            if np.array_equal(pixels, slow_augmentation(image, top, left, flipped, 1))
        }
    assert len(seen) == (18 if flip else 9)  # every crop occurs, and flips only where they are asked for
    assert y.sort().values.tolist() == list(range(300))


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    dataset = make_dataset()
    batches = MemoryBatches(dataset.train, dataset, 16, train=True, seed=3)
    x, y = concatenated(batches, epoch=5)
    for same in (batches, MemoryBatches(dataset.train, dataset, 16, train=True, seed=3)):
        assert torch.equal(x, concatenated(same, epoch=5)[0])
    assert not torch.equal(y, concatenated(batches, epoch=6)[1])
    other = MemoryBatches(dataset.train, dataset, 16, train=True, seed=4)
    assert not torch.equal(y, concatenated(other, epoch=5)[1])
    torch.manual_seed(0)
    state = torch.get_rng_state()
    next(batches.epoch(0))
    assert torch.equal(state, torch.get_rng_state())  # the global generator is left alone


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("start", [0, 2, 4])
def test_start_in_the_middle_of_an_epoch(train: bool, start: int) -> None:
    dataset = make_dataset()
    batches = MemoryBatches(dataset.train, dataset, 16, train=train)
    whole, tail = list(batches.epoch(1)), list(batches.epoch(1, start))
    assert len(batches) == len(whole) == 4
    assert len(tail) == 4 - start
    for expected, actual in zip(whole[start:], tail, strict=True):
        assert all(map(torch.equal, expected, actual))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_make_the_same_batches(train: bool, world_size: int) -> None:
    dataset = make_dataset(count=20)
    batches = MemoryBatches(dataset.train, dataset, 8, train=train)
    ranks = [
        list(MemoryBatches(dataset.train, dataset, 8, train=train, rank=r, world_size=world_size).epoch(2))
        for r in range(world_size)
    ]
    for number, (x, y) in enumerate(batches.epoch(2)):
        for rank, shares in enumerate(ranks):
            assert torch.equal(shares[number][0], x[rank::world_size])
            assert torch.equal(shares[number][1], y[rank::world_size])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_gives_every_image_once_unchanged(world_size: int) -> None:
    dataset = make_dataset(count=33)
    shares = [
        MemoryBatches(dataset.test, dataset, 8, train=False, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    assert {len(list(share)) for share in shares} == {5}  # as many steps for everyone
    labels = torch.cat([y for share in shares for _, y in share])
    assert labels.sort().values.tolist() == list(range(33))
    x, y = concatenated(MemoryBatches(dataset.test, dataset, 8, train=False))
    assert y.tolist() == list(range(33))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (dataset.mean, dataset.std))
    torch.testing.assert_close(x, (dataset.test.images / 255 - mean) / std)


def test_too_small_batches_are_refused() -> None:
    dataset = make_dataset(count=33)
    with pytest.raises(BnewError, match="batch size is 0"):
        MemoryBatches(dataset.train, dataset, 0, train=True)
    with pytest.raises(BnewError, match="a batch of 1 images is too few for 2 processes"):
        MemoryBatches(dataset.train, dataset, 8, train=True, world_size=2)
