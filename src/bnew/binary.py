"""What all binary layers share: signs going in, and what may follow the product with the weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from bnew.deprecated import warn_of
from bnew.errors import BnewError, kind_of

T = TypeVar("T")


def channel_sizes(weight: Tensor, transposed: int = 0) -> Tensor:
    """``mean|W|`` of each output channel, in a shape that broadcasts over ``weight``.

    Output channels are the first dimension; of a transposed convolution of ``transposed`` groups, whose
    weight is (g · C_in, C_out, kh, kw), the second one in each group.
    """
    sizes = weight.abs()
    if not transposed:
        return sizes.mean(dim=tuple(range(1, weight.dim())), keepdim=True)
    inputs = len(weight) // transposed
    each = sizes.reshape(transposed, inputs, *weight.shape[1:]).mean(dim=(1, 3, 4), keepdim=True)
    return each.repeat_interleave(inputs, 1).flatten(0, 1)


def of_channels(sizes: Tensor, transposed: int = 0) -> Tensor:
    """(C_out,) from what :func:`channel_sizes` returns."""
    return sizes.view(transposed, -1, sizes.shape[1])[:, 0].flatten() if transposed else sizes.flatten()


_TRANSPOSED = "bnew_transposed"  # attribute of the weights that mark_transposed() has marked


def mark_transposed(weight: nn.Parameter, groups: int) -> None:
    """Note on the weight of a transposed convolution how it has its channels."""
    setattr(weight, _TRANSPOSED, groups)


def transposed_groups(weight: Tensor) -> int:
    """What :func:`mark_transposed` has noted, as :func:`channel_sizes` takes it; 0 of other weights."""
    groups: int = getattr(weight, _TRANSPOSED, 0)
    return groups


class BinaryBase(nn.Module):
    """What all binary layers share: signs going in, and what may follow the product with the weight."""

    input_sign: nn.Module
    output_scale: nn.Parameter | None
    shortcut: bool

    @property
    def transposed_groups(self) -> int:
        """The groups of a transposed convolution, see :func:`channel_sizes`; 0 of other layers."""
        return 0

    def set_up(self, input_sign: nn.Module, shortcut: bool = False) -> None:
        """What a real layer lacks that becomes binary: signs going in, no scale, perhaps a shortcut."""
        self.input_sign = input_sign
        self.register_parameter("output_scale", None)
        self.shortcut = shortcut
        self._mark_weight()

    def _mark_weight(self) -> None:
        weight = self._parameters.get("weight")
        if weight is not None and self.transposed_groups:
            mark_transposed(weight, self.transposed_groups)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """See ``torch.nn.Module``; every weight that the layer gets knows its channels."""
        super().register_parameter(name, param)
        if name == "weight":
            self._mark_weight()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._mark_weight()  # it may be a new one
        return self

    def add_scale(self) -> None:
        """Give the layer a learnable scale s of each output channel, so that its weight may be of any size.

        ``s = mean|W|``, which fits signs best (XNOR-Net, arXiv 1603.05279), and ``W ← W / s``: the layer
        computes what it did. Of a channel of zeros s is 1.
        """
        weight = cast(nn.Parameter, self.weight)
        with torch.no_grad():
            sizes = channel_sizes(weight, self.transposed_groups)
            sizes[sizes == 0] = 1
            weight.div_(sizes)
        self.output_scale = nn.Parameter(of_channels(sizes, self.transposed_groups))

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        parts = (self.output_scale is not None) * ["output_scale"] + self.shortcut * ["shortcut"]
        return ", ".join([super().extra_repr(), *parts])

    def _along_channels(self, values: Tensor) -> Tensor:
        """``values`` (C_out,) as they broadcast over the output: channels are last, or before its sides."""
        return values.view(-1, *(1,) * (cast(Tensor, self.weight).dim() - 2))

    def _finished(self, product: Tensor, input: Tensor) -> Tensor:
        """``s · product + bias``, and the input where the layer has a shortcut."""
        if self.output_scale is not None:
            product = product * self._along_channels(self.output_scale)
            if self.bias is not None:
                product = product + self._along_channels(cast(Tensor, self.bias))
        return product + input if self.shortcut else product

    @property
    def activation(self) -> nn.Module:
        """The old name of ``input_sign``."""
        warn_of("activation of a binary layer", "input_sign")
        return self.input_sign

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "activation":
            warn_of("activation of a binary layer", "input_sign")
            name = "input_sign"
        super().__setattr__(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        modules = state["_modules"]  # of a model that was pickled as a whole
        if "activation" in modules:
            modules["input_sign"] = modules.pop("activation")
        state["_parameters"].setdefault("output_scale", None)
        state.setdefault("shortcut", False)
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._mark_weight()  # a copy

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        _rename(state_dict, prefix)
        if self.output_scale is not None and f"{prefix}weight" in state_dict:
            # Of a layer without a scale, whose weight has its size.
            state_dict.setdefault(f"{prefix}output_scale", torch.ones_like(self.output_scale))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _rename(state: dict[str, Any], prefix: str) -> None:
    """Move what ``state`` has of the layer at ``prefix`` under an old name to the present one."""
    old = f"{prefix}activation."
    for key in [key for key in state if key.startswith(old)]:
        state[f"{prefix}input_sign.{key.removeprefix(old)}"] = state.pop(key)


def with_present_names(state: Mapping[str, T], model: nn.Module) -> dict[str, T]:
    """A state dict of ``model`` with the names that its tensors have now; ``load_state_dict`` takes both.

    Before ``input_sign`` had this name, the shift of a binary layer was ``<layer>.activation.shift``.
    """
    renamed = dict(state)
    for name, module in model.named_modules():
        if isinstance(module, BinaryBase):
            _rename(renamed, f"{name}." if name else "")
    return renamed


def checked_sign(given: object) -> nn.Module | None:
    """``given`` as an ``input_sign``; BnewError if it is no module."""
    if given is None or isinstance(given, nn.Module):
        return given
    raise BnewError(f"input_sign is {kind_of(given)}, but must be a module, such as bnew.RSign(channels)")
