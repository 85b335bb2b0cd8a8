from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # they load torch, which reads the number of threads below
    from c_code import Digits
    from helpers import Cli

    from bnew.results.run import Run

# As many threads everywhere, so that runs can be compared bit for bit. With a test process on each core, more
# would only wait for each other. NumPy, and the processes that tests start, take the number from here.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_finish() -> None:
    """Have the garbage collector skip what all tests share: modules, and thousands of tests.

    ``torch.export`` collects garbage often, and half a second each time otherwise.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """For PyTorch that was loaded before."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are as wide as they are, also where pytest-xdist says how wide its terminal is."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    """A shell that starts a job in the background has it ignore SIGINT, and the tests with it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _no_torchmetrics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Processes that tests start are as in an installation without it.

    Fabric asks for its version, and thereby imports it and SciPy: a third of the start of ``bnew``.
    """
    folder = tmp_path_factory.mktemp("without")
    (folder / "torchmetrics.py").write_text("raise ImportError\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Exit code, output and errors of ``bnew`` with these words."""
    from bnew.cli import main

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, words)))
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A network of the digits, trained for a second."""
    from helpers import MACHINE, RECIPE

    from bnew.training.loop import train

    return train(RECIPE, tmp_path_factory.mktemp("c") / "digits", MACHINE)


@pytest.fixture(scope="session")
def digits(digits_run: Run) -> Digits:
    """Its packed file, all test images as bytes, and the engine's results."""
    from c_code import all_digits

    return all_digits(digits_run)
