"""Records of a run, epoch by epoch: the tables in its folder, and the same for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from bnew.methods.base import Binarizer
from bnew.results.run import Run

HISTOGRAM_BINS = 40


@contextmanager
def recorder(run: Run, epoch: int, first: bool) -> Iterator[Recorder | None]:
    """The recorder of ``run`` from ``epoch`` on, in the ``first`` process; None in the others."""
    if not first:
        yield None
        return
    with SummaryWriter(str(run.path), purge_step=epoch) as writer:
        yield Recorder(run, writer)


def layer_rows(epoch: int, names: Sequence[str], method: Binarizer) -> list[dict[str, Any]]:
    """A row per binary layer: distance to ±1, share at ±1, and sign flips since the last call."""
    layers = zip(
        names,
        method.layer_distances(),
        method.layer_shares_at_one(),
        method.layer_flips(),
        strict=False,  # without a method there are no measures, but there may be binary layers
    )
    return [
        {"epoch": epoch, "layer": name, "distance": distance, "share_at_one": share, "flips": flips}
        for name, distance, share, flips in layers
    ]


class Recorder:
    """Appends to a run's tables and to its TensorBoard file."""

    def __init__(self, run: Run, writer: SummaryWriter) -> None:
        self.run, self.writer = run, writer

    def epoch(self, row: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], method: Binarizer) -> None:
        """Record an epoch: ``row`` of the metrics, one row per layer, and the binary weights."""
        epoch = row["epoch"]
        self.run.append("metrics", row)
        self.run.append("layers", *layers)
        self._weights(epoch, method)
        for name, value in row.items():
            self.writer.add_scalar(name, value, epoch)
        for layer in layers:
            for name in ("distance", "share_at_one", "flips"):
                self.writer.add_scalar(f"{name}/{layer['layer']}", layer[name], epoch)
        self.writer.flush()  # before the checkpoint, since a resumed run does not write it again

    def _weights(self, epoch: int, method: Binarizer) -> None:
        if method.params:
            weights = torch.cat([v.flatten() for v in method.values()]).float().cpu()
            counts = weights.histc(HISTOGRAM_BINS, -1, 1).int().tolist()
            self.run.append("histogram", {"epoch": epoch, **{f"bin{i}": n for i, n in enumerate(counts)}})
            self.writer.add_histogram("binary weights", weights, epoch)
