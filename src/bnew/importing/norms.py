"""ONNX's norms, as functions of PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bnew.errors import BnewError
from bnew.importing.graph import Node


def batch_norm(node: Node, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """(x − mean) / √(var + epsilon) · scale + shift, by constants per channel."""
    if node.attributes.get("training_mode", 0) or len(node.outputs) > 1:
        raise BnewError("it is in training mode: export the network in eval mode")
    return F.batch_norm(x, mean, var, scale, shift, eps=node.attributes.get("epsilon", 1e-5))


def layer_norm(node: Node, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """The norm over the dimensions from an axis on."""
    if len(node.outputs) > 1:
        raise BnewError("its mean and variance are results too")
    sizes = x.shape[node.attributes.get("axis", -1) :]
    scale = scale.expand(sizes)
    shift = None if shift is None else shift.expand(sizes)
    return F.layer_norm(x, sizes, scale, shift, node.attributes.get("epsilon", 1e-5))


def rms_norm(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    """x / √(mean of x² + epsilon) · scale, over the dimensions from an axis on."""
    sizes = x.shape[node.attributes.get("axis", -1) :]
    return F.rms_norm(x, sizes, scale.expand(sizes), node.attributes.get("epsilon", 1e-5))


def group_norm(node: Node, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The norm of groups of channels, of opset 21 and later; ONNX has withdrawn the one before."""
    return F.group_norm(x, node.attributes["num_groups"], scale, shift, node.attributes.get("epsilon", 1e-5))


def instance_norm(node: Node, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The norm of each channel of each image."""
    return F.instance_norm(x, weight=scale, bias=shift, eps=node.attributes.get("epsilon", 1e-5))


def lp_norm(node: Node, x: Tensor) -> Tensor:
    """x / ‖x‖ along an axis."""
    return F.normalize(x, node.attributes.get("p", 2), node.attributes.get("axis", -1))


def local_response_norm(node: Node, x: Tensor) -> Tensor:
    """x / (bias + alpha · mean of x² over neighbouring channels) ^ beta."""
    size = node.attributes["size"]
    if size % 2 == 0:
        raise BnewError(f"it has {size} neighbours, and an odd number is imported")
    alpha, beta, bias = (
        float(node.attributes.get(name, usual))
        for name, usual in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    return F.local_response_norm(x, size, alpha, beta, bias)
