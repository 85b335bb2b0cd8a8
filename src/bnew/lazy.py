"""Public names of a package that are fetched when they are first used: to import it alone loads no torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any


def fetched(package: str, names: Mapping[str, str], modules: Collection[str] = ()) -> Callable[[str], Any]:
    """A ``__getattr__`` for ``package``.

    Args:
        package: the package's ``__name__``.
        names: public name → the module that defines it.
        modules: names of modules of the package that are public.
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
