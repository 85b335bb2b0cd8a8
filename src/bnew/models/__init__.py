"""Architectures by name, one a file; :data:`MODELS` has a row for each."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from bnew.errors import BnewError, lookup, unknown
from bnew.lazy import fetched
from bnew.references import MODEL_FORMS, is_reference
from bnew.registry import MODELS

if TYPE_CHECKING:
    from torch import nn

    from bnew.models.birealnet import BiRealNet as BiRealNet
    from bnew.models.bnext import BNext as BNext
    from bnew.models.quicknet import QuickNet as QuickNet
    from bnew.models.reactnet import ReActNet18 as ReActNet18
    from bnew.models.reactnet import ReActNetA as ReActNetA
    from bnew.models.wideresnet import WideResNet as WideResNet

if not TYPE_CHECKING:  # who would take any name
    __getattr__ = fetched(
        __name__,
        {
            "BiRealNet": "bnew.models.birealnet",
            "BNext": "bnew.models.bnext",
            **dict.fromkeys(("ReActNet18", "ReActNetA"), "bnew.models.reactnet"),
            "QuickNet": "bnew.models.quicknet",
            "WideResNet": "bnew.models.wideresnet",
        },
    )


def list_models(pattern: str = "*") -> list[str]:
    """The names that :func:`create_model` knows, sorted; of those, the ones that match ``pattern``.

    Args:
        pattern: of ``fnmatch``, such as ``*net18``, or a part of the name, such as ``react``; upper and lower
            case are the same.
    """
    if not set(pattern) & set("*?["):
        pattern = f"*{pattern}*"
    return [name for name in sorted(MODELS) if fnmatchcase(name, pattern.lower())]


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """A new model, with random weights or those of a trained network.

    Args:
        name: one of :func:`list_models`; or ``package.module:factory``, ``timm:NAME`` or
            ``torchvision:NAME``, whose network is returned as it is made: :func:`bnew.binarize` makes it
            binary.
        **kwargs: the architecture's own options, see its class; all have ``num_classes`` and
            ``in_channels``, for which timm's name ``in_chans`` may stand. ``pretrained``, such as
            ``"digits"``, is one of :func:`bnew.list_pretrained`, whose weights it then has; with another
            ``num_classes``, all but those of the last layer.

    Raises:
        BnewError: unknown name or option, or a value of the wrong kind; trained weights of another
            architecture.
    """
    if is_reference(name):
        from bnew.models.own import create_own

        return create_own(name, **_one_name(name, kwargs))
    row = lookup("model", name, MODELS, MODEL_FORMS)
    make = row.load()
    kwargs = _one_name(name, kwargs)
    if "pretrained" in kwargs:
        from bnew.models.trained import create_trained

        return create_trained(name, kwargs.pop("pretrained"), kwargs)
    options = {option: parameter.default for option, parameter in inspect.signature(make).parameters.items()}
    for option, value in kwargs.items():
        if option not in options:
            raise unknown(f"option of model {name}", option, options)
        kwargs[option] = _checked(name, option, value, options[option])
    return make(**{**row.options, **kwargs})


def _one_name(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """``options`` with ``in_channels`` for timm's ``in_chans``."""
    if "in_chans" not in options:
        return options
    if "in_channels" in options:
        raise BnewError(f"model {name}: in_chans is in_channels under another name: give one of them")
    return {"in_channels" if key == "in_chans" else key: value for key, value in options.items()}


def _checked(model: str, option: str, value: Any, default: object) -> Any:
    """An option as its default is: a switch, a positive whole number or several, or a name."""
    several = isinstance(default, tuple) and isinstance(value, list | tuple)  # a list, from JSON
    kind: type = int if several else type(default)
    values: Sequence[Any] = value if several else (value,)
    if any(type(each) is not kind for each in values):
        raise BnewError(f"model {model}: {option} is {value!r}, but takes values like {default!r}")
    if kind is int and any(each < 1 for each in values):
        raise BnewError(f"model {model}: {option} is {value}, but must be at least 1")
    return tuple(value) if several else value
