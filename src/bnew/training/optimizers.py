"""The optimizer of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from bnew.layers import binary_parameters
from bnew.recipe import Recipe


def make_optimizer(recipe: Recipe, model: nn.Module, binary_lr: float = 1.0) -> torch.optim.Optimizer:
    """The recipe's optimizer, fused: Adam, AdamW, or SGD with Nesterov momentum.

    AdamW shrinks weights themselves by lr · decay. Where a method makes weights binary, that would undo what
    the method does, so AdamW leaves the weights of binary layers out.

    A group's learning rate is lr · ``group["rate"]``. ``binary_lr`` is the rate of the binary weights if the
    recipe has none.
    """
    options: dict[str, Any] = {"lr": recipe.lr, "fused": True}
    decoupled = recipe.optimizer == "adamw"
    spared = decoupled and recipe.method not in (None, "real")
    binary_lr = binary_lr if recipe.binary_lr is None else recipe.binary_lr
    convolutions = {id(m.weight) for m in model.modules() if isinstance(m, _ConvNd)}
    binary = {id(p) for p in binary_parameters(model)}
    # The groups do not depend on the recipe's numbers, so that --force can resume a run with others.
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for p in model.parameters():
        groups.setdefault((id(p) in binary, id(p) in convolutions), []).append(p)
    params = [
        {
            "params": members,
            "rate": binary_lr if is_binary else 1.0,
            "weight_decay": (
                recipe.weight_decay
                if (is_convolution or recipe.decayed == "all") and not (is_binary and spared)
                else 0.0
            ),
        }
        for (is_binary, is_convolution), members in groups.items()
    ]
    if recipe.optimizer == "sgd":
        options |= {"momentum": recipe.momentum, "nesterov": recipe.momentum > 0}
        return torch.optim.SGD(params, **options)
    return torch.optim.Adam(params, decoupled_weight_decay=decoupled, **options)
