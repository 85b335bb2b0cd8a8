"""verify() of networks that are no classifiers: dense results, several results, whole numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from test_any_network import Written
from test_pack import trained
from torch import Tensor, nn

import bnew
from bnew import BnewError
from bnew.deploy.agreement import Comparison

pytest.importorskip("bnew_engine")


class Found(NamedTuple):
    scores: Tensor
    boxes: Tensor


RESULTS: dict[str, tuple[Callable[[Tensor], Any], list[str], list[bool]]] = {
    "a picture": (lambda y: y, ["result"], [True]),
    "a picture of one channel": (lambda y: y[:, :1], ["result"], [False]),
    "a number": (lambda y: y.mean((1, 2, 3)), ["result"], [False]),
    "a tuple": (lambda y: (y, (y.mean((2, 3)),)), ["result 1", "result 2"], [True, True]),
    "a named tuple": (lambda y: Found(y.mean((2, 3)), y), ["scores", "boxes"], [True, True]),
    "a dict": (lambda y: {"a": y.mean((2, 3)), "b": [y, y[:, :1]]}, ["a", "b.0", "b.1"], [True, True, False]),
    "a dict of one": (lambda y: {"a": y.mean((2, 3))}, ["a"], [True]),
    "whole numbers": (lambda y: (y, y > 0), ["result 1", "result 2"], [True, True]),
}


def network(of: Callable[[Tensor], Any]) -> nn.Module:
    """A network with a binary layer whose result is ``of`` a picture."""
    torch.manual_seed(0)
    body = nn.Sequential(bnew.BinaryConv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 4, 1))
    return trained(Written(lambda y, body: of(body(y)), body)).eval()


def batches() -> list[tuple[Tensor, Any]]:
    torch.manual_seed(1)
    return [(torch.randn(20, 3, 6, 6), "no labels"), (torch.randn(7, 3, 6, 6), None)]


@pytest.mark.parametrize("what", RESULTS)
def test_any_results_and_those_of_another_network(what: str, tmp_path: Path) -> None:
    of, names, classes = RESULTS[what]
    model = network(of)
    bnew.pack(model, torch.zeros(1, 3, 6, 6), tmp_path / "model.bnew")
    check = bnew.verify(tmp_path / "model.bnew", model, batches())
    assert check.ok, check.problems
    assert check.hits is None
    assert (check.sample, check.images) == (16, 27)
    assert [(layer.name, layer.wrong) for layer in check.layers] == [("layers.0.0", 0)]
    assert [result.name for result in check.results] == names
    assert [result.others is not None for result in check.results] == classes
    assert all(result.name in str(check) for result in check.results)
    assert "accuracy" not in str(check)
    assert "class" not in str(check)  # it may be one, but nothing says so
    channels = [result for result in check.results if result.what == "channel" and result.others is not None]
    assert ("of channels" in str(check)) == bool(channels)
    assert ("of numbers" in str(check)) == (what == "whole numbers")
    with torch.no_grad():
        last = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
        last.weight.mul_(1.01)
    check = bnew.verify(tmp_path / "model.bnew", model, batches())
    assert any("an image without a flipped sign differs by" in problem for problem in check.problems)
    with torch.no_grad():
        last.weight.neg_()
    problems = bnew.verify(tmp_path / "model.bnew", model, batches()).problems
    counted = [
        problem for problem in problems if re.search(r"of 27 images (get|have) .*, more than 1 %", problem)
    ]
    assert len(counted) == sum(RESULTS[what][2])


def test_the_results_of_both_have_the_same_names(tmp_path: Path) -> None:
    model = network(lambda y: {"a": y})
    bnew.pack(model, torch.zeros(1, 3, 6, 6), tmp_path / "model.bnew")
    with pytest.raises(
        BnewError, match=r"returns a \(4, 6, 6\) numbers for an image and the model \(4, 6, 6\)"
    ):
        bnew.verify(tmp_path / "model.bnew", network(lambda y: y), batches())
    with pytest.raises(BnewError, match=r"and the model b \(4, 6, 6\): give the model of the file"):
        bnew.verify(tmp_path / "model.bnew", network(lambda y: {"b": y}), batches())
    with pytest.raises(BnewError, match="holds something else than tensors"):
        bnew.verify(tmp_path / "model.bnew", network(lambda y: {"a": y, "b": "text"}), batches())


def test_a_comparison_counts_as_loops_do() -> None:
    random = np.random.default_rng(0)
    pictures = [random.standard_normal((n, 3, 2, 2), np.float32) for n in (5, 4)]
    theirs = [x + 0.3 * random.standard_normal(x.shape, np.float32) for x in pictures]
    same = np.array([True, False, True, False, False])
    comparison = Comparison("", pictures[0], theirs[0], same)
    others, medians, most = 0.0, [], 0.0
    for a, b in zip(np.concatenate(pictures), np.concatenate(theirs), strict=True):
        places = [(y, x) for y in range(2) for x in range(2)]
        others += (
            sum(max(range(3), key=a[:, y, x].item) != max(range(3), key=b[:, y, x].item) for y, x in places)
            / 4
        )
        medians.append(np.median(np.abs(a - b)))
        most = max(most, float(np.abs(a - b).max()))
    for each in zip(pictures, theirs, strict=True):
        comparison.add(*each)
    found = comparison.result()
    assert (found.others, found.max_difference, found.median_difference) == (others, most, np.median(medians))
    strict = max(np.abs(pictures[0][i] - theirs[0][i]).max() for i in (0, 2))
    assert found.strict_difference == pytest.approx(strict / np.square(pictures[0]).mean() ** 0.5)
    assert Comparison("", pictures[0], theirs[0], ~same & same).strict_difference is None
    assert Comparison("", 0 * pictures[0], theirs[0], same).strict_difference == np.inf
    assert Comparison("", 0 * pictures[0], 0 * theirs[0], same).strict_difference == 0
