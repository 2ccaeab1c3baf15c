"""Strict reading of mappings into dataclasses: an unknown key, a wrong type or a wrong value is one clear line.

A misspelt key that is silently ignored is the classic way to run another experiment than the one configured.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pipelines.command.errors import UserError
from pipelines.config.values import default
from pipelines.config.wording import place, show, suggest

Dataclass = TypeVar("Dataclass")
LARGEST_INT64 = 2**63 - 1
LEAST_FLOAT32, MOST_FLOAT32 = 1.2e-38, 3.4e38  # sizes of a float32, beside 0
# Control characters other than tab and line feed, line separators, and marks of text direction.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
BOOLS_OF_YAML_1_1 = ("yes", "no", "on", "off", "y", "n")


def parse(cls: type[Dataclass], value: Any, where: str, *, strict: bool = True, **given: Any) -> Dataclass:
    """Build the dataclass ``cls`` from the mapping ``value`` that stands at ``where``; a file ends in a colon there.

    ``given`` are fields from elsewhere, such as a name that is the mapping's key. ``strict`` is for what a user writes;
    without it, as for files that another version of ours may have written, unknown keys are ignored, text may hold
    control characters, and a float may be NaN or infinite unless a rule forbids it.
    Raises UserError for anything but a mapping, for unknown or missing keys, and for wrong types or values.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{where.removesuffix(':')} is {show(value)}; expected a mapping")
    fields = {name: field for name, field in _fields(cls).items() if name not in given}  # type: ignore[arg-type]
    for key in value if strict else ():
        if key not in fields and isinstance(key, int) and value[key] is None:  # YAML reads {lr: 0,1} so
            raise UserError(
                f"{place(where, key)} is not known; expected a decimal point, if a number before it has a comma"
            )
        if key not in fields:
            raise UserError(f"{place(where, key)} is not known; {suggest(str(key), fields)}")
    values = dict(given)
    for name, (hint, required) in fields.items():
        if name in value:
            values[name] = convert(hint, value[name], place(where, name), strict)
        elif required:
            raise UserError(f"{place(where, name)} is missing; expected {_kind(hint)}")
    try:
        return cls(**values)
    except ValueError as error:  # from a __post_init__, which checks the values together
        raise UserError(f"{where}{' ' if where.endswith(':') else '.'}{error}") from None


@functools.cache
def _fields(cls: Any) -> dict[str, tuple[Any, bool]]:
    """The type of each field, and whether a file must give it."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: (hints[field.name], default(field) is dataclasses.MISSING) for field in dataclasses.fields(cls)}


def convert(hint: Any, value: Any, where: str, strict: bool = True) -> Any:
    """``value`` as ``hint``; UserError with its place, the value and what is allowed otherwise."""
    if hint is Any:
        if strict:
            _check_plain(value, value, where)
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return parse(hint, value, where, strict=strict)
    return _READERS.get(typing.get_origin(hint), _scalar)(hint, value, where, strict)


def _limited(hint: Any, value: Any, where: str, strict: bool) -> Any:
    """``hint`` is Annotated[X, Rule, ...]."""
    kind, *rules = typing.get_args(hint)
    converted = convert(kind, value, where, strict)
    for rule in rules:
        if not rule.accepts(converted):
            raise UserError(f"{where} is {show(converted)}; expected {rule.line(converted)}")
    return converted


def _union(hint: Any, value: Any, where: str, strict: bool) -> Any:
    """``hint`` is X | None, or a scalar | a dataclass."""
    parts = typing.get_args(hint)
    if value is None and type(None) in parts:
        return None
    wanted = [part for part in parts if part is not type(None)]
    mappings = [part for part in wanted if dataclasses.is_dataclass(part)] if isinstance(value, Mapping) else []
    return convert((mappings or wanted)[0], value, where, strict)


def _literal(hint: Any, value: Any, where: str, strict: bool) -> Any:
    if value not in typing.get_args(hint):
        near = value if isinstance(value, str) else ""
        raise UserError(f"{where} is {show(value)}; {suggest(near, typing.get_args(hint))}")
    return value


def _tuple(hint: Any, value: Any, where: str, strict: bool) -> tuple[Any, ...]:
    """``hint`` is tuple[X, ...] or tuple[X, Y]."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UserError(f"{where} is {show(value)}; expected a list")
    args = typing.get_args(hint)
    inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
    if len(inner) != len(value):
        raise UserError(f"{where} is {show(value)}; expected a list of {len(inner)}")
    return tuple(convert(a, v, f"{where}[{i}]", strict) for i, (a, v) in enumerate(zip(inner, value, strict=True)))


def _dict(hint: Any, value: Any, where: str, strict: bool) -> dict[str, Any]:
    """``hint`` is dict[str, X] or dict[Annotated[str, Rule], X]."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where} is {show(value)}; expected a mapping")
    keys, inner = typing.get_args(hint)
    check_keys(keys, value, where)
    return {key: convert(inner, item, place(where, key), strict) for key, item in value.items()}


def check_keys(hint: Any, value: Mapping[Any, Any], where: str) -> None:
    """UserError for a key that is not text, which DVC would not find, or that breaks a rule of ``hint``."""
    for key in value:
        if not isinstance(key, str):
            quoted = "expected text, in quotes where YAML reads something else"
            raise UserError(f"{where} has the key {show(key)}; {quoted}")
        for rule in getattr(hint, "__metadata__", ()):
            if not rule.accepts(key):
                raise UserError(f"{where} has the key {show(key)}; expected {rule.line(key)}")


_READERS: dict[Any, Callable[[Any, Any, str, bool], Any]] = {
    Annotated: _limited,
    typing.Union: _union,
    types.UnionType: _union,
    typing.Literal: _literal,
    tuple: _tuple,
    dict: _dict,
}


def _scalar(hint: Any, value: Any, where: str, strict: bool) -> Any:
    """``hint`` is bool, int, float or str; a boolean is no number, and NaN no value."""
    accepted = (int, float) if hint is float else (hint,)
    if (isinstance(value, bool) and hint is not bool) or not isinstance(value, accepted):
        raise UserError(f"{where} is {show(value)}; expected {_kind(hint)}{_slip(hint, value)}")
    converted = _real(value) if hint is float else value
    if (strict or isinstance(value, int)) and (wrong := _wrong(converted)):
        raise UserError(f"{where} is {show(value)}; expected {wrong}")
    return converted


def _real(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _wrong(value: Any) -> str | None:
    """What is expected in place of a scalar that no field can use; None where it is usable."""
    if isinstance(value, str):
        return "text without control characters" if UNSEEN.search(value) else None
    if isinstance(value, float):
        if not math.isfinite(value):
            return "a finite number"
        usable = value == 0 or LEAST_FLOAT32 <= abs(value) <= MOST_FLOAT32
        return None if usable else f"0, or {LEAST_FLOAT32:g} to {MOST_FLOAT32:g} in size"
    return "a whole number within ±2^63" if isinstance(value, int) and abs(value) > LARGEST_INT64 else None


def _check_plain(value: Any, part: Any, where: str) -> None:
    """Check ``part`` of ``value``, a field of any type: scalars, lists, and mappings with text for keys."""
    if isinstance(part, Mapping):
        for key, item in part.items():
            if not isinstance(key, str):
                raise UserError(f"{where} is {show(value)}; expected text for a key, not {show(key)}")
            _check_plain(value, key, where)
            _check_plain(value, item, where)
    elif isinstance(part, (list, tuple)):
        for item in part:
            _check_plain(value, item, where)
    elif wrong := _wrong(part):
        raise UserError(f"{where} is {show(value)}; expected {wrong}")


def _slip(hint: Any, value: Any) -> str:
    """The likely slip behind a value of the wrong type, to end an error line with."""
    if hint is str:
        return ", in quotes" if isinstance(value, (bool, int, float)) else ""
    if not isinstance(value, str):
        return ""
    if hint is bool:
        if value.lower() in ("true", "false"):
            return ", without the quotes"
        return f"; YAML 1.2 reads {value} as text" if value.lower() in BOOLS_OF_YAML_1_1 else ""
    if "_" in value and _is_number(hint, value):
        return ", without underscores"
    if _is_number(hint, value):
        return ", without the quotes"
    return ", with a decimal point" if _is_number(hint, value.replace(",", ".")) else ""


def _is_number(hint: Any, value: Any) -> bool:
    """Whether ``value`` reads as a finite number of the type ``hint``."""
    try:
        return hint in (int, float) and math.isfinite(hint(value))
    except (ValueError, OverflowError):
        return False


def _kind(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return _kind(hint.__origin__)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if origin is tuple:
        return "a list"
    return names.get(hint, "a mapping")
