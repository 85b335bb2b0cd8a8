"""Files for images of any size give PyTorch's results at each of them, or are refused by name."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from packed_reference import Reference
from torch import Tensor, nn

import bnew
from bnew import BinaryConv2d, BnewError
from bnew.packing.file import PackedFile

engine = pytest.importorskip("bnew_engine")

SIZES = [(64, 48), (20, 100), (33, 47), (36, 29)]


class Net(nn.Module):
    """Some layers, and what a test does with them."""

    def __init__(self, forward: Any, **layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = forward
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        for parameter in self.a.parameters():
            parameter.data = torch.round(32 * parameter.data) / 32
        binary = BinaryConv2d(8, 8, 3, stride=2, padding=1)
        with torch.no_grad():
            binary.weight.copy_(torch.where(torch.randn(binary.weight.shape) >= 0, 1.0, -1.0))
        self.b = nn.Sequential(binary, nn.BatchNorm2d(8))
        nn.init.normal_(self.b[1].get_buffer("running_mean"), 0, 3)
        self.c = nn.Linear(8, 5)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.way(self, x)


def pooled(net: Any, x: Tensor) -> Any:
    return net.c(F.adaptive_avg_pool2d(net.b(net.pool(net.a(x))), 1).flatten(1))


def unet(net: Any, x: Tensor) -> Any:
    first = net.a(x)
    second = net.b(first)
    up = net.up(net.b(second))
    return net.o(torch.cat([net.up(torch.cat([up, second], 1)), first], 1))


def pyramid(mode: str, **corners: bool) -> Any:
    def forward(net: Any, x: Tensor) -> Any:
        first = net.a(x)
        second = net.b(first)
        third = net.b(second)
        second = second + F.interpolate(third, size=second.shape[2:], mode=mode, **corners)
        out = F.interpolate(second, size=x.shape[2:], mode=mode, **corners)
        return {"out": out, "small": second, "classes": net.c(third.mean((2, 3)))}

    return forward


def tokens(net: Any, x: Tensor) -> Any:
    t = net.b(net.b(net.a(x))).flatten(2).transpose(1, 2)
    return net.c((t + F.scaled_dot_product_attention(net.q(t), t, t)).mean(1))


def transposed(net: Any, x: Tensor) -> Any:
    return torch.cat([net.up(net.b(net.a(x))), x], 1)


NETS = {
    "floor": Net(pooled, pool=nn.MaxPool2d(3, 2, 1)),
    "ceil": Net(pooled, pool=nn.MaxPool2d(2, 2, ceil_mode=True)),
    "mean": Net(pooled, pool=nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    "mean of places": Net(pooled, pool=nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    "dilated": Net(pooled, pool=nn.MaxPool2d(3, 3, 1, dilation=2, ceil_mode=True)),
    "adaptive": Net(lambda n, x: n.c(F.adaptive_avg_pool2d(n.b(n.a(x)), (2, 3)).mean(2).transpose(1, 2))),
    "unet": Net(unet, up=nn.Upsample(scale_factor=2), o=nn.Conv2d(24, 4, 1)),
    "unet bilinear": Net(unet, up=nn.Upsample(scale_factor=2, mode="bilinear"), o=nn.Conv2d(24, 4, 1)),
    "nearest pyramid": Net(pyramid("nearest")),
    "bilinear pyramid": Net(pyramid("bilinear", align_corners=False)),
    "corners": Net(pyramid("bilinear", align_corners=True)),
    "pixel shuffle": Net(lambda n, x: F.pixel_shuffle(n.b(n.a(x)), 2)),
    "transposed": Net(lambda n, x: n.up(n.b(n.a(x))), up=nn.ConvTranspose2d(8, 4, 4, 2, 1)),
    "tokens": Net(tokens, q=nn.Linear(8, 8)),
    "gate": Net(lambda n, x: n.a(x) * torch.sigmoid(n.a(x).mean((2, 3), keepdim=True))),
}


def by_name(results: Any) -> dict[str, Any]:
    return results if isinstance(results, dict) else {"": results}


@pytest.mark.parametrize("name", NETS)
def test_results_are_those_of_pytorch_at_every_size(name: str, tmp_path: Path) -> None:
    net, path, ran = NETS[name], tmp_path / "net.bnew", 0
    file = bnew.pack(net, torch.zeros(1, 3, 32, 32), path, any_size=True)
    assert file.input_shape == (3, 32, 32)
    model, reference = engine.load(path), Reference(path)
    for height, width in SIZES:
        x = torch.round(8 * torch.randn(1, 3, height, width)) / 8  # so that sums before a sign are exact
        try:
            with torch.no_grad():
                expected = by_name(net(x))
        except RuntimeError:
            with pytest.raises(engine.EngineError, match="different sizes"):
                model.at(height, width)
            continue
        ran += 1
        for found in (model.at(height, width)(x.numpy()), reference(x.numpy())):
            for key, result in by_name(found).items():
                assert result.shape == expected[key].shape
                scale = float(expected[key].abs().max())
                np.testing.assert_allclose(result, expected[key].numpy(), atol=2e-5 * scale, rtol=0)
    assert ran >= 2


def test_a_file_for_one_size_refuses_another(tmp_path: Path) -> None:
    bnew.pack(NETS["floor"], torch.zeros(1, 3, 32, 32), tmp_path / "net.bnew")
    assert "any_size" not in PackedFile.read(tmp_path / "net.bnew").graph["input"]
    assert engine.load(tmp_path / "net.bnew", input_size=(32, 32)).input_shape == (3, 32, 32)
    with pytest.raises(engine.EngineError, match=r"images of 32 x 32 only: pack the network for any size"):
        engine.load(tmp_path / "net.bnew", input_size=(32, 33))


@pytest.mark.parametrize("size", [(32,), 32, (0, 32), (32, 2.5), (2**20 + 1, 1), (True, 3)])
def test_impossible_sizes_are_refused(size: Any, tmp_path: Path) -> None:
    bnew.pack(NETS["floor"], torch.zeros(1, 3, 32, 32), tmp_path / "net.bnew")
    with pytest.raises(engine.EngineError, match="input_size is"):
        engine.load(tmp_path / "net.bnew", input_size=size)


REFUSED: dict[str, tuple[Any, str]] = {
    "flatten": (
        lambda n, x: n.a(x).flatten(1) @ torch.ones(8 * 32 * 32, 2),
        "does not run for images of other",
    ),
    "number": (lambda n, x: n.a(x) / x.shape[3], "the numbers of 'div.scale'"),
    "sum": (lambda n, x: n.a(x).sum((2, 3)), "'sum' has another kernel"),
    "largest": (lambda n, x: n.a(x).amax((2, 3)), "'amax' has another kernel"),
    "factor": (
        lambda n, x: F.interpolate(n.a(x), scale_factor=1.5, mode="bilinear"),
        "has size \\[48, 48\\]",
    ),
    "flip": (lambda n, x: n.a(x).flip(2), "'rearrange' \\(rearrange\\)|'flip"),
    "padding": (lambda n, x: n.a(F.pad(x, (0, -x.shape[3] % 2))), "has another|results"),
    "target": (lambda n, x: F.adaptive_avg_pool2d(n.a(x), x.shape[2] // 4), "has size \\[8, 8\\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_the_size_by_no_rule_is_named(name: str, tmp_path: Path) -> None:
    forward, message = REFUSED[name]
    with pytest.raises(BnewError, match=message):
        bnew.pack(Net(forward), torch.zeros(1, 3, 32, 32), tmp_path / "net.bnew", any_size=True)
    assert not (tmp_path / "net.bnew").exists()


def test_copies_keep_the_size(tmp_path: Path) -> None:
    bnew.pack(NETS["floor"], torch.zeros(1, 3, 32, 32), tmp_path / "net.bnew", any_size=True)
    model = pickle.loads(pickle.dumps(engine.load(tmp_path / "net.bnew", input_size=(48, 33))))
    assert model.input_shape == (3, 48, 33)


def test_image_files_are_scaled_in_proportion(tmp_path: Path) -> None:
    path = tmp_path / "net.bnew"
    bnew.pack(NETS["floor"], torch.zeros(1, 3, 32, 32), path, any_size=True, resize=(36, 40))
    assert engine.load(path).resize == (36, 40)
    assert engine.load(path, input_size=(48, 33)).resize == (54, 42)
