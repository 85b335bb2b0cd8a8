"""How far the weights are on their way to ±1."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Measures:
    """Distances, shares at ±1 and changes of sign of a method's weights."""

    params: list[nn.Parameter]
    frozen: bool
    _last_signs: list[Tensor] | None

    def values(self) -> list[Tensor]:
        """The real values whose signs are the binary weights."""
        raise NotImplementedError

    def _magnitudes(self) -> list[Tensor]:
        """|w| of each layer, or 1 where the weights are binary permanently (whatever the scale)."""
        if self.frozen:
            return [torch.ones_like(p) for p in self.params]
        return [value.abs() for value in self.values()]

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

    def _distance_of(self, values: list[Tensor]) -> float:
        return self._mean([_distance(value.abs()) for value in values])

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
