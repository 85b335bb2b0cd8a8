"""Binary values, and tests whether a tensor has changed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from bnew.binary import channel_sizes
from bnew.pointwise import hard_sign

# Relative difference up to which two values count as the same: rounding differs between machines.
SAME = 1e-3


def binary_value(weight: Tensor, scale: bool = False, transposed: int = 0) -> Tensor:
    """``sign(w)``; with ``scale``, ``mean|w| · sign(w)`` with the mean over each output channel.

    Same shape as ``weight``; for its channels and ``transposed`` see :func:`bnew.binary.channel_sizes`. The
    scale is XNOR-Net's (arXiv 1603.05279).
    """
    binary = hard_sign(weight)
    if scale:
        binary *= channel_sizes(weight, transposed)
    return binary


def differs(weight: Tensor, due: Tensor) -> Tensor:
    """Mask of where ``weight`` differs from ``due`` by more than rounding. Overwrites ``due``."""
    rounding = torch.finfo(weight.dtype)
    gap = (due - weight.detach()).abs_()
    return ~(gap <= due.abs_().mul_(max(SAME, 8 * rounding.eps)).add_(rounding.tiny))


def fingerprints(weights: Sequence[Tensor]) -> list[Tensor]:
    """``W r`` of each weight tensor for a fixed random vector r: one number per row, its first dimension.

    Equal weights have equal fingerprints. If a weight changes by more than the rounding of a sum over its
    row, the fingerprint changes, except with a probability of about 1e-7. Takes one pass over the weights
    and no copy of them.
    """
    found = []
    for weight in weights:
        rows = _in_memory_order(weight)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))  # half the bits would miss a sign
        found.append(rows @ _direction(rows.shape[1], rows.dtype, rows.device))
    return found


def marks(weights: Sequence[Tensor]) -> list[float]:
    """The sum of each weight's fingerprint: enough to tell which of two weights another machine had."""
    return [float(f.double().sum()) for f in fingerprints(weights)]


def changed(before: Sequence[Tensor], after: Sequence[Tensor]) -> list[int]:
    """The numbers of the fingerprints that differ in any bit; if none does, synchronizes only once."""
    if not after or torch.equal(_joined(before, after[0]), _joined(after, after[0])):
        return []
    pairs = zip(before, after, strict=True)
    return [i for i, (a, b) in enumerate(pairs) if not torch.equal(_joined([a], b), _joined([b], b))]


def _joined(fingerprints: Sequence[Tensor], like: Tensor) -> Tensor:
    """The fingerprints as bytes, so that NaN equals NaN."""
    return torch.cat([f.to(like) for f in fingerprints]).view(torch.uint8)


def _in_memory_order(weight: Tensor) -> Tensor:
    """One row per index of the first dimension, a view."""
    weight = weight.detach()
    if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.permute(0, 2, 3, 1)
    return weight.flatten(1)


@lru_cache(maxsize=64)
def _direction(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(length)).to(device, dtype)
