"""pack() of models that are wrapped, traced or exported, and of such that change what they are given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from packed_reference import Reference
from test_pack import trained
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor

import bnew
from bnew import BinaryConv2d, BinaryLinear, BnewError, RPReLU, RSign
from bnew.layers import ChannelScale
from bnew.models.pooling import MaxPool2d


class Twice(nn.Module):
    """Two layers with names of their own, one of which is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("block@1", nn.Conv2d(3, 4, 3))
        self.add_module("block", nn.Sequential(BinaryConv2d(4, 4, 1)))

    def forward(self, x: Tensor) -> Tensor:
        first, block = self.get_submodule("block@1"), self.get_submodule("block")
        y: Tensor = block(block(first(x)))
        return y


def exported() -> nn.Module:
    batch = {0: torch.export.Dim("batch")}
    return torch.export.export(trained(Twice()).eval(), (X,), dynamic_shapes=(batch,)).module()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.bnew"


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    address = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def packed(model: nn.Module, path: Path) -> Reference:
    """The file, which computes what the model computes."""
    x = X.clone()
    bnew.pack(model, x, path)
    assert torch.equal(x, X)
    reference = Reference(path)
    with torch.no_grad():
        expected = model(X.clone()).numpy()
    np.testing.assert_allclose(reference(X.numpy()).reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)
    return reference


def names(reference: Reference) -> list[str]:
    return [str(node["name"]) for node in reference.file.graph["nodes"]]


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "plain": lambda model: model,
    "DataParallel": lambda model: nn.DataParallel(model),
    "compiled, in parallel": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    "traced": fx.symbolic_trace,
}


@pytest.mark.parametrize("how", WRAPPERS)
def test_a_wrapped_model_is_packed_as_what_it_wraps(how: str, path: Path) -> None:
    model = trained(Twice()).eval()
    assert names(packed(WRAPPERS[how](model), path)) == ["block@1", "block.0", "block.0#2"]


@pytest.mark.usefixtures("one_process")
def test_distributed_data_parallel(path: Path) -> None:
    model = nn.parallel.DistributedDataParallel(trained(Twice()).eval())
    assert names(packed(model, path)) == ["block@1", "block.0", "block.0#2"]


@pytest.mark.parametrize("inside", [False, True])
def test_an_exported_graph(inside: bool, path: Path) -> None:
    """It is in one mode throughout, and says so by an error where it is asked for another."""
    model = exported()
    reference = packed(nn.Sequential(model) if inside else model, path)
    assert [node["op"] for node in reference.file.graph["nodes"]] == ["conv", "binary_conv", "binary_conv"]


def test_an_exported_graph_for_other_batches(path: Path) -> None:
    model = torch.export.export(trained(Twice()).eval(), (X,)).module()
    with pytest.raises(BnewError, match="cannot read GraphModule for 11 images at once"):
        bnew.pack(model, X, path)


# --------------------------------------------------------------------------------------------- torch.fx


class AllLayers(nn.Module):
    """All layers of bnew."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            BinaryConv2d(3, 8, 3, input_sign=RSign(3)), ChannelScale(8), RPReLU(8), MaxPool2d(2), nn.Flatten()
        )
        self.head = nn.Sequential(BinaryLinear(72, 5, input_sign=RSign(72)), RPReLU(5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x))
        return bnew.sign(y) + y


@pytest.mark.parametrize("name", ["all layers", "birealnet8", "reactnet_a"])
def test_our_networks_can_be_traced(name: str) -> None:
    model = trained(AllLayers() if name == "all layers" else bnew.create_model(name)).eval()
    traced = fx.symbolic_trace(model)
    x = torch.randn(2, 3, *((8, 8) if name == "all layers" else (32, 32)))
    assert torch.equal(traced(x), model(x))
    model(x).sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    copy.deepcopy(traced)  # its code names what it calls
    traced(x).sum().backward()
    for parameter, grad in expected.items():
        torch.testing.assert_close(traced.get_parameter(parameter).grad, grad)


def test_a_traced_network_is_packed(path: Path) -> None:
    packed(fx.symbolic_trace(trained(AllLayers()).eval()), path)


def test_features_of_a_binarized_network(path: Path) -> None:
    model = trained(bnew.binarize(torchvision.models.resnet18(num_classes=5))).eval()
    extractor = create_feature_extractor(model, {"layer1": "features"})
    found: list[Tensor] = []
    model.get_submodule("layer1").register_forward_hook(lambda m, x, y: found.append(y))
    model(X)
    assert torch.equal(extractor(X)["features"], found[0])


# ------------------------------------------------------------------------------ what a model changes


class Counts(nn.Module):
    """A layer that counts its calls, and multiplies by their number if ``uses``."""

    calls: Tensor

    def __init__(self, uses: bool, assigns: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.uses, self.assigns = uses, assigns

    def forward(self, x: Tensor) -> Tensor:
        if self.assigns:
            self.calls = self.calls + 1
        else:
            self.calls += 1
        y: Tensor = self.conv(x)
        return y * self.calls if self.uses else y


class Overwrites(nn.Module):
    """A buffer that is another in every call, but in which none is left over from the one before."""

    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.last.copy_(torch.ones(3))
        return x + self.last[:, None, None]


class ChangesInput(nn.Module):
    def __init__(self, returns: bool) -> None:
        super().__init__()
        self.conv, self.returns = nn.Conv2d(3, 4, 3), returns

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2).add_(1)
        y: Tensor = x if self.returns else self.conv(x) + self.conv(x)
        return y


@pytest.mark.parametrize("assigns", [False, True])
def test_a_buffer_that_nothing_depends_on(assigns: bool, path: Path) -> None:
    model = Counts(False, assigns)
    calls = model.calls
    bnew.pack(model, X, path)
    assert model.calls is calls
    assert calls == 0
    packed(model, path)


@pytest.mark.parametrize("assigns", [False, True])
def test_state_is_refused_by_its_name(assigns: bool, path: Path) -> None:
    model = nn.Sequential(Counts(True, assigns))
    with pytest.raises(BnewError, match=r"changes its '0.calls' in every call and its output depends on it"):
        bnew.pack(model, X, path)
    assert model.get_buffer("0.calls") == 0


def test_a_buffer_that_is_written_first(path: Path) -> None:
    packed(Overwrites(), path)


@pytest.mark.parametrize("returns", [False, True])
def test_a_changed_input_is_changed_in_a_copy(returns: bool, path: Path) -> None:
    packed(ChangesInput(returns), path)
