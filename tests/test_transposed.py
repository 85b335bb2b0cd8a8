"""Binary transposed convolutions, against loops over products of signs, in training and in packed files."""

from __future__ import annotations

import copy
import pickle
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from packed_reference import Reference, check_tidy
from torch import Tensor, nn

import bnew
from bnew import BinaryConvTranspose2d, BnewError, RSign, binarize, plan, summary
from bnew.deploy.onnx import export_onnx
from bnew.layers import hard_sign
from bnew.methods import METHODS, create_method

bnew_engine = pytest.importorskip("bnew_engine")


def of_outputs(weight: Tensor, groups: int) -> Tensor:
    """(C_in, C_out / groups, kh, kw) → (C_out, C_in / groups, kh, kw), number by number."""
    inputs, each = len(weight) // groups, weight.shape[1]
    rows = [
        torch.stack([weight[group * inputs + i, o] for i in range(inputs)])
        for group in range(groups)
        for o in range(each)
    ]
    return torch.stack(rows)


FAR = 20  # places around the image, where results find a border of signs


def twin(layer: BinaryConvTranspose2d, x: Tensor) -> Tensor:
    """What the layer computes: each input adds its sign times the kernel to the results around its place."""
    weight = of_outputs(layer.weight.detach(), layer.groups)
    (sy, sx), (dy, dx), (top, left) = layer.stride, layer.dilation, map(int, layer.padding)
    signs = F.pad(torch.where(x >= 0, 1.0, -1.0), (FAR,) * 4, value=layer.pad_value)
    images, _, height, width = signs.shape
    signs = signs.view(images, layer.groups, -1, height, width)
    sheet = torch.zeros(images, len(weight), height * sy + 30, width * sx + 30)
    for i, j in product(*map(range, layer.kernel_size)):
        tap = weight[:, :, i, j].view(layer.groups, -1, weight.shape[1])
        added = torch.einsum("ngcyx,goc->ngoyx", signs, tap).flatten(1, 2)
        sheet[:, :, i * dy :, j * dx :][:, :, : height * sy : sy, : width * sx : sx] += added
    top, left = top + FAR * sy, left + FAR * sx
    out = sheet[:, :, top : top + rows(layer, 0, x.shape[2]), left : left + rows(layer, 1, x.shape[3])]
    return out if layer.bias is None else out + layer.bias.detach().view(-1, 1, 1)


def rows(layer: BinaryConvTranspose2d, axis: int, size: int) -> int:
    """The size of the result along an axis, by the formula of torch's documentation."""
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
    before = 2 * int(layer.padding[axis])
    return (size - 1) * layer.stride[axis] - before + reach + layer.output_padding[axis] + 1


# Settings, and how many binary convolutions a packed file has: one for each kind of place that results read.
CASES: list[tuple[dict[str, Any], int]] = [
    ({"kernel_size": 2, "stride": 2}, 1),
    ({"kernel_size": 3, "padding": 1}, 1),
    ({"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2}, 4),
    ({"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}, 4),
    ({"kernel_size": 2, "stride": 2, "groups": 2, "bias": False}, 1),
    ({"kernel_size": (5, 3), "stride": (3, 2), "padding": (2, 0), "output_padding": (1, 0)}, 6),
    ({"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}, 1),  # three of four phases are 0
    ({"kernel_size": (3, 2), "stride": (2, 3), "dilation": (3, 2), "groups": 2}, 4),
    ({"kernel_size": 1, "stride": 2, "output_padding": 1}, 1),
    ({"kernel_size": 2, "stride": 2, "padding": 1}, 4),
    ({"kernel_size": (4, 6), "stride": 4, "padding": (1, 2)}, 8),
]


def made(options: dict[str, Any], pad_value: int = 0) -> BinaryConvTranspose2d:
    torch.manual_seed(0)
    return BinaryConvTranspose2d(4, 6, **options, pad_value=pad_value)


def signed(layer: BinaryConvTranspose2d) -> BinaryConvTranspose2d:
    with torch.no_grad():
        layer.weight.copy_(hard_sign(layer.weight))
    return layer.eval()


@pytest.mark.parametrize("pad_value", [0, 1, -1])
@pytest.mark.parametrize(("options", "convolutions"), CASES, ids=str)
def test_products_of_signs(
    options: dict[str, Any], convolutions: int, pad_value: int, tmp_path: Path
) -> None:
    """In PyTorch, in the engine and in the reader of packed files; the file has the bytes of `summary`."""
    layer = made(options, pad_value)
    x = torch.randn(2, 4, 3, 4)
    torch.testing.assert_close(layer(x), twin(layer, x))
    expected = twin(signed(layer), x).numpy()
    path = tmp_path / "layer.bnew"
    bnew.pack(layer, x, path)
    reference = Reference(path)
    check_tidy(reference.file)
    for run in (reference, bnew_engine.load(path)):
        np.testing.assert_allclose(run(x.numpy()), expected, atol=1e-5)
    ops = [node["op"] for node in reference.file.graph["nodes"]]
    assert "conv" not in ops
    assert ops.count("binary_conv") == convolutions
    if "constant" not in ops:
        assert reference.file.tensor_bytes == summary(layer, (4, 3, 4)).total.packed_bytes


PAIR = st.tuples(st.integers(1, 5), st.integers(1, 5))


@given(
    kernel=PAIR,
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    extra=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    groups=st.sampled_from([1, 2]),
    pad_value=st.sampled_from([0, 1, -1]),
    size=PAIR,
)
@settings(max_examples=25, deadline=None)
def test_any_settings(
    tmp_path_factory: pytest.TempPathFactory,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    extra: tuple[int, int],
    groups: int,
    pad_value: int,
    size: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    layer = signed(
        BinaryConvTranspose2d(
            2, 4, kernel, stride, padding, extra, groups, False, dilation, pad_value=pad_value
        )
    )
    assume(all(rows(layer, axis, size[axis]) > 0 for axis in (0, 1)))
    assume(all(e < max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)))
    x = torch.randn(2, 2, *size)
    path = tmp_path_factory.getbasetemp() / "any.bnew"
    bnew.pack(layer, x, path)
    expected = twin(layer, x).numpy()
    assert np.array_equal(bnew_engine.load(path)(x.numpy()).reshape(expected.shape), expected)
    assert np.array_equal(layer(x).detach(), expected)


# ----------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("options", [options for options, _ in CASES], ids=str)
def test_gradients(options: dict[str, Any]) -> None:
    """Those of ``F.conv_transpose2d`` of signs, with the polynomial's slope for the input."""
    layer = made(options)
    layer.set_up(RSign(4))
    layer.add_scale()
    assert layer.output_scale is not None
    x = torch.randn(2, 4, 3, 4, requires_grad=True)
    signs = torch.where(x.detach() >= 0, 1.0, -1.0).requires_grad_()
    weight, scale = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.output_scale))
    result = F.conv_transpose2d(
        signs, weight, None, layer.stride, [*map(int, layer.padding)], layer.output_padding, layer.groups,
        layer.dilation,
    )  # fmt: skip
    result = result * scale[:, None, None]
    upstream = torch.randn_like(result)
    torch.autograd.backward(result, upstream)
    torch.autograd.backward(layer(x), upstream)
    torch.testing.assert_close(layer.weight.grad, weight.grad)
    torch.testing.assert_close(layer.output_scale.grad, scale.grad)
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, upstream.sum((0, 2, 3)))
    assert signs.grad is not None
    torch.testing.assert_close(x.grad, signs.grad * (2 - 2 * x.detach().abs()).clamp(min=0))


def test_the_size_may_be_asked_for() -> None:
    layer = made({"kernel_size": 3, "stride": 2, "padding": 1})
    x = torch.randn(2, 4, 3, 4)
    assert layer(x).shape[2:] == (5, 7)
    found = layer(x, output_size=[6, 7])
    expected = twin(made({"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": (1, 0)}), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize(
    "name", [name for name, row in METHODS.items() if row.phase == 2 and name != "diode"]
)
def test_methods_know_its_channels(name: str, scale: bool) -> None:
    """As for a convolution whose weight has the same numbers with its output channels first."""
    layer = BinaryConvTranspose2d(4, 6, 3, groups=2)
    nn.init.uniform_(layer.weight, -1, 1)
    plain = nn.Parameter(of_outputs(layer.weight.detach(), 2))
    both = []
    for weights in (bnew.binary_parameters(layer), [plain]):
        optimizer = torch.optim.SGD(weights, 0.1)
        method = create_method(name, weights, 6, scale=scale)
        both.append((optimizer, method.attach(optimizer)))
    for step in range(6):
        grad = torch.randn(4, 3, 3, 3)
        layer.weight.grad, plain.grad = grad.clone(), of_outputs(grad, 2)
        for optimizer, method in both:
            if step == 3:
                with method.binarized():
                    pass
            optimizer.step()
        torch.testing.assert_close(of_outputs(layer.weight.detach(), 2), plain.detach())
    again = pickle.loads(pickle.dumps(both[0][1]))
    for _, method in both:
        method.freeze(warn=False)
    again.freeze(warn=False)
    sizes = plain.detach().abs().flatten(1)
    assert torch.allclose(sizes, sizes[:, :1].expand_as(sizes))
    assert torch.all(sizes == 1) or scale
    torch.testing.assert_close(of_outputs(layer.weight.detach(), 2), plain.detach())
    torch.testing.assert_close(again.params[0].detach(), layer.weight.detach())


def loaded(layer: nn.Module) -> nn.Module:
    """The layer with the tensors of another one as its parameters."""
    state = {name: nn.Parameter(value.clone()) for name, value in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)
    return layer


def replaced(layer: nn.Module) -> nn.Module:
    layer.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
    return layer


def converted(layer: nn.Module) -> nn.Module:
    """Its parameters are new ones, as PyTorch makes them where it cannot change them in place."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return layer.double().float()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer,
        copy.deepcopy,
        lambda layer: pickle.loads(pickle.dumps(layer)),
        loaded,
        replaced,
        converted,
        lambda _: binarize(nn.ConvTranspose2d(4, 6, 3, groups=2), first=True, last=True, verbose=False),
    ],
    ids=["new", "deepcopy", "pickle", "assign", "replaced", "converted", "binarize"],
)
def test_the_weight_alone_knows_its_channels(change: Any) -> None:
    """Also where no function of bnew's has looked for it."""
    layer = change(BinaryConvTranspose2d(4, 6, 3, groups=2))
    assert isinstance(layer, BinaryConvTranspose2d)
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    nn.init.uniform_(weight, -1, 1)
    sizes = of_outputs(weight.detach(), 2).abs().mean((1, 2, 3))
    bnew.methods.STE([weight], scale=True).freeze(warn=False)
    frozen = of_outputs(weight.detach(), 2).abs().flatten(1)
    torch.testing.assert_close(frozen, sizes[:, None].expand_as(frozen))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_scale_takes_the_size_of_the_weights(groups: int) -> None:
    layer = made({"kernel_size": 3, "stride": 2, "groups": groups})
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(layer.weight.shape))
        if groups == 1:
            layer.weight[:, 2] = 0
    before, weight = layer(x), layer.weight.detach().clone()
    layer.add_scale()
    assert layer.output_scale is not None
    sizes = of_outputs(weight, groups).abs().flatten(1).mean(1)
    torch.testing.assert_close(layer.output_scale.detach(), torch.where(sizes == 0, 1.0, sizes))
    torch.testing.assert_close(layer(x), before)


def test_copied_saved_and_loaded() -> None:
    layer = made({"kernel_size": 2, "stride": 2, "groups": 2})
    x = torch.randn(2, 4, 3, 3)
    real = nn.ConvTranspose2d(4, 6, 2, 2, groups=2)
    real.load_state_dict(layer.state_dict())
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        binarize(real, input_sign="sign", scale=False, verbose=False),
    ):
        assert type(other) is BinaryConvTranspose2d
        assert torch.equal(other(x), layer(x))
        (weight,) = bnew.binary_parameters(other)
        method = bnew.methods.STE([weight], scale=True)
        method.freeze(warn=False)
        sizes = of_outputs(weight.detach(), 2).abs().flatten(1)
        assert torch.allclose(sizes, sizes[:, :1].expand_as(sizes))
    assert "pad_value=1" in repr(made({"kernel_size": 2}, pad_value=1))


# ----------------------------------------------------------------------------------------------- convert


def test_binarize_knows_it() -> None:
    def tower(*layers: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *layers, nn.Conv2d(8, 3, 1))

    def row(*layers: nn.Module, **options: Any) -> tuple[str, str]:
        (found,) = (each for each in plan(tower(*layers, nn.Conv2d(8, 8, 1)), **options) if each.name == "2")
        return found.outcome, found.reason

    binary = "BinaryConvTranspose2d"
    assert row(nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8)) == (binary, "an inner layer")
    assert row(nn.ConvTranspose2d(8, 8, 2, 2)) == (f"{binary} + scale", "an inner layer")
    assert row(nn.ConvTranspose2d(8, 8, 2, 2, groups=8)) == ("", "a depthwise convolution")
    whole = nn.ConvTranspose2d(8, 8, 3, padding=1)
    assert row(whole, shortcuts=True) == (f"{binary} + scale + shortcut", "an inner layer")
    for options in ({"stride": 2, "output_padding": 1}, {"dilation": 2, "output_padding": (1, 0)}):
        larger = nn.ConvTranspose2d(8, 8, 3, padding=1, **options)
        assert row(larger, shortcuts=True) == (f"{binary} + scale", "an inner layer")
    ends = nn.Sequential(nn.ConvTranspose2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 3, 2, 2))
    assert [each.reason for each in plan(ends)] == [
        "sees the network's input", "an inner layer", "makes the network's output",
    ]  # fmt: skip
    relu = nn.Sequential(
        nn.ConvTranspose2d(3, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)
    )
    assert binarize(relu, verbose=False).get_parameter("1.weight").shape == (8,)


def test_summary_by_hand() -> None:
    layer = BinaryConvTranspose2d(12, 6, 3, 2, 1, 1, groups=2)
    (row, *_) = summary(layer, (12, 5, 5)).rows
    assert (row.binary_parameters, row.real_parameters) == (12 * 3 * 9, 6)
    assert row.binary_macs == 5 * 5 * 12 * 3 * 9
    # Phases of 1, 2, 2 and 4 taps of 6 channels, in each output channel: a word each.
    assert row.packed_bytes == 4 * (6 * 4 + 6)


def test_calibrated() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, 2, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    images = torch.rand(20, 3, 8, 8)
    with torch.no_grad():
        bias = model.get_parameter("2.bias").view(-1, 1, 1)
        before = model[:3](images) - bias
        binarize(model, calibrate=[images], verbose=False)
        after = model[:3](images) - bias
    sizes = [x.square().mean((0, 2, 3)).sqrt() for x in (before, after)]
    assert (sizes[1] / sizes[0]).tolist() == pytest.approx([1] * 6, rel=1e-4)


# ----------------------------------------------------------------------------------------- packed networks


class Decoder(nn.Module):
    """A U-Net: what goes up is beside what came down, by transposed convolutions of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.deep = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)
        self.up1, self.norm1 = nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.BatchNorm2d(8)
        self.up2 = nn.ConvTranspose2d(24, 8, 2, 2, groups=2)
        self.same, self.norm2 = nn.ConvTranspose2d(16, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.relu(self.norm(self.first(x)))
        middle = F.relu(self.down(fine))
        x = F.relu(self.norm1(self.up1(F.relu(self.deep(middle)))))
        x = self.up2(torch.cat([x, middle], 1))
        x = F.relu(self.norm2(self.same(torch.cat([F.relu(x), fine], 1))))
        scores: Tensor = self.head(x)
        return scores


def trained_decoder(name: str, scale: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = binarize(Decoder(), verbose=False)
    x = torch.randn(12, 2, 16, 12)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    method = create_method(name, bnew.binary_parameters(model), 8, scale=scale).attach(optimizer)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss: Any = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    method.freeze(warn=False)
    assert losses[-1] < losses[0]
    return model.eval(), x


@pytest.mark.parametrize(("name", "scale"), [("bnew", False), ("ste", True)])
def test_a_decoder_goes_all_the_way(name: str, scale: bool, tmp_path: Path) -> None:
    model, x = trained_decoder(name, scale)
    kinds = [type(layer) for layer in model.modules()]
    assert kinds.count(BinaryConvTranspose2d) == 3
    path = tmp_path / "model.bnew"
    file = bnew.pack(model, x[:1], path, any_size=scale)
    check_tidy(Reference(path).file)
    assert sum(node["op"] == "conv" for node in file.graph["nodes"]) == 2  # the first and the last
    if not scale:
        assert file.tensor_bytes == summary(model, (2, 16, 12)).total.packed_bytes
    check = bnew.verify(path, model, [(x, torch.zeros(12))])
    assert check.ok, check.problems
    assert [layer.name for layer in check.layers] == ["down", "deep", "up1", "up2", "same"]
    assert sum(layer.flipped for layer in check.layers) == 0
    with torch.no_grad():
        for size in [(16, 12), (20, 28)][: 1 + scale]:
            images = torch.randn(3, 2, *size)
            found = bnew_engine.load(path, input_size=size if scale else None)(images.numpy())
            np.testing.assert_allclose(found, model(images).numpy(), rtol=1e-4, atol=1e-5)


def test_verify_finds_a_wrong_tap(tmp_path: Path) -> None:
    model, x = trained_decoder("bnew", False)
    path = tmp_path / "model.bnew"
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name in ("up1", "up2", "same"):
            other.get_parameter(f"{name}.weight")[3, 2, 1, 0] *= -1
    bnew.pack(other, x[:1], path)
    found = bnew.verify(path, model, [(x, torch.zeros(12))])
    assert [layer.name for layer in found.layers if layer.wrong] == ["up1", "up2", "same"]
    assert not found.ok


def test_a_decoder_as_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer = signed(made({"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2}, pad_value=1))
    x = torch.randn(3, 4, 5, 4)
    check = export_onnx(layer, x, tmp_path / "model.onnx")
    assert check is not None
    assert check.max_difference < 1e-5
    (found,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"images": x.numpy()})
    np.testing.assert_allclose(found, twin(layer, x), atol=1e-5)


class Written(nn.Module):
    """Signs, a border, and a transposed convolution of a user's own."""

    def __init__(self, weight: Tensor, border: float | None = None, **options: Any) -> None:
        super().__init__()
        self.weight, self.border, self.options = nn.Parameter(weight), border, options

    def forward(self, x: Tensor) -> Tensor:
        x = torch.where(x >= 0, 1.0, -1.0)
        x = x if self.border is None else F.pad(x, (1, 2, 2, 1), value=self.border)
        return F.conv_transpose2d(x, self.weight, **self.options)


@pytest.mark.parametrize(
    ("border", "options", "binary"),
    [
        (None, {"stride": 2}, True),
        (0.0, {"stride": 2, "padding": 3}, True),
        (1.0, {"stride": 2, "padding": 3}, True),  # no result reads what is beyond the border
        (1.0, {"stride": 2, "padding": 0}, False),
        (0.5, {"stride": 2, "padding": 3}, False),
    ],
)
def test_of_a_users_own(border: float | None, options: dict[str, Any], binary: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = torch.rand(6, 1, 1) + 0.5
    model = Written(hard_sign(torch.randn(4, 6, 3, 3)) * sizes, border, **options).eval()
    x = torch.randn(2, 4, 4, 5)
    path = tmp_path / "model.bnew"
    bnew.pack(model, x, path)
    ops = {node["op"] for node in bnew_engine.load(path).graph["nodes"]}
    assert ("binary_conv" in ops, "conv" in ops) == (binary, not binary)
    np.testing.assert_allclose(bnew_engine.load(path)(x.numpy()), model(x).detach(), rtol=1e-4, atol=1e-4)


class Tied(nn.Module):
    """One weight in several layers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(hard_sign(torch.randn(4, 4, 4, 4)))

    def forward(self, x: Tensor) -> Tensor:
        def signs(x: Tensor) -> Tensor:
            return torch.where(x >= 0, 1.0, -1.0)

        x = F.conv2d(signs(x), self.weight, padding=2) - 0.5
        x = F.conv_transpose2d(signs(x), self.weight, stride=2) + 0.5
        x = F.conv_transpose2d(signs(x), self.weight, stride=1, padding=1) - 0.5
        return F.conv_transpose2d(signs(x), self.weight.view(4, 4, 4, 4)[:, :2], stride=2, groups=2)


def test_one_weight_in_several_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Tied().eval(), torch.randn(2, 4, 4, 5)
    bnew.pack(model, x, tmp_path / "model.bnew")
    assert np.array_equal(bnew_engine.load(tmp_path / "model.bnew")(x.numpy()), model(x).detach())
    sizes = torch.tensor([0.5, 1.0, 2.0, 4.0])[:, None, None, None]
    ways: list[Any] = [(F.conv2d, sizes), (F.conv_transpose2d, sizes.transpose(0, 1))]
    for first, size in ways:  # of one magnitude per output channel as one, and of several as the other
        weight = model.weight.detach() * size

        class Both(nn.Module):
            def forward(self, x: Tensor, weight: Tensor = weight, first: Any = first) -> Tensor:
                x = torch.where(x >= 0, 1.0, -1.0)
                second = F.conv_transpose2d if first is F.conv2d else F.conv2d
                return torch.cat([first(x, weight).flatten(1), second(x, weight).flatten(1)], 1)

        bnew.pack(Both(), x, tmp_path / "both.bnew")
        engine = bnew_engine.load(tmp_path / "both.bnew")
        ops = [node["op"] for node in engine.graph["nodes"]]
        assert (ops.count("conv"), ops.count("binary_conv")) == (1, 1)
        np.testing.assert_allclose(engine(x.numpy()), Both()(x), rtol=1e-5, atol=1e-5)


def test_weights_of_zeros_and_ones_of_a_users_own_are_real(tmp_path: Path) -> None:
    """Such as those that repeat pixels."""
    weight = torch.zeros(4, 4, 2, 2)
    weight[range(4), range(4)] = 1
    model, x = Written(weight, stride=2).eval(), torch.randn(2, 4, 3, 3)
    bnew.pack(model, x, tmp_path / "model.bnew")
    np.testing.assert_allclose(bnew_engine.load(tmp_path / "model.bnew")(x.numpy()), model(x).detach())


def test_weights_that_are_not_binary_are_named(tmp_path: Path) -> None:
    layer = signed(made({"kernel_size": 2, "stride": 2}))
    x = torch.randn(1, 4, 3, 3)
    with torch.no_grad():
        layer.weight.mul_(torch.arange(1.0, 5)[:, None, None, None])  # of an input channel each
    with pytest.raises(BnewError, match="weights of this BinaryConvTranspose2d are not of one magnitude per"):
        bnew.pack(layer, x, tmp_path / "model.bnew")
    with torch.no_grad():
        signed(layer).weight[1, 2, 0, 1] = 0
    with pytest.raises(BnewError, match="1 of its binary weights are 0, but a bit is"):
        bnew.pack(layer, x, tmp_path / "model.bnew")
    assert not (tmp_path / "model.bnew").exists()


def test_verify_of_a_layer_that_is_called_twice(tmp_path: Path) -> None:
    """Each call has its own binary convolutions; calls with the same signs share them."""

    class Twice(nn.Module):
        def __init__(self, again: bool) -> None:
            super().__init__()
            self.first, self.up = nn.Conv2d(2, 4, 1), signed(BinaryConvTranspose2d(4, 4, 4, 2, 1))
            self.again = again

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y = self.up(x)
            both: Tensor = y.relu().sum((2, 3)) + self.up(y + 0.5 if self.again else x).tanh().sum((2, 3))
            return both

    torch.manual_seed(0)
    x, path = torch.randn(4, 2, 4, 4), tmp_path / "model.bnew"
    for again in (True, False):
        model = Twice(again).eval()
        bnew.pack(model, x, path)
        found = bnew.verify(path, model, [(x, torch.zeros(4, dtype=torch.long))])
        assert found.ok, found.problems
        assert [layer.name for layer in found.layers] == ["up", "up#6"][
            : 1 + again
        ]  # up#5 puts parts together
