"""A data set held in memory as bytes, or as floats of a user's own.

Whole batches are cropped and flipped as tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from bnew.data.batches import Batches, Dataset
from bnew.data.fingerprint import Fingerprint, class_names, digest
from bnew.display import Line
from bnew.errors import BnewError, lookup

EVAL_BATCH_SIZE = 500
LEAST_AREA = 0.08  # of a part of the image, as in ImageNet's training


@dataclass(frozen=True, eq=False, repr=False)
class Split(Line):
    """Images (N, C, H, W), uint8 or of a user's own float32 in the same units, and labels, int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"<Split: {len(self):,} images of {'×'.join(map(str, self.images.shape[1:]))}>"

    def __getitem__(self, index: Tensor) -> Split:
        return Split(self.images[index], self.labels[index])

    def fingerprint(self) -> dict[str, Any]:
        """The split's entry in a :data:`bnew.data.fingerprint.Fingerprint`."""
        shape = str(tuple(self.images.shape)).encode()
        pixels, labels = (tensor.contiguous().numpy().data for tensor in (self.images, self.labels))
        return {"images": len(self), "contents": digest((shape, pixels, labels))}


@dataclass(frozen=True)
class Augmentation:
    """For training images: pad with ``padding`` black pixels and crop at random; ``flip`` half of them.

    With ``least_area`` below 1, a random part of the image of at least that share of its area, between 3:4
    and 4:3 in its proportions, is scaled to the image's size instead. With ``trivial``, each image first gets
    one operation of TrivialAugment (arXiv 2103.10158), of a random strength.
    """

    padding: int
    flip: bool
    least_area: float = 1.0
    trivial: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class MemoryDataset(Dataset):
    """All images of a data set; they have one size."""

    train: Split
    val: Split
    test: Split
    augmentation: Augmentation

    @property
    def image_size(self) -> tuple[int, int, int]:
        """(C, H, W) of each image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def counts(self) -> dict[str, int]:
        """See :attr:`bnew.data.batches.Dataset.counts`."""
        return {name: len(split) for name, split in self.splits.items()}

    def labels(self, split: str) -> npt.NDArray[np.int64]:
        """See :meth:`bnew.data.batches.Dataset.labels`."""
        return lookup("split", split, self.splits).labels.numpy()

    def augmented(self, name: str) -> MemoryDataset:
        """See :meth:`bnew.data.batches.Dataset.augmented`."""
        if name == "trivial" and self.train.images.dtype != torch.uint8:
            raise BnewError(
                f"TrivialAugment changes bytes, but the images of {self.name} are floats: let your data set "
                "return torch.uint8, or take another augmentation"
            )
        if name == "trivial" and self.image_size[0] not in (1, 3):
            raise BnewError(
                f"TrivialAugment changes images of 1 or 3 channels, but those of {self.name} have "
                f"{self.image_size[0]}: take another augmentation"
            )
        flip, padding = self.augmentation.flip, usual_padding(self.image_size)
        named = {
            "none": Augmentation(0, False),
            "flip_crop": Augmentation(padding, flip),
            "trivial": Augmentation(padding, flip, trivial=True),
            "resized_crop": Augmentation(0, flip, LEAST_AREA),
        }
        return replace(self, augmentation=lookup("augmentation", name, named))

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """See :attr:`bnew.data.batches.Dataset.fingerprint`."""
        return {"classes": class_names(self.classes)} | {
            name: split.fingerprint() for name, split in self.splits.items()
        }

    def batches(self, split: str, batch_size: int | None = None, **options: Any) -> MemoryBatches:
        """See :meth:`bnew.data.batches.Dataset.batches`."""
        images = lookup("split", split, self.splits)
        return MemoryBatches(images, self, batch_size or EVAL_BATCH_SIZE, **options)


class MemoryBatches(Batches):
    """See :class:`Batches`. With ``train``, images are cropped and flipped at random."""

    def __init__(self, split: Split, dataset: MemoryDataset, batch_size: int, **options: Any) -> None:
        super().__init__(dataset, len(split), batch_size, **options)
        self.split, self.augmentation = split, dataset.augmentation

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See :meth:`Batches.epoch`."""
        generator = self.generator(epoch)
        order = self.order(generator)
        if self.train:
            places, flips = self._draw(generator)
        if self.train and self.augmentation.trivial:
            seeds = torch.randint(2**31, (self.count,), generator=generator)
        for share in self.shares(start):
            # On a CPU, index_select is many times faster than images[index].
            images = self.split.images.index_select(0, order[share])
            if self.train and self.augmentation.trivial:
                images = trivial(images, seeds[share].tolist())
            images = images.to(self.device, non_blocking=True)
            labels = self.split.labels[order[share]].to(self.device, non_blocking=True)
            if self.train and self.augmentation.least_area < 1:
                images = scale_and_flip(images, places[share], flips[share])
            elif self.train:
                images = crop_and_flip(images, places[share], flips[share], self.augmentation.padding)
            yield self.normalised(images), labels

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """All crops and flips of an epoch, drawn at once so that a run can resume in the middle of it."""
        if self.augmentation.least_area < 1:
            places = self._draw_parts(generator)
        else:
            offsets = 2 * self.augmentation.padding + 1
            places = torch.randint(offsets, (self.count, 2), generator=generator)
        flips = torch.randint(1 + self.augmentation.flip, (self.count,), generator=generator).bool()
        return places.to(self.device), flips.to(self.device)

    def _draw_parts(self, generator: torch.Generator) -> Tensor:
        """The part of each image that :func:`scale_and_flip` takes, (N, 4)."""
        least = self.augmentation.least_area
        area, shape, row, column = torch.rand(4, self.count, generator=generator)
        area, ratio = least + (1 - least) * area, torch.exp((2 * shape - 1) * math.log(4 / 3))
        height, width = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        return torch.stack([height, width, (2 * row - 1) * (1 - height), (2 * column - 1) * (1 - width)], 1)


def usual_padding(shape: Sequence[int]) -> int:
    """The padding of crops where nothing else is said: an eighth of the shorter side of (..., H, W)."""
    return min(shape[-2:]) // 8


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Zero-pad all sides by ``padding``, crop each image at its own offset to its old size, then flip.

    ``images`` (N, C, H, W); ``offsets`` int64 (N, 2), the crop's top row and left column, 0..2·padding;
    ``flips`` bool (N,), mirror left to right. Returns (N, C, H, W).
    """
    n, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    # Index of each pixel's source in its flattened padded channel, the same for all channels of an image.
    source = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    index = source.view(n, 1, height * width).expand(n, channels, height * width)
    return padded.flatten(2).gather(2, index).view_as(images)


def scale_and_flip(images: Tensor, parts: Tensor, flips: Tensor) -> Tensor:
    """Scale a part of each image to the image's size, bilinearly, then flip.

    ``images`` (N, C, H, W); ``parts`` (N, 4), height and width as shares of the image's, then the centre from
    top to bottom and from left to right, in [−1, 1]; ``flips`` bool (N,). Returns float32 (N, C, H, W).
    """
    height, width, row, column = parts.T
    mirrored = torch.where(flips, -width, width)
    none = torch.zeros_like(row)
    theta = torch.stack([mirrored, none, column, none, height, row], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def trivial(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """TrivialAugment of each of ``images``, uint8 (N, C, H, W), with its own seed."""
    change = v2.TrivialAugmentWide()
    with torch.random.fork_rng(devices=[]):
        changed = []
        for image, seed in zip(images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            changed.append(change(image))
    return torch.stack(changed) if changed else images


def mean_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixel values in [0, 1], chunk by chunk to save memory."""
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = total.clone()
    for start in range(0, len(images), 256):
        values = images[start : start + 256].double()
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    count = images.numel() / images.shape[1]
    mean = total / count
    std = (
        (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=1)
    )  # no division by 0 for a constant channel
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
