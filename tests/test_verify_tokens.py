"""verify() of networks whose binary layers see tokens, which a packed file may hold in another order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_any_network import Attention, Transformer, Written, together, windows
from test_pack import trained
from torch import Tensor, nn

import bnew
from bnew import BinaryLinear
from bnew.deploy.watching import aligned

pytest.importorskip("bnew_engine")


class Mixed(nn.Module):
    """Binary linear layers of tokens and of windows, then classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = (
            nn.Conv2d(3, 8, 3, 1, 1),
            BinaryLinear(8, 12),
            BinaryLinear(12, 8),
        )
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(self.conv(x).flatten(2).transpose(1, 2)))
        x = windows(x.transpose(1, 2).reshape(len(x), 12, 6, 6).permute(0, 2, 3, 1), 3)
        x = together(self.second(x), 3, 6, 6)
        out: Tensor = self.head(x.mean((1, 2)))
        return out


def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(20, 3, 6, 6), torch.randint(5, (20,))) for _ in range(2)]


def test_tokens_are_compared_wherever_they_lie(tmp_path: Path) -> None:
    model = Mixed()
    trained(model).eval()
    bnew.pack(model, torch.zeros(1, 3, 6, 6), tmp_path / "model.bnew")
    result = bnew.verify(tmp_path / "model.bnew", model, batches())
    assert result.ok
    assert [(layer.name, layer.wrong) for layer in result.layers] == [("first", 0), ("second", 0)]
    with torch.no_grad():
        model.second.weight[0, :6].neg_()
    assert not bnew.verify(tmp_path / "model.bnew", model, batches()).ok


def test_places_are_matched() -> None:
    random = np.random.default_rng(0)
    signs = random.choice([-1, 1], (3, 40, 1, 12)).astype(np.float32)
    order = random.permutation(12)
    stored = signs[..., order].reshape(3, 40, 3, 4)
    assert np.array_equal(aligned(stored, signs), signs)
    stored[1, 7, 2, 1] *= -1
    assert np.count_nonzero(aligned(stored, signs) != signs) == 1


def test_a_binarized_transformer(tmp_path: Path) -> None:
    model = bnew.binarize(Written(lambda y, f: f(y), Transformer(Attention())))
    assert any(isinstance(layer, BinaryLinear) for layer in model.modules())
    model = trained(model).eval()
    bnew.pack(model, torch.zeros(1, 3, 6, 6), tmp_path / "model.bnew")
    assert bnew.verify(tmp_path / "model.bnew", model, batches()).ok
