"""Binary mirror descent."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bnew.errors import as_number
from bnew.methods.latent import Latent
from bnew.short_runs import BETA_END


class BinaryMirrorDescent(Latent):
    """Mirror descent with the tanh map (Ajanthan et al., arXiv 1910.08237).

    The forward pass uses ``x = tanh(β_t w)``. The gradient at x updates the latent w directly,
    ``w ← w − step(dL/dx)``. β grows and drives x to ±1::

        β_t = min(beta_end^(t / T), 1e35),     T = total_steps

    The parameter holds x, the method's state w. Weights x that are set from outside give
    ``w = atanh(x) / β_t``, with |x| clipped to just below 1.

    Args:
        params: the weights to binarize.
        total_steps: T.
        beta_end: β at the end of the run. The default is the published factor of 1.01 per epoch over 1000
            epochs, whatever the length of the run.
        scale: binary values are ± mean|x| of the output channel.

    Raises:
        BnewError: ``beta_end`` is below 1, where β starts.
    """

    needs_total_steps = True

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        total_steps: int | None = None,
        *,
        beta_end: float = BETA_END,
        scale: bool = False,
    ) -> None:
        super().__init__(params, total_steps, scale=scale)
        self.beta_end = as_number("BinaryMirrorDescent's beta_end", beta_end, least=1)

    @property
    def settings(self) -> dict[str, float | None]:
        """``beta_end``."""
        return {"beta_end": self.beta_end}

    def schedule(self) -> dict[str, float]:
        """``beta``: β_t."""
        beta: float = self.beta_end**self.progress
        return {"beta": min(beta, 1e35)}

    def _forward_value(self, index: int) -> Tensor:
        return (self.latent[index] * self.schedule()["beta"]).tanh_()

    def _latent_of(self, shown: Tensor) -> Tensor:
        rounding = torch.finfo(shown.dtype)
        below_one = 1 - rounding.eps
        latent = shown.clamp(-below_one, below_one).atanh_() / self.schedule()["beta"]
        # Where w underflows to 0, keep its sign.
        least = torch.full_like(shown, rounding.tiny * rounding.eps).copysign_(shown)
        return torch.where((latent == 0) & (shown != 0), least, latent)
