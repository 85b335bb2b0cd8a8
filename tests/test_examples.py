"""The examples run, briefly: the packed network is PyTorch's."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


needs_engine = pytest.mark.skipif(find_spec("bnew_engine") is None, reason="the examples run what they pack")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What an example prints, run as a script: in this process, which has loaded torch."""

    def run(name: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        monkeypatch.syspath_prepend(EXAMPLES)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@needs_engine
@pytest.mark.parametrize("name", ["segmentation", "detection"])
def test_several_and_dense_results(said: Callable[..., str], name: str, tmp_path: Path) -> None:
    words = ["--images", "128", "--epochs", "1", "1", "--out", str(tmp_path / "model.bnew")]
    output = said(name, *words)
    assert "the packed network is PyTorch's: True" in output
    same = re.search(r"^(?:result|scores) +([0-9.]+) ?%", output, re.MULTILINE)
    assert same is not None
    assert float(same[1]) > 99


@needs_engine
def test_own_network(said: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "own.bnew"
    output = said("own_network", "--epochs", "1", "1", "2", "--out", str(file))
    assert re.search(rf"{file}: [0-9,]+ bytes, [0-9.]+ %; verified: True", output), output
    (accuracy,) = re.findall(r"binary weights too: ([0-9.]+) %", output)
    assert float(accuracy) > 50


def test_comparing_methods(said: Callable[..., str]) -> None:
    output = said("comparing_methods", "--epochs", "1", "1", "--seeds", "0", "--methods", "bnew", "ste")
    rows = re.findall(r"(bnew|ste) +│ +([0-9.]+) +│ +([0-9.]+) ", output)
    assert [name for name, _, _ in rows] == ["bnew", "ste"]
    assert all(float(accuracy) > 20 for _, accuracy, _ in rows)
