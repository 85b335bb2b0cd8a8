"""What the README says to do works as it is written there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bnew

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_your_own_network(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, inference = (block.partition("```")[0] for block in README.split("```python\n")[1:])
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    evaluated = []

    def evaluate(model: nn.Module) -> None:
        evaluated.append([torch.unique(w.detach().abs()).tolist() for w in bnew.binary_parameters(model)])

    batch = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    names: dict[str, Any] = {"loader": [batch], "evaluate": evaluate}
    exec(training, names)
    weights = list(bnew.binary_parameters(names["model"]))
    assert len(weights) > 10
    assert evaluated == [[[1.0]] * len(weights)]
    assert all(torch.unique(w.detach().abs()).tolist() == [1.0] for w in weights)
    assert isinstance(names["method"], bnew.methods.BNEW)
    assert "layer1.0.conv1" in capsys.readouterr().out

    pytest.importorskip("bnew_engine")
    images = torch.randn(1, 3, 224, 224)
    names["images"] = images.numpy()
    exec(inference, names)
    with torch.no_grad():
        expected = names["model"].eval()(images)
    # The training of one batch leaves nothing to be sure of: a sign that rounding turns over shows.
    assert torch.corrcoef(torch.stack([expected[0], torch.from_numpy(names["logits"][0])]))[0, 1] > 0.99
