"""Finds held-out images that are copies of training images.

Two images of one class are copies if their pixels are equal, or if one is the other saved again or scaled.
This depends only on their two files: not on the size that training scales them to, and, except in a scene
(:data:`SCENE`), not on other images.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from bnew.errors import BnewError

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
T = TypeVar("T")

SIDE = 32  # side of the rendition, in pixels, by which pictures are compared
# Two pictures are the same if the root mean square difference of their renditions is below this share of the
# contrast of both. That holds for photographs of 224 pixels and more after JPEG at quality 30 or scaling by
# 0.5 to 2, and for most of 64 pixels after JPEG at quality 75.
NEAR = 0.1
# An image with more near images in its class than this shows a scene that was taken many times, for example
# by a fixed camera. Pictures of a scene do not count as copies.
SCENE = 8
CANDIDATES, COARSE = 16, 8  # the 16 nearest at 8×8 pixels are compared at SIDE
CHUNK = 512  # images that are compared at once


class Copies(Protocol):
    """Masks of which ``images`` have a copy of their class among ``others``; both are numbers of images."""

    def equal(self, images: Numbers, others: Numbers) -> Mask:
        """Where an image with the same pixels, or bytes, is among ``others``."""

    def near(self, images: Numbers, others: Numbers) -> Mask:
        """Where the same picture, equal or saved again, is among ``others``."""


@dataclass(frozen=True)
class Pictures:
    """:class:`Copies` of decoded images."""

    renditions: Tensor
    """uint8 (N, C, :data:`SIDE`, :data:`SIDE`)."""
    digests: npt.NDArray[np.void]
    """Hashes of each image's size and pixels."""
    labels: Numbers

    def equal(self, images: Numbers, others: Numbers) -> Mask:
        """See :class:`Copies`."""
        return _among(self._keys(images), set(self._keys(others)))

    def near(self, images: Numbers, others: Numbers) -> Mask:
        """See :class:`Copies`."""
        found = self.equal(images, others)
        for label in np.unique(self.labels[images[~found]]):
            asking = np.flatnonzero(~found & (self.labels[images] == label))
            members = np.flatnonzero(self.labels == label)
            found[asking] = self._near(images[asking], members, np.isin(members, others))
        return found

    def repeated(self, images: Numbers) -> Mask:
        """Which of ``images`` show the same picture as another one of them, equal or saved again."""
        keys = list(self._keys(images))
        count = Counter(keys)
        found = np.array([count[key] > 1 for key in keys], bool)
        for label in np.unique(self.labels[images]):
            members = images[self.labels[images] == label]
            found[self.labels[images] == label] |= self._near(members, members, np.ones(len(members), bool))
        return found

    def _keys(self, images: Numbers) -> Iterable[tuple[int, bytes]]:
        return zip(self.labels[images].tolist(), (d.tobytes() for d in self.digests[images]), strict=True)

    def _near(self, images: Numbers, members: Numbers, asked: Mask) -> Mask:
        """Where the same picture is among ``members[asked]``; all ``members`` count for scenes."""
        everything, wanted = torch.from_numpy(members), torch.from_numpy(asked)
        coarse = self._coarse(everything)
        squares = coarse.square().sum(1)
        found = []
        for chunk in _chunks(torch.from_numpy(images)):
            # d² minus |ours|², which is the same for all members
            ours = self._coarse(chunk)
            distances = torch.addmm(squares, ours, coarse.T, alpha=-2)
            a = self._fine(chunk)
            limit = NEAR * _contrast(a)
            # Averages over (SIDE / COARSE)² pixels differ no more than the pixels. 1 % allows for rounding.
            bound = 1.01 * (limit * COARSE / SIDE).square() - (1 - 1e-5) * ours.square().sum(1)
            distances, nearest = distances.topk(min(CANDIDATES, len(members)), largest=False)
            count, hits = torch.zeros(2, len(chunk), dtype=torch.int64)
            for distance, column in zip(distances.T, nearest.T, strict=True):
                rows = (distance <= bound).nonzero().flatten()
                other = column[rows]
                b = self._fine(everything[other])
                near = (a[rows] - b).norm(dim=1) < torch.minimum(limit[rows], NEAR * _contrast(b))
                near &= everything[other] != chunk[rows]
                count[rows] += near
                hits[rows] += near & wanted[other]
            found.append((hits > 0) & (count <= SCENE))
        return torch.cat(found).numpy()

    def _fine(self, images: Tensor) -> Tensor:
        return self.renditions[images].float().sub_(128).flatten(1)

    def _coarse(self, images: Tensor) -> Tensor:
        return torch.cat(
            [
                F.avg_pool2d(self.renditions[chunk].float() - 128, SIDE // COARSE).flatten(1)
                for chunk in _chunks(images)
            ]
        )


def _chunks(images: Tensor) -> tuple[Tensor, ...]:
    return images.split(CHUNK)  # type: ignore[no-any-return, no-untyped-call]


def _contrast(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)).norm(dim=1)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- files


@dataclass(frozen=True)
class SameFiles:
    """:class:`Copies` of files: only files with the same bytes are copies.

    A file is read only if another one of its class has the same size.
    """

    paths: Sequence[bytes]
    labels: Numbers
    workers: int
    """Number of reading threads."""

    def equal(self, images: Numbers, others: Numbers) -> Mask:
        """See :class:`Copies`.

        Raises:
            BnewError: a file cannot be read.
        """
        try:
            ours, theirs = (self._keys(_size, numbers) for numbers in (images, others))
            shared = set(ours) & set(theirs)
            found = _among(ours, shared)
            contents = self._keys(file_digest, others[_among(theirs, shared)])
            found[found] = _among(self._keys(file_digest, images[found]), set(contents))
        except OSError as error:
            raise BnewError(f"the images cannot be read ({error})") from error
        return found

    near = equal

    def _keys(self, look: Callable[[bytes], T], numbers: Numbers) -> list[tuple[int, T]]:
        values = map_files(look, [self.paths[i] for i in numbers], self.workers)
        return list(zip(self.labels[numbers].tolist(), values, strict=True))


def _among(keys: Iterable[Hashable], there: Collection[Hashable]) -> Mask:
    return np.array([key in there for key in keys], bool)


def map_files(look: Callable[[bytes], T], paths: Sequence[bytes], workers: int) -> list[T]:
    """``[look(path) for path in paths]`` in ``workers`` threads, each of which takes many paths at once."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor(workers) as pool:
        return [
            value for values in pool.map(lambda chunk: [look(p) for p in chunk], chunks) for value in values
        ]


def _size(path: bytes) -> int:
    return os.stat(path).st_size


def file_digest(path: bytes) -> bytes:
    """A hash of the file's bytes."""
    with open(path, "rb") as file:
        return blake2b(file.read(), digest_size=16).digest()
