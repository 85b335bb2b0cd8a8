"""What all methods share: a binarizer rides on any optimizer by PyTorch's own step hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from bnew.errors import BnewError
from bnew.layers import hard_sign


def binary_value(weight: Tensor, scale: bool = False) -> Tensor:
    """``sign(w)``, or with ``scale`` ``mean|w| · sign(w)`` with the mean over each output channel.

    Same shape as ``weight`` (C_out, ...); the scale is XNOR-Net's (arXiv 1603.05279).
    """
    binary = hard_sign(weight)
    if scale:
        binary *= weight.abs().mean(dim=tuple(range(1, weight.dim())), keepdim=True)
    return binary


class Binarizer:
    """Decides, step by step, what value each binary weight has.

    It attaches to any ``torch.optim.Optimizer``, so it works in any training loop, with any schedule,
    under DDP or mixed precision. **Between steps a parameter holds what the forward pass should use.**
    A method overrides up to four hooks: ``_start``, ``_before``, ``_after`` and :meth:`values`. This class
    itself leaves the weights alone, which is how a real network (a teacher) is trained.

    Args:
        params: the weights to binarize, from :func:`bnew.binary_parameters`.
        total_steps: optimizer steps of the whole run, for methods with a schedule.
        scale: binary values are ``± mean|w|`` of the output channel in place of ±1.

    Raises:
        BnewError: no weights to binarize, or what cannot be one; ``total_steps`` below 1, or missing where
            it is needed.
    """

    needs_total_steps = False

    def __init__(
        self, params: Iterable[nn.Parameter], total_steps: int | None = None, *, scale: bool = False
    ) -> None:
        self.params = list(params)
        if not self.params and type(self) is not Binarizer:
            raise BnewError(
                f"{type(self).__name__} has no weights to binarize: the model has no binary layers; "
                "make some with bnew.binarize(model), or choose a model such as birealnet20"
            )
        if vectors := [tuple(p.shape) for p in self.params if p.dim() < 2]:
            raise BnewError(
                f"a parameter of shape {vectors[0]} is the weight of no binary layer: give "
                "bnew.binary_parameters(model), not all parameters"
            )
        if total_steps is None and self.needs_total_steps:
            raise BnewError(f"{type(self).__name__} follows a schedule and needs total_steps")
        if total_steps is not None and total_steps < 1:
            raise BnewError(f"total_steps is {total_steps}, but must be at least 1")
        if not isinstance(scale, bool):
            raise BnewError(f"scale is {scale!r}, but must be True or False")
        self.total_steps = total_steps or 1
        self.scale = scale
        self.step = 0
        self.frozen = False
        self._attached = False
        self._overflow = False
        self._grad_scale = 1.0
        self._last_signs: list[Tensor] | None = None

    # ------------------------------------------------------------------ what a method overrides

    def _start(self) -> None:
        """Put the first values into the parameters and make the state; called by :meth:`attach`."""

    def _before(self) -> None:
        """Just before the optimizer's step: gradients are there."""

    def _after(self) -> None:
        """Just after the optimizer's step."""

    def values(self) -> list[Tensor]:
        """The real values whose signs are the binary weights: the parameters, or a latent copy."""
        return [p.detach() for p in self.params]

    def _state(self) -> dict[str, list[Tensor]]:
        """Tensors of the method's own, by name; none by default."""
        return {}

    def schedule(self) -> dict[str, float]:
        """The scheduled quantities at this step, by name, for logging (λ, β, γ)."""
        return {}

    # ------------------------------------------------------------------ riding on the optimizer

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Ride on ``optimizer`` from now on; returns self.

        Raises:
            BnewError: a weight to binarize is not among the optimizer's parameters; attached already.
        """
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = sum(id(p) not in held for p in self.params)
        if missing:
            raise BnewError(
                f"{missing} of the {len(self.params)} weights to binarize are not in the optimizer: "
                "give it model.parameters()"
            )
        if self._attached:
            raise BnewError("this method rides on an optimizer already: make a new one for another")
        self._attached = True
        optimizer.register_step_pre_hook(lambda opt, *_: self.before_step(opt))
        optimizer.register_step_post_hook(lambda *_: self.after_step())
        with torch.no_grad():
            self._start()
        return self

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Called by the optimizer before each step."""
        # A GradScaler leaves it to a fused optimizer to unscale, and to pass the step by on overflow.
        found_inf, grad_scale = (getattr(optimizer, name, None) for name in ("found_inf", "grad_scale"))
        self._overflow = found_inf is not None and bool(found_inf.item())
        self._grad_scale = 1.0 if grad_scale is None else float(grad_scale.item())
        if self._overflow:
            return
        if self.frozen:
            # Without a gradient an optimizer passes a parameter by, momentum and weight decay included.
            # (requires_grad = False would do too, but breaks DDP and makes torch.compile start again.)
            for p in self.params:
                p.grad = None
        else:
            self._before()

    @torch.no_grad()
    def after_step(self) -> None:
        """Called by the optimizer after each step."""
        if self._overflow:
            return
        if not self.frozen:
            self._after()
        self.step += 1

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1]."""
        return min(self.step / self.total_steps, 1.0)

    # ------------------------------------------------------------------ binary values

    @contextmanager
    def binarized(self) -> Iterator[None]:
        """Inside, the weights are at their binary values; afterwards they are as they were.

        The real values are held meanwhile, so do not step the optimizer inside.
        """
        held = [p.detach().clone() for p in self.params]
        self._set_binary()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, real in zip(self.params, held, strict=True):
                    p.copy_(real)

    def freeze(self) -> None:
        """Set the weights to their binary values for good; the optimizer passes them by from now on."""
        if not self.frozen:
            self._set_binary()
            self.frozen = True
            for tensors in self._state().values():
                tensors.clear()

    @torch.no_grad()
    def _set_binary(self) -> None:
        if not self.frozen:
            for p, value in zip(self.params, self.values(), strict=True):
                p.copy_(binary_value(value, self.scale))

    # ------------------------------------------------------------------ how far it is

    def _magnitudes(self) -> list[Tensor]:
        """|w| of each layer, or 1 where the weights are binary for good (whatever the scale)."""
        if self.frozen:
            return [torch.ones_like(p) for p in self.params]
        return [value.abs() for value in self.values()]

    @torch.no_grad()
    def layer_distances(self) -> list[float]:
        """:meth:`distance` of each layer, in the order of the parameters."""
        return [float((1 - m).abs().mean()) for m in self._magnitudes()]

    def distance(self) -> float:
        """Mean of ``||w| − 1|`` over all binary weights; 0 when every weight is at ±1.

        w is what the method takes the sign of: the weight itself for BNEW, the latent copy for STE,
        tanh(βw) for mirror descent.
        """
        return self._mean(self.layer_distances())

    @torch.no_grad()
    def layer_shares_at_one(self) -> list[float]:
        """:meth:`share_at_one` of each layer."""
        return [float((m == 1).float().mean()) for m in self._magnitudes()]

    def share_at_one(self) -> float:
        """The share of the weights that sit exactly at −1 or +1."""
        return self._mean(self.layer_shares_at_one())

    @torch.no_grad()
    def layer_flips(self) -> list[int]:
        """How many weights of each layer have another sign than when this (or flips) was last asked.

        The first call starts the counting and gives zeros. Costs one bit a weight from then on.
        """
        signs = [_pack_signs(value) for value in self.values()]
        last, self._last_signs = self._last_signs or signs, signs
        return [_count_bits(a ^ b) for a, b in zip(last, signs, strict=True)]

    def flips(self) -> int:
        """How many binary weights have another sign than when last asked."""
        return sum(self.layer_flips())

    def _mean(self, by_layer: list[float]) -> float:
        sizes = [p.numel() for p in self.params]
        total = sum(sizes)
        return sum(n * x for n, x in zip(sizes, by_layer, strict=True)) / total if total else 0.0

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside the parameters themselves."""
        return {
            "method": type(self).__name__,
            "shapes": self._shapes(),
            "step": self.step,
            "frozen": self.frozen,
            "last_signs": self._last_signs,
            **{name: list(tensors) for name, tensors in self._state().items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state`` was.

        Attach first, as that puts the first values into the parameters; then load the parameters with the
        model, and this, in either order.

        Raises:
            BnewError: ``state`` is of another method or of other weights.
        """
        if state.get("method") != type(self).__name__:
            raise BnewError(f"this state is not one of {type(self).__name__}, but of {state.get('method')}")
        if state["shapes"] != self._shapes():
            raise BnewError("this state does not fit the weights to binarize: it is of another model")
        self.step, self.frozen = state["step"], state["frozen"]
        device = self.params[0].device if self.params else None
        self._last_signs = state["last_signs"] and [s.to(device) for s in state["last_signs"]]
        for name, tensors in self._state().items():
            # Once frozen there are none.
            tensors[:] = [t.clone().to(p) for t, p in zip(state[name], self.params, strict=not self.frozen)]

    def _shapes(self) -> list[list[int]]:
        return [list(p.shape) for p in self.params]


def _pack_signs(weight: Tensor) -> Tensor:
    """The signs of ``weight``, eight to a byte (uint8)."""
    bits = (weight >= 0).flatten().to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -len(bits) % 8)).view(-1, 8)
    return (bits << torch.arange(8, device=bits.device, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _count_bits(packed: Tensor) -> int:
    return int((packed[:, None] >> torch.arange(8, device=packed.device, dtype=torch.uint8) & 1).sum())
