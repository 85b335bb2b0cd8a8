"""A recipe from a file: as a run writes it, and changed by options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bnew.cli import main
from bnew.errors import BnewError
from bnew.files import write_json
from bnew.recipe import Recipe


def asked_for(*words: object) -> Recipe:
    """The recipe that ``bnew train`` hands to the training loop."""
    trained = mock.patch("bnew.training.loop.train", side_effect=BnewError("seen"))
    with trained as called, pytest.raises(SystemExit):
        main(["train", *map(str, words)])
    recipe = called.call_args.args[0]
    assert isinstance(recipe, Recipe)
    return recipe


RECIPES = [
    Recipe(),
    Recipe(data="digits", model="birealnet8", method="bnew", epochs=3, freeze=0.5, binary_lr=2.0, seed=4),
    Recipe(
        data="digits", model="birealnet8", model_options={"width": 32}, method="ste", optimizer="adamw",
        schedule="step", milestones=(0.1, 0.7), label_smoothing=0.1, class_weights="balanced", lr=1e-5 / 3,
    ),
    Recipe(method="clip", class_weights={"cat": 2.0}, pretrained=True, model="torchvision:resnet18"),
    Recipe(method=None, optimizer="sgd", image_size=16, binarize=False),
]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=range(len(RECIPES)))
def test_a_written_recipe_is_read_again(recipe: Recipe, tmp_path: Path) -> None:
    write_json(tmp_path / "recipe.json", recipe.to_dict())
    assert asked_for("--config", tmp_path / "recipe.json") == recipe
    assert asked_for(f"--config={tmp_path / 'recipe.json'}").to_dict() == recipe.to_dict()


def test_options_change_it(tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    write_json(file, RECIPES[2].to_dict())
    words = ("--epochs", 7, "--config", file, "--class-weights", "3=2", "--model-options", "--lr", 0.5)
    changes = {"epochs": 7, "class_weights": {"3": 2}, "model_options": {}, "lr": 0.5}
    assert asked_for(*words) == RECIPES[2].replace(**changes)
    write_json(file, RECIPES[1].to_dict())
    assert asked_for("--config", file, "--freeze", "None") == RECIPES[1].replace(freeze=None)


def test_links_are_those_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the folder of the recipe there, and to that of the new run afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "phase2").mkdir(parents=True)
    links: dict[str, Any] = {"init": "../phase1", "teacher": "torchvision:resnet18"}
    write_json(tmp_path / "a" / "phase2" / "recipe.json", Recipe(method="bnew", **links).to_dict())
    recipe = asked_for("--config", "a/phase2/recipe.json", "--out", "b/run")
    assert (recipe.init, recipe.teacher) == ("../../a/phase1", "torchvision:resnet18")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "holds no recipe"),
        ({"epoch": 3}, "unknown field of a recipe 'epoch'"),
        ({"epochs": 0}, "epochs is 0, but must be a whole number"),
        ({"milestones": 3}, "recipe.json: "),
        ({"init": 3}, "init is 3, but must be a path"),
    ],
)
def test_no_recipe(content: Any, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(SystemExit) as ended:
        main(["train", "--config", str(file)])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert sentence in said
    assert said.startswith("bnew: error: --config")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "wanted"), [({}, {}), ({"ramp": 2}, {"ramp": 2}), ({"reg": 1e-4}, {"reg": 1e-4})]
)
def test_what_a_recipe_of_ones_own_does_not_say_follows_from_the_length(
    options: dict[str, float], wanted: dict[str, float], tmp_path: Path
) -> None:
    written: dict[str, Any] = {"data": "digits", "method": "bnew", "epochs": 30}
    (tmp_path / "recipe.json").write_text(json.dumps(written | {"method_options": options}))
    found = asked_for("--config", tmp_path / "recipe.json")
    assert found.meaning() == Recipe(**written, method_options=wanted).meaning()
