"""How errors quote values and names, short and printable; and requirements in a dataclass's ``__post_init__``.

A requirement that is not met raises a ValueError, whose text ``schema.parse`` puts behind the place.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

SHOWN = 60  # characters of a value in an error
LISTED = 150  # characters of a list of names in an error


def show(value: Any) -> str:
    """A value for an error: short, on one line, with YAML's null, true and false."""
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > SHOWN:
            break
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _pieces(value: Any) -> Iterator[str]:
    """The text of ``value`` piece by piece, as a large one is needed only in part."""
    if isinstance(value, (Mapping, list, tuple)):
        opening, closing = "{}" if isinstance(value, Mapping) else "[]"
        yield opening
        for i, item in enumerate(value):
            yield ", " * (i > 0)
            yield from _pieces(item)
            if isinstance(value, Mapping):
                yield ": "
                yield from _pieces(value[item])
        yield closing
    elif value is None or isinstance(value, bool):
        yield json.dumps(value)
    else:
        yield repr(value[: SHOWN + 1] if isinstance(value, str) else value)


def name(key: Any) -> str:
    """A key or a name for an error: bare where it is short and plain, quoted otherwise."""
    plain = isinstance(key, str) and 0 < len(key) <= SHOWN and key.isprintable() and key == key.strip()
    return str(key) if plain else show(key)


def place(where: str, key: Any) -> str:
    """The place of ``key`` within ``where``, which ends in a colon if it is a file."""
    return f"{where}{' ' if where.endswith(':') else '.'}{name(key)}"


def listed(names: Iterable[Any]) -> str:
    """Names in a row; of many, the first ones and the number of the others."""
    words = [name(key) for key in names]
    room = itertools.accumulate(len(word) + 2 for word in words)
    kept = sum(1 for length in room if length <= LISTED) or 1
    more = f" ... and {len(words) - kept} more" if kept < len(words) else ""
    return ", ".join(words[:kept]) + more


def suggest(key: str, known: Any) -> str:
    """What is allowed in place of ``key``: the nearest of the ``known`` names, and all of them."""
    names = sorted(str(k) for k in known)
    if not names:
        return "there is none"
    near = difflib.get_close_matches(key[:SHOWN], names, n=1)
    allowed = "allowed: " + listed(names)
    return f"did you mean {name(near[0])}? ({allowed})" if near else allowed


def unknown(what: str, given: str, known: Any) -> str:
    """The error for a name that should be one of ``known``."""
    return f"{what} {name(given)} is not known; {suggest(given, known)}"


def require(condition: object, message: str) -> None:
    """Raise a ValueError with ``message`` unless the condition holds."""
    if not condition:
        raise ValueError(message)
