"""Values of a config: what a dataclass's ``__post_init__`` requires of them, and their plain form.

A requirement that is not met raises a ValueError; ``schema.parse`` puts the place before its text.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config import wording

NAME = re.compile("[a-z0-9]+(-[a-z0-9]+)*")  # of a benchmark, a suite, a budget
LONGEST_NAME = 60  # characters


def require(condition: bool, message: str) -> None:
    """Raise a ValueError with ``message`` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_name(name: str, where: str, example: str) -> None:
    """``name`` is one that a path, a command and a line of DVC's can hold."""
    expected = f"small letters, digits and hyphens, like {example}"
    require(bool(NAME.fullmatch(name)), f"{where}: expected a name of {expected}")
    require(len(name) <= LONGEST_NAME, f"{where}: expected a name of at most {LONGEST_NAME} characters")


def require_within(name: str, value: float | None, least: int, most: int | None = None, unit: str = "") -> None:
    """``value``, where there is one, is at least ``least`` and, where there is one, at most ``most``."""
    if value is not None:
        require(value >= least, f"{name} is {value}; expected at least {least}{unit}")
    if value is not None and most is not None:
        require(value <= most, f"{name} is {value}; expected at most {most:,}{unit}")


def require_distinct(name: str, values: Sequence[Any]) -> None:
    """None of ``values`` occurs twice."""
    double = sorted(value for value, times in Counter(values).items() if times > 1)
    require(not double, f"{name} names {wording.listed(double)} more than once; expected each once")


def require_words(name: str, text: str | None, expected: str) -> None:
    """``text`` is not blank; None is allowed."""
    require(text is None or bool(text.strip()), f"{name} is {wording.show(text)}; expected {expected}")


def default(field: dataclasses.Field[Any]) -> Any:
    """The default of a field; ``dataclasses.MISSING`` where the file must give it."""
    return field.default_factory() if callable(field.default_factory) else field.default


def plain(value: Any) -> Any:
    """A dataclass as plain dicts and lists, as JSON and Lightning's checkpoints want them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value
