"""A network gets binary layers."""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal, TypeAlias, overload

from rich.table import Table
from rich.text import Text
from torch import nn

from bnew.convert.summary import as_text
from bnew.convert.tracing import Reading, is_layer, read
from bnew.errors import BnewError, lookup
from bnew.layers import SURROGATES, BinaryConv2d, BinaryLinear, RSign
from bnew.text import printable

_log = logging.getLogger("bnew")

Skip: TypeAlias = str | Iterable[str] | Callable[[str, nn.Module], bool]
Activation: TypeAlias = str | Callable[[int], nn.Module]

# Which layers have a binary twin. Only these very types: a subclass may use its weight in its own way.
_TWINS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: BinaryConv2d, nn.Linear: BinaryLinear}


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
            table.add_row(
                *(Text(printable(cell)) for cell in astuple(row)), style=None if row.becomes else "dim"
            )
        return table

    def __str__(self) -> str:
        return as_text(self.__rich__())


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
    lookup("surrogate gradient", surrogate, SURROGATES)
    lookup("treatment of ReLU", relu, dict.fromkeys(("prelu", "keep")))
    rsign = partial(RSign, surrogate=surrogate)
    activations = {"rsign": rsign, "sign": partial(rsign, shift=False)}
    make = activation if callable(activation) else lookup("activation", activation, activations)

    asked = {"depthwise": depthwise, "first": first, "last": last, "shortcut": shortcut}
    reading = read(model)
    rows = _plan(model, reading, skip, asked, keep_relu=relu == "keep")
    if not any(row.binarize for row in rows):
        why = "; ".join(f"{row.name or 'it'} ({row.kind}): {row.reason}" for row in rows)
        raise BnewError(f"nothing to binarize in {type(model).__name__}: {why or 'it has no such layer'}")
    if plan:
        return rows
    for row in rows:
        _log.info("%s (%s) %s: %s", row.name, row.kind, row.becomes or "stays", row.reason)
        module = model.get_submodule(row.name)
        if row.binarize:
            _make_binary(module, make)
        elif row.becomes:
            _replace_relu(model, module, reading)
    return model


def _plan(model: nn.Module, reading: Reading, skip: Skip, asked: dict[str, bool], keep_relu: bool) -> Plan:
    layers = {module: name for name, module in model.named_modules() if is_layer(module)}
    skipped = _skipped(layers, skip)
    obstacles = _obstacles(model)

    def judge(layer: nn.Module) -> tuple[bool, str]:
        """Whether the layer becomes binary, and why or why not."""
        if layer in obstacles:
            return False, obstacles[layer]
        if layer in skipped:
            return False, "skipped"
        special = _special(model, layer, reading)
        for option, reason in special.items():
            if not asked[option]:
                return False, reason
        floors = reading.floors.get(layer, set())
        fixed = sorted(floor for floor in floors if isinstance(floor, str))
        if floors and keep_relu:
            _log.warning("%s: its input is never negative, and relu='keep'", layers[layer])
        elif fixed:
            reason = (
                f"its input is never negative, as {fixed[0]} is called before it: sign would be +1 always"
            )
            _log.warning("%s stays real: %s; an nn.ReLU module could be replaced", layers[layer], reason)
            return False, reason
        return True, "; ".join(["asked for", *special.values()]) if special else "an inner layer"

    judged = {layer: judge(layer) for layer in layers}
    relus: set[nn.Module | str] = set()
    if not keep_relu:
        relus = relus.union(
            *(reading.floors.get(layer, ()) for layer, (binary, _) in judged.items() if binary)
        )

    rows = Plan()
    for name, module in model.named_modules():
        kind = type(module).__name__
        if module in relus:
            rows.append(PlannedLayer(name, kind, "PReLU", "feeds a binary layer, which needs both signs"))
        elif module in judged:
            binary, reason = judged[module]
            rows.append(PlannedLayer(name, kind, _TWINS[type(module)].__name__ if binary else "", reason))
    return rows


def _skipped(layers: dict[nn.Module, str], skip: Skip) -> set[nn.Module]:
    if callable(skip):
        return {layer for layer, name in layers.items() if skip(name, layer)}
    found = set[nn.Module]()
    for pattern in [skip] if isinstance(skip, str) else skip:
        matches = {
            layer
            for layer, name in layers.items()
            if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
        }
        if not matches:
            near = difflib.get_close_matches(pattern, layers.values(), n=3, cutoff=0.4)
            hint = f"; the nearest names are {', '.join(near)}" if near else ""
            raise BnewError(f"skip: no layer is called or matches '{pattern}'{hint}")
        found |= matches
    return found


def _obstacles(model: nn.Module) -> dict[nn.Module, str]:
    """The layers that cannot be binary, with the reason."""
    uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    # torch's own composite modules (attention, a transformer's layer) read the weights of their parts.
    owners = {
        part: type(owner).__name__
        for owner in model.modules()
        if type(owner).__module__.startswith("torch.nn.modules.")
        and type(owner).forward is not nn.Module.forward  # else it only holds them, as ModuleList does
        and not isinstance(owner, nn.Sequential)
        for part in owner.modules()
        if part is not owner
    }
    obstacles: dict[nn.Module, str] = {}
    for layer in filter(is_layer, model.modules()):
        if isinstance(layer, BinaryConv2d | BinaryLinear):
            obstacles[layer] = "already binary"
        elif type(layer) not in _TWINS:
            obstacles[layer] = f"there is no binary {type(layer).__name__}"
        elif layer in owners:
            obstacles[layer] = f"{owners[layer]} reads its weight itself"
        elif not isinstance(layer.weight, nn.Parameter):
            obstacles[layer] = "its weight is computed, not a parameter"
        elif uses[id(layer.weight)] > 1:
            obstacles[layer] = "its weight belongs to another module too"
    return obstacles


def _special(model: nn.Module, layer: nn.Module, reading: Reading) -> dict[str, str]:
    """The options of :func:`binarize` that decide about this layer, with what the layer is to each."""
    depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
    inside = layer is not model
    special = {
        "depthwise": (depthwise, "a depthwise convolution"),
        "first": (inside and layer in reading.first, "sees the network's input"),
        "last": (inside and layer in reading.last, "makes the network's output"),
        "shortcut": (layer in reading.shortcut, "a 1×1 layer on a shortcut"),
    }
    return {option: reason for option, (applies, reason) in special.items() if applies}


def _make_binary(layer: nn.Module, make: Callable[[int], nn.Module]) -> None:
    # The type is changed, as torch's own parametrizations do it: the layer stays the same object, so
    # that whoever holds it, its weight or a hook on it goes on working.
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
    layer.activation = make(channels).to(layer.weight).train(layer.training)
    layer.__class__ = _TWINS[type(layer)]  # type: ignore[assignment]


def _replace_relu(model: nn.Module, old: nn.Module, reading: Reading) -> None:
    widths = reading.widths.get(old, set())
    width = next(iter(widths)) if len(widths) == 1 else None
    new = nn.PReLU(width or 1).to(next(model.parameters())).train(old.training)
    for name in [name for name, m in model.named_modules(remove_duplicate=False) if m is old]:
        model.set_submodule(name, new)
