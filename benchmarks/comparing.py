"""Timing contenders in turns, and tables of what came out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long one call takes."""
    started = clock()
    run()
    return clock() - started


def in_turns(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    at_least: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds a call of each contender, one number a round, all in turns.

    A round calls a contender until ``at_least`` seconds have passed and counts its median call, so that a
    short call is not lost in the clock's noise, nor one that was interrupted counted.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(rounds + 1):
        for name, run in contenders.items():
            calls = [seconds(run, clock)]
            while sum(calls) < at_least:
                calls.append(seconds(run, clock))
            if round_number:  # the first one warms up
                times[name].append(statistics.median(calls))
    return times


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column is text, the others numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float], digits: int) -> str:
    """Median and quartiles."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"
