"""YAML 1.2 as DVC reads it. PyYAML alone reads 1.1: ``1e-3`` is text to it, ``1:30`` is 90, and ``on`` is true.

PyYAML parses the text into events, and ``_Document`` makes values of them; scalars follow the core schema of YAML
1.2.2, section 10.3.2. The merge key ``<<`` of 1.1 is read too, as by DVC. Length, depth and the size of expanded
aliases are bounded, so that a damaged or malicious file costs no more than a moment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from pipelines.command.errors import UserError, brief
from pipelines.command.files import MissingError, reading
from pipelines.config import wording

MOST_BYTES = 1_000_000  # bytes of a file; the largest, models/lenet.yaml, has 14,000
DEEPEST = 50  # levels of mappings and lists; the rows have 6
MOST_VALUES = 100_000  # values; an alias counts with its whole content, a long text as several; lenet.yaml has 900
MOST_DIGITS = 1000  # of a whole number; Python reads at most 4,300
CORE = "tag:yaml.org,2002:"
PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is many times faster, and in every wheel of PyYAML
DIRECTIVE = re.compile(r"^\ufeff?%(?!YAML 1\.2\s*$).*", re.MULTILINE)
# Characters that YAML 1.2 forbids: control characters and surrogates.
UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
Sized = tuple[Any, int]  # a value, and how many values it counts as


def _whole(text: str) -> int:
    """010 is ten; 0o10 is eight."""
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits; expected at most {MOST_DIGITS:,}")
    return int(text, 0 if "o" in text or "x" in text else 10)


def _fraction(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


# Plain scalars by type: a pattern, and a function of the text in lower case. The first match counts.
SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "null": ("~|null|Null|NULL|", lambda text: None),
    "bool": ("true|True|TRUE|false|False|FALSE", lambda text: text == "true"),
    "int": ("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", _whole),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        _fraction,
    ),
}
KINDS = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, (pattern, _) in SCALARS.items()))


def read(path: Path) -> dict[str, Any]:
    """The mapping in ``path``; UserError where the file is absent, too long, not in UTF-8, no YAML, or no mapping."""
    try:
        with reading(path) as file:
            data = file.read(MOST_BYTES + 1)
    except MissingError:
        raise UserError(f"{path} does not exist; run this in the folder of the project's params.yaml") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"{path} is longer than {MOST_BYTES:,} bytes; expected a file written by hand")
    try:
        return parse(data.decode(), str(path))
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path} line {number} is not valid YAML: expected text in UTF-8") from None


def parse(text: str, where: str) -> dict[str, Any]:
    """The mapping in the YAML ``text``; UserErrors begin with ``where``."""
    try:
        _check_text(text)
        content = _Document(text).content()
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML raises the latter two as well
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f" line {mark.line + 1}" if mark else ""
        words = brief(problem or "it holds a character that does not exist", 200)
        raise UserError(f"{where}{line} is not valid YAML: {words}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where} holds {wording.show(content)}; expected a mapping")
    return content


def _check_text(text: str) -> None:
    """Refuse control characters, and directives: thousands of %TAG take libyaml seconds."""
    for pattern, problem in (
        (UNPRINTABLE, "the control character {!a}"),
        (DIRECTIVE, "the directive {!r}; expected %YAML 1.2, or none"),  # DVC would follow %YAML 1.1
    ):
        if match := pattern.search(text):
            line = text.count("\n", 0, match.start())
            raise _refused(problem.format(match[0].strip()), yaml.Mark("", 0, line, 0, None, 0))


def _refused(problem: str, mark: Any) -> yaml.MarkedYAMLError:  # PyYAML and libyaml have a class of marks each
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _Document:
    """The one document of a YAML text. PyYAML's own composer would recurse as deep as a text is nested."""

    def __init__(self, text: str) -> None:
        self.events: Iterator[Any] = yaml.parse(text, Loader=PARSER)
        self.anchored: dict[str, Sized | None] = {}  # None while it is being read

    def content(self) -> Any:
        """Its value; None of an empty text."""
        next(self.events)  # the start of the stream
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        value, _ = self._value(next(self.events), 0)
        next(self.events)  # the end of the document
        if not isinstance(after := next(self.events), yaml.StreamEndEvent):
            raise _refused("a second document begins; expected one", after.start_mark)
        return value

    def _value(self, event: Any, depth: int) -> Sized:
        """The value that begins with ``event``, ``depth`` collections deep."""
        anchor = event.anchor
        if isinstance(event, yaml.AliasEvent):
            if anchor not in self.anchored:
                raise _refused(f"the alias {wording.name(anchor)} has no anchor before it", event.start_mark)
            if (sized := self.anchored[anchor]) is None:
                raise _refused("an alias stands in what it names", event.start_mark)
            return sized
        if anchor in self.anchored:
            raise _refused(f"the anchor {wording.name(anchor)} stands twice", event.start_mark)
        if anchor is not None:
            self.anchored[anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            sized = _scalar(event), 1 + len(event.value) // 100
        else:
            sized = self._collection(event, depth + 1)
        if anchor is not None:
            self.anchored[anchor] = sized
        return sized

    def _collection(self, start: yaml.CollectionStartEvent, depth: int) -> Sized:
        mapping = isinstance(start, yaml.MappingStartEvent)
        if start.tag not in (None, "!", f"{CORE}{'map' if mapping else 'seq'}"):
            raise _foreign(start)
        if depth > DEEPEST:
            raise _refused(f"mappings and lists lie more than {DEEPEST} deep in one another", start.start_mark)
        firsts, values, size = list[Any](), list[Any](), 1
        while not isinstance(event := next(self.events), yaml.CollectionEndEvent):
            value, more = self._value(event, depth)
            firsts.append(event)
            values.append(value)
            size += more
            if size > MOST_VALUES:
                most = f"it comes to more than {MOST_VALUES:,} values, aliases counted as what they stand for"
                raise _refused(most, start.start_mark)
        return (_mapping(zip(firsts[::2], values[::2], values[1::2], strict=True)) if mapping else values), size


def _mapping(pairs: Iterable[tuple[yaml.Event, Any, Any]]) -> dict[Any, Any]:
    """The mapping of ``pairs``, each the key's first event, the key and its value; own keys override merged ones."""
    own: dict[Any, Any] = {}
    merged: list[Any] | None = None
    for first, key, value in pairs:
        if not isinstance(key, Hashable):
            raise _refused(f"the key {wording.show(key)} is no plain value", first.start_mark)
        if key == "<<" and isinstance(first, yaml.ScalarEvent) and first.implicit[0]:  # not in quotes
            if merged is not None:
                raise _refused("the key << stands twice; expected one, with a list of what to merge", first.start_mark)
            merged = value if isinstance(value, list) else [value]
            if wrong := [part for part in merged if not isinstance(part, dict)]:
                line = f"<< is {wording.show(wrong[0])}; expected a mapping, or a list of mappings"
                raise _refused(line, first.start_mark)
        elif key in own:
            raise _refused(f"the key {wording.name(key)} stands twice", first.start_mark)
        else:
            own[key] = value
    whole: dict[Any, Any] = {}
    for mapping in reversed(merged or []):  # the first one with a key decides
        whole |= mapping
    return whole | own


def _scalar(event: yaml.ScalarEvent) -> Any:
    plain, _ = event.implicit
    if event.tag in (None, "!"):
        match = KINDS.fullmatch(event.value) if plain else None
        kind = (match and match.lastgroup) or "str"
    else:
        kind = event.tag.removeprefix(CORE)
    if kind == "str":
        return event.value
    if kind not in SCALARS:
        raise _foreign(event)
    pattern, read_as = SCALARS[kind]
    if not re.fullmatch(pattern, event.value):
        raise _refused(f"the tag !!{kind} stands before {wording.show(event.value)}", event.start_mark)
    try:
        return read_as(event.value.lower())
    except ValueError as error:
        raise _refused(str(error), event.start_mark) from None


def _foreign(event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> yaml.MarkedYAMLError:
    known = "!!map, !!seq, !!str, !!int, !!float, !!bool, !!null"
    tag = wording.name(str(event.tag).replace(CORE, "!!"))
    return _refused(f"the tag {tag} is not known; expected none, or one of {known}", event.start_mark)
