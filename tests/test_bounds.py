"""Whether a value may be infinite or NaN: what is not known to be finite counts as not finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_any_network import Written, agrees
from torch import Tensor

import bnew
from bnew import BnewError
from bnew.packing.bounds import bounds
from bnew.packing.values import Place, Value
from bnew.packing.vocabulary import ROWS

INPUT = Value("input", 0, Place("", "", ""), (4, 3, 3))
# Those that are finite for some inputs only, or by their numbers.
BY_NUMBERS = {"exp", "log", "sqrt", "reciprocal", "clamp", "scale", "shift", "prelu", "constant"}


def made(op: str) -> Value:
    pair = op in ("add", "multiply")
    return Value(op, 1, INPUT.place, INPUT.shape, (INPUT,) * (1 + pair))


@pytest.mark.parametrize("op", sorted(set(ROWS) - BY_NUMBERS))
def test_operators_are_known_to_be_finite(op: str) -> None:
    assert bounds(made(op), {}) is not None


def test_an_unknown_operator_may_be_infinite() -> None:
    assert bounds(made("inverse"), {}) is None


FINITE: dict[str, Callable[[Tensor], Tensor]] = {
    "length": lambda y: torch.where(y > 0, y.square().sqrt(), y),
    "quotient": lambda y: torch.where(y > 0, y / (y * y + 1).sqrt(), y),
    "slope": lambda y: torch.where(y > 0, F.leaky_relu(y.clamp(-3, 3), 0.2).exp(), y),
}


@pytest.mark.parametrize("what", FINITE)
def test_what_is_finite_may_be_chosen(what: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    agrees(Written(FINITE[what]), tmp_path / "model.bnew", 3, 6, 6)


def test_a_steep_slope_may_make_an_infinite_number(tmp_path: Path) -> None:
    def forward(y: Tensor) -> Tensor:
        return torch.where(y > 0, F.leaky_relu(y.clamp(-3, 3), -40).exp(), y)

    with pytest.raises(BnewError, match="may be infinite or NaN where it is not chosen"):
        bnew.pack(Written(forward), torch.randn(1, 3, 6, 6), tmp_path / "model.bnew")
