"""Reading a folder of images: ``{train,val,test}/<class>/*``, of which val and test may be missing."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from bnew.errors import BnewError
from bnew.images import read_image

IMAGE_SUFFIXES = frozenset(IMG_EXTENSIONS)


def read_folder(
    root: Path, mode: str, image_size: int | None, workers: int
) -> tuple[tuple[str, ...], dict[str, tuple[Tensor, Tensor]]]:
    """The classes, and of each part that is there its images, uint8 (N, C, H, W), and labels, int64 (N,).

    Args:
        root: the folder that holds train, and perhaps val and test.
        mode: PIL's, which every image is converted to.
        image_size: resize the shorter side to this many pixels and crop the centre.
        workers: threads that decode.

    Raises:
        BnewError: a folder is missing or empty, classes or sizes differ, an image is broken.
    """
    classes, listed = list_folder(root)
    files = {
        part: {name: [root / part / name / file for file in names] for name, names in by_class.items()}
        for part, by_class in listed.items()
    }
    first = next(iter(files["train"].values()))[0]
    size = None if image_size is None else (image_size, image_size)
    height, width, channels = read_image(first, mode, size).shape

    def read(part: dict[str, list[Path]]) -> tuple[Tensor, Tensor]:
        paths = [path for class_files in part.values() for path in class_files]
        labels = [label for label, class_files in enumerate(part.values()) for _ in class_files]
        images = np.empty((len(paths), channels, height, width), np.uint8)

        def decode(chunk: range) -> None:
            for index in chunk:
                image = read_image(paths[index], mode, size)
                if image.shape != (height, width, channels):
                    raise BnewError(
                        f"the image '{paths[index]}' is {image.shape[1]}×{image.shape[0]} and '{first}' is "
                        f"{width}×{height}: give --image-size to bring all to one size"
                    )
                images[index] = image.transpose(2, 0, 1)

        everything = range(len(paths))
        # 64 a task: for small images, the pool would otherwise take as long as the decoding.
        chunks = (everything[start : start + 64] for start in everything[::64])
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(decode, chunks):
                pass  # to raise the first error, in the order of the files
        return torch.from_numpy(images), torch.tensor(labels)

    return classes, {name: read(part) for name, part in files.items()}


def list_folder(root: Path) -> tuple[tuple[str, ...], dict[str, dict[str, list[str]]]]:
    """The classes, and of each part that is there the names of each class's images; all sorted.

    Raises:
        BnewError: a folder is missing or empty, or the parts' classes differ.
    """
    if not (root / "train").is_dir():
        what = "has no folder train" if root.is_dir() else "does not exist"
        raise BnewError(f"the data folder '{root}' {what}: put the images there as train/<class>/*")
    listed = {part: _list_images(root / part) for part in ("train", "val", "test") if (root / part).is_dir()}
    classes = list(listed["train"])
    for part, files in listed.items():
        if list(files) != classes:
            odd = sorted(set(files) ^ set(classes))[0]
            has, lacks = (part, "train") if odd in files else ("train", part)
            raise BnewError(f"in '{root}', {has} has a class '{odd}' that {lacks} has not: make them agree")
    if len(classes) < 2:
        raise BnewError(f"'{root / 'train'}' has the one class '{classes[0]}': add a folder for another")
    return tuple(classes), listed


def list_images(folder: Path) -> list[Path]:
    """The images in ``folder`` and in the folders there, without what is hidden; sorted.

    Raises:
        BnewError: there are none, or the folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise BnewError(f"cannot read the folder '{error.filename}': {error.strerror}") from error

    found = []
    for where, folders, _ in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(where, name) for name in _visible(Path(where)) if _is_image(name)]
    images = sorted(path for path in found if not path.is_dir())
    if not images:
        raise BnewError(f"the folder '{folder}' has no images: name image files, or a folder that has some")
    return images


def _list_images(folder: Path) -> dict[str, list[str]]:
    """Class → its images, both sorted by name; what is hidden and files that are no images do not count."""
    classes = [name for name in _visible(folder) if (folder / name).is_dir()]
    if not classes:
        raise BnewError(f"'{folder}' has no class folders: put the images there as <class>/*")
    files = {name: [file for file in _visible(folder / name) if _is_image(file)] for name in classes}
    for name, images in files.items():
        if not images:
            raise BnewError(f"the class folder '{folder / name}' has no images: add some or remove it")
    return files


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _visible(folder: Path) -> list[str]:
    """What ``folder`` holds, sorted, but for the likes of ``.DS_Store`` and macOS's ``._cat.png``."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))
