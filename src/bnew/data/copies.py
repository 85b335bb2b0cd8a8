"""Which images that are to be held out of training are copies of training images.

Copies are of one class: pixels that are equal, or a picture that was saved or scaled anew. Whether an image
is a copy of another depends on their files alone, neither on the size to which training brings them nor,
except in a scene (:data:`SCENE`), on a third.
"""

from __future__ import annotations

import os
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

SIDE = 32  # pixels of the rendition by which pictures are compared
# Two pictures are the same if their renditions differ by less than this share of the contrast of either, root
# mean square. Photographs of 224 pixels and more are within after JPEG at quality 30 and after scaling by 0.5
# to 2; most of 64 pixels at quality 75.
NEAR = 0.1
# An image with more near ones in its class than this shows a scene that was taken many times, as by a fixed
# camera. Its pictures are different ones.
SCENE = 8
CANDIDATES, COARSE = 16, 8  # so many are compared, the nearest on 8×8 pixels
CHUNK = 512  # images that are compared at once


class Copies(Protocol):
    """Which of ``images`` have a copy of their class among ``others``; both are numbers of images."""

    def equal(self, images: Numbers, others: Numbers) -> Mask:
        """Where the same pixels, or bytes, are among ``others``."""

    def near(self, images: Numbers, others: Numbers) -> Mask:
        """Where the same picture is among ``others``, equal or saved anew."""


@dataclass(frozen=True)
class Pictures:
    """:class:`Copies` of decoded images."""

    renditions: Tensor
    """uint8 (N, C, :data:`SIDE`, :data:`SIDE`)."""
    digests: npt.NDArray[np.void]
    """A hash of all pixels of each image."""
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

    def _keys(self, images: Numbers) -> Iterable[tuple[int, bytes]]:
        return zip(self.labels[images].tolist(), (d.tobytes() for d in self.digests[images]), strict=True)

    def _near(self, images: Numbers, members: Numbers, asked: Mask) -> Mask:
        """Where the same picture is among ``members[asked]``; it is a scene by all of ``members``."""
        everything, wanted = torch.from_numpy(members), torch.from_numpy(asked)
        coarse = self._coarse(everything)
        squares = coarse.square().sum(1)
        found = []
        for chunk in _chunks(torch.from_numpy(images)):
            # d² less a term that is the same for all members
            ours = self._coarse(chunk)
            distances = torch.addmm(squares, ours, coarse.T, alpha=-2)
            a = self._fine(chunk)
            limit = NEAR * _contrast(a)
            # Averages of (SIDE / COARSE)² pixels differ no more than these do; 1 % is for rounding.
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
    """:class:`Copies` of files, of which those alone are copies that have the same bytes.

    A file is read only where another of its class has its size.
    """

    paths: Sequence[bytes]
    labels: Numbers
    workers: int
    """Threads that read."""

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
    """``look`` of every path, in order, by so many threads, each of which takes many paths at once."""
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
