"""Handwritten digits, a small residual network and a plain training loop: what examples share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bnew
from bnew.methods import Binarizer

SHAPE = (1, 16, 16)
Batches = DataLoader[tuple[Tensor, ...]]


def handwriting(batch_size: int = 32) -> tuple[Batches, Batches]:
    """Batches of (images (N, 1, 16, 16), classes (N)) to train on, and to test with."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 8 - 1
    images = F.interpolate(images, size=SHAPE[1:], mode="bilinear")
    parts = [TensorDataset(images[rows], torch.from_numpy(classes)[rows]) for rows in _SPLITS]
    train, test = (DataLoader(part, batch_size, shuffle=part is parts[0], drop_last=True) for part in parts)
    return train, test


_SPLITS = (slice(1400), slice(1400, None))


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + x)


class SmallResNet(nn.Module):
    """A residual network as people write them, with ReLU as a function."""

    def __init__(self, width: int = 32, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, num_classes)."""
        logits: Tensor = self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))
        return logits


def train(
    model: nn.Module,
    batches: Batches,
    epochs: int,
    make: Callable[[list[nn.Parameter], int], Binarizer] | None = None,
    lr: float = 1e-2,
) -> Binarizer | None:
    """A plain loop; ``make(parameters, steps)`` gives the method that decides the binary weights."""
    steps = epochs * len(batches)
    method = make(bnew.binary_parameters(model), steps) if make else None
    optimizer = torch.optim.Adam(method.param_groups(model, lr=lr) if method else model.parameters(), lr=lr)
    if method:
        method.attach(optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for x, y in _repeated(batches, epochs):
        loss = F.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    return method


def _repeated(batches: Batches, epochs: int) -> Iterator[tuple[Tensor, ...]]:
    for _ in range(epochs):
        yield from batches


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], batches: Batches) -> float:
    """The share of images that get their class."""
    hits = torch.cat([model(x).argmax(1) == y for x, y in batches])
    return float(hits.float().mean())
