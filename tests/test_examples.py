"""The examples run, briefly: the packed network is PyTorch's."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.skipif(find_spec("bnew_engine") is None, reason="the examples run what they pack")
@pytest.mark.parametrize("name", ["segmentation", "detection"])
def test_examples(name: str, tmp_path: Path) -> None:
    words = [sys.executable, f"{name}.py", "--images", "128", "--epochs", "1", "1"]
    result = subprocess.run(
        [*words, "--out", str(tmp_path / "model.bnew")],
        cwd=EXAMPLES, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    same = re.search(r"PyTorch's (?:class|digit): ([0-9.]+)%", result.stdout)
    assert same is not None, result.stdout
    assert float(same[1]) > 99
