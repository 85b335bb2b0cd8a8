"""What the README says to do works as it is written there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bnew

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_your_own_network(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = (block.partition("```")[0] for block in README.split("```python\n")[1:])
    torch.manual_seed(0)
    evaluated = []

    def evaluate(model: nn.Module) -> None:
        evaluated.append([torch.unique(w.detach().abs()).tolist() for w in bnew.binary_parameters(model)])

    batch = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    names: dict[str, Any] = {"loader": [batch], "evaluate": evaluate}
    exec(example, names)
    weights = list(bnew.binary_parameters(names["model"]))
    assert len(weights) > 10
    assert evaluated == [[[1.0]] * len(weights)]
    assert all(torch.unique(w.detach().abs()).tolist() == [1.0] for w in weights)
    assert isinstance(names["method"], bnew.methods.BNEW)
    assert "layer1.0.conv1" in capsys.readouterr().out
