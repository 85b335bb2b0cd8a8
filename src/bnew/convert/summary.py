"""What is binary in a network, and what it weighs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from bnew.display import Fitting, Shown, new_table, short
from bnew.errors import BnewError
from bnew.layers import BinaryConvTranspose2d, named_binary_parameters
from bnew.modes import evaluating
from bnew.text import printable


@dataclass(frozen=True)
class LayerSummary:
    """One module of a :class:`Summary`; the fields' units are in :func:`summary`."""

    name: str
    kind: str
    binary_parameters: int
    real_parameters: int
    float_bytes: int
    packed_bytes: int
    binary_macs: int
    real_macs: int


_NUMBERS = {
    "binary_parameters": "binary",
    "real_parameters": "real",
    "float_bytes": "float\nbytes",
    "packed_bytes": "packed\nbytes",
    "binary_macs": "binary\nMACs",
    "real_macs": "real\nMACs",
}


@dataclass(frozen=True, repr=False)
class Summary(Shown):
    """What :func:`summary` returns: a row per module with parameters or MACs; prints as a table."""

    rows: tuple[LayerSummary, ...]

    @property
    def total(self) -> LayerSummary:
        """The sums of all rows."""
        columns = list(zip(*(astuple(row)[2:] for row in self.rows), strict=True))
        return LayerSummary("total", "", *(sum(column) for column in columns or [()] * 6))

    def __rich__(self) -> Fitting:
        return Fitting(
            self._table("{:,}".format, "kind", *_NUMBERS),
            self._table(short, "kind", *_NUMBERS),
            self._table(short, *_NUMBERS),
            self._table(short, "binary_parameters", "real_parameters", "packed_bytes", "binary_macs"),
        )

    def _table(self, number: Callable[[int], str], *fields: str) -> Table:
        titles = ["is"] if "kind" in fields else []
        numbers = [name for name in fields if name in _NUMBERS]
        table = new_table("layer", *titles, numbers=[_NUMBERS[name] for name in numbers])
        for row in (*self.rows, self.total):
            if row.name == "total":
                table.add_section()
            names = [row.name or "the model", row.kind][: 1 + len(titles)]
            values = (number(getattr(row, name)) for name in numbers)
            table.add_row(*(Text(printable(name)) for name in names), *values)
        return table


def summary(model: nn.Module, input_size: int | Sequence[int], *, in_chans: int = 3) -> Summary:
    """Parameters, sizes and multiply-accumulates of a network, by module.

    * Binary parameters are the weights of binary layers, whatever their values; all others are real.
      A parameter of two modules counts once.
    * Float bytes: 4 per parameter. Packed bytes: 4 per real parameter; a bit per binary weight, each
      output channel filled up to whole 32-bit words (of a transposed convolution, each output channel of
      each of its phases). Running statistics of batch norms count in neither: they are folded into the two
      real numbers per channel that do count. Of a batch norm without weights, two numbers per channel count
      as packed bytes.
    * MACs: multiply-accumulates of convolutions, linear layers and products of matrices for one input, by a
      pass over zeros in eval mode. Those of a binary layer are binary.

    The model is left as it was, on its device and in its training modes.

    Args:
        model: any module.
        input_size: (C, H, W), or (N, C, H, W), where N does not matter; (C,) or (N, C) for a network of
            linear layers; (C, L) or (N, C, L) for one of ``Conv1d`` without ``Conv2d``. One number is the
            side of images (``in_chans``, side, side), or the length L.
        in_chans: the channels of such images; sizes with more than one number have their own.

    Raises:
        BnewError: ``input_size`` is no such size, or the model does not take it.
    """
    lines = _has(model, nn.Conv1d) and not _has(model, nn.Conv2d)
    if isinstance(input_size, int):
        input_size = (in_chans, *(input_size,) * (1 if lines else 2))
    if len(input_size) not in (1, 2, 3, 4) or any(type(n) is not int or n < 1 for n in input_size):
        raise BnewError(f"input_size is {input_size!r}, but must be like (3, 32, 32) or (1, 3, 32, 32)")
    sample = tuple(input_size[1:] if len(input_size) in ((3,) if lines else (2, 4)) else input_size)
    macs = _macs(model, sample)
    binary = {id(weight) for _, weight in named_binary_parameters(model)}
    seen = set[int]()
    rows = []
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, own))
        statistics = _packed_statistics(module)
        if not own and not macs[module] and not statistics:
            continue
        weights = [p for p in own if id(p) in binary]
        n_binary = sum(p.numel() for p in weights)
        n_real = sum(p.numel() for p in own) - n_binary
        words = sum(_words(module, p) for p in weights)
        row = LayerSummary(
            name=name,
            kind=type(module).__name__,
            binary_parameters=n_binary,
            real_parameters=n_real,
            float_bytes=4 * (n_binary + n_real),
            packed_bytes=4 * (words + n_real + statistics),
            binary_macs=macs[module] if weights else 0,
            real_macs=0 if weights else macs[module],
        )
        rows.append(row)
    return Summary(tuple(rows))


def _packed_statistics(module: nn.Module) -> int:
    """How many numbers a file holds of a batch norm without weights: what its statistics multiply and add."""
    if not isinstance(module, _BatchNorm) or module.affine or not module.track_running_stats:
        return 0
    return 2 * module.num_features


def _words(layer: nn.Module, weight: nn.Parameter) -> int:
    """Words of 32 signs; of a transposed convolution, those of the convolutions that a file has."""
    if not isinstance(layer, BinaryConvTranspose2d):
        return len(weight) * -(-weight[0].numel() // 32)
    inputs = layer.in_channels // layer.groups
    taps = [rows * columns for rows, columns in layer.phases.counts]
    return layer.out_channels * sum(-(-inputs * n // 32) for n in taps)


def _has(model: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in model.modules())


def _macs(model: nn.Module, sample: tuple[int, ...]) -> Counter[nn.Module]:
    """Multiply-accumulates for one input of size ``sample``, by the module that computes them itself."""
    counter = FlopCounterMode(display=False)
    macs = Counter[nn.Module]()
    # Of each module that is being called: operations before it, and those of the modules that it called.
    calls: list[list[int]] = []

    def enter(module: nn.Module, args: Any) -> None:
        calls.append([counter.get_total_flops(), 0])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        before, of_others = calls.pop()
        of_all = counter.get_total_flops() - before
        macs[module] += (of_all - of_others) // 2
        if calls:
            calls[-1][1] += of_all

    hooks = [module.register_forward_pre_hook(enter, prepend=True) for module in model.modules()]
    hooks += [module.register_forward_hook(leave) for module in model.modules()]
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(()))
    try:
        with torch.no_grad(), evaluating(model), _constant(model), _plain_attention(), counter:
            model(like.new_zeros(1, *sample))
    except Exception as error:  # whatever a model of a user's own raises
        raise BnewError(f"{type(model).__name__} does not take an input of size {sample}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return macs


@contextmanager
def _constant(model: nn.Module) -> Iterator[None]:
    """No parameter wants a gradient: the counter looks for the origin of inputs that do, such as tokens."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in wanted:
            p.requires_grad_(False)
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention by products of matrices, which are counted; what is faster is one operator, which is not."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
