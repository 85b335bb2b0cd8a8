"""A network gets binary layers."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, ParamSpec, TypeAlias

from torch import nn

from bnew.convert.functional import ReluCall
from bnew.convert.planned import Plan, PlannedLayer
from bnew.convert.rewriting import Place, free_names, put_modules
from bnew.convert.tracing import Reading, Relu, is_layer, read
from bnew.deprecated import renamed_argument, warn_of
from bnew.errors import BnewError, lookup
from bnew.layers import SURROGATES, BinaryConv2d, BinaryLinear, RSign
from bnew.process import is_first_process

_log = logging.getLogger("bnew")

P = ParamSpec("P")
Filter: TypeAlias = Callable[[nn.Module, str], bool]
Skip: TypeAlias = str | Iterable[str] | Filter
InputSign: TypeAlias = str | Callable[[int], nn.Module]

# Which layers have a binary twin. Only these very types: a subclass may use its weight in its own way.
_TWINS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: BinaryConv2d, nn.Linear: BinaryLinear}


def plan(
    model: nn.Module,
    skip: Skip = (),
    input_sign: InputSign = "rsign",
    *,
    surrogate: str = "polynomial",
    relu: str = "prelu",
    depthwise: bool = False,
    first: bool = False,
    last: bool = False,
    shortcut: bool = False,
) -> Plan:
    """What :func:`binarize` would do to each layer, and why; the model stays as it is.

    Arguments and errors are those of :func:`binarize`.

    Returns:
        A row per layer; prints as a table.
    """
    _input_sign(input_sign, surrogate)
    asked = {"depthwise": depthwise, "first": first, "last": last, "shortcut": shortcut}
    rows, _ = _plan(model, read(model), skip, asked, relu)
    return rows


def _takes_plan(binarize: Callable[P, nn.Module]) -> Callable[P, nn.Module]:
    """``binarize(plan=True)`` is :func:`plan`, for one release."""

    @functools.wraps(binarize)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "plan" in kwargs:
            warn_of("binarize(plan=…)", "bnew.plan(model, …)")
            if kwargs.pop("plan"):
                kwargs.pop("verbose", None)
                return plan(*args, **kwargs)
        return binarize(*args, **kwargs)

    return call


@renamed_argument("activation", "input_sign")
@_takes_plan
def binarize(
    model: nn.Module,
    skip: Skip = (),
    input_sign: InputSign = "rsign",
    *,
    surrogate: str = "polynomial",
    relu: str = "prelu",
    depthwise: bool = False,
    first: bool = False,
    last: bool = False,
    shortcut: bool = False,
    verbose: bool = True,
) -> nn.Module:
    """Turn the ``Conv2d`` and ``Linear`` layers of a network into binary ones, in place.

    Each chosen layer becomes a :class:`bnew.BinaryConv2d` or :class:`bnew.BinaryLinear` and keeps its
    weight and bias (the same ``Parameter`` objects, so that an optimizer made before still works; new
    shifts and slopes are for a new optimizer), hyper-parameters, hooks, device, dtype and training mode.
    Weights outside [-1, 1] stay as they are; a method clips them at its first step.

    Real, unless asked for: depthwise convolutions; the layers that see the network's input; the layers
    that make its output; 1×1 layers on a shortcut, that is, whose output is added to that of a longer
    path from the same place. They are found by tracing the network (``torch.fx``). A network that cannot
    be traced is read by its names and its order of registration, and a warning is logged. A model that
    is one layer is binarized.

    **ReLU before a sign.** What comes out of a ReLU is never negative, its sign is +1 everywhere, and a
    binary layer behind it would see nothing. So every ReLU that feeds a binarized layer, directly or through
    pooling and the like, becomes an ``nn.PReLU`` (slope 0.25, one a channel where all uses of the ReLU have
    one known width, else one in all), as in ReActNet, whose shifts are there already: the batch norm's before
    it, and the one of ``rsign`` behind it. ReLUs are ``nn.ReLU``, ``nn.ReLU6``, ``nn.Hardtanh(0, k)``, and
    calls of their functions in a module's methods: ``F.relu(x)``, ``x.relu_()``, ``torch.clamp(x, min=0)``
    and so on. Such a call is replaced in the method's source: the module gets a PReLU called ``prelu1``,
    ``prelu2`` and so on, and becomes an instance of a subclass of its class, under the same name. It is
    copied, pickled, compiled and exported as before; a module that is loaded needs its class with the same
    source. A PReLU is never in place: a call in place assigns its result to the variable that it changed.

    What cannot be replaced keeps the layer behind it real, and a warning is logged: a sigmoid; a ReLU in a
    function that is no method, in a method that is decorated, reached by ``super()`` or without source.
    ``relu="keep"`` replaces none and binarizes all the same; that makes sense only with an ``input_sign``
    that centres what it gets.

    Args:
        model: any module.
        skip: what stays real besides: names or ``fnmatch`` patterns of layers or of modules that contain
            them, or a filter ``(module, name) -> bool``, as torchao's.
        input_sign: what binarizes a layer's input: ``rsign`` (a learnable shift per channel), ``sign``,
            or a function from the number of channels to a module.
        surrogate: gradient of sign, see :func:`bnew.sign`.
        relu: ``prelu`` or ``keep``, see above.
        depthwise, first, last, shortcut: binarize these too.
        verbose: write on standard error what became binary, what stayed real, and why. :func:`plan` says it
            beforehand, layer by layer.

    Returns:
        The model itself.

    Raises:
        BnewError: an unknown option; a name in ``skip`` that matches no layer; nothing is left to binarize.
    """
    make = _input_sign(input_sign, surrogate)
    asked = {"depthwise": depthwise, "first": first, "last": last, "shortcut": shortcut}
    reading = read(model)
    rows, calls = _plan(model, reading, skip, asked, relu)
    for row in rows:
        if row.name in calls:
            continue
        module = model.get_submodule(row.name)
        if row.binarize:
            _make_binary(module, make)
        elif row.becomes:
            _replace_relu(model, module, reading)
    _replace_calls(model, calls, reading)
    if verbose and is_first_process():
        count = sum(row.binarize for row in rows)
        print(f"binarize: {type(model).__name__} has {count} binary layers now", file=sys.stderr)
        print(rows.outcome, file=sys.stderr)
    return model


def _input_sign(asked: InputSign, surrogate: str) -> Callable[[int], nn.Module]:
    """The function from a number of channels to the module that binarizes such an input."""
    lookup("surrogate gradient", surrogate, SURROGATES)
    rsign = partial(RSign, surrogate=surrogate)
    known = {"rsign": rsign, "sign": partial(rsign, shift=False)}
    return asked if callable(asked) else lookup("input_sign", asked, known)


def _plan(
    model: nn.Module, reading: Reading, skip: Skip, asked: dict[str, bool], relu: str
) -> tuple[Plan, dict[str, ReluCall]]:
    """A row per layer and per ReLU that is replaced, and by the names of rows, the calls among the ReLUs."""
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
        special = _special(model, layer, reading)
        for option, reason in special.items():
            if not asked[option]:
                return False, reason
        floors = reading.floors.get(layer, set())
        fixed = sorted(floor for floor in floors if isinstance(floor, str))
        if floors and keep_relu:
            _log.warning("%s: its input is never negative, and relu='keep'", layers[layer])
        elif fixed:
            reason = f"its input is never negative, as {fixed[0]}: sign would be +1 always"
            _log.warning("%s stays real: %s; an nn.ReLU module could be replaced", layers[layer], reason)
            return False, reason
        return True, "; ".join(["asked for", *special.values()]) if special else "an inner layer"

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
            rows.append(PlannedLayer(name, kind, "PReLU", _FEEDS_BINARY))
        elif module in judged:
            binary, reason = judged[module]
            rows.append(PlannedLayer(name, kind, _TWINS[type(module)].__name__ if binary else "", reason))
        own = [relu for relu in relus if isinstance(relu, ReluCall) and relu.owner is module]
        for free, call in zip(free_names(module), sorted(own, key=ReluCall.order), strict=False):
            calls[f"{name}.{free}".removeprefix(".")] = call
            rows.append(PlannedLayer([*calls][-1], call.kind, "PReLU", _FEEDS_BINARY))
    if not any(row.binarize for row in rows):
        why = "; ".join(f"{row.name or 'it'} ({row.kind}): {row.reason}" for row in rows)
        raise BnewError(f"nothing to binarize in {type(model).__name__}: {why or 'it has no such layer'}")
    return rows, calls


_FEEDS_BINARY = "feeds a binary layer, which needs both signs"


def _skipped(layers: dict[nn.Module, str], skip: Skip) -> set[nn.Module]:
    if callable(skip):
        chooses = _as_filter(skip)
        return {layer for layer, name in layers.items() if chooses(layer, name)}
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
    # that whoever holds it, its weight or a hook on it still works.
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
    layer.input_sign = make(channels).to(layer.weight).train(layer.training)
    layer.__class__ = _TWINS[type(layer)]  # type: ignore[assignment]


def _replace_relu(model: nn.Module, old: nn.Module, reading: Reading) -> None:
    new = _prelu(model, old, reading).train(old.training)
    for name in [name for name, m in model.named_modules(remove_duplicate=False) if m is old]:
        model.set_submodule(name, new)


def _replace_calls(model: nn.Module, calls: dict[str, ReluCall], reading: Reading) -> None:
    owners = defaultdict[nn.Module, dict[str, tuple[Place, nn.Module]]](dict)
    for name, call in calls.items():
        new = _prelu(model, call, reading).train(call.owner.training)
        owners[call.owner][name.rpartition(".")[2]] = (call.place, new)
    for owner, modules in owners.items():
        put_modules(owner, modules)


def _prelu(model: nn.Module, relu: Relu, reading: Reading) -> nn.PReLU:
    """What replaces a ReLU: slopes per channel where all uses have one known width."""
    widths = reading.widths.get(relu, set())
    width = next(iter(widths)) if len(widths) == 1 else None
    return nn.PReLU(width or 1).to(next(model.parameters()))
