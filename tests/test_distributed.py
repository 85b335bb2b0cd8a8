"""Several processes that train one network: the same curve, and what happens when one is lost."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from helpers import MACHINE, PROCESSES, RECIPE, STEPS, at_step, outcome, send
from lightning_fabric.strategies.launchers import subprocess_script
from test_data import make_folder
from torch import nn

from bnew.cli import main
from bnew.data.sources import load_in_memory
from bnew.errors import BnewError, Interrupted
from bnew.recipe import Recipe
from bnew.results.run import Run
from bnew.training.distributed import TotalBatchNorm, synchronize_batch_norm
from bnew.training.evaluation import evaluate_run
from bnew.training.loop import train
from bnew.training.machine import Machine, make_fabric

# Seconds for a run that hangs, on a busy machine; less than the half hour after which Gloo gives up.
LIMIT = 900


def two_processes(
    folder: Path,
    words: str,
    before: str = "",
    code: int | None = 0,
    launcher: tuple[str, ...] = (),
    compile: bool = False,
) -> subprocess.CompletedProcess[str]:
    """``bnew`` in two processes, each of which runs the Python text ``before`` first.

    They are started by Fabric, or by ``launcher``.
    """
    script = folder / "script.py"
    tests = str(Path(__file__).parent)
    script.write_text(
        f"import sys; sys.path.insert(0, {tests!r})\nfrom bnew.cli import main\n{before}\nmain()\n"
    )
    options = f"--device cpu --compile {compile} --quiet {'' if launcher else '--devices 2'}"
    done = subprocess.run(
        [*(launcher or [sys.executable]), str(script), *words.split(), *options.split()],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert code is None or done.returncode == code, done.stderr
    return done


def two_forks(
    folder: Path, words: str, before: str = "", code: int | None = 0, compile: bool = False
) -> subprocess.CompletedProcess[str]:
    """What :func:`two_processes` does by Fabric, in a moment: where it starts a process, there is a fork."""
    output = [folder / "stdout", folder / "stderr"]
    for path in output:
        path.write_text("")
    training = "" if words.startswith("eval ") else f" --compile {compile} --quiet"
    words += f" --device cpu{training} --devices 2"
    ended, alive = PROCESSES.Pipe(duplex=False)
    first = PROCESSES.Process(target=begin, args=(words, before, output, alive))
    first.start()
    alive.close()
    try:
        assert ended.poll(LIMIT)  # both have
    finally:
        first.kill()  # one that hangs would keep the tests from ending
        first.join()
    out, err = (path.read_text() for path in output)
    assert code is None or first.exitcode == code, err
    assert first.exitcode is not None
    return subprocess.CompletedProcess(words, first.exitcode, out, err)


def begin(words: str, before: str, output: Sequence[Path], alive: Connection) -> None:
    """The first process, which holds ``alive`` open as the other one does."""
    for number, path in enumerate(output, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    mock.patch.object(subprocess_script, "subprocess", SimpleNamespace(Popen=partial(Forked, words))).start()
    exec(before, {})
    try:
        main(words.split())
    finally:
        atexit._run_exitfuncs()


class Forked:
    """What Fabric takes for a ``subprocess.Popen``."""

    def __init__(self, words: str, command: Sequence[str], env: dict[str, str], cwd: str | None) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code: Any = 1
            try:
                os.environ |= env
                main(words.split())
            except SystemExit as ended:
                code = ended.code
            except BaseException:
                traceback.print_exc()
            finally:
                atexit._run_exitfuncs()
                sys.stdout.flush()
                os._exit(code)

    def wait(self) -> int:
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def poll(self) -> None:
        """It is waited for."""

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


Start = Callable[[Path, str, str, int | None], subprocess.CompletedProcess[str]]
TWO = "train --data digits --model birealnet8 --method bnew --epochs 2 --batch-size 256 --out"
# Four steps from look to look; the second process alone does something in the middle of a step.
SECOND = """
from helpers import at_step, fill_with_nan, send
import bnew.training.distributed, bnew.training.loop
bnew.training.distributed.ALIKE = 60  # on a busy machine, one fails seconds after the other
bnew.training.loop.CHECK_EVERY = 4
at_step({step}, lambda training: training.fabric.global_rank and {action}(training)).__enter__()
"""


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that two processes made together."""
    folder = tmp_path_factory.mktemp("two")
    done = two_forks(folder, f"{TWO} {folder / 'run'}")
    assert done.stdout.count("test accuracy") == 1
    return Run(folder / "run")


def test_two_processes_make_one_run(of_two: Run) -> None:
    assert of_two.environment["world_size"] == 2
    assert len(of_two.rows()) == 2
    assert len(list(of_two.path.glob("events.*"))) == 1
    # Both shares of the validation images, together, are what one process sees.
    assert evaluate_run(of_two, MACHINE, "val").accuracy == of_two.summary["val_accuracy"]
    assert of_two.recipe == RECIPE.replace(epochs=2)


def test_two_processes_evaluate_each_image_once(of_two: Run, tmp_path: Path) -> None:
    seen, left = tmp_path / "seen", tmp_path / "left"
    count = f"""
from bnew.results.metrics import Tally
def add(self, outputs, labels, picture, add=Tally.add):
    add(self, outputs, labels, picture)
    print(len(labels), file=open({str(seen)!r}, "a"))
Tally.add = add
import atexit
from helpers import threads
atexit.register(lambda: print(sum("gloo" in name for name in threads()), file=open({str(left)!r}, "a")))
"""
    page = tmp_path / "page.html"
    done = two_forks(tmp_path, f"eval {of_two.path} --split val --page {page}", count)
    one = evaluate_run(of_two, MACHINE, "val", worst=24)
    assert done.stdout == f"{one}\n"
    one.write_page(tmp_path / "one.html")
    assert page.read_text() == (tmp_path / "one.html").read_text()
    assert sorted(seen.read_text().split()) == ["71", "72"]
    assert left.read_text().split() == ["0", "0"]  # no thread is left to end a process by SIGABRT


def test_a_signal_to_one_of_two_processes_stops_both(of_two: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    signalled = SECOND.format(step=STEPS, action="send(15)")
    done = two_forks(tmp_path, f"{TWO} {out}", signalled, code=130)
    assert done.stderr.count("stopped in epoch 2 of 2") == 1
    state = torch.load(out / "last.pt", weights_only=True)
    assert state["step"] == STEPS + 1
    assert state["meter"][3] == 256  # images of both in this epoch's one step

    shutil.copytree(out, tmp_path / "alone")
    two_forks(tmp_path, f"{TWO} {out}")
    resumed, unbroken = outcome(Run(out)), outcome(of_two)
    for row, expected in zip(resumed["metrics"], unbroken["metrics"], strict=True):
        loss = float(expected.pop("train_loss"))  # sums over processes, in another order
        assert float(row.pop("train_loss")) == pytest.approx(loss, rel=1e-12)
    assert resumed == unbroken

    # One process can go on too: every image of the epoch counts once.
    row = train(RECIPE.replace(epochs=2), tmp_path / "alone", MACHINE).rows()[1]
    hits = float(row["train_accuracy"]) * len(load_in_memory("digits").train)
    assert hits == pytest.approx(round(hits), abs=1e-9)


def test_nan_in_one_of_two_processes_ends_both(tmp_path: Path) -> None:
    spoilt = SECOND.format(step=2, action="fill_with_nan")  # the other one has it two steps later
    done = two_forks(tmp_path, f"{TWO} {tmp_path / 'run'}", spoilt, code=2)
    assert done.stderr.count("the loss became NaN or infinite in epoch 1, by step 4") == 1
    assert "Traceback" not in done.stderr


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["fabric", "torchrun"])
def test_an_error_of_both_processes_is_said_once(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    words = f"{TWO.replace('digits', 'digts').replace('bnew', 'ste')} {tmp_path / 'run'}"
    patient = "import bnew.training.distributed; bnew.training.distributed.ALIKE = 60"  # on a busy machine
    done = two_processes(tmp_path, words, patient, code=1 if launcher else 2, launcher=launcher)
    said = [line for line in done.stderr.splitlines() if "bnew: " in line]
    said.sort()  # the first process says that there is no --init, and either of them the error
    assert [line.partition(":")[2].split()[0] for line in said] == ["error:", "no"]
    assert said[0].startswith("bnew: error: unknown data set 'digts': did you mean 'digits'?")
    assert said[0].count("bnew: ") == 1
    assert launcher or len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_of_two_processes_is_heard(tmp_path: Path, rank: int) -> None:
    alone = f"""
import bnew.training.distributed
bnew.training.distributed.ALIKE = bnew.training.distributed.GRACE = 1
from helpers import at_step, crash_with
from bnew.errors import BnewError
fail = crash_with(BnewError("this disk is full"))
at_step(2, lambda training: training.fabric.global_rank == {rank} and fail(training)).__enter__()
"""
    done = two_forks(tmp_path, f"{TWO} {tmp_path / 'run'}", alone, code=None)
    assert done.returncode in (1, 2)
    assert done.stderr.count("bnew: error: this disk is full\n") == 1
    assert "Traceback" not in done.stderr


# One network, however many processes

# In float64, so that rounding turns no sign; shares of the batches are of different sizes.
EXACT = replace(MACHINE, precision="64-true")
EXACT_RECIPE = RECIPE.replace(epochs=2, batch_size=255)
EXACT_TWO = f"{TWO.replace('256', '255 --precision 64-true')}"


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that one process made."""
    return train(EXACT_RECIPE, tmp_path_factory.mktemp("one") / "run", EXACT)


def assert_same_curve(run: Run, expected: Run) -> None:
    for table in ("metrics", "layers", "histogram"):
        for row, wanted in zip(run.rows(table), expected.rows(table), strict=True):
            for name in row.keys() - {"layer", "seconds", "data_wait"}:
                assert float(row[name]) == pytest.approx(float(wanted[name]), rel=1e-6, abs=1e-12), name
    assert run.summary["test_accuracy"] == expected.summary["test_accuracy"]


def test_two_processes_have_the_curve_of_one(of_one: Run, tmp_path: Path) -> None:
    done = two_forks(tmp_path, f"{EXACT_TWO} {tmp_path / 'two'}")
    assert done.stdout.count("test accuracy") == 1
    assert_same_curve(Run(tmp_path / "two"), of_one)


def test_a_run_goes_on_with_another_number_of_processes(of_one: Run, tmp_path: Path) -> None:
    """In the middle of the second epoch, of two processes and of one."""
    stopped = f"from helpers import at_step, send\nat_step({STEPS + 2}, send(15)).__enter__()"
    two_forks(tmp_path, f"{EXACT_TWO} {tmp_path / 'two'}", stopped, code=130)
    with at_step(STEPS + 2, send(signal.SIGTERM)), pytest.raises(Interrupted):
        train(EXACT_RECIPE, tmp_path / "one", EXACT)
    for name in ("one", "two"):
        assert torch.load(tmp_path / name / "last.pt", weights_only=True)["step"] == STEPS + 3
    train(EXACT_RECIPE, tmp_path / "two", EXACT)
    two_forks(tmp_path, f"{EXACT_TWO} {tmp_path / 'one'}")
    for name in ("one", "two"):
        assert_same_curve(Run(tmp_path / name), of_one)


def test_two_processes_compiled(tmp_path: Path) -> None:
    """In bfloat16, with parts of a batch; by a compiler that takes seconds, in place of inductor's minute."""
    quick = "import torch; from functools import partial\n"
    quick += "torch.compile = partial(torch.compile, backend='aot_eager')\n"
    quick += "import atexit; from torch._dynamo.utils import counters\n"
    quick += "atexit.register(lambda: print('compiled %d.' % counters['stats']['unique_graphs'], flush=True))"
    words = f"{TWO} {tmp_path / 'two'} --accumulate 2 --precision bf16-mixed"
    done = two_forks(tmp_path, words, quick, compile=True)
    graphs = [int(number) for number in re.findall(r"compiled (\d+)\.", done.stdout)]
    assert len(graphs) == 2
    assert min(graphs) > 0
    one = train(RECIPE.replace(epochs=2), tmp_path / "one", replace(MACHINE, precision="bf16-mixed"))
    for row, expected in zip(Run(tmp_path / "two").rows(), one.rows(), strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(expected["train_loss"]), rel=0.1)


def test_two_processes_know_each_others_broken_images(tmp_path: Path) -> None:
    """One in the share of each; all are named once, and the curve is that of one process."""
    folder = make_folder(tmp_path / "images", ("train", "val"))
    files = [folder / "train" / "ant" / f"0{i}.png" for i in (10, 12, 14, 16)]
    for file in files:
        file.write_bytes(file.read_bytes()[:40])
    words = f"train --data imagenet --data-dir {folder} --image-size 16 --model birealnet8 --method clip"
    words += f" --epochs 1 --batch-size 16 --precision 64-true --out {tmp_path / 'two'}"
    done = two_forks(tmp_path, words)
    recipe = Recipe(
        data="imagenet", image_size=16, model="birealnet8", method="clip", epochs=1, batch_size=16
    )
    one = train(recipe, tmp_path / "one", replace(EXACT, data_dir=str(folder), decode_threads=1))
    assert Run(tmp_path / "two").summary["broken_images"] == [str(file) for file in files]
    assert done.stderr.count("left out: ") == len(files)
    assert_same_curve(Run(tmp_path / "two"), one)


def test_batch_norm_apart_is_another_curve(tmp_path: Path) -> None:
    """So the test above can fail."""
    words = f"{TWO} {tmp_path / 'two'} --precision 64-true --no-sync-batch-norm"
    two_forks(tmp_path, words)
    one = train(RECIPE.replace(epochs=2), tmp_path / "one", replace(MACHINE, precision="64-true"))
    losses = [float(run.rows()[1]["train_loss"]) for run in (Run(tmp_path / "two"), one)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_synchronizing_keeps_names_and_values() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.BatchNorm2d(4))
    model(torch.randn(5, 3, 6, 6))
    names = list(model.state_dict())
    x = torch.randn(5, 3, 6, 6)
    expected = model.eval()(x)
    synchronized = synchronize_batch_norm(model, torch.device("cpu"))
    assert sum(isinstance(module, TotalBatchNorm) for module in synchronized.modules()) == 2
    assert list(synchronized.state_dict()) == names
    assert torch.equal(synchronized(x), expected)


def test_parts_of_a_batch_have_its_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without batch norm, which sees a part at a time."""
    monkeypatch.setattr(
        "bnew.training.loop.start_model", lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    )
    recipe = RECIPE.replace(method=None, epochs=2)
    whole = train(recipe, tmp_path / "whole", MACHINE).rows()
    parts = train(recipe, tmp_path / "parts", replace(MACHINE, accumulate=3)).rows()
    for row, expected in zip(parts, whole, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-4)


LINEAR = """
import torch, bnew.training.loop
bnew.training.loop.start_model = lambda *_: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


def test_parts_of_a_batch_in_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of 128 and 127 images, in four parts each, have the gradient of the whole batch."""
    words = "train --data digits --epochs 2 --batch-size 255 --lr 0.01 --out"
    two_forks(tmp_path, f"{words} {tmp_path / 'two'} --accumulate 4 --precision 64-true", LINEAR)
    monkeypatch.setattr(
        "bnew.training.loop.start_model", lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    )
    recipe = RECIPE.replace(model="birealnet20", method=None, epochs=2, batch_size=255)
    one = train(recipe, tmp_path / "one", replace(MACHINE, precision="64-true")).rows()
    for row, expected in zip(Run(tmp_path / "two").rows(), one, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-6)


def test_parts_of_a_batch_with_batch_norm(tmp_path: Path) -> None:
    """Also of the last, smaller batch: 20 images, so five parts of two each."""
    words = f"{TWO.replace('256', '255')} {tmp_path / 'two'} --accumulate 16 --epochs 1"
    two_forks(tmp_path, words)
    assert Run(tmp_path / "two").summary["steps"] == STEPS


def test_an_experiment_that_fails_in_two_processes(tmp_path: Path) -> None:
    """The first process says how it ended, and the other one does not take it along."""
    words = f"reproduce digits --methods ste --seeds 0 --epochs-scale 0.07 0.05 --out {tmp_path / 'out'}"
    spoilt = SECOND.format(step=2, action="fill_with_nan")
    done = two_forks(tmp_path, words, spoilt, code=1)
    assert "plain/clip/seed0 did not finish: the loss became NaN" in done.stderr
    assert "plain/ste/seed0 did not finish: plain/clip/seed0 did not finish" in done.stderr


@pytest.mark.parametrize(
    "start", [two_forks, partial(two_processes, launcher=TORCHRUN)], ids=["fabric", "torchrun"]
)
def test_the_second_process_waits_for_the_first_ones_report(tmp_path: Path, start: Start) -> None:
    """Both end with exit code 1, and neither is ended for it while the report is written."""
    words = f"reproduce digits --methods ste --seeds 0 --epochs-scale 0.07 0.05 --out {tmp_path / 'out'}"
    slow = """
import time, bnew.training.distributed, bnew.experiments.launch, bnew.results.report, bnew.results.run
bnew.training.distributed.GRACE = 1
from bnew.training.machine import Machine, make_fabric
bnew.experiments.launch.run = lambda *_: make_fabric(Machine(device="cpu", devices=2)) and {"a": "it failed"}
bnew.results.run.Run.done = True
def write_report(runs, out):
    time.sleep(4)
    return []
bnew.results.report.write_report = write_report
bnew.results.report.compared = lambda runs: "the table"
"""
    done = start(tmp_path, words, slow, None)
    assert done.returncode == 1
    assert done.stdout.count("the table") == 1
    assert "bnew: a did not finish: it failed" in done.stderr
    assert "was lost" not in done.stderr


def test_an_experiment_in_two_processes(tmp_path: Path) -> None:
    """Stages one after the other, each in all processes; done once, and one table."""
    words = f"reproduce digits --methods ste --seeds 0 --epochs-scale 0.07 0.05 --out {tmp_path / 'out'}"
    done = two_processes(tmp_path, words, launcher=TORCHRUN)
    assert done.stdout.count("report.html") == 1
    runs = [Run(tmp_path / "out" / "plain" / name / "seed0") for name in ("clip", "ste")]
    assert all(run.done and run.environment["world_size"] == 2 for run in runs)
    assert "2 of 2 runs are already done" in two_forks(tmp_path, words).stderr


# When one is lost

KILL = """
import os, signal
from helpers import at_step
at_step({step}, lambda t: t.fabric.global_rank == {rank} and os.kill(os.getpid(), 9)).__enter__()
"""


@pytest.mark.parametrize(
    ("rank", "start"),
    [(0, two_forks), (1, two_processes), (1, partial(two_processes, launcher=TORCHRUN))],
    ids=["first", "second", "torchrun"],
)
def test_one_of_two_is_killed(of_two: Run, tmp_path: Path, rank: int, start: Start) -> None:
    """The other one says so soon, and the run goes on as if nothing had been."""
    out = tmp_path / "run"
    kill = KILL.format(step=STEPS + 3, rank=rank)
    done = start(tmp_path, f"{TWO} {out} --save-every 2", kill, None)
    assert done.returncode != 0
    assert done.stderr.count(f"bnew: another of the 2 processes that train {out} was lost (") == 1
    assert torch.load(out / "last.pt", weights_only=True)["step"] == STEPS + 2

    again = two_processes if start is two_processes else two_forks  # Fabric's own start too
    again(tmp_path, f"{TWO} {out}")
    resumed, unbroken = outcome(Run(out)), outcome(of_two)
    for row, expected in zip(resumed["metrics"], unbroken["metrics"], strict=True):
        loss = float(expected.pop("train_loss"))  # sums over processes, in another order
        assert float(row.pop("train_loss")) == pytest.approx(loss, rel=1e-12)
    assert resumed == unbroken


@pytest.mark.parametrize("rank", [0, 1])
def test_one_is_killed_while_the_other_is_busy(tmp_path: Path, rank: int) -> None:
    """The other one would notice at its next sum over both, long after ``LIMIT``."""
    kill = KILL.format(step=2, rank=rank) + (
        "import time, bnew.training.distributed\nbnew.training.distributed.GRACE = 1\n"
        f"at_step(2, lambda t: t.fabric.global_rank == {rank} or time.sleep(3600)).__enter__()\n"
    )
    done = two_forks(tmp_path, f"{TWO} {tmp_path / 'run'}", kill, 1 if rank else -9)
    which = "exit code -9" if rank else "the first one"
    assert done.stderr.count(f"bnew: another process of the run was lost ({which})") == 1


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(BnewError, match=rf"MASTER_PORT is {port}, .* free port"):
            make_fabric(Machine(device="cpu", devices=2))
    monkeypatch.setenv("MASTER_PORT", "many")
    with pytest.raises(BnewError, match="MASTER_PORT is many"):
        make_fabric(Machine(device="cpu", devices=2))
