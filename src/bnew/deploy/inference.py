"""Packed networks at work: ``bnew_engine`` behind the command line."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from bnew.data.images import read_image
from bnew.deploy.limits import BY_SIZE, Limits
from bnew.display import Shown
from bnew.errors import BnewError, is_whole
from bnew.process import cores
from bnew.text import printable

if TYPE_CHECKING:
    from bnew_engine import Model
    from torch import nn

Array = npt.NDArray[Any]


@contextmanager
def engine_errors() -> Iterator[None]:
    """Inside, what the engine refuses is a :class:`BnewError`, with limits named as on the command line."""
    from bnew_engine import EngineError

    try:
        yield
    except EngineError as error:
        message = str(error)
        for option in fields(Limits):
            message = message.replace(
                f"give a larger {option.name}", f"give a larger --{option.name.replace('_', '-')}"
            )
        raise BnewError(message) from error


def load_engine(path: str | Path, threads: int = 1, limits: Limits = BY_SIZE) -> Model:
    """The packed network, ready to run.

    Raises:
        BnewError: the engine is not installed; the file is missing, damaged or of another version, or asks
            for more than the limits.
    """
    try:
        import bnew_engine
    except ImportError as error:
        raise BnewError(
            f"packed networks run with bnew-engine, which is not installed ({error}): pip install ./engine "
            "in a checkout of bnew"
        ) from None
    if isinstance(path, str | Path) and Path(path).is_dir():
        raise BnewError(f"{path} is a folder, not a packed file: `bnew pack RUN FILE` makes one from a run's")
    with engine_errors():
        return bnew_engine.load(path, threads, max_macs=limits.max_macs, max_bytes=limits.max_bytes)


# What a prediction's line says of its shares, by their kind.
_SAID = {
    "softmax": "",
    "sigmoid": " (independent probabilities)",
    "logistic": " (an independent probability: the logistic function of the one output)",
}


@dataclass(frozen=True)
class Prediction:
    """An image's likeliest classes with their probabilities, the likeliest first.

    ``kind`` is ``bnew_engine.Model.output_kind``, which says what these are.
    """

    path: Path
    classes: tuple[tuple[str, float], ...]
    kind: str = "softmax"

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.classes)
        return printable(f"{self.path}: {shares}{_SAID[self.kind]}")


def predict(
    file: str | Path,
    images: str | Path | Iterable[str | Path],
    top: int = 5,
    threads: int = 1,
    limits: Limits = BY_SIZE,
    broken: list[BnewError] | None = None,
) -> list[Prediction]:
    """What a packed network takes each image for.

    An image is scaled until it just covers the network's input, or what the file says in its place, and its
    centre is taken, as in validation. A folder stands for all images in it and in the folders there, by name.

    Args:
        file: the packed network.
        images: image files and folders of them, or one.
        top: how many classes, the likeliest first.
        threads: how many threads compute.
        limits: the most that the file may ask for.
        broken: a list that gets the error of each image that cannot be read, which is skipped then.

    Raises:
        BnewError: see :func:`load_engine`; no image, or one that cannot be read, without ``broken``; a
            network without mean and std, that takes neither 1 nor 3 channels, or whose output is no
            probability of classes; ``top`` is below 1.
    """
    return list(predictions(file, images, top, threads, limits, broken))


def predictions(
    file: str | Path,
    images: str | Path | Iterable[str | Path],
    top: int = 5,
    threads: int = 1,
    limits: Limits = BY_SIZE,
    broken: list[BnewError] | None = None,
) -> Iterator[Prediction]:
    """:func:`predict`, one image after the other, as they are read."""
    paths = _files([images] if isinstance(images, str | Path) else images)
    if not is_whole(top) or top < 1:
        raise BnewError(f"top is {top!r}: give a whole number of at least 1")
    model = load_engine(file, threads, limits)
    channels, height, width = model.input_shape
    modes = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise BnewError(f"the network takes {channels} channels, but images have 1 or 3")
    with engine_errors():
        kind = model.output_kind
    for path in paths:
        try:
            image = read_image(path, modes[channels], (height, width), model.resize)
        except BnewError as error:
            if broken is None:
                raise
            broken.append(error)
            continue
        with engine_errors():
            (names,), (shares,) = model.predict(image, top)
        yield Prediction(path, tuple(zip(names, map(float, shares), strict=True)), kind)


def _files(images: Iterable[str | Path]) -> list[Path]:
    """The images, and those in the folders among them."""
    files = []
    for path in map(Path, images):
        if path.is_dir():
            from bnew.data.image_folder import list_images

            files += list_images(path)
        else:
            files.append(path)
    if not files:
        raise BnewError("no image was named: give one or more image files, or a folder of them")
    return files


@dataclass(frozen=True)
class Timing:
    """Median seconds for a batch of so many images on so many threads."""

    runtime: str
    threads: int
    batch: int
    seconds: float


@dataclass(frozen=True, repr=False)
class Timings(Shown):
    """What :func:`bench` measures; prints as a table."""

    rows: tuple[Timing, ...]

    def __rich__(self) -> Table:
        table = Table("", "threads", "images at once", "median ms", "images a second")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in self.rows:
            milliseconds, rate = f"{row.seconds * 1e3:.3f}", f"{row.batch / row.seconds:,.0f}"
            table.add_row(row.runtime, str(row.threads), str(row.batch), milliseconds, rate)
        return table


def bench(
    file: str | Path,
    threads: int = 0,
    batch: int = 64,
    model: nn.Module | None = None,
    seconds: float = 1.0,
    limits: Limits = BY_SIZE,
) -> Timings:
    """Median time for one image and for a batch, on one thread and on several.

    Args:
        file: the packed network.
        threads: how many several are; 0 is one a core.
        batch: how many images a batch has.
        model: the same network in PyTorch, to be timed beside it, in turns.
        seconds: about how long each size is measured.
        limits: the most that the file may ask for.

    Raises:
        BnewError: see :func:`load_engine`; an impossible number.
    """
    if threads < 0 or batch < 1:
        raise BnewError(f"threads is {threads} and batch {batch}: give 0 (one a core) or more, and 1 or more")
    rows = []
    for count in sorted({1, threads or cores()}):
        packed = load_engine(file, count, limits)
        for size in sorted({1, batch}):
            x = np.random.default_rng(0).standard_normal((size, *packed.input_shape), np.float32)
            contenders: dict[str, Callable[[], object]] = {f"bnew-engine, {packed.isa}": partial(packed, x)}
            if model is not None:
                contenders["PyTorch"] = _in_torch(model, x, count)
            for name, median in _medians(contenders, seconds).items():
                rows.append(Timing(name, count, size, median))
    return Timings(tuple(rows))


def _in_torch(model: nn.Module, x: Array, threads: int) -> Callable[[], object]:
    import torch

    images = torch.from_numpy(x)

    def run() -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            model(images)

    return run


def _medians(contenders: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median seconds of a call of each, in turns of many calls.

    A turn's first call does not count: threads have to be woken, and those of the one before fall asleep.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    while not all(times.values()) or time.perf_counter() < end:
        for name, run in contenders.items():
            run()
            turn = time.perf_counter() + min(seconds, 0.05)
            while not times[name] or time.perf_counter() < turn:
                begin = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(calls) for name, calls in times.items()}
