"""Arrays as images in data: addresses: sheets of test images, filters, class templates.

All benchmarks of a data set share one sheet of test images. Grey sheets are exact PNGs; colour sheets are JPEGs without
chroma subsampling, a quarter of PNG's size. 32 pixels are four blocks of JPEG, so no image bleeds into its neighbour.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.results import examples
from pipelines.results.arrays import Array
from pipelines.results.reader import ClassifiedExamples

COLUMNS = 40  # tiles a row of a sheet
JPEG_QUALITY = 88
MOST_SHOWN = 24  # test images behind a cell, at a time
SHEET_BYTES = 6_000_000  # of all sheets together, encoded; beyond it fewer images stand behind each cell
MOST_FILTERS = 256
FILTER_PIXELS, TEMPLATE_PIXELS = 44, 96  # on the screen: a filter, about, and a class template

# Blue, white, red: the ends of ColorBrewer's RdBu scale, for weights below, at and above zero.
NEGATIVE, ZERO, POSITIVE = np.array([[33, 102, 172], [247, 247, 247], [178, 24, 43]], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One image that holds many tiles, row by row."""

    source: str  # data: address
    width: int  # of a tile, in pixels
    height: int
    index: Sequence[int]  # each tile's position in the test file, rising
    actual: Sequence[int]  # each tile's class


def sheets(kept: Mapping[str, Sequence[ClassifiedExamples]], budget: int = SHEET_BYTES) -> tuple[dict[str, Sheet], int]:
    """One sheet a data set, and their images a cell: A_CELL, or as many as ``budget`` bytes allow."""
    a_cell = examples.A_CELL
    while True:
        made = {dataset: _sheet([chosen(one, a_cell) for one in found]) for dataset, found in kept.items()}
        size = sum(len(sheet.source) for sheet in made.values())
        if size <= budget or a_cell == 1:
            return made, a_cell
        a_cell = max(1, min(a_cell - 1, a_cell * budget // size))


def chosen(kept: ClassifiedExamples, a_cell: int) -> ClassifiedExamples:
    """The examples on the page: ``a_cell`` images of each cell of each seed's matrix, or all kept ones."""
    classes = 1 + int(max(kept.actual.max(initial=0), kept.predicted.max(initial=0)))
    return kept.part(examples.behind(kept.actual * classes + kept.predicted, a_cell))


def _sheet(found: Sequence[ClassifiedExamples]) -> Sheet:
    if not any(len(one.index) for one in found):
        return Sheet(source="", width=0, height=0, index=(), actual=())
    index, first = np.unique(np.concatenate([one.index for one in found]), return_index=True)
    pixels = np.concatenate([one.images for one in found])[first].transpose(0, 2, 3, 1)  # (N, H, W, C)
    actual = np.concatenate([one.actual for one in found])[first]
    _, height, width, _ = pixels.shape
    sheet = address(_grid(pixels))
    return Sheet(source=sheet, width=width, height=height, index=index.tolist(), actual=actual.tolist())


def _grid(tiles: Array, columns: int = COLUMNS) -> Array:
    """(N, H, W, C) to one image (rows * H, columns * W, C), empty places black."""
    count, height, width, channels = tiles.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    padded = np.zeros((rows * columns, height, width, channels), dtype=tiles.dtype)
    padded[:count] = tiles
    grid = padded.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def address(pixels: Array, *, exact: bool = False) -> str:
    """(H, W, C) uint8 as a data: address; JPEG for colour unless ``exact``, PNG otherwise."""
    picture, buffer = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels), io.BytesIO()
    kind = "jpeg" if pixels.shape[2] == 3 and not exact else "png"
    # Pillow's optimised JPEG wants the whole file in one buffer, which noisy images overflow. A PNG has no quality.
    picture.save(buffer, kind, quality=JPEG_QUALITY, subsampling=0, optimize=kind == "png")
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def filter_sheet(filters: Array, towers: int = 1) -> Array:
    """First-layer filters (O, I, kH, kW) as pixels (H, W, 4): a transparent grid with a pixel between them.

    Each of the ``towers``, equal parts of the filters, starts a line of its own, with a gap above. Three input channels
    are shown in colour, each filter on its own scale; otherwise the mean over the inputs is shown, blue below zero and
    red above, on one scale for the layer.
    """
    filters = filters[:MOST_FILTERS]
    tiles = _in_colour(filters, percentile=100) if filters.shape[1] == 3 else _diverging(filters.mean(axis=1))
    count, height, width, _ = tiles.shape
    canvas = np.zeros((count, height + 1, width + 1, 4), dtype=np.uint8)
    canvas[:, :height, :width, :3] = tiles
    canvas[:, :height, :width, 3] = 255
    columns = 8 if count <= 32 else 16
    parts = [_grid(canvas[place], columns) for place in np.array_split(np.arange(count), towers)]
    gap = np.zeros((height // 2, parts[0].shape[1], 4), dtype=np.uint8)
    lines = [line for part in parts for line in (part[:-1], gap)]
    return np.ascontiguousarray(np.concatenate(lines[:-1])[:, :-1])


def template_pictures(templates: Array) -> list[str]:
    """Each class's weights (C, channels, H, W) as a data: address: in colour, or blue to red on one scale for all."""
    tiles = _in_colour(templates, percentile=99.5) if templates.shape[1] == 3 else _diverging(templates.mean(axis=1))
    return [address(tile, exact=True) for tile in tiles]


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
