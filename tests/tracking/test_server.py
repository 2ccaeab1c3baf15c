"""A run on two nodes tracks to a laboratory's MLflow: PostgreSQL, artifacts in S3, logins; and DVC pushes there."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import requests

from pipelines.cluster import local
from tests.checkout import Checkout
from tests.processes import nothing_left
from tests.tracking import services

pytestmark = pytest.mark.alone
USER, PASSWORD = "trainer", "correct-horse-battery"
NOTHING: Mapping[str, str] = {}
LOGIN = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
CLUSTER = """
    import sys
    from ray.cluster_utils import Cluster
    started = Cluster()
    for _ in range(2):
        started.add_node(num_cpus=1, object_store_memory=int(sys.argv[1]), include_dashboard=False)
    print("at", started.address, flush=True)
    sys.stdin.read()
    started.shutdown()
"""


@dataclass(frozen=True, kw_only=True)
class Laboratory:
    """The servers, and a checkout in which a suite was reproduced on two nodes."""

    database: services.Postgres
    bucket: services.Bucket
    server: services.Mlflow
    checkout: Checkout
    told: str

    def run(self, *words: str, given: Mapping[str, str] = NOTHING, ok: bool = True) -> str:
        """A command in the checkout, whose environment has what is ``given``, too."""
        with pytest.MonkeyPatch.context() as patched:
            for name, value in given.items():
                patched.setitem(self.checkout.environment, name, value)
            return self.checkout.run(*words, ok=ok)

    def ask(self, page: str, **query: str) -> requests.Response:
        return requests.get(f"{self.server.uri}/{page}", query, auth=(USER, PASSWORD), timeout=30)

    def runs(self) -> list[Any]:
        """Those of the experiment, by what they are and what they are named."""
        asked = {"experiment_ids": [self.experiment], "max_results": 100}
        where = f"{self.server.uri}/api/2.0/mlflow/runs/search"
        found = requests.post(where, json=asked, auth=(USER, PASSWORD), timeout=30).json()["runs"]
        tags = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in found]
        return sorted((one["kind"], one["mlflow.runName"]) for one in tags)

    @property
    def experiment(self) -> str:
        found = self.ask("api/2.0/mlflow/experiments/get-by-name", experiment_name="mnist").json()
        return str(found["experiment"]["experiment_id"])


@contextlib.contextmanager
def two_nodes(environment: dict[str, str]) -> Iterator[str]:
    """The address of a cluster that somebody else started."""
    command = [sys.executable, "-c", textwrap.dedent(CLUSTER), str(local.OBJECT_STORE_BYTES)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as cluster:
        assert cluster.stdout
        yield next(line.split()[1] for line in cluster.stdout if line.startswith("at "))


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory, mirror: Path) -> Iterator[Laboratory]:
    folder = tmp_path_factory.mktemp("laboratory")
    (folder / "home").mkdir()
    (folder / "checkout").mkdir()
    with contextlib.ExitStack() as started:
        started.enter_context(nothing_left())
        database = started.enter_context(services.postgres(folder / "postgres.log"))
        bucket = started.enter_context(services.bucket(folder / "s3.log", "laboratory"))
        server = started.enter_context(services.mlflow(folder, database, bucket))
        server.add(USER, PASSWORD)
        server.add("guest", "guest-of-the-laboratory")
        checkout = Checkout(folder / "checkout", mirror)
        checkout.small(images=2000)
        checkout.environment |= {"MLFLOW_TRACKING_URI": server.uri, "HOME": str(folder / "home")}
        told = checkout.run("dvc", "repro", "fetch")
        with two_nodes(checkout.environment) as address, pytest.MonkeyPatch.context() as patched:
            for name, value in (LOGIN | {"RAY_ADDRESS": address}).items():
                patched.setitem(checkout.environment, name, value)
            told += checkout.run("python", "-m", "pipelines.train") + checkout.run("dvc", "repro")
            told += checkout.run("python", "-m", "pipelines.tracking")  # what a slow machine has left
        yield Laboratory(database=database, bucket=bucket, server=server, checkout=checkout, told=told)


def test_a_run_on_two_nodes_reaches_the_database_and_the_bucket(laboratory: Laboratory) -> None:
    assert ": 2 nodes, 2 CPUs, 0 GPUs; training on cpu" in laboratory.told
    assert re.search(rf"\nMLflow at {laboratory.server.uri} has everything: \d runs sent, .*\n$", laboratory.told)
    benchmarks = [("benchmark", f"{name} (laptop)") for name in ("lenet5-mnist", "linear-mnist")]
    names = [name for _, name in laboratory.runs()]
    assert laboratory.runs()[:2] == benchmarks and len(names) == 6, names
    count = laboratory.database.run("psql", "--tuples-only", "--command=select count(*) from runs", "runs")
    assert int(count) == 6
    kept = laboratory.bucket.objects()
    assert sum(key.endswith("/explorer.html") for key in kept) == 6
    assert not list(laboratory.checkout.folder.glob("ml*"))  # nothing beside it


def test_replay_sends_nothing_twice(laboratory: Laboratory) -> None:
    before, kept = laboratory.runs(), set(laboratory.bucket.objects())
    told = laboratory.run("python", "-m", "pipelines.tracking", given=LOGIN)
    assert told.endswith(f"MLflow at {laboratory.server.uri} has everything: 0 runs sent, there was nothing to send\n")
    shutil.rmtree(laboratory.checkout.folder / "store/tracking")
    told = laboratory.run("python", "-m", "pipelines.tracking", given=LOGIN)
    assert "has everything: 6 runs sent" in told
    assert laboratory.runs() == before and set(laboratory.bucket.objects()) == kept


def test_the_views_of_the_dashboard_open_with_a_login(laboratory: Laboratory) -> None:
    told = laboratory.run("python", "-m", "pipelines.dashboard", given=LOGIN)
    pages = re.findall(r"http://\S+", told)
    assert len(pages) == 5 and all(page.startswith(f"{laboratory.server.uri}/#/") for page in pages)
    assert requests.get(pages[0], timeout=30).status_code == 401
    assert laboratory.ask("").status_code == 200
    explorers = [found for page in pages if (found := re.search(r"runs/(\w+)/artifacts/([^?]+)", unquote(page)))]
    assert len(explorers) == 2
    for run, path in map(re.Match.groups, explorers):
        answer = laboratory.ask("get-artifact", run_uuid=run, path=path)
        assert answer.status_code == 200 and "<html" in answer.text


def test_a_login_comes_from_the_file_too(laboratory: Laboratory) -> None:
    home = Path(laboratory.checkout.environment["HOME"]) / ".mlflow"
    home.mkdir()
    file = home / "credentials"
    file.write_text(f"[mlflow]\nmlflow_tracking_username = {USER}\nmlflow_tracking_password = {PASSWORD}\n")
    assert "has everything" in laboratory.run("python", "-m", "pipelines.tracking")
    shutil.rmtree(home)


@pytest.mark.parametrize(
    ("login", "line"),
    [
        ({}, "wants a login (401; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)"),
        (
            LOGIN | {"MLFLOW_TRACKING_PASSWORD": "wrong-horse-battery"},
            "wants a login (401; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)",
        ),
    ],
)
def test_a_login_that_is_none_is_one_line(laboratory: Laboratory, login: dict[str, str], line: str) -> None:
    shutil.rmtree(laboratory.checkout.folder / "store/tracking", ignore_errors=True)
    told = laboratory.run("python", "-m", "pipelines.tracking", given=login, ok=False)
    left = "4 trials and 2 benchmarks wait in the spool"
    assert told == f"error: MLflow at {laboratory.server.uri} {line}: {left}; they are sent by the next stage\n"


def test_a_guest_is_told_what_is_denied(laboratory: Laboratory) -> None:
    shutil.rmtree(laboratory.checkout.folder / "store/tracking", ignore_errors=True)
    guest = {"MLFLOW_TRACKING_USERNAME": "guest", "MLFLOW_TRACKING_PASSWORD": "guest-of-the-laboratory"}
    told = laboratory.run("python", "-m", "pipelines.tracking", given=guest, ok=False)
    denied = "denies access (403, Permission denied; expected the login of a user who may edit there)"
    left = "4 trials and 2 benchmarks wait in the spool"
    either = r"(lenet5|linear)-mnist \(laptop\)"  # each of the two nodes may have begun first
    lacks = f"error: MLflow at {re.escape(laboratory.server.uri)} lacks {either}: {re.escape(f'{denied}; {left}')}\n"
    assert re.fullmatch(lacks, told), told


def test_no_secret_is_in_what_a_run_leaves(laboratory: Laboratory) -> None:
    kept = laboratory.bucket.objects()
    folder = laboratory.checkout.folder
    left = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts}
    left |= kept | {"output": laboratory.told.encode(), "database": laboratory.database.run("pg_dump", "runs").encode()}
    keys = laboratory.bucket.environment["AWS_SECRET_ACCESS_KEY"]
    for secret in (PASSWORD, keys, laboratory.database.password, laboratory.server.admin[1]):
        assert not [path for path, content in left.items() if secret.encode() in content]


def test_dvc_pushes_to_the_bucket_and_pulls_from_it(laboratory: Laboratory) -> None:
    bucket, folder = laboratory.bucket, laboratory.checkout.folder
    laboratory.run("dvc", "remote", "add", "--default", "laboratory", f"s3://{bucket.name}/dvc")
    laboratory.run("dvc", "remote", "modify", "laboratory", "endpointurl", bucket.endpoint)
    assert "pushed" in laboratory.run("dvc", "push", given=bucket.environment)
    trained = {path: path.read_bytes() for path in folder.glob("runs/*/*/*")}
    assert trained
    trials = folder.glob("evaluations/*/trials")  # what else is there is in Git
    for path in (*trials, *(folder / name for name in (".dvc/cache", "runs", "datasets", "data"))):
        shutil.rmtree(path)
    laboratory.run("dvc", "pull", "--allow-missing", given=bucket.environment)
    assert {path: path.read_bytes() for path in trained} == trained
    assert "up to date" in laboratory.run("dvc", "status", "dvc.yaml")
