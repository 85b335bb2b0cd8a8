"""Every method against its slow twin, and one contract that all of them keep."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from helpers import PROCESSES
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from bnew.errors import BnewError
from bnew.experiments.published import CIFAR10, IMAGENET
from bnew.layers import BinaryConv2d, BinaryLinear, binary_parameters, real_parameters
from bnew.methods import (
    BNEW,
    METHODS,
    STE,
    Binarizer,
    BinaryMirrorDescent,
    Bop,
    Bop2ndOrder,
    Clip,
    Diode,
    ProxPARQ,
    ProxQuant,
    create_method,
)
from bnew.models import create_model

SHAPES = ((3, 2, 3, 3), (5, 7), (1, 4, 1, 1))
STEPS, FREEZE_AT = 40, 32
every_method = pytest.mark.parametrize("name", METHODS)
FLIPPING = ["bop", "bop2nd", "diode"]  # their weights are binary from the start
every_optimizer = pytest.mark.parametrize("optimizer", ["adam", "sgd"])


def make_optimizer(
    name: str, params: list[nn.Parameter], lr: float = 0.05, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(params, lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    return torch.optim.Adam(params, lr, weight_decay=weight_decay)


def make_method(name: str, params: list[nn.Parameter], **options: Any) -> Binarizer:
    return create_method(name, params, STEPS, **oracles.METHODS[name].options(STEPS), **options)


class Training:
    """Three weights to binarize and a real parameter, fed random gradients that only the step decides."""

    def __init__(
        self, method: str, optimizer: str = "adam", weight_decay: float = 0.0, seed: int = 0, **options: Any
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weights = [
            nn.Parameter(torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1)
            for shape in SHAPES
        ]
        self.start = self.copies()
        self.real = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.optimizer = make_optimizer(optimizer, [*self.weights, self.real], weight_decay=weight_decay)
        self.method = make_method(method, self.weights, **options).attach(self.optimizer)

    def copies(self) -> list[Tensor]:
        return [w.detach().clone() for w in self.weights]

    def gradients(self, step: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1000 + step)
        params = (*self.weights, self.real)
        return [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]

    def step(self, step: int, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)
        for p, g in zip((*self.weights, self.real), self.gradients(step), strict=True):
            p.grad = g if p.grad is None else p.grad + g
        self.optimizer.step()

    def run(
        self, first: int = 0, last: int = STEPS, freeze_at: int = FREEZE_AT, set_to_none: bool = True
    ) -> Training:
        for step in range(first, last):
            if step == freeze_at:
                self.method.freeze(warn=False)
            self.step(step, set_to_none)
        return self

    def state_dict(self) -> dict[str, Any]:
        return {
            "params": [*self.copies(), self.real.detach().clone()],
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for p, value in zip((*self.weights, self.real), state["params"], strict=True):
            p.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.method.load_state_dict(state["method"])


def flat(tensors: list[Tensor]) -> list[float]:
    return [float(x) for t in tensors for x in t.flatten()]


def assert_same(a: Training, b: Training) -> None:
    for x, y in zip((*a.weights, a.real), (*b.weights, b.real), strict=True):
        assert torch.equal(x, y)


# Against the twins


@every_method
@every_optimizer
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_twin(name: str, optimizer: str, weight_decay: float) -> None:
    training = Training(name, optimizer, weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(training.optimizer, lambda step: 1 - step / STEPS)
    make = oracles.OPTIMIZERS[optimizer]
    twins = [oracles.METHODS[name](w, make(0.05, weight_decay), STEPS) for w in flat(training.start)]
    for step in range(STEPS):
        if step == FREEZE_AT:
            training.method.freeze(warn=False)
            for twin in twins:
                twin.freeze()
        np.testing.assert_allclose(flat(training.copies()), [t.used for t in twins], rtol=0, atol=1e-10)
        distance = sum(abs(1 - abs(t.value)) for t in twins) / len(twins)
        assert training.method.distance() == pytest.approx(distance, abs=1e-6)
        gradients = flat(training.gradients(step)[:-1])
        for twin, g in zip(twins, gradients, strict=True):
            twin.optimizer.lr = 0.05 * (1 - step / STEPS)
            twin.step(g)
        training.step(step)
        scheduler.step()
    assert flat(training.copies()) == [t.used for t in twins]


@every_method
def test_twins_are_not_trivial(name: str) -> None:
    """The run above changes some signs and keeps others."""
    training = Training(name).run()
    ends = zip(flat(training.copies()), flat(training.start), strict=True)
    changed = [a != oracles.sign(b) for a, b in ends]
    assert 5 < sum(changed) < len(changed) - 5


def test_twin_of_the_unbiased_version() -> None:
    twin = oracles.Bop2ndOrderUnbiased
    weights = [nn.Parameter(w) for w in Training("real").start]
    optimizer = make_optimizer("sgd", weights)
    create_method("bop2nd", weights, STEPS, **twin.options(STEPS)).attach(optimizer)
    training = Training("real")
    twins = [twin(w, oracles.SGD(0.05), STEPS) for w in flat(training.start)]
    flips = 0
    for step in range(STEPS):
        for w, g in zip(weights, training.gradients(step), strict=False):
            w.grad = g
        optimizer.step()
        for each, gradient in zip(twins, flat(training.gradients(step)[:-1]), strict=True):
            before = each.w
            each.step(gradient)
            flips += each.w != before
        assert flat([w.detach() for w in weights]) == [each.used for each in twins]
    assert 100 < flips < len(twins) * STEPS / 2


@every_optimizer
def test_twin_whose_push_yields(optimizer: str) -> None:
    training = Training("bnew", optimizer, reopen=True, fall=1)
    make = oracles.OPTIMIZERS[optimizer]
    twins = [oracles.BNEWReopen(w, make(0.05, 0.0), STEPS) for w in flat(training.start)]
    for step in range(STEPS):
        for twin, gradient in zip(twins, flat(training.gradients(step)[:-1]), strict=True):
            twin.step(gradient)
        training.step(step)
        np.testing.assert_allclose(flat(training.copies()), [t.used for t in twins], rtol=0, atol=1e-10)
    assert flat(training.copies()) != flat(Training("bnew", optimizer).run(freeze_at=STEPS).copies())
    assert training.method.settings["reopen"] is True


def test_push_yields_to_the_gradient_where_there_is_no_average() -> None:
    w = nn.Parameter(torch.tensor([[0.5, 0.5, -0.5, -0.5, 0.5]]))
    optimizer = torch.optim.SGD([w], 0.0)
    BNEW([w], 2, reg=0.1, reopen=True, fall=1).attach(optimizer)  # λ is 0.05, then 0.1
    w.grad = torch.tensor([[1.0, -1.0, 1.0, -1.0, 0.0]])
    optimizer.step()
    torch.testing.assert_close(w.detach(), torch.tensor([[0.5, 0.55, -0.55, -0.5, 0.55]]))
    w.grad = None
    optimizer.step()  # no gradient draws inwards
    torch.testing.assert_close(w.detach(), torch.tensor([[0.6, 0.66, -0.66, -0.6, 0.66]]))


def test_a_push_that_yields_refuses_averages_of_weight_decay() -> None:
    """They draw every weight inwards, so that none would arrive at ±1."""
    for optimizer in (
        torch.optim.Adam(weights, weight_decay=0.1),
        torch.optim.SGD(weights, weight_decay=1e-4),
    ):
        with pytest.raises(
            BnewError, match=r"adds a weight decay of .* give the binary weights none, or use"
        ):
            BNEW(weights, 10, reopen=True).attach(optimizer)
        BNEW(weights, 10).attach(optimizer)
    BNEW(weights, 10, reopen=True).attach(torch.optim.AdamW(weights, weight_decay=0.1))


@pytest.mark.parametrize("closure", [False, True])
@every_optimizer
def test_the_rate_of_binary_weights_falls_slower(optimizer: str, closure: bool) -> None:
    """As if a loop gave the groups of binary weights the rate lr (1 − t/T)^fall, others lr (1 − t/T)."""
    runs = []
    for by_hand in (False, True):
        w, real = nn.Parameter(torch.linspace(-0.5, 0.5, 12).view(3, 4)), nn.Parameter(torch.ones(2))
        made = make_optimizer(optimizer, [w])
        made.add_param_group({"params": [real]})
        method = BNEW([w], 20, reg=0.02, fall=1 if by_hand else 0.5).attach(made)
        rates = [group["lr"] for group in made.param_groups]
        for step in range(20):
            left = 1 - step / 20
            factors = (left**0.5 if by_hand else left, left)
            for group, rate, factor in zip(made.param_groups, rates, factors, strict=True):
                group["lr"] = rate * factor
            before = [group["lr"] for group in made.param_groups]

            def gradients(step: int = step, w: nn.Parameter = w, real: nn.Parameter = real) -> float:
                generator = torch.Generator().manual_seed(step)
                w.grad, real.grad = (torch.randn(p.shape, generator=generator) for p in (w, real))
                return 0.0

            if closure:
                made.step(gradients)
            else:
                gradients()
                made.step()
            assert [group["lr"] for group in made.param_groups] == before
        runs.append((w.detach(), real.detach()))
        assert ("fall" in method.settings) is not by_hand
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-5, atol=1e-6)


def test_fall_is_that_of_the_highest_rate_so_far() -> None:
    """A constant rate stays; after a warm-up the rate falls from its top, also when the run was resumed."""
    w = nn.Parameter(torch.zeros(1, 1))
    method = BNEW([w], 9, reg=1e-9, fall=0.5, fill=None)
    optimizer = torch.optim.SGD([w], 1.0)
    method.attach(optimizer)
    moved = []
    for step, rate in enumerate((0.01, 0.01, 0.04, 0.04, 0.01, 0.0025, 0.0)):
        if step == 5:  # in another process
            state = optimizer.state_dict()
            method = BNEW([w], 9, reg=1e-9, fall=0.5, fill=None)
            optimizer = torch.optim.SGD([w], 1.0)
            method.attach(optimizer)
            optimizer.load_state_dict(state)
        optimizer.param_groups[0]["lr"] = rate
        before, w.grad = w.item(), torch.full_like(w, -1.0)
        optimizer.step()
        moved.append(w.item() - before)
    assert moved == pytest.approx([0.01, 0.01, 0.04, 0.04, 0.02, 0.01, 0], abs=1e-6)


def test_fall_needs_a_group_of_its_own() -> None:
    real = nn.Parameter(torch.ones(2))
    with pytest.raises(BnewError, match=r"give them a group of their own, as method\.param_groups"):
        BNEW(weights, 10, fall=0.5).attach(torch.optim.Adam([*weights, real]))
    BNEW(weights, 10, fall=0.5).attach(torch.optim.Adam([{"params": weights}, {"params": [real]}]))
    with pytest.raises(BnewError, match="BNEW's fall"):
        BNEW(weights, 10, fall=0.0)


def test_reopen_has_its_own_defaults() -> None:
    """Its push is half of the other on average, so it is twice as strong."""
    plain, yielding = BNEW(weights, 4000), BNEW(weights, 4000, reopen=True)
    assert yielding.strength == pytest.approx(2 * plain.strength)
    assert (yielding.binary_lr, yielding.fall, plain.fall) == (2 * plain.binary_lr, 0.5, 1)
    assert BNEW(weights, 4000, reopen=True, strength=12).strength == pytest.approx(12)


def test_reopen_is_a_switch() -> None:
    with pytest.raises(BnewError, match="BNEW's reopen is 1, but must be True or False"):
        BNEW(weights, 10, reopen=1)  # type: ignore[arg-type]


# The published schedules

EPOCHS, STEPS_PER_EPOCH = 1000, 352


def published(name: str, **options: Any) -> Binarizer:
    return create_method(name, [nn.Parameter(torch.ones(1, 1))], EPOCHS * STEPS_PER_EPOCH, **options)


@pytest.mark.parametrize("epoch", [0, 1, 500, 979, 999])
def test_published_schedules(epoch: int) -> None:
    bnew, bmd, bop = published("bnew", reg=1e-4), published("bmd"), published("bop")
    bnew.step = (epoch + 1) * STEPS_PER_EPOCH - 1  # the epoch's last step
    bmd.step = bop.step = epoch * STEPS_PER_EPOCH  # its first
    assert bnew.schedule()["reg"] == pytest.approx(1e-4 * (epoch + 1) / EPOCHS)
    assert bmd.schedule()["beta"] == pytest.approx(1.01**epoch)
    assert bop.schedule()["gamma"] == pytest.approx(1e-4 * (1 - epoch / EPOCHS))


def test_schedules_stay_within_their_limits() -> None:
    bnew, bmd, bop = published("bnew", reg=50.0), published("bmd", beta_end=1e40), published("bop")
    bnew.step = bmd.step = bop.step = EPOCHS * STEPS_PER_EPOCH
    assert bnew.schedule() == {"reg": 1.0}
    assert bmd.schedule() == {"beta": 1e35}
    assert bop.schedule() == {"gamma": 0.0}
    bop.step *= 2  # a run that goes on past total_steps
    assert bop.schedule() == {"gamma": 0.0}


def test_strength() -> None:
    """It is Σ 2 λ_t over the run; the default is the paper's λ, and pushes alike in a short run."""
    default = published("bnew")
    assert isinstance(default, BNEW)
    assert default.reg == pytest.approx(1e-4, rel=0.01)
    for total_steps, ramp in ((10, 1.0), (1000, 1.0), (1000, 3.5)):
        method = BNEW([nn.Parameter(torch.ones(1, 1))], total_steps, strength=7.0, ramp=ramp)
        total = 0.0
        for method.step in range(total_steps):
            total += 2 * method.schedule()["reg"]
        assert total == pytest.approx(7)


def test_the_settings_follow_the_length_of_the_run() -> None:
    """In the class itself as in a recipe that is scaled, and as published from 352,000 steps on."""
    weight = [nn.Parameter(torch.ones(1, 1))]
    for epochs in (6, 12, 100, 1000, 2000):
        steps = epochs * STEPS_PER_EPOCH
        recipe = CIFAR10.phase2["bnew"].scaled(min(epochs / EPOCHS, 1))
        method = BNEW(weight, steps, freeze_at=recipe.freeze_at)
        assert method.ramp == pytest.approx(recipe.method_options["ramp"])
        assert method.fill == recipe.method_options.get("fill")
        assert method.binary_lr == pytest.approx(recipe.binary_lr)
        assert method.strength == pytest.approx(recipe.method_options["strength"])
    assert BNEW(weight, 352_000).settings == pytest.approx(
        {"strength": 35.2, "reg": 35.2 / 352_001, "ramp": 1, "fill": None, "binary_lr": 1}
    )
    assert BNEW(weight, 4224).settings == pytest.approx(
        {"strength": 9.34, "reg": 9.34 / (2 * 4224 / 4.77), "ramp": 3.77, "fill": 0.54, "binary_lr": 5.87},
        rel=0.01,
    )
    assert "strength=9.3" in repr(BNEW(weight, 4224))
    # ImageNet's, whose weights are signed with a scale and never frozen.
    for factor in (0.02, 1.0):
        recipe = IMAGENET.phase2["bnew"].scaled(factor)
        method = BNEW(weight, recipe.epochs * 5824, scale=True)
        assert method.strength == pytest.approx(recipe.method_options["strength"], rel=1e-3)
        assert method.ramp == pytest.approx(recipe.method_options["ramp"], rel=1e-3)
        assert (method.fill, method.binary_lr) == (None, 1)
    # Bop's.
    short, long = (Bop(weight, steps) for steps in (352, 704_000))
    assert (short.gamma, short.tau) == pytest.approx((1e-4 * 1000**0.5, 1e-8 * 1000**0.9))
    assert (long.gamma, long.tau) == (1e-4, 1e-8)
    recipe = CIFAR10.phase2["bop"].scaled(0.001)
    assert short.settings == pytest.approx(recipe.method_options)


def test_what_is_given_means_what_it_says() -> None:
    weight = [nn.Parameter(torch.ones(1, 1))]
    default = BNEW(weight, 4224)
    given: dict[str, float | None] = {"strength": 20.0, "ramp": 1.0, "fill": None}
    for name, value in given.items():
        method = BNEW(weight, 4224, **{name: value})  # type: ignore[arg-type]
        expected = pytest.approx(value) if value else value
        assert getattr(method, name) == expected
        for other in {*given} - {name}:
            assert getattr(method, other) == pytest.approx(getattr(default, other))
        assert method.binary_lr == default.binary_lr
    paper = BNEW(weight, 4224, reg=1e-4)  # λ is the paper's, and so is all else
    assert (paper.reg, paper.ramp, paper.fill, paper.binary_lr) == (1e-4, 1, None, 1)
    filled = BNEW(weight, 4224, reg=1e-4, ramp=2.0, fill=0.3)
    assert (filled.reg, filled.ramp, filled.fill) == (1e-4, 2, 0.3)
    bop = Bop(weight, 352, gamma=0.3)
    assert (bop.gamma, bop.tau) == (0.3, Bop(weight, 352).tau)
    assert create_method("bnew", weight, 10, fill=None).settings["fill"] is None
    with pytest.raises(BnewError, match="beta_end is None, but must be a number"):
        create_method("bmd", weight, 10, beta_end=None)


def test_weights_arrive_by_the_time_of_freezing() -> None:
    """The push up to then takes e^-9 to 1."""
    weight = [nn.Parameter(torch.ones(1, 1))]
    for share in (0.85, 11 / 12, 1.0):
        method, push = BNEW(weight, 1000, freeze_at=share), 0.0
        for method.step in range(round(1000 * share)):
            push += 2 * method.schedule()["reg"]
        assert push == pytest.approx(9, rel=0.02)


@every_method
def test_groups_for_an_optimizer(name: str) -> None:
    net = Net()
    method = make_method(name, binary_parameters(net))
    binary, others = method.param_groups(net, lr=0.02)
    assert [id(p) for p in binary["params"]] == [id(p) for p in binary_parameters(net)]
    assert {id(p) for p in others["params"]} == {id(p) for p in real_parameters(net)}
    assert (binary["lr"], others["lr"]) == (0.02, 0.02)
    method.attach(torch.optim.Adam(method.param_groups(net, lr=0.02)))
    with pytest.raises(BnewError, match="not in the model"):
        make_method(name, [nn.Parameter(torch.ones(2, 2))]).param_groups(net, lr=0.02)


def test_the_rate_that_a_short_run_asks_for() -> None:
    net = Net()
    method = BNEW(binary_parameters(net), 352)
    assert [g["lr"] for g in method.param_groups(net, lr=0.01)] == pytest.approx([0.08, 0.01])


# Warnings


def ended(name: str, steps: int = STEPS, **options: Any) -> Training:
    training = Training(name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(steps):
            training.step(step)
    return training


def said(do: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        do()
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.phase == 2])
def test_freezing_too_early_warns(name: str) -> None:
    kind = METHODS[name].load().__name__
    never = make_method(name, [nn.Parameter(torch.full((2, 2), 0.5))])
    (message,) = said(never.freeze)
    assert f"{kind}, never attached to an optimizer, is frozen after 0 of 40 steps" in message
    assert "mean distance of 0.500 to ±1" in message
    assert said(never.freeze) == []  # once
    (message,) = said(Training(name).method.freeze)
    assert f"{kind} is frozen after 0 of 40 steps" in message
    (message,) = said(ended(name, 30).method.freeze)
    assert f"{kind} is frozen after 30 of 40 steps" in message
    assert ("mean distance" in message) == (name in ("bnew", "bmd", "proxquant"))
    assert said(lambda: ended(name, 30).method.freeze(warn=False)) == []


def test_freezing_weights_that_are_on_their_way_warns() -> None:
    (message,) = said(ended("bnew").method.freeze)
    distance = ended("bnew").method.distance()
    assert (
        f"BNEW is frozen after 40 of 40 steps: its weights are signed from a mean distance of {distance:.3f}"
        in (message)
    )


def test_freezing_at_the_end_is_silent() -> None:
    for name in ("ste", "proxparq", *FLIPPING):
        assert said(ended(name).method.freeze) == []
        assert said(ended(name, scale=True).method.freeze) == []
    weight = nn.Parameter(torch.linspace(0.1, 1, 16).view(4, 4))
    method = BNEW([weight], 10).attach(torch.optim.SGD([weight], lr=0.1))
    for _ in range(10):
        weight.grad = torch.zeros_like(weight)
        method.before_step()
        method.after_step()
    assert method.distance() < 0.01
    assert said(method.freeze) == []
    unscheduled = STE([weight]).attach(torch.optim.SGD([weight], lr=0.1))
    (message,) = said(copy.deepcopy(unscheduled).freeze)
    assert "STE is frozen after 0 steps" in message
    unscheduled.before_step()
    unscheduled.after_step()
    assert said(unscheduled.freeze) == []


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.phase == 1])
def test_freezing_real_weights(name: str) -> None:
    """It costs accuracy to sign them, except with a scale, with which fine-tuning starts."""
    (message,) = said(Training(name).run(0, 3).method.freeze)
    assert "is frozen after 3" in message
    assert "mean distance of 0." in message
    (message,) = said(make_method(name, [nn.Parameter(torch.rand(2, 2))]).freeze)
    assert "never attached" in message
    assert said(Training(name, scale=True).method.freeze) == []


@every_method
def test_more_steps_than_there_were_to_be_warn_once(name: str) -> None:
    training = ended(name)
    messages = said(lambda: training.run(STEPS, STEPS + 3))
    assert len(messages) == 1
    assert "has taken more steps than its total_steps of 40" in messages[0]
    frozen = ended(name)
    frozen.method.freeze(warn=False)
    assert said(lambda: frozen.step(STEPS)) == []


def test_fill() -> None:
    """Weights fill the box, and what batch norm makes of them is the same."""
    torch.manual_seed(0)
    model = create_model("birealnet8").double()
    x = torch.randn(4, 3, 16, 16).double()
    before = model(x)
    params = binary_parameters(model)
    kept = [p.detach().clone() for p in params]
    BNEW(params, 10, fill=0.4).attach(torch.optim.SGD(params, lr=0.1))
    for p, old in zip(params, kept, strict=True):
        assert p.abs().mean().item() == pytest.approx(0.4)  # evenly spread up to 0.8, so none is clipped
        torch.testing.assert_close(p, old * 0.4 / old.abs().mean())
    torch.testing.assert_close(model(x), before, rtol=1e-2, atol=1e-2)  # ε of batch norm weighs less

    steep, zeros = nn.Parameter(torch.tensor([[0.1, 0.0, -1e-3]])), nn.Parameter(torch.zeros(1, 2))
    BNEW([steep, zeros], 10, fill=0.5).attach(torch.optim.SGD([steep, zeros], lr=0.1))
    torch.testing.assert_close(steep.detach(), torch.tensor([[1.0, 0.0, -1e-3 * 0.5 * 3 / 0.101]]))
    assert torch.equal(zeros.detach(), torch.zeros(1, 2))


def test_ramp() -> None:
    """λ_t = λ ((t + 1) / T)^ramp."""
    method = BNEW([nn.Parameter(torch.ones(1, 1))], 10, reg=0.2, ramp=3.0)
    method.step = 4
    assert method.schedule()["reg"] == pytest.approx(0.2 * 0.5**3)


def test_the_course_of_the_slope() -> None:
    """1 until ``anneal_start``, half way in the middle, 0 from ``anneal_end`` on; by torchao's formula."""
    weight = [nn.Parameter(torch.ones(1, 1))]
    method = ProxPARQ(weight, 100, anneal_start=0.2, anneal_end=0.6, steepness=10.0)
    course = []
    for method.step in range(120):
        course.append(method.schedule()["inverse_slope"])
    assert set(course[:21]) == {1.0}
    assert set(course[60:]) == {0.0}
    assert course[40] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(course[20:61]))
    ends = [1 / (1 + np.exp(10 * x)) for x in (-0.5, -0.25, 0.5)]
    assert course[30] == pytest.approx((ends[1] - ends[2]) / (ends[0] - ends[2]))
    linear = ProxPARQ(weight, 100, anneal_end=1.0, steepness=1e-6)
    steep = ProxPARQ(weight, 100, anneal_end=1.0, steepness=1e6)
    linear.step = steep.step = 30
    assert linear.schedule()["inverse_slope"] == pytest.approx(0.7)
    assert steep.schedule()["inverse_slope"] == 1.0


def test_the_proximal_map_with_a_scale() -> None:
    """Targets are ± mean|w| of each channel, of the latent w; by hand."""
    weight = nn.Parameter(torch.tensor([[0.1, -0.7, 0.4], [-0.02, 0.03, 0.01]]))
    method = ProxPARQ([weight], 8, anneal_end=1.0, steepness=1.0, scale=True)
    method.attach(torch.optim.SGD([weight], lr=0.0))
    torch.testing.assert_close(weight.detach()[0], torch.tensor([0.1, -0.4, 0.4]))  # mean|w| = 0.4
    for _ in range(4):
        method.before_step()
        method.after_step()
    torch.testing.assert_close(weight.detach()[0], torch.tensor([0.2, -0.4, 0.4]))  # half the inverse slope
    torch.testing.assert_close(weight.detach()[1], torch.tensor([-0.02, 0.02, 0.02]))


def test_the_distance_that_proxquant_moves_a_weight() -> None:
    """Without a gradient it is ``strength``, whatever the length of the run, towards the nearest of ±1."""
    for total_steps in (1, 10, 300):
        weight = nn.Parameter(torch.tensor([[0.1, -0.1, 0.7, -0.75, 0.0, 3.0]], dtype=torch.float64))
        optimizer = torch.optim.SGD([weight], lr=0.0)
        method = ProxQuant([weight], total_steps, strength=0.25).attach(optimizer)
        pushes = []
        for _ in range(total_steps):
            pushes.append(method.schedule()["reg"])
            method.before_step()
            method.after_step()
        assert sum(pushes) == pytest.approx(0.25)
        assert pushes[-1] == pytest.approx(total_steps * pushes[0])
        expected = torch.tensor([[0.35, -0.35, 0.95, -1.0, 0.25, 1.0]], dtype=torch.float64)
        torch.testing.assert_close(weight.detach(), expected)


def test_diode_starts_with_inertia() -> None:
    """Spread evenly up to ``start``, against the weights, and the same in every process."""
    kept = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        weight = nn.Parameter(torch.linspace(-1, 1, 10_000).view(100, 100))
        method = Diode([weight], start=4.0).attach(torch.optim.SGD([weight], lr=0.1))
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(seed)))
        (s,) = method.state_dict()["sign_momentum"]
        assert torch.equal(s < 0, weight.detach() > 0)
        assert 0 < s.abs().min() < s.abs().max() <= 4
        quarters = torch.histc(s.abs(), 4, 0, 4) / 10_000
        torch.testing.assert_close(quarters, torch.full((4,), 0.25), atol=0.02, rtol=0)
        kept.append(s)
    assert torch.equal(*kept)


# The contract


@every_method
def test_determinism(name: str) -> None:
    assert_same(Training(name).run(), Training(name).run())


@every_method
@pytest.mark.parametrize("saved_at", [0, 20, FREEZE_AT + 3])
def test_state_round_trip(name: str, saved_at: int, tmp_path: Path) -> None:
    whole, resumed = Training(name), Training(name, seed=9)
    whole.method.flips()
    whole.run(0, saved_at)
    torch.save(whole.state_dict(), tmp_path / "last.pt")
    resumed.load_state_dict(torch.load(tmp_path / "last.pt", weights_only=True))
    whole.run(saved_at)
    resumed.run(saved_at)
    assert_same(whole, resumed)
    assert resumed.method.flips() == whole.method.flips()
    assert resumed.method.schedule() == whole.method.schedule()


@every_method
def test_flips_survive_a_resumed_run(name: str) -> None:
    whole, resumed = Training(name), Training(name, seed=9)
    whole.method.flips()
    whole.run(0, 20)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.method.flips() == whole.method.flips() > 0


@every_method
@pytest.mark.parametrize("scale", [False, True])
def test_freeze(name: str, scale: bool) -> None:
    training = Training(name, scale=scale)
    training.run(0, 20)
    # Bop's weights have the scale that they had at the start, so their values are of that size already.
    values = [v.numpy().copy() for v in training.method.values()]
    training.method.freeze(warn=False)
    for weight, value in zip(training.copies(), values, strict=True):
        if scale:
            np.testing.assert_allclose(weight.numpy(), oracles.binary(value, scale), rtol=1e-12)
            for channel in weight:
                assert channel.abs().unique().numel() == 1
        else:
            np.testing.assert_array_equal(weight.numpy(), oracles.binary(value, scale))
    assert training.method.distance() == 0
    assert training.method.share_at_one() == 1


@pytest.mark.parametrize("name", ["ste", *FLIPPING])
def test_forward_with_scale_is_binary_from_the_start(name: str) -> None:
    training = Training(name, scale=True)
    for weight, start in zip(training.copies(), training.start, strict=True):
        np.testing.assert_allclose(weight.numpy(), oracles.binary(start.numpy(), scale=True), rtol=1e-12)


@every_method
@every_optimizer
def test_frozen_weights_stay(name: str, optimizer: str) -> None:
    training = Training(name, optimizer, weight_decay=0.1)
    training.run(0, FREEZE_AT)
    training.method.freeze(warn=False)
    weights, real = training.copies(), training.real.detach().clone()
    training.run(FREEZE_AT, freeze_at=STEPS)
    assert flat(training.copies()) == flat(weights)
    assert (training.real != real).all()
    assert training.method.step == STEPS  # the schedule goes on
    left = [t for t in tree_leaves(training.method.state_dict()) if isinstance(t, Tensor)]
    assert left == []  # its own tensors are let go


@every_method
@every_optimizer
def test_zeroed_gradients(name: str, optimizer: str) -> None:
    """zero_grad(set_to_none=False) gives the same weights, after freezing too."""
    assert_same(Training(name, optimizer).run(set_to_none=False), Training(name, optimizer).run())


@every_method
def test_binarized(name: str) -> None:
    training = Training(name).run(0, 20)
    with torch.no_grad():
        training.weights[0][0, 0] = torch.tensor([-0.0, 1e-310, float("nan")])
    before = [w.numpy().tobytes() for w in training.copies()]
    with training.method.binarized():
        inside = flat(training.copies()[1:])
    assert [w.numpy().tobytes() for w in training.copies()] == before
    if METHODS[name].phase == 1:  # phase 1 validates with real weights
        assert inside == flat(training.copies()[1:])
    else:
        assert inside == [oracles.sign(v) for v in flat(training.method.values()[1:])]


@every_method
def test_a_method_rides_on_one_optimizer(name: str) -> None:
    training = Training(name)
    with pytest.raises(BnewError, match="rides on an optimizer already"):
        training.method.attach(training.optimizer)


@every_method
def test_binarized_restores_after_an_error(name: str) -> None:
    training = Training(name).run(0, 20)
    before = training.copies()
    with pytest.raises(KeyboardInterrupt), training.method.binarized():
        raise KeyboardInterrupt
    assert flat(training.copies()) == flat(before)
    assert not training.method.frozen


@every_method
def test_flips(name: str) -> None:
    training = Training(name).run(0, 5)
    assert training.method.flips() == 0
    for first in (5, 20):
        before = [x >= 0 for x in flat(training.copies())]
        training.run(first, first + 10)
        after = [x >= 0 for x in flat(training.copies())]
        expected = sum(a != b for a, b in zip(before, after, strict=True))
        assert training.method.flips() == expected > 0
        assert training.method.flips() == 0


def test_all_parameters_are_not_binary_ones() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))
    with pytest.raises(
        BnewError, match=r"shape \(16,\) is the weight of no binary layer: give bnew.binary_par"
    ):
        BNEW(model.parameters(), total_steps=10)


def test_distance_and_share_count_weights_not_layers() -> None:
    layers = [[[1.0, -1.0, 0.5, 0.0]], [[-0.25, -1.0]]]
    method = Clip([nn.Parameter(torch.tensor(layer)) for layer in layers])
    assert method.layer_distances() == [(0 + 0 + 0.5 + 1) / 4, (0.75 + 0) / 2]
    assert method.distance() == pytest.approx((0 + 0 + 0.5 + 1 + 0.75 + 0) / 6)
    assert method.layer_shares_at_one() == [2 / 4, 1 / 2]
    assert method.share_at_one() == pytest.approx(3 / 6)


def large_tensors(size: int) -> set[int]:
    """Where the tensors are that are alive and about as large as ``size`` numbers."""
    gc.collect()
    # Of these types alone, and not fake: torch.export leaves others behind that have a shape and no memory.
    alive = (o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter) and o.device.type == "cpu")
    large = (t for t in alive if size / 2 < t.numel() < 2 * size)
    return {pointer for t in large if (pointer := pointer_of(t)) is not None}


def pointer_of(tensor: Tensor) -> int | None:
    """Where its numbers are; None where it has none, as torch.export leaves some behind."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return None


@every_method
@pytest.mark.parametrize("fused", [False, True])
def test_loss_scaling(name: str, fused: bool) -> None:
    """A GradScaler by a power of two changes nothing; a step that overflows is none."""
    weights = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=fused)
        method = create_method(name, [p for p in model.parameters() if p.dim() == 2], 8).attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000, backoff_factor=0.999999)
        for step in range(6):
            loss = model(torch.randn(7, 5)).square().mean()
            if step == 3 and scale > 1:
                before = [p.detach().clone() for p in model.parameters()]
                scaler.scale(loss * torch.inf).backward()
                scaler.step(optimizer)
                optimizer.zero_grad()
                scaler.update(scale)
                assert method.step == 3
                assert all(p.equal(q) for p, q in zip(model.parameters(), before, strict=True))
                loss = model(torch.zeros(7, 5)).square().mean()
            elif step == 3:
                loss = model(torch.zeros(7, 5)).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update(scale)
            optimizer.zero_grad()
        assert method.step == 6
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights)


@every_method
def test_memory(name: str) -> None:
    """Every new tensor alive that is as large as the weight, in the whole process, is accounted for."""
    others = large_tensors(101 * 997)
    weight = nn.Parameter(torch.rand(101, 997))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    method = create_method(name, [weight], STEPS).attach(optimizer)
    for _ in range(3):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        optimizer.zero_grad()
        method.flips()
    assert len(large_tensors(weight.numel()) - others) == 1 + len(METHODS[name].state)
    kept = [t for t in tree_leaves(method.state_dict()) if isinstance(t, Tensor)]
    own = weight.nbytes * len(METHODS[name].state)
    signs = weight.numel() / 8  # one bit a weight, because flips() was asked
    assert sum(t.untyped_storage().nbytes() for t in kept) == pytest.approx(own + signs, abs=8)


# Data parallel


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = BinaryConv2d(2, 3, 3, padding=1)
        self.binary = BinaryLinear(3 * 4 * 4, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.binary(self.conv(x).flatten(1)))  # type: ignore[no-any-return]


def train_net(name: str, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """The weights after a run in which this process sees its share of every batch."""
    torch.manual_seed(0)
    net = Net().double()
    model = DistributedDataParallel(net) if world > 1 else net
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    method = make_method(name, binary_parameters(net)).attach(optimizer)
    for step in range(12):
        if step == 9:
            method.freeze(warn=False)
        x = torch.randn(8, 2, 4, 4, dtype=torch.float64)[rank::world]
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.state_dict()


def data_parallel(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({name: train_net(name, rank, 2) for name in METHODS}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_data_parallel(tmp_path: Path) -> None:
    processes = [PROCESSES.Process(target=data_parallel, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in METHODS:
        alone = train_net(name)
        for key, weight in alone.items():
            assert torch.equal(first[name][key], second[name][key]), (name, key)
            torch.testing.assert_close(first[name][key], weight, rtol=0, atol=1e-9)


# Errors

weights = [nn.Parameter(torch.ones(2, 2))]


@every_method
def test_no_weights(name: str) -> None:
    with pytest.raises(BnewError, match="no weights to binarize"):
        METHODS[name].load()([], 10)
    model = nn.Sequential(BinaryLinear(2, 2))
    for given in (model, weights[0], 3):
        with pytest.raises(
            BnewError, match=r"is given .*, but needs the weights to binarize: bnew\.binary_p"
        ):
            METHODS[name].load()(given, 10)  # type: ignore[arg-type]
    with pytest.raises(BnewError, match="one of the weights to binarize is 'weight': give bnew"):
        METHODS[name].load()(["weight"], 10)  # type: ignore[list-item]


@every_method
def test_total_steps(name: str) -> None:
    method = METHODS[name].load()
    with pytest.raises(BnewError, match="at least 1"):
        method(weights, 0)
    for steps in (2.5, "10", True):
        with pytest.raises(BnewError, match=f"total_steps is {steps!r}, but must be a whole number"):
            method(weights, steps)  # type: ignore[arg-type]
    method(weights, np.int64(10))  # type: ignore[arg-type]
    if method.needs_total_steps:
        with pytest.raises(BnewError, match="needs total_steps"):
            method(weights)
    else:
        method(weights)


@every_method
def test_weights_missing_from_the_optimizer(name: str) -> None:
    with pytest.raises(BnewError, match=r"1 of the 1 weights .* not in the optimizer"):
        create_method(name, weights, 10).attach(torch.optim.SGD([nn.Parameter(torch.ones(1))]))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (BNEW, {"strength": 0.0}, "BNEW's strength is .*, but must be a number above 0"),
        (BNEW, {"reg": -1e-4}, "BNEW's reg is -0.0001"),
        (BNEW, {"ramp": 0.0}, "ramp is 0.0"),
        (BNEW, {"fill": 0.0}, "fill is 0.0, but must be a number above 0 and at most 1"),
        (BNEW, {"fill": 1.5}, "fill is 1.5"),
        (BNEW, {"fill": "x"}, "fill is 'x'"),
        (BNEW, {"ramp": "x"}, "ramp is 'x'"),
        (BNEW, {"reg": "1e-4"}, "reg is '1e-4'"),
        (BNEW, {"strength": True}, "strength is True"),
        (BNEW, {"freeze_at": None}, "freeze_at is None"),
        (BNEW, {"freeze_at": 0.0}, "freeze_at is 0.0"),
        (Bop, {"tau": "small"}, "tau is 'small'"),
        (BNEW, {"strength": float("nan")}, "BNEW's strength is .*, but must be a number above 0"),
        (BNEW, {"strength": 35.0, "reg": 1e-4}, "give one of them"),
        (BinaryMirrorDescent, {"beta_end": 0.99}, "at least 1"),
        (BinaryMirrorDescent, {"beta_end": float("nan")}, "at least 1"),
        (Bop, {"gamma": 0.0}, r"gamma is 0\.0"),
        (Bop, {"gamma": 1.5}, r"gamma is 1\.5"),
        (Bop, {"gamma": float("nan")}, "gamma is nan"),
        (Bop, {"tau": -1e-8}, "tau is -1e-08"),
        (Bop, {"tau": float("nan")}, "tau is nan"),
        (Bop2ndOrder, {"gamma_end": 0.0}, r"Bop2ndOrder's gamma_end is 0\.0"),
        (Bop2ndOrder, {"sigma": 1.5}, r"sigma is 1\.5"),
        (Bop2ndOrder, {"tau_end": -1.0}, r"tau_end is -1\.0"),
        (Bop2ndOrder, {"unbiased": 1}, "unbiased is 1, but must be True or False"),
        (Diode, {"beta1": 1.0}, r"Diode's beta1 is 1\.0"),
        (Diode, {"beta2": -0.1}, r"beta2 is -0\.1"),
        (Diode, {"start": 0.0}, r"start is 0\.0"),
        (ProxQuant, {"strength": 0.0}, "ProxQuant's strength is .*, but must be a number above 0"),
        (ProxPARQ, {"anneal_start": -0.1}, "ProxPARQ's anneal_start is -0.1"),
        (ProxPARQ, {"anneal_end": 1.1}, "anneal_end is 1.1"),
        (ProxPARQ, {"anneal_start": 0.5, "anneal_end": 0.5}, "must be below its anneal_end of 0.5"),
        (ProxPARQ, {"steepness": 0.0}, r"steepness is 0\.0"),
    ],
)
def test_impossible_options(method: type[Binarizer], options: dict[str, Any], message: str) -> None:
    with pytest.raises(BnewError, match=message):
        method(weights, 10, **options)


@pytest.mark.parametrize(("saved", "loaded"), list(permutations(METHODS, 2)))
def test_state_of_another_method(saved: str, loaded: str) -> None:
    with pytest.raises(BnewError, match="not one of"):
        Training(loaded).method.load_state_dict(Training(saved).method.state_dict())


@every_method
def test_state_of_another_model(name: str) -> None:
    other = make_method(name, [nn.Parameter(torch.ones(3, 4, 5, 5))])
    other.attach(torch.optim.SGD(other.params))
    other.flips()
    method = Training(name).method
    with pytest.raises(BnewError, match="another model"):
        method.load_state_dict(other.state_dict())
    assert method.flips() == 0


# By name


@every_method
def test_create_method(name: str) -> None:
    assert type(create_method(name, weights, 10)) is METHODS[name].load()


def test_create_no_method() -> None:
    """A real network trains with a method that touches nothing."""
    assert type(create_method(None, weights, 10)) is Binarizer
    assert create_method(None, weights, 10).distance() == 0


@pytest.mark.parametrize(("name", "nearest"), [("bnwe", "bnew"), ("clipp", "clip")])
def test_unknown_method(name: str, nearest: str) -> None:
    with pytest.raises(BnewError, match=f"unknown method '{name}': did you mean '{nearest}'"):
        create_method(name, weights, 10)


def test_unknown_option() -> None:
    with pytest.raises(BnewError, match="unknown option of method bnew 'strenght': did you mean 'strength'"):
        create_method("bnew", weights, 10, strenght=3.0)
    with pytest.raises(BnewError, match="unknown option of method ste 'gamma'"):
        create_method("ste", weights, 10, gamma=1e-4)


def test_ste_keeps_the_latent_clipped() -> None:
    method = STE([nn.Parameter(torch.full((1, 1), 0.9))])
    optimizer = torch.optim.SGD(method.params, lr=1.0)
    method.attach(optimizer)
    method.params[0].grad = torch.full((1, 1), -5.0)
    optimizer.step()
    assert float(method.values()[0]) == 1
