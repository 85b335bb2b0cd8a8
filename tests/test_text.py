"""Names of others in what a person reads: no character that cannot be seen gets through."""

from __future__ import annotations

import json
import logging
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import resealed
from test_report import make_run
from torch import nn

import bnew
from bnew.cli import main
from bnew.convert.planned import Plan, PlannedLayer
from bnew.convert.summary import summary
from bnew.errors import BnewError, NumericalError
from bnew.packing.file import PackedFile
from bnew.results.report import write_report
from bnew.text import CONTROLS, counted, printable

HOSTILE = "\x1b[31m\nred\u202e<script>alert(1)</script>|\x9b\u2028[bold]"
SHOWN = r"\x1b[31m\nred\u202e<script>alert(1)</script>|\x9b\u2028[bold]"
UNSEEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


def test_printable() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable(SHOWN) == SHOWN
    assert printable("\r\t\x00\x7f\u200f\udcff\ufeff") == r"\r\t\x00\x7f\u200f\udcff\ufeff"
    plain = "Katze, été, 猫, \U0001f408, a b, 10\u202fpm, C:\\new, \u05d7\u05ea\u05d5\u05dc"
    assert printable(plain) == plain
    assert printable(Path("a\n")) == r"a\n"


def test_engine_and_package_escape_the_same() -> None:
    engine = pytest.importorskip("bnew_engine")
    named = [0x1F, 0x7F, 0x85, 0x9F, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), 0xFEFF]
    controls = {code for first, last in CONTROLS for code in range(first, last + 1)}
    assert controls.issuperset([*named, *range(0x20), *range(0x2066, 0x206A)])
    # No part of a file's name.
    codes = [code for code in range(1, 0x11000) if code != ord("/") and not 0xD800 <= code < 0xE000]
    for first in range(0, len(codes), 60):
        some = codes[first : first + 60]
        text = "".join(map(chr, some))
        with pytest.raises(engine.EngineError) as caught:
            engine.load(f"/{text}")
        shown = "".join(
            (f"\\x{c:02x}" if c < 0x80 else f"\\u{c:04x}") if c in controls else chr(c) for c in some
        )
        assert str(caught.value).startswith(f"/{shown}: ")
        assert printable(text) == "".join(
            chr(c).encode("unicode_escape").decode() if c in controls else chr(c) for c in some
        )


def test_joiners_are_part_of_words() -> None:
    for word in (
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0915\u094d\u200d\u0937",
        "\U0001f469\u200d\U0001f52c",
    ):
        assert printable(word) == word


@pytest.mark.parametrize("kind", [BnewError, NumericalError])
def test_errors_are_printable(kind: type[BnewError]) -> None:
    error = kind(f"the class '{HOSTILE}' is unknown")
    assert str(error) == f"{error}" == f"the class '{SHOWN}' is unknown"
    assert str(BnewError(error)) == str(error)


def test_a_command_ends_with_one_plain_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words in (["info", f"{tmp_path}/{HOSTILE}"], [HOSTILE]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (2, "")
        assert err.startswith("bnew: error: ")
        assert SHOWN in err
        assert err.count("\n") == 1
        assert not UNSEEN.search(err)


def test_the_log_is_plain(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])

    def log() -> int:
        logging.getLogger("bnew").info("%s", HOSTILE)
        return 0

    monkeypatch.setattr("bnew.cli.COMMANDS", {"log": log})
    with pytest.raises(SystemExit):
        main(["log"])
    assert capsys.readouterr().err == f"bnew: {SHOWN}\n"


def with_names(path: Path, version: str = "1") -> Path:
    """A packed file whose layer and class are called so."""
    bnew.pack(nn.Sequential(nn.Linear(2, 1)), torch.zeros(1, 2), path, classes=["class"])
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    graph = json.loads(header["__metadata__"]["graph"])
    graph["classes"] = [HOSTILE]
    graph["nodes"][0]["name"] = HOSTILE
    header["__metadata__"] |= {"graph": json.dumps(graph), "version": version}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(resealed(len(text).to_bytes(8, "little") + text + data[8 + length :]))
    return path


@pytest.mark.parametrize("terminal", [{}, {"COLUMNS": "20"}, {"TERM": "dumb", "TTY_COMPATIBLE": "1"}])
def test_info_is_plain(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    terminal: dict[str, str],
) -> None:
    """And in full, unless a terminal is narrow: then cells are wrapped."""
    path = with_names(tmp_path / "model.bnew")
    for name, value in terminal.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(["info", str(path)])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert not UNSEEN.search(out)
    assert out.count(SHOWN) == 2 or terminal


def test_the_version_of_a_file_is_plain(tmp_path: Path) -> None:
    with pytest.raises(BnewError, match=r"is of version \\x1b and this"):
        PackedFile.read(with_names(tmp_path / "model.bnew", version="\x1b"))


def test_tables_of_layers_are_plain() -> None:
    name, shown = "\x1b[2J\u202e[/dim]", r"\x1b[2J\u202e[/dim]"
    model = nn.Sequential()
    model.add_module(name, nn.Linear(2, 2))
    for text in (str(Plan([PlannedLayer(name, name, "", name)])), str(summary(model, (2,)))):
        assert shown in text
        assert not UNSEEN.search(text)


@pytest.fixture
def report(tmp_path: Path) -> dict[str, str]:
    """The files of the report of runs whose folders, model and data set are called so."""
    name = HOSTILE.replace("/", "")
    options: dict[str, Any] = {"model": "birealnet8" + HOSTILE, "data": "digits" + HOSTILE}
    for seed in range(2):
        make_run(tmp_path / f"variant{name}/{name}/seed{seed}", seed=seed, **options)
    make_run(tmp_path / f"{name}/{name}/begun{name}").path.joinpath("summary.json").unlink()
    out = tmp_path / "out"
    write_report([tmp_path], out)
    return {path.name: path.read_text() for path in out.iterdir()}


def test_reports_are_plain(report: dict[str, str]) -> None:
    assert {Path(name).suffix for name in report} == {".md", ".html", ".svg"}
    for name, text in report.items():
        assert not UNSEEN.search(text), name
        if not name.endswith(".md"):
            assert "<script>" not in text


def test_pictures_and_page_are_well_formed(report: dict[str, str]) -> None:
    for name, text in report.items():
        if name.endswith(".svg"):
            ET.fromstring(text)
    assert "alert(1)" in report["report.html"]


def test_a_row_of_the_table_stays_one(report: dict[str, str]) -> None:
    rows = [line for line in report["report.md"].splitlines() if line.startswith("| ")]
    assert len(rows) == 2  # the header, and the group
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 12 for row in rows)
    assert "<script>" not in re.sub(r"\\.", "", report["report.md"])


def test_counted() -> None:
    assert [counted(n, "layer") for n in (0, 1, 2, 1000)] == [
        "0 layers",
        "1 layer",
        "2 layers",
        "1,000 layers",
    ]
    assert [counted(n, "is", "are") for n in (1, 2)] == ["1 is", "2 are"]
