"""Small ONNX files, as tests write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
QONNX = "qonnx.custom_op.general"


class File:
    """A graph that grows node by node. Methods return the name of a value."""

    def __init__(
        self, shape: tuple[int | str, ...], opset: int = 15, domain: str = QONNX, seed: int = 0
    ) -> None:
        self.shape, self.opset, self.domain = shape, opset, domain
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def number(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, kind: str, *inputs: str, results: int = 1, domain: str = "", **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        outputs = [f"{name}.{i}" for i in range(results)]
        self.nodes.append(
            helper.make_node(kind, list(inputs), outputs, name=name, domain=domain, **attributes)
        )
        return outputs[0]

    def normal(self, *shape: int) -> str:
        return self.number(self.random.normal(size=shape))

    def bipolar(self, x: str, scale: Any = 1.0) -> str:
        return self.node("BipolarQuant", x, self.number(scale), domain=self.domain)

    def quant(
        self, x: str, scale: Any, bits: int, zero: Any = 0.0, kind: str = "Quant", **attributes: Any
    ) -> str:
        numbers = [self.number(each) for each in (scale, zero, bits)]
        return self.node(kind, x, *numbers, domain=self.domain, **attributes)

    def norm(self, x: str, channels: int) -> str:
        scale, var = (self.number(self.random.uniform(0.5, 2, channels)) for _ in range(2))
        shift, mean = (self.normal(channels) for _ in range(2))
        return self.node("BatchNormalization", x, scale, shift, mean, var, epsilon=1e-5)

    def model(self, *outputs: str, **options: Any) -> onnx.ModelProto:
        images = helper.make_tensor_value_info("x", FLOAT, self.shape)
        results = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "network", [images], results, self.weights)
        domains = {node.domain for node in self.nodes} - {""}
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(each, 1) for each in domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8, **options)
        model = onnx.shape_inference.infer_shapes(model)
        for result in model.graph.output:  # behind operators of QONNX, a matrix
            if not result.type.tensor_type.HasField("shape"):
                result.CopyFrom(helper.make_tensor_value_info(result.name, FLOAT, ["n", "m"]))
        return model

    def write(self, path: Path, *outputs: str) -> onnx.ModelProto:
        model = self.model(*outputs)
        onnx.save(model, path)
        return model


def fully_connected(path: Path, width: int, domain: str) -> onnx.ModelProto:
    """The shape of QONNX's TFC (64) and LFC (1024): three hidden layers, one bit, a scale at the end."""
    file = File((1, 1, 28, 28), domain=domain)
    x = file.node("Reshape", "x", file.number([1, -1], np.int64))
    x = file.node("Sub", file.node("Mul", x, file.number(2)), file.number(1))
    before = 784
    for _ in range(3):
        x = file.bipolar(x)
        weight = file.node("Transpose", file.bipolar(file.normal(width, before)), perm=[1, 0])
        x = file.norm(file.node("MatMul", x, weight), width)
        before = width
    x = file.node("MatMul", file.bipolar(x), file.bipolar(file.normal(before, 10)))
    return file.write(path, file.node("Add", file.node("Mul", x, file.number([0.07])), file.number([-0.5])))


def convolutional(path: Path, width: int) -> onnx.ModelProto:
    """The shape of QONNX's CNV-1W1A: eight bits at the input, convolutions without border, two max pools."""
    file = File((1, 3, 32, 32))
    x = file.quant("x", 1 / 128, 8)
    before = 3
    for stage in range(3):
        for _ in range(2):
            channels = width << stage
            weight = file.bipolar(file.normal(channels, before, 3, 3), 0.5)
            x = file.node("Conv", x, weight, kernel_shape=[3, 3], strides=[1, 1], pads=[0] * 4, group=1)
            x = file.bipolar(file.norm(x, channels))
            before = channels
        if stage < 2:
            x = file.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = file.node("Flatten", x, axis=1)
    for inputs, outputs in ((before, 512), (512, 512)):
        weight = file.node("Transpose", file.bipolar(file.normal(outputs, inputs)), perm=[1, 0])
        x = file.bipolar(file.norm(file.node("MatMul", x, weight), outputs))
    return file.write(path, file.node("MatMul", x, file.bipolar(file.normal(512, 10), 0.1)))
