"""Two builds of the engine on the same packed files, in turns: has a change made it slower?

pip install --no-deps --target old ./engine    # in a checkout of the version before
pip install --no-deps --target new ./engine
python benchmarks/versions.py --old old --new new

Each build has a process of its own in every round, as a process keeps the cores and the memory that it got.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

import bnew
from bnew.training.machine import Machine, make_fabric
from bnew.training.provenance import environment
from comparing import table
from engine import binary_model

NETWORKS = {"reactnet_a": (224, 1000), "reactnet18": (224, 1000), "birealnet20": (32, 10)}

# What is measured in a process of its own, which knows one build alone: medians in milliseconds.
MEASURE = """
import json, sys, time
import bnew_engine, numpy as np
from comparing import in_turns
def median(run, clock, seconds):
    return 1e3 * in_turns({"it": run}, 1, seconds, clock)["it"][0]
found = {}
for path in sys.argv[1:]:
    name = path.rpartition("/")[2].removesuffix(".bnew")
    for threads in (1, 2):
        model = bnew_engine.load(path, threads)
        image = np.random.default_rng(0).standard_normal((1, *model.input_shape), np.float32)
        what = f"{name}, {threads} thread{'s' * (threads > 1)}"
        found[what] = median(lambda: model(image), time.perf_counter, 0.6)
    found[f"{name}, load (CPU time)"] = median(lambda: bnew_engine.load(path, 1), time.process_time, 0.3)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Options:
    """Compare two builds of the engine."""

    old: Path
    """Folder that the version before was installed into."""
    new: Path
    """Folder that this version was installed into."""
    rounds: int = 9
    """Rounds; the two builds take turns in being first."""
    out: Path = Path("docs/results/versions.md")
    """The report."""


def measure(build: Path, files: list[Path]) -> dict[str, float]:
    """Milliseconds by what was measured, of the engine in the folder ``build``."""
    command = [sys.executable, "-c", MEASURE, *map(str, files)]
    places = (build.resolve(), Path(__file__).parent.resolve())
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(options: Options) -> None:
    machine = environment(make_fabric(Machine(device="cpu")))
    times: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
    with tempfile.TemporaryDirectory() as temporary:
        files = []
        for name, (size, classes) in NETWORKS.items():
            model, image = binary_model(name, size, classes)
            files.append(Path(temporary) / f"{name}.bnew")
            bnew.pack(model, image, files[-1])
        for number in range(options.rounds):
            for which in ("old", "new") if number % 2 else ("new", "old"):
                times[which].append(measure(getattr(options, which), files))
    rows = []
    for what in times["old"][0]:
        old, new = ([found[what] for found in times[which]] for which in ("old", "new"))
        ratio = statistics.median(b / a for a, b in zip(old, new, strict=True))
        rows.append((what, f"{statistics.median(old):.3f}", f"{statistics.median(new):.3f}", f"{ratio:.3f}"))
    report = f"""# Two versions of the engine

Written by `python benchmarks/versions.py --old OLD --new NEW --rounds {options.rounds}`.

{machine["cpu"]}, {machine["cores"]} cores, {machine["cpu_capability"]}; commit {machine["commit"]}.
One image, milliseconds, medians over rounds in turns; the ratio is that of the same round.

{table(("", "old", "new", "new / old"), rows)}
"""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(report)
    print(report)


if __name__ == "__main__":
    main(tyro.cli(Options))
