"""Exports a trained network as an ordinary ONNX graph, for other runtimes.

The graph computes the same as the network. Its signs and ±1 weights are float32, so it is neither small nor
fast.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnew.data.preparation import Preparation
from bnew.deploy.trained import trained
from bnew.errors import BnewError
from bnew.files import write_atomically
from bnew.layers import check_module
from bnew.packing.inputs import Example, Inputs, bound
from bnew.results.run import Run
from bnew.text import percent
from bnew.training.machine import Machine
from bnew.training.run_data import load_run_data

logger = logging.getLogger("bnew")

GENERATED = 100  # the number of images to check a graph on if a run's own are not available


@dataclass(frozen=True)
class OnnxCheck:
    """Compares ONNX Runtime with PyTorch: differences of logits, and the share of images with one class."""

    images: int
    kind: str
    """The kind of images: given, test or generated."""
    max_difference: float
    median_difference: float
    agreement: float

    @property
    def agrees(self) -> bool:
        """Whether at least 99 % of the images get the same class. Rounding may flip a sign in the others."""
        return self.agreement >= 0.99

    def __str__(self) -> str:
        return (
            f"ONNX Runtime gives {percent(self.agreement)} of {self.images:,} {self.kind} images PyTorch's "
            f"class; logits differ by {self.median_difference:.2g} in the median, "
            f"{self.max_difference:.2g} at most"
        )


def export_run(run: Run, path: str | Path, machine: Machine) -> OnnxCheck | None:
    """Export the best weights of a run by :func:`export_onnx`, and check them on a batch of test images.

    If these are not available and ``machine`` names no data folder, generated images are used.

    Raises:
        BnewError: there is no such run, or it cannot be exported.
    """
    model, prepared = trained(run, machine)
    try:
        data = load_run_data(run, machine, download=False)
        images, _ = next(iter(data.batches("test", train=False).epoch(0)))
    except BnewError as error:
        if machine.data_dir is not None:
            raise
        logger.warning("checking on generated images, as those of the run cannot be had: %s", error)
        return export_onnx(model, _generated(prepared), path, kind="generated")
    return export_onnx(model, images, path, kind="test")


def _generated(prepared: Preparation) -> Tensor:
    """Normalised random pixels (N, C, H, W), the same in each call."""
    pixels = torch.rand(GENERATED, *prepared.size, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (prepared.mean, prepared.std))
    return (pixels - mean) / std


def export_onnx(model: nn.Module, images: Example, path: str | Path, kind: str = "given") -> OnnxCheck | None:
    """Write a network as an ONNX graph, for any batch size, and check it on ``images`` (N, C, H, W).

    The model must be in eval mode, on the CPU. If it takes several inputs, ``images`` is a tuple of them in
    the order of the parameters of its ``forward``, or a dict by their names. The graph has the same names;
    a single input is called ``images``. ``kind`` is the word for the images in the check.

    Returns:
        The check by ONNX Runtime; None if ONNX Runtime is not installed.

    Raises:
        BnewError: the exporter is not installed or fails; ``images`` are no inputs of the model; it returns
            several tensors; the file cannot be written or run; or its results are not those of the network.
            Then nothing is written.
    """
    check_module("export_onnx", model)
    try:
        import onnxscript  # noqa: F401  (torch.onnx needs it, but reports that late)
    except ImportError as error:
        raise BnewError(f"exporting needs onnx and onnxscript ({error}): pip install 'bnew[onnx]'") from None
    inputs = bound(model, images)
    if len(inputs.names) == 1:
        inputs = replace(inputs, names=("images",))
    few = inputs.changed(lambda tensor: tensor[:2])
    try:
        program = torch.onnx.export(
            model,
            few.args,
            kwargs=dict(few.kwargs),
            dynamo=True,
            verbose=False,
            input_names=inputs.names,
            output_names=["logits"],
            dynamic_shapes=_sizes(model, inputs),
        )
        assert program is not None
    except Exception as error:  # the exporter's errors have no common base
        raise BnewError(f"{type(model).__name__} cannot be exported: {error}") from error
    if (results := len(program.model.graph.outputs)) != 1:
        raise BnewError(
            f"{type(model).__name__} returns {results} tensors, and an ONNX graph is written for one: pack "
            "it, and run it with bnew-engine"
        )
    check = None

    def write(beside: Path) -> None:
        nonlocal check
        program.save(beside, external_data=False)
        check = _check(model, inputs, beside, kind)
        if check and not check.agrees:
            raise BnewError(f"the ONNX graph is not the network, and {path} is not written: {check}")

    write_atomically(Path(path), write)
    return check


def _sizes(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Any number of images, for each parameter of the model's forward."""
    batch = {0: torch.export.Dim("batch")}
    found = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    return {name: pytree.tree_map(lambda _: batch, value) for name, value in found.arguments.items()}


@torch.no_grad()
def _check(model: nn.Module, inputs: Inputs, path: Path, kind: str) -> OnnxCheck | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        arrays = [np.ascontiguousarray(images.numpy()) for images in inputs.tensors]
        (logits,) = session.run(["logits"], dict(zip(inputs.names, arrays, strict=True)))
    except Exception as error:  # ONNX Runtime's errors have no common base either
        raise BnewError(f"ONNX Runtime does not run the graph: {error}") from error
    (result,) = pytree.tree_leaves(model(*inputs.args, **inputs.kwargs))
    expected = result.numpy()
    difference = np.abs(logits - expected)
    return OnnxCheck(
        images=len(expected),
        kind=kind,
        max_difference=float(difference.max()),
        median_difference=float(np.median(difference)),
        agreement=float((logits.argmax(1) == expected.argmax(1)).mean()),
    )
