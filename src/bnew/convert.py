"""An existing network gets binary layers (:func:`binarize`); what is binary in a network (:func:`summary`)."""

from __future__ import annotations

import difflib
import io
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal, TypeAlias, overload

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from bnew.errors import BnewError, lookup
from bnew.layers import SURROGATES, BinaryConv2d, BinaryLinear, RPReLU, RSign

_log = logging.getLogger("bnew")

Skip: TypeAlias = str | Iterable[str] | Callable[[str, nn.Module], bool]
Activation: TypeAlias = str | Callable[[int], nn.Module]

# Which layers have a binary twin. Only these very types: a subclass may use its weight in its own way.
_TWINS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: BinaryConv2d, nn.Linear: BinaryLinear}

_ACTIVATIONS: dict[str, Callable[[int, str], nn.Module]] = {
    "rsign": lambda channels, surrogate: RSign(channels, surrogate),
    "sign": lambda channels, surrogate: RSign(channels, surrogate, shift=False),
}


# ---------------------------------------------------------------------------------------------- binarize


@dataclass(frozen=True)
class PlannedLayer:
    """What :func:`binarize` does to one module.

    ``kind`` is the module's type, ``becomes`` the type that it gets ("" if it stays as it is), ``reason``
    says why.
    """

    name: str
    kind: str
    becomes: str
    reason: str

    @property
    def binarize(self) -> bool:
        """Whether the layer gets binary weights and inputs."""
        return self.becomes.startswith("Binary")


class Plan(list[PlannedLayer]):
    """The rows of a plan, in the order in which the model registers them; prints as a table."""

    def __rich__(self) -> Table:
        table = Table("layer", "is", "becomes", "why")
        for row in self:
            table.add_row(*astuple(row), style=None if row.becomes else "dim")
        return table

    def __str__(self) -> str:
        return _text(self)


@overload
def binarize(
    model: nn.Module,
    skip: Skip = ...,
    activation: Activation = ...,
    *,
    surrogate: str = ...,
    relu: str = ...,
    depthwise: bool = ...,
    first: bool = ...,
    last: bool = ...,
    shortcut: bool = ...,
    plan: Literal[False] = ...,
) -> nn.Module: ...
@overload
def binarize(
    model: nn.Module,
    skip: Skip = ...,
    activation: Activation = ...,
    *,
    surrogate: str = ...,
    relu: str = ...,
    depthwise: bool = ...,
    first: bool = ...,
    last: bool = ...,
    shortcut: bool = ...,
    plan: Literal[True],
) -> Plan: ...
def binarize(
    model: nn.Module,
    skip: Skip = (),
    activation: Activation = "rsign",
    *,
    surrogate: str = "polynomial",
    relu: str = "prelu",
    depthwise: bool = False,
    first: bool = False,
    last: bool = False,
    shortcut: bool = False,
    plan: bool = False,
) -> nn.Module | Plan:
    """Turn the ``Conv2d`` and ``Linear`` layers of a network into binary ones, in place.

    Each chosen layer becomes a :class:`bnew.BinaryConv2d` or :class:`bnew.BinaryLinear` and keeps its
    weight and bias (the same ``Parameter`` objects, so that an optimizer made before goes on working; new
    shifts and slopes are for a new optimizer), hyper-parameters, hooks, device, dtype and training mode.
    Weights outside [-1, 1] stay as they are; a method clips them at its first step.

    Real, unless asked for: depthwise convolutions; the layers that see the network's input; the layers
    that make its output; 1×1 layers on a shortcut, that is, whose output is added to that of a longer
    path from the same place. They are found by tracing the network (``torch.fx``). A network that cannot
    be traced is read by its names and its order of registration, and a warning is logged. A model that
    is one layer is binarized.

    **ReLU before a sign.** What comes out of a ReLU is never negative, its sign is +1 everywhere, and a
    binary layer behind it would see nothing. So every ``nn.ReLU`` or ``nn.ReLU6`` module that feeds a
    binarized layer, directly or through pooling and the like, becomes an ``nn.PReLU`` (slope 0.25, one a
    channel where all uses of the module have one known width, else one in all), as in ReActNet, whose
    shifts are there already: the batch norm's before it, and the one of ``rsign`` behind it. A ReLU that
    is a function call in ``forward``, or a sigmoid, cannot be replaced: the layer behind it stays real
    and a warning is logged. ``relu="keep"`` replaces none and binarizes all the same; that makes sense
    only with an ``activation`` that centres its input.

    Args:
        model: any module.
        skip: what stays real besides: names or ``fnmatch`` patterns of layers or of modules that contain
            them, or a predicate ``(name, module) -> bool``.
        activation: what binarizes a layer's input: ``rsign`` (a learnable shift per channel), ``sign``,
            or a function from the number of channels to a module.
        surrogate: gradient of sign, see :func:`bnew.sign`.
        relu: ``prelu`` or ``keep``, see above.
        depthwise, first, last, shortcut: binarize these too.
        plan: change nothing, and return what would be done.

    Returns:
        The model itself, or with ``plan=True`` a :class:`Plan`.

    Raises:
        BnewError: an unknown option; a name in ``skip`` that matches no layer; nothing is left to binarize.
    """
    make = activation if callable(activation) else _maker(activation, surrogate)
    lookup("treatment of ReLU", relu, dict.fromkeys(("prelu", "keep")))
    asked = {"depthwise": depthwise, "first": first, "last": last, "shortcut": shortcut}
    decided = _decide(model, _skipper(model, skip), asked, relu == "prelu")
    rows = Plan(row for row, _ in decided)
    if not any(row.binarize for row in rows):
        why = "; ".join(f"'{row.name}' ({row.kind}) {row.reason}" for row in rows) or "it has no layers"
        raise BnewError(f"nothing to binarize in {type(model).__name__}: {why}")
    if plan:
        return rows
    names = {module: name for name, module in model.named_modules(remove_duplicate=False)}
    for row, module in decided:
        _log.info("%s (%s) %s: %s", row.name, row.kind, row.becomes or "stays", row.reason)
        if row.binarize:
            _make_binary(module, make)
    return model
