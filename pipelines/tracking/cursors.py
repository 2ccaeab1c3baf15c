"""Runs to send to a tracking server, and the cursor: a record of what was sent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.command.errors import UserError
from pipelines.command.files import read_json, write_json
from pipelines.tracking.addresses import safe, sqlite_file


class Point(NamedTuple):
    """One value of one metric; **time** in unix seconds."""

    key: str
    value: float
    step: int
    time: float


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of MLflow."""

    identity: str
    experiment: str
    name: str
    parent: str | None  # identity of the run above it
    started: float
    status: str
    ended: float | None
    dataset_digest: str | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: Sequence[Point]
    curve: Sequence[Point] = ()
    epochs: float = 0.0  # of the curve
    files: Sequence[Callable[[], Mapping[str, bytes]]]  # make their contents, by name
    mark: str  # a digest of everything but the curve and the status

    @property
    def marks(self) -> dict[str, str]:
        """The marks in the cursor once everything is sent."""
        return {"mark": self.mark, "curve": str(self.epochs), "status": self.status}


@dataclass(kw_only=True)
class Cursor:
    """What was sent to the server at one URI: ``store/tracking/<hash of the URI>.json``."""

    path: Path
    uri: str
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)  # identity: {"run_id", "sent": marks}

    @classmethod
    def of(cls, root: Path, uri: str) -> Cursor:
        """The cursor of **uri** in the run store **root**; empty where there is none, or its sqlite file is gone."""
        path = root / "tracking" / f"{digest(safe(uri))}.json"
        cursor, file = cls(path=path, uri=safe(uri)), sqlite_file(uri)
        try:
            runs = read_json(path).get("runs")
        except UserError:  # missing or damaged: the server is asked instead
            runs = None
        if isinstance(runs, dict) and (file is None or os.path.exists(file)):
            cursor.runs = {identity: entry for identity, entry in runs.items() if _sound(entry)}
        return cursor

    def save(self) -> None:
        """Write the file in one step."""
        write_json(self.path, {"uri": self.uri, "runs": self.runs})

    def lacks(self, record: Record) -> bool:
        """Whether some of the record was not sent."""
        sent = self.runs.get(record.identity, {}).get("sent", {})
        return any(not arrived(name, mark, sent.get(name)) for name, mark in record.marks.items())


def _sound(entry: object) -> bool:
    """Whether an entry is usable; otherwise the server is asked."""
    match entry:
        case {"run_id": str(), "sent": dict(sent)} if all(isinstance(mark, str) for mark in sent.values()):
            with suppress(ValueError):
                return float(sent.get("curve", 0)) >= 0
    return False


def arrived(name: str, mark: str, sent: str | None) -> bool:
    """Whether a mark was sent; a server may have more epochs of a curve than a resumed trial."""
    if name == "curve":
        return float(sent or 0) >= float(mark)
    return sent == mark


def digest(*parts: Any) -> str:
    """A short digest of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
