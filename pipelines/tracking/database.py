"""MLflow's sqlite database, used where no server is named: its faults in words, and where its artifacts are."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

ARTIFACTS = "mlartifacts"  # the directory beside the database
# Network file systems: their server decides whether a lock holds on other machines.
DISTRIBUTED = ("afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "panfs", "smb3", "wekafs")
FUSED = ("beegfs", "ceph-fuse", "glusterfs", "juicefs", "lustre", "s3fs", "sshfs")
SEVERAL_WRITE = {*DISTRIBUTED, *(f"fuse.{name}" for name in FUSED)}
BUSY_S = 3.0  # wait for another writer; MLflow waits 20 s in each call
OTHER_VERSION = (
    "it is of another version of MLflow; `mlflow db upgrade` with its address brings an older one up to date"
)
SCHEMA = re.compile(
    "out-of-date database schema|Can't locate revision|no such (table|column)|"
    r"table \w+ already exists|duplicate column"
)


def reason(error: BaseException) -> str | None:
    """The database's fault in sqlite's words; None where the error has another cause."""
    causes = list(chain(error))
    if any(SCHEMA.search(str(cause)) for cause in causes):
        return OTHER_VERSION
    faults = (cause if isinstance(cause, sqlite3.Error) else getattr(cause, "orig", None) for cause in causes)
    return next((str(fault) for fault in faults if fault), None)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def shared_by(file: Path) -> str | None:
    """The kind of file system that holds a file, or would hold it, where machines share it; None for a local disk."""
    import psutil

    above = file.resolve().parents
    mounts = [mount for mount in psutil.disk_partitions(all=True) if Path(mount.mountpoint) in above]
    mounts.sort(key=lambda mount: len(mount.mountpoint))  # of two on one folder, the later one hides the other
    kind = mounts[-1].fstype if mounts else ""
    return kind if kind in SEVERAL_WRITE else None


def artifacts(file: Path) -> Path:
    """The directory of the runs' artifacts, beside the database; a link to that is followed."""
    return Path(os.path.realpath(file)).parent / ARTIFACTS


def bring_home(file: Path, tag: str) -> Path | None:
    """
    Make a copied or moved database keep its artifacts beside it; returns their old place where that was elsewhere.

    MLflow stores absolute paths and has no call to change them, so the copy of a project would overwrite the artifacts
    of the original. One transaction changes them, for experiments with **tag** whose artifacts lie in a directory
    ``mlartifacts``.

    Raises sqlite3.Error at once unless the database can be written now; MLflow would try again for minutes.
    """
    home, old, address = artifacts(file), None, f"{file.absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiment_tags'").fetchone():
            query = "SELECT artifact_location FROM experiments JOIN experiment_tags USING (experiment_id) WHERE key = ?"
            for (location,) in database.execute(query, (tag,)).fetchall():
                place, _, name = str(location).rpartition("/")
                folder = Path(unquote(urlsplit(place).path))
                ours = name and place.startswith("file:") and folder.name == ARTIFACTS
                if ours and folder.resolve() != home.resolve():
                    old, start, new = folder, f"{place}/", f"{home.as_uri()}/"
                    for table, uri in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                        change = f"UPDATE {table} SET {uri} = ? || substr({uri}, ?) WHERE substr({uri}, 1, ?) = ?"
                        database.execute(change, (new, len(start) + 1, len(start), start))
        database.execute("COMMIT")
    return old
