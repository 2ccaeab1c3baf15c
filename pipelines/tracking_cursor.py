"""What one tracking server has got: its address, the cursor, and the lock that lets one process send at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pipelines import store, tracking_content, tracking_spool
from pipelines.tracking_content import Record
from pipelines.tracking_spool import Spool, digest


def tracking_uri(project: Path) -> str:
    """``$MLFLOW_TRACKING_URI``, or the sqlite store in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project.absolute() / 'mlflow.db'}"


def safe(uri: str) -> str:
    """The URI without user and password, fit to be printed."""
    if uri.startswith("sqlite:"):
        return uri
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def is_remote(uri: str) -> bool:
    """Whether the URI names an HTTP server."""
    return uri.startswith(("http://", "https://"))


def sqlite_file(uri: str) -> Path | None:
    """The file behind an sqlite URI."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@dataclass(kw_only=True)
class Cursor:
    """What the server at one URI has got; ``store/tracking/<hash of the URI>.json``."""

    path: Path
    uri: str
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)  # identity: {"run_id", "sent": {part: mark}}

    @classmethod
    def of(cls, spool: Spool, uri: str) -> Cursor:
        """The cursor of **uri**, empty when there is none or when its sqlite file is gone."""
        path = spool.store / "tracking" / f"{digest(safe(uri))}.json"
        cursor, file = cls(path=path, uri=safe(uri)), sqlite_file(uri)
        known = tracking_spool.load(path)
        if known is not None and (file is None or file.exists()):
            cursor.runs = known.get("runs", {})
        return cursor

    def save(self) -> None:
        """Write it, in one step."""
        store.write_json(self.path, {"uri": self.uri, "runs": self.runs})

    def sent(self, record: Record) -> Mapping[str, str]:
        """The marks of the record's parts that have arrived."""
        found: Mapping[str, str] = self.runs.get(record.identity, {}).get("sent", {})
        return found

    def lacks(self, record: Record) -> bool:
        """Whether there is something to send."""
        sent = self.sent(record)
        return any(not arrived(name, mark, sent.get(name)) for name, mark in record.marks.items())


def arrived(name: str, mark: str, sent: str | None) -> bool:
    """Whether a part is there in this state; of a curve the server may have more than a resumed trial."""
    if name == "curve":
        return int(sent or 0) >= int(mark)
    return sent == mark


def pending(spool: Spool, uri: str) -> list[Record]:
    """What the server at **uri** lacks, as far as is remembered here; nothing is asked of it."""
    cursor = Cursor.of(spool, uri)
    return [record for record in tracking_content.records(tracking_spool.read(spool)[0]) if cursor.lacks(record)]


@contextmanager
def alone(cursor: Cursor) -> Iterator[bool]:
    """Whether this process is the only one sending to that server; the kernel lets go when it dies."""
    path = cursor.path.with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def clean(message: str, uri: str) -> str:
    """The first line of a message, without what is secret in the URI."""
    lines = message.strip().splitlines() or ["no reason given"]
    password = "" if uri.startswith("sqlite:") else urlsplit(uri).password or ""
    line = lines[0].replace(uri, safe(uri))
    return (line.replace(password, "***") if password else line)[:200]
