"""The trained networks that bnew comes with: each is what its card says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bnew_engine
import numpy as np
import pytest
import torch
from helpers import Cli
from PIL import Image

import bnew
from bnew import BnewError, create_model, list_pretrained, pretrained_card
from bnew.data.sources import load
from bnew.models.trained import Card
from bnew.recipe import Recipe
from bnew.text import percent

DATA = Path(__file__).parent.parent / "data"  # where a user's data sets are, if there are any


@pytest.fixture(params=list_pretrained())
def card(request: pytest.FixtureRequest) -> Card:
    return pretrained_card(request.param)


def test_engine_and_cards_name_the_same_networks() -> None:
    assert list_pretrained() == list(bnew_engine.networks())
    assert "digits" in list_pretrained()


def test_weights_and_packed_file_are_the_same_network(card: Card, tmp_path: Path) -> None:
    model = create_model(card.model, pretrained=card.name).eval()
    for weight in bnew.binary_parameters(model):
        assert weight.abs().eq(1).all()
    shipped = bnew_engine.load(card.name)
    images = torch.randn(8, *shipped.input_shape)
    with torch.no_grad():
        np.testing.assert_allclose(shipped(images.numpy()), model(images).numpy(), rtol=1e-4, atol=1e-4)
    bnew.pack(model, images[:1], tmp_path / "again.bnew")
    again = bnew_engine.load(tmp_path / "again.bnew")
    assert np.array_equal(again(images.numpy()), shipped(images.numpy()))
    assert card.packed.stat().st_size == card.packed_bytes


def test_accuracy_is_that_of_the_card(card: Card) -> None:
    try:
        load(card.data, DATA)
    except BnewError:
        pytest.skip(f"{card.data} is not in {DATA}")
    found = bnew.evaluate(card.packed, card.data, data_dir=DATA)
    assert (found.images, found.hits) == (card.test_images, card.test_right)


def test_recipes_of_a_card_can_be_run_again(card: Card) -> None:
    again = [Recipe.from_dict(dict(recipe)).to_dict() for recipe in card.recipes]
    assert json.loads(json.dumps(again)) == list(card.recipes)
    assert card.recipes[0]["data"] == card.data
    assert card.recipes[0]["model"] == card.model


def test_documentation_has_the_numbers_of_the_card(card: Card) -> None:
    page = (Path(__file__).parent.parent / "docs" / "pretrained.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith(f"| {card.name} | {card.model} |"))
    assert f"| {card.trained} | {percent(card.accuracy)} (" in row
    assert f"of {card.test_images:,} images | {card.packed_bytes:,} bytes |" in row


def test_a_card_as_a_table() -> None:
    text = str(pretrained_card("digits"))
    for part in ("birealnet8", "test accuracy", " % (", "bytes", "one thread"):
        assert part in text


def test_other_classes_keep_all_but_the_last_layer() -> None:
    trained = create_model("birealnet8", pretrained="digits").state_dict()
    mine = create_model("birealnet8", pretrained="digits", num_classes=3).eval()
    assert mine(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    state = mine.state_dict()
    other = {n for n, v in state.items() if v.shape != trained[n].shape or not torch.equal(v, trained[n])}
    assert other == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "birealnet20",
            {"pretrained": "digits"},
            "'digits' is no birealnet20: create_model\\('birealnet8'",
        ),
        ("birealnet8", {"pretrained": "digit"}, "unknown trained network 'digit': did you mean 'digits'"),
        ("birealnet8", {"pretrained": True}, "needs the name of trained weights, not True: give pretrained="),
        ("birealnet8", {"pretrained": "digits", "in_channels": 3}, "has the shape .*, but the network's has"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(BnewError, match=message):
        create_model(name, **options)


def test_damaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (pretrained_card("digits").weights, pretrained_card("digits").weights.with_suffix(".json")):
        shutil.copy(file, tmp_path)
    monkeypatch.setattr("bnew.models.trained.FOLDER", tmp_path)
    content = bytearray((tmp_path / "digits.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "digits.safetensors").write_bytes(content)
    with pytest.raises(BnewError, match=r"digits\.safetensors is damaged or was replaced: install bnew"):
        create_model("birealnet8", pretrained="digits")


def test_predict_by_a_trained_network(tmp_path: Path, cli: Cli) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    paths = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).save(path)
        paths.append(str(path))
    code, out, _ = cli("predict", "--pretrained", "digits", *paths, "--json", "--top", "1")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["file"] for line in lines] == paths
    assert [line["classes"][0]["class"] for line in lines] == [str(digits.target[n]) for n in range(4)]
    code, _, errors = cli("predict", "--pretrained", "digit", paths[0])
    assert code == 2
    assert "did you mean 'digits'" in errors


def test_models_lists_what_is_trained(cli: Cli) -> None:
    code, out, _ = cli("models")
    assert code == 0
    assert "Trained: digits, birealnet8, 9" in out
