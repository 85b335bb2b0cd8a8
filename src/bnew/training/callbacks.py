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
from collections import Counter, OrderedDict
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
    found = {}
    for name, callback in _named(callbacks).items():
        state: object = callback.state_dict()
        if not isinstance(state, dict):
            raise BnewError(
                f"the state_dict() of callback {name} is {kind_of(state)}, but must be a dictionary"
            )
        if strange := _strange(state):
            raise BnewError(
                f"the state_dict() of callback {name} holds {kind_of(strange[0])}, but a checkpoint holds "
                "numbers, texts, lists, dictionaries and tensors alone"
            )
        found[name] = dict(state)
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


def _strange(state: object) -> list[object]:
    """What in ``state`` is neither a plain value nor a tensor, which ``torch.load`` would refuse."""
    if type(state) in (dict, OrderedDict):
        assert isinstance(state, dict)
        return [found for part in (*state, *state.values()) for found in _strange(part)]
    if type(state) in (list, tuple):
        assert isinstance(state, list | tuple)
        return [found for part in state for found in _strange(part)]
    return [] if type(state) in (int, float, bool, str, type(None), Tensor) else [state]
