"""Real weights: ImageNet's step 1, and its fine-tuning with weights frozen from the start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bnew.methods.base import Binarizer


class Real(Binarizer):
    """The optimizer alone updates the weights, real and unbounded: ``w ← w − step(dL/dw)``. No state.

    With binary activations this is step 1 of ReActNet (arXiv 2003.03488).

    ``binarized()`` leaves the weights real, since they are not binary yet. ``freeze()`` signs them, as in
    every method. Fine-tuning calls ``freeze()`` before the first step and uses ``scale``: the weights stay at
    ``mean|w| sign(w)``, with the mean over each output channel (Paren and Poudel, BMVC 2022).
    """

    @contextmanager
    def binarized(self) -> Iterator[None]:
        """Leaves the weights as they are."""
        self._take_in()
        yield

    def _warn_unless_arrived(self) -> None:
        if not self.scale:  # with a scale, this is how fine-tuning starts
            super()._warn_unless_arrived()
