"""Architectures by name, one a file; :data:`MODELS` has a row for each."""

from __future__ import annotations

import inspect
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from bnew.errors import BnewError, lookup, unknown
from bnew.lazy import fetched
from bnew.registry import MODELS

if TYPE_CHECKING:
    from bnew.models.birealnet import BiRealNet as BiRealNet
    from bnew.models.reactnet import ReActNet18 as ReActNet18
    from bnew.models.reactnet import ReActNetA as ReActNetA
    from bnew.models.wideresnet import WideResNet as WideResNet

if not TYPE_CHECKING:  # who would take any name
    __getattr__ = fetched(
        __name__,
        {
            "BiRealNet": "bnew.models.birealnet",
            **dict.fromkeys(("ReActNet18", "ReActNetA"), "bnew.models.reactnet"),
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
    """A new model with random weights.

    Args:
        name: one of :func:`list_models`.
        **kwargs: the architecture's own options, see its class; all have ``num_classes`` and
            ``in_channels``, for which timm's name ``in_chans`` may stand.

    Raises:
        BnewError: unknown name or option, or a value of the wrong kind.
    """
    row = lookup("model", name, MODELS)
    make = row.load()
    options = {option: parameter.default for option, parameter in inspect.signature(make).parameters.items()}
    if "in_chans" in kwargs:
        if "in_channels" in kwargs:
            raise BnewError(f"model {name}: in_chans is in_channels under another name: give one of them")
        kwargs["in_channels"] = kwargs.pop("in_chans")
    for option, value in kwargs.items():
        if option not in options:
            raise unknown(f"option of model {name}", option, options)
        _check(name, option, value, options[option])
    return make(**{**row.options, **kwargs})


def _check(model: str, option: str, value: object, default: object) -> None:
    """An option takes what its default is: a switch, a positive whole number or a name."""
    if type(value) is not type(default):
        raise BnewError(f"model {model}: {option} is {value!r}, but takes values like {default!r}")
    if type(value) is int and value < 1:
        raise BnewError(f"model {model}: {option} is {value}, but must be at least 1")
