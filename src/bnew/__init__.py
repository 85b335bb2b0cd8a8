"""Train binarized neural networks the easy way, and run them as real bits.

``import bnew`` alone loads no torch: every public name is fetched when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnew.lazy import fetched

__version__ = "0.1.0"

# public name → module that defines it
_NAMES = {
    "BnewError": "bnew.errors",
    "BinaryConv1d": "bnew.layers",
    "BinaryConv2d": "bnew.layers",
    "BinaryConvTranspose2d": "bnew.layers",
    "BinaryLinear": "bnew.layers",
    "ChannelScale": "bnew.layers",
    "RPReLU": "bnew.layers",
    "RSign": "bnew.layers",
    "binary_parameters": "bnew.layers",
    "named_binary_parameters": "bnew.layers",
    "real_parameters": "bnew.layers",
    "sign": "bnew.layers",
    "binarize": "bnew.convert",
    "plan": "bnew.convert",
    "recalibrate": "bnew.convert",
    "summary": "bnew.convert",
    "pack": "bnew.packing",
    "fit": "bnew.fit.stages",
    "load": "bnew.deploy.trained",
    "evaluate": "bnew.deploy.evaluation",
    "verify": "bnew.deploy.verify",
    "predict": "bnew.deploy.inference",
    "export_c": "bnew.deploy.c99.export",
    "export_onnx": "bnew.deploy.onnx",
    "import_onnx": "bnew.importing.importer",
    "import_tflite": "bnew.importing.importer",
    "create_model": "bnew.models",
    "list_models": "bnew.models",
    "list_pretrained": "bnew.models.trained",
    "pretrained_card": "bnew.models.trained",
    "register_dataset": "bnew.register",
    "register_method": "bnew.register",
    "register_model": "bnew.register",
}
_MODULES = ("methods", "models", "data", "recipes", "experiments", "results", "report", "train", "layers")

__all__ = ["__version__", *_NAMES, *_MODULES]

if TYPE_CHECKING:  # `as` is how a type checker knows that a name is public
    from bnew import data as data
    from bnew import experiments as experiments
    from bnew import layers as layers
    from bnew import methods as methods
    from bnew import models as models
    from bnew import recipes as recipes
    from bnew import report as report
    from bnew import results as results
    from bnew import train as train
    from bnew.convert import binarize as binarize
    from bnew.convert import plan as plan
    from bnew.convert import recalibrate as recalibrate
    from bnew.convert import summary as summary
    from bnew.deploy.c99.export import export_c as export_c
    from bnew.deploy.evaluation import evaluate as evaluate
    from bnew.deploy.inference import predict as predict
    from bnew.deploy.onnx import export_onnx as export_onnx
    from bnew.deploy.trained import load as load
    from bnew.deploy.verify import verify as verify
    from bnew.errors import BnewError as BnewError
    from bnew.fit.stages import fit as fit
    from bnew.importing.importer import import_onnx as import_onnx
    from bnew.importing.importer import import_tflite as import_tflite
    from bnew.layers import BinaryConv1d as BinaryConv1d
    from bnew.layers import BinaryConv2d as BinaryConv2d
    from bnew.layers import BinaryConvTranspose2d as BinaryConvTranspose2d
    from bnew.layers import BinaryLinear as BinaryLinear
    from bnew.layers import ChannelScale as ChannelScale
    from bnew.layers import RPReLU as RPReLU
    from bnew.layers import RSign as RSign
    from bnew.layers import binary_parameters as binary_parameters
    from bnew.layers import named_binary_parameters as named_binary_parameters
    from bnew.layers import real_parameters as real_parameters
    from bnew.layers import sign as sign
    from bnew.models import create_model as create_model
    from bnew.models import list_models as list_models
    from bnew.models.trained import list_pretrained as list_pretrained
    from bnew.models.trained import pretrained_card as pretrained_card
    from bnew.packing import pack as pack
    from bnew.register import register_dataset as register_dataset
    from bnew.register import register_method as register_method
    from bnew.register import register_model as register_model


if not TYPE_CHECKING:  # who would take any name
    __getattr__ = fetched(__name__, _NAMES, _MODULES)


def __dir__() -> list[str]:
    return list(__all__)
