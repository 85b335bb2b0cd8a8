"""Weights that are set from outside: by ``load_state_dict``, ``copy_`` or ``.data``."""

from __future__ import annotations

import torch
from torch import Tensor

from bnew.methods.measures import Measures
from bnew.methods.values import binary_value, changed, differs, fingerprints, marks


class Outside(Measures):
    """What a method left in the parameters, and what it does where it finds something else there."""

    transposed: list[int]
    """Of each parameter, how it has its channels: see :func:`bnew.binary.channel_sizes`."""
    _inside: bool
    # Fingerprints of the parameters as the method left them; None: they are not known.
    _left: list[Tensor] | None
    # What the parameters held before the first values took their place, and the fingerprints of these.
    _replaced: tuple[list[Tensor], list[Tensor]] | None

    def _forward_value(self, index: int) -> Tensor:
        """What parameter ``index`` must hold between two steps, in a method that ``shows``."""
        return self.params[index].detach()

    def _restart(self, index: int, where: Tensor) -> None:
        """Start the method's own copy of parameter ``index`` from what the parameter holds there."""

    def _state(self) -> dict[str, list[Tensor]]:
        raise NotImplementedError

    @property
    def shows(self) -> bool:
        """Whether a parameter must hold a function of the method's state between two steps."""
        return type(self)._forward_value is not Outside._forward_value

    @property
    def _checked(self) -> bool:
        """Whether what the parameters must hold is known: a function of the state, or binary when frozen."""
        return self.frozen or self.shows

    def _leave(self, replaced: list[Tensor] | None = None) -> None:
        """Note what the parameters hold now, so that a change from outside is seen.

        ``replaced`` is what they held before the method's first values took their place.
        """
        now = fingerprints(self.params) if self._checked or replaced is not None else None
        self._left = now if self._checked else None
        self._replaced = None if replaced is None or now is None else (replaced, now)

    def _set_outside(self) -> list[int]:
        """The parameters that may not hold what the method left."""
        if not self._checked:
            return []
        if self._left is None:
            return list(range(len(self.params)))
        return changed(self._left, fingerprints(self.params))

    @torch.no_grad()
    def _take_in(self) -> None:
        """Weights that were set from outside win over the method's own copy of them."""
        if self._inside or not (self._started or self.frozen):
            return
        for tensors in self._state().values():  # where the model has been moved; once frozen there are none
            tensors[:] = [t.to(p) for t, p in zip(tensors, self.params, strict=not self.frozen)]
        if set_outside := self._set_outside():
            for index in set_outside:
                self._correct(index, restart=not self.frozen)
            self._leave()

    def _correct(self, index: int, *, restart: bool = False) -> None:
        """Make parameter ``index`` hold what it must, after a restart from what was set where it does not."""
        p = self.params[index]
        where = differs(p, self._due(index))
        if where.any() and restart:
            self._restart(index, where)
            where = differs(p, self._due(index))
            p.copy_(torch.where(where, self._due(index), p))  # what it shows already stays to the last bit
        elif where.any():
            p.copy_(self._due(index))

    def _correct_all(self) -> None:
        for index in range(len(self.params)) if self._checked else ():
            self._correct(index)
        self._leave()

    def _due(self, index: int) -> Tensor:
        """What parameter ``index`` must hold: when frozen a binary value, else the method's."""
        return self._binary(index, self.params[index].detach()) if self.frozen else self._forward_value(index)

    def _binary(self, index: int, real: Tensor) -> Tensor:
        """The binary value of ``real``, which stands for parameter ``index``."""
        return binary_value(real, self.scale, self.transposed[index])

    def _put_back(self, saved: list[float] | None) -> None:
        """Put back parameters that were loaded before the method's first values took their place.

        ``saved`` are the marks of the parameters when the state was saved, by which these are known; None of
        a state without: then first values that nobody has touched since are replaced.
        """
        if self._replaced is None:
            return
        weights, first = self._replaced
        untouched = set(range(len(weights))) - set(changed(first, fingerprints(self.params)))
        if saved is not None:
            each = zip(saved, marks(weights), marks(self.params), strict=True)
            untouched &= {
                i for i, (mark, before, now) in enumerate(each) if abs(before - mark) <= abs(now - mark)
            }
        for index in untouched:
            self.params[index].copy_(weights[index])
        self._replaced = None
