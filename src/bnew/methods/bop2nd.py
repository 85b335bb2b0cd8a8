"""Bop2ndOrder, the binary optimizer with a second moment."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bnew.errors import BnewError, as_number
from bnew.methods.flipping import Flipping, flip_
from bnew.short_runs import BOP2ND

EPS = 1e-10


def bop2nd_(
    weights: list[Tensor],
    momenta: list[Tensor],
    variances: list[Tensor],
    grads: list[Tensor],
    *,
    gamma: float,
    sigma: float,
    tau: float,
    unbiased: bool,
) -> None:
    """``m ← (1−γ) m + γ g``, ``v ← (1−σ) v + σ g²``; ``w ← −w`` where ``|m̂| / (√v̂ + ε) > τ`` and
    ``sign(m̂) = sign(w)``, in place.

    ``m̂, v̂`` are ``m, v``, or if ``unbiased`` ``m/γ, v/σ``. For w = ±s with s > 0, both conditions together
    are ``sign(w) m̂ > τ (√v̂ + ε)``.
    """
    torch._foreach_lerp_(momenta, grads, gamma)
    torch._foreach_mul_(variances, 1 - sigma)
    torch._foreach_addcmul_(variances, grads, grads, sigma)
    m_factor, v_factor = (1 / gamma, 1 / sigma) if unbiased else (1.0, 1.0)
    for w, m, v in zip(weights, momenta, variances, strict=True):
        threshold = (v * v_factor).sqrt_().add_(EPS).mul_(tau / m_factor)
        flip_(w, w.sign() * m > threshold)


class Bop2ndOrder(Flipping):
    """Bop2ndOrder (Suarez-Ramirez et al., arXiv 2104.05124): Bop with a normalised average of the gradient.

    Weights are binary from the start and only flip. With moving averages m of the gradient g and v of its
    square, at every step t::

        m ← (1 − γ_t) m + γ_t g,     v ← (1 − σ_t) v + σ_t g²
        w ← −w   where |m̂| / (√v̂ + 1e-10) > τ_t and sign(m̂) = sign(w)

    m̂ = m and v̂ = v in the biased version, m̂ = m / γ_t and v̂ = v / σ_t in the unbiased one, as in the
    authors' code. Each of γ, σ and τ changes linearly from its first value to its last, such as
    ``γ_t = gamma + (gamma_end − gamma) t / T``, T = total_steps. The state is m and v.

    The defaults are those of the authors' best run on CIFAR-10, 500 epochs of 1000 steps (code of the paper,
    ``bop2ndOrder_CIFAR``): the biased version with 91.9 % of test images, the unbiased one with 91.4 %. They
    are functions of t / T, so they hold for a run of any length. At the first step m̂ / √v̂ is far above τ:
    **every weight takes the sign against its first gradient**, so nothing is left of the signs that the run
    starts from.

    Args:
        params: the weights to binarize.
        total_steps: T.
        gamma: γ at the start, the adaptivity rate.
        gamma_end: γ at the end.
        sigma: σ at the start, the rate of the second moment.
        sigma_end: σ at the end.
        tau: τ at the start, the flipping threshold.
        tau_end: τ at the end.
        unbiased: the version with m / γ_t and v / σ_t.
        scale: weights are ± mean|w| of the output channel at the start.

    Raises:
        BnewError: a γ or σ is not in (0, 1], a τ is negative, or ``unbiased`` is not True or False.
    """

    needs_total_steps = True

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        total_steps: int | None = None,
        *,
        gamma: float = BOP2ND["gamma"],
        gamma_end: float = BOP2ND["gamma_end"],
        sigma: float = BOP2ND["sigma"],
        sigma_end: float = BOP2ND["sigma_end"],
        tau: float = BOP2ND["tau"],
        tau_end: float = BOP2ND["tau_end"],
        unbiased: bool = False,
        scale: bool = False,
    ) -> None:
        super().__init__(params, total_steps, scale=scale)
        self.gamma = as_number("Bop2ndOrder's gamma", gamma, above=0, most=1)
        self.gamma_end = as_number("Bop2ndOrder's gamma_end", gamma_end, above=0, most=1)
        self.sigma = as_number("Bop2ndOrder's sigma", sigma, above=0, most=1)
        self.sigma_end = as_number("Bop2ndOrder's sigma_end", sigma_end, above=0, most=1)
        self.tau = as_number("Bop2ndOrder's tau", tau, least=0)
        self.tau_end = as_number("Bop2ndOrder's tau_end", tau_end, least=0)
        if not isinstance(unbiased, bool):
            raise BnewError(f"Bop2ndOrder's unbiased is {unbiased!r}, but must be True or False")
        self.unbiased = unbiased
        self.momentum: list[Tensor] = []
        self.variance: list[Tensor] = []

    @property
    def settings(self) -> dict[str, float | None]:
        """The first and last values of γ, σ and τ, and ``unbiased``."""
        return {**{name: getattr(self, name) for name in BOP2ND}, "unbiased": self.unbiased}

    def schedule(self) -> dict[str, float]:
        """``gamma``, ``sigma`` and ``tau``: γ_t, σ_t and τ_t."""
        done = self.progress
        return {
            "gamma": self.gamma + (self.gamma_end - self.gamma) * done,
            "sigma": self.sigma + (self.sigma_end - self.sigma) * done,
            "tau": self.tau + (self.tau_end - self.tau) * done,
        }

    def _start(self) -> None:
        super()._start()
        self.momentum = [torch.zeros_like(p) for p in self.params]
        self.variance = [torch.zeros_like(p) for p in self.params]

    def _flip(self, weights: list[Tensor], grads: list[Tensor]) -> None:
        bop2nd_(weights, self.momentum, self.variance, grads, **self.schedule(), unbiased=self.unbiased)

    def _state(self) -> dict[str, list[Tensor]]:
        return {"momentum": self.momentum, "variance": self.variance}
