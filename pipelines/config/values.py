"""Dataclasses of a config in plain form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


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
