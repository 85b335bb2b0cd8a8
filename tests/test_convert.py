"""binarize() on networks of many kinds, and summary()."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import bnew
from bnew import BinaryConv2d, BinaryLinear, BnewError, RSign, binarize, binary_parameters, plan, summary


def becomes(model: nn.Module, **options: Any) -> dict[str, str]:
    """name → what it becomes, of every row of the plan."""
    return {row.name: row.becomes for row in plan(model, **options)}


def why(model: nn.Module, name: str, **options: Any) -> str:
    (reason,) = (row.reason for row in plan(model, **options) if row.name == name)
    return reason


def tower(*middle: nn.Module) -> nn.Sequential:
    """A network whose first and last layer are not what is tested."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *middle, nn.Conv2d(8, 2, 1))


class Residual(nn.Module):
    """x → main(x) + side(x)."""

    def __init__(self, main: nn.Module, side: nn.Module) -> None:
        super().__init__()
        self.main, self.side = main, side

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.main(x), self.side(x))


class Functional(nn.Module):
    """The usual first network: ReLU as a function, and a branch on a value if ``branches``."""

    def __init__(self, branches: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 2)
        self.branches = branches

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        if self.branches and x.sum() > 1e9:
            x = x / 2
        logits: Tensor = self.fc(self.c(self.norm(self.b(x))).mean((2, 3)))
        return logits


# ---------------------------------------------------------------------------------------- what is chosen


def test_resnet18_of_torchvision() -> None:
    model = torchvision.models.resnet18()
    found = becomes(model)
    inner = {f"layer{s}.{b}.conv{c}" for s in (1, 2, 3, 4) for b in (0, 1) for c in (1, 2)}
    assert {name for name, new in found.items() if new == "BinaryConv2d"} == inner
    stays = {"conv1", "fc", "layer2.0.downsample.0", "layer3.0.downsample.0", "layer4.0.downsample.0"}
    assert {name for name, new in found.items() if not new} == stays
    relus = {"relu", *(f"layer{s}.{b}.relu" for s in (1, 2, 3, 4) for b in (0, 1))}
    assert {name for name, new in found.items() if new == "PReLU"} == relus
    everything = becomes(model, first=True, last=True, shortcut=True)
    assert all(everything[name].startswith("Binary") for name in inner | stays)
    assert why(model, "fc", last=True) == (
        "asked for; makes the network's output; it may be blind, as averages of a ReLU are rarely negative: "
        "give calibrate=loader"
    )


def test_pointwise_convolutions_are_no_shortcuts() -> None:
    """In mobilenet_v2 all but the depthwise ones, the first and the last are inner layers."""
    model = torchvision.models.mobilenet_v2()
    found = becomes(model)
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    for name, conv in convs.items():
        assert bool(found[name]) == (conv.groups == 1 and name != "features.0.0"), name
    assert found["features.18.0"] == "BinaryConv2d"
    assert becomes(model, depthwise=True)["features.1.conv.0.0"] == "BinaryConv2d"


@pytest.mark.parametrize(
    ("main", "side", "expected"),
    [
        (nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), "a 1×1 layer on a shortcut"),
        (
            nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)),
            nn.Sequential(nn.AvgPool2d(1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)),
            "a 1×1 layer on a shortcut",
        ),
        (nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), "an inner layer"),  # no path is the longer one
        (nn.Identity(), nn.Conv2d(8, 8, 1), "an inner layer"),
        (nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), "an inner layer"),
    ],
)
def test_shortcuts_are_found_by_what_they_are(main: nn.Module, side: nn.Module, expected: str) -> None:
    model = tower(nn.BatchNorm2d(8), Residual(main, side))
    (name,) = (n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and n.startswith("2.side"))
    assert why(model, name) == expected


def test_every_head_is_a_last_layer() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), Residual(nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1))
    )
    assert becomes(model) == {"0": "", "1": "BinaryConv2d", "2.main": "", "2.side": ""}


@pytest.mark.parametrize(
    ("skip", "real"),
    [
        ("1", {"1"}),
        (["2.*"], {"2.0", "2.1"}),
        (["2"], {"2.0", "2.1"}),
        (("1", "?.1"), {"1", "2.1"}),
        (lambda m, name: m.kernel_size == (3, 3), {"0", "2.0"}),
    ],
)
def test_skip(skip: Any, real: set[str]) -> None:
    model = tower(nn.Conv2d(8, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)))
    found = becomes(model, skip=skip, first=True, last=True)
    assert {name for name, new in found.items() if not new} == real


def test_skip_of_another_kind_is_named() -> None:
    skips: list[tuple[Any, str]] = [(None, "None"), ([0], "0")]
    for skip, said in skips:
        with pytest.raises(BnewError, match=f"skip has {said}, but takes names"):
            binarize(tower(nn.Conv2d(8, 8, 1)), skip=skip)


def test_skip_that_matches_nothing_is_named() -> None:
    with pytest.raises(BnewError, match=r"'layer1.0.convl'; the nearest names are .*layer1.0.conv1"):
        binarize(torchvision.models.resnet18(), skip=["fc", "layer1.0.convl"])


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.ConvTranspose1d(8, 8, 1), "there is no binary ConvTranspose1d"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)), "there is no binary ParametrizedConv2d"),
        (BinaryConv2d(8, 8, 1), "already binary"),
        (nn.Conv2d(8, 8, 3, groups=8), "a depthwise convolution"),
        (nn.Conv2d(8, 8, 3, groups=2, dilation=2), "an inner layer"),
    ],
)
def test_kinds_of_layers(layer: nn.Module, reason: str) -> None:
    assert why(tower(layer, nn.Conv2d(8, 8, 1)), "1") == reason


def test_weights_that_others_read_stay_real() -> None:
    transformer = nn.Sequential(
        nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2), nn.Linear(8, 8), nn.Linear(8, 8)
    )
    assert why(transformer, "1.linear1") == "TransformerEncoderLayer reads its weight itself"
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[3].weight
    assert why(tied, "1") == "its weight belongs to another module too"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.ReLU()), "it has no such layer"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)), "sees .*input: 0; makes .*output: 1$"),
        (bnew.create_model("birealnet8"), "already binary: [^ ]+, [^ ]+, [^ ]+ and [0-9]+ more"),
    ],
)
def test_nothing_to_binarize_says_why(model: nn.Module, message: str) -> None:
    with pytest.raises(BnewError, match=f"nothing to binarize in .*{message}"):
        binarize(model)


@pytest.mark.parametrize(
    "options", [{"input_sign": "rsing"}, {"surrogate": "polynom"}, {"relu": "prelo"}], ids=str
)
def test_unknown_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(BnewError, match="did you mean"):
        binarize(tower(nn.Conv2d(8, 8, 1)), **options)


@pytest.mark.parametrize("function", [binarize, bnew.plan])
def test_what_is_no_network(function: Callable[[Any], object]) -> None:
    for given, said in (("resnet18", "'resnet18'"), (nn.Linear, "the class Linear"), ([1], "a list of 1")):
        with pytest.raises(BnewError, match=f"{function.__name__} was given {said}, but needs a torch.nn.M"):
            function(given)


class Namespace(nn.Module):
    """Its layers in a bare module, a list and a dictionary, none of which has a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Module()
        self.parts.a, self.parts.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.parts.more = nn.ModuleList([nn.ModuleDict({"c": nn.Conv2d(8, 8, 3)})])
        self.parts.norm, self.parts.relu = nn.BatchNorm2d(8), nn.ReLU()
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.get_submodule("parts.a")(x)
        for name in ("b", "norm", "relu", "more.0.c"):
            x = self.get_submodule(f"parts.{name}")(x)
        logits: Tensor = self.head(x)
        return logits


def test_a_module_that_only_holds_others_reads_no_weights() -> None:
    found = becomes(Namespace())
    assert found == {
        "parts.a": "",
        "parts.b": "BinaryConv2d",
        "parts.more.0.c": "BinaryConv2d",
        "parts.relu": "PReLU",
        "head": "",
    }


@pytest.mark.parametrize("make", [Namespace, lambda: torchvision.models.resnet18(num_classes=3)])
def test_a_traced_network_is_converted_alike(make: Callable[[], nn.Module]) -> None:
    """torch.fx keeps the layers, in bare modules."""
    torch.manual_seed(0)
    model = make().eval()
    graph = torch.fx.symbolic_trace(copy.deepcopy(model))
    assert dict(sorted(becomes(graph).items())) == dict(sorted(becomes(model).items()))
    binarize(model)
    binarize(graph)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(graph(x), model(x))
    assert len(binary_parameters(graph)) == len(binary_parameters(model)) > 0


# ------------------------------------------------------------------------------------------ what is done


def test_plan_changes_nothing_and_prints() -> None:
    model = torchvision.models.resnet18()
    before = str(model)
    rows = plan(model)
    assert str(model) == before
    for text in (str(rows), repr(rows)):
        assert all(row.name in text and row.reason in text for row in rows)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 6, (3, 2), stride=2, padding=1, dilation=2, groups=2, bias=False, dtype=torch.float64),
        nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect"),
        nn.Linear(5, 3).eval(),
    ],
)
def test_one_layer_keeps_all_but_its_input(layer: nn.Conv2d | nn.Linear) -> None:
    parameters, hyper, training = dict(layer.named_parameters()), layer.extra_repr(), layer.training
    calls: list[nn.Module] = []
    layer.register_forward_hook(lambda m, x, y: calls.append(m))
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
    x = torch.randn(2, channels, *(9, 9) * isinstance(layer, nn.Conv2d), dtype=layer.weight.dtype)
    expected = copy.deepcopy(layer)(torch.where(x < 0, -1.0, 1.0).to(x))

    assert binarize(layer) is layer
    assert isinstance(layer, BinaryConv2d | BinaryLinear)
    assert all(layer.get_parameter(name) is p for name, p in parameters.items())
    assert layer.extra_repr() == hyper
    assert isinstance(layer.input_sign, RSign)
    assert layer.input_sign.shift is not None
    assert layer.input_sign.shift.dtype == x.dtype
    assert layer.training == layer.input_sign.training == training
    torch.testing.assert_close(layer(x), expected)
    assert calls[-1] is layer


@pytest.mark.parametrize(
    ("input_sign", "shifts"),
    [("rsign", True), ("sign", False), (lambda c: RSign(c, "clipped_identity"), True)],
)
def test_input_sign(input_sign: str | Callable[[int], nn.Module], shifts: bool) -> None:
    model = binarize(tower(nn.Conv2d(8, 8, 1)), input_sign=input_sign, surrogate="clipped_identity")
    (sign,) = (m for m in model.modules() if isinstance(m, RSign))
    assert (sign.shift is not None) == shifts
    assert sign.surrogate == "clipped_identity"


def test_an_optimizer_made_before_goes_on_working() -> None:
    model = tower(nn.Conv2d(8, 8, 3, padding=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    binarize(model)
    (weight,) = binary_parameters(model)
    before = weight.detach().clone()
    model(torch.randn(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(weight, before)


def test_a_module_with_two_names_is_handled_once() -> None:
    conv, relu = nn.Conv2d(8, 8, 1), nn.ReLU()
    model = tower(nn.BatchNorm2d(8), relu, conv, nn.BatchNorm2d(8), relu, conv)
    assert [row.name for row in plan(model) if row.becomes] == ["2", "3"]
    binarize(model)
    assert model[3] is model[6]
    assert isinstance(model[2], nn.PReLU)
    assert model[2] is model[5]


def test_weights_outside_the_unit_interval_stay() -> None:
    conv = nn.Conv2d(8, 8, 1)
    nn.init.constant_(conv.weight, 3.5)
    binarize(tower(conv, nn.BatchNorm2d(8)))
    assert set(conv.weight.flatten().tolist()) == {3.5}


def test_what_is_done_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Without any setting up of logging; on standard error, so that a program's output stays its own."""
    model = torchvision.models.resnet18()
    expected = {row.reason for row in plan(model)}
    assert capsys.readouterr() == ("", "")
    binarize(model)
    out, err = capsys.readouterr()
    assert out == ""
    first, *lines = err.splitlines()
    assert first == "binarize: ResNet has 16 binary layers now"
    columns = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert {(number, becomes) for number, becomes, *_ in columns} == {
        ("1", "stays real"), ("3", "stays real"), ("16", "BinaryConv2d"), ("9", "PReLU"),
    }  # fmt: skip
    assert {reason.removesuffix(":") for _, _, reason, _ in columns} == expected
    assert "layer1.0.conv1, layer1.0.conv2, layer1.1.conv1 and 13 more" in err
    binarize(tower(nn.Conv2d(8, 8, 1)), verbose=False)
    assert capsys.readouterr() == ("", "")


def test_a_plan_is_a_table_in_a_notebook_too() -> None:
    rows = plan(tower(nn.Conv2d(8, 8, 1)))
    assert rows._repr_html_().startswith("<pre")
    assert "network&#x27;s input" in rows._repr_html_()


# ------------------------------------------------------------------------------------------ old names


def test_old_names_warn() -> None:
    model = tower(nn.Conv2d(8, 8, 1))
    expected = plan(model)
    with pytest.warns(
        DeprecationWarning, match=r"binarize\(plan=…\) is deprecated.*: write bnew\.plan"
    ) as found:
        rows: object = binarize(model, plan=True)  # type: ignore[call-arg]
    assert rows == expected
    assert found[0].filename == __file__
    with pytest.warns(DeprecationWarning, match=r"binarize\(activation=…\) .*: write input_sign=…"):
        binarize(model, activation="sign")  # type: ignore[call-arg]
    (sign,) = (m for m in model.modules() if isinstance(m, RSign))
    assert sign.shift is None


def by_name(name: str, module: nn.Module) -> bool:
    return name == "1"


@pytest.mark.parametrize(
    "old",
    [by_name, lambda name, m: name == "1", lambda n, _: n == "1", lambda a, m: a == "1"],
)
def test_filters_in_the_old_order_warn(old: Any) -> None:
    model = tower(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    with pytest.warns(DeprecationWarning, match=r"\(module, name\) -> bool") as found:
        rows = plan(model, old)
    assert found[0].filename == __file__
    assert {row.name for row in rows if row.reason == "skipped"} == {"1"}


@pytest.mark.parametrize(
    "new", [lambda module, fqn: fqn == "1", lambda m, name: name == "1", lambda *of: of[1] == "1"]
)
def test_filters_are_those_of_torchao(new: Any) -> None:
    rows = plan(tower(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)), new)
    assert {row.name for row in rows if row.reason == "skipped"} == {"1"}


# ------------------------------------------------------------------------------------- ReLU before a sign


def share_of_minus_ones(model: nn.Module, x: Tensor) -> list[float]:
    """Over the binary layers: which part of the signs that they see is −1."""
    shares: list[float] = []
    for module in model.modules():
        if isinstance(module, RSign):
            module.register_forward_hook(lambda m, x, y: shares.append((y < 0).float().mean().item()))
    with torch.no_grad():
        model(x)
    return shares


def test_every_binary_layer_of_resnet18_sees_both_signs() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    shares = share_of_minus_ones(binarize(torchvision.models.resnet18()), x)
    assert len(shares) == 16
    assert 0 < shares[0] < 1  # few are −1: it follows a max pool
    assert all(0.05 < share < 0.95 for share in shares[1:])
    kept = share_of_minus_ones(binarize(torchvision.models.resnet18(), relu="keep"), x)
    assert kept == [0.0] * 16  # what the replacement is for


def test_relus_become_prelus_per_channel_where_the_width_is_one() -> None:
    model = binarize(torchvision.models.resnet50())
    slopes = {name: m.num_parameters for name, m in model.named_modules() if isinstance(m, nn.PReLU)}
    assert slopes["relu"] == 64
    assert slopes["layer1.0.relu"] == 1  # used at 64 and at 256 channels


class Halves(nn.Module):
    """Float32 at its ends, bfloat16 but for its norms between them."""

    def __init__(self) -> None:
        super().__init__()
        norms = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        middle = nn.Sequential(nn.Conv2d(8, 8, 1), norms[0], nn.ReLU(), nn.Conv2d(8, 8, 1), norms[1])
        self.first, self.middle, self.last = nn.Conv2d(3, 8, 3), middle.bfloat16(), nn.Conv2d(8, 2, 1)
        for norm in norms:
            norm.float()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.middle(F.relu(self.first(x).bfloat16()))).float()
        result: Tensor = self.last(x)
        return result


def test_a_prelu_has_the_dtype_of_what_it_gets() -> None:
    model = binarize(Halves(), last=True)
    dtypes = {name: m.weight.dtype for name, m in model.named_modules() if isinstance(m, nn.PReLU)}
    assert dtypes == dict.fromkeys(("prelu1", "prelu2", "middle.2"), torch.bfloat16)
    assert model(torch.randn(2, 3, 5, 5)).dtype == torch.float32


def test_a_prelu_of_a_network_read_by_names_is_like_the_layer_before_it() -> None:
    model = Functional(branches=True)
    model.act = nn.ReLU()
    model.fc.double()
    del model.norm
    act = binarize(model).get_submodule("act")
    assert [p.dtype for p in act.parameters()] == [torch.float64]  # registered behind fc


def test_only_relus_that_feed_a_sign_are_replaced() -> None:
    feeding = (nn.ReLU6(), nn.MaxPool2d(2), nn.Dropout(), nn.Conv2d(8, 8, 1))
    model = tower(
        nn.ReLU(), nn.Conv2d(8, 8, 1, groups=8), *feeding, nn.Hardswish(), nn.Conv2d(8, 8, 1), nn.ReLU()
    )
    found = becomes(model)
    assert {name for name, new in found.items() if new == "PReLU"} == {"3"}
    assert {name for name, new in found.items() if new == "BinaryConv2d"} == {"6", "8"}


def test_a_sum_with_a_signed_part_needs_no_replacement() -> None:
    signed = tower(nn.BatchNorm2d(8), Residual(nn.ReLU(), nn.Identity()), nn.Conv2d(8, 8, 1))
    assert "PReLU" not in becomes(signed).values()
    unsigned = tower(nn.BatchNorm2d(8), Residual(nn.ReLU(), nn.Sigmoid()), nn.Conv2d(8, 8, 1))
    assert becomes(unsigned) == {"0": "", "2.main": "PReLU", "3": "BinaryConv2d", "4": ""}


def test_what_is_no_relu_keeps_its_layer_real(caplog: pytest.LogCaptureFixture) -> None:
    model = tower(nn.BatchNorm2d(8), nn.Sigmoid(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    assert becomes(model) == {"0": "", "3": "", "4": "BinaryConv2d", "5": ""}
    assert "3 stays real: its input is never negative, as sigmoid is called before it" in caplog.text
    assert becomes(model, relu="keep")["3"] == "BinaryConv2d"
    hardtanh = tower(nn.BatchNorm2d(8), nn.Hardtanh(0, 6), nn.Conv2d(8, 8, 1))
    assert becomes(hardtanh) == {"0": "", "2": "PReLU", "3": "BinaryConv2d", "4": ""}
    clamped = tower(nn.BatchNorm2d(8), nn.Sigmoid(), nn.Hardtanh(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    assert becomes(clamped)["4"] == ""


def test_a_network_that_cannot_be_traced_is_read_by_names(caplog: pytest.LogCaptureFixture) -> None:
    model = Functional(branches=True)
    fc = model.fc
    del model.fc
    model.downsample, model.act, model.fc = nn.Conv2d(8, 8, 1), nn.ReLU(), fc
    found = becomes(model)
    assert found == {
        "a": "",
        "b": "BinaryConv2d",
        "c": "BinaryConv2d",
        "downsample": "",
        "act": "PReLU",
        "fc": "",
    }
    assert "Functional cannot be traced" in caplog.text


def test_a_binarized_resnet18_learns() -> None:
    """Which half of an image is the brighter one, through 16 binary layers."""
    torch.manual_seed(0)
    model = binarize(torchvision.models.resnet18(num_classes=2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    method = bnew.methods.STE(binary_parameters(model), total_steps=12).attach(optimizer)

    def batch(n: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(2, (n,))
        x = torch.randn(n, 3, 32, 32)
        x[..., :16] += y.view(-1, 1, 1, 1) - 0.5
        x[..., 16:] -= y.view(-1, 1, 1, 1) - 0.5
        return x, y

    for _ in range(12):
        x, y = batch(16)
        torch.autograd.backward(F.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
    with method.binarized(), torch.no_grad():
        x, y = batch(100)
        assert (model(x).argmax(1) == y).float().mean() > 0.9


# ------------------------------------------------------------------------------------------------ summary


def test_summary_counts_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        BinaryConv2d(8, 4, 3, groups=2, bias=True),
        nn.ConvTranspose2d(4, 2, 2, stride=2, bias=False),
        nn.Flatten(),
        nn.Linear(2 * 4 * 4, 5),
    )
    rows = {row.name: row for row in summary(model, (3, 4, 4)).rows}
    assert list(rows) == ["0", "1", "2", "3", "5"]
    assert (rows["0"].real_parameters, rows["0"].real_macs) == (8 * 27 + 8, 16 * 8 * 27)
    assert (rows["1"].real_parameters, rows["1"].packed_bytes, rows["1"].real_macs) == (16, 64, 0)
    binary = rows["2"]
    assert (binary.binary_parameters, binary.real_parameters) == (4 * 36, 4)
    assert (binary.float_bytes, binary.packed_bytes) == (4 * 148, 4 * (4 * 2 + 4))  # 36 bits: two words
    assert (binary.binary_macs, binary.real_macs) == (4 * 4 * 36, 0)
    assert rows["3"].real_macs == 4 * 4 * 2 * 4
    assert (rows["5"].real_parameters, rows["5"].real_macs) == (165, 160)


class Tokens(nn.Module):
    """Attention, a list of layers of which one is called twice, and a product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.parts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 4)])

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.attention(x, x, x, need_weights=False)
        x = self.parts[1](self.parts[0](self.parts[0](x)))
        return x @ x.mT


def test_summary_counts_what_no_layer_does() -> None:
    """Products inside of a module are its own, wherever the modules that it calls are kept."""
    rows = {
        row.name: row.real_macs for row in summary(nn.Sequential(nn.Flatten(1, 2), Tokens()), (1, 5, 8)).rows
    }
    tokens, wide = 5, 8
    attention = 4 * tokens * wide * wide + 2 * tokens * tokens * wide
    assert rows == {
        "1": tokens * tokens * 4,
        "1.attention": attention,
        "1.attention.out_proj": 0,
        "1.parts.0": 2 * tokens * wide * wide,
        "1.parts.1": tokens * wide * 4,
    }


def test_summary_totals_and_table() -> None:
    model = bnew.create_model("birealnet20")
    result = summary(model, (3, 32, 32))
    total = result.total
    assert (total.binary_parameters, total.real_parameters) == (267_264, 275_786 - 267_264)
    assert total.float_bytes == 4 * 275_786
    assert total.binary_macs == 6 * 589_824 + 2 * (294_912 + 5 * 589_824)
    assert total.real_macs == 442_368 + 2 * 32_768 + 640
    assert summary(model, (7, 3, 32, 32)) == summary(model, 32) == result
    assert "267,264" in str(result)


def test_summary_leaves_the_model_as_it_was() -> None:
    model = tower(nn.BatchNorm2d(8), nn.Dropout())
    model[1].eval()
    state = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    summary(model, (3, 4, 4))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


class LearnedToken(nn.Module):
    """Gives a learned token to a module, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.randn(1, 1, 4)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4) → (N, 1, 2)."""
        return self.layer(self.token.expand(len(x), -1, -1)) + x.mean()  # type: ignore[no-any-return]


def test_summary_of_a_parameter_that_is_the_input_of_a_module() -> None:
    model = LearnedToken()
    model.token.requires_grad_(False)
    assert bnew.summary(model, (4,)).total.real_macs == 8
    assert [p.requires_grad for p in model.parameters()] == [False, True, True]
    model.token.requires_grad_(True)
    assert bnew.summary(model, (4,)).total.real_macs == 8
    assert all(p.requires_grad for p in model.parameters())


def test_summary_of_channels_by_the_name_of_timm() -> None:
    model = bnew.create_model("birealnet8", in_chans=1)
    assert summary(model, 8, in_chans=1) == summary(model, (1, 8, 8))
    with pytest.raises(BnewError, match=r"input_size is \(0, 8, 8\)"):
        summary(model, 8, in_chans=0)


@pytest.mark.parametrize("size", [(), (3, 0, 4), (3, 4.5, 4), (1, 2, 3, 4, 5)])
def test_summary_of_no_size(size: Any) -> None:
    with pytest.raises(BnewError, match="input_size is"):
        summary(tower(), size)


def test_summary_of_a_wrong_size() -> None:
    model = tower()
    with pytest.raises(BnewError, match=r"Sequential does not take an input of size \(4, 8, 8\)"):
        summary(model, (4, 8, 8))
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_tensors_and_arguments_may_have_any_name() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean: torch.Tensor
            self.register_buffer("mean", torch.zeros(3, 1, 1))
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))

        def forward(self, relu: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.body(relu - self.mean)
            return output

    model = binarize(Normalised())
    assert [isinstance(layer, BinaryConv2d) for layer in model.get_submodule("body").children()] == [
        False,
        True,
        False,
    ]


class Takes(nn.Module):
    """Uses the weight of a layer that it does not call, as torchvision's Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.taken, self.called, self.last = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(self.first(x), self.taken.weight, self.taken.bias)
        y: Tensor = self.last(self.called(x))
        return y


def test_a_layer_whose_weight_alone_is_used_stays_real() -> None:
    """Its input would not be binarized."""
    assert becomes(Takes()) == {"first": "", "taken": "", "called": "BinaryLinear", "last": ""}
    assert why(Takes(), "taken") == "the network takes its weight and does not call it"


class Biased(nn.Module):
    """Adds what two layers make of a constant, as Swin V2 its biases of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last, self.one, self.two = (nn.Linear(8, 8) for _ in range(5))
        self.register_buffer("places", torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.two(self.one(self.places).relu())
        y: Tensor = self.last(self.inner(self.first(x)) + bias)
        return y


def test_layers_of_constants_stay_real() -> None:
    """They are computed while packing, so bits would save nothing."""
    expected = {"first": "", "inner": "BinaryLinear", "last": "", "one": "", "two": ""}
    assert becomes(Biased()) == expected
    assert why(Biased(), "one") == why(Biased(), "two") == "computes from constants alone"
