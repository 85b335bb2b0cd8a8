"""Networks that no row of the registry has: a user's own factories, and those of timm and torchvision."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from http.client import HTTPException
from pickle import UnpicklingError
from typing import Any

from torch import nn

from bnew.errors import BnewError, first_line, unknown
from bnew.process import is_first_process
from bnew.references import TIMM, TORCHVISION, factory

# Options that would load a file or an address of a recipe's choice.
_LOADING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
            "weights", "weights_backbone")  # fmt: skip
_FETCH_ERRORS = (OSError, RuntimeError, TypeError, EOFError, HTTPException, UnpicklingError)


def create_own(
    name: str, *, num_classes: int = 10, in_channels: int = 3, pretrained: bool = False, **options: Any
) -> nn.Module:
    """A network as its library or factory makes it: nothing in it is made binary here.

    Args:
        name: ``package.module:factory``, ``timm:NAME`` or ``torchvision:NAME``.
        num_classes: a factory must take it.
        in_channels: for timm's ``in_chans``; a factory gets it as ``in_channels`` or ``in_chans``, if it
            takes one of them.
        pretrained: with the library's weights. Only for timm; of torchvision see
            :func:`torchvision_weights`.
        options: of the network.

    Raises:
        BnewError: there is no such network, it does not take the options, or returns no module; timm is not
            installed, or its weights are not available.
    """
    if name.startswith(TIMM):
        return _of_timm(name, num_classes, in_channels, pretrained, options)
    if name.startswith(TORCHVISION):
        return _of_torchvision(name, num_classes, options)
    make = factory(name)
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    if "num_classes" not in parameters:  # also of what takes any option, such as subprocess.run
        raise BnewError(f"{name} takes no num_classes: add it to its parameters")
    given: dict[str, Any] = {"num_classes": num_classes, **options}
    channels = next((key for key in ("in_channels", "in_chans") if key in parameters), None)
    if channels is not None:
        given.setdefault(channels, in_channels)
    return _made(name, make, given)


def _made(name: str, make: Callable[..., Any], given: dict[str, Any]) -> nn.Module:
    """``make(**given)``.

    Raises:
        BnewError: it does not take these options, or returns no module.
    """
    parameters = inspect.signature(make).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        known = [parameter.name for parameter in parameters]
        for option in given:
            if option not in known:
                raise unknown(f"option of {name}", option, known)
    try:
        model = make(**given)
    except (TypeError, ValueError) as error:
        values = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise BnewError(f"{name} does not take {values} ({first_line(error)})") from error
    if not isinstance(model, nn.Module):
        raise BnewError(f"{name} returns a {type(model).__name__}, but must return a torch.nn.Module")
    return model


def _check_options(name: str, options: dict[str, Any]) -> None:
    for option in options:
        if option in _LOADING:
            raise BnewError(
                f"option {option} of {name} would load weights: use --pretrained, or --weights FILE"
            )


def _of_timm(
    name: str, num_classes: int, in_channels: int, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise BnewError(f"{name} needs the package timm: pip install 'bnew[timm]'") from None
    known = timm.list_models()
    short = name.removeprefix(TIMM)
    if short.partition(".")[0] not in known:
        near = difflib.get_close_matches(short, known, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise BnewError(f"unknown network of timm '{short}': {hint}timm.list_models() has all {len(known)}")
    _check_options(name, options)

    def make(**given: Any) -> Any:
        return timm.create_model(short, pretrained=pretrained, **given)

    given = {"num_classes": num_classes, "in_chans": in_channels, **options}
    if not pretrained:
        return _made(name, make, given)
    try:
        return _made(name, make, given)
    except _FETCH_ERRORS as error:
        raise _not_fetched(name, error) from error
    except Exception as error:  # those of the hub's client, which timm need not have
        if not type(error).__module__.startswith(("huggingface_hub", "httpx", "requests", "safetensors")):
            raise
        raise _not_fetched(name, error) from error


def _not_fetched(name: str, error: BaseException) -> BnewError:
    return BnewError(
        f"the weights of {name} were not downloaded ({first_line(error)}): connect to the network, or give a "
        "file as --weights FILE, or start from random weights without --pretrained"
    )


def _of_torchvision(name: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    from torchvision import models

    short = name.removeprefix(TORCHVISION)
    known = models.list_models(models)
    if short not in known:
        raise unknown("network of torchvision", short, known)
    _check_options(name, options)
    return _made(name, models.get_model_builder(short), {"num_classes": num_classes, **options})


def torchvision_weights(name: str) -> dict[str, Any]:
    """The state dict of ``torchvision:NAME``'s default weights, downloaded if they are not there.

    Raises:
        BnewError: it has none, or they are not available.
    """
    from torchvision import models

    short = name.removeprefix(TORCHVISION)
    try:
        weights = models.get_model_weights(short)["DEFAULT"]
    except (KeyError, ValueError):
        raise BnewError(f"{name} has no pretrained weights: leave out --pretrained") from None
    try:
        state: dict[str, Any] = weights.get_state_dict(
            progress=is_first_process(), check_hash=True, weights_only=True
        )
    except _FETCH_ERRORS as error:
        raise _not_fetched(name, error) from error
    return state
