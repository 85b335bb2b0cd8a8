"""A network gets binary layers."""

from __future__ import annotations

import functools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ParamSpec, TypeAlias

from torch import nn

from bnew.convert.calibrate import calibrate as fit
from bnew.convert.calibrate import first_images, output_sizes, recalibrate
from bnew.convert.choosing import TWINS, Asked, Skip, choose
from bnew.convert.functional import ReluCall
from bnew.convert.planned import SCALE, SHORTCUT, Plan
from bnew.convert.rewriting import Place, put_modules
from bnew.convert.tracing import Reading, Relu, read
from bnew.deprecated import renamed_argument, warn_of
from bnew.errors import lookup
from bnew.layers import SURROGATES, BinaryLayer, RSign, check_module
from bnew.process import is_first_process
from bnew.text import counted

P = ParamSpec("P")
InputSign: TypeAlias = str | Callable[[int], nn.Module]


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
    shortcuts: bool = False,
    scale: bool | None = None,
    calibrate: Iterable[Any] | None = None,
) -> Plan:
    """What :func:`binarize` would do to each layer, and why; the model stays as it is.

    Arguments and errors are those of :func:`binarize`.

    Returns:
        A row per layer; prints as a table.
    """
    _input_sign(input_sign, surrogate)
    check_module("plan", model)
    centred = _centres(input_sign, calibrate)
    asked = Asked(depthwise, first, last, shortcut, shortcuts, scale, centred)
    return choose(model, read(model), skip, relu, asked).rows


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
    shortcuts: bool = False,
    scale: bool | None = None,
    calibrate: Iterable[Any] | None = None,
    verbose: bool = True,
) -> nn.Module:
    """Turn the convolutions and linear layers of a network into binary ones, in place.

    Each chosen ``Conv1d``, ``Conv2d``, ``ConvTranspose2d`` or ``Linear`` becomes a
    :class:`bnew.BinaryConv1d`, ``BinaryConv2d``, ``BinaryConvTranspose2d`` or ``BinaryLinear`` and keeps its
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

    **Size.** Binary weights have one magnitude. A norm behind the layer undoes it; where none follows, as in
    a VGG without batch norm or a transformer, the layer gets a learnable scale of each output channel, which
    takes the size of the weights over: ``scale = mean|W|`` and ``W ← W / scale``.

    **Blind layers.** A layer whose input is nearly always of one sign learns little: behind an average of
    ReLUs, as in squeeze-and-excite, or a softplus. With images, ``calibrate=loader``, the shift of an
    ``rsign`` starts at the median of each channel that would be blind, the scales give each output the size
    that the real layer's had, and batch norms are estimated anew (:func:`bnew.recalibrate`). With ``rsign``,
    layers behind a function that is never negative then become binary too. Without images, the plan names
    the layers that may be blind.

    Args:
        model: any module.
        skip: what stays real besides: names or ``fnmatch`` patterns of layers or of modules that contain
            them, or a filter ``(module, name) -> bool``, as torchao's.
        input_sign: what binarizes a layer's input: ``rsign`` (a learnable shift per channel), ``sign``,
            or a function from the number of channels to a module.
        surrogate: gradient of sign, see :func:`bnew.sign`.
        relu: ``prelu`` or ``keep``, see above.
        depthwise, first, last, shortcut: binarize these too.
        shortcuts: add the input to the output of every binary layer that keeps its shape, as Bi-Real Net does
            (arXiv 1808.00278).
        scale: whether binary layers get a scale; None: those that no norm follows.
        calibrate: batches of training images, or of images and labels, such as a ``DataLoader``; the first
            256 images and 50 batches are used.
        verbose: write on standard error what became binary, what stayed real, and why. :func:`plan` says it
            beforehand, layer by layer.

    Returns:
        The model itself.

    Raises:
        BnewError: an unknown option; a name in ``skip`` that matches no layer; nothing is left to binarize.
    """
    make = _input_sign(input_sign, surrogate)
    check_module("binarize", model)
    centred = _centres(input_sign, calibrate)
    asked = Asked(depthwise, first, last, shortcut, shortcuts, scale, centred)
    reading = read(model)
    choice = choose(model, reading, skip, relu, asked)
    rows = choice.rows
    chosen = {
        row.name: model.get_submodule(row.name)
        for row in rows
        if row.becomes and row.name not in choice.calls
    }
    if calibrate is not None:
        images = first_images(calibrate, model)
        sizes = output_sizes(model, [chosen[row.name] for row in rows if SCALE in row.parts], images)
    for row in rows:
        if row.binarize:
            _make_binary(chosen[row.name], make, row.parts)
        elif row.name in chosen:
            _replace_relu(model, chosen[row.name], reading)
    _replace_calls(model, choice.calls, reading)
    if calibrate is not None:
        fit(model, [chosen[row.name] for row in rows if row.binarize], images, sizes)
        recalibrate(model, calibrate)
    if verbose and is_first_process():
        count = sum(row.binarize for row in rows)
        print(f"binarize: {type(model).__name__} has {counted(count, 'binary layer')} now", file=sys.stderr)
        print(rows.outcome, file=sys.stderr)
    return model


def _input_sign(asked: InputSign, surrogate: str) -> Callable[[int], nn.Module]:
    """The function from a number of channels to the module that binarizes such an input."""
    lookup("surrogate gradient", surrogate, SURROGATES)
    rsign = partial(RSign, surrogate=surrogate)
    known = {"rsign": rsign, "sign": partial(rsign, shift=False)}
    return asked if callable(asked) else lookup("input_sign", asked, known)


def _centres(input_sign: InputSign, calibrate: object) -> bool:
    """Whether images set shifts that every binary layer has."""
    return calibrate is not None and input_sign in ("rsign", RSign)


def _make_binary(layer: nn.Module, make: Callable[[int], nn.Module], parts: tuple[str, ...]) -> None:
    # The type is changed, as torch's own parametrizations do it: the layer stays the same object, so
    # that whoever holds it, its weight or a hook on it still works.
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    sign = make(channels).to(layer.weight).train(layer.training)
    layer.__class__ = TWINS[type(layer)]  # type: ignore[assignment]
    assert isinstance(layer, BinaryLayer)
    layer.set_up(sign, shortcut=SHORTCUT in parts)
    if SCALE in parts:
        layer.add_scale()


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
    """What replaces a ReLU: slopes per channel where all uses have one known width, of its input's dtype."""
    widths = reading.widths.get(relu, set())
    width = next(iter(widths)) if len(widths) == 1 else None
    return nn.PReLU(width or 1).to(reading.likes.get(relu, next(model.parameters())))
