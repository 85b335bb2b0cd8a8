"""Steps become an epilogue: scales and shifts are folded in double precision, as the engine folds them.

See engine/cpp/ops/steps.cpp: the same steps give the same numbers, so that results have the same bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bnew.deploy.c99.stages import Epilogue, Floats

ACTIVATIONS = ("prelu", "clamp", "sign", "hard_sigmoid", "hard_swish", "abs", "round")
"""Steps that act on one number, in ``enum activation`` of kernels.c."""
STEPS = ("scale", "shift", "add", "multiply", *ACTIVATIONS)


class Affine:
    """Scales and shifts folded into one, in double precision."""

    def __init__(self, channels: int) -> None:
        self.scale, self.shift = np.ones(channels), np.zeros(channels)
        self.scaled = self.shifted = False

    def take(self, numbers: Floats, *, is_shift: bool) -> None:
        """Put a scale or a shift behind it."""
        if is_shift:
            self.shift = self.shift + numbers
            self.shifted = True
        else:
            self.scale, self.shift = self.scale * numbers, self.shift * numbers
            self.scaled = True


class Chain:
    """Collects the steps that fit one epilogue: ``StepChain`` of the engine."""

    def __init__(self, channels: int) -> None:
        self.before, self.after = Affine(channels), Affine(channels)
        self.end = Epilogue()

    @property
    def _acted(self) -> bool:
        return self.end.activation != "none" or self.after.scaled or self.after.shifted

    def take(self, kind: str, argument: Any) -> bool:
        """Add a step if it fits. Returns whether it does."""
        if kind in ("scale", "shift"):
            # (x s + t) + o + b = (x s + (t + b)) + o: a shift after a sum moves before it.
            adds = self.end.other is None or (not self.end.multiply and kind == "shift")
            affine = self.before if adds and not self._acted else self.after
            affine.take(argument, is_shift=kind == "shift")
            return True
        if self._acted or (kind in ("add", "multiply") and self.end.other is not None):
            return False
        if kind in ("add", "multiply"):
            self.end = replace(self.end, other=argument, multiply=kind == "multiply")
        elif kind == "prelu":
            self.end = replace(self.end, activation=kind, slope=argument)
        elif kind == "clamp":
            self.end = replace(self.end, activation=kind, bounds=argument)
        else:
            self.end = replace(self.end, activation=kind)
        return True

    def epilogue(self) -> Epilogue:
        """All of it, with numbers rounded to float32."""
        end, single = self.end, np.float32
        if self.before.scaled or self.before.shifted:
            end = replace(end, scale=self.before.scale.astype(single), shift=self.before.shift.astype(single))
        if self.after.scaled:
            end = replace(end, scale_out=self.after.scale.astype(single))
        if self.after.scaled or self.after.shifted:
            end = replace(end, shift_out=self.after.shift.astype(single))
        return end
