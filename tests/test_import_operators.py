"""Operators of ONNX one by one: the packed file in the engine against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnew import BnewError
from bnew.importing.importer import import_onnx
from bnew.importing.operators import CONSTANT, OPERATORS

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
bnew_engine = pytest.importorskip("bnew_engine")

import qonnx_reference  # noqa: E402
from onnx_files import FLOAT, File  # noqa: E402
from test_import import NODES as OTHERS  # noqa: E402
from test_import import by_engine, by_runtime, path, real, scalar, source, whole, write  # noqa: E402, F401

Case = tuple[str, list[Callable[[File], str]], dict[str, Any]]


def none(file: File) -> str:
    return ""


def factors(*numbers: float) -> list[Callable[[File], str]]:
    """The further inputs of a Resize by factors."""
    return [none, lambda file: file.number(numbers)]


def five(file: File) -> str:
    """The length of a line."""
    return file.number([5], np.int32)


def size(*numbers: int) -> list[Callable[[File], str]]:
    return [none, none, whole(*numbers)]


def weights(*coordinates: str, mode: str) -> list[dict[str, Any]]:
    return [{"mode": mode, "coordinate_transformation_mode": each} for each in coordinates]


def condition(kind: str, limit: float) -> Callable[[File], str]:
    """Another condition on the image."""
    return lambda file: file.node(kind, "x", file.number(limit))


IMAGE, LINE = (2, 4, 7, 6), (2, 4, 9)
COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
PYTORCH = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
TWO = {"strides": [2, 2]}
BOTH = {"hidden_size": 3, "direction": "bidirectional"}
LINEAR = {"hidden_size": 3, "linear_before_reset": 1}
LENGTHS = ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")
# (opset, shape of the image) → cases as in test_import.py.
NODES: dict[tuple[int, tuple[int, ...]], list[Case]] = {
    (15, IMAGE): [
        ("Resize", factors(1, 1, 2, 2), {}),
        ("Resize", factors(1, 1, 2, 3), PYTORCH),
        ("Resize", size(2, 4, 11, 3), PYTORCH),
        *(
            ("Resize", size(2, 4, 10, 4), {"coordinate_transformation_mode": each, "nearest_mode": rounding})
            for each in COORDINATES for rounding in ROUNDINGS
        ),
        ("Resize", factors(1, 1, 1.5, 0.7), {"nearest_mode": "round_prefer_ceil"}),
        *(("Resize", size(2, 4, 11, 4), how) for how in weights(*COORDINATES, mode="linear")),
        *(("Resize", factors(1, 1, 1.3, 2), how) for how in weights(*COORDINATES, mode="linear")),
        *(("Resize", size(2, 4, 1, 9), how) for how in weights(*COORDINATES, mode="linear")),
        *(("Resize", size(2, 4, 11, 4), how) for how in weights(*COORDINATES, mode="cubic")),
        ("Resize", factors(1, 1, 2.4, 1), {"mode": "cubic", "cubic_coeff_a": -0.5}),
        ("ConvTranspose", [real(4, 5, 3, 3)], {}),
        ("ConvTranspose", [real(4, 5, 3, 2), real(5)], {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
        ("ConvTranspose", [real(4, 3, 3, 3)], {**TWO, "group": 2, "output_padding": [1, 0]}),
        ("ConvTranspose", [real(4, 3, 3, 3)], {**TWO, "pads": [1, 0, 0, 1], "output_padding": [1, 1]}),
        ("ConvTranspose", [real(4, 3, 3, 3)], {**TWO, "pads": [0, 0, 1, 1]}),
        ("ConvTranspose", [real(4, 3, 2, 3)], {"dilations": [3, 2], "pads": [2, 1, 2, 1]}),
        ("ConvTranspose", [real(4, 2, 3, 3), real(8)], {**TWO, "group": 4, "auto_pad": "SAME_UPPER"}),
        ("ConvTranspose", [real(4, 3, 3, 4)], {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
        ("ConvTranspose", [real(4, 3, 3, 3)], {"auto_pad": "VALID", "strides": [1, 2]}),
        ("ConvTranspose", [real(4, 3, 3, 3)], {**TWO, "output_shape": [14, 12]}),
        ("ConvTranspose", [real(4, 3, 3, 2)], {**TWO, "output_shape": [15, 13], "auto_pad": "SAME_UPPER"}),
        ("Einsum", [real(4, 5)], {"equation": "nchw,cd->ndhw"}),
        ("Einsum", [real(6, 3)], {"equation": "nchw, wk -> nkh"}),
        ("Einsum", [lambda file: file.node("Tanh", "x")], {"equation": "...hw,...kw->...hk"}),
        ("Einsum", [], {"equation": "nchw->nhc"}),
        ("Celu", [], {}),
        ("Celu", [], {"alpha": 0.4}),
        ("ThresholdedRelu", [], {}),
        ("ThresholdedRelu", [], {"alpha": 0.3}),
        ("Shrink", [], {}),
        ("Shrink", [], {"lambd": 0.3, "bias": 0.2}),
        *((kind, [], {}) for kind in ("Softsign", "Round", "Erf", "Sinh", "Cosh", "Hardmax")),
        ("Hardmax", [], {"axis": 1}),
        ("Mean", [real(4, 1, 1), scalar(2)], {}),
        ("InstanceNormalization", [real(4), real(4)], {}),
        ("InstanceNormalization", [real(4), real(4)], {"epsilon": 0.1}),
        ("LpNormalization", [], {"axis": 1}),
        ("LpNormalization", [], {"axis": 1, "p": 1}),
        ("LpNormalization", [], {}),
        ("LRN", [], {"size": 3}),
        ("LRN", [], {"size": 5, "alpha": 0.5, "beta": 0.5, "bias": 2.0}),
        *((kind, [], {"axes": [1]}) for kind in LENGTHS),
        *((kind, [], {"axes": [3, -2], "keepdims": 0}) for kind in LENGTHS),
        ("ReduceProd", [], {"axes": [1, 3]}),
        ("ReduceProd", [], {"axes": [2], "keepdims": 0}),
        ("ArgMin", [], {"axis": 1}),
        ("ArgMin", [], {"axis": -1, "keepdims": 0}),
        ("TopK", [whole(2)], {"axis": 1, "results": 2}),
        ("TopK", [whole(3)], {"largest": 0, "results": 2}),
        ("CumSum", [whole(1)], {}),
        ("CumSum", [whole(-1)], {"reverse": 1}),
        ("Tile", [whole(1, 2, 1, 3)], {}),
        ("Trilu", [], {}),
        ("Trilu", [whole(1)], {"upper": 0}),
    ],
    (15, LINE): [
        ("Resize", factors(1, 1, 2), PYTORCH),
        ("Resize", size(2, 4, 5), {}),
        *(("Resize", size(2, 4, 14), how) for how in weights(*COORDINATES, mode="linear")),
        ("ConvTranspose", [real(4, 3, 3), real(6)], {"group": 2, "strides": [2], "pads": [1, 0]}),
    ],
    (18, IMAGE): [
        ("Resize", [none, lambda file: file.number([2, 0.5])], {"axes": [2, 3], "mode": "linear"}),
        ("Resize", [none, none, whole(9, 8)], {"axes": [3, 2]}),
        ("Mish", [], {}),
        ("ReduceL2", [whole(1)], {}),
        ("ReduceProd", [whole(1)], {}),
    ],
    (21, IMAGE): [
        ("GroupNormalization", [real(4), real(4)], {"num_groups": 2}),
        ("GroupNormalization", [real(4), real(4)], {"num_groups": 4, "epsilon": 0.1}),
    ],
    (24, IMAGE): [("Swish", [], {}), ("Swish", [], {"alpha": 0.5})],
    (23, IMAGE): [
        ("RMSNormalization", [real(6)], {}),
        ("RMSNormalization", [real(7, 6)], {"axis": -2, "epsilon": 0.1}),
    ],
    (18, (2, 12, 16)): [("Col2Im", [whole(5, 6), whole(2, 3)], {})],
    (18, (2, 12, 9)): [
        ("Col2Im", [whole(5, 6), whole(2, 3)], {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
        ("Col2Im", [whole(5, 7), whole(2, 2)], {"strides": [1, 2], "dilations": [2, 2]}),
    ],
    (9, IMAGE): [
        ("Upsample", [lambda file: file.number([1, 1, 2, 3])], {}),
        ("Upsample", [lambda file: file.number([1, 1, 2, 1.5])], {"mode": "linear"}),
    ],
    (7, IMAGE): [("Upsample", [], {"scales": [1.0, 1.0, 2.0, 2.5]})],
    (10, IMAGE): [
        ("Resize", [lambda file: file.number([1, 1, 2, 3])], {}),
        ("Resize", [lambda file: file.number([1, 1, 0.5, 1.5])], {"mode": "linear"}),
    ],
}  # fmt: skip
CASES = [
    pytest.param(opset, shape, case, id=f"{case[0]}{i}")
    for i, (opset, shape, case) in enumerate((*key, case) for key, cases in NODES.items() for case in cases)
]


@pytest.mark.parametrize(("opset", "shape", "case"), CASES)
def test_an_operator(opset: int, shape: tuple[int, ...], case: Case, source: Path, path: Path) -> None:  # noqa: F811
    kind, inputs, attributes = case
    fixed = kind == "Resize" and opset != 18  # its sizes hold the number of images
    file = File((2 if fixed else "n", *shape[1:]), opset=opset)
    result = file.node(kind, "x", *(make(file) for make in inputs), **attributes)
    results = [result, f"{result[:-1]}1"] if kind == "TopK" else [result]
    whole_numbers = kind in ("ArgMin", "TopK")
    results[-1] = file.node("Cast", results[-1], to=FLOAT) if whole_numbers else results[-1]
    file.write(source, *results)
    found = import_onnx(source, path)
    assert found.nodes is not None
    images = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    ours = by_engine(path, images)
    each = ours.values() if isinstance(ours, dict) else [ours]
    for own, expected in zip(each, session.run(None, {"x": images}), strict=True):
        np.testing.assert_allclose(own.reshape(expected.shape), expected, atol=1e-5, rtol=1e-4)


# (operator, its weights and states, attributes) of lines (5, 4), in a file for one of them.
RECURRENT: list[Case] = [
    ("LSTM", [real(1, 12, 4), real(1, 12, 3)], {"hidden_size": 3}),
    ("LSTM", [real(2, 12, 4), real(2, 12, 3), real(2, 24)], {**BOTH}),
    (
        "LSTM",
        [real(1, 12, 4), real(1, 12, 3), real(1, 24), five, real(1, 1, 3), real(1, 1, 3)],
        {"hidden_size": 3, "direction": "reverse"},
    ),
    ("GRU", [real(1, 9, 4), real(1, 9, 3), real(1, 18)], {**LINEAR}),
    ("GRU", [real(2, 9, 4), real(2, 9, 3)], {**LINEAR, **BOTH}),
    ("RNN", [real(1, 3, 4), real(1, 3, 3), real(1, 6)], {"hidden_size": 3}),
    ("RNN", [real(2, 3, 4), real(2, 3, 3)], {**BOTH, "activations": ["Relu", "Relu"]}),
]  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{c[0]}{i}") for i, c in enumerate(RECURRENT)])
def test_a_recurrent_layer(case: Case, source: Path, path: Path) -> None:  # noqa: F811
    kind, inputs, attributes = case
    file = File((1, 5, 4), opset=15)
    lines = file.node("Transpose", "x", perm=[1, 0, 2])
    count = 3 if kind == "LSTM" else 2
    whole_line = file.node(kind, lines, *(make(file) for make in inputs), results=count, **attributes)
    results = [file.node("Transpose", whole_line, perm=[2, 0, 1, 3])]
    results += [file.node("Transpose", f"{whole_line[:-1]}{i}", perm=[1, 0, 2]) for i in range(1, count)]
    file.write(source, *results)
    import_onnx(source, path)
    images = np.random.default_rng(4).normal(size=(2, 5, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    ours = bnew_engine.load(path)(images).values()
    theirs = zip(*(session.run(None, {"x": each[None]}) for each in images), strict=True)
    for own, expected in zip(ours, map(np.concatenate, theirs), strict=True):
        np.testing.assert_allclose(own.reshape(expected.shape), expected, atol=1e-5, rtol=1e-4)


def conditions(file: File) -> str:
    """What lies between −0.5 and 0.5 or is far above, without what is 0 after a Relu."""
    x = file.node("Conv", "x", file.normal(4, 3, 1, 1))
    above, below = (file.node(kind, x, file.number(n)) for kind, n in (("Greater", -0.5), ("Less", 0.5)))
    near = file.node("And", above, below)
    near = file.node("Or", near, file.node("Greater", x, file.number(1.5)))
    zero = file.node("Equal", file.node("Relu", x), file.number(0))
    return file.node("Where", file.node("Xor", near, zero), x, file.number(-2))


def roundings(file: File) -> str:
    x = file.node("Clip", file.node("Mul", "x", file.number(3)), file.number(-4), file.number(4))
    parts = [file.node(kind, x) for kind in ("Floor", "Ceil", "Round")]
    return file.node("Concat", *parts, axis=1)


def classes(file: File) -> str:
    """The best class of each place as 3, the others as −1; and how many numbers an image has."""
    best = file.node("ArgMax", file.node("Conv", "x", file.normal(4, 3, 1, 1)), axis=1, keepdims=0)
    hot = file.node("OneHot", best, file.number(4, np.int64), file.number([-1, 3]), axis=1)
    count = file.node("Size", file.node("ReduceMax", "x", axes=[0]))
    return file.node("Div", hot, file.node("Cast", count, to=FLOAT))


def sums(file: File) -> str:
    return file.node("ReduceLogSum", file.node("Abs", "x"), axes=[1])  # opset 13: an attribute


def quantized(file: File) -> str:
    """Numbers of eight bits: one scale, scales per channel, and weights that are whole numbers."""
    x = file.node("QuantizeLinear", "x", file.number(0.05), file.number(3, np.int8))
    x = file.node("DequantizeLinear", x, file.number(0.05), file.number(3, np.int8))
    whole_weights = file.number(file.random.integers(-9, 9, (4, 3, 3, 3)), np.int8)
    scales = file.number([0.1, 0.2, 0.3, 0.4])
    weights = file.node("DequantizeLinear", whole_weights, scales, axis=0)
    x = file.node("Relu", file.node("Conv", x, weights))
    x = file.node("QuantizeLinear", x, scales)
    return file.node("DequantizeLinear", x, scales, file.number([1, 0, 2, 0], np.uint8), axis=1)


GRAPHS = {each.__name__: each for each in (conditions, roundings, classes, sums, quantized)}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph(name: str, source: Path, path: Path) -> None:  # noqa: F811
    file = File(("n", 3, 6, 5), opset=13)
    file.write(source, GRAPHS[name](file))
    found = import_onnx(source, path)
    assert found.engine is not None
    assert found.engine.equal == found.engine.images
    images = np.random.default_rng(6).normal(size=(3, 3, 6, 5)).astype(np.float32)
    np.testing.assert_allclose(by_engine(path, images), by_runtime(source, images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
def test_a_transposed_convolution_of_signs(binary: bool, source: Path, path: Path) -> None:  # noqa: F811
    file = File(("n", 3, 6, 5))
    x = file.bipolar(file.node("Conv", "x", file.normal(4, 3, 3, 3), pads=[1] * 4))
    weight = file.normal(4, 5, 3, 3)
    weight = file.node("Mul", file.bipolar(weight), file.normal(1, 5, 1, 1)) if binary else weight
    strided: dict[str, Any] = {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}
    x = file.bipolar(file.node("ConvTranspose", x, weight, file.normal(5), **strided))
    model = file.write(source, file.node("Conv", x, file.bipolar(file.normal(2, 5, 3, 3))))
    found = import_onnx(source, path)
    assert sum(node.binary_weights for node in found.packed.nodes) == (4 * 5 * 9 if binary else 0) + 2 * 5 * 9
    images = np.random.default_rng(2).normal(size=(3, 3, 6, 5)).astype(np.float32)
    np.testing.assert_allclose(by_engine(path, images), qonnx_reference.run(model, images), atol=2e-5)


def test_weights_of_int8_become_bits(source: Path, path: Path) -> None:  # noqa: F811
    file = File(("n", 3, 6, 5), opset=19)
    x = file.bipolar(file.node("Conv", "x", file.normal(4, 3, 3, 3)))
    whole_weights = file.number(np.sign(file.random.normal(size=(5, 4, 3, 3))), np.int8)
    weights = file.node("DequantizeLinear", whole_weights, file.number([1, 2, 0.5, 3, 1]), axis=0)
    model = file.write(source, file.node("Conv", x, weights))
    assert import_onnx(source, path).binary_layers == 1
    images = np.random.default_rng(2).normal(size=(3, 3, 6, 5)).astype(np.float32)
    np.testing.assert_allclose(by_engine(path, images), qonnx_reference.run(model, images), atol=2e-5)


@pytest.mark.parametrize("how", ["half_pixel", "asymmetric"])
def test_signs_stay_bits_when_they_are_resized(how: str, source: Path, path: Path) -> None:  # noqa: F811
    file = File(("n", 3, 6, 5))
    x = file.bipolar(file.node("Conv", "x", file.normal(4, 3, 3, 3)))
    x = file.node("Resize", x, "", file.number([1, 1, 2, 1.5]), coordinate_transformation_mode=how)
    model = file.write(source, file.node("Conv", x, file.bipolar(file.normal(5, 4, 3, 3))))
    assert import_onnx(source, path).binary_layers == 1
    images = np.random.default_rng(2).normal(size=(3, 3, 6, 5)).astype(np.float32)
    np.testing.assert_allclose(by_engine(path, images), qonnx_reference.run(model, images), atol=2e-5)


class Decoder(nn.Module):
    """What PyTorch's exporters make of resizes and of what decoders have besides."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), nn.GroupNorm(2, 6)
        self.mix = nn.Parameter(torch.randn(6, 3))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        sizes: list[dict[str, Any]] = [{"scale_factor": 2.0}, {"scale_factor": (1.5, 2.0)}, {"size": (11, 5)}]
        nearest = [F.interpolate(x, **size, mode="nearest") for size in sizes]
        linear = [
            F.interpolate(x, **size, mode="bilinear", align_corners=corners)
            for size in sizes for corners in (False, True)
        ]  # fmt: skip
        cubic = F.interpolate(x, size=(11, 5), mode="bicubic")
        mixed = torch.einsum("nchw,cd->ndhw", self.norm(self.up(x)), self.mix)
        return [*nearest, *linear, cubic, mixed]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dynamo", [True, False])
def test_exported_by_torch(dynamo: bool, source: Path, path: Path) -> None:  # noqa: F811
    pytest.importorskip("onnxscript")
    torch.manual_seed(1)
    network = Decoder().eval()
    x = torch.randn(3, 4, 7, 6)
    named: Any = (
        {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "verbose": False}
        if dynamo
        else {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
    )
    torch.onnx.export(network, (x,), source, dynamo=dynamo, **named)
    found = import_onnx(source, path)
    kinds = [node.op for node in found.packed.nodes]
    assert kinds.count("resize_nearest") >= 2  # another one takes rows and columns by number
    assert kinds.count("resize_bilinear") == 6
    with torch.no_grad():
        expected = network(x)
    for own, each in zip(bnew_engine.load(path)(x.numpy()).values(), expected, strict=True):
        np.testing.assert_allclose(own, each, atol=2e-5)


REFUSALS = {
    "coordinates": (
        ("Resize", factors(1, 1, 2, 2), {"coordinate_transformation_mode": "half_pixel_symmetric"}),
        "its coordinate_transformation_mode is 'half_pixel_symmetric', and imported are half_pixel",
    ),
    "antialias": (
        ("Resize", factors(1, 1, 0.5, 0.5), {"mode": "linear", "antialias": 1}),
        "its antialias is 1",
    ),
    "channels": (("Resize", factors(1, 2, 2, 2), {}), "it changes the number of images or channels"),
    "no size": (("Resize", [], {}), "it does not say the size of its result"),
    "a size of the image": (
        ("Resize", [none, lambda file: file.node("ReduceMax", "x", keepdims=0)], {}),
        "what it computes depends on the image's numbers",
    ),
    "neighbours": (("LRN", [], {"size": 4}), "it has 4 neighbours, and an odd number is imported"),
    "sums": (("CumSum", [whole(1)], {"exclusive": 1}), "its sums leave out the place itself"),
    "blocks": (
        ("QuantizeLinear", [real(3, 1, 8, 8), lambda file: file.number(0, np.int8)], {"block_size": 1}),
        "its scales are for blocks",
    ),
    "a type": (
        ("QuantizeLinear", [scalar(0.1)], {"output_dtype": 3}),
        "it has a type and no zero point",
    ),
    "gates": (("GRU", [real(1, 9, 8), real(1, 9, 3)], {"hidden_size": 3}), "linear_before_reset=0"),
    "activations": (
        ("RNN", [real(1, 3, 8), real(1, 3, 3)], {"hidden_size": 3, "activations": ["Sigmoid"]}),
        "its activations are Sigmoid",
    ),
    "images": (("Tile", [whole(2, 1, 1, 1)], {}), "it repeats images"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str, source: Path, path: Path) -> None:  # noqa: F811
    node, message = REFUSALS[case]
    shape = ("n", 8, 8) if node[0] in ("GRU", "RNN") else ("n", 3, 8, 8)
    write(node, shape=shape, opset=21)(source)
    with pytest.raises(BnewError, match=message):
        import_onnx(source, path)
    assert not path.exists()


def test_upsample_below_one_is_refused(source: Path, path: Path) -> None:  # noqa: F811
    write(("Upsample", [lambda file: file.number([1, 1, 0.5, 1])], {}), opset=9)(source)
    with pytest.raises(BnewError, match="it makes images smaller by nearest places"):
        import_onnx(source, path)


def test_every_operator_has_a_test() -> None:
    tested = {case[0] for table in (OTHERS, NODES) for cases in table.values() for case in cases}
    elsewhere = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Where", "SignOfShiftedSign"}
    elsewhere |= {"Split", "Shape", "Log", "Sqrt", "Equal", "And", "Or", "Xor", "Floor", "Ceil", "OneHot"}
    elsewhere |= {"Size", "ReduceLogSum", "QuantizeLinear", "DequantizeLinear"}
    elsewhere |= {case[0] for case in RECURRENT}
    own = {name for name in OPERATORS if "." not in name}
    assert own == tested | elsewhere
    assert not CONSTANT & own


def test_why_layers_stay_real(source: Path, path: Path) -> None:  # noqa: F811
    """Without a binary layer, the output says what each layer lacks: a sign before it, weights of a bit."""
    file = File(("n", 3, 8, 8))
    x = file.node("Conv", "x", file.normal(4, 3, 3, 3))
    y = file.node("Conv", file.node("Relu", x), file.bipolar(file.normal(4, 4, 3, 3)))
    z = file.node("ConvTranspose", file.node("Relu", y), file.normal(4, 4, 3, 3))
    y = file.node("Conv", file.bipolar(y, 0.5), file.normal(4, 4, 3, 3), pads=[1] * 4)
    y = file.node("MatMul", file.node("Relu", y), file.node("Transpose", y, perm=[0, 1, 3, 2]))
    file.write(source, file.node("Gemm", file.node("Flatten", y), file.normal(64, 5)), z)
    found = import_onnx(source, path)
    assert found.binary_layers == 0
    assert str(found).splitlines()[1:5] == [
        "  3  stays real  its input is not a sign; its weights have several magnitudes:  Conv_0, "
        "ConvTranspose_5, Gemm_12",
        "  1  stays real  its input is not a sign:  Conv_3",
        "  1  stays real  its weights have several magnitudes:  Conv_7",
        "  1  stays real  both of its factors depend on the input:  MatMul_10",
    ]
