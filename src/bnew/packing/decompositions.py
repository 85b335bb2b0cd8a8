"""ATen operators that are written in simpler ones before the graph is read: PyTorch's own way, or ours.

A function of ours that returns ``NotImplemented`` leaves the operator as it is.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from functools import cache, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten

# As PyTorch writes them.
_KNOWN = {
    *("addcdiv", "addcmul", "baddbmm", "broadcast_tensors", "cosine_similarity", "diff", "gru", "gru_cell"),
    *("inner", "linalg_matrix_norm", "linalg_norm", "lstm", "lstm_cell", "mv", "rad2deg", "rnn_relu"),
    *("rnn_relu_cell", "rnn_tanh", "rnn_tanh_cell", "rot90", "std_mean", "take_along_dim", "tensordot"),
    *("tile", "absolute", "atleast_1d", "atleast_2d", "atleast_3d", "clip", "column_stack", "concat"),
    *("concatenate", "divide", "dstack", "fix", "fliplr", "flipud", "float_power", "greater", "hstack"),
    *("greater_equal", "less", "less_equal", "multiply", "negative", "not_equal", "row_stack", "subtract"),
    *("true_divide", "vstack"),
}
_LOWEST = -3e38
_MOST_BEST = 32  # numbers that are found one by one
_LARGEST_PRODUCT = 64  # numbers that are multiplied one by one


def lerp(start: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    """start + weight · (end − start)."""
    return start + weight * (end - start)


def bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Σ xᵢ · weightₖᵢⱼ · yⱼ + biasₖ."""
    outputs, _, last = weight.shape
    rows = F.linear(x, weight.transpose(1, 2).flatten(0, 1))
    rows = rows.view(*rows.shape[:-1], outputs, last)
    result = (rows * y.unsqueeze(-2)).sum(-1)
    return result if bias is None else result + bias


def logit(x: Tensor, eps: float | None = None) -> Tensor:
    """log(x / (1 − x)), of x between ``eps`` and 1 − ``eps``."""
    x = x if eps is None else x.clamp(eps, 1 - eps)
    return (x / (1 - x)).log()


def logsumexp(x: Tensor, dim: list[int], keepdim: bool = False) -> Tensor:
    """log(Σ exp(x))."""
    most = x.amax(dim, keepdim=True)
    result = (x - most).exp().sum(dim, keepdim=True).log() + most
    return result if keepdim else result.sum(dim)


def pairwise_distance(x: Tensor, y: Tensor, p: float = 2, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """‖x − y + eps‖ over the last dimension."""
    length: Tensor = torch.linalg.vector_norm(x - y + eps, p, -1, keepdim)
    return length


def _below(rows: int, columns: int, device: torch.device, diagonal: int = 0) -> Tensor:
    """Whether a place of a matrix is on the diagonal or below it."""
    row, column = (torch.arange(n, device=device) for n in (rows, columns))
    return row.unsqueeze(1) + diagonal >= column


def tril(x: Tensor, diagonal: int = 0) -> Tensor:
    """The numbers of matrices on the diagonal and below it; 0 elsewhere."""
    below = _below(x.shape[-2], x.shape[-1], x.device, diagonal)
    return torch.where(below, x, torch.zeros((), dtype=x.dtype, device=x.device))


def triu(x: Tensor, diagonal: int = 0) -> Tensor:
    """The numbers of matrices on the diagonal and above it; 0 elsewhere."""
    below = _below(x.shape[-2], x.shape[-1], x.device, diagonal - 1)
    return torch.where(below, torch.zeros((), dtype=x.dtype, device=x.device), x)


def cdist(x: Tensor, y: Tensor, p: float = 2, mode: int | None = None) -> Tensor:
    """‖x − y‖ of each row of x and each row of y."""
    length: Tensor = torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)
    return length


def cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    """Sums of the first 1, 2, … numbers: a product with a triangle of ones."""
    if not x.is_floating_point() or dtype not in (None, x.dtype) or not x.dim():
        return NotImplemented
    triangle = _below(x.shape[dim], x.shape[dim], x.device).float().t()
    return (x.transpose(dim, -1) @ triangle).transpose(dim, -1)


def prod(x: Tensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """The product of a few numbers."""
    if x.shape[dim] > _LARGEST_PRODUCT or dtype not in (None, x.dtype):
        return NotImplemented
    result = reduce(torch.mul, (x if x.is_floating_point() else x.long()).unbind(dim))
    return result.unsqueeze(dim) if keepdim else result


def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """The k largest numbers and where they are, one after the other: each is then put below all others."""
    if not x.dim() or not x.is_floating_point() or k > _MOST_BEST:
        return NotImplemented
    x = x.transpose(dim, -1) if largest else -x.transpose(dim, -1)
    places = torch.arange(x.shape[-1], device=x.device)
    values, found = [], []
    for _ in range(k):
        place = x.argmax(-1, keepdim=True)
        values.append(x.amax(-1, keepdim=True))
        found.append(place)
        x = torch.where(places == place, _LOWEST, x)
    best, where = (torch.cat(each, -1).transpose(dim, -1) for each in (values, found))
    return best if largest else -best, where


def one_hot(x: Tensor, classes: int = -1) -> Any:
    """1 where the number of a new last dimension is x, else 0."""
    if classes < 0:
        return NotImplemented
    return (x.unsqueeze(-1) == torch.arange(classes, device=x.device)).long()


def einsum(equation: str, operands: Sequence[Tensor], *, path: Any = None) -> Any:
    """Products of two tensors without repeated letters, and what is before and between them."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    free = [a for a in string.ascii_letters if a not in equation]
    ranks = [x.dim() - len(own.replace("...", "")) for own, x in zip(letters, operands, strict=True)]
    many = "".join(free[: max(ranks)])
    letters = [own.replace("...", many[len(many) - n :]) for own, n in zip(letters, ranks, strict=True)]
    if not arrow:
        alone = [a for a in sorted("".join(letters)) if "".join(letters).count(a) == 1 and a not in many]
        out = ("..." if "..." in equation else "") + "".join(alone)
    out = out.replace("...", many)
    terms = [
        _reduced(own, x, {*out, *"".join(letters[:i] + letters[i + 1 :])})
        for i, (own, x) in enumerate(zip(letters, operands, strict=True))
    ]
    if len(terms) == 1:
        ((own, x),) = terms
        return x.permute([own.index(a) for a in out])
    while len(terms) > 2:
        (first, x), (second, y), *rest = terms
        wanted = {*out, *"".join(own for own, _ in rest)}
        both = "".join(a for a in dict.fromkeys(first + second) if a in wanted)
        terms = [(both, torch.einsum(f"{first},{second}->{both}", x, y)), *rest]
    (first, x), (second, y) = terms
    written = f"{first},{second}->{out}"
    return NotImplemented if written == equation.replace(" ", "") else torch.einsum(written, x, y)


def _reduced(own: str, x: Tensor, wanted: set[str]) -> tuple[str, Tensor]:
    """A tensor and the letters of its dimensions, each once and each of the ``wanted`` ones."""
    for letter in dict.fromkeys(own):
        while own.count(letter) > 1:
            first = own.index(letter)
            second = own.index(letter, first + 1)
            x = x.diagonal(dim1=first, dim2=second)
            own = own[:first] + own[first + 1 : second] + own[second + 1 :] + letter
    dims = [dim for dim, letter in enumerate(own) if letter not in wanted]
    x = x.sum(dims) if dims else x
    return "".join(letter for letter in own if letter in wanted), x


def attention(query: Tensor, key: Tensor, value: Tensor, *masks: Any, **options: Any) -> Any:
    """Attention of grouped queries: each key and value for several heads of the queries."""
    if not options.pop("enable_gqa", False):
        return NotImplemented
    key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, *masks, **options)


def divided(x: Tensor, y: Tensor | float, *, rounding_mode: str | None = None) -> Any:
    """⌊x / y⌋, or x / y without its digits behind the point."""
    if rounding_mode == "floor":
        return x // y
    return (x / y).trunc() if rounding_mode and x.is_floating_point() else NotImplemented


def erf(x: Tensor) -> Tensor:
    """To 2 · 10⁻⁷: formula 7.1.26 of Abramowitz and Stegun; near 0, where this is too much, a series."""
    near, size = x.clamp(-0.5, 0.5), x.abs().clamp(max=9)  # erf(9) is 1
    small = near * _series(near * near, [2 / math.sqrt(math.pi) / c for c in (1, -3, 10, -42, 216, -1320)])
    t = 1 / (1 + 0.3275911 * size)
    by_t = _series(t, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))
    large = torch.where(x >= 0, 1.0, -1.0) * (1 - t * by_t * (-(size * size)).exp())
    return torch.where(x.abs() < 0.5, small, large)


def expm1(x: Tensor) -> Tensor:
    """exp(x) − 1, which is −(exp(−x) − 1) · exp(x) where x > 0; exact near 0, as an ELU is for x ≤ 0."""
    x = x if x.is_floating_point() else x.float()
    return F.elu(x.clamp(max=0)) - F.elu((-x).clamp(max=0)) * x.clamp(min=0).exp()


def sinh(x: Tensor) -> Tensor:
    """(exp(x) − exp(−x)) / 2, exact near 0."""
    return (expm1(x) - expm1(-x)) / 2


def log1p(x: Tensor) -> Tensor:
    """log(1 + x) = log(1 + y) + log(1 + (x − y) / (1 + y)), with |y| ≤ 1/2; exact near 0, where x = y.

    log(1 + y) = 2 artanh(y / (2 + y)), by its series.
    """
    y = x.clamp(-0.5, 0.5)
    s = y / (2 + y)
    return s * _series(s * s, [2 / k for k in range(1, 14, 2)]) + (1 + (x - y) / (1 + y)).log()


def hypot(x: Tensor, y: Tensor) -> Tensor:
    """√(x² + y²), of numbers whose squares may be no float32."""
    size = ((x.abs() + y.abs()) / 2).clamp(1e-30, 3e38)
    x, y = x / size, y / size
    return (x * x + y * y).sqrt() * size


def _series(x: Tensor, factors: Sequence[float]) -> Tensor:
    """Σ factors[i] · xⁱ, of at least two factors."""
    *others, before, last = factors
    return reduce(lambda total, factor: total * x + factor, reversed(others), x * last + before)


def lines_resized(kind: str) -> Callable[..., Tensor]:
    """The resize of lines (N, C, L) as that of images (N, C, L, 1)."""
    of_images = getattr(_aten, f"upsample_{kind}").default

    def resized(x: Tensor, size: Sequence[int], *how: Any) -> Tensor:
        result: Tensor = of_images(x.unsqueeze(-1), [*size, 1], *how, None)
        return result.squeeze(-1)

    return resized


def lines_resized_by(kind: str) -> Callable[..., Tensor]:
    """:func:`lines_resized` for a size or a factor."""
    of_images = getattr(_aten, f"upsample_{kind}").vec

    def resized(x: Tensor, size: Sequence[int] | None, *how: Any) -> Tensor:
        *corners, factor = how
        size = None if size is None else [*size, 1]
        factor = None if factor is None else [*factor, 1.0]
        result: Tensor = of_images(x.unsqueeze(-1), size, *corners, factor)
        return result.squeeze(-1)

    return resized


def lines_transposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Tensor:
    """The transposed convolution of lines (N, C, L) as that of images (N, C, L, 1)."""
    window = [[*stride, 1], [*padding, 0], [*output_padding, 0]]
    result = _aten.conv_transpose2d.input(
        x.unsqueeze(-1), weight.unsqueeze(-1), bias, *window, groups, [*dilation, 1]
    )
    return result.squeeze(-1)  # type: ignore[no-any-return]


def largest_of_lines(x: Tensor, size: Sequence[int]) -> tuple[Tensor, ...]:
    """The adaptive maximum of lines (N, C, L) as that of images (N, C, L, 1)."""
    found = _aten.adaptive_max_pool2d(x.unsqueeze(-1), [*size, 1])
    return tuple(each.squeeze(-1) for each in found)


def neighbours(x: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), *how: Any) -> Any:
    """Means over neighbours in the first of three dimensions, as in a local response norm."""
    width, *others = kernel
    plain = [(), ([0],), ([0, 0, 0],), ([0], False), ([0], False, True), ([0, 0, 0], False, True, None)]
    if others != [1, 1] or list(stride) != [1, 1, 1] or how not in plain:
        return NotImplemented
    length = x.shape[-3]
    windows = (length, length - width + 1, x.device)
    near = (_below(*windows).float() - _below(*windows, -width).float()) / width
    return (x.transpose(-3, -1) @ near).transpose(-3, -1)


_OWN: Mapping[Any, Callable[..., Any]] = {
    _aten.lerp.Scalar: lerp,
    _aten.lerp.Tensor: lerp,
    _aten.cdist.default: cdist,
    _aten.cumsum.default: cumsum,
    _aten.prod.dim_int: prod,
    _aten.topk.default: topk,
    _aten.one_hot.default: one_hot,
    _aten.heaviside.default: lambda x, at: torch.where(x > 0, 1, torch.where(x == 0, at, 0)),
    _aten.einsum.default: einsum,
    _aten.hypot.default: hypot,
    _aten.scaled_dot_product_attention.default: attention,
    _aten.div.Tensor_mode: divided,
    _aten.div.Scalar_mode: divided,
    _aten.frac.default: lambda x: x - x.trunc(),
    _aten.erf.default: erf,
    _aten.erfc.default: lambda x: 1 - erf(x),
    _aten.exp2.default: lambda x: (x * math.log(2)).exp(),
    _aten.expm1.default: expm1,
    _aten.log1p.default: log1p,
    _aten.log2.default: lambda x: x.log() / math.log(2),
    _aten.log10.default: lambda x: x.log() / math.log(10),
    _aten.sinh.default: sinh,
    _aten.cosh.default: lambda x: (x.exp() + (-x).exp()) / 2,
    _aten.bilinear.default: bilinear,
    _aten.logit.default: logit,
    _aten.logsumexp.default: logsumexp,
    _aten.pairwise_distance.default: pairwise_distance,
    _aten.tril.default: tril,
    _aten.triu.default: triu,
    _aten.upsample_linear1d.vec: lines_resized_by("bilinear2d"),
    _aten.upsample_nearest1d.vec: lines_resized_by("nearest2d"),
    _aten.upsample_linear1d.default: lines_resized("bilinear2d"),
    _aten.upsample_nearest1d.default: lines_resized("nearest2d"),
    _aten.conv_transpose1d.default: lines_transposed,
    _aten.adaptive_max_pool1d.default: largest_of_lines,
    _aten.avg_pool3d.default: neighbours,
}


@cache
def table() -> Mapping[Any, Callable[..., Any]]:
    """ATen operator → the function that writes it in simpler ones."""
    default: Any = torch.export.default_decompositions()
    found = {op: way for op, way in default.items() if op._schema.name.split("::")[1] in _KNOWN}
    return {**found, **_OWN}
