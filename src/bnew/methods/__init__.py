"""Methods: what decides the binary weights, step by step. Each rides on any optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from bnew.errors import BnewError, check_options, lookup
from bnew.methods.base import Binarizer
from bnew.methods.bnew import BNEW
from bnew.methods.bop import Bop
from bnew.methods.bop2nd import Bop2ndOrder
from bnew.methods.clip import Clip
from bnew.methods.diode import Diode
from bnew.methods.mirror import BinaryMirrorDescent
from bnew.methods.proxparq import ProxPARQ
from bnew.methods.proxquant import ProxQuant
from bnew.methods.real import Real
from bnew.methods.ste import STE
from bnew.methods.values import binary_value
from bnew.registry import METHODS


def create_method(
    name: str | None, params: Iterable[nn.Parameter], total_steps: int, **options: Any
) -> Binarizer:
    """The method ``name`` for ``params``; None gives a plain Binarizer, which binarizes nothing.

    Raises:
        BnewError: unknown method or option, an impossible value, or no ``params``.
    """
    if name is None:
        return Binarizer([], total_steps)
    method = lookup("method", name, METHODS).load()
    if not issubclass(method, Binarizer):
        raise BnewError(f"method {name} is {method.__name__}, which is no subclass of bnew.methods.Binarizer")
    check_options(f"method {name}", method, options)
    return method(params, total_steps, **options)


__all__ = [
    "BNEW",
    "METHODS",
    "STE",
    "Binarizer",
    "BinaryMirrorDescent",
    "Bop",
    "Bop2ndOrder",
    "Clip",
    "Diode",
    "ProxPARQ",
    "ProxQuant",
    "Real",
    "binary_value",
    "create_method",
]
