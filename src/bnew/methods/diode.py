"""Diode: weights that take the sign against an average of the gradient's signs."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bnew.errors import as_number
from bnew.layers import hard_sign
from bnew.methods.flipping import Flipping
from bnew.short_runs import DIODE


def diode_(
    weights: list[Tensor],
    momenta: list[Tensor],
    sign_momenta: list[Tensor],
    grads: list[Tensor],
    beta1: float,
    beta2: float,
) -> None:
    """``m ← β₁ m + (1−β₁) g``, ``s ← β₂ s + (1−β₂) sign(m)``, ``w ← −|w| sign(s)``, in place.

    Here sign(m) is 0 where m is 0; where s is 0, w is positive.
    """
    torch._foreach_lerp_(momenta, grads, 1 - beta1)
    torch._foreach_lerp_(sign_momenta, torch._foreach_sign(momenta), 1 - beta2)
    for w, s in zip(weights, sign_momenta, strict=True):
        w.abs_().mul_(hard_sign(-s))


class Diode(Flipping):
    """Diode (Guo et al., ECCV 2024), as the authors' code has it for binary layers.

    Weights are binary from the start and only flip. With the moving averages m of the gradient g and s of the
    signs of m, at every step::

        m ← β₁ m + (1 − β₁) g,     s ← β₂ s + (1 − β₂) sign(m)
        w ← −sign(s)

    s starts at ``−sign(w)`` times a random number in (0, start], which keeps the first signs until enough
    signs of m speak against them. The state is m and s.

    Source: ``DiodeMix`` and ``qweight_update_fn`` of bitorch-engine, the code that the paper names; the paper
    is "Enhancing Optimization Robustness in 1-bit Neural Networks through Stochastic Sign Descent". The code
    multiplies sign(m) by a learning rate, by default 1e-4, and starts within 1e-3. Only their ratio matters:
    it is ``start`` here, and a schedule of that rate is left out. The random numbers are the same in every
    run and process.

    Args:
        params: the weights to binarize; the run starts from their signs.
        total_steps: not needed.
        beta1: β₁.
        beta2: β₂. The default, the code's, is for long runs: s takes 1 / (1 − β₂) = 10,000 steps to forget.
        start: the largest first magnitude of s.
        scale: weights are ± mean|w| of the output channel at the start.

    Raises:
        BnewError: ``beta1`` or ``beta2`` is not in [0, 1), or ``start`` is not a positive number.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        total_steps: int | None = None,
        *,
        beta1: float = DIODE["beta1"],
        beta2: float = DIODE["beta2"],
        start: float = DIODE["start"],
        scale: bool = False,
    ) -> None:
        super().__init__(params, total_steps, scale=scale)
        below_one = math.nextafter(1.0, 0.0)
        self.beta1 = as_number("Diode's beta1", beta1, least=0, most=below_one)
        self.beta2 = as_number("Diode's beta2", beta2, least=0, most=below_one)
        self.start = as_number("Diode's start", start, above=0)
        self.momentum: list[Tensor] = []
        self.sign_momentum: list[Tensor] = []

    @property
    def settings(self) -> dict[str, float | None]:
        """``beta1``, ``beta2`` and ``start``."""
        return {name: getattr(self, name) for name in DIODE}

    def _start(self) -> None:
        super()._start()
        self.momentum = [torch.zeros_like(p) for p in self.params]
        generator = torch.Generator().manual_seed(0)
        shares = (torch.rand(p.shape, generator=generator) for p in self.params)
        self.sign_momentum = [
            (1 - share).to(p).mul_(-self.start).mul_(hard_sign(p.detach()))
            for p, share in zip(self.params, shares, strict=True)
        ]

    def _flip(self, weights: list[Tensor], grads: list[Tensor]) -> None:
        diode_(weights, self.momentum, self.sign_momentum, grads, self.beta1, self.beta2)

    def _forward_value(self, index: int) -> Tensor:
        size = super()._forward_value(index).abs_()
        return size.mul_(hard_sign(-self.sign_momentum[index]))

    def _restart(self, index: int, where: Tensor) -> None:
        """A weight that is set keeps the inertia of s, which takes the sign against it."""
        s, p = self.sign_momentum[index], self.params[index].detach()
        against = s.abs().clamp_(min=torch.finfo(s.dtype).tiny).mul_(-hard_sign(p))
        torch.where(where, against, s, out=s)

    def _state(self) -> dict[str, list[Tensor]]:
        return {"momentum": self.momentum, "sign_momentum": self.sign_momentum}
