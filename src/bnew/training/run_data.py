"""The images that a run is evaluated on: its own or others, prepared as those that it was trained on.

Wherever images come from, the run's :class:`bnew.data.preparation.Preparation` applies: its mean and std, its
size, and its numbering of the classes. Of its own images, some were held out of training. In another folder,
nothing is held out: a part (train, val or test) is used whole, and so are class folders without a part.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bnew.data.batches import Dataset
from bnew.data.fingerprint import differences, short
from bnew.data.holdout import RULE
from bnew.data.image_folder import PARTS, ByClass, flattened, list_classes, part_folder, read_folder, warn_of
from bnew.data.images import suffixes
from bnew.data.in_memory import Augmentation, MemoryDataset, Split
from bnew.data.own import load_own
from bnew.data.preparation import Preparation
from bnew.data.sources import load
from bnew.data.streaming import Files, StreamedDataset
from bnew.errors import BnewError
from bnew.process import is_first_process
from bnew.recipe import Recipe
from bnew.references import check_apart, is_reference
from bnew.registry import dataset_row, dataset_to_load
from bnew.results.run import Run
from bnew.text import elided
from bnew.training.machine import Machine

logger = logging.getLogger("bnew")


def load_data(recipe: Recipe, machine: Machine, download: bool = True) -> Dataset:
    """The recipe's data set."""
    data: Dataset
    if is_reference(recipe.data):
        place, size = machine.data_path, recipe.image_size
        data = load_own(recipe.data, recipe.data_options, place, size, recipe.val_split)
    else:
        data = load(
            recipe.data,
            machine.data_path,
            image_size=recipe.image_size,
            workers=machine.readers,
            download=download,
            max_broken=machine.max_broken,
            val_split=recipe.val_split,
        )
    return data if recipe.augment is None else data.augmented(recipe.augment)


def hold_out_of(data: Dataset) -> dict[str, Any]:
    """What is held out of train in ``data``, and by which rule: plain data, stored with a run."""
    return {"rule": RULE, "parts": list(data.held_out)}


def check_hold_out(run: Run, data: Dataset, splits: Sequence[str] = ("val", "test")) -> None:
    """Check that what ``data`` holds out of train for ``splits`` was held out when ``run`` trained.

    Raises:
        BnewError: other images were: an earlier version had another rule, or the folder had other parts.
    """
    if run.begun and run.recipe.val_split != data.val_split:
        raise BnewError(
            f"{run.path} was trained with another share of the images held out for validation: give "
            f"{'no --val-split' if run.recipe.val_split is None else f'--val-split {run.recipe.val_split}'}"
        )
    held_out = [split for split in splits if split in data.held_out]
    if held_out and run.begun and run.hold_out != hold_out_of(data):
        why = (
            "the rule for what is held out of train has changed since"
            if run.hold_out is None or run.hold_out.get("rule") != RULE
            else "the folder had other parts then"
        )
        raise BnewError(
            f"{run.path} may have been trained on images that are now held out as {' and '.join(held_out)}, "
            f"as {why}: evaluate it on other images in a folder test, or train again"
        )


def check_finished(run: Run, machine: Machine) -> None:
    """Check that a finished run was trained on the images in its folder now, if there are any.

    Raises:
        BnewError: it was trained on others.
    """
    if run.fingerprint is None:
        return
    try:
        data = load_data(run.recipe, machine, download=False)
    except BnewError as error:
        logger.warning("%s is done, but its images cannot be checked: %s", run.path, error)
        return
    run.check_data(data.fingerprint, machine.data_path)


def preparation_of(run: Run, machine: Machine) -> Preparation:
    """How the images of ``run`` are prepared; if an earlier version did not record it, as its images say.

    Raises:
        BnewError: it is not recorded, and the images do not exist.
    """
    return run.preparation or _data_of_before(run, machine).preparation


def load_run_data(run: Run, machine: Machine, split: str = "test", download: bool = True) -> Dataset:
    """A data set with ``split`` for ``run``, prepared as the run requires.

    Without a ``machine.data_dir``, or with the run's own, these are the run's images. Of another folder, they
    are the images in its folder ``split`` (for test, val if there is no test), or in its class folders.

    Raises:
        BnewError: there is no such folder; it has classes that the run does not know, or lacks the split; or
            an earlier version did not record how the run's images were prepared.
    """
    check_apart((run.recipe.data,), run.path)
    preparation = run.preparation
    if preparation is None:
        data = _data_of_before(run, machine, download)
        check_hold_out(run, data, [split])
        return data
    is_own = machine.data_dir is None or _is_data_dir_of(run, machine)
    machine = replace(machine, data_dir=machine.data_dir or run.data_dir)
    root = _image_folder(run.recipe.data, machine.data_path, is_own)
    if root is None and not is_own:
        _check_can_hold(run.recipe.data, machine.data_path)
    if root is None or (is_own and (root / "train").is_dir()):
        data = load_data(run.recipe, machine, download and is_own)
        if _fits(data, preparation):
            check_hold_out(run, data, [split])
            _say_changes(run, data)
            return replace(data, mean=preparation.mean, std=preparation.std)
        if root is None:
            raise BnewError(
                f"{run.recipe.data} in '{machine.data_path}' has other classes or sizes than {run.path} was "
                "trained on: give the folder of the same data set as --data-dir"
            )
    folder = _folder_of(root, split, preparation.classes)
    if folder is not None:
        return _load_folder(root, folder, split, run.recipe.data, preparation, machine)
    with suppress(BnewError):
        data = load_data(run.recipe, machine, download=False)
        # The same fingerprint of the splits means that the same images are held out.
        if run.fingerprint is not None and short(data.fingerprint) == short(run.fingerprint):
            return replace(data, mean=preparation.mean, std=preparation.std)
    raise BnewError(
        f"'{root}' has no folder {split}, and not the images that {run.path} was trained on, of which some "
        f"were held out for {split}: give --split a folder that it has, or --data-dir class folders alone"
    )


def _data_of_before(run: Run, machine: Machine, download: bool = True) -> Dataset:
    """The data of a run for which an earlier version did not record how images were prepared."""
    place = replace(machine, data_dir=machine.data_dir or run.data_dir)
    elsewhere = run.data_dir is not None and not _is_data_dir_of(run, place)
    own_images = dataset_row(run.recipe.data).own_images
    if elsewhere:
        if own_images or _image_folder(run.recipe.data, place.data_path, is_own=False):
            raise BnewError(
                f"{run.path} is of an earlier version and does not record how its images were prepared: it "
                f"can be used only on those in '{run.data_dir}', so leave out --data-dir"
            )
        _check_can_hold(run.recipe.data, place.data_path)
    if own_images and is_first_process():
        logger.warning(
            "%s does not record how its images were prepared: mean, std and classes are those of the images "
            "in '%s', which must be those that it was trained on", run.path, place.data_path
        )  # fmt: skip
    return load_data(run.recipe, place, download)


def _is_data_dir_of(run: Run, machine: Machine) -> bool:
    return str(machine.data_path.resolve()) == run.data_dir


def _fits(data: Dataset, preparation: Preparation) -> bool:
    return (data.classes, data.image_size) == (preparation.classes, preparation.size)


def _say_changes(run: Run, data: Dataset) -> None:
    if run.fingerprint is None or not is_first_process():
        return
    if changes := differences(run.fingerprint, data.fingerprint):
        logger.warning("the images have changed since %s began: %s", run.path, ", ".join(changes))


# ---------------------------------------------------------------------- a folder of images


def _image_folder(name: str, place: Path, is_own: bool) -> Path | None:
    """The folder with the image files of data set ``name``; None if torchvision or scikit-learn has them.

    A folder that is not the run's own may hold images in place of the data set.
    """
    if dataset_row(name).own_images:
        return place
    if (place / name / "train").is_dir():
        return place / name
    parts = [alias for aliases in PARTS.values() for alias in aliases]
    has_images = any((place / part).is_dir() for part in parts) or any(
        path.suffix.lower() in suffixes() for path in place.glob("[!.]*/[!.]*")
    )
    return place if has_images and not is_own else None


def _check_can_hold(name: str, place: Path) -> None:
    """Check that data set ``name`` may be in the folder ``place``, which has no class folders.

    Raises:
        BnewError: there is no such folder, or the data set is never read from one.
    """
    if not place.is_dir():
        raise _no_folder(place)
    if not dataset_row(name).files:
        raise BnewError(
            f"'{place}' has no class folders with images, and {name} does not come from a folder: leave out "
            f"--data-dir for {name} itself, or give a folder of images as DIR/CLASS/*"
        )


def _no_folder(place: Path) -> BnewError:
    return BnewError(f"the data folder '{place}' does not exist: give --data-dir a folder of images")


def _folder_of(root: Path, split: str, classes: Sequence[str]) -> str | None:
    """The folder of ``split`` in ``root``, if there is one; "." if ``root`` has class folders and no parts.

    Raises:
        BnewError: there is no ``root``, no part to choose, or a part has two folders.
    """
    if not root.is_dir():
        raise _no_folder(root)
    folders = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    parts = {alias for aliases in PARTS.values() for alias in aliases}
    # A class may be called train, the vehicle.
    if not folders & parts or (folders <= set(classes) and not folders <= parts):
        if split != "test":
            raise BnewError(f"'{root}' has class folders, and no folder {split}: leave out --split")
        return "."
    return part_folder(root, split) or (part_folder(root, "val") if split == "test" else None)


def _listed(root: Path, folder: str, preparation: Preparation) -> tuple[ByClass, npt.NDArray[np.int64]]:
    """The images of the class folders in ``root / folder``, and the number of each of these classes.

    Raises:
        BnewError: a class is unknown to the network or has no images.
    """
    left_out: Counter[str] = Counter()
    by_class = list_classes(root, folder, left_out)
    where = root / folder
    unknown = [f"'{each}'" for each in by_class if each not in preparation.classes]
    if unknown:
        raise BnewError(
            f"'{where}' has class folders that the network does not know ({elided(unknown)}): rename or "
            f"remove them; it knows {elided(preparation.classes)}"
        )
    if is_first_process():
        warn_of(root, left_out, [])
        lacking = [each for each in preparation.classes if each not in by_class]
        without = f"; none of {elided(lacking)}" if lacking else ""
        count = sum(map(len, by_class.values()))
        logger.info("%s: %d images of %d of the network's classes%s", where, count, len(by_class), without)
    return by_class, np.array([preparation.classes.index(each) for each in by_class])


def labelled_files(
    root: Path, split: str, preparation: Preparation
) -> tuple[Path, list[Path], npt.NDArray[np.int64]]:
    """The folder of ``split`` in ``root``, the image files in its class folders, and each one's class.

    Raises:
        BnewError: there is no such folder, or a class in it is unknown to the network or has no images.
    """
    folder = _folder_of(root, split, preparation.classes)
    if folder is None:
        raise BnewError(
            f"'{root}' has no folder {split}: give --split a folder that it has, or --data-dir class folders "
            "alone"
        )
    by_class, numbers = _listed(root, folder, preparation)
    names, labels = flattened(by_class)
    return root / folder, [root / name for name in names], numbers[labels]


def _load_folder(
    root: Path, folder: str, split: str, name: str, preparation: Preparation, machine: Machine
) -> Dataset:
    """The images of the class folders in ``root / folder`` as ``split``; the other splits are empty.

    Raises:
        BnewError: a class is unknown to the run or has no images, or an image is broken.
    """
    by_class, numbers = _listed(root, folder, preparation)
    options: dict[str, Any] = {
        "name": name, "classes": preparation.classes, "mean": preparation.mean, "std": preparation.std,
    }  # fmt: skip
    channels, height, width = preparation.size
    row = dataset_to_load(name)
    mode = {1: "L", 3: "RGB"}.get(channels, row.mode) if is_reference(name) else row.mode
    if row.streamed:
        names, labels = flattened(by_class)
        files = Files(root, np.array([os.fsencode(path) for path in names]), numbers[labels])
        options |= {"splits": {split: files}, "max_broken": machine.max_broken}
        return StreamedDataset(**options, side=height, workers=machine.readers)
    read, _ = read_folder(root, {split: by_class}, mode, (height, width), machine.readers)
    images, of = read[split]
    whole = Split(images, torch.from_numpy(numbers)[of])
    options |= dict.fromkeys(("train", "val", "test"), whole[torch.arange(0)]) | {split: whole}
    return MemoryDataset(**options, augmentation=Augmentation(0, flip=False))
