"""Pictures of every format and mode, whole and damaged: a square of RGB, or one line that says what is wrong."""

from __future__ import annotations

import io
import random
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from pipelines.command.errors import UserError
from pipelines.data.pictures import Undecodable, decode

MODES = {
    "AVIF": ("RGB", "RGBA", "L"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "DIB": ("1", "L", "P", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "PPM": ("1", "L", "RGB", "I", "F"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F"),
    "WEBP": ("RGB", "RGBA"),
}
SLOW = ("AVIF", "JPEG2000")  # to encode: tried less often
REFUSED = ("I", "I;16", "I;16B", "F")  # modes of more than 8 bits
SIZE = 8


def case(random: random.Random, folder: Path) -> None:
    """One picture, damaged in two of three cases; a whole one has to come out."""
    kind = _kind(random)
    mode = random.choice(MODES[kind])
    packed = _packed(random, kind, mode)
    damaged = random.random() < 2 / 3
    for _ in range(random.randint(1, 3) if damaged else 0):
        packed = damage(random, packed)
    with warnings.catch_warnings(action="ignore"):  # as when fetch decodes
        try:
            pixels = decode(packed, SIZE)
        except Undecodable as error:
            assert damaged or mode in REFUSED, f"a whole {kind} of mode {mode}: {error}"
            raise UserError(str(error)) from None
    assert pixels.shape == (3, SIZE, SIZE) and pixels.dtype == np.uint8


def _kind(random: random.Random) -> str:
    kind = random.choice(list(MODES))
    return random.choice(list(MODES)) if kind in SLOW else kind


def _packed(random: random.Random, kind: str, mode: str) -> bytes:
    width, height = random.randint(1, 24), random.choice((1, 7, 16, random.randint(1, 60)))
    image = _picture(random, mode, (width, height))
    options: dict[str, object] = {}
    if kind in ("JPEG", "PNG", "TIFF", "WEBP", "AVIF") and random.random() < 0.5:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = random.randint(1, 8) if kind == "TIFF" else random.randint(0, 9)
        exif[ExifTags.Base.Make] = "x" * random.randint(0, 40)
        options["exif"] = exif
        if kind in ("JPEG", "PNG", "WEBP") and random.random() < 0.3:  # the encoder of AVIF does not survive it
            options["exif"] = damage(random, exif.tobytes())
    if kind in ("JPEG", "WEBP"):
        options |= {"quality": random.randint(1, 95), "progressive": random.random() < 0.5}
    if kind in ("PNG", "GIF") and mode in ("L", "P", "RGB") and random.random() < 0.3:
        options["transparency"] = (1, 2, 3) if mode == "RGB" and kind == "PNG" else random.randint(0, 255)
    if kind in ("GIF", "TIFF", "WEBP", "PNG") and random.random() < 0.2:
        options |= {"save_all": True, "append_images": [_picture(random, mode, (width, height))]}
    if kind == "TIFF" and mode not in ("LAB", "I;16B"):
        options["compression"] = random.choice((None, "tiff_lzw", "tiff_adobe_deflate", "packbits"))
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        image.save(buffer, kind, **options)
    return buffer.getvalue()


def _picture(random: random.Random, mode: str, size: tuple[int, int]) -> Image.Image:
    width, height = size
    if mode in ("I;16", "I;16B", "I"):
        levels = np.frombuffer(random.randbytes(2 * width * height), "<u2").reshape(height, width)
        image = Image.fromarray(levels)
        return (
            image if mode == "I;16" else Image.frombytes(mode, size, levels.astype({"I": "<i4", "I;16B": ">u2"}[mode]))
        )
    if mode == "F":
        return Image.fromarray(
            np.frombuffer(random.randbytes(width * height), np.uint8).reshape(height, width) / np.float32(255)
        )
    colours = Image.frombytes("RGBA", size, random.randbytes(4 * width * height))
    if mode == "LAB":
        return Image.frombytes("LAB", size, colours.convert("RGB").tobytes())
    return (
        colours if mode == "RGBA" else colours.convert("LA") if mode == "LA" else colours.convert("RGB").convert(mode)
    )


def damage(random: random.Random, content: bytes) -> bytes:
    """``content`` after one accident: bits turned, bytes overwritten, cut out, put in or cut off."""
    place = random.randrange(len(content) + 1) if random.random() < 0.5 else random.randrange(min(len(content), 64) + 1)
    what = random.choice(("bits", "extreme", "cut", "insert", "end"))
    if what == "bits":
        changed = bytearray(content)
        for _ in range(random.randint(1, 8)) if content else ():
            changed[min(place + random.randrange(16), len(content) - 1)] ^= 1 << random.randrange(8)
        return bytes(changed)
    if what == "extreme":
        new = random.choice(
            (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff", b"\0\x01\0\0", b"\x80")
        )
        return content[:place] + new + content[place + len(new) :]
    if what == "cut":
        return content[:place] + content[place + random.randint(1, 64) :]
    if what == "insert":
        return content[:place] + random.randbytes(random.randint(1, 64)) + content[place:]
    return content[:place]
