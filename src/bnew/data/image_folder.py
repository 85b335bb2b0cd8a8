"""Lists and reads a folder of images, ``{train,val,test}/<class>/*``; val and test are optional."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bnew.data.copies import SIDE, Pictures
from bnew.data.images import PLUGINS, read_image, read_with_rendition, suffixes
from bnew.errors import BnewError
from bnew.process import is_first_process

logger = logging.getLogger("bnew")

# Part → the names that its folder may have.
PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}

ByClass = Mapping[str, Sequence[str]]
"""Class → the paths of its images below the data folder, with ``/``; both sorted."""


def list_folder(root: Path) -> tuple[tuple[str, ...], dict[str, ByClass]]:
    """The classes, and for each part that exists its images by class, at any depth below the class folder.

    One warning counts all files that are not readable images. Hidden files are ignored.

    Raises:
        BnewError: a folder is missing or empty, a part has two folders, or the parts' classes differ.
    """
    folders = {part: folder for part in PARTS if (folder := part_folder(root, part))}
    if "train" not in folders:
        what = "has no folder train" if root.is_dir() else "does not exist"
        raise BnewError(f"the data folder '{root}' {what}: put the images there as train/<class>/*")
    left_out: Counter[str] = Counter()
    listed = {part: list_classes(root, folder, left_out) for part, folder in folders.items()}
    classes = list(listed["train"])
    for part, by_class in listed.items():
        if list(by_class) != classes:
            odd = sorted(set(by_class) ^ set(classes))[0]
            has, lacks = (folders[p] for p in ((part, "train") if odd in by_class else ("train", part)))
            raise BnewError(
                f"in '{root}', {has} has a class '{odd}' that {lacks} does not have: make them agree"
            )
    if len(classes) < 2:
        raise BnewError(f"'{root / 'train'}' has the one class '{classes[0]}': add a folder for another")
    others = []
    for entry in visible(root):
        if not entry.is_dir():
            left_out["images outside of a class folder" if _is_image(entry.name) else _kind(entry.name)] += 1
        elif entry.name not in folders.values():
            others.append(entry.name)
    if is_first_process():
        warn_of(root, left_out, others)
    return tuple(classes), listed


def part_folder(root: Path, part: str) -> str | None:
    """The name of the folder of ``part`` in ``root``, if there is one.

    Raises:
        BnewError: there are two.
    """
    there = [name for name in PARTS[part] if (root / name).is_dir()]
    if len(there) > 1:
        raise BnewError(f"'{root}' has folders {' and '.join(there)}, both for {part}: remove one of them")
    return there[0] if there else None


def list_classes(root: Path, folder: str, left_out: Counter[str]) -> ByClass:
    """The images of each class in ``root / folder``; adds all other files to ``left_out``, by kind.

    Raises:
        BnewError: there are no classes, or one has no images.
    """
    by_class: dict[str, Sequence[str]] = {}
    for entry in visible(root / folder):
        if not entry.is_dir():
            left_out["images outside of a class folder" if _is_image(entry.name) else _kind(entry.name)] += 1
            continue
        others: Counter[str] = Counter()
        inside = frozenset({os.path.realpath(entry.path)})
        by_class[entry.name] = sorted(images_in(entry.path, f"{folder}/{entry.name}", inside, others))
        if not by_class[entry.name]:
            what = f" but {_counted(others)}" if others else ""
            raise BnewError(f"the class folder '{entry.path}' has no images{what}: add some or remove it")
        left_out += others
    if not by_class:
        raise BnewError(f"'{root / folder}' has no class folders: put the images there as <class>/*")
    return by_class


def images_in(folder: str, below: str, inside: frozenset[str], left_out: Counter[str]) -> Iterator[str]:
    """The images in ``folder`` and below; ``inside``: the folders above, since a link may form a loop."""
    for entry in visible(folder):
        path = f"{below}/{entry.name}"
        if entry.is_dir():
            if (real := os.path.realpath(entry.path)) not in inside:
                yield from images_in(entry.path, path, inside | {real}, left_out)
        elif _is_image(entry.name):
            yield path
        else:
            left_out[_kind(entry.name)] += 1


def visible(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of ``folder``, sorted, without hidden ones such as ``.DS_Store`` and ``._cat.png``."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_image(name: str) -> bool:
    return _suffix(name) in suffixes()


def _kind(name: str) -> str:
    """How a warning describes a file that is left out."""
    suffix = _suffix(name)
    if suffix in PLUGINS:
        return f"{suffix} (install {PLUGINS[suffix]})"
    return suffix or "without a suffix"


def _counted(left_out: Counter[str]) -> str:
    return ", ".join(
        f"{count} {kind}" for kind, count in sorted(left_out.items(), key=lambda x: (-x[1], x[0]))
    )


def warn_of(root: Path, left_out: Counter[str], folders: Sequence[str]) -> None:
    """Log one warning for everything in ``root`` that is not read."""
    parts = []
    if left_out:
        count = left_out.total()
        parts.append(f"{count} file{'s' if count > 1 else ''} ({_counted(left_out)})")
    if folders:
        names = ", ".join(f"'{name}'" for name in folders)
        parts.append(f"the folder{'s' if len(folders) > 1 else ''} {names}")
    if parts:
        logger.warning("%s: left out %s", root, " and ".join(parts))


def flattened(by_class: ByClass) -> tuple[list[str], npt.NDArray[np.int64]]:
    """All paths, and the class number of each."""
    paths = [path for class_paths in by_class.values() for path in class_paths]
    return paths, np.repeat(np.arange(len(by_class)), [len(paths) for paths in by_class.values()])


def read_folder(
    root: Path,
    listed: Mapping[str, ByClass],
    mode: str,
    image_size: int | tuple[int, int] | None,
    workers: int,
    compared: str | None = None,
) -> tuple[dict[str, tuple[Tensor, Tensor]], Pictures | None]:
    """Part → images, uint8 (N, C, H, W), and labels, int64 (N,), in the order of :func:`flattened`.

    Also returns the :class:`Pictures` of the part ``compared``, which find copies.

    Args:
        root: the folder that holds the parts.
        listed: its images, by part and class, see :func:`list_folder`.
        mode: PIL mode that every image is converted to.
        image_size: (height, width) or a square's side; images are scaled to cover it and cropped to it.
        workers: number of decoding threads.
        compared: a part, or None.

    Raises:
        BnewError: sizes differ, or an image is broken.
    """
    first = root / next(iter(next(iter(listed.values())).values()))[0]
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    height, width, channels = read_image(first, mode, size).shape

    pictures = None

    def read(part: str) -> tuple[Tensor, Tensor]:
        nonlocal pictures
        paths, labels = flattened(listed[part])
        images = np.empty((len(paths), channels, height, width), np.uint8)
        if part == compared:
            small = np.empty((len(paths), channels, SIDE, SIDE), np.uint8)
            digests = np.empty(len(paths), "V16")
            pictures = Pictures(torch.from_numpy(small), digests, labels)

        def decode(chunk: range) -> None:
            for index in chunk:
                path = root / paths[index]
                if part == compared:
                    image, rendition = read_with_rendition(path, mode, size, SIDE)
                    small[index], digests[index] = rendition.pixels.transpose(2, 0, 1), rendition.digest
                else:
                    image = read_image(path, mode, size)
                if image.shape != (height, width, channels):
                    raise BnewError(
                        f"the image '{path}' is {image.shape[1]}×{image.shape[0]} and '{first}' is "
                        f"{width}×{height}: give --image-size to scale all to one size"
                    )
                images[index] = image.transpose(2, 0, 1)

        everything = range(len(paths))
        # 64 images per task: with one small image per task, the pool would take as long as the decoding.
        chunks = (everything[start : start + 64] for start in everything[::64])
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(decode, chunks):
                pass  # raises the first error in the order of the files
        return torch.from_numpy(images), torch.from_numpy(labels)

    return {part: read(part) for part in listed}, pictures


def list_images(folder: Path) -> list[Path]:
    """The images in ``folder``, at any depth, sorted; one warning counts all other files.

    Raises:
        BnewError: there are none, or the folder cannot be read.
    """
    left_out: Counter[str] = Counter()
    try:
        found = sorted(images_in(str(folder), ".", frozenset({os.path.realpath(folder)}), left_out))
    except OSError as error:
        raise BnewError(f"cannot read the folder '{error.filename}': {error.strerror}") from error
    if not found:
        raise BnewError(f"the folder '{folder}' has no images: name image files, or a folder that has some")
    warn_of(folder, left_out, ())
    return [folder / path for path in found]
