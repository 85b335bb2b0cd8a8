"""Verifies that a packed file is the network that was trained: compares both on real images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Group
from rich.text import Text
from torch import Tensor, nn

from bnew.data.batches import Dataset
from bnew.deploy.agreement import Comparison, ResultCheck, by_name, shapes
from bnew.deploy.batches import (
    Images,
    arrays,
    check_images,
    first,
    pair,
    run_engine,
    run_model,
    tensors,
)
from bnew.deploy.c99.network import FixedCheck, FixedNetwork
from bnew.deploy.c99.sample import validation_images
from bnew.deploy.inference import engine_errors, load_engine
from bnew.deploy.limits import BY_SIZE, Limits
from bnew.deploy.trained import as_run, load
from bnew.deploy.watching import aligned, paired, watching
from bnew.display import Shown, new_table
from bnew.errors import BnewError
from bnew.packing.file import PackedFile
from bnew.packing.rows import Takes
from bnew.packing.vocabulary import OPERATORS
from bnew.process import cores
from bnew.results.run import Run
from bnew.text import percent, printable
from bnew.training.evaluation import load_run
from bnew.training.machine import Machine

if TYPE_CHECKING:
    from bnew_engine import Model

Array = npt.NDArray[Any]

# The largest effect of rounding on a real value, as a share of its layer's root mean square. False: real
# numbers are stored as float32; True: as float16.
_ROUNDING = {False: 1e-4, True: 5e-2}
# The share of images whose class may change by rounding.
_DISAGREEMENT = {False: 0.01, True: 0.05}


# What is said of images that differ in :attr:`ResultCheck.what`.
DIFFERS = {
    "class": "get another class",
    "channel": "have the greatest number in another channel",
    "number": "get another number",
}


@dataclass(frozen=True)
class LayerCheck:
    """The comparison of a binary layer.

    ``integers`` results were compared, computed from the same signs as in PyTorch; ``wrong`` of them differ.
    ``signs`` input signs were compared in a run of the whole network; ``flipped`` of them differ.
    """

    name: str
    integers: int
    wrong: int
    signs: int
    flipped: int


@dataclass(frozen=True, repr=False)
class Verification(Shown):
    """The result of :func:`verify`; prints as tables, and is true if the file is the network."""

    layers: tuple[LayerCheck, ...]
    sample: int
    unflipped: int  # images of the sample without a flipped sign, whose results are compared strictly
    images: int
    hits: tuple[int, int] | None  # correct classes by PyTorch and by the packed network, of a classifier
    results: tuple[ResultCheck, ...]
    problems: tuple[str, ...]
    """What is wrong, one sentence per problem; empty if the file is the network."""
    fixed: FixedCheck | None = None
    """What 16-bit fixed point changes, if that was asked for."""

    def __bool__(self) -> bool:
        return self.ok

    @property
    def ok(self) -> bool:
        """Whether the file is the network that it was packed from."""
        return not self.problems

    def __rich__(self) -> Group:
        counts = ("integers", "wrong", "signs", "flipped by rounding")
        layers = new_table("layer", numbers=counts, title=f"binary layers, {self.sample} images")
        for layer in self.layers:
            numbers = (layer.integers, layer.wrong, layer.signs, layer.flipped)
            layers.add_row(Text(printable(layer.name)), *(f"{number:,}" for number in numbers))
        classifies = self.results[0].what == "class"
        columns = ("same class" if classifies else "same", "median", "largest", "strictly")
        results = new_table(
            "", numbers=columns, title=f"differences of the results of {self.images:,} images"
        )
        for result in self.results:
            same = "" if result.others is None else percent(1 - result.others / self.images)
            if same and not classifies:
                same += f" of {result.what}s"
            strict = "" if result.strict_difference is None else f"{result.strict_difference:.2g}"
            median, most = f"{result.median_difference:.2g}", f"{result.max_difference:.2g}"
            results.add_row(Text(printable(result.name)), same, median, most, strict)
        notes = [
            f"strictly: {self.unflipped} of {self.sample} images without a flipped sign, relative to the "
            "root mean square"
        ]
        if any(result.what == "channel" and result.others is not None for result in self.results):
            notes.append("same channels: where the greatest number is in the same channel, at each place")
        if self.hits:
            accuracies = [percent(hits / self.images) for hits in self.hits]
            notes.append(f"accuracy: {accuracies[0]} in PyTorch, {accuracies[1]} packed")
        if self.fixed:
            notes.append(str(self.fixed))
        verdict = [Text(printable(f"wrong: {problem}")) for problem in self.problems] or [
            Text("the file is the network")
        ]
        return Group(layers, results, *map(Text, notes), *verdict)


def verify_run(
    file: str | Path, run: Run, machine: Machine, limits: Limits = BY_SIZE, fixed: bool = False
) -> Verification:
    """:func:`verify` a packed file against the best weights of the run that it was packed from.

    With ``fixed``, 16-bit fixed point is measured too, with ranges of the run's validation images.

    Raises:
        BnewError: there is no such run; see :func:`verify`.
    """
    sample = validation_images(run, machine) if fixed else None
    return verify(file, *load_run(run, machine), limits=limits, fixed=sample)


def most_disagreements(share: float, images: int) -> float:
    """The most of ``images`` that may get another class: the ``share`` plus three standard deviations."""
    expected = share * images
    return max(1.0, expected + 3 * math.sqrt(expected))


@torch.no_grad()
def verify(
    file: str | Path,
    model: nn.Module | Run | str | Path,
    data: Dataset | Iterable[tuple[Images, Tensor]] | None = None,
    sample: int = 16,
    limits: Limits = BY_SIZE,
    fixed: npt.NDArray[np.uint8] | None = None,
) -> Verification:
    """Compare a packed file with the network that it was packed from.

    The network may return one tensor, or several in a tuple or a dict. The first images are compared layer by
    layer, and all images by every result. These are problems:

    * A binary layer returns another integer than PyTorch for the same signs.
    * Rounding cannot explain a flipped sign. The packed network rounds sums in another order, so a value near
      0 may get another sign, and all values after it may differ too. In the first layer of an image that has
      flipped signs, the values must therefore be smaller than 0.0001 times the layer's root mean square
      (0.05 if real numbers are stored as float16).
    * A result of an image without any flipped sign differs by more than that share of the result's root mean
      square.
    * More than p n + 3 √(p n) of n images get another class, with p = 1 % (5 % with float16). Of a result
      that is no classifier's, it is the channel of the greatest number; where there are several places, as in
      segmentation, an image counts by the share of its places.
    * Of a classifier, which returns (N, classes) alone, d images get another class, and the numbers of
      correct classes differ by more than 3 √d. Both allow three standard deviations.

    Args:
        file: the packed file.
        model: the network with the weights that were packed, on the CPU, in eval mode; or a run or its
            folder, which :func:`bnew.load` loads.
        data: batches (images as the model takes them, labels (N,)), such as a ``DataLoader``; the labels may
            be anything if the network is no classifier. For a model of several inputs, the images are a tuple
            of tensors or a dict by their names. Or a data set of bnew, for its test images. None: the test
            images of the run.
        sample: how many images of the first batch are compared layer by layer.
        limits: the most that the file may ask for.
        fixed: images (N, H, W, C) of bytes, as :func:`bnew.export_c` takes them: the network is computed in
            16-bit fixed point too, and what that changes is part of the comparison.

    Returns:
        The comparison and its problems. If there is a problem, the result and its ``ok`` are false.

    Raises:
        BnewError: the engine is not installed, the file is for another network or other data, the model is
            in training mode, or there are no images.
    """
    if not isinstance(model, nn.Module):
        if data is None:
            return verify(file, *load_run(as_run(model), Machine(device="cpu")), sample, limits, fixed)
        model = load(model)
    if data is None:
        raise BnewError("verify needs images: give data, batches of images and labels, or a run as model")
    if model.training:
        raise BnewError("the model is in training mode, in which it is another function: call model.eval()")
    packed = PackedFile.read(file)
    engine = load_engine(file, cores(), limits)
    if isinstance(data, Dataset):
        _check_data(file, packed, engine, data)
        data = data.batches("test", train=False)
    tolerance = _ROUNDING[packed.half]
    changed = None if fixed is None else FixedCheck(FixedNetwork(file, fixed))
    compared: dict[str, Comparison] = {}
    images, hits = 0, (0, 0)
    for batch in data:
        x, _ = pair(batch, labelled=False, several=True)
        count = len(tensors(x)[0])
        if not compared:
            _check_shapes(file, engine, model, x)
            sample = min(sample, count)
            layers, unflipped, compared, problems = _compare_sample(
                engine, model, first(x, sample), tolerance
            )
        ours, theirs = by_name(run_model(model, x)), by_name(run_engine(engine, x))
        for name, comparison in compared.items():
            comparison.add(ours[name], theirs[name])
        images += count
        if "" in ours and ours[""].ndim == 2:
            _, labels = pair(batch, several=True)
            right = [_count_right(each[""], labels) for each in (ours, theirs)]
            hits = hits[0] + right[0], hits[1] + right[1]
        if changed:
            changed.add(x.numpy(), theirs[""], batch[1])
    if not compared:
        raise BnewError("verify needs images, but data has no batch")
    results = tuple(comparison.result() for comparison in compared.values())
    share = _DISAGREEMENT[packed.half]
    for result in results:
        if result.others is not None and result.others > most_disagreements(share, images):
            problems.append(
                f"{result.name}: {percent(result.others / images)} of {images:,} images "
                f"{DIFFERS[result.what]}, more than {percent(share, 0)} explains"
            )
    is_classifier = results[0].name == "logits"
    if is_classifier and abs(hits[0] - hits[1]) > 3 * (results[0].others or 0) ** 0.5:
        problems.append(
            f"{hits[0]:,} images are right with PyTorch and {hits[1]:,} packed: more than by chance"
        )
    return Verification(
        layers=tuple(layers),
        sample=sample,
        unflipped=unflipped,
        images=images,
        hits=hits if is_classifier else None,
        results=results,
        problems=tuple(problems),
        fixed=changed,
    )


def _count_right(logits: Array, labels: Tensor) -> int:
    """How many images get the class of their label.

    Raises:
        BnewError: the labels are not one number for each image.
    """
    if labels.shape != logits.shape[:1]:
        raise BnewError(
            f"the labels have shape {tuple(labels.shape)}, but must be one number for each of {len(logits)} "
            "images"
        )
    return int((logits.argmax(1) == labels.numpy()).sum())


def _check_data(file: str | Path, packed: PackedFile, engine: Model, data: Dataset) -> None:
    """Check that the file has the image size, the classes, and the mean and std of ``data``."""
    if engine.input_shape != data.image_size or (engine.classes or data.classes) != data.classes:
        raise BnewError(
            f"{file} takes images of {engine.input_shape} and has {packed.output_shape[0]} classes, but "
            f"{data.name} has {data.image_size} and {data.num_classes}: give the run that it was packed from"
        )
    if engine.mean is not None and (engine.mean, engine.std) != (data.mean, data.std):
        raise BnewError(
            f"{file} normalises images by mean {list(engine.mean)} and std {list(engine.std or ())}, but "
            f"{data.name} has {list(data.mean)} and {list(data.std)}: pack the run again"
        )


def _check_shapes(file: str | Path, engine: Model, model: nn.Module, images: Images) -> None:
    """Check that the file takes ``images``, and that its results have the model's names and shapes."""
    check_images(file, engine, images)
    one = first(images, 1)
    ours, theirs = shapes(by_name(run_model(model, one))), shapes(by_name(run_engine(engine, one)))
    if ours != theirs:
        raise BnewError(
            f"{file} returns {theirs} numbers for an image and the model {ours}: give the model of the file"
        )


def _compare_sample(
    engine: Model, model: nn.Module, images: Images, tolerance: float
) -> tuple[list[LayerCheck], int, dict[str, Comparison], list[str]]:
    """The comparison of every binary layer and, begun, of every result.

    Returns also the number of images without a flipped sign, and the problems.
    """
    count = len(tensors(images)[0])
    with watching(model, count) as seen:
        ours = by_name(run_model(model, images))
    binary = [node for node in engine.graph["nodes"] if OPERATORS[node["op"]].takes is Takes.BITS]
    with engine_errors():
        values = engine.values(arrays(images))
    layers, problems = [], []
    same = np.ones(count, bool)  # images without a flipped sign so far
    for nodes, layer in paired(binary, seen):
        name, stored = nodes[0]["name"], values[nodes[0]["input"]]
        with engine_errors():
            parts = [engine.convolve(node["name"], layer.signs.reshape(stored.shape)) for node in nodes]
        wrong = int(np.count_nonzero(layer.whole(parts) != layer.integers))
        flipped = (aligned(stored, layer.signs) if layer.tokens else stored) != layer.signs
        if wrong:
            problems.append(f"layer '{name}' gives {wrong:,} other integers than PyTorch for the same signs")
        first = flipped & same[:, None, None, None]
        size = float(np.sqrt(np.mean(np.square(layer.values))))
        far = np.count_nonzero(~(np.abs(layer.values[first]) <= tolerance * size))  # NaN is far
        if far:
            problems.append(f"layer '{name}' gets {far:,} other signs where rounding cannot be the reason")
        same &= ~flipped.any((1, 2, 3))
        layers.append(
            LayerCheck(name, layer.integers.size, wrong, layer.signs.size, int(np.count_nonzero(flipped)))
        )
    theirs = by_name(run_engine(engine, images))
    compared = {name: Comparison(name, each, theirs[name], same) for name, each in ours.items()}
    for comparison in compared.values():
        strict = comparison.strict_difference
        if strict is not None and not strict <= tolerance:  # NaN is more
            problems.append(
                f"{comparison.name}: an image without a flipped sign differs by {strict:.2g} of the root "
                "mean square, more than rounding"
            )
    return layers, int(same.sum()), compared, problems
