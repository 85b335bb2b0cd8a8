"""BNEW: a concave regulariser pushes every weight to ±1, without a second copy of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

import torch
from torch import Tensor, nn

from bnew.errors import BnewError, as_number
from bnew.methods.base import Binarizer
from bnew.methods.clip import clip_
from bnew.short_runs import published_push, scale_ramp, share_of_published


def push_(weights: list[Tensor], reg: float) -> None:
    """``w ← clip((1 + 2λ) w, −1, 1)``, in place: a gradient step on −λ‖w‖², then the projection."""
    torch._foreach_mul_(weights, 1 + 2 * reg)
    clip_(weights)


def yielding_push_(weights: list[Tensor], averages: list[Tensor | None], reg: float) -> None:
    """:func:`push_` of the weights that the average m of their gradient does not draw inwards.

    ``w ← clip((1 + 2λ [m w ≤ 0]) w, −1, 1)``, in place; where there is no average, as :func:`push_`.
    """
    for w, m in zip(weights, averages, strict=True):
        if m is None:
            w.mul_(1 + 2 * reg)
        else:
            w.addcmul_(w, (m * w <= 0).to(w.dtype), value=2 * reg)
    clip_(weights)


def average_gradient(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> Tensor | None:
    """Adam's first moment of the gradient of ``p``, SGD's momentum, or else the gradient itself."""
    state = optimizer.state.get(p, {})
    for name in ("exp_avg", "momentum_buffer"):
        if isinstance(state.get(name), Tensor) and state[name].shape == p.shape:
            average: Tensor = state[name]
            return average
    return p.grad


def fill_(weights: list[Tensor], fill: float) -> None:
    """``w ← clip(w · fill / mean|w|, −1, 1)`` for each tensor, in place; a tensor of zeros stays zero."""
    for w in weights:
        w.mul_(fill / w.abs().mean().clamp_(min=torch.finfo(w.dtype).tiny))
    clip_(weights)


class BNEW(Binarizer):
    """Binarizing by a concave regulariser (Paren and Poudel, BMVC 2022), phase 2.

    The loss gets −λ_t ‖w‖² for the binary weights, which stay in [−1, 1]. After every optimizer step t::

        w ← clip((1 + 2 λ_t) w, −1, 1),     λ_t = min(λ ((t + 1) / T)^ramp, 1),     T = total_steps

    The forward pass uses w itself. The push outwards grows until every weight is at ±1; :meth:`freeze` then
    costs nothing. The only state is the step.

    Defaults follow the length of the run, f = T / 352,000 (:mod:`bnew.short_runs`, docs/short-runs.md):

    * f ≥ 1: the settings published for CIFAR, strength 35.2 (λ = 1e-4 over 352,000 steps), ramp 1, no fill;
    * f < 1: a later push, weights that fill [−1, 1] at the start, and a higher learning rate for them
      (:attr:`binary_lr`, which :meth:`param_groups` uses);
    * with ``scale`` and no freezing, ImageNet's: f = T / 2,335,424, strength 2.34, never a fill or another
      learning rate.

    A setting that is passed replaces its own default only; ``reg`` also makes all other defaults the
    published ones.

    Args:
        params: the weights to binarize.
        total_steps: T.
        strength: the total push over the run, ``Σ_t 2 λ_t``, in place of λ. Without a gradient of the loss, a
            weight grows by the factor ``exp(strength)``, whatever the length of the run.
        reg: the paper's λ, in place of ``strength``; with the paper's ramp, ``strength = λ (T + 1)``.
        ramp: the power of λ's growth: the larger, the later the push. 1 is the paper's.
        fill: mean |w| to which every weight tensor is scaled at the start, before values beyond ±1 are
            clipped. Batch norm after the layer undoes the scaling, though not the clipping. None: no scaling.
        reopen: push only the weights that the optimizer's average m of their gradient does not draw inwards:
            ``w ← clip((1 + 2 λ_t [m w ≤ 0]) w, −1, 1)``. A weight at ±1 is then free to turn for as long as
            the loss insists. Not in the paper; see docs/short-runs.md. On average the push is half of what
            it was: by default, strength and :attr:`binary_lr` are twice what they are without it, and
            ``fall`` is 1/2.
        fall: the learning rate of the binary weights falls with this power of their group's own fall: from a
            highest rate r so far, it is r (lr / r)^fall where the group's is lr. 1 leaves it alone.
        freeze_at: share of the run after which :meth:`freeze` is called. A short run's push is strong enough
            for the weights to be at ±1 by then.
        scale: binary values are ± mean|w| (in ImageNet's fine-tuning).

    Raises:
        BnewError: both ``strength`` and ``reg`` are passed, a setting is not a positive number, ``fill`` or
            ``freeze_at`` is above 1, or ``reopen`` is neither True nor False.
    """

    needs_total_steps = True

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        total_steps: int | None = None,
        *,
        strength: float | None = None,
        reg: float | None = None,
        ramp: float | None = None,
        fill: float | Literal["by length"] | None = "by length",
        reopen: bool = False,
        fall: float | None = None,
        freeze_at: float = 1.0,
        scale: bool = False,
    ) -> None:
        super().__init__(params, total_steps, scale=scale)
        if strength is not None and reg is not None:
            raise BnewError("strength and reg are two ways to say the same: give one of them")
        if not isinstance(reopen, bool):
            raise BnewError(f"BNEW's reopen is {reopen!r}, but must be True or False")
        self.reopen = reopen
        freeze_at = as_number("BNEW's freeze_at", freeze_at, above=0, most=1)
        published = published_push(scale, freeze_at)
        factor = 1.0 if reg is not None else share_of_published(self.total_steps, published.steps)
        ramp = as_number("BNEW's ramp", scale_ramp(factor) if ramp is None else ramp, above=0)
        if fill == "by length":
            fill = published.scale_fill(factor)
        shares = torch.arange(1, self.total_steps + 1, dtype=torch.float64) / self.total_steps
        pushes = 2 * (shares**ramp).sum().item()
        if reg is None:
            if strength is None:
                strength = (1 + reopen) * published.scale_strength(factor, ramp, freeze_at)
            reg = as_number("BNEW's strength", strength, above=0) / pushes
        self.reg = as_number("BNEW's reg", reg, above=0)
        self.ramp = ramp
        self.fill = None if fill is None else as_number("BNEW's fill", fill, above=0, most=1)
        self.strength = self.reg * pushes
        self._binary_lr = (1 + reopen) * published.scale_binary_lr(factor)
        self.fall = as_number("BNEW's fall", (0.5 if reopen else 1.0) if fall is None else fall, above=0)

    @property
    def settings(self) -> dict[str, float | None]:
        """``strength``, ``reg``, ``ramp``, ``fill`` and ``binary_lr``; ``reopen`` and ``fall`` if on."""
        changed = (*("reopen",) * self.reopen, *("fall",) * (self.fall != 1))
        names = ("strength", "reg", "ramp", "fill", "binary_lr", *changed)
        return {name: getattr(self, name) for name in names}

    @property
    def binary_lr(self) -> float:
        """``min(f^−0.4, 8)`` for a run f < 1 times as long as the published one, else 1; twice for reopen."""
        return self._binary_lr

    def schedule(self) -> dict[str, float]:
        """``reg``: λ_t."""
        return {"reg": min(self.reg * min((self.step + 1) / self.total_steps, 1) ** self.ramp, 1.0)}

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """See :meth:`Binarizer.attach`; with ``reopen``, averages must be of the loss's gradient alone.

        Raises:
            BnewError: see there; or ``reopen`` with an optimizer that adds weight decay to the gradient; or
                ``fall``, where a group of the optimizer holds other parameters too.
        """
        own = {id(p) for p in self.params}
        kinds = [{id(p) in own for p in group["params"]} for group in optimizer.param_groups]
        if self.fall != 1 and {True, False} in kinds:
            raise BnewError(
                "fall changes the learning rate of the binary weights alone: give them a group of their own, "
                "as method.param_groups(model, lr) does, or pass fall=1"
            )
        decays = [
            group["weight_decay"]
            for group in optimizer.param_groups
            if group.get("weight_decay") and own & {id(p) for p in group["params"]}
        ]
        if self.reopen and decays and not isinstance(optimizer, torch.optim.AdamW):
            raise BnewError(
                f"reopen needs averages of the loss's gradient, but {type(optimizer).__name__} adds a weight "
                f"decay of {decays[0]:g} to it: give the binary weights none, or use AdamW"
            )
        return super().attach(optimizer)

    def _start(self) -> None:
        if self.fill is not None:
            fill_(self._values(), self.fill)

    def _after(self) -> None:
        reg = self.schedule()["reg"]
        if self.reopen and self._ride is not None:
            averages = [average_gradient(self._ride.optimizer, p) for p in self.params]
            yielding_push_(self._values(), averages, reg)
        else:
            push_(self._values(), reg)
