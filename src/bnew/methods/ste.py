"""Straight-through estimation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bnew.methods.base import Binarizer
from bnew.methods.clip import clip_


class STE(Binarizer):
    """Straight-through estimation (BinaryConnect, arXiv 1511.00363): binary forward, real latent copy.

    The forward pass uses ``b = sign(w)``, or with ``scale`` ``b = mean|w| sign(w)``, the mean over each
    output channel. The gradient goes to the latent w unchanged, ``dL/dw := dL/db``; after every optimizer
    step ``w ← clip(w, −1, 1)``. The parameter holds b, the method's state the latent copy w.

    Args:
        params: the weights to binarize.
        total_steps: not needed.
        scale: binary values are ± mean|w| of the output channel.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], total_steps: int | None = None, *, scale: bool = False
    ) -> None:
        super().__init__(params, total_steps, scale=scale)
        self.latent: list[Tensor] = []

    def _start(self) -> None:
        self.latent = [p.detach().clone() for p in self.params]
        self._set_binary()

    def _before(self) -> None:
        torch._foreach_copy_(list(self.params), self.latent)

    def _after(self) -> None:
        torch._foreach_copy_(self.latent, list(self.params))
        clip_(self.latent)
        self._set_binary()

    def values(self) -> list[Tensor]:
        """The latent copy; once frozen, the parameters."""
        return self.latent or super().values()

    def _state(self) -> dict[str, list[Tensor]]:
        return {"latent": self.latent}
