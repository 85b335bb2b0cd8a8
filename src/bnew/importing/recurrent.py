"""ONNX's LSTM, GRU and RNN, as functions of PyTorch: for lines of one length (length, images, channels)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bnew.errors import BnewError
from bnew.importing.graph import Array, Node

# Where PyTorch's gates are among ONNX's: i, o, f, c → i, f, c, o, and z, r, h → r, z, h.
_LSTM, _GRU, _RNN = (0, 2, 3, 1), (1, 0, 2), (0,)
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def lstm(
    node: Node, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Array | None = None,
    h: Tensor | None = None, c: Tensor | None = None, peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Long short-term memory: all outputs, and the last output and cell."""
    if peepholes is not None:
        raise BnewError("it has peepholes")
    return _recurrent(node, torch.lstm, _LSTM, x, (w, r, b), lengths, (h, c))


def gru(
    node: Node, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Array | None = None,
    h: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gated recurrent units: all outputs, and the last one."""
    if not node.attributes.get("linear_before_reset", 0):
        raise BnewError(
            "it resets its state before the product (linear_before_reset=0), which PyTorch does not"
        )
    return _recurrent(node, torch.gru, _GRU, x, (w, r, b), lengths, (h,))


def rnn(
    node: Node, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Array | None = None,
    h: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """A recurrent layer with tanh or ReLU: all outputs, and the last one."""
    relu = set(_activations(node)) == {"Relu"}
    return _recurrent(node, torch.rnn_relu if relu else torch.rnn_tanh, _RNN, x, (w, r, b), lengths, (h,))


def _activations(node: Node) -> list[str]:
    return [
        each.decode() if isinstance(each, bytes) else each for each in node.attributes.get("activations", [])
    ]


def _recurrent(
    node: Node,
    function: Callable[..., Any],
    order: Sequence[int],
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None],
    lengths: Array | None,
    states: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    w, r, b = weights
    directions, hidden = w.shape[0], r.shape[2]
    usual = _USUAL[node.kind] * directions
    known = [usual, ["Relu"] * directions] if node.kind == "RNN" else [usual]
    if (found := _activations(node)) and found not in known:
        raise BnewError(f"its activations are {', '.join(found)}")
    for name in ("clip", "input_forget", "layout"):
        if node.attributes.get(name, 0):
            raise BnewError(f"its {name} is {node.attributes[name]}")
    if lengths is not None and (lengths != x.shape[0]).any():
        raise BnewError("its lines have several lengths")
    backwards = node.attributes.get("direction", "forward") == "reverse"
    x = x.flip(0) if backwards else x
    parameters = []
    for direction in range(directions):
        biases = (b[direction] if b is not None else w.new_zeros(2 * w.shape[1])).chunk(2)
        for each in (w[direction], r[direction], *biases):
            gates = each.chunk(len(order))
            parameters.append(torch.cat([gates[place] for place in order]))
    zeros = x.new_zeros(directions, x.shape[1], hidden)
    if any(each is not None and each.shape[1] not in (1, x.shape[1]) for each in states):
        raise BnewError("its first states are constants for several images")
    given = [zeros if each is None else each.expand_as(zeros) for each in states]
    state = given if len(given) > 1 else given[0]
    all_of, *last = function(x, state, parameters, True, 1, 0.0, False, directions == 2, False)
    all_of = all_of.flip(0) if backwards else all_of
    return all_of.reshape(*x.shape[:2], directions, hidden).transpose(1, 2), *last
