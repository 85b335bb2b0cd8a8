"""Arguments of an operator that packing does not know: they are named, never ignored."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_any_network import Written, agrees
from torch import Tensor

import bnew
from bnew import BnewError
from bnew.packing import activations, vocabulary
from bnew.packing.adaptors import anywhere

# PyTorch computes in float64: float32 is near enough.
FINER: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda y: y.sum(1, dtype=torch.float64).float(),
    "mean": lambda y: y.mean((2, 3), dtype=torch.float64).float(),
    "softmax": lambda y: y.softmax(1, dtype=torch.float64).float(),
    "norm": lambda y: torch.linalg.vector_norm(y, dim=1, dtype=torch.float64).float(),
}

REFUSED: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (
        lambda y: y.sigmoid().sum(1, dtype=torch.long),
        "sum in .*'dtype' is torch.int64, in which its input is",
    ),
    (lambda y: y.sum(1, dtype=torch.cfloat).abs(), "sum in .*'dtype' is torch.complex64"),
    (lambda y: y.mean(1, dtype=torch.half).float(), "mean in .*its result is of torch.float16"),
    (
        lambda y: y.view(torch.int32).float(),
        "view in .*it takes the bits of its input for those of torch.int32",
    ),
    (lambda y: torch.div(y.argmax(1), 2, rounding_mode="trunc"), "div in .*a division that is rounded"),
]


TAKEN: dict[str, Callable[[Tensor], Any]] = {
    "floor": lambda y: torch.div(y.clamp(-4, 4), 0.5, rounding_mode="floor"),
    "trunc": lambda y: torch.div(y.clamp(-4, 4), -0.5, rounding_mode="trunc"),
    "of whole numbers": lambda y: torch.div(y.argmax(1), 2, rounding_mode="floor"),
    "fraction": lambda y: y.clamp(-4, 4).frac(),
    "grouped queries": lambda y: F.scaled_dot_product_attention(
        y, y[:, :2], y[:, :2] * 2, is_causal=True, scale=0.2, enable_gqa=True
    ),
    "a clip": lambda y: y.clip(max=0.3) + torch.clip(y, -0.2),
    "other names of a concatenation": lambda y: torch.hstack([torch.concat([y, y], 1), y]),
    "other names": lambda y: torch.absolute(torch.multiply(y, 2)) - torch.divide(torch.negative(y), 7),
    "other names of comparisons": lambda y: torch.greater(y, 0.1) | torch.less_equal(y, -0.1),
}


@pytest.mark.parametrize("what", TAKEN)
def test_these_are_taken(what: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    agrees(Written(TAKEN[what]), tmp_path / "model.bnew", 3, 6, 6)


def pack(forward: Callable[[Tensor], Tensor], path: Path) -> None:
    bnew.pack(Written(forward), torch.randn(2, 3, 6, 6), path)


@pytest.mark.parametrize("what", FINER)
def test_a_finer_type_is_computed_in_float32(what: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    agrees(Written(FINER[what]), tmp_path / "model.bnew", 3, 6, 6)


@pytest.mark.parametrize(("forward", "message"), REFUSED)
def test_a_type_or_rounding_that_changes_numbers_is_refused(
    forward: Callable[[Tensor], Tensor], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BnewError, match=message):
        pack(forward, tmp_path / "model.bnew")


def test_an_argument_that_a_lowering_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vocabulary.ATEN, "gelu", anywhere(activations.pointwise("gelu")))
    with pytest.raises(BnewError, match=r"gelu in .* its argument 'approximate' is not packed"):
        pack(lambda y: F.gelu(y, approximate="tanh"), tmp_path / "model.bnew")


def test_a_positional_argument_that_a_lowering_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vocabulary.ATEN, "elu", anywhere(activations.pointwise("elu")))
    with pytest.raises(BnewError, match=r"elu in .* its argument 'alpha' is not packed"):
        pack(lambda y: F.elu(y, 0.5), tmp_path / "model.bnew")


def test_a_fault_of_a_lowering_is_one_sentence_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(op: Any, x: Any, approximate: Any = 0) -> Any:
        return math.sqrt(approximate)

    monkeypatch.setitem(vocabulary.ATEN, "gelu", wrong)
    with pytest.raises(BnewError, match=r"gelu in .*did not expect its arguments \(TypeError: ") as found:
        pack(lambda y: F.gelu(y, approximate="tanh"), tmp_path / "model.bnew")
    assert isinstance(found.value.__cause__, TypeError)
