"""How a method rides on an optimizer: by its step hooks, also where a step computes its own gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bnew.errors import BnewError

if TYPE_CHECKING:
    from bnew.methods.base import Binarizer


class Ride:
    """The hooks of ``method`` in ``optimizer``, until :meth:`end`.

    Without a closure the gradients are there when a step begins, and so is the method's turn. With one they
    are there when the closure has returned, and its forward pass needs the weights as they are between steps:
    the method's turn is then within the step, at the end of the closure.

    Raises:
        BnewError: an optimizer that calls its closure several times per step.
    """

    def __init__(self, method: Binarizer, optimizer: torch.optim.Optimizer) -> None:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise _several_times(optimizer)
        self.method = method
        self.closure: _Closure | None = None
        self.hooks = (
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        )

    def end(self) -> None:
        """Take the hooks out of the optimizer."""
        for hook in self.hooks:
            hook.remove()

    def _before(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """``args`` are the optimizer itself and what its step was given."""
        self.closure = None
        given = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(given):
            self.method.before_step(optimizer)
            return None
        self.closure = _Closure(given, self.method, optimizer)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": self.closure}
        return (args[0], self.closure, *args[2:]), kwargs

    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self.closure is not None and not self.closure.called:
            raise BnewError(
                f"{type(optimizer).__name__} has not called its closure, so the method had no turn before the "
                "weights changed: call backward(), then step() without a closure"
            )
        self.closure = None
        self.method.after_step()


class _Closure:
    """A step's closure, and the method's turn after it."""

    def __init__(
        self, closure: Callable[..., Any], method: Binarizer, optimizer: torch.optim.Optimizer
    ) -> None:
        self.closure, self.method, self.optimizer = closure, method, optimizer
        self.called = False
        self.left = _fingerprints(method.params)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.called:
            raise _several_times(self.optimizer)
        self.called = True
        found = _fingerprints(self.method.params)
        loss = self.closure(*args, **kwargs)
        # Only now, as it makes an accelerator wait.
        if any(flags([_other(a, b) for a, b in zip(self.left, found, strict=True)])):
            raise BnewError(
                f"{type(self.optimizer).__name__} changes the weights before it calls its closure, which a "
                "method cannot follow: attach it to the optimizer that this one steps (base_optimizer, in SAM)"
            )
        self.method.before_step(self.optimizer)
        return loss


def _several_times(optimizer: torch.optim.Optimizer) -> BnewError:
    return BnewError(
        f"{type(optimizer).__name__} evaluates the loss several times per step, with other weights each time, "
        "which binary weights do not allow: use an optimizer such as Adam or SGD"
    )


@torch.no_grad()
def _fingerprints(params: list[nn.Parameter]) -> list[Tensor]:
    """A number per tensor, the same only if what it holds is."""
    return list(torch._foreach_norm([p.detach() for p in params])) if params else []


def _other(a: Tensor, b: Tensor) -> Tensor:
    return (a != b) & ~(a.isnan() & b.isnan())


def flags(values: list[Tensor]) -> list[bool]:
    """``values``, each one boolean, in Python; an accelerator is waited for once."""
    if not values:
        return []
    answers: list[bool] = torch.stack([v.to(values[0].device) for v in values]).tolist()
    return answers
