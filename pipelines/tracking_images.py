"""Pictures for MLflow's image grid, named as ``MlflowClient.log_image`` names them but the same at every replay."""

from __future__ import annotations

import uuid
from io import BytesIO

GRID_PIXELS = 340  # edge of the copy that the grid shows, three to a row of a laptop; log_image's 256 can't be read


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
