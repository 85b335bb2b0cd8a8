"""A kind of join or task that a switch forgets must not compile, nor a row of a table that nobody counted."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
FLAGS = ("-Werror=switch", "-Werror=return-type")


def test_the_build_refuses_forgotten_cases() -> None:
    options = re.findall(
        r"target_compile_options\(bnew PRIVATE ([^)]*)\)", (SOURCES / "CMakeLists.txt").read_text()
    )
    assert any(set(FLAGS) <= set(option.split()) for option in options)


def check(folder: Path, file: str) -> str:
    """What the compiler says about a file, which must not compile."""
    command = [str(COMPILER), "-std=c++20", "-fsyntax-only", *FLAGS, file]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode != 0, file
    return done.stderr


def changed(folder: Path, file: str, pattern: str, new: str) -> Path:
    """A copy of the sources, where one place of a file is another."""
    shutil.copytree(SOURCES / "cpp", folder / "cpp")
    path = folder / "cpp" / file
    text, count = re.subn(pattern, new, path.read_text())
    assert count == 1
    path.write_text(text)
    return folder / "cpp"


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("header", "enumeration", "files"),
    [("kernels.h", "Join", ["kernels/scalar.cpp"]), ("schedule.h", "Kind", ["arena.cpp", "executor.cpp"])],
)
def test_a_forgotten_case_does_not_compile(
    header: str, enumeration: str, files: list[str], tmp_path: Path
) -> None:
    folder = changed(tmp_path, header, rf"enum class {enumeration} {{", r"\g<0> forgotten,")
    for file in files:
        assert "forgotten" in check(folder, file)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("table", "array", "file"),
    [
        ("ops/table.cpp", "kOperators", "ops/table.cpp"),
        ("ops/steps.cpp", "kSteps", "ops/steps.cpp"),
        ("kernels/activations.h", "kActivations", "kernels/scalar.cpp"),
    ],
)
def test_a_row_that_nobody_counted_does_not_compile(
    table: str, array: str, file: str, tmp_path: Path
) -> None:
    """The assertion that refuses it names the other places of an operator: the format page and its reader."""
    folder = changed(tmp_path, table, rf"{array}\[\] = {{", r"\g<0> {},")
    assert "a row more or less: bring docs/format.md" in check(folder, file)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize(("header", "kind"), [("plan.h", "Stage"), ("plan.h", "Prepared")])
def test_what_points_into_itself_cannot_be_copied(header: str, kind: str, tmp_path: Path) -> None:
    shutil.copytree(SOURCES / "cpp", tmp_path / "cpp")
    (tmp_path / "cpp" / "copy.cpp").write_text(
        f'#include "{header}"\nbnew::{kind} copy(const bnew::{kind}& of) {{ return of; }}\n'
    )
    assert "deleted" in check(tmp_path / "cpp", "copy.cpp")
