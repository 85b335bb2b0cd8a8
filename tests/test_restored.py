"""Weights set from outside win over a method's own copy; copied methods and loaded states go on."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_methods import (
    FLIPPING,
    STEPS,
    Net,
    Training,
    assert_same,
    every_method,
    flat,
    make_method,
    make_optimizer,
)
from torch import Tensor, nn

from bnew.errors import BnewError
from bnew.layers import BinaryLinear, binary_parameters, hard_sign
from bnew.methods import (
    BNEW,
    METHODS,
    STE,
    Binarizer,
    BinaryMirrorDescent,
    Bop,
    Bop2ndOrder,
    Diode,
    ProxPARQ,
    create_method,
)

LATENT = [name for name, row in METHODS.items() if "latent" in row.state]


def signs(weights: list[Tensor]) -> list[float]:
    return [1.0 if x >= 0 else -1.0 for x in flat(weights)]


# Options with which signs change to the end of 60 steps.
QUICK = {
    "bop": {"gamma": 0.1, "tau": 1e-4},
    "diode": {"beta2": 0.9, "start": 0.1},
    "proxquant": {"strength": 0.5},
}


class Classification:
    """A small network with 512 binary weights, trained for ``STEPS`` steps on one batch."""

    def __init__(self, name: str, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), BinaryLinear(16, 32, bias=False), nn.Linear(32, 4))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05)
        self.params = binary_parameters(self.model)
        options |= QUICK.get(name, {})
        self.method = create_method(name, self.params, 60, **options).attach(self.optimizer)
        self.x, self.y = torch.randn(64, 8), torch.randint(4, (64,))

    def run(self, steps: int) -> Classification:
        for _ in range(steps):
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(self.x), self.y).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return self

    def weight(self) -> Tensor:
        return self.params[0].detach().clone()


@every_method
@pytest.mark.parametrize("scale", [False, True])
def test_the_best_weights_are_frozen(name: str, scale: bool) -> None:
    """best at step 20, forty more steps, best loaded, frozen: the signs are best's, all 512."""
    run = Classification(name, scale=scale).run(20)
    best = copy.deepcopy(run.model.state_dict())
    kept = run.weight()
    run.run(40)
    last = run.weight()
    run.model.load_state_dict(best)
    assert torch.equal(run.weight(), kept)
    with run.method.binarized():
        assert torch.equal(run.weight() >= 0, kept >= 0)
    assert torch.equal(run.weight(), kept)
    run.method.freeze(warn=False)
    assert torch.equal(run.weight() >= 0, kept >= 0)
    assert not torch.equal(last >= 0, kept >= 0)
    if not scale:
        assert torch.equal(run.weight().abs(), torch.ones(32, 16))


def set_by_copy(p: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        p.copy_(value)


def set_by_data(p: nn.Parameter, value: Tensor) -> None:
    p.data.copy_(value)


def set_as_data(p: nn.Parameter, value: Tensor) -> None:
    p.data = value.clone()


every_way = pytest.mark.parametrize("set_weight", [set_by_copy, set_by_data, set_as_data])


@every_method
@every_way
def test_the_next_step_starts_from_weights_that_were_set(
    name: str, set_weight: Callable[[nn.Parameter, Tensor], None]
) -> None:
    """As from a new method that is at the same step; the tensors that were not set stay as they were."""
    training, twin = Training(name, "sgd").run(0, 20), Training(name, "sgd").run(0, 20)
    value = torch.tanh(torch.linspace(-1, 1, training.weights[1].numel(), dtype=torch.float64)).view(5, 7)
    set_weight(training.weights[1], value)
    schedule = twin.method.schedule()
    latents = {
        "ste": lambda: value,
        "bmd": lambda: torch.atanh(value) / schedule["beta"],
        "proxparq": lambda: value * schedule["inverse_slope"],
    }
    if name in LATENT:
        twin.method.state_dict()["latent"][1].copy_(latents[name]())
        set_weight(twin.weights[1], value.sign() if name == "ste" else value)
    elif name in FLIPPING:
        set_weight(twin.weights[1], torch.where(value >= 0, 1.0, -1.0).double())
    else:
        set_weight(twin.weights[1], value)
    training.run(20, 24)
    twin.run(20, 24)
    for a, b in zip(training.copies(), twin.copies(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    for a, b in zip(training.method.values(), twin.method.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert torch.equal(training.copies()[0], twin.copies()[0])


@every_method
@every_way
def test_signs_that_are_turned_over_one_by_one(
    name: str, set_weight: Callable[[nn.Parameter, Tensor], None]
) -> None:
    """One sign is enough to be seen, in every position, without and with a scale."""
    for scale in (False, True):
        for position in (0, 3, 41):
            training = Training(name, scale=scale).run(0, 10)
            with training.method.binarized():
                binary = training.copies()[0]
            binary.view(-1)[position] *= -1
            set_weight(training.weights[0], binary)
            expected = signs([binary])
            training.method.freeze(warn=False)
            assert signs(training.copies()[:1]) == expected


@every_method
def test_weights_set_after_freezing_are_signed(name: str) -> None:
    training = Training(name).run(0, 10)
    training.method.freeze(warn=False)
    value = torch.linspace(-1, 1, 35, dtype=torch.float64).view(5, 7)
    set_by_copy(training.weights[1], value)
    training.step(10)
    assert torch.equal(training.copies()[1], torch.where(value >= 0, 1.0, -1.0).double())
    assert training.method.distance() == 0


@every_method
def test_weights_set_inside_binarized_stay(name: str) -> None:
    if METHODS[name].phase == 1:
        pytest.skip("their weights are as they are inside")
    training = Training(name).run(0, 10)
    others = training.copies()[1:]
    with training.method.binarized():
        turned = -training.copies()[0]
        set_by_copy(training.weights[0], turned)
    assert torch.equal(training.copies()[0], turned)
    for a, b in zip(training.copies()[1:], others, strict=True):
        assert torch.equal(a, b)
    with training.method.binarized():  # put back as by an average of weights: the real ones come back
        binary = training.copies()
        for p, value in zip(training.weights, binary, strict=True):
            set_by_copy(p, torch.zeros_like(p))
            set_by_copy(p, value)
    for a, b in zip(training.copies()[1:], others, strict=True):
        assert torch.equal(a, b)


@every_method
def test_a_step_inside_binarized_is_refused(name: str) -> None:
    training = Training(name).run(0, 3)
    if METHODS[name].phase == 1:
        with training.method.binarized():
            training.step(3)
        return
    with training.method.binarized(), pytest.raises(BnewError, match="step inside binarized"):
        training.step(3)
    training.run(3)


@every_method
def test_freezing_inside_binarized_holds(name: str) -> None:
    training = Training(name).run(0, 5)
    with training.method.binarized():
        training.method.freeze(warn=False)
        inside = training.copies()
    assert flat(training.copies()) == flat(inside) == signs(inside)


@every_method
@pytest.mark.parametrize("scale", [False, True])
def test_what_the_method_left_is_not_set_from_outside(name: str, scale: bool) -> None:
    """Also where another machine rounds a mean or a tanh otherwise."""
    training, twin = Training(name, scale=scale).run(0, 20), Training(name, scale=scale).run(0, 20)
    kept = [v.clone() for v in training.method.values()]
    for p in training.weights:
        set_by_copy(p, p.detach() * (1 + 1e-6))
    if name in LATENT:
        assert flat(
            training.method.values() if name == "ste" else training.method.state_dict()["latent"]
        ) == (flat(kept if name == "ste" else twin.method.state_dict()["latent"]))
    if METHODS[name].state:
        training.run(20, 24)
        twin.run(20, 24)
        assert flat(training.method.values()) == pytest.approx(flat(twin.method.values()), rel=1e-5)


# States


@every_method
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("order", ["model, method", "method, model"])
@pytest.mark.parametrize("attach", ["first", "between", "last"])
@pytest.mark.parametrize("asked", [False, True])
def test_a_state_is_loaded_in_any_order(
    name: str, frozen: bool, order: str, attach: str, asked: bool
) -> None:
    """Before or after attach, the model's first or last, and if asked how far it is in between."""
    whole = Training(name).run(0, 20, freeze_at=15 if frozen else STEPS)
    state = copy.deepcopy(whole.state_dict())
    resumed = Training.__new__(Training)
    other = Training(name, seed=9)
    resumed.weights, resumed.real = [nn.Parameter(w) for w in other.start], other.real
    resumed.optimizer = make_optimizer("adam", [*resumed.weights, resumed.real])
    resumed.method = make_method(name, resumed.weights)

    def load_model() -> None:
        with torch.no_grad():
            for p, value in zip((*resumed.weights, resumed.real), state["params"], strict=True):
                p.copy_(value)

    def load_method() -> None:
        resumed.method.load_state_dict(state["method"])

    steps: list[Callable[[], object]] = (
        [load_model, load_method] if order == "model, method" else [load_method, load_model]
    )
    steps.insert(("first", "between", "last").index(attach), lambda: resumed.method.attach(resumed.optimizer))
    for do in steps:
        do()
        if asked:
            resumed.method.distance()
            resumed.method.state_dict()
    resumed.optimizer.load_state_dict(state["optimizer"])
    assert_same(whole, resumed)
    whole.run(20, freeze_at=STEPS)
    resumed.run(20, freeze_at=STEPS)
    assert_same(whole, resumed)
    assert resumed.method.step == STEPS


@every_method
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("order", ["model, optimizer", "optimizer, model"])
def test_the_state_travels_with_the_optimizer(name: str, frozen: bool, order: str) -> None:
    """Whoever saves model and optimizer, as everyone's loop does, loses nothing."""
    whole = Training(name).run(0, 20, freeze_at=15 if frozen else STEPS)
    file = io.BytesIO()
    torch.save({"params": [*whole.weights, whole.real], "optimizer": whole.optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = Training(name, seed=9)
    for part in order.split(", "):
        if part == "optimizer":
            resumed.optimizer.load_state_dict(state["optimizer"])
            continue
        for p, value in zip((*resumed.weights, resumed.real), state["params"], strict=True):
            set_by_copy(p, value)
    assert "bnew" in state["optimizer"]  # what was loaded is as it was
    assert_same(whole, resumed)
    assert resumed.method.frozen == frozen
    whole.run(20, freeze_at=STEPS)
    resumed.run(20, freeze_at=STEPS)
    assert_same(whole, resumed)


@every_method
def test_an_optimizer_without_a_method_saves_and_loads_as_ever(name: str) -> None:
    """Also an old checkpoint, whose method's state is beside it, and after detach()."""
    whole = Training(name).run(0, 20)
    state = copy.deepcopy(whole.optimizer.state_dict())
    method = state.pop("bnew")
    resumed = Training(name, seed=9)
    for p, value in zip((*resumed.weights, resumed.real), (*whole.weights, whole.real), strict=True):
        set_by_copy(p, value.detach())
    resumed.optimizer.load_state_dict(state)
    resumed.method.load_state_dict(method)
    assert_same(whole.run(20), resumed.run(20))
    whole.method.detach()
    assert "bnew" not in whole.optimizer.state_dict()


def test_the_state_of_another_method_is_refused() -> None:
    state = Training("ste").run(0, 3).optimizer.state_dict()
    with pytest.raises(BnewError, match="not one of BNEW, but of STE"):
        Training("bnew").optimizer.load_state_dict(state)


@pytest.mark.parametrize("name", LATENT)
def test_a_loaded_state_puts_its_weights_into_the_model(name: str) -> None:
    """Where the model's own are not loaded at all."""
    whole, other = Training(name).run(0, 20), Training(name, seed=9)
    method = make_method(name, other.weights)
    method.load_state_dict(whole.method.state_dict())
    method.attach(other.optimizer)
    assert flat(other.copies()) == flat(whole.copies())


def test_a_state_from_before_attach_is_none_to_continue_from() -> None:
    for name in METHODS:
        training = Training(name)
        state = make_method(name, training.weights).state_dict()
        fresh = Training(name, seed=3)
        fresh.method.load_state_dict(state)
        again = make_method(name, Training(name, seed=3).weights)
        again.load_state_dict(state)
        assert_same(fresh.run(0, 5), Training(name, seed=3).run(0, 5))
        assert again.step == 0


@every_method
def test_a_state_from_before_attach_after_steps_is_refused(name: str) -> None:
    """The method's own state goes on from those steps."""
    state = make_method(name, Training(name).weights).state_dict()
    training = Training(name).run(0, 3)
    with pytest.raises(BnewError, match="before attach"):
        training.method.load_state_dict(state)
    assert training.method.step == 3


@every_method
def test_a_state_of_the_first_version_that_saved_none_of_started(name: str) -> None:
    whole = Training(name).run(0, 5)
    state = whole.method.state_dict()
    del state["started"]
    other = Training(name, seed=9)
    other.method.load_state_dict(state)
    assert other.method.step == 5
    if name in LATENT:
        assert flat(other.copies()) == flat(whole.copies())


def test_only_weights_that_were_set_start_again() -> None:
    """One of a tensor: the others of a late mirror descent keep latent weights that x does not show."""
    method = Training("bmd").run(0, 30).method
    latent = method.state_dict()["latent"][0].clone()
    x = method.params[0].detach().clone()
    changed = x.clone().view(-1)
    changed[3] = -changed[3]
    set_by_data(method.params[0], changed.view_as(x))
    after = method.state_dict()["latent"][0].view(-1)
    assert float(torch.tanh(method.schedule()["beta"] * after[3])) == pytest.approx(float(changed[3]))
    kept = [i for i in range(x.numel()) if i != 3]
    assert torch.equal(after[kept], latent.view(-1)[kept])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_signs_that_are_set_late_in_mirror_descent(dtype: torch.dtype) -> None:
    """β is 1e35 then, and a latent weight below what the type can say."""
    weight = nn.Parameter(torch.linspace(-1, 1, 30, dtype=torch.float64).view(5, 6).to(dtype))
    method = BinaryMirrorDescent([weight], 10, beta_end=1e35).attach(torch.optim.SGD([weight], lr=0.0))
    for _ in range(10):
        method.before_step()
        method.after_step()
    turned = -weight.detach().clone()
    set_by_copy(weight, turned)
    assert torch.equal(torch.cat(method.values()) >= 0, turned >= 0)
    assert torch.equal(weight.detach(), turned)


@pytest.mark.parametrize("name", [*LATENT, *FLIPPING])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_sign_of_a_large_layer_is_seen(name: str, dtype: torch.dtype) -> None:
    """Also two that leave the sum the same, and in both layouts of memory."""
    torch.manual_seed(0)
    for layout in (torch.contiguous_format, torch.channels_last):
        start = torch.randn(32, 256, 3, 3).sign().to(dtype).contiguous(memory_format=layout)
        weight = nn.Parameter(start.clone())
        optimizer = torch.optim.SGD([weight], lr=0.0)
        method = create_method(name, [weight], 100).attach(optimizer)
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        binary = start.clone()
        for position in [(0, 0, 0, 0), (31, 255, 2, 2), (7, 100, 1, 1), (8, 101, 1, 2)]:
            binary[position] *= -1
            set_by_data(weight, binary)
            with method.binarized():
                assert torch.equal(weight.detach(), binary)
        one, other = (binary[5] == 1).nonzero()[0].tolist(), (binary[5] == -1).nonzero()[0].tolist()
        binary[(5, *one)], binary[(5, *other)] = -1, 1
        set_by_data(weight, binary)
        with method.binarized():
            assert torch.equal(weight.detach(), binary)


@pytest.mark.parametrize("fill", [None, 0.5])
def test_the_model_is_loaded_before_the_method_is_attached(fill: float | None) -> None:
    """Then first values are in the place of what was loaded, until the method's state is loaded."""
    weight = nn.Parameter(torch.linspace(-0.3, 0.2, 6).view(2, 3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    method = BNEW([weight], 10, fill=fill).attach(optimizer)
    weight.grad = torch.full_like(weight, 0.05)
    optimizer.step()
    kept = weight.detach().clone()
    for by_optimizer in (False, True):
        other = nn.Parameter(torch.zeros(2, 3))
        set_by_copy(other, kept)
        fresh = torch.optim.SGD([other], lr=0.1)
        resumed = BNEW([other], 10, fill=fill).attach(fresh)
        if by_optimizer:
            fresh.load_state_dict(optimizer.state_dict())
        else:
            resumed.load_state_dict(method.state_dict())
        assert torch.equal(other.detach(), kept)
        assert resumed.step == 1


def test_first_values_that_were_saved_are_kept() -> None:
    """Of a run that is saved before its first step: what was loaded is what first values are anyway."""

    def begun() -> tuple[nn.Parameter, torch.optim.Optimizer]:
        weight = nn.Parameter(torch.linspace(-0.3, 0.2, 6).view(2, 3))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        BNEW([weight], 10, fill=0.5).attach(optimizer)
        return weight, optimizer

    weight, optimizer = begun()
    again, resumed = begun()
    set_by_copy(again, weight.detach())
    resumed.load_state_dict(optimizer.state_dict())
    assert torch.equal(again, weight)
    assert float(again.detach().abs().mean()) == pytest.approx(0.5)


@pytest.mark.parametrize("name", LATENT)
@pytest.mark.parametrize("scale", [False, True])
def test_in_that_order_nothing_is_rounded(name: str, scale: bool) -> None:
    whole = Training(name, scale=scale).run(0, 20)
    resumed = Training.__new__(Training)
    other = Training(name, seed=9)
    resumed.weights = [nn.Parameter(w.detach().clone()) for w in whole.weights]
    resumed.real = other.real
    set_by_copy(resumed.real, whole.real.detach())
    resumed.optimizer = make_optimizer("adam", [*resumed.weights, resumed.real])
    resumed.method = make_method(name, resumed.weights, scale=scale).attach(resumed.optimizer)
    resumed.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    assert_same(whole, resumed)
    whole.run(20, freeze_at=STEPS)
    resumed.run(20, freeze_at=STEPS)
    assert_same(whole, resumed)


def test_weights_are_filled_once() -> None:
    """Not again where BNEW is attached after its state was loaded, or to another optimizer."""
    weight = nn.Parameter(torch.full((2, 2), 0.1))
    method = BNEW([weight], 10, fill=0.5).attach(torch.optim.SGD([weight], lr=0.1))
    assert weight.detach().flatten().tolist() == [0.5] * 4
    set_by_copy(weight, torch.full((2, 2), 0.2))
    later = BNEW([weight], 10, fill=0.5)
    later.load_state_dict(method.state_dict())
    later.attach(torch.optim.SGD([weight], lr=0.1))
    method.detach()
    method.attach(torch.optim.SGD([weight], lr=0.1))
    assert weight.detach().flatten().tolist() == pytest.approx([0.2] * 4)


# Copies


def by_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def by_torch(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def continued(net: Net, method: Binarizer, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    for step in range(6):
        x = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return net.state_dict()


@every_method
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle, by_torch])
def test_a_copy_goes_on_from_its_state(name: str, frozen: bool, copied: Callable[[Any], Any]) -> None:
    """Model, method and optimizer together; the copy and the original do not touch each other."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    method = make_method(name, binary_parameters(net)).attach(optimizer)
    continued(net, method, optimizer)
    if frozen:
        method.freeze(warn=False)
    net2, method2, optimizer2 = copied((net, method, optimizer))
    assert {id(p) for p in method2.params} <= {id(p) for p in net2.parameters()}
    method2.attach(optimizer2)
    before = [p.detach().clone() for p in net.parameters()]
    ended = continued(net2, method2, optimizer2)
    for p, kept in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, kept)
    assert (method.step, method2.step) == (6, 12)
    for key, value in continued(net, method, optimizer).items():
        assert torch.equal(value, ended[key])


@every_method
@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle])
def test_a_copy_of_the_method_alone(name: str, copied: Callable[[Any], Any]) -> None:
    """It has its weights with it."""
    training = Training(name, "sgd").run(0, 10)
    method = copied(training.method)
    with pytest.raises(BnewError, match=r"not in the optimizer.* copied with it"):
        copied(training.method).attach(training.optimizer)
    twin = Training(name, "sgd").run(0, 10)
    twin.method.detach()
    fresh = torch.optim.SGD(twin.weights, lr=0.05)
    twin.method.attach(fresh)
    optimizer = torch.optim.SGD(method.params, lr=0.05)
    method.attach(optimizer)
    for step in range(10, 14):
        for params, stepping in ((method.params, optimizer), (twin.weights, fresh)):
            for p, g in zip(params, twin.gradients(step), strict=False):
                p.grad = g.clone()
            stepping.step()
    for a, b in zip(method.params, twin.weights, strict=True):
        assert torch.equal(a, b)


@every_method
def test_detach(name: str) -> None:
    """The optimizer has the weights to itself then; another optimizer goes on."""
    training = Training(name, "sgd").run(0, 5)
    training.method.detach()
    weights = training.copies()
    training.step(5)
    assert training.method.step == 5
    for p, start, g in zip(training.weights, weights, training.gradients(5), strict=False):
        assert not torch.equal(p.detach(), start), g
    training.method.detach()  # there is nothing left to do
    training.method.attach(training.optimizer)
    training.step(6)
    assert training.method.step == 6


def test_a_model_that_is_moved_takes_its_method_with_it() -> None:
    """Latent weights follow the type of the parameters."""
    for method_type in (STE, BinaryMirrorDescent, Bop, Bop2ndOrder, Diode, ProxPARQ):
        model = nn.Sequential(BinaryLinear(3, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method = method_type(binary_parameters(model), 10).attach(optimizer)
        model.double()
        model(torch.randn(2, 3).double()).sum().backward()
        optimizer.step()
        (own,) = next(v for k, v in method.state_dict().items() if k in ("latent", "momentum"))
        assert own.dtype == torch.float64


def test_frozen_again_after_other_weights_were_loaded() -> None:
    """What was set after freezing is signed too: no weight that counts as binary stays real."""
    layer = BinaryLinear(8, 4)
    method = STE(binary_parameters(layer))
    method.freeze(warn=False)
    real = torch.linspace(-1, 1, 32).view(4, 8)
    layer.load_state_dict({"weight": real}, strict=False)
    method.freeze()
    assert torch.equal(layer.weight, hard_sign(real))
