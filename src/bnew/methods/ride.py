"""How a method rides on an optimizer: by its step hooks, also when a closure computes the gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from bnew.errors import BnewError
from bnew.methods.values import changed, fingerprints

if TYPE_CHECKING:
    from bnew.methods.base import Binarizer


# Key of the method's state in the optimizer's; key of the highest learning rate so far in a group.
STATE = "bnew"
PEAK = "bnew_peak_lr"


class Ride:
    """The hooks of ``method`` in ``optimizer``, until :meth:`end`.

    Without a closure the gradients exist when a step begins, and the method's ``before_step`` runs then. With
    one they exist only at its end, and its forward pass needs the weights as they are between steps. So
    ``before_step`` runs at the end of the closure.

    The optimizer's ``state_dict()`` holds the method's state under ``STATE``; its ``load_state_dict()``
    restores it.

    Raises:
        BnewError: the optimizer calls its closure several times per step.
    """

    def __init__(self, method: Binarizer, optimizer: torch.optim.Optimizer) -> None:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise _several_times(optimizer)
        self.method, self.optimizer = method, optimizer
        self.closure: _Closure | None = None
        self.stepping = False
        self.rates: list[tuple[dict[str, Any], Any, Any]] = []  # group, its rate, its rate in this step
        self.within = 0  # nested steps: a step may call the step of its base class, which calls the hooks too
        self.hooks = (
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
            optimizer.register_state_dict_pre_hook(lambda _: self._reset_rates()),
            optimizer.register_state_dict_post_hook(self._add_state),
            optimizer.register_load_state_dict_pre_hook(self._take_state),
            optimizer.register_load_state_dict_post_hook(self._load_state),
        )
        self.taken: dict[str, Any] | None = None

    def end(self) -> None:
        """Remove the hooks from the optimizer."""
        self._reset_rates()
        for hook in self.hooks:
            hook.remove()

    def _before(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """``args`` are the optimizer and the positional arguments of its step."""
        if self.stepping and _steps_under_way(optimizer) > 1:
            self.within += 1
            return None
        if self.stepping:  # the last step raised an error
            self._reset_rates()
            self.method.undo_step()
        self.closure, self.stepping, self.within = None, True, 0
        given = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(given):
            self.begin()
            return None
        self.closure = _Closure(given, self)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": self.closure}
        return (args[0], self.closure, *args[2:]), kwargs

    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self.within:
            self.within -= 1
            return
        self.stepping = False
        if self.closure is not None and not self.closure.called:
            raise BnewError(
                f"{type(optimizer).__name__} has not called its closure, so the method had no turn before "
                "the weights changed: call backward(), then step() without a closure"
            )
        self.closure = None
        self._reset_rates()
        self.method.after_step()

    def begin(self) -> None:
        """The method's turn before the step, when the gradients exist; then its rates for this step."""
        self.method.before_step(self.optimizer)
        if self.method.fall == 1:
            return
        own = {id(p) for p in self.method.params}
        for group in self.optimizer.param_groups:
            if not own.isdisjoint(map(id, group["params"])):
                rate = group["lr"]
                peak = group[PEAK] = max(float(rate), group.get(PEAK, 0.0))
                if peak:
                    group["lr"] = peak * (rate / peak) ** self.method.fall
                    self.rates.append((group, rate, group["lr"]))

    def _reset_rates(self) -> None:
        """Give groups their own rates again: after the step, or when one that raised an error left them.

        A rate that was set since then, as by a scheduler after that error, stays.
        """
        for group, rate, lent in self.rates:
            if group["lr"] is lent:
                group["lr"] = rate
        self.rates = []

    def _add_state(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        state[STATE] = self.method.state_dict()

    def _take_state(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Remove the method's state from ``state``, a copy, before the optimizer's own class reads it."""
        self.taken = state.pop(STATE, None)  # None: saved from an optimizer without a method

    def _load_state(self, _: torch.optim.Optimizer) -> None:
        if self.taken is not None:
            self.method.load_state_dict(self.taken)
            self.taken = None


class _Closure:
    """A step's closure, followed by the method's turn."""

    def __init__(self, closure: Callable[..., Any], ride: Ride) -> None:
        self.closure, self.ride = closure, ride
        self.called = False
        self.left = fingerprints(ride.method.params)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.called:
            raise _several_times(self.ride.optimizer)
        self.called = True
        found = fingerprints(self.ride.method.params)
        loss = self.closure(*args, **kwargs)
        # Compared only after the closure, since this synchronizes with an accelerator.
        if changed(self.left, found):
            raise BnewError(
                f"{type(self.ride.optimizer).__name__} changes the weights before it calls its closure, "
                "which no method can follow: attach to the optimizer that this one steps (base_optimizer, "
                "in SAM)"
            )
        self.ride.begin()
        return loss


def _steps_under_way(optimizer: torch.optim.Optimizer) -> int:
    """How many calls of ``optimizer.step`` are on the stack."""
    code = type(optimizer).step.__code__  # PyTorch's wrapper, the same for every class
    frame: FrameType | None = sys._getframe()
    count = 0
    while frame is not None:
        count += frame.f_code is code and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return count


def _several_times(optimizer: torch.optim.Optimizer) -> BnewError:
    return BnewError(
        f"{type(optimizer).__name__} evaluates the loss several times per step, with other weights each, "
        "which binary weights do not allow: use an optimizer such as Adam or SGD"
    )
