"""Recipes: what they refuse, their schedules, and their way through JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnew.errors import BnewError
from bnew.experiments.published import CIFAR10, IMAGENET
from bnew.recipe import Recipe
from bnew.registry import METHODS
from bnew.short_runs import FILL, LEAST_PUSH, MOST_RAMP

# More than the defaults: every kind of value that a recipe can hold.
FULL = Recipe(
    data="cifar100",
    model_options={"width": 2, "shift": False, "widths": (8, 16)},
    method="bnew",
    method_options={"strength": 3.5},
    epochs=10,
    schedule="step",
    milestones=(0.3, 0.6),
    init="../clip/seed3",
    teacher="../teacher/seed3",
    image_size=64,
    seed=3,
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", "10"),
        ("batch_size", 0),
        ("seed", -1),
        ("image_size", 0),
        ("lr", 0),
        ("lr", -0.1),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", "0.1"),
        ("binary_lr", 0),
        ("binary_lr", math.inf),
        ("momentum", 1.1),
        ("weight_decay", -1e-4),
        ("weight_decay", math.inf),
        ("freeze", -0.1),
        ("freeze", 1.1),
    ],
)
def test_impossible_values(field: str, value: Any) -> None:
    with pytest.raises(BnewError, match=rf"^{field} is {value!r}"):
        Recipe(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [
        ("schedule", "linaer", "linear"),
        ("optimizer", "adem", "adam"),
    ],
)
def test_unknown_names(field: str, value: Any, nearest: str) -> None:
    with pytest.raises(BnewError, match=f"unknown {field} '{value}': did you mean '{nearest}'"):
        Recipe(**{field: value})


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("linear", {0.0: 2.0, 0.25: 1.5, 0.75: 0.5, 1.0: 0.0}),
        ("cosine", {0.0: 2.0, 1 / 3: 1.5, 0.5: 1.0, 2 / 3: 0.5, 1.0: 0.0}),
        ("step", {0.0: 2.0, 0.499: 2.0, 0.5: 0.2, 0.749: 0.2, 0.75: 0.02, 0.999: 0.02}),
        ("constant", {0.0: 2.0, 0.999: 2.0}),
    ],
)
def test_lr_at(schedule: str, rates: dict[float, float]) -> None:
    recipe = Recipe(lr=2.0, schedule=schedule)
    for progress, rate in rates.items():
        assert recipe.lr_at(progress) == pytest.approx(rate, abs=1e-12)


def test_milestones() -> None:
    assert [FULL.replace(lr=1.0).lr_at(p) for p in (0.2, 0.5, 0.9)] == pytest.approx([1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("epochs", "freeze", "epoch"),
    [
        (1000, 0.98, 980),
        (100, 0.98, 98),
        (10, 0.98, 9),
        (2, 0.98, 1),
        (1, 0.98, 1),  # there is no room for it
        (10, 0.01, 1),  # one epoch comes before
        (10, 0.0, 0),  # from the start
        (10, 1.0, 10),  # never
    ],
)
def test_freeze_epoch(epochs: int, freeze: float, epoch: int) -> None:
    assert Recipe(method="bnew", epochs=epochs, freeze=freeze).freeze_epoch == epoch


@pytest.mark.parametrize(
    ("method", "epoch"), [("bnew", 980), ("bmd", 980), ("ste", 1000), ("clip", 1000), (None, 1000)]
)
def test_freeze_epoch_as_published(method: str | None, epoch: int) -> None:
    assert Recipe(method=method, epochs=1000).freeze_epoch == epoch


@pytest.mark.parametrize("method", ["bnew", "bmd"])
@pytest.mark.parametrize(
    ("epochs", "epoch"),
    [(1000, 980), (400, 380), (200, 180), (199, 180), (100, 90), (20, 18), (12, 11), (2, 1), (1, 1)],
)
def test_twenty_epochs_come_after_freezing(method: str, epochs: int, epoch: int) -> None:
    """As in the authors' runs of 1000 and of 200 epochs; in a shorter run a tenth."""
    assert Recipe(method=method, epochs=epochs).freeze_epoch == epoch


@given(st.integers(2, 3000), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_freezing_leaves_an_epoch_on_either_side(epochs: int, freeze: float) -> None:
    assert 1 <= Recipe(epochs=epochs, freeze=freeze).freeze_epoch <= epochs - 1


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0])
def test_scaled_keeps_proportions(method: str | None, factor: float) -> None:
    recipe = Recipe(method=method, epochs=200, schedule="step")
    scaled = recipe.scaled(factor)
    assert scaled.epochs == 200 * factor
    assert abs(scaled.freeze_epoch - recipe.freeze_epoch * factor) < 1
    assert scaled.lr_at(0.6) == recipe.lr_at(0.6)
    assert scaled.replace(epochs=200, method_options={}, binary_lr=None) == recipe


@pytest.mark.parametrize("method", ["bnew", "bop"])
@pytest.mark.parametrize("options", [{}, {"scale": True}])
def test_scaling_of_method_options(method: str, options: dict[str, Any]) -> None:
    """It composes, goes back, keeps the other options, and leaves the recipe itself alone."""
    recipe = Recipe(method=method, method_options=options, epochs=1000)
    there = recipe.scaled(0.1)
    assert there.method_options.items() >= options.items()
    assert there.method_options == pytest.approx(recipe.scaled(0.5).scaled(0.2).method_options)
    back = there.scaled(10).method_options
    assert {k: v for k, v in back.items() if k != "fill"} == pytest.approx(recipe.scaled(1).method_options)
    assert there.method_options != recipe.scaled(1).method_options
    assert recipe.method_options == options


def test_strength_has_a_floor_that_raises_none() -> None:
    strong, weak = (Recipe(method="bnew", method_options={"strength": s}, epochs=1000) for s in (35.2, 4.0))
    for epochs in (6, 12, 30):
        short = strong.scaled(epochs / 1000)
        ramp = short.method_options["ramp"]
        push = short.method_options["strength"] * (short.freeze_epoch / short.epochs) ** (ramp + 1)
        assert push == pytest.approx(LEAST_PUSH, rel=0.01) or push > LEAST_PUSH
    for ramp in (0.5, 1.0, 3.0, 5.0):
        options = {"strength": 4.0, "ramp": ramp}
        assert Recipe(method="bnew", method_options=options).scaled(1).method_options == options
    assert strong.scaled(0.001).method_options["ramp"] == MOST_RAMP
    assert weak.scaled(0.012).method_options["strength"] == 4.0


def test_a_short_run_of_bnew_starts_as_a_long_one() -> None:
    """Its weights fill the box, and their rate grows too; a long run, and ImageNet's, is as published."""
    published = CIFAR10.phase2["bnew"]
    for factor in (1.0, 2.0):
        recipe = published.scaled(factor)
        assert recipe.binary_lr == 1
        assert "fill" not in recipe.method_options
        assert recipe.method_options["ramp"] == 1
    assert published.scaled(1).method_options["strength"] == 35.2
    for factor, strength, ramp, rate in ((0.1, 17.6, 2.0, 2.51), (0.012, 13.5, 3.77, 5.87), (0.001, 9, 4, 8)):
        recipe = published.scaled(factor)
        options = {"strength": strength, "ramp": ramp, "fill": FILL}
        assert recipe.method_options == pytest.approx(options, rel=0.01)
        assert recipe.binary_lr == pytest.approx(rate, rel=0.01)
    filled = Recipe(method="bnew", method_options={"fill": 0.3}, binary_lr=2.0, epochs=100)
    assert filled.scaled(0.1).method_options["fill"] == 0.3
    assert filled.scaled(0.1).binary_lr == pytest.approx(2 * 0.1**-0.4)
    bare = Recipe(method="bnew", method_options={"fill": None}, binary_lr=2.0, epochs=100)
    assert bare.scaled(0.1).method_options["fill"] is None
    assert "fill" not in Recipe(method="bnew", binary_lr=2.0).scaled(1).method_options
    short = IMAGENET.phase2["bnew"].scaled(0.02)
    assert short.binary_lr == 1
    assert short.method_options["fill"] is None


def test_scaled_to_next_to_nothing() -> None:
    recipe = Recipe(method="bop", epochs=1000)
    shortest = recipe.scaled(0.001)
    assert shortest.epochs == 1
    assert 0 < shortest.method_options["gamma"] <= 1
    with pytest.raises(
        BnewError, match=r"1000 epochs of bop times 0.0004 leave none: .* at least 0.001, which"
    ):
        recipe.scaled(0.0004)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_impossible_scale(factor: float) -> None:
    with pytest.raises(BnewError, match="scale of the epochs"):
        Recipe().scaled(factor)


@pytest.mark.parametrize("recipe", [Recipe(), FULL])
def test_json_round_trip(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_what_a_recipe_of_bnew_lacks_is_as_published() -> None:
    """An earlier version wrote it."""
    old = {"method": "bnew", "binary_lr": 1.0}
    published = {"strength": 35.0, "ramp": 1.0, "fill": None}
    assert Recipe.from_dict(old).method_options == published
    options = {"strength": 3.5, "ramp": 2.0}
    given = Recipe.from_dict({**old, "method_options": options})
    assert given.method_options == {**published, **options}
    by_paper = Recipe.from_dict({**old, "method_options": {"reg": 1e-4}})
    assert by_paper.method_options == {"reg": 1e-4, "ramp": 1.0, "fill": None}


@pytest.mark.parametrize(
    ("recipe", "other", "same"),
    [
        (Recipe(method="ste"), Recipe(method="ste", binary_lr=1.0), True),
        (Recipe(method="ste"), Recipe(method="ste", binary_lr=2.0), False),
        (Recipe(method="bnew"), Recipe(method="bnew", binary_lr=1.0), False),
        (Recipe(method="bnew"), Recipe(method="bnew").published(), False),
        (Recipe(method="bnew"), Recipe(method="bnew", method_options={"fill": "by length"}), True),
        (FULL, FULL.replace(method_options={"strength": 3.5, "fill": None}), False),
        (
            Recipe(method="bnew", method_options={"reg": 1e-4}),
            Recipe(method="bnew", method_options={"reg": 1e-4, "fill": None}, binary_lr=1.0),
            True,
        ),
    ],
)
def test_the_same_meaning(recipe: Recipe, other: Recipe, same: bool) -> None:
    assert (recipe.meaning() == other.meaning()) == same


def test_from_dict_refuses_unknown_fields() -> None:
    with pytest.raises(BnewError, match="unknown field of a recipe 'epoch': did you mean 'epochs'"):
        Recipe.from_dict({"epoch": 3})
