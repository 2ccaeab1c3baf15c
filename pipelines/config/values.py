"""Types of a config's values with their limits, and dataclasses in plain form."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

LONGEST_NAME = 60  # characters


@dataclass(frozen=True)
class Rule:
    """A limit that an annotation adds to a type: ``Annotated[int, within(1)]``. ``schema.convert`` checks it.

    In the body of a class a lambda can't refer to names of its module: annotations are evaluated apart from it.
    """

    expected: str | Callable[[Any], str]  # in words, for an error line
    accepts: Callable[[Any], object]  # gives something true for a value that keeps to it

    def line(self, value: Any) -> str:
        """What is expected in place of ``value``."""
        return self.expected if isinstance(self.expected, str) else self.expected(value)


def within(least: float, most: float | None = None, unit: str = "") -> Rule:
    """A number of at least ``least`` and, where there is one, at most ``most``."""
    limits = f"at least {least:,}{unit}" if most is None else f"{least:,} to {most:,}{unit}"
    return Rule(limits, lambda value: least <= value and (most is None or value <= most))


def named(pattern: str, expected: str) -> Rule:
    """A name, also of a folder."""
    line = f"a name of {expected}, at most {LONGEST_NAME} characters"
    return Rule(line, lambda name: len(name) <= LONGEST_NAME and re.fullmatch(pattern, name))


def words(expected: str) -> Rule:
    """Text that is not blank."""
    return Rule(expected, lambda text: text.strip())


AT_LEAST_ONE = Rule("at least one", len)
EACH_ONCE = Rule(
    lambda values: f"each once, without a second {Counter(values).most_common(1)[0][0]!r}",
    lambda values: len(set(values)) == len(values),
)

Count = Annotated[int, within(1)]
Name = Annotated[str, named("[a-z0-9]+(-[a-z0-9]+)*", "small letters, digits and hyphens")]  # of a row, suite, budget
NotNegative = Annotated[float, within(0)]
Number = Annotated[float, Rule("a finite number", math.isfinite)]
Percent = Annotated[float, Rule("per cent, 0 to 100", lambda value: 0 <= value <= 100)]
Positive = Annotated[float, Rule("a number above 0", lambda value: value > 0)]
Text = Annotated[str, Rule("text", len)]
Seeds = Annotated[tuple[Annotated[int, within(0)], ...], AT_LEAST_ONE, EACH_ONCE]


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
