"""ProxQuant: a proximal step towards the nearest of ±1 after every step of the optimizer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bnew.errors import as_number
from bnew.layers import hard_sign
from bnew.methods.base import Binarizer
from bnew.methods.clip import clip_
from bnew.short_runs import PROXQUANT_STRENGTH


def prox_(weights: list[Tensor], reg: float) -> None:
    """``w ← clip(w + λ sign(w), −1, 1)``, in place, for w in [−1, 1] the prox of ``λ min(|w−1|, |w+1|)``.

    The prox moves w by λ towards the nearest of ±1, but not beyond it. Weights beyond ±1 are clipped first.
    """
    clip_(weights)
    torch._foreach_add_(weights, [hard_sign(w) for w in weights], alpha=reg)
    clip_(weights)


class ProxQuant(Binarizer):
    """ProxQuant (Bai, Wang and Liberty, arXiv 1810.00861), binary: a W-shaped regulariser that grows.

    The loss gets ``λ_t Σ min(|w − 1|, |w + 1|)`` for the binary weights. After every optimizer step t, from
    0, its proximal map moves each weight by λ_t towards the nearest of ±1::

        w ← clip(w + λ_t sign(w), −1, 1),     λ_t = λ (t + 1) / T,     T = total_steps

    The forward pass uses w itself. λ grows from near 0 (the paper's homotopy) until every weight is at ±1.
    The only state is the step.

    The paper's step of the map is ``η λ t`` with t in epochs. Its learning rate η is a constant 0.01, and
    here part of λ: the learning rate of the optimizer does not enter. The default is the authors' run on
    CIFAR-10, 300 epochs of 391 steps, of which the last third is trained with weights that are frozen at
    their signs, with ``η λ = 0.01 · 1e-4`` an epoch.

    Args:
        params: the weights to binarize.
        total_steps: T.
        strength: ``Σ_t λ_t`` over the run, in place of λ: how far the maps together move a weight if nothing
            else does.
        scale: binary values are ± mean|w| of the output channel.

    Raises:
        BnewError: ``strength`` is not a positive number.
    """

    needs_total_steps = True

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        total_steps: int | None = None,
        *,
        strength: float = PROXQUANT_STRENGTH,
        scale: bool = False,
    ) -> None:
        super().__init__(params, total_steps, scale=scale)
        self.strength = as_number("ProxQuant's strength", strength, above=0)

    @property
    def settings(self) -> dict[str, float | None]:
        """``strength``."""
        return {"strength": self.strength}

    def schedule(self) -> dict[str, float]:
        """``reg``: λ_t."""
        last = 2 * self.strength / (self.total_steps + 1)
        return {"reg": last * min((self.step + 1) / self.total_steps, 1)}

    def _after(self) -> None:
        prox_(self._values(), self.schedule()["reg"])
