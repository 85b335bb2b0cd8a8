"""Experiments on Ray, on this machine alone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import MACHINE, RECIPE, outcome

from bnew.errors import BnewError
from bnew.experiments import launch
from bnew.experiments.launch_ray import share_of_a_machine
from bnew.experiments.plan import Stage
from bnew.results.run import Run
from bnew.training.loop import train

pytest.importorskip("ray")

HEIR = RECIPE.replace(method="ste", init="../first")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's processes are to find the tests' modules.
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    )


def ray_processes() -> Iterator[int]:
    """The processes of Ray that run a task of ours."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::first"):
                yield int(path.parent.name)
        except OSError:
            continue


def kill_once_saved(run: Run) -> None:
    """First as a cloud does that takes a machine back, then as a failing machine would."""
    for begun, number in ((1, signal.SIGTERM), (2, signal.SIGKILL)):
        deadline = time.monotonic() + 120
        while not (run.last.exists() and len(list(run.path.glob("events.*"))) == begun):
            if time.monotonic() > deadline:
                return  # the test will find it begun too few times
            time.sleep(0.01)
        for process in ray_processes():
            os.kill(process, number)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux to find Ray's processes")
def test_stages_wait_for_each_other_and_survive_a_kill(tmp_path: Path) -> None:
    """One is ended twice and starts anew; one fails, and takes along only the one that needs it."""
    stages = [
        Stage("first", RECIPE.replace(epochs=40)),
        Stage("heir", HEIR, ("first",)),
        Stage("bad", RECIPE.replace(batch_size=647)),
        Stage("heir of bad", HEIR.replace(init="../bad"), ("bad",)),
    ]
    killer = threading.Thread(target=kill_once_saved, args=(Run(tmp_path / "first"),))
    killer.start()
    failed = launch.run(stages, tmp_path, MACHINE, workers=2, launcher="ray")
    killer.join()
    assert failed.keys() == {"bad", "heir of bad"}
    assert "leave a batch of one" in failed["bad"]
    assert failed["heir of bad"] == "bad did not finish"
    # Begun twice more than is usual, and ended as if nothing had been.
    assert len(list((tmp_path / "first").glob("events.*"))) == 3
    unbroken = train(stages[0].recipe, tmp_path / "unbroken", MACHINE)
    assert outcome(Run(tmp_path / "first")) == outcome(unbroken)
    assert Run(tmp_path / "heir").done

    # What is done is not run again, and needs no Ray.
    assert launch.run(stages[:2], tmp_path, MACHINE, launcher="ray", address="nowhere:1") == {}


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "expected"),
    [
        ([{"CPU": 8}, {"CPU": 64}, {}], 4, "auto", (16, False)),
        ([{"CPU": 2}], 4, "auto", (1, False)),
        ([{"CPU": 256}, {"CPU": 96, "GPU": 8}, {"CPU": 64, "GPU": 8}], 4, "auto", (8, True)),
        ([{"CPU": 256}, {"CPU": 96, "GPU": 8}], 2, "cpu", (128, False)),
        ([{"CPU": 16, "GPU": 1}], 1, "cuda", (16, True)),
    ],
)
def test_a_share_that_some_machine_has(
    nodes: list[dict[str, float]], workers: int, device: str, expected: tuple[int, bool]
) -> None:
    assert share_of_a_machine(nodes, workers, device) == expected


def test_no_cluster_there(tmp_path: Path) -> None:
    with pytest.raises(BnewError, match=r"there is no Ray cluster at 127.0.0.1:1 .*ray start --head"):
        launch.run([Stage("a", RECIPE)], tmp_path, MACHINE, launcher="ray", address="127.0.0.1:1")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"launcher": "rya"}, "unknown launcher 'rya': did you mean 'ray'"),
        ({"address": "auto"}, "add --launcher ray"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(BnewError, match=sentence):
        launch.run([Stage("a", RECIPE)], tmp_path, MACHINE, **options)  # type: ignore[arg-type]
