"""Which images are the same picture: pixels in memory, which may have been saved or scaled anew, or files."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from bnew.errors import BnewError

Numbers = npt.NDArray[np.int64]

# Two images are near-copies if their distance is at most this share of the contrast of either: of what is
# left of them on 8×8 pixels, and of all pixels. On photographs, JPEG at quality 75, WebP at 80 and scaling to
# half the size are within; of the 50,000 training images of CIFAR-10, no two are.
COARSE, WHOLE = 0.06, 0.75
SIDE = 8
LUMA = (0.299, 0.587, 0.114)
HEAD = 16_384  # bytes of files of one size that are compared before all are
CHUNK, VALUES = 512, 2**24  # images that are compared, and values that are scaled, at once


def near_copies(images: Tensor) -> Numbers:
    """A number for each image, uint8 (N, C, H, W), the same for those that are the same picture.

    What the one is a near-copy of, and that another, is all one picture. An image of one colour has none but
    those that equal it. Whether two are near-copies depends on no third.
    """
    hashes = [blake2b(image.contiguous().numpy(), digest_size=16).digest() for image in images]
    _, first, number = np.unique(hashes, return_index=True, return_inverse=True)
    # Of each image the next one that it is known to be the same as, at last itself.
    same = list(range(len(first)))

    def last(i: int) -> int:
        while same[i] != i:
            same[i] = i = same[same[i]]
        return i

    for i, j in _alike_when_small(images[torch.from_numpy(first)]):
        if last(i) != last(j) and _alike(images[first[i]], images[first[j]]):
            same[last(i)] = last(j)
    return np.array([last(i) for i in range(len(same))])[number]


def _alike(image: Tensor, other: Tensor) -> bool:
    a, b = (_lightness(x[None].float()).flatten() for x in (image, other))
    return bool((a - b).norm() <= WHOLE * torch.minimum((a - a.mean()).norm(), (b - b.mean()).norm()))


def _alike_when_small(images: Tensor) -> Iterator[tuple[int, int]]:
    """The numbers of two images each whose :func:`_coarse` parts are near."""
    lightness, colours = _coarse(images)
    order = torch.argsort(lightness.mean(1))
    lightness, features = lightness[order], torch.cat((lightness, colours), 1)[order]
    mean = lightness.mean(1)
    radius = COARSE * (lightness - mean[:, None]).norm(dim=1)
    reach = mean + radius / lightness.shape[1] ** 0.5  # two means differ no more than that
    squares = features.square().sum(1)
    # d² = a² + b² − 2ab, rounded; of those that are near enough by that, d is computed.
    limit = radius.square() - squares * (1 - 1e-5)
    for start in range(0, len(order), CHUNK):
        rows = slice(start, start + CHUNK)
        columns = slice(start, int(torch.searchsorted(mean, reach[rows].max(), right=True)))
        rest = torch.addmm(squares[columns], features[rows], features[columns].T, alpha=-2)
        i, j = ((rest <= limit[rows, None]).nonzero() + start).T
        near = (features[i] - features[j]).norm(dim=1) <= torch.minimum(radius[i], radius[j])
        near &= i < j
        yield from zip(order[i[near]].tolist(), order[j[near]].tolist(), strict=True)


def _coarse(images: Tensor) -> tuple[Tensor, Tensor]:
    """The lightness of each image on 8×8 pixels and the rest of its colours on 2×2: (N, 64), (N, 12)."""

    def scaled(x: Tensor, side: int) -> Tensor:
        return F.adaptive_avg_pool2d(x, (min(side, x.shape[2]), min(side, x.shape[3])))

    parts = []
    for chunk in torch.split(images, max(1, VALUES // images[0].numel())):
        x = scaled(chunk.float() - 128, SIDE)
        lightness = _lightness(x)
        colours = scaled(x - lightness, 2)
        # A difference of all colours weighs as much as one of all lightness.
        weight = (lightness[0].numel() / colours[0].numel()) ** 0.5
        parts.append((lightness.flatten(1), weight * colours.flatten(1)))
    lightness, colours = (torch.cat(part) for part in zip(*parts, strict=True))
    return lightness, colours


def _lightness(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, 1, H, W)."""
    return x if x.shape[1] == 1 else LUMA[0] * x[:, :1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:]


def same_files(paths: Sequence[Path], workers: int) -> Numbers:
    """A number for each file, the same for those of the same bytes; ``workers`` threads read what they must.

    Raises:
        BnewError: a file cannot be read.
    """
    number = np.zeros(len(paths), np.int64)
    try:
        with ThreadPoolExecutor(workers) as pool:
            for look in (_size, _head, _content):
                # The others are copies of none.
                alike = np.flatnonzero(np.bincount(number)[number] > 1).tolist()
                seen: dict[Hashable, int] = {}
                for index, value in zip(alike, pool.map(look, [paths[i] for i in alike]), strict=True):
                    key = int(number[index]), value
                    number[index] = seen.setdefault(key, len(paths) + len(seen))
                number = np.unique(number, return_inverse=True)[1]
    except OSError as error:
        raise BnewError(f"the images cannot be read ({error})") from error
    return number


def _size(path: Path) -> int:
    return path.stat().st_size


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return blake2b(file.read(HEAD)).digest()


def _content(path: Path) -> bytes:
    return blake2b(path.read_bytes()).digest()
