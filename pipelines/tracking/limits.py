"""MLflow's limits on names and values: text is escaped or shortened to fit."""

from __future__ import annotations

import hashlib
import re

RUN_NAME, KEY, PARAM, TAG, EXPERIMENT = 250, 250, 6000, 8000, 500  # characters; a run's name by the width of its column
UNSENDABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # databases refuse some of these, pages all
UNSENDABLE_KEY = re.compile(r"^\.|[^\w.\- :]|[\ud800-\udfff]")  # MLflow takes a slash and a first dot for a path's


def value(text: str, limit: int) -> str:
    """At most **limit** characters; a shortened text ends in its length. Control characters are escaped."""
    text = UNSENDABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
    if len(text) <= limit:
        return text
    length = f" … ({len(text):,} characters in all)"
    return text[: limit - len(length)] + length


def name(text: str, limit: int = RUN_NAME) -> str:
    """The same on one line, and never empty."""
    return value(" ".join(text.split("\n")).replace("\t", " ").strip() or "(no name)", limit)


def key(text: str) -> str:
    """The name of a param or tag; a character that MLflow refuses is written as its code."""
    escaped = UNSENDABLE_KEY.sub(lambda found: f"_x{ord(found[0]):02x}_", text) or "_"
    if len(escaped) > KEY:  # the end tells it from another
        escaped = f"{escaped[: KEY - 13]}-{hashlib.sha256(escaped.encode()).hexdigest()[:12]}"
    return escaped
