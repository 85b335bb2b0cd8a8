"""A model in another process, and a copy of it: the same network, or an error."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bnew_engine import EngineError, Model, isas, load
from tiny import Array, everything


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return everything().write(tmp_path_factory.mktemp("model") / "m.bnew")


@pytest.fixture(scope="module")
def images() -> Array:
    return np.random.default_rng(0).standard_normal((3, 3, 33, 35)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(path: Path, images: Array) -> Array:
    result: Array = load(path)(images)
    return result


def in_a_worker(model: Model, image: Array) -> tuple[Array, int, str]:
    return model(image), model.threads, model.isa


def test_a_spawned_worker_gets_the_same_network(path: Path, images: Array, expected: Array) -> None:
    model = load(path, 2, isas()[-1])
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found, threads, isa = pool.submit(in_a_worker, model, images).result()
    np.testing.assert_array_equal(found, expected)
    assert (threads, isa) == (2, isas()[-1])


def test_copies(
    path: Path, images: Array, expected: Array, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(path.parent)
    for source in (Path(path.name), path.read_bytes()):
        model = load(source)
        monkeypatch.chdir(tmp_path)
        for copied in (pickle.loads(pickle.dumps(model)), copy.copy(model), copy.deepcopy(model)):
            np.testing.assert_array_equal(copied(images), expected)
            assert pickle.dumps(copied) == pickle.dumps(model)  # a copy of the copy


def test_limits_are_copied(path: Path) -> None:
    model = load(path, max_macs=10**9, max_bytes=10**8)
    assert model.__reduce__()[1][1:] == (1, None, 10**9, 10**8, None)


def test_a_file_that_has_changed_is_not_copied(images: Array, expected: Array, tmp_path: Path) -> None:
    path = everything().write(tmp_path / "m.bnew")
    model, kept = load(path), load(path.read_bytes())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    for content in (bytes(data), data[:-8], b""):
        path.write_bytes(content)
        with pytest.raises(
            EngineError, match="has changed since it was loaded, and its model cannot be copied"
        ):
            pickle.dumps(model)
    path.unlink()
    with pytest.raises(EngineError, match="cannot be read again to copy its model"):
        pickle.dumps(model)
    np.testing.assert_array_equal(model(images), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(kept))(images), expected)
