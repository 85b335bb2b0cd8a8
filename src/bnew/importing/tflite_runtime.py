"""Holds an imported .tflite network against Larq Compute Engine's interpreter, or TensorFlow Lite's.

The interpreter runs the file once with every tensor as a result. Then each operator computes here from the
values that the interpreter has there, and its results must be the same except for rounding.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnew.errors import BnewError, first_line
from bnew.importing.comparing import NodeCheck, difference
from bnew.importing.graph import Array, Node
from bnew.importing.larq_engine import larq_interpreter
from bnew.importing.network import ImportedNetwork, Number, evaluated
from bnew.importing.tflite_binary import unpacked
from bnew.importing.tflite_file import TfliteFile

# Images in the file's order → all results, in the order that was asked for.
Run = Callable[[Array], Sequence[Array]]


@torch.no_grad()
def against_tflite(network: ImportedNetwork, batches: Sequence[Tensor]) -> NodeCheck | None:
    """Compare each operator with the file's own interpreter, for batches of images; None if there is none.

    Raises:
        BnewError: the interpreter does not run the file, or a result differs by more than rounding.
    """
    file: TfliteFile = network.graph.model
    nodes = [node for node, _ in network.running]
    wanted = [
        name for node in nodes for name in node.outputs if file.tensors[name].type in ("FLOAT32", "INT32")
    ]
    content = with_results(file.content, [file.numbers[name] for name in wanted])
    named, run = _interpreter(content, any(".Lce" in node.kind for node in network.nodes))
    if run is None:
        return None
    differences = [0.0]

    tiny: set[Node] = set()

    def compared(node: Node, _: str, inputs: Sequence[Number | None]) -> Sequence[Number]:
        ours = evaluated(node, inputs)
        tiny.update([node] if _is_tiny(node, inputs) else [])
        results: list[Number] = []
        for name, own in zip(node.outputs, ours, strict=True):
            if name in theirs and isinstance(own, Tensor) and own.is_floating_point():
                value = _as_ours(theirs[name], file.tensors[name].bits, own)
                if node not in tiny:
                    differences.append(difference(node, own, value, named))
                results.append(value)
            else:
                results.append(own)
        return results

    for images in batches:
        given = np.ascontiguousarray(images.permute(0, 2, 3, 1) if images.dim() == 4 else images)
        try:
            theirs = dict(zip(wanted, run(given), strict=True))
        except Exception as error:  # the interpreters' errors have no common base
            raise BnewError(f"{named} does not run the file: {first_line(error)}") from error
        network.run(images, compared)
    kinds = "of images smaller than their window, with a border of zeros, which Larq computes wrongly"
    return NodeCheck(len(nodes) - len(tiny), len(tiny), max(differences), named, kinds)


def _is_tiny(node: Node, inputs: Sequence[Number | None]) -> bool:
    """Whether a window with a border of zeros is larger than the image: Larq (0.16) is wrong there."""
    options = node.attributes
    if not node.kind.endswith(".LceBconv2d") or options["padding"] != 0 or options["pad_values"] != 0:
        return False
    x, weight = inputs[:2]
    assert x is not None
    assert weight is not None
    reaches = (
        (size - 1) * options[f"dilation_{side}_factor"] + 1
        for size, side in zip(weight.shape[2:], ("height", "width"), strict=True)
    )
    return any(reach > side for reach, side in zip(reaches, x.shape[2:], strict=True))


def _as_ours(theirs: Array, packed: bool, ours: Tensor) -> Tensor:
    """A value of the interpreter as it is here: signs, and channels first."""
    value = theirs
    if packed:
        value = unpacked(theirs, ours.shape[1] if ours.dim() == 4 else ours.shape[-1])
    return torch.from_numpy(np.ascontiguousarray(value.transpose(0, 3, 1, 2) if value.ndim == 4 else value))


def with_results(content: bytes, tensors: Sequence[int]) -> bytes:
    """A file with these tensors as its results: a new list behind it, to which the old place points."""
    import tflite

    graph = tflite.Model.GetRootAs(content, 0).Subgraphs(0)
    table = graph._tab
    place = table.Pos + table.Offset(8)  # the third field of a graph
    changed = bytearray(content)
    changed += bytes(-len(changed) % 4)
    struct.pack_into("<I", changed, place, len(changed) - place)
    return bytes(changed) + struct.pack(f"<I{len(tensors)}i", len(tensors), *tensors)


def _interpreter(content: bytes, larq: bool) -> tuple[str, Run | None]:
    """The name of an interpreter that is installed and knows the operators, and what runs the file."""
    makers: Iterable[tuple[str, Callable[[bytes], Run | None]]] = [("Larq Compute Engine", _larq)]
    if not larq:
        makers = [("LiteRT", _litert), *makers]
    for name, make in makers:
        try:
            run = make(content)
        except ImportError:
            continue
        except Exception as error:  # the interpreters' errors have no common base
            raise BnewError(f"{name} does not run the file: {first_line(error)}") from error
        if run is not None:
            return name, run
    return "", None


def _larq(content: bytes) -> Run | None:
    interpreter = larq_interpreter(content)
    return interpreter and (lambda images: interpreter.predict([images]))


def _litert(content: bytes) -> Run:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    # As the other, the kernels of TensorFlow Lite and no faster ones.
    interpreter: Any = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    (first,) = interpreter.get_input_details()

    def run(images: Array) -> list[Array]:
        interpreter.set_tensor(first["index"], images)
        interpreter.invoke()
        return [interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()]

    return run
