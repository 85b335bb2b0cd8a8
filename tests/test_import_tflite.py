"""Files of TensorFlow Lite and Larq Compute Engine: against their interpreters, and a reading in NumPy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bnew
from bnew import BnewError
from bnew.importing import tflite_operators
from bnew.importing.importer import import_tflite
from bnew.importing.network import ImportedNetwork
from bnew.importing.tflite_file import TFLITE, read_tflite, unpacked
from bnew.importing.tflite_runtime import _larq

pytest.importorskip("tflite")
bnew_engine = pytest.importorskip("bnew_engine")

from tflite_files import (  # noqa: E402
    OPERATORS,
    RELU,
    RELU1,
    RELU6,
    SAME,
    VALID,
    Array,
    File,
    bconv_reference,
    bmaxpool_reference,
    packed,
    plain,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "network.tflite"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "network.bnew"


def images(*shape: int) -> Array:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def turned(x: Array, *order: int) -> Array:
    return np.ascontiguousarray(x.transpose(order)) if x.ndim == 4 else x


def ours(source: Path, given: Array) -> Array:
    """The module's result for images of the file, in its order."""
    network = ImportedNetwork(read_tflite(source)).eval()
    with torch.no_grad():
        result = network(torch.from_numpy(turned(given, 0, 3, 1, 2)))
    return turned(result.numpy(), 0, 2, 3, 1)


def by_engine(path: Path, given: Array) -> Array:
    return turned(bnew_engine.load(path)(turned(given, 0, 3, 1, 2)), 0, 2, 3, 1)


def by_larq(source: Path, given: Array) -> Array:
    try:
        run = _larq(source.read_bytes())
    except ImportError:
        run = None
    if run is None:
        pytest.skip("Larq Compute Engine's interpreter is not installed, or not for this NumPy")
    return run(given)[0]


# ------------------------------------------------------------------------------------- Larq's operators


def test_packed_signs() -> None:
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (2, 3, 70)).astype(np.float32)
    np.testing.assert_array_equal(unpacked(packed(signs), 70), signs)
    np.testing.assert_array_equal(plain(packed(signs), 70), signs)
    assert packed(-np.eye(1, 32, 31)).item() == -(2**31)


Options = dict[str, Any]
CONVS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Options]] = {
    "zeros": ((9, 8, 32), (40, 3, 3), {}),
    "ones": ((9, 8, 32), (40, 3, 3), {"pad_values": 1}),
    "ones and a stride": ((9, 8, 40), (7, 3, 3), {"pad_values": 1, "stride_height": 2, "stride_width": 2}),
    "zeros and a stride": ((8, 9, 70), (7, 3, 2), {"stride_height": 2, "stride_width": 1}),
    "no border": ((9, 8, 5), (7, 3, 2), {"padding": VALID}),
    "one pixel": ((5, 6, 64), (3, 1, 1), {"padding": VALID, "stride_height": 2}),
    "gaps": ((9, 11, 33), (4, 3, 3), {"pad_values": 1, "dilation_height_factor": 2, "dilation_width_factor": 3}),
    "groups": ((6, 6, 64), (8, 3, 3, 32), {"pad_values": 1}),
    "relu": ((6, 6, 32), (8, 3, 3), {"pad_values": 1, "fused_activation_function": RELU}),
    "relu6": ((6, 6, 32), (8, 3, 3), {"pad_values": 1, "fused_activation_function": RELU6}),
    "relu1": ((6, 6, 32), (8, 3, 3), {"padding": VALID, "fused_activation_function": RELU1}),
    "an image smaller than the window": ((2, 2, 32), (8, 5, 3), {}),
}
CLIPS = {0: (-np.inf, np.inf), RELU: (0, np.inf), RELU1: (-1, 1), RELU6: (0, 6)}


@pytest.mark.parametrize("thresholds", [False, True])
@pytest.mark.parametrize("case", CONVS)
def test_a_binary_convolution(case: str, thresholds: bool, source: Path, path: Path) -> None:
    """Against XOR and counted bits, in the module and in the packed file."""
    (height, width, channels), kernel, options = CONVS[case]
    zeros = options.get("padding", SAME) == SAME and not options.get("pad_values", 0)
    if thresholds and (zeros or "fused_activation_function" in options):
        pytest.skip("Larq does not compute this")
    file = File((1, height, width, channels))
    x, out = images(1, height, width, channels), kernel[0]
    weight = file.signs(*kernel, *(() if len(kernel) == 4 else (channels,)))
    words = np.frombuffer(file.tensors[weight][3], np.int32).reshape(file.tensors[weight][1])
    counts, totals = np.moveaxis(bconv_reference(packed(x), words, channels, **options), -1, 0)
    multiplier, shift = file.normal(out), file.normal(out)
    bits = file.quantize(0)
    if thresholds:
        middle = totals.max() // 2
        limits = file.random.integers(middle - 5, middle + 5, out)
        limits[:2] = -(2**31), 2**31 - 1  # always set, and never
        shape = [*counts.shape[:3], -(-out // 32)]
        y = file.bconv(bits, weight, [file.number(limits, np.int32)], shape, channels, **options)
        y = file.op("LceDequantize", [y], counts.shape)
        expected = np.where(counts > limits, -1.0, 1.0)
    else:
        y = file.bconv(bits, weight, [multiplier, shift], counts.shape, channels, **options)
        scale, bias = (np.frombuffer(file.tensors[each][3], np.float32) for each in (multiplier, shift))
        least, most = CLIPS[options.get("fused_activation_function", 0)]
        expected = np.clip(totals - 2 * counts, least, most) * scale + bias
    file.write(source, y)
    np.testing.assert_allclose(ours(source, x), expected, rtol=1e-5, atol=1e-5)
    found = import_tflite(source, path)
    assert found.binary_layers == 1
    assert [node.op for node in found.packed.nodes if node.op == "conv"] == []
    np.testing.assert_allclose(by_engine(path, x), expected, rtol=1e-5, atol=1e-5)
    if "smaller" not in case:  # Larq computes other sums there
        np.testing.assert_allclose(by_larq(source, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", [SAME, VALID])
def test_a_binary_pool_between_two_layers(padding: int, source: Path, path: Path) -> None:
    x = images(1, 9, 8, 3)
    file = File(x.shape)
    real = file.conv(0, file.normal(40, 3, 3, 3), file.normal(40), (1, 9, 8, 40))
    bits = file.quantize(real)
    pooled = bmaxpool_reference(packed(np.zeros((1, 9, 8, 40))), (3, 2), (2, 2), padding)
    pool = {"filter_height": 3, "filter_width": 2, "stride_height": 2, "stride_width": 2, "padding": padding}
    seen = file.op("LceBMaxPool2d", [bits], pooled.shape, dtype=np.int32, **pool)
    weight = file.signs(6, 2, 2, 40)
    words = np.frombuffer(file.tensors[weight][3], np.int32).reshape(6, 2, 2, 2)
    counts, totals = np.moveaxis(bconv_reference(pooled, words, 40, padding=VALID), -1, 0)
    one, zero = file.number(np.ones(6)), file.number(np.zeros(6))
    y = file.bconv(seen, weight, [one, zero], counts.shape, 40, padding=VALID)
    file.write(source, real, y)
    network = ImportedNetwork(read_tflite(source)).eval()
    with torch.no_grad():
        before, after = network(torch.from_numpy(turned(x, 0, 3, 1, 2))).values()
    words_seen = packed(turned(before.numpy(), 0, 2, 3, 1))
    pooled = bmaxpool_reference(words_seen, (3, 2), (2, 2), padding)
    counts, totals = np.moveaxis(bconv_reference(pooled, words, 40, padding=VALID), -1, 0)
    np.testing.assert_allclose(turned(after.numpy(), 0, 2, 3, 1), totals - 2 * counts)
    assert import_tflite(source, path).binary_layers == 1


def quicknet(source: Path) -> File:
    """The shape of Larq's networks: a real stem, shortcuts around binary layers, a transition, a head."""
    file = File((1, 16, 12, 3))
    x = file.conv(0, file.normal(32, 3, 3, 3), file.normal(32), (1, 8, 6, 32), StrideH=2, StrideW=2)
    shape = (1, 8, 6, 32)
    for _ in range(2):
        y = file.bconv(
            file.quantize(x), file.signs(32, 3, 3, 32), [file.normal(32), file.normal(32)], shape, 32,
            pad_values=1, fused_activation_function=RELU,
        )  # fmt: skip
        x = file.op("ADD", [x, y], shape, table="AddOptions", FusedActivationFunction=0)
    pool = {"Padding": VALID, "StrideH": 2, "StrideW": 2, "FilterHeight": 2, "FilterWidth": 2}
    x = file.op("MAX_POOL_2D", [x], (1, 4, 3, 32), table="Pool2DOptions", **pool)
    depthwise = {"Padding": SAME, "StrideH": 1, "StrideW": 1, "DepthMultiplier": 1, "FusedActivationFunction": RELU}
    depthwise |= {"DilationHFactor": 1, "DilationWFactor": 1}
    x = file.op(
        "DEPTHWISE_CONV_2D", [x, file.normal(1, 3, 3, 32), file.normal(32)], (1, 4, 3, 32),
        table="DepthwiseConv2DOptions", **depthwise,
    )  # fmt: skip
    mean = file.number([1, 2], np.int32)
    x = file.op("MEAN", [x, mean], (1, 32), table="ReducerOptions", KeepDims=False)
    x = file.op("FULLY_CONNECTED", [x, file.normal(5, 32), file.normal(5)], (1, 5), table="FullyConnectedOptions")
    file.write(source, file.op("SOFTMAX", [x], (1, 5), table="SoftmaxOptions", Beta=1.0))
    return file


def test_a_network(source: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bnew.cli import main

    quicknet(source)
    with pytest.raises(SystemExit) as ended:
        main(["import", str(source), str(path), "--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5"])
    assert ended.value.code == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{path}: 2 binary layers, 3 real ones, ")
    assert said[-1].startswith("bnew-engine: 8 of 8 random images differ by rounding only")
    nodes = bnew.packing.PackedFile.read(path).nodes
    assert "rearrange" not in {node.op for node in nodes}  # channels stay where they are
    pixels = np.random.default_rng(3).integers(0, 256, (3, 16, 12, 3)).astype(np.uint8)
    expected = ours(source, (pixels / 255 - 0.5).astype(np.float32) / 0.5)
    np.testing.assert_allclose(bnew_engine.load(path)(pixels), expected, atol=1e-5)


def test_larqs_interpreter(source: Path) -> None:
    quicknet(source)
    x = images(1, 16, 12, 3)
    np.testing.assert_allclose(by_larq(source, x), ours(source, x), atol=1e-4)
