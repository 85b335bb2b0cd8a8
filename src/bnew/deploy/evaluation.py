"""Evaluates a run, a packed file or a network on labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bnew.data.batches import Dataset
from bnew.data.preparation import Preparation
from bnew.deploy.batches import pair, run_engine
from bnew.deploy.inference import engine_errors, load_engine, read_files
from bnew.deploy.limits import BY_SIZE, Limits
from bnew.deploy.trained import as_run, trained
from bnew.errors import BnewError
from bnew.process import cores
from bnew.recipe import Recipe
from bnew.references import is_reference
from bnew.registry import dataset_row
from bnew.results.evaluation import Evaluation
from bnew.results.metrics import Tally
from bnew.results.run import Run
from bnew.text import elided
from bnew.training.evaluation import count_batches, evaluate_run, outputs
from bnew.training.machine import Machine
from bnew.training.run_data import labelled_files, load_data

if TYPE_CHECKING:
    from bnew_engine import Model

BATCH = 64  # images that the engine computes at once


def evaluate(
    network: nn.Module | Run | str | Path,
    data: Dataset | Iterable[tuple[Tensor, Tensor]] | str | None = None,
    *,
    split: str = "test",
    data_dir: str | Path | None = None,
    data_options: Mapping[str, Any] = MappingProxyType({}),
    classes: Sequence[str] | None = None,
    worst: int = 24,
    device: str = "auto",
    limits: Limits = BY_SIZE,
    broken: list[BnewError] | None = None,
) -> Evaluation:
    """Accuracy, loss, recall and precision of each class, and the worst mistakes, on labelled images.

    Args:
        network: a run or its folder, whose best weights are loaded; a packed file, which the engine runs; or
            a module, which is computed where its parameters are.
        data: batches (images as the network takes them, labels (N,)), such as a ``DataLoader``; a data set of
            bnew; or, for a packed file, the name of one or ``package.module:factory``. None: the run's own
            images; for a packed file, the folder ``data_dir``.
        split: train, val or test, of a data set.
        data_dir: folder of the data set. Of a folder of images, those in ``data_dir/split/<class>/*`` are
            used, or those in ``data_dir/<class>/*``.
        data_options: options of ``package.module:factory``.
        classes: names of the classes, for a module, or a file that has none. Default: those of the data, or
            ``class 0`` and so on.
        worst: how many of the worst mistakes to keep, with their pictures.
        device: cpu, cuda, mps or auto, for a run on its own images.
        limits: the most that a packed file may ask for.
        broken: a list. If it is given, image files that cannot be read are skipped, and their errors are
            appended to it; only for a packed file on a folder of images.

    Raises:
        BnewError: there is no such network, or there are no images for it; an image cannot be read; a label
            is no class of the network; an output is not finite.
    """
    place = Machine(data_dir=None if data_dir is None else str(data_dir), device=device)
    if isinstance(network, str | Path) and Path(network).is_file():
        return _of_file(Path(network), data, split, place, data_options, classes, worst, limits, broken)
    if isinstance(data, str):
        raise BnewError(
            f"data is '{data}', but a data set is named only for a packed file: leave it out, or give batches"
        )
    if not isinstance(network, nn.Module):
        run = as_run(network)
        if data is None:
            return evaluate_run(run, place, split, worst)
        module, prepared = trained(run, place)
        if isinstance(data, Dataset):
            data = _prepared_as(data, prepared, run.path)
        return _on_batches(module, run.path, data, split, prepared.classes, worst)
    if data is None:
        raise BnewError("a module is evaluated on images: give data, batches of images and labels")
    return _on_batches(network, type(network).__name__, data, split, classes, worst)


def _on_batches(
    model: nn.Module,
    name: object,
    data: Dataset | Iterable[tuple[Tensor, Tensor]],
    split: str,
    classes: Sequence[str] | None,
    worst: int,
) -> Evaluation:
    """:func:`evaluate` of a module."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    batches = data.batches(split, train=False) if isinstance(data, Dataset) else data
    found = outputs(model, ((x.to(device), y) for x, y in map(pair, batches)))
    return _counted(found, name, data, split, classes, worst)


def _prepared_as(data: Dataset, prepared: Preparation, network: Path) -> Dataset:
    """``data`` with mean and std of the network.

    Raises:
        BnewError: its images have another size than the network's, or other classes.
    """
    if (data.image_size, data.classes) != (prepared.size, prepared.classes):
        raise BnewError(
            f"{network} takes images of {'×'.join(map(str, prepared.size))} and has the classes "
            f"{elided(prepared.classes)}, but {data.name} has {'×'.join(map(str, data.image_size))} and "
            f"{elided(data.classes)}: give the data set that it was trained for"
        )
    return replace(data, mean=prepared.mean, std=prepared.std)


def _counted(
    found: Iterator[tuple[Tensor, ...]],
    name: object,
    data: object,
    split: str,
    classes: Sequence[str] | None,
    worst: int,
    kind: str = "numbers",
) -> Evaluation:
    """The evaluation of images, outputs of ``kind`` and labels.

    Raises:
        BnewError: there are none, or not as many numbers for an image as classes.
    """
    known = data if isinstance(data, Dataset) else None
    what = f"{known.name}, {split}" if known else "batches"
    first = next(found, None)
    if first is None:
        raise BnewError(f"{name} cannot be evaluated: there are no images ({what})")
    if first[1].ndim != 2:
        raise BnewError(
            f"{name} returns {tuple(first[1].shape)}, but must return a number for each class of an image"
        )
    count = first[1].shape[1]
    names = tuple(classes or (known.classes if known else (f"class {i}" for i in range(count))))
    if len(names) != count:
        raise BnewError(f"{name} returns {count} numbers for an image, but there are {len(names)} classes")
    tally = Tally(count, kind, worst)
    count_batches(tally, chain([first], found), known.preparation if known else None)
    unreadable = known.counts[split] - tally.images if known else 0
    return Evaluation.of(tally, name, what, names, unreadable)


# ---------------------------------------------------------------------- a packed file


def _of_file(
    file: Path,
    data: Dataset | Iterable[tuple[Tensor, Tensor]] | str | None,
    split: str,
    place: Machine,
    options: Mapping[str, Any],
    classes: Sequence[str] | None,
    worst: int,
    limits: Limits,
    broken: list[BnewError] | None,
) -> Evaluation:
    """:func:`evaluate` of a packed file."""
    model = load_engine(file, cores(), limits)
    if len(model.inputs) > 1:
        raise BnewError(f"{file} takes several inputs, and is evaluated on images of one: use bnew.verify")
    kind = _kind_of(model)
    if data is None or (isinstance(data, str) and _is_folder(data)):
        if place.data_dir is None:
            raise BnewError(
                f"{file} holds no images: give --data-dir a folder of images as DIR/test/<class>/* or "
                "DIR/<class>/*, or --data the name of a data set"
            )
        return _on_files(
            model, file, kind, split, _prepared(model, file, classes), place.data_path, worst, broken
        )
    if isinstance(data, str):
        height, width = model.input_shape[1:]
        size = height if height == width else None
        data = load_data(Recipe(data=data, data_options=options, image_size=size), place)
    if isinstance(data, Dataset):
        data = _prepared_as(data, _prepared(model, file, classes or data.classes), file)
    batches = data.batches(split, train=False) if isinstance(data, Dataset) else map(pair, data)
    found = ((x, torch.from_numpy(run_engine(model, x)), y) for x, y in batches)
    return _counted(found, file, data, split, model.classes or classes, worst, kind)


def _is_folder(name: str) -> bool:
    """Whether the data set ``name`` is a user's own folder of images."""
    return not is_reference(name) and dataset_row(name).own_images


def _kind_of(model: Model) -> str:
    """What its outputs are, as :class:`Tally` names it.

    Raises:
        BnewError: they are no classes, or there is one class only.
    """
    with engine_errors():
        kind = model._kind  # unlike output_kind, it tells a softmax in the graph from one that predict adds
    return {"softmax": "numbers", "own softmax": "softmax"}.get(kind, "sigmoid")


def _prepared(model: Model, file: Path, classes: Sequence[str] | None) -> Preparation:
    """How the file's images are prepared.

    Raises:
        BnewError: the file does not say, or has no names of classes and ``classes`` is None.
    """
    names = model.classes or classes
    if model.mean is None or model.std is None or not names:
        what = "names of classes" if not names else "mean and std of images"
        raise BnewError(f"{file} has no {what}: pack it with mean=, std= and classes=, or give batches")
    return Preparation(tuple(names), model.input_shape, model.mean, model.std, model.resize)


def _on_files(
    model: Model,
    file: Path,
    kind: str,
    split: str,
    prepared: Preparation,
    root: Path,
    worst: int,
    broken: list[BnewError] | None,
) -> Evaluation:
    """The evaluation on a folder of images, read and computed as :func:`bnew.predict` does it."""
    folder, files, labels = labelled_files(root, split, prepared)
    label_of = dict(zip(files, labels.tolist(), strict=True))
    tally = Tally(prepared.num_classes, kind, worst)
    for paths, pixels in read_files(model, files, BATCH, broken):
        with engine_errors():
            found = model(pixels)
        tally.add(found, np.array([label_of[path] for path in paths]), pixels.__getitem__, paths)
    return Evaluation.of(tally, file, str(folder), prepared.classes, len(files) - tally.images)
