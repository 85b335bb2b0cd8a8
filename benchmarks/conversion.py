"""How well networks that are not bnew's are binarized on a budget: written to docs/results/conversion.md.

python benchmarks/conversion.py --data-dir data --networks resnet20 --budgets 2+4

Each network is trained as floats first, then binarized, trained a few epochs with real weights (phase 1) and
a few more by each method (phase 2). All that is done stays in --work, so the same command goes on where it
was stopped, and adds what other options ask for.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

import bnew
from bnew.cli.arguments import options_of
from bnew.data.batches import Dataset
from bnew.data.sources import load
from bnew.files import write_atomically
from bnew.methods import Binarizer, create_method
from bnew.registry import METHODS
from bnew.training.machine import Machine, make_fabric
from bnew.training.provenance import environment
from comparing import table
from foreign import NETWORKS


@dataclass(frozen=True)
class Options:
    """Compare methods on networks that are not bnew's."""

    data_dir: Path = Path("data")
    """Folder of CIFAR-10."""
    networks: tuple[str, ...] = ("resnet20", "vgg_small", "resnet18")
    """Which of those in foreign.py."""
    methods: tuple[str, ...] = ("bnew", "ste", "bmd", "bop")
    """Methods of phase 2, with options such as bnew:reopen=True."""
    budgets: tuple[str, ...] = ("2+4", "6+12")
    """Epochs of phase 1 and of phase 2."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of both phases; the float network is the same."""
    calibrate: tuple[bool, ...] = (False, True)
    """Whether binarize is given images."""
    float_epochs: int = 30
    """Epochs of the float network."""
    lr: float = 3e-3
    """Adam's learning rate in both phases, which falls linearly to 0."""
    threads: int = 2
    """Threads that compute."""
    bf16: bool = False
    """Whether convolutions compute in bfloat16."""
    compile: bool = True
    """Whether training steps are compiled."""
    work: Path = Path("runs/conversion")
    """Where weights and results are kept."""
    out: Path = Path("docs/results/conversion.md")
    """The report."""


FIELDS = (
    "network",
    "calibrate",
    "budget",
    "seed",
    "method",
    "accuracy",
    "recalibrated",
    "distance",
    "seconds",
)


BATCH = 128


class Bench:
    """The data, the options, and what every step of training shares."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.data: Dataset = load("cifar10", options.data_dir)
        torch.set_num_threads(options.threads)
        # Results of other settings lie elsewhere.
        numbers = "bf16" if options.bf16 else "float32"
        self.work = options.work / f"{options.float_epochs}-epochs-lr-{options.lr:g}-{numbers}"
        self.work.mkdir(parents=True, exist_ok=True)

    def batches(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch of training images, augmented."""
        for x, y in self.data.batches("train", BATCH, train=True, seed=seed).epoch(epoch):
            yield x.contiguous(memory_format=torch.channels_last), y

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.data.batches("train", BATCH, train=True, seed=0))

    def fit(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        epochs: int,
        seed: int,
        share: Callable[[float], float],
    ) -> None:
        """Train; ``share`` of the progress is the factor of the learning rate."""
        done, total = 0, epochs * self.steps
        torch.compiler.reset()
        compiled = torch.compile(model, dynamic=False) if self.options.compile else model
        rates = [group["lr"] for group in optimizer.param_groups]
        model.train()
        for epoch in range(epochs):
            for x, y in self.batches(seed, epoch):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * share(done / total)
                with self.autocast():  # the last, smaller batch is not worth compiling
                    logits = (compiled if len(x) == BATCH else model)(x)
                F.cross_entropy(logits.float(), y).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
                done += 1

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16, if the options ask for it."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16)

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """On the test images, in per cent."""
        model.eval()
        batches = list(self.data.batches("test", train=False))
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
        return 100 * hits / sum(len(y) for _, y in batches)

    # ------------------------------------------------------------------ the steps

    def floats(self, name: str) -> nn.Module:
        """The float network, trained or as it was saved."""
        torch.manual_seed(0)
        model = NETWORKS[name]().to(memory_format=torch.channels_last)
        path = self.work / f"{name}.pt"
        if not path.exists():
            optimizer = torch.optim.SGD(model.parameters(), 0.2, 0.9, weight_decay=5e-4, nesterov=True)
            self.fit(model, optimizer, self.options.float_epochs, 0, lambda s: min(s / 0.15, (1 - s) / 0.85))
            self.note((name, "", "", "", "floats", self.accuracy(model), "", "", ""))
            save(model, path)
        model.load_state_dict(torch.load(path))
        return model

    def binarized(self, name: str, calibrate: bool) -> nn.Module:
        """The float network with binary layers."""
        model = self.floats(name)
        images = [(x, y) for x, y in itertools.islice(self.batches(99, 0), 50)] if calibrate else None
        with contextlib.redirect_stderr(io.StringIO()):
            return bnew.binarize(model, calibrate=images).to(memory_format=torch.channels_last)

    def phase1(self, name: str, calibrate: bool, epochs: int, seed: int) -> nn.Module:
        """After so many epochs with binary activations and real weights."""
        model = self.binarized(name, calibrate)
        kind = "calibrated" if calibrate else "plain"
        path = self.work / f"{name}-{kind}-{epochs}-{seed}.pt"
        if not path.exists():
            torch.manual_seed(seed)
            method = create_method("clip", bnew.binary_parameters(model), epochs * self.steps)
            begun = time.perf_counter()
            self.train(model, method, epochs, seed)
            seconds = time.perf_counter() - begun
            self.note(
                (name, calibrate, epochs, seed, "phase 1", self.accuracy(model), "", "", round(seconds))
            )
            save(model, path)
        model.load_state_dict(torch.load(path))
        return model

    def train(self, model: nn.Module, method: Binarizer, epochs: int, seed: int) -> None:
        """A phase, as the README's loop has it."""
        optimizer = torch.optim.Adam(method.param_groups(model, self.options.lr))
        method.attach(optimizer)
        self.fit(model, optimizer, epochs, seed, lambda s: 1 - s)

    def phase2(self, network: str, calibrate: bool, budget: str, seed: int, kind: str) -> None:
        """One method's run, unless it is done."""
        first, then = map(int, budget.split("+"))
        key = (network, str(calibrate), budget, str(seed), kind)
        if key in self.rows():
            return
        model = self.phase1(network, calibrate, first, seed)
        torch.manual_seed(seed)
        name, *options = kind.split(":")
        method = create_method(name, bnew.binary_parameters(model), then * self.steps, **options_of(options))
        begun = time.perf_counter()
        self.train(model, method, then, seed + 1000)
        seconds = time.perf_counter() - begun
        distance = method.distance()
        method.freeze(warn=False)
        accuracy = self.accuracy(model)
        bnew.recalibrate(model, self.batches(99, 0))
        self.note((*key, accuracy, self.accuracy(model), distance, round(seconds)))

    # ------------------------------------------------------------------ the results

    @property
    def results(self) -> Path:
        """A line per run."""
        return self.work / "results.csv"

    def note(self, row: Sequence[object]) -> None:
        """Add a result, and show it."""
        new = not self.results.exists()
        with self.results.open("a", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([FIELDS, row] if new else [row])
        print(*row, flush=True)

    def rows(self) -> dict[tuple[str, ...], dict[str, str]]:
        """Run → its last result: one that was stopped before its weights were saved ran again."""
        if not self.results.exists():
            return {}
        with self.results.open(newline="") as file:
            return {tuple(row[field] for field in FIELDS[:5]): row for row in csv.DictReader(file)}


def save(model: nn.Module, path: Path) -> None:
    """Write the weights whole or not at all; the result is noted before."""
    write_atomically(path, lambda beside: torch.save(model.state_dict(), beside))


def spread(values: list[float]) -> str:
    """Mean ± standard deviation; of one value, that value."""
    if not values:
        return "–"
    return f"{statistics.fmean(values):.2f}" + (
        f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    )


def tables(rows: list[dict[str, str]]) -> str:
    """A table for each network and budget."""
    parts = []
    floats = {row["network"]: row["accuracy"] for row in rows if row["method"] == "floats"}
    runs = [row for row in rows if row["budget"]]
    for name, budget in dict.fromkeys(
        (row["network"], row["budget"]) for row in runs if "+" in row["budget"]
    ):
        lines = []
        first = budget.partition("+")[0]
        here = [row for row in runs if row["network"] == name and row["budget"] in (first, budget)]
        for kind in dict.fromkeys(row["method"] for row in here):
            method, *options = kind.split(":")
            cells = [", ".join([METHODS[method].label if method in METHODS else method, *options])]
            for field, calibrate in itertools.product(("accuracy", "recalibrated"), ("False", "True")):
                of = [row for row in here if (row["method"], row["calibrate"]) == (kind, calibrate)]
                cells.append(spread([float(row[field]) for row in of if row[field]]))
            lines.append(cells)
        seeds = len({row["seed"] for row in here})
        head = ("", "plain", "calibrated", "plain, recalibrated", "calibrated and recalibrated")
        parts.append(
            f"## {name}, {budget} epochs\n\nAs floats {float(floats[name]):.2f} %. Seeds: {seeds}.\n\n"
            f"{table(head, lines)}"
        )
    return "\n\n".join(parts)


def main(options: Options) -> None:
    bench = Bench(options)
    for name, budget, seed, calibrate, kind in itertools.product(
        options.networks, options.budgets, options.seeds, options.calibrate, options.methods
    ):
        bench.phase2(name, calibrate, budget, seed, kind)
    machine = environment(make_fabric(Machine(device="cpu")))
    numbers = "bfloat16 convolutions" if options.bf16 else "float32"
    report = f"""# Networks that are not bnew's

Written by `python benchmarks/conversion.py --float-epochs {options.float_epochs}\
{" --bf16" if options.bf16 else ""}` with the networks, budgets and seeds below.

{machine["cpu"]}, {machine["cores"]} cores, {machine["cpu_capability"]}, {numbers}; torch {machine["torch"]};
commit {machine["commit"]}.

CIFAR-10, 45,000 training images, test accuracy in %. Each network is trained as floats, binarized, trained
with real weights (phase 1) and then by each method (phase 2); Adam, {options.lr:g} falling linearly to 0 in
each phase. *calibrated*: `binarize` was given 50 batches. *recalibrated*: batch norms were estimated anew at
the binary weights. Mean ± standard deviation over seeds.

{tables(list(bench.rows().values()))}
"""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(report)
    print(report)


if __name__ == "__main__":
    main(tyro.cli(Options))
