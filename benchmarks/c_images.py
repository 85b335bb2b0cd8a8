"""All test images of a run through its network as C, beside the engine, for docs/results/c-images.md.

python benchmarks/c_images.py RUN

The C with floats, built by the compiler CC for this machine, must give the bits of the engine's scalar
kernels and its classes, and the C of --fixed those of its twin in NumPy.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bnew_engine
import numpy as np
import numpy.typing as npt
import tyro

from bnew.deploy.c99.export import Exported, export_c
from bnew.deploy.c99.network import FixedNetwork, as_bytes
from bnew.deploy.c99.sample import validation_images
from bnew.deploy.pack_run import pack_run
from bnew.results.run import Run
from bnew.training.machine import Machine
from bnew.training.run_data import load_run_data

Array = npt.NDArray[Any]
MACHINE = Machine(device="cpu")


@dataclass(frozen=True)
class Options:
    """Compare a run's network as C with the engine, on all test images."""

    run: tyro.conf.Positional[Path]
    """The folder of the run."""


def check(what: str, exported: Exported, images: Array, expected: Array) -> None:
    """Fails unless C gives all numbers (N, classes) of images (N, H, W, C), and their classes."""
    library = exported.source.with_suffix(".so")
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-std=c99", "-O2", "-shared", "-fPIC", str(exported.source), "-o", str(library)]
    subprocess.run(command, check=True)
    code = ctypes.CDLL(str(library))
    out = np.zeros(expected.shape, np.float32 if exported.exponent is None else np.int16)
    chosen = np.zeros(len(images), np.int64)
    for i, image in enumerate(images):
        data = image.tobytes()
        code.network_run(data, out[i].ctypes.data_as(ctypes.c_void_p))
        chosen[i] = code.network_predict(data)
    found = out * np.float32(2.0 ** -(exported.exponent or 0))
    same = (found.view(np.uint32) == expected.view(np.uint32)).all(1)
    right = chosen == expected.argmax(1)
    print(
        f"{what}: of {len(found):,} images {same.sum():,} have the same bits, {right.sum():,} the same class"
    )
    if not (same.all() and right.all()):
        raise SystemExit(1)


def main(options: Options) -> None:
    run = Run(options.run)
    batches = list(load_run_data(run, MACHINE).batches("test", train=False).epoch(0))
    labels = np.concatenate([y.numpy() for _, y in batches])
    with tempfile.TemporaryDirectory() as folder:
        path, sample = Path(folder) / "network.bnew", validation_images(run, MACHINE)
        of_image = pack_run(run, path, MACHINE).graph["input"]
        images = as_bytes(np.concatenate([x.numpy() for x, _ in batches]), of_image["mean"], of_image["std"])
        engine = np.ascontiguousarray(bnew_engine.load(path, isa="scalar")(images).reshape(len(images), -1))
        exported = export_c(path, Path(folder) / "floats", name="network")
        check("floats, beside the engine", exported, images, engine)
        exported = export_c(path, Path(folder) / "fixed", name="network", fixed=sample)
        fixed = FixedNetwork(path, sample)(images)
        check("--fixed, beside its twin", exported, images, fixed)
    same = (engine.argmax(1) == fixed.argmax(1)).mean()
    right = [100 * (results.argmax(1) == labels).mean() for results in (engine, fixed)]
    print(f"accuracy: floats {right[0]:.2f} %, --fixed {right[1]:.2f} %; {100 * same:.2f} % the same class")


if __name__ == "__main__":
    main(tyro.cli(Options))
