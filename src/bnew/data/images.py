"""Reads image files and scales them, identically for training and for packed networks; without torch.

The result has 8 bits per channel, whatever the file has (:data:`MODES`). It is upright, as EXIF or XMP say.
Transparency is dropped: even a fully transparent pixel keeps its colour. Of an animation or a file with
several pages, the first image is read.
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

MOST_PIXELS = 100_000_000  # the largest scaled image, before it is cropped

# Pillow's names of the formats that are read. The others hold no pictures of one size and 8 or 16 bits, or
# need another program. TGA is tried last, as its files have no signature.
FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "TIFF",
    "WEBP", "TGA",
)  # fmt: skip
# Suffix → package of the plug-in that Pillow may need for it.
PLUGINS: Mapping[str, str] = {
    ".avif": "pillow-avif-plugin",
    ".heic": "pillow-heif",
    ".heif": "pillow-heif",
    ".hif": "pillow-heif",
}

# ---------------------------------------------------------------------- the modes of Pillow's images

Convert = Callable[[Image.Image, str], Image.Image]
"""(image as Pillow opened it, ``RGB`` or ``L``) → the image in that mode."""


class _RefusedError(ValueError):
    """The image cannot be converted to 8 bits without guessing; the message says why."""


def _convert(image: Image.Image, mode: str) -> Image.Image:
    return image.convert(mode)


def _by_way_of(between: str) -> Convert:
    """Two conversions, for a mode that Pillow cannot convert directly."""
    return lambda image, mode: image.convert(between).convert(mode)


def _high_byte(image: Image.Image, mode: str) -> Image.Image:
    """16 bits per pixel: v // 256. With fewer bits, which TIFF allows: the upper 8 of them."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
        raise _RefusedError("has 16 bits per pixel with 0 as white")
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    return Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8)).convert(mode)


def _integers(image: Image.Image, mode: str) -> Image.Image:
    """32-bit mode. Pillow also uses it for 16-bit PGM, and older versions for 16-bit PNG: v // 256."""
    if getattr(image, "format", None) in ("PNG", "PPM"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
    raise _RefusedError("has 32-bit or signed whole numbers as pixels (PIL's mode I)")


def _refuse(what: str) -> Convert:
    def refuse(image: Image.Image, mode: str) -> Image.Image:
        raise _RefusedError(what)

    return refuse


# Pillow's mode → conversion.
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
    """An image file as uint8 (H, W, C).

    Args:
        path: the file.
        mode: PIL mode that the image is converted to: ``RGB`` or ``L``.
        size: (height, width) of the result, see :func:`cover`.
        resize: (height, width), no smaller than ``size``: the image is scaled to cover this, then its centre
            is cropped to ``size``.

    Raises:
        BnewError: it cannot be read, or its pixels have an unknown range.
    """
    with _errors_named(path):
        return _brought_to(_open(path, mode), size, resize)


@dataclass(frozen=True)
class Rendition:
    """Identifies an image, independently of the size at which it is used."""

    pixels: npt.NDArray[np.uint8]
    """The whole image, scaled to a square: (side, side, C)."""
    digest: bytes
    """A hash of its size and all its pixels, 16 bytes."""


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
    # Pass an open file, not a path: given a path, Pillow maps the file into memory with the height and width
    # that EXIF's orientation would swap.
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
    """Turn exceptions of Pillow while it reads ``path`` into a BnewError."""
    try:
        yield
    except FileNotFoundError:
        raise BnewError(f"there is no image '{path}'") from None
    except _RefusedError as error:
        raise BnewError(
            f"the image '{path}' {error}: save it as PNG with 8 or 16 bits per channel"
        ) from error
    except UnidentifiedImageError as error:
        plugin = PLUGINS.get(path.suffix.lower())
        if plugin and path.suffix.lower() not in suffixes():
            raise BnewError(f"cannot read the image '{path}': install {plugin}") from error
        raise BnewError(f"cannot read the image '{path}' (unknown format): repair or remove it") from error
    # Pillow raises one of these, depending on the format.
    except (OSError, SyntaxError, ValueError, ImportError, Image.DecompressionBombError) as error:
        raise BnewError(f"cannot read the image '{path}' ({error}): repair or remove it") from error


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of readable image files, such as ``.jpg``."""
    formats = _formats()  # loads the plug-ins, which register their suffixes
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


@cache
def _formats() -> tuple[str, ...]:
    """The formats of :data:`FORMATS` that Pillow and its installed plug-ins can read."""
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
    """Whether the orientation in these bytes of an image file says to turn or mirror it, or is unreadable."""
    if b"Exif" not in content and b"tiff:Orientation" not in content:
        return False
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as file:
            return _orientation(file) in TURNS
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return True


# EXIF's orientations, except for 1, which is upright.
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
    """The image in ``mode``, turned upright.

    ``ImageOps.exif_transpose`` would also rewrite EXIF, which fails if any other part of it is damaged.
    """
    if file.mode not in MODES:
        raise _RefusedError(f"has pixels of PIL's mode {file.mode}, which is not known")
    if file.format == "PPM" and file.mode == "RGB" and _highest(file) > 255:
        raise _RefusedError("is a PPM with more than 8 bits per channel, which Pillow would round")
    image = MODES[file.mode](file, mode)
    turn = TURNS.get(_orientation(file))  # after the pixels: PNG may store the orientation behind them
    return image if turn is None else image.transpose(turn)


def _highest(file: Image.Image) -> int:
    """The maximum value of a PPM, which Pillow keeps for its decoder."""
    args = file.tile[0].args  # type: ignore[attr-defined]
    return args[1] if isinstance(args, tuple) else 255


def _orientation(file: Image.Image) -> int:
    """The orientation in EXIF or XMP, 1 to 8; 1 if they are missing or damaged."""
    try:
        return int(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's parser raises many kinds
        return 1


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scale an image until it just covers ``height`` × ``width`` pixels, then crop its centre to that size.

    For a square, the pixels are those of torchvision's ``Resize(n)`` and ``CenterCrop(n)``.

    Raises:
        ValueError: the image is so thin that it would have more than 100 million pixels after scaling.
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
