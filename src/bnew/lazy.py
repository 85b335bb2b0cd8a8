"""Lazy public names of a package: importing the package loads no torch, using such a name may."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any


def fetched(package: str, names: Mapping[str, str], modules: Collection[str] = ()) -> Callable[[str], Any]:
    """A module ``__getattr__`` for ``package`` that imports a name on first use.

    Args:
        package: the package's ``__name__``.
        names: public name → the module that defines it.
        modules: names of the package's public modules.
    """

    def fetch(name: str) -> Any:
        if name in names:
            value = getattr(importlib.import_module(names[name]), name)
        elif name in modules:
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        setattr(sys.modules[package], name, value)
        return value

    return fetch
