"""What each method costs a training step beside the network itself: time and memory."""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bnew.layers import binary_parameters
from bnew.methods import Binarizer, create_method
from bnew.models import create_model
from bnew.recipe import Recipe
from bnew.training.optimizers import make_optimizer

TOTAL_STEPS = 100_000
# More than any cache holds: between two measurements it drives the weights out, as a network does.
SCRATCH_BYTES = 2**28
# Linux's own account of a process; getrusage's peak would start at that of the parent process.
STATUS = Path("/proc/self/status")


def attach(name: str | None, model: nn.Module) -> tuple[torch.optim.Optimizer, Binarizer]:
    """bnew's own Adam for ``model``, with the method ``name`` riding on it."""
    optimizer = make_optimizer(Recipe(), model)
    return optimizer, create_method(name, binary_parameters(model), TOTAL_STEPS).attach(optimizer)


def give_gradients(model: nn.Module) -> None:
    """Random ones where there are none, as if a backward pass had left them."""
    for p in model.parameters():
        if p.grad is None:
            p.grad = torch.randn_like(p)


# ---------------------------------------------------------------------- time


def step_seconds(name: str, model_name: str, repeats: int, *, frozen: bool = False) -> list[float]:
    """Times of all that method ``name`` does around one optimizer step, caches cold."""
    model = create_model(model_name)
    give_gradients(model)
    gradients = [(p, p.grad) for p in model.parameters()]
    _, method = attach(name, model)
    if frozen:
        method.freeze(warn=False)
    scratch = torch.zeros(SCRATCH_BYTES, dtype=torch.uint8)
    times = []
    for _ in range(repeats):
        for p, grad in gradients:
            p.grad = grad  # Bop takes them away
        scratch.add_(1)
        started = time.perf_counter()
        method.before_step()
        method.after_step()
        times.append(time.perf_counter() - started)
    return times


# ---------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Memory:
    """Bytes that training holds between forward passes."""

    weights: int
    gradients: int
    optimizer: int
    binarizer: int

    @property
    def total(self) -> int:
        return sum(astuple(self))


def count_memory(name: str | None, model_name: str) -> Memory:
    """Counted from the tensors, after one step."""
    model = create_model(model_name)
    give_gradients(model)
    gradients = _bytes(p.grad for p in model.parameters())  # at their largest: Bop takes some away
    optimizer, method = attach(name, model)
    optimizer.step()
    lists = (value for value in method.state_dict().values() if isinstance(value, list))
    return Memory(
        weights=_bytes(model.parameters()),
        gradients=gradients,
        optimizer=_bytes(value for state in optimizer.state.values() for value in state.values()),
        binarizer=_bytes(value for values in lists for value in values),
    )


def _bytes(values: Iterable[object]) -> int:
    """Of those of ``values`` that are tensors."""
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def peak_growth(name: str | None, model_name: str) -> int:
    """How many bytes the process needs at its peak beyond weights and gradients, in two steps.

    That is the optimizer's state, the method's, and what both need in passing. Only the first call in a
    process tells: its peak never falls.
    """
    model = create_model(model_name)
    give_gradients(model)
    before, peak_before = _resident("VmRSS"), _resident("VmHWM")
    optimizer, _ = attach(name, model)
    for _ in range(2):  # the first makes the state, the second has it and works with it
        give_gradients(model)  # Bop took some away
        optimizer.step()
    peak = _resident("VmHWM")
    assert peak > peak_before, "the peak was before the steps"
    return peak - before


def _resident(what: str) -> int:
    """Bytes of the process in memory: now (VmRSS) or at the most so far (VmHWM)."""
    found = re.search(rf"{what}:\s*(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure_peak_growth(name: str | None, model_name: str) -> int:
    """:func:`peak_growth` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(peak_growth, name, model_name).result()
