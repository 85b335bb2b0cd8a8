"""A kind of operator, step, activation, join or task that a switch forgets must not compile."""

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


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("header", "enumeration", "files"),
    [
        ("graph.h", "Op", {"graph.cpp", "plan.cpp", "layout.cpp", "model.cpp"}),
        ("graph.h", "StepKind", {"graph.cpp", "plan.cpp"}),
        ("kernels.h", "Activation", {"kernels/scalar.cpp"}),
        ("kernels.h", "Join", {"kernels/scalar.cpp"}),
        ("plan.h", "Kind", {"model.cpp"}),
    ],
)
def test_a_forgotten_case_does_not_compile(
    header: str, enumeration: str, files: set[str], tmp_path: Path
) -> None:
    shutil.copytree(SOURCES / "cpp", tmp_path / "cpp")
    path = tmp_path / "cpp" / header
    text, count = re.subn(rf"enum class {enumeration} {{", r"\g<0> forgotten,", path.read_text())
    assert count == 1
    path.write_text(text)
    for file in files:
        command = [str(COMPILER), "-std=c++20", "-fsyntax-only", *FLAGS, file]
        done = subprocess.run(command, cwd=tmp_path / "cpp", capture_output=True, text=True)
        assert done.returncode != 0, file
        assert "forgotten" in done.stderr
