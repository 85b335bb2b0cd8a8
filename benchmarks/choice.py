"""What an engineer would really pick beside a binary network: written to docs/results/choice.md.

python benchmarks/choice.py

Networks for ImageNet by their published accuracy, the size of their file, and milliseconds for one image on
one thread: in float32, bfloat16 and int8, with ONNX Runtime and OpenVINO, each in the runtime's own way. All
contenders of a table run in one process, in turns, round by round. A second process is told to use no more
than AVX2, as on a machine without VNNI. Weights are random, as speed does not depend on them; accuracies are
those that are published. Needs bnew's extra `bench`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before any library reads it

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bnew_engine
import numpy as np
import torch
import tyro
from torch import Tensor
from torchvision.models import get_model_weights
from torchvision.models.quantization import (
    MobileNet_V2_QuantizedWeights,
    MobileNet_V3_Large_QuantizedWeights,
    ResNet18_QuantizedWeights,
)

import bnew
from bnew.registry import MODELS
from bnew.training.machine import Machine, make_fabric
from bnew.training.provenance import environment
from comparing import in_turns, table
from engine import binary_model, check_agreement, float_model, with_engine, with_onnxruntime, with_openvino

BINARY = ("quicknet_small", "quicknet", "quicknet_large", "reactnet18", "reactnet_a", "bnext_tiny")
RIVALS = ("mobilenet_v2", "mobilenet_v3_large", "resnet18", "resnet34")
INT8: dict[str, Any] = {
    "mobilenet_v2": MobileNet_V2_QuantizedWeights.IMAGENET1K_QNNPACK_V1,
    "mobilenet_v3_large": MobileNet_V3_Large_QuantizedWeights.IMAGENET1K_QNNPACK_V1,
    "resnet18": ResNet18_QuantizedWeights.IMAGENET1K_FBGEMM_V1,
}
# What oneDNN, and so OpenVINO's kernels, may use.
NARROW = {"ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2"}
Run = Callable[[], object]


@dataclass(frozen=True)
class Options:
    """Compare binary networks with what else there is."""

    rounds: int = 9
    """Rounds that count; one more comes first, to warm up."""
    out: Path = Path("docs/results/choice.md")
    """The report."""
    narrow: bool = False
    """Measure with AVX2 at most and print JSON; for the process that this one starts."""


@dataclass(frozen=True)
class Contender:
    """A network in a runtime."""

    network: str
    precision: str
    runtime: str
    top1: float | None
    """Published, in per cent."""
    megabytes: float
    run: Run


def accuracy(weights: Any) -> float:
    """torchvision's own figure for its weights."""
    return float(weights.meta["_metrics"]["ImageNet-1K"]["acc@1"])


def published(name: str) -> float:
    """What is published for a binary network, as the registry has it."""
    facts = MODELS[name].facts
    assert facts is not None
    return float(facts.published.partition(" ")[0])


def megabytes(*paths: Path) -> float:
    return sum(path.stat().st_size for path in paths) / 1e6


def binary_contenders(name: str, folder: Path, isa: str) -> list[Contender]:
    model, image = binary_model(name, 224, 1000)
    packed = folder / f"{name}.bnew"
    if not packed.exists():
        bnew.pack(model, image, packed)
        check_agreement(packed, model, image)
    run = with_engine(packed, image, isa)
    return [Contender(name, "binary", f"bnew-engine, {isa}", published(name), megabytes(packed), run)]


def rival_contenders(name: str, folder: Path, narrow: bool) -> list[Contender]:
    """A float network in each precision; ONNX Runtime has no way to be told to use AVX2 alone."""
    import openvino

    model, image = float_model(name)
    exact = accuracy(get_model_weights(name).DEFAULT)
    rounded = accuracy(INT8[name]) if name in INT8 else None
    onnx = folder / f"{name}.onnx"
    torch.onnx.export(model, (image,), onnx, dynamo=True, external_data=False, verbose=False)
    ir = folder / f"{name}.xml"
    openvino.save_model(openvino.convert_model(onnx), ir, compress_to_fp16=True)
    half = megabytes(ir, ir.with_suffix(".bin"))
    found = [
        Contender(name, "float32", "OpenVINO", exact, megabytes(onnx), with_openvino(onnx, image, "f32"))
    ]
    if not narrow:  # whose bfloat16 needs AVX-512
        found += [
            Contender(name, "float32", "ONNX Runtime", exact, megabytes(onnx), with_onnxruntime(onnx, image)),
            Contender(name, "bfloat16", "OpenVINO", exact, half, with_openvino(onnx, image, "bf16")),
        ]
        qdq = quantized_onnx(onnx, image)
        found.append(
            Contender(name, "int8", "ONNX Runtime", rounded, megabytes(qdq), with_onnxruntime(qdq, image))
        )
    int8 = quantized_openvino(onnx, image)
    size = megabytes(int8, int8.with_suffix(".bin"))
    found.append(Contender(name, "int8", "OpenVINO", rounded, size, with_openvino(int8, image, "f32")))
    return found


def quantized_onnx(onnx: Path, image: Tensor) -> Path:
    """ONNX Runtime's static int8, as QuantizeLinear and DequantizeLinear, a scale per channel."""
    import onnx as library
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = library.load(onnx).graph.input[0].name

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [torch.randn_like(image).numpy() for _ in range(4)]

        def get_next(self) -> dict[str, Any] | None:
            return {name: self.left.pop()} if self.left else None

    prepared, out = onnx.with_suffix(".prepared.onnx"), onnx.with_suffix(".qdq.onnx")
    quant_pre_process(onnx, prepared, skip_symbolic_shape=True)
    quantize_static(  # with bytes without a sign beside signed weights, which x86 multiplies at once
        prepared, out, Images(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return out


def quantized_openvino(onnx: Path, image: Tensor) -> Path:
    """NNCF's int8 after training, as OpenVINO's own representation."""
    import nncf
    import openvino

    images = [torch.randn_like(image).numpy() for _ in range(4)]
    model = nncf.quantize(openvino.convert_model(onnx), nncf.Dataset(images), subset_size=4)
    out = onnx.with_suffix(".int8.xml")
    openvino.save_model(model, out)
    return out


def measured(options: Options) -> list[dict[str, Any]]:
    """Every contender with its milliseconds, in one process."""
    isa = "avx2" if options.narrow else bnew_engine.isa()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        contenders = [each for name in BINARY for each in binary_contenders(name, folder, isa)]
        contenders += [each for name in RIVALS for each in rival_contenders(name, folder, options.narrow)]
        times = in_turns({str(i): each.run for i, each in enumerate(contenders)}, options.rounds)
    rows = []
    for i, each in enumerate(contenders):
        low, middle, high = np.quantile(times[str(i)], (0.25, 0.5, 0.75)) * 1e3
        row = {k: v for k, v in vars(each).items() if k != "run"}
        rows.append(row | {"low": low, "ms": middle, "high": high})
    return rows


def shown(rows: list[dict[str, Any]]) -> str:
    """A table, the fastest first."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        top1 = "–" if row["top1"] is None else f"{row['top1']:.1f}"
        time = f"{row['ms']:.2f} ({row['low']:.2f}–{row['high']:.2f})"
        return [row["network"], row["precision"], row["runtime"], top1, f"{row['megabytes']:.1f}", time]

    lines = [cells(row) for row in sorted(rows, key=lambda row: row["ms"])]
    return table(("network", "precision", "runtime", "top-1, %", "MB", "ms an image"), lines)


def report(options: Options, rows: list[dict[str, Any]], narrow: list[dict[str, Any]]) -> str:
    import nncf
    import onnxruntime
    import openvino

    machine = environment(make_fabric(Machine(device="cpu")))
    return f"""# What else an engineer would take

Written by `python benchmarks/choice.py --rounds {options.rounds}`.

{machine["cpu"]}, {machine["cores"]} cores; instruction sets: {", ".join(bnew_engine.isas())}; commit \
{machine["commit"]}; torch {machine["torch"]}, ONNX Runtime {onnxruntime.__version__}, OpenVINO \
{openvino.__version__.split("-")[0]}, NNCF {nncf.__version__}.

ImageNet, one image of 224×224 from a NumPy array to logits, one thread. Milliseconds are medians (quartiles)
over rounds in turns. Top-1 is what the authors of each network publish, and torchvision for its own weights;
for int8 that of torchvision's quantized weights, where it has some. MB is the file's size; of bfloat16 that
of OpenVINO's file in 16 bits. Weights here are random.

## All instructions of this CPU

{shown(rows)}

## AVX2 alone

A process that OpenVINO's kernels may use no more than AVX2 in (`ONEDNN_MAX_CPU_ISA`), beside the engine's own
AVX2 kernels. ONNX Runtime cannot be told.

{shown(narrow)}
"""


def main(options: Options) -> None:
    torch.set_num_threads(1)
    if options.narrow:
        print(json.dumps(measured(options)))
        return
    rows = measured(options)
    command = [sys.executable, __file__, "--narrow", "--rounds", str(options.rounds)]
    done = subprocess.run(command, env={**os.environ, **NARROW}, stdout=subprocess.PIPE, check=True)
    narrow = json.loads(done.stdout.splitlines()[-1])
    options.out.write_text(report(options, rows, narrow))
    print(options.out.read_text())


if __name__ == "__main__":
    main(tyro.cli(Options))
