"""What a network with new binary layers takes from a few batches: shifts, scales, batch-norm statistics."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from bnew.errors import BnewError, kind_of
from bnew.layers import BinaryLayer, RSign, check_module
from bnew.modes import evaluating

BATCHES = 50
"""How many batches give the statistics of batch norms."""
ENOUGH = 256
"""Images, from which shifts and scales are set."""
ROWS = 2**16
"""Values of a channel, at most, from which its shift is set."""
BLIND = 0.1
"""Share of the values with the rarer sign, below which a channel is blind."""
LOW = 0.05
"""Quantile of the values above the least one that still counts as the next one."""

Sizes: TypeAlias = dict[nn.Module, Tensor]


@torch.no_grad()
def recalibrate(model: nn.Module, data: Iterable[Any], batches: int | None = BATCHES) -> nn.Module:
    """Estimate the statistics of all batch norms anew, at the weights as they are; nothing else changes.

    Mean and variance become the averages over the batches, as ``momentum=None`` means in
    ``torch.nn.BatchNorm2d``. Use it where weights have just changed: inside ``method.binarized()`` before
    validating, or after ``method.freeze()``. All other layers are in eval mode meanwhile, such as dropout.

    Args:
        model: in any mode, on any device.
        data: batches of images, or tuples of images and more, such as a ``DataLoader`` of training images.
            Batches of a single image are left out, as they have no variance.
        batches: how many to use at most; None: all.

    Returns:
        The model itself, with its modes as they were.

    Raises:
        BnewError: there is no batch, or one is no tensor of real numbers. Statistics are then as they were.
    """
    check_module("recalibrate", model)
    norms = [norm for norm in _norms(model) if norm.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    used = 0
    try:
        with evaluating(model, but=norms):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
            for images in islice(_images(data, model), batches):
                model(images)
                used += 1
        if not used:
            raise BnewError("recalibrate was given no batch: give batches of training images")
    except BaseException:
        for norm, buffers in zip(norms, before, strict=True):
            norm.load_state_dict(buffers, strict=False)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model


def first_images(data: Iterable[Any], model: nn.Module) -> Tensor:
    """The first images of ``data``, :data:`ENOUGH` of them or as many as there are.

    Raises:
        BnewError: there is none, a batch is no tensor, or ``data`` can be read only once.
    """
    if isinstance(data, Iterator):
        raise BnewError("calibrate is an iterator, which can be read only once: give a DataLoader, or a list")
    if not isinstance(data, Iterable):
        raise BnewError(f"calibrate is {kind_of(data)}, but must be batches of images, such as a DataLoader")
    parts: list[Tensor] = []
    for images in _images(data, model):
        parts.append(images)
        if images.shape[1:] != parts[0].shape[1:]:
            raise BnewError(
                f"calibrate has images of {tuple(parts[0].shape[1:])} and of {tuple(images.shape[1:])}: give "
                "images of one size"
            )
        if sum(map(len, parts)) >= ENOUGH:
            break
    if not parts:
        raise BnewError("calibrate has no batch: give batches of training images")
    return torch.cat(parts)[:ENOUGH]


@torch.no_grad()
def output_sizes(model: nn.Module, layers: Collection[nn.Module], images: Tensor) -> Sizes:
    """The root mean square of each output channel of real ``layers``, without the bias."""
    sizes: Sizes = {}

    def note(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if layer not in sizes:
            sizes[layer] = _size(layer, output)

    with evaluating(model):
        _pass(model, images, [layer.register_forward_hook(note) for layer in layers])
    return sizes


@torch.no_grad()
def calibrate(model: nn.Module, layers: Collection[nn.Module], images: Tensor, sizes: Sizes) -> None:
    """Set shifts and scales of new binary ``layers`` in one pass, each before what comes after it.

    * The shift of an :class:`bnew.RSign` centres its input in each channel that is :func:`blind`, see
      :func:`centres`. Others keep theirs: where values are, a threshold at 0 often means something.
    * The scale of a layer that has one gives its output, without the bias, the root mean square in ``sizes``.

    Batch norms normalise by these images meanwhile.
    """
    done = set[nn.Module]()

    def centre(sign: nn.Module, args: tuple[Tensor, ...]) -> None:
        if sign not in done and isinstance(sign, RSign) and sign.shift is not None:
            done.add(sign)
            seen = args[0] + _wide(sign.shift, args[0])
            sign.shift.copy_(torch.where(blind(seen), -centres(args[0]), sign.shift))

    def fit(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        assert isinstance(layer, BinaryLayer)
        if layer in done or layer.output_scale is None or layer not in sizes:
            return None
        done.add(layer)
        own = output - args[0] if layer.shortcut else output
        ratio = sizes[layer] / _size(layer, own)
        layer.output_scale.mul_(torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0))
        return layer.forward(args[0])

    hooks = [layer.input_sign.register_forward_pre_hook(centre) for layer in layers]  # type: ignore[union-attr]
    hooks += [layer.register_forward_hook(fit) for layer in layers]
    with evaluating(model, but=_norms(model)):
        _pass(model, images, hooks)


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _pass(model: nn.Module, images: Tensor, hooks: Iterable[RemovableHandle]) -> None:
    """Run the model, and remove the ``hooks``."""
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()


def blind(x: Tensor) -> Tensor:
    """Which channels of x (N, C, ...) have the same sign nearly everywhere: (C,) of bools."""
    share = (x >= 0).movedim(1, -1).reshape(-1, x.shape[1]).float().mean(0)
    return (share < BLIND) | (share > 1 - BLIND)


def _wide(shift: Tensor, like: Tensor) -> Tensor:
    return shift.view(-1, *(1,) * (like.dim() - 2))


def centres(x: Tensor) -> Tensor:
    """Where to cut the values of each channel of x (N, C, ...) in two: (C,).

    At the median. If that is the least value, as behind a ReLU that is closed half of the time, between it
    and the next one.
    """
    rows = x.movedim(1, -1).reshape(-1, x.shape[1])
    rows = rows[:: max(1, -(-len(rows) // ROWS))]
    middle, least = rows.median(0).values, rows.amin(0)
    for channel in (middle == least).nonzero().flatten().tolist():
        above = rows[:, channel]
        above = above[above > least[channel]]
        if len(above):
            middle[channel] = (least[channel] + above.float().quantile(LOW)) / 2
    return middle


def _size(layer: nn.Module, output: Tensor) -> Tensor:
    """The root mean square of each output channel, (C,), without the layer's bias."""
    rows = output if isinstance(layer, nn.Linear) else output.movedim(1, -1)
    rows = rows.reshape(-1, rows.shape[-1])
    if isinstance(layer.bias, Tensor):
        rows = rows - layer.bias
    return rows.square().mean(0).sqrt()


def _images(data: Iterable[Any], model: nn.Module) -> Iterator[Tensor]:
    """The images of each batch of several, where the model is.

    Raises:
        BnewError: a batch is no tensor of real numbers, and no tuple that begins with one.
    """
    if isinstance(data, Tensor):
        raise BnewError("a tensor was given, but batches are needed: put it in a list, [images]")
    device = next((p.device for p in model.parameters()), None)
    for batch in data:
        images = batch[0] if isinstance(batch, list | tuple) and batch else batch
        if not isinstance(images, Tensor):
            raise BnewError(
                f"a batch is {kind_of(batch)}, but must be a tensor of images, or a tuple that begins with it"
            )
        if not images.is_floating_point():
            raise BnewError(f"a batch has images of {images.dtype}: give them as the model takes them")
        if len(images) > 1:
            yield images.to(device)
