"""Data sets of a user's own factory: map-style data sets of (image, label), read into memory once."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from bnew.data.holdout import check_val_split, held_out, hold_out
from bnew.data.image_folder import PARTS
from bnew.data.images import MODES
from bnew.data.in_memory import Augmentation, MemoryDataset, Split, mean_std, usual_padding
from bnew.errors import BnewError, first_line, kind_of, unknown
from bnew.process import is_first_process
from bnew.references import factory

logger = logging.getLogger("bnew")

_LARGEST = 16  # of a float image: more than normalised pixel values have, less than bytes

# What a factory may return beside its splits.
EXTRAS = ("classes", "flip", "padding", "mean", "std")


def load_own(
    name: str,
    options: Mapping[str, Any],
    data_dir: Path,
    image_size: int | None = None,
    val_split: float | None = None,
) -> MemoryDataset:
    """The data set that ``package.module:factory`` makes, in memory.

    The factory gets ``options`` and, if it takes it, ``data_dir``. It returns train and test, or train, val
    and test; or a dictionary of these and perhaps ``classes`` (names), ``flip`` (whether training mirrors
    images, default True), ``padding`` (pixels, default an eighth of the shorter side), ``mean`` and ``std``
    (per channel, for pixel values in [0, 1]). Without val, a tenth of train, or ``val_split`` of it, is held
    out for it.

    Each split has a length, and numbers from 0 give (image, label): a uint8 tensor (C, H, W), a PIL image, or
    a float tensor (C, H, W) whose values are taken for pixel values in [0, 1]; and a whole number. Bytes stay
    bytes in memory; floats are float32, multiplied by 255.

    Raises:
        BnewError: the factory is not found, does not take the options or returns something else; an image
            or a label is no such thing, or has pixels of more bits than are read, or floats far beyond
            [0, 1]; images differ in kind, or in size without ``image_size``.
    """
    parts = _made(name, options, data_dir)
    extras = {key: parts.pop(key) for key in EXTRAS if key in parts}
    for key in parts:
        if key not in PARTS:
            raise unknown(f"entry of what {name} returns", key, (*PARTS, *EXTRAS))
    for needed in ("train", "test"):
        if needed not in parts:
            raise BnewError(f"{name} returns no {needed}: return train and test, and perhaps val")
    classes = extras.get("classes") or getattr(parts["train"], "classes", None)
    splits = {part: _read(f"{name}, {part}", dataset, image_size) for part, dataset in parts.items()}
    splits = _of_one_kind(name, splits)
    most = max(int(split.labels.max()) for split in splits.values())
    classes = tuple(map(str, classes)) if classes else tuple(map(str, range(most + 1)))
    if most >= len(classes):
        raise BnewError(f"{name} has the label {most}, but only {len(classes)} classes, numbered from 0")
    check_val_split(name, val_split, "val" in splits)
    if "val" not in splits:
        kept, out = hold_out(len(splits["train"]), held_out(val_split)["val"])
        splits |= {"train": splits["train"][kept], "val": splits["train"][out]}
    train = splits["train"]
    mean, std = _mean_std(name, train.images, extras)
    padding = extras.get("padding", usual_padding(train.images.shape))
    if type(padding) is not int or padding < 0 or type(extras.get("flip", True)) is not bool:
        raise BnewError(f"{name}: padding must be a whole number of pixels, and flip True or False")
    if is_first_process():
        counts = ", ".join(f"{len(split)} {part}" for part, split in splits.items())
        logger.info("%s: %d classes; images: %s", name, len(classes), counts)
    return MemoryDataset(
        name=name,
        classes=classes,
        mean=mean,
        std=std,
        train=train,
        val=splits["val"],
        test=splits["test"],
        augmentation=Augmentation(padding, extras.get("flip", True)),
        held_out=("val",) if val_split else (),
        val_split=val_split,
    )


def _made(name: str, options: Mapping[str, Any], data_dir: Path) -> dict[str, Any]:
    """What the factory returns, by name."""
    make = factory(name)
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):
        raise BnewError(f"{name} is no function in Python: give one that returns data sets") from None
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for option in options:
            if option not in parameters:
                raise unknown(f"option of {name}", option, parameters)
    given = dict(options)
    if "data_dir" in parameters:
        given.setdefault("data_dir", data_dir)
    try:
        made = make(**given)
    except BnewError:
        raise
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise BnewError(f"{name} made no data sets ({type(error).__name__}: {first_line(error)})") from error
    if isinstance(made, Mapping):
        return dict(made)
    if isinstance(made, Sequence) and not isinstance(made, str) and len(made) in (2, 3):
        return dict(zip(("train", "test") if len(made) == 2 else ("train", "val", "test"), made, strict=True))
    raise BnewError(
        f"{name} returns {kind_of(made)}, but must return (train, test), (train, val, test), or a dictionary "
        "of them"
    )


def _read(what: str, dataset: Any, image_size: int | None) -> Split:
    """All images and labels of ``dataset``; ``what`` begins messages."""
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise BnewError(f"{what} is {kind_of(dataset)}, but must have a length and numbered items")
    images: list[Tensor] = []
    labels = torch.empty(len(dataset), dtype=torch.int64)
    if not len(dataset):
        raise BnewError(f"{what} has no images")
    for number in range(len(dataset)):
        pair = dataset[number]
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise BnewError(f"{what}: item {number} is {kind_of(pair)}, but must be (image, label)")
        image = _tensor(f"{what}: image {number}", pair[0])
        if image_size is not None:
            image = transforms.resize(image, [image_size], antialias=True)
            image = transforms.center_crop(image, [image_size, image_size])
        if images and (image.dtype, image.shape) != (images[0].dtype, images[0].shape):
            raise BnewError(
                f"{what}: image {number} is {image.dtype} {tuple(image.shape)} and the first "
                f"{images[0].dtype} {tuple(images[0].shape)}: give all one kind and size, or --image-size"
            )
        images.append(image)
        labels[number] = _label(f"{what}: label {number}", pair[1])
    stacked = torch.stack(images)
    return Split(stacked if stacked.dtype == torch.uint8 else stacked.mul_(255), labels)


def _tensor(what: str, image: Any) -> Tensor:
    """An image as a tensor (C, H, W), uint8 or float32."""
    if isinstance(image, Image):
        mode = "L" if image.mode.startswith(("1", "L", "I")) and image.mode != "LAB" else "RGB"
        if image.mode not in MODES:
            raise BnewError(f"{what} has pixels of PIL's mode {image.mode}, which is not known")
        try:
            tensor: Tensor = transforms.pil_to_tensor(MODES[image.mode](image, mode))
        except ValueError as error:
            raise BnewError(f"{what} {error}: give 8 or 16 bits per channel, or a tensor") from error
        return tensor
    if not isinstance(image, Tensor) or image.ndim != 3:
        shape = f" of shape {tuple(image.shape)}" if isinstance(image, Tensor) else ""
        raise BnewError(f"{what} is {kind_of(image)}{shape}, but must be a tensor (C, H, W) or a PIL image")
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise BnewError(f"{what} is {image.dtype}, but must be torch.uint8 or of floats")
    if not bool(image.isfinite().all()):
        raise BnewError(f"{what} has a value that is NaN or infinite")
    largest = float(image.abs().max()) if image.numel() else 0
    if largest > _LARGEST:
        raise BnewError(
            f"{what} has values up to {largest:.4g}, but floats are taken for pixel values in [0, 1]: divide "
            "them by 255, or give torch.uint8"
        )
    return image.detach().float()


def _label(what: str, label: Any) -> int:
    if isinstance(label, np.integer) or (
        isinstance(label, Tensor) and label.numel() == 1 and not label.is_floating_point()
    ):
        label = int(label)
    if type(label) is not int or label < 0:
        raise BnewError(f"{what} is {kind_of(label)}, but must be a class's number from 0")
    return label


def _of_one_kind(name: str, splits: dict[str, Split]) -> dict[str, Split]:
    first = splits["train"].images
    for part, split in splits.items():
        if split.images.shape[1:] != first.shape[1:] or split.images.dtype != first.dtype:
            raise BnewError(
                f"{name}: the images of {part} are {split.images.dtype} {tuple(split.images.shape[1:])} and "
                f"those of train {first.dtype} {tuple(first.shape[1:])}: give all one kind and size"
            )
    return splits


def _mean_std(
    name: str, images: Tensor, extras: Mapping[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Those that the factory returns, or else those of the training images."""
    given = [extras.get("mean"), extras.get("std")]
    if given == [None, None]:
        return mean_std(images)
    means, stds = (
        tuple(map(float, v)) if isinstance(v, Sequence) and len(v) == images.shape[1] else None for v in given
    )
    if means is None or stds is None or min(stds) <= 0:
        raise BnewError(f"{name}: mean and std must both have a number for each channel, stds positive")
    return means, stds
