"""Real weights: ImageNet's step 1, and its fine-tuning, whose weights are frozen from the start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bnew.methods.base import Binarizer


class Real(Binarizer):
    """The optimizer has the weights to itself: ``w ← w − step(dL/dw)``, real and without bounds.

    With binary activations this is step 1 of ReActNet (arXiv 2003.03488). No state.

    ``binarized()`` leaves the weights real, as they are not meant to be binary yet. ``freeze()`` signs them,
    as for every method: in fine-tuning, ``freeze()`` before the first step and ``scale`` keep them at
    ``mean|w| sign(w)``, the mean over each output channel (Paren and Poudel, BMVC 2022).
    """

    @contextmanager
    def binarized(self) -> Iterator[None]:
        """Leaves the weights as they are."""
        self._take_in()
        yield

    def _warn_unless_arrived(self) -> None:
        if not self.scale:  # with it, fine-tuning starts like this
            super()._warn_unless_arrived()
