"""A trained network becomes a packed file: binary weights as bits, the rest as real numbers, one graph."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from bnew.errors import BnewError
from bnew.files import write_atomically
from bnew.layers import check_module
from bnew.packing.file import VERSION, PackedFile, sealed
from bnew.packing.fusion import Graph
from bnew.packing.reading import Output, read
from bnew.packing.sizes import CEIL, generalised, trial_sizes
from bnew.packing.tracing import NotTaken

_log = logging.getLogger(__name__)

_DTYPES = {"uint32": "U32", "float32": "F32", "float16": "F16"}


def pack(
    model: nn.Module,
    example_input: Tensor,
    path: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    half: bool = False,
    any_size: bool = False,
) -> PackedFile:
    """Write a trained network as a packed file (docs/format.md), which ``bnew_engine.load`` runs.

    The model need not be one of bnew: ``torch.export`` reads its graph, in eval mode. A convolution or a
    linear layer of any class is binary if its input comes from a sign and the weights of each output channel
    have one magnitude. A sign may be written as ``torch.sign``, ``torch.where`` or a comparison, with or
    without the straight-through trick ``(out − y).detach() + y``.

    A packed sign is +1 at exactly 0, like bnew's own. ``torch.sign`` is 0 there. It is refused where its
    input may be exactly 0 by construction, for example after a ReLU, and where bnew cannot tell. An input
    that is 0 only by a coincidence of rounding is packed as +1.

    Batch norms become a scale and a shift per channel. The magnitude of binary weights goes into the scale
    that follows. Results equal those of the model up to float32 rounding, which may flip a sign whose input
    is nearly 0.

    The file is written whole or not at all. The model is left as it was.

    Args:
        model: a trained network, with binary weights at ±1 (or ± one magnitude per output channel).
        example_input: images as the model takes them, (N, C, H, W), or vectors, (N, C); only the shape
            counts.
        path: the file to write.
        mean, std: one number per channel, for pixel values in [0, 1]; with them, the file takes bytes too.
        resize: (height, width) that an image file is scaled to cover before its centre is cropped to the
            input's size; None: the input's size.
        classes: names of the outputs.
        half: store real numbers as float16, in half the space; this rounds them.
        any_size: the file runs for images of other sizes too, as the network itself does. The network is
            read at some other sizes, to find what follows from the size of the image, and how.

    Returns:
        The description of the file, as ``bnew.packing.PackedFile.read`` returns it; prints as one line.

    Raises:
        BnewError: the file has no operator for something that the model computes (the message names
            operator, layer and line), the binary weights are not binary, a lazy layer was never called, an
            argument does not fit the model, or with ``any_size``, a part of the network has no rule for
            images of other sizes.
    """
    check_module("pack", model)
    if not isinstance(example_input, Tensor) or not example_input.is_floating_point():
        raise BnewError(
            "the example input is no tensor of floating-point numbers: packing needs a batch of images"
        )
    if example_input.dim() == 3:
        raise BnewError(
            f"the example input has shape {tuple(example_input.shape)}: a packed file takes lines (N, C, L) "
            "as images (N, C, L, 1), so pack a model that begins with nn.Flatten(2)"
        )
    if example_input.dim() not in (2, 4) or 0 in example_input.shape:
        raise BnewError(
            f"the example input has shape {tuple(example_input.shape)}, but must be (N, C, H, W), or (N, C) "
            "for a network of vectors"
        )
    normalisation = _normalisation(mean, std, example_input.shape[1])
    outputs, graph = _read(model, example_input, normalisation)
    image: dict[str, Any] = {"name": Graph.INPUT, "shape": list(graph.shape), **normalisation}
    if resize is not None:
        if min(resize[0] - graph.shape[1], resize[1] - graph.shape[2]) < 0:
            raise BnewError(f"resize is {tuple(resize)}, but must cover the input, {tuple(graph.shape[1:])}")
        image["resize"] = list(resize)
    description: dict[str, Any] = {"input": image}
    if classes is not None:
        if len(outputs) > 1 or outputs[0].name:
            raise BnewError("there are class names, but the model returns several results, or named ones")
        if len(classes) != outputs[0].value.shape[0]:
            raise BnewError(
                f"there are {len(classes)} class names, but the model has {outputs[0].value.shape[0]} outputs"
            )
        description["classes"] = list(map(str, classes))
        for name in description["classes"]:
            if not name.isascii() and not _is_utf8(name):
                raise BnewError(f"the class name {name!a} cannot be written as UTF-8")
    description |= {"nodes": graph.nodes, **_results(outputs, graph.outputs)}
    if any_size:
        description = _for_any_size(model, example_input, normalisation, description, graph)
    for node in description["nodes"]:
        node.pop(CEIL, None)
    tensors = {name: _stored(name, array, half) for name, array in graph.tensors.items()}
    content = _container(description, tensors)
    write_atomically(Path(path), lambda beside: beside.write_bytes(content))
    return PackedFile.read(path)


def _read(
    model: nn.Module, example: Tensor, normalisation: Mapping[str, Sequence[float]]
) -> tuple[list[Output], Graph]:
    outputs = read(model, example, _lattice(normalisation))
    return outputs, Graph(*(output.value for output in outputs))


def _for_any_size(
    model: nn.Module,
    example: Tensor,
    normalisation: Mapping[str, Sequence[float]],
    description: dict[str, Any],
    graph: Graph,
) -> dict[str, Any]:
    """The description with rules for images of other sizes.

    Raises:
        BnewError: the network takes no other size, or see :func:`bnew.packing.sizes.generalised`.
    """
    if example.dim() != 4:
        raise BnewError("the network takes vectors, and only images have other sizes: pack it for one size")
    graphs = [(description, graph.tensors)]
    for number, size in enumerate(trial_sizes(*example.shape[2:])):
        try:
            outputs, other = _read(model, example.new_zeros(1, example.shape[1], *size), normalisation)
        except NotTaken as error:
            if number == 0:
                raise BnewError(f"the network does not run for images of other sizes: {error}") from error
            continue  # it need not take every size
        image = {"name": Graph.INPUT, "shape": list(other.shape)}
        found = {"input": image, "nodes": other.nodes, **_results(outputs, other.outputs)}
        graphs.append((found, other.tensors))
    return generalised(graphs)


def _results(outputs: Sequence[Output], values: Sequence[str]) -> dict[str, Any]:
    """The file's ``output``, or its ``outputs`` if there are several, named ones, or one of another size."""
    channels, height, width = outputs[0].value.shape
    usual = [(channels, height, width)] if height * width > 1 else [(channels,), (channels, 1, 1)]
    plain = not (outputs[0].name or outputs[0].integers)
    if len(outputs) == 1 and plain and outputs[0].size in usual:
        return {"output": values[0]}
    entries = []
    for output, value in zip(outputs, values, strict=True):
        named = {"name": output.name} if output.name else {}
        integers = {"integers": True} if output.integers else {}
        entries.append({"value": value, **named, "size": list(output.size), **integers})
    return {"outputs": entries}


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> dict[str, list[float]]:
    """``mean`` and ``std`` as fields of the file's input; empty if both are None.

    Raises:
        BnewError: only one is given, or they are not one number per channel, ``std`` above 0.
    """
    if (mean is None) != (std is None):
        raise BnewError("mean and std belong together: give both or neither")
    if mean is None or std is None:
        return {}
    numbers = {"mean": _floats("mean", mean, channels), "std": _floats("std", std, channels)}
    if min(numbers["std"]) <= 0:
        raise BnewError(f"std is {list(std)}, but must be positive")
    return numbers


def _lattice(normalisation: Mapping[str, Sequence[float]]) -> npt.NDArray[Any] | None:
    """(2, C): step and offset of the values (b / 255 − mean) / std of bytes b; None without mean and std."""
    if not normalisation:
        return None
    step = 1 / (255 * np.array(normalisation["std"]))
    level = 255 * np.array(normalisation["mean"])
    near = np.rint(level)  # a mean that is a byte / 255, rounded to float32, counts as that byte
    return np.array([step, -step * np.where(np.abs(level - near) <= 1e-6 * np.abs(level), near, level)])


def _floats(name: str, numbers: Sequence[float], channels: int) -> list[float]:
    values = [float(number) for number in numbers]
    if len(values) != channels or not all(map(math.isfinite, values)):
        raise BnewError(f"{name} is {values}, but must be one number for each of {channels} channels")
    return values


def _stored(name: str, array: npt.NDArray[Any], half: bool) -> npt.NDArray[Any]:
    """The array as the file stores it: words unchanged, real numbers as float32 or float16.

    Raises:
        BnewError: a number is not finite, or too large for its type.
    """
    if array.dtype == np.uint32:
        return array
    if not np.isfinite(array).all():
        raise BnewError(f"'{name}' holds NaN or infinite numbers: pack a network that has been trained well")
    with np.errstate(over="ignore"):
        stored = array.astype(np.float16 if half else np.float32)
    if not np.isfinite(stored).all():
        largest = np.abs(array).max()
        raise BnewError(
            f"'{name}' goes up to {largest:.3g}, too large for {stored.dtype}: pack it without half"
        )
    lost = int(np.count_nonzero((stored == 0) & (array != 0)))
    if lost:
        _log.warning("%d of the %d numbers of '%s' become 0 in %s", lost, array.size, name, stored.dtype)
    return stored


def _container(graph: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """The bytes of the file. Types of more bytes come first, so that every tensor is aligned to its type."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    header: dict[str, Any] = {
        "__metadata__": {
            "format": "bnew",
            "version": VERSION,
            "crc32": "0" * 8,
            "graph": json.dumps(graph, ensure_ascii=False, allow_nan=False, separators=(",", ":")),
        }
    }
    data = []
    end = 0
    for name, array in ordered:
        data.append(array.astype(array.dtype.newbyteorder("<")).tobytes())
        begin, end = end, end + len(data[-1])
        header[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return sealed(b"".join([len(text).to_bytes(8, "little"), text, *data]))
