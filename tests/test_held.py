"""torch.sign of exact zeros is refused wherever a value may be 0 by construction, and packed elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import packed_reference
import pytest
import torch
import torch.nn.functional as F
from packed_reference import Reference
from test_pack import trained
from torch import Tensor, nn

import bnew
from bnew import BinaryConv2d, BnewError
from bnew.packing import vocabulary
from bnew.packing.held import HELD, held
from bnew.packing.inputs import ONLY, inputs_of
from bnew.packing.packer import _lattice
from bnew.packing.pieces import Held
from bnew.packing.reading import read
from bnew.packing.values import Value

Function = Callable[[Any, Tensor], Tensor]


class Network(nn.Module):
    """What all ``functions`` make of its layers and of an image (3, 6, 6), side by side."""

    def __init__(self, functions: Iterable[Function]) -> None:
        super().__init__()
        torch.manual_seed(0)  # what rounding makes of some weights is a matter of their values
        self.functions = list(functions)
        self.stem, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.real = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.even = BinaryConv2d(4, 4, 3, padding=1, bias=False)  # a sum of 16, 24 or 36 signs
        self.odd = BinaryConv2d(3, 4, 3, bias=False)  # of 27
        self.border = BinaryConv2d(3, 4, (2, 1), padding=(1, 0), bias=False)  # of 6 signs, or 3 at the edge
        self.single = nn.Conv2d(4, 4, 1, groups=4, bias=False)
        self.norm, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.prelu, self.prelu2 = nn.PReLU(4, -0.1), nn.PReLU(4, -0.1)
        self.vector, self.vector2 = (nn.Parameter(torch.randn(4, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        parts = {name: Once(part) for name, part in self.named_children()}
        m = SimpleNamespace(vector=self.vector, vector2=self.vector2, **parts)
        return torch.cat([function(m, x).flatten(1) for function in self.functions], 1)


class Once:
    """A layer that makes the same of the same tensor: a graph of fewer nodes is read in less time."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.made: dict[Tensor, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        if x not in self.made:
            self.made[x] = self.layer(x)
        return self.made[x]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)


MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]  # CIFAR-10's
LATTICE = np.array([1 / (255 * np.array(STD)), -np.array(MEAN) / STD])


def network(*functions: Function) -> nn.Module:
    return trained(Network(functions)).eval()


def signed(function: Function, *signs: Callable[[Tensor], Tensor]) -> Function:
    """All ``signs`` of what the function makes, which is computed once: reading it takes its time."""

    def all_signs(m: Any, x: Tensor) -> Tensor:
        value = function(m, x)
        return torch.cat([sign(value) for sign in signs], 1)

    return all_signs


def whole_norm(m: Any, mean: float) -> nn.BatchNorm2d:
    """A batch norm that subtracts a number."""
    norm = nn.BatchNorm2d(4).eval()
    norm.running_mean = torch.full((4,), mean)
    norm.running_var = m.norm.running_var
    return norm


def centred(weight: Tensor) -> Tensor:
    return weight - weight.mean((2, 3), keepdim=True)


def layer_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), (4,), weight).permute(0, 3, 1, 2)


SOBEL = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).repeat(1, 3, 1, 1)

BLUR = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).repeat(4, 1, 1, 1) / 16

ZEROS: dict[str, Function] = {
    "binary convolution": lambda m, x: m.even(m.stem(x)),
    "odd at the edge alone": lambda m, x: m.border(x),
    "max pool of sums": lambda m, x: F.max_pool2d(m.even(m.stem(x)), 2),
    "sum of sums": lambda m, x: m.even(m.stem(x)) + m.even(m.other(x)),
    "sum of odd sums": lambda m, x: m.odd(x) + m.odd(-x - 0.1),
    "sum of scaled sums": lambda m, x: m.even(m.stem(x)) * m.vector + m.even(m.other(x)) * 0.3,
    "product of sums": lambda m, x: m.even(m.stem(x)) * m.even(m.other(x)),
    "batch norm at a whole number": lambda m, x: whole_norm(m, 2.0)(m.even(m.stem(x))),
    "shifted to a whole number": lambda m, x: m.odd(x) / 3 - 1 / 3,
    "mean of signs": lambda m, x: m.stem(x).sign().mean((2, 3)),
    "pool of signs": lambda m, x: F.avg_pool2d(m.stem(x).sign(), 2),
    "pool of signs, padding counted": lambda m, x: F.avg_pool2d(m.stem(x).sign(), 3, 1, 1),
    "adaptive pool of signs": lambda m, x: F.adaptive_avg_pool2d(m.stem(x).sign(), 4),
    "sum of signs": lambda m, x: m.stem(x).sign() + m.other(x).sign(),
    "sum of comparisons": lambda m, x: (m.stem(x) > 0).float() - (m.other(x) > 0).float(),
    "pool of relu": lambda m, x: F.avg_pool2d(m.stem(x).relu(), 2),
    "max pool of relu": lambda m, x: F.max_pool2d(m.stem(x).relu(), 2),
    "mean of relu": lambda m, x: (m.stem(x) - 3).relu().mean((2, 3)),
    "sum of relus": lambda m, x: m.stem(x).relu() + m.other(x).relu(),
    "relu and its opposite": lambda m, x: (lambda y: y + (-y).relu())(m.stem(x)),
    "its largest neighbour": lambda m, x: (lambda y: y - F.max_pool2d(y, 3, 1, 1))(m.stem(x)),
    "its mean around it": lambda m, x: (lambda y: y - F.avg_pool2d(y, 3, 1, 1))(m.stem(x)),
    "its mean": lambda m, x: (lambda y: y - y.mean((2, 3), keepdim=True))(m.stem(x)),
    "its blur": lambda m, x: (lambda y: y - F.conv2d(y, BLUR, padding=1, groups=4))(m.stem(x)),
    "beside a relu": lambda m, x: torch.cat([m.stem(x), m.other(x).relu()], 1),
    "flat relu": lambda m, x: m.stem(x).relu().flatten(1),
    "mask": lambda m, x: m.stem(x) * (m.other(x) > 0),
    "gate that closes": lambda m, x: m.stem(x) * F.hardsigmoid(20 * m.other(x)),
    "hard swish": lambda m, x: F.hardswish(6 * m.stem(x)),
    "leaky relu of slope 0": lambda m, x: F.leaky_relu(m.stem(x), 0.0),
    "relu6 at 6": lambda m, x: F.relu6(9 * m.stem(x)) - 6,
    "clamp at a number in float32": lambda m, x: m.stem(x).clamp(-0.1, 0.1) + torch.tensor(0.1),
    "channel times 0": lambda m, x: m.stem(x) * torch.tensor([1.0, 0, 1, 1])[:, None, None],
    "convolution of a dark place": lambda m, x: m.single((m.stem(x) - 1).relu()),
    "pruned filter": lambda m, x: F.conv2d(x, torch.cat([m.stem.weight[:3], 0 * m.stem.weight[:1]])),
    "window in the padding": lambda m, x: F.conv2d(x, m.stem.weight, padding=3),
    "whole weights": lambda m, x: F.conv2d(m.stem(x).sign(), (m.real.weight * 20).round()),
    "weights on a grid": lambda m, x: F.conv2d(m.stem(x).sign(), 0.1 * (m.real.weight * 20).round()),
    "whole weights on the image": lambda m, x: F.conv2d(x, m.stem.weight.sign()),
    "Sobel": lambda m, x: F.conv2d(x, SOBEL),
    "Sobel of a layer": lambda m, x: F.conv2d(m.stem(x), SOBEL[:, :1].repeat(4, 1, 1, 1), groups=4),
    "real weights of sum 0": lambda m, x: F.conv2d(x, centred(m.stem.weight)),
    "linear layer of sum 0": lambda m, x: F.linear(x.flatten(1), SOBEL.flatten(1).repeat(1, 4)),
    "sum and difference of relu": lambda m, x: (lambda a, b: a + b - (a - b))(m.stem(x), m.other(x).relu()),
    "gelu": lambda m, x: F.gelu(20 * m.stem(x)),  # 0 in float32 where its input is far below
    "gelu by tanh of relu": lambda m, x: F.gelu(m.stem(x).relu(), approximate="tanh"),
    "layer norm of relu": lambda m, x: layer_norm(m.stem(x).relu()),
    "layer norm, a weight of 0": lambda m, x: layer_norm(m.stem(x), torch.tensor([1.0, 0, 1, 1])),
    "layer norm": lambda m, x: layer_norm(m.stem(x)),
    "layer norm and gelu, shifted": lambda m, x: F.gelu(layer_norm(m.stem(x))) + 0.1,
    "resize of relu": lambda m, x: F.interpolate(m.stem(x).relu(), scale_factor=2),
    "sigmoid at 1": lambda m, x: m.stem(x).sigmoid() - 1,  # in float32, from about 17 on
    "silu and its input": lambda m, x: (lambda y: F.silu(y) - y)(m.stem(x)),
    "sigmoid of a sum at 1/2": lambda m, x: m.even(m.stem(x)).sigmoid() - 0.5,
}  # fmt: skip

NO_ZEROS: dict[str, Function] = {
    "the image": lambda m, x: x,
    "odd sum": lambda m, x: m.odd(x),
    "sum and a half": lambda m, x: m.even(m.stem(x)) + 0.5,
    "sum and batch norm": lambda m, x: m.norm(m.even(m.stem(x))),
    "batch norm between whole numbers": lambda m, x: whole_norm(m, 2.5)(m.even(m.stem(x))),
    "odd sum less an even number": lambda m, x: m.odd(x) - 2,
    "pool of odd numbers of signs": lambda m, x: F.avg_pool2d(m.stem(x).sign(), 3),
    "three sums": lambda m, x: m.odd(x) + m.odd(-x) + m.odd(x * x - 1),
    "whole weights and batch norm": lambda m, x: m.norm(
        F.conv2d(m.stem(x).sign(), (m.real.weight * 20).round())
    ),
    "whole weights on the image and batch norm": lambda m, x: m.norm(F.conv2d(x, m.stem.weight.sign())),
    "whole weights on the image and a bias": lambda m, x: F.conv2d(x, m.stem.weight.sign(), m.stem.bias),
    "trained weights on the image": lambda m, x: F.conv2d(x, m.stem.weight),
    "weights of sum 0 and a bias": lambda m, x: F.conv2d(x, centred(m.stem.weight), m.stem.bias),
    "two leaky slopes": lambda m, x: (lambda y: m.prelu(y) + m.prelu2(y))(m.stem(x)),
    "slopes of other channels": lambda m, x: (lambda y: y * m.vector - y * m.vector2)(m.stem(x)),
    "sum and difference": lambda m, x: (lambda a, b: (a + b) - (a - b))(m.stem(x), m.other(x)),
    "shortcut": lambda m, x: m.stem(x) + m.norm(m.even(m.other(x))),
    "shortcut after relu": lambda m, x: m.stem(x).relu() + m.norm(m.even(m.other(x))),
    "two branches": lambda m, x: m.norm(m.even(m.stem(x))) + m.norm2(m.even(m.other(x))),
    "hardtanh": lambda m, x: F.hardtanh(m.norm(m.even(m.stem(x)))),
    "hardtanh and a shortcut": lambda m, x: F.hardtanh(
        m.norm(m.even(m.other(x))) + F.hardtanh(m.norm2(m.stem(x)))
    ),
    "it and its mean": lambda m, x: (lambda y: y + y.mean((2, 3), keepdim=True))(m.stem(x)),
    "less half of its mean": lambda m, x: (lambda y: y - y.mean((2, 3), keepdim=True) / 2)(m.stem(x)),
    "less another's mean": lambda m, x: m.stem(x) - m.other(x).mean((2, 3), keepdim=True),
    "a sharper image": lambda m, x: (lambda y: y - F.conv2d(y, BLUR / 2, padding=1, groups=4))(m.stem(x)),
    "prelu and its input": lambda m, x: (lambda y: y + m.prelu(y))(m.stem(x)),
    "gate": lambda m, x: m.stem(x) * m.other(x).mean((2, 3), True).sigmoid(),
    "silu": lambda m, x: F.silu(m.stem(x)),
    "silu and a shortcut": lambda m, x: F.silu(m.stem(x)) + m.norm(m.even(m.other(x))),
    "sigmoid at 1/2": lambda m, x: m.stem(x).sigmoid() - 0.5,
    "real layer after relu": lambda m, x: m.norm(m.real(m.stem(x).relu())),
    "real layer of signs": lambda m, x: m.norm(m.real(m.stem(x).sign())),
    "softmax": lambda m, x: m.stem(x).softmax(1) - 0.25,
    "resize": lambda m, x: F.interpolate(m.stem(x), scale_factor=2),
    "pool after hardtanh": lambda m, x: m.norm(m.real(F.avg_pool2d(F.hardtanh(m.stem(x)), 2))),
}


# What uses an operator without being held at 0.
USES: dict[str, Function] = {
    "op input": lambda m, x: x * 1.5,
    "op conv": lambda m, x: m.stem(x) * 1.5,
    "op binary_conv": lambda m, x: m.odd(x) * 1.5,
    "op bits": lambda m, x: m.odd(x) * 2.5,
    "op max_pool": lambda m, x: F.max_pool2d(x, 2),
    "op avg_pool": lambda m, x: F.avg_pool2d(x, 2),
    "op adaptive_avg_pool": lambda m, x: x.mean((2, 3)),
    "op concat": lambda m, x: torch.cat([x, m.stem(x)], 1),
    "op flatten": lambda m, x: x.flatten(1),
    "op softmax": lambda m, x: m.stem(x).softmax(1),
    "op rearrange": lambda m, x: x.flip(3)[:, 1:],
    "op pad": lambda m, x: F.pad(x, (1, 0, 2, 1), value=1.5),
    "op concat_rows": lambda m, x: torch.cat([x, x * 1.5], 2),
    "op concat_columns": lambda m, x: torch.cat([x, x * 1.5], 3),
    "op resize_nearest": lambda m, x: F.interpolate(x, scale_factor=2),
    "op scale": lambda m, x: x * 2,
    "op shift": lambda m, x: x + 1,
    "op add": lambda m, x: m.stem(x) + m.other(x),
    "op multiply": lambda m, x: m.stem(x) * m.other(x),
    "op prelu": lambda m, x: F.leaky_relu(x),
    "op clamp": lambda m, x: x.clamp(-1, 1),
    "op sigmoid": lambda m, x: x.sigmoid(),
    "op hard_sigmoid": lambda m, x: F.hardsigmoid(x) + 1,
    "op silu": lambda m, x: F.silu(m.stem(x)),
    "op hard_swish": lambda m, x: F.hardswish(m.stem(x)) + 1,
    "op round": lambda m, x: m.stem(x).round() + 0.5,
    "op abs": lambda m, x: m.stem(x).abs() + 1,
    "op sign": lambda m, x: F.max_pool2d(bnew.sign(x), 2),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.bnew"


@pytest.fixture(scope="module")
def values() -> dict[str, Value]:
    """What each of the functions is in the packed file, by its name."""
    functions = ZEROS | NO_ZEROS | USES
    model = network(*functions.values())
    output = read(model, inputs_of(model, torch.randn(1, 3, 6, 6)), {ONLY: LATTICE})[0].value
    return dict(zip(functions, output.inputs, strict=True))


@pytest.mark.parametrize("what", [*ZEROS, *NO_ZEROS])
def test_what_may_be_zero(what: str, values: dict[str, Value]) -> None:
    assert held(values[what], {}).at_zero.any() == (what in ZEROS)


SIGNS: dict[str, Function] = {
    "whole-number sums": lambda m, x: m.even(m.stem(x)).sign(),
    "sgn": lambda m, x: F.avg_pool2d(m.stem(x).relu(), 2).sgn(),
    "trick": lambda m, x: (lambda y: (y.sign() - y).detach() + y)(m.stem(x).relu() + m.other(x).relu()),
}


@pytest.mark.parametrize("what", SIGNS)
def test_sign_of_zeros_is_refused(what: str, path: Path) -> None:
    with pytest.raises(BnewError, match=r"its input may be exactly 0.*compare with >= or > instead"):
        bnew.pack(network(SIGNS[what]), torch.randn(1, 3, 6, 6), path)
    assert not path.exists()


def test_contrast_is_zero_where_an_image_is_flat(path: Path) -> None:
    model = network(lambda m, x: (lambda y: (y - y.mean((2, 3), True)).sign())(F.conv2d(x, m.stem.weight)))
    flat = torch.full((1, 3, 6, 6), 0.25)
    assert (model(flat) == 0).any()
    with pytest.raises(BnewError, match="bnew cannot tell whether its input may be exactly 0"):
        bnew.pack(model, flat, path)


# What decides between +1 and −1 at 0 is packed as it is written, everywhere.
DECIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "bnew": bnew.sign,
    "at least": lambda v: torch.where(v >= 0, 1.0, -1.0),
    "more": lambda v: torch.where(v > 0, 1.0, -1.0),
    "less": lambda v: 1 - 2 * (v < 0).float(),
    "at most": lambda v: 1 - 2 * (v <= 0).float(),
    "all three": lambda v: (v > 0).float() - (v < 0).float(),
}

# Where PyTorch's sums are not rounded, so that its zeros are exact too.
EXACT = [
    "binary convolution", "max pool of sums", "sum of odd sums", "mean of signs", "pool of signs",
    "sum of comparisons", "sum of relus", "hard swish", "clamp at a number in float32",
    "window in the padding", "whole weights",
]  # fmt: skip


def test_comparisons_are_right_at_zeros(path: Path) -> None:
    x = torch.randn(16, 3, 6, 6)
    for what in EXACT:
        assert (network(ZEROS[what])(x) == 0).any(), what
    model = network(*(signed(ZEROS[what], *DECIDED.values()) for what in EXACT))
    bnew.pack(model, x, path)
    expected = model(x).detach().numpy()
    np.testing.assert_array_equal(Reference(path)(x.numpy()).reshape(expected.shape), expected)


def test_sign_without_zeros_is_packed(path: Path) -> None:
    x = normalised(torch.randint(0, 256, (16, 3, 6, 6)))
    for what, function in NO_ZEROS.items():
        assert (network(function)(x) != 0).all(), what
    model = network(*(signed(function, torch.sign) for function in NO_ZEROS.values()))
    bnew.pack(model, x, path, mean=MEAN, std=STD)
    expected = model(x).detach().numpy()
    result = Reference(path)(x.numpy()).reshape(expected.shape)
    assert (result != expected).mean() < 1e-4  # rounding may turn a sign


def test_black_is_zero_where_the_mean_is(path: Path) -> None:
    """(0 / 255 − 0) / std is exactly 0, and so is what a layer without a bias makes of a black border."""
    layer = nn.Conv2d(3, 4, 3, bias=False)
    model = nn.Sequential(layer, Sign())
    x = torch.zeros(1, 3, 6, 6)
    bnew.pack(model, x, path, mean=[0.45] * 3, std=[0.2] * 3)
    bnew.pack(model, x, path, mean=[0, 0.45, 0], std=[0.2] * 3)
    with pytest.raises(BnewError, match="its input may be exactly 0"):
        bnew.pack(model, x, path, mean=[0] * 3, std=[0.2] * 3)
    with pytest.raises(BnewError, match="its input may be exactly 0"):
        bnew.pack(Sign(), x, path, mean=[0.45, 51 / 255, 0.45], std=[0.2] * 3)


def normalised(levels: Tensor, mean: Any = MEAN, std: Any = STD) -> Tensor:
    """Bytes as a network is given them."""
    shift, scale = (torch.tensor(numbers)[:, None, None] for numbers in (mean, std))
    return (levels / 255 - shift) / scale


WHITE, HALF = torch.full((1, 3, 6, 6), 255), [0.5] * 3
# Sums of 8, 6, …, −6 by output channel.
PM = torch.where(torch.arange(48) < torch.arange(20, 28)[:, None], -1.0, 1.0).view(8, 3, 4, 4)

# Weights or a function, mean and std, and levels of which they make exact zeros.
PIXELS: dict[str, tuple[Callable[[Tensor], Tensor], list[float], list[float], Tensor]] = {
    "one level": (lambda x: x, [128 / 255] * 3, [1.0] * 3, WHITE - 127),
    "white": (lambda x: x - 1, HALF, HALF, WHITE),
    "signs as weights": (lambda x: F.conv2d(x, PM), HALF, HALF, WHITE),
    "signs as weights, and a bias": (lambda x: F.conv2d(x, PM, PM[:, 0, 0, 0] * 2), HALF, HALF, WHITE),
    "Sobel": (lambda x: F.conv2d(x, SOBEL), MEAN, STD, WHITE - 200),
    "mean of four": (
        lambda x: F.avg_pool2d(x, 2),
        HALF,
        HALF,
        WHITE * (torch.arange(36).view(6, 6) % 2),
    ),
}


def beside(functions: Iterable[Callable[[Tensor], Tensor]]) -> nn.Module:
    return Applied(lambda x: torch.cat([function(x).flatten(1) for function in functions], 1))


# What is packed in one network: functions of images with the same mean and std, or with none.
TOGETHER = {
    "one level": ["one level"],
    "halves": [what for what, (_, mean, std, _) in PIXELS.items() if (mean, std) == (HALF, HALF)],
    "Sobel": ["Sobel"],
    "unknown": [*PIXELS],
}


@pytest.mark.parametrize("which", TOGETHER)
def test_images_are_bytes(which: str, path: Path) -> None:
    """Exact zeros of them, which torch.sign is refused for, are known; bnew's own sign of these is +1."""
    names = TOGETHER[which]
    functions = [PIXELS[what][0] for what in names]
    images = [normalised(levels, mean, std) for _, mean, std, levels in map(PIXELS.__getitem__, names)]
    _, mean, std, _ = PIXELS[names[0]]
    numbers: dict[str, Any] = {} if which == "unknown" else {"mean": mean, "std": std}
    model = beside(functions)
    lattices = {ONLY: _lattice(numbers)} if numbers else {}
    output = read(model, inputs_of(model, images[0]), lattices)[0].value
    values = output.inputs if len(names) > 1 else (output,)
    model = Applied(lambda x: bnew.sign(beside(functions)(x)))
    bnew.pack(model, images[0], path, mean=numbers.get("mean"), std=numbers.get("std"))
    results = Reference(path)(torch.cat(images).numpy()).reshape(len(images), -1)
    start = 0
    for what, function, image, value, result in zip(names, functions, images, values, results, strict=True):
        expected = function(image).flatten().numpy()
        expected[np.abs(expected) < 1e-6] = 0  # on some CPUs, PyTorch's sums miss it by rounding
        assert (expected == 0).any(), what
        zeros = held(value, {})
        assert (zeros.at_zero if which == "unknown" else zeros.known_at_zero).any(), what
        found = result[start : start + expected.size]
        np.testing.assert_array_equal(found, np.where(expected >= 0, 1, -1), what)
        start += expected.size


def test_sign_of_an_images_zeros_is_refused(path: Path) -> None:
    function, mean, std, levels = PIXELS["signs as weights, and a bias"]
    model, x = Applied(lambda x: function(x).sign()), normalised(levels, mean, std)
    with pytest.raises(BnewError, match="cannot be packed: its input may be exactly 0, "):
        bnew.pack(model, x, path, mean=mean, std=std)
    with pytest.raises(BnewError, match="bnew cannot tell whether its input may be exactly 0, "):
        bnew.pack(model, x, path)


def test_without_mean_and_std_the_image_may_be_anything(path: Path) -> None:
    x = torch.randn(4, 3, 6, 6)
    for bias in (False, True):
        model = trained(nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), Sign()))
        bnew.pack(model, x, path)
        expected = model(x).detach().numpy()
        np.testing.assert_array_equal(Reference(path)(x.numpy()).reshape(expected.shape), expected)
    with pytest.raises(BnewError, match=r"cannot tell whether its input may be .* or give mean and std"):
        bnew.pack(Applied(lambda x: (x * 2 + 0.3).sign()), x, path)


def test_the_usual_flow_is_packed(path: Path) -> None:
    """A first layer of real weights, or of signs, then batch norm and torch.sign."""
    x = normalised(torch.randint(0, 256, (4, 3, 6, 6)))
    for binary in (False, True):
        first = nn.Conv2d(3, 4, 3, bias=False)
        model = trained(nn.Sequential(first, nn.BatchNorm2d(4), Sign())).eval()
        if binary:
            first.weight.data.sign_()
        bnew.pack(model, x, path, mean=MEAN, std=STD)
        expected = model(x).detach().numpy()
        np.testing.assert_array_equal(Reference(path)(x.numpy()).reshape(expected.shape), expected)


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sign()


def test_every_operator_says_what_it_does_to_zeros() -> None:
    operators = set(packed_reference.FIELDS) - {"identity"}  # which is a node, and no value
    # A sign after one of these is refused.
    silent = {
        "layer_norm",
        "rms_norm",
        "l2_norm",
        "group_norm",
        "log_softmax",
        "argmax",
        "gelu",
        "gelu_tanh",
        "mish",
    }
    silent |= {
        "constant",
        "matmul",
        "resize_bilinear",
        "softplus",
        "elu",
        "softsign",
        "tanh",
        "exp",
        "log",
        "sqrt",
        "reciprocal",
    }
    assert set(HELD) == (operators | set(vocabulary.STEPS) | {"input", "bits", "choice"}) - silent


@pytest.mark.parametrize("op", sorted(set(HELD) - {"choice"}))  # which becomes a sign before it is used
def test_an_operator_that_says_nothing_may_be_zero(
    op: str, values: dict[str, Value], monkeypatch: pytest.MonkeyPatch
) -> None:
    known: dict[Value, Held] = {}
    assert not held(values[f"op {op}"], known).at_zero.any()
    assert any(value.op == op for value in known)
    monkeypatch.delitem(HELD, op)
    again: dict[Value, Held] = {}
    held(values[f"op {op}"], again)
    assert all(again[value].at_zero.all() for value in again if value.op == op)


def test_sign_after_an_operator_that_says_nothing_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(HELD, "conv")
    with pytest.raises(BnewError, match="bnew cannot tell whether its input may be exactly 0"):
        bnew.pack(network(lambda m, x: m.stem(x).sign()), torch.randn(1, 3, 6, 6), path)


def test_the_message_names_operator_layer_and_line(path: Path) -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(Sign()))
    with pytest.raises(BnewError) as caught:
        bnew.pack(model, torch.randn(1, 3, 6, 6), path)
    assert re.match(
        r"sign in layer '1.0', test_held.py line \d+ cannot be packed: its input", str(caught.value)
    )


# ------------------------------------------------------------------ images, and what has their rank alone


def rows(function: Callable[[Tensor], Tensor]) -> nn.Module:
    """``function`` of a value (N, 4, 8)."""

    class Rows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x.squeeze(3)).flatten(1)

    return Rows()


TWO_DIMENSIONAL: dict[str, Callable[[Tensor], Tensor]] = {
    "max pool": lambda x: F.max_pool2d(x, 2),
    "max pool with indices": lambda x: F.max_pool2d(x, (1, 2), return_indices=True)[0],
    "avg pool": lambda x: F.avg_pool2d(x, 2),
    "adaptive avg pool": lambda x: F.adaptive_avg_pool2d(x, (4, 4)),
    "convolution": lambda x: F.conv2d(x, torch.ones(11, 11, 1, 1)) if len(x) == 11 else x,
}


@pytest.mark.parametrize("what", TWO_DIMENSIONAL)
def test_two_dimensional_operators_need_images(what: str, path: Path) -> None:
    """(N, C, L) is one image (C, H, W) to PyTorch, with N channels."""
    with pytest.raises(BnewError, match=r"packed only for images \(N, C, H, W\), and its input has 3 dim"):
        bnew.pack(rows(TWO_DIMENSIONAL[what]), torch.randn(1, 4, 8, 1), path)


def test_what_is_done_to_each_place_needs_no_image(path: Path) -> None:
    norm = nn.BatchNorm1d(4).eval()
    model = rows(lambda x: F.prelu(norm(x) * 2, torch.tensor([0.1, 0.2, 0.3, 0.4])).relu()).eval()
    x = torch.randn(3, 4, 8, 1)
    bnew.pack(model, x, path)
    result = Reference(path)(x.numpy())
    np.testing.assert_allclose(result.reshape(3, -1), model(x).detach().numpy(), rtol=1e-5, atol=1e-6)
