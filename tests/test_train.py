"""Training on real Ray: packing, and what must survive a kill."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines import train as stage
from pipelines.cluster import campaign, connection, estimate
from pipelines.cluster.connection import Cluster
from pipelines.cluster.placement import Node
from pipelines.command.errors import UserError, brief
from pipelines.command.files import read_json, read_lines
from pipelines.training import checks, spec, trainer
from pipelines.training.inputs import Inputs
from tests import projects
from tests.conftest import edit_params
from tests.disturbed import QUIET, TRAIN, Run, only, same_weights, slurm, specs, train, worker_of
from tests.processes import environment, name_of, started_by, until

pytestmark = pytest.mark.usefixtures("ends_all")
SHORT: dict[str, Any] = {"recipe.subset": {"first": 600}, "budgets.laptop": {"epochs": 2, "seeds": [0, 1]}}
DIVERGING = SHORT | {"recipe.loss": "mse", "recipe.optimiser.lr": 1e30}


def test_packed_trials_end_as_plain_ones_whatever_becomes_of_the_others(project: Path) -> None:
    only(project, mlp300_mnist=SHORT, lenet5_mnist=SHORT, linear_mnist=DIVERGING)
    done = train()
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "the loss of epoch 1 is nan" in line and line.endswith(")")
    assert "linear-mnist seed 0" in line and "linear-mnist seed 1" in line and "(and 1 more failed: " in line
    assert "6 trials to train at the laptop budget, about" in done.stdout
    assert "\nlinear-mnist seed 1 failed: the loss of epoch 1 is nan; try a lower lr\n" in done.stdout
    assert not (project / "runs/linear-mnist").exists()
    for one in [*specs("mlp300-mnist", "plain"), *specs("lenet5-mnist", "plain")]:
        collected = project / "runs" / one.benchmark.name / f"seed-{one.seed}"
        assert same_weights(collected / "weights.pt", trainer.run(one).weights)
        assert json.loads((collected / "result.json").read_text())["versions"]["ray"]
        assert len(read_lines(collected / "curve.jsonl")) == 2
    again = train("mlp300-mnist")
    assert again.returncode == 0, again.stderr
    assert "2 of 2 trials are in the store already" in again.stdout and "to train" not in again.stdout

    one, other = specs("mlp300-mnist")
    shutil.copy(other.files.weights, one.files.weights)
    again = train("mlp300-mnist")
    assert again.returncode == 0, again.stderr
    assert "set aside, and mlp300-mnist seed 0 is trained again" in again.stdout.splitlines()[0]
    assert "1 of 2 trials are in the store already" in again.stdout
    assert same_weights(project / "runs/mlp300-mnist/seed-0/weights.pt", Path("plain") / one.key / "weights.pt")


@pytest.mark.alone
def test_a_terminal_shows_a_live_line_for_each_trial(project: Path) -> None:
    only(project, lenet5_mnist=SHORT | {"budgets.laptop": {"epochs": 40, "seeds": [0, 1]}})  # some seconds
    seen, window = pty.openpty()
    fcntl.ioctl(window, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    running = subprocess.Popen(TRAIN, env=environment(**QUIET, TERM="xterm"), stdout=window, stderr=window)
    os.close(window)
    shown = b""
    with contextlib.suppress(OSError):  # the other side is closed when the command has ended
        while part := os.read(seen, 65536):
            shown += part
    os.close(seen)
    assert running.wait(timeout=60) == 0, shown.decode()
    text = shown.decode()
    assert "Ray started here: " in text and "2 trials to train at the laptop budget, about " in text
    assert "  lenet5-mnist: 2 of about " in text
    assert re.search(r"lenet5-mnist seed \d +epoch +\d+\.\d/40  loss \d+\.\d+  [\d,]+ images/s  \d+ (s|min)\b", text), (
        text
    )
    assert "\x1b[1A" in text or "\x1b[2K" in text  # drawn over, not below one another
    assert "2 of 2 trials done, 0 waiting" in text


@pytest.fixture(scope="module")
def undisturbed(mnist_slice: Path, tmp_path_factory: pytest.TempPathFactory) -> list[spec.Spec]:
    """Two trials long enough to be disturbed, and what they come to when they are not."""
    home = tmp_path_factory.mktemp("undisturbed")
    projects.copy_params(home)
    params = edit_params(home / "params.yaml", lenet5_mnist=long([0, 1]))
    planned = spec.trials(params, "lenet5-mnist", data=mnist_slice, root=home / "store")
    found = [one.on("cpu", threads=1) for one in planned]
    for one in found:
        trainer.run(one)
    return found


def long(seeds: list[int]) -> dict[str, Any]:
    return {"recipe.batch": 32, "budgets.laptop": {"epochs": 6, "seeds": seeds}}


def test_whatever_is_killed_training_goes_on_to_the_same_weights(project: Path, undisturbed: list[spec.Spec]) -> None:
    """Each kill comes when the trial has gone on from the one before."""
    only(project, lenet5_mnist=long([0]))
    (one,) = specs("lenet5-mnist")

    for how, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 130)):  # Ctrl-C: tests/test_pipeline_ended.py
        run = Run.start(project)
        run.until_saved(one)
        assert run.kill(run.driver.pid, how) == status
        assert how == signal.SIGKILL or run.log.splitlines()[-1].startswith("error: interrupted")

    run = Run.start(project)
    run.until_saved(one)
    (raylet,) = (child for child in started_by(run.driver.pid) if name_of(child) == "raylet")
    assert run.kill(raylet.pid, signal.SIGKILL) == 2
    assert run.log.splitlines()[-1].startswith("error: the Ray cluster that was started here was lost; run the same")
    run.says_nothing_of_rays()

    run = Run.start(project, **slurm(project))
    run.until_saved(one)
    os.kill(worker_of(one), signal.SIGUSR1)  # a scheduler wants that machine for another
    run.until(
        lambda: "lenet5-mnist seed 0 was ended by SIGUSR1, its checkpoint is saved; it goes on elsewhere\n" in run.log
    )
    run.until_saved(one)
    asked = time.time()
    assert run.kill(run.driver.pid, signal.SIGUSR1) == 75  # and now the driver's
    assert run.log.splitlines()[-1] == "error: ended by SIGUSR1; the same command goes on at its last checkpoint"
    assert one.files.checkpoint.stat().st_mtime > asked
    assert not list(project.glob("hpc_ckpt_*"))

    only(project, lenet5_mnist=long([0, 1]))
    trials = specs("lenet5-mnist")
    run = Run.start(project)
    run.until_saved(*trials)
    lost = worker_of(one)
    os.kill(lost, signal.SIGKILL)
    until(lambda: worker_of(one) != lost)
    run.finish()
    assert [read_json(found.files.result)["resumed"] for found in trials] == [6, 0]
    for ours, theirs in zip(trials, undisturbed, strict=True):
        assert same_weights(ours.files.weights, theirs.files.weights)


def test_a_budget_may_be_named_beside_a_benchmark(project: Path) -> None:
    params = only(project, linear_mnist=SHORT | {"budgets.paper": {"epochs": 1, "seeds": [3]}})
    (one,) = spec.trials(params, "linear-mnist", data=Path("datasets"), root=Path("store"), budget="paper")
    trainer.run(one)
    done = train("linear-mnist", "--budget", "paper")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 trials are in the store already" in done.stdout
    # The later stages look at the suite's budget: another one's weights would only be taken for it.
    assert (
        "the trials at the paper budget stay in the store" in done.stdout
        and not (project / "runs/linear-mnist").exists()
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["linear-mnist", "--budget", "laptpo"], "--budget: linear-mnist: budget laptpo is not known; did you mean la"),
        (["--budget", "paper"], "--budget is paper; expected it beside names of benchmarks"),
    ],
)
def test_a_budget_that_makes_no_sense_is_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], line: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *words])
    with pytest.raises(UserError, match=line):
        stage.main()


@pytest.mark.parametrize("optimiser", [{"momentum": 0.0}, {"momentum": 0.9}, {"name": "adadelta", "momentum": 0.0}])
def test_the_disk_that_a_trial_is_said_to_need_is_enough_and_about_twice_it_at_most(
    project: Path, monkeypatch: pytest.MonkeyPatch, optimiser: dict[str, Any]
) -> None:
    changes = {f"recipe.optimiser.{key}": value for key, value in optimiser.items()}
    only(project, lenet5_mnist=SHORT | changes)
    one, other = specs("lenet5-mnist")
    held = Cluster(address=None, nodes=(Node(cpus=1),))
    weights = checks.check(Inputs.of(one), one.budget)
    needed = estimate.disk_bytes([(one, weights), (other, weights)], held)
    sizes: list[int] = []

    def note(told: Mapping[str, Any]) -> None:
        if told["state"] == "done":  # the checkpoint of the last epoch is still there
            sizes.append(one.files.checkpoint.stat().st_size)

    files = trainer.run(one, watch=note)
    taken = files.weights.stat().st_size + 2 * sizes[0]
    # Of two trials one trains at a time, and the other's weights are kept beside it.
    assert taken + weights < needed < 2.1 * (taken + files.weights.stat().st_size) + estimate.SMALL_FILES

    usage = shutil.disk_usage(project)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(UserError, match=r"store has \d MB free; expected \d MB for 2 trials"):
        campaign._require_space([(one, weights), (other, weights)], held)


def test_a_machine_without_memory_is_one_line_after_some_attempts(project: Path) -> None:
    """Ray would start what it ended for want of memory again for ever."""
    only(project, linear_mnist=SHORT)
    done = train(RAY_memory_usage_threshold="0.001")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: before training: its worker was lost (out of memory: ")


@pytest.mark.parametrize(
    "address",
    [
        *("head", "head:ray", "head..cluster:6379", ":6379", "head:0", "head:65536", "head:6379/x", "a b:6379"),
        *("http://head:6379", "ray://head:10001", "user:word@head:6379", "::1:6379", "[::1]", "he\x1bad:6379"),
        "x" * 300,
    ],
)
def test_a_malformed_cluster_address_is_one_line(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    line = f"^RAY_ADDRESS is {re.escape(brief(address, 200))}; expected host:port, auto, or nothing$"
    with pytest.raises(UserError, match=line), connection.connect():
        pass


def test_an_unreachable_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound but not listening: nobody else can answer there
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError) as caught, connection.connect():
            pass
    assert str(caught.value) == (
        f"RAY_ADDRESS is {address}, which can't be reached (Connection refused); "
        "expected a running Ray cluster, or unset it"
    )


def test_what_answers_and_is_no_ray_is_one_line_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ray itself asks it for minutes, and prints each time that it does."""
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as closing:
        threading.Thread(target=closing.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{closing.server_address[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        line = (
            f"^RAY_ADDRESS is {address}, which can't be reached .no Ray cluster answers there: unavailable.; expected"
        )
        with pytest.raises(UserError, match=line), connection.connect():
            pass
        closing.shutdown()
    assert capfd.readouterr() == ("", "")
