"""Seeds of the random streams that trials draw from."""

from __future__ import annotations

import hashlib


def stream(*parts: int | str) -> int:
    """A 63-bit seed for the random stream that ``parts`` name, such as (seed, "order", epoch)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
