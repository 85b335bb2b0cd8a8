"""The base class of methods whose weights are binary from the start and only change sign."""

from __future__ import annotations

import torch
from torch import Tensor

from bnew.methods.base import Binarizer


class Flipping(Binarizer):
    """The run starts from the signs of the weights; the optimizer skips them and trains all others.

    A subclass defines :meth:`_flip`. Weights that are set from outside are replaced by their binary values.
    """

    def _start(self) -> None:
        self._set_binary(self._values())

    def _before(self) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        if self._grad_scale != 1:
            torch._foreach_div_(grads, self._grad_scale)
        self._flip([p.detach() for p in self.params], grads)
        for p in self.params:
            p.grad = None  # the optimizer skips it

    def _flip(self, weights: list[Tensor], grads: list[Tensor]) -> None:
        """Change signs of ``weights``, in place, by the gradients of one step."""
        raise NotImplementedError

    def _forward_value(self, index: int) -> Tensor:
        return self._binary(index, self.params[index].detach())


def flip_(weight: Tensor, where: Tensor) -> None:
    """``w ← −w`` where the mask ``where`` is true, in place."""
    weight.mul_(where.to(weight.dtype).mul_(-2).add_(1))
