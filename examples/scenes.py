"""Pictures with a handwritten digit somewhere in them, from scikit-learn's digits: data of the examples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import bnew
from bnew.methods import BNEW, Binarizer, Clip

SIDE = 32


class Scenes(NamedTuple):
    """Pictures, and what is in them."""

    images: Tensor
    """(N, 1, 32, 32), noise with a digit of 16 × 16 pixels."""
    classes: Tensor
    """(N), the digit."""
    corners: Tensor
    """(N, 2), row and column of the digit's upper left corner, as shares of their range."""
    masks: Tensor
    """(N, 32, 32), for each pixel 0 (background) or the digit + 1 (its strokes)."""


def scenes(count: int, seed: int, train: bool) -> Scenes:
    """``count`` pictures with digits from the first 1,400 of scikit-learn's, or from the others."""
    digits = load_digits()
    part = slice(1400) if train else slice(1400, None)
    strokes = torch.from_numpy(digits.images[part]).float() / 16
    labels = torch.from_numpy(digits.target[part])
    random = torch.Generator().manual_seed(seed)
    which = torch.randint(len(strokes), (count,), generator=random)
    corners = torch.randint(SIDE - 16 + 1, (count, 2), generator=random)
    images = 0.2 * torch.randn(count, 1, SIDE, SIDE, generator=random)
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.long)
    large = strokes[which].repeat_interleave(2, 1).repeat_interleave(2, 2)
    for i, (y, x) in enumerate(corners.tolist()):
        images[i, 0, y : y + 16, x : x + 16] += 2 * large[i]
        masks[i, y : y + 16, x : x + 16] = (large[i] > 0.3) * (labels[which[i]] + 1)
    return Scenes(images, labels[which], corners / (SIDE - 16), masks)


def train(
    model: nn.Module, data: Scenes, loss: object, epochs: tuple[int, int], batch: int = 64, lr: float = 1e-2
) -> nn.Module:
    """Both phases; ``loss(model(images), scenes)`` is what is made small. The model is binary afterwards."""
    for phase, length in zip((Clip, BNEW), epochs, strict=True):
        steps = length * (len(data.images) // batch)
        method: Binarizer = phase(bnew.binary_parameters(model), steps)
        optimizer = torch.optim.Adam(method.param_groups(model, lr=lr))
        method.attach(optimizer)
        model.train()
        order = torch.Generator().manual_seed(0)
        for step in range(steps):
            rows = torch.randint(len(data.images), (batch,), generator=order)
            part = Scenes(*(of[rows] for of in data))
            loss(model(part.images), part).backward()  # type: ignore[operator]
            for group in optimizer.param_groups:
                group["lr"] *= 1 - 1 / (steps - step) if step < steps - 1 else 1
            optimizer.step()
            optimizer.zero_grad()
    method.freeze()
    return model.eval()
