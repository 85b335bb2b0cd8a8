"""The modes of a model's modules, as they were found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def evaluating(model: nn.Module, but: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Inside, ``model`` is in eval mode, ``but`` for some of its modules, which are in training mode.

    Afterwards each module is in the mode that it had.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        try:
            model.eval()
        except NotImplementedError:  # a module made by torch.export has no eval(): its graph has one mode
            for module in modes:
                module.training = False
        for module in but:
            module.train()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
