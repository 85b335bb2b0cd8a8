"""A network's inputs: what the file says of them, and batches brought in order and checked for C++."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnew_engine._arguments import array
from bnew_engine._engine import EngineError


class Input(NamedTuple):
    """An input of a network."""

    name: str
    """Of several, the parameter of the network's ``forward``; ``input`` if there is only one."""
    shape: tuple[int, int, int]
    """(C, H, W) of an image; (C, L, 1) of a line; (C, 1, 1) of a vector."""
    size: tuple[int, ...]
    """The same as the network takes it in PyTorch: (C, H, W), (C, L) or (C,)."""
    mean: tuple[float, ...] | None = None
    """The mean per channel, for pixel values in [0, 1]; None if the file does not have it."""
    std: tuple[float, ...] | None = None
    """The standard deviation per channel; None as for ``mean``."""


def inputs_of(graph: Mapping[str, Any], shapes: Sequence[tuple[str, tuple[int, int, int]]]) -> list[Input]:
    """The inputs that the graph (docs/format.md) describes, for images of these shapes, by name."""
    entries = graph["inputs"] if "inputs" in graph else [graph["input"]]
    return [
        Input(
            name,
            shape,
            _size(entry, shape),
            *(tuple(entry[key]) if key in entry else None for key in _NUMBERS),
        )
        for (name, shape), entry in zip(shapes, entries, strict=True)
    ]


_NUMBERS = ("mean", "std")


def _size(entry: Mapping[str, Any], shape: tuple[int, int, int]) -> tuple[int, ...]:
    if "size" in entry:
        return tuple(entry["size"])
    return shape if shape[1:] != (1, 1) or "any_size" in entry else shape[:1]


def is_alone(one: Input, images: NDArray[Any]) -> bool:
    """Whether it is one image, line or vector, and no batch."""
    channels, height, width = one.shape
    lines = width == 1 < height
    if images.ndim == 3:
        return not (lines and images.shape[1:] == (channels, height))
    return images.ndim == 2 if lines else images.ndim == 1 and (height, width) == (1, 1)


def batches(inputs: Sequence[Input], given: Sequence[Any], named: Mapping[str, Any]) -> list[NDArray[Any]]:
    """A batch for each input, as C++ takes it: float32 (N, C, H, W) or uint8 (N, H, W, C).

    Args:
        inputs: the network's.
        given: its arguments, in order; of several inputs, also one tuple or list, or one dict, of all.
        named: its arguments by name. The name of a single input does not matter.

    Raises:
        EngineError: these are not the network's inputs; an array has another shape or type; or their numbers
            of images differ.
    """
    ordered = _ordered(inputs, given, named)
    if len(inputs) == 1:
        return [_checked(inputs[0], ordered[0], alone=True)]
    found = [_checked(one, batch, alone=False) for one, batch in zip(inputs, ordered, strict=True)]
    for one, images in zip(inputs, found, strict=True):
        if len(images) != len(found[0]):
            raise EngineError(
                f"'{inputs[0].name}' has {len(found[0])} images and '{one.name}' {len(images)}: give as many "
                "for each input"
            )
    return found


def _ordered(inputs: Sequence[Input], given: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
    if len(given) == 1 and not named:
        (first,) = given
        if isinstance(first, Mapping):
            given, named = (), first
        elif len(inputs) > 1 and isinstance(first, tuple | list):
            given = first
    names = [one.name for one in inputs]
    if len(inputs) == 1:
        if len(given) + len(named) != 1:
            raise EngineError(f"the network takes one input, and {len(given) + len(named)} were given")
        return [*given, *named.values()]
    takes = f"the network takes {_listed(names)}"
    if len(given) > len(names):
        raise EngineError(f"{takes}, and {len(given)} inputs were given")
    all_named = {**dict(zip(names, given, strict=False)), **named}
    if unknown := [name for name in all_named if name not in names]:
        raise EngineError(f"{takes}, and no {unknown[0]!r}")
    if len(all_named) < len(given) + len(named):
        twice = next(name for name in names[: len(given)] if name in named)
        raise EngineError(f"'{twice}' was given twice: once in order, and once by name")
    if missing := [name for name in names if name not in all_named]:
        raise EngineError(f"{takes}, and '{missing[0]}' was not given")
    return [all_named[name] for name in names]


def _listed(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _checked(one: Input, batch: Any, alone: bool) -> NDArray[Any]:
    name, are, have = ("images", "are", "have") if alone else (f"'{one.name}'", "is", "has")
    images = given = array(name, batch)
    c, h, w = shape = one.shape
    bytes_taken = False
    if images.dtype.kind == "f":
        if (images.ndim == 3 and w == 1) or (images.ndim == 2 and h == w == 1):
            images = images.reshape(*images.shape, *(1,) * (4 - images.ndim))
    elif images.dtype == np.uint8:
        bytes_taken, shape = True, (h, w, c)
    else:
        raise EngineError(
            f"{name} {are} {images.dtype}, but must be float32 (N, C, H, W) or uint8 (N, H, W, C)"
        )
    if images.ndim != 4 or images.shape[1:] != shape:
        kind = "uint8 images (N, H, W, C)" if bytes_taken else "float32 (N, C, H, W)"
        wanted = ", ".join(map(str, ("N", *shape)))
        raise EngineError(f"{name} {have} shape {given.shape}, but {kind} must have ({wanted})")
    return np.require(images, np.uint8 if bytes_taken else np.float32, ["C", "ALIGNED"])
