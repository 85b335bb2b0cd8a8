"""Measures of how near the weights are to ±1, and of how many change sign."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

# Mean distance to ±1 above which signing the weights costs accuracy.
ARRIVED = 0.01


class Measures:
    """Distances to ±1, shares at ±1 and sign flips of a method's weights."""

    params: list[nn.Parameter]
    total_steps: int
    scale: bool
    step: int
    frozen: bool
    _counted: bool
    _started: bool
    _last_signs: list[Tensor] | None

    def values(self) -> list[Tensor]:
        """The real values whose signs are the binary weights."""
        raise NotImplementedError

    def _magnitudes(self) -> list[Tensor]:
        """|w| of each layer; 1 once the weights are frozen, whatever their scale."""
        values = self.values()
        return [torch.ones_like(v) if self.frozen else v.abs() for v in values]

    @torch.no_grad()
    def layer_distances(self) -> list[float]:
        """:meth:`distance` of each layer, in the order of the parameters."""
        return [_distance(m) for m in self._magnitudes()]

    def distance(self) -> float:
        """Mean of ``||w| − 1|`` over all binary weights; 0 when every weight is at ±1.

        w is the real value whose sign is the binary weight: the weight itself for BNEW, the latent copy for
        STE, tanh(βw) for mirror descent.
        """
        return self._mean(self.layer_distances())

    @torch.no_grad()
    def layer_shares_at_one(self) -> list[float]:
        """:meth:`share_at_one` of each layer."""
        return [float((m == 1).float().mean()) for m in self._magnitudes()]

    def share_at_one(self) -> float:
        """Share of the weights that are exactly −1 or +1."""
        return self._mean(self.layer_shares_at_one())

    @torch.no_grad()
    def layer_flips(self) -> list[int]:
        """Number of weights per layer whose sign has changed since the last call of this or :meth:`flips`.

        The first call returns zeros. It stores the signs, one bit per weight.
        """
        signs = [_pack_signs(value) for value in self.values()]
        last, self._last_signs = self._last_signs or signs, signs
        return [_count_bits(a ^ b) for a, b in zip(last, signs, strict=True)]

    def flips(self) -> int:
        """Number of binary weights whose sign has changed since the last call."""
        return sum(self.layer_flips())

    def _warn_unless_arrived(self) -> None:
        """Warn if the run is not at its end, or if signing the weights changes them noticeably."""
        # With a scale, weights need not be at ±1.
        distance = 0.0 if self.scale else self._mean([_distance(p.detach().abs()) for p in self.params])
        if self.step >= self.total_steps and distance <= ARRIVED:
            return
        done = f"{self.step} of {self.total_steps} steps" if self._counted else f"{self.step} steps"
        unattached = ", never attached to an optimizer," if not (self._started or self.step) else ""
        cost = (
            f": its weights are signed from a mean distance of {distance:.3f} to ±1, which costs accuracy"
            if distance > ARRIVED
            else ""
        )
        warnings.warn(
            f"{type(self).__name__}{unattached} is frozen after {done}{cost}; train to the end "
            "(total_steps = epochs * len(loader)), or say freeze(warn=False) if this is on purpose",
            stacklevel=3,
        )

    def _mean(self, by_layer: list[float]) -> float:
        sizes = [p.numel() for p in self.params]
        total = sum(sizes)
        return sum(n * x for n, x in zip(sizes, by_layer, strict=True)) / total if total else 0.0


def _distance(magnitudes: Tensor) -> float:
    return float((1 - magnitudes).abs().mean())


def _pack_signs(weight: Tensor) -> Tensor:
    """The signs of ``weight`` as bits, eight per byte (uint8)."""
    bits = (weight >= 0).flatten().to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -len(bits) % 8)).view(-1, 8)
    return (bits << torch.arange(8, device=bits.device, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _count_bits(packed: Tensor) -> int:
    return int((packed[:, None] >> torch.arange(8, device=packed.device, dtype=torch.uint8) & 1).sum())
