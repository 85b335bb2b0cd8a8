"""How fast images are read and augmented on one core: written to docs/results/data.md.

python benchmarks/data.py DIR     (an image folder with train/CLASS/*; noise without one)

Each way reads the same files, crops them at random to 224×224, flips, and makes a float32 tensor that is
normalised. They take turns, round by round, each on one thread of one process; times are of the processor, so
that other programs do not count.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import PIL
import torch
import torchvision
import tyro
from PIL import Image, features
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from bnew.data.sources import load
from bnew.data.streaming import MEAN, STD, StreamedBatches, StreamedDataset, _Reader
from bnew.training.provenance import cpu_name
from comparing import spread, table

SIDE, BATCH = 224, 50


# torchvision as most research code has it: Pillow's images through these, one by one.
PLAIN = transforms.Compose(
    [
        transforms.RandomResizedCrop(SIDE, scale=(0.08, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)


def plain(files: list[Path]) -> Callable[[], float]:
    """Seconds to read all files and make batches of them."""

    def run() -> float:
        began = time.process_time()
        for first in range(0, len(files), BATCH):
            images = []
            for path in files[first : first + BATCH]:
                with Image.open(path) as image:
                    images.append(PLAIN(image.convert("RGB")))
            torch.stack(images)
        return time.process_time() - began

    return run


def ours(dataset: StreamedDataset) -> Callable[[], float]:
    """What one of bnew's reading processes does, and what is left for the training process."""
    batches = dataset.batches("train", BATCH, train=True)
    assert isinstance(batches, StreamedBatches)
    reader = _Reader(batches.files, SIDE, True, None, 0, 0)
    order = list(range(len(batches.files)))

    def run() -> float:
        began = time.process_time()
        for first in range(0, len(order), BATCH):
            batches._on_device(reader[(0, order[first : first + BATCH])])
        return time.process_time() - began

    return run


def loaders(folder: Path, workers: int) -> dict[str, Callable[[], int]]:
    """Whole loaders with so many reading processes; each call is an epoch, of so many images."""
    plain_loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        ImageFolder(str(folder / "train"), PLAIN),
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
    )
    dataset = load("imagenet", folder, image_size=SIDE, workers=workers)
    streamed = dataset.batches("train", BATCH, train=True)
    return {
        "plain": lambda: sum(len(y) for _, y in plain_loader),
        "bnew": lambda: sum(len(y) for _, y in streamed.epoch(0)),
    }


def photographs(folder: Path, size: tuple[int, int], files: list[Path]) -> Path:
    """``files`` as JPEG of ``size``, in an image folder; without files, smooth noise in their place."""
    rng = np.random.default_rng(0)
    for i in range(max(len(files), 200)):
        path = folder / "train" / f"class{i % 2}" / f"{i:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if files:
            image = Image.open(files[i % len(files)]).convert("RGB")
        else:
            image = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        image.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


def measure(folder: Path, rounds: int) -> list[tuple[str, ...]]:
    """Rows of the table for the images of ``folder``."""
    dataset = load("imagenet", folder, image_size=SIDE, workers=1)
    assert isinstance(dataset, StreamedDataset)
    files = [dataset.splits["train"].path(i) for i in range(len(dataset.splits["train"]))]
    ways = {"plain torchvision with Pillow": plain(files), "bnew": ours(dataset)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            times[name].append(run())
    first, *_ = ways
    return [
        (
            name,
            f"{len(files) / statistics.median(of[1:]):.0f}",
            spread([b / a for a, b in zip(of[1:], times[first][1:], strict=True)], 2),
        )
        for name, of in times.items()
    ]


def measure_loaders(folder: Path, workers: int, rounds: int) -> list[tuple[str, ...]]:
    """Rows of the table for whole loaders."""
    ways = loaders(folder, workers)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            count = run()
            rates[name].append(count / (time.perf_counter() - began))
    ratios = [b / a for a, b in zip(rates["plain"][1:], rates["bnew"][1:], strict=True)]
    return [
        ("plain", f"{statistics.median(rates['plain'][1:]):.0f}", "1.00"),
        ("bnew", f"{statistics.median(rates['bnew'][1:]):.0f}", spread(ratios, 2)),
    ]


def main(
    folder: Annotated[Path | None, tyro.conf.Positional] = None,
    rounds: int = 7,
    out: Path = Path("docs/results/data.md"),
) -> None:
    """Measure and write the table.

    Args:
        folder: an image folder with train/CLASS/*.
        rounds: how often each is measured.
        out: file to write.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        files = sorted((folder / "train").glob("*/*")) if folder else []
        sets = {
            f"{folder.name}'s own files" if folder else "noise, 224×224": folder
            or photographs(Path(temporary, "small"), (224, 224), files),
            "the same scaled to 500×375, as most of ImageNet is": photographs(
                Path(temporary, "large"), (500, 375), files
            ),
        }
        parts = [
            "# Reading and augmenting images",
            f"Written by `python benchmarks/data.py {folder.name if folder else ''}`.",
            f"{cpu_name()}; torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow "
            f"{PIL.__version__} (libjpeg-turbo {features.version('libjpeg_turbo')}). Random crops of 8 to "
            "100 % of the image to 224×224, flips, normalised float32 batches of 50; bnew's have lighting "
            "noise too.",
        ]
        for name, path in sets.items():
            rows = measure(path, rounds)
            parts += [
                f"## {name}: one core",
                "CPU time, median (quartiles) over rounds in turns.",
                table(("", "images per second and core", "times as many as plain"), rows),
            ]
            parts += [
                f"## {name}: the loaders, two reading processes",
                "Wall-clock time, including the work of the training process.",
                table(("", "images per second", "times as many as plain"), measure_loaders(path, 2, rounds)),
            ]
    text = "\n\n".join(parts) + "\n"
    out.write_text(text)
    print(text)


if __name__ == "__main__":
    tyro.cli(main)
