"""Jobs on a real Ray cluster behind a token: followed, ended and run again, from a checkout or from a shipped copy."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cluster import local
from pipelines.command.files import read_json
from tests.checkout import Checkout
from tests.disturbed import OFTEN, QUIET, specs, stamp
from tests.processes import until

pytestmark = [pytest.mark.usefixtures("ends_all"), pytest.mark.alone]


@pytest.fixture
def checkout(tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """With checkpoints as often as can be, and slow while there is a file "slow" in its parent."""
    home = tmp_path / "checkout"
    home.mkdir()
    found = Checkout(home, mirror)
    found.small(epochs=30, images=2000)
    (tmp_path / "sitecustomize.py").write_text(OFTEN)
    (tmp_path / "slow").touch()
    found.environment |= QUIET | {"PYTHONPATH": str(tmp_path), "RAY_AUTH_MODE": "token"}
    found.environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for name in set(os.environ) - set(found.environment):
        monkeypatch.delenv(name)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home)
    return found


CLUSTER = """
    import socket, sys
    from ray.cluster_utils import Cluster
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = Cluster()
    started.add_node(num_cpus=2, object_store_memory=int(sys.argv[1]), include_dashboard=True, dashboard_port=port)
    print("at", started.head_node.webui_url, flush=True)
    sys.stdin.read()
    started.shutdown()
"""


@pytest.fixture
def address(checkout: Checkout) -> Iterator[str]:
    """Of the dashboard of a cluster that somebody else started, in the checkout's environment."""
    command = [sys.executable, "-c", textwrap.dedent(CLUSTER), str(local.OBJECT_STORE_BYTES)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=checkout.environment, stdin=pipe, stdout=pipe, text=True) as cluster:
        assert cluster.stdout
        yield "http://" + next(line.split()[1] for line in cluster.stdout if line.startswith("at "))


class Submission:
    """A running ``python -m pipelines.submit ray``."""

    def __init__(self, checkout: Checkout, *words: str) -> None:
        command = [sys.executable, "-m", "pipelines.submit", "ray", *words]
        self.path = checkout.folder.parent / "submission"
        with self.path.open("wb") as log:
            self.process = subprocess.Popen(command, env=checkout.environment, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self.path.read_text()

    def until(self, words: str) -> None:
        until(lambda: words in self.log or self.process.poll() is not None)
        assert words in self.log, self.log

    def ended(self, status: int) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=300)
        assert self.process.returncode == status, self.log
        return self.log


def test_a_job_is_followed_ended_and_run_again(checkout: Checkout, address: str) -> None:
    slow = checkout.folder.parent / "slow"
    words = (f"--address={address}", "--suite=laptop")
    submitted = Submission(checkout, *words, "--stop")
    submitted.until("4 trials to train")
    one, _ = specs("lenet5-mnist")
    until(lambda: stamp(one.files.checkpoint) > 0)
    submitted.process.send_signal(signal.SIGINT)
    told = submitted.ended(130)
    assert "is submitted to" in told and " is stopped\nerror: interrupted; " in told
    submitted = Submission(checkout, *words)
    submitted.until("4 trials to train")
    submitted.process.send_signal(signal.SIGINT)
    told = submitted.ended(130)
    assert "goes on; the same command follows it again, and `ray job stop " in told
    slow.unlink()
    told = Submission(checkout, *words).ended(0)
    assert "is at work on it already; this is its log\n" in told and told.count("4 trials to train") == 1
    assert "Running stage 'compare'" in told and (checkout.folder / "report/index.html").exists()
    assert read_json(one.files.result)["resumed"] >= 1

    (checkout.folder / "params.yaml").write_text("datasets: 1\n")
    told = Submission(checkout, *words).ended(2)
    assert told.count("error: ") == 1, told


def test_a_copy_of_the_code_fetches_its_data_and_leaves_its_report_in_the_store(
    checkout: Checkout, address: str, tmp_path: Path
) -> None:
    """Twice: the second time all is in the store, and the data in a folder of every node's."""
    (tmp_path / "slow").unlink()
    (tmp_path / "shared").mkdir()
    words = (f"--address={address}", "--working-dir=.", f"--store={tmp_path}/shared/store")
    told = Submission(checkout, *words).ended(0)
    assert "fetch mnist: datasets/mnist: 60000 training" in told and "4 trials to train" in told
    assert (tmp_path / "shared/store/report/index.html").exists()
    assert not [name for name in ("datasets", "runs", "report", "store") if (checkout.folder / name).exists()]

    told = Submission(checkout, *words, f"--data={tmp_path}/shared/data").ended(0)
    assert "4 of 4 trials are in the store already" in told
    assert (tmp_path / "shared/data/mnist/meta.json").exists()
