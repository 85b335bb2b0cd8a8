"""Where values lie: one arena, planned by how long each of them is needed.

A value that only one stage reads need not be there as a whole: its rows are computed just before that stage
needs them, and kept in a ring of few rows. That is done where it makes the arena smaller. A sum of a
shortcut overwrites the shortcut where nothing reads it later.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bnew.deploy.c99.stages import Stage, Value

Item = tuple[int, int, int]
"""Numbers, first and last time at which they are needed."""


@dataclass(frozen=True)
class Memory:
    """A plan of the arena: numbers and words of four bytes lie apart, each counted by itself."""

    feeds: dict[int, int]
    """Stages that are computed row by row, for the one stage that reads them."""
    rows: dict[Value, int]
    """The rows that are there of each value."""
    offsets: dict[Value, int]
    scratch: tuple[tuple[int, int], ...]
    """Of each stage: where its scratch numbers and its scratch words begin."""
    live: tuple[int, ...]
    """The bytes that are in use while each stage runs."""
    reals: int
    words: int
    number_bytes: int

    @property
    def is_fixed(self) -> bool:
        """Whether numbers are fixed point, else floats."""
        return self.number_bytes == 2

    @property
    def bytes(self) -> int:
        """The size of the arena."""
        return 4 * (-(-self.reals * self.number_bytes // 4) + self.words)


def words_of(bits: int) -> int:
    """Words that hold so many bits."""
    return -(-bits // 32)


def plan(stages: Sequence[Stage], output: Value, number_bytes: int = 4) -> Memory:
    """The smallest arena that was found, by trying for one stage after the other whether a ring helps.

    Numbers are floats of 4 bytes, or 2 bytes long; a pixel's sums of the latter are words.
    """
    graph = _Graph(stages, output, number_bytes)
    best = graph.place(frozenset())
    chosen = frozenset[int]()
    improved = True
    while improved:
        improved = False
        for stage in graph.rings:
            tried = chosen ^ {stage}
            placed = graph.place(tried)
            if _cost(placed) < _cost(best):
                best, chosen, improved = placed, tried, True
    return best


def _cost(memory: Memory) -> tuple[int, int]:
    return memory.bytes, sum(memory.live)


class _Graph:
    """Which stage makes and reads each value."""

    def __init__(self, stages: Sequence[Stage], output: Value, number_bytes: int) -> None:
        self.stages, self.output, self.number_bytes = stages, output, number_bytes
        self.makers = {value: s for s, stage in enumerate(stages) for value in stage.results}
        self.readers: dict[Value, list[int]] = {value: [] for value in self.makers}
        for s, stage in enumerate(stages):
            for value in {stage.source, stage.end.other} - {None}:
                assert value is not None
                self.readers[value].append(s)
        self.rings = {s: ring for s in range(len(stages)) if (ring := self._ring_of(s))}

    def _ring_of(self, s: int) -> tuple[int, int] | None:
        """The one stage that ``s`` can feed row by row, and how many rows must be kept; None if it cannot."""
        values = self.stages[s].results
        readers = {reader for value in values for reader in self.readers[value]}
        if len(readers) != 1 or self.output in values:
            return None
        (into,) = readers
        reader = self.stages[into]
        if reader.kind == "flatten":
            return None
        rows, produced = 1, 0  # a row is written also where no window reads one
        for y in range(reader.height):
            first, last = reader.reads(y) if reader.source in values else (y, y + 1)
            if reader.end.other in values:
                if reader.end.other.shape[1:] == (1, 1) or last < y + 1:
                    return None
                first = min(first, y)
            produced = max(produced, last)
            rows = max(rows, produced - first)
        return (into, rows) if rows < self.stages[s].height else None

    def place(self, feeding: frozenset[int]) -> Memory:
        """The plan in which the stages ``feeding`` are computed row by row."""
        feeds = {s: self.rings[s][0] for s in sorted(feeding)}
        times = list(range(len(self.stages)))
        for s in reversed(times):
            times[s] = times[feeds[s]] if s in feeds else s
        rows = {value: self.rings[s][1] if s in feeds else value.shape[1] for value, s in self.makers.items()}
        spans = {value: self._span(value, times) for value in self.makers}
        same = self._in_place(spans, times, feeds)
        items: tuple[dict[object, Item], dict[object, Item]] = ({}, {})
        for value, (first, last) in spans.items():
            channels, _, width = value.shape
            pixel = words_of(channels) if value.is_bits else channels
            if (into := same.get(value)) is not None:
                size, first, _ = items[0][into]
                items[0][into] = (size, first, last)
            else:
                items[value.is_bits][value] = (rows[value] * width * pixel, first, last)
        for time in set(times):
            for kind in (0, 1):
                size = max(
                    scratch_of(self.stages[s], self.number_bytes)[kind]
                    for s, at in enumerate(times)
                    if at == time
                )
                items[kind][time] = (size, time, time)
        (reals, real_size), (words, word_size) = map(_offsets, items)
        every = [
            (size * unit, first, last)
            for kind, unit in zip(items, (self.number_bytes, 4), strict=True)
            for size, first, last in kind.values()
        ]
        return Memory(
            feeds,
            rows,
            {v: (words if v.is_bits else reals)[same.get(v, v)] for v in self.makers},
            tuple((reals[time], words[time]) for time in times),
            tuple(sum(size for size, first, last in every if first <= time <= last) for time in times),
            real_size,
            word_size,
            self.number_bytes,
        )

    def _span(self, value: Value, times: Sequence[int]) -> tuple[int, int]:
        """When the value is first written and last read."""
        first = times[self.makers[value]]
        last = len(times) if value == self.output else first
        return first, max([last, *(times[s] for s in self.readers[value])])

    def _in_place(
        self, spans: dict[Value, tuple[int, int]], times: Sequence[int], feeds: dict[int, int]
    ) -> dict[Value, Value]:
        """Values that overwrite another one of the same shape, place by place, and the first of those."""
        same: dict[Value, Value] = {}
        for s, stage in enumerate(self.stages):
            old = stage.source if stage.kind == "pointwise" else stage.end.other
            if old is None or stage.real is None or s in feeds or self.makers[old] in feeds:
                continue
            others = [r for r in self.readers[old] if r != s and times[r] >= times[s]]
            read_elsewhere = others or (stage.kind != "pointwise" and stage.source == old)
            if old.shape == stage.real.shape and spans[old][1] == times[s] and not read_elsewhere:
                same[stage.real] = same.get(old, old)
        return same


def scratch_of(stage: Stage, number_bytes: int) -> tuple[int, int]:
    """The numbers and the words that a stage needs besides its values; those for a pixel's sums come last."""
    sums = stage.shape[0] if stage.has_epilogue else 0
    numbers, words = window_numbers(stage), 2 * window_words(stage)
    return (numbers + sums, words) if number_bytes == 4 else (numbers, words + sums)


def window_numbers(stage: Stage) -> int:
    """The numbers of a convolution's window, of one group; 0 if they lie where they are."""
    if stage.kind != "conv":
        return 0
    assert stage.weights is not None
    assert stage.window is not None
    lies_there = stage.window.kernel == (1, 1) and not any(stage.window.pad)
    return 0 if lies_there else stage.weights[0].size


def window_words(stage: Stage) -> int:
    """The words of a binary convolution's window."""
    if stage.kind != "binary_conv":
        return 0
    assert stage.source is not None
    assert stage.window is not None
    return words_of(stage.source.shape[0] * math.prod(stage.window.kernel))


def _offsets(items: dict[object, Item]) -> tuple[dict[object, int], int]:
    """Each item in the first gap between those that are needed at the same time, the largest item first."""
    placed: dict[object, int] = {}
    for key, (size, first, last) in sorted(items.items(), key=lambda item: (-item[1][0], item[1][1])):
        offset = 0
        for start, end in sorted(_taken(items, placed, first, last)):
            if start >= offset + size:
                break
            offset = max(offset, end)
        placed[key] = offset
    return placed, max((placed[key] + items[key][0] for key in items), default=0)


def _taken(
    items: dict[object, Item], placed: dict[object, int], first: int, last: int
) -> Iterable[tuple[int, int]]:
    """Begin and end of what is placed already and needed at the same time."""
    for key, offset in placed.items():
        size, begin, end = items[key]
        if begin <= last and first <= end:
            yield offset, offset + size
