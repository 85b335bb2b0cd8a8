"""Every kind of image file: to 8 bits, upright, and the same in memory, streamed and for a packed network."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image, ImageMode, features

from bnew.data import sources as data
from bnew.data.images import MODES, _high_byte, _integers, is_turned, read_image, suffixes
from bnew.data.streaming import read
from bnew.errors import BnewError

SIXTEEN = np.array([[0, 0x00FF, 0x0100, 0x2000, 0x20FF, 0x7FFF], [0x8000, 0xE000, 0xE0FF, 0xFF00, 0xFFFF, 1]])
EIGHT = np.array([[0, 0, 1, 32, 32, 127], [128, 224, 224, 255, 255, 0]])


def grey(path: Path) -> npt.NDArray[np.int_]:
    """The one channel of an image, as all three ways of reading have it."""
    image = in_every_way(path)
    assert (image == image[:, :, :1]).all()
    return image[:, :, 0]


def in_every_way(path: Path) -> npt.NDArray[np.int_]:
    """An image (H, W, 3), which is the same in memory, streamed and for a packed network."""
    image = read_image(path, "RGB")
    assert np.array_equal(read(path).permute(1, 2, 0).numpy(), image)
    folder = path.parent / "folder"
    for part in ("train", "val", "test"):
        for name in ("ant", "bee"):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            (folder / part / name / path.name).write_bytes(path.read_bytes())
    data._load.cache_clear()
    held = data.load_in_memory("folder", folder).test.images[0]
    assert np.array_equal(held.permute(1, 2, 0).numpy(), image)
    return image.astype(int)


# Modes


def test_every_mode_of_pillow_is_in_the_table() -> None:
    """Those that are in no list of Pillow's own are tried."""
    candidates = {
        *MODES,
        *Image.MODES,
        "BGR;15",
        "BGR;16",
        "BGR;24",
        "I;12",
        "I;16S",
        "I;16BS",
        "I;32",
        "I;32B",
    }
    known = set()
    for mode in candidates:
        try:
            Image.new(mode, (1, 1))
            known.add(ImageMode.getmode(mode).mode)
        except (ValueError, KeyError):
            pass
    assert known == set(MODES)


def of_mode(mode: str) -> Image.Image:
    """An image of two pixels, 200 and 100 where that is grey."""
    image = Image.new("L", (2, 1), 200)
    image.putpixel((1, 0), 100)
    if mode in ("La", "RGBa"):  # colours times a share of 128 / 255
        straight = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
        straight.putalpha(128)
        return straight.convert(mode)
    if mode == "LAB":
        return Image.frombytes("LAB", (2, 1), bytes([206, 0, 0, 108, 0, 0]))
    if mode.startswith("I"):
        pixels = np.asarray(image, np.dtype("<u2")) * 256 + 255
        if mode == "I":
            return Image.fromarray(pixels.astype(np.int32))
        order = ">u2" if mode == "I;16B" else "<u2"
        return Image.frombytes(mode, (2, 1), pixels.astype(order).tobytes())
    return image.convert("1", dither=Image.Dither.NONE) if mode == "1" else image.convert(mode)


@pytest.mark.parametrize("to", ["RGB", "L"])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("I", "F")])
def test_a_mode_is_converted(mode: str, to: str) -> None:
    if mode == "LAB" and not features.check("littlecms2"):
        pytest.skip("Pillow converts LAB with Little CMS")
    image = of_mode(mode)
    assert image.mode == mode
    converted = MODES[mode](image, to)
    assert converted.mode == to
    expected = [255, 0] if mode == "1" else [200, 100]
    rounding = {"La": 1, "RGBa": 1, "LAB": 3}.get(mode, 0)
    for channel in np.atleast_3d(np.asarray(converted, int))[0].T:
        assert np.abs(channel - expected).max() <= rounding


def test_integers_and_real_numbers_are_refused_by_name(tmp_path: Path) -> None:
    for mode, what in (("I", "32-bit or signed whole numbers"), ("F", "32-bit real numbers")):
        path = tmp_path / f"{mode}.tif"
        of_mode(mode).save(path)
        message = rf"{mode}\.tif' has {what} as pixels \(PIL's mode {mode}\): save it as PNG"
        for reading in (lambda path: read_image(path, "RGB"), read):
            with pytest.raises(BnewError, match=message):
                reading(path)


def test_an_unknown_mode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (1, 1)).save(tmp_path / "a.png")
    monkeypatch.setattr("bnew.data.images.MODES", {})
    with pytest.raises(BnewError, match=r"a\.png' has pixels of PIL's mode L, which is not known: save it"):
        read_image(tmp_path / "a.png", "RGB")


# 16 bits


def png16(path: Path, pixels: npt.NDArray[np.int_], colour_type: int) -> None:
    """A PNG by hand: Pillow does not write colours of 16 bits. ``pixels``: (H, W) or (H, W, C)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def tiff(path: Path, pixels: npt.NDArray[np.int_], order: str, bits: int = 16, white: int = 1) -> None:
    """A greyscale TIFF by hand, little-endian ("<") or big-endian (">")."""
    height, width = pixels.shape
    if bits == 12:  # two in three bytes
        content = int("".join(f"{value:012b}" for value in pixels.flat), 2).to_bytes(
            pixels.size * 3 // 2, "big"
        )
    else:
        content = pixels.astype(f"{order}u2").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: white, 273: 134, 277: 1, 278: height}
    tags[279] = len(content)
    tags[339] = 1
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, 3, 1) + struct.pack(f"{order}HH", value, 0)
        for tag, value in tags.items()
    )
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    head = mark + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4)
    path.write_bytes(head + content)


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_16_bits(tmp_path: Path, colour_type: int, channels: int) -> None:
    """Once all of them were white from 0x0100 on."""
    pixels = SIXTEEN if channels == 1 else np.stack([SIXTEEN] * channels, 2)
    png16(tmp_path / "a.png", pixels, colour_type)
    assert np.array_equal(grey(tmp_path / "a.png"), EIGHT)


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_16_bits(tmp_path: Path, order: str) -> None:
    tiff(tmp_path / "a.tif", SIXTEEN, order)
    assert np.array_equal(grey(tmp_path / "a.tif"), EIGHT)


def test_tiff_of_12_bits(tmp_path: Path) -> None:
    tiff(tmp_path / "a.tif", SIXTEEN // 16, "<", bits=12)
    assert np.array_equal(grey(tmp_path / "a.tif"), EIGHT)


def test_tiff_of_16_bits_where_0_is_white(tmp_path: Path) -> None:
    """Pillow would have it as if 0 were black."""
    tiff(tmp_path / "a.tif", SIXTEEN, "<", white=0)
    with pytest.raises(BnewError, match=r"a\.tif' has 16 bits .* 0 as white: save it"):
        read_image(tmp_path / "a.tif", "RGB")


def test_pgm_of_16_bits(tmp_path: Path) -> None:
    """Pillow has it as mode I; of fewer levels, scaled to 65,535."""
    for most in (0xFFFF, 0x0FFF):
        content = np.round(SIXTEEN * (most / 0xFFFF)).astype(">u2").tobytes()
        (tmp_path / "a.pgm").write_bytes(b"P5 6 2 %d\n" % most + content)
        assert np.abs(grey(tmp_path / "a.pgm") - EIGHT).max() <= (most != 0xFFFF)


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow has no JPEG 2000")
def test_jpeg_2000_of_16_bits(tmp_path: Path) -> None:
    Image.fromarray(SIXTEEN.astype(np.uint16)).save(tmp_path / "a.jp2")
    assert np.array_equal(grey(tmp_path / "a.jp2"), EIGHT)


def test_png_of_16_bits_as_older_pillows_have_it() -> None:
    """In mode I, with the values of the file."""
    image = Image.fromarray(SIXTEEN.astype(np.int32))
    image.format = "PNG"
    assert np.array_equal(np.asarray(_integers(image, "L")), EIGHT)


def test_both_byte_orders_of_16_bits() -> None:
    for mode, order in (("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2")):
        image = Image.frombytes(mode, (6, 2), SIXTEEN.astype(order).tobytes())
        assert np.array_equal(np.asarray(_high_byte(image, "L")), EIGHT)


@pytest.mark.parametrize("order", ["<", ">"])
def test_colour_tiff_of_16_bits(tmp_path: Path, order: str) -> None:
    pixels = np.stack([SIXTEEN] * 3, 2)
    tags = [(256, 3, 1, 6), (257, 3, 1, 2), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 140), (277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 1, pixels.size * 2), (284, 3, 1, 1)]
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + (struct.pack(f"{order}HH", v, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", v))
        for tag, kind, count, v in tags
    )
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    head = mark + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4)
    assert len(head) == 134
    bits = struct.pack(f"{order}3H", 16, 16, 16)
    (tmp_path / "a.tif").write_bytes(head + bits + pixels.astype(f"{order}u2").tobytes())
    assert np.array_equal(grey(tmp_path / "a.tif"), EIGHT)


def test_plain_pgm_of_16_bits(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_text("P2 6 2 65535 " + " ".join(map(str, SIXTEEN.flat)))
    assert np.array_equal(grey(tmp_path / "a.pgm"), EIGHT)


@pytest.mark.parametrize("most", [256, 4095, 65535])
@pytest.mark.parametrize("kind", ["P3", "P6"])
def test_ppm_of_more_than_8_bits_is_refused(tmp_path: Path, kind: str, most: int) -> None:
    """Pillow would round: 0x20FF to 33."""
    pixels = np.full((2, 6, 3), 200)
    content = pixels.astype(">u2").tobytes() if kind == "P6" else " ".join(map(str, pixels.flat)).encode()
    (tmp_path / "a.ppm").write_bytes(f"{kind} 6 2 {most}\n".encode() + content)
    message = r"a\.ppm' is a PPM with more than 8 bits .*: save it as PNG"
    for reading in (lambda path: read_image(path, "RGB"), read):
        with pytest.raises(BnewError, match=message):
            reading(tmp_path / "a.ppm")


@pytest.mark.parametrize("kind", ["P3", "P6"])
@pytest.mark.parametrize("most", [100, 255])
def test_ppm_of_8_bits(tmp_path: Path, kind: str, most: int) -> None:
    content = bytes([most] * 36) if kind == "P6" else b" ".join([b"%d" % most] * 36)
    (tmp_path / "a.ppm").write_bytes(f"{kind} 6 2 {most}\n".encode() + content)
    assert (grey(tmp_path / "a.ppm") == 255).all()


# Upright

# What a viewer does for each orientation, by NumPy: rows first.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


def corners() -> Image.Image:
    """24 × 16 pixels, every quarter of another colour, in the 8 × 8 blocks of JPEG."""
    quarters = np.array([[[200, 40, 40], [40, 180, 60]], [[40, 60, 220], [230, 230, 210]]], np.uint8)
    return Image.fromarray(quarters.repeat(8, 0).repeat(12, 1))


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path: Path, orientation: int, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    stored = np.asarray(corners())
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = (
        {"lossless": True} if kind == "webp" else {"quality": 100, "subsampling": 0} if kind == "jpg" else {}
    )
    corners().save(path, exif=exif, **options)
    assert is_turned(path.read_bytes()) == (orientation != 1) or kind != "jpg"
    expected = UPRIGHT[orientation](stored)
    image = in_every_way(path)
    assert image.shape == expected.shape
    assert np.abs(image - expected).max() <= (3 if kind == "jpg" else 0)


WAYS = [(mode, kind) for mode in ("L", "I;16", "1", "P", "RGB") for kind in ("raw", "tiff_lzw", "png")]


@pytest.mark.parametrize(("mode", "kind"), WAYS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_every_mode(tmp_path: Path, orientation: int, mode: str, kind: str) -> None:
    """Pillow maps a TIFF that is not compressed into memory, once with the height for the width."""
    values = np.arange(6 * 10).reshape(6, 10) * 4
    stored = np.where(values > 120, 255, 0) if mode == "1" else values
    if mode == "I;16":
        image = Image.fromarray((stored * 256 + 255).astype(np.uint16))
    else:
        image = Image.fromarray(stored.astype(np.uint8)).convert(mode)
    assert image.mode == mode
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / ("a.png" if kind == "png" else "a.tif")
    image.save(path, exif=exif, **({} if kind == "png" else {"compression": kind}))
    assert np.array_equal(grey(path), UPRIGHT[orientation](stored))


def test_orientation_in_xmp(tmp_path: Path) -> None:
    xmp = (
        b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'>"
        b"<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>"
        b'<rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    path = tmp_path / "a.jpg"
    corners().save(path)
    content = path.read_bytes()
    path.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + content[2:])
    assert in_every_way(path).shape == (24, 16, 3)


def test_orientation_and_16_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(SIXTEEN.astype(np.uint16)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(grey(tmp_path / "a.png"), np.rot90(EIGHT, -1))


def test_turned_before_it_is_cropped(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    corners().save(tmp_path / "a.png", exif=exif)
    upright = Image.fromarray(np.rot90(np.asarray(corners()), -1))
    upright.save(tmp_path / "b.png")
    turned, plain = (read_image(tmp_path / f"{name}.png", "RGB", (10, 16), (30, 20)) for name in "ab")
    assert np.array_equal(turned, plain)


@pytest.mark.parametrize("orientation", [b"\x63\x00", b"\x00\x00"])
def test_exif_that_is_damaged_or_senseless_turns_nothing(tmp_path: Path, orientation: bytes) -> None:
    path = tmp_path / "a.jpg"
    for exif in (
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + orientation + bytes(6),
        b"Exif\0\0II*",
    ):
        corners().save(path, exif=exif)
        assert in_every_way(path).shape == (16, 24, 3)


# Formats


def test_jpegs_in_cmyk(tmp_path: Path) -> None:
    corners().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(in_every_way(tmp_path / "a.jpg") - np.asarray(corners(), int)).max() < 12


def test_the_first_image_of_an_animation(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (6, 4), (200, 0, 0)), Image.new("RGB", (6, 4), (0, 0, 200))
    for kind in ("gif", "png", "webp", "tif"):
        path = tmp_path / f"a.{kind}"
        first.save(path, save_all=True, append_images=[second], lossless=True)
        assert (in_every_way(path) == [200, 0, 0]).all()


def test_transparency_is_dropped(tmp_path: Path) -> None:
    Image.new("RGBA", (3, 2), (10, 20, 30, 0)).save(tmp_path / "a.png")
    assert (in_every_way(tmp_path / "a.png") == [10, 20, 30]).all()


def test_suffixes() -> None:
    assert {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"} <= suffixes()
    assert {".ppm", ".pgm"} <= suffixes()
    assert not {".pdf", ".eps", ".mpg", ".h5", ".psd", ".txt"} & suffixes()


@pytest.mark.parametrize("kind", ["avif", "heic"])
def test_avif_and_heic(tmp_path: Path, kind: str) -> None:
    if f".{kind}" not in suffixes():
        pytest.skip(f"this Pillow does not read {kind}, nor is there a plug-in")
    path = tmp_path / f"a.{kind}"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored = corners()
    stored.info["exif"] = exif.tobytes()  # where pillow-heif looks for it
    if kind == "avif":
        stored.save(path, quality=95, exif=exif)
    else:
        stored.save(path, quality=95)
    image = in_every_way(path)
    assert image.shape == (24, 16, 3)
    assert np.abs(image - np.rot90(np.asarray(corners(), int), -1)).mean() < 6


def test_a_plugin_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnew.data.images.suffixes", frozenset)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(BnewError, match=r"a\.heic': install pillow-heif$"):
        read_image(tmp_path / "a.heic", "RGB")


def test_a_format_that_is_not_read(tmp_path: Path) -> None:
    """Such as PostScript, for which Pillow would start another program."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", format="EPS")
    with pytest.raises(BnewError, match=r"a\.png' \(unknown format\)"):
        read_image(tmp_path / "a.png", "RGB")
