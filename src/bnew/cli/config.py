"""A recipe from a file, which the options on the command line then change."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnew.errors import BnewError, first_line
from bnew.recipe import Recipe
from bnew.references import TORCHVISION
from bnew.registry import method_row

# Fields that name other folders and files, relative to the folder of the recipe's own run.
LINKS = ("init", "teacher", "weights")


def config_of(words: Sequence[str]) -> Path | None:
    """The file that follows --config in ``words``; of several the last, and None without one."""
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == "--config":
            found = value if equals else following
    return Path(found) if found else None


def read_config(path: Path) -> Recipe:
    """The recipe in the file ``path``, with its links to other runs relative to the working directory.

    Raises:
        BnewError: the file cannot be read, is not JSON, or holds no recipe.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except IsADirectoryError:
        raise BnewError(f"--config {path} is a folder: give the file recipe.json in it") from None
    except OSError as error:
        raise BnewError(f"--config {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise BnewError(f"--config {path} is not JSON ({first_line(error)})") from None
    if not isinstance(data, dict):
        raise BnewError(f"--config {path} holds no recipe, but must be as a run's recipe.json")
    for name in LINKS:
        link = data.get(name)
        if not isinstance(link, str | None):
            raise BnewError(f"--config {path}: {name} is {link!r}, but must be a path, or null")
        if link and not link.startswith(TORCHVISION):
            data[name] = os.path.normpath(path.parent / link)
    try:
        return Recipe.from_dict(_by_length(data))
    except (BnewError, TypeError) as error:
        raise BnewError(f"--config {path}: {first_line(error)}") from None


def _by_length(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """``data`` with what it does not say of its method following from the length of the run.

    Every run states that in its recipe. What a person wrote does not, and means the same as on the command
    line.
    """
    name, options = data.get("method"), data.get("method_options", {})
    if not isinstance(name, str) or not isinstance(options, Mapping):
        return data
    row = method_row(name)
    if set(row.instead) & set(options):
        return data
    return {**data, "method_options": {**row.by_length, **options}}


def with_recipe(signature: inspect.Signature, recipe: Recipe) -> inspect.Signature:
    """``signature`` with ``recipe`` as the default of its parameter ``recipe``."""
    named = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values()]
    return signature.replace(
        parameters=[p.replace(default=recipe) if p.name == "recipe" else p for p in named]
    )
