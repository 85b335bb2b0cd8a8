"""Binary mirror descent."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bnew.errors import BnewError
from bnew.methods.base import Binarizer


class BinaryMirrorDescent(Binarizer):
    """Mirror descent with the tanh map (Ajanthan et al., arXiv 1910.08237).

    The forward pass uses ``x = tanh(β_t w)``; the gradient at x updates the latent w directly,
    ``w ← w − step(dL/dx)``; β grows and takes x to ±1::

        β_t = min(beta_end^(t / T), 1e35),     T = total_steps

    The parameter holds x, the method's state the latent copy w.

    Args:
        params: the weights to binarize.
        total_steps: T.
        beta_end: β at the end of the run. The default is the published 1.01 an epoch over 1000 epochs,
            whatever the length of the run.
        scale: binary values are ± mean|x| of the output channel.

    Raises:
        BnewError: ``beta_end`` below 1.
    """

    needs_total_steps = True

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        total_steps: int | None = None,
        *,
        beta_end: float = 1.01**1000,
        scale: bool = False,
    ) -> None:
        super().__init__(params, total_steps, scale=scale)
        if not beta_end >= 1:
            raise BnewError(f"beta_end is {beta_end}, but β grows from 1: it must be at least 1")
        self.beta_end = beta_end
        self.latent: list[Tensor] = []

    def schedule(self) -> dict[str, float]:
        """``beta``: β_t."""
        return {"beta": self._beta(self.step)}

    def _beta(self, step: int) -> float:
        beta: float = self.beta_end ** min(step / self.total_steps, 1.0)
        return min(beta, 1e35)

    def _start(self) -> None:
        self.latent = [p.detach().clone() for p in self.params]
        self._map(self._beta(self.step))

    def _before(self) -> None:
        torch._foreach_copy_(list(self.params), self.latent)

    def _after(self) -> None:
        torch._foreach_copy_(self.latent, list(self.params))
        # The next forward pass is that of step t + 1.
        self._map(self._beta(self.step + 1))

    def _map(self, beta: float) -> None:
        mapped = [p.detach() for p in self.params]
        torch._foreach_copy_(mapped, self.latent)
        torch._foreach_mul_(mapped, beta)
        torch._foreach_tanh_(mapped)

    def _state(self) -> dict[str, list[Tensor]]:
        return {"latent": self.latent}
