"""The base class of methods with latent weights: real weights beside those that the forward pass uses."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bnew.methods.base import Binarizer


class Latent(Binarizer):
    """The optimizer updates a latent copy w of the weights; between steps a parameter holds a function of w.

    A subclass defines the function (``_forward_value``). Its inverse (``_latent_of``) restarts w from weights
    that are set from outside.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], total_steps: int | None = None, *, scale: bool = False
    ) -> None:
        super().__init__(params, total_steps, scale=scale)
        self.latent: list[Tensor] = []

    def _start(self) -> None:
        self.latent = [p.detach().clone() for p in self.params]
        self._show()

    def _before(self) -> None:
        torch._foreach_copy_(list(self.params), self.latent)

    def _after(self) -> None:
        torch._foreach_copy_(self.latent, list(self.params))

    def _show(self) -> None:
        for index, p in enumerate(self.params):
            p.copy_(self._forward_value(index))

    def _forward_value(self, index: int) -> Tensor:
        raise NotImplementedError

    def _latent_of(self, shown: Tensor) -> Tensor:
        """A latent copy w for which the parameter holds ``shown``."""
        return shown

    def _restart(self, index: int, where: Tensor) -> None:
        latent = self.latent[index]
        torch.where(where, self._latent_of(self.params[index].detach()), latent, out=latent)

    def _state(self) -> dict[str, list[Tensor]]:
        return {"latent": self.latent}
