"""Binary values, and whether a tensor holds what it must."""

from __future__ import annotations

import torch
from torch import Tensor

from bnew.layers import hard_sign

# The relative difference that rounding on another machine may make to a value, which is then still the same.
SAME = 1e-3


def binary_value(weight: Tensor, scale: bool = False) -> Tensor:
    """``sign(w)``, or with ``scale`` ``mean|w| · sign(w)`` with the mean over each output channel.

    Same shape as ``weight`` (C_out, ...); the scale is XNOR-Net's (arXiv 1603.05279).
    """
    binary = hard_sign(weight)
    if scale:
        binary *= weight.abs().mean(dim=tuple(range(1, weight.dim())), keepdim=True)
    return binary


def holds(weight: Tensor, due: Tensor) -> Tensor:
    """Whether ``weight`` is ``due``, except for what rounding explains: one boolean. Uses ``due`` up."""
    rounding = torch.finfo(weight.dtype)
    gap = (due - weight.detach()).abs_()
    return (gap <= due.abs_().mul_(max(SAME, 8 * rounding.eps)).add_(rounding.tiny)).all()


def flags(values: list[Tensor]) -> list[bool]:
    """``values``, each one boolean, in Python; an accelerator is waited for once."""
    if not values:
        return []
    answers: list[bool] = torch.stack([v.to(values[0].device) for v in values]).tolist()
    return answers
