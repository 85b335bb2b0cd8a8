"""The base class of all methods: it rides on any optimizer by PyTorch's step hooks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from bnew.binary import transposed_groups
from bnew.errors import BnewError, is_whole, kind_of
from bnew.methods.outside import Outside
from bnew.methods.ride import Ride
from bnew.methods.values import differs, marks


class Binarizer(Outside):
    """Decides, step by step, what value each binary weight has.

    It attaches to any ``torch.optim.Optimizer``. So it works in any training loop, with any schedule, under
    DDP or mixed precision, and with closures. **Between steps a parameter holds the value that the forward
    pass uses.** A value set from outside (``load_state_dict``, ``copy_``, ``.data``) wins over the method's
    own copy. A method overrides what it needs of ``_start``, ``_before``, ``_after`` and ``_values``; one
    with a copy of its own also ``_forward_value``, ``_restart``, ``_show`` and ``_state``. This base class
    leaves the weights alone: it trains a real network, such as a teacher.

    The method's state is part of the optimizer's ``state_dict()``. A copied or unpickled method rides on no
    optimizer; after :meth:`attach` it continues from its state.

    Args:
        params: the weights to binarize, from :func:`bnew.binary_parameters`.
        total_steps: optimizer steps of the whole run, for methods with a schedule.
        scale: binary values are ``± mean|w|`` of the output channel in place of ±1.

    Raises:
        BnewError: there are no weights, or one cannot be that of a binary layer; ``total_steps`` is below 1,
            or missing where the method needs it.
    """

    needs_total_steps = False
    fall: float = 1.0
    """The learning rate of the binary weights falls with this power of their group's own fall."""

    def __init__(
        self, params: Iterable[nn.Parameter], total_steps: int | None = None, *, scale: bool = False
    ) -> None:
        if isinstance(params, nn.Module | Tensor) or not isinstance(params, Iterable):
            raise BnewError(
                f"{type(self).__name__} is given {kind_of(params)}, but needs the weights to binarize: "
                "bnew.binary_parameters(model)"
            )
        self.params = list(params)
        if strange := [p for p in self.params if not isinstance(p, Tensor)]:
            raise BnewError(
                f"one of the weights to binarize is {kind_of(strange[0])}: give bnew.binary_parameters(model)"
            )
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
        if total_steps is not None and not (is_whole(total_steps) and total_steps >= 1):
            raise BnewError(f"total_steps is {total_steps!r}, but must be a whole number of at least 1")
        if not isinstance(scale, bool):
            raise BnewError(f"scale is {scale!r}, but must be True or False")
        self.total_steps = total_steps or 1
        self.scale = scale
        self.transposed = [transposed_groups(p) for p in self.params]
        self.step = 0
        self.frozen = False
        self._counted = total_steps is not None
        self._started = False
        self._inside = False
        self._ride: Ride | None = None
        self._overflow = False
        self._grad_scale = 1.0
        self._last_signs: list[Tensor] | None = None
        self._left: list[Tensor] | None = None
        self._replaced: tuple[list[Tensor], list[Tensor]] | None = None

    def __repr__(self) -> str:
        """The method with its settings: ``BNEW(strength=9.29, ramp=3.76, ...)``."""
        chosen = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.settings.items())
        return f"{type(self).__name__}({', '.join(chosen)})"

    # ------------------------------------------------------------------ what a method overrides

    def _start(self) -> None:
        """Set the parameters' first values and make the state; called by the first :meth:`attach`."""

    def _before(self) -> None:
        """Called just before the optimizer's step, when the gradients exist."""

    def _after(self) -> None:
        """Called just after the optimizer's step."""

    def _show(self) -> None:
        """Set the parameters to the values that the next forward pass uses, if they do not hold them."""

    def _values(self) -> list[Tensor]:
        return [p.detach() for p in self.params]

    def _state(self) -> dict[str, list[Tensor]]:
        """Name → the method's own tensors, one per parameter; none by default."""
        return {}

    def schedule(self) -> dict[str, float]:
        """Name → scheduled quantity (λ, β, γ) at this step, for the log."""
        return {}

    @property
    def settings(self) -> dict[str, float | None]:
        """Name → setting, as passed or as derived from ``total_steps``, for the record."""
        return {}

    @property
    def binary_lr(self) -> float:
        """Factor for the learning rate of the binary weights; 1 for most methods."""
        return 1.0

    # ------------------------------------------------------------------ riding on the optimizer

    def param_groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        """Groups for an optimizer of ``model``: binary weights at ``lr · binary_lr``, all others at ``lr``.

        Raises:
            BnewError: a weight to binarize is not a parameter of ``model``.
        """
        binary = {id(p) for p in self.params}
        others = [p for p in model.parameters() if id(p) not in binary]
        self._check_held(model.parameters(), "the model: make the method with bnew.binary_parameters(model)")
        groups = [{"params": self.params, "lr": lr * self.binary_lr}, {"params": others, "lr": lr}]
        return [group for group in groups if group["params"]]

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Ride on ``optimizer`` from now on; returns self.

        The first call sets the parameters' first values. If a state was loaded before, the method continues
        from it instead.

        Raises:
            BnewError: a weight to binarize is not among the optimizer's parameters; the method is attached
                already; the optimizer evaluates the loss several times per step (LBFGS).
        """
        self._check_held(
            (p for group in optimizer.param_groups for p in group["params"]),
            "the optimizer: give it model.parameters(), and of a copied method those of the model that was "
            "copied with it",
        )
        if self._ride is not None:
            raise BnewError(
                "this method rides on an optimizer already: make a new one for another, or detach() it first"
            )
        self._ride = Ride(self, optimizer)
        with torch.no_grad():
            if self._started or self.frozen:
                self._take_in()
            else:
                replaced = [p.detach().clone() for p in self.params]
                self._start()
                self._leave(replaced)
        self._started = True
        return self

    def detach(self) -> None:
        """Leave the optimizer, which then updates the weights alone; :meth:`attach` continues."""
        if self._ride is not None:
            self._ride.end()
            self._ride = None

    def _check_held(self, params: Iterable[nn.Parameter], where: str) -> None:
        held = {id(p) for p in params}
        if missing := sum(id(p) not in held for p in self.params):
            raise BnewError(f"{missing} of the {len(self.params)} weights to binarize are not in {where}")

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Called before each optimizer step; with a closure within the step, once the closure has returned.

        Raises:
            BnewError: inside :meth:`binarized`.
        """
        if self._inside:
            raise BnewError("an optimizer's step inside binarized() would be lost: step after it")
        # A fused optimizer unscales the gradients of a GradScaler itself, and skips the step on overflow.
        found_inf, grad_scale = (getattr(optimizer, name, None) for name in ("found_inf", "grad_scale"))
        self._overflow = found_inf is not None and bool(found_inf.item())
        self._grad_scale = 1.0 if grad_scale is None else float(grad_scale.item())
        if self._overflow:
            return
        self._replaced = None
        self._take_in()
        if self.frozen:
            # An optimizer skips a parameter without a gradient, momentum and weight decay included.
            # requires_grad = False would break DDP and make torch.compile recompile.
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
        if not self.frozen:
            self._show()
            self._leave()
            if self._counted and self.step == self.total_steps + 1:
                warnings.warn(
                    f"{type(self).__name__} has taken more steps than its total_steps of {self.total_steps}: "
                    "give those of the whole run, epochs * len(loader)",
                    stacklevel=2,
                )

    @torch.no_grad()
    def undo_step(self) -> None:
        """Undo :meth:`before_step`, when the optimizer's step failed after it."""
        self._correct_all()

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return min(self.step / self.total_steps, 1.0)

    # ------------------------------------------------------------------ binary values

    def values(self) -> list[Tensor]:
        """The real values whose signs are the binary weights: the parameters or a latent copy."""
        self._take_in()
        return self._values()

    @contextmanager
    def binarized(self) -> Iterator[None]:
        """Context in which the weights hold their binary values; afterwards the real values are restored.

        The optimizer must not step inside. Weights that are set inside keep the values that were set.
        """
        held = [p.detach().clone() for p in self.params]
        self._set_binary(self.values())
        self._inside, outer = True, self._inside
        try:
            yield
        finally:
            self._inside = outer
            with torch.no_grad():
                for i, (p, real) in enumerate(zip(self.params, held, strict=True)):
                    if not (self.frozen or differs(p, self._binary(i, real)).any()):
                        p.copy_(real)

    def freeze(self, *, warn: bool = True) -> None:
        """Set the weights to their binary values permanently; the optimizer skips them from now on.

        Args:
            warn: warn if the run is not at its end or weights are still away from ±1: signing them then costs
                accuracy. Pass False to freeze early on purpose.
        """
        if self.frozen:
            self._take_in()
            return
        values = self.values()
        if warn:
            self._warn_unless_arrived()
        self._set_binary(values)
        self.frozen = self._started = True
        for tensors in self._state().values():
            tensors.clear()
        self._leave()

    @torch.no_grad()
    def _set_binary(self, values: list[Tensor]) -> None:
        if not self.frozen:
            for index, value in enumerate(values):
                self.params[index].copy_(self._binary(index, value))

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Everything but the parameters that a resumed run needs; ``optimizer.state_dict()`` has it too."""
        self._take_in()
        return {
            "method": type(self).__name__,
            "shapes": self._shapes(),
            "step": self.step,
            "frozen": self.frozen,
            "started": self._started,
            "marks": marks(self.params),
            "last_signs": self._last_signs,
            **{name: list(tensors) for name, tensors in self._state().items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``, and set the parameters to what the forward pass uses in it.

        Model and method may load in either order, before or after :meth:`attach`.

        Raises:
            BnewError: ``state`` is of another method or of other weights.
        """
        if state.get("method") != type(self).__name__:
            raise BnewError(f"this state is not one of {type(self).__name__}, but of {state.get('method')}")
        if state["shapes"] != self._shapes():
            raise BnewError("this state does not fit the weights to binarize: it is of another model")
        started = state.get("started", True)
        if self.step and not started:
            raise BnewError(
                "this state is from before attach(), but the method has taken steps: make a new one"
            )
        self.step, self.frozen = state["step"], state["frozen"]
        device = self.params[0].device if self.params else None
        self._last_signs = state["last_signs"] and [s.to(device) for s in state["last_signs"]]
        if not started:
            return
        self._put_back(state.get("marks"))
        self._started = True
        for name, tensors in self._state().items():
            tensors[:] = [t.clone().to(p) for t, p in zip(state[name], self.params, strict=not self.frozen)]
        self._correct_all()

    def _shapes(self) -> list[list[int]]:
        return [list(p.shape) for p in self.params]

    def __getstate__(self) -> dict[str, Any]:
        """A copy rides on no optimizer."""
        return {**self.__dict__, "_ride": None, "_inside": False}
