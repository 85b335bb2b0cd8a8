"""One row for each name, and a user's own methods, models and data sets beside bnew's."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import MACHINE
from torch import nn

import bnew
from bnew import registry
from bnew.cli import main
from bnew.convert.summary import summary
from bnew.data import Parts, Split, sources
from bnew.errors import BnewError, check_options
from bnew.methods import METHODS, Binarizer, create_method
from bnew.models import create_model
from bnew.recipe import Recipe
from bnew.register import register_dataset, register_method, register_model
from bnew.registry import DATASETS, MODELS, method_row
from bnew.results.report import table
from bnew.results.run import Run
from bnew.training.evaluation import evaluate_run
from bnew.training.loop import train
from bnew.training.provenance import conditions, used_modules

PLUGIN = '''"""A method, a model and a data set of a user's own."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

import bnew
from bnew.data import Parts, Split
from bnew.data.sources import digits
from bnew.methods import STE
from bnew.models.birealnet import BinaryBlock

from own_parts import WIDTH


def twice_as_long(recipe, factor):
    slope = recipe.method_options.get("slope", 1.0) / factor
    return {"method_options": {**recipe.method_options, "slope": slope}}


@bnew.register_method(
    "soft", label="Soft STE", color="#0b7285", freeze=0.5, published={"slope": 2.0}, scale=twice_as_long
)
class Soft(STE):
    """STE that is told when it is frozen."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        total_steps: int | None = None,
        *,
        slope: float = 1.0,
        freeze_at: float = 1.0,
        scale: bool = False,
    ) -> None:
        super().__init__(params, total_steps, scale=scale)
        self.slope, self.freeze_at = slope, freeze_at

    @property
    def settings(self):
        return {"slope": self.slope, "freeze_at": self.freeze_at}


@bnew.register_model("tiny", width=WIDTH)
@bnew.register_model("tiny_wide", width=2 * WIDTH)
class Tiny(nn.Sequential):
    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 4) -> None:
        super().__init__(
            nn.Conv2d(in_channels, width, 3, padding=1),
            BinaryBlock(width, width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, num_classes),
        )


@bnew.register_dataset("odd", mode="L", flip=False)
def odd(data_dir: Path, download: bool) -> Parts:
    found = digits(data_dir, download)
    split = found.splits["train"]
    kept = split.labels % 2 == 1
    return Parts(found.classes[1::2], {"train": Split(split.images[kept], split.labels[kept] // 2)})


if __name__ == "__main__":
    from bnew.cli import main

    main()
'''
RECIPE = Recipe(data="odd", model="tiny", method="soft", epochs=2, batch_size=128, seed=3)


@pytest.fixture(autouse=True)
def _tables_as_before() -> Iterator[None]:
    tables: tuple[dict[str, Any], ...] = (METHODS, MODELS, DATASETS)
    before = [dict(rows) for rows in tables]
    yield
    for rows, kept in zip(tables, before, strict=True):
        rows.clear()
        rows.update(kept)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module ``own``, imported, and ``own_parts`` beside it."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "own.py").write_text(PLUGIN)
    (folder / "own_parts.py").write_text("WIDTH = 8\n")
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module("own")
    for name in ("own", "own_parts"):
        del sys.modules[name]


# The rows of bnew's own


@pytest.mark.parametrize("name", METHODS)
def test_a_row_says_what_its_method_does(name: str) -> None:
    row = METHODS[name]
    check_options(name, row.load(), {**row.published, **row.by_length, **row.instead, **row.earlier})
    options = {"freeze_at": 1.0} if row.takes_freeze_at else {}
    check_options(name, row.load(), options)
    if not row.takes_freeze_at:
        with pytest.raises(BnewError, match="unknown option"):
            check_options(name, row.load(), ["freeze_at"])
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.Adam([weight])
    method = create_method(name, [weight], 10).attach(optimizer)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert tuple(method._state()) == row.state
    assert (weight not in optimizer.state) == row.moves_weights
    with method.binarized():
        assert bool((weight.detach().abs() == 1).all()) == (row.phase == 2)


@pytest.mark.parametrize("name", ["bmd", "bop", "bop2nd", "diode", "proxquant", "proxparq"])
def test_published_settings_are_the_defaults(name: str) -> None:
    """Of a class, where the run is as long as the published one, and of the published recipe."""
    method = create_method(name, [nn.Parameter(torch.ones(2, 2))], 352_000)
    assert method.settings == METHODS[name].published
    if name in bnew.recipes.CIFAR10.phase2:
        assert bnew.recipes.CIFAR10.phase2[name].method_options == METHODS[name].published
    assert Recipe(method=name).published().method_options == METHODS[name].published


def test_published_settings_of_bnew() -> None:
    method = create_method("bnew", [nn.Parameter(torch.ones(2, 2))], 352_000)
    published = METHODS["bnew"].published
    assert {k: method.settings[k] for k in published} == pytest.approx(published)
    assert bnew.recipes.CIFAR10.phase2["bnew"].method_options["strength"] == published["strength"]


def test_labels_and_colours_differ() -> None:
    rows = [registry.NO_METHOD, *METHODS.values()]
    assert len({row.label for row in rows}) == len({row.color for row in rows}) == len(rows)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_options_of_its_row(name: str) -> None:
    row = MODELS[name]
    assert callable(row.load())
    for option in row.options:
        with pytest.raises(BnewError, match="takes values like"):
            create_model(name, **{option: None})


def test_data_sets_of_own_images() -> None:
    assert [name for name, row in DATASETS.items() if row.own_images] == [
        "folder",
        "grey_folder",
        "photos",
        "imagenet",
    ]
    for row in DATASETS.values():
        assert row.own_images or callable(row.load())


def test_a_name_that_is_not_registered_is_shown_by_itself() -> None:
    """As in the report of a run whose module is not imported."""
    assert method_row("theirs").label == "theirs"
    recipe = Recipe.from_dict(Recipe(method="theirs", data="theirs", epochs=4).to_dict())
    assert (recipe.freeze_epoch, recipe.ends_binary, recipe.method_arguments) == (4, True, {})
    assert not registry.dataset_row("theirs").own_images


# A user's own


def test_a_users_own_are_trained_and_reported(plugin: ModuleType, tmp_path: Path) -> None:
    run = train(RECIPE, tmp_path / "run", MACHINE)
    assert run.environment["method"] == {"slope": 1.0, "freeze_at": 0.5}
    assert run.summary["distance_before_freezing"] > 0
    assert Run(run.path).recipe == RECIPE
    assert Run(run.path).recipe.freeze_epoch == 1
    found = evaluate_run(Run(run.path), MACHINE)
    assert found.accuracy == pytest.approx(run.summary["test_accuracy"])
    assert "Soft STE" in table([run])
    assert bnew.models.list_models().count("tiny") == 1
    tiny, wide = (summary(create_model(name, in_channels=1), (1, 8, 8)) for name in ("tiny", "tiny_wide"))
    assert str(tiny) != str(wide)


def test_recipes_of_a_users_own(plugin: ModuleType) -> None:
    assert RECIPE.published().method_options == {"slope": 2.0}
    assert RECIPE.scaled(0.5).method_options == {"slope": 2.0}
    assert RECIPE.replace(epochs=4).freeze_epoch == 2
    assert Recipe.from_dict(RECIPE.to_dict()) == RECIPE


def test_a_users_code_is_a_condition(plugin: ModuleType, tmp_path: Path) -> None:
    """Its module, those beside it that it imports, and of bnew what it imports; not what it does not."""
    used = set(used_modules(RECIPE))
    assert {"own", "own_parts", "bnew.methods.ste", "bnew.methods.latent"} <= used
    assert {"bnew.models.birealnet", "bnew.convert.binarize"} <= used
    assert not used & {"bnew.methods.bnew", "torch", "pathlib", "bnew.models.reactnet"}
    before = conditions(RECIPE, MACHINE)
    code = tmp_path / "code"
    (code / "own.py").write_text("# A comment.\n" + PLUGIN)
    assert conditions(RECIPE, MACHINE) == before
    for file, text in (("own.py", PLUGIN.replace("[1::2]", "[::2]")), ("own_parts.py", "WIDTH = 9\n")):
        old = (code / file).read_text()
        (code / file).write_text(text)
        after = conditions(RECIPE, MACHINE)
        assert {name for name in after if before[name] != after[name]} == {file.removesuffix(".py")}
        (code / file).write_text(old)
    assert "own" not in conditions(Recipe(data="digits", model="birealnet8", method="ste"), MACHINE)


def test_a_run_of_a_users_own_is_not_resumed_by_other_code(plugin: ModuleType, tmp_path: Path) -> None:
    run = train(RECIPE, tmp_path / "run", MACHINE)
    (run.path / "summary.json").unlink()
    run = Run(run.path)
    run.check(RECIPE, conditions(RECIPE, MACHINE))
    (tmp_path / "code" / "own.py").write_text(PLUGIN.replace("// 2", "// 2 + 0"))
    with pytest.raises(
        BnewError, match=r"holds a run under other conditions .*own is '.*' there and '.*' here"
    ):
        run.check(RECIPE, conditions(RECIPE, MACHINE))


def test_what_stands_in_no_file_is_never_the_same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook."""
    cell = ModuleType("cell")
    monkeypatch.setitem(sys.modules, "cell", cell)
    exec("from bnew.methods import STE\nclass Mine(STE): pass", vars(cell))
    register_method("mine")(vars(cell)["Mine"])
    recipe = Recipe(data="digits", model="birealnet8", method="mine")
    first, second = conditions(recipe, MACHINE), conditions(recipe, MACHINE)
    assert first["cell"] != second["cell"]
    assert first["bnew.methods.ste"] == second["bnew.methods.ste"]


def test_a_script_of_ones_own_is_the_command_line(plugin: ModuleType, tmp_path: Path) -> None:
    words = "--data odd --model tiny --method soft --epochs 1 --device cpu --quiet --out".split()  # noqa: SIM905
    script = [sys.executable, str(tmp_path / "code" / "own.py"), "train"]
    done = subprocess.run(
        [*script, *words, str(tmp_path / "run")], capture_output=True, text=True, check=True
    )
    assert "test accuracy" in done.stdout
    run = Run(tmp_path / "run")
    assert run.recipe.method == "soft"
    # The same conditions as where the module is imported.
    assert run.environment["conditions"] == conditions(run.recipe, MACHINE)


def test_help_lists_a_users_own(plugin: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "proxquant, proxparq, soft." in shown
    assert "wideresnet22, tiny_wide, tiny; timm:NAME" in shown
    assert re.search(r"imagenet, odd[.;]", shown)


def test_the_same_class_may_come_again(plugin: ModuleType) -> None:
    importlib.reload(plugin)
    assert METHODS["soft"].load() is plugin.Soft


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (
            lambda: register_method("bnew")(Own),
            "method 'bnew' is registered already, by bnew.methods.bnew:BNEW",
        ),
        (lambda: register_model("resnet18")(net), "model 'resnet18' is registered already, by bnew.models"),
        (lambda: register_dataset("folder")(images), "data set 'folder' is registered already: choose"),
        (lambda: register_method("a/b")(Own), "the name of a method is 'a/b', but must be letters, digits"),
        (lambda: register_method("own", phase=3)(Own), "the phase of method own is 3, but must be 1 or 2"),
        (lambda: register_method("own", freeze=1.5)(Own), "freeze of method own is 1.5"),
        (lambda: register_method("own", color="red")(Own), "the color of method own is 'red'"),
        (lambda: register_method("own", published={"x": 1})(Own), "unknown option of method own 'x'"),
        (lambda: register_method("own")(net), "method own is a function, but must be a subclass"),  # type: ignore[type-var]
        (lambda: register_method("own")(int), "method own is the class int, but must be a subclass"),  # type: ignore[type-var]
        (lambda: register_method("own")(Binarizer), "method own is the class Binarizer, but"),
        (lambda: register_model("own")(lambda: nn.Identity()), "model own takes no num_classes"),
        (lambda: register_model("own", width=3)(net), "model own takes no width"),
        (
            lambda: register_model("own")(lambda num_classes, in_channels=3: nn.Identity()),
            "option num_classes of model own has no default",
        ),
        (lambda: register_dataset("own", mode="CMYK")(images), "mode of data set own is 'CMYK'"),
        (lambda: register_dataset("own", mean=(0.5,))(images), "mean and std of data set own"),
    ],
)
def test_what_cannot_be_registered(register: Any, message: str) -> None:
    before = {**METHODS, **MODELS, **DATASETS}
    with pytest.raises(BnewError, match=message):
        register()
    assert before == {**METHODS, **MODELS, **DATASETS}


class Own(Binarizer):
    pass


def net(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    return nn.Identity()


def images(data_dir: Path, download: bool) -> Parts:
    return Parts(("a", "b"), {"train": Split(torch.zeros(20, 1, 8, 8).byte(), torch.arange(20) % 2)})


def test_images_of_other_channels_than_the_mode(tmp_path: Path) -> None:
    register_dataset("own")(images)
    with pytest.raises(BnewError, match="the images of own have 1 channels, but its mode is RGB"):
        sources.load("own", tmp_path)
    register_dataset("own", mode="L")(images)
    assert len(sources.load_in_memory("own", tmp_path).test) == 4


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"test": Split(torch.zeros(2, 1, 8, 8).byte(), torch.zeros(2).long())},
            "has the splits test, but needs",
        ),
        (
            {"train": Split(torch.zeros(2, 1, 8, 8), torch.zeros(2).long())},
            "the images of train are torch.float32",
        ),
        (
            {"train": Split(torch.zeros(2, 1, 8, 8).byte(), torch.zeros(3).long())},
            r"labels of train are .* \(3,\)",
        ),
        (
            {"train": Split(torch.zeros(2, 1, 8, 8).byte(), torch.full((2,), 2))},
            "a label of train is not the number",
        ),
    ],
)
def test_impossible_parts(splits: dict[str, Split], message: str) -> None:
    with pytest.raises(BnewError, match=message):
        Parts(("a", "b"), splits)


def test_a_function_that_cannot_fetch_says_why(tmp_path: Path) -> None:
    def own(data_dir: Path, download: bool) -> Parts:
        raise BnewError("ask the author for the images")

    register_dataset("own")(own)
    with pytest.raises(BnewError, match=r"^ask the author for the images$"):
        sources.load("own", tmp_path)

    def other(data_dir: Path, download: bool) -> Parts:
        raise FileNotFoundError("no archive")

    register_dataset("other")(other)
    with pytest.raises(BnewError, match=r"other is not whole in .*: put the images there as other/train/"):
        sources.load("other", tmp_path)
