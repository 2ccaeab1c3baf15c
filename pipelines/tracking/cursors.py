"""One tracking server: its address, the cursor of what it has, and the lock that lets one process send at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipelines.command import locks
from pipelines.command.errors import UserError
from pipelines.tracking import database, limits, records
from pipelines.tracking.records import Record
from pipelines.tracking.spool import Spool, digest
from pipelines.training import store

URI_VARIABLE = "MLFLOW_TRACKING_URI"
EXPECTED = "expected http://HOST:PORT, https://HOST:PORT, or sqlite:/// and the path of a file"
ELSEWHERE = f"set {URI_VARIABLE} to a server, or to sqlite:/// and a file on this machine's own disk"
# Other schemes of MLflow, apart from its plugins'; "" is a plain path.
SCHEMES = ("", "file", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc", "uc")
LONGEST_MESSAGE = 240  # characters of a message from a library or a server
FILES = ("sqlite:", "file:")  # schemes of addresses that hold no login
LOGIN = re.compile(r"(?P<scheme>[\w+.-]+:/+)?(?P<login>.*)@", re.DOTALL)


def _named() -> str:
    return os.environ.get(URI_VARIABLE, "").strip()


def address(project: Path) -> str:
    """``$MLFLOW_TRACKING_URI`` as it is, or the sqlite store in the project. Never raises."""
    return _named() or f"sqlite:///{project.absolute() / 'mlflow.db'}"


def tracking_uri(project: Path) -> str:
    """The ``address``; UserError for one at which there can be neither a server nor a database."""
    uri = address(project)
    file = sqlite_file(uri)
    directory = file is not None and os.path.isdir(file)
    if directory and not _named():
        raise UserError(f"{file} is a directory; expected MLflow's database, which is a file")
    if not _named() and "?" in uri:  # what follows would be taken for options
        raise UserError(
            f"MLflow can't keep a database in {project.absolute()}, for the question mark; set {URI_VARIABLE}"
        )
    if not _well_formed(uri):
        raise UserError(f"{URI_VARIABLE} is {safe(uri)!r}; {EXPECTED}")
    if directory:  # MLflow would try for minutes to open it
        raise UserError(f"{URI_VARIABLE} is {safe(uri)!r}, which is a directory; {EXPECTED}")
    if file is not None and (kind := database.shared_by(file)):
        raise UserError(f"{file} is on shared storage ({kind}), where sqlite's locks may fail; {ELSEWHERE}")
    return uri


def _well_formed(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        scheme = parts.scheme.partition("+")[0]  # mysql+pymysql
        if scheme in ("http", "https"):
            return bool(parts.hostname) and parts.port != 0 and uri.isprintable() and " " not in parts.netloc
    except ValueError:
        return False
    if parts.scheme == "sqlite":
        return uri.startswith("sqlite:///") and uri.removeprefix("sqlite:///") not in ("", ":memory:")
    if not scheme and ":" in uri.partition("/")[0]:  # 127.0.0.1:5000
        return False
    return uri.isprintable() and (scheme in SCHEMES or _of_a_plugin(scheme))


def _of_a_plugin(scheme: str) -> bool:
    from importlib.metadata import entry_points

    return bool(entry_points(group="mlflow.tracking_store", name=scheme))


def safe(uri: str) -> str:
    """The URI without user, password and query, to be printed; all before an @ counts as a login."""
    return uri if uri.startswith(FILES) else LOGIN.sub(r"\g<scheme>", uri, count=1).partition("?")[0]


def _secrets(uri: str) -> set[str]:
    """The password in the URI, quoted and unquoted."""
    found = None if uri.startswith(FILES) else LOGIN.match(uri)
    login = found["login"] if found else ""
    password = login.partition(":")[2] or login
    return {password, unquote(password)} - {""}


def is_remote(uri: str) -> bool:
    """Whether the URI names an HTTP server."""
    return uri.lower().startswith(("http://", "https://"))


def sqlite_file(uri: str) -> Path | None:
    """The file behind an sqlite URI, which may have options after a question mark."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def place(uri: str) -> str:
    """The server or database at the URI, which is ``safe``, in words."""
    file = sqlite_file(uri)
    return f"MLflow at {uri}" if file is None else f"MLflow's database {file}"


@dataclass(kw_only=True)
class Cursor:
    """A record of what the server at one URI has: ``store/tracking/<hash of the URI>.json``."""

    path: Path
    uri: str
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)  # identity: {"run_id", "sent": {part: mark}}

    @classmethod
    def of(cls, spool: Spool, uri: str) -> Cursor:
        """The cursor of **uri**, empty when there is none or when its sqlite file is gone; without damaged entries."""
        path = spool.store / "tracking" / f"{digest(safe(uri))}.json"
        cursor, file = cls(path=path, uri=safe(uri)), sqlite_file(uri)
        try:
            runs = store.read_json(path).get("runs")
        except UserError:  # none, or a damaged one: the server is asked what it has
            runs = None
        if isinstance(runs, dict) and (file is None or os.path.exists(file)):
            cursor.runs = {identity: entry for identity, entry in runs.items() if _sound(entry)}
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


def _sound(entry: object) -> bool:
    """Whether an entry can be used; without one, the server is asked."""
    if not isinstance(entry, dict) or not isinstance(entry.get("run_id"), str):
        return False
    sent = entry.get("sent")
    if not isinstance(sent, dict) or not all(isinstance(mark, str) for mark in sent.values()):
        return False
    return _is_number(sent.get("curve", "0"))


def _is_number(mark: str) -> bool:
    try:
        return float(mark) >= 0
    except ValueError:
        return False


def arrived(name: str, mark: str, sent: str | None) -> bool:
    """Whether a part is there in this state; a server may have more of a curve than a resumed trial."""
    if name == "curve":
        return float(sent or 0) >= float(mark)
    return sent == mark


def pending(spool: Spool, uri: str) -> list[Record]:
    """The runs that the server at **uri** lacks by the cursor; the server is not asked."""
    cursor = Cursor.of(spool, uri)
    return [record for record in records.gather(spool)[0] if cursor.lacks(record)]


@contextmanager
def alone(cursor: Cursor) -> Iterator[bool]:
    """Whether this process is the only one sending to that server; the kernel releases the lock when it dies."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.held(cursor.path.with_suffix(".lock"), "tracking", patience_s=0))
            mine = True
        except locks.HeldError:
            mine = False
        yield mine


def clean(message: str, uri: str) -> str:
    """The first line of a message, without the secrets in the URI and without control characters."""
    lines = message.strip().splitlines() or ["no reason given"]
    line = lines[0].replace(uri, safe(uri))
    for secret in _secrets(uri):
        line = line.replace(secret, "***")
    return limits.name(line, LONGEST_MESSAGE)
