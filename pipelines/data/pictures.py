"""Decodes a picture of any format, mode and orientation to a square of RGB, in bounded memory."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, _imaging

from pipelines.command.errors import reason

# Formats to try on a file of any name; not those that run a program (EPS) or accept any bytes (TGA).
PILLOW_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".avif", ".avifs"),
        *(".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    )
)
FOREIGN = frozenset(  # suffixes of pictures in other formats
    (
        *(".heic", ".heif", ".hif", ".jxl", ".svg", ".psd", ".xcf", ".eps", ".exr", ".hdr", ".raw", ".dng", ".cr2"),
        *(".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".ico", ".icns", ".tga", ".pcx", ".sgi", ".qoi", ".dds"),
    )
)
LARGEST_SIDE = 1 << 16  # pixels
LARGEST_AREA = 1 << 26  # pixels: 8192 x 8192, for which the hungriest decoder, of JPEG 2000, takes 1.3 GB
BLOCK = 1 << 26  # bytes that Pillow allocates at once; from 32 MiB on, freed memory returns to the system
MOST_SCANS = 100  # of a progressive JPEG, each as long as decoding the picture; 10 are usual
PAPER = (255, 255, 255, 255)  # background of transparent pixels


class Undecodable(Exception):
    """A picture that is damaged, too large, or of no agreed meaning; the text is the reason, in one line."""


def decode(packed: bytes, size: int) -> npt.NDArray[np.uint8]:
    """A picture's file as (3, size, size): RGB, short side scaled to ``size`` (bilinear, antialiased), centre crop.

    The EXIF orientation is applied where it can be read. Transparent pixels become white. Grey levels have at most 8
    bits; colours of 16 bits keep the upper 8. Of several frames the first is taken; colour profiles are ignored.

    Only the part that becomes the square is scaled. For a square picture the result is that of scaling it whole, bit
    for bit; for others it differs by at most 1 of 255, as Pillow's order of rows and columns depends on the part. JPEGs
    are decoded at full size: on 300 photographs of ImageNet at half size, libjpeg's faster reduced decoding
    (``Image.draft``) changed 40 % of the values by more than 1, and one by 43.

    Raises ``Undecodable``.
    """
    try:
        with _loaded(packed) as image:
            with contextlib.suppress(Exception):  # damaged EXIF
                ImageOps.exif_transpose(image, in_place=True)
            box = _centre(image.size, size)
            square = _rgb(image).resize((size, size), Image.Resampling.BILINEAR, box=box)
            pixels: npt.NDArray[np.uint8] = np.asarray(square)
        return pixels.transpose(2, 0, 1)
    except MemoryError:
        raise Undecodable("not enough memory") from None
    except Image.DecompressionBombError:
        raise Undecodable(f"far more pixels than {LARGEST_AREA}") from None
    except Undecodable:
        raise
    except Exception as error:  # Pillow's readers raise errors of many kinds
        raise Undecodable(reason(error).partition(" <")[0] or type(error).__name__) from None  # "<_io.BytesIO ...>"


@contextmanager
def _loaded(packed: bytes) -> Iterator[Image.Image]:
    """The decoded picture of a file."""
    if packed.startswith(b"\xff\xd8") and (scans := packed.count(b"\xff\xda")) > MOST_SCANS:
        raise Undecodable(f"{scans} scans; expected at most {MOST_SCANS}")
    _imaging.set_block_size(BLOCK)
    sides = _webp_sides(packed)
    if sides is not None:
        _check_area(sides)
    with Image.open(io.BytesIO(packed), formats=PILLOW_FORMATS) as image:
        _check_area(image.size)
        image.load()
        yield image


def _check_area(sides: tuple[int, int]) -> None:
    width, height = sides
    if not 0 < width * height <= LARGEST_AREA or max(sides) > LARGEST_SIDE:
        most = f"{LARGEST_AREA} pixels and {LARGEST_SIDE} a side"
        raise Undecodable(f"{width} x {height} pixels; expected at most {most}")


def _webp_sides(packed: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP from its first chunk, as opening one allocates 8 bytes a pixel at once."""
    if packed[:4] != b"RIFF" or packed[8:12] != b"WEBP":
        return None
    chunk, bits = packed[12:16], int.from_bytes(packed[20:30].ljust(10, b"\0"), "little")
    if chunk == b"VP8X":  # flags (4 bytes), then width and height less one, 3 bytes each
        return (bits >> 32 & 0xFFFFFF) + 1, (bits >> 56) + 1
    if chunk == b"VP8L":  # a mark (1 byte), then both less one, 14 bits each
        return (bits >> 8 & 0x3FFF) + 1, (bits >> 22 & 0x3FFF) + 1
    return bits >> 48 & 0x3FFF, bits >> 64 & 0x3FFF  # VP8: frame tag and mark (6 bytes), then 14 bits of 16 each


def _centre(sides: tuple[int, int], size: int) -> tuple[float, float, float, float]:
    """The centre square: left, top, right, bottom, in fractions of a pixel.

    It corresponds to a crop, in whole pixels, of the picture scaled to whole pixels.
    """
    scale = size / min(sides)
    spans = []
    for side in sides:
        scaled = max(size, round(side * scale))
        first = (scaled - size) // 2
        spans.append((first * side / scaled, (first + size) * side / scaled))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def _rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, 8 bits a channel."""
    if image.mode.startswith("I") or image.mode == "F":
        raise Undecodable(f"grey levels of more than 8 bits (Pillow's mode {image.mode}); expected at most 8")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, PAPER), image).convert("RGB")
