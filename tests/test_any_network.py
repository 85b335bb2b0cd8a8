"""Networks as users write them: tensors in any order, shape and part, attention, and several results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from packed_reference import Reference, check_tidy
from test_pack import bnew_engine, trained
from torch import Tensor, nn

import bnew
from bnew import BnewError


class Written(nn.Module):
    """A convolution, and what a user writes behind it with some more layers."""

    def __init__(self, forward: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(layers)
        self.written = forward

    def forward(self, x: Tensor) -> Any:
        return self.written(self.conv(x), *self.layers)


def attended(y: Tensor, mask: Tensor | None, keys: Tensor | None = None) -> Tensor:
    tokens = y.flatten(2).mT
    keys = tokens if keys is None else keys
    return F.scaled_dot_product_attention(tokens, keys, keys * 2, mask)


class Attention(nn.Module):
    """As timm writes it, for tokens (N, T, C)."""

    def __init__(self, width: int = 8, heads: int = 2, fused: bool = False) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.fused = heads, fused

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, width = x.shape
        qkv = self.qkv(x).reshape(images, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = (q @ k.transpose(-2, -1) * q.size(-1) ** -0.5).softmax(-1) @ v
        out: Tensor = self.proj(x.transpose(1, 2).reshape(images, tokens, width))
        return out


class Transformer(nn.Module):
    """A vision transformer with a class token and a learned position."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.place = nn.Parameter(torch.randn(1, 37, 8))
        self.norm, self.attention, self.head = nn.LayerNorm(8), attention, nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        y = self.norm(x)
        if isinstance(self.attention, nn.MultiheadAttention):
            x = x + self.attention(y, y, y, need_weights=False)[0]
        else:
            x = x + self.attention(y)
        out: Tensor = self.head(self.norm(x)[:, 0])
        return out


def windows(x: Tensor, side: int) -> Tensor:
    """(N, H, W, C) → (N · windows, side², C)."""
    n, h, w, c = x.shape
    return x.view(n, h // side, side, w // side, side, c).transpose(2, 3).reshape(-1, side * side, c)


def tiles(x: Tensor, side: int) -> Tensor:
    """(N, C, H, W) → (N · windows, C, side, side)."""
    n, c, h, w = x.shape
    x = x.view(n, c, h // side, side, w // side, side).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, c, side, side)


def written(y: Tensor, *places: Any) -> Tensor:
    """``y`` with other numbers at some places, in place."""
    y, other = y.clone(), y.sigmoid()
    y[places] = other[places] * 2
    y[:, 3:5] += other[:, :2]
    y[:, :, 0] = 0.5
    return y


def filled(y: Tensor) -> Tensor:
    """Zeros, with parts of ``y`` at other places."""
    z = torch.zeros_like(y)
    z[:, :, 1] = y[:, :, 2]
    z[:, 2:4] = y[:, :1].expand(-1, 2, -1, -1)
    return z


def together(x: Tensor, side: int, h: int, w: int) -> Tensor:
    """The opposite of :func:`windows`."""
    n = x.shape[0] // (h * w // side**2)
    return x.view(n, h // side, w // side, side, side, -1).transpose(2, 3).reshape(n, h, w, -1)


def shifted_windows(x: Tensor, linear: nn.Module) -> Tensor:
    x = torch.roll(x.permute(0, 2, 3, 1), (-1, -2), (1, 2))
    x = together(linear(windows(x, 3)), 3, 6, 6)
    return torch.roll(x, (1, 2), (1, 2)).permute(0, 3, 1, 2)


PLACES = torch.linspace(-1, 1, 36 * 8)
SHAPES: dict[str, tuple[Any, ...]] = {
    "tokens": (lambda y, f: f(y.flatten(2).transpose(1, 2)).mean(1), nn.Linear(8, 5)),
    "tokens kept": (lambda y, f: f(y.flatten(2).transpose(1, 2)), nn.Linear(8, 5)),
    "channels last": (lambda y, f: f(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(8)),
    "norm of all": (lambda y, f: f(y), nn.LayerNorm([8, 6, 6])),
    "attention to constants": (lambda y: attended(y, None, torch.arange(64.0).view(1, 8, 8) % 5 - 2),),
    "attention with two biases": (lambda y: attended(y, torch.where(y.flatten(2)[:, :1] > 0, 0.0, -2.0)),),
    "a number for each image": (lambda y: y.mean((1, 2, 3)),),
    "ones like bools": (lambda y: y * (torch.ones_like(y > 0) + torch.ones_like(y > 0)),),
    "mixing of places": (lambda y, f: f(y.flatten(2)).transpose(1, 2), nn.Linear(36, 7)),
    "pixel shuffle": (lambda y: F.pixel_shuffle(y, 2),),
    "pixel unshuffle": (lambda y: F.pixel_unshuffle(y, 3),),
    "channel shuffle": (lambda y: F.channel_shuffle(y, 4),),
    "halves": (lambda y: torch.cat([y.chunk(2, 1)[1] * 2, y.chunk(2, 1)[0]], 1),),
    "gate": (lambda y: y[:, :4] * torch.sigmoid(y[:, 4:]),),
    "gated linear unit": (lambda y: F.glu(y, 1),),
    "gated linear unit of tokens": (lambda y, f: F.glu(f(y.flatten(2).transpose(1, 2))), nn.Linear(8, 6)),
    "every second": (lambda y: y[:, 1::3, ::2, 1:5],),
    "joined along the width": (lambda y: torch.cat([y, y.relu()], 3),),
    "joined along the height": (lambda y: torch.cat([y, y.relu(), y], 2),),
    "stacked with a constant": (lambda y: torch.stack([y[:, :, 0], torch.ones(len(y), 8, 6)], 1),),
    "stacked": (lambda y: torch.stack([y, y.relu()], 2).mean(2),),
    "rolled": (lambda y: torch.roll(y, (1, -2), (2, 3)),),
    "flipped": (lambda y: y.flip(1, 3),),
    "repeated": (lambda y: y.repeat(1, 2, 1, 3),),
    "rows in place": (lambda y: written(y, slice(None), slice(None), slice(1, 3)),),
    "column in place": (lambda y: written(y, slice(None), slice(None), slice(None), -1).relu(),),
    "parts in place": (lambda y: written(y, slice(None), 2, slice(4, None)),),
    "tensor filled": (filled,),
    "each repeated": (lambda y: y.repeat_interleave(2, 1) * y.repeat_interleave(2, -3).relu(),),
    "six dimensions": (lambda y: y.view(len(y), 2, 4, 3, 2, 6).transpose(1, 3),),
    "places added": (lambda y: y + PLACES.reshape(8, 6, 6),),
    "places added to tokens": (lambda y: y.flatten(2).transpose(1, 2) * PLACES.reshape(1, 36, 8),),
    "windows": (lambda y, f: together(f(windows(y.permute(0, 2, 3, 1), 2)), 2, 6, 6), nn.Linear(8, 5)),
    "layers on windows": (
        lambda y, f: f(tiles(y, 3)).reshape(len(y), 2, 2, 6, 3, 3),
        nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.ReLU()),
    ),
    "convolutions on windows": (
        lambda y, f: f(tiles(y, 3)).mean((2, 3)).view(len(y), 4, 6),
        nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(8, 6, (2, 3), (2, 1), (1, 2))
        ),
    ),
    "convolutions in windows": (
        lambda y, f: f(tiles(y, 3)).view(len(y), 4, 6, 2, 1),
        nn.Conv2d(8, 6, (2, 3)),
    ),
    "shifted windows": (shifted_windows, nn.Linear(8, 5)),
    "sliding windows": (lambda y: y.unfold(2, 3, 1).unfold(3, 2, 2).mean((-1, -2)),),
    "columns of windows": (lambda y: F.unfold(y, (3, 2), padding=1, stride=(1, 2), dilation=(1, 2)),),
    "windows summed": (lambda y: F.fold(F.unfold(y, 3, padding=1, stride=2) * 2, (6, 6), 3, 1, 1, 2),),
    "windows of several sizes summed": (
        lambda y: F.fold(F.unfold(y, (2, 3), (1, 2), 1), (6, 6), (2, 3), (1, 2), 1),
    ),
    "padding of channels": (lambda y: F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)),),
    "cut padding": (lambda y: F.pad(y, (-1, 2, 1, -2)),),
    "transformer": (lambda y, f: f(y), Transformer(Attention())),
    "transformer, fused": (lambda y, f: f(y), Transformer(Attention(fused=True))),
    "multi-head attention": (
        lambda y, f: f(y),
        Transformer(nn.MultiheadAttention(8, 2, batch_first=True)),
    ),
    "causal attention": (lambda y: F.scaled_dot_product_attention(*(y.flatten(2),) * 3, is_causal=True),),
    "masked attention": (
        lambda y: F.scaled_dot_product_attention(*(y.flatten(2),) * 3, attn_mask=torch.ones(8, 8).tril(2)),
    ),
    "einsum": (lambda y: torch.einsum("bchw,bdhw->bcd", y, y.relu()),),
    "einsum with a constant": (lambda y: torch.einsum("bchw,hkc->bhwk", y, PLACES.reshape(6, 6, 8)),),
    "constant matrix": (lambda y: PLACES[:144].reshape(1, 4, 36) @ y.flatten(2).transpose(1, 2),),
    "every direction": (lambda y: y.mean(2, keepdim=True) * y.amax(3, keepdim=True),),
    "mean of channels": (lambda y: y - y.mean(1, keepdim=True),),
    "sum of all": (lambda y: y.sum((1, 2, 3), keepdim=True)[:, :, 0, 0],),
    "one after the other": (lambda y: y.mean(3).mean(2),),
    "least": (lambda y: y.amin((1, 3)),),
    "best channel": (lambda y: y.max(1)[0],),
    "bilinear": (lambda y: F.interpolate(y, scale_factor=2.0, mode="bilinear"),),
    "bilinear by corners": (lambda y: F.interpolate(y, (9, 11), mode="bilinear", align_corners=True),),
    "bicubic": (lambda y: F.interpolate(y, scale_factor=2.5, mode="bicubic"),),
    "bicubic by corners": (lambda y: F.interpolate(y, (3, 9), mode="bicubic", align_corners=True),),
    "bicubic, smoothed": (lambda y: F.interpolate(y, (4, 3), mode="bicubic", antialias=True),),
    "bilinear, smoothed": (lambda y: F.interpolate(y, (3, 7), mode="bilinear", antialias=True),),
    "reflected": (lambda y: F.pad(y, (1, 2, 3, 1), mode="reflect").relu(),),
    "replicated": (lambda y: F.pad(y, (1, 2, 3, 1), mode="replicate").relu(),),
    "circular": (lambda y: F.pad(y, (1, 2, 3, 1), mode="circular").relu(),),
    "filled": (lambda y: F.pad(y, (1, 2, 3, 1), value=-2.5),),
    "line": (lambda y, f: F.max_pool1d(f(y.flatten(2)).relu(), 2), nn.Conv1d(8, 6, 5, 2, 2, groups=2)),
    "means of a line": (lambda y: F.avg_pool1d(y.flatten(2), 3, 2, 1),),
    "adaptive maximum": (lambda y: F.adaptive_max_pool2d(y, (3, 2)),),
}
TRANSPOSED = [
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3},
    {"kernel_size": (5, 3), "stride": (3, 2), "padding": (2, 0), "output_padding": (1, 0)},
    {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2, "bias": False},
]


def agrees(model: nn.Module, path: Path, *size: int) -> Reference:
    """Pack the model; the file's reader and the engine return what PyTorch does, result by result."""
    model = trained(model).eval()
    x = torch.randn(3, *size)
    bnew.pack(model, x, path)
    reference = Reference(path)
    check_tidy(reference.file)
    with torch.no_grad():
        expected = model(x)
    runners = [reference] if bnew_engine is None else [reference, bnew_engine.load(path)]
    for run in runners:
        compare(run(x.numpy()), expected)
    return reference


def compare(found: Any, expected: Any) -> None:
    if isinstance(found, dict):
        names = getattr(expected, "_fields", expected)
        values = list(expected) if isinstance(expected, tuple) else list(expected.values())
        assert list(found) == list(names)
        found, expected = list(found.values()), values
    if isinstance(found, list):
        assert len(found) == len(expected)
        for each, one in zip(found, expected, strict=True):
            compare(each, one)
        return
    wanted = expected.numpy()
    assert found.shape == wanted.shape or (*found.shape, 1, 1) == wanted.shape
    wanted = wanted.reshape(found.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("what", SHAPES)
def test_any_order_shape_and_part(what: str, tmp_path: Path) -> None:
    forward, *layers = SHAPES[what]
    agrees(Written(forward, *layers), tmp_path / "model.bnew", 3, 6, 6)


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_transposed_convolutions(options: dict[str, Any], tmp_path: Path) -> None:
    agrees(nn.ConvTranspose2d(4, 6, **options), tmp_path / "model.bnew", 4, 5, 6)


def test_views_cost_nothing(tmp_path: Path) -> None:
    """Tokens, channels last and windows are other names of the same numbers: nothing is moved."""
    for what in ("tokens", "channels last", "windows"):
        forward, *layers = SHAPES[what]
        reference = agrees(Written(forward, *layers), tmp_path / "model.bnew", 3, 6, 6)
        moved = [node for node in reference.file.graph["nodes"] if node["op"] in ("rearrange", "flatten")]
        assert len(moved) <= (what == "windows")  # (N, H, W, C) is returned


class Both(NamedTuple):
    image: Tensor
    vector: Tensor


@pytest.mark.parametrize(
    "forward",
    [
        lambda y: (y, y.mean((2, 3))),
        lambda y: {"out": y, "aux": y.flatten(2)},
        lambda y: Both(y, y.mean((2, 3))),
        lambda y: {"only": y.mean((2, 3))},
        lambda y: [y, y],
    ],
    ids=["tuple", "dict", "named tuple", "dict of one", "the same twice"],
)
def test_several_results_keep_their_names(forward: Callable[[Tensor], Any], tmp_path: Path) -> None:
    agrees(Written(forward), tmp_path / "model.bnew", 3, 6, 6)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda y: y + y.flip(0), "it takes some of the images"),
        (lambda y: y.mean(0, keepdim=True).expand(len(y), -1, -1, -1), "it joins images"),
        (lambda y: y.reshape(-1, 16, 6, 6).repeat(2, 1, 1, 1), "images"),
        (lambda y: torch.cat([y, y], 0)[: len(y)], "images"),
        (lambda y: y.flatten(1) @ y.flatten(1).t(), "images"),
        (lambda y: torch.zeros_like(y, dtype=torch.int).copy_(y) + 0.5, "its result is of torch.int32"),
        (lambda y: written(y, slice(None), slice(0, 8, 2)), "indices without gaps"),
        (
            lambda y: y.repeat_interleave(torch.tensor([1, 2] * 4), 1),
            "size of its result depends on numbers",
        ),
        (lambda y: y[y > 0].reshape(1, -1).mean(1, keepdim=True), "size of its result depends on numbers"),
        (lambda y: torch.linalg.inv(y), "no such operator"),
        (lambda y: {"a": y, "b": 3}, "something else than tensors"),
        (lambda y: y + torch.randn(8, 6, 6), "its result is random"),
        (lambda y: y / y.shape[0], "number of images .div with 2 for 2 of them, but div with 3 for 3"),
        (lambda y: y / torch.ones(len(y)).sum(), "computes with the number of images"),
        (lambda y: y.half().float(), "its result is of torch.float16"),
        (lambda y: F.pad(y, (0, 0, 0, 0, 0, 0, 1, 0))[:-1], "it adds images"),
        (lambda y: y.clamp(min=torch.arange(8.0).view(8, 1, 1) * -1e6), "one is not between ±256"),
        (lambda y: torch.max(y, torch.zeros(())), "only as torch.maximum"),
        (lambda y: y.clone().fill_(y.amax()), "joins images"),
        (lambda y: F.softplus(y, threshold=-1000), "jumps to its input"),
        (lambda y: attended(y, torch.ones(36, 36).tril(-1) > 0), "hides every token"),
        (lambda y: attended(y, torch.ones(36, 36).tril(-1).log()), "hides every token"),
        (lambda y: attended(y, (y > 0).flatten(2)[:, :1]), "mask of bools depends on the input"),
    ],
)
def test_what_is_refused(forward: Callable[[Tensor], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BnewError, match=message):
        bnew.pack(Written(forward), torch.randn(2, 3, 6, 6), tmp_path / "model.bnew")
