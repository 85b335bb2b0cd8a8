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
from bnew.importing import tflite_operators, tflite_runtime
from bnew.importing.importer import import_tflite
from bnew.importing.network import OPERATORS as ROWS
from bnew.importing.network import ImportedNetwork
from bnew.importing.tflite_binary import unpacked
from bnew.importing.tflite_file import TFLITE, read_tflite
from bnew.importing.tflite_runtime import _larq

pytest.importorskip("tflite")
bnew_engine = pytest.importorskip("bnew_engine")

from tflite_files import (  # noqa: E402
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
    "gaps": (
        (9, 11, 33),
        (4, 3, 3),
        {"pad_values": 1, "dilation_height_factor": 2, "dilation_width_factor": 3},
    ),
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
    depthwise = {
        "Padding": SAME,
        "StrideH": 1,
        "StrideW": 1,
        "DepthMultiplier": 1,
        "FusedActivationFunction": RELU,
    }
    depthwise |= {"DilationHFactor": 1, "DilationWFactor": 1}
    x = file.op(
        "DEPTHWISE_CONV_2D", [x, file.normal(1, 3, 3, 32), file.normal(32)], (1, 4, 3, 32),
        table="DepthwiseConv2DOptions", **depthwise,
    )  # fmt: skip
    mean = file.number([1, 2], np.int32)
    x = file.op("MEAN", [x, mean], (1, 32), table="ReducerOptions", KeepDims=False)
    x = file.op(
        "FULLY_CONNECTED", [x, file.normal(5, 32), file.normal(5)], (1, 5), table="FullyConnectedOptions"
    )
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


def test_bits_of_comparisons(source: Path) -> None:
    """Larq packs bools too, and returns them: true is +1."""
    shape = (1, 3, 3, 5)
    file = File(shape)
    larger = file.op("GREATER", [0, file.number(0.5)], shape, dtype=np.bool_)
    bits = file.op("LceQuantize", [larger], (*shape[:3], 1), dtype=np.int32)
    bools = file.op("LceDequantize", [bits], shape, dtype=np.bool_)
    signs = file.op("LceDequantize", [bits], shape)
    chosen = file.op("SELECT_V2", [bools, file.number(3.0), file.number(4.0)], shape)
    file.write(source, file.op("MUL", [signs, chosen], shape))
    x = images(*shape)
    expected = np.where(x > 0.5, 3.0, -4.0)
    np.testing.assert_array_equal(ours(source, x), expected)
    np.testing.assert_array_equal(by_larq(source, x), expected)


# --------------------------------------------------------------------------- TensorFlow Lite's own operators


def made(*shape: int) -> Callable[[File], int]:
    return lambda file: file.normal(*shape)


def whole(*numbers: Any) -> Callable[[File], int]:
    return lambda file: file.number(numbers, np.int32)


def window(padding: int, **options: int) -> Options:
    return {"Padding": padding, "StrideH": 1, "StrideW": 1, **options}


def conv(padding: int, **options: int) -> Options:
    return {
        "table": "Conv2DOptions",
        "DilationHFactor": 1,
        "DilationWFactor": 1,
        **window(padding),
        **options,
    }


def pool(padding: int, size: int, **options: int) -> Options:
    return {"table": "Pool2DOptions", "FilterHeight": size, "FilterWidth": 2, **window(padding), **options}


IMAGE = (1, 7, 6, 4)
DENSE: Options = {"table": "FullyConnectedOptions"}
MIRROR: Options = {"table": "MirrorPadOptions", "Mode": 0}
FUSED: Options = {"FusedActivationFunction": RELU}
X = None  # the image among the inputs
Input = Callable[[File], int] | None
Case = tuple[str, Sequence[Input], Any, Options]
# (operator, its inputs, the shape of its result, its options) by the shape of the image.
NODES: dict[tuple[int, ...], list[Case]] = {
    IMAGE: [
        *((kind, [X], IMAGE, {}) for kind in ("RELU", "RELU6", "RELU_N1_TO_1", "LOGISTIC", "TANH")),
        *((kind, [X], IMAGE, {}) for kind in ("ABS", "EXP", "NEG", "SQUARE", "ELU", "HARD_SWISH")),
        *((kind, [X], IMAGE, {}) for kind in ("LOG_SOFTMAX", "RELU_0_TO_1")),
        ("GELU", [X], IMAGE, {"table": "GeluOptions", "Approximate": False}),
        ("GELU", [X], IMAGE, {"table": "GeluOptions", "Approximate": True}),
        *((kind, [X, made(4)], IMAGE, {}) for kind in ("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM")),
        *((kind, [X, made(1, 7, 6, 4)], IMAGE, {}) for kind in ("ADD", "SQUARED_DIFFERENCE")),
        ("ADD", [made(6, 4), X], IMAGE, {"table": "AddOptions", "FusedActivationFunction": RELU}),
        ("SUB", [made(7, 1, 1), X], IMAGE, {"table": "SubOptions", "FusedActivationFunction": RELU6}),
        ("MUL", [X, made(1, 1, 6, 1)], IMAGE, {"table": "MulOptions", "FusedActivationFunction": RELU1}),
        ("MUL", [X, lambda f: f.number(2.5)], IMAGE, {}),
        ("LEAKY_RELU", [X], IMAGE, {"table": "LeakyReluOptions", "Alpha": 0.2}),
        ("PRELU", [X, made(1, 1, 4)], IMAGE, {}),
        ("SOFTMAX", [X], IMAGE, {"table": "SoftmaxOptions", "Beta": 0.5}),
        ("CONV_2D", [X, made(5, 3, 3, 4), made(5)], (1, 7, 6, 5), conv(SAME)),
        ("CONV_2D", [X, made(5, 3, 2, 4), made(5)], (1, 3, 5, 5), conv(VALID, StrideH=2)),
        ("CONV_2D", [X, made(5, 3, 3, 4), made(5)], (1, 4, 3, 5), conv(SAME, StrideH=2, StrideW=2)),
        ("CONV_2D", [X, made(5, 2, 3, 4), made(5)], (1, 7, 6, 5), conv(SAME, DilationHFactor=3, **FUSED)),
        (
            "DEPTHWISE_CONV_2D", [X, made(1, 3, 3, 8), made(8)], (1, 4, 3, 8),
            {**conv(SAME, StrideH=2, StrideW=2), "table": "DepthwiseConv2DOptions", "DepthMultiplier": 2},
        ),
        ("MAX_POOL_2D", [X], (1, 4, 3, 4), pool(SAME, 3, StrideH=2, StrideW=2)),
        ("MAX_POOL_2D", [X], (1, 5, 5, 4), pool(VALID, 3)),
        ("AVERAGE_POOL_2D", [X], (1, 4, 3, 4), pool(SAME, 3, StrideH=2, StrideW=2)),
        ("AVERAGE_POOL_2D", [X], (1, 5, 5, 4), pool(VALID, 3, FusedActivationFunction=RELU)),
        ("MEAN", [X, whole(1, 2)], (1, 4), {"table": "ReducerOptions", "KeepDims": False}),
        ("MEAN", [X, whole(2, 1)], (1, 1, 1, 4), {"table": "ReducerOptions", "KeepDims": True}),
        ("SUM", [X, whole(1)], (1, 6, 4), {"table": "ReducerOptions", "KeepDims": False}),
        ("REDUCE_MAX", [X, whole(-1)], (1, 7, 6, 1), {"table": "ReducerOptions", "KeepDims": True}),
        ("REDUCE_MIN", [X, whole(3)], (1, 7, 6), {"table": "ReducerOptions", "KeepDims": False}),
        ("PAD", [X, whole([0, 0], [1, 2], [0, 3], [0, 2])], (1, 10, 9, 6), {}),
        ("PADV2", [X, whole([0, 0], [1, 2], [0, 3], [0, 0]), lambda f: f.number(-1.5)], (1, 10, 9, 4), {}),
        ("MIRROR_PAD", [X, whole([0, 0], [1, 2], [0, 3], [0, 0])], (1, 10, 9, 4), MIRROR),
        ("CONCATENATION", [X, made(1, 7, 6, 2)], (1, 7, 6, 6), {"table": "ConcatenationOptions", "Axis": 3}),
        ("CONCATENATION", [X, made(1, 7, 2, 4)], (1, 7, 8, 4), {"table": "ConcatenationOptions", "Axis": -2}),
        ("RESHAPE", [X, whole(1, 168)], (1, 168), {}),
        ("RESHAPE", [X, whole(-1, 6, 7, 4)], (1, 6, 7, 4), {}),
        ("RESHAPE", [X, whole(1, 42, 4)], (1, 42, 4), {}),
        ("TRANSPOSE", [X, whole(0, 3, 1, 2)], (1, 4, 7, 6), {}),
        ("STRIDED_SLICE", [X, whole(0, 1, 0, 0), whole(1, 7, 6, 4), whole(1, 2, 3, 1)], (1, 3, 2, 4), {}),
        (
            "STRIDED_SLICE", [X, whole(0, 1, 2, 1), whole(0, 7, 0, 3), whole(1, 2, 1, 1)], (1, 3, 2),
            {"table": "StridedSliceOptions", "BeginMask": 1, "EndMask": 1, "ShrinkAxisMask": 4},
        ),
        ("SLICE", [X, whole(0, 1, 2, 1), whole(1, -1, 3, 2)], (1, 6, 3, 2), {}),
        ("SPLIT", [whole(3), X], [(1, 7, 6, 2)] * 2, {"table": "SplitOptions", "NumSplits": 2}),
        ("SPLIT_V", [X, whole(2, 5), whole(1)], [(1, 2, 6, 4), (1, 5, 6, 4)],
         {"table": "SplitVOptions", "NumSplits": 2}),
        ("EXPAND_DIMS", [X, whole(1)], (1, 1, 7, 6, 4), {}),
        ("FULLY_CONNECTED", [X, made(5, 168), made(5)], (1, 5), {"table": "FullyConnectedOptions"}),
        ("FULLY_CONNECTED", [X, made(5, 4), made(5)], (1, 7, 6, 5), {**DENSE, "KeepNumDims": True}),
        ("CAST", [X], IMAGE, {"table": "CastOptions", "OutDataType": 0, "InDataType": 0}),
    ],
    (1, 6): [
        ("FULLY_CONNECTED", [X, made(5, 6), made(5)], (1, 5), DENSE | FUSED),
        ("PRELU", [X, made(6)], (1, 6), {}),
        ("RESHAPE", [X, whole(1, 1, 1, 6)], (1, 1, 1, 6), {}),
        ("SOFTMAX", [X], (1, 6), {"table": "SoftmaxOptions", "Beta": 1.0}),
    ],
    (1, 4, 6, 8): [
        ("DEPTH_TO_SPACE", [X], (1, 8, 12, 2), {"table": "DepthToSpaceOptions", "BlockSize": 2}),
        ("SPACE_TO_DEPTH", [X], (1, 2, 3, 32), {"table": "SpaceToDepthOptions", "BlockSize": 2}),
    ],
    (1, 1, 1, 6): [("SQUEEZE", [X], (1, 6), {"table": "SqueezeOptions", "SqueezeDims": [1, 2]})],
}  # fmt: skip
CASES = [
    pytest.param(shape, case, id=f"{case[0]}{i}")
    for i, (shape, case) in enumerate((shape, case) for shape, cases in NODES.items() for case in cases)
]


def by_litert(content: bytes, given: Array) -> Array:
    from bnew.importing.tflite_runtime import _litert

    pytest.importorskip("ai_edge_litert")
    return _litert(content)(given)[0]


@pytest.mark.parametrize(("shape", "case"), CASES)
def test_an_operator(shape: tuple[int, ...], case: Case, source: Path) -> None:
    kind, inputs, shapes, options = case
    file = File(shape)
    shapes = shapes if isinstance(shapes, list) else [shapes]
    result = file.op(kind, [0 if make is None else make(file) for make in inputs], *shapes, **options)
    x = images(*shape)
    content = file.write(source, result)
    np.testing.assert_allclose(ours(source, x), by_litert(content, x), atol=2e-6, rtol=2e-5)


def test_positive_numbers(source: Path) -> None:
    file = File((1, 6))
    x = file.op("SQUARE", [0], (1, 6))
    x = file.op("POW", [file.op("RSQRT", [x], (1, 6)), file.number(1.5)], (1, 6))
    x = file.op("LOG", [file.op("SQRT", [x], (1, 6))], (1, 6))
    content = file.write(source, x)
    np.testing.assert_allclose(ours(source, images(1, 6)), by_litert(content, images(1, 6)), atol=1e-5)


def test_choices(source: Path) -> None:
    file = File((1, 2, 3, 4))
    shape = (1, 2, 3, 4)
    x = 0
    for kind in ("GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"):
        bools = file.op(kind, [x, file.normal(4)], shape, dtype=np.bool_)
        bools = file.op("LOGICAL_NOT", [bools], shape, dtype=np.bool_)
        x = file.op("SELECT_V2", [bools, x, file.normal(4)], shape)
    content = file.write(source, x)
    np.testing.assert_allclose(ours(source, images(*shape)), by_litert(content, images(*shape)))


CUBE = (1, 4, 4, 4)  # sides alike, so that axes in a wrong order have the right shape


def chosen_by_a_constant(file: File) -> int:
    condition = file.number(file.random.normal(size=CUBE) > 0, np.bool_)
    return file.op("SELECT_V2", [condition, 0, file.number(3.0)], CUBE)


def cast_of_a_constant(file: File) -> int:
    whole_numbers = file.number(file.random.integers(0, 9, CUBE), np.int32)
    real = file.op("CAST", [whole_numbers], CUBE, table="CastOptions", InDataType=2, OutDataType=0)
    return file.op("ADD", [0, real], CUBE)


def row_of_a_constant(file: File) -> int:
    ends = [file.number(each, np.int32) for each in ([0, 0], [1, 4], [1, 1])]
    row = file.op("STRIDED_SLICE", [file.normal(5, 4), *ends], (1, 4))
    again = file.op("SLICE", [file.normal(5, 4), file.number([0, 0], np.int32), ends[1]], (1, 4))
    return file.op("ADD", [file.op("ADD", [0, row], CUBE), again], CUBE)


def reshaped_constant(file: File) -> int:
    column = file.op("RESHAPE", [file.normal(4, 1), file.number([1, 4], np.int32)], (1, 4))
    flat = file.op("RESHAPE", [file.normal(2, 2), file.number([-1], np.int32)], (4,))
    return file.op("MUL", [file.op("ADD", [0, column], CUBE), flat], CUBE)


@pytest.mark.parametrize(
    "make", [chosen_by_a_constant, cast_of_a_constant, row_of_a_constant, reshaped_constant]
)
def test_constants(make: Callable[[File], int], source: Path, path: Path) -> None:
    """What is computed before the network runs, and whose first axis is not of images."""
    file = File(CUBE)
    content = file.write(source, make(file))
    import_tflite(source, path)
    x = images(3, *CUBE[1:])
    expected = np.concatenate([by_litert(content, x[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(by_engine(path, x), expected, atol=1e-6)


def test_half_precision_weights_and_computed_shapes(source: Path, path: Path) -> None:
    """As TensorFlow writes them: float16 and DEQUANTIZE, and a shape computed from the image's."""
    file = File((1, 4, 4, 3))
    weight = file.number(file.random.normal(size=(8, 3, 3, 3)), np.float16)
    weight = file.op("DEQUANTIZE", [weight], (8, 3, 3, 3))
    x = file.conv(0, weight, file.normal(8), (1, 4, 4, 8))
    rows = file.op("DEQUANTIZE", [file.number([[1], [2], [3], [4]], np.float16)], (4, 1))
    x = file.op("MUL", [x, rows], (1, 4, 4, 8))  # no image's, though it begins with another axis
    lengths = file.op("SHAPE", [x], (4,), dtype=np.int32, table="ShapeOptions", OutType=2)
    ends = [file.number([each], np.int32) for each in (0, 1, 1)]
    first = file.op(
        "STRIDED_SLICE", [lengths, *ends], (), dtype=np.int32, table="StridedSliceOptions", ShrinkAxisMask=1
    )
    rest = file.op(
        "STRIDED_SLICE",
        [lengths, file.number([1], np.int32), file.number([4], np.int32), ends[1]],
        (3,),
        dtype=np.int32,
    )
    rest = file.op("REDUCE_PROD", [rest, file.number([0], np.int32)], (), dtype=np.int32)
    wanted = file.op("PACK", [first, rest], (2,), dtype=np.int32, table="PackOptions", ValuesCount=2, Axis=0)
    x = file.op("RESHAPE", [x, wanted], (1, 128))
    content = file.write(source, x)
    given = images(1, 4, 4, 3)
    import_tflite(source, path)
    several = images(3, 4, 4, 3)
    assert by_engine(path, several).shape == (3, 128)
    expected = by_litert(content, given)
    np.testing.assert_allclose(by_engine(path, given), expected, atol=1e-5)


def test_every_operator_has_a_test() -> None:
    tested = {case[0] for cases in NODES.values() for case in cases}
    tested |= {"GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "LOGICAL_NOT", "SELECT_V2", "DEQUANTIZE"}
    tested |= {"SHAPE", "PACK", "REDUCE_PROD", "POW", "SQRT", "RSQRT", "LOG"}
    tested |= {"LceQuantize", "LceDequantize", "LceBconv2d", "LceBMaxPool2d"}
    assert {name.removeprefix(f"{TFLITE}.") for name in tflite_operators.OPERATORS} == tested


def test_one_number_for_a_channel_of_each_image(source: Path, path: Path) -> None:
    """A file for one image multiplies (1, H, W, C) by (1, C); here each image has its own."""
    file = File((1, 3, 5, 4))
    mean = file.op("MEAN", [0, file.number([1, 2], np.int32)], (1, 4), table="ReducerOptions", KeepDims=False)
    content = file.write(source, file.op("MUL", [0, file.op("LOGISTIC", [mean], (1, 4))], (1, 3, 5, 4)))
    import_tflite(source, path)
    x = images(5, 3, 5, 4)
    expected = np.concatenate([by_litert(content, x[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(by_engine(path, x), expected, atol=1e-6)


# -------------------------------------------------------------------------------------------- what is refused


def one(
    kind: str, shape: Sequence[int] = (1, 4, 4, 8), *more: Callable[[File], int], **options: Any
) -> Callable[[], bytes]:
    """A file of one operator, whose result has the shape of the image."""

    def written() -> bytes:
        file = File(shape)
        return file.content(file.op(kind, [0, *(make(file) for make in more)], shape, **options))

    return written


def binary(**options: Any) -> Callable[[], bytes]:
    def written() -> bytes:
        file = File((1, 4, 4, 8))
        numbers = [file.normal(5), file.normal(5)]
        return file.content(
            file.bconv(file.quantize(0), file.signs(5, 3, 3, 8), numbers, (1, 4, 4, 5), 8, **options)
        )

    return written


def unknown() -> bytes:
    file = File((1, 4))
    x = file.op("SIN", [file.op("LqceBconv2d64", [file.op("COS", [0], (1, 4))], (1, 4))], (1, 4))
    return file.content(x)


def quantized() -> bytes:
    file = File((1, 4))
    return file.content(file.op("FULLY_CONNECTED", [0, file.number(np.ones((3, 4)), np.int8), -1], (1, 3)))


def two_inputs() -> bytes:
    file = File((1, 4))
    file.inputs.append(file.tensor("y", (1, 4)))
    return file.content(file.op("ADD", [0, 1], (1, 4)))


def cast_and_back(dtype: Any, **options: Any) -> Callable[[], bytes]:
    def written() -> bytes:
        file = File((1, 4))
        return file.content(file.op("CAST", [file.op("CAST", [0], (1, 4), dtype=dtype, **options)], (1, 4)))

    return written


def missing_numbers() -> bytes:
    file = File((1, 4, 4, 8))
    numbers = [file.normal(1), file.normal(1)]
    return file.content(file.bconv(file.quantize(0), file.signs(5, 3, 3, 8), numbers, (1, 4, 4, 5), 8))


def pool_of_real_numbers() -> bytes:
    file = File((1, 4, 4, 8))
    pool = {"filter_height": 2, "filter_width": 2, "stride_height": 2, "stride_width": 2, "padding": VALID}
    return file.content(
        file.op(
            "LceDequantize",
            [file.op("LceBMaxPool2d", [0], (1, 2, 2, 1), dtype=np.int32, **pool)],
            (1, 2, 2, 8),
        )
    )


def unnamed_options() -> bytes:
    file = File((1, 4, 4, 8))
    pooled = file.op("LceBMaxPool2d", [file.quantize(0)], (1, 4, 4, 1), dtype=np.int32)
    return file.content(file.op("LceDequantize", [pooled], (1, 4, 4, 8)))


def of_any_size() -> bytes:
    file = File((1, 1, 1, 3), signature=(-1, -1, -1, 3))
    return file.content(file.op("RELU", [0], (1, 1, 1, 3)))


def custom_relu() -> bytes:
    """An operator of others that is called as one of TensorFlow Lite."""
    file = File((1, 4))
    return file.content(file.op("mine", [0], (1, 4))).replace(b"mine", b"RELU")


def slice_by_lengths() -> bytes:
    file = File((1, 4))
    ends = [file.number(each, np.int32) for each in ([0, 1], [1, 2], [1, 1])]
    return file.content(
        file.op("STRIDED_SLICE", [0, *ends], (1, 2), table="StridedSliceOptions", Offset=True)
    )


def too_few_biases() -> bytes:
    file = File((1, 4))
    return file.content(file.op("FULLY_CONNECTED", [0, file.normal(5, 4), file.normal(1)], (1, 5), **DENSE))


def real_at_a_binary_layer() -> bytes:
    file = File((1, 4, 4, 8))
    return file.content(file.bconv(0, file.signs(5, 3, 3, 8), [file.normal(5)] * 2, (1, 4, 4, 5), 8))


def bits_in_a_real_pool() -> bytes:
    file = File((1, 4, 4, 64))
    return file.content(file.op("MAX_POOL_2D", [file.quantize(0)], (1, 4, 4, 2), **pool(SAME, 2)))


def before_it_is_computed() -> bytes:
    file = File((1, 4))
    return file.content(file.op("ADD", [0, file.tensor("later", (1, 4))], (1, 4)))


REFUSALS: dict[str, tuple[Callable[[], bytes], str]] = {
    "another file": (lambda: b"not a file of TensorFlow", "is no ONNX file, or is broken"),
    "a header alone": (lambda: b"\x10\0\0\0TFL3", "is no .tflite file, or is broken"),
    "unknown operators": (
        unknown,
        r"not imported: COS \(node 'COS_0.0'\), LqceBconv2d64 \(node .*\), SIN \(node 'SIN_2.0'\)",
    ),
    "quantized weights": (quantized, "FULLY_CONNECTED 'FULLY_CONNECTED_0.0' is not imported: 'c1' is int8"),
    "two inputs": (two_inputs, r"has 2 inputs \(x, y\), but a packed file takes one image"),
    "bytes": (lambda: File((1, 4), dtype=np.int8).content(0), "the result 'x' of .* is not float32"),
    "a sound": (one("RELU", (1, 4, 4)), "is no batch of float32 images .* float32 of 3 dimensions"),
    "no weights": (before_it_is_computed, "nothing computes 'later' before it"),
    "another shape": (one("CONV_2D", (1, 4, 4, 8), made(5, 3, 3, 8), made(5), **conv(SAME)), "in the file"),
    "a large border": (one("PAD", (1, 4), whole([0, 0], [10**9, 0])), r"shape \[1, 1000000004\] here"),
    "a large window": (one("MAX_POOL_2D", **pool(SAME, 10**6)), "is too large for 4"),
    "no stride": (one("MAX_POOL_2D", **pool(SAME, 2, StrideH=0)), "its strides"),
    "no options": (one("MAX_POOL_2D"), "MAX_POOL_2D 'MAX_POOL_2D_0.0' is not imported: "),
    "an unknown activation": (
        one("ADD", (1, 4), made(4), table="AddOptions", FusedActivationFunction=5), "is number 5",
    ),
    "a mean of images": (
        one("MEAN", (1, 4), whole(0), table="ReducerOptions", KeepDims=True), "it reduces over the images",
    ),
    "slopes of pixels": (one("PRELU", (1, 4, 4, 8), made(4, 4, 8)), "its slopes are not one per channel"),
    "an old binary layer": (binary(padding="SAME"), "its options are not those of Larq Compute Engine 0.5"),
    "a border of twos": (binary(pad_values=2), "its pad_values is 2"),
    "an activation with zeros": (binary(fused_activation_function=RELU), "which Larq does not compute"),
    "other channels": (binary(channels_in=70), "its 1 words of weights are not for 70 channels"),
    "other signs": (binary(channels_in=7), "its weights are for 7 channels, and it gets 8"),
    "a real input": (real_at_a_binary_layer, "it computes with .x., which is no packed signs"),
    "a pool of real numbers": (pool_of_real_numbers, "it computes with 'x', which is no packed signs"),
    "no options of Larq": (unnamed_options, "the file does not say its 'FilterHeight'"),
    "no beta": (one("SOFTMAX"), "the file does not say its 'Beta'"),
    "one multiplier": (missing_numbers, "it has not one multiplier and bias for each of its 5 results"),
    "one bias": (too_few_biases, "it has 1 biases for 5 results"),
    "a cast to whole numbers": (
        # TensorFlow Lite goes by the type of the result, whatever the options say.
        cast_and_back(np.int32, table="CastOptions", OutDataType=0), "it casts real numbers to whole ones"),
    "a cast without options": (cast_and_back(np.int32), "it casts real numbers to whole ones"),
    "a cast to half precision": (
        cast_and_back(np.float16, table="CastOptions", OutDataType=1), "it casts real .* or rounds them"),
    "a slice by lengths": (slice_by_lengths, "or says lengths for ends"),
    "images of any size": (of_any_size, "leaves the size of its images open: convert it for one size"),
    "a name of another": (custom_relu, r"not imported: custom RELU \(node"),
    "bits in a real pool": (bits_in_a_real_pool, "it computes with .LceQuantize_0.0., which is bits"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str, source: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bnew.cli import main

    make, message = REFUSALS[case]
    source.write_bytes(make())
    with pytest.raises(SystemExit) as ended:
        main(["import", str(source), str(path)])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("bnew: error: ")
    assert said.count("\n") == 1
    with pytest.raises(BnewError, match=message):
        raise BnewError(said)
    assert not path.exists()


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files(seed: int, source: Path) -> None:
    """Cut, or with other bytes: read as they are, or refused in one sentence, and soon."""
    quicknet(source)
    whole_file = source.read_bytes()
    random = np.random.default_rng(seed)
    refused = 0
    for i in range(40):
        content = bytearray(whole_file)
        if i % 4 == 0:
            content = content[: random.integers(len(content))]
        else:
            places = (
                random.integers(8, len(content), 3)
                if i % 2
                else random.integers(len(content) - 3000, len(content), 3)
            )
            for place in places:
                content[place] = random.choice([0, 1, 127, 255, content[place] ^ 1 << random.integers(8)])
        source.write_bytes(content)
        try:
            ours(source, images(1, 16, 12, 3))
        except BnewError as error:
            refused += "\n" not in str(error)
        except (RuntimeError, ValueError):  # another shape of its image, which this test does not have
            refused += 1
    assert refused > 10


def test_a_wrong_operator_is_found(source: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ai_edge_litert")
    file = File((1, 6))
    file.write(source, file.op("TANH", [file.op("RELU", [0], (1, 6))], (1, 6)))
    found = import_tflite(source, path)
    assert str(found).splitlines()[1].startswith("LiteRT: 2 nodes differ by ")
    path.unlink()
    row = tflite_operators._checked("TANH")
    monkeypatch.setitem(ROWS, f"{TFLITE}.RELU", row)
    with pytest.raises(BnewError, match=r"RELU 'RELU_0.0' is not imported: it differs by .* from LiteRT"):
        import_tflite(source, path)
    assert not path.exists()


def test_without_the_library(source: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.write_bytes(one("RELU")())
    monkeypatch.setitem(sys.modules, "tflite", None)
    with pytest.raises(BnewError, match=r"importing needs tflite .*pip install 'bnew\[tflite\]'"):
        import_tflite(source, path)


def test_without_an_interpreter(source: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.write_bytes(one("RELU")())
    monkeypatch.setattr(tflite_runtime, "_larq", lambda content: None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    found = import_tflite(source, path)
    assert found.nodes is None
    assert "not compared with Larq Compute Engine (for NumPy 1) or LiteRT, which is not" in str(found)
