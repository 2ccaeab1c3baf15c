"""Guards the decoder: pictures of every kind become the same square of RGB, or are refused in a line."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image

from pipelines.data import pictures
from pipelines.data.pictures import Undecodable, decode

SIZE = 8


def noise(seed: int = 0, width: int = 20, height: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def ramp(top: float, kind: str) -> npt.NDArray[Any]:
    """(8, 8), from 0 to ``top``, as decoded: 64 equal steps in reading order."""
    return (np.arange(64).reshape(8, 8) * top / 63).astype(kind)


def packed(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def refusal(content: bytes) -> str:
    with pytest.raises(Undecodable) as caught:
        decode(content, SIZE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def whole(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """The picture scaled as a whole, then cut: (3, size, size)."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    scaled = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - size) // 2, (width - size) // 2
    return scaled[top : top + size, left : left + size].transpose(2, 0, 1)


@pytest.mark.parametrize("side", [3, 8, 12, 224, 300])
@pytest.mark.parametrize("size", [8, 32, 256])
def test_a_square_is_scaled_as_ever(side: int, size: int) -> None:
    image = noise(side, side, side)
    np.testing.assert_array_equal(decode(packed(image), size), whole(image, size))


@pytest.mark.parametrize("width", [9, 13, 40, 101, 375, 500])
@pytest.mark.parametrize("height", [12, 101, 375])
@pytest.mark.parametrize("size", [8, 64])
def test_a_crop_before_scaling_is_that_after_it_within_a_grey_level(width: int, height: int, size: int) -> None:
    image = noise(width, width, height)
    difference = decode(packed(image), size).astype(int) - whole(image, size)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(8, 31), (31, 8), (9, 8)])
def test_what_is_not_scaled_is_cut_out(width: int, height: int) -> None:
    image = noise(0, width, height)
    np.testing.assert_array_equal(decode(packed(image), SIZE), whole(image, SIZE))


@pytest.mark.parametrize(("width", "height"), [(8, 8), (9, 8), (8, 31), (3, 2), (1000, 1), (1, 65536)])
def test_any_proportions_fill_the_square(width: int, height: int) -> None:
    pixels = decode(packed(Image.new("RGB", (width, height), (10, 20, 30))), SIZE)
    assert pixels.shape == (3, SIZE, SIZE) and (pixels == np.array([10, 20, 30])[:, None, None]).all()


# Levels


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I;16", "JPEG2000")),
        *(("I", "PPM"), ("I", "TIFF"), ("F", "PPM"), ("F", "TIFF")),
    ],
)
def test_grey_levels_of_more_than_eight_bits_are_refused(mode: str, kind: str) -> None:
    words = r"grey levels of more than 8 bits \(Pillow's mode (I|I;16|I;16B|F)\); expected at most 8"
    assert re.fullmatch(words, refusal(packed(Image.new(mode, (8, 8)), kind)))


def test_a_netpbm_file_names_its_white() -> None:
    levels = ramp(100, "u1")
    pixels = decode(b"P5 8 8 100\n" + levels.tobytes(), SIZE)
    np.testing.assert_allclose(pixels[0], levels * 255.0 / 100, atol=0.51)
    assert refusal(b"P5 8 8 1023\n" + ramp(1023, ">u2").tobytes()).startswith("grey levels of more than 8 bits")


def test_colours_of_sixteen_bits_keep_the_upper_eight() -> None:
    levels = np.repeat(ramp(65535, ">u2")[:, :, None], 3, 2)
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    np.testing.assert_array_equal(decode(png(*chunks), SIZE).transpose(1, 2, 0), levels >> 8)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA", "YCbCr", "LAB"])
def test_every_mode_of_eight_bits_becomes_rgb(mode: str) -> None:
    image = noise(0, 8, 8).convert("L").convert("RGB") if mode in ("1", "L", "LA") else noise(0, 8, 8)
    if mode == "LAB":
        changed = Image.frombytes("LAB", image.size, image.tobytes())
    else:
        changed = (image.convert("L") if mode == "LA" else image).convert(mode)
    pixels = decode(packed(changed, "TIFF" if mode in ("CMYK", "YCbCr", "LAB") else "PNG"), SIZE)
    np.testing.assert_array_equal(pixels.transpose(1, 2, 0), np.asarray(changed.convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames_counts(kind: str) -> None:
    first, second = (Image.new("RGB", (8, 8), (shade,) * 3) for shade in (0, 255))
    assert not decode(packed(first, kind, save_all=True, append_images=[second]), SIZE).any()


# Transparency and orientation


def test_what_is_transparent_shows_white() -> None:
    image = noise(0, 8, 8).convert("RGBA")
    opaque = decode(packed(image), SIZE)
    np.testing.assert_array_equal(opaque, np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    image.putalpha(Image.fromarray(np.repeat([[0, 0, 0, 0, 255, 255, 255, 128]], 8, 0).astype(np.uint8)))
    pixels = decode(packed(image), SIZE)
    assert (pixels[:, :, :4] == 255).all()
    np.testing.assert_array_equal(pixels[:, :, 4:7], opaque[:, :, 4:7])
    np.testing.assert_allclose(pixels[:, :, 7].astype(int), (opaque[:, :, 7] * 128.0 + 255 * 127) / 255, atol=1)


def test_a_transparent_colour_shows_white() -> None:
    for mode, colour in (("L", 7), ("RGB", (7, 7, 7))):
        image = Image.new(mode, (8, 8), colour)
        assert (decode(packed(image, transparency=colour), SIZE) == 255).all(), mode
    buffer = packed(noise(0, 8, 8).convert("P"), transparency=bytes(256))
    assert (decode(buffer, SIZE) == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_asks(kind: str, orientation: int) -> None:
    """Its corners tell which way is up: stored red, green, blue, white from the upper left, row by row."""
    corners = np.zeros((16, 16, 3), np.uint8)
    corners[:8, :8], corners[:8, 8:], corners[8:, :8], corners[8:, 8:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = decode(packed(Image.fromarray(corners), kind, exif=exif, quality=95, lossless=True), SIZE)
    names = {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}
    seen = "".join(names[tuple((pixels[:, y, x] > 127).astype(int).tolist())] for y in (1, 6) for x in (1, 6))
    # The stored first row is the upper edge seen, or the left, ... (EXIF 2.32, table 6)
    assert seen == ["rgbw", "grwb", "wbgr", "bwrg", "rbgw", "brwg", "wgbr", "gwrb"][orientation - 1]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # fetch hides Pillow's warnings
def test_damaged_exif_says_nothing() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = noise(0, 8, 8)
    for content in (b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", exif.tobytes()[:-8]):
        pixels = decode(packed(image, exif=content), SIZE)
        np.testing.assert_array_equal(pixels.transpose(1, 2, 0), np.asarray(image))


# Bounds


def png_header(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return png(head, *chunks, (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))


@pytest.mark.parametrize(
    ("width", "height", "words"),
    [
        (8193, 8192, "8193 x 8192 pixels; expected at most 67108864 pixels and 65536 a side"),
        (65537, 1, "65537 x 1 pixels; expected at most 67108864 pixels and 65536 a side"),
        (1, 1 << 30, "far more pixels than 67108864"),
    ],
)
def test_too_many_pixels_are_refused_before_they_are_decoded(width: int, height: int, words: str) -> None:
    assert refusal(png_header(width, height)) == words


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
def test_pillows_own_limit_lies_beyond_ours() -> None:
    assert refusal(png_header(10_000, 10_000)).startswith("10000 x 10000 pixels")


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (16, 9), (300, 257)])
def test_a_webp_says_its_size_before_it_is_opened(size: tuple[int, int], lossless: bool) -> None:
    image = noise(0, *size)
    assert pictures._webp_sides(packed(image, "WEBP", lossless=lossless)) == size
    assert pictures._webp_sides(packed(image.convert("RGBA"), "WEBP", lossless=lossless, exif=b"Exif\0\0x")) == size


def test_a_webp_of_too_many_pixels_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Image, "open")
    header = b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (16382).to_bytes(3, "little") * 2
    assert refusal(header + bytes(40)).startswith("16383 x 16383 pixels; expected at most")


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP", b"iTXt"])
def test_a_chunk_that_swells_is_refused(name: bytes) -> None:
    bomb = zlib.compress(bytes(70_000_000))
    body = b"key\0\0" + bomb if name != b"iTXt" else b"key\0\1\0\0\0" + bomb
    assert "too large" in refusal(png_header(8, 8, (name, body))).lower()


def test_more_passes_than_a_jpeg_has_are_refused() -> None:
    content = packed(noise(0, 64, 64), "JPEG", progressive=True)
    scan = content.rindex(b"\xff\xda")
    assert decode(content, SIZE).shape == (3, SIZE, SIZE)
    again = content[scan:-2] * 200
    assert refusal(content[:-2] + again + b"\xff\xd9").endswith(" scans; expected at most 100")


def test_programs_and_heuristics_decode_nothing() -> None:
    """EPS would be run by Ghostscript; TGA has no mark, and takes anything."""
    assert refusal(packed(noise(), "EPS")) == refusal(packed(noise(), "TGA")) == "cannot identify image file"


def test_what_is_said_to_be_read_can_be_read() -> None:
    Image.init()
    known = {suffix for suffix, kind in Image.EXTENSION.items() if kind in pictures.PILLOW_FORMATS}
    assert known == pictures.SUFFIXES and not pictures.FOREIGN & pictures.SUFFIXES
