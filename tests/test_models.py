"""Counts, shapes and options of the architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bnew
from bnew import BnewError, binary_parameters, create_model, list_models
from bnew.layers import BinaryConv2d, BinaryLinear, ChannelScale, RPReLU, RSign
from bnew.models.birealnet import BinaryBlock
from bnew.models.bnext import Attention, Doubled, FeedForward, Recoupling
from bnew.models.quicknet import Blur, QuickNetBlock
from bnew.registry import MODELS

# name → parameters, binary ones; those of the paper's student and of ReActNet-A are published
COUNTS = {
    "birealnet20": (275_786, 267_264),
    "bnext_tiny": (30_853_276, 28_253_184),
    "birealnet8": (79_114, 73_728),
    "reactnet_a": (29_343_592, 28_253_184),
    "quicknet": (13_234_056, 12_533_760),
    "quicknet_large": (23_342_216, 22_634_496),
    "quicknet_small": (12_655_672, 11_980_800),
    "reactnet18": (11_708_264, 10_985_472),
    "resnet18": (11_689_512, 0),
    "resnet34": (21_797_672, 0),
    "wideresnet22": (272_282, 0),
}


def count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


def test_every_model_is_counted() -> None:
    assert list_models() == sorted(COUNTS)


@pytest.mark.parametrize("name", list_models())
def test_what_is_known_without_building_a_model(name: str) -> None:
    facts = MODELS[name].facts
    assert facts is not None
    total = bnew.summary(create_model(name, num_classes=facts.classes), facts.image_size).total
    assert (facts.packed_bytes, facts.binary_macs, facts.real_macs) == (
        total.packed_bytes, total.binary_macs, total.real_macs,
    )  # fmt: skip


def test_models_by_pattern() -> None:
    assert list_models("*react*") == list_models("*ReAct*") == ["reactnet18", "reactnet_a"]
    assert list_models("resnet34") == ["resnet34"]
    assert list_models("react") == ["reactnet18", "reactnet_a"]
    assert list_models("react*") == ["reactnet18", "reactnet_a"]
    assert list_models("*react") == []


def test_channels_by_the_name_of_timm() -> None:
    model = create_model("birealnet8", num_classes=4, in_chans=1)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 4)
    state, expected = (
        model.state_dict(),
        create_model("birealnet8", num_classes=4, in_channels=1).state_dict(),
    )
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in expected.items()
    }


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert (count(model.parameters()), count(binary_parameters(model))) == COUNTS[name]


@pytest.mark.parametrize("name", ["birealnet20", "birealnet8", "wideresnet22", "resnet18"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 32])
def test_small_images(name: str, channels: int, size: int) -> None:
    model = create_model(name, num_classes=7, in_channels=channels)
    logits = model(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["reactnet_a", "reactnet18"])
def test_imagenet_outline(name: str) -> None:
    """Every layer at its published resolution, without the arithmetic."""
    with torch.device("meta"):
        model = create_model(name).eval()
        sizes = []
        for module in model.modules():
            if isinstance(module, BinaryBlock):
                module.register_forward_hook(lambda m, x, y: sizes.append(tuple(y.shape[1:3])))
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    if name == "reactnet18":
        expected = [(c, s) for c, s in ((64, 56), (128, 28), (256, 14), (512, 7)) for _ in range(4)]
    else:
        widths = [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
        spatial = [112, 56, 56, 28, 28, *[14] * 6, 7, 7]
        halves = zip([32, *widths], widths, spatial, strict=False)
        expected = [half for c_in, c_out, s in halves for half in ((c_in, s), (c_out, s))]
    assert sizes == expected


@pytest.mark.parametrize(
    ("name", "parameters", "mebibytes"),
    [
        ("quicknet_small", 12_655_688, 4.00),
        ("quicknet", 13_234_088, 4.17),
        ("quicknet_large", 23_342_248, 5.40),
    ],
)
def test_quicknet_has_the_published_numbers(name: str, parameters: int, mebibytes: float) -> None:
    """Larq counts two numbers for each channel of a batch norm, also of the one that has none."""
    with torch.device("meta"):
        model = create_model(name)
        sizes = []
        for module in model.modules():
            if isinstance(module, QuickNetBlock):
                module.register_forward_hook(lambda m, x, y: sizes.append(tuple(y.shape[1:])))
        assert model.eval()(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and not m.affine]
    assert count(model.parameters()) + sum(2 * m.num_features for m in norms) == parameters
    facts = MODELS[name].facts
    assert facts is not None
    assert round(facts.packed_bytes / 2**20, 2) == mebibytes
    widths = (32, 64, 256, 512) if name == "quicknet_small" else (64, 128, 256, 512)
    blocks = (6, 8, 12, 6) if name == "quicknet_large" else (4,) * 4
    sections = zip(widths, (56, 28, 14, 7), blocks, strict=True)
    assert sizes == [(c, s, s) for c, s, n in sections for _ in range(n)]


def test_a_quicknet_block_is_its_formula() -> None:
    block = QuickNetBlock(3, "clipped_identity").eval()
    nn.init.normal_(block.norm.weight)
    assert block.norm.running_mean is not None
    nn.init.normal_(block.norm.running_mean)
    x = torch.randn(2, 3, 5, 5)
    signs = nn.functional.pad(torch.where(x < 0, -1.0, 1.0), (1,) * 4, value=1.0)
    y = nn.functional.conv2d(signs, block.conv.weight).relu()
    torch.testing.assert_close(block(x), x + block.norm(y))


def test_between_sections_quicknet_blurs() -> None:
    image = torch.zeros(1, 2, 5, 5)
    image[0, 1, 2, 2] = 16
    wanted = torch.zeros(1, 2, 3, 3)
    wanted[0, 1, 1, 1] = 4
    assert torch.equal(Blur(2)(image), wanted)
    edges = torch.zeros(1, 1, 5, 5)
    edges[0, 0, 1, 2] = 16
    assert torch.equal(Blur(1)(edges)[0, 0, :, 1], torch.tensor([2.0, 2.0, 0.0]))
    with pytest.raises(BnewError, match="needs a width and a number of blocks for each section"):
        create_model("quicknet", widths=(64, 128), blocks=(1, 1, 1))


def test_sections_of_quicknet_halve_the_size_whatever_their_widths() -> None:
    for widths in ((8, 8, 16), [8, 8, 16]):  # a list, as JSON has it
        features = create_model("quicknet", widths=widths, blocks=(1, 1, 1)).get_submodule("features")
        assert features(torch.zeros(1, 3, 32, 32)).shape == (1, 16, 2, 2)
    for wrong in (64, "ab", (8.0, 16), (8, True)):
        with pytest.raises(BnewError, match=r"widths is .*, but takes values like \(64, 128, 256, 512\)"):
            create_model("quicknet", widths=wrong, blocks=(1, 1))
    with pytest.raises(BnewError, match=r"blocks is \(1, 0\), but must be at least 1"):
        create_model("quicknet", widths=(8, 16), blocks=(1, 0))


def averaged(x: torch.Tensor, side: int) -> torch.Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // side, side, w // side, side).mean((3, 5))


def recoupled(part: Recoupling, x: torch.Tensor, smaller: torch.Tensor) -> torch.Tensor:
    """arXiv 2211.12933, with every mean and product written out."""
    shift = part.conv.input_sign.shift
    assert isinstance(shift, nn.Parameter)
    signs = torch.where(x + shift[:, None, None] < 0, -1.0, 1.0).to(x.dtype)
    conv = nn.functional.conv2d(signs, part.conv.weight, None, part.conv.stride, part.conv.padding)
    y = part.norm(conv)
    y = torch.where(y > 0, y, part.activation.weight[:, None, None] * y)
    pooled = (part.share * smaller + (1 - part.share) * y).flatten(2).mean(2)
    squeeze, excite = (m for m in part.excite if isinstance(m, nn.Conv2d))
    assert squeeze.bias is not None
    assert excite.bias is not None
    hidden = (pooled @ squeeze.weight.flatten(1).T + squeeze.bias).clamp(min=0)
    weights = 1 / (1 + (-(hidden @ excite.weight.flatten(1).T + excite.bias)).exp())
    return y * weights[:, :, None, None]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_blocks_of_bnext_are_their_formulas(kernel: int, stride: int) -> None:
    x = torch.randn(2, 16, 8, 6, dtype=torch.float64)  # whose rounding no sum here makes visible
    for kind in (FeedForward, Attention):
        block = kind(16, kernel, stride, "clipped_identity").double().eval()
        for parameter in block.parameters():
            nn.init.normal_(parameter)
        smaller = averaged(x, stride)
        z = recoupled(block.recoupling, x, smaller)
        if isinstance(block, Attention):
            curved = torch.where(x > 0, x, block.activation.weight[:, None, None] * x)
            real = averaged(curved, stride)
            wanted = real + block.norm(z * real)
        else:
            wanted = smaller + block.norm(z)
        torch.testing.assert_close(block(x), wanted)


def test_bnext_t_has_the_published_outline() -> None:
    """Of the authors' code: widths, which convolutions stride, and which have element attention."""
    with torch.device("meta"):
        model = create_model("bnext_tiny").eval()
        seen: list[tuple[str, int, int]] = []
        for module in model.get_submodule("features").children():
            if isinstance(module, FeedForward | Doubled):
                module.register_forward_hook(lambda m, x, y: seen.append((type(m).__name__, *y.shape[1:3])))
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    widths = [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    sizes = [112, 56, 56, 28, 28, *[14] * 6, 7, 7]
    halves = zip([32, *widths], widths, sizes, strict=False)
    assert seen == [
        half
        for number, (c_in, c_out, size) in enumerate(halves)
        for half in (
            ("Attention" if number % 2 else "FeedForward", c_in, size),
            ("FeedForward" if c_in == c_out else "Doubled", c_out, size),
        )
    ]
    with pytest.raises(BnewError, match="BNext's width is 12, but must be a multiple of eight"):
        create_model("bnext_tiny", width=12)


def test_shares_of_bnext_stay_shares() -> None:
    part = FeedForward(8, 1, 1, "clipped_identity")
    share = part.recoupling.share
    with torch.no_grad():
        share.copy_(torch.linspace(-1, 2, 8).view_as(share))
    part(torch.randn(2, 8, 3, 3))
    assert torch.equal(share, torch.linspace(-1, 2, 8).view_as(share).clamp(0, 1))


def test_block_is_its_formula() -> None:
    block = BinaryBlock(3, 3).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 5, 5)
    shift = block.conv.input_sign.shift
    assert isinstance(shift, nn.Parameter)
    signs = torch.where(x + shift[:, None, None] < 0, -1.0, 1.0)
    y = block.scale(nn.functional.conv2d(signs, block.conv.weight, padding=1))
    torch.testing.assert_close(block(x), block.activation(x + block.norm(y)))


def test_reactnet_widens_as_two_convolutions_side_by_side() -> None:
    """One convolution C → 2C plus the input twice is what ReActNet writes as two convolutions."""
    model = create_model("reactnet_a", num_classes=2).eval()
    block = next(m for m in model.modules() if isinstance(m, BinaryBlock) and m.conv.out_channels == 64)
    for parameter in block.norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(1, 32, 4, 4)
    signs = block.conv.input_sign(x)
    halves = []
    for half in (slice(0, 32), slice(32, 64)):
        norm = nn.BatchNorm2d(32).eval()
        norm.load_state_dict({k: v[half] if v.dim() else v for k, v in block.norm.state_dict().items()})
        halves.append(x + norm(nn.functional.conv2d(signs, block.conv.weight[half])))
    torch.testing.assert_close(block(x), block.activation(torch.cat(halves, 1)))


def parts(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(m, kind) for m in model.modules())


def test_ablations() -> None:
    assert parts(create_model("birealnet8"), ChannelScale) == 6
    assert parts(create_model("birealnet8", scale=False), ChannelScale) == 0
    assert not any("shift" in name for name, _ in create_model("birealnet8", shift=False).named_parameters())
    relus = [m for m in create_model("birealnet8", prelu=False).modules() if isinstance(m, RPReLU)]
    assert [m.slope for m in relus] == [None] * 6
    signs = [
        m for m in create_model("birealnet8", surrogate="clipped_identity").modules() if isinstance(m, RSign)
    ]
    assert {m.surrogate for m in signs} == {"clipped_identity"}


def test_binary_ends_and_shortcuts_leave_no_real_weight() -> None:
    model = create_model("birealnet8", binary_ends=True, binary_shortcut=True)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(isinstance(m, BinaryConv2d | BinaryLinear) for m in layers)
    assert len(layers) == 1 + 6 + 2 + 1
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_compiles_to_one_graph() -> None:
    model = create_model("birealnet8", num_classes=3).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("birealnet21", {}, "unknown model 'birealnet21': did you mean 'birealnet20'"),
        ("nets.Net", {}, "allowed are .*, package.module:factory, .*, timm:NAME, torchvision:NAME"),
        (
            "birealnet8",
            {"num_clases": 3},
            "'num_clases': did you mean 'num_classes'.* allowed are .*surrogate",
        ),
        ("wideresnet22", {"num_classes": 0}, "num_classes is 0, but must be at least 1"),
        ("reactnet_a", {"in_channels": "3"}, "in_channels is '3', but takes values like 3"),
        ("reactnet_a", {"in_chans": 0}, "in_channels is 0, but must be at least 1"),
        ("birealnet8", {"in_chans": 1, "in_channels": 3}, "in_chans is in_channels under another name"),
        ("birealnet8", {"shift": 1}, "shift is 1, but takes values like True"),
        ("reactnet18", {"surrogate": "tanh"}, "unknown surrogate gradient 'tanh'"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BnewError, match=message):
        create_model(name, **options)
