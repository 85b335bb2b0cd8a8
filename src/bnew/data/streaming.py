"""A folder of images that are read when they are needed, for data sets too large for memory, like ImageNet.

Reading processes decode the files, crop and flip. Lighting noise and normalisation are one multiplication and
one addition on whole batches, on the training device.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bnew.data.batches import Batches, Dataset
from bnew.data.copies import SameFiles, file_digest, map_files
from bnew.data.fingerprint import Fingerprint, class_names, digest
from bnew.data.holdout import check_val_split, hold_out_by_name
from bnew.data.image_folder import ByClass, flattened, list_folder
from bnew.data.images import MOST_PIXELS, is_turned, read_image
from bnew.data.transforms import covered, lighting, training_transform, validation_transform
from bnew.errors import BnewError, first_line, lookup
from bnew.process import is_first_process

logger = logging.getLogger("bnew")

EVAL_BATCH_SIZE = 64  # per process
# Phrases in DataLoader's error when one of its processes dies.
_DEATHS = ("exited unexpectedly", "is killed by signal")
SAMPLE = 64  # about the number of files per split whose contents a fingerprint covers
READ_AHEAD, MOST_AHEAD = 3, 32  # batches read ahead: per reading process, and about the most in total

# ImageNet's, for pixel values in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Files:
    """Image files and their labels as two arrays, which reading processes share without a copy."""

    root: Path
    names: npt.NDArray[np.bytes_]
    """Paths below ``root``, as the file system encodes them."""
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: npt.NDArray[np.int64]) -> Files:
        return Files(self.root, self.names[index], self.labels[index])

    def path(self, index: int) -> Path:
        """The path of image number ``index``."""
        return self.root / os.fsdecode(bytes(self.names[index]))

    @property
    def paths(self) -> list[bytes]:
        """The paths of all images."""
        root = os.path.join(os.fsencode(self.root), b"")
        return [root + name for name in self.names.tolist()]

    def fingerprint(self, workers: int = 1) -> dict[str, Any]:
        """The entry of these files in a :data:`bnew.data.fingerprint.Fingerprint`, in ``workers`` threads.

        Raises:
            BnewError: a listed file no longer exists, or cannot be read.
        """
        paths = self.paths
        try:
            states = np.array(map_files(_size_and_time, paths, workers), "<i8").reshape(-1, 2)
            sample = map_files(file_digest, paths[:: max(1, len(paths) // SAMPLE)], workers)
        except OSError as error:
            raise BnewError(f"the data folder has changed ({error}): start the same command again") from error
        return {
            "images": len(self),
            "names": digest(self.names.tolist()),
            "sizes": digest([states[:, 0].tobytes()]),
            "sample": digest(sample),
            "times": digest([states[:, 1].tobytes()]),
        }


def _size_and_time(path: bytes) -> tuple[int, int]:
    state = os.stat(path)
    return state.st_size, int(state.st_mtime)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class StreamedDataset(Dataset):
    """Images in files. Training takes random crops of ``side``² pixels, validation the centre crop."""

    splits: dict[str, Files]
    side: int
    workers: int
    augment: str | None = None
    """A recipe's name of augmentation; None: random crops with lighting noise, as published for ImageNet."""

    @property
    def image_size(self) -> tuple[int, int, int]:
        """(3, side, side)."""
        return 3, self.side, self.side

    @property
    def counts(self) -> dict[str, int]:
        """See :attr:`bnew.data.batches.Dataset.counts`."""
        return {name: len(files) for name, files in self.splits.items()}

    def labels(self, split: str) -> npt.NDArray[np.int64]:
        """See :meth:`bnew.data.batches.Dataset.labels`."""
        return lookup("split", split, self.splits).labels

    @property
    def resize(self) -> tuple[int, int]:
        """See :attr:`bnew.data.batches.Dataset.resize`."""
        return (covered(self.side),) * 2

    def augmented(self, name: str) -> StreamedDataset:
        """See :meth:`bnew.data.batches.Dataset.augmented`."""
        return replace(self, augment=name)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """See :attr:`bnew.data.batches.Dataset.fingerprint`."""
        return {"classes": class_names(self.classes)} | {
            name: files.fingerprint(self.workers) for name, files in self.splits.items()
        }

    def batches(self, split: str, batch_size: int | None = None, **options: Any) -> StreamedBatches:
        """See :meth:`bnew.data.batches.Dataset.batches`."""
        files = lookup("split", split, self.splits)
        size = batch_size or EVAL_BATCH_SIZE * options.get("world_size", 1)
        return StreamedBatches(files, self, size, **options)


@lru_cache(maxsize=4)
def open_folder(
    name: str, root: Path, side: int, workers: int, max_broken: int, val_split: float | None = None
) -> StreamedDataset:
    """The image folder ``root`` with train and, if they exist, val and test; images are listed, not read.

    Without val, a tenth of the training images, or ``val_split`` of them, is held out by name
    (:mod:`bnew.data.holdout`). Only files with the same bytes count as copies. Without test, val serves as
    the test set.

    Raises:
        BnewError: a folder is missing or empty, or the parts' classes differ.
    """
    classes, listed = list_folder(root)
    splits = {part: _files(root, by_class) for part, by_class in listed.items()}
    check_val_split(f"'{root}'", val_split, "val" in splits)
    if "val" not in splits:
        train = splits["train"]
        names, labels = flattened(listed["train"])
        copies = SameFiles(train.paths, labels, workers)
        held = hold_out_by_name(names, labels, classes, copies, ["val"], val_split)
        splits |= {part: train[index] for part, index in held.items()}
    splits.setdefault("test", splits["val"])
    if is_first_process():
        sizes = f"{len(splits['train']):,} images to train on, {len(splits['val']):,} to validate"
        held_out = "" if "val" in listed else " (held out, since there is no folder val)"
        tested = "" if splits["test"] is splits["val"] else f", {len(splits['test']):,} to test"
        logger.info("%s: %d classes; %s%s%s", root, len(classes), sizes, held_out, tested)
    return StreamedDataset(
        name=name,
        classes=classes,
        mean=MEAN,
        std=STD,
        splits=splits,
        side=side,
        workers=workers,
        max_broken=max_broken,
        val_split=val_split,
        held_out=tuple(part for part in ("val", "test") if part not in listed) if "val" not in listed else (),
    )


def _files(root: Path, by_class: ByClass) -> Files:
    names, labels = flattened(by_class)
    return Files(root, np.array([os.fsencode(name) for name in names]), labels)


# ---------------------------------------------------------------------- in the reading processes


def read(path: Path) -> Tensor:
    """An image file as uint8 RGB (3, H, W).

    Raises:
        BnewError: the image is broken.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if height * width > MOST_PIXELS:
            raise ValueError("it is huge, or its header is damaged")
        if colours not in ("YCbCr", "Gray", "RGB") or is_turned(content):
            raise ValueError("only Pillow converts or turns it")
        # The same pixels as Pillow's, in two thirds of the time.
        pixels = simplejpeg.decode_jpeg(content, fastdct=False, fastupsample=False)
    except ValueError:  # also for other formats and broken files, which Pillow reports
        pixels = read_image(path, "RGB").copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)


@dataclass(frozen=True)
class _Batch:
    """The result of a reader process: uint8 images (n, 3, H, W), labels (n,), lighting (n, 3), broken images.

    ``failed`` says why a file could not be read; empty if all were read. An exception would have a traceback.
    """

    images: Tensor
    labels: Tensor
    noise: Tensor
    broken: list[tuple[int, str]]
    failed: str = ""

    def pin_memory(self) -> _Batch:
        """The batch in pinned memory, for copies to a GPU; called by DataLoader."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


class _Reader(torch.utils.data.Dataset[_Batch]):
    """Reads whole batches: (epoch, numbers of images) → :class:`_Batch`."""

    def __init__(
        self, files: Files, side: int, train: bool, augment: str | None, seed: int, max_broken: int
    ) -> None:
        self.files, self.train, self.seed, self.max_broken = files, train, seed, max_broken
        self.side = side
        self.noisy = train and augment is None
        self.transform = training_transform(side, augment) if train else validation_transform(side)

    def __getitem__(self, batch: tuple[int, Sequence[int]]) -> _Batch:
        epoch, indices = batch
        images = torch.empty((len(indices), 3, self.side, self.side), dtype=torch.uint8)
        labels, noise = torch.empty(len(indices), dtype=torch.int64), torch.zeros(len(indices), 3)
        broken: list[tuple[int, str]] = []
        count = 0
        for index in indices:
            try:
                image, label = self._read(index, broken)
            except OSError as error:
                return _Batch(images[:0], labels[:0], noise[:0], broken, str(error))
            if image is None:
                continue
            # An image's random numbers depend only on these three, so not on the number of processes.
            seed = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0]
            torch.default_generator.manual_seed(int(seed))
            images[count] = self.transform(image)
            labels[count] = label
            if self.noisy:
                noise[count] = lighting()
            count += 1
        return _Batch(images[:count], labels[:count], noise[:count], broken)

    def _read(self, index: int, broken: list[tuple[int, str]]) -> tuple[Tensor | None, int]:
        """The image and its label; in training, the next readable image replaces a broken one."""
        for number in range(index, index + self.max_broken + 1):
            number %= len(self.files)
            try:
                return read(self.files.path(number)), int(self.files.labels[number])
            except BnewError as error:
                broken.append((number, str(error)))
            if not self.train:
                break
        return None, 0


class _Plan:
    """DataLoader's batch sampler, whose batches change from epoch to epoch."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, Sequence[int]]] = []

    def __iter__(self) -> Iterator[tuple[int, Sequence[int]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


# ---------------------------------------------------------------------- in the training process


class StreamedBatches(Batches):
    """See :class:`Batches`. A broken image is skipped; in training, the next readable image replaces it.

    If a reading process dies, another one reads its batch. If that one dies at it too, an error is raised.
    """

    def __init__(self, files: Files, dataset: StreamedDataset, batch_size: int, **options: Any) -> None:
        super().__init__(dataset, len(files), batch_size, **options)
        self.files, self.dataset = files, dataset
        self._plan = _Plan()
        self._loader: DataLoader[_Batch] | None = None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See :meth:`Batches.epoch`."""
        order = self.order(self.generator(epoch)).numpy()
        planned = [(epoch, order[share].tolist()) for share in self.shares(start)]
        done, died_at = 0, -1
        while done < len(planned):
            self._plan.batches = planned[done:]
            try:
                for batch in self._read():
                    done += 1
                    yield self._on_device(batch)
            except RuntimeError as error:
                if not any(word in str(error) for word in _DEATHS):
                    raise
                self._loader = None
                if died_at == done:
                    raise BnewError(
                        f"the processes that read images died twice at one batch ({first_line(error)}): free "
                        "memory or shared memory (/dev/shm), or set --decode-threads lower, which needs less "
                        "of both"
                    ) from error
                died_at = done
                logger.warning("a process that reads images died (%s): starting new ones", error)

    def _read(self) -> Iterator[_Batch]:
        if self._loader is None:
            data = self.dataset
            reader = _Reader(self.files, data.side, self.train, data.augment, self.seed, data.max_broken)
            self._loader = DataLoader(
                reader,
                sampler=self._plan,
                batch_size=None,
                num_workers=self.dataset.workers,
                prefetch_factor=max(1, min(READ_AHEAD, MOST_AHEAD // self.dataset.workers)),
                persistent_workers=self.train,
                pin_memory=self.device.type == "cuda",
                # In a stage of an experiment the default is a fork server, whose children import torch anew.
                multiprocessing_context="fork" if sys.platform == "linux" else None,
                worker_init_fn=_end_with_parent,
            )
        with _sigchld_kept():
            batches = iter(self._loader)
        yield from batches

    def _on_device(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        if batch.failed:
            raise BnewError(
                f"images cannot be read ({batch.failed}): make them readable, then start the same command "
                "again to resume"
            )
        for index, why in batch.broken:
            path, broken = str(self.files.path(index)), self.dataset.broken
            if path not in broken:
                self.dataset.add_broken({path: why})
                logger.warning(
                    "left out: '%s' (%s), broken image number %d of this process, of at most %d in total",
                    path, why, len(broken), self.dataset.max_broken,
                )  # fmt: skip
        images, labels, noise = (
            t.to(self.device, non_blocking=True) for t in (batch.images, batch.labels, batch.noise)
        )
        x = self.normalised(images)
        if self.train:
            x += (noise * (255 * self.scale.view(-1))).view(-1, 3, 1, 1)
        return x, labels


def _end_with_parent(_: int) -> None:
    """End this reading process when the training process exits, even by SIGKILL.

    DataLoader watches the process that forked it, which may be a fork server that outlives the training.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _sigchld_kept() -> Iterator[None]:
    """Keep DataLoader from replacing the SIGCHLD handler.

    Its handler raises an error at an arbitrary place when a reading process dies. Without it, DataLoader
    raises one while it waits for a batch, where :meth:`StreamedBatches.epoch` handles it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, usual)
