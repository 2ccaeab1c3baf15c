"""Arrays as small images in data: addresses: sprite sheets of test images, filter sheets, class templates.

A sheet of test images is stored once a data set, however many benchmarks point into it. Grey sheets are PNG, exact
to the bit; colour sheets are JPEG without chroma subsampling, a quarter of PNG's size, and since 32 pixels are four of
JPEG's 8 x 8 blocks no image bleeds into its neighbour.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.page.outcomes import Array, Examples

COLUMNS = 40  # tiles a row of a sheet
LARGEST = 64  # pixels; larger test images are shrunk to this
JPEG_QUALITY = 88
SHEET_BYTES = 6_000_000  # of all sheets together, encoded; beyond it fewer images stand behind each cell
PER_CELL = 12  # test images behind a confusion cell, as evaluate leaves them
MOST_FILTERS = 256

# Blue, white, red: the ends of ColorBrewer's RdBu scale, for weights below, at and above zero.
NEGATIVE, ZERO, POSITIVE = np.array([[33, 102, 172], [247, 247, 247], [178, 24, 43]], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One image that holds many tiles, row by row."""

    source: str  # data: address
    width: int  # pixels of one tile
    height: int
    places: Mapping[int, int]  # position in the test file -> tile


def sheets(examples: Mapping[str, Iterable[Examples]], budget: int = SHEET_BYTES) -> tuple[dict[str, Sheet], int]:
    """One sheet a data set, and how many images a cell they hold: twelve, or as many as ``budget`` bytes allow."""
    listed = {dataset: list(found) for dataset, found in examples.items()}
    per_cell = PER_CELL
    while True:
        made = {dataset: _sheet(found, per_cell) for dataset, found in listed.items()}
        size = sum(len(sheet.source) for sheet in made.values())
        if size <= budget or per_cell == 1:
            return made, per_cell
        per_cell = max(1, min(per_cell - 1, per_cell * budget // size))


def shown(examples: Examples, per_cell: int) -> list[int]:
    """Which of ``examples`` the page shows: the first ``per_cell`` of every confusion cell, in their order."""
    taken: dict[tuple[int, int], int] = {}
    kept = []
    for i, cell in enumerate(zip(examples.actual.tolist(), examples.predicted.tolist(), strict=True)):
        taken[cell] = taken.get(cell, 0) + 1
        if taken[cell] <= per_cell:
            kept.append(i)
    return kept


def _sheet(found: list[Examples], per_cell: int) -> Sheet:
    tiles: dict[int, Array] = {}
    for examples in found:
        for i in shown(examples, per_cell):
            tiles.setdefault(int(examples.index[i]), examples.images[i])
    if not tiles:
        return Sheet(source="", width=0, height=0, places={})
    order = sorted(tiles)
    pixels = np.stack([_shrunk(tiles[index]) for index in order])  # (N, H, W, C)
    return Sheet(
        source=address(_grid(pixels)),
        width=pixels.shape[2],
        height=pixels.shape[1],
        places={index: tile for tile, index in enumerate(order)},
    )


def _shrunk(image: Array) -> Array:
    """(C, H, W) to (h, w, C), no side above LARGEST."""
    pixels: Array = np.ascontiguousarray(image.transpose(1, 2, 0))
    if max(pixels.shape[:2]) <= LARGEST:
        return pixels
    picture = _picture(pixels)
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    small = np.asarray(picture)
    return small[:, :, None] if small.ndim == 2 else small


def _grid(tiles: Array, columns: int = COLUMNS) -> Array:
    """(N, H, W, C) to one image (rows * H, columns * W, C), empty places black."""
    count, height, width, channels = tiles.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    padded = np.zeros((rows * columns, height, width, channels), dtype=tiles.dtype)
    padded[:count] = tiles
    return (
        padded.reshape(rows, columns, height, width, channels)
        .transpose(0, 2, 1, 3, 4)
        .reshape(rows * height, columns * width, channels)
    )


def _picture(pixels: Array) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def address(pixels: Array, *, exact: bool = False) -> str:
    """(H, W, C) uint8 as a data: address; JPEG for colour unless ``exact``, PNG otherwise."""
    buffer = io.BytesIO()
    kind = "jpeg" if pixels.shape[2] == 3 and not exact else "png"
    options: dict[str, Any] = (
        # Pillow's optimised JPEG wants the whole file in one buffer, which noisy images overflow.
        {"quality": JPEG_QUALITY, "subsampling": 0} if kind == "jpeg" else {"optimize": True}
    )
    _picture(pixels).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image and its size in its own pixels."""

    source: str
    width: int
    height: int


def filter_sheet(filters: Array) -> Picture:
    """First-layer filters (O, I, kH, kW) on a transparent grid with a pixel between them.

    Three input channels are shown in colour, each filter on its own scale; otherwise the mean over the inputs is
    shown, blue below zero and red above, on one scale for the layer.
    """
    filters = filters[:MOST_FILTERS]
    tiles = _in_colour(filters, percentile=100) if filters.shape[1] == 3 else _diverging(filters.mean(axis=1))
    count, height, width, _ = tiles.shape
    canvas = np.zeros((count, height + 1, width + 1, 4), dtype=np.uint8)
    canvas[:, :height, :width, :3] = tiles
    canvas[:, :height, :width, 3] = 255
    sheet = _grid(canvas, columns=8 if count <= 32 else 16)[:-1, :-1]
    return Picture(source=address(np.ascontiguousarray(sheet)), width=sheet.shape[1], height=sheet.shape[0])


def template_pictures(templates: Array) -> list[Picture]:
    """Each class's weights (C, channels, H, W) as an image: in colour, or blue to red on one scale for all."""
    tiles = _in_colour(templates, percentile=99.5) if templates.shape[1] == 3 else _diverging(templates.mean(axis=1))
    return [Picture(source=address(tile, exact=True), width=tile.shape[1], height=tile.shape[0]) for tile in tiles]


def _in_colour(weights: Array, *, percentile: float) -> Array:
    """(N, 3, H, W) floats to (N, H, W, 3) bytes; zero is mid-grey, each image on its own scale, up to a percentile."""
    limit = np.maximum(np.percentile(np.abs(weights), percentile, axis=(1, 2, 3), keepdims=True), 1e-12)
    scaled = 0.5 + 0.5 * np.clip(weights / limit, -1, 1)
    return np.ascontiguousarray((255 * scaled).round().astype(np.uint8).transpose(0, 2, 3, 1))


def _diverging(weights: Array) -> Array:
    """(N, H, W) floats to (N, H, W, 3) bytes, blue through white to red, on one scale symmetric about zero."""
    limit = max(float(np.percentile(np.abs(weights), 99.5)), 1e-12)
    t = np.clip(weights / limit, -1, 1)[..., None]
    colours: npt.NDArray[np.float64] = np.where(t < 0, ZERO + (NEGATIVE - ZERO) * -t, ZERO + (POSITIVE - ZERO) * t)
    return colours.round().astype(np.uint8)
