"""Weights from a file or a library as the start of a run, put into the network before it becomes binary."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bnew.errors import BnewError, first_line
from bnew.process import is_first_process
from bnew.text import elided

logger = logging.getLogger("bnew")

# Where training scripts keep the state dict in a dictionary of more.
_INSIDE = ("state_dict", "model", "model_state_dict", "model_state")
# What DistributedDataParallel and torch.compile put before each name.
_PREFIXES = ("module.", "_orig_mod.")


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors by name in ``file``: safetensors, or a state dict by ``torch.save``, read as tensors alone.

    Raises:
        BnewError: there is no such file, or it holds no tensors by name, or more than tensors.
    """
    if not file.is_file():
        raise BnewError(f"there is no file {file} with weights: give --weights a .safetensors or .pt file")
    try:
        found: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except UnpicklingError:  # PyTorch's message advises to load it all the same, which would run its code
        raise BnewError(
            f"{file} is damaged, or holds more than tensors and could run code: save the weights as "
            "safetensors, or by torch.save(model.state_dict(), FILE)"
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise BnewError(
            f"{file} is no file of weights alone ({first_line(error)[:200]}): save it as safetensors, or by "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    for key in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not (isinstance(found, Mapping) and found) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise BnewError(f"{file} does not hold a state dict, names with a tensor each: save one into it")
    tensors = dict(found)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def put_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: object, num_classes: int) -> None:
    """Put ``tensors`` into ``model``, except for a layer of classes with another number of them.

    Args:
        model: not yet binary.
        tensors: its state dict.
        source: where they come from, for messages.
        num_classes: of the model. A tensor that differs only in its first size, which is this in the model,
            is left out.

    Raises:
        BnewError: a name is missing or not the model's, or another tensor has another shape.
    """
    ours = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing = [n for n in ours if n not in tensors and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in ours]
    if missing or unexpected:
        parts = [
            f"{what} {elided(names)}"
            for what, names in (("it lacks", missing), ("the network has no", unexpected))
            if names
        ]
        raise BnewError(
            f"{source} does not fit {type(model).__name__}: {'; '.join(parts)}: give weights of this very "
            "network, or for those of a run with binary layers --init RUN"
        )
    left_out = []
    for name, tensor in tensors.items():
        if tensor.shape == ours[name]:
            continue
        if tensor.shape[1:] != ours[name][1:] or ours[name][:1] != (num_classes,):
            raise BnewError(
                f"{source} does not fit {type(model).__name__}: {name} has the shape {tuple(tensor.shape)}, "
                f"but the network's has {tuple(ours[name])}"
            )
        left_out.append(name)
    model.load_state_dict({n: t for n, t in tensors.items() if n not in left_out}, strict=False)
    if is_first_process():
        without = f"; {elided(left_out)} of another number of classes left out" if left_out else ""
        logger.info("%d tensors from %s%s", len(tensors) - len(left_out), source, without)
