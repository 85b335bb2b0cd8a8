"""Weights that PyTorch computes: parametrizations, standardised and scaled weights, lazy layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnew

bnew_engine = pytest.importorskip("bnew_engine")


class Standardised(nn.Conv2d):
    """Weight standardisation (arXiv 1903.10520)."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.weight.mean((1, 2, 3), True), self.weight.var((1, 2, 3), False, True)
        result: Tensor = self._conv_forward(x, (self.weight - mean) / (var + 1e-5).sqrt(), self.bias)
        return result


class Scaled(nn.Conv2d):
    """The scaled, standardised convolution of NFNets, as timm writes it."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel)
        self.gain = nn.Parameter(torch.rand(outputs, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        gain = (self.gain * self.weight[0].numel() ** -0.5).view(-1)
        rows = self.weight.reshape(1, len(self.weight), -1)
        weight = F.batch_norm(rows, None, None, gain, training=True, momentum=0.0, eps=1e-6)
        result: Tensor = self._conv_forward(x, weight.reshape_as(self.weight), self.bias)
        return result


def conv() -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3)


PARAMETRIZED = "there is no binary ParametrizedConv2d"
COMPUTED = "its weight is computed, not a parameter"
LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(conv()), PARAMETRIZED),
    "spectral_norm": (lambda: nn.utils.parametrizations.spectral_norm(conv()), PARAMETRIZED),
    "orthogonal": (lambda: nn.utils.parametrizations.orthogonal(conv()), PARAMETRIZED),
    "old weight_norm": (lambda: nn.utils.weight_norm(conv()), COMPUTED),
    "old spectral_norm": (lambda: nn.utils.spectral_norm(conv()), COMPUTED),
    "standardised": (lambda: Standardised(8, 8, 3), "there is no binary Standardised"),
    "scaled": (lambda: Scaled(8, 8, 3), "there is no binary Scaled"),
    "lazy": (lambda: nn.LazyConv2d(8, 3), "an inner layer"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", LAYERS)
def test_computed_weights(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, reason = LAYERS[kind]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), make(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.LazyLinear(5))
    x = torch.randn(3, 3, 8, 8)
    model(x)
    model.eval()
    bnew.pack(model, x, tmp_path / "model.bnew")
    found = bnew_engine.load(tmp_path / "model.bnew")(x.numpy())
    assert np.allclose(found, model(x).detach(), atol=1e-5)
    assert {row.name: row.reason for row in bnew.plan(model)}["1"] == reason


def test_lazy_layers_that_were_never_called() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyConv2d(8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1))
    rows = {row.name: (row.becomes, row.reason) for row in bnew.plan(model)}
    assert rows["1"] == ("", "its size is not known yet: call the model with a batch first")
    assert rows["2"][0] == "BinaryConv2d"


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyConv2d(8, 3)), "Sequential has a LazyConv2d '1'"),
        (nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d(affine=False)), "has a LazyBatchNorm1d '1'"),
        (nn.LazyConv2d(8, 3), "LazyConv2d has a LazyConv2d that was never called"),
    ],
)
def test_weights_that_do_not_exist_yet_are_not_packed(model: nn.Module, what: str, tmp_path: Path) -> None:
    """PyTorch would make up random ones in the first call."""
    path, x = tmp_path / "model.bnew", torch.randn(2, 3, 9, 9)
    with pytest.raises(bnew.BnewError, match=f"{what}.*call the model with a batch"):
        bnew.pack(model, x, path)
    assert not path.exists()
    model(x)
    bnew.pack(model, x, path)
