"""Data sets by name.

A name of :data:`DATASETS` → :func:`load` → :class:`Dataset` → its batches of train, val or test. Small images
are held in memory as bytes (:mod:`bnew.data.in_memory`). Those of ``imagenet`` are read when they are needed
(:mod:`bnew.data.streaming`).

Images are taken from the first of these that applies:

* ``folder`` and ``imagenet``: a user's own images, ``DIR/train/<class>/*``, with ``DIR/val`` and ``DIR/test``
  optional;
* ``DIR/<name>/{train,test}/<class>/*``, if that folder exists;
* torchvision's download into ``DIR`` (``digits`` comes with scikit-learn and needs no file).

A class has the images at any depth below its folder. A folder may be called valid or validation in place of
val. Sorted class names number the classes, and sorted file names order the images, so the same files always
make the same data set.

Missing parts are held out of the training images: a fifth for test, then a tenth of the rest for validation.

* Published images: a fixed random part (:func:`bnew.data.holdout.hold_out`).
* A user's own images: chosen by name, copies together (:mod:`bnew.data.holdout`).
* With train and val but no test, val serves as the test set. ``folder`` then holds a tenth of train out for
  validation; ``imagenet`` also validates on val, as published.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2 import functional as transforms

from bnew.data.batches import Dataset
from bnew.data.holdout import HELD_OUT, hold_out, hold_out_by_name
from bnew.data.image_folder import PARTS, flattened, list_folder, read_folder
from bnew.data.in_memory import Augmentation, MemoryDataset, Split
from bnew.data.streaming import open_folder
from bnew.errors import BnewError, lookup
from bnew.process import cores, is_first_process

logger = logging.getLogger("bnew")

# What torchvision raises without a network, and for files that are missing, truncated or otherwise wrong.
FETCH_ERRORS = (OSError, RuntimeError, ValueError, AssertionError, HTTPException)


@dataclass(frozen=True, eq=False)
class _Parts:
    """The parts of a source: always "train", perhaps "val" and "test"."""

    classes: tuple[str, ...]
    splits: dict[str, Split]


@dataclass(frozen=True)
class Source:
    """How a data set is fetched and read.

    ``fetch(data_dir, download)`` is used if there is no image folder; ``None``: image folder only.
    ``files``: the files that a user without a network must put into the data folder.
    ``mode``: PIL mode of the images. ``padding``: of the augmentation; ``None``: an eighth of the shorter
    side. ``mean``, ``std``: ``None``: computed from the training split.
    ``streamed``: images are read when they are needed.
    """

    fetch: Callable[[Path, bool], _Parts] | None
    files: str = ""
    mode: str = "RGB"
    flip: bool = True
    padding: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    streamed: bool = False


def _digits(data_dir: Path, download: bool) -> _Parts:
    """scikit-learn's 1,797 handwritten digits, 8×8; their values 0..16 become 0..255."""
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
    """A ``fetch`` for ``make``, a class of ``torchvision.datasets`` that takes the options ``part(name)``."""

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
        # One of several processes downloads. The others wait and then find complete files.
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
    "imagenet": Source(None, streamed=True),
}


def list_datasets() -> list[str]:
    """The names that :func:`load` accepts, sorted."""
    return sorted(DATASETS)


def load(
    name: str,
    data_dir: str | Path = "data",
    *,
    image_size: int | None = None,
    workers: int = 0,
    download: bool = True,
    max_broken: int = 0,
) -> Dataset:
    """The data set ``name``; a second call with the same arguments returns the same object.

    Args:
        name: one of :func:`list_datasets`.
        data_dir: the folder that holds the data sets; for ``folder`` and ``imagenet``, the data set itself.
        image_size: resize the shorter side to this many pixels and crop the centre; for ``imagenet``, the
            side of the crops, 224 by default.
        workers: threads (for ``imagenet``, processes) that decode images; 0: one per CPU core. The result
            does not depend on it.
        download: whether missing files may be downloaded.
        max_broken: how many broken images of ``imagenet`` to skip at most.

    Raises:
        BnewError: the name is unknown; a folder is missing, empty or inconsistent; an image is broken; images
            differ in size without ``image_size``; a needed download fails or is not allowed.
    """
    source = lookup("data set", name, DATASETS)
    if image_size is not None and image_size < 1:
        raise BnewError(f"image size is {image_size}: give 1 or more pixels")
    if workers < 0:
        raise BnewError(f"workers is {workers}: give 0 (one per CPU core) or more")
    if source.streamed:
        folder = Path(data_dir).resolve()
        return open_folder(name, folder, image_size or 224, workers or cores(), max_broken)
    return load_in_memory(name, data_dir, image_size=image_size, workers=workers, download=download)


def load_in_memory(
    name: str,
    data_dir: str | Path = "data",
    *,
    image_size: int | None = None,
    workers: int = 0,
    download: bool = True,
) -> MemoryDataset:
    """:func:`load` for data sets that are held in memory."""
    return _load(name, Path(data_dir).resolve(), image_size, workers or cores(), download)


@lru_cache(maxsize=4)  # successive runs in one process share their data sets
def _load(name: str, data_dir: Path, image_size: int | None, workers: int, download: bool) -> MemoryDataset:
    source = DATASETS[name]
    folder = data_dir if source.fetch is None else data_dir / name
    from_folder = source.fetch is None or (folder / "train").is_dir()
    if from_folder:
        classes, listed = list_folder(folder)
        if source.fetch is not None and "test" not in listed:
            raise BnewError(f"'{folder}' has a folder train but no test: put the test images there")
        complete = source.fetch is not None or set(PARTS) <= set(listed)
        compared = None if complete else "train"
        read, pictures = read_folder(folder, listed, source.mode, image_size, workers, compared)
        parts = _Parts(classes, {part: Split(*split) for part, split in read.items()})
    else:
        assert source.fetch is not None
        try:
            parts = source.fetch(data_dir, download)
        except FETCH_ERRORS as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
            raise BnewError(
                f"{name} is incomplete in '{data_dir}' and was not downloaded ({reason}): put {source.files} "
                f"there (and remove incomplete files), or the images as {name}/train/<class>/* and "
                f"{name}/test/<class>/*"
            ) from error
        if image_size is not None:
            parts = _Parts(parts.classes, {k: _resize(v, image_size) for k, v in parts.splits.items()})

    splits = dict(parts.splits)
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    missing = [part for part in ("test", "val") if part not in splits]
    if missing and source.fetch is None:
        names, labels = flattened(listed["train"])
        assert pictures is not None
        held = hold_out_by_name(names, labels, parts.classes, pictures, missing)
        splits |= {part: splits["train"][torch.from_numpy(index)] for part, index in held.items()}
    else:
        for part in missing:
            kept, out = hold_out(len(splits["train"]), HELD_OUT[part])
            splits |= {"train": splits["train"][kept], part: splits["train"][out]}
    train, val, test = (splits[part] for part in ("train", "val", "test"))
    if from_folder and is_first_process():
        sizes = f"{len(train)} images to train on, {len(val)} to validate, {len(test)} to test"
        logger.info("%s: %d classes; %s", folder, len(parts.classes), sizes)

    mean, std = source.mean, source.std
    if mean is None or std is None:
        mean, std = _mean_std(train.images)
    padding = min(train.images.shape[2:]) // 8 if source.padding is None else source.padding
    return MemoryDataset(
        name=name,
        classes=parts.classes,
        mean=mean,
        std=std,
        train=train,
        val=val,
        test=test,
        augmentation=Augmentation(padding, source.flip),
        held_out=tuple(missing) if source.fetch is None else (),
    )


def _resize(split: Split, size: int) -> Split:
    images = transforms.resize(split.images, [size], antialias=True)
    return Split(transforms.center_crop(images, [size, size]).contiguous(), split.labels)


def _mean_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixel values in [0, 1], chunk by chunk to save memory."""
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = total.clone()
    for start in range(0, len(images), 256):
        values = images[start : start + 256].double()
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    count = images.numel() / images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).sqrt().clamp(min=1)  # no division by 0 for a constant channel
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
