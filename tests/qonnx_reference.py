"""A reader of ONNX and QONNX files in NumPy: ONNX's own reference, and QONNX's operators from their pages.

Written from docs/qonnx-custom-ops of the QONNX project (bipolarquant_v1.md, intquant_v1.md), and not from
bnew's importer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]

DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")


def bipolar_quant(x: Array, scale: Array) -> Array:
    ones = np.ones(x.shape, x.dtype)
    return np.asarray(np.where(x >= 0.0, ones, -ones) * scale, np.float32)


def half_up(x: Array) -> Array:
    return np.sign(x) * np.floor(np.abs(x) + 0.5)


def half_down(x: Array) -> Array:
    return np.sign(x) * np.ceil(np.abs(x) - 0.5)


# The table "Rounding modes": the halves of positive and of negative numbers are treated alike.
ROUNDING: dict[str, Callable[[Array], Array]] = {
    "ROUND": np.round,
    "HALF_EVEN": np.round,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda x: np.sign(x) * np.ceil(np.abs(x)),
    "DOWN": np.trunc,
    "HALF_UP": half_up,
    "HALF_DOWN": half_down,
}


def quant(
    x: Array, scale: Array, zero_point: Array, bits: float, signed: int, narrow: int, mode: str
) -> Array:
    y = x / scale + zero_point
    if bits == 1 and signed:  # which the implementation treats as bipolar; the page says to use BipolarQuant
        y = np.where(y >= 0, 1.0, -1.0)
    else:
        low = (-(2 ** (bits - 1)) + narrow) if signed else 0
        high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow
        y = ROUNDING[mode.upper()](np.clip(y, low, high))
    return np.asarray((y - zero_point) * scale, np.float32)


def _operators() -> list[type[OpRun]]:
    def run_bipolar(self: Any, x: Array, scale: Array, **_: Any) -> tuple[Array]:
        return (bipolar_quant(x, scale),)

    def run_quant(
        self: Any, x: Array, scale: Array, zero: Array, bits: Array, **options: Any
    ) -> tuple[Array]:
        mode = options.get("rounding_mode") or "ROUND"
        signed, narrow = options.get("signed"), options.get("narrow")
        signed, narrow = 1 if signed is None else signed, narrow or 0
        return (quant(x, scale, zero, float(bits), signed, narrow, mode),)

    runs = {"BipolarQuant": run_bipolar, "Quant": run_quant, "IntQuant": run_quant}
    return [
        type(name, (OpRun,), {"op_domain": domain, "_run": run})
        for domain in DOMAINS
        for name, run in runs.items()
    ]


def run(model: ModelProto, images: Array) -> Array:
    """The first result for ``images``, in batches that the file takes."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    size = dims[0].dim_value or len(images)
    evaluator = ReferenceEvaluator(model, new_ops=_operators())
    name = model.graph.input[0].name
    outputs = [model.graph.output[0].name]
    batches = (images[i : i + size] for i in range(0, len(images), size))
    results: list[Any] = [evaluator.run(outputs, {name: batch}) for batch in batches]
    return np.concatenate([first for (first,) in results])
