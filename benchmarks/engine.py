"""How fast whole networks run: bnew-engine against PyTorch, ONNX Runtime and OpenVINO, on one thread.

python benchmarks/engine.py

Everything that is compared runs in this one process, in turns, round by round. The binary networks have
random weights, the float ones too: speed does not depend on them. Needs bnew's extra `bench`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before any library reads it

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bnew_engine
import numpy as np
import torch
import torchvision
import tyro
from torch import nn

import bnew
from bnew.layers import binary_parameters, hard_sign
from bnew.training.machine import Machine, make_fabric
from bnew.training.provenance import environment
from comparing import in_turns, spread, table

Run = Callable[[], object]


@dataclass(frozen=True)
class Options:
    """Compare the engine with other runtimes."""

    rounds: int = 11
    """Rounds that count; one more comes first, to warm up."""
    out: Path = Path("docs/results/engine.md")
    """The report."""


def binary_model(name: str, image_size: int, num_classes: int) -> tuple[nn.Module, torch.Tensor]:
    """The network with random ±1 weights and batch norms that fit them, and an image."""
    torch.manual_seed(0)
    model = bnew.create_model(name, num_classes=num_classes)
    images = torch.randn(4, 3, image_size, image_size)
    with torch.no_grad():
        for weight in binary_parameters(model):
            weight.copy_(hard_sign(weight))
        model(images)
    return model.eval(), images[:1]


def float_model(name: str) -> tuple[nn.Module, torch.Tensor]:
    """torchvision's network, untrained, and an image."""
    torch.manual_seed(0)
    return torchvision.models.get_model(name).eval(), torch.randn(1, 3, 224, 224)


# ---------------------------------------------------------------------- contenders


def with_torch(model: nn.Module, image: torch.Tensor) -> Run:
    def run() -> None:
        with torch.inference_mode():
            model(image)

    return run


def with_onnxruntime(onnx: Path, image: torch.Tensor) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, inputs)


def with_openvino(onnx: Path, image: torch.Tensor, precision: str) -> Run:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(onnx, "CPU", settings).create_infer_request()
    array = image.numpy()
    return lambda: request.infer([array])


def with_engine(packed: Path, image: torch.Tensor, isa: str, threads: int = 1) -> Run:
    model = bnew_engine.load(packed, threads=threads, isa=isa)
    array = image.numpy()
    return lambda: model(array)


def float_contenders(name: str, model: nn.Module, image: torch.Tensor, folder: Path) -> dict[str, Run]:
    """Everybody else's runtimes on the network as an ordinary float one."""
    onnx = folder / f"{name.replace(' ', '_')}.onnx"
    torch.onnx.export(model, (image,), onnx, dynamo=True, external_data=False, verbose=False)
    return {
        f"{name}, PyTorch": with_torch(model, image),
        f"{name}, ONNX Runtime": with_onnxruntime(onnx, image),
        f"{name}, OpenVINO": with_openvino(onnx, image, "f32"),
        f"{name}, OpenVINO in bf16": with_openvino(onnx, image, "bf16"),
    }


def engine_contenders(name: str, model: nn.Module, image: torch.Tensor, folder: Path) -> dict[str, Run]:
    """The engine at every level but the scalar one."""
    packed = folder / f"{name}.bnew"
    bnew.pack(model, image, packed)
    check_agreement(packed, model, image)
    return {f"{name}, bnew-engine, {isa}": with_engine(packed, image, isa) for isa in fast_isas()}


def fast_isas() -> list[str]:
    return [isa for isa in bnew_engine.isas() if isa != "scalar"]


def check_agreement(packed: Path, model: nn.Module, image: torch.Tensor) -> None:
    """The engine computes what PyTorch does, up to signs that rounding turns over.

    Raises:
        AssertionError: they are further apart.
    """
    with torch.no_grad():
        expected = model(image).numpy()
    found = bnew_engine.load(packed)(image.numpy())
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.9


# ---------------------------------------------------------------------- the report


@dataclass(frozen=True)
class Comparison:
    """Milliseconds of each contender, one number a round."""

    title: str
    times: dict[str, list[float]]
    reference: str
    """The contender that the others are compared with."""

    def ratio(self, name: str) -> list[float]:
        """How many times as fast as the reference, round by round."""
        return [a / b for a, b in zip(self.times[self.reference], self.times[name], strict=True)]

    def __str__(self) -> str:
        rows = [
            (name, spread([1e3 * t for t in times], 3), f"{statistics.median(self.ratio(name)):.2f}")
            for name, times in self.times.items()
        ]
        return (
            f"## {self.title}\n\n{table(('', 'ms per image', f'times as fast as {self.reference}'), rows)}\n"
        )


def compare(
    name: str, size: int, classes: int, rivals: list[str], options: Options, folder: Path
) -> Comparison:
    """A binary network by all runtimes, and float networks that it is to beat."""
    model, image = binary_model(name, size, classes)
    contenders = {
        **engine_contenders(name, model, image, folder),
        **float_contenders(f"{name} as floats", model, image, folder),
    }
    for rival in rivals:
        contenders.update(float_contenders(f"{rival} (float)", *float_model(rival), folder))
    reference = f"{rivals[-1]} (float), ONNX Runtime" if rivals else f"{name} as floats, ONNX Runtime"
    print(f"{name}: {len(contenders)} contenders", flush=True)
    title = f"{name}, {size}×{size}, one image, one thread"
    return Comparison(title, in_turns(contenders, options.rounds), reference)


def compare_threads(options: Options, folder: Path) -> Comparison:
    """ReActNet-A on one and on two threads."""
    model, image = binary_model("reactnet_a", 224, 1000)
    packed = folder / "threads.bnew"
    bnew.pack(model, image, packed)
    isa = bnew_engine.isa()
    contenders = {f"{n} thread{'s' * (n > 1)}": with_engine(packed, image, isa, n) for n in (1, 2)}
    return Comparison("reactnet_a on two threads", in_turns(contenders, options.rounds), "1 thread")


def heading(options: Options, machine: dict[str, Any]) -> str:
    import onnxruntime
    import openvino

    return f"""# The engine against other runtimes

Written by `python benchmarks/engine.py --rounds {options.rounds}`.

{machine["cpu"]}, {machine["cores"]} cores; instruction sets: {", ".join(bnew_engine.isas())}; commit \
{machine["commit"]}; torch {machine["torch"]}, ONNX Runtime {onnxruntime.__version__}, OpenVINO \
{openvino.__version__.split("-")[0]}.

One image from a NumPy array to logits. Medians (quartiles) over rounds in turns; ratios are those of the same
round. *As floats* is the same binary network as the ordinary float graph that `bnew export` writes.
"""


def main(options: Options) -> None:
    torch.set_num_threads(1)
    machine = environment(make_fabric(Machine(device="cpu")))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        comparisons = [
            compare("reactnet_a", 224, 1000, ["mobilenet_v2"], options, folder),
            compare("reactnet18", 224, 1000, ["resnet18"], options, folder),
            compare("birealnet20", 32, 10, [], options, folder),
            compare_threads(options, folder),
        ]
    report = "\n".join([heading(options, machine), *map(str, comparisons)])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(report)
    print(report)


if __name__ == "__main__":
    main(tyro.cli(Options))
