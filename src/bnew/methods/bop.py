"""Bop, the binary optimizer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bnew.errors import as_number
from bnew.methods.flipping import Flipping, flip_
from bnew.short_runs import scale_gamma, scale_tau, share_of_published


def bop_(weights: list[Tensor], momenta: list[Tensor], grads: list[Tensor], gamma: float, tau: float) -> None:
    """``m ← (1−γ) m + γ g``; ``w ← −w`` where ``|m| > τ`` and ``sign(m) = sign(w)``, in place.

    For w = ±s with s > 0, both conditions together are ``sign(w) m > τ``.
    """
    torch._foreach_lerp_(momenta, grads, gamma)
    for w, m in zip(weights, momenta, strict=True):
        flip_(w, w.sign() * m > tau)


class Bop(Flipping):
    """Bop (Helwegen et al., arXiv 1906.02107): weights are binary from the start and only flip.

    With the moving average m of the gradient g, at every step t::

        m ← (1 − γ_t) m + γ_t g,     γ_t = gamma (1 − t / T),     T = total_steps
        w ← −w   where |m| > τ and sign(m) = sign(w)

    The state is m. The optimizer skips the binary weights and trains all other parameters. Weights that are
    set from outside are replaced by their binary values.

    Args:
        params: the weights to binarize; the run starts from their signs.
        total_steps: T.
        gamma: γ, the adaptivity rate; None: the published 1e-4, times f^−1/2, f = min(T / 352,000, 1).
        tau: τ, the flipping threshold; None: the published 1e-8, times f^−0.9.
        scale: weights are ± mean|w| of the output channel at the start.

    Raises:
        BnewError: ``gamma`` is not in (0, 1], or ``tau`` is negative.
    """

    needs_total_steps = True

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        total_steps: int | None = None,
        *,
        gamma: float | None = None,
        tau: float | None = None,
        scale: bool = False,
    ) -> None:
        super().__init__(params, total_steps, scale=scale)
        factor = share_of_published(self.total_steps)
        gamma = scale_gamma(factor) if gamma is None else gamma
        tau = scale_tau(factor) if tau is None else tau
        self.gamma = as_number("Bop's gamma", gamma, above=0, most=1)
        self.tau = as_number("Bop's tau", tau, least=0)
        self.momentum: list[Tensor] = []

    @property
    def settings(self) -> dict[str, float | None]:
        """``gamma`` and ``tau``."""
        return {"gamma": self.gamma, "tau": self.tau}

    def schedule(self) -> dict[str, float]:
        """``gamma``: γ_t."""
        return {"gamma": self.gamma * (1 - self.progress)}

    def _start(self) -> None:
        super()._start()
        self.momentum = [torch.zeros_like(p) for p in self.params]

    def _flip(self, weights: list[Tensor], grads: list[Tensor]) -> None:
        bop_(weights, self.momentum, grads, self.schedule()["gamma"], self.tau)

    def _state(self) -> dict[str, list[Tensor]]:
        return {"momentum": self.momentum}
