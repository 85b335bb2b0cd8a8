"""ProxPARQ: the proximal map of a piecewise-affine regulariser, which becomes the sign."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bnew.binary import channel_sizes
from bnew.errors import BnewError, as_number
from bnew.methods.latent import Latent
from bnew.methods.values import binary_value
from bnew.short_runs import PROXPARQ


def prox_parq(latent: Tensor, inverse_slope: float, scale: bool = False, transposed: int = 0) -> Tensor:
    """``clip(w / s, −v, v)`` for the inverse slope s; ``v sign(w)`` for s = 0. Same shape as ``latent``.

    v is 1, with ``scale`` mean|w| of the output channel; for ``transposed`` see
    :func:`bnew.binary.channel_sizes`.
    """
    if inverse_slope == 0:
        return binary_value(latent, scale, transposed)
    steep = latent / inverse_slope
    if not scale:
        return steep.clamp_(-1, 1)
    size = channel_sizes(latent, transposed)
    return steep.clamp_(-size, size)


class ProxPARQ(Latent):
    """PARQ with one bit (Jin et al., ICML 2025, arXiv 2503.15748), as torchao's ``ProxPARQ``.

    The optimizer updates a latent accumulator w with the gradient at x. The forward pass uses the proximal
    map of a piecewise-affine regulariser, whose slope 1 / s_t grows until it is the sign::

        x = clip(w / s_t, −v, v),     v = 1, with scale mean|w| of the output channel
        s_t = 1/2 − tanh(k (2u − 1) / 4) / (2 tanh(k / 4)),     u = (t/T − start) / (end − start)

    s_t is a sigmoid of steepness k, moved and scaled so that it falls from 1 at the share ``anneal_start`` of
    the run to 0 at ``anneal_end``. It is 1 before and 0 after: then x = v sign(w), as in straight-through
    estimation, though w is not clipped. ``T = total_steps``; t steps are done.

    The parameter holds x, the method's state w. torchao updates v every ten steps; here every step does.

    Weights x that are set from outside become w = s_t x where ``|x| < 1``, and w = x elsewhere, with
    ``scale``, and once s_t is 0.

    Args:
        params: the weights to binarize.
        total_steps: T.
        anneal_start: share of the run at which the slope begins to grow.
        anneal_end: share of the run from which x is binary. The default is that of the authors' example for
            CIFAR-10, 150 of 200 epochs.
        steepness: k. The default is torchao's; for k below 1 the course is almost linear.
        scale: the targets are ± mean|w| of the output channel.

    Raises:
        BnewError: not ``0 ≤ anneal_start < anneal_end ≤ 1``, or ``steepness`` is not a positive number.
    """

    needs_total_steps = True

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        total_steps: int | None = None,
        *,
        anneal_start: float = PROXPARQ["anneal_start"],
        anneal_end: float = PROXPARQ["anneal_end"],
        steepness: float = PROXPARQ["steepness"],
        scale: bool = False,
    ) -> None:
        super().__init__(params, total_steps, scale=scale)
        self.anneal_start = as_number("ProxPARQ's anneal_start", anneal_start, least=0)
        self.anneal_end = as_number("ProxPARQ's anneal_end", anneal_end, above=0, most=1)
        if self.anneal_start >= self.anneal_end:
            raise BnewError(
                f"ProxPARQ's anneal_start is {self.anneal_start:g}, but must be below its anneal_end of "
                f"{self.anneal_end:g}"
            )
        self.steepness = as_number("ProxPARQ's steepness", steepness, above=0)

    @property
    def settings(self) -> dict[str, float | None]:
        """``anneal_start``, ``anneal_end`` and ``steepness``."""
        return {name: getattr(self, name) for name in PROXPARQ}

    def schedule(self) -> dict[str, float]:
        """``inverse_slope``: s_t."""
        share = (self.progress - self.anneal_start) / (self.anneal_end - self.anneal_start)
        if not 0 < share < 1:
            return {"inverse_slope": float(share <= 0)}
        quarter = self.steepness / 4
        return {"inverse_slope": 0.5 - math.tanh(quarter * (2 * share - 1)) / (2 * math.tanh(quarter))}

    def _values(self) -> list[Tensor]:
        """x; with ``scale`` w, whose magnitudes are those of the targets."""
        return self.latent if self.scale and self.latent else super()._values()

    def _forward_value(self, index: int) -> Tensor:
        slope = self.schedule()["inverse_slope"]
        return prox_parq(self.latent[index], slope, self.scale, self.transposed[index])

    def _latent_of(self, shown: Tensor) -> Tensor:
        inverse_slope = self.schedule()["inverse_slope"]
        if self.scale or inverse_slope == 0:
            return shown
        return torch.where(shown.abs() < 1, shown * inverse_slope, shown)
