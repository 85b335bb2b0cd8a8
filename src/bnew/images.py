"""Image files, read and brought to size: the same for training as for a packed network; without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from bnew.errors import BnewError

MOST_PIXELS = 100_000_000  # of a scaled image, before it is cropped


def read_image(
    path: Path, mode: str, size: tuple[int, int] | None = None, resize: tuple[int, int] | None = None
) -> npt.NDArray[np.uint8]:
    """An image file as (H, W, C) bytes.

    Args:
        path: the file.
        mode: PIL's, which the image is converted to: ``RGB`` or ``L``.
        size: (height, width) to bring it to, see :func:`cover`.
        resize: (height, width), no smaller, that it is to cover before the centre of that size is taken.

    Raises:
        BnewError: it cannot be read.
    """
    try:
        with Image.open(path) as file:
            image = file.convert(mode)
            if size:
                image = _centre(cover(image, *(resize or size)), *size)
    except FileNotFoundError:
        raise BnewError(f"there is no image '{path}'") from None
    # What PIL raises, depending on the format.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BnewError(f"cannot read the image '{path}' ({error}): repair or remove it") from error
    return np.atleast_3d(np.asarray(image, np.uint8))


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """The centre of an image that is scaled until it just covers ``height`` × ``width`` pixels.

    For a square, the same pixels as torchvision's ``CenterCrop(n)`` of ``Resize(n)``.

    Raises:
        ValueError: it is so thin that scaled it would have more than 100 million pixels.
    """
    if width * image.height >= height * image.width:
        scaled = width, image.height * width // image.width
    else:
        scaled = image.width * height // image.height, height
    if scaled[0] * scaled[1] > MOST_PIXELS:
        raise ValueError(f"it is too thin to be scaled to {width}×{height} pixels")
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    return _centre(image, height, width)


def _centre(image: Image.Image, height: int, width: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
