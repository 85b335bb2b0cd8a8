"""Old names, which still work for one release and warn."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def warn_of(old: str, new: str) -> None:
    """Warn that ``old`` is written ``new`` now, at the line outside of bnew that has led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "bnew":
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"{old} is deprecated, and the next release refuses it: write {new}", DeprecationWarning, level
    )


def renamed_argument(old: str, new: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: the keyword ``old`` still stands for ``new``, and warns. The signature shows ``new``.

    Raises:
        TypeError: both are given (by the decorated function).
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                name = function.__qualname__.removesuffix(".__init__")
                if new in kwargs:
                    raise TypeError(f"{name}() got {new} and its old name {old}: give {new} alone")
                warn_of(f"{name}({old}=…)", f"{new}=…")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate
