"""MLflow's limits on names and values: text is escaped or shortened to fit."""

from __future__ import annotations

import re

from pipelines.command.errors import printable

RUN_NAME, PARAM, TAG, EXPERIMENT = 250, 6000, 8000, 500  # characters; a run's name by the width of its column
UNSENDABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # databases refuse some of these, pages all


def value(text: str, limit: int) -> str:
    """At most **limit** characters; a shortened text ends in its length. Control characters are escaped."""
    text = UNSENDABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
    if len(text) <= limit:
        return text
    length = f" … ({len(text):,} characters in all)"
    return text[: limit - len(length)] + length


def name(text: str, limit: int = RUN_NAME) -> str:
    """The same on one line, ``printable`` and never empty."""
    return value(printable(" ".join(text.split("\n")).replace("\t", " ").strip()) or "(no name)", limit)
