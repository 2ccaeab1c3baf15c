"""Guards tracking beside a stage, against a real server that is stopped, killed, slow or wants a login."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines.command import locks
from pipelines.command.errors import UserError
from pipelines.tracking import addresses, cursors, delivery, helper, records
from pipelines.tracking.__main__ import replay
from pipelines.tracking.outcome import SyncResult
from pipelines.tracking.spool import Spool
from tests.conftest import ROOT
from tests.gate import Gate, opened
from tests.processes import environment, runs, started_by, until
from tests.tracking.projects import NOW, Project, Server, files, pending, runs_of

pytestmark = pytest.mark.filterwarnings("ignore:::(?!pipelines|tests)")  # what MLflow's libraries warn about


def test_a_bug_in_reading_the_spool_ends_no_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")

    def fail(spool: Spool) -> None:
        raise RuntimeError("s3cret at http://me:s3cret@127.0.0.1:9")

    monkeypatch.setattr(records, "all_runs", fail)
    result = helper.sync(Spool(project=tmp_path, store=tmp_path / "store"))
    assert result.line == "not tracked: RuntimeError: *** at http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("does", "line"),
    [
        ("exec sleep 60", "MLflow at http://127.0.0.1:9 is slow: 0 of 2 runs sent, the next stage sends the rest"),
        (
            "exit 7",
            "not tracked: the sending process ended with status 7; 1 trial and 1 benchmark wait in the spool",
        ),
        ("exit 0", "not tracked: the sending process gave no answer; 1 trial and 1 benchmark wait in the spool"),
    ],
)
def test_a_helper_that_hangs_or_dies_ends_no_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, line: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(helper, "OVERTIME_S", 0.1)
    (tmp_path / "python").write_text(f"#!/bin/sh\n{does}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    project = Project(tmp_path / "project")
    project.trial("lenet5-mnist", "mnist", 0, epochs=2)
    before, began = started_by(os.getpid()), time.monotonic()
    with helper.follow(project.spool, deadline_s=0.2):
        pass
    assert helper.sync(project.spool, deadline_s=0.2).line == line
    assert time.monotonic() - began < 10
    assert started_by(os.getpid()) == before


CHATTY = """
import os
from pipelines.tracking import __main__, delivery
class Sender(delivery.Sender):
    def round(self):
        os.write(1, b"MLflow's own words " * 10_000)
        return super().round()
__main__.Sender = Sender
__main__.helper_main(0.01)
"""


def test_what_mlflow_prints_fills_no_pipe_and_is_no_answer(tmp_path: Path) -> None:
    """A pipe holds 64 kB, and the stage reads it at the end."""
    project = tmp_path / "project"
    project.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    with subprocess.Popen(
        [sys.executable, "-c", CHATTY],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=project,
        env=environment,
    ) as process:
        result = helper._finish(process, 20, SyncResult(uri=""))
    assert (result.uri, result.waits, result.failed, result.slow) == ("http://127.0.0.1:9", 0, None, False)


ROUND = """
import os, time
from pathlib import Path
from pipelines.tracking import __main__, delivery
class Sender(delivery.Sender):
    def round(self):
        Path("began").touch()
        {does}
__main__.Sender = Sender
__main__.helper_main({interval_s})
"""


def helped(folder: Path, does: str, interval_s: float | None = None) -> subprocess.Popen[str]:
    """A helper whose round does something else; without an interval it begins when its stage finishes."""
    return subprocess.Popen(
        [sys.executable, "-c", ROUND.format(does=does, interval_s=interval_s)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=environment(),
    )


@pytest.mark.parametrize(
    ("does", "line"),
    [
        ("time.sleep(60)", "MLflow at http://127.0.0.1:9 is slow: 0 of 3 runs sent, the next stage sends the rest"),
        ("raise SystemExit", "not tracked: the sending process ended with status 1; 2 trials and 1 benchmark wait in"),
    ],
)
def test_a_helper_that_did_not_count_leaves_the_stages_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, line: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    so_far = SyncResult(uri="http://127.0.0.1:9", waiting={"trial": 2, "benchmark": 1}, problems=["a file"])
    with helped(tmp_path, does, interval_s=0.01) as process:
        until((tmp_path / "began").exists, 60)
        result = helper._finish(process, 0.5, so_far)
    assert str(result.line).startswith(line) and result.problems == ["a file"]


FINISHER = """
import sys
from pathlib import Path
from pipelines.tracking import helper
from pipelines.tracking.outcome import SyncResult
from tests.tracking.test_helper import helped
with helped(Path(sys.argv[1]), "time.sleep(60)") as process:
    helper._finish(process, 60, SyncResult(uri=""))
"""


def test_the_helper_ends_with_a_stage_that_is_killed_while_it_finishes(tmp_path: Path) -> None:
    stage = subprocess.Popen([sys.executable, "-W", "ignore", "-c", FINISHER, str(tmp_path)], env=environment())
    try:
        until((tmp_path / "began").exists, 60)
        (process,) = started_by(stage.pid)
    finally:
        stage.kill()
        stage.wait()
    until(lambda: not runs(process.pid), 10)


@pytest.mark.alone
def test_a_server_killed_in_the_middle_loses_and_doubles_nothing(
    remote: Project, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    for place, name in enumerate(("linear-middle", "lenet5-middle")):
        remote.benchmark(name, "middle", 5.0, 4, at=100.0 * place)
    remote.ledger()
    results: list[SyncResult] = []
    thread = threading.Thread(target=lambda: results.append(helper.sync(remote.spool)))
    thread.start()
    cursors = remote.root / "store/tracking"
    until(lambda: any(len(json.loads(p.read_text())["sent"]) >= 2 for p in cursors.glob("*.json")), 60)
    with server.down():
        killed = time.monotonic()
        thread.join()
        assert time.monotonic() - killed < 15
        (result,) = results
        assert result.away == "is away (no connection)" and 3 <= result.waiting["trial"] < 8
        assert f"MLflow at {server.uri} is away (no connection): {result.waiting['trial']} trials" in str(result.line)
        again = time.monotonic()
        later = helper.sync(remote.spool)  # still away: quickly found out
        assert (later.away, later.waiting["trial"]) == ("is away (no connection)", result.waiting["trial"])
        assert time.monotonic() - again < 8
    result = helper.sync(remote.spool)
    assert (result.waits, result.line) == (0, None)
    client = delivery.connect(server.uri)
    children = runs_of(client, "trial")
    assert len(children) == 8 and len(runs_of(client, "benchmark")) == 2
    for run in children.values():
        assert run.info.status == "FINISHED"
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 10
        assert len([path for path in files(client, run) if path.startswith("images/")]) >= 2


@pytest.mark.alone
def test_a_stopped_server_is_given_up_in_time(
    remote: Project, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGSTOP: connections are accepted and never answered."""
    remote.trial("lenet5-stopped", "stopped", 0, epochs=2)
    server.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        result = helper.sync(remote.spool)
        assert time.monotonic() - began < 8
    finally:
        server.signal(signal.SIGCONT)
    assert result.line == (
        f"MLflow at {server.uri} gives no answer within 2.5 s: "
        "1 trial and 1 benchmark wait in the spool; they are sent by the next stage"
    )
    assert capfd.readouterr() == ("", "")
    assert "s3cret" not in repr(result)


@pytest.mark.alone
def test_a_server_that_hangs_later_is_given_up_and_nothing_is_doubled(
    remote: Project, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the first run, whose pictures have more time than other requests."""
    remote.benchmark("lenet5-hangs", "hangs", 1.0, 1)
    gate = Gate(server.uri, passes=12)
    with opened(gate) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        result = helper.sync(remote.spool, deadline_s=90)  # of which it takes what importing MLflow takes, and 2.5 s
        assert re.fullmatch(
            rf"MLflow at {uri} gives no answer within (2\.5|3\.\d) s: "
            "1 trial and 1 benchmark wait in the spool; they are sent by the next stage",
            str(result.line),
        )
        gate.over.set()
        gate.passes = 10**9
        result = helper.sync(remote.spool)
        assert (result.sent, result.line) == (2, None)
    client = delivery.connect(server.uri)
    for run in (*runs_of(client, "trial").values(), *runs_of(client, "benchmark").values()):
        if "hangs" in str(run.info.run_name):
            counts = {key: len(client.get_metric_history(run.info.run_id, key)) for key in run.data.metrics}
            assert all(n == (10 if key.startswith("train/") else 1) for key, n in counts.items())


@pytest.mark.alone
def test_a_slow_server_is_not_away(remote: Project, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.benchmark("lenet5-slow", "slow", 1.0, 3)
    remote.benchmark("mlp300-slow", "slow", 5.0, 3)
    with opened(Gate(server.uri, delay_s=0.7)) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        result = helper.sync(remote.spool, deadline_s=15)
        sent = re.fullmatch(
            rf"MLflow at {uri} is slow: (\d) of 8 runs sent, the next stage sends the rest", str(result.line)
        )
        assert sent is not None and int(sent[1]) == result.sent == 8 - result.waits


DENIED = {
    401: (
        "You are not authenticated.",
        "wants a login (401; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)",
    ),
    403: (
        "Permission denied",
        "denies access (403, Permission denied; expected the login of a user who may edit there)",
    ),
}


@pytest.mark.parametrize("status", DENIED)
def test_a_server_that_wants_a_login_is_told_in_one_line(
    remote: Project, server: Server, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    remote.benchmark(f"lenet5-login{status}", "login", 1.0, 1)
    said, words = DENIED[status]
    gate = Gate(server.uri, login="Basic bWU6czNjcmV0")  # me:s3cret
    gate.denial = status, said
    with opened(gate) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        line = f"MLflow at {uri} {words}"
        left = "1 trial and 1 benchmark wait in the spool"
        assert helper.sync(remote.spool).line == f"{line}: {left}; they are sent by the next stage"
        if status == 403:
            return
        with pytest.raises(UserError) as raised:
            replay(remote.spool)
        assert str(raised.value) == f"{line}: {left}; they are sent by the next stage"
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
        result = helper.sync(remote.spool)
        assert (result.sent, result.line) == (2, None)


def test_two_at_once_the_second_leaves_it_to_the_first(remote: Project) -> None:
    remote.trial("lenet5-busy", "busy", 0, epochs=2)
    cursor = cursors.Cursor.of(remote.spool.store, addresses.tracking_uri(remote.root))
    with locks.held(cursor.path.with_suffix(".lock"), "tracking"):
        result = helper.sync(remote.spool)
    assert result.busy and result.sent == 0 and result.line is None


@pytest.mark.alone
def test_follow_shows_a_trial_while_it_trains(remote: Project, server: Server) -> None:
    key = remote.trial("lenet5-follow", "follow", 0, epochs=5, done=1)
    client = delivery.connect(server.uri)

    def seen(status: str, epochs: int) -> bool:
        found = [run for name, run in runs_of(client, "trial").items() if name == "lenet5-follow seed 0"]
        return [run.info.status for run in found] == [status] and (
            len(client.get_metric_history(found[0].info.run_id, "train/loss")) == epochs
        )

    with helper.follow(remote.spool, interval_s=0.2):
        until(lambda: seen("RUNNING", 1), 30)
        remote.curve(key, range(1, 4), NOW)
        until(lambda: seen("RUNNING", 3), 10)
        remote.trial("lenet5-follow", "follow", 0, epochs=5)
    assert seen("FINISHED", 5)
    assert pending(remote.spool, addresses.tracking_uri(remote.root)) == []


FOLLOWER = """
import pathlib, sys, time
from pipelines.tracking import helper
from pipelines.tracking.spool import Spool
project = pathlib.Path(sys.argv[1])
with helper.follow(Spool(project=project, store=project / "store")):
    print("following", flush=True)
    time.sleep(60)
"""


@pytest.mark.alone
def test_the_helper_ends_with_its_stage(tmp_path: Path) -> None:
    """kill -9 of the stage leaves nothing behind."""
    stage = subprocess.Popen([sys.executable, "-c", FOLLOWER, str(tmp_path)], stdout=subprocess.PIPE)
    assert stage.stdout is not None and stage.stdout.readline() == b"following\n"
    (helper,) = started_by(stage.pid)
    stage.kill()
    stage.wait()
    stage.stdout.close()
    until(lambda: not runs(helper.pid), 10)


def test_the_command_replays_and_says_so(remote: Project, server: Server) -> None:
    def replay(**more: str) -> subprocess.CompletedProcess[str]:
        root = str(Path(helper.__file__).parents[2])
        environment = {**os.environ, "PYTHONPATH": root, "PYTHONWARNINGS": "ignore", **more}
        environment.pop("RUN_STORE", None)
        command = [sys.executable, "-m", "pipelines.tracking"]
        return subprocess.run(command, cwd=remote.root, env=environment, capture_output=True, text=True, check=False)

    remote.trial("lenet5-replay", "replay", 0, epochs=2)
    away = replay(MLFLOW_TRACKING_URI="http://me:s3cret@127.0.0.1:9")
    assert away.returncode == 2 and away.stdout == ""
    (line,) = away.stderr.splitlines()
    assert line.startswith("error: MLflow at http://127.0.0.1:9 is away (") and "s3cret" not in line
    done = replay()
    assert done.returncode == 0 and done.stderr == ""
    assert "sent lenet5-replay seed 0" in done.stdout and "s3cret" not in done.stdout
    assert f"MLflow at {server.uri} has everything: 2 runs sent" in done.stdout


def test_replay_says_when_another_process_is_at_it(remote: Project) -> None:
    cursor = cursors.Cursor.of(remote.spool.store, addresses.tracking_uri(remote.root))
    lock = cursor.path.with_suffix(".lock")
    with locks.held(lock, "tracking"), pytest.raises(UserError, match="another process is sending"):
        replay(remote.spool)


def test_the_default_store_is_made_by_the_first_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = Project(tmp_path)
    project.trial("lenet5-mnist", "mnist", 0, epochs=2)
    result = helper.sync(project.spool, deadline_s=60)
    assert (result.sent, result.line) == (2, None)
    assert sorted(p.name for p in tmp_path.iterdir() if "mlflow" in p.name) == ["mlflow.db"]
