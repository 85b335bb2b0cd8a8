"""How far the results of a packed file agree with those of its network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bnew.errors import BnewError, kind_of
from bnew.packing.tracing import named

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class ResultCheck:
    """The comparison of a result, over all images.

    Of a result (N, C, ...) of real numbers, C > 1, the channel of the greatest number is compared at each
    place, which is the class of logits. Whole numbers are compared as they are.
    """

    name: str
    """``logits`` (N, C), or ``result`` of another shape, if it is the only one and has no name."""
    others: float | None
    """Images with another :attr:`what`; of several places, an image counts by their share. None: neither."""
    median_difference: float
    """The median of the images' median differences."""
    max_difference: float
    strict_difference: float | None
    """The largest difference in images of the sample without a flipped sign.

    It is relative to the result's root mean square. None: there is no such image, or the numbers are whole.
    """
    what: str = "class"
    """What is compared: the ``class`` of logits; of another result, which may be no class, the ``channel`` of
    the greatest number at each place; or the whole ``number`` itself."""


class Comparison:
    """Compares one result of PyTorch, ``ours``, and of the file, ``theirs``: the sample, then all batches.

    Args:
        name: as :func:`by_name` has it.
        ours, theirs: the result for the sample.
        same: (N,), which images of the sample have no flipped sign.
    """

    def __init__(self, name: str, ours: Array, theirs: Array, same: Array) -> None:
        alone = "logits" if ours.ndim == 2 else "result"
        self.name = name if name and not name.isdigit() else f"result {name}" if name else alone
        self._what = "class" if self.name == "logits" else "channel" if _is_real(ours) else "number"
        self.strict_difference: float | None = None
        if _is_real(ours) and same.any():
            most = np.abs(ours - theirs)[same].max()
            with np.errstate(divide="ignore"):
                self.strict_difference = float(most / np.sqrt(np.mean(np.square(ours)))) if most else 0.0
        self._others: float | None = None
        self._medians: list[Array] = []
        self._most: list[float] = []

    def add(self, ours: Array, theirs: Array) -> None:
        """Count a batch of both."""
        differences = np.abs(ours.astype(np.float32) - theirs).reshape(len(ours), -1)
        self._medians.append(np.median(differences, 1))
        self._most.append(differences.max())
        real = _is_real(ours)
        if not real or (ours.ndim > 1 and ours.shape[1] > 1):
            other = ours.argmax(1) != theirs.argmax(1) if real else ours != theirs
            self._others = (self._others or 0.0) + float(other.reshape(len(ours), -1).mean(1).sum())

    def result(self) -> ResultCheck:
        """What was found."""
        median = float(np.median(np.concatenate(self._medians)))
        most, strict = float(np.max(self._most)), self.strict_difference
        return ResultCheck(self.name, self._others, median, most, strict, self._what)


def _is_real(ours: Array) -> bool:
    return bool(np.issubdtype(ours.dtype, np.floating))


def by_name(results: Any) -> dict[str, Array]:
    """The results of a network or of its file by name; without names 1, 2, …, or "" if there is only one.

    Raises:
        BnewError: one is no tensor.
    """
    found = [(name, np.asarray(each)) for each, name in named(results)]
    for _, each in found:
        if each.dtype.kind not in "fiub":
            raise BnewError(f"the model returns {kind_of(results)} that holds something else than tensors")
    if len(found) == 1:
        return dict(found)
    return {name or str(place): each for place, (name, each) in enumerate(found, 1)}


def shapes(results: dict[str, Array]) -> str:
    """What :func:`by_name` returns in words: ``(10,)``, or ``scores (10,), corner (2,)``."""
    return ", ".join(f"{name} {each.shape[1:]}".lstrip() for name, each in results.items())
