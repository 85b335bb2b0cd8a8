"""Methods side by side: the same phase 1, the same number of steps, several seeds.

python examples/comparing_methods.py --methods bnew ste bop
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev

import torch
import tyro
from handwriting import SmallResNet, accuracy, handwriting, train
from rich.console import Console
from rich.table import Table
from torch import nn

import bnew
from bnew.methods import Binarizer, create_method


@dataclass(frozen=True)
class Options:
    """Train one network by several methods."""

    methods: tuple[str, ...] = ("bnew", "ste", "bmd", "bop", "bop2nd", "diode", "proxquant", "proxparq")
    """Names, as `bnew train --help` lists them."""
    epochs: tuple[int, int] = (5, 10)
    """Of phase 1 and of phase 2."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights and of the order of the images."""


def main(options: Options) -> None:
    """Print a row for each method: accuracy over the seeds, and how it ends."""
    batches, held_out = handwriting()
    found: dict[str, list[float]] = {name: [] for name in options.methods}
    distances: dict[str, float] = {}
    for seed in options.seeds:
        torch.manual_seed(seed)
        start = bnew.binarize(SmallResNet(), verbose=False)
        train(start, batches, options.epochs[0], bnew.methods.Clip)
        for name in options.methods:
            torch.manual_seed(seed)  # the same batches for each
            model = copy.deepcopy(start)
            make: Callable[[list[nn.Parameter], int], Binarizer] = partial(create_method, name)
            method = train(model, batches, options.epochs[1], make)
            assert method is not None
            distances[name] = method.distance()
            method.freeze(warn=False)
            found[name].append(100 * accuracy(model, held_out))

    table = Table("method", "test accuracy, %", "distance to ±1 before freezing")
    for name, values in found.items():
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        table.add_row(name, f"{mean(values):.1f}{spread}", f"{distances[name]:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
