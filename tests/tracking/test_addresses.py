"""Guards addresses: one that is none is one line, and no login is printed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest

from pipelines.command.errors import UserError
from pipelines.tracking import addresses, helper
from pipelines.tracking.__main__ import replay
from tests.tracking.projects import Project

pytestmark = pytest.mark.filterwarnings("ignore:::(?!pipelines|tests)")  # what MLflow's libraries warn about


def test_credentials_are_not_printed() -> None:
    uri = "https://me:s3cret@host:5000/path?token=s3cret"
    assert addresses.safe(uri) == "https://host:5000/path"
    assert "s3cret" not in addresses.clean(f"can't reach {uri} as me:s3cret\nmore", uri)
    uri = "http://host:5000/#token=s3cret"
    assert addresses.safe(uri) == "http://host:5000/" and "s3cret" not in addresses.clean(f"no answer from {uri}", uri)
    assert addresses.safe("sqlite:////srv/#1.db") == "sqlite:////srv/#1.db"


NO_ADDRESS = {  # as it is set: as it is shown
    "http://[::1:5000": None,
    "http://host:50OO": None,
    "http://host:99999": None,
    "http://me:s3cret@[::1:5000": "http://[::1:5000",
    "http://me:s3cret/s3cret#s3cret@host:5000": "http://host:5000",
    "http://me:s3cret@": "http://",
    "http://": None,
    "http:/host:5000": None,
    "http://a host:5000": None,
    "https://h\udcffst": None,
    "ftp://x": None,
    "ftp://me:s3cret@x": "ftp://x",
    "localhost:5000": None,
    "127.0.0.1:5000": None,
    "me:s3cret@host:5000": "host:5000",
    "sqlite://mlflow.db": None,
    "sqlite:///": None,
    "sqlite:///:memory:": None,
}


@pytest.mark.parametrize("value", NO_ADDRESS)
def test_what_is_no_address_is_told_in_one_line_and_all_stays_spooled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    monkeypatch.setattr(subprocess, "Popen", None)  # nobody has to be asked
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    with helper.follow(project.spool):
        trained = True
    assert trained
    result = helper.sync(project.spool)
    assert result.line == (
        f"not tracked: MLFLOW_TRACKING_URI is {(NO_ADDRESS[value] or value)!r}; expected http://HOST:PORT, "
        "https://HOST:PORT, or sqlite:/// and the path of a file; 2 trials and 1 benchmark wait in the spool"
    )
    assert "s3cret" not in repr(result)
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI is .*; expected http://HOST:PORT"):
        replay(project.spool)


def test_a_directory_is_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    project = Project(tmp_path)
    project.trial("lenet5-mnist", "mnist", 0, epochs=2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}")
    said = "is a directory; expected MLflow's database, which is a file; 1 trial"
    assert str(helper.sync(project.spool).line).startswith(f"not tracked: {tmp_path} {said}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "mlflow.db").mkdir()
    assert str(helper.sync(project.spool).line).startswith(f"not tracked: {tmp_path}/mlflow.db {said}")


@pytest.mark.parametrize("named", [False, True])
def test_sqlite_on_shared_storage_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """The list of mounts is this machine's, with one more: there is no server of files here."""
    mounted = psutil.disk_partitions(all=True)
    mounted.append(mounted[0]._replace(mountpoint=str(tmp_path / "home"), fstype="nfs4"))
    mounted.append(mounted[0]._replace(mountpoint=str(tmp_path / "home/scratch"), fstype="ext4"))
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounted)
    monkeypatch.setattr(subprocess, "Popen", None)
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    file = tmp_path / "link/project/mlflow.db"
    project = Project(file.parent)
    project.trial("lenet5-mnist", "mnist", 0, epochs=2)
    if named:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    assert helper.sync(project.spool).line == (
        f"not tracked: {file} is on shared storage (nfs4), where sqlite's locks may fail; set MLFLOW_TRACKING_URI to a "
        "server, or to sqlite:/// and a file on this machine's own disk; 1 trial and 1 benchmark wait in the spool"
    )
    with pytest.raises(UserError, match="is on shared storage"):
        replay(project.spool)
    elsewhere = f"sqlite:///{tmp_path}/home/scratch/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    assert addresses.tracking_uri(project.root) == elsewhere


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_address_is_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    assert addresses.tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize(
    "value",
    [
        "http://[::1]:5000",
        "HTTPS://host/path",
        "http://me:p%40ss@host",
        "postgresql+psycopg://me:pass@host/db",
        "databricks://scope:prefix",
        "mlruns",
        "file:///srv/a@b",
        "sqlite:////srv/mlflow.db",
    ],
)
def test_an_address_is_passed_on_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    assert addresses.tracking_uri(tmp_path) == value
    assert addresses.is_remote(value) is value.lower().startswith("http")
    assert "me:" not in addresses.safe(value)


def test_a_project_in_whose_path_no_database_can_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLAlchemy takes what follows a question mark for options, and would make a database beside the project."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = Project(tmp_path / "why?")
    project.trial("lenet5-mnist", "mnist", 0, epochs=1)
    assert (helper.sync(project.spool).line or "").startswith(
        f"not tracked: MLflow can't keep a database in {tmp_path}/why?, for the question mark; set MLFLOW_TRACKING_URI"
    )
    assert addresses.sqlite_file("sqlite:////srv/x.db?timeout=3") == Path("/srv/x.db")
