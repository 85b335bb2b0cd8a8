"""The layers against their formulas."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bnew import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryConvTranspose2d,
    BinaryLinear,
    BnewError,
    ChannelScale,
    RPReLU,
    RSign,
    sign,
)
from bnew.layers import (
    binary_parameters,
    named_binary_parameters,
    real_parameters,
    with_present_names,
)
from bnew.models.pooling import MaxPool2d

POINTS = [-2.0, -1.0, -0.75, -0.25, -0.0, 0.0, 0.25, 0.75, 1.0, 2.0]
GRADIENTS = {
    "polynomial": [0.0, 0.0, 0.5, 1.5, 2.0, 2.0, 1.5, 0.5, 0.0, 0.0],
    "clipped_identity": [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0],
}


def test_sign_is_never_zero() -> None:
    assert sign(torch.tensor(POINTS)).tolist() == [-1, -1, -1, -1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("surrogate", GRADIENTS)
def test_surrogate_gradient_at_known_points(surrogate: str) -> None:
    x = torch.tensor(POINTS, requires_grad=True)
    torch.autograd.backward(sign(x, surrogate), torch.full_like(x, 3))
    assert x.grad is not None
    assert x.grad.tolist() == [3 * g for g in GRADIENTS[surrogate]]


def test_polynomial_gradient_is_the_slope_of_the_published_polynomial() -> None:
    def published(x: Tensor) -> Tensor:  # Bi-Real Net, eq. 5
        inside = torch.where(x < 0, 2 * x + x**2, 2 * x - x**2)
        return torch.where(x < -1, -1.0, torch.where(x < 1, inside, 1.0))

    x = torch.linspace(-1.995, 1.995, 400, dtype=torch.float64, requires_grad=True)
    torch.autograd.backward(sign(x).sum())
    with torch.no_grad():
        slope = (published(x + 1e-6) - published(x - 1e-6)) / 2e-6
    torch.testing.assert_close(x.grad, slope, rtol=0, atol=1e-5)


@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    surrogate=st.sampled_from(sorted(GRADIENTS)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
@settings(max_examples=40, deadline=None)
def test_rsign_of_any_shape(shape: list[int], surrogate: str, dtype: torch.dtype) -> None:
    layer = RSign(shape[1], surrogate).to(dtype)
    assert layer.shift is not None
    nn.init.uniform_(layer.shift, -0.5, 0.5)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    y = layer(x)
    assert y.shape == x.shape
    assert y.dtype == dtype
    shifted = (x.transpose(0, 1).flatten(1) + layer.shift[:, None]).detach()
    assert torch.equal(y.transpose(0, 1).flatten(1), torch.where(shifted < 0, -1, 1).to(dtype))

    upstream = torch.randn(shape).to(dtype)
    y.backward(upstream)
    slope = (
        (2 - 2 * shifted.abs()).clamp(min=0) if surrogate == "polynomial" else (shifted.abs() < 1).to(dtype)
    )
    expected = upstream.transpose(0, 1).flatten(1) * slope
    assert x.grad is not None
    assert torch.equal(x.grad.transpose(0, 1).flatten(1), expected)
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(layer.shift.grad, expected.sum(1), rtol=tolerance, atol=tolerance)


def test_sign_saves_one_tensor_its_input() -> None:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    x = torch.randn(2, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sign(x)
    assert [t.data_ptr() for t in saved] == [x.data_ptr()]


@pytest.mark.parametrize("surrogate", GRADIENTS)
def test_sign_under_torch_func(surrogate: str) -> None:
    """grad, vmap, jacrev and their compositions: the numbers of autograd."""
    x = torch.linspace(-1.5, 1.5, 24).view(4, 6)
    weights = torch.arange(6.0)

    def loss(row: Tensor) -> Tensor:
        return (sign(row, surrogate) * weights).sum()

    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad((sign(leaf, surrogate) * weights).sum(), leaf)[0]
    assert torch.equal(torch.stack([torch.func.grad(loss)(row) for row in x]), expected)
    assert torch.equal(torch.func.vmap(torch.func.grad(loss))(x), expected)
    assert torch.equal(torch.func.vmap(lambda row: sign(row, surrogate), in_dims=1, out_dims=1)(x), sign(x))
    jacobian = torch.func.jacrev(lambda row: sign(row, surrogate))(x[0])
    assert torch.equal(jacobian.mT @ weights, expected[0])


def test_a_network_under_torch_func() -> None:
    """Gradients per image of a binary network, as one by one."""
    torch.manual_seed(0)
    model = nn.Sequential(
        BinaryConv2d(2, 3, 3, input_sign=RSign(2)), RPReLU(3), nn.Flatten(), BinaryLinear(12, 2)
    )
    params = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(5, 2, 4, 4)

    def loss(params: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(model, params, (image[None],)).square().sum()  # type: ignore[no-any-return]

    per_image = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, x)
    for i, image in enumerate(x):
        model.zero_grad()
        model(image[None]).square().sum().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            torch.testing.assert_close(per_image[name][i], p.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("surrogate", GRADIENTS)
def test_sign_compiled(surrogate: str) -> None:
    """In one graph, bit for bit."""
    x = torch.linspace(-1.5, 1.5, 24, requires_grad=True)
    torch.compiler.reset()
    compiled = torch.compile(lambda t: sign(t, surrogate), backend="aot_eager", fullgraph=True)
    y = compiled(x)
    assert torch.equal(y, sign(x, surrogate))
    weights = torch.arange(24.0)
    for_compiled = torch.autograd.grad((y * weights).sum(), x)[0]
    assert torch.equal(for_compiled, torch.autograd.grad((sign(x, surrogate) * weights).sum(), x)[0])


@pytest.mark.parametrize(
    "layer",
    [RSign(4), RPReLU(4), ChannelScale(4), BinaryConv2d(4, 6, 3, padding=1)],
    ids=lambda m: type(m).__name__,
)
def test_channels_last_is_kept(layer: nn.Module) -> None:
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, layer(x.contiguous()))


def test_rprelu_is_its_formula() -> None:
    layer = RPReLU(2)
    assert layer.slope is not None
    assert layer.slope.tolist() == [0.25, 0.25]
    values = {"shift_in": [1.0, -1.0], "slope": [0.5, 0.1], "shift_out": [10.0, 20.0]}
    layer.load_state_dict({name: torch.tensor(v) for name, v in values.items()})
    assert layer(torch.tensor([[2.0, 2.0], [-3.0, -3.0]])).tolist() == [[13, 21], [9, pytest.approx(19.6)]]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"shift": False}, {"slope"}),
        ({"prelu": False}, {"shift_in", "shift_out"}),
        ({"shift": False, "prelu": False}, set()),
    ],
)
def test_rprelu_without_its_parts(options: dict[str, bool], names: set[str]) -> None:
    layer = RPReLU(3, **options)
    assert {name for name, _ in layer.named_parameters()} == names
    x = torch.randn(2, 3)
    torch.testing.assert_close(layer(x), x.relu() if "slope" not in names else F.leaky_relu(x, 0.25))


def test_binary_convolution_pads_after_the_sign() -> None:
    layer = BinaryConv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    assert layer(torch.zeros(1, 1, 3, 3))[0, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


def test_binary_linear_takes_any_rank() -> None:
    rsign = RSign(4)
    assert rsign.shift is not None
    nn.init.normal_(rsign.shift)
    layer = BinaryLinear(4, 3, input_sign=rsign)
    x = torch.randn(4, 4, 4)  # the feature and the token axis are alike, and must not be mixed up
    expected = F.linear(torch.where(x + rsign.shift < 0, -1.0, 1.0), layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x[0]), expected[0])
    torch.testing.assert_close(layer(x[0, 0]), expected[0, 0])


@pytest.mark.parametrize("size", [(9, 8), (1, 4)])
def test_max_pooling_compiled(size: tuple[int, int]) -> None:
    """By PyTorch's own kernels, with ties: the same values and gradients, bit for bit."""
    layer = MaxPool2d(3, stride=2, padding=1)
    x = torch.randint(0, 4, (4, 5, *size)).float().contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph.code)
        return graph

    expected = F.max_pool2d(x, 3, 2, 1)
    weights = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), x)
    for name in ("seen", "aot_eager"):
        torch.compiler.reset()
        y = torch.compile(layer, backend=backend if name == "seen" else name)(x)
        assert torch.equal(y, expected)
        assert y.stride() == expected.stride()
        assert torch.equal(torch.autograd.grad((y * weights).sum(), x)[0], gradient)
    assert "bnew.max_pool2d" in graphs[0]
    assert torch.equal(layer(x), expected)
    sizes = ([3, 3], [2, 2], [1, 1])
    ops = torch.ops.bnew
    torch.library.opcheck(ops.max_pool2d.default, (x, *sizes))
    inputs = x.detach().transpose(0, 1)
    pooled, indices = ops.max_pool2d(inputs, *sizes)
    torch.library.opcheck(ops.max_pool2d_backward.default, (torch.ones_like(pooled), inputs, indices, *sizes))


@pytest.mark.parametrize(
    "options", [{"dilation": 2}, {"ceil_mode": True}, {"kernel_size": (3, 3)}, {"return_indices": True}]
)
def test_other_max_pooling_compiled(options: dict[str, Any]) -> None:
    layer = MaxPool2d(**{"kernel_size": 3, "stride": 2, "padding": 1, **options})
    x = torch.randn(2, 3, 10, 10)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager")(x), layer(x))


def test_binary_and_real_parameters_part_the_model() -> None:
    conv = BinaryConv2d(3, 4, 3, input_sign=RSign(3))
    model = nn.Sequential(conv, nn.Flatten(), BinaryLinear(4, 2), nn.Linear(2, 2), conv)
    assert [name for name, _ in named_binary_parameters(model)] == ["0", "2"]
    binary, real = binary_parameters(model), real_parameters(model)
    assert {id(p) for p in binary} | {id(p) for p in real} == {id(p) for p in model.parameters()}
    assert len(binary) + len(real) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("binary", "real"),
    [
        (BinaryConv1d, nn.Conv1d),
        (BinaryConv2d, nn.Conv2d),
        (BinaryConvTranspose2d, nn.ConvTranspose2d),
        (BinaryLinear, nn.Linear),
    ],
)
def test_signatures_are_those_of_torch(binary: type[nn.Module], real: type[nn.Module]) -> None:
    ours, theirs = ([*inspect.signature(layer).parameters.values()] for layer in (binary, real))
    added = [p.name for p in ours if p.kind == inspect.Parameter.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in ours if p.name not in added] == [(p.name, p.default) for p in theirs]
    assert added == (["input_sign"] if real is nn.Linear else ["input_sign", "pad_value"])


def test_input_sign_is_a_module() -> None:
    for make in (partial(BinaryConv2d, 3, 4, 3), partial(BinaryLinear, 3, 4)):
        with pytest.raises(BnewError, match="input_sign is 'sign', but must be a module, such"):
            make(input_sign="sign")  # type: ignore[arg-type]


# Before input_sign had this name, it was activation.


def old_and_new() -> list[tuple[nn.Module, nn.Module]]:
    conv, linear = RSign(3), RSign(4)
    with pytest.warns(
        DeprecationWarning, match=r"\(activation=…\) is deprecated.*: write input_sign=…"
    ) as found:
        old = (BinaryConv2d(3, 4, 3, activation=conv), BinaryLinear(4, 2, activation=linear))  # type: ignore[call-arg]
    assert [each.filename for each in found] == [__file__] * 2
    return list(
        zip(old, (BinaryConv2d(3, 4, 3, input_sign=conv), BinaryLinear(4, 2, input_sign=linear)), strict=True)
    )


def test_the_old_argument() -> None:
    for old, new in old_and_new():
        assert repr(old) == repr(new)
        assert old.get_submodule("input_sign") is new.get_submodule("input_sign")
    with pytest.raises(TypeError, match=r"BinaryLinear\(\) got input_sign and its old name activation"):
        BinaryLinear(4, 2, activation=RSign(4), input_sign=RSign(4))  # type: ignore[call-arg]


def test_the_old_attribute() -> None:
    layer, other = BinaryConv2d(3, 4, 3), RSign(3)
    with pytest.warns(DeprecationWarning, match="write input_sign"):
        assert layer.activation is layer.input_sign
    with pytest.warns(DeprecationWarning, match="write input_sign"):
        layer.activation = other  # type: ignore[misc]
    assert layer.input_sign is other
    assert [name for name, _ in layer.named_children()] == ["input_sign"]


def network() -> nn.Sequential:
    conv = BinaryConv2d(3, 4, 3, input_sign=RSign(3))
    return nn.Sequential(nn.Sequential(conv), nn.Flatten(), BinaryLinear(4, 2, input_sign=RSign(4)))


def in_old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("input_sign", "activation"): value for name, value in state.items()}


def test_old_state_dicts_load() -> None:
    trained, model = network(), network()
    for parameter in trained.parameters():
        nn.init.normal_(parameter)
    old = in_old_names(trained.state_dict())
    assert "0.0.activation.shift" in old
    names = list(old)
    model.load_state_dict(old)
    assert list(old) == names  # it is the caller's own
    for name, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
        assert with_present_names(old, model)[name] is old[name.replace("input_sign", "activation")]
    layer = BinaryLinear(4, 2, input_sign=RSign(4))
    layer.load_state_dict(in_old_names(layer.state_dict()))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*input_sign\.scale"):
        layer.load_state_dict({**layer.state_dict(), "activation.scale": torch.ones(1)})


def test_a_model_that_was_pickled_as_a_whole() -> None:
    layer = BinaryConv2d(3, 4, 3, input_sign=RSign(3))
    state = layer.__dict__ | {"_modules": {"activation": layer.input_sign}}
    old = BinaryConv2d.__new__(BinaryConv2d)
    old.__setstate__(state)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(old(x), layer(x))


def test_unknown_surrogate_is_named() -> None:
    for call in (lambda: sign(torch.ones(1), "polynomal"), lambda: RSign(1, "polynomal")):
        with pytest.raises(BnewError, match="did you mean 'polynomial'"):
            call()
