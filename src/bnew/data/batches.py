"""Data sets and their batches, which do not depend on the number of processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bnew.data.fingerprint import Fingerprint
from bnew.data.preparation import Preparation
from bnew.display import Line, some
from bnew.errors import BnewError
from bnew.text import printable


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Dataset(Line, ABC):
    """A data set. ``mean`` and ``std`` are per channel, for pixel values in [0, 1]."""

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_broken: int = 0
    """How many broken images to skip at most. Only for images that are read when they are needed."""
    broken: dict[str, str] = field(default_factory=dict)
    """Path → why it cannot be read, of the broken images found so far."""
    held_out: tuple[str, ...] = ()
    """The splits that were held out of train and that a run records, see :mod:`bnew.data.holdout`."""
    val_split: float | None = None
    """Share of the training images that was held out for validation, if it was asked for."""

    def add_broken(self, found: Mapping[str, str]) -> None:
        """Add broken images that are not known yet.

        Raises:
            BnewError: there are more than ``max_broken``.
        """
        for path, why in found.items():
            if path not in self.broken and len(self.broken) >= self.max_broken:
                raise BnewError(
                    f"the image '{path}' is broken ({why}), after {self.max_broken} other broken images: "
                    f"repair or remove them, or set --max-broken above {self.max_broken}"
                )
            self.broken[path] = why

    def __repr__(self) -> str:
        """One line: name, size of an image, classes and how many images there are."""
        shape = "×".join(map(str, self.image_size))
        counts = ", ".join(f"{count:,} {split}" for split, count in self.counts.items())
        classes = f"{self.num_classes} classes ({some(self.classes, 3)})"
        return printable(f"<{type(self).__name__} {self.name}: {shape}, {classes}, images: {counts}>")

    @property
    @abstractmethod
    def counts(self) -> dict[str, int]:
        """How many images each split has."""

    @abstractmethod
    def labels(self, split: str) -> npt.NDArray[np.int64]:
        """The class of each image of ``split``, (N,).

        Raises:
            BnewError: unknown split.
        """

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """1 for greyscale, 3 for colour."""
        return self.image_size[0]

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int, int]:
        """(C, H, W) of an input image of the network."""

    @property
    def resize(self) -> tuple[int, int] | None:
        """(H, W) that an image is scaled to cover before its centre is cropped; None: as ``image_size``."""
        return None

    @property
    def preparation(self) -> Preparation:
        """How an image becomes the network's input."""
        return Preparation(self.classes, self.image_size, self.mean, self.std, self.resize)

    @abstractmethod
    def augmented(self, name: str) -> Dataset:
        """The same images, with another augmentation of training images: one of a recipe's names.

        Raises:
            BnewError: these images do not allow it.
        """

    @property
    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """Identifies the images, see :mod:`bnew.data.fingerprint`; computed on first use."""

    @abstractmethod
    def batches(self, split: str, batch_size: int | None = None, **options: Any) -> Batches:
        """Batches of ``split`` (train, val or test), with the options of :class:`Batches`.

        The default ``batch_size`` suits evaluation.

        Raises:
            BnewError: unknown split, or see :class:`Batches`.
        """


class Batches(ABC):
    """The batches of a split: x, normalised float32 (n, C, H, W), and y, int64 (n,), on ``device``.

    With ``train``, every epoch has its own order and augmentation. Both depend only on (``seed``, epoch): not
    on earlier epochs, threads or the number of processes. Otherwise each image comes once, in order and
    without augmentation.

    ``batch_size`` is the total over ``world_size`` processes. Process ``rank`` gets the images
    ``batch[rank::world_size]`` of each batch, so all processes make the same number of steps. In evaluation a
    process's share of the last batch may be empty.

    Raises:
        BnewError: ``batch_size`` is not positive, or a training batch has fewer images than processes.
    """

    def __init__(
        self,
        dataset: Dataset,
        count: int,
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
        self.count, self.batch_size, self.device = count, batch_size, torch.device(device)
        self.train, self.seed, self.rank, self.world_size = train, seed, rank, world_size
        smallest = self.size(len(self) - 1)
        if train and smallest < world_size:
            raise BnewError(
                f"a batch of {smallest} images is too few for {world_size} processes: change the batch size"
            )
        # (v / 255 − mean) / std = v · scale + shift
        mean, std = (torch.tensor(v, device=self.device).view(-1, 1, 1) for v in (dataset.mean, dataset.std))
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def __len__(self) -> int:
        """Batches per epoch; the last one may be smaller."""
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch(0)

    @abstractmethod
    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of ``epoch`` from batch ``start`` on; both count from 0."""

    def size(self, batch: int) -> int:
        """The number of images in batch number ``batch``, over all processes."""
        return min(self.batch_size, self.count - batch * self.batch_size)

    def generator(self, epoch: int) -> torch.Generator:
        """The random number generator of an epoch."""
        # torch's CPU generator uses only 32 bits of its seed. SeedSequence mixes both numbers into them.
        mixed = np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0]
        return torch.Generator().manual_seed(int(mixed))

    def order(self, generator: torch.Generator) -> Tensor:
        """The numbers of the images in the order of an epoch."""
        return torch.randperm(self.count, generator=generator) if self.train else torch.arange(self.count)

    def shares(self, start: int) -> Iterator[slice]:
        """This process's slice of the order for each batch from number ``start`` on."""
        for batch in range(start, len(self)):
            first = batch * self.batch_size
            yield slice(first + self.rank, first + self.size(batch), self.world_size)

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 images (n, C, H, W) → normalised float32, the network's input."""
        return images.float().mul_(self.scale).add_(self.shift)
