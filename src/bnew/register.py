"""Decorators that register a user's own methods, models and data sets, without torch.

The module that has them is imported before their names are used::

    @bnew.register_method("mine", label="Mine", color="#0b7285", freeze=0.98)
    class Mine(bnew.methods.Binarizer): ...
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bnew.errors import BnewError, as_number, check_options, kind_of
from bnew.registry import (
    CHANNELS,
    DATASETS,
    GREY,
    METHODS,
    MODELS,
    DatasetRow,
    MethodRow,
    ModelRow,
    reference,
)

if TYPE_CHECKING:
    from torch import nn

    from bnew.data.sources import Parts
    from bnew.methods.base import Binarizer
    from bnew.recipe import Recipe

T = TypeVar("T")
M = TypeVar("M", bound="type[Binarizer]")
N = TypeVar("N", bound="Callable[..., nn.Module]")
F = TypeVar("F", bound="Callable[[Path, bool], Parts]")


def register_method(
    name: str,
    *,
    label: str | None = None,
    color: str = GREY,
    phase: int = 2,
    freeze: float = 1.0,
    published: Mapping[str, Any] | None = None,
    scale: Callable[[Recipe, float], dict[str, Any]] | None = None,
) -> Callable[[M], M]:
    """Register the decorated subclass of :class:`bnew.methods.Binarizer` as the method ``name``.

    Args:
        name: for recipes and the command line.
        label: what tables and legends call it; by default the name.
        color: of its curves, as "#rrggbb".
        phase: 1 if its weights stay real unless they are frozen, 2 if the run ends with binary ones.
        freeze: share of the epochs after which its weights are frozen, where a recipe says nothing; 1: never.
            A class that takes an option ``freeze_at`` gets this share.
        published: options that :meth:`bnew.Recipe.published` fills in.
        scale: ``scale(recipe, factor)`` returns the fields of a recipe that change when a run gets ``factor``
            times as many steps; None: all settings follow the share of the run that is done.

    Raises:
        BnewError: a name that is registered already, what is no class, an unknown option, or an impossible
            value.
    """
    if phase not in (1, 2):
        raise BnewError(f"the phase of method {name} is {phase!r}, but must be 1 or 2")
    as_number(f"freeze of method {name}", freeze, least=0, most=1)
    if not (isinstance(color, str) and re.fullmatch("#[0-9a-fA-F]{6}", color)):
        raise BnewError(f"the color of method {name} is {color!r}, but must be one such as '#0b7285'")

    def register(make: M) -> M:
        bases = make.__mro__ if isinstance(make, type) else ()
        if "bnew.methods.base:Binarizer" not in map(reference, bases[1:]):
            raise BnewError(
                f"method {name} is {kind_of(make)}, but must be a subclass of bnew.methods.Binarizer"
            )
        check_options(f"method {name}", make, published or {})
        takes_freeze_at = "freeze_at" in inspect.signature(make).parameters
        row = MethodRow(
            make,
            label or name,
            color,
            phase,
            freeze,
            takes_freeze_at=takes_freeze_at,
            published=published or {},
            scale=scale,
        )
        _add("method", METHODS, name, row, make)
        return make

    return register


def register_model(name: str, **options: Any) -> Callable[[N], N]:
    """Register the decorated class or function, which makes a network, as the model ``name``.

    It takes ``num_classes`` and ``in_channels``, and a default for every option: a switch, a positive whole
    number or a name. ``options`` are other defaults for this name, so that one class may have several::

        @bnew.register_model("small", width=16)
        @bnew.register_model("large", width=64)
        def net(num_classes: int = 10, in_channels: int = 3, width: int = 32) -> nn.Module: ...

    Raises:
        BnewError: a name that is registered already, or a class that does not take what it must.
    """

    def register(make: N) -> N:
        if not hasattr(make, "__qualname__"):
            raise BnewError(f"model {name} is {make!r}, but must be a class or a function")
        parameters = inspect.signature(make).parameters
        for needed in ("num_classes", "in_channels", *options):
            if needed not in parameters:
                raise BnewError(f"model {name} takes no {needed}: add it to the options of {make.__name__}")
        several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for option, parameter in parameters.items():
            if parameter.default is parameter.empty and parameter.kind not in several:
                raise BnewError(f"option {option} of model {name} has no default: give it one")
        _add("model", MODELS, name, ModelRow(make, options), make)
        return make

    return register


def register_dataset(
    name: str,
    *,
    files: str = "",
    mode: str = "RGB",
    flip: bool = True,
    padding: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Callable[[F], F]:
    """Register the decorated function as the data set ``name``.

    It is called as ``fetch(data_dir, download)`` where there is no folder of images ``data_dir/name``, and
    returns :class:`bnew.data.Parts`. The other arguments are those of :class:`DatasetRow`.

    Raises:
        BnewError: a name that is registered already, what is no function, a mode that is neither RGB nor L,
            or another number of means than of channels.
    """
    if mode not in CHANNELS:
        raise BnewError(f"the mode of data set {name} is {mode!r}, but must be RGB or L")
    known = [len(values) for values in (mean, std) if values is not None]
    if known and known != [CHANNELS[mode]] * 2:
        raise BnewError(
            f"mean and std of data set {name} are {mean!r} and {std!r}, but must both have a number for each "
            f"channel of {mode}, or both be left out"
        )

    def register(fetch: F) -> F:
        if not hasattr(fetch, "__qualname__"):
            raise BnewError(f"data set {name} is {fetch!r}, but must be a function")
        _add(
            "data set",
            DATASETS,
            name,
            DatasetRow(fetch, files, mode, flip, padding, mean=mean, std=std),
            fetch,
        )
        return fetch

    return register


def _add(kind: str, table: dict[str, T], name: str, row: T, made: Any) -> None:
    """Put ``row`` into ``table``; the same class or function may come again, as from a notebook's cell.

    Raises:
        BnewError: ``name`` is no name, or taken.
    """
    if not (isinstance(name, str) and name.replace("-", "_").isidentifier()):
        raise BnewError(f"the name of a {kind} is {name!r}, but must be letters, digits, _ and -")
    if name in table:
        taken: Any = table[name]
        owner = reference(taken.fetch if isinstance(taken, DatasetRow) else taken.make)
        if owner != reference(made):
            by = f", by {owner}" if owner else ""
            raise BnewError(f"{kind} '{name}' is registered already{by}: choose another name")
    table[name] = row
