"""Data sets by name.

A name of :data:`bnew.registry.DATASETS` → :func:`load` → :class:`Dataset` → its batches of train, val or
test. Small images are held in memory as bytes (:mod:`bnew.data.in_memory`); those of ``imagenet`` are read
when they are needed (:mod:`bnew.data.streaming`).

Images are taken from the first of these that applies:

* ``folder``, ``grey_folder``, ``photos`` and ``imagenet``: a user's own images, ``DIR/train/<class>/*``, with
  ``DIR/val`` and ``DIR/test`` optional. ``grey_folder`` has one channel and is never mirrored, ``photos``
  trains on random parts, and ``imagenet`` is read while it is needed;
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
from collections.abc import Callable, Mapping
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
from bnew.data.holdout import check_val_split, held_out, hold_out, hold_out_by_name
from bnew.data.image_folder import PARTS, flattened, list_folder, read_folder
from bnew.data.in_memory import Augmentation, MemoryDataset, Split, mean_std, usual_padding
from bnew.data.streaming import open_folder
from bnew.errors import BnewError, lookup
from bnew.process import cores, is_first_process
from bnew.registry import CHANNELS, DATASETS, DatasetRow

logger = logging.getLogger("bnew")

# Exceptions of torchvision without a network, and for files that are missing, truncated or otherwise wrong.
FETCH_ERRORS = (OSError, RuntimeError, ValueError, AssertionError, HTTPException)


@dataclass(frozen=True, eq=False)
class Parts:
    """The splits that a source has: "train", and perhaps "val" and "test".

    Args:
        classes: names, in the order of their numbers.
        splits: ``train``, ``val`` or ``test`` → its images and labels.

    Raises:
        BnewError: there is no train, or a split that is not of uint8 images (N, C, H, W), all of the same
            size, and as many int64 labels below the number of classes.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Split]

    def __post_init__(self) -> None:
        if "train" not in self.splits:
            raise BnewError(f"a data set has the splits {', '.join(self.splits) or 'none'}, but needs train")
        for name, split in self.splits.items():
            lookup("split", name, dict.fromkeys(PARTS))
            images, labels = split.images, split.labels
            if images.dtype != torch.uint8 or images.shape[1:] != self.splits["train"].images.shape[1:]:
                raise BnewError(
                    f"the images of {name} are {images.dtype} {tuple(images.shape)}, but must be torch.uint8 "
                    "(N, C, H, W), of the same size in each split"
                )
            if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
                raise BnewError(
                    f"the labels of {name} are {labels.dtype} {tuple(labels.shape)}, but must be torch.int64 "
                    f"({len(images)},), one for each image"
                )
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
                raise BnewError(f"a label of {name} is not the number of one of {len(self.classes)} classes")


def digits(data_dir: Path, download: bool) -> Parts:
    """scikit-learn's 1,797 handwritten digits, 8×8, whose values 0..16 become 0..255."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    split = Split(images, torch.from_numpy(found.target).long())
    return Parts(tuple(map(str, found.target_names)), {"train": split})


def _torchvision(
    make: Callable[..., Any],
    to_nchw: Callable[[Tensor], Tensor],
    part: Callable[[str], dict[str, Any]] = lambda name: {"train": name == "train"},
) -> Callable[[Path, bool], Parts]:
    """A ``fetch`` by ``make``, a class of ``torchvision.datasets``; ``part`` is its arguments by split."""

    def read(data_dir: Path, download: bool) -> Parts:
        splits = {}
        for name in ("train", "test"):
            dataset = make(data_dir, download=download, **part(name))
            labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
            images = to_nchw(torch.as_tensor(dataset.data)).contiguous()
            splits[name] = Split(images, torch.as_tensor(labels, dtype=torch.int64))
        classes = getattr(dataset, "classes", map(str, range(10)))  # SVHN does not name its digits
        return Parts(tuple(classes), splits)

    def fetch(data_dir: Path, download: bool) -> Parts:
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


mnist = _torchvision(datasets.MNIST, _nhw)
fashion_mnist = _torchvision(datasets.FashionMNIST, _nhw)
svhn = _torchvision(datasets.SVHN, lambda images: images, lambda name: {"split": name})
cifar10 = _torchvision(datasets.CIFAR10, _nhwc)
cifar100 = _torchvision(datasets.CIFAR100, _nhwc)


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
    val_split: float | None = None,
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
        val_split: share of the training images that is held out for validation; a tenth by default.

    Raises:
        BnewError: the name is unknown; a folder is missing, empty or inconsistent; an image is broken; images
            differ in size without ``image_size``; a needed download fails or is not allowed; or
            ``val_split`` is given where there are images for validation.
    """
    row = lookup("data set", name, DATASETS)
    if image_size is not None and image_size < 1:
        raise BnewError(f"image size is {image_size}: give 1 or more pixels")
    if workers < 0:
        raise BnewError(f"workers is {workers}: give 0 (one per CPU) or more")
    if row.streamed:
        side = image_size or row.image_size
        assert side is not None
        return open_folder(name, Path(data_dir).resolve(), side, workers or cores(), max_broken, val_split)
    return load_in_memory(
        name, data_dir, image_size=image_size, workers=workers, download=download, val_split=val_split
    )


def load_in_memory(
    name: str,
    data_dir: str | Path = "data",
    *,
    image_size: int | None = None,
    workers: int = 0,
    download: bool = True,
    val_split: float | None = None,
) -> MemoryDataset:
    """:func:`load` one of the data sets that are held in memory."""
    row = lookup("data set", name, DATASETS)
    return _load(name, row, Path(data_dir).resolve(), image_size, workers or cores(), download, val_split)


@lru_cache(maxsize=4)  # one after the other, runs in one process share their data sets
def _load(
    name: str,
    row: DatasetRow,
    data_dir: Path,
    image_size: int | None,
    workers: int,
    download: bool,
    val_split: float | None,
) -> MemoryDataset:
    folder = data_dir if row.own_images else data_dir / name
    from_folder = row.own_images or (folder / "train").is_dir()
    if from_folder:
        classes, listed = list_folder(folder)
        if not row.own_images and "test" not in listed:
            raise BnewError(f"'{folder}' has a folder train but no test: put the test images there")
        complete = not row.own_images or set(PARTS) <= set(listed)
        compared = None if complete else "train"
        read, pictures = read_folder(folder, listed, row.mode, image_size, workers, compared)
        parts = Parts(classes, {part: Split(*split) for part, split in read.items()})
    else:
        parts = _fetch(name, row, data_dir, download)
        if image_size is not None:
            parts = Parts(parts.classes, {k: _resize(v, image_size) for k, v in parts.splits.items()})

    splits = dict(parts.splits)
    has_val = {"val", "test"} <= splits.keys()  # without test, val is the test
    check_val_split(f"'{folder}'" if from_folder else name, val_split, has_val)
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    missing = [part for part in ("test", "val") if part not in splits]
    if missing and row.own_images:
        names, labels = flattened(listed["train"])
        assert pictures is not None
        held = hold_out_by_name(names, labels, parts.classes, pictures, missing, val_split)
        splits |= {part: splits["train"][torch.from_numpy(index)] for part, index in held.items()}
    else:
        for part in missing:
            kept, out = hold_out(len(splits["train"]), held_out(val_split)[part])
            splits |= {"train": splits["train"][kept], part: splits["train"][out]}
    train, val, test = (splits[part] for part in ("train", "val", "test"))
    if from_folder and is_first_process():
        sizes = f"{len(train)} images to train on, {len(val)} to validate, {len(test)} to test"
        logger.info("%s: %d classes; %s", folder, len(parts.classes), sizes)

    mean, std = row.mean, row.std
    if mean is None or std is None:
        mean, std = mean_std(train.images)
    padding = usual_padding(train.images.shape) if row.padding is None else row.padding
    return MemoryDataset(
        name=name,
        classes=parts.classes,
        mean=mean,
        std=std,
        train=train,
        val=val,
        test=test,
        augmentation=Augmentation(padding, row.flip, row.least_area),
        held_out=tuple(missing) if row.own_images or val_split else (),
        val_split=val_split,
    )


def _fetch(name: str, row: DatasetRow, data_dir: Path, download: bool) -> Parts:
    """The parts that the function of ``row`` fetches.

    Raises:
        BnewError: the data set is not available, or its images have other channels than the row's mode.
    """
    try:
        parts = row.load()(data_dir, download)
    except BnewError:  # a user's own function says what is wrong
        raise
    except FETCH_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        files = f"{row.files} there (and remove what is incomplete), or " if row.files else ""
        raise BnewError(
            f"{name} is not whole in '{data_dir}' and was not downloaded ({reason}): put {files}the images "
            f"{'' if files else 'there '}as {name}/train/<class>/* and {name}/test/<class>/*"
        ) from error
    channels = parts.splits["train"].images.shape[1]
    if channels != CHANNELS[row.mode]:
        raise BnewError(
            f"the images of {name} have {channels} channels, but its mode is {row.mode}: register it with "
            'mode="RGB" for 3 channels, or "L" for 1'
        )
    return parts


def _resize(split: Split, size: int) -> Split:
    images = transforms.resize(split.images, [size], antialias=True)
    return Split(transforms.center_crop(images, [size, size]).contiguous(), split.labels)
