"""How long a packed network takes to load, and how much of that is its checksum.

python benchmarks/load.py

ReActNet-A with random weights, in turns, round by round. ``PackedFile.read`` is what `bnew info` does.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import bnew_engine
import torch
import tyro
from bnew_engine import _engine

import bnew
from bnew.packing.file import PackedFile
from bnew.training.machine import Machine, make_fabric
from bnew.training.provenance import environment
from comparing import in_turns, spread, table
from engine import binary_model


@dataclass(frozen=True)
class Options:
    """Measure loading."""

    rounds: int = 21
    """Rounds that count; one more comes first, to warm up."""
    out: Path = Path("docs/results/load.md")
    """The report."""


def main(options: Options) -> None:
    torch.set_num_threads(1)
    machine = environment(make_fabric(Machine(device="cpu")))
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "reactnet_a.bnew"
        bnew.pack(*binary_model("reactnet_a", 224, 1000), path)
        content = path.read_bytes()
        contenders = {
            "load, from a file": lambda: bnew_engine.load(path),
            "load, from its content": lambda: bnew_engine.load(content),
            "of which header and checksum": lambda: _engine.checksum(content),
            "PackedFile.read, with its checksum": lambda: PackedFile.read(path),
        }
        times = in_turns(contenders, options.rounds, clock=time.process_time)
    rows = [(name, spread([1e3 * t for t in found], 2)) for name, found in times.items()]
    report = f"""# Loading a packed network

Written by `python benchmarks/load.py --rounds {options.rounds}`.

{machine["cpu"]}, {machine["cores"]} cores; {bnew_engine.isa()}; commit {machine["commit"]}.

reactnet_a, {len(content):,} bytes. Milliseconds of one core's time, medians (quartiles) over rounds in turns.

{table(("", "ms"), rows)}
"""
    options.out.write_text(report)
    print(report)


if __name__ == "__main__":
    main(tyro.cli(Options))
