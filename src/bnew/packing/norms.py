"""Lowers batch norm, layer norm and its relatives. m and s are the mean and the variance of x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bnew.packing.arithmetic import scaled, shifted
from bnew.packing.layouts import Layout
from bnew.packing.values import Numbers, Refused, Value
from bnew.packing.views import shown, view, with_channels

if TYPE_CHECKING:
    from bnew.packing.operation import Operation


def batch_norm(
    op: Operation,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    variance: Value,
    momentum: float,
    eps: float,
) -> Value:
    """γ (x − μ) / √(σ² + ε) + β, folded into a scale and a shift."""
    if not all(value is None or value.constant for value in (weight, bias, mean, variance)):
        raise Refused("its numbers depend on the input")

    def fold() -> tuple[Numbers, Numbers]:
        # γ (v − μ) / √(σ² + ε) + β = s v + (β − μ s) with s = γ / √(σ² + ε)
        mu, var = op.array(mean), op.array(variance)
        gamma = np.ones_like(mu) if weight is None else op.array(weight)
        beta = np.zeros_like(mu) if bias is None else op.array(bias)
        scale = gamma / np.sqrt(var + eps)
        return scale, beta - mu * scale

    scale, shift = op.once(("norm", weight, bias, mean, variance, eps), fold)
    return shifted(op, scaled(op, op.real(x), scale), shift)


def layer_norm(
    op: Operation,
    x: Value,
    size: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Value:
    """(x − m) / √(s + ε) · weight + bias, over the last dimensions, those of ``size``."""
    return _over_last(op, "layer_norm", x, size, weight, bias, eps)


def rms_norm(
    op: Operation, x: Value, size: Sequence[int], weight: Value | None = None, eps: float | None = None
) -> Value:
    """x / √(mean of x² + ε) · weight, over the last dimensions, those of ``size``."""
    eps = float(np.finfo(np.float32).eps) if eps is None else eps
    return _over_last(op, "rms_norm", x, size, weight, None, eps)


def _over_last(
    op: Operation,
    name: str,
    x: Value,
    size: Sequence[int],
    weight: Value | None,
    bias: Value | None,
    eps: float,
) -> Value:
    source, layout = shown(op, x, op.input_size)
    last = len(layout.dims) - len(size)
    if last < 1:
        raise Refused("it joins images")
    flat = Layout((*layout.dims[:last], sum(layout.dims[last:], ())), layout.offset)
    source, flat = with_channels(op, source, flat, last)
    inner = op.inside(source, flat)
    result = _weighted(inner, normalised(inner, name, source, eps), weight, bias)
    whole = flat.reshaped(op.input_size)
    assert whole is not None
    return view(op, result, whole)


def _weighted(op: Operation, x: Value, weight: Value | None, bias: Value | None) -> Value:
    if weight is not None:
        x = scaled(op, x, op.array(weight))
    return x if bias is None else shifted(op, x, op.array(bias))


def normalised(op: Operation, name: str, x: Value, eps: float, **fields: int) -> Value:
    """The norm ``name`` of a stored value, without weight and bias."""
    if not np.float32(eps) > 0:
        raise Refused(f"its eps is {eps}, but must be above 0")
    return op.make(name, op.real(x), shape=x.shape, fields={**fields, "eps": float(eps)})


def group_norm(
    op: Operation,
    x: Value,
    groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Value:
    """(x − m) / √(s + ε) · weight + bias; m and s are over all places and a group of the channels."""
    return _weighted(op, normalised(op, "group_norm", x, eps, groups=groups), weight, bias)


def native_group_norm(
    op: Operation,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    batch: int,
    channels: int,
    places: int,
    groups: int,
    eps: float,
) -> Value:
    """:func:`group_norm`, with its arguments in another order."""
    return group_norm(op, x, groups, weight, bias, eps)


def instance_norm(
    op: Operation,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    of_input: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Value:
    """A :func:`group_norm` with a group per channel; a batch norm if it uses running statistics."""
    if of_input or mean is None or variance is None:
        return group_norm(op, x, x.shape[0], weight, bias, eps)
    return batch_norm(op, x, weight, bias, mean, variance, momentum, eps)
