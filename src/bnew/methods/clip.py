"""Phase 1: real weights, clipped."""

from __future__ import annotations

import torch
from torch import Tensor

from bnew.methods.real import Real


def clip_(weights: list[Tensor]) -> None:
    """``w ← clip(w, −1, 1)``, in place."""
    torch._foreach_clamp_min_(weights, -1.0)
    torch._foreach_clamp_max_(weights, 1.0)


class Clip(Real):
    """Phase 1 of BNEW: activations are binary, weights are real and in [−1, 1].

    After every optimizer step ``w ← clip(w, −1, 1)``. No state. Source: Paren and Poudel, BMVC 2022.

    The weights are not binary yet, so ``binarized()`` leaves them real: phase 1 is validated with real
    weights. ``freeze()`` signs them, as in every method.
    """

    def _after(self) -> None:
        clip_(self._values())
