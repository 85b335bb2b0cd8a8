"""How far the weights are on their way to ±1."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

# The mean distance to ±1 above which it costs something to sign the weights.
ARRIVED = 0.01


class Measures:
    """Distances, shares at ±1 and changes of sign of a method's weights."""

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
        """|w| of each layer, or 1 where the weights are binary permanently (whatever the scale)."""
        values = self.values()
        return [torch.ones_like(v) if self.frozen else v.abs() for v in values]

    @torch.no_grad()
    def layer_distances(self) -> list[float]:
        """:meth:`distance` of each layer, in the order of the parameters."""
        return [_distance(m) for m in self._magnitudes()]

    def distance(self) -> float:
        """Mean of ``||w| − 1|`` over all binary weights; 0 when every weight is at ±1.

        w is what the method takes the sign of: the weight itself for BNEW, the latent copy for STE,
        tanh(βw) for mirror descent.
        """
        return self._mean(self.layer_distances())

    @torch.no_grad()
    def layer_shares_at_one(self) -> list[float]:
        """:meth:`share_at_one` of each layer."""
        return [float((m == 1).float().mean()) for m in self._magnitudes()]

    def share_at_one(self) -> float:
        """The share of the weights that sit exactly at −1 or +1."""
        return self._mean(self.layer_shares_at_one())

    @torch.no_grad()
    def layer_flips(self) -> list[int]:
        """How many weights of each layer have another sign than when this (or flips) was last asked.

        The first call starts the counting and returns zeros. Costs one bit per weight from then on.
        """
        signs = [_pack_signs(value) for value in self.values()]
        last, self._last_signs = self._last_signs or signs, signs
        return [_count_bits(a ^ b) for a, b in zip(last, signs, strict=True)]

    def flips(self) -> int:
        """How many binary weights have another sign than when last asked."""
        return sum(self.layer_flips())

    def _warn_unless_arrived(self) -> None:
        """Warn where signing the weights changes what the forward pass uses, or the run is not at its end."""
        # With a scale, weights are not meant to be at ±1.
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
    """The signs of ``weight``, eight to a byte (uint8)."""
    bits = (weight >= 0).flatten().to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -len(bits) % 8)).view(-1, 8)
    return (bits << torch.arange(8, device=bits.device, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _count_bits(packed: Tensor) -> int:
    return int((packed[:, None] >> torch.arange(8, device=packed.device, dtype=torch.uint8) & 1).sum())
