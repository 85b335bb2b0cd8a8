"""Which training images are held out for validation and test: by count, or by name.

Of a published data set, a fixed random part is held out (:func:`hold_out`).

A user may add images later, so a user's own images are held out by name (:func:`hold_out_by_name`)::

    u = hash("<class>/<file>") in [0, 1)
    test and val missing:  test u < 0.2, val 0.2 ≤ u < 0.28, train u ≥ 0.28
    only val missing:      val u < 0.1, train u ≥ 0.1

If a class has no image in one of these ranges, its image with the next larger u is taken.

Copies (:mod:`bnew.data.copies`) stay together: an image with a copy in val or train moves there from test,
and one with a copy in train moves there from val. If this would leave a class without test or val images,
only equal pixels count as copies in that class, with a warning.

So a new image never moves the others, except for its copies and the few of a very small class. These may move
from test to val or from val to train, never back. An image that was trained on is therefore never tested on
later. Exceptions: an image is removed, a class has only copies held out, or a class becomes a scene.
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

RULE = "by name, 1"  # stored with a run; another rule would hold out other images
SPLIT_SEED = 1234  # never the run's seed, so that all runs share one test set
HELD_OUT = {"test": 5.0, "val": 10.0}  # a fifth for test, then a tenth of the rest for val


def held_out(val_split: float | None) -> dict[str, float]:
    """Part → which part of what is left, 1 / share, is held out for it; of val, ``val_split`` if given."""
    return HELD_OUT if val_split is None else {**HELD_OUT, "val": 1 / val_split}


def check_val_split(where: object, val_split: float | None, has_val: bool) -> None:
    """Check that a share for validation is asked for only where there are no images for it.

    Raises:
        BnewError: ``where`` has such images.
    """
    if val_split is not None and has_val:
        raise BnewError(f"{where} has images for validation of its own: leave out --val-split")


def hold_out(count: int, share: float) -> tuple[Tensor, Tensor]:
    """The kept and the held-out numbers of 0..count − 1, sorted; ⌊count / share⌋, at least 1, are held out.

    The choice is random but always the same.

    Raises:
        BnewError: ``count`` is below 2.
    """
    if count < 2:
        raise BnewError("there are too few training images to hold some out for validation: add more")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))
    held = min(max(1, int(count / share + 1e-9)), count - 1)  # 3 of 10 for 1 / 0.3, which is rounded up
    return order[held:].sort().values, order[:held].sort().values


def position(name: str) -> float:
    """u of the image ``<part>/<class>/<file>``, in [0, 1): a hash of ``<class>/<file>``."""
    # macOS stores é as two characters, other systems as one.
    text = f"{SPLIT_SEED}/{unicodedata.normalize('NFC', name.partition('/')[2])}".encode(
        errors="surrogateescape"
    )
    return int.from_bytes(blake2b(text, digest_size=6).digest(), "big") / 2**48


def hold_out_by_name(
    names: Sequence[str],
    labels: Numbers,
    classes: Sequence[str],
    copies: Copies,
    parts: Sequence[str],
    val_split: float | None = None,
) -> dict[str, Numbers]:
    """train and each of ``parts`` → the numbers of its images, sorted.

    Args:
        names: of the images, ``train/<class>/<file>``.
        labels: the number of each image's class.
        classes: the classes' names.
        copies: finds the images that are copies of others.
        parts: the missing parts: ``test`` and ``val``, or one of them.
        val_split: the share for val of what test leaves; a tenth by default.

    Raises:
        BnewError: a class has too few images, or every image that would be held out equals a training image.
    """
    u = np.array([position(name) for name in names])
    split = np.zeros(len(names), np.int64)  # index of the image's part in (*parts, "train")
    limits, limit = [], 0.0
    for part in parts:
        limit += (1 - limit) / held_out(val_split)[part]
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
    """Each image's part after the copies moved together."""
    moved = _moved(split, copies.near, np.arange(len(split)))
    emptied = [
        label
        for label in range(len(classes))
        if set(split[labels == label].tolist()) != set(moved[labels == label].tolist())
    ]
    if emptied:
        if is_first_process():
            logger.warning(
                "in %s nearly all images look alike: images with different pixels count as different there, "
                "although images held out as %s may be very similar to training images",
                _enumerated([classes[label] for label in emptied]), " and ".join(parts),
            )  # fmt: skip
        members = np.flatnonzero(np.isin(labels, emptied))
        moved[members] = _moved(split, copies.equal, members)[members]
    return moved


def _moved(split: Numbers, copied: Callable[[Numbers, Numbers], Mask], members: Numbers) -> Numbers:
    """``split`` after each of ``members`` moved to its copy that is furthest from test.

    This is transitive: if A is a copy of B and B of C, A moves to C's part.
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
    """The first three names, and the number of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more
