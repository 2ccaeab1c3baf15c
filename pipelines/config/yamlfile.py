"""YAML 1.2 as DVC reads it. PyYAML alone reads 1.1: ``1e-3`` is text to it, ``1:30`` is 90, and ``on`` is true.

PyYAML parses the text; scalars follow the core schema of YAML 1.2.2, section 10.3.2, with the merge key ``<<`` of 1.1,
which DVC supports too. Length, depth and the size of expanded aliases are bounded while the values are built, so that a
damaged or malicious file costs no more than a moment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipelines.command.errors import UserError, brief
from pipelines.command.files import intruder
from pipelines.config import wording

MOST_BYTES = 1_000_000  # bytes of a file; the largest, models/lenet.yaml, has 14,000
DEEPEST = 50  # mappings and lists within one another; the rows have 6
MOST_VALUES = 100_000  # values; an alias counts for all it stands for, long text for more; lenet.yaml has 900
MOST_DIGITS = 1000  # of a whole number; Python itself reads no more than 4,300
CORE = "tag:yaml.org,2002:"
PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is many times faster, and in every wheel of PyYAML
MERGE = object()  # the key <<
# Not allowed in YAML 1.2: control characters, and halves of characters.
UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _whole(text: str) -> int:
    """010 is ten; 0o10 is eight."""
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits; expected at most {MOST_DIGITS:,}")
    return int(text, 0 if "o" in text or "x" in text else 10)


def _fraction(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


# Plain scalars by type: the pattern, and how the text is read, in lower case. The first that matches counts.
SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "null": (re.compile("~|null|Null|NULL|"), lambda text: None),
    "bool": (re.compile("true|True|TRUE|false|False|FALSE"), lambda text: text == "true"),
    "int": (re.compile("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), _whole),
    "float": (
        re.compile(
            r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
        ),
        _fraction,
    ),
}


def scalar(text: str) -> Any:
    """The value of a plain scalar in YAML 1.2: None, a bool, an int, a float, or the text itself."""
    for pattern, read_as in SCALARS.values():
        if pattern.fullmatch(text):
            return read_as(text.lower())
    return text


def read(path: Path) -> dict[str, Any]:
    """The mapping that ``path`` holds; UserError when it is absent, no YAML, or something else."""
    return parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of ``path``, its line ends as they are; UserError when it is absent, too long, or no text in UTF-8."""
    try:
        other = intruder(path)
        if other is not None:
            raise UserError(f"{path} is {other}; expected a file")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UserError(f"{path} is longer than {MOST_BYTES:,} bytes; expected a file written by hand")
        return data.decode()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run this in the folder of the project's params.yaml") from None
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path} line {number} is not valid YAML: expected text in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def parse(text: str, where: str) -> dict[str, Any]:
    """The mapping that the YAML ``text`` holds; UserErrors begin with ``where``."""
    try:
        _check_characters(text)
        _check_directives(text)
        content = _build(yaml.parse(text, Loader=PARSER))
    except _Refused as error:
        raise UserError(f"{where} line {error.line} is not valid YAML: {error}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter two come from PyYAML itself
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f" line {mark.line + 1}" if mark else ""
        words = brief(problem or "it holds a character that does not exist", 200)
        raise UserError(f"{where}{line} is not valid YAML: {words}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where} holds {wording.show(content)}; expected a mapping")
    return content


class _Refused(Exception):
    """YAML that PyYAML accepts and this module refuses."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.line = line  # from 1


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None  # for the type checker
    return event.start_mark.line + 1


def _check_characters(text: str) -> None:
    match = UNPRINTABLE.search(text)
    if match:
        raise _Refused(f"it holds the control character U+{ord(match[0]):04X}", text.count("\n", 0, match.start()) + 1)


def _check_directives(text: str) -> None:
    """Refuse %YAML 1.1, which DVC would follow, and %TAG, thousands of which take libyaml seconds."""
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if line.startswith("%") and line.split() != ["%YAML", "1.2"]:
            raise _Refused(f"the directive {wording.show(line.strip())}; expected %YAML 1.2, or none", number)
        if line.strip() and line[0] not in "%#":
            return


@dataclass
class _Open:
    """A list or a mapping that is still being read; a mapping's keys and values alternate in ``parts``."""

    start: yaml.CollectionStartEvent
    parts: list[Any] = field(default_factory=list)
    keys: set[Any] = field(default_factory=set)
    size: int = 1

    def add(self, value: Any, size: int, line: int) -> None:
        self.size += size
        if self.size > MOST_VALUES:
            raise _Refused(
                f"it comes to more than {MOST_VALUES:,} values, aliases counted as what they stand for", line
            )
        if isinstance(self.start, yaml.MappingStartEvent) and len(self.parts) % 2 == 0:
            self._add_key(value, line)
        self.parts.append(value)

    def _add_key(self, key: Any, line: int) -> None:
        if not isinstance(key, Hashable):
            raise _Refused(f"the key {wording.show(key)} is no plain value", line)
        if key in self.keys:
            merged = "<< stands twice; expected one, with a list of what to merge"
            raise _Refused(f"the key {merged if key is MERGE else wording.name(key) + ' stands twice'}", line)
        self.keys.add(key)

    def close(self) -> Any:
        if not isinstance(self.start, yaml.MappingStartEvent):
            return [_plain(part) for part in self.parts]
        own = dict(zip(self.parts[::2], map(_plain, self.parts[1::2]), strict=True))
        merged = own.pop(MERGE, [])
        whole: dict[Any, Any] = {}
        for mapping in reversed(merged if isinstance(merged, list) else [merged]):  # the first one with a key decides
            if not isinstance(mapping, dict):
                wrong = f"<< is {wording.show(mapping)}; expected a mapping, or a list of mappings"
                raise _Refused(wrong, _line(self.start))
            whole |= mapping
        return whole | own


def _plain(value: Any) -> Any:
    return "<<" if value is MERGE else value  # it merges only as a key


def _build(events: Iterable[yaml.Event]) -> Any:
    """The value of the one document in ``events``; _Refused where there are more, or too many values."""
    named: dict[str | None, tuple[Any, int] | None] = {}  # by anchor, and with its size; None while it is open
    opened: list[_Open] = []
    documents: list[Any] = []
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            if documents:
                raise _Refused("another document begins; expected one", _line(event))
        elif isinstance(event, yaml.CollectionStartEvent):
            _check_collection(event, len(opened))
            opened.append(_Open(event))
            named[event.anchor] = None
        elif isinstance(event, (yaml.AliasEvent, yaml.ScalarEvent, yaml.CollectionEndEvent)):
            value, size = _value(event, named, opened)
            if opened:
                opened[-1].add(value, size, _line(event))
            else:
                documents.append(_plain(value))
    return documents[0] if documents else None


def _value(
    event: yaml.AliasEvent | yaml.ScalarEvent | yaml.CollectionEndEvent,
    named: dict[str | None, tuple[Any, int] | None],
    opened: list[_Open],
) -> tuple[Any, int]:
    """The value that ends with ``event``, and its size."""
    if isinstance(event, yaml.AliasEvent):
        known = named.get(event.anchor)
        if known is None:
            fault = "stands in what it names" if event.anchor in named else "names nothing above it"
            raise _Refused(f"the alias *{wording.name(event.anchor)} {fault}", _line(event))
        return known
    if isinstance(event, yaml.ScalarEvent):
        anchor, value = event.anchor, (_scalar(event), 1 + len(event.value) // 100)
    else:
        closed = opened.pop()
        anchor, value = closed.start.anchor, (closed.close(), closed.size)
    named[anchor] = value
    return value


def _check_collection(event: yaml.CollectionStartEvent, depth: int) -> None:
    if depth >= DEEPEST:
        raise _Refused(f"mappings and lists lie more than {DEEPEST} deep in one another", _line(event))
    kind = "map" if isinstance(event, yaml.MappingStartEvent) else "seq"
    if event.tag not in (None, "!", CORE + kind):
        raise _foreign(event.tag, _line(event))


def _scalar(event: yaml.ScalarEvent) -> Any:
    text, tag = event.value, event.tag
    try:
        if tag is None:
            plain = event.implicit[0]
            return MERGE if plain and text == "<<" else scalar(text) if plain else text
        if tag in ("!", f"{CORE}str"):
            return text
        kind = tag.removeprefix(CORE)
        if kind not in SCALARS:
            raise _foreign(tag, _line(event))
        pattern, read_as = SCALARS[kind]
        if pattern.fullmatch(text):
            return read_as(text.lower())
    except ValueError as error:
        raise _Refused(str(error), _line(event)) from None
    raise _Refused(f"the tag !!{kind} stands before {wording.show(text)}", _line(event))


def _foreign(tag: str, line: int) -> _Refused:
    known = "!!map, !!seq, !!str, !!int, !!float, !!bool, !!null"
    problem = f"the tag {wording.name(tag.replace(CORE, '!!'))} is not known; expected none, or one of {known}"
    return _Refused(problem, line)
