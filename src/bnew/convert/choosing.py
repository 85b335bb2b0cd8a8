"""Which layers of a network become binary, what they get besides, and why the others stay real."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin

from bnew.convert.functional import ReluCall
from bnew.convert.planned import SCALE, SHORTCUT, Plan, PlannedLayer
from bnew.convert.rewriting import free_names
from bnew.convert.tracing import Reading, Relu, is_layer
from bnew.deprecated import warn_of
from bnew.errors import BnewError, kind_of, lookup
from bnew.layers import BinaryConv1d, BinaryConv2d, BinaryConvTranspose2d, BinaryLayer, BinaryLinear

_log = logging.getLogger("bnew")

Filter: TypeAlias = Callable[[nn.Module, str], bool]
Skip: TypeAlias = str | Iterable[str] | Filter

FEEDS_BINARY = "feeds a binary layer, which needs both signs"

# Which layers have a binary twin. Only these very types: a subclass may use its weight in its own way.
TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: BinaryConv1d,
    nn.Conv2d: BinaryConv2d,
    nn.ConvTranspose2d: BinaryConvTranspose2d,
    nn.Linear: BinaryLinear,
}


@dataclass(frozen=True)
class Asked:
    """What :func:`bnew.binarize` is asked for by its options of these names."""

    depthwise: bool
    first: bool
    last: bool
    shortcut: bool
    shortcuts: bool
    scale: bool | None
    centred: bool
    """Whether images set the shifts, so that every layer sees both signs."""

    def parts(self, layer: nn.Module, reading: Reading) -> tuple[str, ...]:
        """What ``layer`` gets besides."""
        shortcut: bool = self.shortcuts and _keeps_shape(layer)
        scale: bool = shortcut or layer in reading.unnormed if self.scale is None else self.scale
        return (SCALE,) * scale + (SHORTCUT,) * shortcut


@dataclass(frozen=True)
class Choice:
    """The plan, and by the names of its rows, the ReLUs in it that are calls in a method."""

    rows: Plan
    calls: dict[str, ReluCall]


def _keeps_shape(layer: nn.Module) -> bool:
    """Whether the layer's output has the shape of its input."""
    if isinstance(layer, nn.Linear):
        return layer.in_features == layer.out_features
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d)
    if layer.in_channels != layer.out_channels or {*layer.stride} != {1} or any(layer.output_padding):
        return False
    if isinstance(layer.padding, str):
        return layer.padding == "same" or set(layer.kernel_size) == {1}
    sides = zip(layer.padding, layer.dilation, layer.kernel_size, strict=True)
    return all(2 * pad == step * (size - 1) for pad, step, size in sides)


def choose(model: nn.Module, reading: Reading, skip: Skip, relu: str, asked: Asked) -> Choice:
    """A row for each layer of ``model``, and for each ReLU that is replaced.

    Args:
        model: the network.
        reading: what its graph says.
        skip, relu: as :func:`bnew.binarize` takes them.
        asked: its other options.

    Raises:
        BnewError: an unknown treatment of ReLU; a name in ``skip`` that matches no layer; nothing is left to
            binarize.
    """
    lookup("treatment of ReLU", relu, dict.fromkeys(("prelu", "keep")))
    keep_relu = relu == "keep"
    layers = {module: name for name, module in model.named_modules() if is_layer(module)}
    skipped = _skipped(layers, skip)
    obstacles = _obstacles(model)

    def judge(layer: nn.Module) -> tuple[bool, str]:
        """Whether the layer becomes binary, and why or why not."""
        if layer in obstacles:
            return False, obstacles[layer]
        if layer in skipped:
            return False, "skipped"
        if layer in reading.taken:
            return False, "the network takes its weight and does not call it"
        if layer in reading.fixed:
            return False, "computes from constants alone"
        special = _special(model, layer, reading)
        for option, reason in special.items():
            if not getattr(asked, option):
                return False, reason
        floors = reading.floors.get(layer, set())
        fixed = sorted(floor for floor in floors if isinstance(floor, str))
        if asked.centred:
            pass  # whatever its input is
        elif floors and keep_relu:
            _log.warning("%s: its input is never negative, and relu='keep'", layers[layer])
        elif fixed:
            reason = f"its input is never negative, as {fixed[0]}: sign would be +1 always"
            _log.warning("%s stays real: %s; an nn.ReLU module could be replaced", layers[layer], reason)
            return False, reason
        why = "; ".join(["asked for", *special.values()]) if special else "an inner layer"
        if layer in reading.averaged and not asked.centred:
            why += "; it may be blind, as averages of a ReLU are rarely negative: give calibrate=loader"
        return True, why

    judged = {layer: judge(layer) for layer in layers}
    relus: set[Relu | str] = set()
    if not keep_relu:
        relus = relus.union(
            *(reading.floors.get(layer, ()) for layer, (binary, _) in judged.items() if binary)
        )

    rows = Plan()
    calls: dict[str, ReluCall] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if module in relus:
            rows.append(PlannedLayer(name, kind, "PReLU", FEEDS_BINARY))
        elif module in judged:
            binary, reason = judged[module]
            twin = TWINS[type(module)].__name__ if binary else ""
            rows.append(
                PlannedLayer(name, kind, twin, reason, asked.parts(module, reading) if binary else ())
            )
        own = [relu for relu in relus if isinstance(relu, ReluCall) and relu.owner is module]
        for free, call in zip(free_names(module), sorted(own, key=ReluCall.order), strict=False):
            new = f"{name}.{free}".removeprefix(".")
            calls[new] = call
            rows.append(PlannedLayer(new, call.kind, "PReLU", FEEDS_BINARY))
    if not any(row.binarize for row in rows):
        why = rows.why or "it has no such layer"
        raise BnewError(f"nothing to binarize in {type(model).__name__}: {why}")
    return Choice(rows, calls)


def _skipped(layers: dict[nn.Module, str], skip: Skip) -> set[nn.Module]:
    if callable(skip):
        chooses = _as_filter(skip)
        return {layer for layer, name in layers.items() if chooses(layer, name)}
    found = set[nn.Module]()
    patterns = [skip] if isinstance(skip, str) else list(skip) if isinstance(skip, Iterable) else [skip]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise BnewError(f"skip has {kind_of(pattern)}, but takes names, patterns of names or a filter")
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


def _as_filter(given: Callable[[Any, Any], bool]) -> Filter:
    """A filter ``(module, name)``; of one that names its parameters the other way round, for one release."""
    try:
        parameters = [*inspect.signature(given).parameters.values(), None, None]
    except ValueError:  # a function in C does not always say
        return given
    first, second = parameters[:2]
    by_name = first and (first.annotation in (str, "str") or first.name in _NAMES_OF_A_NAME)
    by_module = second and second.name in _NAMES_OF_A_MODULE
    if not (by_name or by_module):
        return given
    warn_of("skip=(name, module) -> bool", "a filter (module, name) -> bool, as torchao's")
    return lambda module, name: given(name, module)


_NAMES_OF_A_NAME = ("name", "n", "fqn", "key", "path", "layer_name", "module_name")
_NAMES_OF_A_MODULE = ("module", "m", "mod", "layer", "submodule")


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
        if isinstance(layer, BinaryLayer):
            obstacles[layer] = "already binary"
        elif isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():
            obstacles[layer] = "its size is not known yet: call the model with a batch first"
        elif layer in owners:
            obstacles[layer] = f"{owners[layer]} reads its weight itself"
        elif type(layer) not in TWINS:
            obstacles[layer] = f"there is no binary {type(layer).__name__}"
        elif not isinstance(layer.weight, nn.Parameter):
            obstacles[layer] = "its weight is computed, not a parameter"
        elif uses[id(layer.weight)] > 1:
            obstacles[layer] = "its weight belongs to another module too"
    return obstacles


def _special(model: nn.Module, layer: nn.Module, reading: Reading) -> dict[str, str]:
    """The options of :func:`binarize` that decide about this layer, with what the layer is to each."""
    depthwise = isinstance(layer, _ConvNd) and layer.groups == layer.in_channels > 1
    inside = layer is not model
    special = {
        "depthwise": (depthwise, "a depthwise convolution"),
        "first": (inside and layer in reading.first, "sees the network's input"),
        "last": (inside and layer in reading.last, "makes the network's output"),
        "shortcut": (layer in reading.shortcut, "a 1×1 layer on a shortcut"),
    }
    return {option: reason for option, (applies, reason) in special.items() if applies}
