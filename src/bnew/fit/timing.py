"""How long a training step of a network takes here."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from bnew.errors import BnewError, first_line, is_out_of_memory
from bnew.layers import binary_parameters
from bnew.methods import create_method
from bnew.recipe import Recipe
from bnew.training.networks import build_model
from bnew.training.optimizers import make_optimizer

SECONDS, LEAST, WARMING = 1.5, 3, 1


def step_seconds(
    recipe: Recipe,
    classes: int,
    channels: int,
    device: torch.device,
    most: float = math.inf,
    now: Callable[[], float] = time.perf_counter,
) -> tuple[float, int]:
    """The median of the seconds of some training steps on random images, and the bytes of a checkpoint.

    The first step is slower and does not count, except where it alone takes longer than ``most`` seconds,
    after which no step begins.

    Raises:
        BnewError: the network cannot be built, or does not take such images.
    """
    assert recipe.image_size is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(recipe, classes, channels).to(device).train()
        method = create_method("clip", binary_parameters(model), 1000)
        optimizer = make_optimizer(recipe, model)
        method.attach(optimizer)
        side, batch = recipe.image_size, recipe.batch_size
        x = torch.randn(batch, channels, side, side, device=device).to(memory_format=torch.channels_last)
        y = torch.arange(batch, device=device) % classes
        times: list[float] = []
        began = begin = now()
        while not times or begin - began < (min(SECONDS, most) if len(times) >= LEAST + WARMING else most):
            try:
                loss = F.cross_entropy(model(x).float(), y)
            except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
                if is_out_of_memory(error):
                    raise
                raise BnewError(
                    f"{recipe.model} does not take images of {channels}×{side}×{side} "
                    f"({first_line(error)[:200]}): choose another --image-size or --model"
                ) from error
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            loss.item()  # waits for an accelerator
            end = now()
            times.append(end - begin)
            begin = end
    method.detach()
    parameters = sum(p.numel() for p in model.parameters())
    return statistics.median_low(times[WARMING:] or times), 12 * parameters
