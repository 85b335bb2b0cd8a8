"""Tables fit the terminal, and lose no number in it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import torch
import torchvision
from rich.console import Console, RenderableType

import bnew
from bnew.convert.summary import Summary, summary
from bnew.deploy.agreement import ResultCheck
from bnew.deploy.inference import Timing, Timings
from bnew.deploy.verify import LayerCheck, Verification
from bnew.display import WIDTH, short, show
from bnew.packing.file import PackedFile


def text_of(shown: RenderableType, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RenderableType]:
    """Every kind of table, of a network with large numbers and long names."""
    network = torchvision.models.resnet18(num_classes=1000)
    plan = bnew.plan(network)
    model = bnew.binarize(network)
    for weight in bnew.binary_parameters(model):
        weight.data = torch.where(weight.data < 0, -1.0, 1.0)
    path = tmp_path_factory.mktemp("packed") / "model.bnew"
    bnew.pack(model.eval(), torch.zeros(1, 3, 224, 224), path)
    layers = tuple(LayerCheck(f"layer{i}.1.downsample.0", 10**7, 0, 10**7, 12_345) for i in range(3))
    results = (
        ResultCheck("logits", 1, 1e-7, 1e-6, 1e-6),
        ResultCheck("backbone.features.0", None, 1.2e-7, 1e-6, None),
    )
    timings = (
        Timing("bnew-engine, avx512_vpopcntdq", 64, 64, 0.123456),
        Timing("PyTorch", 64, 1, 12.3456),
    )
    return {
        "plan": plan,
        "summary": summary(model, 224),
        "info": PackedFile.read(path),
        "verify": Verification(layers, 16, 16, 50_000, (40_000, 40_001), results, ()),
        "bench": Timings(timings),
    }


@pytest.mark.parametrize("width", [60, 80, WIDTH, 200])
@pytest.mark.parametrize("name", ["plan", "summary", "info", "verify", "bench"])
def test_tables_fit_and_cut_nothing(tables: dict[str, RenderableType], name: str, width: int) -> None:
    text = text_of(tables[name], width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text.replace("…, ", "")
    for number in re.findall(r"\d{1,3}(?:,\d{3})+", text_of(tables[name], 1000)):
        assert width < WIDTH or number in text


def test_a_narrow_summary_has_short_numbers(tables: dict[str, RenderableType]) -> None:
    whole = tables["summary"]
    assert isinstance(whole, Summary)
    *_, last = text_of(whole, 80).splitlines()
    assert last.split()[1:] == [short(n) for n in (
        whole.total.binary_parameters, whole.total.real_parameters, whole.total.float_bytes,
        whole.total.packed_bytes, whole.total.binary_macs, whole.total.real_macs,
    )]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9999, "9,999"), (10_000, "10.0k"), (99_949, "99.9k"), (99_951, "100k"), (999_499, "999k"),
     (999_500, "1.00M"), (1_676_279_808, "1.68G"), (10**15, "1.00P")],
)  # fmt: skip
def test_short_numbers(number: int, text: str) -> None:
    assert short(number) == text


def test_a_file_gets_the_full_width(
    tables: dict[str, RenderableType], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    show(tables["summary"])
    out = capsys.readouterr().out
    assert "1,676,279,808" in out
    assert "\x1b" not in out
    monkeypatch.setenv("COLUMNS", "80")
    show(tables["summary"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_printed_and_shown_are_the_same(tables: dict[str, RenderableType], tmp_path: Path) -> None:
    printed = [line.rstrip() for line in text_of(tables["summary"], WIDTH).rstrip().splitlines()]
    assert str(tables["summary"]).splitlines() == printed


@pytest.mark.parametrize("name", ["plan", "summary"])
def test_print_follows_the_terminal(
    tables: dict[str, RenderableType], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max(map(len, str(tables[name]).splitlines())) > 80
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, str(tables[name]).splitlines())) <= 80


def test_a_model_that_is_one_layer_has_a_name() -> None:
    model = torch.nn.Linear(3, 2)
    assert re.search(r"^the model +Linear ", str(summary(model, (3,))), re.MULTILINE)
    assert "the model" in str(bnew.plan(model))
