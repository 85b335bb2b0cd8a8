"""Dense outputs: every pixel of a picture gets a class, by a binary network with skip connections.

python examples/segmentation.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import bnew_engine
import torch
import torch.nn.functional as F
import tyro
from scenes import SIDE, Scenes, scenes, train
from torch import Tensor, nn

import bnew


@dataclass(frozen=True)
class Options:
    """Train, pack and run a small network that segments."""

    images: int = 2000
    """Pictures to train on."""
    epochs: tuple[int, int] = (3, 5)
    """Of phase 1 and of phase 2."""
    out: Path = Path("segmentation.bnew")
    """The packed file."""


def block(channels: int, wider: int, stride: int = 1) -> nn.Sequential:
    """A convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()
    )


class UNet(nn.Module):
    """Two steps down, two up, and the finer features beside what comes up."""

    def __init__(self, classes: int = 11) -> None:
        super().__init__()
        self.fine, self.middle, self.coarse = block(1, 32), block(32, 64, 2), block(64, 128, 2)
        self.deep = nn.Sequential(block(128, 128), block(128, 128))
        self.up1, self.join1 = nn.ConvTranspose2d(128, 64, 2, 2), block(128, 64)
        self.up2, self.join2 = nn.ConvTranspose2d(64, 32, 2, 2), block(64, 32)
        self.head = nn.Conv2d(32, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, classes, H, W)."""
        fine = self.fine(x)
        middle = self.middle(fine)
        x = self.deep(self.coarse(middle))
        x = self.join1(torch.cat([self.up1(x), middle], 1))
        x = self.join2(torch.cat([self.up2(x), fine], 1))
        scores: Tensor = self.head(x)
        return scores


def loss(scores: Tensor, of: Scenes) -> Tensor:
    """Of every pixel."""
    weights = torch.tensor([0.2] + [1.0] * 10)  # most pixels are background
    return F.cross_entropy(scores, of.masks, weights)


def main(options: Options) -> None:
    """Train, pack, run, and compare the packed network with PyTorch's."""
    torch.manual_seed(0)
    model = bnew.binarize(UNet())
    train(model, scenes(options.images, 0, train=True), loss, options.epochs)
    bnew.pack(model, torch.zeros(1, 1, SIDE, SIDE), options.out)

    held_out = scenes(500, 1, train=False)
    packed = bnew_engine.load(options.out)(held_out.images.numpy())
    check = bnew.verify(options.out, model, [(held_out.images, held_out.masks)])
    classes = torch.from_numpy(packed).argmax(1)
    strokes = held_out.masks > 0
    print(
        f"{options.out}: {options.out.stat().st_size:,} bytes; {packed.shape[1:]} numbers a picture\n"
        f"pixels with the right class: {100 * (classes == held_out.masks).float().mean():.1f} %, of strokes "
        f"{100 * (classes == held_out.masks)[strokes].float().mean():.1f} %\n"
        f"the packed network is PyTorch's: {check.ok}\n\n{check}"
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
