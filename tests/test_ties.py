"""Comparisons of values that are exactly equal by construction, except for rounding, which is PyTorch's."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnew

bnew_engine = pytest.importorskip("bnew_engine")


class OfShare(nn.Module):
    """Something of the share of a channel's places that are above 0."""

    def __init__(self, decide: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.decide = decide

    def forward(self, x: Tensor) -> Tensor:
        return self.decide((x > 0).float().mean((2, 3))).float()


def equals(decide: Callable[[Tensor], Tensor], path: Path, side: int = 7) -> None:
    torch.manual_seed(0)
    model, x = OfShare(decide).eval(), torch.randn(16, 64, side, side)
    bnew.pack(model, x, path)
    expected = model(x).numpy()
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(bnew_engine.load(path)(x.numpy()), expected)


@pytest.mark.parametrize("side", [3, 5, 6, 7])
@pytest.mark.parametrize("name", ["eq", "ne", "ge", "gt", "le", "lt"])
def test_a_share_times_the_number_of_places(name: str, side: int, tmp_path: Path) -> None:
    places = side * side
    compare = getattr(operator, name)
    equals(lambda m: compare(m * places, places // 2), tmp_path / "model.bnew", side)


SHARES: dict[str, Callable[[Tensor], Tensor]] = {
    "difference": lambda m: m * 49 - 24 >= 0,
    "turned": lambda m: 24 - m * 49 < 0,
    "negative": lambda m: m * -49 + 24 != 0,
    "quotient": lambda m: m / (1 / 49) <= 24,
    "tenths": lambda m: (m * 49).round() / 10 >= 2.4,
    "floor": lambda m: (m * 49).floor(),
    "per channel": lambda m: m * torch.linspace(47, 50, 64) >= torch.full((64,), 24.0),
    "constant first": lambda m: torch.full((64,), 24.0) >= m * torch.linspace(47, 50, 64),
    "both signs": lambda m: m * torch.linspace(-49, 49, 64) > 24,
    "not whole": lambda m: m * 0.3 + 0.7 * 24 / 49 == 24 / 49,
}


@pytest.mark.parametrize("what", SHARES)
def test_what_follows_from_a_share(what: str, tmp_path: Path) -> None:
    equals(SHARES[what], tmp_path / "model.bnew")


def test_of_equal_numbers_topk_takes_the_first_places(tmp_path: Path) -> None:
    """And ``max`` and ``min``, as PyTorch does."""

    class Best(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            x = x.round()
            return (*x.topk(3, 1), *x.topk(3, 1, largest=False), *x.max(1), *x.min(1), x.argmin(1))

    torch.manual_seed(0)
    x = torch.randn(16, 12)
    bnew.pack(Best(), x, tmp_path / "model.bnew")
    found = bnew_engine.load(tmp_path / "model.bnew")(x.numpy())
    expected = Best()(x)
    for place in (0, 2, *range(4, 9)):
        np.testing.assert_array_equal(found[place], expected[place].numpy())
    rounded = x.round()
    for place, order in ((1, -rounded), (3, rounded)):
        np.testing.assert_array_equal(found[place], order.argsort(dim=1, stable=True)[:, :3].numpy())


@pytest.mark.parametrize(
    "decide",
    [
        lambda m: (m > 0.5).float() * 0.1 + 0.2 == 0.3,  # in float32, but not in float64
        lambda m: (m > 0.5).float() * 0.1 + 0.7 >= 0.8,
        lambda m: (m > 0.5).float() / 3 + torch.where(m > 0.5, 1 / 3, 0.2) >= 2 / 3,
    ],
)
def test_one_of_two_numbers_is_computed_in_float32(
    decide: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    equals(decide, tmp_path / "model.bnew")
