"""What is held out of training images for validation and test: by count, or by name.

Of a published data set, a random part that is always the same (:func:`hold_out`).

A user's own images may become more, so there each is held out by its name (:func:`hold_out_by_name`). A hash
of the name below the folder train, ``<class>/<file>``, is a number u in [0, 1). Test has the images with u
below 1/5, val a tenth of the others: those below 0.28, or below 1/10 where there is a test already. A class
that has none there gives its image with the next larger u.

An image that is a copy of one that is further from being tested, of the same class, goes where that is
(:mod:`bnew.data.copies`): from test to val or train, from val to train. Where this would leave a class
without test or val images, only equal pixels count as copies in that class, with a warning.

So a new image changes nothing for the others, except for the few of a class of its own and for its copies:
those may move from test to val or from val to train, never back. What was trained on is thus never tested on
later, unless an image is removed, or a class comes to have copies alone held out or to be a scene.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from bnew.data.copies import Copies, Mask, Numbers
from bnew.errors import BnewError
from bnew.process import is_first_process

logger = logging.getLogger("bnew")

RULE = "by name, 1"  # is stored with a run: that of another one holds out other images
SPLIT_SEED = 1234  # never the run's seed, so that all runs share one test set
HELD_OUT = {"test": 5, "val": 10}  # one of so many of the images that are left, in this order


def hold_out(count: int, share: int) -> tuple[Tensor, Tensor]:
    """The numbers 0..count − 1 but for a ``share``-th of them, and these: random, always the same, sorted.

    Raises:
        BnewError: there are too few.
    """
    if count < 2:
        raise BnewError("there are too few training images to hold some out for validation: add more")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))
    held = max(1, count // share)
    return order[held:].sort().values, order[:held].sort().values


def position(name: str) -> float:
    """u of the image ``<part>/<class>/<file>``, in [0, 1): a hash of what follows the first ``/``."""
    # macOS writes é as two characters, others as one.
    text = f"{SPLIT_SEED}/{unicodedata.normalize('NFC', name.partition('/')[2])}".encode(
        errors="surrogateescape"
    )
    return int.from_bytes(blake2b(text, digest_size=6).digest(), "big") / 2**48


def hold_out_by_name(
    names: Sequence[str], labels: Numbers, classes: Sequence[str], copies: Copies, parts: Sequence[str]
) -> dict[str, Numbers]:
    """train and each of ``parts`` → the numbers of its images, sorted.

    Args:
        names: of the images, ``train/<class>/<file>``.
        labels: their classes' numbers.
        classes: the names of these.
        copies: says which images are copies of others.
        parts: what is missing: ``test`` and ``val``, or one of them.

    Raises:
        BnewError: a class has too few images, or all that would be held out equal training images.
    """
    u = np.array([position(name) for name in names])
    split = np.zeros(len(names), np.int64)  # 0 and on: a part's number, and after them train
    limits, limit = [], 0.0
    for part in parts:
        limit += (1 - limit) / HELD_OUT[part]
        limits.append(limit)
    both = " and ".join(parts)
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(u[members], kind="stable")]
        end = 0
        for limit in limits:
            end = max(end + 1, int(np.searchsorted(u[members], limit)))
            split[members[end:]] += 1
        if end >= len(members):
            raise BnewError(
                f"the class '{name}' has too few training images ({len(members)}): held out by their names "
                f"for {both}, they leave none to train on: add some, or make a folder for {both}"
            )
    split = _with_copies(split, labels, classes, copies, parts)
    for number, part in enumerate(parts):
        there = set(labels[split == number].tolist())
        if not there:
            raise BnewError(
                f"no image is left for {part} whose pixels are not those of a training image: add other "
                f"images, or make a folder {part}"
            )
        absent = [name for label, name in enumerate(classes) if label not in there]
        if absent and is_first_process():
            logger.warning(
                "%s has no image of %s, as those that it would have equal training images: add other "
                "images, or make a folder %s",
                part, _enumerated(absent), part,
            )  # fmt: skip
    return {part: np.flatnonzero(split == number) for number, part in enumerate((*parts, "train"))}


def _with_copies(
    split: Numbers, labels: Numbers, classes: Sequence[str], copies: Copies, parts: Sequence[str]
) -> Numbers:
    """Each image's part, after copies went to what they are copies of."""
    moved = _moved(split, copies.near, np.arange(len(split)))
    emptied = [
        label
        for label in range(len(classes))
        if set(split[labels == label].tolist()) != set(moved[labels == label].tolist())
    ]
    if emptied:
        if is_first_process():
            logger.warning(
                "in %s nearly all images look alike: those with other pixels count as different ones, though "
                "what is held out as %s may be very like what is trained on",
                _enumerated([classes[label] for label in emptied]), " and ".join(parts),
            )  # fmt: skip
        members = np.flatnonzero(np.isin(labels, emptied))
        moved[members] = _moved(split, copies.equal, members)[members]
    return moved


def _moved(split: Numbers, copied: Callable[[Numbers, Numbers], Mask], members: Numbers) -> Numbers:
    """``split`` with those of ``members`` that are copies of any further from test moved there.

    Likeness is handed on: with A like B and B like C, A goes where C is too.
    """
    moved = _moved_once(split, copied, members)
    while not np.array_equal(moved, split):
        split, moved = moved, _moved_once(moved, copied, members)
    return moved


def _moved_once(split: Numbers, copied: Callable[[Numbers, Numbers], Mask], members: Numbers) -> Numbers:
    moved, train = split.copy(), int(split.max())
    for part in range(train):
        for further in range(train, part, -1):
            held = members[(split[members] == part) & (moved[members] == part)]
            others = members[split[members] == further]
            moved[held[copied(held, others)]] = further
    return moved


def _enumerated(names: Sequence[str]) -> str:
    """The first three names and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more
