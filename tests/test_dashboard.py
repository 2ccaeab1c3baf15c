"""``python -m pipelines.dashboard`` as a person runs it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
import requests

from pipelines import dashboard
from pipelines.command.errors import UserError
from tests.gate import Gate, opened
from tests.processes import runs
from tests.tracking.projects import Project

PROXIES = ("http_proxy", "HTTP_PROXY", "ALL_PROXY")
COMMAND = [sys.executable, "-m", "pipelines.dashboard"]


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RUN_STORE")}
    return {**kept, "PYTHONPATH": str(Path(dashboard.__file__).parent.parent), "PYTHONWARNINGS": "ignore", **more}


def run(where: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The command, for the cases in which it ends by itself."""
    command = [*COMMAND, *arguments]
    return subprocess.run(
        command, cwd=where, env=environment(**more), capture_output=True, text=True, check=False, timeout=180
    )


class Running:
    """The dashboard of one project, up and serving."""

    def __init__(self, where: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri, self.where = f"http://127.0.0.1:{self.port}", where
        self.process = subprocess.Popen(
            [*COMMAND, "--port", str(self.port)],
            cwd=where,
            env=environment(**dict.fromkeys(PROXIES, "http://127.0.0.1:9")),  # nobody is there, and nobody asks
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if line.startswith("Ctrl-C"):
                return
        raise AssertionError(self.said)

    def addresses(self) -> dict[str, list[str]]:
        """Address by its title, over all experiments."""
        out: dict[str, list[str]] = {}
        for title, where in re.findall(r"^  (\S.*)\n    (http\S+)$", self.said, re.M):
            out.setdefault(title, []).append(where)
        return out

    def search(self, experiment: str, only: str = "") -> Any:
        """The runs of an experiment, as a page with that filter asks for them."""
        asked = {"experiment_ids": [experiment], "filter": only}
        return requests.post(f"{self.uri}/api/2.0/mlflow/runs/search", json=asked, timeout=10).json()["runs"]

    def get(self, endpoint: str, **query: str) -> Any:
        answer = requests.get(f"{self.uri}/{endpoint}", params=query, timeout=10)
        answer.raise_for_status()
        return answer


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Over a project whose results nobody has tracked yet."""
    project = Project(tmp_path_factory.mktemp("dashboard"))
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    project.benchmark("convnetjs-cifar10", "cifar10", 21.0, 2, at=1000)
    project.ledger()
    running = Running(project.root)
    yield running
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGINT)
        running.process.wait(20)
    running.process.stdout.close()  # type: ignore[union-attr]


def test_addresses_lead_to_what_is_there(running: Running) -> None:
    """A view over runs that are not there, or have no metric, would be an empty page."""
    found = running.addresses()
    assert [len(found[title]) for title in (dashboard.CONFUSION, dashboard.CURVES, dashboard.LEDGER_TABLE)] == [2, 2, 2]
    for where in [*found[dashboard.CONFUSION], *found[dashboard.LEDGER_TABLE]]:
        path, _, query = urlsplit(where).fragment.partition("?")
        state = parse_qs(query)
        assert state["workflowType"] == ["machine_learning"] and state["compareRunsMode"][0] in ("CHART", "TABLE")
        assert running.search(path.split("/")[2], *state.get("searchFilter", []))
    for where in found[dashboard.CURVES]:
        state = parse_qs(urlsplit(where).fragment.partition("?")[2])
        (experiment,), shown = json.loads(state["experiments"][0]), json.loads(state["runs"][0])
        trials = {run["info"]["run_id"]: run["data"] for run in running.search(experiment, "tags.kind = 'trial'")}
        assert set(shown) == set(trials) and "/metric?runs=" in where  # it reads no other order
        (metric,) = json.loads(state["plot_metric_keys"][0])
        assert all(metric in {one["key"] for one in trials[run]["metrics"]} for run in shown)
    assert {"explorer of lenet5-mnist (laptop)", "explorer of convnetjs-cifar10 (laptop)"} < found.keys()


def test_the_server_serves_explorers_and_images(running: Running) -> None:
    """The default store's artifacts lie in plain directories; the server has to hand them out all the same."""
    (where,) = running.addresses()["explorer of convnetjs-cifar10 (laptop)"]
    identity = urlsplit(where).fragment.split("/")[4]
    page = running.get("get-artifact", run_uuid=identity, path="explorer.html")
    assert page.text.startswith("<!doctype html>") and '"airplane"' in page.text
    listed = running.get("ajax-api/2.0/mlflow/artifacts/list", run_id=identity, path="images").json()["files"]
    small = next(file["path"] for file in listed if file["path"].endswith("+compressed.webp"))
    assert running.get("get-artifact", run_uuid=identity, path=small).content[8:12] == b"WEBP"


def test_with_a_server_named_none_is_started(running: Running, tmp_path: Path) -> None:
    done = run(tmp_path, MLFLOW_TRACKING_URI=running.uri.replace("//", "//me:s3cret@"))
    assert done.returncode == 0 and done.stderr == ""
    assert f"{running.uri}/#/experiments/1/runs?compareRunsMode=CHART" in done.stdout
    assert "s3cret" not in done.stdout


def test_a_port_that_is_taken(running: Running, tmp_path: Path) -> None:
    done = run(tmp_path, "--port", str(running.port))
    assert (done.returncode, done.stdout) == (2, "")
    where = f"port {running.port} is taken on 127.0.0.1"
    assert done.stderr == f"error: {where}; end what listens there or choose another by --port\n"


@pytest.mark.parametrize("port", ["0", "70000"])
def test_a_port_that_is_none(tmp_path: Path, port: str) -> None:
    done = run(tmp_path, "--port", port)
    assert done.returncode == 2 and done.stderr == f"error: --port is {port}; expected a number from 1 to 65535\n"


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "wants a login (401; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)"),
        (403, "denies access (403, Permission denied; expected the login of a user who may edit there)"),
    ],
)
def test_a_server_that_wants_a_login(running: Running, tmp_path: Path, status: int, says: str) -> None:
    gate = Gate(running.uri, login="Basic another")
    gate.denial = status, "Permission denied"
    with opened(gate) as uri:
        done = run(tmp_path, MLFLOW_TRACKING_URI=uri)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"error: MLflow at {uri} {says}\n"


def family(running: Running) -> list[psutil.Process]:
    found = [psutil.Process(running.process.pid), *psutil.Process(running.process.pid).children(recursive=True)]
    assert len(found) >= 3  # the command, MLflow, and at least one process of the server
    return found


def ended(running: Running, found: list[psutil.Process]) -> bool:
    """Whether they are gone after a while, and the port is free; a zombie's threads may keep it for a moment."""

    until = time.monotonic() + 20
    while time.monotonic() < until:
        with contextlib.suppress(UserError):
            dashboard.require_free(running.port)
            if not any(runs(process.pid) for process in found):
                return True
        time.sleep(0.05)
    return False


def test_a_dashboard_that_is_killed_leaves_no_server(running: Running, tmp_path: Path) -> None:
    """SIGKILL leaves it no time for anything."""
    shutil.copy(running.where / "mlflow.db", tmp_path)
    other = Running(tmp_path)
    found = family(other)
    other.process.kill()
    other.process.wait()
    assert ended(other, found)
    other.process.stdout.close()  # type: ignore[union-attr]


def test_ctrl_c_ends_all_it_started(running: Running) -> None:
    """The last test on this server."""
    found = family(running)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(20) == 0
    assert ended(running, found)


def test_a_database_that_is_none(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.trial("lenet5-mnist", "mnist", 0, epochs=1)
    (tmp_path / "mlflow.db").write_text("hello " * 1000)
    done = run(tmp_path)
    assert done.returncode == 2 and done.stderr == (
        f"error: MLflow's database {tmp_path}/mlflow.db can't be used (file is not a database): "
        "1 trial and 1 benchmark wait in the spool; they are sent by the next stage\n"
    )


def test_a_server_that_is_away(tmp_path: Path) -> None:
    done = run(tmp_path, MLFLOW_TRACKING_URI="http://me:s3cret@127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr == "error: MLflow at http://127.0.0.1:9 is away (no connection)\n"


def test_nothing_to_show_yet(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = run(tmp_path, "--port", str(port))
    assert done.returncode == 2 and "run `make repro` first" in done.stderr
    assert len(done.stderr.splitlines()) == 1
