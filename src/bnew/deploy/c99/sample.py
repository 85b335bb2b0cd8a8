"""Images that show how large numbers become: a run's own, or files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bnew.deploy.c99.network import SAMPLE, Bytes, as_bytes
from bnew.deploy.inference import image_files, load_engine, read_files
from bnew.errors import BnewError
from bnew.results.run import Run
from bnew.training.machine import Machine
from bnew.training.run_data import load_run_data


def validation_images(run: Run, machine: Machine) -> Bytes:
    """The first validation images of a run, uint8 (N, H, W, C).

    Raises:
        BnewError: they are not available.
    """
    data = load_run_data(run, machine, "val")
    parts: list[Bytes] = []
    for images, _ in data.batches("val", train=False).epoch(0):
        parts.append(as_bytes(images.numpy(), data.mean, data.std))
        if sum(map(len, parts)) >= SAMPLE:
            break
    if not parts:
        raise BnewError(f"{run.path} has no validation images to measure numbers on: give --images")
    return np.concatenate(parts)[:SAMPLE]


def images_of_files(file: str | Path, images: Iterable[str | Path]) -> Bytes:
    """The first images of files, folders and patterns, as the packed file takes them.

    Raises:
        BnewError: one cannot be read, or there are none.
    """
    paths = image_files(images)[:SAMPLE]
    return np.concatenate([part for _, part in read_files(load_engine(file), paths, batch=32)])
