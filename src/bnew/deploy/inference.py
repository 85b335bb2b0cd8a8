"""Runs and times packed networks with ``bnew_engine``."""

from __future__ import annotations

import glob
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from bnew.data.images import read_image
from bnew.deploy.limits import BY_SIZE, Limits, check_revision
from bnew.display import Shown, new_table
from bnew.errors import BnewError, is_whole
from bnew.process import cores
from bnew.text import percent, printable

if TYPE_CHECKING:
    from bnew_engine import Model
    from torch import nn

Array = npt.NDArray[Any]


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turn the engine's errors into :class:`BnewError`, with limits named as on the command line."""
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


def load_engine(
    path: str | Path, threads: int = 1, limits: Limits = BY_SIZE, input_size: tuple[int, int] | None = None
) -> Model:
    """The packed network, ready to run for images of ``input_size``, by default that of the file.

    Raises:
        BnewError: the engine is not installed, or an older build; the file is missing, damaged or of another
            version, asks for more than the limits, or does not run for images of this size.
    """
    try:
        import bnew_engine
    except ImportError as error:
        raise BnewError(
            f"packed networks run with bnew-engine, which is not installed ({error}): pip install ./engine "
            "in a checkout of bnew"
        ) from None
    check_revision(bnew_engine)
    if isinstance(path, str | Path) and Path(path).is_dir():
        raise BnewError(f"{path} is a folder, not a packed file: `bnew pack RUN FILE` makes one from a run's")
    with engine_errors():
        return bnew_engine.load(
            path, threads, max_macs=limits.max_macs, max_bytes=limits.max_bytes, input_size=input_size
        )


_MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels
# What the line of a prediction says about its probabilities, by their kind.
_SAID = {
    "softmax": "",
    "sigmoid": " (independent probabilities)",
    "logistic": " (an independent probability: the logistic function of the one output)",
}


@dataclass(frozen=True)
class Prediction:
    """An image's likeliest classes with their probabilities, the likeliest first.

    ``kind`` is ``bnew_engine.Model.output_kind``: how the probabilities follow from the network's output.
    """

    path: Path
    classes: tuple[tuple[str, float], ...]
    kind: str = "softmax"

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {percent(share, 1)}" for name, share in self.classes)
        return printable(f"{self.path}: {shares}{_SAID[self.kind]}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        classes = [{"class": name, "probability": share} for name, share in self.classes]
        return {"file": str(self.path), "kind": self.kind, "classes": classes}

    def to_row(self) -> dict[str, Any]:
        """A row of a table: ``file``, ``class_1``, ``probability_1``, ``class_2`` and so on."""
        row: dict[str, Any] = {"file": printable(self.path)}
        for rank, (name, share) in enumerate(self.classes, 1):
            row |= {f"class_{rank}": printable(name), f"probability_{rank}": share}
        return row


def predict(
    file: str | Path,
    images: str | Path | Iterable[str | Path],
    top: int = 5,
    threads: int = 1,
    limits: Limits = BY_SIZE,
    broken: list[BnewError] | None = None,
    batch: int = 1,
    input_size: tuple[int, int] | None = None,
) -> list[Prediction]:
    """Classify images with a packed network.

    As in validation, an image is scaled until it just covers the file's ``resize`` (by default the network's
    input), and its centre is cropped to the input. A folder stands for all images in it, at any depth,
    sorted by name. A name with ``*``, ``?`` or ``[…]`` that is no file stands for all files that fit, sorted;
    ``**`` fits any folders.

    Args:
        file: the packed network.
        images: one image file, folder of images or pattern, or several.
        top: the number of classes to return for each image.
        threads: the number of threads.
        limits: the most that the file may ask for.
        broken: a list. If it is given, images that cannot be read are skipped, and their errors are appended
            to it.
        batch: how many images are read and computed at once. The result does not depend on it.
        input_size: (height, width) of the network's input, for a file of any size. None: the file's own.

    Returns:
        A prediction for each image, in the order of ``images``.

    Raises:
        BnewError: see :func:`load_engine`; there is no image; an image cannot be read and ``broken`` is None;
            the network has no mean and std, takes neither 1 nor 3 channels, takes several inputs, or its
            output is no probability of classes; ``top`` or ``batch`` is below 1.
    """
    return list(predictions(file, images, top, threads, limits, broken, batch, input_size))


def predictions(
    file: str | Path,
    images: str | Path | Iterable[str | Path],
    top: int = 5,
    threads: int = 1,
    limits: Limits = BY_SIZE,
    broken: list[BnewError] | None = None,
    batch: int = 1,
    input_size: tuple[int, int] | None = None,
) -> Iterator[Prediction]:
    """:func:`predict` as a generator: each prediction comes as soon as its batch is computed."""
    paths = image_files([images] if isinstance(images, str | Path) else images)
    for name, value in (("top", top), ("batch", batch)):
        if not is_whole(value) or value < 1:
            raise BnewError(f"{name} is {value!r}: give a whole number of at least 1")
    model = load_engine(file, threads, limits, input_size)
    with engine_errors():
        kind = model.output_kind
    for read, pixels in read_files(model, paths, batch, broken):
        with engine_errors():
            names, shares = model.predict(pixels, top)
        for path, *likeliest in zip(read, names, shares.tolist(), strict=True):
            yield Prediction(path, tuple(zip(*likeliest, strict=True)), kind)


def read_files(
    model: Model, paths: Sequence[Path], batch: int, broken: list[BnewError] | None = None
) -> Iterator[tuple[list[Path], npt.NDArray[np.uint8]]]:
    """Image files as ``model`` takes them: the paths of a batch, and uint8 (N, H, W, C).

    Files that cannot be read are left out of their batch, and their errors are appended to ``broken``.

    Raises:
        BnewError: the network takes no images; or a file cannot be read and ``broken`` is None, after the
            files before it.
    """
    with engine_errors():
        channels, *size = model.input_shape
    if channels not in _MODES:
        raise BnewError(f"the network takes {channels} channels, but images have 1 or 3")

    def read(path: Path) -> npt.NDArray[np.uint8] | BnewError:
        try:
            return read_image(path, _MODES[channels], (size[0], size[1]), model.resize)
        except BnewError as error:
            return error

    with ThreadPoolExecutor(min(batch, cores())) as pool:
        for start in range(0, len(paths), batch):
            part, images, failed = [], [], None
            for path, found in zip(
                paths[start : start + batch], pool.map(read, paths[start : start + batch]), strict=True
            ):
                if not isinstance(found, BnewError):
                    part.append(path)
                    images.append(found)
                elif broken is None:
                    failed = found
                    break
                else:
                    broken.append(found)
            if part:
                yield part, np.stack(images)
            if failed is not None:
                raise failed


def image_files(images: Iterable[str | Path]) -> list[Path]:
    """The image files, with each folder replaced by the images in it, and each pattern by what fits.

    Raises:
        BnewError: there are none, or none for a folder or a pattern.
    """
    files: list[Path] = []
    for path in map(Path, images):
        if path.is_dir():
            from bnew.data.image_folder import list_images

            files += list_images(path)
        elif set("*?[") & set(str(path)) and not path.exists():
            found = sorted(
                Path(each) for each in glob.glob(str(path), recursive=True) if not Path(each).is_dir()
            )
            if not found:
                raise BnewError(f"there is no image '{path}', and no file that fits this pattern")
            files += found
        else:
            files.append(path)
    if not files:
        raise BnewError("no image was named: give one or more image files, or a folder of them")
    return files


@dataclass(frozen=True)
class Timing:
    """Median seconds for one batch of ``batch`` images on ``threads`` threads."""

    runtime: str
    threads: int
    batch: int
    seconds: float


@dataclass(frozen=True, repr=False)
class Timings(Shown):
    """The result of :func:`bench`; prints as a table."""

    rows: tuple[Timing, ...]

    def __rich__(self) -> Table:
        table = new_table("", numbers=("threads", "images at once", "median ms", "images a second"))
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
    input_size: tuple[int, int] | None = None,
) -> Timings:
    """Measure the median time for one image and for a batch, on one thread and on ``threads`` threads.

    Args:
        file: the packed network.
        threads: the number of threads; 0: one per core.
        batch: the number of images in a batch.
        model: the same network in PyTorch, timed in turns with the packed one.
        seconds: the time to measure each combination, about.
        limits: the most that the file may ask for.
        input_size: (height, width) of the images, for a file of any size. None: the file's own.

    Raises:
        BnewError: see :func:`load_engine`; ``threads`` is negative, or ``batch`` below 1.
    """
    if threads < 0 or batch < 1:
        raise BnewError(
            f"threads is {threads} and batch {batch}: give 0 (one per core) or more, and 1 or more"
        )
    rows = []
    for count in sorted({1, threads or cores()}):
        packed = load_engine(file, count, limits, input_size)
        for size in sorted({1, batch}):
            random = np.random.default_rng(0)
            x = [random.standard_normal((size, *one.size), np.float32) for one in packed.inputs]
            contenders: dict[str, Callable[[], object]] = {f"bnew-engine, {packed.isa}": partial(packed, *x)}
            if model is not None:
                contenders["PyTorch"] = in_torch(model, *x, threads=count)
            for name, median in medians(contenders, seconds).items():
                rows.append(Timing(name, count, size, median))
    return Timings(tuple(rows))


def in_torch(model: nn.Module, *x: Array, threads: int) -> Callable[[], object]:
    """A call of ``model`` on a batch of each input, on so many threads."""
    import torch

    images = [torch.from_numpy(each) for each in x]

    def run() -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            model(*images)

    return run


def medians(
    contenders: Mapping[str, Callable[[], object]],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Name → median seconds of a call. The contenders take turns of many calls.

    The first call of a turn does not count: it has to wake its threads while the others fall asleep.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    while not all(times.values()) or time.perf_counter() < end:
        for name, run in contenders.items():
            run()
            turn = time.perf_counter() + min(seconds, 0.05)
            while not times[name] or time.perf_counter() < turn:
                begin = clock()
                run()
                times[name].append(clock() - begin)
    return {name: statistics.median(calls) for name, calls in times.items()}
