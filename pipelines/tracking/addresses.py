"""The address of a tracking server or database: where it comes from, its checks, and how messages show it."""

from __future__ import annotations

import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipelines.command.errors import UserError
from pipelines.tracking import database, limits

URI_VARIABLE = "MLFLOW_TRACKING_URI"
EXPECTED = "expected http://HOST:PORT, https://HOST:PORT, or sqlite:/// and the path of a file"
ELSEWHERE = f"set {URI_VARIABLE} to a server, or to sqlite:/// and a file on this machine's own disk"
# Schemes of MLflow beside http and those of its plugins; "" is a plain path.
SCHEMES = ("", "file", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc", "uc")
LONGEST_MESSAGE = 240  # characters of a message from a library or a server
FILES = ("sqlite:", "file:")  # addresses without a login
LOGIN = re.compile(r"(?P<scheme>[\w+.-]+:/+)?(?P<login>.*)@", re.DOTALL)


def address(project: Path) -> str:
    """``$MLFLOW_TRACKING_URI`` as it is, or the sqlite store in the project. Never raises."""
    return os.environ.get(URI_VARIABLE, "").strip() or f"sqlite:///{project.absolute() / 'mlflow.db'}"


def tracking_uri(project: Path) -> str:
    """The ``address``; UserError where neither a server nor a database can have it."""
    uri, home = address(project), project.absolute()
    file = sqlite_file(uri)
    if uri == f"sqlite:///{home / 'mlflow.db'}" and "?" in uri:  # SQLAlchemy takes the rest for options
        raise UserError(f"MLflow can't keep a database in {home}, for the question mark; set {URI_VARIABLE}")
    if not _well_formed(uri):
        raise UserError(f"{URI_VARIABLE} is {safe(uri)!r}; {EXPECTED}")
    if file is not None and os.path.isdir(file):  # MLflow would try for minutes to open it
        raise UserError(f"{file} is a directory; expected MLflow's database, which is a file")
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
    known = scheme in SCHEMES or bool(entry_points(group="mlflow.tracking_store", name=scheme))
    return uri.isprintable() and known


def safe(uri: str) -> str:
    """The URI for a message: without user, password, query and fragment. All before an @ counts as a login."""
    return uri if uri.startswith(FILES) else re.split("[?#]", LOGIN.sub(r"\g<scheme>", uri, count=1), maxsplit=1)[0]


def is_remote(uri: str) -> bool:
    """Whether the URI names an HTTP server."""
    return uri.lower().startswith(("http://", "https://"))


def sqlite_file(uri: str) -> Path | None:
    """The file behind an sqlite URI, which may have options after a question mark."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def place(uri: str) -> str:
    """The server or database at a ``safe`` URI, in words."""
    file = sqlite_file(uri)
    return f"MLflow at {uri}" if file is None else f"MLflow's database {file}"


def clean(message: str, uri: str) -> str:
    """The first line of a message, without the URI's secrets and without control characters."""
    lines = message.strip().splitlines() or ["no reason given"]
    line = lines[0].replace(uri, safe(uri))
    match = None if uri.startswith(FILES) else LOGIN.match(uri)
    login = match["login"] if match else ""
    password = login.partition(":")[2] or login
    for secret in {password, unquote(password)} - {""}:
        line = line.replace(secret, "***")
    return limits.name(line, LONGEST_MESSAGE)
