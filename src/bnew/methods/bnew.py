"""BNEW: a concave regulariser pushes every weight to ±1; no second copy of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bnew.errors import BnewError
from bnew.methods.base import Binarizer
from bnew.methods.clip import clip_


def push_(weights: list[Tensor], reg: float) -> None:
    """``w ← clip((1 + 2λ) w, −1, 1)``, in place: a step against −λ‖w‖², then onto the box."""
    torch._foreach_mul_(weights, 1 + 2 * reg)
    clip_(weights)


def fill_(weights: list[Tensor], fill: float) -> None:
    """``w ← clip(w · fill / mean|w|, −1, 1)`` for each tensor, in place; one of zeros stays as it is."""
    for w in weights:
        w.mul_(fill / w.abs().mean().clamp_(min=torch.finfo(w.dtype).tiny))
    clip_(weights)


class BNEW(Binarizer):
    """Binarizing by a concave regulariser (Paren and Poudel, BMVC 2022), phase 2.

    The loss gets −λ_t ‖w‖² for the weights to be binarized, in [−1, 1]. After every optimizer step t::

        w ← clip((1 + 2 λ_t) w, −1, 1),     λ_t = min(λ ((t + 1) / T)^ramp, 1),     T = total_steps

    The forward pass uses w itself. The push outwards grows until every weight sits at ±1, when
    :meth:`freeze` costs nothing. No state but the step.

    Args:
        params: the weights to binarize.
        total_steps: T.
        strength: the total push over the run, ``Σ_t 2 λ_t``, in place of λ: a weight w that the loss leaves
            alone grows by the factor ``exp(strength)``, whatever the length of the run.
        reg: the paper's λ, instead of ``strength``; with the paper's ramp, ``strength = λ (T + 1)``.
        ramp: how late the push comes. 1 is the paper's; short runs are better with more (docs/methods.md).
        fill: scale every weight tensor at the start so that its mean |w| is this, before what is then beyond
            ±1 is clipped. A layer with batch norm after it computes the same as before, but for the clipping.
            None leaves the weights as they are.
        scale: binary values are ± mean|w| (in ImageNet's fine-tuning).

    The default strength of 35 is the paper's setting for CIFAR, λ = 1e-4 over 352,000 steps.

    Raises:
        BnewError: both ``strength`` and ``reg`` given, a number that is not positive, or ``fill`` above 1.
    """

    needs_total_steps = True

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        total_steps: int | None = None,
        *,
        strength: float | None = None,
        reg: float | None = None,
        ramp: float = 1.0,
        fill: float | None = None,
        scale: bool = False,
    ) -> None:
        super().__init__(params, total_steps, scale=scale)
        if not (ramp > 0 and math.isfinite(ramp)):
            raise BnewError(f"BNEW's ramp is {ramp}, but must be a positive number")
        if not (fill is None or 0 < fill <= 1):
            raise BnewError(f"BNEW's fill is {fill}, but must be in (0, 1]")
        self.ramp, self.fill = ramp, fill
        if strength is not None and reg is not None:
            raise BnewError("strength and reg are two ways to say the same: give one of them")
        if strength is None:
            strength = 35.0
        if reg is None:
            shares = torch.arange(1, self.total_steps + 1, dtype=torch.float64) / self.total_steps
            reg = strength / (2 * (shares**ramp).sum().item())
            given = "strength"
        else:
            given = "reg"
        self.reg = reg
        if not self.reg > 0:
            raise BnewError(f"BNEW's {given} must be positive")

    def schedule(self) -> dict[str, float]:
        """``reg``: λ_t."""
        return {"reg": min(self.reg * min((self.step + 1) / self.total_steps, 1) ** self.ramp, 1.0)}

    def _start(self) -> None:
        if self.fill is not None:
            fill_(self.values(), self.fill)

    def _after(self) -> None:
        push_(self.values(), self.schedule()["reg"])
