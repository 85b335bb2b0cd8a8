"""Loss and accuracy of a network."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from bnew.data.batches import Batches, Dataset
from bnew.data.preparation import Preparation
from bnew.errors import BnewError, kind_of
from bnew.modes import evaluating
from bnew.results.evaluation import Evaluation
from bnew.results.metrics import Picture, Tally
from bnew.results.run import Run
from bnew.training.machine import Machine, make_fabric
from bnew.training.networks import load_model
from bnew.training.run_data import load_run_data

logger = logging.getLogger("bnew")


class Meter:
    """Sums over batches of loss, top-1 hits, top-5 hits and images, in one tensor for the checkpoint."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.k = 5 if num_classes >= 100 else 1
        dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        self.sums = torch.zeros(4, dtype=dtype, device=device)

    @torch.no_grad()
    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, logits (N, classes), labels (N,)."""
        hits = logits.topk(self.k).indices == labels[:, None]
        sums = (loss.detach() * len(labels), hits[:, 0].sum(), hits.sum(), torch.full_like(loss, len(labels)))
        self.sums += torch.stack([s.to(self.sums) for s in sums])

    def total(self, fabric: Fabric) -> Tensor:
        """The sums over all ranks."""
        total = fabric.all_reduce(self.sums.clone(), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def result(self, fabric: Fabric) -> dict[str, float]:
        """Means over all ranks: loss in nats, accuracy and, from 100 classes on, top5 as shares."""
        loss, top1, top5, count = self.total(fabric).tolist()
        means = {"loss": loss / count, "accuracy": top1 / count}
        return means if self.k == 1 else {**means, "top5": top5 / count}


@torch.no_grad()
def outputs(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, ...]]:
    """Images, logits in float32 and labels of each batch, by ``model`` in eval mode.

    A process's share of the last batch may be empty. Each module's mode is restored afterwards.

    Raises:
        BnewError: the network returns something else than a tensor.
    """
    # A short pass does not pay for compiling a second graph.
    with evaluating(model), torch.compiler.set_stance("force_eager"):
        for x, y in batches:
            logits = model(x)
            if not isinstance(logits, Tensor):
                raise BnewError(
                    f"the network returns {kind_of(logits)}, but must return one tensor (N, classes)"
                )
            yield x, logits.float(), y


def evaluate(model: nn.Module, batches: Batches, fabric: Fabric, num_classes: int) -> dict[str, float]:
    """:meth:`Meter.result` of ``model`` in eval mode over ``batches``, with every image counted once."""
    meter = Meter(num_classes, fabric.device)
    for _, logits, y in outputs(model, batches.epoch(0)):
        if len(y):
            meter.update(F.cross_entropy(logits, y), logits, y)
    return meter.result(fabric)


def shares(fabric: Fabric) -> dict[str, Any]:
    """Options of :class:`bnew.data.batches.Batches`: this process's share of each batch, and its device."""
    return {"device": fabric.device, "rank": fabric.global_rank, "world_size": fabric.world_size}


def load_run(run: Run, machine: Machine, split: str = "test") -> tuple[nn.Module, Dataset]:
    """:func:`load_model`, and its images of ``split``, see :func:`bnew.training.run_data.load_run_data`.

    Raises:
        BnewError: there is no such run, or its images are not available.
    """
    data = load_run_data(run, machine, split)
    return load_model(run, data.num_classes, data.in_channels), data


def evaluate_run(run: Run, machine: Machine, split: str = "test", worst: int = 0) -> Evaluation:
    """Evaluate the best weights of ``run``, as they were validated, on ``split`` (train, val or test).

    The images are those of :func:`bnew.training.run_data.load_run_data`, prepared as in training. Of
    ``worst`` mistakes, the pictures are kept.

    Raises:
        BnewError: there is no such run or split, or its images are not available.
    """
    fabric = make_fabric(machine)
    model, data = load_run(run, machine, split)
    batches = data.batches(split, train=False, **shares(fabric))
    tally = Tally(data.num_classes, worst=worst)
    model = fabric.to_device(model)
    count_batches(tally, outputs(model, batches.epoch(0)), data.preparation)
    if fabric.world_size > 1:
        parts: list[Any] = [None] * fabric.world_size
        torch.distributed.all_gather_object(parts, tally)
        tally = parts[0]
        for other in parts[1:]:
            tally.merge(other)
    unreadable = data.counts[split] - tally.images
    return Evaluation.of(tally, run.path, f"{data.name}, {split}", data.classes, unreadable)


def count_batches(
    tally: Tally, batches: Iterable[tuple[Tensor, ...]], prepared: Preparation | None = None
) -> None:
    """Add images (N, C, H, W), outputs (N, classes) and labels (N,) of each batch to ``tally``.

    Args:
        tally: what counts them.
        batches: as :func:`outputs` returns them.
        prepared: how the images were prepared, which is undone for pictures of mistakes. None: unknown; then
            an image's darkest value is shown as black, and its brightest as white.

    Raises:
        BnewError: see :meth:`Tally.add`.
    """
    for x, found, y in batches:
        tally.add(found.numpy(force=True), y.numpy(force=True), partial(_picture, x, prepared))


def _picture(images: Tensor, prepared: Preparation | None, number: int) -> Picture | None:
    """Image ``number`` of a batch as uint8 (H, W, C); None if it has neither 1 nor 3 channels."""
    image = images[number].float().cpu()
    if image.ndim != 3 or len(image) not in (1, 3):
        return None
    if prepared is not None:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (prepared.mean, prepared.std))
        image = image * std + mean
    else:
        image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12)
    return image.mul(255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
