"""HTML and Markdown in which nothing that came from a file becomes markup, or moves the cursor of who prints it."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

from pipelines.command.errors import printable

VOID = frozenset({"circle", "img", "line", "rect"})  # elements without content; SVG needs its slash


class Html(str):
    """A string that is markup already."""

    __slots__ = ()


def visible(value: object) -> str:
    """``value`` as text in which control characters, but for line feeds, are written as their escapes."""
    words = str(value)
    return words if words.isprintable() else "\n".join(map(printable, words.split("\n")))  # images are long addresses


def text(value: object) -> Html:
    """``value`` with the characters that mean something to HTML written as entities."""
    return value if isinstance(value, Html) else Html(html.escape(visible(value)))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element; ``class_`` is class, ``data_x`` is data-x, and an attribute that is None is left out."""
    pairs = (
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(visible(value))}"'
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


def prose(words: str) -> str:
    """A sentence of params.yaml, or of a trial, on one line of Markdown, which its author may have used; no HTML."""
    return printable(" ".join(words.split())).replace("<", "&lt;")
