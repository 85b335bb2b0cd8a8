"""Image files, read and brought to size: the same for training as for a packed network; without torch.

An image has 8 bits a channel afterwards, whatever the file has (:data:`MODES`). It stands upright, as EXIF or
XMP say. Transparency is dropped: a pixel keeps its colour, also where nothing of it shows. Of an animation or
a file of several pages, the first image counts.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError, features

from bnew.errors import BnewError

MOST_PIXELS = 100_000_000  # of a scaled image, before it is cropped

# Pillow's names of the formats that are read. Others are no pictures of one size and 8 or 16 bits, or need
# another program to be drawn. TGA is the last to be tried, as its files have no mark of their own.
FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "TIFF",
    "WEBP", "TGA",
)  # fmt: skip
# Suffixes that Pillow may know by a plug-in alone, and its package.
PLUGINS: Mapping[str, str] = {
    ".avif": "pillow-avif-plugin",
    ".heic": "pillow-heif",
    ".heif": "pillow-heif",
    ".hif": "pillow-heif",
}

# ---------------------------------------------------------------------- the modes of Pillow's images

Convert = Callable[[Image.Image, str], Image.Image]
"""An image as Pillow opened it, and ``RGB`` or ``L`` → the image in that mode."""


class _RefusedError(ValueError):
    """What an image has that cannot be brought to 8 bits without guessing."""


def _convert(image: Image.Image, mode: str) -> Image.Image:
    return image.convert(mode)


def _by_way_of(between: str) -> Convert:
    """Two conversions, for a mode that Pillow does not convert at once."""
    return lambda image, mode: image.convert(between).convert(mode)


def _high_byte(image: Image.Image, mode: str) -> Image.Image:
    """16 bits: v // 256. Of fewer, which TIFF keeps as they are: the 8 upper ones of those."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
        raise _RefusedError("has 16 bits a pixel of which 0 is white")
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    return Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8)).convert(mode)


def _integers(image: Image.Image, mode: str) -> Image.Image:
    """32 bits, in which Pillow also keeps the 16 bits of PGM, and once kept those of PNG: v // 256."""
    if getattr(image, "format", None) in ("PNG", "PPM"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
    raise _RefusedError("has 32-bit or signed whole numbers as pixels (PIL's mode I)")


def _refuse(what: str) -> Convert:
    def refuse(image: Image.Image, mode: str) -> Image.Image:
        raise _RefusedError(what)

    return refuse


# What is done with an image of each of Pillow's modes.
MODES: Mapping[str, Convert] = {
    "1": _convert,
    "L": _convert,
    "LA": _convert,
    "La": _by_way_of("LA"),
    "P": _convert,
    "PA": _convert,
    "RGB": _convert,
    "RGBA": _convert,
    "RGBa": _by_way_of("RGBA"),
    "RGBX": _convert,
    "CMYK": _convert,
    "YCbCr": _convert,
    "LAB": _by_way_of("RGB"),
    "HSV": _convert,
    "I;16": _high_byte,
    "I;16L": _high_byte,
    "I;16B": _high_byte,
    "I;16N": _high_byte,
    "I": _integers,
    "F": _refuse("has 32-bit real numbers as pixels (PIL's mode F)"),
}


# ---------------------------------------------------------------------- reading


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
        BnewError: it cannot be read, or has pixels of a range that is not known.
    """
    with _errors_named(path):
        return _brought_to(_open(path, mode), size, resize)


@dataclass(frozen=True)
class Rendition:
    """What tells an image from others, at whatever size it is used."""

    pixels: npt.NDArray[np.uint8]
    """The whole image, scaled to a square: (side, side, C)."""
    digest: bytes
    """A hash of its size and of all its pixels, 16 bytes."""


def read_with_rendition(
    path: Path, mode: str, size: tuple[int, int] | None, side: int
) -> tuple[npt.NDArray[np.uint8], Rendition]:
    """:func:`read_image`, and the image's rendition on ``side``² pixels.

    Raises:
        BnewError: see :func:`read_image`.
    """
    with _errors_named(path):
        image = _open(path, mode)
        digest = blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).digest()
        small = image.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0)
        return _brought_to(image, size), Rendition(np.atleast_3d(np.asarray(small, np.uint8)), digest)


def _open(path: Path, mode: str) -> Image.Image:
    # Opened here: Pillow would map a file that it knows by name into memory, with the height and the width of
    # the image as EXIF turns it.
    with path.open("rb") as file, Image.open(file, formats=_formats()) as image:
        return _upright(image, mode)


def _brought_to(
    image: Image.Image, size: tuple[int, int] | None, resize: tuple[int, int] | None = None
) -> npt.NDArray[np.uint8]:
    if size:
        image = _centre(cover(image, *(resize or size)), *size)
    return np.atleast_3d(np.asarray(image, np.uint8))


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Have what Pillow raises when it reads ``path`` be a BnewError."""
    try:
        yield
    except FileNotFoundError:
        raise BnewError(f"there is no image '{path}'") from None
    except _RefusedError as error:
        raise BnewError(f"the image '{path}' {error}: save it as PNG, with 8 or 16 bits a channel") from error
    except UnidentifiedImageError as error:
        plugin = PLUGINS.get(path.suffix.lower())
        if plugin and path.suffix.lower() not in suffixes():
            raise BnewError(f"cannot read the image '{path}': install {plugin}") from error
        raise BnewError(
            f"cannot read the image '{path}' (of no known format): repair or remove it"
        ) from error
    # What PIL raises, depending on the format.
    except (OSError, SyntaxError, ValueError, ImportError, Image.DecompressionBombError) as error:
        raise BnewError(f"cannot read the image '{path}' ({error}): repair or remove it") from error


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of the files that are read, such as ``.jpg``."""
    formats = _formats()  # first, as plug-ins add suffixes
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


@cache
def _formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow knows, with its plug-ins where they are installed."""
    Image.init()
    if not features.check("avif"):
        _import("pillow_avif")
    if heif := _import("pillow_heif"):
        heif.register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _import(plugin: str) -> Any:
    try:
        return import_module(plugin)
    except ImportError:
        return None


def is_turned(content: bytes) -> bool:
    """Whether an image file with these bytes asks to be turned or mirrored, or cannot be asked."""
    if b"Exif" not in content and b"tiff:Orientation" not in content:
        return False
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as file:
            return _orientation(file) in TURNS
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return True


# EXIF's orientations, but for the usual 1.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(file: Image.Image, mode: str) -> Image.Image:
    """The image in ``mode``, turned as it is to be shown.

    By hand, as ``ImageOps.exif_transpose`` writes EXIF anew, which fails where other parts of it are damaged.
    """
    if file.mode not in MODES:
        raise _RefusedError(f"has pixels of PIL's mode {file.mode}, which is not known")
    if file.format == "PPM" and file.mode == "RGB" and _highest(file) > 255:
        raise _RefusedError("is a PPM with more than 8 bits a channel, which Pillow would round")
    image = MODES[file.mode](file, mode)
    turn = TURNS.get(_orientation(file))  # only now: in PNG, it may come after the pixels
    return image if turn is None else image.transpose(turn)


def _highest(file: Image.Image) -> int:
    """The value that stands for 255 in a PPM, which Pillow keeps for its decoder."""
    args = file.tile[0].args  # type: ignore[attr-defined]
    return args[1] if isinstance(args, tuple) else 255


def _orientation(file: Image.Image) -> int:
    """As EXIF or XMP say, 1 to 8; damaged, they say nothing."""
    try:
        return int(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises whatever its parser met
        return 1


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
