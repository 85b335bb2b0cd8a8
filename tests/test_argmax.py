"""Whole numbers as results: argmax and argmin, with PyTorch's types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bnew_engine
import numpy as np
import pytest
import torch
from packed_reference import Reference
from torch import Tensor, nn

import bnew
from bnew import BnewError

Function = Callable[[Tensor], Any]


class Behind(nn.Module):
    """A function behind a convolution to five channels."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.conv(x))


FUNCTIONS: dict[str, Function] = {
    "classes of pixels": lambda x: x.argmax(1),
    "kept dimension": lambda x: x.argmax(1, keepdim=True),
    "classes of images": lambda x: x.mean((2, 3)).argmax(1),
    "columns": lambda x: x.argmax(3),
    "rows": lambda x: x.argmax(-2, keepdim=True),
    "argmin": lambda x: x.argmin(1),
    "channels last": lambda x: x.permute(0, 2, 3, 1).argmax(-1),
    "places": lambda x: x.flatten(2).argmax(2),
    "all of an image": lambda x: x.flatten(1).argmax(1),
    "of a softmax": lambda x: x.softmax(1).argmax(1),
    "as numbers": lambda x: 2 * x.argmax(1).float() - 1,
    "a comparison": lambda x: (x > 0).long(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equal_to_pytorch(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Behind(FUNCTIONS[name]).eval(), torch.randn(3, 3, 6, 5)
    bnew.pack(model, x[:1], tmp_path / "m.bnew")
    expected = model(x).numpy()
    for found in (
        bnew_engine.load(tmp_path / "m.bnew")(x.numpy()),
        Reference(tmp_path / "m.bnew")(x.numpy()),
    ):
        assert (found.shape, found.dtype.kind) == (expected.shape, expected.dtype.kind)
        np.testing.assert_array_equal(found, expected)
    assert bnew_engine.load(tmp_path / "m.bnew")(x.numpy()).dtype == expected.dtype


def test_beside_the_scores(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Behind(lambda x: {"scores": x, "classes": x.argmax(1)}).eval()
    x = torch.randn(2, 3, 4, 4)
    bnew.pack(model, x, tmp_path / "m.bnew")
    found = bnew_engine.load(tmp_path / "m.bnew")(x.numpy())
    assert (found["scores"].dtype, found["classes"].dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(found["classes"], model(x)["classes"])


@pytest.mark.parametrize("isa", bnew_engine.isas())
def test_ties_and_nan_as_in_pytorch(isa: str, tmp_path: Path) -> None:
    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.log() * 1.0).argmax(1)  # NaN of negative numbers, −∞ of 0

    x = torch.tensor([[1, 2, 2, 1], [-1, 3, -1, 3], [0, 0, 0, 0], [3, 3, 3, -1], [0, -1, 5, 9]]).float()
    x = x.reshape(5, 4, 1, 1)
    bnew.pack(Alone(), x, tmp_path / "m.bnew")
    found = bnew_engine.load(tmp_path / "m.bnew", isa=isa)(x.numpy())
    np.testing.assert_array_equal(found, Alone()(x))


def test_are_no_probabilities(tmp_path: Path) -> None:
    x = torch.zeros(1, 3, 4, 4)
    bnew.pack(Behind(lambda x: x.mean((2, 3)).argmax(1)), x, tmp_path / "m.bnew")
    model = bnew_engine.load(tmp_path / "m.bnew")
    assert "3×4×4 → a whole number" in repr(model)
    with pytest.raises(bnew_engine.EngineError, match="returns whole numbers, such as the number of a class"):
        model.predict(x.numpy())


@pytest.mark.parametrize("function", [lambda x: x.argmax(), lambda x: x.argmax(0), lambda x: x.sort(1)])
def test_refused(function: Function, tmp_path: Path) -> None:
    with pytest.raises(BnewError, match="cannot be packed"):
        bnew.pack(Behind(function), torch.zeros(1, 3, 4, 4), tmp_path / "m.bnew")
