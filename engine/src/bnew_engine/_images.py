"""Reads image files as a network takes them, with Pillow, which is imported only when it is needed.

The pixels are the same as in bnew's training and in ``bnew predict``. Files that might be read differently
are refused: pixels of 16 bits, rare modes and rare formats.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnew_engine._engine import EngineError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "TIFF", "WEBP")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
# EXIF's orientations, except for the usual 1: names of Pillow's transpositions.
TURNS: Mapping[int, str] = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_ORIENTATION = 0x0112
_MOST_PIXELS = 100_000_000  # of a scaled image, before it is cropped


def read_image(
    path: str | os.PathLike[str], shape: tuple[int, int, int], resize: tuple[int, int]
) -> NDArray[np.uint8]:
    """An image file as uint8 (H, W, C), for a network whose input is ``shape``, (C, H, W).

    The image is turned upright and scaled until it just covers ``resize`` pixels (height, width). Then its
    centre is cropped to (H, W).

    Raises:
        EngineError: Pillow is not installed; the network takes neither 1 nor 3 channels; or the file cannot
            be read, or its pixels have an unknown range.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise EngineError(f"the network takes {channels} channels, but image files have 1 or 3: give arrays")
    try:
        from PIL import Image
    except ImportError as error:
        raise EngineError(f"image files are read with Pillow ({error}): pip install pillow") from None
    Image.init()
    try:
        with (
            open(path, "rb") as file,
            Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as opened,
        ):
            if opened.mode not in MODES:
                raise ValueError(f"pixels of mode {opened.mode}: save it with 8 bits a channel")
            image: Image.Image = opened.convert("L" if channels == 1 else "RGB")
            turn = TURNS.get(_orientation(opened))  # after the pixels: PNG may store it behind them
            if turn:
                image = image.transpose(Image.Transpose[turn])
            image = _centre(_cover(image, *resize), height, width)
    # Pillow raises one of these, depending on the format.
    except (OSError, SyntaxError, ValueError, ImportError, Image.DecompressionBombError) as error:
        why = getattr(error, "strerror", None) or error
        raise EngineError(f"cannot read the image {os.fspath(path)!r}: {why}") from error
    return np.asarray(image, np.uint8).reshape(height, width, channels)


def _orientation(image: Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow's parser raises many kinds for damaged EXIF
        return 1


def _cover(image: Image, height: int, width: int) -> Image:
    """Scale an image bilinearly until it just covers ``height`` × ``width`` pixels, and crop its centre."""
    if width * image.height >= height * image.width:
        scaled = width, image.height * width // image.width
    else:
        scaled = image.width * height // image.height, height
    if scaled[0] * scaled[1] > _MOST_PIXELS:
        raise ValueError(f"it is too thin to be scaled to {width}×{height} pixels")
    if scaled != image.size:
        image = image.resize(scaled, 2)  # BILINEAR
    return _centre(image, height, width)


def _centre(image: Image, height: int, width: int) -> Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def are_paths(images: Any) -> bool:
    """Whether ``images`` is a path, or a list or tuple with a path in it."""
    if isinstance(images, str | os.PathLike):
        return True
    return isinstance(images, list | tuple) and any(isinstance(each, str | os.PathLike) for each in images)
