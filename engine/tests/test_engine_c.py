"""The library in C, called as another language would: by its symbols alone."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL, POINTER, Structure, byref, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import bnew_engine
import numpy as np
import pytest
from bnew_engine import isas, load
from tiny import Array, Network, everything, quarters, several

PACKAGE = Path(bnew_engine.__file__).parent
SANITIZED = pytest.mark.skipif("ASAN_OPTIONS" in os.environ, reason="under a sanitizer")


class Options(Structure):
    """bnew_options."""

    _fields_ = [
        ("threads", c_int),
        ("instruction_set", c_char_p),
        ("max_macs", c_int64),
        ("max_bytes", c_int64),
        ("height", c_int),
        ("width", c_int),
    ]


class Batch(Structure):
    """bnew_batch."""

    _fields_ = [("floats", c_void_p), ("bytes", c_void_p)]


@pytest.fixture(scope="module")
def c() -> CDLL:
    """The library, with what bnew.h declares."""
    library = CDLL(str(next((PACKAGE / "lib").glob("libbnew_c.*"))))
    declared: dict[str, tuple[Any, list[Any]]] = {
        "error": (c_char_p, []),
        "load": (c_void_p, [c_char_p, POINTER(Options)]),
        "load_bytes": (c_void_p, [c_char_p, c_size_t, POINTER(Options)]),
        "free": (None, [c_void_p]),
        "input_shape": (None, [c_void_p, POINTER(c_int)]),
        "input_size": (c_size_t, [c_void_p]),
        "output_size": (c_size_t, [c_void_p]),
        "run": (c_int, [c_void_p, c_void_p, c_size_t, c_void_p]),
        "run_bytes": (c_int, [c_void_p, c_void_p, c_size_t, c_void_p]),
        "input_count": (c_size_t, [c_void_p]),
        "input_name": (c_char_p, [c_void_p, c_size_t]),
        "input_dimensions": (POINTER(c_int), [c_void_p, c_size_t]),
        "input_bytes": (c_int, [c_void_p, c_size_t]),
        "run_inputs": (c_int, [c_void_p, POINTER(Batch), c_size_t, c_void_p]),
        "class_count": (c_size_t, [c_void_p]),
        "class_name": (c_char_p, [c_void_p, c_size_t]),
        "result_count": (c_size_t, [c_void_p]),
        "result_name": (c_char_p, [c_void_p, c_size_t]),
        "result_dimensions": (c_size_t, [c_void_p, c_size_t]),
        "result_shape": (POINTER(c_int), [c_void_p, c_size_t]),
        "result_integers": (c_int, [c_void_p, c_size_t]),
        "instruction_set": (c_char_p, [c_void_p]),
    }
    for name, (result, arguments) in declared.items():
        function = getattr(library, f"bnew_{name}")
        function.restype, function.argtypes = result, arguments
    return library


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return everything().write(tmp_path_factory.mktemp("model") / "m.bnew")


@pytest.fixture(scope="module")
def images() -> Array:
    return np.random.default_rng(0).standard_normal((5, 3, 33, 35)).astype(np.float32)


def run(c: CDLL, model: int, images: Array) -> Array:
    """bnew_run or bnew_run_bytes, by the images' type."""
    results = np.full((len(images), c.bnew_output_size(model)), np.nan, np.float32)
    function = c.bnew_run if images.dtype == np.float32 else c.bnew_run_bytes
    assert function(model, images.ctypes.data, len(images), results.ctypes.data) == 0, c.bnew_error()
    return results


@pytest.mark.parametrize("isa", isas())
def test_c_gives_the_bits_of_python(c: CDLL, path: Path, images: Array, isa: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 33, 35, 3)).astype(np.uint8)
    content = path.read_bytes()
    for options in (Options(), Options(threads=2), Options(instruction_set=isa.encode())):
        expected = load(path, threads=options.threads or 1, isa=isa if options.instruction_set else None)
        for model in (
            c.bnew_load(os.fsencode(path), byref(options)),
            c.bnew_load_bytes(content, len(content), byref(options)),
        ):
            np.testing.assert_array_equal(run(c, model, images), expected(images))
            np.testing.assert_array_equal(run(c, model, pixels), expected(pixels))
            assert c.bnew_instruction_set(model).decode() == expected.isa
            c.bnew_free(model)


def test_c_tells_what_a_network_takes_and_returns(c: CDLL, path: Path) -> None:
    model = c.bnew_load(os.fsencode(path), None)
    shape = (c_int * 3)()
    c.bnew_input_shape(model, shape)
    assert tuple(shape) == (3, 33, 35)
    assert c.bnew_input_size(model) == 3 * 33 * 35
    assert c.bnew_input_count(model) == 1
    assert c.bnew_input_name(model, 0) == b"input"
    assert c.bnew_input_bytes(model, 0) == 1
    assert c.bnew_output_size(model) == c.bnew_class_count(model) == 10
    assert [c.bnew_class_name(model, i) for i in (0, 9, 10)] == [b"class 0", b"class 9", None]
    assert c.bnew_result_count(model) == c.bnew_result_dimensions(model, 0) == 1
    assert c.bnew_result_shape(model, 0)[0] == 10
    assert c.bnew_result_name(model, 0) == b""
    assert c.bnew_run(model, None, 0, None) == 0
    c.bnew_free(model)
    c.bnew_free(None)


def test_c_several_results(c: CDLL, tmp_path: Path) -> None:
    network = Network((2, 3, 4))
    random = np.random.default_rng(2)
    one = network.conv("input", quarters(random, 5, 2, 1, 1))
    other = network.node("adaptive_avg_pool", "input", size=[1, 1])
    network.graph["outputs"] = [
        {"value": one, "size": [5, 3, 4], "name": "map\x1b"},
        {"value": other, "size": [2], "name": "mean"},
        {"value": network.node("argmax", other), "size": [], "integers": True, "name": "best"},
    ]
    del network.graph["output"]
    path = network.write(tmp_path / "m.bnew")
    model = c.bnew_load(os.fsencode(path), None)
    assert model, c.bnew_error()
    assert c.bnew_result_count(model) == 3
    assert [c.bnew_result_name(model, i) for i in range(4)] == [b"map\\x1b", b"mean", b"best", None]
    assert [c.bnew_result_dimensions(model, i) for i in range(4)] == [3, 1, 0, 0]
    assert [c.bnew_result_shape(model, i)[:n] for i, n in enumerate((3, 1))] == [[5, 3, 4], [2]]
    assert [c.bnew_result_integers(model, i) for i in range(4)] == [0, 0, 1, 0]
    assert not c.bnew_result_shape(model, 3)
    assert c.bnew_class_name(model, 0) is None
    images = quarters(random, 2, 2, 3, 4)
    expected = load(path)(images)
    np.testing.assert_array_equal(
        run(c, model, images), np.concatenate([value.reshape(2, -1) for value in expected.values()], 1)
    )
    c.bnew_free(model)


def test_c_several_inputs(c: CDLL, tmp_path: Path) -> None:
    path = several().write(tmp_path / "m.bnew")
    model = c.bnew_load(os.fsencode(path), None)
    assert model, c.bnew_error()
    assert c.bnew_input_count(model) == 3
    assert [c.bnew_input_name(model, i) for i in range(4)] == [b"left", b"right", b"more", None]
    assert c.bnew_input_dimensions(model, 1)[:3] == [8, 5, 6]
    assert not c.bnew_input_dimensions(model, 3)
    assert [c.bnew_input_bytes(model, i) for i in range(4)] == [1, 0, 0, 0]
    random = np.random.default_rng(5)
    pixels = random.integers(0, 256, (2, 5, 6, 3)).astype(np.uint8)
    left, right, more = (quarters(random, 2, *size) for size in ((3, 5, 6), (8, 5, 6), (2,)))
    results = np.empty((2, c.bnew_output_size(model)), np.float32)
    for first in (left, pixels):
        is_floats = first.dtype == np.float32
        batches = (Batch * 3)(
            Batch(first.ctypes.data, None) if is_floats else Batch(None, first.ctypes.data),
            Batch(right.ctypes.data, None),
            Batch(more.ctypes.data, None),
        )
        assert c.bnew_run_inputs(model, batches, 2, results.ctypes.data) == 0, c.bnew_error()
        expected = [each.reshape(2, -1) for each in load(path)(first, right, more)]
        np.testing.assert_array_equal(results, np.concatenate(expected, 1))
    x, y = left.ctypes.data, results.ctypes.data
    assert c.bnew_run_inputs(model, None, 0, None) == 1
    assert c.bnew_error() == b"bnew_run_inputs: an argument is NULL, but must not be"
    for wrong in (Batch(None, None), Batch(x, x)):
        batches[1] = wrong
        assert c.bnew_run_inputs(model, batches, 1, y) == 1
        assert c.bnew_error() == b"bnew_run_inputs: batch 1 must have floats or bytes, and not both"
    batches[1] = Batch(None, x)
    assert c.bnew_run_inputs(model, batches, 1, y) == 1
    assert b"how bytes become 'right' (no mean and std)" in c.bnew_error()
    assert c.bnew_run(model, x, 1, y) == 1
    assert c.bnew_error() == b"the network takes 3 inputs, not 1"
    c.bnew_free(model)


def test_c_loads_for_images_of_another_size(c: CDLL, tmp_path: Path) -> None:
    network = Network((2, 3, 4), any_size=True)
    random = np.random.default_rng(4)
    network.conv("input", quarters(random, 5, 2, 1, 1))
    path = network.write(tmp_path / "m.bnew")
    model = c.bnew_load(os.fsencode(path), byref(Options(height=6, width=5)))
    shape = (c_int * 3)()
    c.bnew_input_shape(model, shape)
    assert tuple(shape) == (2, 6, 5)
    images = quarters(random, 2, 2, 6, 5)
    expected = load(path, input_size=(6, 5))(images)
    np.testing.assert_array_equal(run(c, model, images), expected.reshape(2, -1))
    c.bnew_free(model)


def test_c_says_what_is_wrong(c: CDLL, path: Path, images: Array, tmp_path: Path) -> None:
    content = path.read_bytes()
    name = os.fsencode(path)
    wrong: list[tuple[Any, str]] = [
        (lambda: c.bnew_load(b"none.bnew", None), "none.bnew: could not be opened: No such file"),
        (lambda: c.bnew_load(os.fsencode(tmp_path), None), "is not a file"),
        (lambda: c.bnew_load(None, None), "bnew_load: an argument is NULL, but must not be"),
        (lambda: c.bnew_load_bytes(None, 8, None), "bnew_load_bytes: an argument is NULL, but must not be"),
        (lambda: c.bnew_load_bytes(b"", 0, None), "it is not a packed model, or is cut short"),
        (lambda: c.bnew_load_bytes(content, len(content) - 1, None), "data_offsets must be a whole number"),
        (lambda: c.bnew_load(name, byref(Options(threads=-1))), "threads is -1, but must be from 1 to 1024"),
        (lambda: c.bnew_load(name, byref(Options(instruction_set=b"m\x1bmx"))), "'m\\x1bmx'"),
        (lambda: c.bnew_load(name, byref(Options(max_bytes=1))), "give a larger max_bytes"),
        (lambda: c.bnew_load(name, byref(Options(max_macs=1))), "give a larger max_macs"),
        (lambda: c.bnew_load(name, byref(Options(max_macs=-1))), "a limit must be from 0"),
        (lambda: c.bnew_load(name, byref(Options(height=33))), "a height and a width of at least 1"),
        (lambda: c.bnew_load(name, byref(Options(height=34, width=35))), "images of 33 x 35 only"),
    ]
    for call, message in wrong:
        assert call() is None
        text = c.bnew_error().decode()
        assert message in text
        assert "\n" not in text
    model = c.bnew_load(name, None)
    results = np.empty(10, np.float32)
    x, y = images.ctypes.data, results.ctypes.data
    for arguments in ((None, x, 1, y), (model, None, 1, y), (model, x, 1, None)):
        assert c.bnew_run(*arguments) == 1
        assert c.bnew_error() == b"bnew_run: an argument is NULL, but must not be"
        assert c.bnew_run_bytes(*arguments) == 1
        assert c.bnew_error() == b"bnew_run_bytes: an argument is NULL, but must not be"
    infinite = images[:1].copy()
    infinite[0, 1, 2, 3] = np.inf
    assert c.bnew_run(model, infinite.ctypes.data, 1, y) == 1
    assert c.bnew_error() == b"the input has numbers that are not finite"
    c.bnew_free(model)
    network = Network((2, 1, 1))
    network.node("identity", "input")
    model = c.bnew_load(os.fsencode(network.write(tmp_path / "m.bnew")), None)
    assert c.bnew_run_bytes(model, x, 1, y) == 1
    assert b"no mean and std" in c.bnew_error()
    c.bnew_free(model)


def test_c_keeps_an_error_for_each_thread(c: CDLL) -> None:
    assert c.bnew_load(b"first.bnew", None) is None
    with ThreadPoolExecutor(1) as other:
        assert other.submit(c.bnew_error).result() == b""
        assert other.submit(c.bnew_load, b"second.bnew", None).result() is None
        assert other.submit(c.bnew_error).result().startswith(b"second.bnew: ")
    assert c.bnew_error().startswith(b"first.bnew: ")


@SANITIZED
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks a linker of Linux")
def test_c_shows_nothing_of_cpp() -> None:
    """So that a program may have a C++ library, or engine, of another version beside it."""
    command = ["nm", "--dynamic", "--defined-only", str(PACKAGE / "lib" / "libbnew_c.so")]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert symbols
    names = {line.split()[-1] for line in symbols}
    header = (PACKAGE / "include" / "bnew.h").read_text()
    assert all(name.startswith("bnew_") and f"{name}(" in header for name in names), names
