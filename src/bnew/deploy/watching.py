"""What the binary layers of a network see in PyTorch, in the shapes of a packed file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnew.errors import BnewError
from bnew.layers import BinaryConvTranspose2d, BinaryLayer, BinaryLinear, RSign
from bnew.phases import Phases

Array: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """A binary layer in PyTorch, each (N, C, H, W): the values before its sign, the signs, its integers.

    ``tokens``: it is a linear layer of several vectors per image, which are the places of (N, C, 1, T). In a
    packed file they may lie in another order. ``phases``: it is a transposed convolution, which a packed file
    computes by several binary convolutions.
    """

    values: Array
    signs: Array
    integers: Array
    tokens: bool = False
    phases: Phases | None = None

    @property
    def nodes(self) -> int:
        """How many binary convolutions of a packed file compute the layer."""
        return 1 if self.phases is None else self.phases.convolutions

    def whole(self, parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """The layer's integers from those of these convolutions, in the order of the file."""
        if self.phases is None:
            return parts[0].reshape(self.integers.shape)
        height, width = self.integers.shape[2:]
        return self.phases.interleaved(parts, (height, width))


Calls: TypeAlias = list[tuple[str, Seen]]  # of binary layers, by name, in their order


@contextmanager
def watching(model: nn.Module, images: int) -> Iterator[Calls]:
    """Record what each binary layer sees in a call of the model with so many images."""
    seen: Calls = []
    hooks = []

    def watch(name: str, layer: BinaryLayer) -> None:
        def hook(input_sign: nn.Module, args: tuple[Tensor, ...], signs: Tensor) -> None:
            values = args[0]
            if isinstance(input_sign, RSign) and input_sign.shift is not None:
                values = values + input_sign.shift.view(-1, *(1,) * (values.dim() - 2))
            weight = torch.where(layer.weight >= 0, 1.0, -1.0)
            if not isinstance(layer, BinaryLinear):
                integers = layer.product(signs, weight)
                phases = layer.phases if isinstance(layer, BinaryConvTranspose2d) else None
                seen.append((name, Seen(_image(values), _image(signs), _image(integers), phases=phases)))
            else:
                integers = F.linear(signs, weight)
                parts = [_tokens(t, images) for t in (values, signs, integers)]
                seen.append((name, Seen(parts[0], parts[1], parts[2], tokens=len(signs) > images)))

        hooks.append(layer.input_sign.register_forward_hook(hook))

    for name, module in model.named_modules():
        if isinstance(module, BinaryLayer):
            watch(name, module)
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def paired(nodes: Iterable[Mapping[str, Any]], seen: Calls) -> list[tuple[Sequence[Mapping[str, Any]], Seen]]:
    """The binary nodes of a file with what their layers have seen, in the order of the calls.

    The nodes of a layer that is called several times, or of a transposed convolution, are numbered: ``conv``,
    ``conv#2`` and so on. If it has fewer of them, calls with the same signs share them.

    Raises:
        BnewError: a layer and its nodes do not fit.
    """
    calls = Counter(name for name, _ in seen)
    of_layer: dict[str, list[Mapping[str, Any]]] = {name: [] for name in calls}
    for node in nodes:
        layer, _, number = node["name"].rpartition("#")
        name = layer if layer in calls and number.isdigit() else node["name"]
        of_layer.setdefault(name, []).append(node)
    each = {name: layer_seen.nodes for name, layer_seen in seen}  # of one call
    known: dict[str, list[Seen]] = {name: [] for name in of_layer}
    pairs: list[tuple[Sequence[Mapping[str, Any]], Seen]] = []
    for name, layer_seen in seen:
        before, own = known[name], of_layer[name]
        if calls[name] * each[name] > len(own) and any(
            np.array_equal(other.signs, layer_seen.signs) for other in before
        ):
            continue
        start = len(before) * each[name]
        if start < len(own):
            pairs.append((own[start : start + each[name]], layer_seen))
        before.append(layer_seen)
    if unfit := [name for name, own in of_layer.items() if len(known[name]) * each.get(name, 1) != len(own)]:
        raise BnewError(
            f"only one of the file and the network has a binary layer '{min(unfit)}', or one calls it more "
            "often: give the run that the file was packed from"
        )
    return pairs


def _image(x: Tensor) -> Array:
    """(N, C, H, W), also of a vector."""
    return x.reshape(*x.shape, *(1,) * (4 - x.dim())).contiguous().numpy()


def _tokens(x: Tensor, images: int) -> Array:
    """(N · T, C) as (N, C, 1, T)."""
    return x.reshape(images, -1, x.shape[-1]).movedim(-1, 1)[:, :, None].contiguous().numpy()


def aligned(stored: Array, signs: Array) -> Array:
    """The places of ``stored`` (N, C, H, W) in the order of those of ``signs`` (N, C, 1, T), as in ``signs``.

    Places that are equal belong together, and of the others those that differ least.
    """
    result = np.empty_like(signs)
    for found, wanted, to in zip(stored.reshape(*stored.shape[:2], -1), signs[:, :, 0], result, strict=True):
        places: dict[bytes, list[int]] = {}
        for place, column in enumerate(found.T):
            places.setdefault(column.tobytes(), []).append(place)
        chosen: list[int] = []
        for column in wanted.T:  # −1: no place is equal
            own = places.get(column.tobytes())
            chosen.append(own.pop() if own else -1)
        left = sorted(set(range(found.shape[1])) - set(chosen))
        for token in (token for token, place in enumerate(chosen) if place < 0):
            differences = [np.count_nonzero(found[:, place] != wanted[:, token]) for place in left]
            chosen[token] = left.pop(int(np.argmin(differences)))
        to[:, 0] = found[:, chosen]
    return result
