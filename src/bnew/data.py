"""Data sets by name, held in memory as bytes, and their batches.

A name of :data:`DATASETS` → :func:`load` → :class:`Dataset` (train, val, test) → :class:`Batches`.

Where the images come from, in this order:

* ``folder``: a user's own images, ``DIR/train/<class>/*`` with ``DIR/val`` and ``DIR/test`` optional;
* ``DIR/<name>/{train,test}/<class>/*``, where that folder exists;
* torchvision's download into ``DIR`` (``digits`` comes with scikit-learn and needs no file).

Sorted class names number the classes and sorted file names order the images, so the same files always
make the same data set. What a source lacks is held out of its training images, at random but always the
same (:data:`SPLIT_SEED`): a fifth for test, then a tenth for validation. A folder with train and val
only is used as ImageNet is: its val serves as the test set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2 import functional as transforms

from bnew.errors import BnewError, lookup
from bnew.folders import read_folder
from bnew.machine import cores, is_first_process

logger = logging.getLogger("bnew")

SPLIT_SEED = 1234  # of what is held out; never the run's seed, so that all runs share one test set
# What torchvision raises without a network, and for files that are missing, cut short or otherwise wrong.
FETCH_ERRORS = (OSError, RuntimeError, ValueError, AssertionError, HTTPException)


@dataclass(frozen=True, eq=False)
class Split:
    """Images, uint8 (N, C, H, W), and their labels, int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Split:
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Augmentation:
    """Of training images: pad by ``padding`` black pixels, crop at random; ``flip`` half of them."""

    padding: int
    flip: bool


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory. ``mean`` and ``std`` are per channel, of pixel values in [0, 1]."""

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """1 for greyscale, 3 for colour."""
        return self.image_size[0]

    @property
    def image_size(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


@dataclass(frozen=True, eq=False)
class _Parts:
    """What a source has: "train" for certain, "val" and "test" perhaps."""

    classes: tuple[str, ...]
    splits: dict[str, Split]


@dataclass(frozen=True)
class Source:
    """How a data set is fetched and treated.

    ``fetch(data_dir, download)`` gets it where there is no image folder; ``None``: folder only.
    ``files``: what a person without a network puts into the data folder.
    ``mode``: PIL's, of the images. ``padding``: ``None`` is an eighth of the shorter side.
    ``mean``, ``std``: ``None`` computes them from the training split.
    """

    fetch: Callable[[Path, bool], _Parts] | None
    files: str = ""
    mode: str = "RGB"
    flip: bool = True
    padding: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def _digits(data_dir: Path, download: bool) -> _Parts:
    """scikit-learn's 1,797 handwritten digits, 8×8, whose values 0..16 become 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    split = Split(images, torch.from_numpy(digits.target).long())
    return _Parts(tuple(map(str, digits.target_names)), {"train": split})


def _torchvision(
    make: Callable[..., Any],
    to_nchw: Callable[[Tensor], Tensor],
    part: Callable[[str], dict[str, Any]] = lambda name: {"train": name == "train"},
) -> Callable[[Path, bool], _Parts]:
    """A ``fetch`` by ``make``, a class of ``torchvision.datasets`` that takes ``part``'s arguments."""

    def read(data_dir: Path, download: bool) -> _Parts:
        splits = {}
        for name in ("train", "test"):
            dataset = make(data_dir, download=download, **part(name))
            labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
            images = to_nchw(torch.as_tensor(dataset.data)).contiguous()
            splits[name] = Split(images, torch.as_tensor(labels, dtype=torch.int64))
        classes = getattr(dataset, "classes", map(str, range(10)))  # SVHN does not name its digits
        return _Parts(tuple(classes), splits)

    def fetch(data_dir: Path, download: bool) -> _Parts:
        try:
            return read(data_dir, download=False)
        except FETCH_ERRORS:
            if not download:
                raise
        data_dir.mkdir(parents=True, exist_ok=True)
        # One of several processes downloads; the others wait and then find the files complete.
        with FileLock(data_dir / f".{make.__name__}.lock"):
            return read(data_dir, download=True)

    return fetch


def _nhwc(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2)


def _nhw(images: Tensor) -> Tensor:
    return images.unsqueeze(1)


_CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
_CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)

DATASETS: dict[str, Source] = {
    "digits": Source(_digits, mode="L", flip=False),
    "mnist": Source(
        _torchvision(datasets.MNIST, _nhw), "MNIST/raw/*-ubyte.gz", mode="L", flip=False, padding=2
    ),
    "fashion_mnist": Source(
        _torchvision(datasets.FashionMNIST, _nhw), "FashionMNIST/raw/*-ubyte.gz", mode="L", padding=2
    ),
    "svhn": Source(
        _torchvision(datasets.SVHN, lambda images: images, lambda name: {"split": name}),
        "train_32x32.mat and test_32x32.mat",
        flip=False,
    ),
    "cifar10": Source(
        _torchvision(datasets.CIFAR10, _nhwc), "cifar-10-python.tar.gz", mean=_CIFAR_MEAN, std=_CIFAR_STD
    ),
    "cifar100": Source(
        _torchvision(datasets.CIFAR100, _nhwc), "cifar-100-python.tar.gz", mean=_CIFAR_MEAN, std=_CIFAR_STD
    ),
    "folder": Source(None),
}


def list_datasets() -> list[str]:
    """The names that :func:`load` knows, sorted."""
    return sorted(DATASETS)


def load(
    name: str,
    data_dir: str | Path = "data",
    *,
    image_size: int | None = None,
    workers: int = 0,
    download: bool = True,
) -> Dataset:
    """The data set ``name``, in memory; a second call with the same arguments returns the same object.

    Args:
        name: one of :func:`list_datasets`.
        data_dir: the folder that holds the data sets; for ``folder``, the data set itself.
        image_size: resize the shorter side to this many pixels and crop the centre.
        workers: threads that decode images, 0 for one a CPU. The result does not depend on it.
        download: whether what is missing may be downloaded.

    Raises:
        BnewError: unknown name; a folder that is missing, empty or inconsistent; a broken image; images of
            different sizes without ``image_size``; a download that is needed and fails or is not allowed.
    """
    lookup("data set", name, DATASETS)
    if image_size is not None and image_size < 1:
        raise BnewError(f"image size is {image_size}: give 1 or more pixels")
    if workers < 0:
        raise BnewError(f"workers is {workers}: give 0 (one a CPU) or more")
    return _load(name, Path(data_dir).resolve(), image_size, workers or cores(), download)


@lru_cache(maxsize=4)  # one after the other, runs in one process share their data sets
def _load(name: str, data_dir: Path, image_size: int | None, workers: int, download: bool) -> Dataset:
    source = DATASETS[name]
    folder = data_dir if source.fetch is None else data_dir / name
    from_folder = source.fetch is None or (folder / "train").is_dir()
    if from_folder:
        classes, read = read_folder(folder, source.mode, image_size, workers)
        parts = _Parts(classes, {part: Split(*split) for part, split in read.items()})
        if source.fetch is not None and "test" not in read:
            raise BnewError(f"'{folder}' has a folder train but no test: put the test images there")
    else:
        assert source.fetch is not None
        try:
            parts = source.fetch(data_dir, download)
        except FETCH_ERRORS as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
            raise BnewError(
                f"{name} is not whole in '{data_dir}' and was not downloaded ({reason}): put {source.files} "
                f"there (and remove what is incomplete), or the images as {name}/train/<class>/* and "
                f"{name}/test/<class>/*"
            ) from error
        if image_size is not None:
            parts = _Parts(parts.classes, {k: _resize(v, image_size) for k, v in parts.splits.items()})

    train, val, test = (parts.splits.get(part) for part in ("train", "val", "test"))
    assert train is not None
    if test is None:
        val, test = None, val
    if test is None:
        train, test = _hold_out(train, 5)
    if val is None:
        train, val = _hold_out(train, 10)
    if from_folder and is_first_process():
        sizes = f"{len(train)} images to train on, {len(val)} to validate, {len(test)} to test"
        logger.info("%s: %d classes; %s", folder, len(parts.classes), sizes)

    mean, std = source.mean, source.std
    if mean is None or std is None:
        mean, std = _mean_std(train.images)
    padding = min(train.images.shape[2:]) // 8 if source.padding is None else source.padding
    return Dataset(name, train, val, test, parts.classes, mean, std, Augmentation(padding, source.flip))


def _resize(split: Split, size: int) -> Split:
    images = transforms.resize(split.images, [size], antialias=True)
    return Split(transforms.center_crop(images, [size, size]).contiguous(), split.labels)


def _hold_out(split: Split, share: int) -> tuple[Split, Split]:
    """All but a ``share``-th of ``split``, and that part: random, always the same, in their old order."""
    if len(split) < 2:
        raise BnewError("there are too few training images to hold some out for validation: add more")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held = max(1, len(split) // share)
    return split[order[held:].sort().values], split[order[:held].sort().values]


def _mean_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel in units of [0, 1], chunk by chunk to save memory."""
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = total.clone()
    for start in range(0, len(images), 256):
        values = images[start : start + 256].double()
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    count = images.numel() / images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).sqrt().clamp(min=1)  # a channel of one value stays finite
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


class Batches:
    """The batches of a split: x, float32 normalised (n, C, H, W), and y, int64 (n,), on ``device``.

    With ``train``, every epoch has its own order, crops and flips. They depend on (``seed``, epoch) alone:
    not on earlier epochs, on threads or on the number of processes. Otherwise the images come once each,
    in order and unchanged.

    ``batch_size`` is the total over ``world_size`` processes. Process ``rank`` gets every
    ``world_size``-th image of each batch from its ``rank``-th on, so all processes make the same number
    of steps; in evaluation a share of the last batch may be empty.

    Raises:
        BnewError: ``batch_size`` is not positive, or a training batch has fewer images than processes.
    """

    def __init__(
        self,
        split: Split,
        dataset: Dataset,
        batch_size: int,
        *,
        device: str | torch.device = "cpu",
        train: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise BnewError(f"batch size is {batch_size}: give 1 or more")
        smallest = len(split) % batch_size or batch_size
        if train and smallest < world_size:
            raise BnewError(
                f"a batch of {smallest} images is too few for {world_size} processes: change the batch size"
            )
        self.split, self.batch_size, self.device = split, batch_size, torch.device(device)
        self.augmentation = dataset.augmentation if train else None
        self.seed, self.rank, self.world_size = seed, rank, world_size
        # (v / 255 − mean) / std = v · scale + shift
        mean, std = (torch.tensor(v, device=self.device).view(-1, 1, 1) for v in (dataset.mean, dataset.std))
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def __len__(self) -> int:
        """Batches an epoch; the last one may be smaller."""
        return -(-len(self.split) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of ``epoch`` (from 0), from number ``start`` on."""
        count = len(self.split)
        order = torch.arange(count)
        if self.augmentation is not None:
            order, offsets, flips = self._draw(epoch, self.augmentation)
        for first in range(start * self.batch_size, count, self.batch_size):
            share = slice(first + self.rank, min(first + self.batch_size, count), self.world_size)
            # index_select is many times faster than images[index] on a CPU.
            images = self.split.images.index_select(0, order[share]).to(self.device, non_blocking=True)
            labels = self.split.labels[order[share]].to(self.device, non_blocking=True)
            if self.augmentation is not None:
                images = crop_and_flip(images, offsets[share], flips[share], self.augmentation.padding)
            yield images.float().mul_(self.scale).add_(self.shift), labels

    def _draw(self, epoch: int, augmentation: Augmentation) -> tuple[Tensor, Tensor, Tensor]:
        """All random numbers of an epoch, at once, so that a run can go on in the middle of it."""
        # torch's CPU generator uses 32 bits of its seed: SeedSequence mixes the two numbers into them.
        mixed = np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(mixed))
        count = len(self.split)
        order = torch.randperm(count, generator=generator)
        offsets = torch.randint(2 * augmentation.padding + 1, (count, 2), generator=generator)
        flips = torch.randint(1 + augmentation.flip, (count,), generator=generator).bool()
        return order, offsets.to(self.device), flips.to(self.device)


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Zero-pad all sides by ``padding``, crop every image at its own offset to its old size, then flip.

    ``images`` (N, C, H, W); ``offsets`` int64 (N, 2), the crop's top row and left column, 0..2·padding;
    ``flips`` bool (N,), left to right. Returns (N, C, H, W).
    """
    n, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    # Where each pixel comes from in its flattened padded channel, the same for all channels of an image.
    source = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    index = source.view(n, 1, height * width).expand(n, channels, height * width)
    return padded.flatten(2).gather(2, index).view_as(images)
