"""What a user's own objects see of a run, and what a checkpoint keeps of them.

A callback is an object with any of these methods, as in Lightning Fabric::

    on_train_start(trainer)                   before the first step of this process
    on_train_epoch_start(trainer, epoch)
    on_train_batch_end(trainer, epoch, step)  after the optimizer's step
    on_train_epoch_end(trainer, epoch, row)   row: the epoch's row of metrics.csv; before the checkpoint
    on_train_end(trainer)                     after the test

``trainer.should_stop = True`` in any of them ends the run after that epoch. Every process calls them.

One that counts, such as epochs without progress, also has ``state_dict()``, of plain values and tensors, and
``load_state_dict(state)``. A resumed run then gives it back what it had counted; with several processes, what
the first one had.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from bnew.errors import BnewError, kind_of
from bnew.process import is_first_process

logger = logging.getLogger("bnew")


@runtime_checkable
class Stateful(Protocol):
    """A callback whose state is saved."""

    def state_dict(self) -> dict[str, Any]:
        """Its state, of plain values and tensors."""

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Continue from ``state``."""


def check_callbacks(callbacks: object) -> None:
    """Check that ``callbacks`` is a sequence of objects.

    Raises:
        BnewError: it is a single one, or a class is among them.
    """
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
        raise BnewError(f"callbacks is {kind_of(callbacks)}, but must be a list of objects")
    if classes := [each for each in callbacks if isinstance(each, type)]:
        name = classes[0].__name__
        raise BnewError(f"a callback is the class {name}, but must be an object of it: {name}()")


def states(callbacks: Iterable[object]) -> dict[str, Any]:
    """Name → state of those that have one.

    Raises:
        BnewError: a state holds what a checkpoint, from which no code is ever run, cannot hold.
    """
    found = {name: callback.state_dict() for name, callback in _named(callbacks).items()}
    for name, state in found.items():
        if (strange := _strange(state)) is not None:
            raise BnewError(
                f"the state_dict() of callback {name} holds {kind_of(strange)}, but a checkpoint holds only "
                "numbers, texts, lists, dictionaries and tensors"
            )
    return found


def restore(callbacks: Iterable[object], saved: Mapping[str, Any]) -> None:
    """Give each callback its saved state; one that is new starts anew, one that is gone is said."""
    own = _named(callbacks)
    for name, state in saved.items():
        if name in own:
            own[name].load_state_dict(state)
        elif is_first_process():
            logger.warning("the run was saved with a callback %s, which it now lacks", name)


def _named(callbacks: Iterable[object]) -> dict[str, Stateful]:
    """By the name of its class, and from the second on of a class by its number too."""
    seen: Counter[str] = Counter()
    named = {}
    for callback in callbacks:
        if isinstance(callback, Stateful):
            name = type(callback).__name__
            seen[name] += 1
            named[name if seen[name] == 1 else f"{name} {seen[name]}"] = callback
    return named


def _strange(state: object) -> object | None:
    """Something in ``state`` that is neither a plain value nor a tensor."""
    if isinstance(state, dict):
        parts: Iterable[object] = [*state, *state.values()]
    elif isinstance(state, list | tuple):
        parts = state
    else:
        plain = type(state) in (int, float, bool, str, type(None)) or type(state) is Tensor
        return None if plain else state
    return next((found for part in parts if (found := _strange(part)) is not None), None)
