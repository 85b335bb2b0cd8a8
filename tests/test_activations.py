"""Activations and norms: packed, they are what PyTorch computes, in the file and in the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packed_reference
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnew
from bnew import BnewError

T = torch.tensor([0.3, -0.5, 1.0, 0.0])
FAR = np.concatenate(
    [np.linspace(-12, 12, 8001), *(s * np.logspace(-30, 2, 300) for s in (-1, 1)), [0.0, -0.0, 100, -100]]
)
# Of any number, and those that need a positive one.
ANYWHERE: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "exp": lambda x: x.clamp(max=80).exp(),
    "abs": torch.abs,
    "round": torch.round,
    "elu": F.elu,
    "elu with numbers": lambda x: F.elu(x, 0.5),
    "elu in place": lambda x: F.elu_(x.clone(), 2.0),
    "selu": F.selu,
    "selu in place": lambda x: F.selu_(x.clone()),
    "celu": lambda x: F.celu(x, 0.5),
    "softplus": F.softplus,
    "softplus with numbers": lambda x: F.softplus(x, 2, 30),
    "mish": F.mish,
    "silu": F.silu,
    "hard swish": F.hardswish,
    "softsign": F.softsign,
    "log sigmoid": F.logsigmoid,
    "tanhshrink": lambda x: F.tanhshrink(x) + 1,
    "threshold": lambda x: F.threshold(x, 0.1, 2.0),
    "threshold at itself": lambda x: F.threshold(x, 0.1, 0.1),
    "threshold to zero": lambda x: F.threshold(x, 0.1, 0.0),
    "rrelu": F.rrelu,
    "square": torch.square,
    "third power": lambda x: x**3,
    "sixth power": lambda x: (x / 10) ** 6,
    "maximum": lambda x: torch.maximum(x, torch.tensor(0.25)),
    "minimum": lambda x: torch.minimum(torch.tensor(0.25), x),
}
POSITIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.log,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "root": lambda x: x**0.5,
    "inverse root": lambda x: x**-0.5,
    "inverse": lambda x: x**-1,
    "quotient": lambda x: 2 / x,
}
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "group norm": lambda x: F.group_norm(x, 2, T, T.exp(), 1e-3),
    "group norm without numbers": lambda x: F.group_norm(x, 4),
    "group norm of a vector": lambda x: F.group_norm(x.mean((2, 3)), 2),
    "instance norm": lambda x: F.instance_norm(x, weight=T, bias=T),
    "instance norm with statistics": lambda x: F.instance_norm(x, T, T.exp(), use_input_stats=False),
    "rms norm": lambda x: F.rms_norm(x.permute(0, 2, 3, 1), (4,), T, 1e-3).permute(0, 3, 1, 2),
    "rms norm without numbers": lambda x: F.rms_norm(x.mean((2, 3)), (4,)),
    "rms norm as a formula": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5),
    "rms norm as a quotient": lambda x: x / ((x * x).mean(1, keepdim=True) + 1e-5).sqrt(),
    "to length 1": lambda x: F.normalize(x, dim=1),
    "log softmax": lambda x: F.log_softmax(x, 1),
    "softmax": lambda x: F.softmax(3 * x, 1),
    "softmin": lambda x: F.softmin(x, 1),
    "log softmax of rows": lambda x: F.log_softmax(x, 2),
    "normalised rows": lambda x: F.normalize(x, dim=2),
    "maximum of channels": lambda x: torch.maximum(x, T[:, None, None]),
    "clamp of channels": lambda x: x.clamp(T[:, None, None] - 1, T[:, None, None]),
}
REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "exponent of the input": (lambda x: x**x, "only with a constant exponent or a constant base"),
    "whole exponents": (
        lambda x: x ** torch.tensor([[[2.0]], [[0.5]], [[0.5]], [[0.5]]]),
        "it has whole exponents",
    ),
    "high exponent": (lambda x: x**17, "only one from ±1 to ±16"),
    "exponent 0": (lambda x: x**0 + x, "only one from ±1 to ±16"),
    "power of a number below 0": (lambda x: (-2.0) ** x, "its base is constant and not above 0"),
    "rounding down without limits": (torch.floor, "only for numbers between limits"),
    "rounding to tenths": (
        lambda x: torch.round(x.clamp(-1, 1), decimals=1),
        "with decimals=1, it is not packed",
    ),
    "rounding down to many": (lambda x: (x.clamp(0, 1) * 255).floor(), "at most 64 apart"),
    "softplus that jumps": (lambda x: F.softplus(x, 1, 2), "it jumps to its input"),
    "maximum of what may be infinite": (lambda x: torch.maximum(x, x.exp()), "may be infinite or NaN"),
}


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.fixture
def engine() -> Any:
    return pytest.importorskip("bnew_engine")


def expected(function: Callable[[Tensor], Tensor], x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.asarray(Applied(function).eval()(torch.from_numpy(x)).numpy())


def check(function: Callable[[Tensor], Tensor], x: np.ndarray[Any, Any], path: Path, engine: Any) -> None:
    """The file read by hand, and every instruction set: these have the same bits."""
    bnew.pack(Applied(function).eval(), torch.from_numpy(x), path)
    wanted = expected(function, x)
    close: dict[str, Any] = {"rtol": 2e-6, "atol": 2e-6}
    np.testing.assert_allclose(packed_reference.Reference(path)(x).reshape(wanted.shape), wanted, **close)
    found = [engine.load(path, isa=isa)(x).reshape(wanted.shape) for isa in engine.isas()]
    np.testing.assert_allclose(found[0], wanted, **close)
    for other in found[1:]:
        np.testing.assert_array_equal(other.view(np.uint32), found[0].view(np.uint32))


@pytest.mark.parametrize("name", [*ANYWHERE, *POSITIVE])
def test_activations(name: str, tmp_path: Path, engine: Any) -> None:
    x = FAR.astype(np.float32)
    if name in POSITIVE:
        x = np.abs(x[np.abs(x) > 1e-12])
    check({**ANYWHERE, **POSITIVE}[name], x.reshape(1, 1, 1, -1), tmp_path / "m.bnew", engine)


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str, tmp_path: Path, engine: Any) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 5, 7)).astype(np.float32)
    check(NORMS[name], x + 1, tmp_path / "m.bnew", engine)


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("rms norm as a formula", "rms_norm"),
        ("rms norm as a quotient", "rms_norm"),
        ("to length 1", "l2_norm"),
        ("instance norm", "group_norm"),
    ],
)
def test_a_norm_is_one_node(name: str, op: str, tmp_path: Path) -> None:
    path = tmp_path / "m.bnew"
    bnew.pack(Applied(NORMS[name]).eval(), torch.randn(1, 4, 5, 5), path)
    assert [node["op"] for node in packed_reference.load(path).graph["nodes"]] == [op]


@pytest.mark.parametrize("name", ["silu", "hard swish", "softsign", "log sigmoid", "celu"])
def test_an_activation_is_one_node(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.bnew"
    bnew.pack(Applied(ANYWHERE[name]).eval(), torch.randn(1, 4, 5, 5), path)
    assert len(packed_reference.load(path).graph["nodes"]) == 1


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, tmp_path: Path) -> None:
    function, message = REFUSED[name]
    with pytest.raises(BnewError, match=message):
        bnew.pack(Applied(function).eval(), torch.randn(1, 4, 5, 5), tmp_path / "m.bnew")
