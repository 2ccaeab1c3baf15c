"""Guards the command: it needs no Ray, MLflow or DVC, and a signal ends it with one line and a checkpoint."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.config.params import load_params
from pipelines.training import spec
from tests.processes import environment
from tests.training.trials import NAME, planned


def test_a_trial_needs_torch_lightning_numpy_and_yaml_alone(project: Path) -> None:
    forbidden = ["ray", "mlflow", "dvc", "psutil", "requests", "jinja2", "sklearn", "filelock"]
    block = f"import sys; sys.modules.update(dict.fromkeys({forbidden!r}))\n"
    planned()
    code = block + "from pipelines import trial; sys.argv = ['trial', 'lenet5-mnist']; trial.main()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "lenet5-mnist seed 0: trained in" in done.stdout
    assert done.stdout.startswith("lenet5-mnist seed 0: laptop budget, 3 epochs in fp32, on ")


@pytest.mark.usefixtures("ends_all")
def test_a_signal_ends_the_command_with_one_line_and_a_checkpoint(project: Path) -> None:
    planned({"budgets.laptop": {"epochs": 5000, "seeds": [0, 1]}})
    trials = spec.trials(load_params(), NAME, data=Path("datasets"), root=Path("store"))
    command = [sys.executable, "-W", "ignore", "-m", "pipelines.trial", NAME, "--device=cpu", "--threads=1", "--seeds"]
    started = [
        subprocess.Popen([*command, str(one.seed)], env=environment(), stderr=subprocess.PIPE, text=True)
        for one in trials
    ]
    for process, one, how in zip(started, trials, (signal.SIGINT, signal.SIGTERM), strict=True):
        while not one.files.progress.exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(how)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert said.splitlines() == ["error: interrupted; the same command continues where this one stopped"]
        assert one.files.checkpoint.exists()
