"""Two results with names: which digit is in a picture, and where, by one binary network.

python examples/detection.py
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
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
    """Train, pack and run a small network with two heads."""

    images: int = 2000
    """Pictures to train on."""
    epochs: tuple[int, int] = (4, 8)
    """Of phase 1 and of phase 2."""
    out: Path = Path("detection.bnew")
    """The packed file."""


class Detector(nn.Module):
    """Convolutions, then a head for the class and one for the corner."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, 32, 64, 128, 128]
        self.body = nn.Sequential()
        for before, width in pairwise(widths):
            self.body.append(nn.Conv2d(before, width, 3, 1, 1, bias=False))
            self.body.append(nn.BatchNorm2d(width)).append(nn.ReLU())
            if width > before:
                self.body.append(nn.MaxPool2d(2))
        self.scores, self.corner = nn.Linear(128 * 16, 10), nn.Linear(128 * 16, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 1, 32, 32) → scores (N, 10) and corner (N, 2)."""
        x = self.body(x).flatten(1)
        return {"scores": self.scores(x), "corner": self.corner(x).sigmoid()}


def loss(found: dict[str, Tensor], of: Scenes) -> Tensor:
    """Of the digit, and of the corner's distance."""
    return F.cross_entropy(found["scores"], of.classes) + 10 * F.l1_loss(found["corner"], of.corners)


def main(options: Options) -> None:
    """Train, pack, run, and compare the packed network with PyTorch's."""
    torch.manual_seed(0)
    model = bnew.binarize(Detector())
    train(model, scenes(options.images, 0, train=True), loss, options.epochs)
    bnew.pack(model, torch.zeros(1, 1, SIDE, SIDE), options.out)

    held_out = scenes(500, 1, train=False)
    packed = bnew_engine.load(options.out)(held_out.images.numpy())
    check = bnew.verify(options.out, model, [(held_out.images, held_out.classes)])
    classes, corners = (torch.from_numpy(packed[name]) for name in ("scores", "corner"))
    print(
        f"{options.out}: {options.out.stat().st_size:,} bytes; results {', '.join(packed)}\n"
        f"right digit: {100 * (classes.argmax(1) == held_out.classes).float().mean():.1f} %; its corner is "
        f"{((corners - held_out.corners).abs() * (SIDE - 16)).mean():.1f} pixels off on average\n"
        f"the packed network is PyTorch's: {check.ok}\n\n{check}"
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
