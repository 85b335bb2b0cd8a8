"""Types of the command line's arguments, and how they are parsed."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tyro
from tyro.conf import Positional
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

from bnew.deploy.limits import Limits
from bnew.errors import BnewError
from bnew.experiments.plan import STEPS
from bnew.experiments.published import CIFAR10, EXPERIMENTS, IMAGENET
from bnew.recipe import Recipe
from bnew.registry import DATASETS, METHODS, MODELS
from bnew.training.machine import Machine

logger = logging.getLogger("bnew")


RunArgument: TypeAlias = Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
NetworkArgument: TypeAlias = Annotated[Positional[Path], tyro.conf.arg(metavar="RUN|FILE")]
FileArgument: TypeAlias = Annotated[Positional[Path], tyro.conf.arg(metavar="FILE")]
OnnxArgument: TypeAlias = Annotated[Positional[Path], tyro.conf.arg(metavar="FILE.onnx")]
ExportArgument: TypeAlias = Annotated[Positional[Path], tyro.conf.arg(metavar="RUN|FILE.bnew")]
ToArgument: TypeAlias = Annotated[Positional[Path], tyro.conf.arg(metavar="FILE|DIR")]
FolderArgument: TypeAlias = Annotated[Positional[Path], tyro.conf.arg(metavar="DIR")]
OutputArgument: TypeAlias = Annotated[Positional[Path], tyro.conf.arg(metavar="[FILE]")]
RunArguments: TypeAlias = Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
ImageArguments: TypeAlias = Annotated[
    Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE [IMAGE ...]")
]
ExperimentArgument: TypeAlias = Annotated[Positional[str], tyro.conf.arg(metavar="EXPERIMENT")]
ModelArgument: TypeAlias = Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")]
MachineOptions: TypeAlias = Annotated[Machine, tyro.conf.arg(name="")]
RecipeOptions: TypeAlias = Annotated[Recipe, tyro.conf.arg(name="")]
LimitOptions: TypeAlias = Annotated[Limits, tyro.conf.arg(name="")]


def options_of(words: list[str]) -> dict[str, Any]:
    """``name=value`` words as a dictionary; a value is JSON or a Python literal, or else text.

    Raises:
        ValueError: a word without an equals sign.
    """
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"'{word}' is not NAME=VALUE")
        options[name] = _value(value)
    return options


def name_or_options(words: list[str]) -> dict[str, Any] | str:
    """A single word without an equals sign as it is, or :func:`options_of`.

    Raises:
        ValueError: one of several words is without an equals sign.
    """
    return words[0] if len(words) == 1 and "=" not in words[0] else options_of(words)


def _value(text: str) -> Any:
    """``text`` as JSON or as a Python literal that JSON can hold, or else as it is."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
            json.dumps(value, allow_nan=False)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return value
    return text


def size_of(option: str, text: str | None) -> int | None:
    """A number of bytes: ``262144``, or ``256k`` or ``1M`` with factors of 1024; None if there is none.

    Raises:
        BnewError: the text of ``option`` is no such number.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)([kM]?)B?", text)
    if found is None or int(found[1]) == 0:
        raise BnewError(f"{option} is '{text}', and must be a number of bytes, such as 256k or 1M")
    return int(found[1]) << {"": 0, "k": 10, "M": 20}[found[2]]


def constructors() -> ConstructorRegistry:
    """tyro's registry with what it does not parse by itself: mappings, or a name in place of one."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        named = info.type == Mapping[str, Any] | str
        if info.type_origin is not Mapping and not named:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="NAME | [NAME=VALUE ...]" if named else "[NAME=VALUE ...]",
            instance_from_str=name_or_options if named else options_of,
            is_instance=lambda value: isinstance(value, Mapping) or (named and isinstance(value, str)),
            str_from_instance=lambda value: (
                [value] if isinstance(value, str) else [f"{k}={v}" for k, v in value.items()]
            ),
        )

    return registry


# What the columns of an epoch's row mean.
COLUMNS = (
    "An epoch's row: distance is the mean distance of the binary layers' weights to ±1, at ±1 their share "
    "that is there, flips how many signs changed in the epoch; * marks the best epoch so far."
)


def names() -> dict[str, tuple[str, ...]]:
    """The names that the help texts list, by kind, including those that a user has registered."""
    return {
        "columns": (COLUMNS,),
        "experiments": tuple(EXPERIMENTS),
        "phase2": tuple(CIFAR10.phase2),
        "imagenet_phase2": tuple(IMAGENET.phase2),
        "on_request": tuple(CIFAR10.on_request),
        "steps": STEPS,
        "methods": tuple(METHODS),
        "models": tuple(MODELS),
        "datasets": tuple(DATASETS),
    }
