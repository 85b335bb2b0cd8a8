"""NEON, on any machine: cross-compiled with Debian's compiler and run by qemu, where both are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bnew_engine import load
from filelock import FileLock
from tiny import everything

ENGINE = Path(__file__).parents[1]
COMPILER, QEMU, SYSTEM = "aarch64-linux-gnu-g++", "qemu-aarch64", Path("/usr/aarch64-linux-gnu")
CMAKE = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))

missing = [tool for tool in (COMPILER, QEMU) if not shutil.which(tool)] + ["cmake"] * (CMAKE is None)
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
    pytest.mark.skipif("ASAN_OPTIONS" in os.environ, reason="under a sanitizer"),
]


@pytest.fixture(scope="module")
def build(pytestconfig: pytest.Config) -> Path:
    """The programs for ARM; kept from one run of the tests to the next, and brought up to date."""
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("engine-aarch64")
    options = ["-DBNEW_PYTHON=OFF", "-DBNEW_TESTS=ON", f"-DCMAKE_CXX_COMPILER={COMPILER}"]
    options += ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    with FileLock(folder / "lock"):  # other processes of the tests may want it too
        cmake("-S", ENGINE, "-B", folder, *options)
        cmake("--build", folder, "--parallel", 2)
    return folder


def cmake(*arguments: object) -> None:
    done = subprocess.run([str(CMAKE), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [QEMU, "-L", SYSTEM, *map(str, command)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_neon_kernels_are_the_scalar_ones(build: Path) -> None:
    for seed in (1, 2):
        assert run(build / "kernels_check", 50, seed).startswith("neon equals scalar: 200 of binary_conv")


def test_networks_give_the_same_bits_on_arm(build: Path, tmp_path: Path) -> None:
    path = everything().write(tmp_path / "m.bnew")
    images = np.random.default_rng(0).standard_normal((2, 3, 33, 35)).astype(np.float32)
    images.tofile(tmp_path / "x.f32")
    for isa in ("neon", "scalar"):
        printed = run(build / "bnew-run", path, tmp_path / "x.f32", tmp_path / isa, BNEW_ENGINE_ISA=isa)
        assert printed.endswith(f"ms an image, {isa}\n")
        found = np.fromfile(tmp_path / isa, np.float32).reshape(2, 10)
        np.testing.assert_array_equal(found, load(path)(images))


def test_programs_are_built_against_what_cmake_installs(build: Path, tmp_path: Path) -> None:
    """The examples in C++ and in C, for ARM."""
    prefix, examples = tmp_path / "prefix", tmp_path / "examples"
    cmake("--install", build, "--prefix", prefix)
    path = everything().write(tmp_path / "m.bnew")
    assert run(prefix / "bin" / "bnew-run", path).startswith("0: class ")
    compilers = (f"-DCMAKE_CXX_COMPILER={COMPILER}", f"-DCMAKE_C_COMPILER={COMPILER.replace('g++', 'gcc')}")
    cmake("-S", ENGINE / "examples", "-B", examples, *compilers, f"-DCMAKE_PREFIX_PATH={prefix}")
    cmake("--build", examples)
    image = np.random.default_rng(3).integers(0, 256, (1, 33, 35, 3)).astype(np.uint8)
    (tmp_path / "image").write_bytes(image.tobytes())
    (expected,) = load(path)(image)
    for program in ("classify", "classify_c"):
        name, number = run(examples / program, path, tmp_path / "image").rsplit(maxsplit=1)
        assert (name, np.float32(number)) == (f"class {expected.argmax()}", expected.max())
