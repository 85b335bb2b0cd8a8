"""Counts of a classifier's results, and the shares and intervals that follow from them; NumPy only."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnew.errors import BnewError

Integers = npt.NDArray[np.int64]
Picture = npt.NDArray[np.uint8]


def confusion(labels: Integers, predicted: Integers, classes: int) -> Integers:
    """The confusion matrix (classes, classes): how many images of class i (row) got class j (column)."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


@dataclass(frozen=True, eq=False)
class Mistake:
    """An image that got a wrong class."""

    label: int
    """The number of its class."""
    predicted: int
    share: float
    """The probability that the network gave to its class."""
    predicted_share: float
    """The probability that the network gave to the wrong class."""
    picture: Picture | None
    """The image as the network saw it, uint8 (H, W, C) with 1 or 3 channels; None if it is no picture."""
    file: Path | None = None
    """The image's file, of a packed file's images."""


class Tally:
    """What is counted of a classifier's results, batch by batch.

    Of equal outputs, that of the class with the lowest number counts as the greatest. So the result depends
    neither on the machine nor on the size of a batch.

    Args:
        classes: the number of classes.
        outputs: what the network returns: ``numbers``, whose softmax is the probabilities; ``softmax``,
            probabilities that sum to 1; or ``sigmoid``, independent probabilities, which have no loss.
        worst: of how many of the worst mistakes to keep the images.

    Raises:
        BnewError: there are fewer than two classes.
    """

    def __init__(self, classes: int, outputs: str = "numbers", worst: int = 0) -> None:
        if classes < 2:
            raise BnewError("the network has one output, but classes are compared of two or more")
        self.classes, self.outputs, self.worst = classes, outputs, worst
        self.confusion: Integers = np.zeros((classes, classes), np.int64)
        """See :func:`confusion`."""
        self.top5 = 0
        """The number of images whose class is among the five with the greatest outputs."""
        self.loss = 0.0
        """The sum over all images of −log p, with p the probability of the image's class."""
        self._mistakes: list[tuple[float, int, Mistake]] = []  # a heap, with the least bad first

    @property
    def images(self) -> int:
        """The number of images."""
        return int(self.confusion.sum())

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """The worst mistakes, those whose class has the lowest probability, the worst first."""
        return tuple(
            mistake for *_, mistake in sorted(self._mistakes, key=lambda kept: kept[:2], reverse=True)
        )

    def add(
        self,
        outputs: npt.NDArray[Any],
        labels: npt.NDArray[Any],
        picture: Callable[[int], Picture | None] = lambda _: None,
        files: Sequence[Path] | None = None,
    ) -> None:
        """Count a batch.

        Args:
            outputs: (N, classes).
            labels: the number of each image's class, (N,).
            picture: number in the batch → the image, as in :class:`Mistake`; called only for mistakes that
                are kept. None: there is no picture of it.
            files: the images' files, if they have any.

        Raises:
            BnewError: the arrays have other shapes, a label is no class, or an output is not finite.
        """
        if labels.ndim != 1 or outputs.shape != (len(labels), self.classes):
            raise BnewError(
                f"the network returns {outputs.shape} for images with labels {labels.shape}, but must return "
                f"a number for each of {self.classes} classes"
            )
        if labels.dtype.kind not in "iu":
            raise BnewError(f"the labels are {labels.dtype}, but must be the whole numbers of classes")
        labels = labels.astype(np.int64)
        strange = labels[(labels < 0) | (labels >= self.classes)]
        if len(strange):
            raise BnewError(f"an image has the label {strange[0]}, but there are {self.classes} classes")
        if not np.isfinite(outputs).all():
            raise BnewError("an output of the network is NaN or infinite, which says nothing of a class")
        rows, outputs = np.arange(len(labels)), outputs.astype(np.float64)
        true = outputs[rows, labels][:, None]
        above = (outputs > true) | ((outputs == true) & (np.arange(self.classes) < labels[:, None]))
        predicted, scores, before = outputs.argmax(1), self._logarithms(outputs), self.images
        self.top5 += int((above.sum(1) < 5).sum())
        self.loss -= float(scores[rows, labels].sum())
        self.confusion += confusion(labels, predicted, self.classes)
        for row in np.flatnonzero(predicted != labels).tolist() if self.worst else ():
            label, wrong = int(labels[row]), int(predicted[row])
            place = (
                -float(scores[row, label]),
                -(before + row),
            )  # of equally bad ones, the first counts as worse
            if len(self._mistakes) == self.worst and place <= self._mistakes[0][:2]:
                continue
            share, wrong_share = np.exp(scores[row, [label, wrong]]).tolist()
            file = files[row] if files else None
            mistake = Mistake(label, wrong, share, wrong_share, picture(row), file)
            heapq.heappush(self._mistakes, (*place, mistake))
            if len(self._mistakes) > self.worst:
                heapq.heappop(self._mistakes)

    def _logarithms(self, outputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The logarithms of the probabilities."""
        if self.outputs == "numbers":
            shifted = outputs - outputs.max(1, keepdims=True)
            return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
        with np.errstate(divide="ignore"):
            return np.log(outputs)

    def merge(self, other: Tally) -> None:
        """Count what ``other`` has counted of other images."""
        self.confusion += other.confusion
        self.top5 += other.top5
        self.loss += other.loss
        both = sorted((*self._mistakes, *other._mistakes), key=lambda kept: kept[:2])
        self._mistakes = both[-self.worst :]  # sorted, and so a heap
