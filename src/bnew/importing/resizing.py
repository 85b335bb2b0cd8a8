"""ONNX's Resize and Upsample, as functions of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bnew.errors import BnewError
from bnew.importing.graph import Array, Node

_NEAREST: Mapping[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda place: np.ceil(place - np.float32(0.5)),
    "round_prefer_ceil": lambda place: np.floor(place + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _half_pixel(i: Array, n: int, m: int, factor: np.float32) -> Array:
    return (i + np.float32(0.5)) / factor - np.float32(0.5)


# Where each place i of the result lies in the image; n and m are the lengths of both.
_COORDINATES: Mapping[str, Callable[[Array, int, int, np.float32], Array]] = {
    "half_pixel": _half_pixel,
    "pytorch_half_pixel": lambda i, n, m, factor: i if m == 1 else _half_pixel(i, n, m, factor),
    "asymmetric": lambda i, n, m, factor: i / factor,
    "align_corners": lambda i, n, m, factor: i * np.float32(n - 1) / np.float32(max(m - 1, 1)),
}


@dataclass(frozen=True)
class _Axis:
    """An axis of ``before`` places that becomes one of ``after`` places, by a factor."""

    before: int
    after: int
    factor: np.float32

    def places(self, coordinates: str) -> Array:
        """Where each place of the result lies in the image."""
        i = np.arange(self.after, dtype=np.float32)
        return _looked_up(_COORDINATES, coordinates, "coordinate_transformation_mode")(
            i, self.before, self.after, self.factor
        )

    def nearest(self, coordinates: str, mode: str) -> Array:
        """The place of the image that each place of the result takes."""
        rounded = _looked_up(_NEAREST, mode, "nearest_mode")(self.places(coordinates))
        places: Array = np.clip(rounded, 0, self.before - 1).astype(np.int64)
        return places

    def as_pytorch_takes(self) -> Array:
        """The same of ``F.interpolate`` in its mode "nearest"."""
        i = np.arange(self.after, dtype=np.float32)
        places: Array = np.floor(i * (np.float32(1) / self.factor)).astype(np.int64)
        return np.minimum(places, self.before - 1)

    def weights(self, coordinates: str, mode: str, a: float) -> Array:
        """(before, after): the share of each place of the image in each place of the result.

        A place beyond the edge is the one at it. "cubic" is Keys' convolution with the parameter ``a``.
        """
        places = self.places(coordinates).astype(np.float64)
        first = np.floor(places)
        t = places - first  # behind the place before
        if mode == "linear":
            shares = {0: 1 - t, 1: t}
        else:
            shares = {
                k: ((a + 2) * d - (a + 3)) * d * d + 1 if k in (0, 1) else a * (((d - 5) * d + 8) * d - 4)
                for k, d in ((-1, t + 1), (0, t), (1, 1 - t), (2, 2 - t))
            }
        matrix = np.zeros((self.before, self.after))
        for k, share in shares.items():
            rows = np.clip(first + k, 0, self.before - 1).astype(np.int64)
            np.add.at(matrix, (rows, np.arange(self.after)), share)
        return matrix.astype(np.float32)


def resize(
    node: Node, x: Tensor, roi: Array | None = None, scales: Array | None = None, sizes: Array | None = None
) -> Tensor:
    """Lines or images in another size: by the nearest places, or by weights of the places around."""
    if node.opset < 11:
        return upsample(node, x, roi)  # the factors are its second input
    for name, usual in (("antialias", 0), ("exclude_outside", 0), ("keep_aspect_ratio_policy", "stretch")):
        if node.attributes.get(name, usual) != usual:
            raise BnewError(f"its {name} is {node.attributes[name]}")
    coordinates = str(node.attributes.get("coordinate_transformation_mode", "half_pixel"))
    how = str(node.attributes.get("nearest_mode", "round_prefer_floor"))
    return _resized(node, x, scales, sizes, coordinates, how)


def upsample(node: Node, x: Tensor, scales: Array | None = None) -> Tensor:
    """Resize before opset 11: place i of the result lies at i / factor, and the nearest is the one before."""
    given = np.asarray(node.attributes["scales"], np.float32) if scales is None else scales
    if node.attributes.get("mode", "nearest") == "nearest" and (given < 1).any():
        raise BnewError("it makes images smaller by nearest places, which is not defined before opset 11")
    return _resized(node, x, given, None, "asymmetric", "floor")


def _resized(
    node: Node, x: Tensor, scales: Array | None, sizes: Array | None, coordinates: str, how: str
) -> Tensor:
    mode = str(node.attributes.get("mode", "nearest"))
    if mode not in ("nearest", "linear", "cubic") or x.dim() not in (3, 4) or (mode, x.dim()) == ("cubic", 3):
        raise BnewError(f"its mode is '{mode}', for {x.dim()} dimensions")
    axes = _axes(node, x, scales, sizes)
    # PyTorch takes the factors, or computes them from the sizes.
    given: dict[str, Any] = {"size": [axis.after for axis in axes]}
    if sizes is None or not sizes.size:
        given = {"scale_factor": [float(axis.factor) for axis in axes]}
    if mode == "nearest":
        places = [axis.nearest(coordinates, how) for axis in axes]
        own = [axis.as_pytorch_takes() for axis in axes]
        if all(map(np.array_equal, places, own)):
            return F.interpolate(x, **given, mode="nearest")
        for dim, taken in enumerate(places, 2):
            x = x.index_select(dim, torch.tensor(taken))
        return x
    half = coordinates == "half_pixel" or (
        coordinates == "pytorch_half_pixel" and all(axis.after > 1 for axis in axes)
    )
    if mode == "linear" and (half or coordinates == "align_corners"):
        linear = "bilinear" if x.dim() == 4 else "linear"
        given = given if half else {"size": [axis.after for axis in axes]}
        return F.interpolate(x, **given, mode=linear, align_corners=not half)
    a = float(node.attributes.get("cubic_coeff_a", -0.75))
    for dim, axis in enumerate(axes, 2):
        weights = torch.tensor(axis.weights(coordinates, mode, a))
        x = (x.transpose(dim, -1) @ weights).transpose(dim, -1)
    return x


def _axes(node: Node, x: Tensor, scales: Array | None, sizes: Array | None) -> list[_Axis]:
    """The axes behind the channels."""
    by_size = sizes is not None and sizes.size > 0
    asked = sizes if by_size else scales
    if asked is None or not asked.size:
        raise BnewError("it does not say the size of its result")
    dims = [dim % x.dim() for dim in node.attributes.get("axes", range(x.dim()))]
    found = [_Axis(length, length, np.float32(1)) for length in x.shape]
    for dim, number in zip(dims, asked, strict=True):
        before = x.shape[dim]
        if by_size:
            after = before if dim == 0 and number == node.batch else int(number)
            found[dim] = _Axis(before, after, np.float32(after) / np.float32(before))
        else:
            factor = np.float32(number)
            found[dim] = _Axis(before, int(np.floor(np.float32(before) * factor)), factor)
    if any(axis.before != axis.after for axis in found[:2]):
        raise BnewError("it changes the number of images or channels")
    return found[2:]


def _looked_up(table: Mapping[str, Callable[..., Array]], name: str, what: str) -> Callable[..., Array]:
    if name not in table:
        raise BnewError(f"its {what} is '{name}', and imported are {', '.join(table)}")
    return table[name]
