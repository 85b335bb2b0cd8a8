"""ONNX's activations that have attributes, as functions of PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bnew.errors import BnewError
from bnew.importing.graph import Array, Node


def clip(node: Node, x: Tensor, least: Array | None = None, most: Array | None = None) -> Tensor:
    """min(max(x, least), most); both are attributes before opset 11."""
    limits = [
        node.attributes.get(name) if given is None else given.item()
        for name, given in (("min", least), ("max", most))
    ]
    return x if limits == [None, None] else x.clamp(*limits)


def prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    """x where x ≥ 0, else x · slope; one slope, or one per channel."""
    if slope.numel() == 1:
        return F.prelu(x, slope.reshape(1))
    whole = (1,) * (x.dim() - slope.dim()) + tuple(slope.shape)
    if math.prod(whole) != whole[1]:
        raise BnewError("its slopes are not one per channel")
    return F.prelu(x, slope.reshape(-1))


def gelu(node: Node, x: Tensor) -> Tensor:
    """x · Φ(x), or its approximation by tanh."""
    return F.gelu(x, approximate=node.attributes.get("approximate", "none"))


def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    """min(max(alpha · x + beta, 0), 1)."""
    alpha, beta = (float(node.attributes.get(name, usual)) for name, usual in (("alpha", 0.2), ("beta", 0.5)))
    return (x * alpha + beta).clamp(0, 1)


def shrink(node: Node, x: Tensor) -> Tensor:
    """x + bias where x < −lambd, x − bias where x > lambd, else 0."""
    limit, bias = (float(node.attributes.get(name, usual)) for name, usual in (("lambd", 0.5), ("bias", 0.0)))
    inner = torch.where(x > limit, x - bias, 0.0)
    return torch.where(x < -limit, x + bias, inner)


def selu(node: Node, x: Tensor) -> Tensor:
    """gamma · x where x > 0, else gamma · alpha · (exp(x) − 1)."""
    alpha = float(node.attributes.get("alpha", 1.6732631921768188))
    return F.elu(x, alpha) * float(node.attributes.get("gamma", 1.0507010221481323))
