"""Help texts of commands and options, whole paragraphs instead of the lines that docstrings have."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from bnew.deploy.limits import Limits
from bnew.recipe import Recipe
from bnew.training.machine import Machine

GROUPS = (Recipe, Machine, Limits)  # whose fields are options


def joined(text: str) -> str:
    """``text`` as one line."""
    return " ".join(text.split())


def arguments(docstring: str) -> dict[str, str]:
    """Name → text of what a docstring says below ``Args:``."""
    below = inspect.cleandoc(docstring).partition("\nArgs:\n")[2].partition("\n\n")[0]
    found = re.split(r"^(\w+): ", textwrap.dedent(below), flags=re.MULTILINE)[1:]
    return {name: joined(text) for name, text in zip(found[::2], found[1::2], strict=True)}


def fields(group: type) -> dict[str, str]:
    """Name → the docstring below a field of a dataclass."""
    (found,) = ast.parse(inspect.cleandoc(inspect.getsource(group))).body
    assert isinstance(found, ast.ClassDef)
    return {
        each.target.id: joined(text.value.value)
        for each, text in zip(found.body, found.body[1:], strict=False)
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(text.value.value, str)
    }


def documented(kind: Any, text: str) -> Any:
    """The type ``kind`` of an option with its help, which says the default unless the text does.

    That of a flag is that it is not given.
    """

    def default(label: str) -> str:
        said = label in ("", "False") or (label == "None" and re.search("default", text, re.IGNORECASE))
        return "" if said else f"(default: {label})"

    return Annotated[kind, tyro.conf.arg(help=text, help_behavior_hint=default)]


def with_help(command: Callable[..., Any], docstring: str) -> inspect.Signature:
    """The signature of ``command`` with what ``docstring`` says of its parameters."""
    signature, texts = inspect.signature(command, eval_str=True), arguments(docstring)
    parameters = signature.parameters.values()
    return signature.replace(
        parameters=[p.replace(annotation=documented(p.annotation, texts[p.name])) for p in parameters]
    )


def add_groups(registry: ConstructorRegistry) -> ConstructorRegistry:
    """``registry``, which now makes the fields of :data:`GROUPS` options with their help."""

    @registry.struct_rule
    def _(info: StructTypeInfo) -> StructConstructorSpec | None:
        group = info.type
        if group not in GROUPS:
            return None
        given = info.default if isinstance(info.default, group) else group()
        kinds, texts = get_type_hints(group, include_extras=True), fields(group)
        return StructConstructorSpec(
            instantiate=group,
            fields=tuple(
                StructFieldSpec(
                    name=field.name,
                    type=documented(kinds[field.name], texts[field.name]),
                    default=getattr(given, field.name),
                )
                for field in dataclasses.fields(group)
            ),
        )

    return registry
