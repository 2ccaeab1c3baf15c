"""HTML in which nothing that came from a file can become markup: text is escaped unless it is already ``Html``."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

VOID = frozenset({"circle", "img", "line", "rect"})  # elements without content; SVG needs its slash


class Html(str):
    """A string that is markup already."""

    __slots__ = ()


def text(value: object) -> Html:
    """``value`` with the characters that mean something to HTML written as entities."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element; ``class_`` is class, ``data_x`` is data-x, and an attribute that is None is left out."""
    pairs = (
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    opening = f"<{name}{''.join(pairs)}"
    return Html(f"{opening}/>" if name in VOID else f"{opening}>{joined(children)}</{name}>")


def joined(parts: Iterable[object]) -> Html:
    """The parts one after another."""
    return Html("".join(text(part) for part in parts))


def embedded(value: Any) -> Html:
    """``value`` as JSON for the inside of a script element, which no character in it can end."""
    written = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Html(written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
