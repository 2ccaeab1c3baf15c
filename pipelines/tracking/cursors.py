"""Runs to send to a tracking server, and the cursor: a record of what was sent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.command.errors import UserError
from pipelines.command.files import read_json, write_json
from pipelines.tracking.addresses import safe, sqlite_file

DELETED = "deleted"  # by somebody, in MLflow
MakeFiles = Callable[[], Mapping[str, bytes]]  # returns contents by name


class Point(NamedTuple):
    """One value of one metric; **time** in unix seconds."""

    key: str
    value: float
    step: int
    time: float


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run of MLflow, as it should be there."""

    identity: str
    experiment: str
    name: str
    parent: str | None = None  # identity of the run above it
    started: float
    status: str
    ended: float | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: Sequence[Point]
    curve: Sequence[Point] = ()  # in the order of the epochs; an epoch's number is the last point of its line
    files: Sequence[MakeFiles]
    mark: str  # of everything above: another one where any of it has changed


@dataclass(kw_only=True)
class Cursor:
    """What was sent to the server at one URI: ``store/tracking/<hash of the URI>.json``."""

    path: Path
    uri: str
    sent: dict[str, str]  # by identity: the mark of the record, or DELETED

    @classmethod
    def of(cls, root: Path, uri: str) -> Cursor:
        """The cursor of **uri** in the run store **root**; empty where there is none, or its sqlite file is gone."""
        path, file, sent = root / "tracking" / f"{mark_of(safe(uri))}.json", sqlite_file(uri), None
        if file is None or os.path.exists(file):
            with suppress(UserError):  # missing or damaged: everything is sent again, over what is there
                sent = read_json(path).get("sent")
        return cls(path=path, uri=safe(uri), sent=sent if isinstance(sent, dict) else {})

    def save(self) -> None:
        """Write the file in one step."""
        write_json(self.path, {"uri": self.uri, "sent": self.sent})

    def lacks(self, record: RunRecord) -> bool:
        """Whether some of the record was not sent; a run that somebody deleted stays deleted."""
        return self.sent.get(record.identity) not in (record.mark, DELETED)


def mark_of(*parts: Any) -> str:
    """16 hex digits that stand for plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
