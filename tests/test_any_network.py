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
from bnew.packing import decompositions


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
    "border of channels last": (
        lambda y, f: f(F.pad(y.permute(0, 2, 3, 1), (0, 0, 1, 2, 3, 1), value=2.0).permute(0, 3, 1, 2)),
        nn.Conv2d(8, 4, 3),
    ),
    "border of channels last, used as it is": (
        lambda y: F.pad(y.permute(0, 2, 3, 1), (1, 0, 1, 2), value=-1.0).relu().sum(3),
    ),
    "reflection of channels last": (
        lambda y: F.pad(y.transpose(2, 3), (1, 2, 3, 1), mode="reflect").flatten(2).mT,
    ),
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
NINE = torch.tensor([7, 7, 0, 3, 5, 2, 2, 6, 1])
CHECKED = torch.arange(36).view(6, 6) % 3 == 0
LATER = torch.full((36, 36), -torch.inf).triu(1)


def boxes(y: Tensor) -> Tensor:
    """A head of YOLO: positions in a grid, and sizes by anchors."""
    n, _, h, w = y.shape
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    y = y.view(n, 2, 4, h, w).permute(0, 1, 3, 4, 2).contiguous()
    at = (y[..., :2].sigmoid() * 2 - 0.5 + torch.stack([columns, rows], -1)) * 8
    size = (y[..., 2:3].sigmoid() * 2) ** 2 * torch.tensor([3.0, 5.0]).view(1, 2, 1, 1, 1)
    return torch.cat([at, size, y[..., 3:].sigmoid()], -1).view(n, -1, 4)


def cleared(y: Tensor) -> Tensor:
    """In place, where a condition holds, and at constant places."""
    y = y.clone()
    y[y < 0] = 0.25
    y[:, [1, 3], :, 2] = torch.arange(6.0)
    y[:, 6:] = y[:, 6:].masked_fill_(CHECKED, 2)
    return y


def spread(y: Tensor) -> Tensor:
    """Every second row and column of zeros."""
    z = torch.zeros(len(y), 8, 12, 12)
    z[:, :, 1::2, ::2] = y
    return z


# Conditions, constant indices, and operators that PyTorch or bnew writes in simpler ones.
NEAR_ZERO = (torch.erf, torch.expm1, torch.log1p, torch.sinh)
CHOICES: dict[str, tuple[Any, ...]] = {
    "channels by number": (lambda y: y[:, NINE],),
    "columns by number, from behind": (lambda y: y[..., NINE % 6 - 6],),
    "places by number": (lambda y: y[:, :, [0, 1, 2], [3, 4, 5]],),
    "places by numbers of a grid": (lambda y: y[:, NINE[:2, None] % 6, NINE[None, 2:5]].tanh(),),
    "every number the other way": (lambda y: y.flatten(2)[..., torch.arange(36).view(6, 6).t().flatten()],),
    "index_select of rows": (lambda y: y.index_select(2, NINE % 6),),
    "gather": (lambda y: y.gather(2, torch.arange(24).view(1, 8, 1, 3).expand(len(y), 8, 1, 3) % 6),),
    "gather of channels": (lambda y: torch.take_along_dim(y, NINE.view(1, 9, 1, 1), 1),),
    "one of two values": (lambda y: torch.where(y > 0.1, y.square(), y.flip(1)),),
    "one of a value and a number": (lambda y: torch.where(y > y.mean((2, 3), keepdim=True), y, -1.5),),
    "one of two values by constants": (lambda y: torch.where(CHECKED, y.relu(), y.mean((2, 3), True)),),
    "one of three": (lambda y: torch.where(y > 0.5, 1.0, torch.where(y < -0.5, -1.0, y)),),
    "a logarithm where it is one": (lambda y: torch.where(y > 0, y.clamp(min=1e-3).log(), 0.0),),
    "filled by constants": (lambda y: y.masked_fill(CHECKED, 0.5).masked_fill(y > 1, torch.tensor(-3.0)),),
    "hidden before a softmax": (lambda y: y.masked_fill(CHECKED, -torch.inf).softmax(-1),),
    "causal by addition": (lambda y: ((y.flatten(2).mT @ y.flatten(2)) + LATER).softmax(-1),),
    "cleared in place": (cleared,),
    "spread": (spread,),
    "written at constants": (
        lambda y: y.index_fill(3, NINE[2:4], 0.5).scatter(1, torch.full((len(y), 1, 6, 2), 5), 2.0),
    ),
    "and, or, not": (lambda y: ((y > 0) & (y < 1) | ~(y.flip(1) > -1)).float(),),
    "exclusive or": (lambda y: torch.logical_xor(y > 0, y.flip(2) > 0).int(),),
    "equal to its maximum": (lambda y: y * (F.max_pool2d(y, 3, 1, 1) == y).float(),),
    "not equal to 0": (lambda y: (y.relu() != 0).float().mean(1),),
    "any and all": (lambda y: (y > 1).any(1).float() - (y > -1).all(2).float().mean((1, 2))[:, None, None],),
    "counted": (lambda y: (y > 0).sum((2, 3)),),
    "larger of two": (lambda y: torch.maximum(y, y.flip(1)) - torch.min(y, y.mean(1, keepdim=True)),),
    "larger half": (lambda y: torch.max(*y.chunk(2, 1)),),
    "between constants of each place": (lambda y: y.clamp(PLACES.view(8, 6, 6) - 1, PLACES.view(8, 6, 6)),),
    "between values": (lambda y: y.clamp(y.flip(1) - 0.5, y.flip(1).abs() + 0.1),),
    "at most a value": (lambda y: torch.clamp(y, max=y.mean((1, 2, 3), True)),),
    "largest and where": (lambda y: torch.max(y, 1),),
    "smallest and where": (lambda y: y.flatten(2).min(-1, keepdim=True),),
    "both extremes": (lambda y: torch.aminmax(y, dim=2),),
    "the best": (lambda y: y.flatten(2).topk(1, largest=False),),
    "the best three": (lambda y: y.flatten(2).topk(3),),
    "the lowest of channels": (lambda y: y.topk(2, 1, largest=False)[0],),
    "rows and columns of the best": (
        lambda y: torch.stack([(p := y.flatten(2).argmax(-1)) % 6, p // 6], -1).float() / 5,
    ),
    "counted on": (lambda y: (y.flatten(1).argmax(1) % 36 // 6 * 2 + 1, y.argmax(1) - y.argmin(1)),),
    "rounded": (lambda y: (y.clamp(-1, 1) * 3).round() / 3,),
    "rounded halves": (lambda y: (torch.floor(y.clamp(-1.2, 1.2) * 4) / 2).round(),),
    "whole parts": (lambda y: torch.ceil(y.clamp(-2, 2.5)) + torch.trunc(y.clamp(-2, 2.5) * 2),),
    "steps of a half": (lambda y: y.clamp(-2, 2) // 0.5 + y.clamp(-1, 3) % 0.75,),
    "above 0, and at 0": (lambda y: torch.heaviside(y.relu(), torch.tensor(0.5)) * y,),
    "powers": (lambda y: (y.abs() + 0.1) ** 0.3 + y.sigmoid() ** torch.linspace(0.3, 2.7, 8).view(8, 1, 1),),
    "cube root": (lambda y: F.avg_pool2d(y.clamp(min=1e-6).pow(3), 6).pow(1 / 3),),
    "power of a number": (lambda y: 2**y,),
    "sums so far": (lambda y: y.cumsum(1) + y.cumsum(-1),),
    "product": (lambda y: y[:, :3].prod(1),),
    "log of a sum": (lambda y: y.logsumexp((2, 3)),),
    "beside 0": (lambda y: torch.log1p(y.clamp(min=-0.9)) + y.expm1() * y.sinh().tanh(),),
    "gelu by erf": (lambda y: y * 0.5 * (1 + torch.erf(y / 2**0.5)),),
    "near 0": (lambda y: torch.cat([f(y * 1e-4) / (y.abs() * 1e-4) for f in NEAR_ZERO], 1),),
    "far from 0": (lambda y: torch.log1p(y.exp() - 1) + torch.expm1(y * 3) + torch.erf(y * 2),),
    "large and small lengths": (
        lambda y: (
            torch.hypot(y * 1e25, y.flip(1) * 1e25) / 1e25 + torch.hypot(y / 1e25, y.flip(1) / 1e25) * 1e25
        ),
    ),
    "results of whole numbers": (
        lambda y: (
            (y > 0).prod(1) + torch.heaviside((y > 0).sum(1) - 2, torch.tensor(3)),
            (y > 0).sum(1).masked_fill(y[:, 0] > 0, -7.9),
            F.pad((y > 0).sum(1), (1, 2), value=3.7),
            (y > 0).tril(),
        ),
    ),
    "norms of other orders": (lambda y: y.norm(p=1, dim=1) + torch.linalg.norm(y, ord=torch.inf, dim=1),),
    "cosine": (lambda y: F.cosine_similarity(y[:, :4], y[:, 4:], dim=1),),
    "distances": (lambda y: torch.cdist(y.flatten(2).mT, PLACES[:40].view(1, 5, 8)),),
    "prototypes": (lambda y: -((y.mean((2, 3))[:, None] - PLACES[:40].view(5, 8)) ** 2).sum(-1),),
    "between": (lambda y: torch.lerp(y, y.flip(1), 0.7) + torch.lerp(y, y.tanh(), y.sigmoid()),),
    "mean and deviation": (lambda y: torch.std_mean(y, (2, 3)),),
    "variance and mean": (lambda y: torch.cat(torch.var_mean(y, (2, 3), unbiased=False), 1),),
    "triangles": (lambda y: y.tril(1) - y.triu(-2),),
    "diagonal": (lambda y: y.diagonal(1, 2, 3),),
    "einsum of one": (lambda y: torch.einsum("bchw->bhwc", y) + torch.einsum("...chw->...wc", y)[:, None],),
    "einsum of a constant first": (lambda y: torch.einsum("ij,bcjk->bcik", PLACES[:24].view(4, 6), y),),
    "einsum of three": (lambda y: torch.einsum("bchw,bcii,bdhw->bcd", y, y, y),),
    "product with a vector": (lambda y: y @ PLACES[:6],),
    "bilinear layer": (lambda y, f: f(y.mean((2, 3)), y.amax((2, 3))), nn.Bilinear(8, 8, 5)),
    "differences": (lambda y: y.diff(dim=2).flatten(2).tile(1, 2, 1),),
    "line, resized": (lambda y: F.interpolate(y.flatten(2), size=50, mode="linear", align_corners=True),),
    "line, doubled": (lambda y: F.interpolate(y.flatten(2), scale_factor=2, mode="linear"),),
    "line, transposed": (lambda y, f: f(y.flatten(2)), nn.ConvTranspose1d(8, 4, 4, 2, 1, groups=2)),
    "line, adaptive maximum": (lambda y: F.adaptive_max_pool1d(y.flatten(2), 7),),
    "one hot": (lambda y: F.one_hot(y.argmax(1), 8).permute(0, 3, 1, 2).float() * y,),
    "boxes": (boxes,),
    "gated recurrent unit": (lambda y, f: f(y[:, :, 0].mT)[0], nn.GRU(8, 5, 2, batch_first=True)),
    "long memory both ways": (
        lambda y, f: f(y[:, :, 0].mT)[0][:, -1],
        nn.LSTM(8, 5, batch_first=True, bidirectional=True),
    ),
    "memory cell": (lambda y, f: f(y.mean((2, 3)))[1], nn.LSTMCell(8, 5)),
    "attention with weights": (
        lambda y, f: f(*(y.flatten(2).mT,) * 3, attn_mask=LATER),
        nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    "decoder": (
        lambda y, f: f(PLACES[:40].view(1, 5, 8).expand(len(y), 5, 8), y.flatten(2).mT),
        nn.TransformerDecoderLayer(8, 2, 16, batch_first=True),
    ),
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


@pytest.mark.parametrize("what", CHOICES)
def test_choices_and_indices(what: str, tmp_path: Path) -> None:
    forward, *layers = CHOICES[what]
    agrees(Written(forward, *layers), tmp_path / "model.bnew", 3, 6, 6)


def test_simpler_operators_are_on_the_device_of_their_input() -> None:
    x = torch.empty(2, 5, 5, device="meta")
    found = [
        *(decompositions.tril(x), decompositions.triu(x, 1), decompositions.cumsum(x, 1)),
        *decompositions.topk(x, 2),
        decompositions.one_hot(x.long(), 3),
        decompositions.neighbours(x[..., None], [3, 1, 1], [1, 1, 1]),
    ]
    assert {each.device.type for each in found} == {"meta"}


def test_a_graph_of_another_device_is_read_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a model on a GPU makes its constants there."""
    export = torch.export.export

    def elsewhere(*arguments: Any, **options: Any) -> Any:
        program = export(*arguments, **options)
        for node in program.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": torch.device("meta")}
                node.meta["val"] = node.meta["val"].to("meta")
        return program

    def forward(y: Tensor) -> Tensor:
        rows = torch.arange(6, device=y.device).unsqueeze(1)
        return (y * rows).cumsum(1) + torch.full((6,), 2.0, device=y.device)

    monkeypatch.setattr(torch.export, "export", elsewhere)
    agrees(Written(forward), tmp_path / "model.bnew", 3, 6, 6)


def test_a_model_without_numbers_is_named(tmp_path: Path) -> None:
    with pytest.raises(BnewError, match="Linear is on the device 'meta', without numbers: load its weights"):
        bnew.pack(nn.Linear(3, 2, device="meta"), torch.randn(1, 3), tmp_path / "model.bnew")


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_transposed_convolutions(options: dict[str, Any], tmp_path: Path) -> None:
    agrees(nn.ConvTranspose2d(4, 6, **options), tmp_path / "model.bnew", 4, 5, 6)


@pytest.mark.parametrize("function", [torch.log1p, torch.expm1, torch.sinh])
def test_near_0_no_digits_are_lost(function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    sizes = torch.tensor([1e-30, 1e-8, 1e-6, 1e-3, 0.06, 0.0625, 0.063, 0.5, 0.9])
    x = torch.cat([sizes, -sizes, torch.tensor([0.0, 3.0, 20.0])]).view(1, -1, 1, 1)

    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    bnew.pack(Alone(), x, tmp_path / "model.bnew")
    runners = [Reference(tmp_path / "model.bnew")]
    runners += [] if bnew_engine is None else [bnew_engine.load(tmp_path / "model.bnew")]
    for run in runners:
        found = run(x.numpy()).reshape(-1)
        np.testing.assert_allclose(found, function(x.double()).numpy().reshape(-1), rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("side", [5, 7, 10])
def test_counts_are_exact(side: int, tmp_path: Path) -> None:
    """k / n · n is not k in float32 for some k and n, but a comparison must find k."""
    places = side * side
    x = torch.arange(places) < torch.arange(places + 1)[:, None]
    x = (x.float() * 2 - 1).view(-1, 1, side, side)

    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found = (x > 0).sum((2, 3))
            return (found == torch.arange(places + 1)).float() + (x > 0).float().sum((2, 3)).ge(found)

    bnew.pack(Counts(), x[:2], tmp_path / "model.bnew")
    runners = [Reference(tmp_path / "model.bnew")]
    runners += [] if bnew_engine is None else [bnew_engine.load(tmp_path / "model.bnew")]
    for run in runners:
        assert np.array_equal(run(x.numpy()).reshape(places + 1, -1), Counts()(x).numpy())


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
        lambda y: (y.flatten(2).mT, y.flatten(2).mT[:, 0]),
        lambda y: y[:, :, 0, 0],
    ],
    ids=["tuple", "dict", "named tuple", "dict of one", "the same twice", "first token", "first place"],
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
        (lambda y: written(y, slice(None), slice(0, 8, 3)), "only if they divide a dimension"),
        (lambda y: y[:, y.argmax(1)[:, 0, 0]], "its indices depend on the input"),
        (lambda y: y[torch.arange(len(y)).flip(0)], "it takes some of the images"),
        (lambda y: y[:, :, CHECKED[0]], "depends on numbers"),
        (lambda y: torch.where(y > 0, y.sqrt(), 0), "may be infinite or NaN where it is not chosen"),
        (lambda y: torch.where(y > 0, y.exp(), y), "clamp what is divided by"),
        (lambda y: torch.where(CHECKED, y, torch.inf), "constant is NaN or infinite"),
        (lambda y: y.masked_fill(CHECKED, -torch.inf), "only right before a softmax"),
        (lambda y: y.masked_fill(y > 0, -torch.inf).softmax(1), "hide every number of a softmax"),
        (lambda y: y.masked_fill(CHECKED | True, -torch.inf).softmax(1), "hide every number of a softmax"),
        (lambda y: y.any(1).float(), "only for comparisons"),
        (lambda y: y.flatten(2).topk(33)[0], "topk .* no such operator"),
        (lambda y: y.argmax(1) // -2, "one constant divisor above 0"),
        (lambda y: y.norm(p=3, dim=1), "a norm of order 3"),
        (
            lambda y: y.clone().index_put_((torch.arange(len(y)), NINE[:1]), y[:, 0]),
            "constant numbers at constant places",
        ),
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
        (lambda y: (y > 0).bfloat16().sum(1).float(), "sum .* its result is of torch.bfloat16"),
        (lambda y: ((y > 0).half() * 0.1).float(), "mul .* its result is of torch.float16"),
        (lambda y: (y > 0).flatten(1).sum(1, dtype=torch.uint8), "sum .* its result is of torch.uint8"),
        (lambda y: (y > 0).sum(1).topk(2)[0], "topk .* no such operator"),
        (lambda y: y.clamp(-2, 2).round(decimals=1), "with decimals=1, it is not packed: multiply"),
        (lambda y: torch.where(y > 0, 0, y.clamp(max=80).exp().square()), "clamp what is divided by"),
        (lambda y: F.pad(y, (0, 0, 0, 0, 0, 0, 1, 0))[:-1], "it adds images"),
        (lambda y: y.clamp(min=torch.arange(8.0).view(8, 1, 1) * -1e6), "one is not between ±256"),
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
