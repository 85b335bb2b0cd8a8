"""Straight-through estimation."""

from __future__ import annotations

from torch import Tensor

from bnew.methods.clip import clip_
from bnew.methods.latent import Latent


class STE(Latent):
    """Straight-through estimation (BinaryConnect, arXiv 1511.00363): binary forward, real latent copy.

    The forward pass uses ``b = sign(w)``, or with ``scale`` ``b = mean|w| sign(w)``, with the mean over each
    output channel. The latent w gets the gradient unchanged, ``dL/dw := dL/db``. After every optimizer step
    ``w ← clip(w, −1, 1)``. The parameter holds b, the method's state w. Weights that are set from outside
    become w.

    Args:
        params: the weights to binarize.
        total_steps: not needed.
        scale: binary values are ± mean|w| of the output channel.
    """

    def _after(self) -> None:
        super()._after()
        clip_(self.latent)

    def _values(self) -> list[Tensor]:
        return self.latent or super()._values()

    def _forward_value(self, index: int) -> Tensor:
        return self._binary(index, self.latent[index])
