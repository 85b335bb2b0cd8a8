"""binarize() on networks that call their ReLUs as functions."""

from __future__ import annotations

import copy
import functools
import importlib.util
import inspect
import io
import pickle
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from packed_reference import Reference
from torch import Tensor, nn

import bnew
from bnew import BinaryConv2d, BnewError, binarize, plan


def becomes(model: nn.Module, **options: Any) -> dict[str, str]:
    """name → what it becomes, of every row of the plan."""
    return {row.name: row.becomes for row in plan(model, **options)}


def binary_layers(model: nn.Module) -> set[str]:
    return {row.name for row in plan(model) if row.binarize}


def randomised(model: nn.Module) -> nn.Module:
    """No parameter and no statistic is as it was initialised, so that each of them shows in the output."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                assert m.running_mean is not None
                assert m.running_var is not None
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2)
    return model


class Block(nn.Module):
    """A basic block as in He et al. 2016, its ReLUs as functions; the shortcut pads with zeros."""

    def __init__(self, c: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.grow = stride, width - c

    def shortcut(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.grow))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class ModuleBlock(Block):
    def __init__(self, c: int, width: int, stride: int) -> None:
        super().__init__(c, width, stride)
        self.prelu1, self.prelu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.prelu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        result: Tensor = self.prelu2(out)
        return result


class ResNet(nn.Module):
    """ResNet-6n+2 for CIFAR-10."""

    block: type[Block] = Block

    def __init__(self, n: int = 3, width: int = 4) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        for stage in range(3):
            for i in range(n):
                start = stage > 0 and i == 0
                wide = width * 2**stage
                blocks.append(self.block(wide // 2 if start else wide, wide, 2 if start else 1))
        self.layers, self.linear = nn.Sequential(*blocks), nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.adaptive_avg_pool2d(self.layers(out), 1)
        logits: Tensor = self.linear(out.flatten(1))
        return logits


class ModuleResNet(ResNet):
    block = ModuleBlock

    def __init__(self, n: int = 3, width: int = 4) -> None:
        super().__init__(n, width)
        self.prelu1 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.prelu1(self.bn1(self.conv1(x)))
        out = F.adaptive_avg_pool2d(self.layers(out), 1)
        logits: Tensor = self.linear(out.flatten(1))
        return logits


class Middle(nn.Module):
    """A network whose ReLU is that of ``self.act``; layers a, b and c, of which b and c may be binary."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.b, self.c = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)

    def act(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(self.b(self.act(self.norm(self.a(x)))))
        return y


def by_hand(model: Any, slope: Tensor, x: Tensor) -> Tensor:
    """What a binarized :class:`Middle` has to compute."""
    x = model.norm(model.a(x))
    y: Tensor = model.c(model.b(torch.where(x >= 0, x, slope.view(1, -1, 1, 1) * x)))
    return y


# ------------------------------------------------------------------------------------- as with modules


def test_a_resnet20_is_its_twin_of_modules() -> None:
    model, twin = ResNet(), ModuleResNet()
    assert binary_layers(model) == {f"layers.{b}.conv{c}" for b in range(9) for c in (1, 2)}
    # All rows but the kinds of the ReLUs: the last one of all feeds the linear layer alone.
    assert becomes(model) == becomes(twin)
    assert becomes(model)["layers.7.prelu2"] == "PReLU"
    assert "layers.8.prelu2" not in becomes(model)
    names = model.state_dict().keys()
    binarize(model, verbose=False)
    binarize(twin, verbose=False)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in twin.state_dict().items()
    }
    slopes = {k for k in model.state_dict() if k.rpartition(".")[0].endswith(("prelu1", "prelu2"))}
    shifts = {k for k in model.state_dict() if k.endswith("input_sign.shift")}
    assert model.state_dict().keys() == names | slopes | shifts
    assert len(slopes) == 1 + 9 + 8
    assert all(model.state_dict()[name].eq(0.25).all() for name in slopes)

    twin.load_state_dict(randomised(model).state_dict())
    x = torch.randn(4, 3, 12, 12)
    results = []
    for net in (model, twin):
        net(x).square().sum().backward()
        results.append([net.eval()(x), *(p.grad for _, p in sorted(net.named_parameters()))])
    assert all(torch.equal(mine, other) for mine, other in zip(*results, strict=True))


def with_modules(model: nn.Module) -> nn.Module:
    """The same network of torchvision, the ReLUs of its blocks as modules."""

    class ModuleConv2d(nn.Module):
        conv: nn.Module
        bn: nn.Module
        relu: nn.Module

        def forward(self, x: Any) -> Any:
            return self.relu(self.bn(self.conv(x)))

    for module in [m for m in model.modules() if type(m).__name__ == "BasicConv2d"]:
        module.relu = nn.ReLU()
        module.__class__ = ModuleConv2d
    return model


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_of_torchvision_are_their_twins_of_modules(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, init_weights=False)
    mine = becomes(model)
    twin = becomes(with_modules(model))
    assert {n: b for n, b in mine.items() if "relu" not in n} == {
        n: b for n, b in twin.items() if "relu" not in n
    }
    assert {n.removesuffix(".prelu1") for n, b in mine.items() if b == "PReLU"} == {
        n.removesuffix(".relu") for n, b in twin.items() if b == "PReLU"
    }
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    real = {"conv1.conv", "aux1.fc2", "aux2.fc2", "fc"} if name == "googlenet" else {
        "Conv2d_1a_3x3.conv", "AuxLogits.fc", "fc"
    }  # fmt: skip
    assert {n for n, b in mine.items() if b.startswith("Binary")} == layers - real


# -------------------------------------------------------------------------------- ways to write a ReLU


class Ways(Middle):
    """A ReLU in each of its ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.function: Any = F.relu6
        self.partly: Any = functools.partial(F.relu, inplace=True)

    def act(self, x: Tensor) -> Tensor:
        match self.way:
            case "F.relu":
                return F.relu(x)
            case "torch.relu":
                return torch.relu(x)
            case "Tensor.relu":
                return x.relu()
            case "torch.relu_":
                return torch.relu_(x)
            case "F.relu_":
                return F.relu_(x)
            case "Tensor.relu_":
                return x.relu_()
            case "F.relu6":
                return F.relu6(x)
            case "F.hardtanh":
                return F.hardtanh(x, 0, 6)
            case "hardtanh by name":
                return F.hardtanh(min_val=0.0, max_val=4.0, input=x)
            case "Tensor.clamp":
                return x.clamp(min=0)
            case "clamp to":
                return torch.clamp(x, 0, 6)
            case "torch.clamp_min":
                return torch.clamp_min(x, 0)
            case "Tensor.clip":
                return x.clip(0)
            case "in place":
                return F.relu(x, inplace=True)
            case "by an attribute":
                return self.function(x)  # type: ignore[no-any-return]
            case "partly":
                return self.partly(x)  # type: ignore[no-any-return]
            case "lambda":
                return (lambda y: F.relu(y))(x)
            case "comprehension":
                return [F.relu(y) for y in (x,)][0]  # noqa: RUF015
            case "over lines":
                return x.relu()
            case "after words":
                return F.relu(x) if "äöü" else x
            case "a statement":
                F.relu_(x)
                return x
            case "a method's statement":
                x.clamp_(min=0)
                return x
            case "a statement, then itself":
                return torch.cat([torch.relu_(x)[:, :2], x[:, 2:]], 1)
        raise AssertionError


WAYS = [
    "F.relu", "torch.relu", "Tensor.relu", "torch.relu_", "F.relu_", "Tensor.relu_", "F.relu6", "F.hardtanh",
    "hardtanh by name", "Tensor.clamp", "clamp to", "torch.clamp_min", "Tensor.clip", "in place",
    "by an attribute", "partly", "lambda", "comprehension", "over lines", "after words", "a statement",
    "a method's statement", "a statement, then itself",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_write_it(way: str) -> None:
    model = Ways(way)
    assert becomes(model) == {"prelu1": "PReLU", "a": "", "b": "BinaryConv2d", "c": ""}
    assert type(model) is Ways
    assert binarize(model, verbose=False) is model
    slope = model.get_submodule("prelu1").get_parameter("weight")
    assert slope.tolist() == [0.25] * 4
    randomised(model)
    x = torch.randn(2, 3, 6, 6)
    model(x).sum().backward()
    assert slope.grad is not None
    assert slope.grad.abs().sum() > 0
    model.eval()
    assert torch.equal(model(x), by_hand(model, slope, x))


class Line(nn.Module):
    """Two ReLUs in one line, one in the other's input, and a third whose layer stays real."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(i, o, 1) for i, o in ((3, 4), (4, 5), (5, 6), (6, 2)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))
        return y


def test_calls_in_one_line() -> None:
    model = binarize(Line(), verbose=False)
    slopes = [m.weight for m in model.children() if isinstance(m, nn.PReLU)]
    assert [len(slope) for slope in slopes] == [4, 5]  # the innermost one first, as in the line
    randomised(model)
    x = torch.randn(2, 3, 4, 4)
    a, b, c, d = (model.get_submodule(name) for name in "abcd")
    y = F.prelu(b(F.prelu(a(x), slopes[0])), slopes[1])
    assert torch.equal(model(x), d(F.relu(c(y))))


class Loop(nn.Module):
    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(i, o, 1) for i, o in zip((3, *widths), (*widths, 2), strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        y: Tensor = self.layers[-1](x)
        return y


@pytest.mark.parametrize(("widths", "slopes"), [((4, 4, 4), 4), ((4, 5, 4), 1)])
def test_a_call_in_a_loop_has_one_prelu(widths: tuple[int, ...], slopes: int) -> None:
    model = binarize(Loop(*widths), verbose=False)
    (prelu,) = (m for m in model.modules() if isinstance(m, nn.PReLU))
    assert prelu.num_parameters == slopes
    randomised(model)
    x = expected = torch.randn(2, 3, 4, 4)
    layers = list(model.get_submodule("layers").children())
    for layer in layers[:-1]:
        expected = F.prelu(layer(expected), prelu.weight)
    assert torch.equal(model(x), layers[-1](expected))


# ------------------------------------------------------------------------------------ ways to be a method


def scaled(factor: float) -> type[Middle]:
    class Scaled(Middle):
        """Has variables of the enclosing function, __class__ and a name of its own that Python mangles."""

        __factor = 3.0

        def act(self, x: Tensor, *more: Tensor, eps: float = 0.5) -> Tensor:
            x = x.relu() if super().extra_repr() else x
            return F.relu(x * ((factor + eps) * self.__factor))

    return Scaled


class Inherits(Middle):
    pass


class Alias(Middle):
    def _act(self, x: Tensor) -> Tensor:
        return F.relu(x)

    act = _act


@pytest.mark.parametrize(("make", "times"), [(Inherits, 1.0), (Alias, 1.0), (scaled(1.5), 6.0)])
def test_methods(make: Callable[[], Middle], times: float) -> None:
    model = make()
    binarize(model, verbose=False)
    assert isinstance(model.b, BinaryConv2d)
    randomised(model).eval()
    x = torch.randn(2, 3, 6, 6)
    x1 = F.prelu(model.norm(model.a(x)), model.get_parameter("prelu1.weight")) * times
    torch.testing.assert_close(model(x), model.c(model.b(x1)))


def test_modules_of_one_class_differ() -> None:
    """Only the module whose call feeds a binary layer is changed, and equal changes share a class."""
    model = ResNet(n=1)
    binarize(model, verbose=False)
    kinds = [type(block) for block in model.layers]
    assert kinds[0] is kinds[1]
    assert len({Block, *kinds}) == 3
    assert [len([*block.children()]) for block in model.layers] == [6, 6, 5]
    assert [*Block(4, 4, 1)._modules] == ["conv1", "bn1", "conv2", "bn2"]


class Registered(Middle):
    """Keeps a list of its subclasses."""

    known: list[type] = []  # noqa: RUF012

    def __init_subclass__(cls, **options: Any) -> None:
        Registered.known.append(cls)


def test_what_a_user_sees_stays() -> None:
    model = Registered()
    parameters, calls = dict(model.named_parameters()), list[nn.Module]()
    model.register_forward_hook(lambda m, x, y: calls.append(m))
    old = copy.deepcopy(model.state_dict())
    binarize(model, verbose=False)
    assert isinstance(model, Registered)
    assert (type(model).__name__, type(model).__qualname__) == ("Registered", "Registered")
    assert type(model).__module__ == __name__
    assert Registered.known == []
    assert all(model.get_parameter(name) is p for name, p in parameters.items())
    model(torch.randn(1, 3, 6, 6))
    assert calls == [model]
    assert set(model.load_state_dict(old, strict=False).missing_keys) == {
        "prelu1.weight", "b.input_sign.shift"
    }  # fmt: skip
    assert inspect.getsource(type(model).act) == inspect.getsource(Middle.act)


def test_a_traceback_shows_the_line_as_it_is_written() -> None:
    model = binarize(Middle(), verbose=False)
    model.get_submodule("prelu1").forward = None  # type: ignore[assignment]
    with pytest.raises(TypeError) as error:
        model(torch.randn(1, 3, 6, 6))
    frames = traceback.extract_tb(error.value.__traceback__)
    (frame,) = (f for f in frames if f.name == "act")
    assert (frame.filename, frame.line) == (__file__, "return F.relu(x)")


def test_again_for_what_was_skipped() -> None:
    model = binarize(Line(), skip="c", verbose=False)
    assert [type(m).__name__ for m in model.children()] == [
        "Conv2d", "BinaryConv2d", "Conv2d", "Conv2d", "PReLU"
    ]  # fmt: skip
    binarize(model, verbose=False)
    twin = binarize(Line(), verbose=False)
    assert model.state_dict().keys() == twin.state_dict().keys()
    twin.load_state_dict(randomised(model).state_dict())
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(model(x), twin(x))
    assert isinstance(model, Line)


def test_keep() -> None:
    assert becomes(Middle(), relu="keep") == {"a": "", "b": "BinaryConv2d", "c": ""}
    model = binarize(Middle(), relu="keep", verbose=False)
    assert type(model) is Middle


def test_the_plan_names_the_call() -> None:
    row = plan(ResNet())[0]
    assert (row.name, row.kind) == ("prelu1", "F.relu in forward")
    assert row.reason == "feeds a binary layer, which needs both signs"
    assert {row.kind for row in plan(Ways("Tensor.clamp"))} == {"Tensor.clamp in act", "Conv2d"}


# ------------------------------------------------------------------------------------------- what stays


def act(x: Tensor) -> Tensor:
    return F.relu(x)


class Helper(Middle):
    def act(self, x: Tensor) -> Tensor:
        return act(x)


def decorated(method: Any) -> Any:
    @functools.wraps(method)
    def call(*args: Any) -> Any:
        return method(*args)

    return call


class Decorated(Middle):
    @decorated
    def act(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Super(Middle):
    def act(self, x: Tensor) -> Tensor:
        return super().act(x.contiguous())


class Bound(Middle):
    def __init__(self) -> None:
        super().__init__()
        self.other = self.act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(self.b(self.other(self.norm(self.a(x)))))
        return y


class Mapped(Middle):
    def act(self, x: Tensor) -> Tensor:
        return next(map(F.relu, [x]))


class Varied(Middle):
    def act(self, x: Tensor) -> Tensor:
        for f in (torch.tanh, F.relu):
            x = f(x)
        return x


class Lost(Middle):
    """Its ReLU changes what only a list holds."""

    def act(self, x: Tensor) -> Tensor:
        of = [x]
        F.relu_(of[0])
        return x


class Above(Middle):
    def act(self, x: Tensor) -> Tensor:
        return x.clamp(min=0.5)


class LostModule(Middle):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def act(self, x: Tensor) -> Tensor:
        self.relu(x)
        return x


class KeptModule(LostModule):
    """Both of what its ReLU returns and what it changed in place are used."""

    def act(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(x)
        return y + x


def without_source() -> nn.Module:
    names: dict[str, Any] = {"Middle": Middle, "F": F, "__name__": "nowhere"}
    exec("class Typed(Middle):\n    def act(self, x):\n        return F.relu(x)", names)
    model: nn.Module = names["Typed"]()
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Helper, r"relu is called in act \(test_functional_relu.py, line \d+\), which is no method of a mod"),
        (Decorated, "relu is called in Decorated.act .*, which a decorator wraps"),
        (Super, "relu is called in Middle.act .*, which a subclass overrides and calls by super"),
        (Bound, "Middle.act .*, which the module holds as an attribute of its own"),
        (Mapped, "Mapped.act .*, in a way that cannot be rewritten"),
        (Varied, "f in act is called where other functions are called too"),
        (Lost, "F.relu_ in act changes in place what is used behind it"),
        (LostModule, "relu changes in place what is used behind it"),
        (KeptModule, "relu changes in place what is used behind it"),
        (Above, "clamp is called before it"),
        (without_source, r"relu is called in Typed.act \(<string>, line 3\), whose source is not available"),
        (lambda: torch.fx.symbolic_trace(Middle()), "torch.fx wrote: call binarize before the network is tr"),
    ],
)
def test_what_cannot_be_rewritten_stays_real(
    make: Callable[[], nn.Module], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make()
    # A layer beside it, so that something is left to binarize.
    model.c = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    if isinstance(model, torch.fx.GraphModule):
        model.recompile()
    (row,) = (row for row in plan(model) if row.name == "b")
    assert not row.binarize
    assert re.match(f"its input is never negative, as .*{reason}.*: sign would be", row.reason), row.reason
    assert "an nn.ReLU module could be replaced" in caplog.text
    kind = type(model)
    binarize(model, verbose=False)
    assert type(model) is kind
    assert type(model.b) is nn.Conv2d


# --------------------------------------------------------------------------------- copied, saved, compiled


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize(
    "way",
    [
        copy.deepcopy, saved, *(lambda m, p=p: pickle.loads(pickle.dumps(m, p)) for p in (2, 4, 5)),
        lambda m: saved(copy.deepcopy(saved(m))),
    ],
)  # fmt: skip
def test_copies(way: Callable[[nn.Module], nn.Module]) -> None:
    model = binarize(ResNet(n=1), verbose=False)
    randomised(model)
    x = torch.randn(2, 3, 8, 8)
    other = way(model)
    assert type(other) is type(model)
    assert isinstance(other, ResNet)
    assert torch.equal(other.eval()(x), model.eval()(x))
    with torch.no_grad():
        other.get_parameter("prelu1.weight").zero_()
    assert not torch.equal(other(x), model(x))  # its own slopes, and they count


def test_another_process_loads_it(tmp_path: Path) -> None:
    model = randomised(binarize(ResNet(n=1), verbose=False)).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.save((model, x, model(x)), tmp_path / "all.pt")
    script = (
        f"import sys, torch; sys.path[:0] = {sys.path!r}\n"
        f"model, x, y = torch.load({str(tmp_path / 'all.pt')!r}, weights_only=False)\n"
        "assert torch.equal(model(x), y) and type(model).__name__ == 'ResNet'\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


SOURCE = """
import torch.nn.functional as F
from test_functional_relu import Middle

class Mine(Middle):
    def act(self, x):
        return F.relu(x)
"""


def imported(path: Path, source: str) -> Any:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("mine", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["mine"] = importlib.util.module_from_spec(spec)
    exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    return module


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "mine", sys)
    return tmp_path / "mine.py"


def test_a_source_that_changes_behind_a_saved_model(mine: Path) -> None:
    model = randomised(binarize(imported(mine, SOURCE).Mine(), verbose=False)).eval()
    x, bytes_ = torch.randn(2, 3, 6, 6), pickle.dumps(model)
    # Elsewhere in the file, and in the method behind the call: the call is where it was.
    imported(mine, "# a line\nelsewhere = 1\n" + SOURCE.replace("relu(x)", "relu(x) * 1"))
    assert torch.equal(pickle.loads(bytes_)(x), model(x))
    imported(mine, SOURCE.replace("F.relu(x)", "F.gelu(x)"))
    with pytest.raises(
        BnewError, match=r"Mine was saved with a PReLU in place of F.relu\(x\) .*changed: build"
    ):
        pickle.loads(bytes_)


def test_a_file_that_is_not_what_runs(mine: Path) -> None:
    model = imported(mine, SOURCE).Mine()
    mine.write_text(SOURCE.replace("F.relu(x)", "F.relu(x + 1)"))
    with pytest.raises(BnewError, match=r"Mine.act .*, whose source is not what runs"):
        binarize(model)


def test_compile_export_and_trace() -> None:
    model = randomised(binarize(ResNet(n=1), verbose=False)).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    for other in (
        torch.compile(model, backend="eager", fullgraph=True),
        torch.export.export(model, (x,), strict=False).module(),
        torch.export.export(model, (x,), strict=True).module(),
        torch.fx.symbolic_trace(model),
    ):
        assert torch.equal(other(x), expected)


def test_packed(tmp_path: Path) -> None:
    model = randomised(binarize(Ways("a statement"), verbose=False)).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for weight in bnew.binary_parameters(model):
            weight.copy_(torch.where(weight >= 0, 1.0, -1.0))
        expected = model(x)
    bnew.pack(model, x, tmp_path / "model.bnew")
    found = torch.from_numpy(Reference(tmp_path / "model.bnew")(x.numpy()))
    torch.testing.assert_close(found.view_as(expected), expected)
