"""Steps that compute their own gradients: the same as backward() and step(), bit for bit, or refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_methods import FLIPPING, Net, every_method, make_method
from torch import Tensor, nn

from bnew.errors import BnewError
from bnew.layers import BinaryLinear, binary_parameters
from bnew.methods import BNEW, METHODS, STE, Binarizer, create_method

STEPS, FREEZE_AT = 12, 8
OPTIMIZERS: dict[str, Any] = {
    "adam": lambda params: torch.optim.Adam(params, lr=0.05, weight_decay=0.1),
    "adam fused": lambda params: torch.optim.Adam(params, lr=0.05, fused=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.05),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.1),
    "sgd foreach": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, foreach=True),
}
Step = Callable[[torch.optim.Optimizer, Callable[[], Tensor]], object]


def plain(optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]) -> Tensor:
    loss = closure()
    optimizer.step()
    return loss


WAYS: dict[str, Step] = {
    "position": lambda optimizer, closure: optimizer.step(closure),  # type: ignore[arg-type]
    "name": lambda optimizer, closure: optimizer.step(closure=closure),  # type: ignore[arg-type]
}


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 2, 4, 4, generator=generator)
    return x, (x.sum((1, 2, 3)) > 0).long()


def fit(
    name: str, optimizer: str, step_by: Step, freeze_at: int = FREEZE_AT, **options: Any
) -> tuple[list[float], dict[str, Tensor], Binarizer]:
    """Losses, weights and the method after a run whose steps are made by ``step_by``."""
    torch.manual_seed(0)
    net = Net()
    opt = OPTIMIZERS[optimizer](net.parameters())
    method = make_method(name, binary_parameters(net), **options).attach(opt)
    losses = []
    for step in range(STEPS):
        if step == freeze_at:
            method.freeze(warn=False)
        x, y = batch(step)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            opt.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        loss = step_by(opt, closure)
        assert isinstance(loss, Tensor)  # a step returns what its closure does
        losses.append(loss.item())
    return losses, net.state_dict(), method


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for key in a:
        assert torch.equal(a[key], b[key]), key


@every_method
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("way", WAYS)
def test_a_closure_is_backward_and_step(name: str, optimizer: str, way: str) -> None:
    losses, weights, method = fit(name, optimizer, plain)
    by_closure = fit(name, optimizer, WAYS[way])
    assert by_closure[0] == losses
    assert_equal(by_closure[1], weights)
    assert by_closure[2].step == method.step == STEPS


@pytest.mark.parametrize("name", ["ste", *FLIPPING])
def test_the_forward_pass_in_a_closure_is_binary(name: str) -> None:
    seen: list[float] = []

    def step_by(optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]) -> object:
        def looking() -> Tensor:
            weights = [p for group in optimizer.param_groups for p in group["params"] if p.dim() > 2]
            seen.extend(float((w.abs() == 1).float().mean()) for w in weights)
            return closure()

        return optimizer.step(looking)  # type: ignore[arg-type]

    fit(name, "adam", step_by)
    assert seen == [1.0] * STEPS


def test_a_step_goes_on_after_a_closure_that_failed() -> None:
    def failing_first(optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]) -> object:
        def fails() -> Tensor:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            optimizer.step(fails)  # type: ignore[arg-type]
        return optimizer.step(closure)  # type: ignore[arg-type]

    assert_equal(fit("ste", "adam", failing_first)[1], fit("ste", "adam", plain)[1])


# Optimizers that do more with a closure


class Clipping(torch.optim.SGD):
    """Does something of its own around the step that it inherits, whose hooks run within its own."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.clamp_(-10, 10)
        return super().step(closure)


@every_method
@pytest.mark.parametrize("way", ["plain", *WAYS])
def test_a_step_within_a_step_is_one(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass that calls its base class's step, which has hooks too once there was such an optimizer."""
    torch.optim.SGD([nn.Parameter(torch.ones(1))])
    monkeypatch.setitem(OPTIMIZERS, "own", lambda params: Clipping(params, lr=0.05, momentum=0.9))
    monkeypatch.setitem(OPTIMIZERS, "theirs", lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9))
    step_by = WAYS.get(way, plain)
    _, weights, method = fit(name, "own", step_by)
    assert method.step == STEPS
    assert_equal(weights, fit(name, "theirs", plain)[1])


@every_method
def test_a_step_that_failed_half_way_is_taken_back(name: str) -> None:
    """Out of memory in the optimizer, say: the method's own copy is what it was."""
    torch.manual_seed(0)
    net = Net()
    optimizer = Failing(net.parameters(), lr=0.05)
    method = make_method(name, binary_parameters(net)).attach(optimizer)
    for step in range(3):
        net(batch(step)[0]).sum().backward()
        optimizer.step()
    own = [t.clone() for ts in method._state().values() for t in ts]
    optimizer.fails = True
    with pytest.raises(MemoryError):
        optimizer.step()
    optimizer.zero_grad()
    optimizer.fails = False
    optimizer.step()
    if "latent" in METHODS[name].state:
        for a, b in zip(own, (t for ts in method._state().values() for t in ts), strict=True):
            assert torch.equal(a, b)
    assert method.step == 4


def test_rates_are_their_own_after_a_step_that_failed() -> None:
    """A slower fall multiplies the rate within a step alone: what is saved, and what is left, has it not."""

    def failed() -> tuple[Failing, BNEW]:
        net = Net()
        method = BNEW(binary_parameters(net), 4, fall=0.5)
        optimizer = Failing(method.param_groups(net, 0.2), lr=0.2)
        method.attach(optimizer)
        net(batch(0)[0]).sum().backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] /= 4
        optimizer.fails = True
        with pytest.raises(MemoryError):
            optimizer.step()
        assert [group["lr"] for group in optimizer.param_groups] != [0.05 * method.binary_lr, 0.05]
        return optimizer, method

    optimizer, method = failed()
    rates = [0.05 * method.binary_lr, 0.05]
    assert [group["lr"] for group in optimizer.state_dict()["param_groups"]] == rates
    optimizer, method = failed()
    method.detach()
    assert [group["lr"] for group in optimizer.param_groups] == rates
    optimizer, method = failed()
    optimizer.fails = False
    optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == rates
    optimizer, method = failed()
    optimizer.fails = False
    optimizer.param_groups[0]["lr"] = 0.01  # a schedule goes on after the error
    optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.05]


class Failing(torch.optim.SGD):
    """Is out of memory when told to be."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        if self.fails:
            raise MemoryError
        return super().step(closure)


class Twice(torch.optim.SGD):
    """Evaluates the loss again after its step."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        return closure()


class Deaf(torch.optim.Optimizer):
    """Has no use for a closure."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                p.sub_(p.grad, alpha=0.1)


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization (arXiv 2010.01412), as its usual implementation does it."""

    def __init__(self, params: Any, base: Any, rho: float = 0.05, through_data: bool = False) -> None:
        super().__init__(params, {"rho": rho})
        self.base_optimizer = base(self.param_groups)
        self.param_groups = self.base_optimizer.param_groups
        self.through_data = through_data

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        for p in params:
            self.state[p]["old_p"] = p.data.clone()
            (p.data if self.through_data else p).add_(p.grad * (self.param_groups[0]["rho"] / norm))
        self.zero_grad()
        torch.enable_grad()(closure)()
        for p in params:
            p.data = self.state[p]["old_p"]
        self.base_optimizer.step()


@every_method
def test_an_optimizer_that_evaluates_several_times_is_refused(name: str) -> None:
    net = Net()
    method = make_method(name, binary_parameters(net))
    with pytest.raises(BnewError, match="LBFGS evaluates the loss several times per step"):
        method.attach(torch.optim.LBFGS(net.parameters()))
    optimizer = Twice(net.parameters(), lr=0.1)
    method.attach(optimizer)
    with pytest.raises(BnewError, match="Twice evaluates the loss several times per step"):
        optimizer.step(lambda: net(batch(0)[0]).sum().backward())


def test_an_optimizer_that_ignores_its_closure_is_refused() -> None:
    net = Net()
    optimizer = Deaf(net.parameters())
    STE(binary_parameters(net)).attach(optimizer)
    with pytest.raises(BnewError, match="Deaf has not called its closure"):
        optimizer.step(lambda: net(batch(0)[0]).sum().backward())
    net(batch(0)[0]).sum().backward()
    optimizer.step()


@every_method
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("through_data", [False, True])
def test_sam_itself_is_refused(name: str, frozen: bool, through_data: bool) -> None:
    net = Net()
    optimizer = SAM(net.parameters(), lambda groups: torch.optim.SGD(groups, lr=0.1), 0.05, through_data)
    method = make_method(name, binary_parameters(net)).attach(optimizer)
    if frozen:
        method.freeze(warn=False)
    net(batch(0)[0]).square().sum().backward()
    with pytest.raises(BnewError, match=r"SAM changes the weights before .*base_optimizer"):
        optimizer.step(lambda: net(batch(0)[0]).square().sum().backward())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_method_on_the_optimizer_below_sam(optimizer: str) -> None:
    """STE on it: w moves by the gradient at sign(w) + e, and is clipped."""
    torch.manual_seed(0)
    target, weight = torch.randn(6, 4), nn.Parameter(torch.randn(6, 4) / 2)
    latent = weight.detach().clone()
    make: dict[str, Any] = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    }
    sam = SAM([weight], make[optimizer])
    method = STE([weight]).attach(sam.base_optimizer)
    own = nn.Parameter(latent.clone())
    inner = make[optimizer]([own])

    def gradient(w: Tensor) -> Tensor:
        return (w - target) ** 3

    def closure() -> None:
        weight.grad = gradient(weight.detach())

    for _ in range(10):
        b = torch.where(own.detach() >= 0, 1.0, -1.0)
        assert torch.equal(weight.detach(), b)
        g = gradient(b)
        own.grad = gradient(b + g * (0.05 / g.norm()))
        inner.step()
        own.data.clamp_(-1, 1)
        closure()
        sam.step(closure)
        torch.testing.assert_close(method.values()[0], own.detach())
    assert method.step == 10
    assert 0 < int((own.detach() * latent < 0).sum()) < 24


# The loops of others

FEATURES, CLASSES, EPOCHS = 12, 3, 4


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, FEATURES, generator=generator)
    return x, x[:, :CLASSES].argmax(1)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, 16), BinaryLinear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def started(name: str, net: nn.Module) -> tuple[torch.optim.Optimizer, Binarizer]:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    options: dict[str, Any] = {"fill": None} if name == "bnew" else {}
    method = create_method(name, binary_parameters(net), EPOCHS * 3, **options)
    return optimizer, method.attach(optimizer)


def by_hand(name: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = Classifier()
    optimizer, method = started(name, net)
    x, y = data()
    for _ in range(EPOCHS):
        for images, labels in zip(torch.split(x, 16), torch.split(y, 16), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert method.step == EPOCHS * 3
    return net.state_dict()


@every_method
def test_lightning(name: str) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = Classifier()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer, self.method = started(name, self.net)
            return optimizer

    torch.manual_seed(0)
    module = Module()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=16)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and logging
        lightning.Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, **quiet).fit(module, loader)
    assert module.method.step == EPOCHS * 3
    assert_equal(module.net.state_dict(), by_hand(name))


@every_method
def test_skorch(name: str) -> None:
    skorch = pytest.importorskip("skorch")

    class Own(skorch.NeuralNet):  # type: ignore[misc, name-defined]
        def initialize_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            self.optimizer_, self.method_ = started(name, self.module_)
            return self

    torch.manual_seed(0)
    x, y = data()
    net = Own(
        Classifier, nn.CrossEntropyLoss, train_split=None, max_epochs=EPOCHS, batch_size=16, verbose=0,
        iterator_train__shuffle=False,
    )  # fmt: skip
    net.fit(np.asarray(x), np.asarray(y))
    assert net.method_.step == EPOCHS * 3
    assert_equal(net.module_.state_dict(), by_hand(name))
