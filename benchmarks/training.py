"""How fast bnew trains, and what its methods cost: written to docs/results/training-speed.md.

python benchmarks/training.py

Everything that is compared runs in turns, round by round, each in a process of its own, so that a machine
that grows slower or faster does so for all. The processes are started anew several times, because two cores
of a virtual machine share a cache or do not, as the host places them; that lasts while they are busy.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from torch import Tensor

import plain
from bnew.data.in_memory import MemoryBatches, MemoryDataset, Split
from bnew.experiments.published import CIFAR10
from bnew.layers import binary_parameters
from bnew.methods import BNEW, METHODS
from bnew.models import create_model
from bnew.results.run import Run
from bnew.training.loop import Trainer
from bnew.training.machine import Machine, make_fabric
from bnew.training.optimizers import make_optimizer
from bnew.training.provenance import environment
from bnew.training.run_data import load_data
from comparing import seconds, spread, table
from costs import count_memory, measure_peak_growth, step_seconds

RECIPE = CIFAR10.phase2["bnew"]
TOTAL_STEPS = 352 * RECIPE.epochs  # 45,000 images in batches of 128
REG = 1e-4  # the published λ
LARGE = "reactnet_a"
MIB = 2**20
METHOD_TARGET = 0.03  # a method's share of a training step


@dataclass(frozen=True)
class Options:
    """Compare bnew's training with a plain implementation, and measure what each method costs."""

    data_dir: Path = Path("data")
    """Where cifar10 is looked for; without it, random images of the same size."""
    steps: int = 100
    """Training steps a round."""
    processes: int = 7
    """How many processes each contender has, one after the other."""
    rounds: int = 2
    """Rounds of a process that count; one more comes first, to warm up and compile."""
    threads: int = torch.get_num_threads()
    """Threads of PyTorch; the plain loader has two processes beside them."""
    out: Path = Path("docs/results/training-speed.md")
    """The report."""


# ---------------------------------------------------------------------- the same computation


def check_same_step() -> None:
    """One step from the same weights gives both sides the same logits, gradients and weights.

    In float64, where rounding is too small to turn a sign over.

    Raises:
        AssertionError: they differ.
    """
    torch.manual_seed(0)
    model = create_model(RECIPE.model).double()
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(-1, 1)
    twin = plain.BiRealNet20().double()
    twin.copy_from(model)
    model = model.to(memory_format=torch.channels_last)
    x, y = torch.randn(8, 3, 32, 32).double(), torch.randint(10, (8,))

    optimizer = make_optimizer(RECIPE, model)
    # So short a run that the first step's push takes some weights to ±1.
    method = BNEW(binary_parameters(model), total_steps=10, strength=35, ramp=1, fill=None).attach(optimizer)
    logits = model(x.contiguous(memory_format=torch.channels_last))
    F.cross_entropy(logits, y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    _, twin_logits = plain.Training(twin, RECIPE.lr, method.reg, method.total_steps).step(x, y)

    torch.testing.assert_close(twin_logits, logits, rtol=1e-8, atol=1e-8)
    for own, other in zip(twin.parameters(), model.parameters(), strict=True):
        assert own.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(own.grad, other.grad.view_as(own), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(own, other.view_as(own), rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------- one round of each


def bnew_round(images: Split, machine: Machine, path: Path) -> Callable[[], object]:
    """bnew's own training loop, one epoch over ``images`` a call."""
    training = Trainer(RECIPE, Run(path), machine, make_fabric(machine))
    assert isinstance(training.data, MemoryDataset)
    training.batches = MemoryBatches(images, training.data, RECIPE.batch_size, train=True)
    epochs = itertools.count()
    return lambda: training.train_epoch(next(epochs))


def plain_round(batches: Iterable[tuple[Tensor, Tensor]]) -> Callable[[], object]:
    """The plain loop over ``batches``, one epoch a call."""
    training = plain.Training(plain.BiRealNet20(), RECIPE.lr, REG, TOTAL_STEPS)
    return lambda: training.epoch(batches)


def make_round(name: str, options: Options, folder: Path) -> Callable[[], object]:
    """What one contender does in a round of ``steps`` training steps."""
    data = load_data(RECIPE, Machine(str(folder)))
    assert isinstance(data, MemoryDataset)
    count = options.steps * RECIPE.batch_size
    if count > len(data.train):
        raise SystemExit(f"--steps is at most {len(data.train) // RECIPE.batch_size}")
    images = data.train[torch.arange(count)]

    def bnew(compile: bool) -> Callable[[], object]:
        machine = Machine(str(folder), device="cpu", compile=compile, quiet=True, save_every=0)
        return bnew_round(images, machine, folder / "run")

    makers: dict[str, Callable[[], Callable[[], object]]] = {
        "plain": lambda: plain_round(plain.make_loader(images, data, RECIPE.batch_size)),
        "plain, bnew's loader": lambda: plain_round(
            MemoryBatches(images, data, RECIPE.batch_size, train=True)
        ),
        "bnew, eager": lambda: bnew(compile=False),
        "bnew, compiled": lambda: bnew(compile=True),
    }
    return makers[name]()


# By the names in the report; the first is what the others are compared with.
CONTENDERS = ("plain", "plain, bnew's loader", "bnew, eager", "bnew, compiled")


class Contender:
    """A contender in a process of its own: what one sets there, another does not get."""

    def __init__(self, name: str, options: Options, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, name, options, folder))
        self.process.start()
        theirs.close()  # so that a process that dies is not waited for
        self.pipe.recv()

    def __call__(self) -> float:
        """Run a round; how many seconds it took."""
        self.pipe.send("run")
        took: float = self.pipe.recv()
        return took

    def end(self) -> None:
        self.pipe.send("end")
        self.process.join()


def _serve(pipe: Connection, name: str, options: Options, folder: Path) -> None:
    torch.set_num_threads(options.threads)
    run = make_round(name, options, folder)
    pipe.send("ready")
    while pipe.recv() == "run":
        pipe.send(seconds(run))


def write_random_images(folder: Path, count: int) -> None:
    """A cifar10 folder of random images, ``count`` of them for training after validation has its tenth."""
    pixels = np.random.default_rng(0)
    for part, images in (("train", count * 10 // 9 + 10), ("test", 10)):
        for i in range(images):
            path = folder / "cifar10" / part / str(i % 10) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)


# ---------------------------------------------------------------------- the measurements


@dataclass(frozen=True)
class Timing:
    """Seconds per step, one number per round, and what the warm-up took beyond such steps."""

    steps: list[float]
    warm_up: float

    @property
    def step(self) -> float:
        return statistics.median(self.steps)


def measure_training(options: Options, folder: Path) -> dict[str, Timing]:
    """Time all in turns: the rounds of several processes each, and the first process's warm-up."""
    steps: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    warm_up: dict[str, float] = {}
    # Else what an earlier run compiled would be found, and compiling seem to cost nothing.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for _ in range(options.processes):
            contenders = {name: Contender(name, options, folder) for name in CONTENDERS}
            for name, run in contenders.items():
                took = run()
                warm_up.setdefault(name, took)
            for _ in range(options.rounds):
                for name, run in contenders.items():
                    steps[name].append(run() / options.steps)
            for contender in contenders.values():
                contender.end()
    return {
        name: Timing(times, warm_up[name] - statistics.median(times) * options.steps)
        for name, times in steps.items()
    }


# ---------------------------------------------------------------------- the report


def by_process(timing: Timing, rounds: int) -> str:
    """The median of each process in ms, the fastest first."""
    medians = [statistics.median(timing.steps[i : i + rounds]) for i in range(0, len(timing.steps), rounds)]
    return ", ".join(f"{1e3 * median:.0f}" for median in sorted(medians))


def training_section(options: Options, timings: dict[str, Timing]) -> str:
    first = next(iter(timings.values()))
    rows = [
        (
            name,
            spread([s * 1e3 for s in timing.steps], 1),
            f"{RECIPE.batch_size / timing.step:.0f}",
            spread([a / b for a, b in zip(first.steps, timing.steps, strict=True)], 2),
        )
        for name, timing in timings.items()
    ]
    eager, compiled = timings["bnew, eager"], timings["bnew, compiled"]
    saved = eager.step - compiled.step
    pays = f"pays for itself after {compiled.warm_up / saved:,.0f} steps" if saved > 0 else "does not pay"
    return f"""## A training step

birealnet20, batch {RECIPE.batch_size}, 32×32, BNEW phase 2, the loader's time included. *plain*: eager, NCHW,
sign by masks and `detach`, Adam as it comes, PIL images one by one in a `DataLoader` with two worker
processes, which run beside PyTorch's threads. *bnew*: its own training loop, with fused sign, fused Adam,
images in memory as bytes and augmented batch by batch, channels_last, memory kept in large pages. Each
runs in processes of its own. In float64, both sides compute the same logits, gradients and weights in a
step (checked). Median (quartiles) over rounds in turns, {options.rounds} in each of a contender's \
{options.processes}
processes; the ratio is that of the same round.

{table(("", "ms per step", "images/s", "times as fast as plain"), rows)}

Processes one by one, ms, sorted: {
        "; ".join(
            f"{name}: {by_process(timings[name], options.rounds)}" for name in (CONTENDERS[0], CONTENDERS[-1])
        )
    }.

Compiling takes {compiled.warm_up:.0f} s (nothing cached) and {pays}, compared with bnew, eager.
"""


def methods_section(step: float, repeats: int) -> str:
    def medians(model: str, repeats: int) -> dict[str, float]:
        times = {name: step_seconds(name, model, repeats) for name in METHODS}
        times["any, frozen"] = step_seconds("bnew", model, repeats, frozen=True)
        return {name: statistics.median(seconds) for name, seconds in times.items()}

    small, large = medians(RECIPE.model, 10 * repeats), medians(LARGE, repeats)
    rows = [
        (name, f"{seconds * 1e3:.3f}", f"{seconds / step:.2%}", f"{large[name] * 1e3:.1f}")
        for name, seconds in small.items()
    ]
    over = [name for name, seconds in small.items() if seconds > METHOD_TARGET * step]
    verdict = f"above it: {', '.join(over)}" if over else "all are below it"
    return f"""## What a method adds to a step

The work of a method before and after the optimizer's step, with cold caches; median. The share is of bnew's
compiled step above. Target: less than {METHOD_TARGET:.0%}; {verdict}.

{table(("method", "birealnet20, ms", "share of a step", f"{LARGE}, ms"), rows)}
"""


def memory_section() -> str:
    rows = []
    for model in (RECIPE.model, LARGE):
        for name in METHODS:
            m = count_memory(name, model)
            parts = (m.weights, m.gradients, m.optimizer, m.binarizer, m.total)
            rows.append((model, name, *(f"{part / MIB:.2f}" for part in parts)))
    growth = [
        (name or "none: Adam alone", f"{measure_peak_growth(name, LARGE) / MIB:.0f}")
        for name in (None, *METHODS)
    ]
    return f"""## Memory

MiB of all parameters, counted from the tensors. Gradients are at their largest; Bop, Bop2ndOrder and Diode
free those of the binary weights before the optimizer sees them, so that Adam has no state for them.

{table(("model", "method", "weights", "gradients", "Adam", "method's own", "total"), rows)}

Measured for {LARGE}: the growth, in MiB, of a process's peak resident set, from existing weights and
gradients to two steps of Adam with the method. It includes Adam's state.

{table(("method", "MiB"), growth)}
"""


def heading(options: Options, machine: dict[str, Any], images: str) -> str:
    return f"""# Training speed

Written by `python benchmarks/training.py --steps {options.steps} --processes {options.processes} --rounds \
{options.rounds} --threads {options.threads}`.

{machine["cpu"]}, {machine["cores"]} cores, {machine["threads"]} threads, {machine["cpu_capability"]}; \
torch {machine["torch"]}, Python {machine["python"]}; commit {machine["commit"]}. Images: {images}.
"""


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    check_same_step()
    machine = environment(make_fabric(Machine(device="cpu")))
    with tempfile.TemporaryDirectory() as temporary:
        folder, images = options.data_dir, "CIFAR-10"
        if not (folder / "cifar10" / "train").is_dir():
            folder, images = Path(temporary), "random, of CIFAR-10's size"
            write_random_images(folder, options.steps * RECIPE.batch_size)
        timings = measure_training(options, folder)
    sections = (
        heading(options, machine, images),
        training_section(options, timings),
        methods_section(timings["bnew, compiled"].step, options.processes * options.rounds),
        memory_section(),
    )
    report = "\n".join(sections)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(report)
    print(report)


if __name__ == "__main__":
    main(tyro.cli(Options))
