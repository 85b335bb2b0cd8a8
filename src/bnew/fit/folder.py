"""Looks at a folder of a user's own images: its parts, its classes, and which files are images.

``DIR/<class>/*`` or ``DIR/{train,val,test}/<class>/*``, at any depth below the class. If all of it is in one
folder below ``DIR``, as in many archives, that folder is used.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from bnew.data.image_folder import PARTS, images_in, part_folder, visible, warn_of
from bnew.data.images import suffixes
from bnew.errors import BnewError, first_line
from bnew.text import elided

SAMPLE = 300  # images whose size is read before anything is chosen
FEWEST = 3  # of a class, where test and val are held out of it: one for each part


@dataclass(frozen=True)
class Folder:
    """The images of a folder, by part and class."""

    root: Path
    """What the paths start from."""
    files: Mapping[str, Mapping[str, Sequence[str]]]
    """Part (train, and perhaps val and test) → class → paths below :attr:`root`, sorted."""
    in_parts: bool
    """Whether the class folders are in folders train, val and test."""
    notes: tuple[str, ...] = ()
    """What is left out, one sentence each."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, sorted."""
        return tuple(self.files["train"])

    @property
    def paths(self) -> list[tuple[str, str, str]]:
        """(part, class, path) of each image."""
        return [(part, name, path) for part, of in self.files.items() for name in of for path in of[name]]

    def name_of(self, path: str) -> str:
        """``path`` without the folders of its part and class, as one name."""
        return "__".join(Path(path).parts[2 if self.in_parts else 1 :])

    def digest(self) -> str:
        """Identifies the files by their names and sizes."""
        found = blake2b(digest_size=8)
        for part, name, path in self.paths:
            size = (self.root / path).stat().st_size
            found.update(f"{part}/{name}/{path}/{size}\n".encode(errors="surrogateescape"))
        return found.hexdigest()


def look(place: Path) -> Folder:
    """The images in ``place``.

    Raises:
        BnewError: there is no such folder, or it has no images in class folders, fewer than two classes, or
            parts that do not fit together.
    """
    if not place.is_dir():
        what = "is a file" if place.exists() else "does not exist"
        raise BnewError(f"the folder '{place}' {what}: give a folder with a folder of images for each class")
    root, folders = _descended(place)
    aliases = {alias for names in PARTS.values() for alias in names}
    if not folders:
        if any(_images_beside(root)):
            raise BnewError(
                f"'{root}' has images but no class folders: put the images of each class into a folder of "
                "their own, named as the class"
            )
        raise BnewError(f"'{root}' has no images: put them there as CLASS/*")
    if "train" in folders and not any(_images_beside(root / "train")):
        return _checked(place, _in_parts(root, folders))
    only_parts = [name for name in folders if name in aliases]
    if only_parts and len(only_parts) == len(folders):
        raise BnewError(f"'{root}' has a folder {only_parts[0]} but no train: put the training images there")
    for name in folders:
        inside = {entry.name for entry in visible(root / name) if entry.is_dir()}
        if "train" in inside and len(inside & aliases) > 1:
            raise BnewError(
                f"the class folder '{root / name}' has folders train and others: put the parts above the "
                "classes, as train/CLASS/* and test/CLASS/*"
            )
    found = _by_class(root, folders)
    return _checked(place, Folder(root, {"train": found[0]}, False, found[1]))


def _descended(root: Path) -> tuple[Path, list[str]]:
    """The first folder at or below ``root`` with more than one folder or with images, and its folders."""
    while True:
        folders = [entry.name for entry in visible(root) if entry.is_dir()]
        inner = [entry for entry in visible(root / folders[0]) if entry.is_dir()] if folders else []
        if len(folders) != 1 or folders == ["train"] or not inner or any(_images_beside(root)):
            return root, folders
        root = root / folders[0]


def _images_beside(folder: Path) -> Iterator[str]:
    """The images in ``folder`` itself."""
    for entry in visible(folder):
        if Path(entry.name).suffix.lower() in suffixes() and not entry.is_dir():
            yield entry.name


def _by_class(
    root: Path, folders: Sequence[str], below: str = ""
) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Class → its images, without classes that have none, which are noted; one warning counts other files."""
    found, others = {}, Counter[str]()
    for name in folders:
        path = f"{below}{name}"
        found[name] = sorted(images_in(str(root / path), path, frozenset(), others))
    warn_of(root, others, ())
    empty = [f"'{name}'" for name, paths in found.items() if not paths]
    note = f"left out, as there are no images in it: {elided(empty)}"
    return {name: paths for name, paths in found.items() if paths}, (note,) if empty else ()


def _in_parts(root: Path, folders: Sequence[str]) -> Folder:
    """The images of ``root/{train,val,test}/<class>/*``.

    Raises:
        BnewError: a part has two folders, or a class that train lacks.
    """
    files: dict[str, dict[str, list[str]]] = {}
    notes: list[str] = []
    used = set()
    for part in PARTS:
        folder = part_folder(root, part)
        if folder is None:
            continue
        used.add(folder)
        classes = [entry.name for entry in visible(root / folder) if entry.is_dir()]
        found, said = _by_class(root, classes, f"{folder}/")
        if found:
            files[part] = found
            notes += said
        else:
            notes.append(f"'{folder}' has no class folders with images and is left out")
    others = [f"'{name}'" for name in folders if name not in used]
    if others:
        notes.append(f"the folder{'s' if len(others) > 1 else ''} {elided(others)}, beside train, left out")
    train = files.get("train", {})
    for part, of in files.items():
        if strange := [f"'{name}'" for name in of if name not in train]:
            raise BnewError(
                f"in '{root}', {part} has a class {strange[0]} that train does not have: make them agree"
            )
        if lacking := [f"'{name}'" for name in train if name not in of]:
            raise BnewError(
                f"in '{root}', train has a class {lacking[0]} that {part} does not have: make them agree"
            )
    return Folder(root, files, True, tuple(notes))


def _checked(place: Path, found: Folder) -> Folder:
    """``found``, if something can be trained on it.

    Raises:
        BnewError: it cannot.
    """
    train = found.files.get("train", {})
    if not train:
        raise BnewError(f"'{place}' has no images in class folders: put them there as CLASS/*")
    if len(train) < 2:
        raise BnewError(f"'{place}' has the one class '{next(iter(train))}': add a folder for another")
    fewest = FEWEST - len(found.files) + 1
    if small := [f"'{name}' ({len(paths)})" for name, paths in train.items() if len(paths) < fewest]:
        raise BnewError(
            f"the class{'es' if len(small) > 1 else ''} {elided(small)} of '{place}' need at least {fewest} "
            "images to train, validate and test on: add some, or remove the folder"
        )
    return found


def typical_side(found: Folder) -> int:
    """The median of the images' shorter sides in pixels, of a sample; unreadable ones do not count.

    Raises:
        BnewError: none of the sample can be read.
    """
    paths = found.paths
    sides, why = [], ""
    for _, _, path in paths[:: max(1, len(paths) // SAMPLE)]:
        try:
            with (found.root / path).open("rb") as file, Image.open(file) as image:
                sides.append(min(image.size))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            what = "unknown format" if isinstance(error, UnidentifiedImageError) else first_line(error)
            why = why or f"'{found.root / path}': {what}"
    if not sides:
        raise BnewError(f"none of the images in '{found.root}' can be read (the first is {why})")
    return int(statistics.median(sides))
