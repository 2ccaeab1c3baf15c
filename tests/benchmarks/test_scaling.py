"""Guards the report on scaling: what it measures and simulates stands in its table, on its page and in MLflow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import environment

pytestmark = pytest.mark.filterwarnings("ignore:::(?!pipelines|tests)")  # what MLflow's libraries warn about
COMMAND = (sys.executable, "-W", "ignore", "-m", "benchmarks.scaling", "--rounds=1", "--epochs=1")


@pytest.mark.slow
def test_one_worker_is_measured_and_clusters_are_simulated(project: Path) -> None:
    import mlflow

    done = subprocess.run([*COMMAND, "--workers", "1"], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| distributed | 1 | " in done.stdout and "| 1,024 | " in done.stdout
    page = (project / "report/scaling.html").read_text(encoding="utf-8")
    assert page.count("<tr><td>") == 2 + 4  # kinds, sizes of cluster
    client = mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("scaling")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["distributed_efficiency"] == 1.0
    assert [point.step for point in client.get_metric_history(run.info.run_id, "simulated_ratio")] == [1, 8, 64, 1024]


def test_one_worker_must_be_among_them(project: Path) -> None:
    done = subprocess.run([*COMMAND, "--workers", "2"], env=environment(), capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --workers has 2; expected 1 among them, which the others are compared with\n"
