"""Binary convolutions of lines, and borders of signs, against loops over products of signs."""

from __future__ import annotations

import pickle
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pack import packed, trained
from torch import Tensor, nn

import bnew
from bnew import BinaryConv1d, BinaryConv2d, BnewError, binarize, plan, summary
from bnew.deploy.inference import bench
from bnew.deploy.onnx import export_onnx
from bnew.methods import METHODS, create_method

bnew_engine = pytest.importorskip("bnew_engine")


def signed(x: float) -> float:
    return 1.0 if x >= 0 else -1.0


def twin(
    layer: BinaryConv1d | BinaryConv2d, x: Tensor, before: tuple[int, ...], size: tuple[int, ...]
) -> Tensor:
    """What the layer computes without a bias, sign by sign; ``before``: the border in front of each side."""
    weight = layer.weight
    out = torch.zeros(len(x), len(weight), *size)
    inputs, outputs = weight.shape[1], len(weight) // layer.groups
    for n, o, *place in product(*map(range, out.shape)):
        for i, *tap in product(*map(range, weight.shape[1:])):
            at = [
                p * s - b + d * t
                for p, s, b, d, t in zip(place, layer.stride, before, layer.dilation, tap, strict=True)
            ]
            inside = all(0 <= a < end for a, end in zip(at, x.shape[2:], strict=True))
            channel = o // outputs * inputs + i
            value = signed(x[(n, channel, *at)].item()) if inside else layer.pad_value
            out[(n, o, *place)] += value * weight[(o, i, *tap)].item()
    return out


CASES: list[tuple[type[BinaryConv1d | BinaryConv2d], dict[str, Any], tuple[int, ...], tuple[int, ...]]] = [
    (BinaryConv1d, {"kernel_size": 3, "padding": 1}, (1,), (7,)),
    (BinaryConv1d, {"kernel_size": 3, "padding": 2, "stride": 2, "dilation": 2, "groups": 2}, (2,), (4,)),
    (BinaryConv1d, {"kernel_size": 4, "padding": "same"}, (1,), (7,)),
    (BinaryConv1d, {"kernel_size": 2, "padding": "valid"}, (0,), (6,)),
    (BinaryConv2d, {"kernel_size": 3, "padding": 1, "stride": 2}, (1, 1), (4, 3)),
    (BinaryConv2d, {"kernel_size": (2, 3), "padding": (0, 2), "dilation": (1, 2)}, (0, 2), (6, 5)),
    (BinaryConv2d, {"kernel_size": (4, 1), "padding": "same", "groups": 2}, (1, 0), (7, 5)),
]


@pytest.mark.parametrize("pad_value", [0, 1, -1])
@pytest.mark.parametrize(("kind", "options", "before", "size"), CASES)
def test_products_of_signs(
    kind: type[BinaryConv1d | BinaryConv2d],
    options: dict[str, Any],
    before: tuple[int, ...],
    size: tuple[int, ...],
    pad_value: int,
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    layer = kind(4, 6, **options, pad_value=pad_value, bias=False)
    sides = (7, 5)[: len(size)]
    x = torch.randn(2, 4, *sides)
    with torch.no_grad():
        assert torch.allclose(layer(x), twin(layer, x, before, size), atol=1e-5)
        layer.weight.copy_(bnew.layers.hard_sign(layer.weight))
        expected = twin(layer, x, before, size)
    images = x.reshape(*x.shape, *(1,) * (4 - x.dim()))  # a file takes lines as columns
    model = nn.Sequential(nn.Flatten(2), layer) if isinstance(layer, BinaryConv1d) else layer
    bnew.pack(model.eval(), images, tmp_path / "layer.bnew")
    engine = bnew_engine.load(tmp_path / "layer.bnew")
    assert [node["op"] for node in engine.graph["nodes"]].count("binary_conv") == 1
    assert np.array_equal(engine(images.numpy()), expected.numpy())


class Lines(nn.Module):
    """Classes of lines (N, 2, L) or (N, 2, L, 1), as audio networks compute them."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(2, 8, 5, 2, 2),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Conv1d(8, 8, 3, padding=1, groups=8),
            nn.Conv1d(8, 8, 3, padding=1),
            nn.BatchNorm1d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(8, 12, 3, padding=2, dilation=2, groups=2),
            nn.BatchNorm1d(12),
        )
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x.flatten(2)).mean(2))
        return logits


def test_binarize_knows_lines() -> None:
    rows = {row.name: (row.outcome, row.reason) for row in plan(Lines(norm=False))}
    assert rows["body.0"] == ("", "sees the network's input")
    assert rows["body.3"] == ("", "a depthwise convolution")
    assert rows["body.4"] == ("BinaryConv1d + scale", "an inner layer")
    assert rows["body.6"][0] == "PReLU"
    assert rows["body.8"][0] == "BinaryConv1d"
    model = binarize(Lines(), shortcuts=True)
    parts = {row.name: row.parts for row in plan(Lines(), shortcuts=True)}
    assert parts["body.4"] == ("scale", "shortcut")
    assert parts["body.8"] == ()
    assert sum(p.numel() for p in model.get_submodule("body.6").parameters()) == 8  # one slope a channel


@pytest.mark.parametrize("options", [{}, {"shortcuts": True, "depthwise": True}])
def test_lines_go_all_the_way(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(40, 2, 30, 1)
    model = binarize(Lines(norm=False), calibrate=[images], **options)
    assert bnew.binary_parameters(model)
    trained(model, scale=True).eval()
    packed(model, tmp_path / "model.bnew", 2, 30, 1)
    result = bnew.verify(tmp_path / "model.bnew", model, [(images, torch.zeros(40, dtype=torch.long))])
    assert result.ok, result.problems
    assert len(result.layers) == len(bnew.binary_parameters(model))
    assert np.allclose(
        bnew_engine.load(tmp_path / "model.bnew")(images.numpy()), model(images).detach(), atol=1e-4
    )
    again = binarize(Lines(norm=False), **options)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(images), pickle.loads(pickle.dumps(model))(images))


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv1d(3, 4, 3), (3, 9)),
        (nn.Conv1d(3, 4, 1), (3, 1)),
        (nn.Conv2d(3, 4, 3), (3, 9, 9)),
        (nn.Conv2d(3, 4, (3, 1)), (3, 9, 1)),
        (nn.Conv2d(3, 4, 1), (3, 1, 1)),
        (nn.Linear(3, 4), (3,)),
    ],
)
def test_the_file_knows_what_the_network_takes(
    layer: nn.Module, size: tuple[int, ...], tmp_path: Path
) -> None:
    engine = pytest.importorskip("bnew_engine")
    path = tmp_path / "model.bnew"
    bnew.pack(layer, torch.zeros(1, *size), path)
    (taken,) = engine.load(path).inputs
    assert taken.size == size
    assert taken.shape == (*size, 1, 1)[:3]
    assert len(bench(path, 1, 1, layer, seconds=0.01).rows) == 2


def test_lines_without_a_width(tmp_path: Path) -> None:
    """The file of an example (N, C, L) takes such arrays, and the same as images of L × 1."""
    torch.manual_seed(0)
    lines = torch.randn(20, 2, 30)
    model = trained(binarize(Lines(norm=False), verbose=False)).eval()
    path = tmp_path / "model.bnew"
    bnew.pack(model, lines[:1], path)
    engine = bnew_engine.load(path)
    assert engine.input_shape == (2, 30, 1)
    expected = model(lines).detach().numpy()
    for images in (lines, lines[..., None]):
        np.testing.assert_allclose(engine(images.numpy()), expected, rtol=1e-4, atol=1e-4)
    result = bnew.verify(path, model, [(lines, torch.zeros(20, dtype=torch.long))])
    assert result.ok, result.problems
    best = engine.predict(lines.numpy()).probabilities
    for one in (lines[3], lines[3, ..., None]):
        np.testing.assert_allclose(engine.predict(one.numpy()).probabilities, best[3:4], rtol=1e-5)
    for shape in [(20, 2, 29), (2, 2, 30, 2), (20, 30, 2), (20, 60), (30,)]:
        with pytest.raises(bnew_engine.EngineError, match=r"must have \(N, 2, 30, 1\)"):
            engine(np.zeros(shape, np.float32))
    other = nn.Sequential(nn.Flatten(2), model.get_submodule("body"))
    bnew.pack(other.eval(), lines[:1], path)
    found = bnew_engine.load(path)(lines.numpy())
    assert found.shape == (20, 12, 7)
    np.testing.assert_allclose(found, other(lines).detach().numpy(), rtol=1e-4, atol=1e-4)
    with pytest.raises(BnewError, match="the network takes no images, and only these have other sizes"):
        bnew.pack(model, lines[:1], path, any_size=True)


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.phase == 2])
def test_every_method_trains_lines(name: str) -> None:
    torch.manual_seed(0)
    model = binarize(Lines(), verbose=False)
    start = [weight.clone() for weight in bnew.binary_parameters(model)]
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    method = create_method(name, bnew.binary_parameters(model), 20)
    method.attach(optimizer)
    x = torch.randn(16, 2, 30)
    for _ in range(20):
        optimizer.zero_grad()
        loss: Any = nn.functional.cross_entropy(model(x), torch.arange(16) % 3)
        loss.backward()
        optimizer.step()
    method.freeze()
    for before, weight in zip(start, bnew.binary_parameters(model), strict=True):
        sizes = weight.detach().abs().flatten(1)
        assert torch.allclose(sizes, sizes[:, :1].expand_as(sizes))
        assert not torch.equal(before, weight)


def test_summary_of_lines_by_hand() -> None:
    found = summary(binarize(Lines(), verbose=False), (2, 30))
    assert found == summary(binarize(Lines(), verbose=False), (7, 2, 30))
    assert found == summary(binarize(Lines(), verbose=False), 30, in_chans=2)
    rows = {row.name: row for row in found.rows}
    assert rows["body.4"].binary_macs == 15 * 8 * 8 * 3
    assert rows["body.8"].binary_macs == 7 * 12 * 4 * 3
    assert rows["body.8"].packed_bytes == 4 * (12 * 1 + 12)  # 12 weights a channel: one word; 12 biases


@pytest.mark.parametrize("kind", [BinaryConv1d, BinaryConv2d])
def test_borders_that_are_no_sign_are_named(kind: type[BinaryConv1d | BinaryConv2d]) -> None:
    wrong: Any
    for wrong in (2, 0.5, True, "1"):
        with pytest.raises(BnewError, match=r"pad_value is .*, but must be 0, 1 or -1"):
            kind(2, 2, 3, pad_value=wrong)
    with pytest.raises(BnewError, match="pad_value is 1, but padding_mode 'circular' has its own"):
        kind(2, 2, 3, padding_mode="circular", pad_value=1)
    assert "pad_value=-1" in repr(kind(2, 2, 3, pad_value=-1))
    assert "pad_value" not in repr(kind(2, 2, 3))


@pytest.mark.parametrize(
    ("layer", "shape", "before", "size"),
    [
        (BinaryConv1d(4, 6, 3, 2, 2, 2, groups=2, bias=False, pad_value=1), (9,), (2,), (5,)),
        (BinaryConv1d(4, 6, 4, padding="same", bias=False), (7,), (1,), (7,)),
        (BinaryConv2d(4, 6, 3, (2, 1), 1, bias=False, pad_value=-1), (5, 4), (1, 1), (3, 4)),
    ],
)
def test_exported_as_products_of_signs(
    layer: BinaryConv1d | BinaryConv2d,
    shape: tuple[int, ...],
    before: tuple[int, ...],
    size: tuple[int, ...],
    tmp_path: Path,
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    x = torch.randn(3, 4, *shape)
    check = export_onnx(layer.eval(), x, tmp_path / "model.onnx")
    assert check is not None
    assert check.max_difference < 1e-5
    (found,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"images": x.numpy()})
    assert np.allclose(found, twin(layer, x, before, size).detach(), atol=1e-5)


class AsKeras(nn.Module):
    """Signs with a border of ones put around them where channels are the last dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)
        with torch.no_grad():
            self.conv.weight.sign_()

    def forward(self, x: Tensor) -> Tensor:
        signs = bnew.sign(self.first(x).permute(0, 2, 3, 1))
        padded = nn.functional.pad(signs, (0, 0, 1, 1, 1, 1), value=1.0)
        y: Tensor = self.conv(padded.permute(0, 3, 1, 2))
        return y


def test_signs_get_their_border_with_channels_last_too(tmp_path: Path) -> None:
    """As converters write networks of Larq."""
    reference = packed(AsKeras().eval(), tmp_path / "model.bnew", 3, 6, 6)
    assert [node["op"] for node in reference.file.graph["nodes"]] == ["conv", "binary_conv"]
    assert reference.file.graph["nodes"][1]["pad_value"] == 1
