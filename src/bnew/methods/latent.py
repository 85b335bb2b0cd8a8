"""What methods share that keep real weights of their own beside those that the forward pass uses."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bnew.methods.base import Binarizer


class Latent(Binarizer):
    """The optimizer moves a latent copy w of the weights; the parameter holds a function of it between steps.

    A subclass says which function (``_forward_value``), and how a latent copy starts from weights that were
    set from outside (``_restart``).
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

    def _state(self) -> dict[str, list[Tensor]]:
        return {"latent": self.latent}
