"""Holds an imported network against ONNX Runtime, node by node, and its packed file against it.

Both round sums in different orders, so a sign whose input is nearly 0 may flip, and all that follows with it.
Therefore each node computes from the values that ONNX Runtime has there, and its result must be the same
except for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnew.deploy.agreement import by_name
from bnew.deploy.inference import engine_errors, load_engine
from bnew.errors import BnewError, first_line
from bnew.importing.graph import Array, Node
from bnew.importing.network import ImportedNetwork, Number, evaluated

# (node, its inputs, our results) → the results of ONNX Runtime.
Theirs = Callable[[Node, Sequence[Number | None], Sequence[Number]], Sequence[Number]]

_RUNTIME = "ONNX Runtime"
# The largest effect of rounding on a node's result, as a share of its root mean square.
_ROUNDING = 1e-4
# The same for a packed file with numbers as float16.
_ROUNDING_HALF = 5e-2
# How far an image's result may be from the module's in the median: signs near 0 may have flipped.
_FLIPPED = 0.1


@dataclass(frozen=True)
class NodeCheck:
    """What a runtime says of a network's nodes: how many it computed, and the largest difference.

    The difference is relative to the root mean square of a node's result. ``described`` nodes are
    those that the runtime does not know, or does not compute right: ``kinds`` says which.
    """

    nodes: int
    described: int
    difference: float
    runtime: str
    kinds: str = "QONNX's"


@torch.no_grad()
def against_runtime(network: ImportedNetwork, batches: Sequence[Tensor]) -> NodeCheck | None:
    """Compare each node with ONNX Runtime, for batches of images; None if it is not installed.

    Raises:
        BnewError: ONNX Runtime does not run the file, or a node's result differs by more than rounding.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    onnxruntime.set_default_logger_severity(3)
    described = {node for node in network.nodes if "." in node.kind}
    differences = [0.0]

    def compared(theirs: Theirs, node: Node, _: str, inputs: Sequence[Number | None]) -> Sequence[Number]:
        ours = evaluated(node, inputs)
        if node in described:
            return ours
        results = theirs(node, inputs, ours)
        differences.extend(difference(node, *pair, _RUNTIME) for pair in zip(ours, results, strict=True))
        return results

    constant = {*network.nodes}.difference(node for node, _ in network.running)
    for node in constant:
        if any(node.inputs):
            compared(_each_alone, node, "", [network.constants.get(name or "") for name in node.inputs])
    for images in batches:
        theirs = _each_alone if described else _all_at_once(network, images)
        network.run(images, partial(compared, theirs))
    return NodeCheck(len(network.nodes) - len(described), len(described), max(differences), _RUNTIME)


def difference(node: Node, ours: Number, theirs: Number, runtime: str) -> float:
    """How far a node's result is from a runtime's, as a share of its root mean square.

    Raises:
        BnewError: it is more than rounding.
    """
    a, b = (np.asarray(each, np.float64) for each in (ours, theirs))
    if a.shape != b.shape:
        raise BnewError(f"{node} returns {a.shape} here and {b.shape} in {runtime}: it is not imported")
    with np.errstate(invalid="ignore"):
        differences = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
    if not differences.any():
        return 0.0
    finite = b[np.isfinite(b)]
    size = float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0
    most = float(differences.max())
    relative = most / size if size else most
    if not relative <= _ROUNDING:  # NaN is more
        raise BnewError(
            f"{node} is not imported: it differs by {relative:.2g} of its root mean square from "
            f"{runtime}, more than rounding"
        )
    return relative


def _session(model: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise BnewError(f"ONNX Runtime does not run the graph: {first_line(error)}") from error


def _all_at_once(network: ImportedNetwork, images: Tensor) -> Theirs:
    """The results of ONNX Runtime in one run of the whole file."""
    from onnx import ModelProto, ValueInfoProto

    model = ModelProto()
    model.CopyFrom(network.graph.model)
    wanted = [name for node, _ in network.running for name in node.outputs]
    known = {each.name for each in model.graph.output}
    model.graph.output.extend(ValueInfoProto(name=name) for name in wanted if name not in known)
    values = dict(
        zip(wanted, _run(_session(model), {network.graph.input: images.numpy()}, wanted), strict=True)
    )
    return lambda node, inputs, ours: [values[name] for name in node.outputs]


def _each_alone(node: Node, inputs: Sequence[Number | None], ours: Sequence[Number]) -> list[Number]:
    """The results of ONNX Runtime for a node by itself."""
    from onnx import ValueInfoProto, helper

    given = {name: np.asarray(each) for name, each in zip(node.inputs, inputs, strict=True) if name}
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(each.dtype), each.shape)
        for name, each in given.items()
    ]
    results = [ValueInfoProto(name=name) for name in node.outputs]
    graph = helper.make_graph(node.protos, "node", infos, results)
    opset = [helper.make_opsetid("", node.opset)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=helper.find_min_ir_version_for(opset))
    theirs = _run(_session(model), given, node.outputs)
    # What the graph computes with as numbers stays that.
    return [
        each if isinstance(own, np.ndarray) else torch.from_numpy(each)
        for each, own in zip(theirs, ours, strict=True)
    ]


def _run(session: Any, given: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
    if not wanted:  # to ONNX Runtime, this is all
        return []
    try:
        results: list[Array] = session.run(list(wanted), dict(given))
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise BnewError(f"ONNX Runtime does not run the graph: {first_line(error)}") from error
    return results


@dataclass(frozen=True)
class PackedCheck:
    """How far a packed file's results are from the module's, relative to their root mean square.

    ``equal`` of ``images`` differ by rounding only. In the others, a sign near 0 may have flipped.
    """

    images: int
    equal: int
    median: float
    largest: float


@torch.no_grad()
def against_engine(network: ImportedNetwork, path: Path, images: Tensor, half: bool) -> PackedCheck | None:
    """Compare the packed file with the module; None if bnew-engine is not installed.

    Raises:
        BnewError: the results differ by more than flipped signs explain.
    """
    try:
        import bnew_engine  # noqa: F401
    except ImportError:
        return None
    engine = load_engine(path)
    ours = by_name(network(images))
    if not all(np.isfinite(each).all() for each in ours.values()):
        raise BnewError(
            "the network's results for random images are not finite, so the packed file cannot be compared; "
            "if it takes pixels, give mean and std"
        )
    with engine_errors():
        theirs = by_name(engine(np.ascontiguousarray(images.numpy())))
    differences = np.max([*_per_image(ours, theirs)], axis=0)
    median, largest = float(np.median(differences)), float(np.max(differences))
    if not median <= _FLIPPED:
        raise BnewError(
            f"the packed file differs by {median:.2g} of the root mean square from the network: nothing is "
            "written"
        )
    equal = int(np.count_nonzero(differences <= (_ROUNDING_HALF if half else _ROUNDING)))
    return PackedCheck(len(images), equal, median, largest)


def _per_image(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> Iterator[Array]:
    """The largest difference of each image, for each result."""
    for name, each in ours.items():
        size = float(np.sqrt(np.mean(np.square(each.astype(np.float64))))) or 1.0
        one, other = (results.reshape(len(each), -1) for results in (each, theirs[name]))
        yield np.abs(one - other).max(1) / size
