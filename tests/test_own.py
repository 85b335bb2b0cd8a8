"""A user's own network and data by name, and weights to start from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import MACHINE
from safetensors.torch import save_file
from torch import nn

import bnew
from bnew.cli.arguments import options_of
from bnew.errors import BnewError
from bnew.layers import binary_parameters
from bnew.models import create_model
from bnew.recipe import Recipe
from bnew.references import check_apart, fetched
from bnew.training.evaluation import evaluate_run
from bnew.training.loop import train
from bnew.training.networks import build_model, load_model
from bnew.training.provenance import conditions
from bnew.training.run_data import load_data
from bnew.weights import put_weights, read_weights

CODE = """
import torch
from PIL import Image
from torch import nn
from sklearn.datasets import load_digits

VALUE = 3
TYPES = {"16": "uint16", "reals": "float32", "whole": "int32"}


class Net(nn.Sequential):
    def __init__(self, num_classes=10, in_chans=3, width=8):
        super().__init__(
            nn.Conv2d(in_chans, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes),
        )


class Two(Net):
    def forward(self, x, y):
        return super().forward(x) - super().forward(y)


class Several(Net):
    def forward(self, x):
        return {"scores": super().forward(x), "corner": x[:, :, 0, 0]}


def pair(num_classes=10):
    return 3


def digits(kind="bytes", count=300):
    found = load_digits()
    images = (torch.from_numpy(found.images[:count]) * 15.9375).byte().unsqueeze(1)
    if kind == "floats":
        images = images.float() / 255
    if kind == "pil":
        images = [Image.fromarray(each[0].numpy()) for each in images]
    if kind in TYPES:
        images = [Image.fromarray(each[0].numpy().astype(TYPES[kind]) * 256) for each in images]
    if kind == "floats of bytes":
        images = images.float()
    if kind == "mixed":
        images = [*images[:-1], torch.zeros(1, 9, 9).byte()]
    pairs = list(zip(images, map(int, found.target[:count])))
    return {"train": pairs[:200], "test": pairs[200:], "flip": False}
"""
RECIPE = Recipe(data="owncode:digits", model="owncode:Net", method="ste", epochs=1, batch_size=100)


@pytest.fixture(autouse=True)
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module ``owncode`` in the current directory, which is not on sys.path."""
    (tmp_path / "owncode.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    yield tmp_path
    sys.modules.pop("owncode", None)


def test_from_floats_to_a_binary_run(code: Path) -> None:
    real = train(RECIPE.replace(method="real"), code / "float", MACHINE)
    assert not binary_parameters(load_model(real, 10, 1))
    binary = train(RECIPE.replace(weights="../float/best.safetensors"), code / "run", MACHINE)
    model = load_model(binary, 10, 1)
    assert len(binary_parameters(model)) == 1
    assert evaluate_run(binary, MACHINE).accuracy == pytest.approx(binary.summary["test_accuracy"])
    assert train(binary.recipe, code / "run", MACHINE).done
    with pytest.raises(BnewError, match=r"no binary layers yet; give its weights as --weights .*best"):
        train(RECIPE.replace(init="../float"), code / "other", MACHINE)
    packed = bnew.pack(model, torch.zeros(1, 1, 8, 8), code / "m.bnew")
    assert packed.output_shape[0] == 10


def test_code_of_its_own_is_a_condition(code: Path) -> None:
    before = conditions(RECIPE, MACHINE)
    (code / "owncode.py").write_text(CODE.replace("VALUE = 3", "VALUE = 4"))
    after = conditions(RECIPE, MACHINE)
    assert {name for name in after if before[name] != after[name]} == {"owncode"}


@pytest.mark.parametrize("kind", ["bytes", "floats", "pil"])
def test_images_of_each_kind_become_the_same_input(kind: str) -> None:
    data = load_data(RECIPE.replace(data_options={"kind": kind}), MACHINE)
    assert data.counts == {"train": 180, "val": 20, "test": 100}
    from sklearn.datasets import load_digits

    raw = (torch.from_numpy(load_digits().images[200:300]) * 15.9375).byte() / 255
    images, labels = next(iter(data.batches("test", train=False)))
    expected = (raw.unsqueeze(1).float() - data.mean[0]) / data.std[0]
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)
    assert labels.tolist() == load_digits().target[200:300].tolist()


def test_what_becomes_binary() -> None:
    assert binary_parameters(build_model(RECIPE, 10, 1))
    for method in ("real", None):
        assert not binary_parameters(build_model(RECIPE.replace(method=method), 10, 1))
    assert binary_parameters(build_model(RECIPE.replace(method="real", binarize=True), 10, 1))
    assert not binary_parameters(build_model(RECIPE.replace(binarize=False), 10, 1))


def test_what_is_no_classifier_of_one_image_is_refused(code: Path) -> None:
    with pytest.raises(BnewError, match=r"Two takes 2 inputs \(x, y\), but .*: train it in a loop of your"):
        train(RECIPE.replace(model="owncode:Two"), code / "run", MACHINE)
    with pytest.raises(BnewError, match=r"returns a dict for two images, .*; train others in a loop"):
        train(RECIPE.replace(model="owncode:Several"), code / "run", MACHINE)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nowhere:Net", {}, "there is no module nowhere: start the command in the folder"),
        ("owncode:Nte", {}, "has no 'Nte': did you mean 'Net'"),
        ("bnew.nowhere:Net", {}, "there is no module bnew.nowhere"),
        ("bnew.layers:Nte", {}, "has no 'Nte'"),
        ("owncode:VALUE", {}, "is a int, but must be a function or a class"),
        ("owncode:pair", {}, "returns a int, but must return a torch.nn.Module"),
        ("owncode:digits", {}, "takes no num_classes"),
        ("subprocess:run", {"args": "true"}, "takes no num_classes"),
        ("os:system", {"command": "true"}, "takes no num_classes"),
        ("owncode:Net", {"with": 3}, "unknown option of owncode:Net 'with'"),
        ("owncode.Net:", {}, "is no name such as"),
        ("torchvision:resnet81", {}, "unknown network of torchvision 'resnet81': did you mean 'resnet1"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "would load weights: use --pretrained"),
    ],
)
def test_names_that_make_no_network(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(BnewError, match=message):
        create_model(name, **options)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("reals", r"image 0 has 32-bit real numbers as pixels .* give 8 or 16 bits"),
        ("whole", r"image 0 has 32-bit or signed whole numbers as pixels"),
        ("floats of bytes", r"image 0 has values up to 239, but floats are taken for pixel values in"),
    ],
)
def test_images_that_would_lose_bits(kind: str, message: str) -> None:
    with pytest.raises(BnewError, match=message):
        load_data(RECIPE.replace(data_options={"kind": kind}), MACHINE)


def test_images_of_16_bits_are_those_of_8() -> None:
    narrow, wide = (
        load_data(RECIPE.replace(data_options={"kind": kind}), MACHINE) for kind in ("bytes", "16")
    )
    for (first, _), (second, _) in zip(
        narrow.batches("test", train=False), wide.batches("test", train=False), strict=True
    ):
        assert torch.equal(first, second)


def test_data_of_mixed_sizes() -> None:
    with pytest.raises(BnewError, match=r"image 99 is torch.uint8 \(1, 9, 9\) and the first"):
        load_data(RECIPE.replace(data_options={"kind": "mixed"}), MACHINE)


def test_code_in_a_runs_folder_is_not_imported(code: Path) -> None:
    (code / "owncode.py").write_text("raise SystemExit('imported')")
    with pytest.raises(BnewError, match="would be imported from the run's own folder"):
        train(RECIPE, code, MACHINE)
    check_apart(["owncode:Net"], code / "other")
    assert "owncode" not in sys.modules


def test_a_module_that_fails(code: Path) -> None:
    (code / "owncode.py").write_text("import missing_of_it")
    with pytest.raises(BnewError, match=r"importing owncode fails \(ModuleNotFoundError: No module named"):
        fetched("owncode:Net")


def test_weights_of_other_classes_and_networks(
    code: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, model = (create_model("owncode:Net", in_channels=1, num_classes=n) for n in (5, 10))
    state = source.state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, "w.pt")
    caplog.set_level("INFO", "bnew")
    put_weights(model, read_weights(code / "w.pt"), "w.pt", 10)
    assert "8.weight, 8.bias of another number of classes left out" in caplog.text
    torch.testing.assert_close(model.state_dict()["3.weight"], state["3.weight"])
    assert model.state_dict()["8.weight"].shape == (10, 8)
    del state["3.weight"]
    save_file(state | {"extra": torch.zeros(1)}, "w.safetensors")
    with pytest.raises(BnewError, match=r"it lacks 3\.weight; the network has no extra"):
        put_weights(model, read_weights(code / "w.safetensors"), "w", 10)
    torch.save(nn.Linear(2, 2), "whole.pt")
    with pytest.raises(BnewError, match="holds more than tensors and could run code"):
        read_weights(code / "whole.pt")
    torch.save({1: torch.zeros(1)}, "numbered.pt")
    with pytest.raises(BnewError, match="does not hold a state dict"):
        read_weights(code / "numbered.pt")
    with pytest.raises(BnewError, match="there is no file"):
        read_weights(code / "none.pt")


def test_starts_exclude_each_other() -> None:
    with pytest.raises(BnewError, match="init and weights are different starts"):
        RECIPE.replace(init="a", weights="b")
    with pytest.raises(BnewError, match="comes without weights"):
        RECIPE.replace(pretrained=True)
    with pytest.raises(BnewError, match="data set digits takes no options"):
        Recipe(data="digits", data_options={"a": 1})


def test_options_like_json() -> None:
    words = ["a=true", "b=[1, 2]", "c=None", "d=word", "e=0.5", "f=null", "g=1e999"]
    assert options_of(words) == {
        "a": True, "b": [1, 2], "c": None, "d": "word", "e": 0.5, "f": None, "g": "1e999",
    }  # fmt: skip


def test_a_network_of_timm() -> None:
    pytest.importorskip("timm")
    recipe = RECIPE.replace(model="timm:test_resnet")
    model = build_model(recipe, 7, 1)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert binary_parameters(model)
    with pytest.raises(BnewError, match="unknown network of timm 'resnet81'"):
        create_model("timm:resnet81")
    with pytest.raises(BnewError, match="would load weights"):
        create_model("timm:test_resnet", checkpoint_path="x")


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BnewError, match=r"needs the package timm: pip install 'bnew\[timm\]'"):
        create_model("timm:resnet18")
