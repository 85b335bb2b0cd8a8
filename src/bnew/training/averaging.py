"""A moving average of a network's weights, with which it is validated, saved and tested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bnew.layers import binary_parameters
from bnew.recipe import Recipe


def averaged(recipe: Recipe, model: nn.Module) -> Average:
    """The average that ``recipe`` wants of ``model``'s numbers; of none if it wants none.

    Binary weights are left out where a method makes them ±1, as an average of signs is no sign.
    """
    if recipe.ema is None:
        return Average({}, 0.0)
    seen = {id(w) for w in binary_parameters(model)} if recipe.ends_binary else set()
    numbers = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and id(tensor) not in seen:  # layers may share one
            seen.add(id(tensor))
            numbers[name] = tensor.detach()
    return Average(numbers, recipe.ema)


class Average:
    """The exponential moving average of ``tensors`` by name, each once, which others change in place.

    After step t, counted from 1 (as in TensorFlow's and timm's, so that the first values weigh little)::

        a ← d a + (1 − d) w,    d = min(decay, (1 + t) / (10 + t))

    Tensors with infinite numbers, such as masks of attention, are left out: such numbers have no average.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay, self.steps = decay, 0
        self._tensors = {name: tensor for name, tensor in tensors.items() if bool(tensor.isfinite().all())}
        self._averages = {name: tensor.clone() for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take what the tensors hold now into the averages."""
        if not self._tensors:
            return
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self._averages.values()), list(self._tensors.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The tensors hold their averages within the context, and what they held before after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for tensor, average in zip(self._tensors.values(), self._averages.values(), strict=True):
            held = tensor.clone()
            tensor.copy_(average)
            average.copy_(held)

    def state_dict(self) -> dict[str, Any]:
        """Steps and averages, for a checkpoint; empty if nothing is averaged."""
        return {"steps": self.steps, "averages": self._averages} if self._tensors else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; ``state`` must have been checked."""
        for name, average in self._averages.items():
            average.copy_(state["averages"][name])
        self.steps = state.get("steps", 0)
