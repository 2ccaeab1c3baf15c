"""Projects as the stages leave them, written file by file, and MLflow to track them with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import requests

from pipelines.tracking import addresses, records
from pipelines.tracking.cursors import Cursor
from pipelines.tracking.delivery import Sender
from pipelines.tracking.spool import Spool
from pipelines.training import store
from tests.processes import until
from tests.report_inputs import write_matrix

DIGITS = [str(digit) for digit in range(10)]


CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


NOW = 1_790_000_000.0  # when the files below claim to have been written, unix seconds


ODD = ["$\\frac{$", "a\nb\tc\x1b[31mred\x00", "\udcff 猫", "x" * 9000, 'all / . : " % of | it', " "]


def vouch(folder: Path, result: dict[str, Any]) -> None:
    """Write a trial's result as its training does, with the digests of its files."""
    store.TrialFiles(folder).write_result(result)


class Project:
    """A project's run store, evaluations and report, written file by file as the stages write them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spool = Spool(project=root, store=root / "store")
        self.rows: list[dict[str, Any]] = []

    def write(self, path: str, value: Any) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(value if isinstance(value, str) else json.dumps(value))
        return target

    def trial(self, name: str, dataset: str, seed: int, *, epochs: int, done: int | None = None, at: float = 0) -> str:
        """One trial of **epochs**, finished unless only **done** of them are; returns its key."""
        key = hashlib.sha256(f"{name}/{seed}".encode()).hexdigest()[:16]
        done = epochs if done is None else done
        config = {
            "dataset": dataset,
            "model": {"family": name.split("-")[0], "name": name.split("-")[0], "options": {"head": "softmax"}},
            "recipe": {
                "preprocess": [{"pad": {"pixels": 2}}, {"scale": {"low": -0.1, "high": 1.175}}],
                "batch": 32,
                "precision": "fp32",
                "optimiser": {"name": "sgd", "lr": 0.02, "momentum": 0.9},
                "subset": {},
            },
            "epochs": epochs,
            "workers": 1,
        }
        identity = {"benchmark": name, "seed": seed, "key": key, "budget": "laptop", "config": config}
        begun = NOW + at
        self.write(
            f"store/{key}/trial.json",
            {**identity, "dataset": {"name": dataset, "digest": "d" * 64}, "sources": {"models/x.py": "0" * 64}},
        )
        self.curve(key, range(1, done + 1), begun)
        last = done == epochs
        self.progress(key, "done" if last else "running", done, epochs, os.getpid())
        if last:
            self.write(f"store/{key}/weights.pt", "weights")
            result = {
                **identity,
                "dataset_digest": "d" * 64,
                "epochs": epochs,
                "images_seen": 60_000 * epochs,
                "wall_s": 7.0 * epochs,
                "device_s": 7.0 * epochs,
                "images_per_s": 8571.4,
                "workers": 1,
                "hardware": "a CPU, 2 cores",
                "cuda_graph": "replayed",
                "device": "cpu",
                "versions": {"python": "3.11.7", "torch": "2.13.0", "pytorch_lightning": "2.6.6", "ray": None},
                "git_commit": "0123456789abcdef0123456789abcdef01234567",
                "git_dirty": False,
                "parameters": 60_000,
                "resumed": 0,
                "finished": begun + 7.0 * epochs,
                "final_loss": 0.1,
            }
            vouch(self.root / f"store/{key}", result)
        return key

    def curve(self, key: str, epochs: range, begun: float) -> None:
        rng = np.random.default_rng(int(key[:8], 16))
        lines = [
            {
                "epoch": epoch,
                "loss": 2.3 / epoch**0.8 + 0.02 * rng.random(),
                "train_error": 60 / epoch + rng.random(),
                "lr": 0.02 * 0.9**epoch,
                "images_per_s": 8000 + 500 * rng.random(),
                "seconds": 7.0 * epoch,
                "time": begun + 7.0 * epoch,
            }
            for epoch in epochs
        ]
        self.write(f"store/{key}/curve.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    def progress(self, key: str, state: str, epoch: float, epochs: int, pid: int) -> None:
        progress = {"state": state, "epoch": epoch, "epochs": epochs, "loss": 0.1, "images_per_s": 8000.0, "eta_s": 1.0}
        here = {"pid": pid, "host": socket.gethostname(), "time": time.time()}
        self.write(f"store/{key}/progress.json", {**progress, **here})

    def evaluation(self, name: str, dataset: str, keys: dict[int, str], error: float, classes: list[str]) -> None:
        """What evaluate writes for the seeds in **keys**."""
        rng = np.random.default_rng(len(name))
        confused = rng.dirichlet(np.full(10, 0.4), size=10)
        np.fill_diagonal(confused, 0)
        confused *= error / 100 / confused.sum(axis=1, keepdims=True)
        np.fill_diagonal(confused, 1 - error / 100)
        errors = []
        for seed, key in keys.items():
            counts = np.stack([rng.multinomial(1000, row) for row in confused])
            errors.append(100 - float(np.trace(counts)) / 100)
            metrics = {
                "key": key,
                "error": errors[-1],
                "accuracy": 100 - errors[-1],
                "top5_error": errors[-1] / 10,
                "loss": errors[-1] / 30,
                "seconds": 1.0,
            }
            self.write(f"evaluations/{name}/trials/seed-{seed}/metrics.json", metrics)
            write_matrix(self.root / f"evaluations/{name}/trials/seed-{seed}", counts)
        mean = float(np.mean(errors))
        about = {
            "classes": classes,
            "shape": [1, 28, 28],
            "dataset": dataset,
            "protocol": "single view",
            "test": 10_000,
        }
        self.write(f"evaluations/{name}/classes.json", about)
        interval = {"test_error_ci95_low": mean - 0.1, "test_error_ci95_high": mean + 0.1}
        summary = {"test_error": mean, **interval, "test_accuracy": 100 - mean}
        self.write(f"evaluations/{name}/metrics.json", {**summary, "seeds": len(keys)})
        self.rows.append(
            {
                "benchmark": name,
                "dataset": dataset,
                "metric": "error",
                "claim": {
                    **{"metric": "error", "value": error, "certainty": "read", "test_images": 10_000},
                    **{"source": "a paper, Table 1", "protocol": "one crop"},
                },
                "deviations": ["a softmax head in place of the RBF output"],
                "budget": "laptop",
                "per_seed": dict(zip(map(str, keys), errors, strict=True)),
                "n": len(keys),
                "mean": mean,
                "ci95": [mean - 0.1, mean + 0.1],
                "verdict": "reproduced",
                "label": "softmax variant" if name == "lenet5-mnist" else None,
                "at_chance": [],
                "margin": 0.2,
                "precision": "fp32",
                "hardware": "a CPU, 2 cores",
                "git_commit": "0123456789abcdef0123456789abcdef01234567",
                "epochs": 10,
                "paper_epochs": 20,
            }
        )

    def ledger(self) -> None:
        self.write("report/ledger.json", self.rows)

    def benchmark(self, name: str, dataset: str, error: float, seeds: int, *, epochs: int = 10, at: float = 0) -> None:
        """A benchmark whose trials are all trained and evaluated."""
        keys = {seed: self.trial(name, dataset, seed, epochs=epochs, at=at + seed) for seed in range(seeds)}
        self.evaluation(name, dataset, keys, error, DIGITS if dataset == "mnist" else CIFAR)


def suite(root: Path, seeds: int = 5) -> Project:
    """The default suite as it lies on disk when all is done."""
    project = Project(root)
    rows = [
        ("linear-mnist", "mnist", 12.0),
        ("mlp300-mnist", "mnist", 4.7),
        ("lenet5-mnist", "mnist", 0.95),
        ("ordinary-cifar10", "cifar10", 63.0),
        ("convnetjs-cifar10", "cifar10", 21.0),
        ("allcnn-c-cifar10", "cifar10", 18.0),
    ]
    for place, (name, dataset, error) in enumerate(rows):
        project.benchmark(name, dataset, error, seeds, at=1000.0 * place)
    project.ledger()
    return project


def change(path: Path, **new: Any) -> None:
    """Give some keys of a JSON file other values, a result's with its digests; the row 0 of a ledger's."""
    found = json.loads(path.read_text())
    (found[0] if isinstance(found, list) else found).update(new)
    vouch(path.parent, found) if path.name == "result.json" else path.write_text(json.dumps(found))


def rewrite(path: Path, text: str) -> None:
    """Give a trial another curve, for which its result vouches."""
    path.write_text(text)
    vouch(path.parent, json.loads((path.parent / "result.json").read_text()))


def runs_of(client: Any, kind: str) -> dict[str, Any]:
    """All our runs of a kind by name, failing on two of one name."""
    ids = [e.experiment_id for e in client.search_experiments()]
    found = client.search_runs(ids, f"tags.kind = '{kind}'", max_results=1000)
    by_name = {run.info.run_name: run for run in found}
    assert len(by_name) == len(found), "a run was made twice"
    return by_name


def files(client: Any, run: Any, path: str | None = None) -> list[str]:
    """All artifact paths of a run."""
    out: list[str] = []
    for item in client.list_artifacts(run.info.run_id, path):
        out += files(client, run, item.path) if item.is_dir else [item.path]
    return sorted(out)


def deliver(spool: Spool) -> tuple[Any, int]:
    """One round in this process, in which nothing may be refused: the client, and the number of runs sent."""
    sender = Sender(spool, addresses.tracking_uri(spool.project))
    result = sender.round()
    assert (result.away, result.failed, result.refused, result.busy) == (None, None, [], False)
    return sender.client, result.sent


def pending(spool: Spool, uri: str) -> list[str]:
    """The names of the runs that the server at **uri** lacks, by the cursor."""
    cursor = Cursor.of(spool.store, uri)
    return [record.name for record in records.all_runs(spool)[0] if cursor.lacks(record)]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()
    }


def execute(file: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as opened, opened:
        for statement in statements:
            opened.execute(statement)


def healthy(uri: str) -> bool:
    """Whether a server of MLflow answers there."""
    with contextlib.suppress(requests.RequestException), requests.Session() as session:
        session.trust_env = False
        return session.get(f"{uri}/health", timeout=5).ok
    return False


class Server:
    """``mlflow server`` on a port of its own, over sqlite."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.root / 'server.db'}"]
        command += ["--artifacts-destination", str(self.root / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=quiet, stderr=quiet)
        until(lambda: healthy(self.uri), 90)

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Killed for the length of a block."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()
