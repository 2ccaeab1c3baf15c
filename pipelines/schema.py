"""Strict reading of mappings into dataclasses: every unknown key, wrong type or wrong range is one clear line.

A dict read under a misspelt key is the classic way in which an experiment silently ignores its configuration;
nothing here is ever ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pipelines.errors import UserError

T = TypeVar("T")


def parse(cls: type[T], value: Any, where: str, **given: Any) -> T:
    """Build the dataclass ``cls`` from the mapping ``value`` that stands at ``where``.

    ``given`` are fields that the file does not hold (a name taken from the key, say).
    Raises UserError for a value that is no mapping, unknown or missing keys, and wrong types.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{where} is {show(value)}; expected a mapping")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in given}  # type: ignore[arg-type]
    for key in value:
        if key not in fields and isinstance(key, int) and value[key] is None:  # what YAML makes of {lr: 0,1}
            raise UserError(f"{where}.{key} is not known; expected a decimal point, if a number before it has a comma")
        if key not in fields:
            raise UserError(f"{where}.{key} is not known; {_suggest(str(key), fields)}")
    hints = typing.get_type_hints(cls)
    found = dict(given)
    for name, field in fields.items():
        if name in value:
            found[name] = convert(hints[name], value[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}.{name} is missing; expected {_kind(hints[name])}")
    try:
        return cls(**found)
    except ValueError as error:  # a __post_init__ that looked at the values together
        raise UserError(f"{where}.{error}") from None


def convert(hint: Any, value: Any, where: str) -> Any:
    """Return ``value`` as ``hint``, or raise a UserError that names ``where``, the value and what is allowed."""
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return parse(typing.cast(type, hint), value, where)
    return _READERS.get(typing.get_origin(hint), _scalar)(hint, value, where)


def _optional(hint: Any, value: Any, where: str) -> Any:
    """``hint`` is X | None."""
    if value is None:
        return None
    return convert(next(a for a in typing.get_args(hint) if a is not type(None)), value, where)


def _literal(hint: Any, value: Any, where: str) -> Any:
    if value not in typing.get_args(hint):
        raise UserError(f"{where} is {show(value)}; {_suggest(str(value), typing.get_args(hint))}")
    return value


def _tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    """``hint`` is tuple[X, ...] or tuple[X, Y]."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UserError(f"{where} is {show(value)}; expected a list")
    args = typing.get_args(hint)
    inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
    if len(inner) != len(value):
        raise UserError(f"{where} is {show(value)}; expected a list of {len(inner)}")
    return tuple(convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(inner, value, strict=True)))


def _dict(hint: Any, value: Any, where: str) -> dict[str, Any]:
    """``hint`` is dict[str, X]."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where} is {show(value)}; expected a mapping")
    inner = typing.get_args(hint)[1]
    return {str(k): convert(inner, v, f"{where}.{k}") for k, v in value.items()}


_READERS: dict[Any, Callable[[Any, Any, str], Any]] = {
    typing.Union: _optional,
    types.UnionType: _optional,
    typing.Literal: _literal,
    tuple: _tuple,
    dict: _dict,
}


def _scalar(hint: Any, value: Any, where: str) -> Any:
    """``hint`` is one of bool, int, float, str; YAML's own booleans are no numbers, and NaN is no value."""
    accepted = (int, float) if hint is float else (hint,)
    if (isinstance(value, bool) and hint is not bool) or not isinstance(value, accepted):
        raise UserError(f"{where} is {show(value)}; expected {_kind(hint)}{_slip(hint, value)}")
    if hint is float and not _is_number(float, value):
        raise UserError(f"{where} is {show(value)}; expected a finite number")
    return float(value) if hint is float else value


def _slip(hint: Any, value: Any) -> str:
    """What keeps a text from being the number it looks like."""
    if not isinstance(value, str):
        return ""
    if _is_number(hint, value):
        return ", without the quotes"
    return ", with a decimal point" if _is_number(hint, value.replace(",", ".")) else ""


def _is_number(hint: Any, value: Any) -> bool:
    """Whether ``value``, text perhaps, is a finite number of the type ``hint``."""
    try:
        return hint in (int, float) and math.isfinite(hint(value))
    except (ValueError, OverflowError):
        return False


def require(condition: bool, message: str) -> None:
    """For ``__post_init__``: raise a ValueError whose text goes on where ``parse`` writes the place."""
    if not condition:
        raise ValueError(message)


def show(value: Any) -> str:
    """How a value is quoted in an error: short, on one line, in YAML's words where Python has others."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggest(key: str, known: Any) -> str:
    names = sorted(str(k) for k in known)
    near = difflib.get_close_matches(key, names, n=1)
    listed = "allowed: " + ", ".join(names)
    return f"did you mean {near[0]}? ({listed})" if near else listed


def unknown(what: str, name: str, known: Any) -> UserError:
    """The error for a name that should be one of ``known``."""
    return UserError(f"{what} {name} is not known; {_suggest(name, known)}")


def _kind(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if origin is tuple:
        return "a list"
    return names.get(hint, "a mapping")
