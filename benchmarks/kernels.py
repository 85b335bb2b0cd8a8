"""How near the engine's binary convolutions come to the limit of the instruction set, and to OpenVINO's.

python benchmarks/kernels.py

One thread, all in one process, in turns. A network of one layer: a sign of real values, a binary convolution,
real values. The engine's time is that of its two stages (packing the signs; the convolution with its
epilogue), from real values in its own layout to real values in its own layout, as inside a network.
OpenVINO's is that of a whole call, in and out in its own layout, too. Needs bnew's extra `bench`.
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
import tyro

import bnew
from bnew.layers import BinaryConv2d, hard_sign
from bnew.training.machine import Machine, make_fabric
from bnew.training.provenance import environment
from comparing import seconds, table

GIGA = 1e9


@dataclass(frozen=True)
class Options:
    """Compare binary convolutions with the register peak and with OpenVINO."""

    rounds: int = 9
    """Rounds that count; one more comes first, to warm up."""
    out: Path = Path("docs/results/kernels.md")
    """The report."""


@dataclass(frozen=True)
class Layer:
    """A binary convolution with padding that keeps the size."""

    channels: int
    size: int
    kernel: int = 3
    stride: int = 1
    channels_out: int | None = None

    @property
    def outputs(self) -> int:
        return self.channels_out or self.channels

    @property
    def macs(self) -> int:
        """Binary multiply-accumulates, those in the padding included."""
        return (self.size // self.stride) ** 2 * self.outputs * self.channels * self.kernel**2

    def __str__(self) -> str:
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        out = f" → {self.outputs}" if self.channels_out else ""
        return f"{self.kernel}×{self.kernel}{stride}, {self.channels}{out}@{self.size}"

    def model(self) -> BinaryConv2d:
        """The layer with random ±1 weights."""
        torch.manual_seed(0)
        conv = BinaryConv2d(
            self.channels, self.outputs, self.kernel, self.stride, padding=self.kernel // 2, bias=False
        )
        with torch.no_grad():
            conv.weight.copy_(hard_sign(conv.weight))
        conv.eval()
        return conv

    @property
    def image(self) -> torch.Tensor:
        torch.manual_seed(1)
        return torch.randn(1, self.channels, self.size, self.size)


# The first four are the ones that the project has set itself a target for.
LAYERS = (
    Layer(64, 56),
    Layer(128, 28),
    Layer(256, 14),
    Layer(512, 7),
    Layer(16, 16),
    Layer(32, 8),
    Layer(64, 56, stride=2),
    Layer(64, 56, kernel=1, channels_out=128),
    Layer(512, 14, kernel=1),
    Layer(1024, 7),
    Layer(1024, 7, kernel=1),
)
TARGET = 0.75


def with_engine(layer: Layer, isa: str, folder: Path) -> Callable[[], float]:
    """A call takes some milliseconds and returns the median seconds of the layer's two stages."""
    path = folder / "layer.bnew"
    bnew.pack(layer.model(), layer.image, path)
    model = bnew_engine.load(path, isa=isa)
    image = layer.image.numpy()
    repeats = int(max(20, 2e9 // layer.macs))
    return lambda: sum(stage.seconds for stage in model.profile(image, repeats)[1:])


def with_openvino(layer: Layer) -> Callable[[], float]:
    """OpenVINO's BinaryConvolution with the quantization that it wants before it."""
    import openvino
    from openvino import opset1

    shape = [1, layer.channels, layer.size, layer.size]
    weights = (layer.model().weight >= 0).numpy()
    data = opset1.parameter(shape, np.float32)
    zeros, ones = (np.full((1, layer.channels, 1, 1), value, np.float32) for value in (0, 1))
    signs = opset1.fake_quantize(data, zeros, zeros, -ones, ones, 2)
    packed = np.packbits(weights.reshape(-1), bitorder="big")
    filters = openvino.op.Constant(openvino.Tensor(packed, openvino.Shape(weights.shape), openvino.Type.u1))
    pad = [layer.kernel // 2] * 2
    conv = opset1.binary_convolution(
        signs, filters, [layer.stride] * 2, pad, pad, [1, 1], "xnor-popcount", 0.0
    )
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(openvino.Model([conv], [data]), "CPU", settings)
    infer = request.create_infer_request()
    image = layer.image.numpy()

    def run() -> float:
        return statistics.median(seconds(lambda: infer.infer([image])) for _ in range(30))

    return run


def measure(layer: Layer, options: Options, folder: Path) -> dict[str, float]:
    """Name → binary multiply-accumulates per second, or register peak; medians over rounds in turns."""
    isas = [isa for isa in bnew_engine.isas() if isa != "scalar"]
    contenders = {isa: with_engine(layer, isa, folder) for isa in isas}
    contenders["OpenVINO"] = with_openvino(layer)
    rates: dict[str, list[float]] = {name: [] for name in (*contenders, *(f"peak {isa}" for isa in isas))}
    for round_number in range(options.rounds + 1):
        for isa in isas:
            peak = bnew_engine.register_peak(isa, 0.05)
            if round_number:
                rates[f"peak {isa}"].append(peak)
        for name, run in contenders.items():
            rate = layer.macs / run()
            if round_number:
                rates[name].append(rate)
    return {name: statistics.median(values) for name, values in rates.items()}


def report(options: Options, machine: dict[str, Any], rates: dict[Layer, dict[str, float]]) -> str:
    import openvino

    isas = [isa for isa in bnew_engine.isas() if isa != "scalar"]
    best = isas[0]
    rows = []
    for layer, rate in rates.items():
        cells = [str(layer)]
        for isa in isas:
            cells += [f"{rate[isa] / GIGA:,.0f}", f"{rate[isa] / rate[f'peak {isa}']:.0%}"]
        cells.append(f"{rate['OpenVINO'] / GIGA:,.0f}")
        rows.append(cells)
    peaks = ", ".join(
        f"{isa} {statistics.median(rate[f'peak {isa}'] for rate in rates.values()) / GIGA:,.0f}"
        for isa in isas
    )
    header = [""] + [text for isa in isas for text in (isa, "of its peak")] + ["OpenVINO"]
    return f"""# Binary convolutions

Written by `python benchmarks/kernels.py --rounds {options.rounds}`.

{machine["cpu"]}, {machine["cores"]} cores, one thread; commit {machine["commit"]}; OpenVINO \
{openvino.__version__.split("-")[0]}.
The engine's own choice here is {best}.

10⁹ binary multiply-accumulates per second, from real values to real values: signs are packed, convolved and
written out as float32. Register peaks of the same rounds, without memory: {peaks}.
(The AVX2 peak is that of its table look-ups, see engine/cpp/kernels/avx2.cpp.) The target is
{TARGET:.0%} of the peak in each of the first four.

{table(header, rows)}
"""


def main(options: Options) -> None:
    torch.set_num_threads(1)
    machine = environment(make_fabric(Machine(device="cpu")))
    with tempfile.TemporaryDirectory() as folder:
        rates = {layer: measure(layer, options, Path(folder)) for layer in LAYERS}
    text = report(options, machine, rates)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Options))
