"""ONNX and QONNX files become packed files: against ONNX Runtime, ONNX's reference, and QONNX's pages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_pack import trained
from torch import Tensor, nn

import bnew
from bnew import BnewError
from bnew.importing.graph import read_graph
from bnew.importing.importer import import_onnx
from bnew.importing.network import OPERATORS as ROWS
from bnew.importing.network import ImportedNetwork
from bnew.importing.operators import Row

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
bnew_engine = pytest.importorskip("bnew_engine")

import qonnx_reference  # noqa: E402
from onnx_files import FLOAT, Array, File, convolutional, fully_connected  # noqa: E402


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "network.onnx"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "network.bnew"


def by_runtime(source: Path, images: Array) -> Array:
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    (first, *_) = session.get_inputs()
    size = first.shape[0] if isinstance(first.shape[0], int) else len(images)
    parts = [images[i : i + size] for i in range(0, len(images), size)]
    return np.concatenate([session.run(None, {first.name: part})[0] for part in parts])


def pixels(count: int, *shape: int) -> Array:
    return np.random.default_rng(5).integers(0, 256, (count, *shape)).astype(np.float32) / 255


# ------------------------------------------------------------------------------------------ whole networks


@pytest.mark.parametrize("domain", qonnx_reference.DOMAINS)
@pytest.mark.parametrize("width", [64, 1024])
def test_fully_connected(width: int, domain: str, source: Path, path: Path) -> None:
    if width == 1024 and domain != qonnx_reference.DOMAINS[0]:
        pytest.skip("the domain is read in the same way, whatever the width")
    model = fully_connected(source, width, domain)
    found = import_onnx(source, path, mean=[0], std=[1])
    assert found.binary_layers == 4
    assert found.packed.file_bytes < (784 * width + 2 * width**2 + 10 * width) / 8 + 40 * width + 6000
    images = pixels(6, 1, 28, 28)
    np.testing.assert_allclose(
        bnew_engine.load(path)(images), qonnx_reference.run(model, images), atol=1e-5, rtol=1e-5
    )


def test_convolutional(source: Path, path: Path) -> None:
    model = convolutional(source, 8)
    found = import_onnx(source, path, mean=[0.5] * 3, std=[0.5] * 3)
    assert found.binary_layers == 8  # the first has eight bits at its input
    images = (pixels(4, 3, 32, 32) - 0.5) / 0.5
    expected = qonnx_reference.run(model, images)
    np.testing.assert_allclose(bnew_engine.load(path)(images), expected, atol=1e-5, rtol=1e-5)
    as_bytes = (pixels(4, 3, 32, 32) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(
        bnew_engine.load(path)(np.ascontiguousarray(as_bytes)), expected, atol=1e-5, rtol=1e-5
    )


class Own(nn.Module):
    """A network as people write it: signs in forward, a straight-through estimator, scaled weights."""

    def __init__(self, sign: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.sign = sign
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(16, 5)
        self.first, self.second = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.Conv2d(16, 16, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(16), nn.BatchNorm2d(16)])
        self.act = nn.PReLU(16)

    def bits(self, x: Tensor) -> Tensor:
        return (self.sign(x) - x).detach() + x

    def weight(self, layer: nn.Conv2d) -> Tensor:
        return torch.where(layer.weight >= 0, 1.0, -1.0) * layer.weight.abs().mean((1, 2, 3), keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.stem(x))
        x = F.conv2d(self.bits(x), self.weight(self.first), None, 2, 1)
        x = self.act(self.norms[1](x))
        y = F.conv2d(self.bits(x), self.weight(self.second), self.second.bias, 1, 1)
        x = F.hardtanh(self.norms[2](y) + x)
        result: Tensor = self.head(x.mean((2, 3)))
        return result


SIGNS: dict[str, Callable[[Tensor], Tensor]] = {
    "sign": torch.sign,
    "where": lambda x: torch.where(x > 0, 1.0, -1.0),
    "comparison": lambda x: (x >= 0).float() * 2 - 1,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("sign", "dynamo"), [*((sign, True) for sign in SIGNS), ("sign", False)])
def test_exported_by_torch(sign: str, dynamo: bool, source: Path, path: Path) -> None:
    pytest.importorskip("onnxscript")
    network = trained(Own(SIGNS[sign])).eval()
    x = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    if dynamo:  # writes its weights into a file beside it
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(network, (x,), source, dynamo=True, dynamic_shapes=shapes, verbose=False)
    else:
        names: Any = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
        torch.onnx.export(network, (x,), source, dynamo=False, **names)
    found = import_onnx(source, path)
    assert found.binary_layers == 2
    with torch.no_grad():
        expected = network(x).numpy()
    np.testing.assert_allclose(bnew_engine.load(path)(x.numpy()), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"), [("birealnet8", {}), ("quicknet", {"widths": (16, 32), "blocks": (2, 1)})]
)
def test_what_bnew_exports_comes_back(
    name: str, options: dict[str, Any], source: Path, path: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    network = trained(bnew.create_model(name, num_classes=7, **options)).eval()
    for layer in network.modules():
        if isinstance(layer, bnew.BinaryConv2d):
            layer.weight.data = bnew.sign(layer.weight.data)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    bnew.export_onnx(network, images, source)
    direct = bnew.pack(network, images, tmp_path / "direct.bnew")
    found = import_onnx(source, path)
    assert found.binary_layers == sum(node.op == "binary_conv" for node in direct.nodes)
    assert sum(n.binary_weights for n in found.packed.nodes) == sum(n.binary_weights for n in direct.nodes)
    ours, theirs = (bnew_engine.load(each)(images.numpy()) for each in (path, direct.path))
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


# ----------------------------------------------------------------------------------------------- operators


def scalar(value: float) -> Callable[[File], str]:
    return lambda file: file.number(value)


def whole(*values: int) -> Callable[[File], str]:
    return lambda file: file.number(values, np.int64)


def real(*shape: int) -> Callable[[File], str]:
    return lambda file: file.normal(*shape)


Case = tuple[str, list[Callable[[File], str]], dict[str, Any]]
IMAGE, VECTOR, LINE = (2, 4, 7, 6), (2, 6), (2, 4, 9)
# (operator, its further inputs, its attributes) by the shape of its first input; a fifth number is the opset.
NODES: dict[tuple[Any, ...], list[Case]] = {
    IMAGE: [
        *((kind, [], {}) for kind in ("Sign", "Relu", "Sigmoid", "Softplus", "Tanh", "Abs", "Exp", "Neg")),
        *((kind, [], {}) for kind in ("Identity", "Flatten", "Transpose", "GlobalAveragePool", "Softmax")),
        *((kind, [], {}) for kind in ("GlobalMaxPool", "LogSoftmax", "Reciprocal", "Dropout", "Elu", "Selu")),
        *((kind, [scalar(0.3)], {}) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
        *((kind, [real(4, 1, 1)], {}) for kind in ("Add", "Sub", "Mul", "Div", "Sum")),
        ("Sum", [real(4, 1, 1), scalar(2)], {}),
        ("Pow", [scalar(2)], {}),
        ("Clip", [scalar(-0.5), scalar(0.25)], {}),
        ("Clip", [lambda file: "", scalar(0.25)], {}),
        ("PRelu", [real(4, 1, 1)], {}),
        ("PRelu", [real(1)], {}),
        ("LeakyRelu", [], {"alpha": 0.2}),
        ("HardSigmoid", [], {"alpha": 0.3, "beta": 0.4}),
        ("Elu", [], {"alpha": 0.5}),
        (
            "BatchNormalization",
            [real(4), real(4), real(4), lambda f: f.number([1, 2, 3, 0.5])],
            {"epsilon": 0.1},
        ),
        ("Conv", [real(5, 4, 3, 3)], {}),
        ("Conv", [real(6, 2, 3, 2), real(6)], {"group": 2, "pads": [1, 0, 0, 2], "strides": [2, 1]}),
        ("Conv", [real(5, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("Conv", [real(5, 4, 3, 2)], {"auto_pad": "SAME_LOWER"}),
        ("Conv", [real(5, 4, 3, 3)], {"auto_pad": "VALID"}),
        ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("MaxPool", [], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
        ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
        ("MaxPool", [], {"kernel_shape": [2, 3], "auto_pad": "SAME_UPPER"}),
        ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
        ("AveragePool", [], {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ("AveragePool", [], {"kernel_shape": [3, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}),
        ("Pad", [whole(0, 0, 1, 2, 0, 0, 0, 3), scalar(-1)], {}),
        ("Pad", [whole(0, 0, 1, 2, 0, 0, 0, 3)], {"mode": "reflect"}),
        ("Pad", [whole(0, 1, 0, -1, 0, 0, 0, -2)], {}),
        ("Pad", [whole(0, 0, 0, 1, 0, 0, 0, 1)], {"mode": "edge"}),
        ("Reshape", [whole(0, 2, -1)], {}),
        ("Reshape", [whole(-1, 168)], {}),
        ("Flatten", [], {"axis": 2}),
        ("Transpose", [], {"perm": [0, 2, 3, 1]}),
        ("Softmax", [], {"axis": 1}),
        ("LogSoftmax", [], {"axis": 1}),
        ("ArgMax", [], {"axis": 1, "keepdims": 0}),
        ("Concat", [real(2, 3, 7, 6)], {"axis": 1}),
        ("Slice", [whole(1, 0), whole(-1, 5), whole(2, 1), whole(2, 3)], {}),
        ("Gather", [whole(2, 0)], {"axis": 1}),
        ("Gather", [lambda file: file.number(1, np.int64)], {"axis": 2}),
        ("Unsqueeze", [whole(1, -1)], {}),
        ("Expand", [whole(2, 4, 7, 6)], {}),
        *((kind, [], {"axes": [2, 3]}) for kind in ("ReduceMean", "ReduceMax", "ReduceMin")),
        ("ReduceSum", [whole(1)], {"keepdims": 0}),
        ("Cast", [], {"to": FLOAT}),
        ("MatMul", [real(6, 3)], {}),
    ],
    VECTOR: [
        ("Gemm", [real(6, 3)], {}),
        ("Gemm", [real(3, 6), real(3)], {"transB": 1}),
        ("Gemm", [real(3, 6), real(1, 3)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
        ("MatMul", [real(6, 5)], {}),
        ("PRelu", [real(6)], {}),
    ],
    LINE: [
        ("Conv", [real(6, 2, 3)], {"group": 2, "pads": [2, 0]}),
        ("MaxPool", [], {"kernel_shape": [3], "pads": [0, 1], "strides": [2]}),
        ("AveragePool", [], {"kernel_shape": [2], "strides": [2]}),
        ("GlobalAveragePool", [], {}),
    ],
    (2, 4, 1, 6): [("Squeeze", [whole(2)], {}), ("Squeeze", [], {}), ("Squeeze", [whole(-2)], {})],
    (2, 8, 3, 2): [
        ("DepthToSpace", [], {"blocksize": 2}),
        ("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"}),
    ],
    (2, 3, 4, 6): [("SpaceToDepth", [], {"blocksize": 2})],
    (*IMAGE, 9): [
        ("Softmax", [], {}),
        ("Clip", [], {"min": -0.5, "max": 0.25}),
        ("Pad", [], {"pads": [0, 0, 1, 2, 0, 0, 0, 3], "value": 0.5}),
        ("Unsqueeze", [], {"axes": [1]}),
        ("ReduceSum", [], {"axes": [2], "keepdims": 0}),
        ("Slice", [], {"starts": [1], "ends": [3], "axes": [2]}),
    ],
    (*IMAGE, 20): [
        ("Gelu", [], {}),
        ("Gelu", [], {"approximate": "tanh"}),
        ("HardSwish", [], {}),
        ("LayerNormalization", [real(6), real(6)], {}),
        ("ReduceMean", [whole(2, 3)], {"keepdims": 0}),
        ("Pad", [whole(1, 2), scalar(3), whole(-1)], {}),
    ],
}
CASES = [
    pytest.param(shape, case, id=f"{case[0]}{i}")
    for i, (shape, case) in enumerate((shape, case) for shape, cases in NODES.items() for case in cases)
]


@pytest.mark.parametrize(("shape", "case"), CASES)
def test_an_operator(shape: tuple[int, ...], case: Case, source: Path) -> None:
    kind, inputs, attributes = case
    opset = shape[-1] if shape[:4] == IMAGE and len(shape) == 5 else 15
    shape = shape[:4]
    file = File(("n", *shape[1:]), opset=opset)
    result = file.node(kind, "x", *(make(file) for make in inputs), **attributes)
    whole_numbers = kind == "ArgMax"
    result = file.node("Cast", result, to=FLOAT) if whole_numbers else result
    file.write(source, result)
    images = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    network = ImportedNetwork(read_graph(source)).eval()
    given = torch.from_numpy(images)
    with torch.no_grad():
        ours = network(given)
    np.testing.assert_allclose(ours, by_runtime(source, images), atol=2e-6, rtol=2e-5)


# --------------------------------------------------------------------------------------- signs and zeros


def by_engine(path: Path, images: Array) -> Array:
    result: Array = bnew_engine.load(path)(images)
    return result


def points(*numbers: float) -> Array:
    return np.array([numbers], np.float32)


ZEROS = points(-1, -0.25, -0.0, 0, 0.25, 1)


WAYS: dict[str, Callable[[File, str], str]] = {
    "bipolar": lambda f, x: f.bipolar(x),
    "bipolar of a scale": lambda f, x: f.bipolar(x, 0.5),
    "one bit with a sign": lambda f, x: f.quant(x, 0.5, 1, signed=1, narrow=0),
    "one bit with a sign and a zero point": lambda f, x: f.quant(x, 1.0, 1, zero=0.25, signed=1, narrow=0),
    "one bit": lambda f, x: f.quant(x, 1.0, 1, signed=0, narrow=0),
    "one bit, scaled": lambda f, x: f.quant(x, 0.5, 1, signed=0, narrow=0, kind="IntQuant"),
    "one bit, up": lambda f, x: f.quant(x, 0.25, 1, signed=0, narrow=0, rounding_mode="CEIL"),
    "one bit, down": lambda f, x: f.quant(x, 0.25, 1, signed=0, narrow=0, rounding_mode="floor"),
    "one bit, half up": lambda f, x: f.quant(x, 0.5, 1, signed=0, narrow=0, rounding_mode="HALF_UP"),
    "four bits": lambda f, x: f.quant(x, 0.3, 4, signed=1, narrow=1),
    "four bits with a zero point": lambda f, x: f.quant(x, 0.3, 4, zero=3.0, signed=0, narrow=0),
    "eight bits": lambda f, x: f.quant(x, 1 / 128, 8, signed=1, narrow=0),
    "two bits without narrow": lambda f, x: f.quant(x, 0.25, 2, signed=1),
    "greater": lambda f, x: f.node("Where", f.node("Greater", x, f.number(0)), f.number(1), f.number(-1)),
    "at least": lambda f, x: f.node(
        "Where", f.node("GreaterOrEqual", x, f.number(0)), f.number(1), f.number(-1)
    ),
    "less": lambda f, x: f.node("Where", f.node("Less", x, f.number(0.25)), f.number(-1), f.number(1)),
    "at most": lambda f, x: f.node(
        "Where", f.node("LessOrEqual", x, f.number(0.25)), f.number(-1), f.number(1)
    ),
    "not greater": lambda f, x: f.node(
        "Where", f.node("Not", f.node("Greater", x, f.number(0))), f.number(-1), f.number(1)
    ),
    "cast": lambda f, x: f.node(
        "Sub",
        f.node("Mul", f.node("Cast", f.node("GreaterOrEqual", x, f.number(0)), to=FLOAT), f.number(2)),
        f.number(1),
    ),
    "sign of a shifted sign": lambda f, x: f.node("Sign", f.node("Add", f.node("Sign", x), f.number(0.1))),
    "sign of a shifted sign, turned": lambda f, x: f.node(
        "Sign", f.node("Add", f.number(0.5), f.node("Sign", x))
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("domain", ["qonnx.custom_op.general", "onnx.brevitas"])
def test_zero(way: str, domain: str, source: Path, path: Path) -> None:
    """Numbers that are exactly 0 get what ONNX and QONNX say, also in front of a binary layer."""
    file = File(("n", 6), domain=domain)
    values = WAYS[way](file, "x")
    model = file.write(source, file.node("MatMul", values, file.number(2 * np.eye(6) - 1)))
    import_onnx(source, path)
    np.testing.assert_allclose(by_engine(path, ZEROS), qonnx_reference.run(model, ZEROS), atol=1e-6)


def test_a_shifted_sign_among_operators_of_qonnx(source: Path, path: Path) -> None:
    file = File(("n", 6))
    x = file.bipolar(file.node("MatMul", WAYS["sign of a shifted sign"](file, "x"), file.normal(6, 6)))
    model = file.write(source, file.node("MatMul", x, file.bipolar(file.normal(6, 6))))
    import_onnx(source, path)
    np.testing.assert_allclose(by_engine(path, ZEROS), qonnx_reference.run(model, ZEROS), atol=1e-6)


def test_what_of_these_is_binary(source: Path, path: Path) -> None:
    for way in ("bipolar of a scale", "one bit with a sign", "at least", "sign of a shifted sign"):
        file = File(("n", 6))
        file.write(source, file.node("MatMul", WAYS[way](file, "x"), file.number(2 * np.eye(6) - 1)))
        assert import_onnx(source, path).binary_layers == 1, way


def test_a_plain_sign_that_may_be_of_zero_is_refused(source: Path, path: Path) -> None:
    """ONNX's Sign(0) is 0, and a bit is not."""
    file = File(("n", 3, 6, 6))
    x = file.node("Conv", "x", file.normal(4, 3, 3, 3))
    x = file.node("Sign", file.node("Relu", x))
    file.write(source, file.node("Conv", x, file.number(np.sign(file.random.normal(size=(2, 4, 3, 3))))))
    with pytest.raises(BnewError, match=r"sign in layer 'Sign_2'.*its input may be exactly 0"):
        import_onnx(source, path)
    file = File(("n", 6))
    file.write(source, file.node("MatMul", file.node("Sign", "x"), file.number(2 * np.eye(6) - 1)))
    with pytest.raises(BnewError, match="bnew cannot tell whether its input may be exactly 0"):
        import_onnx(source, path)
    found = import_onnx(source, path, mean=[0.45] * 6, std=[0.2] * 6)
    assert found.binary_layers == 1
    assert not path.with_suffix(".onnx.tmp").exists()


def test_weights_of_two_values(source: Path, path: Path) -> None:
    """α · S + β is a binary layer and the sums of its windows."""
    file = File(("n", 3, 9, 8))
    x = file.bipolar(file.node("Conv", "x", file.normal(6, 3, 3, 3)))
    signs = np.sign(file.random.normal(size=(8, 3, 3, 3)))
    scale, middle = file.random.uniform(0.5, 2, (8, 1, 1, 1)), file.random.normal(size=(8, 1, 1, 1))
    weight = file.number(scale * signs + middle)
    x = file.node("Conv", x, weight, file.normal(8), group=2, pads=[1, 0, 1, 2], strides=[2, 1])
    model = file.write(source, x)
    found = import_onnx(source, path)
    assert [node.op for node in found.packed.nodes].count("binary_conv") == 2
    assert sum(node.binary_weights for node in found.packed.nodes) == 8 * 27 + 2 * 27
    images = np.random.default_rng(2).normal(size=(3, 3, 9, 8)).astype(np.float32)
    np.testing.assert_allclose(by_engine(path, images), qonnx_reference.run(model, images), atol=2e-5)


def test_a_border_of_signs(source: Path, path: Path) -> None:
    file = File(("n", 3, 6, 6))
    x = file.bipolar(file.node("Conv", "x", file.normal(4, 3, 1, 1)))
    x = file.node("Pad", x, file.number([0, 0, 1, 1, 0, 0, 1, 1], np.int64), file.number(1.0))
    model = file.write(source, file.node("Conv", x, file.bipolar(file.normal(5, 4, 3, 3))))
    found = import_onnx(source, path)
    assert [node.op for node in found.packed.nodes] == ["conv", "binary_conv"]
    images = np.random.default_rng(2).normal(size=(3, 3, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(by_engine(path, images), qonnx_reference.run(model, images), atol=1e-5)


# ------------------------------------------------------------------------------------------ whole graphs


def windows(file: File) -> str:
    """Convolutions and pools with borders that differ between two sides."""
    x = file.node("Conv", "x", file.normal(8, 3, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2])
    x = file.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
    x = file.node("Conv", file.bipolar(x), file.bipolar(file.normal(8, 4, 3, 3)), group=2, pads=[0, 1, 2, 1])
    return file.node("AveragePool", x, kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER")


def lengths(file: File) -> str:
    """A flatten as older exporters write it: with the number of images from the tensor's shape."""
    x = file.node("Relu", file.node("Conv", "x", file.normal(4, 3, 3, 3)))
    count = file.node("Gather", file.node("Shape", x), file.number(0, np.int64), axis=0)
    count = file.node("Unsqueeze", count, file.number([0], np.int64))
    shape = file.node("Concat", count, file.number([-1], np.int64), axis=0)
    return file.node("Gemm", file.node("Reshape", x, shape), file.normal(9, 4 * 10 * 10), transB=1)


def channels_last(file: File) -> str:
    """As tf2onnx writes it: transposed around each layer."""
    x = file.node("Transpose", "x", perm=[0, 3, 1, 2])
    x = file.node("Conv", x, file.normal(4, 12, 3, 3))
    x = file.node("Transpose", x, perm=[0, 2, 3, 1])
    x = file.node("Mul", file.bipolar(x), file.number(np.arange(1, 5)))
    return file.node("ReduceMean", x, axes=[1, 2], keepdims=0)


def parts(file: File) -> str:
    x = file.node("Conv", "x", file.normal(6, 3, 3, 3))
    a = file.node("Split", x, file.number([4, 2], np.int64), results=2, axis=1)
    b = f"{a[:-1]}1"
    x = file.node(
        "Concat", b, file.node("Sqrt", file.node("Abs", a)), file.node("Log", file.node("Exp", b)), axis=1
    )
    return file.node("GlobalAveragePool", x)


GRAPHS: dict[str, Callable[[File], str]] = {
    each.__name__: each for each in (windows, lengths, channels_last, parts)
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("batch", [1, 2, "n"])
def test_a_graph(name: str, batch: int | str, source: Path, path: Path) -> None:
    file = File((batch, 3, 12, 12))
    model = file.write(source, GRAPHS[name](file))
    found = import_onnx(source, path)
    assert found.nodes is not None
    assert found.engine is not None
    assert found.engine.equal == found.engine.images
    images = np.random.default_rng(2).normal(size=(4, 3, 12, 12)).astype(np.float32)
    expected = qonnx_reference.run(model, images)
    ours = by_engine(path, images).reshape(expected.shape)  # (N, C) in place of (N, C, 1, 1)
    np.testing.assert_allclose(ours, expected, atol=3e-5, rtol=1e-5)


def test_lines(source: Path, path: Path) -> None:
    file = File(("n", 4, 20))
    x = file.bipolar(file.node("Conv", "x", file.normal(8, 4, 3), pads=[1, 1]))
    x = file.node("Conv", x, file.bipolar(file.normal(8, 8, 5)), pads=[4, 0], strides=[2])
    model = file.write(source, file.node("Gemm", file.node("Flatten", x), file.normal(80, 3)))
    import_onnx(source, path)
    images = np.random.default_rng(2).normal(size=(4, 4, 20)).astype(np.float32)
    expected = qonnx_reference.run(model, images)
    np.testing.assert_allclose(by_engine(path, images), expected, atol=3e-5)


def test_several_results_and_an_open_shape(source: Path, path: Path) -> None:
    file = File(("n", 3, "h", "w"))
    x = file.node("Conv", "x", file.normal(4, 3, 3, 3))
    y = file.node("GlobalAveragePool", x)
    onnx.save(file.model(x, y), source)
    with pytest.raises(
        BnewError,
        match=r"takes images of 3×\?×\? and leaves lengths open: give input_shape \(--input-shape\)$",
    ):
        import_onnx(source, path)
    with pytest.raises(
        BnewError, match=r"input_shape \(--input-shape\) is \[4, 8, 8\], but .* takes images of 3×\?×\?"
    ):
        import_onnx(source, path, input_shape=(4, 8, 8))
    import_onnx(source, path, input_shape=(3, 8, 8))
    images = np.random.default_rng(2).normal(size=(2, 3, 8, 8)).astype(np.float32)
    results: Any = bnew_engine.load(path)(images)
    assert list(results) == [x, y]
    np.testing.assert_allclose(results[x], by_runtime(source, images), atol=1e-5)


def test_functions_of_the_file(source: Path, path: Path) -> None:
    file = File(("n", 6))
    result = file.node("Halved", file.node("MatMul", "x", file.normal(6, 4)), domain="mine")
    half = onnx.parser.parse_function(
        '<opset_import: ["" : 15], domain: "mine"> Halved (x) => (y) '
        "{ half = Constant <value_float: float = 0.5> () y = Mul (x, half) }"
    )
    model = file.model(result)
    model.functions.append(half)
    onnx.save(model, source)
    import_onnx(source, path)
    np.testing.assert_allclose(by_engine(path, ZEROS), by_runtime(source, ZEROS), atol=1e-6)


# -------------------------------------------------------------------------------------------------- refusals


def write(
    *nodes: tuple[Any, ...], shape: tuple[Any, ...] = ("n", 3, 8, 8), opset: int = 15
) -> Callable[[Path], None]:
    """A file of a chain of nodes (kind, further inputs, attributes)."""

    def written(source: Path) -> None:
        file, x = File(shape, opset=opset), "x"
        for kind, inputs, attributes in nodes:
            x = file.node(kind, x, *(make(file) for make in inputs), **attributes)
        file.write(source, x)

    return written


def text(content: bytes) -> Callable[[Path], Any]:
    return lambda source: source.write_bytes(content)


def outside(location: str) -> Callable[[Path], None]:
    def written(source: Path) -> None:
        file = File(("n", 3, 8, 8))
        model = file.model(file.node("Conv", "x", file.normal(40, 3, 3, 3)))
        onnx.save(model, source, save_as_external_data=True, location="weights.bin", size_threshold=0)
        model = onnx.load(source, load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        source.write_bytes(model.SerializeToString())

    return written


def with_two_inputs(source: Path) -> None:
    file = File(("n", 3))
    model = file.model(file.node("Add", "x", "y"))
    model.graph.input.append(onnx.helper.make_tensor_value_info("y", FLOAT, ["n", 3]))
    onnx.save(model, source)


def of_bytes(source: Path) -> None:
    file = File(("n", 3, 8, 8))
    model = file.model(file.node("Cast", "x", to=FLOAT))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(model, source)


def cut(source: Path) -> None:
    convolutional(source, 8)
    source.write_bytes(source.read_bytes()[:-1000])


def without_its_first_result(source: Path) -> None:
    """ONNX Runtime dies of such a file."""
    file = File(("n", 3, 8, 8))
    parts = file.node("Split", "x", file.number([1, 2], np.int64), axis=1, results=2)
    model = file.write(source, f"{parts[:-1]}1")
    model.graph.node[0].output[0] = ""
    onnx.save(model, source)


def constant_result(source: Path) -> None:
    file = File(("n", 3))
    file.write(source, file.node("Add", file.number([1.0]), file.number([2.0])))


norm_weights = [real(3), real(3), real(3), lambda file: file.number([1, 2, 3])]
REFUSALS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no file": (lambda source: None, "there is no file"),
    "a folder": (lambda source: source.mkdir(), "there is no file"),
    "text": (text(b"not an ONNX file"), "is no ONNX file, or is broken"),
    "nothing": (text(b""), "is no valid ONNX file"),
    "a cut file": (cut, "is no ONNX file, or is broken"),
    "an unknown operator": (
        write(("Sin", [], {}), ("Relu", [], {}), ("Cos", [], {})),
        r"operators that are not imported: Sin \(node 'Sin_0'\), Cos \(node 'Cos_2'\)",
    ),
    "an operator of others": (
        write(("Mine", [], {"domain": "com.mine"})),
        r"operators that are not imported: com.mine.Mine \(node 'Mine_0'\)",
    ),
    "no operator": (write(("Nonsense", [], {})), "No Op registered for Nonsense"),
    "an old file": (write(("Relu", [], {}), opset=6), "is of opset 6, and import reads 7 and later"),
    "two inputs": (with_two_inputs, r"has 2 inputs \(x, y\), but a packed file takes one image"),
    "bytes": (of_bytes, "is no batch of float32 images"),
    "a volume": (write(("Relu", [], {}), shape=("n", 3, 4, 4, 4)), "is no batch of float32 images"),
    "weights elsewhere": (outside("../weights.bin"), "only a file in the same folder is read"),
    "weights at the root": (outside("/etc/passwd"), "only a file in the same folder is read"),
    "weights that are missing": (outside("other.bin"), "only a file in the same folder is read"),
    "training": (
        write(("BatchNormalization", norm_weights, {"training_mode": 1, "results": 3})),
        "BatchNormalization 'BatchNormalization_0' is not imported: it is in training mode",
    ),
    "indices": (
        write(("MaxPool", [], {"kernel_shape": [2, 2], "results": 2})),
        "MaxPool 'MaxPool_0' is not imported: it has 2 results",
    ),
    "mixed images": (
        write(("Reshape", [lambda file: file.number([-1, 96], np.int64)], {})),
        "its input is no batch of images or vectors, or their number has changed",
    ),
    "no first result": (without_its_first_result, "Split 'Split_0' .* leaves out a result before another"),
    "a constant": (constant_result, "does not depend on its input"),
    "no numbers": (
        write(("Abs", [], {}), ("Neg", [], {}), ("Log", [], {})),
        "the network's results for random images are not finite",
    ),
    "huge images": (write(("Relu", [], {}), shape=("n", 2**62, 2**62)), "images of .* are too large"),
    "a ragged reshape": (write(("Reshape", [whole(0, 7)], {})), "Reshape 'Reshape_0' is not imported: shape"),
    "backwards": (
        write(("Slice", [whole(-1), whole(-9), whole(2), whole(-1)], {})),
        "Slice 'Slice_0' is not imported: it goes backwards",
    ),
    "a float cast to a whole number": (
        write(("Cast", [], {"to": onnx.TensorProto.INT64}), ("Cast", [], {"to": FLOAT})),
        "cannot be packed: its result is of torch.int64",
    ),
    "half precision": (
        write(("Cast", [], {"to": onnx.TensorProto.FLOAT16}), ("Cast", [], {"to": FLOAT})),
        "it casts to a type that rounds",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str, source: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bnew.cli import main

    make, message = REFUSALS[case]
    make(source)
    with pytest.raises(BnewError, match=message):
        import_onnx(source, path)
    with pytest.raises(SystemExit) as ended:
        main(["import", str(source), str(path)])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("bnew: error: ")
    assert said.count("\n") == 1
    assert [each.name for each in path.parent.iterdir() if "bnew" in each.name] == []


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "too few": (
        {"mean": [0, 0], "std": [1, 1]},
        r"mean is \[0.0, 0.0\], but must be one number for each of 3",
    ),
    "too few of one": (
        {"mean": [0] * 3, "std": [1, 1]},
        r"std is \[1.0, 1.0\], but must be one number for each",
    ),
    "one alone": ({"mean": [0] * 3}, "mean and std belong together"),
    "std of 0": ({"mean": [0] * 3, "std": [1, 0, 1]}, "std is .* must be positive"),
    "std of 0 in float32": ({"mean": [0] * 3, "std": [1, 1e-46, 1]}, "std is .* must be positive"),
    "NaN": ({"mean": [0, float("nan"), 0], "std": [1] * 3}, "mean is .* must be finite in float32"),
    "an infinite std": ({"mean": [0] * 3, "std": [float("inf")] * 3}, "std is .* must be finite in float32"),
    "infinite in float32": ({"mean": [1e39, 0, 0], "std": [1] * 3}, "mean is .* must be finite in float32"),
    "a huge shape": (
        {"input_shape": (3, 2**40, 2**40)},
        "images of 3×1099511627776×1099511627776 are too large",
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_are_refused(case: str, source: Path, path: Path) -> None:
    write(("Relu", [], {}), shape=("n", 3, "h", "w"))(source)
    options, message = OPTIONS[case]
    with pytest.raises(BnewError, match=message):
        import_onnx(source, path, **{"input_shape": (3, 8, 8), **options})
    assert not path.exists()


def test_a_file_does_not_replace_itself(source: Path) -> None:
    write(("Relu", [], {}))(source)
    content = source.read_bytes()
    with pytest.raises(BnewError, match="is the file that is imported: give the packed file another name"):
        import_onnx(source, source)
    assert source.read_bytes() == content


def test_a_network_without_nodes(source: Path, path: Path) -> None:
    File(("n", 6)).write(source, "x")
    import_onnx(source, path)
    np.testing.assert_array_equal(by_engine(path, ZEROS), ZEROS)


QUANTIZERS: dict[str, tuple[Callable[[File, str], str], str]] = {
    "bits": (lambda f, x: f.quant(x, 1.0, 1.5), "it has 1.5 bits"),  # type: ignore[arg-type]
    "many bits": (lambda f, x: f.quant(x, 1.0, 24), "it has 24 bits"),
    "mode": (
        lambda f, x: f.quant(x, 1.0, 4, rounding_mode="STOCHASTIC"),
        "its rounding_mode is 'STOCHASTIC'",
    ),
    "up": (lambda f, x: f.quant(x, 1.0, 8, rounding_mode="CEIL"), "ceil in layer .* at most 64 apart"),
    "trunc": (lambda f, x: f.node("Trunc", x, domain=f.domain), "qonnx.custom_op.general.Trunc"),
    "bits of the image": (
        lambda f, x: f.node("Quant", x, f.number(1), f.number(0), x, domain=f.domain),
        "what it computes depends on the image's numbers",
    ),
}


@pytest.mark.parametrize("case", QUANTIZERS)
def test_quantizers_that_are_refused(case: str, source: Path, path: Path) -> None:
    make, message = QUANTIZERS[case]
    file = File(("n", 6))
    file.write(source, make(file, "x"))
    with pytest.raises(BnewError, match=message):
        import_onnx(source, path)
    assert not path.exists()


def test_a_wrong_operator_is_found(source: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime sees it, in a file of ONNX's operators and in one of QONNX's."""
    monkeypatch.setitem(ROWS, "Relu", Row(lambda node, x: x.clamp(1e-3)))
    for quantized in (False, True):
        file = File(("n", 6))
        x = file.node("Relu", file.node("MatMul", "x", file.normal(6, 40)))
        file.write(source, file.bipolar(x) if quantized else x)
        with pytest.raises(
            BnewError, match=r"Relu 'Relu_1' is not imported: it differs by .* more than rounding"
        ):
            import_onnx(source, path)
        assert not path.exists()


def test_a_wrong_packed_file_is_found(source: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(("Relu", [], {}))(source)
    path.write_text("older")
    monkeypatch.setattr(
        ImportedNetwork, "forward", lambda self, x: torch.relu(x) + self.wrong * 0.5, raising=True
    )
    monkeypatch.setattr(ImportedNetwork, "wrong", 0, raising=False)
    from bnew.importing import importer

    packs = bnew.pack

    def pack(model: Any, *args: Any, **options: Any) -> Any:
        packs(model, *args, **options)
        monkeypatch.setattr(ImportedNetwork, "wrong", 1)

    monkeypatch.setattr(importer, "pack", pack)
    with pytest.raises(BnewError, match=r"the packed file differs by .* nothing is written"):
        import_onnx(source, path)
    assert path.read_text() == "older"


def test_without_libraries(source: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(("Relu", [], {}))(source)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "onnxruntime", None)
        found = import_onnx(source, path)
        assert found.nodes is None
        assert "not compared with ONNX Runtime, which is not installed" in str(found)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "bnew_engine", None)
        found = import_onnx(source, path)
        assert found.engine is None
        assert "the packed file was not run" in str(found)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "onnx", None)
        with pytest.raises(BnewError, match=r"importing needs onnx .*pip install 'bnew\[onnx\]'"):
            import_onnx(source, path)


def test_one_is_no_plural(source: Path, path: Path) -> None:
    fully_connected(source, 64, "qonnx.custom_op.general")
    found = import_onnx(source, path)
    assert found.nodes is not None
    assert found.engine is not None
    layers: Any = SimpleNamespace(
        nodes=[SimpleNamespace(op=op) for op in ("binary_conv", "conv")], file_bytes=9
    )
    one = replace(found.nodes, nodes=1, described=1)
    said = str(replace(found, packed=layers, nodes=one, engine=replace(found.engine, equal=1)))
    assert ": 1 binary layer, 1 real one, " in said
    assert "  " not in said
    assert ": 1 node differs by " in said
    assert "; 1 is " in said
    assert ": 1 of 8 random images differs by " in said


def test_command(source: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bnew.cli import main

    fully_connected(source, 64, "qonnx.custom_op.general")
    with pytest.raises(SystemExit) as ended:
        main(["import", str(source), str(path), "--mean", "0", "--std", "1", "--half"])
    assert ended.value.code == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}: 4 binary layers, 0 real ones, ")
    assert second.startswith("ONNX Runtime: ")
    assert second.endswith("are QONNX's")
    assert third.startswith("bnew-engine: 8 of 8 random images differ by rounding only")
    assert bnew.packing.PackedFile.read(path).half
