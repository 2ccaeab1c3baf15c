"""YAML 1.2 as DVC reads it. PyYAML alone reads 1.1: ``1e-3`` is text to it, ``1:30`` is 90, and ``on`` is true.

PyYAML parses the text; scalars follow the core schema of YAML 1.2.2, section 10.3.2. The merge key ``<<`` of 1.1 is
read too, as by DVC. Length, depth and the size of expanded aliases are bounded, so that a damaged or malicious file
costs no more than a moment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, ClassVar

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
MERGE = f"{CORE}merge"  # the tag of the key <<
DIRECTIVE = re.compile(r"^\ufeff?%(?!YAML 1\.2\s*$).*", re.MULTILINE)
# Characters that YAML 1.2 forbids: control characters and surrogates.
UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _whole(text: str) -> int:
    """010 is ten; 0o10 is eight."""
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits; expected at most {MOST_DIGITS:,}")
    return int(text, 0 if "o" in text or "x" in text else 10)


def _fraction(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


# Plain scalars by type: a pattern, and a function of the text in lower case. The first match counts.
SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "null": (re.compile("(~|null|Null|NULL|)$"), lambda text: None),
    "bool": (re.compile("(true|True|TRUE|false|False|FALSE)$"), lambda text: text == "true"),
    "int": (re.compile("([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), _whole),
    "float": (
        re.compile(r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
        _fraction,
    ),
}


class _Loader(PARSER):  # type: ignore[misc,valid-type]
    """PyYAML's, which names the types of plain scalars as YAML 1.2 does."""

    yaml_implicit_resolvers: ClassVar[dict[None, list[tuple[str, re.Pattern[str]]]]] = {
        None: [(MERGE, re.compile("<<$")), *((CORE + kind, pattern) for kind, (pattern, _) in SCALARS.items())]
    }


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
        node = yaml.compose(text, Loader=_Loader)
        content = None if node is None else _value(node, {})[0]
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML raises the latter two as well
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f" line {mark.line + 1}" if mark else ""
        if isinstance(error, yaml.composer.ComposerError) and error.context:
            problem = f"{error.context}, {problem}"
        words = brief(problem or "it holds a character that does not exist", 200)
        raise UserError(f"{where}{line} is not valid YAML: {words}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where} holds {wording.show(content)}; expected a mapping")
    return content


def _check_text(text: str) -> None:
    """Refuse control characters, directives (thousands of %TAG take libyaml seconds) and nesting beyond the stack."""
    for pattern, problem in (
        (UNPRINTABLE, "the control character {!a}"),
        (DIRECTIVE, "the directive {!r}; expected %YAML 1.2, or none"),  # DVC would follow %YAML 1.1
    ):
        if match := pattern.search(text):
            line = text.count("\n", 0, match.start())
            raise _refused(problem.format(match[0].strip()), yaml.Mark("", 0, line, 0, None, 0))
    depth = 0
    for event in yaml.parse(text, Loader=PARSER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise _refused(f"mappings and lists lie more than {DEEPEST} deep in one another", event.start_mark)


def _refused(problem: str, mark: Any) -> yaml.MarkedYAMLError:  # PyYAML and libyaml have a class of marks each
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _value(node: yaml.Node, known: dict[yaml.Node, tuple[Any, int] | None]) -> tuple[Any, int]:
    """The value of ``node`` and its size; ``known`` has those of finished nodes, and None for nodes being read."""
    if node in known:
        if (found := known[node]) is None:
            raise _refused("an alias stands in what it names", node.start_mark)
        return found
    known[node] = None
    if isinstance(node, yaml.ScalarNode):
        value, size = _scalar(node), 1 + len(node.value) // 100
    elif isinstance(node, yaml.SequenceNode) and node.tag == f"{CORE}seq":
        value, size = _values(node, node.value, known)
    elif isinstance(node, yaml.MappingNode) and node.tag == f"{CORE}map":
        parts, size = _values(node, [part for pair in node.value for part in pair], known)
        value = _mapping(zip((key for key, _ in node.value), parts[::2], parts[1::2], strict=True))
    else:
        raise _foreign(node)
    known[node] = value, size
    return value, size


def _values(
    node: yaml.Node, parts: Iterable[yaml.Node], known: dict[yaml.Node, tuple[Any, int] | None]
) -> tuple[list[Any], int]:
    """The values of the ``parts`` of ``node``, and their size with it, for as long as that is bounded."""
    values, size = [], 1
    for part in parts:
        value, more = _value(part, known)
        values.append(value)
        size += more
        if size > MOST_VALUES:
            most = f"it comes to more than {MOST_VALUES:,} values, aliases counted as what they stand for"
            raise _refused(most, node.start_mark)
    return values, size


def _mapping(pairs: Iterable[tuple[yaml.Node, Any, Any]]) -> dict[Any, Any]:
    """The mapping of ``pairs``, each the key's node, the key and its value; own keys override merged ones."""
    own: dict[Any, Any] = {}
    merged: list[Any] | None = None
    for node, key, value in pairs:
        if not isinstance(key, Hashable):
            raise _refused(f"the key {wording.show(key)} is no plain value", node.start_mark)
        if node.tag == MERGE:
            if merged is not None:
                raise _refused("the key << stands twice; expected one, with a list of what to merge", node.start_mark)
            merged = value if isinstance(value, list) else [value]
            if wrong := [part for part in merged if not isinstance(part, dict)]:
                line = f"<< is {wording.show(wrong[0])}; expected a mapping, or a list of mappings"
                raise _refused(line, node.start_mark)
        elif key in own:
            raise _refused(f"the key {wording.name(key)} stands twice", node.start_mark)
        else:
            own[key] = value
    whole: dict[Any, Any] = {}
    for mapping in reversed(merged or []):  # the first one with a key decides
        whole |= mapping
    return whole | own


def _scalar(node: yaml.ScalarNode) -> Any:
    if node.tag in (MERGE, f"{CORE}str"):  # << merges only as a key
        return node.value
    kind = node.tag.removeprefix(CORE)
    if kind not in SCALARS:
        raise _foreign(node)
    pattern, read_as = SCALARS[kind]
    if not pattern.fullmatch(node.value):
        raise _refused(f"the tag !!{kind} stands before {wording.show(node.value)}", node.start_mark)
    try:
        return read_as(node.value.lower())
    except ValueError as error:
        raise _refused(str(error), node.start_mark) from None


def _foreign(node: yaml.Node) -> yaml.MarkedYAMLError:
    known = "!!map, !!seq, !!str, !!int, !!float, !!bool, !!null"
    tag = wording.name(node.tag.replace(CORE, "!!"))
    return _refused(f"the tag {tag} is not known; expected none, or one of {known}", node.start_mark)
