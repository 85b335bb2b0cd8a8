"""Train binarized neural networks the easy way, and run them as real bits.

``import bnew`` alone loads no torch: every public name is fetched when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name → module that defines it
_NAMES = {
    "BnewError": "bnew.errors",
    "BinaryConv2d": "bnew.layers",
    "BinaryLinear": "bnew.layers",
    "ChannelScale": "bnew.layers",
    "RPReLU": "bnew.layers",
    "RSign": "bnew.layers",
    "binary_parameters": "bnew.layers",
    "named_binary_parameters": "bnew.layers",
    "real_parameters": "bnew.layers",
    "sign": "bnew.layers",
    "binarize": "bnew.convert",
    "summary": "bnew.convert",
    "create_model": "bnew.models",
    "list_models": "bnew.models",
}
_MODULES = ("methods", "models", "data", "recipes", "experiments", "results", "report", "train", "layers")

__all__ = ["__version__", *_NAMES, *_MODULES]

if TYPE_CHECKING:
    from bnew import data, experiments, layers, methods, models, recipes, report, results, train
    from bnew.convert import binarize, summary
    from bnew.errors import BnewError
    from bnew.layers import (
        BinaryConv2d,
        BinaryLinear,
        ChannelScale,
        RPReLU,
        RSign,
        binary_parameters,
        named_binary_parameters,
        real_parameters,
        sign,
    )
    from bnew.models import create_model, list_models


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"bnew.{name}")
    raise AttributeError(f"module 'bnew' has no attribute '{name}'")


def __dir__() -> list[str]:
    return list(__all__)
