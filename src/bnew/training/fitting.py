"""Checks whether a run can restore a state that was read from a file, before any of it is restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bnew.training.checkpoint import Unusable

# Dictionaries that are empty at the start of a run → the types of their values.
VALUES: dict[str, tuple[type, ...]] = {
    "best": (int, float),
    "at_freezing": (float,),
    "precision": (int, float),
    "broken": (str,),
}

# What the first versions did not save of a method, which knows what that means.
LATER = ("started", "marks")


def check_state(
    found: Mapping[str, Any],
    own: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    forced: bool = False,
) -> None:
    """Check that a run can restore all of ``found``.

    Args:
        found: the state that was read.
        own: the state that the run would save now, before its first step.
        optimizer: the run's.
        names: of the optimizer's parameters.
        forced: real numbers may have another precision, and state that the optimizer no longer keeps is
            dropped from ``found``.

    Raises:
        Unusable: it cannot; the message names the entry.
    """
    _check_keys(found, own, "content")
    for key, value in own.items():
        if key == "optimizer":
            check_optimizer(found[key], optimizer, names, forced)
        elif key == "method":
            check_method(found[key], value, forced)
        elif key == "callbacks":  # what they hold is theirs
            check_values(found[key], (dict,), key)
        elif key in VALUES and not (value and found[key]):
            check_values(found[key], VALUES[key], key)
        elif key == "best_sha256":
            if not isinstance(found[key], str | None):
                raise _misfit(key, found[key], "")
        else:
            check_like(
                found[key], value, key, forced or key == "meter"
            )  # the meter's precision depends on the device
    if found["best"] and not {"epoch", "accuracy"} <= found["best"].keys():
        raise Unusable("does not fit this run: its best has no epoch or no accuracy")


def check_like(found: Any, own: Any, name: str, cast: bool = False) -> None:
    """Check that ``found`` has the structure of ``own``: keys, lengths, types, shapes and types of tensors.

    With ``cast``, real numbers may have another precision. ``name`` is that of ``found`` in messages.

    Raises:
        Unusable: it has not; the message names the entry.
    """
    if isinstance(own, Tensor):
        same = isinstance(found, Tensor) and (found.layout, found.device.type) == (torch.strided, "cpu")
        if same and cast and own.is_floating_point():
            same = found.is_floating_point() and found.shape == own.shape
        elif same:
            same = (found.dtype, found.shape) == (own.dtype, own.shape)
    elif isinstance(own, dict):
        same = isinstance(found, dict)
    elif isinstance(own, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(own)
    else:
        same = type(found) is type(own)
    if not same:
        raise _misfit(name, found, own)
    if isinstance(own, dict):
        _check_keys(found, own, name)
        for key, value in own.items():
            check_like(found[key], value, f"{name}[{key!r}]", cast)
    elif isinstance(own, list | tuple):
        for i, (a, b) in enumerate(zip(found, own, strict=True)):
            check_like(a, b, f"{name}[{i}]", cast)


def _check_keys(found: Mapping[Any, Any], own: Mapping[Any, Any], name: str) -> None:
    missing, extra = (sorted(map(repr, a.keys() - b.keys())) for a, b in ((own, found), (found, own)))
    if missing:
        raise Unusable(f"does not fit this run: its {name} has no {missing[0]}")
    if extra:
        raise Unusable(f"does not fit this run: its {name} has {extra[0]}, which this run does not have")


def check_values(found: Any, kinds: tuple[type, ...], name: str) -> None:
    """Check that ``found`` is a dictionary from text to values of ``kinds``.

    Raises:
        Unusable: it is not.
    """
    if not isinstance(found, dict) or any(type(key) is not str for key in found):
        raise _misfit(name, found, {})
    for key, value in found.items():
        if type(value) not in kinds:
            raise _misfit(f"{name}[{key!r}]", value, kinds[0]())


def check_method(found: Any, own: dict[str, Any], cast: bool = False) -> None:
    """:func:`check_like` for the state of a method, which may have dropped its tensors if it is frozen.

    Raises:
        Unusable: it is of another method or of other weights.
    """
    frozen = isinstance(found, dict) and found.get("frozen") is True
    dropped = {key for key in own if frozen and found.get(key) == []}
    if isinstance(found, dict):
        own = {key: value for key, value in own.items() if key in found or key not in LATER}
    check_like(found, {key: [] if key in dropped else value for key, value in own.items()}, "method", cast)
    for key in ("method", "shapes"):
        if found[key] != own[key]:
            raise Unusable(f"does not fit this run: its method has the {key} {found[key]}, not {own[key]}")


def check_optimizer(
    found: Any, optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], forced: bool = False
) -> None:
    """Check that ``found`` is a state of ``optimizer``: each parameter's state has its shape and type.

    A fused kernel would crash the process otherwise. ``names`` are those of the parameters. If ``forced``,
    precisions may differ, and state that ``optimizer`` does not keep is dropped from ``found``, so that it is
    not saved again: for example momenta, for SGD without momentum.

    Raises:
        Unusable: it is not; the message names the parameter.
    """
    groups = [{"params": group["params"]} for group in optimizer.state_dict()["param_groups"]]
    try:
        saved = [{"params": group["params"]} for group in found["param_groups"]]
        entries = dict(found["state"])
    except (KeyError, TypeError, ValueError):
        raise Unusable("does not fit this run: its optimizer entry is not an optimizer's state") from None
    if saved != groups:
        raise Unusable("does not fit this run: its optimizer has other parameters")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = _kept_by(optimizer)
    for number, entry in list(entries.items()):
        if type(number) is not int or not 0 <= number < len(parameters):
            raise Unusable(f"does not fit this run: its optimizer has state for no parameter, {number!r}")
        p = parameters[number]
        if entry != {}:  # empty: a parameter that has had no gradient yet
            own = {key: p if value.shape == (1,) else value for key, value in kept.items()}
            if forced and isinstance(entry, dict):
                entry = entries[number] = {key: entry[key] for key in entry if key in own}
            check_like(entry, own, f"optimizer's state of '{names[p]}'", forced)
    if forced:
        found["state"] = entries


def _kept_by(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state that such an optimizer keeps for a parameter of shape (1,), found by taking a step."""
    p = nn.Parameter(torch.zeros(1))
    p.grad = torch.zeros(1)
    twin = type(optimizer)([p], **optimizer.defaults)
    twin.step()
    return dict(twin.state[p])


def _misfit(name: str, found: Any, own: Any) -> Unusable:
    return Unusable(f"does not fit this run: its {name} is {_kind(found)}, and here it is {_kind(own)}")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        layout = "" if value.layout == torch.strided else f" ({value.layout})"
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}{layout}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return f"of type {type(value).__name__}"
