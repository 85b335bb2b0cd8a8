"""Types of the command line's arguments, and how they are parsed."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

import tyro
from tyro.conf import Positional
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

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
OnnxArgument: TypeAlias = Annotated[Positional[Path], tyro.conf.arg(metavar="FILE.onnx|FILE.tflite")]
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


def _whole(word: str) -> int:
    return int(word.replace("_", "x"))  # of Python alone


# Type → what a value of it is called, in a help text and in a message, and how it is read.
KINDS: dict[Any, tuple[str, str, Callable[[str], Any]]] = {
    int: ("INT", "a whole number", _whole),
    float: ("FLOAT", "a number", float),
    str: ("STR", "a text", str),
    Path: ("PATH", "a path", Path),
    bool: ("True|False", "True or False", {"True": True, "False": False}.__getitem__),
}


def constructors() -> ConstructorRegistry:
    """tyro's registry with what it does not parse by itself: mappings, or a name in place of one.

    And with numbers, texts and paths, several of them, or None in place of them, whose help and messages are
    easier to read than tyro's own.
    """
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
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

    @registry.primitive_rule
    def _(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        return _values(info.type)

    return registry


def _values(kind: Any) -> PrimitiveConstructorSpec[Any] | None:
    """How one of :data:`KINDS` is read, a tuple of it, or None in place of that; None: it is another type."""
    without = [part for part in get_args(kind) if part is not NoneType]
    optional = get_origin(kind) in (Union, UnionType) and len(without) == 1
    inner = without[0] if optional else kind
    parts = get_args(inner) if get_origin(inner) is tuple else (inner,)
    if parts[0] not in KINDS or not set(parts[1:]) <= {parts[0], ...} or kind is bool:  # which is a flag
        return None
    metavar, called, read = KINDS[parts[0]]
    any_number = ... in parts
    several = any_number or len(parts) > 1
    if any_number:
        metavar, called = f"{metavar} ...", called.replace("a ", "one or more ") + "s"
    elif several:
        metavar, called = " ".join([metavar] * len(parts)), f"{len(parts)} {called.removeprefix('a ')}s"
    if optional:
        called += ", or None"

    def from_words(words: list[str]) -> Any:
        if optional and words == ["None"]:
            return None
        try:
            if several and not any_number and len(words) != len(parts):
                raise ValueError
            values = tuple(map(read, words))
        except (ValueError, KeyError):
            raise ValueError(f"is '{' '.join(words)}', but must be {called}") from None
        return values if several else values[0]

    return PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar=f"{metavar}|None" if optional else metavar,
        instance_from_str=from_words,
        is_instance=lambda value: (
            (optional and value is None)
            or (isinstance(value, tuple) if several else isinstance(value, parts[0]))
        ),
        str_from_instance=lambda value: (
            ["None"] if value is None else list(map(str, value if several else [value]))
        ),
    )


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
