"""Guards MLflow's database: its faults in one line, and its artifacts beside it wherever it is moved."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy

from pipelines.command.errors import UserError
from pipelines.tracking import addresses, database, delivery, helper, probe
from pipelines.tracking.delivery import Sender
from pipelines.tracking.probe import AwayError
from tests.tracking.projects import Project, contents, deliver, execute, files, runs_of

pytestmark = pytest.mark.filterwarnings("ignore:::(?!pipelines|tests)")  # what MLflow's libraries warn about


@pytest.mark.parametrize("how", ["copied", "moved"])
def test_a_copy_of_a_project_keeps_its_artifacts_itself(local: Path, how: str) -> None:
    """MLflow's database holds absolute paths; a name that has to be escaped in an address is among them."""
    old, new = local / "it's 100 % old", local / "new #2"
    old.mkdir()
    shutil.move(local / "mlflow.db", old)
    project = Project(old)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    client, _ = deliver(project.spool)
    client.delete_run(runs_of(client, "trial")["lenet5-mnist seed 0"].info.run_id)
    client.set_tag(runs_of(client, "trial")["lenet5-mnist seed 1"].info.run_id, "mine", "a note")
    if how == "moved":
        old.rename(new)
    else:
        shutil.copytree(old, new, ignore=shutil.ignore_patterns("confusion.png"))  # nor all of it
    before = contents(old)
    copy = Project(new)
    copy.trial("lenet5-mnist", "mnist", 2, epochs=1)
    result = helper.sync(copy.spool, deadline_s=120)
    assert result.line == (
        f"MLflow's database {new}/mlflow.db was copied or moved: its artifacts were in {old}/mlartifacts, "
        "and are beside it from now on"
    )
    assert contents(old) == before
    client = delivery.connect(addresses.tracking_uri(new))
    found = runs_of(client, "trial")
    assert sorted(found) == ["lenet5-mnist seed 1", "lenet5-mnist seed 2"]  # what was deleted stays so
    assert found["lenet5-mnist seed 1"].data.tags["mine"] == "a note"
    for run in (found["lenet5-mnist seed 1"], *runs_of(client, "benchmark").values()):
        assert run.info.artifact_uri.startswith((new / "mlartifacts/mnist").as_uri())
        assert "confusion.png" in files(client, run)
        assert {len(client.get_metric_history(run.info.run_id, key)) for key in run.data.metrics} <= {1, 10}
    assert database.bring_home(new / "mlflow.db", delivery.OURS) is None


def test_a_database_that_is_not_ours_keeps_its_places(local: Path) -> None:
    """Another's experiment, one with artifacts elsewhere on purpose, and a link to a database that is shared."""
    file = local / "mlflow.db"
    client = delivery.connect(addresses.tracking_uri(local))
    tags = {delivery.OURS: "true"}
    client.create_experiment("another's", artifact_location="file:///srv/mlartifacts/another")
    client.create_experiment("elsewhere", artifact_location="s3://bucket/mlartifacts/elsewhere", tags=tags)
    client.create_experiment("in a folder", artifact_location="file:///srv/artifacts/x", tags=tags)
    client.create_experiment("beside", artifact_location=(local / "mlartifacts/beside").as_uri(), tags=tags)
    before = {e.name: e.artifact_location for e in client.search_experiments()}
    assert database.bring_home(file, delivery.OURS) is None
    (local / "other").mkdir()
    (local / "other/mlflow.db").symlink_to(file)
    (local / "link").symlink_to(local)
    for linked in (local / "other/mlflow.db", local / "link/mlflow.db"):
        assert database.bring_home(linked, delivery.OURS) is None
    assert {e.name: e.artifact_location for e in client.search_experiments()} == before


DATABASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no database": (lambda file: file.write_text("hello " * 1000), "file is not a database"),
    "another version": (
        lambda file: execute(file, "UPDATE alembic_version SET version_num = 'feedbeef0000'"),
        "it is of another version of MLflow; `mlflow db upgrade` with its address brings an older one up to date",
    ),
    "an older version": (
        lambda file: execute(file, "UPDATE alembic_version SET version_num = '4465047574b1'", "DROP TABLE assessments"),
        "it is of another version of MLflow",
    ),
    "damaged": (
        lambda file: file.write_bytes(file.read_bytes()[:4096] + b"\x07" * 100_000),
        "(database disk image is malformed|file is not a database)",
    ),
}


@pytest.mark.parametrize("how", DATABASES)
def test_what_is_wrong_with_a_database_is_said_in_one_line(local: Path, how: str) -> None:
    project = Project(local)
    project.trial("lenet5-mnist", "mnist", 0, epochs=1)
    damage, says = DATABASES[how]
    damage(local / "mlflow.db")
    result = Sender(project.spool, addresses.tracking_uri(local)).round()
    assert re.match(rf"can't be used \({says}", str(result.away))


def test_a_full_disk_and_a_read_only_database_in_words(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    execute(file, "CREATE TABLE t (c)")
    words = []
    for mode, limit in (("rw", "PRAGMA max_page_count = 3"), ("ro", "SELECT 1")):
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode={mode}", uri=True)) as opened:
            opened.execute(limit)
            with pytest.raises(sqlite3.Error) as raised:
                opened.execute("INSERT INTO t VALUES (?)", ("x" * 100_000,))
        words.append(database.reason(raised.value))
    assert words == ["database or disk is full", "attempt to write a readonly database"]
    assert database.reason(ValueError("no such name")) is None


def test_a_database_that_can_not_be_made_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"/file is no folder; expected one$"):
        delivery.connect(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_a_database_that_another_process_writes_is_said_to_be_locked(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(local)
    project.trial("lenet5-mnist", "mnist", 0, epochs=1)
    with contextlib.closing(sqlite3.connect(local / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert helper.sync(project.spool).line == (
            f"MLflow's database {local}/mlflow.db can't be used (database is locked): "
            "1 trial and 1 benchmark wait in the spool; they are sent by the next stage"
        )
        # The same words where the lock comes in the middle of MLflow's own work.
        engine = sqlalchemy.create_engine(f"sqlite:///{local}/mlflow.db", connect_args={"timeout": 0})
        with (
            pytest.raises(AwayError, match=r"^can't be used \(database is locked\)$"),
            probe.answers(addresses.tracking_uri(local)),
            contextlib.closing(engine.connect()) as connection,
        ):
            connection.execute(sqlalchemy.text("DELETE FROM runs"))
        engine.dispose()
