"""What binary layers get besides, scales and shortcuts, and what a few batches of images set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from packed_reference import Reference
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.ops import SqueezeExcitation

import bnew
from bnew import BinaryConv2d, BinaryLinear, BnewError, RSign, binarize, recalibrate
from bnew.convert.calibrate import centres
from bnew.layers import hard_sign


def conv(width: int, wider: int, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(width, wider, 3, padding=1, bias=bias)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def batches(images: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images, torch.zeros(len(images))), batch_size=32)


def seen(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Layer → the share of +1 among the signs of each channel that go into it, (C,)."""
    shares: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, BinaryConv2d | BinaryLinear):
            layer.input_sign.register_forward_hook(
                lambda _, args, signs, name=name: shares.update(
                    {name: (signs > 0).float().transpose(0, 1).flatten(1).mean(1)}
                )
            )
    with torch.no_grad():
        model.eval()(images)
    return shares


# Centres


def test_a_channel_is_cut_at_its_median() -> None:
    x = torch.tensor([[3.0, -1, 7, 5, 1]]).view(1, 1, 5).repeat(2, 2, 1)
    x[:, 1] *= -10
    assert centres(x).tolist() == [3.0, -30.0]


def test_a_channel_that_rests_at_its_least_value_is_cut_above_it() -> None:
    x = torch.zeros(1, 3, 10)
    x[0, 0, 6:] = torch.tensor([2.0, 4, 6, 8])  # at 0 six times of ten
    x[0, 1] = 5.0
    x[0, 2, :4] = -1.0  # less than half of the time
    low, constant, rare = centres(x).tolist()
    assert 0 < low < 2
    assert (constant, rare) == (5.0, 0.0)


# Scales


def test_a_scale_takes_the_size_of_the_weights(images: Tensor) -> None:
    for layer, x in (
        (BinaryConv2d(3, 5, 3, input_sign=RSign(3)), images),
        (BinaryLinear(3, 5), images.mean(3).transpose(1, 2)),
    ):
        before, weight = layer(x), layer.weight.detach().clone()
        layer.add_scale()
        assert layer.output_scale is not None
        size = weight.abs().flatten(1).mean(1)
        torch.testing.assert_close(layer.output_scale.detach(), size)
        torch.testing.assert_close(layer.weight.abs().flatten(1).mean(1), torch.ones(5))
        torch.testing.assert_close(layer(x), before)


def test_a_channel_of_zeros_keeps_scale_1() -> None:
    layer = BinaryLinear(3, 2)
    nn.init.zeros_(layer.weight)
    layer.add_scale()
    assert layer.output_scale is not None
    assert layer.output_scale.tolist() == [1, 1]


class Parted(nn.Module):
    """Layers that a norm follows, at once or behind a pool, and layers that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.normed, self.pooled = conv(3, 4), conv(4, 4), conv(4, 4)
        self.added, self.bare, self.token = conv(4, 4), conv(4, 4), nn.Linear(4, 4)
        self.norm, self.norm2, self.layer_norm = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.normed(self.first(x)))
        x = self.norm2(F.max_pool2d(self.pooled(x), 2))
        x = self.bare(x + self.added(x))
        tokens = self.layer_norm(self.token(x.flatten(2).transpose(1, 2)))
        logits: Tensor = self.head(tokens.mean(1))
        return logits


def test_layers_that_no_norm_follows_get_a_scale() -> None:
    found = {row.name: row.parts for row in bnew.plan(Parted()) if row.binarize}
    assert found == {
        "normed": (), "pooled": (), "added": ("scale",), "bare": ("scale",), "token": (),
    }  # fmt: skip
    assert {row.parts for row in bnew.plan(Parted(), scale=False) if row.binarize} == {()}
    kept = [row for row in bnew.plan(Parted(), scale=False, shortcuts=True) if row.name == "normed"]
    assert kept[0].parts == ("shortcut",)
    assert {row.parts for row in bnew.plan(Parted(), scale=True) if row.binarize} == {("scale",)}
    model, before = binarize(Parted(), verbose=False), Parted().state_dict()
    after = model.state_dict()
    scaled = {name.removesuffix(".output_scale") for name in after if name.endswith(".output_scale")}
    assert scaled == {"added", "bare"}
    assert before.keys() <= after.keys()


def plain_vgg() -> nn.Sequential:
    """Without any norm."""
    torch.manual_seed(0)
    return nn.Sequential(
        conv(3, 8, bias=True), nn.ReLU(), conv(8, 8, bias=True), nn.ReLU(), nn.MaxPool2d(2),
        conv(8, 16, bias=True), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12),
        nn.ReLU(), nn.Linear(12, 5),
    )  # fmt: skip


def test_outputs_keep_their_size(images: Tensor) -> None:
    """The root mean square of each channel without the bias, at the images that calibrate."""
    model = plain_vgg()
    layers = [model[2], model[5], model[9]]

    def sizes() -> list[Tensor]:
        found: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(
                lambda layer, _, y: found.append(
                    (y.transpose(0, 1).flatten(1) - layer.bias[:, None]).square().mean(1).sqrt()
                )
            )
            for layer in layers
        ]
        with torch.no_grad():
            model(images)
        for hook in hooks:
            hook.remove()
        return found

    expected = sizes()
    binarize(model, calibrate=batches(images), verbose=False)
    assert all(layer.output_scale is not None for layer in layers)
    for got, wanted in zip(sizes(), expected, strict=True):
        torch.testing.assert_close(got, wanted)


# Shortcuts


def test_shortcuts_add_the_input() -> None:
    layers = [conv(4, 4), nn.Conv2d(4, 4, 3, padding="same", dilation=2), nn.Conv2d(4, 4, 1, padding="valid")]
    others = [conv(4, 5), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 2, padding=1)]
    x = torch.randn(2, 4, 6, 6)
    for layer in [*layers, *others]:
        model = nn.Sequential(
            conv(3, 4), layer, nn.BatchNorm2d(layer.out_channels), conv(layer.out_channels, 2)
        )
        (row,) = (row for row in bnew.plan(model, shortcuts=True) if row.binarize)
        assert row.parts == (("scale", "shortcut") if layer in layers else ())
        real = layer.weight.detach().clone()
        binarize(model, shortcuts=True, verbose=False)
        expected = F.conv2d(
            F.pad(hard_sign(x), [0] * 4), real, layer.bias, layer.stride, layer.padding, layer.dilation
        )
        torch.testing.assert_close(layer(x), expected + x if layer in layers else expected)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert [row.outcome for row in bnew.plan(model, shortcuts=True)][1] == "BinaryLinear + scale + shortcut"
    binarize(model, shortcuts=True, verbose=False)
    assert "in_features=4, out_features=4, bias=True, output_scale, shortcut" in repr(model)


@pytest.mark.parametrize("shortcuts", [False, True])
def test_scales_and_shortcuts_are_packed(images: Tensor, tmp_path: Path, shortcuts: bool) -> None:
    model = binarize(plain_vgg(), calibrate=batches(images), shortcuts=shortcuts, verbose=False).eval()
    x = torch.randn(32, 3, 8, 8)  # of the images themselves, some values are 0 before a sign
    with torch.no_grad():
        for weight in bnew.binary_parameters(model):
            weight.copy_(hard_sign(weight))
        expected = model(x).numpy()
    bnew.pack(model, x, tmp_path / "model.bnew")
    got = Reference(tmp_path / "model.bnew")(x.numpy()).reshape(expected.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_model_of_before_has_neither(tmp_path: Path) -> None:
    """One that was pickled as a whole."""
    layer = BinaryConv2d(3, 4, 3)
    expected = layer(torch.ones(1, 3, 5, 5))
    state = layer.__dict__ | {
        "_parameters": {k: p for k, p in layer._parameters.items() if k != "output_scale"}
    }
    del state["shortcut"]
    old = BinaryConv2d.__new__(BinaryConv2d)
    old.__setstate__(state)
    assert torch.equal(old(torch.ones(1, 3, 5, 5)), expected)


# Blind layers


class Gated(nn.Module):
    """Squeeze-and-excite, and a layer behind a softplus."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.relu = conv(3, 16), nn.BatchNorm2d(16), nn.ReLU()
        self.gate = SqueezeExcitation(16, 8)
        self.after, self.norm2, self.head = conv(16, 16), nn.BatchNorm2d(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate(self.relu(self.norm(self.stem(x))))
        x = self.norm2(self.after(F.softplus(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_a_plan_names_blind_layers() -> None:
    reasons = {row.name: (row.becomes, row.reason) for row in bnew.plan(Gated())}
    assert reasons["gate.fc1"][0] == "BinaryConv2d"
    assert reasons["gate.fc1"][1].endswith("averages of a ReLU are rarely negative: give calibrate=loader")
    assert reasons["gate.fc2"] == ("BinaryConv2d", "an inner layer")
    assert reasons["after"][0] == ""
    assert "softplus is called before it: sign would be +1 always" in reasons["after"][1]
    assert {row.reason for row in bnew.plan(Gated(), calibrate=[]) if row.binarize} == {"an inner layer"}
    unshifted = {row.name: row.becomes for row in bnew.plan(Gated(), input_sign="sign", calibrate=[])}
    assert unshifted["after"] == ""


def test_no_layer_is_blind_after_calibration(images: Tensor) -> None:
    torch.manual_seed(0)
    model = Gated()
    state = model.state_dict()
    binarize(model, verbose=False)
    assert seen(model, images)["gate.fc1"].mean() > 0.8
    calibrated = Gated()
    calibrated.load_state_dict(state)
    binarize(calibrated, calibrate=batches(images), verbose=False)
    shares = seen(calibrated, images)
    assert shares.keys() == {"gate.fc1", "gate.fc2", "after"}
    for name, share in shares.items():
        assert ((share > 0.1) & (share < 0.9)).all(), name


def test_only_blind_channels_are_shifted(images: Tensor) -> None:
    """Where both signs are common, the threshold at 0 stays: it may mean something."""
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), conv(8, 8), nn.BatchNorm2d(8), conv(8, 2))
    with torch.no_grad():
        norm = model[1]
        assert isinstance(norm, nn.BatchNorm2d)
        norm.bias[:2] = torch.tensor([5.0, -0.3])
    binarize(model, calibrate=batches(images), verbose=False)
    (layer,) = (module for module in model.modules() if isinstance(module, BinaryConv2d))
    assert isinstance(layer.input_sign, RSign)
    shift = layer.input_sign.shift
    assert shift is not None
    assert abs(shift[0] + 5) < 0.5
    assert not shift[1:].any()


def test_kept_relus_are_cut_above_0(images: Tensor) -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.BatchNorm2d(8), conv(8, 2))
    binarize(model, relu="keep", calibrate=batches(images), verbose=False)
    (share,) = seen(model, images).values()
    assert ((share > 0.2) & (share < 0.8)).all()


# Batch norms


def test_recalibrate_is_the_average_over_batches(images: Tensor) -> None:
    norm = nn.BatchNorm2d(3)
    dropout = nn.Dropout(0.5)
    model = nn.Sequential(dropout, norm).train()
    dropout.eval()
    assert recalibrate(model, batches(images)) is model
    parts = [images[:32], images[32:64], images[64:]]
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in parts]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in parts]).mean(0))
    assert (norm.momentum, norm.training, dropout.training, model.training) == (0.1, True, False, True)
    recalibrate(model, [images[:32], images[32:]], batches=1)
    torch.testing.assert_close(norm.running_mean, images[:32].mean((0, 2, 3)))


def test_recalibrate_inside_binarized(images: Tensor) -> None:
    """The statistics are those of the binary weights."""
    layers, norm = nn.Sequential(conv(3, 4), BinaryConv2d(4, 4, 3, bias=False)), nn.BatchNorm2d(4)
    model = nn.Sequential(layers, norm)
    method = bnew.methods.Clip(bnew.binary_parameters(model))
    method.attach(torch.optim.SGD(model.parameters(), 0.1))
    with method.binarized():
        recalibrate(model, [images])
        product = layers(images)
    torch.testing.assert_close(norm.running_mean, product.mean((0, 2, 3)))
    assert (bnew.binary_parameters(model)[0].abs() != 1).any()


def test_norms_without_statistics_stay(images: Tensor) -> None:
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    model = nn.Sequential(norm, nn.InstanceNorm2d(3)).train()
    with torch.no_grad():
        expected = model(images)
    recalibrate(model, [images])
    assert (norm.momentum, norm.running_mean, norm.training) == (0.1, None, True)
    assert torch.equal(model(images), expected)


# Mistakes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda x: [], "has no batch: give batches of training images"),
        (lambda x: iter([x]), "calibrate is an iterator, which can be read only once"),
        (lambda x: 3, "calibrate is 3, but must be batches of images"),
        (lambda x: [{"image": x}], "a batch is a dict, but must be a tensor of images, or a tuple"),
        (lambda x: [()], "a batch is a tuple of 0, but must be"),
        (lambda x: x, r"a tensor was given, but batches are needed: put it in a list, \[images\]"),
        (lambda x: [x.byte()], "a batch has images of torch.uint8"),
        (lambda x: [x, x[..., :6]], r"images of \(3, 8, 8\) and of \(3, 8, 6\)"),
        (lambda x: [x[:1]], "has no batch"),
    ],
)
def test_what_calibrates_nothing(images: Tensor, data: Callable[[Tensor], Any], message: str) -> None:
    model = plain_vgg()
    before = [type(module) for module in model.modules()]
    with pytest.raises(BnewError, match=message):
        binarize(model, calibrate=data(images))
    assert [type(module) for module in model.modules()] == before


def test_a_batch_of_one_is_left_out(images: Tensor) -> None:
    norm = nn.BatchNorm1d(3)
    rows = images.mean((2, 3))
    recalibrate(norm, [rows[:32], rows[32:33]])
    torch.testing.assert_close(norm.running_mean, rows[:32].mean(0))


def test_statistics_stay_where_a_batch_fails(images: Tensor) -> None:
    norm = nn.BatchNorm2d(3)
    norm(images)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    with pytest.raises(BnewError, match="a batch is 'x'"):
        recalibrate(norm, [images, "x"])
    for name, buffer in norm.named_buffers():
        assert torch.equal(buffer, before[name])
    assert norm.momentum == 0.1


def test_a_state_without_scales_is_loaded(images: Tensor) -> None:
    """Of a version, or a choice, that gave none."""
    without = binarize(plain_vgg(), scale=False, verbose=False)
    model = binarize(plain_vgg(), verbose=False)
    model.load_state_dict(without.state_dict())
    torch.testing.assert_close(model(images), without(images))


def test_recalibrate_needs_a_batch() -> None:
    norm = nn.BatchNorm2d(3)
    norm.running_mean = torch.ones(3)
    with pytest.raises(BnewError, match="recalibrate was given no batch"):
        recalibrate(norm, [])
    assert norm.running_mean.tolist() == [1, 1, 1]
    with pytest.raises(BnewError, match="recalibrate was given 'model', but needs"):
        recalibrate("model", [])  # type: ignore[arg-type]
