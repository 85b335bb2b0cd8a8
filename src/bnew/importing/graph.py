"""An ONNX file as plain data: its nodes, constants, input and outputs, checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bnew.errors import BnewError, first_line
from bnew.text import elided

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

Array: TypeAlias = npt.NDArray[Any]

# The domain of ONNX's own operators has two names. QONNX's had others before.
_ONNX = ("", "ai.onnx")
QONNX = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
# Before, operators broadcast by an attribute.
_OLDEST = 7
_FLOAT32 = 1
MOST_NUMBERS = 2**30  # of a tensor: a damaged length must not ask for all memory


@dataclass(frozen=True, eq=False)
class Node:
    """A node of a graph, or several that are read as one operator.

    ``kind`` is the name of the operator; of one that is not ONNX's own, its domain stands before it. An input
    of None is left out. ``opset`` is the version of ONNX's operators in the file. ``batch`` is the number of
    images that the file is for; None: any. ``protos`` are the nodes in the file.
    """

    kind: str
    name: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    batch: int | None
    protos: tuple[NodeProto, ...]

    def __str__(self) -> str:
        return f"{self.kind.rpartition('.')[2]} '{self.name}'"


@dataclass(frozen=True)
class Graph:
    """A graph with one input.

    ``shape`` is that of one image without the batch; None where the file does not say a length. ``model`` is
    the file itself.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    input: str
    shape: tuple[int | None, ...]
    batch: int | None
    outputs: tuple[str, ...]
    model: Any


def read_graph(path: Path) -> Graph:
    """The graph of an ONNX file. Functions of the file are written out.

    Weights in files beside it are read if these lie in its folder.

    Raises:
        BnewError: onnx is not installed; the file is missing, broken, or of a version before opset 7; weights
            in other files are not there, or not in its folder; it has several inputs, or one that is no batch
            of float32 images, lines or vectors.
    """
    try:
        import onnx
        from onnx import inliner, numpy_helper
    except ImportError as error:
        raise BnewError(f"importing needs onnx ({error}): pip install 'bnew[onnx]'") from None
    model = _load(path)
    try:
        if model.functions:
            model = inliner.inline_local_functions(model)
        onnx.checker.check_model(model)
    except Exception as error:  # a broken file may raise anything
        raise BnewError(f"{path} is no valid ONNX file: {first_line(error)}") from error
    versions = {each.domain: each.version for each in model.opset_import}
    opset = max((versions[domain] for domain in _ONNX if domain in versions), default=0)
    if opset < _OLDEST:
        raise BnewError(f"{path} is of opset {opset}, and import reads {_OLDEST} and later: convert it first")
    graph = model.graph
    if graph.sparse_initializer:
        raise BnewError(f"{path} has sparse weights, which import does not read")
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in constants]
    if len(inputs) != 1:
        names = elided([each.name for each in inputs])
        raise BnewError(f"{path} has {len(inputs)} inputs ({names}), but a packed file takes one image")
    batch, shape = _shape(path, inputs[0])
    nodes = tuple(_nodes(graph.node, opset, batch))
    outputs = tuple(each.name for each in graph.output)
    return Graph(nodes, constants, inputs[0].name, shape, batch, outputs, model)


def _load(path: Path) -> ModelProto:
    import onnx

    if not path.is_file():
        raise BnewError(f"there is no file {path}")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # a broken file may raise anything
        raise BnewError(f"{path} is no ONNX file, or is broken: {first_line(error)}") from error
    outside = [tensor for tensor in _tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    folder = path.resolve().parent
    for tensor in outside:
        where = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        file = folder / where
        if not where or Path(where).name != where or file.is_symlink() or not file.is_file():
            raise BnewError(
                f"{path} has the numbers of '{tensor.name}' in another file, '{where}', and only a file in "
                "the same folder is read: put it there"
            )
        try:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:
            raise BnewError(f"the numbers of '{tensor.name}' in {where}: {first_line(error)}") from error
    return model


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """All tensors of the graph that hold numbers."""
    yield from model.graph.initializer
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def _shape(path: Path, value: ValueInfoProto) -> tuple[int | None, tuple[int | None, ...]]:
    """The number of images, and the shape of one image."""
    kind = value.type.tensor_type
    lengths = [each.dim_value if each.dim_value > 0 else None for each in kind.shape.dim]
    if kind.elem_type != _FLOAT32 or not 2 <= len(lengths) <= 4:
        raise BnewError(
            f"the input '{value.name}' of {path} is no batch of float32 images (N, C, H, W), lines (N, C, L) "
            "or vectors (N, C)"
        )
    return lengths[0], tuple(lengths[1:])


def _nodes(protos: Iterable[NodeProto], opset: int, batch: int | None) -> Iterator[Node]:
    from onnx import helper

    for proto in protos:
        outputs = list(proto.output)
        while outputs and not outputs[-1]:
            outputs.pop()
        if "" in outputs:
            raise BnewError(
                f"{proto.op_type} '{proto.name}' is not imported: it leaves out a result before another"
            )
        own = proto.domain in _ONNX
        domain = QONNX[0] if proto.domain in QONNX else proto.domain
        yield Node(
            kind=proto.op_type if own else f"{domain}.{proto.op_type}",
            name=proto.name or next(iter(proto.output), proto.op_type),
            inputs=tuple(name or None for name in proto.input),
            outputs=tuple(outputs),
            attributes={each.name: _plain(helper.get_attribute_value(each)) for each in proto.attribute},
            opset=opset,
            batch=batch,
            protos=(proto,),
        )


def _plain(value: Any) -> Any:
    """An attribute's value with text as text."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def merged(graph: Graph) -> tuple[Node, ...]:
    """The nodes, with Sign(Sign(x) + c) for 0 < c < 1 as one: Larq's way to write +1 where x ≥ 0, else −1."""
    made = {output: node for node in graph.nodes for output in node.outputs}

    def larger(node: Node) -> Node:
        before = made.get(node.inputs[0] or "") if node.kind == "Sign" else None
        if before is None or before.kind != "Add":
            return node
        for value, other in (before.inputs, before.inputs[::-1]):
            first, shift = made.get(value or ""), _number(graph, made, other)
            if first is not None and first.kind == "Sign" and shift is not None and 0 < shift < 1:
                return replace(
                    node,
                    kind="SignOfShiftedSign",
                    inputs=(first.inputs[0], other),
                    protos=(*first.protos, *before.protos, *node.protos),
                )
        return node

    nodes = [larger(node) for node in graph.nodes]
    needed = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            needed.update(name for name in node.inputs if name)
            kept.append(node)
    return tuple(reversed(kept))


def _number(graph: Graph, made: Mapping[str, Node], name: str | None) -> float | None:
    """The number of a constant that holds one."""
    from onnx import numpy_helper

    array = graph.constants.get(name or "")
    node = made.get(name or "")
    if node is not None and node.kind == "Constant":
        if "value" in node.attributes:
            array = numpy_helper.to_array(node.attributes["value"])
        elif "value_float" in node.attributes:
            array = np.asarray(node.attributes["value_float"])
    return float(array.item()) if array is not None and array.size == 1 else None
