"""Random networks of all that the packing knows: the file computes what PyTorch computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from packed_reference import Reference
from test_pack import bnew_engine
from torch import Tensor, nn

import bnew
from bnew.errors import BnewError

Function: TypeAlias = Callable[[Tensor], Tensor]
MOST = 20_000  # numbers of an image


class Random(nn.Module):
    """Functions one after the other."""

    def __init__(self, functions: list[Function]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> Tensor:
        for function in self.functions:
            x = function(x)
        return x


def numbers(data: st.DataObject, *size: int) -> Tensor:
    """Constants, the same whenever the example runs."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    return torch.randn(size, generator=generator)


def divisor(data: st.DataObject, n: int) -> int:
    found: int = data.draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
    return found


def one_of(data: st.DataObject, *functions: Function) -> Function:
    function: Function = data.draw(st.sampled_from(functions))
    return function


def activation(data: st.DataObject, x: Tensor) -> Function:
    return one_of(
        data,
        torch.tanh,
        torch.sigmoid,
        torch.abs,
        F.relu,
        F.relu6,
        F.gelu,
        F.silu,
        F.mish,
        F.elu,
        F.selu,
        F.softplus,
        F.softsign,
        F.hardswish,
        F.hardsigmoid,
        F.leaky_relu,
        F.logsigmoid,
        lambda x: x.clamp(-0.5, 1.5),
        lambda x: x.square() / 4,
        lambda x: x / (1 + x.abs()),
        lambda x: (x.abs() + 0.1).sqrt(),
        lambda x: (x.abs() + 1).rsqrt(),
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: (-x.abs()).exp(),
        lambda x: (x.abs() + 1).log(),
        lambda x: torch.maximum(x, torch.tensor(0.25)),
    )


def order(data: st.DataObject, x: Tensor) -> Function:
    dims = [0, *(d + 1 for d in data.draw(st.permutations(range(x.dim() - 1))))]
    return lambda x: x.permute(dims)


def shape(data: st.DataObject, x: Tensor) -> Function:
    total, size = x[0].numel(), []
    for _ in range(data.draw(st.integers(0, 3))):
        size.append(divisor(data, total))
        total //= size[-1]
    return lambda x: x.reshape(-1, *size, total)


def part(data: st.DataObject, x: Tensor) -> Function:
    dim = data.draw(st.integers(1, x.dim() - 1))
    start = data.draw(st.integers(0, x.size(dim) - 1))
    step = data.draw(st.integers(1, 2))
    index = [slice(None)] * dim + [slice(start, None, step)]
    return lambda x: x[tuple(index)]


def turned(data: st.DataObject, x: Tensor) -> Function:
    dim = data.draw(st.integers(1, x.dim() - 1))
    shift = data.draw(st.integers(-2, 2))
    return one_of(data, lambda x: x.flip(dim), lambda x: torch.roll(x, shift, dim))


def beside(data: st.DataObject, x: Tensor) -> Function:
    dim = data.draw(st.integers(1, x.dim() - 1))
    size = [1, *x.shape[1:]]
    size[dim] = data.draw(st.integers(1, 2))
    constant = numbers(data, *size)
    return one_of(
        data,
        lambda x: torch.cat([x, x.tanh()], dim),
        lambda x: torch.cat([constant.expand(len(x), *size[1:]), x], dim),
        lambda x: torch.stack([x, -x], dim).flatten(dim - 1 or 1, dim or 1) if dim > 1 else x,
        lambda x: torch.cat(x.chunk(2, dim)[::-1], dim),
    )


def joined(data: st.DataObject, x: Tensor) -> Function:
    """With a broadcast constant, or with its own mean or extreme."""
    dims = [d for d in range(1, x.dim()) if data.draw(st.booleans())] or [1]
    constant = numbers(data, *(1 if d in dims or d == 0 else n for d, n in enumerate(x.shape)))
    return one_of(
        data,
        lambda x: x + constant,
        lambda x: x * constant,
        lambda x: constant - x,
        lambda x: x - x.mean(dims, keepdim=True),
        lambda x: x * x.amax(dims, keepdim=True).sigmoid(),
        lambda x: x + x.flip(dims),
        lambda x: x / (x.square().sum(dims, keepdim=True) + 1),
        lambda x: (x - x.mean(dims, True)) / (x.var(dims, correction=0, keepdim=True) + 0.1).sqrt(),
    )


def reduced(data: st.DataObject, x: Tensor) -> Function:
    dim = data.draw(st.integers(1, x.dim() - 1))
    keep = data.draw(st.booleans()) or x.dim() == 2
    return one_of(
        data,
        lambda x: x.mean(dim, keepdim=keep),
        lambda x: x.amin(dim, keepdim=keep),
        lambda x: x.sum(dim, keepdim=keep) / 4,
        lambda x: x.max(dim, keepdim=keep)[0],
    )


def layer(data: st.DataObject, x: Tensor) -> Function:
    """A linear layer, a norm or a softmax over a dimension."""
    last = x.size(-1)
    dim = data.draw(st.integers(1, x.dim() - 1))
    weight, bias = numbers(data, data.draw(st.integers(1, 9)), last) / math.sqrt(last), numbers(data, last)
    return one_of(
        data,
        lambda x: F.linear(x, weight),
        lambda x: F.linear(x, weight[:1] * bias, bias[:1]),
        lambda x: F.layer_norm(x, [last], bias, bias, 0.1),
        lambda x: F.softmax(x, dim) * 4,
        lambda x: F.log_softmax(x, dim),
        lambda x: F.normalize(x, dim=dim),
        lambda x: F.rms_norm(x, [last], bias, 0.1),
    )


def chosen(data: st.DataObject, x: Tensor) -> Function:
    """One of two values; the result does not jump where the condition changes."""
    dim = data.draw(st.integers(1, x.dim() - 1))
    constant = numbers(data, *x.shape[1:]) > 0
    few = data.draw(st.lists(st.integers(-x.size(dim), x.size(dim) - 1), min_size=1, max_size=9))
    places = torch.tensor(few)
    across = places.view(*(1,) * dim, -1, *(1,) * (x.dim() - dim - 1)) % x.size(dim)

    def written(x: Tensor) -> Tensor:
        x = x.clone()
        x[x < -0.5] = -0.5
        return x

    return one_of(
        data,
        lambda x: torch.where(x > 0, x, x * 0.1),
        lambda x: torch.where(constant, x, x.tanh()),
        lambda x: torch.where((x > 0) & (x < 1), x * (1 - x), 0.0),
        lambda x: x.masked_fill(constant, 0.5),
        lambda x: torch.maximum(x, x.flip(dim)),
        lambda x: torch.min(x, x.mean(dim, keepdim=True)),
        lambda x: x.clamp(x.flip(dim) - 1, x.flip(dim).abs()),
        lambda x: x.index_select(dim, places % x.size(dim)),
        lambda x: torch.take_along_dim(x, across, dim),
        lambda x: x.index_fill(dim, places, 0.25),
        lambda x: x.cumsum(dim) / x.size(dim),
        lambda x: (x.abs() + 0.1) ** 0.7,
        lambda x: x.logsumexp(dim, keepdim=True) - x,
        lambda x: F.cosine_similarity(x, x.tanh() + 1, dim)[:, None] if x.dim() > 2 else x,
        written,
    )


def attention(data: st.DataObject, x: Tensor) -> Function:
    if x.dim() < 3:
        return torch.tanh
    return one_of(
        data,
        lambda x: x @ x.transpose(-2, -1) / x.size(-1),
        lambda x: F.scaled_dot_product_attention(x, x.tanh(), x.relu()),
        lambda x: (
            torch.einsum("...ij,...kj->...ki", x, x.tanh()).transpose(-2, -1)
            if x.dim() == 99
            else (x @ x.transpose(-2, -1)).softmax(-1) @ x
        ),
    )


def image(data: st.DataObject, x: Tensor) -> Function:
    """An operator on images."""
    if x.dim() != 4:
        return torch.tanh
    channels, (height, width) = x.size(1), x.shape[2:]
    groups = divisor(data, channels)
    weight = numbers(data, 2 * groups, channels // groups, 3, 2) / 3
    back = numbers(data, channels, 2, 4, 2) / 3
    kind = data.draw(st.sampled_from(["conv", "back", "pool", "pad", "resize", "shuffle", "norm", "windows"]))
    if kind == "conv" and min(height, width) > 1:
        return lambda x: F.conv2d(x, weight, padding=1, groups=groups, stride=(1, 2))
    if kind == "back":
        return lambda x: F.conv_transpose2d(x, back, stride=2, padding=(1, 0))
    if kind == "pool" and min(height, width) > 1:
        return one_of(data, lambda x: F.max_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2, 1, padding=1))
    if kind == "pad":
        mode = "reflect" if min(height, width) > 2 and data.draw(st.booleans()) else "replicate"
        value = data.draw(st.sampled_from([0.0, 0.5]))
        return one_of(
            data, lambda x: F.pad(x, (1, 2, 0, 1), mode=mode), lambda x: F.pad(x, (0, 1, 2, 0), value=value)
        )
    if kind == "resize":
        return one_of(
            data,
            lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
            lambda x: F.interpolate(x, (height + 1, 2 * width - 1), mode="bilinear", align_corners=True),
            lambda x: F.interpolate(x, scale_factor=2),
        )
    if kind == "shuffle":
        if channels % 4 == 0:
            return lambda x: F.pixel_shuffle(x, 2)
        if height % 2 == 0 == width % 2:
            return lambda x: F.pixel_unshuffle(x, 2)
    if kind == "norm":
        return lambda x: F.group_norm(x, groups, eps=0.1)
    if kind == "windows" and height > 1:
        return lambda x: x.unfold(2, 2, 1).mean(-1)
    return torch.tanh


MAKERS = [activation, order, shape, part, turned, beside, joined, reduced, chosen, layer, attention, image]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("random")


@settings(
    max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    derandomize=True,
)  # fmt: skip
@given(data=st.data())
def test_random_networks(data: st.DataObject, folder: Path) -> None:
    size = data.draw(st.sampled_from([(4, 6, 5), (3, 4, 4), (6, 1, 8), (8,)]))
    start = x = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    functions: list[Function] = []
    for _ in range(data.draw(st.integers(2, 8))):
        function = data.draw(st.sampled_from(MAKERS))(data, x)
        result = function(x)
        if 0 < result[0].numel() <= MOST and len(result) == 3 and result.dim() > 1:
            functions.append(function)
            x = result
    while x.dim() > 4:
        functions.append(lambda x: x.flatten(1, 2))
        x = functions[-1](x)
    model = Random(functions)
    try:
        bnew.pack(model, start, folder / "model.bnew")
    except BnewError as error:  # of a choice beside what may be infinite, as the documentation says
        assume("where it is not chosen" not in str(error))
        raise
    with torch.no_grad():
        expected = model(start).numpy()
    close = 2e-4 * max(1.0, float(np.abs(expected).max()))
    images = start.numpy().reshape(3, *size, *(1,) * (3 - len(size)))
    found = Reference(folder / "model.bnew")(images)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=2e-3, atol=close)
    if bnew_engine is not None:
        found = bnew_engine.load(folder / "model.bnew", max_macs=2**40)(images)
        np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=2e-3, atol=close)
