"""What went wrong, in one sentence for the person who can put it right."""

from __future__ import annotations

import difflib
import errno
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from bnew.text import printable

T = TypeVar("T")

# How PyTorch and its backends say that there is not enough memory, where the error's type does not.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "_ALLOC_FAILED")


class BnewError(ValueError):
    """A mistake in the input: the message says what is wrong and what to do.

    The command line prints the message alone and exits with code 2; in Python it is a ``ValueError``. As it
    may quote a file, characters that cannot be seen are escaped in it.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class NumericalError(BnewError):
    """The loss became NaN or infinite."""


class Interrupted(Exception):
    """A signal stopped the run, which has saved where it was; the message says how to go on."""


class ProcessLost(Exception):
    """Another process of the run is gone; the message says how to go on."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that there was not enough memory, of the machine or of a device."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # that of torch
    return known or (isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY))


def first_line(error: BaseException) -> str:
    """The first line of what an error of another library says, or its name."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def unknown(kind: str, name: str, allowed: Iterable[str]) -> BnewError:
    """The error for a ``name`` that is not one of ``allowed``, with the nearest name suggested."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return BnewError(f"unknown {kind} '{name}': {hint}allowed are {', '.join(names)}")


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """``table[name]``, or :func:`unknown` as a :class:`BnewError`."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def as_number(
    name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> float:
    """``value`` if it is a finite number, at least ``least``, above ``above`` and at most ``most``.

    Raises:
        BnewError: it is not; ``name`` says whose it is.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and least <= value <= most and value > above:
        return float(value)
    limits = ((least, "at least"), (above, "above"), (most, "at most"))
    allowed = " and ".join(f"{word} {limit:g}" for limit, word in limits if math.isfinite(limit))
    raise BnewError(f"{name} is {value!r}, but must be a number{' ' * bool(allowed)}{allowed}")


def check_options(kind: str, make: Callable[..., Any], options: Iterable[str]) -> None:
    """Raise :func:`unknown` unless each of ``options`` is a keyword-only parameter of ``make``."""
    parameters = inspect.signature(make).parameters.items()
    allowed = [name for name, parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in allowed:
            raise unknown(f"option of {kind}", option, allowed)
