"""Errors whose message is one sentence for the user: what is wrong, where, what to do."""

from __future__ import annotations

import difflib
import errno
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Any, TypeVar

from bnew.text import printable

T = TypeVar("T")

# Phrases by which PyTorch and its backends report too little memory in errors of a general type.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "_ALLOC_FAILED")


class BnewError(ValueError):
    """Bad input. The message says what is wrong, where, and what to do.

    The command line prints only the message and exits with code 2. In Python it is a ``ValueError``. The
    message may quote a file, so invisible characters in it are escaped.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class NumericalError(BnewError):
    """The loss became NaN or infinite."""


class Interrupted(Exception):
    """A signal stopped the run after it saved a checkpoint; the message says how to resume."""


class ProcessLost(Exception):
    """Another process of the run was lost; the message says how to resume."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` reports that the host or a device ran out of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's
    return known or (isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY))


def first_line(error: BaseException) -> str:
    """The first line of the message of ``error``, or the name of its class if the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def is_whole(value: object) -> bool:
    """Whether ``value`` is a whole number, NumPy's too; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def kind_of(value: object) -> str:
    """What ``value`` is, for a message: ``a list of 3``, ``the class Stop``, ``'x'``, ``a Tensor``."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str | int | float | bool | None):
        return repr(value)
    name = type(value).__name__
    of = f" of {len(value)}" if isinstance(value, list | tuple) else ""
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}{of}"


def unknown(kind: str, name: str, allowed: Iterable[str]) -> BnewError:
    """The error for a ``name`` that is not one of ``allowed``. Its message suggests the nearest name."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return BnewError(f"unknown {kind} '{name}': {hint}allowed are {', '.join(names)}")


def lookup(kind: str, name: str, table: Mapping[str, T], besides: Iterable[str] = ()) -> T:
    """``table[name]``. The forms of name that are allowed ``besides`` are only listed in the message.

    Raises:
        BnewError: the name is not in ``table``, see :func:`unknown`.
    """
    if name not in table:
        raise unknown(kind, name, [*table, *besides])
    return table[name]


def as_number(
    name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> float:
    """``value`` as a float, checked: finite, at least ``least``, above ``above`` and at most ``most``.

    Raises:
        BnewError: it is not such a number; the message begins with ``name``.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and least <= value <= most and value > above:
        return float(value)
    limits = ((least, "at least"), (above, "above"), (most, "at most"))
    allowed = " and ".join(f"{word} {limit:g}" for limit, word in limits if math.isfinite(limit))
    raise BnewError(f"{name} is {value!r}, but must be a number{' ' * bool(allowed)}{allowed}")


def check_options(kind: str, make: Callable[..., Any], options: Iterable[str]) -> None:
    """Check that each of ``options`` is a keyword-only parameter of ``make``.

    Raises:
        BnewError: one is not, see :func:`unknown`.
    """
    parameters = inspect.signature(make).parameters.items()
    allowed = [name for name, parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in allowed:
            raise unknown(f"option of {kind}", option, allowed)
