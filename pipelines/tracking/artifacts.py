"""The files of a run: the confusion matrix as figure, image of the grid and tables."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.results.figures import confusion_figure
from pipelines.tracking.waiting import ClassFigures

FIGURE, CONFUSION, CLASSES = "confusion.png", "confusion.json", "per_class.json"
EXPLORER, LEDGER = "explorer.html", "ledger.json"
IMAGE_KEY = "confusion matrix"
GRID_PIXELS = 340  # edge of the copy that the grid shows, three to a row of a laptop; log_image's 256 can't be read


def matrix_files(
    identity: str,
    counts: NDArray[np.int64],
    classes: Sequence[str],
    figures: Sequence[ClassFigures],
    title: str,
    subtitle: str,
) -> dict[str, bytes]:
    """The confusion matrix (C, C) as a figure, for the image grid, and as a table; the table of the classes (C)."""
    png = confusion_figure(counts, classes, title=title, subtitle=subtitle)
    return {
        FIGURE: png,
        **grid_images(IMAGE_KEY, png, identity),
        CONFUSION: table(
            ["actual", *classes], [[name, *row] for name, row in zip(classes, counts.tolist(), strict=True)]
        ),
        CLASSES: table(
            ["class", "precision %", "recall %", "F1 %", "images"],
            [[name, *row] for name, row in zip(classes, figures, strict=True)],
        ),
    }


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """A table as ``MlflowClient.log_table`` writes it; that call appends, so a replay would double the rows."""
    return json.dumps({"columns": list(columns), "data": [list(row) for row in rows]}).encode()


def table_tags() -> dict[str, str]:
    """What tells MLflow's pages that there are tables and images."""
    return {
        "mlflow.loggedArtifacts": json.dumps([{"path": path, "type": "table"} for path in (CONFUSION, CLASSES)]),
        "mlflow.loggedImages": "True",
    }


def grid_images(key: str, png: bytes, identity: str) -> dict[str, bytes]:
    """
    The two files behind one picture of the grid: as drawn, and small.

    ``log_image`` puts the time and a random name into the path, so an upload that is repeated after a crash would show
    the picture twice. Here the path depends on **key** and **identity** alone, and a second upload replaces the first.
    """
    from PIL import Image

    name = f"images/{key}+step+0+timestamp+0+{uuid.uuid5(uuid.NAMESPACE_OID, identity)}"
    small = BytesIO()
    with Image.open(BytesIO(png)) as picture:
        edge = (GRID_PIXELS, GRID_PIXELS)
        picture.convert("RGB").resize(edge, Image.Resampling.LANCZOS).save(small, "webp", quality=92)
    return {f"{name}.png": png, f"{name}+compressed.webp": small.getvalue()}
