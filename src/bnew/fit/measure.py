"""Times a packed network beside the float network of the same architecture."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from bnew.deploy.inference import in_torch, load_engine, medians
from bnew.deploy.onnx import export_onnx
from bnew.errors import BnewError, first_line
from bnew.layers import BinaryConv2d, BinaryLinear
from bnew.recipe import Recipe
from bnew.references import is_reference
from bnew.training.networks import build_model

logger = logging.getLogger("bnew")

SECONDS = 2.0  # for all runtimes together, about


def float_twin(recipe: Recipe, classes: int, channels: int) -> nn.Module:
    """The network of ``recipe`` as an ordinary one, with random weights, in eval mode.

    That of a user or a library is the network before it got binary layers. In one of bnew's own, each binary
    layer becomes an ordinary convolution or linear layer of the same shape, without a sign.
    """
    if is_reference(recipe.model):
        return build_model(
            recipe.replace(binarize=False, method=None, method_options={}), classes, channels
        ).eval()
    return _real(build_model(recipe, classes, channels)).eval()


def _real(module: nn.Module) -> nn.Module:
    if isinstance(module, BinaryConv2d):
        kept = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        return nn.Conv2d(**{name: getattr(module, name) for name in kept}, bias=module.bias is not None)
    if isinstance(module, BinaryLinear):
        return nn.Linear(module.in_features, module.out_features, module.bias is not None)
    for name, child in list(module.named_children()):
        setattr(module, name, _real(child))
    return module


def milliseconds(file: Path, twin: nn.Module, in_onnx: bool = True) -> dict[str, float]:
    """Runtime → median milliseconds of CPU time for one image on one thread, measured in turns.

    The runtimes are the engine with ``file``, and ONNX Runtime with ``twin``, or PyTorch where ONNX Runtime
    or the exporter is not installed or fails, or where it is not wanted (``in_onnx``): exporting takes long.
    """
    threads = torch.get_num_threads()
    packed = load_engine(file)
    x = np.random.default_rng(0).standard_normal((1, *packed.input_shape), np.float32)
    contenders: dict[str, Callable[[], object]] = {"bnew-engine": partial(packed, x)}
    try:
        contenders |= (in_onnx and _in_onnx(twin, x)) or {"PyTorch": in_torch(twin, x, threads=1)}
        # Time of this process alone: what others do on the same cores would lengthen a long call more than a
        # short one.
        found = medians(contenders, SECONDS, time.process_time)
        return {name: 1e3 * seconds for name, seconds in found.items()}
    finally:
        torch.set_num_threads(threads)


def _in_onnx(twin: nn.Module, x: Any) -> dict[str, Callable[[], object]]:
    """The network in ONNX Runtime; empty if that cannot be had."""
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        return {}
    import onnxruntime

    with TemporaryDirectory() as folder:
        path = Path(folder, "float.onnx")
        try:
            export_onnx(twin, torch.from_numpy(x).expand(2, -1, -1, -1), path)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except BnewError as error:
            logger.warning("the float network is timed in PyTorch: %s", first_line(error)[:200])
            return {}
    return {"ONNX Runtime": lambda: session.run(None, {"images": x})}
