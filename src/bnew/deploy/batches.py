"""Batches of data: the images of a model's input, or of several in a tuple, a list or a dict, and labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnew.deploy.inference import engine_errors
from bnew.errors import BnewError, kind_of

if TYPE_CHECKING:
    from bnew_engine import Model

Images: TypeAlias = Any  # a tensor; or a tuple, a list or a dict of tensors


def pair(batch: Any, labelled: bool = True, several: bool = False) -> tuple[Images, Any]:
    """Images and labels of a batch; the labels may be anything if they are not ``labelled``.

    Raises:
        BnewError: it is no pair of tensors; with ``several``, the images may be those of several inputs.
    """
    parts = batch[: 1 + labelled] if isinstance(batch, list | tuple) and len(batch) == 2 else [None]
    images = (tensors(parts[0]) or [None]) if several else parts[:1]
    if not all(map(torch.is_tensor, [*images, *parts[1:]])):
        raise BnewError(
            f"a batch of data is {kind_of(batch)}, but must be a pair of tensors: images and their labels"
        )
    return batch[0], batch[1]


def tensors(images: Images) -> list[Any]:
    """The tensor of each input."""
    return pytree.tree_leaves(images)


def first(images: Images, count: int) -> Images:
    """The first ``count`` images of each input."""
    return pytree.tree_map(lambda tensor: tensor[:count], images)


def run_model(model: nn.Module, images: Images) -> Any:
    """What the model returns: for a tuple or a list, inputs in the order of its parameters."""
    if isinstance(images, Mapping):
        return model(**images)
    return model(images) if isinstance(images, Tensor) else model(*images)


def run_engine(engine: Model, images: Images) -> Any:
    """What the engine returns for a batch."""
    with engine_errors():
        result: Any = engine(arrays(images))
    return result


def arrays(images: Images) -> Any:
    """The images as the engine takes them."""
    return pytree.tree_map(lambda tensor: np.ascontiguousarray(tensor.numpy()), images)


def check_images(file: str | Path, engine: Model, images: Images) -> None:
    """Check that the file takes the images.

    Raises:
        BnewError: it takes other inputs, or images of another shape.
    """
    takes = {one.name: one.shape for one in engine.inputs}
    given = tensors(images)
    names = list(images) if isinstance(images, Mapping) else list(takes)[: len(given)]
    if len(given) != len(takes) or (len(takes) > 1 and set(names) != set(takes)):
        what = ", ".join(map(str, names)) if isinstance(images, Mapping) else f"{len(given)} for each image"
        raise BnewError(f"{file} takes the inputs {', '.join(takes)}, but data has {what}")
    for name, tensor in zip(names, given, strict=True):
        shape, wanted = tuple(tensor.shape[1:]), takes.get(name, engine.inputs[0].shape)
        if wanted not in (shape, (*shape, 1), (*shape, 1, 1)):
            of = f" for '{name}'" if len(takes) > 1 else ""
            raise BnewError(f"{file} takes images of {wanted}{of}, but those of data are {shape}")
