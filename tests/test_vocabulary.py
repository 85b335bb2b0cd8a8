"""The vocabulary of a packed file is one, wherever it is written down."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import packed_reference
import pytest

from bnew import BnewError
from bnew.packing.file import PackedFile
from bnew.packing.placing import PLACING
from bnew.packing.rows import Argument, Takes
from bnew.packing.vocabulary import ATEN, OPERATORS, ROWS, STEPS

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text("utf-8")
KINDS = {"T": Argument.NUMBERS, "V": Argument.VALUE, "[lo, hi]": Argument.SETTING, "{}": Argument.SETTING}


def rows_of(title: str) -> list[list[str]]:
    """The cells of the table below a heading of docs/format.md."""
    table = PAGE.split(f"### {title}\n")[1].split("\n\n")
    (lines,) = [part for part in table if part.lstrip().startswith("|")][:1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.strip().splitlines()[2:]]


def test_the_page_names_the_same_operators() -> None:
    found = {}
    for name, fields, _ in rows_of("Operators"):
        found[name.strip("`")] = set(re.findall(r"`(\w+)`", fields))
    found["binary_conv"] |= found["conv"]  # "the same"
    for name, row in OPERATORS.items():
        expected = {*row.fields, *row.optional, *row.tensors} | (
            {"inputs"} if row.takes is Takes.LIST else set()
        )
        assert found.pop(name) == expected, name
    assert not found


def test_the_page_names_the_same_steps() -> None:
    found = {}
    for step, _ in rows_of("Steps"):
        match = re.fullmatch(r'`\{"(\w+)": (.+)\}`', step)
        assert match, step
        found[match[1]] = KINDS[match[2]]
    assert found == {name: step.argument for name, step in STEPS.items()}


def test_the_reference_knows_the_same() -> None:
    assert {name: {*op.fields, *op.tensors} for name, op in OPERATORS.items()} == packed_reference.FIELDS
    assert {
        name: {*op.optional} for name, op in OPERATORS.items() if op.optional
    } == packed_reference.OPTIONAL
    found = {name: KINDS[kind] for name, kind in packed_reference.STEPS.items()}
    assert found == {name: step.argument for name, step in STEPS.items()}


def test_the_engine_knows_the_same(tmp_path: Path) -> None:
    """It does not call one of these words unknown, whatever else is wrong with the node."""
    if find_spec("bnew_engine") is None:
        pytest.skip("bnew-engine is not installed")
    engine: Any = import_module("bnew_engine")

    def is_known(node: dict[str, Any]) -> bool:
        path = tmp_path / "model.bnew"
        path.write_bytes(file_with(node))
        try:
            engine.load(path)
        except engine.EngineError as error:
            return "which is not known" not in str(error)
        return True

    unknown = [op for op in [*OPERATORS, "blur"] if not is_known({"op": op})]
    unknown += [step for step in [*STEPS, "tan"] if not is_known({"op": "identity", "then": [{step: {}}]})]
    assert unknown == ["blur", "tan"]


def test_an_operator_of_aten_has_one_place() -> None:
    names = Counter(list(PLACING))
    for row in ROWS.values():
        names.update(row.aten.keys())
    assert set(names) == set(ATEN)
    assert [name for name, count in names.items() if count > 1] == []
    assert not set(OPERATORS) & set(STEPS)


def file_with(node: dict[str, Any]) -> bytes:
    """A file with one node."""
    node = {"name": "n", "input": "x", "output": "y", **node}
    graph = {"input": {"name": "x", "shape": [1, 1, 1]}, "nodes": [node], "output": "y"}
    header = {"__metadata__": {"format": "bnew", "version": "1", "graph": json.dumps(graph)}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"op": "blur"}, "has the operator 'blur', which this version of bnew does not know: update bnew"),
        ({"op": "identity", "then": [{"tan": {}}]}, "has the step 'tan', which"),
        ({"op": "softmax", "axis": 1}, "has the field 'axis' in an operator 'softmax', which"),
        ({"op": "layer_norm"}, "is damaged .*'n' has no field 'eps'"),
    ],
)
def test_an_unknown_word_is_refused(node: dict[str, Any], message: str, tmp_path: Path) -> None:
    """As by a newer bnew, and not shown as if it were understood."""
    path = tmp_path / "model.bnew"
    path.write_bytes(file_with(node))
    with pytest.raises(BnewError, match=message):
        PackedFile.read(path)
