"""A trained network becomes a packed file: binary weights as bits, the rest as real numbers, one graph."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from bnew.errors import BnewError, lookup
from bnew.files import write_atomically
from bnew.layers import check_module
from bnew.packing.checksum import sealed
from bnew.packing.file import VERSION, PackedFile
from bnew.packing.fusion import Graph
from bnew.packing.inputs import ONLY, Example, Inputs, inputs_of
from bnew.packing.reading import Output, read
from bnew.packing.sizes import CEIL, generalised, trial_sizes
from bnew.packing.tracing import NotTaken, unwrapped
from bnew.packing.values import Shape

_log = logging.getLogger(__name__)

Numbers: TypeAlias = Sequence[float] | Mapping[str, Sequence[float]]  # one per channel; or so by input
Normalisation: TypeAlias = Mapping[str, Sequence[float]]  # the fields ``mean`` and ``std`` of an input

_LARGEST = float(np.finfo(np.float32).max)
_DTYPES = {"uint32": "U32", "float32": "F32", "float16": "F16"}


def pack(
    model: nn.Module,
    example_input: Example,
    path: str | Path,
    *,
    mean: Numbers | None = None,
    std: Numbers | None = None,
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
        example_input: images as the model takes them, (N, C, H, W), lines (N, C, L), which the file also
            takes as images of L × 1, or vectors (N, C); only the shape counts. For a model of several inputs,
            one for each: a tuple in the order of the parameters of its ``forward``, or a dict by their names.
        path: the file to write.
        mean, std: one number per channel, for pixel values in [0, 1]; with them, the file takes bytes too.
            Of several inputs, dicts by the inputs' names, for those that are images of bytes.
        resize: (height, width) that an image file is scaled to cover before its centre is cropped to the
            input's size; None: the input's size. Only for a model of one input.
        classes: names of the outputs.
        half: store real numbers as float16, in half the space; this rounds them.
        any_size: the file runs for images of other sizes too, as the network itself does. The network is
            read at some other sizes, to find what follows from the size of the image, and how. Only for a
            model of one input.

    Returns:
        The description of the file, as ``bnew.packing.PackedFile.read`` returns it; prints as one line.

    Raises:
        BnewError: the file has no operator for something that the model computes (the message names
            operator, layer and line), the binary weights are not binary, a lazy layer was never called, an
            argument does not fit the model, the results do not depend on one of several inputs, or with
            ``any_size``, a part of the network has no rule for images of other sizes.
    """
    check_module("pack", model)
    model = unwrapped(model)
    inputs = inputs_of(model, example_input)
    normalisation = _normalisation(inputs, mean, std)
    outputs, graph = _read(model, inputs, normalisation)
    entries: list[dict[str, Any]] = [
        {
            "name": name,
            "shape": list(shape),
            **({} if any_size else _size(example, shape)),
            **normalisation[name],
        }
        for name, example in zip(inputs.names, inputs.tensors, strict=True)
        for shape in [graph.inputs[name]]
    ]
    (image, *more) = entries
    if more and (resize is not None or any_size):
        raise BnewError(
            f"the model takes {len(entries)} inputs, and only one image has "
            f"{'other sizes: leave out any_size' if any_size else 'a resize: leave it out'}"
        )
    if resize is not None:
        size = graph.inputs[image["name"]][1:]
        if min(resize[0] - size[0], resize[1] - size[1]) < 0:
            raise BnewError(f"resize is {tuple(resize)}, but must cover the input, {size}")
        image["resize"] = list(resize)
    description: dict[str, Any] = {"inputs": entries} if more else {"input": image}
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
        description = _for_any_size(model, inputs, normalisation, description, graph)
    for node in description["nodes"]:
        node.pop(CEIL, None)
    tensors = {name: _stored(name, array, half) for name, array in graph.tensors.items()}
    content = _container(description, tensors)
    write_atomically(Path(path), lambda beside: beside.write_bytes(content))
    return replace(PackedFile.read(path), real_layers=graph.real)


def _read(
    model: nn.Module, inputs: Inputs, normalisation: Mapping[str, Normalisation]
) -> tuple[list[Output], Graph]:
    outputs = read(model, inputs, {name: _lattice(of) for name, of in normalisation.items() if of})
    return outputs, Graph(*(output.value for output in outputs))


def _for_any_size(
    model: nn.Module,
    inputs: Inputs,
    normalisation: Mapping[str, Normalisation],
    description: dict[str, Any],
    graph: Graph,
) -> dict[str, Any]:
    """The description with rules for images of other sizes.

    Raises:
        BnewError: the network takes no other size, or see :func:`bnew.packing.sizes.generalised`.
    """
    (example,) = inputs.tensors
    if example.dim() != 4:
        raise BnewError("the network takes no images, and only these have other sizes: pack it for one size")
    graphs = [(description, graph.tensors)]
    for number, size in enumerate(trial_sizes(*example.shape[2:])):
        try:
            zeros = replace(inputs, args=(example.new_zeros(1, example.shape[1], *size),), kwargs={})
            outputs, other = _read(model, zeros, normalisation)
        except NotTaken as error:
            if number == 0:
                raise BnewError(f"the network does not run for images of other sizes: {error}") from error
            continue  # it need not take every size
        image = {"name": ONLY, "shape": list(other.inputs[ONLY])}
        found = {"input": image, "nodes": other.nodes, **_results(outputs, other.outputs)}
        graphs.append((found, other.tensors))
    return generalised(graphs)


def _size(example: Tensor, shape: Shape) -> dict[str, list[int]]:
    """The file's ``size`` of an input, if it is neither an image of several pixels nor a vector."""
    size = tuple(example.shape[1:])
    return {} if size == (shape if shape[1:] != (1, 1) else shape[:1]) else {"size": list(size)}


def _results(outputs: Sequence[Output], values: Sequence[str]) -> dict[str, Any]:
    """The file's ``output``, or its ``outputs`` if there are several, named ones, or one of another size."""
    channels, height, width = outputs[0].value.shape
    usual = [(channels, height, width)] if height * width > 1 else [(channels,), (channels, 1, 1)]
    plain = not (outputs[0].name or outputs[0].integers)
    if len(outputs) == 1 and plain and outputs[0].size in usual:
        return {"output": values[0]}
    entries = []
    for output, value in zip(outputs, values, strict=True):
        assert math.prod(output.size) == math.prod(output.value.shape), "a result is not stored as it is"
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


def _normalisation(inputs: Inputs, mean: Numbers | None, std: Numbers | None) -> dict[str, Normalisation]:
    """``mean`` and ``std`` as fields of each of the file's inputs; empty for those that have none.

    Raises:
        BnewError: only one is given, they are not one number per channel, ``std`` above 0, or of several
            inputs, they are no dicts by the inputs' names.
    """
    means, stds = _by_input("mean", inputs, mean), _by_input("std", inputs, std)
    return {
        name: normalised(means.get(name), stds.get(name), example.shape[1])
        for name, example in zip(inputs.names, inputs.tensors, strict=True)
    }


def _by_input(what: str, inputs: Inputs, numbers: Numbers | None) -> Mapping[str, Sequence[float]]:
    if numbers is None:
        return {}
    if not isinstance(numbers, Mapping):
        if len(inputs.names) > 1:
            raise BnewError(
                f"{what} is {numbers}, but the model takes several inputs: give a dict by their names"
            )
        return {ONLY: numbers}
    for name in numbers:
        lookup(f"input in {what}", name, dict.fromkeys(inputs.names))
    return numbers


def normalised(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> Normalisation:
    """What the file says of pixels, checked; nothing if neither is given."""
    if (mean is None) != (std is None):
        raise BnewError("mean and std belong together: give both or neither")
    if mean is None or std is None:
        return {}
    numbers = {"mean": _floats("mean", mean, channels), "std": _floats("std", std, channels)}
    if min(numbers["std"]) < 1 / _LARGEST:
        raise BnewError(f"std is {list(std)}, but must be positive")
    return numbers


def _lattice(normalisation: Normalisation) -> npt.NDArray[Any]:
    """(2, C): step and offset of the values (b / 255 − mean) / std of bytes b."""
    step = 1 / (255 * np.array(normalisation["std"]))
    level = 255 * np.array(normalisation["mean"])
    near = np.rint(level)  # a mean that is a byte / 255, rounded to float32, counts as that byte
    return np.array([step, -step * np.where(np.abs(level - near) <= 1e-6 * np.abs(level), near, level)])


def _floats(name: str, numbers: Sequence[float], channels: int) -> list[float]:
    values = [float(number) for number in numbers]
    if len(values) != channels:
        raise BnewError(f"{name} is {values}, but must be one number for each of {channels} channels")
    if not all(abs(value) <= _LARGEST for value in values):
        raise BnewError(f"{name} is {values}, but must be finite in float32")
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
