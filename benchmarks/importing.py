"""An imported network beside the runtime of the file that it comes from, in turns, on one thread.

bnew import network.tflite network.bnew
python benchmarks/importing.py network.tflite network.bnew

Larq Compute Engine 0.16 is built for NumPy 1, so its files need an environment of their own:
``pip install larq-compute-engine ./engine tyro 'numpy<2'``, and bnew by ``PYTHONPATH=src``, without PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import bnew_engine
import numpy as np
import numpy.typing as npt
import tyro

from bnew.importing.larq_engine import larq_interpreter
from comparing import in_turns, spread, table

Array: TypeAlias = npt.NDArray[np.float32]
IMAGES = 8  # random ones, to see that it is the same network


@dataclass(frozen=True)
class Options:
    """Time a packed file and the file that it was imported from."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Pairs: the file of the other framework, and the packed one."""
    rounds: int = 11
    """How many times each is measured."""


def in_onnxruntime(file: Path) -> dict[str, Callable[[Array], Any]]:
    """What runs an ONNX file on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def run(x: Array) -> Any:
        return session.run(None, {given.name: x})[0]

    return {"ONNX Runtime": run}


def in_larq(file: Path) -> dict[str, Callable[[Array], Any]]:
    """Larq Compute Engine with each of its two kernels of binary convolution, and XNNPACK for the rest."""

    def made(indirect: bool) -> Callable[[Array], Any]:
        interpreter = larq_interpreter(file.read_bytes(), indirect=indirect, xnnpack=True)
        assert interpreter is not None, "larq-compute-engine is not installed, or NumPy is not below 2"
        return lambda x: interpreter.predict([x])[0]

    return {f"Larq Compute Engine, {name}": made(name == "indirect") for name in ("optimised", "indirect")}


def main(options: Options) -> None:
    rows = []
    for file, packed in zip(options.files[::2], options.files[1::2], strict=True):
        engine = bnew_engine.load(packed)
        runs, last = (in_onnxruntime(file), False) if file.suffix == ".onnx" else (in_larq(file), True)
        images = np.random.default_rng(0).standard_normal((IMAGES, 1, *engine.input_shape), np.float32)
        equal = dict.fromkeys(runs, 0)
        for x in images:
            given = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if last else x
            own = engine(x)
            for name, run in runs.items():
                equal[name] += np.allclose(
                    np.reshape(run(given), own.shape), own, atol=1e-3 * np.abs(own).max()
                )
        assert min(equal.values()) > IMAGES / 2, equal  # a sign that rounding turns changes all behind it
        contenders: dict[str, Callable[[], Any]] = {f"bnew-engine, {engine.isa}": partial(engine, x)}
        contenders |= {name: partial(run, given) for name, run in runs.items()}
        for name, times in in_turns(contenders, options.rounds).items():
            rows.append((file.name, name, spread([1e3 * t for t in times], 2)))
    print(table(("file", "runtime", "ms"), rows))


if __name__ == "__main__":
    main(tyro.cli(Options))
