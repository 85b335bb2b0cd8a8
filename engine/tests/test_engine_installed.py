"""Programs that are built against what is installed: CMake finds the package, wherever it is."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import bnew_engine
import numpy as np
import pytest
from bnew_engine import _engine, load
from tiny import everything

ENGINE, PACKAGE = Path(__file__).parents[1], Path(bnew_engine.__file__).parent
CMAKE = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))

missing = [tool for tool in ("cc", "c++") if not shutil.which(tool)] + ["cmake"] * (CMAKE is None)
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
    pytest.mark.skipif("ASAN_OPTIONS" in os.environ, reason="under a sanitizer"),
]


def build(source: Path, folder: Path, *options: str) -> str:
    """Configure and build a project; what CMake printed."""
    printed = ""
    for command in (["-S", str(source), "-B", str(folder), *options], ["--build", str(folder)]):
        done = subprocess.run([str(CMAKE), *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        printed += done.stdout
    return printed


def said(program: Path, *arguments: object) -> tuple[int, str]:
    """A program's exit status, and what it printed."""
    done = subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_wheel_for_the_stable_abi_holds_it() -> None:
    """A wheel that is tagged abi3 but built for one CPython cannot be imported by the next one."""
    wheel = importlib.metadata.distribution("bnew-engine").read_text("WHEEL")
    assert wheel is not None
    assert ("-abi3-" in wheel) == (".abi3." in str(_engine.__file__))


def test_examples_are_built_against_the_package_wherever_it_is(tmp_path: Path) -> None:
    """Both programs, against a copy of the package elsewhere and by strict compilers."""
    path = everything().write(tmp_path / "m.bnew")
    moved = tmp_path / "with spaces"
    for part in ("include", "lib"):
        shutil.copytree(PACKAGE / part, moved / part)
    flags = [
        f"-DCMAKE_{language}_FLAGS=-std={standard} -pedantic-errors -Wall -Wextra -Werror"
        for language, standard in (("C", "c99"), ("CXX", "c++20"))
    ]
    build(ENGINE / "examples", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={moved}", *flags)
    image = np.random.default_rng(3).integers(0, 256, (33, 35, 3)).astype(np.uint8)
    (tmp_path / "image").write_bytes(image.tobytes())
    (tmp_path / "long").write_bytes(image.tobytes() + b"\0")
    expected = load(path)(image[None])[0]
    for program in (tmp_path / "build" / "classify", tmp_path / "build" / "classify_c"):
        code, text = said(program, path, tmp_path / "image")
        assert code == 0
        name, number = text.rsplit(maxsplit=1)
        assert (name, np.float32(number)) == (f"class {expected.argmax()}", expected.max())
        error = "classify: error: "
        assert said(program) == (2, f"{error}usage: classify MODEL.bnew IMAGE\n")
        missing = f"{error}none.bnew: could not be opened: No such file or directory\n"
        assert said(program, "none.bnew", "image") == (2, missing)
        for other in ("none", "long"):
            wrong = f"{error}the image has another size than the input\n"
            assert said(program, path, tmp_path / other) == (2, wrong)


def test_cmake_dir_is_what_find_package_needs(tmp_path: Path) -> None:
    """Also in a project without C++; versions are the same everywhere."""
    version = importlib.metadata.version("bnew-engine")
    (tmp_path / "CMakeLists.txt").write_text(
        f"""
cmake_minimum_required(VERSION 3.18)
project(only_c LANGUAGES C)
find_package(bnew_engine {version} REQUIRED)
message(STATUS "version=${{bnew_engine_VERSION}}")
find_package(bnew_engine 99 QUIET)
message(STATUS "newer=${{bnew_engine_FOUND}}")
add_executable(classify_c {ENGINE / "examples" / "classify.c"})
target_link_libraries(classify_c PRIVATE bnew::c)
"""
    )
    printed = build(tmp_path, tmp_path / "build", f"-Dbnew_engine_DIR={bnew_engine.cmake_dir()}")
    assert f"version={version}\n" in printed
    assert "newer=0\n" in printed
    assert bnew_engine.__version__ == version
    assert said(tmp_path / "build" / "classify_c")[0] == 2
