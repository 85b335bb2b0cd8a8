"""pack(): the file computes what the model computes, for models of many kinds; what is refused, and how."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_reference import Reference, check_tidy
from torch import Tensor, nn

import bnew
from bnew import BinaryConv2d, BinaryLinear, BnewError, binary_parameters, create_model, summary
from bnew.models.bnext import Recoupling
from bnew.packing.weights import magnitudes

# Where it is installed, it has to agree as well.
bnew_engine: Any = import_module("bnew_engine") if find_spec("bnew_engine") else None


def trained(model: nn.Module, seed: int = 0, scale: bool = False) -> nn.Module:
    """As after training: no number is as it was initialised, binary weights are at ±1, or ± a scale."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for weight in binary_parameters(model):
            weight.copy_(torch.where(weight >= 0, 1.0, -1.0))
            if scale:
                weight.mul_(torch.rand(len(weight), *(1,) * (weight.dim() - 1)) + 0.1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 4)
    return model


def packed(model: nn.Module, path: Path, *size: int, double: bool = False) -> Reference:
    """Pack the model and check what the file computes against it (``double``: in float64, for deep ones)."""
    x = torch.randn(3, *size)
    bnew.pack(model, x, path)
    reference = Reference(path)
    check_tidy(reference.file)
    result = reference(x.reshape(3, *size, *(1,) * (3 - len(size))).numpy())
    with torch.no_grad():
        twin = copy.deepcopy(model).eval()
        expected = (twin.double()(x.double()) if double else twin(x)).numpy()
    if bnew_engine is not None:
        images = x.reshape(3, *size, *(1,) * (3 - len(size))).numpy()
        np.testing.assert_allclose(
            bnew_engine.load(path)(images), result, rtol=1e-3, atol=1e-4 * np.abs(result).max()
        )
    assert expected.shape == result.shape + (1,) * (expected.ndim - result.ndim)
    expected = expected.reshape(result.shape)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    return reference


def ops(reference: Reference) -> list[str]:
    return [node["op"] for node in reference.file.graph["nodes"]]


def node(reference: Reference, name: str) -> dict[str, Any]:
    (found,) = (n for n in reference.file.graph["nodes"] if n["name"] == name)
    return dict(found)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.bnew"


# --------------------------------------------------------------------------------------------- our models

MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "birealnet8": ("birealnet8", {}, 16),
    "birealnet20": ("birealnet20", {"num_classes": 100}, 8),
    "greyscale": ("birealnet8", {"in_channels": 1}, 28),
    "odd": ("birealnet8", {}, 13),
    "no scale": ("birealnet8", {"scale": False}, 8),
    "no shift": ("birealnet8", {"shift": False}, 8),
    "no prelu": ("birealnet8", {"prelu": False}, 8),
    "all binary": ("birealnet8", {"binary_ends": True, "binary_shortcut": True}, 16),
    "all binary, no scale": ("birealnet8", {"binary_ends": True, "scale": False}, 8),
    "surrogate": ("birealnet8", {"surrogate": "clipped_identity"}, 8),
    "wideresnet22": ("wideresnet22", {}, 8),
    "reactnet18": ("reactnet18", {"num_classes": 5}, 32),
    "bnext": ("bnext_tiny", {"num_classes": 5, "width": 16, "blocks": (2, 1)}, 32),
    "quicknet": ("quicknet", {"num_classes": 5, "widths": (32, 64), "blocks": (2, 1)}, 40),
}


@pytest.mark.parametrize("name", MODELS)
def test_our_models(name: str, path: Path) -> None:
    model_name, options, size = MODELS[name]
    model = trained(create_model(model_name, **options))
    shape = (options.get("in_channels", 3), size, size)
    reference = packed(model, path, *shape, double=True)
    total = summary(model, shape).total
    minus = 4 * sum(isinstance(m, Recoupling) for m in model.modules())  # the factor of y − x
    assert reference.file.tensor_bytes == total.packed_bytes + minus
    words = [array for array in reference.file.tensors.values() if array.dtype == np.uint32]
    statistics = sum(
        2 * m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d) and not m.affine
    )
    real = total.real_parameters + statistics
    assert sum(array.nbytes for array in words) == total.packed_bytes - 4 * real
    if model_name not in ("wideresnet22", "bnext_tiny") and "binary_ends" not in options:
        assert "identity" not in ops(reference)  # everything is a step of a layer


@pytest.mark.parametrize(("name", "size"), [("birealnet8", 8), ("reactnet18", 32)])
def test_magnitude_of_weights_costs_nothing(name: str, size: int, path: Path) -> None:
    """STE with a scale per output channel, whether a scale follows or a batch norm."""
    model = trained(create_model(name, num_classes=3), scale=True)
    reference = packed(model, path, 3, size, size, double=True)
    assert reference.file.tensor_bytes == summary(model, (3, size, size)).total.packed_bytes


def test_reactnet_a_is_as_small_as_promised(path: Path) -> None:
    model = trained(create_model("reactnet_a"))
    x = torch.randn(1, 3, 32, 32)
    bnew.pack(model, x, path, classes=[f"a rather long name, number {i}" for i in range(1000)])
    assert path.stat().st_size <= 8.1e6
    reference = Reference(path)
    assert reference.file.tensor_bytes == summary(model, (3, 32, 32)).total.packed_bytes == 7_893_280
    assert set(ops(reference)) == {"conv", "binary_conv", "avg_pool", "adaptive_avg_pool"}  # no concat
    bnew.pack(model, x, path, half=True)
    assert path.stat().st_size <= 5.9e6


def test_half_is_near(path: Path) -> None:
    model = trained(create_model("birealnet8"))
    x = torch.randn(8, 3, 16, 16)
    bnew.pack(model, x, path, half=True)
    reference = Reference(path)
    total = summary(model, (3, 16, 16)).total
    assert reference.file.tensor_bytes == total.packed_bytes - 2 * total.real_parameters
    # As if the model itself had been rounded, but for batch norms, whose folded numbers are.
    result, expected = reference(x.numpy()), model.eval()(x).detach().numpy()
    assert np.corrcoef(result.ravel(), expected.ravel())[0, 1] > 0.9


def test_block_becomes_one_node(path: Path) -> None:
    """docs/format.md's reason to have steps: batch norm, shortcut, RPReLU and the next sign ride along."""
    reference = packed(trained(create_model("birealnet8")), path, 3, 16, 16)
    block = node(reference, "blocks.2.conv")
    kinds = [next(iter(step)) for step in block["then"]]
    assert kinds == ["scale", "scale", "shift", "add", "shift", "prelu", "shift"]
    assert {"shift": "blocks.3.conv.input_sign.shift"}.items() <= block["sign"].items()
    assert block["then"][3] == {"add": node(reference, "blocks.2.shortcut.1")["output"]}
    assert node(reference, "blocks.3.conv")["input"] == block["sign"]["output"]


def test_model_is_left_as_it_was(path: Path) -> None:
    model = trained(create_model("birealnet8"))
    model.get_submodule("blocks").eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    bnew.pack(model, torch.randn(1, 3, 8, 8), path)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_same_model_same_bytes(path: Path) -> None:
    model = trained(create_model("birealnet8"))
    bnew.pack(model, torch.randn(1, 3, 8, 8), path)
    first = path.read_bytes()
    bnew.pack(model, torch.randn(2, 3, 8, 8), path)
    assert path.read_bytes() == first


def test_image_and_classes(path: Path) -> None:
    model = trained(create_model("birealnet8", num_classes=2))
    mean, std = [0.5, 0.25, 0.125], [0.5, 1, 2]
    x = torch.randn(1, 3, 8, 8)
    bnew.pack(model, x, path, mean=mean, std=std, classes=["Katze", "été"])
    reference = Reference(path)
    assert reference.file.graph["input"] == {"name": "input", "shape": [3, 8, 8], "mean": mean, "std": std}
    assert reference.file.graph["classes"] == ["Katze", "été"]
    images = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    normalised = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    expected = model.eval()(normalised).detach().numpy()
    np.testing.assert_allclose(reference(images.numpy()), expected, rtol=1e-3, atol=1e-3)


# --------------------------------------------------------------------------------- how others write a sign


class SignFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def polynomial_ste(x: Tensor) -> Tensor:
    """As published with Bi-Real Net and ReActNet."""
    out_forward = torch.sign(x)
    mask1, mask2, mask3 = x < -1, x < 0, x < 1
    out1 = (-1) * mask1.type(torch.float32) + (x * x + 2 * x) * (1 - mask1.type(torch.float32))
    out2 = out1 * mask2.type(torch.float32) + (-x * x + 2 * x) * (1 - mask2.type(torch.float32))
    out3 = out2 * mask3.type(torch.float32) + 1 * (1 - mask3.type(torch.float32))
    return out_forward.detach() - out3.detach() + out3


def in_place(x: Tensor) -> Tensor:
    y = (x >= 0).float()
    y.mul_(2).sub_(1)
    return y


def without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        out = torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))
    y = F.hardtanh(x)
    return out - y.detach() + y


SIGNS: dict[str, Callable[[Tensor], Tensor]] = {
    "sign": torch.sign,
    "scaled sign": lambda x: 0.5 * x.sign(),
    "negative sign": lambda x: -x.sign(),
    "sign of sign": lambda x: torch.sign(3 * torch.sign(x) + 1),
    "where": lambda x: torch.where(x >= 0, 1.0, -1.0),
    "where, whole numbers": lambda x: torch.where(x > 0, 1, -1).to(x.dtype),
    "where, tensors": lambda x: torch.where(x < 0, torch.tensor(-1.0), torch.tensor(1.0)),
    "where, threshold": lambda x: torch.where(x <= 0.25, -2.0, 2.0),
    "where, not": lambda x: torch.where(~(x >= 0), -1.0, 1.0),
    "bool": lambda x: (x >= 0).to(x.dtype) * 2 - 1,
    "one minus": lambda x: 1 - 2 * (x < 0).float(),
    "int": lambda x: ((x > 0).int() * 2 - 1).float(),
    "difference": lambda x: (x > 0).float() - (x < 0).float(),
    "in place": in_place,
    "bnew": bnew.sign,
    "function": SignFunction.apply,
    "trick": lambda x: x.sign().detach() - x.detach() + x,
    "trick, bracketed": lambda x: x + (x.sign() - x).detach(),
    "trick, clipped": lambda x: (x.sign() - x.clamp(-1, 1)).detach() + x.clamp(-1, 1),
    "trick, an operator unknown to the file": lambda x: x.sign().detach() - x.tanh().detach() + x.tanh(),
    "trick, polynomial": polynomial_ste,
    "trick, without gradient": without_gradient,
}


class Foreign(nn.Module):
    """A network in which everything is written by hand."""

    def __init__(
        self, activation: Callable[[Tensor], Tensor], weights: Callable[[Tensor], Tensor] = torch.sign
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.shift = nn.Parameter(torch.randn(8))
        self.weight = nn.Parameter(torch.randn(5, 8, 3, 3) * 0.3)
        self.bias = nn.Parameter(torch.randn(5))
        self.activation, self.weights = activation, weights

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem(x) + self.shift[None, :, None, None])
        return F.conv2d(x, self.weights(self.weight), self.bias, stride=2, padding=1)


@pytest.mark.parametrize("style", SIGNS)
def test_signs(style: str, path: Path) -> None:
    reference = packed(Foreign(SIGNS[style]), path, 3, 6, 6)
    assert ops(reference) == ["conv", "binary_conv"]


def scaled_weights(w: Tensor) -> Tensor:
    """As published with ReActNet."""
    factor = torch.mean(torch.mean(torch.mean(abs(w), dim=3, keepdim=True), dim=2, keepdim=True), 1, True)
    binary = factor.detach() * torch.sign(w)
    clipped = torch.clamp(w, -1.0, 1.0)
    return binary.detach() - clipped.detach() + clipped


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": scaled_weights,
    "centred": lambda w: (w - w.mean((1, 2, 3), keepdim=True)).sign(),
    "where": lambda w: torch.where(w >= 0, 0.1, -0.1),
    "rounded": lambda w: (0.01 * torch.sign(w) - w) + w.clone(),
    "latent": bnew.sign,
}


@pytest.mark.parametrize("style", WEIGHTS)
def test_weights_computed_in_the_graph(style: str, path: Path) -> None:
    reference = packed(Foreign(torch.sign, WEIGHTS[style]), path, 3, 6, 6)
    assert ops(reference) == ["conv", "binary_conv"]


def test_zero_is_positive(path: Path) -> None:
    """torch.sign(0) is 0 in PyTorch; in the file every sign of 0 is +1."""
    odd = binary_conv(4, 3, 1)
    bnew.pack(
        nn.Sequential(Signs(torch.sign), odd), torch.randn(1, 4, 3, 3), path, mean=[0.45] * 4, std=[0.2] * 4
    )
    reference = Reference(path)
    zero, ones = np.zeros((1, 4, 3, 3), np.float32), np.ones((1, 4, 3, 3), np.float32)
    np.testing.assert_array_equal(reference(zero), reference(ones))


CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "where of bool": lambda x: torch.where((x >= 0).float() > 0, 1.0, -1.0),
    "sign of bool": lambda x: (x >= 0).float().sign(),
    "sign of sign and one": lambda x: (x.sign() + 1).sign(),
    "relu over 0": lambda x: (x.relu() > 0).float(),
    "relu at most 0": lambda x: torch.where(x.relu() <= 0, 3.0, 1.0),
    "relu at least 0": lambda x: (x.relu() >= 0).float(),
    "relu below 0": lambda x: (x.relu() < 0).float(),
    "threshold": lambda x: (x.relu() > 0.5).float(),
    "truncated": lambda x: torch.where(x > 0, 1.5, -1.5).int().float(),
    "clamp without limits": lambda x: x.clamp(-torch.inf, torch.inf),
    "clamp with one limit": lambda x: x.clamp(-0.5, torch.inf),
    "gate of a pair": lambda x: torch.cat([x, x], 1) * torch.cat([x, -x], 1).mean((2, 3), True).sigmoid(),
    "pair of a gate": lambda x: torch.cat([x, -x], 1).mean((2, 3), True).sigmoid() * torch.cat([x, x], 1),
}


@pytest.mark.parametrize("what", CHOICES)
def test_choices_are_exact(what: str, path: Path) -> None:
    """Also where much is 0 by construction."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Signs(CHOICES[what]), nn.LazyConv2d(2, 1))
    model(torch.zeros(2, 3, 5, 5))
    packed(model, path, 3, 5, 5)


def test_magnitudes_are_found_by_value() -> None:
    signs = np.where(np.random.default_rng(0).normal(size=(4, 3, 3, 3)) < 0, -1, 1)
    scale = np.array([1, 0.5, 1e-4, 7])
    exact = magnitudes(signs * scale[:, None, None, None])
    assert exact is not None
    np.testing.assert_allclose(exact, scale, rtol=1e-12)
    assert magnitudes(signs * (1 + 1e-3 * np.arange(9).reshape(3, 3))) is None
    assert magnitudes(np.random.default_rng(0).normal(size=(4, 3, 3, 3)) * 1e-8) is None


def test_real_weights_after_a_sign_are_a_real_layer(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "bnew"):
        reference = packed(Foreign(torch.sign, torch.abs), path, 3, 6, 6)
    assert ops(reference) == ["conv", "conv"]
    assert "its input is a sign, but its weights have several magnitudes" in caplog.text


class TwoValues(nn.Module):
    """A binary network whose weights are α · S + β, as AdaBin's are: one α and one β per output channel."""

    def __init__(self, groups: int, zero: bool = False) -> None:
        super().__init__()
        self.groups = groups
        self.stem = nn.Conv2d(3, 8, 3)

        def weights(*shape: int) -> nn.Parameter:
            around = (len(torch.zeros(shape)), *(1,) * (len(shape) - 1))
            scale, middle = torch.rand(around) + 0.5, torch.randn(around)
            signs = bnew.sign(torch.randn(shape))
            return nn.Parameter(scale * signs + (scale if zero else middle))

        self.conv, self.linear = weights(12, 8 // groups, 3, 2), weights(5, 12 * 12)
        self.bias = nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        x = 0.5 * bnew.sign(self.stem(x))
        x = F.conv2d(x, self.conv, self.bias, stride=(1, 2), padding=(0, 1), groups=self.groups)
        return F.linear(bnew.sign(x).flatten(1), self.linear)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_weights_of_two_values_are_split(groups: int, zero: bool, path: Path) -> None:
    torch.manual_seed(groups)
    reference = packed(TwoValues(groups, zero).eval(), path, 3, 8, 7)
    binary = ["binary_conv", "conv", "binary_conv"]  # the sums of the windows, β times these, α · S
    assert ops(reference) == ["conv", *binary, "flatten", *binary]


# ------------------------------------------------------------------------------------------- every operator


class Signs(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor] = torch.sign) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Apply(nn.Module):
    """``function`` between two layers, so that there is something before and after it."""

    def __init__(self, function: Callable[..., Tensor], channels: int = 4, **parts: Any) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 4, 3, padding=1)
        self.after = nn.Conv2d(channels, 2, 1)
        self.function = function
        self.vector = nn.Parameter(torch.randn(4))
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(self, self.before(x))
        if x.dim() == 2:
            x = x[:, :, None, None]
        y: Tensor = self.after(x)
        return y


def binary_conv(*args: Any, **kwargs: Any) -> nn.Conv2d:
    """An ordinary convolution whose weights happen to be ±1."""
    conv = nn.Conv2d(*(args or (4, 4, 3)), **kwargs)
    conv.weight.data.sign_()
    return conv


class SqueezeExcite(nn.Module):
    """As torchvision writes it, with hard-sigmoid; ``linear`` as the paper's authors do."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        layer: Callable[[int, int], nn.Module] = nn.Linear if linear else lambda a, b: nn.Conv2d(a, b, 1)
        self.fc1, self.fc2 = layer(4, 2), layer(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        s = F.adaptive_avg_pool2d(x, 1)
        s = s.view(x.size(0), -1) if self.linear else s
        s = F.relu(self.fc1(s))
        s = F.hardsigmoid(self.fc2(s))
        if self.linear:
            return x * s.view(x.size(0), -1, 1, 1).expand_as(x)
        return s * x


def channels_last(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    return function(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


def norm_by_formula(m: Any, x: Tensor) -> Tensor:
    """As published with ConvNeXt."""
    u = x.mean(1, keepdim=True)
    s = (x - u).pow(2).mean(1, keepdim=True)
    x = (x - u) / torch.sqrt(s + 1e-6)
    y: Tensor = m.vector[:, None, None] * x + m.vector[:, None, None]
    return y


def norm_by_moments(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-6)


FUNCTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "relu": lambda m, x: F.relu(x),
    "relu in place": lambda m, x: F.relu_(x) + x,
    "relu6": lambda m, x: F.relu6(x),
    "hardtanh": lambda m, x: F.hardtanh(x, -0.5, 0.75),
    "clamp": lambda m, x: x.clamp(max=0.5).clamp(min=-0.25).clamp(-0.1, 0.2),
    "clamp by a tensor": lambda m, x: x.clamp(min=torch.zeros(())),
    "prelu": lambda m, x: F.prelu(x, m.vector),
    "prelu of one": lambda m, x: F.prelu(x, m.vector[:1]),
    "leaky relu": lambda m, x: F.leaky_relu(x, 0.2),
    "sigmoid": lambda m, x: x.sigmoid(),
    "hardsigmoid": lambda m, x: F.hardsigmoid(x),
    "hardswish": lambda m, x: F.hardswish(x),
    "silu": lambda m, x: F.silu(x),
    "gelu": lambda m, x: F.gelu(4 * x),
    "gelu by tanh": lambda m, x: F.gelu(4 * x, approximate="tanh"),
    "softmax": lambda m, x: x.softmax(1),
    "real sign": lambda m, x: x.sign() * m.vector[:, None, None] + x,
    "step": lambda m, x: (x > 0.25).float(),
    "relu by mask": lambda m, x: x * (x > 0),
    "arithmetic": lambda m, x: 3 - (2 * x + 1 - x / 4) * 0.5 + torch.sub(x, x * x, alpha=0.5) - (-x),
    "channel vectors": lambda m, x: (x - m.vector[:, None, None]) * m.vector.view(1, 4, 1, 1) / 3,
    "channel last vector is a row": lambda m, x: x.mean((2, 3)) + m.vector,
    "sum of itself": lambda m, x: x + x,
    "square": lambda m, x: x * x,
    "rows and columns": lambda m, x: x * x.mean((2, 3), keepdim=True) + x.mean((-1, -2), keepdim=True),
    "one channel": lambda m, x: x * F.conv2d(x, m.vector[None, :, None, None]).sigmoid(),
    "identities": lambda m, x: F.dropout(x.clone().contiguous().detach(), training=False).to(x.dtype),
    "max pool": lambda m, x: F.max_pool2d(x, 3, 2, padding=1),
    "max pool, dilated": lambda m, x: F.max_pool2d(x, (2, 3), stride=1, dilation=(2, 1)),
    "max pool, bordered": lambda m, x: F.max_pool2d(
        F.pad(x, (0, 1, 1, 0), value=-torch.inf), 3, 2, padding=1
    ),
    "max pool, ceil": lambda m, x: F.max_pool2d(x, 2, ceil_mode=True),
    "max pool, indices": lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0],
    "avg pool": lambda m, x: F.avg_pool2d(x, (3, 2), padding=1),
    "avg pool, ceil": lambda m, x: F.avg_pool2d(x, 2, 2, ceil_mode=True),
    "avg pool, ceil, padded": lambda m, x: F.avg_pool2d(x, 3, 2, padding=1, ceil_mode=True),
    "avg pool, without padding": lambda m, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive avg pool": lambda m, x: F.adaptive_avg_pool2d(x, (3, None)),
    "adaptive avg pool, larger": lambda m, x: F.adaptive_avg_pool2d(x, 12),
    "resize": lambda m, x: F.interpolate(x, scale_factor=2),
    "resize by a fraction": lambda m, x: F.interpolate(x, scale_factor=(1.3, 0.7)),
    "resize to a size": lambda m, x: F.interpolate(x, size=(3, 17)),
    "resize exactly, by a whole number": lambda m, x: F.interpolate(x, scale_factor=3, mode="nearest-exact"),
    "layer norm, channels last": lambda m, x: channels_last(
        x, lambda y: F.layer_norm(y, (4,), m.vector, m.vector.exp(), 1e-3)
    ),
    "layer norm, without numbers": lambda m, x: channels_last(x, lambda y: F.layer_norm(y, [4])),
    "layer norm, transposed": lambda m, x: F.layer_norm(x.transpose(1, -1), (4,)).transpose(-1, 1),
    "layer norm as a formula": lambda m, x: norm_by_formula(m, x),
    "layer norm by moments": lambda m, x: norm_by_moments(x),
    "layer norm by variance": lambda m, x: (
        (x - x.mean(1, True)) / (x.var(1, correction=0, keepdim=True) + 1e-3).sqrt()
    ),
    "layer norm of a vector": lambda m, x: F.layer_norm(x.mean((2, 3)), (4,), m.vector, m.vector),
    "layer norm of one place": lambda m, x: F.layer_norm(x.mean((2, 3), True), (4, 1, 1)),
    "global mean": lambda m, x: x.mean([2, 3]),
    "global mean, kept": lambda m, x: x.mean([-2, -1], keepdim=True),
    "norm without numbers": lambda m, x: F.batch_norm(x, m.vector, m.vector.exp()),
    "pad before a layer": lambda m, x: F.conv2d(F.pad(x, (1, 0, 2, 1)), torch.ones(4, 1, 2, 2), groups=4),
    "same padding": lambda m, x: F.conv2d(x, torch.ones(4, 1, 2, 4), padding="same", groups=4),
    "valid padding": lambda m, x: F.conv2d(x, torch.ones(4, 1, 2, 4), padding="valid", groups=4),
    "sign, pool": lambda m, x: F.conv2d(F.max_pool2d(x.sign(), 2), torch.ones(4, 4, 3, 3)),
    "sum of two uses": lambda m, x: x.relu() + x.sigmoid(),
    "sum with what comes later": lambda m, x: (
        x.relu() + (x + F.max_pool2d(x, 3, 1, 1)) * x.mean((2, 3), True)
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators(name: str, path: Path) -> None:
    packed(Apply(FUNCTIONS[name]), path, 3, 7, 7)


def test_a_layer_norm_is_one_node(path: Path) -> None:
    """However it is written, with weight and bias as steps, which the next sign takes in turn."""
    for name in ("layer norm, channels last", "layer norm as a formula"):
        model = Apply(FUNCTIONS[name])
        reference = packed(model, path, 3, 7, 7)
        _, norm, _ = reference.file.graph["nodes"]
        assert norm["op"] == "layer_norm"
        assert [next(iter(step)) for step in norm["then"]] == ["scale", "shift"]
        assert norm["eps"] == (1e-3 if "last" in name else 1e-6)
    sign = Apply(lambda m, x: m.conv(bnew.sign(norm_by_formula(m, x))), conv=binary_conv())
    reference = packed(sign, path, 3, 7, 7)
    assert set(reference.file.graph["nodes"][1]["sign"]) == {"scale", "shift", "output"}


def test_what_is_no_layer_norm_is_no_formula_for_one(path: Path) -> None:
    """Other dimensions, unbiased variance, the mean of another value, no variance."""
    formulas: list[Callable[[Tensor], Tensor]] = [
        lambda x: (x - x.mean(1, True)) / (x.var(1, keepdim=True) + 1e-3).sqrt(),
        lambda x: (x - x.mean(1, True)) / (x.var(2, correction=0, keepdim=True) + 1e-3).sqrt(),
        lambda x: (x - x.relu().mean(1, True)) / (x.var(1, correction=0, keepdim=True) + 1e-3).sqrt(),
        lambda x: (x - x.mean(1, True)) / (x.relu().var(1, correction=0, keepdim=True) + 1e-3).sqrt(),
        lambda x: (x - x.mean(1, True)) / ((x - x.mean(1, True)).pow(4).mean(1, True) + 1e-3).sqrt(),
        lambda x: torch.sub(x, x.mean(1, True), alpha=2) * (x.var(1, correction=0, keepdim=True) + 1).rsqrt(),
        lambda x: x * (x.var(1, correction=0, keepdim=True) + 1).rsqrt(),
    ]
    for formula in formulas:
        assert "layer_norm" not in ops(packed(Signs(formula), path, 4, 5, 5))


@pytest.mark.parametrize(
    ("border", "factor"), [(1.0, 1.0), (-1.0, 1.0), (0.5, 0.5), (0.5, -0.5), (-2.0, 2.0)]
)
def test_a_border_of_signs_is_part_of_the_binary_layer(border: float, factor: float, path: Path) -> None:
    """As Larq's pad_values=1."""
    layer = binary_conv(4, 5, 3, stride=2, bias=False)
    around = Signs(lambda x: F.pad(bnew.sign(x - 0.1) * factor, (1, 2, 1, 0), value=border))
    reference = packed(nn.Sequential(around, layer), path, 4, 6, 7)
    (node,) = (node for node in reference.file.graph["nodes"] if node["op"] == "binary_conv")
    assert node["pad_value"] == border / factor
    assert "pad" not in ops(reference)


def test_another_border_of_signs_is_a_border_of_numbers(path: Path) -> None:
    for border, layer in ((0.5, binary_conv(4, 5, 3)), (1.0, nn.Conv2d(4, 5, 3))):
        around = Signs(lambda x, border=border: F.pad(bnew.sign(x - 0.1), (1, 1, 1, 1), value=border))  # type: ignore[misc]
        assert "pad" in ops(packed(nn.Sequential(around, layer), path, 4, 6, 7))


def test_signs_that_are_resized_are_bits(path: Path) -> None:
    model = Apply(lambda m, x: m.conv(F.interpolate(x.sign(), scale_factor=2)), conv=binary_conv())
    assert ops(packed(model, path, 3, 5, 5)) == ["conv", "resize_nearest", "binary_conv", "conv"]


def test_sum_with_the_image(path: Path) -> None:
    class Residual(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x + super().forward(x)
            return y

    assert ops(packed(Residual(3, 3, 1), path, 3, 5, 5)) == ["conv"]
    assert ops(packed(Signs(lambda x: x), path, 3, 5, 5)) == ["identity"]


def test_concatenation(path: Path) -> None:
    def both(m: Any, x: Tensor) -> Tensor:
        return torch.cat([x.relu(), x, x.sign()], 1)

    reference = packed(Apply(both, channels=12), path, 3, 5, 5)
    assert ops(reference).count("concat") == 1


@pytest.mark.parametrize("swap", [False, True])
def test_input_laid_side_by_side_is_added_as_it_is(swap: bool, path: Path) -> None:
    def widen(m: Any, x: Tensor) -> Tensor:
        twice = torch.cat([x, x], 1)
        y: Tensor = m.conv(x.sign())
        return y + twice if swap else twice + y

    reference = packed(Apply(widen, 8, conv=binary_conv(4, 8, 1)), path, 3, 5, 5)
    assert "concat" not in ops(reference)


def test_signs_side_by_side_are_bits(path: Path) -> None:
    def dense(m: Any, x: Tensor) -> Tensor:
        return F.conv2d(torch.cat([x.sign(), F.max_pool2d(x.sign(), 3, 1, 1)], 1), m.weight)

    model = Apply(dense, weight=nn.Parameter(torch.randn(4, 8, 3, 3).sign()))
    assert "binary_conv" in ops(packed(model, path, 3, 5, 5))


@pytest.mark.parametrize("linear", [False, True])
def test_squeeze_excite(linear: bool, path: Path) -> None:
    reference = packed(Apply(lambda m, x: m.se(x), se=SqueezeExcite(linear)), path, 3, 5, 7)
    steps = [next(iter(step)) for n in reference.file.graph["nodes"] for step in n.get("then", [])]
    assert steps.count("multiply") == 1


def test_several_signs_of_one_value(path: Path) -> None:
    """One goes into the node, the others get a node of their own."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = binary_conv(), binary_conv(), binary_conv()
            self.shift = nn.Parameter(torch.randn(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(x, 2)
            other = bnew.sign(x * self.shift + self.shift)
            y: Tensor = self.a(bnew.sign(x)) + self.b(bnew.sign(x)) + self.c(other)
            return y

    reference = packed(Two(), path, 4, 9, 9)
    assert sorted(ops(reference)) == ["binary_conv"] * 3 + ["identity", "max_pool"]


def test_norm_and_sign_become_scale_and_shift_of_the_sign(path: Path) -> None:
    """The usual order of older networks: convolution, pool, batch norm, hardtanh, sign."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Signs(), BinaryConv2d(4, 4, 3), nn.BatchNorm2d(4),
        nn.Hardtanh(), nn.Flatten(), Signs(), BinaryLinear(4 * 9, 6), nn.BatchNorm1d(6, affine=False),
        nn.Softmax(dim=1),
    )  # fmt: skip
    reference = packed(trained(model), path, 3, 7, 7)
    assert ops(reference) == ["conv", "binary_conv", "flatten", "binary_conv", "softmax"]
    first = reference.file.graph["nodes"][0]
    assert set(first["sign"]) == {"scale", "shift", "output"}
    assert "output" not in first


def test_vectors(path: Path) -> None:
    model = nn.Sequential(
        nn.Linear(7, 40), nn.BatchNorm1d(40), BinaryLinear(40, 70), nn.PReLU(70), BinaryLinear(70, 3)
    )
    reference = packed(trained(model), path, 7)
    assert reference.file.graph["input"]["shape"] == [7, 1, 1]
    assert reference.file.tensor_bytes == summary(model, (7,)).total.packed_bytes


def test_shared_layer_is_stored_once(path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(BinaryConv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.PReLU(4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.block(self.block(x))
            return y

    model = trained(Twice())
    reference = packed(model, path, 4, 5, 5)
    assert reference.file.tensor_bytes == summary(model, (4, 5, 5)).total.packed_bytes
    assert [n["name"] for n in reference.file.graph["nodes"]][1:] == ["block.0", "block.0#2"]


def test_magnitude_moves_past_a_bias(path: Path) -> None:
    """(m v + b) s = (v + b / m) (m s): still two numbers per channel and the bias."""
    model = nn.Sequential(nn.Identity(), BinaryConv2d(4, 6, 1, padding=1), nn.BatchNorm2d(6))
    trained(model, scale=True)
    reference = packed(model, path, 4, 3, 3)
    assert reference.file.tensor_bytes == summary(model, (4, 3, 3)).total.packed_bytes


def test_magnitude_without_a_scale_after_it_is_a_step(path: Path) -> None:
    reference = packed(trained(nn.Sequential(BinaryConv2d(4, 6, 3)), scale=True), path, 4, 5, 5)
    assert [next(iter(step)) for step in node(reference, "0")["then"]] == ["scale", "shift"]


def test_a_float16_model(path: Path) -> None:
    model = trained(create_model("birealnet8")).half()
    bnew.pack(model, torch.randn(1, 3, 8, 8).half(), path)
    assert Reference(path)(np.ones((1, 3, 8, 8), np.float32)).shape == (1, 10)


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_convolutions_of_every_shape(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    draw = data.draw
    groups = draw(st.integers(1, 3), "groups")
    c_in = groups * draw(st.sampled_from([1, 2, 11, 33]), "in")
    c_out = groups * draw(st.integers(1, 3), "out")
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(pairs, "kernel"), draw(pairs, "stride"), draw(pairs, "dilation")
    padding: Any = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)), "padding")
    if stride == (1, 1) and draw(st.booleans(), "same"):
        padding = "same"
    size = [dilation[i] * (kernel[i] - 1) + draw(st.integers(1, 4), "room") for i in (0, 1)]
    conv: Any = BinaryConv2d if draw(st.booleans(), "binary") else nn.Conv2d
    bias = draw(st.booleans(), "bias")
    layer = conv(c_in, c_out, kernel, stride, padding=padding, dilation=dilation, groups=groups, bias=bias)
    path = tmp_path_factory.mktemp("shape") / "model.bnew"
    reference = packed(trained(nn.Sequential(layer), scale=True), path, c_in, *size)
    assert ops(reference)[-1] == ("conv" if conv is nn.Conv2d else "binary_conv")
    assert reference.file.tensor_bytes <= summary(layer, (c_in, *size)).total.packed_bytes + 4 * c_out


# ------------------------------------------------------------------------------------------ what is refused


class Outputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + 1


class Inputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def with_zeros() -> nn.Module:
    conv = BinaryConv2d(4, 4, 3)
    conv.weight.data.sign_()
    conv.weight.data[1, 2] = 0
    return nn.Sequential(conv)


def not_frozen() -> nn.Module:
    return nn.Sequential(nn.Identity(), nn.Sequential(BinaryConv2d(4, 4, 3)))


REFUSALS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "unknown operator": (
        lambda: nn.Sequential(nn.Conv2d(4, 2, 1), nn.Sequential(Signs(torch.sin))),
        "sin in layer '1.0'.* cannot be packed: there is no such operator",
    ),
    "unknown operator in a function": (
        lambda: Signs(lambda x: x.relu().sin()),
        r"sin in the model itself, test_pack.py line \d+ cannot be packed",
    ),
    "not frozen": (
        not_frozen,
        "layer '1.0'.*: the weights of this BinaryConv2d are not of one magnitude per output channel "
        r"\(they go from \S+ to \S+\): freeze\(\) the method first, or pack a run's best weights",
    ),
    "zero weights": (with_zeros, "layer '0'.*: 9 of its binary weights are 0, but a bit is"),
    "NaN": (
        lambda: nn.Sequential(nn.BatchNorm2d(4), Signs(lambda x: x * torch.nan)),
        "'mul.scale' holds NaN or infinite numbers|'1.scale' holds NaN",
    ),
    "batch norm without statistics": (
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
        "_native_batch_norm_legit.* cannot be packed",
    ),
    "layer norm without eps": (
        lambda: Signs(lambda x: channels_last(x, lambda y: F.layer_norm(y, (4,), eps=0))),
        r"its eps is 0\.0, but must be above 0",
    ),
    "dropout that is never off": (
        lambda: Signs(lambda x: F.dropout(x, training=True)),
        "dropout|bernoulli|rand",
    ),
    "batch in a reshape": (lambda: Signs(lambda x: x.reshape(-1, 25)), "number has changed"),
    "one image only": (
        lambda: nn.Sequential(Signs(lambda x: x.reshape(2, -1)), nn.Linear(100, 2)),
        "torch.export cannot read Sequential for 11 images at once",
    ),
    "sign of relu": (lambda: Signs(lambda x: x.relu().sign()), "its input may be exactly 0"),
    "sign of a clamp": (lambda: Signs(lambda x: (x.clamp(-1, 1) + 1).sign()), "its input may be exactly 0"),
    "sign of the image": (lambda: Signs(torch.sign), "bnew cannot tell whether its input may be exactly 0"),
    "sum of comparisons": (lambda: Signs(lambda x: ((x > 0) + (x > 0.5)).float()), "is of torch.bool"),
    "or": (lambda: Signs(lambda x: ((x > 0) + (x > 0)).float()), "is of torch.bool, which cannot hold"),
    "bits of whole numbers": (
        lambda: Signs(lambda x: (~(x > 0).int()).float()),
        "only the negation of a comparison",
    ),
    "wrapped": (lambda: Signs(lambda x: ((x > 0).to(torch.int8) * 100 + 100).float()), "is of torch.int8"),
    "border of infinite numbers": (
        lambda: Signs(lambda x: F.pad(x, (0, 1), value=-torch.inf).relu()),
        "its border is of infinite numbers, which only a max pool may take",
    ),
    "rounded to decimals": (
        lambda: Signs(lambda x: x.round(decimals=1)),
        "with decimals=1, it is not packed",
    ),
    "clamp by NaN": (lambda: Signs(lambda x: x.clamp(min=torch.nan)), "one of its limits is NaN"),
    "clamp to nothing": (lambda: Signs(lambda x: x.clamp(min=torch.inf)), "leave no finite number"),
    "division by zero": (lambda: Signs(lambda x: x / 0), "divides by 0"),
    "comparison of values": (
        lambda: Signs(lambda x: (x > x.log()).float()),
        "compares with a value that may be infinite or NaN",
    ),
    "choice of values": (
        lambda: Signs(lambda x: torch.where(x > 0, x.log(), x / 2)),
        "may be infinite or NaN where it is not chosen: clamp",
    ),
    "whole numbers": (lambda: Signs(lambda x: (x * 3).int().float()), "its result is of torch.int32"),
    "weights from the input": (
        lambda: Signs(lambda x: F.linear(x.mean((2, 3)), x.mean((2, 3)))),
        "its weights depend on the input",
    ),
    "overridden divisor": (
        lambda: nn.AvgPool2d(2, ceil_mode=True, divisor_override=3),
        "its divisor is overridden, and one of its windows is cut off",
    ),
    "window without a place": (
        lambda: nn.MaxPool2d(2, padding=1, dilation=6),  # its taps lie at −1 and 5
        "one of its windows lies wholly in the padding",
    ),
    "branch on values": (
        lambda: Signs(lambda x: x + 1 if x.sum() > 0 else x),
        "torch.export cannot read Signs .*no branches",
    ),
    "one of two inputs": (Inputs, "Inputs does not take an example of shape .*missing 1 required"),
    "constant output": (
        lambda: Signs(lambda x: torch.ones(7, 3)),
        "the output of Signs does not depend on its input",
    ),
    "other size": (lambda: nn.Conv2d(3, 4, 3), r"Conv2d does not take an example of shape \(2, 4, 5, 5\)"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refusals(what: str, path: Path) -> None:
    make, message = REFUSALS[what]
    path.write_bytes(b"what was here before")
    with pytest.raises(BnewError, match=message) as caught:
        bnew.pack(make(), torch.randn(2, 4, 5, 5), path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"what was here before"
    assert list(path.parent.iterdir()) == [path]


# What was once refused.
FREE: dict[str, Callable[[], nn.Module]] = {
    "padding mode": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
    "padding by ones": lambda: nn.ConstantPad2d(1, 1.0),
    "padding alone": lambda: nn.ZeroPad2d(1),
    "cropping": lambda: nn.ZeroPad2d(-1),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 3),
    "one dimension": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 3)),
    "layer norm": lambda: nn.LayerNorm(5),
    "layer norm of the image": lambda: nn.LayerNorm((4, 5, 5)),
    "channels last": lambda: Signs(lambda x: channels_last(x, lambda y: F.gelu(F.layer_norm(y, (4,))))),
    "channels last, and elsewhere": lambda: Signs(
        lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 2, 1)
    ),
    "resize, bilinear": lambda: Signs(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    "reshape": lambda: Signs(lambda x: x.reshape(len(x), 2, 10, 5)),
    "permute": lambda: Signs(lambda x: x.permute(0, 2, 3, 1)),
    "part": lambda: Signs(lambda x: x[:, :2]),
    "split": lambda: Signs(lambda x: x.chunk(2, 1)[0]),
    "mean of channels": lambda: Signs(lambda x: x.mean(1, keepdim=True)),
    "mean of rows": lambda: Signs(lambda x: x.mean(2)),
    "softmax of places": lambda: nn.Softmax(dim=3),
    "side by side in space": lambda: Signs(lambda x: torch.cat([x, x], 2)),
    "constant picture": lambda: Signs(lambda x: x + torch.arange(5)),
    "rows": lambda: Signs(lambda x: F.avg_pool2d(x, (5, 1)) + F.avg_pool2d(x, (1, 5))),
    "more channels by a constant": lambda: Signs(
        lambda x: F.conv2d(x, torch.ones(1, 4, 1, 1)) * torch.arange(3.0).view(3, 1, 1)
    ),
    "expanded": lambda: Signs(lambda x: x.mean((2, 3), True).expand_as(x).relu()),
    "expanded output": lambda: Signs(lambda x: x.mean((2, 3), True).expand_as(x)),
    "wider choice": lambda: Signs(lambda x: torch.where(x.mean((2, 3), True) > 0, torch.ones(5, 5), -1.0)),
    "wider choice, channels": lambda: Signs(
        lambda x: torch.where(F.conv2d(x, torch.ones(1, 4, 1, 1)) > 0, torch.ones(3, 1, 1), -1.0)
    ),
    "wider comparison": lambda: Signs(
        lambda x: (F.conv2d(x, torch.ones(1, 4, 1, 1)) > torch.zeros(3, 1, 1)).float()
    ),
    "quotient": lambda: Signs(lambda x: x / x.sigmoid()),
    "clamp by channel": lambda: Signs(lambda x: x.clamp(min=torch.arange(4.0)[:, None, None])),
    "adaptive max pool": lambda: nn.AdaptiveMaxPool2d(2),
    "adaptive max pool, other windows": lambda: nn.AdaptiveMaxPool2d((3, 4)),
    "overridden divisor": lambda: nn.AvgPool2d((3, 2), 1, (1, 0), divisor_override=5),
    "resize exactly": lambda: Signs(lambda x: F.interpolate(x, scale_factor=0.5, mode="nearest-exact")),
    "resize of rows": lambda: Signs(lambda x: F.interpolate(x.flatten(2), scale_factor=2)),
    "local response norm": lambda: nn.LocalResponseNorm(3, alpha=0.1, beta=0.75, k=2.0),
}


@pytest.mark.parametrize("what", FREE)
def test_free_forms(what: str, path: Path) -> None:
    packed(FREE[what](), path, 4, 5, 5)


ARGUMENTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "whole numbers": (torch.ones(1, 4, 3, 3, dtype=torch.uint8), {}, "no tensor of floating-point numbers"),
    "array": (np.ones((1, 4, 3, 3)), {}, "no tensor of floating-point numbers"),
    "no batch": (torch.ones(4), {}, r"has shape \(4,\), but must be \(N, C, H, W\), \(N, C, L\) for"),
    "empty": (torch.ones(0, 4, 3, 3), {}, "has shape"),
    "mean alone": (torch.ones(1, 4, 3, 3), {"mean": [0] * 4}, "mean and std belong together"),
    "resize": (torch.ones(1, 4, 3, 3), {"resize": (3, 2)}, "resize is .*, but must cover the input"),
    "three means": (torch.ones(1, 4, 3, 3), {"mean": [0] * 3, "std": [1] * 3}, "each of 4 channels"),
    "no deviation": (torch.ones(1, 4, 3, 3), {"mean": [0] * 4, "std": [1, 1, 0, 1]}, "std is .* positive"),
    "classes": (torch.ones(1, 4, 3, 3), {"classes": "ab"}, "2 class names, but the model has 4 outputs"),
    "no UTF-8": (torch.ones(1, 4, 3, 3), {"classes": ["a", "b", "c", "\udc80"]}, "written as UTF-8"),
    "half": (
        torch.ones(1, 4, 3, 3),
        {"half": True},
        "goes up to 1e.05, too large for float16: .*without half",
    ),
}


@pytest.mark.parametrize("what", ARGUMENTS)
def test_bad_arguments(what: str, path: Path) -> None:
    example, options, message = ARGUMENTS[what]
    with pytest.raises(BnewError, match=message):
        bnew.pack(Signs(lambda x: x * 1e5), example, path, **options)
    assert not path.exists()


def test_numbers_lost_in_half(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "bnew"):
        bnew.pack(Signs(lambda x: x * 1e-9), torch.ones(1, 4, 3, 3), path, half=True)
    assert "1 of the 1 numbers of 'mul.scale' become 0 in float16" in caplog.text


def test_unwritable(tmp_path: Path) -> None:
    with pytest.raises(BnewError, match="could not write"):
        bnew.pack(nn.ReLU(), torch.ones(1, 1, 2, 2), tmp_path / "no folder" / "model.bnew")


def test_names_of_the_file_are_plain(path: Path) -> None:
    """The header is JSON that anything can read."""
    bnew.pack(trained(create_model("birealnet8")), torch.ones(1, 3, 8, 8), path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header["blocks.0.conv.weight"]["dtype"] == "U32"
    assert header["blocks.0.norm.scale"]["shape"] == [16]
    assert header["blocks.0.activation.prelu"]["shape"] == [16]
