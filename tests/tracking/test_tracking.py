"""Tracking against a real MLflow: its sqlite store, and its server, also one that is stopped in the middle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import matplotlib
import numpy as np
import psutil
import pytest
import sqlalchemy

from pipelines import dashboard
from pipelines.command.errors import UserError
from pipelines.config.claims import Claim
from pipelines.results.figures import FIGURES, confusion_figure, drawable, percentage
from pipelines.results.ledger import LedgerRow
from pipelines.results.reader import Outcome
from pipelines.tracking import cursors, database, delivery, helper, limits, probe, records
from pipelines.tracking import spool as spools
from pipelines.tracking.delivery import Sender
from pipelines.tracking.probe import AwayError
from pipelines.tracking.spool import Spool
from pipelines.training import store
from tests.gate import Gate, opened
from tests.processes import runs, started_by, until

pytestmark = pytest.mark.filterwarnings("ignore:::(?!pipelines|tests)")  # what MLflow's libraries warn about
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
        self.spool = Spool.below(root)
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
            text = "".join(",".join(map(str, row)) + "\n" for row in counts)
            self.write(f"evaluations/{name}/trials/seed-{seed}/confusion.csv", text)
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
                "claim": {"value": error, "source": "a paper, Table 1", "protocol": "one crop"},
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


# What is on disk, and what is made of it; no MLflow yet.


def test_reads_what_stages_write(tmp_path: Path) -> None:
    project = suite(tmp_path, seeds=2)
    found, problems = spools.read(project.spool)
    assert problems == []
    assert [b.name for b in found][:3] == ["linear-mnist", "mlp300-mnist", "lenet5-mnist"]  # by their first trial
    assert all(len(b.trials) == len(b.evaluated) == 2 and b.row is not None for b in found)


def test_damaged_files_read_as_absent(tmp_path: Path) -> None:
    project = Project(tmp_path)
    key = project.trial("lenet5-mnist", "mnist", 0, epochs=3)
    with (tmp_path / f"store/{key}/curve.jsonl").open("a") as curve:
        curve.write('{"epoch": 4, "loss"')  # being written
    project.write(f"store/{key}/result.json", "{")
    project.write("store/0000/trial.json", '{"benchmark": "lenet5-mnist"}')
    project.write("report/ledger.json", "[1]")
    (benchmark,) = spools.read(project.spool)[0]
    (trial,) = benchmark.trials
    assert [line["epoch"] for line in trial.curve] == [1, 2, 3]
    assert trial.result is None and benchmark.row is None


def test_an_evaluation_of_an_unknown_trial_is_told(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    path = tmp_path / "evaluations/lenet5-mnist/trials/seed-0/metrics.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "key"}))
    (benchmark,), problems = spools.read(project.spool)
    assert benchmark.evaluated == () and len(problems) == 1 and str(path) in problems[0]


def test_an_evaluation_goes_to_the_trial_it_was_made_of(tmp_path: Path) -> None:
    """After a change of the recipe the old evaluation lies there until evaluate runs again."""
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    new = project.trial("lenet5-mnist", "mnist", 7, epochs=2)
    (benchmark,) = spools.read(project.spool)[0]
    assert {trial.key: trial.evaluation is not None for trial in benchmark.trials}[new] is False
    assert [trial.seed for trial in benchmark.evaluated] == [0]


def test_rows_that_share_their_weights_have_runs_and_evaluations_of_their_own(tmp_path: Path) -> None:
    """As an error and a top-5 error of the same net: one trial in the store, collected twice."""
    project = Project(tmp_path)
    key = project.trial("lenet5-mnist", "mnist", 0, epochs=2)
    for name, error in (("lenet5-mnist", 1.0), ("another-mnist", 30.0)):
        project.evaluation(name, "mnist", {0: key}, error, DIGITS)
        shutil.copytree(tmp_path / "store" / key, tmp_path / "runs" / name / "seed-0")
    project.ledger()
    found, problems = records.gather(project.spool)
    trials = {record.identity: record for record in found if record.tags["kind"] == "trial"}
    assert problems == [] and trials.keys() == {f"trial:{key}", f"trial:{key}/another-mnist"}
    errors = [p.value for one in trials.values() for part in one.parts for p in part.points if p.key == "test/error"]
    assert 0 < min(errors) < 5 < 20 < max(errors) and len(errors) == 2
    parents = {record.identity for record in found if record.tags["kind"] == "benchmark"}
    assert {one.parent for one in trials.values()} == parents


def test_collected_runs_stand_in_for_a_missing_store(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    (folder,) = (tmp_path / "store").iterdir()
    shutil.move(folder, tmp_path / "runs/lenet5-mnist/seed-0")
    (tmp_path / "runs/lenet5-mnist/seed-0/trial.json").unlink()
    (benchmark,) = spools.read(project.spool)[0]
    assert benchmark.dataset == "mnist" and len(benchmark.trials) == len(benchmark.evaluated) == 1


def test_status_of_a_trial_whose_process_is_gone(tmp_path: Path) -> None:
    project = Project(tmp_path)
    key = project.trial("lenet5-mnist", "mnist", 0, epochs=9, done=2)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for state, pid, status in (
        ("running", os.getpid(), "RUNNING"),
        ("running", gone.pid, "KILLED"),
        ("failed", 1, "FAILED"),
    ):
        project.progress(key, state, 2, 9, pid)
        assert spools.read(project.spool)[0][0].trials[0].status == status


NO_TIMES: dict[str, Any] = {
    "null": None,
    "text": "soon",
    "list": [],
    "nan": float("nan"),
    "infinite": float("inf"),
    "huge": 10**400,
}


@pytest.mark.parametrize("told", NO_TIMES.values(), ids=NO_TIMES)
def test_progress_at_no_time_is_of_no_living_process(tmp_path: Path, told: Any) -> None:
    here = {"pid": os.getpid(), "host": socket.gethostname()}
    assert spools.alive({**here, "time": time.time()})
    assert not spools.alive({**here, "time": told})
    assert not spools.alive({**here, "time": time.time(), "pid": 2**70})
    project = Project(tmp_path)
    key = project.trial("lenet5-mnist", "mnist", 0, epochs=9, done=2)
    project.write(f"store/{key}/progress.json", {**here, "state": "running", "time": told})
    record = next(r for r in records.gather(project.spool)[0] if r.identity == f"trial:{key}")
    assert record.status == "KILLED" and record.ended == pytest.approx(time.time(), abs=60)


def test_a_copy_beside_the_trials_is_not_one_of_them(tmp_path: Path) -> None:
    """``cp -r seed-0 seed-0.bak``, below evaluations/ and runs/, with a key of its own."""
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    before = records.gather(project.spool)
    identity = json.loads(next((tmp_path / "store").glob("*/result.json")).read_text())
    for stray in ("seed-0.bak", "seed-", "seed-x"):
        folder = tmp_path / "evaluations/lenet5-mnist/trials"
        shutil.copytree(folder / "seed-0", folder / stray)
        project.write(f"runs/lenet5-mnist/{stray}/result.json", {**identity, "key": f"of {stray}"})
    after = records.gather(project.spool)
    assert after[1] == before[1] == []
    assert [r.marks for r in after[0]] == [r.marks for r in before[0]] and len(after[0]) == 3


def change(path: Path, **new: Any) -> None:
    """Give some keys of a JSON file other values, a result's with its digests; the row 0 of a ledger's."""
    found = json.loads(path.read_text())
    (found[0] if isinstance(found, list) else found).update(new)
    vouch(path.parent, found) if path.name == "result.json" else path.write_text(json.dumps(found))


def rewrite(path: Path, text: str) -> None:
    """Give a trial another curve, for which its result vouches."""
    path.write_text(text)
    vouch(path.parent, json.loads((path.parent / "result.json").read_text()))


def replaced_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


SEED_0 = "evaluations/a-mnist/trials/seed-0"
LINE = {"epoch": 1, "time": 1, "seconds": 1}
DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("store/{key}/trial.json", lambda path: change(path, seed="0"), "seed is '0'; expected a whole number"),
    ("store/{key}/trial.json", lambda path: change(path, key=[1]), "key is [1]; expected text"),
    ("store/{key}/trial.json", lambda path: change(path, benchmark={}), "benchmark is {}; expected text"),
    ("store/{key}/trial.json", lambda path: change(path, dataset={"name": 1}), "dataset.name is 1; expected text"),
    ("store/{key}/trial.json", lambda path: path.write_bytes(b"\xff"), "can't decode"),
    ("store/{key}/trial.json", lambda path: path.write_text("[" * 10**5), "recursion"),
    ("store/{key}/trial.json", replaced_by_a_folder, "is no regular file"),
    ("store/{key}/trial.json", replaced_by_a_pipe, "is no regular file"),
    (
        "store/{key}/result.json",
        lambda path: change(path, finished="now"),
        "finished is 'now'; expected a number from 0",
    ),
    ("store/{key}/result.json", lambda path: change(path, wall_s=None), "wall_s is null; expected a number from 0"),
    ("store/{key}/result.json", lambda path: change(path, versions="all"), "versions is 'all'; expected an object"),
    ("store/{key}/result.json", lambda path: change(path, parameters="60"), "parameters is '60'; expected a number"),
    ("store/{key}/result.json", lambda path: path.write_text(path.read_text().replace("8571", "8572")), "is damaged"),
    ("store/{key}/progress.json", lambda path: path.write_text("[]"), "it holds a list; expected an object"),
    ("store/{key}/curve.jsonl", lambda path: rewrite(path, "epoch 1\n"), "is damaged"),
    ("store/{key}/curve.jsonl", lambda path: rewrite(path, "1\n"), "it holds a int; expected one JSON object a line"),
    ("store/{key}/curve.jsonl", lambda path: rewrite(path, '{"epoch": 0}\n'), " line 1: epoch is 0"),
    ("store/{key}/curve.jsonl", lambda path: rewrite(path, json.dumps({**LINE, "time": -1}) + "\n"), "1: time is -1"),
    (
        "store/{key}/curve.jsonl",
        lambda path: rewrite(path, json.dumps({**LINE, "loss": "low"}) + "\n"),
        "loss is 'low'",
    ),
    (f"{SEED_0}/metrics.json", lambda path: change(path, key={}), "key is {}"),
    (f"{SEED_0}/metrics.json", lambda path: change(path, error="1"), "error is '1'; expected per cent"),
    (f"{SEED_0}/metrics.json", lambda path: change(path, error=99.0), "expected files of one evaluation"),
    (f"{SEED_0}/metrics.json", lambda path: change(path, claimed_on=[1]), "claimed_on is [1]; expected an object"),
    (f"{SEED_0}/confusion.csv", replaced_by_a_folder, "is no regular file"),
    (f"{SEED_0}/confusion.csv", replaced_by_a_pipe, "is no regular file"),
    ("evaluations/a-mnist/classes.json", lambda path: change(path, classes=None), "classes is null; expected a list"),
    (
        "evaluations/a-mnist/metrics.json",
        lambda path: change(path, test_error=[1]),
        "test_error is [1]; expected a num",
    ),
    ("report/ledger.json", lambda path: change(path, claim=None), " row 1: claim is null; expected an object"),
    ("report/ledger.json", lambda path: change(path, dataset=[1]), " row 1: dataset is [1]; expected text"),
    ("report/ledger.json", lambda path: change(path, mean="1"), " row 1: mean is '1'; expected a number"),
    ("report/ledger.json", lambda path: change(path, ci95=[1]), " row 1: ci95 is [1]; expected two numbers"),
    ("report/ledger.json", lambda path: path.write_text("[1, " + path.read_text()[1:]), " row 1 is damaged: it is 1"),
]


@pytest.mark.parametrize(("file", "damage", "says"), DAMAGES, ids=[f"{file} {says}" for file, _, says in DAMAGES])
def test_a_damaged_file_costs_itself_and_one_line(
    tmp_path: Path, file: str, damage: Callable[[Path], object], says: str
) -> None:
    project = Project(tmp_path)
    project.benchmark("a-mnist", "mnist", 1.0, 2)
    project.benchmark("b-mnist", "mnist", 5.0, 2, at=1000)
    project.ledger()
    before, problems = records.gather(project.spool)
    assert problems == [] and len(before) == 6
    key = next(r for r in before if r.name == "a-mnist seed 0").identity.partition(":")[2]
    path = tmp_path / file.format(key=key)
    damage(path)
    after, (problem,) = records.gather(project.spool)
    assert problem.startswith(str(path)) and says in problem and "\n" not in problem
    marks = {r.identity: r.marks for r in after}
    whole = {r.identity: r.marks for r in before}
    assert all(marks[r.identity] == r.marks for r in before if r.name.startswith("b-mnist"))
    parts = sum(map(len, whole.values())) - sum(map(len, marks.values()))
    all_of_it = {"trial.json": 6, "classes.json": 3}  # a trial; the evaluations of two seeds, and that of both
    assert parts <= all_of_it.get(path.name, 2)


def test_a_damaged_cursor_has_the_server_asked_again(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    uri = "http://127.0.0.1:9"
    cursor = cursors.Cursor.of(project.spool, uri)
    everything = records.gather(project.spool)[0]
    entries = {r.identity: {"run_id": "1", "sent": r.marks} for r in everything}
    for damaged in (None, {"run_id": "1", "sent": {"curve": "ten"}}, {"run_id": 1, "sent": {}}, {"run_id": "1"}):
        project.write(str(cursor.path), {"uri": uri, "runs": {**entries, everything[0].identity: damaged}})
        assert [r.name for r in cursors.pending(project.spool, uri)] == ["lenet5-mnist (laptop)"]
    for text in ("{", "[]", '{"runs": null}', '{"runs": [1]}'):
        project.write(str(cursor.path), text)
        assert len(cursors.pending(project.spool, uri)) == 2


def evaluation_files(record: records.Record) -> dict[str, bytes]:
    """The files of a run's evaluation."""
    (part,) = (part for part in record.parts if part.name == "evaluation")
    return dict(part.files())


def test_figures_of_the_classes_are_those_of_the_matrix(tmp_path: Path) -> None:
    """Class 0 is never predicted, class 1 has no image."""
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    for seed in (0, 1):
        path = tmp_path / f"evaluations/lenet5-mnist/trials/seed-{seed}/confusion.csv"
        counts = np.loadtxt(path, delimiter=",", dtype=np.int64)
        counts[0] = [0, 30, 970, *([0] * 7)]
        counts[1], counts[:, 0] = 0, 0
        counts[3, 3] += 10_000 - counts.sum()
        np.savetxt(path, counts, fmt="%d", delimiter=",")
        error = 100 - float(np.trace(counts)) / 100
        change(path.with_name("metrics.json"), error=error, accuracy=100 - error)
    benchmark, trial, _ = records.gather(project.spool)[0]
    head, *lines = evaluation_files(benchmark)[records.CLASSES].decode().splitlines()
    assert head == "class,seed,precision %,recall %,F1 %,images"
    for line in lines:
        name, of, *figures, images = line.split(",")
        path = tmp_path / f"evaluations/lenet5-mnist/trials/seed-{of}/confusion.csv"
        counts, digit = np.loadtxt(path, delimiter=",", dtype=np.int64), int(name)
        right, said, there = counts[digit, digit], counts[:, digit].sum(), counts[digit].sum()
        shares = ((right, said), (right, there), (2 * right, said + there))
        expected = [pytest.approx(100 * part / whole, abs=0.01) if whole else None for part, whole in shares]
        assert [float(one) if one else None for one in figures] == expected
        assert int(images) == there
    assert lines[0].startswith("0,0,,0.0,") and lines[2].startswith("1,0,0.0,,")
    assert evaluation_files(trial)[records.CLASSES].decode().splitlines()[1] == lines[0]


def test_a_trial_that_is_stuck_at_chance_has_a_tag(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    path = tmp_path / "evaluations/lenet5-mnist/trials/seed-1/confusion.csv"
    counts = np.zeros((10, 10), dtype=np.int64)
    counts[:, 3] = 1000  # each image is called a 3
    np.savetxt(path, counts, fmt="%d", delimiter=",")
    change(path.with_name("metrics.json"), error=90.0, accuracy=10.0)
    _, *trials = records.gather(project.spool)[0]
    tags = [{k: v for part in trial.parts for k, v in part.tags.items() if "stuck" in k} for trial in trials]
    assert tags == [{}, {"stuck_at_chance": "true"}]


def explored(record: records.Record) -> Any:
    """What a run's explorer shows."""
    page = evaluation_files(record)[records.EXPLORER].decode()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(data)


def test_the_explorer_has_the_seeds_of_its_run_and_their_test_images(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 3)
    folder = tmp_path / "evaluations/lenet5-mnist"
    matrices = [np.loadtxt(folder / f"trials/seed-{n}/confusion.csv", delimiter=",", dtype=int) for n in range(3)]
    np.savez(
        folder / "examples.npz",
        images=np.zeros((10, 1, 28, 28), dtype=np.uint8),
        actual=np.arange(10),
        index=np.arange(10),
        seeds=np.arange(3),
        predicted=np.tile(np.arange(10), (3, 1)),
        confidence=np.full((3, 10), 0.5),
    )
    benchmark, first, *_ = records.gather(project.spool)[0]
    (net,) = explored(benchmark)["benchmarks"]
    assert net["seeds"] == [0, 1, 2] and net["claimed_error"] is None  # there is no ledger yet
    assert [net["matrices"][str(n)] for n in range(3)] == [matrix.tolist() for matrix in matrices]
    assert len(net["examples"]["tiles"]) == 10
    (net,) = explored(first)["benchmarks"]
    assert net["seeds"] == [0] and list(net["curves"]) == ["0"] and set(net["examples"]["predicted"]) == {"0"}
    project.ledger()
    assert explored(records.gather(project.spool)[0][0])["benchmarks"][0]["claimed_error"] == 1.0


def test_a_figure_is_one_function_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bars(outcome: Outcome, *, title: str, subtitle: str) -> bytes:
        return f"{title}: {[trial.seed for trial in outcome.trials]}".encode()

    monkeypatch.setitem(FIGURES, "bars", bars)
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    drawn = [evaluation_files(record)["bars.png"].decode() for record in records.gather(project.spool)[0]]
    assert drawn == ["lenet5-mnist: [0, 1]", "lenet5-mnist, seed 0: [0]", "lenet5-mnist, seed 1: [1]"]


def test_under_three_seeds_the_figures_themselves_are_shown(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 30.0, 2)
    project.rows[0].update(ci95=None, per_seed={"0": 29.5, "1": 30.25}, mean=29.875)
    project.ledger()
    row = spools.read(project.spool)[0][0].row
    assert row is not None
    assert "| our error | 29.50, 30.25 %, 2 seeds |" in records.note(row) and "29.8" not in records.note(row)
    assert records._row_facts(row)["measured"] == "29.50, 30.25 % error"


def test_every_point_of_a_short_budgets_curve_has_a_step_of_its_own(tmp_path: Path) -> None:
    """A budget of one image of MNIST's 60,000 at a time."""
    project = Project(tmp_path)
    key = project.trial("lenet5-mnist", "mnist", 0, epochs=9, done=4)
    lines = [{"epoch": n / 60_000, "loss": 1.0, "time": NOW + n, "seconds": n} for n in range(1, 61)]
    project.write(f"store/{key}/curve.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    (part,) = (p for r in records.gather(project.spool)[0] for p in r.parts if p.name == "curve")
    steps = [point.step for point in part.points if point.key == "train/loss"]
    assert len(set(steps)) == 60 and steps == sorted(steps) and steps[0] > 0


MARKED = {
    **dict.fromkeys(LedgerRow.__annotations__),
    "benchmark": "ordinary-cifar10",
    "metric": "accuracy",
    "claim": {**dict.fromkeys(Claim.__annotations__), "value": 37.0},
    "verdict": "reproduced",
    "budget": "laptop",
    "n": 5,
    "per_seed": {},
    "mean": 38.0,
    "ci95": [37.8, 38.2],
    "test_set": {"mean": 33.4, "ci95": [33.1, 33.7], "images": 10000, "per_seed": {}},
    "difference": "They are images of the training file.",
}


def test_a_ledger_row_on_other_images_has_the_whole_test_set_beside_it() -> None:
    part = records._benchmark_ledger(MARKED, NOW)
    values = {point.key: point.value for point in part.points}
    assert (values["ledger/mean"], values["ledger/ci95_low"], values["ledger/claim"]) == (38.0, 37.8, 37.0)
    ends = ("ledger/test_set_mean", "ledger/test_set_ci95_low", "ledger/test_set_ci95_high")
    assert tuple(values[key] for key in ends) == (33.4, 33.1, 33.7)
    note = part.tags["mlflow.note.content"]
    assert "| our accuracy, on the images of the claim | 38.00 %, 95 % interval 37.80 to 38.20 %, 5 seeds |" in note
    assert "| our accuracy on the whole test set | 33.40 %, 95 % interval 33.10 to 33.70 % |" in note
    assert note.endswith("The images of the claim are not the whole test set. They are images of the training file.")
    facts = records._row_facts(MARKED)
    assert facts["measured"] == "38.00 % accuracy (37.80 to 38.20), on the images of the claim"
    assert facts["on the test set"] == "33.40 % accuracy"
    plain = {**MARKED, "test_set": None, "difference": None, "label": "a variant", "at_chance": [0, 3]}
    assert not [point for point in records._benchmark_ledger(plain, NOW).points if "test_set" in point.key]
    note = records.note(plain)
    assert "claim |" not in note and "on the whole test set" not in note
    assert note.startswith("**reproduced (a variant)**\n")
    assert note.endswith("2 of 5 seeds are stuck at chance: no better than guessing.")
    assert records._row_facts(plain)["verdict"] == "reproduced (a variant)"
    assert records._benchmark_ledger(plain, NOW).tags["stuck_at_chance"] == "2 of 5 seeds: 0, 3"
    assert "stuck_at_chance" not in records._benchmark_ledger(MARKED, NOW).tags


def test_figures_on_the_images_of_the_claim_stand_beside_the_test_figures() -> None:
    def points(metrics: dict[str, Any]) -> dict[str, float]:
        return {point.key: point.value for point in records._test_points(metrics, NOW)}

    trial = {"error": 62.0, "claimed_on": {"split": "train", "first": 0, "error": 61.5, "single_view_error": 61.6}}
    assert points(trial) == {"test/error": 62.0, "claimed_on/error": 61.5, "claimed_on/single_view_error": 61.6}
    summary = {"error": 62.0, "claimed_on_error": 61.5, "claimed_on_error_ci95_low": 61.0, "seeds": 5}
    assert points(summary) == {"test/error": 62.0, "claimed_on/error": 61.5, "claimed_on/error_ci95_low": 61.0}
    assert points({"error": 1.0, "claimed_on_error_ci95_low": None}) == {"test/error": 1.0}


def test_params_are_flat() -> None:
    flat = records.flatten({"recipe": {"lr": 0.1, "augment": [{"flip": {}}], "subset": {}}, "x": None})
    assert flat == {"recipe.lr": "0.1", "recipe.augment": '[{"flip": {}}]', "recipe.subset": "{}", "x": ""}


def test_figure_never_rounds_an_error_away() -> None:
    assert [percentage(v) for v in (100, 99.98, 12.34, 0.04)] == ["100", "99.9", "12.3", "<0.1"]
    png = confusion_figure(np.eye(30, dtype=np.int64), [f"class {i}" for i in range(30)], title="a", subtitle="b")
    assert png.startswith(b"\x89PNG")


@pytest.mark.parametrize("classes", [20, 21])  # with names and without
def test_a_figure_takes_any_text(classes: int) -> None:
    """No formula is read into a name, no letter is missed; a warning would fail this."""
    names = [*ODD, *map(str, range(classes - len(ODD)))]
    for name in ODD[:4]:
        png = confusion_figure(np.eye(classes, dtype=np.int64), names, title=name, subtitle=name)
        assert png.startswith(b"\x89PNG")
    assert drawable("$x^2$", 20) == "$x^2$" and drawable("a\n猫\udcff", 20) == "a\\n\\u732b\\udcff"
    assert drawable("x" * 300, 21) == f"{'x' * 10}…{'x' * 10}"


def test_a_figure_is_not_what_a_matplotlibrc_makes_of_it() -> None:
    def draw() -> bytes:
        return confusion_figure(np.eye(2, dtype=np.int64), ["a_b", "$c$"], title="a", subtitle="b")

    plain = draw()
    with matplotlib.rc_context({"text.usetex": True, "font.family": "serif"}):
        assert draw() == plain


def test_names_and_values_are_what_mlflow_takes() -> None:
    assert limits.key("recipe.model.options.lr 1:a/b-c_d") == "recipe.model.options.lr 1:a/b-c_d"
    assert [limits.key(odd) for odd in ("a$b", "a\n", "", "..", "/a", "a/../b", "a//b", ".")] == [
        *("a_x24_b", "a_x0a_", "_", "_x2e_.", "_x2f_a", "a_x2f_.._x2f_b", "a_x2f__x2f_b", "_x2e_"),
    ]
    long = [limits.key("x" * 300 + end) for end in "ab"]
    assert len(set(long)) == 2 and {len(key) for key in long} == {250}
    assert limits.value("a\tb\nc\x00\ud800", 100) == "a\tb\nc\\x00\\ud800"
    cut = limits.value("x" * 9000, 8000)
    assert len(cut) == 8000 and cut.endswith("x … (9,000 characters in all)")
    assert limits.name(" a\nb\tc ") == "a b c" and limits.name(" ") == "(no name)"
    assert [limits.folder(odd) for odd in ("mnist", "..", "a/b", "猫 ü", ".x")] == [
        *("mnist", "%2E.", "a%2Fb", "%E7%8C%AB %C3%BC", "%2Ex"),
    ]


def test_credentials_are_not_printed() -> None:
    uri = "https://me:s3cret@host:5000/path?token=s3cret"
    assert cursors.safe(uri) == "https://host:5000/path"
    assert "s3cret" not in cursors.clean(f"can't reach {uri} as me:s3cret\nmore", uri)


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
    with helper.follow(project.spool) as results:
        trained = True
    assert trained
    for result in (*results, helper.sync(project.spool)):
        assert result.line == (
            f"not tracked: MLFLOW_TRACKING_URI is {(NO_ADDRESS[value] or value)!r}; expected http://HOST:PORT, "
            "https://HOST:PORT, or sqlite:/// and the path of a file; 2 trials and 1 benchmark wait in the spool"
        )
        assert "s3cret" not in repr(result)
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI is .*; expected http://HOST:PORT"):
        helper.replay(project.spool)


def test_a_directory_is_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    project = Project(tmp_path)
    project.trial("lenet5-mnist", "mnist", 0, epochs=2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}")
    said = f"not tracked: MLFLOW_TRACKING_URI is 'sqlite:///{tmp_path}', which is a directory; expected http://HOST"
    assert (helper.sync(project.spool).line or "").startswith(said)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "mlflow.db").mkdir()
    said = f"not tracked: {tmp_path}/mlflow.db is a directory; expected MLflow's database, which is a file; 1 trial"
    assert (helper.sync(project.spool).line or "").startswith(said)


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
        helper.replay(project.spool)
    elsewhere = f"sqlite:///{tmp_path}/home/scratch/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    assert cursors.tracking_uri(project.root) == elsewhere


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_address_is_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    assert cursors.tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


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
    assert cursors.tracking_uri(tmp_path) == value
    assert cursors.is_remote(value) is value.lower().startswith("http")
    assert "me:" not in cursors.safe(value)


def test_a_bug_in_reading_the_spool_ends_no_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")

    def fail(spool: Spool) -> None:
        raise RuntimeError("s3cret at http://me:s3cret@127.0.0.1:9")

    monkeypatch.setattr(records, "gather", fail)
    result = helper.sync(Spool.below(tmp_path))
    assert result.line == "not tracked: RuntimeError: *** at http://127.0.0.1:9"


def test_a_name_that_cannot_be_looked_up_is_away() -> None:
    with pytest.raises(AwayError, match="empty or too long"):
        probe.probe("http://a..b:5000")


def test_an_experiment_that_is_refused_holds_back_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path)
    project.trial("lenet5-mnist", "mnist", 0, epochs=2)
    project.trial("lenet5-odd", "what?", 0, epochs=2)
    sender = Sender(project.spool, "http://127.0.0.1:9")

    def experiment(name: str) -> str:
        if name == "what?":
            raise probe.RefusedError("no such name")
        return "1"

    monkeypatch.setattr(sender, "_connect", lambda: None)
    monkeypatch.setattr(sender, "_experiment", experiment)
    monkeypatch.setattr(sender, "_recall", lambda *_: None)
    monkeypatch.setattr(sender, "_deliver", lambda *_: None)
    assert sender.round()
    assert len(sender.sent) == 2 and sender.sent[0] == "benchmark:lenet5-mnist/laptop"
    assert list(sender.refused.values()) == ["lenet5-odd (laptop): no such name", "lenet5-odd seed 0: no such name"]


# MLflow on its sqlite store, in this process.


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty sqlite store, made as the default one is; the migrations take seconds, so once for all tests."""
    path = tmp_path_factory.mktemp("schema") / "mlflow.db"
    delivery.connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def local(tmp_path: Path, schema: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with an empty default store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(schema, tmp_path / "mlflow.db")
    return tmp_path


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


def deliver(spool: Spool) -> Sender:
    """One round in this process; nothing may be refused."""
    sender = Sender(spool, cursors.tracking_uri(spool.project))
    assert sender.round()
    assert sender.refused == {}
    return sender


def test_everything_of_a_finished_suite(local: Path) -> None:
    project = suite(local, seeds=2)
    client = deliver(project.spool).client
    assert {e.name for e in client.search_experiments()} == {"Default", "mnist", "cifar10"}
    parents, children = runs_of(client, "benchmark"), runs_of(client, "trial")
    assert len(parents) == 6 and len(children) == 12
    parent, child = parents["lenet5-mnist (laptop)"], children["lenet5-mnist seed 1"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params["recipe.optimiser.lr"] == "0.02" and child.data.params["seed"] == "1"
    assert child.data.tags["git_commit"] == project.rows[2]["git_commit"]
    assert child.data.tags["checkpoint"].endswith("weights.pt") and child.data.tags["version.torch"] == "2.13.0"
    assert child.inputs.dataset_inputs[0].dataset.name == "mnist"
    assert (child.info.status, child.info.end_time) == ("FINISHED", int(1000 * (NOW + 2001 + 70)))
    assert child.data.metrics["test/error"] == pytest.approx(project.rows[2]["per_seed"]["1"])
    history = client.get_metric_history(child.info.run_id, "train/loss")
    lines = spools.read(project.spool)[0][2].trials[1].curve
    assert [(m.step, m.value, m.timestamp) for m in history] == [
        (1_000_000 * line["epoch"], line["loss"], int(1000 * line["time"])) for line in lines
    ]
    row = project.rows[2]
    assert parent.data.metrics["ledger/mean"] == pytest.approx(row["mean"], abs=1e-4)
    assert parent.data.metrics["ledger/ci95_low"] == pytest.approx(row["ci95"][0], abs=1e-4)
    assert (parent.data.metrics["ledger/claim"], parent.data.metrics["ledger/seeds"]) == (0.95, 2)
    assert parent.data.tags["verdict"] == "reproduced" and "softmax head" in parent.data.tags["mlflow.note.content"]
    shown = files(client, parent)
    assert {"confusion.png", "per_class.csv", "explorer.html", "ledger.json"} <= set(shown)
    assert len([path for path in shown if path.startswith("images/")]) == 2  # as drawn, and a small copy
    assert (local / "mlartifacts").is_dir()


def test_nothing_is_sent_twice(local: Path) -> None:
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    project.ledger()
    first = deliver(project.spool)
    assert len(first.sent) == 3
    before = (local / "mlflow.db").read_bytes()
    assert deliver(project.spool).sent == []
    assert helper.sync(project.spool).sent == 0
    assert (local / "mlflow.db").read_bytes() == before


def test_a_crash_before_the_cursor_is_written_doubles_nothing(local: Path) -> None:
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    client = deliver(project.spool).client
    before = {name: (run.info.run_id, files(client, run)) for name, run in runs_of(client, "trial").items()}
    (cursor,) = (local / "store/tracking").glob("*.json")
    known = json.loads(cursor.read_text())
    known["runs"] = {k: v for k, v in known["runs"].items() if not k.startswith("trial:")}
    cursor.write_text(json.dumps(known))  # as if it had died after each run was made and filled
    assert len(deliver(project.spool).sent) == 2
    after = runs_of(client, "trial")
    assert {name: (run.info.run_id, files(client, run)) for name, run in after.items()} == before
    for run in after.values():
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 10
        assert len(client.get_metric_history(run.info.run_id, "test/error")) == 1
        assert len(run.inputs.dataset_inputs) == 1


def test_a_trial_is_followed_from_start_to_end(local: Path) -> None:
    project = Project(local)
    key = project.trial("lenet5-mnist", "mnist", 0, epochs=6, done=2)
    client = deliver(project.spool).client
    (run,) = runs_of(client, "trial").values()
    assert run.info.status == "RUNNING" and run.info.end_time is None
    project.progress(key, "running", 4, 6, 2**22 - 1)  # killed after epoch 4 ...
    project.curve(key, range(1, 5), NOW)
    deliver(project.spool)
    assert client.get_run(run.info.run_id).info.status == "KILLED"
    project.progress(key, "running", 3, 6, os.getpid())  # ... resumed at a checkpoint before it, so with other times
    project.curve(key, range(1, 4), NOW + 500)
    deliver(project.spool)
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    project.trial("lenet5-mnist", "mnist", 0, epochs=6, at=500)
    deliver(project.spool)
    (run,) = runs_of(client, "trial").values()
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train/error")
    assert [m.step for m in history] == [1_000_000 * epoch for epoch in range(1, 7)]


def test_a_new_seed_updates_the_benchmark(local: Path) -> None:
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    project.ledger()
    client = deliver(project.spool).client
    (parent,) = runs_of(client, "benchmark").values()
    assert parent.data.metrics["ledger/seeds"] == 1
    project.rows.clear()
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    project.rows[0]["verdict"] = "inconclusive"
    project.ledger()
    os.utime(local / "report/ledger.json", (time.time() + 5, time.time() + 5))
    deliver(project.spool)
    (after,) = runs_of(client, "benchmark").values()
    assert after.info.run_id == parent.info.run_id
    assert (after.data.metrics["ledger/seeds"], after.data.tags["verdict"]) == (2, "inconclusive")
    sent = "sent.figures/confusion"  # the grid shows the last one
    assert after.data.tags[sent] != parent.data.tags[sent]


def test_a_new_database_at_the_old_place_gets_everything(local: Path, schema: Path) -> None:
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    deliver(project.spool)
    shutil.copy(schema, local / "mlflow.new")
    (local / "mlflow.db").unlink()
    assert len(cursors.pending(project.spool, cursors.tracking_uri(local))) == 2
    (local / "mlflow.new").rename(local / "mlflow.db")  # nor does it matter that the cursor has not seen it gone
    project.trial("lenet5-mnist", "mnist", 1, epochs=1)
    result = helper.sync(project.spool)
    assert (result.sent, result.trials_waiting, result.line) == (3, 0, None)


def test_only_what_ran_is_sent(local: Path) -> None:
    """The ledger lists every benchmark there is; those outside the suite have no budget, others no figures yet."""
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    untested: dict[str, Any] = {"n": 0, "mean": None, "ci95": None, "per_seed": {}, "verdict": "untested"}
    for name, dataset, budget in (
        ("mlp1000-mnist", "mnist", None),
        ("alexnet-imagenette", "imagenette", None),
        ("allcnn-c-cifar10", "cifar10", "laptop"),
    ):
        project.rows.append({**project.rows[0], **untested, "benchmark": name, "dataset": dataset, "budget": budget})
    project.ledger()
    client = deliver(project.spool).client
    assert {e.name for e in client.search_experiments()} == {"Default", "mnist"}
    assert list(runs_of(client, "benchmark")) == ["lenet5-mnist (laptop)"]
    ((name, addresses),) = dashboard.addresses("http://x", client)
    assert name == "mnist" and [title for title, _ in addresses] == [
        *(dashboard.CONFUSION, dashboard.CURVES, dashboard.LEDGER_TABLE),
        "explorer of lenet5-mnist (laptop)",
    ]
    # Its trial trains: there is a curve and a run to see, and no confusion matrix.
    project.trial("allcnn-c-cifar10", "cifar10", 0, epochs=9, done=2)
    deliver(project.spool)
    _, (name, addresses) = dashboard.addresses("http://x", client)
    seen = [dashboard.CURVES, dashboard.LEDGER_TABLE]
    assert name == "cifar10" and [title for title, _ in addresses] == seen


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("how", ["copied", "moved"])
def test_a_copy_of_a_project_keeps_its_artifacts_itself(local: Path, how: str) -> None:
    """MLflow's database holds absolute paths; a name that has to be escaped in an address is among them."""
    old, new = local / "it's 100 % old", local / "new #2"
    old.mkdir()
    shutil.move(local / "mlflow.db", old)
    project = Project(old)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    client = deliver(project.spool).client
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
    client = delivery.connect(cursors.tracking_uri(new))
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
    client = delivery.connect(cursors.tracking_uri(local))
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


def test_a_lost_cursor_doubles_nothing_of_a_report_that_was_written_again(local: Path) -> None:
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    project.ledger()
    client = deliver(project.spool).client
    key = next(iter(runs_of(client, "trial").values())).data.tags["trial_key"]

    def points() -> dict[str, int]:
        return {
            f"{run.info.run_name} {metric}": len(client.get_metric_history(run.info.run_id, metric))
            for run in (*runs_of(client, "trial").values(), *runs_of(client, "benchmark").values())
            for metric in run.data.metrics
        }

    before = points()
    shutil.rmtree(local / "store/tracking")
    for place, path in enumerate([*local.glob("report/*"), *local.glob("evaluations/**/*.json")]):
        os.utime(path, (time.time() + place, time.time() + place))
    project.curve(key, range(1, 11), NOW + 5000)  # resumed, without a checkpoint: the same losses at other times
    assert len(deliver(project.spool).sent) == 3
    assert points() == before
    # A wording alone: the figures stay what they were. Another figure is another point.
    project.rows[0].update(remarks="another wording", mean=1.25)
    project.ledger()
    os.utime(local / "report/ledger.json", (time.time() + 60, time.time() + 60))
    deliver(project.spool)
    after = points()
    assert {key for key in after if after[key] != before[key]} == {"lenet5-mnist (laptop) ledger/mean"}


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_whatever_text_there_is_reaches_mlflow(local: Path, name: str) -> None:
    """As name of a benchmark, dataset and class, as source of a claim, as option of a model and its value."""
    project = Project(local)
    classes = [*ODD, *"123", name]
    project.trial("mlp300-mnist", "mnist", 0, epochs=1)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    for path in (*local.glob("store/*/*.json"), *local.glob("evaluations/**/classes.json")):
        found = json.loads(path.read_text())
        if found.get("benchmark", "lenet5-mnist") == "lenet5-mnist":
            if "config" in found:
                found["config"]["model"]["options"] = {name: name, "..": "up", "/": "", "a/../b": 1}
                found |= {"benchmark": name, "dataset": {"name": name, "digest": "d" * 64}, "hardware": name}
            path.write_text(json.dumps({**found, **({"classes": classes} if "classes" in found else {})}))
    row = project.rows[0]
    row.update(benchmark=name, dataset=name, claim={**row["claim"], "source": name}, deviations=[name, "y" * 9000])
    project.ledger()
    sender = deliver(project.spool)
    assert len(sender.sent) == 4
    odd = next(run for run in runs_of(sender.client, "trial").values() if run.info.run_name != "mlp300-mnist seed 0")
    assert {"confusion.png", "explorer.html", "per_class.csv"} <= set(files(sender.client, odd))
    options = {key: value for key, value in odd.data.params.items() if key.startswith("model.options.")}
    assert len(options) == 4 and options["model.options..."] == "up"
    assert sender.refused == {}
    place = Path(unquote(urlsplit(odd.info.artifact_uri).path))
    assert place.resolve().is_relative_to((local / "mlartifacts").resolve()) and place.is_dir()


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


def execute(file: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as opened, opened:
        for statement in statements:
            opened.execute(statement)


@pytest.mark.parametrize("how", DATABASES)
def test_what_is_wrong_with_a_database_is_said_in_one_line(local: Path, how: str) -> None:
    project = Project(local)
    project.trial("lenet5-mnist", "mnist", 0, epochs=1)
    damage, says = DATABASES[how]
    damage(local / "mlflow.db")
    with pytest.raises(AwayError, match=rf"^can't be used \({says}"):
        Sender(project.spool, cursors.tracking_uri(local)).round()


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
    with pytest.raises(AwayError, match=r"^can't be used \(.*file.*\)$"):
        delivery.connect(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_a_project_in_whose_path_no_database_can_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLAlchemy takes what follows a question mark for options, and would make a database beside the project."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = Project(tmp_path / "why?")
    project.trial("lenet5-mnist", "mnist", 0, epochs=1)
    assert (helper.sync(project.spool).line or "").startswith(
        f"not tracked: MLflow can't keep a database in {tmp_path}/why?, for the question mark; set MLFLOW_TRACKING_URI"
    )
    assert cursors.sqlite_file("sqlite:////srv/x.db?timeout=3") == Path("/srv/x.db")


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
            probe.answers(cursors.tracking_uri(local)),
            contextlib.closing(engine.connect()) as connection,
        ):
            connection.execute(sqlalchemy.text("DELETE FROM runs"))
        engine.dispose()


def test_a_run_deleted_in_mlflow_stays_deleted(local: Path) -> None:
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    client = deliver(project.spool).client
    client.delete_run(runs_of(client, "trial")["lenet5-mnist seed 0"].info.run_id)
    (local / "store/tracking").rename(local / "lost")
    sender = deliver(project.spool)
    assert len(sender.sent) == 2  # the other trial and the benchmark
    assert list(runs_of(client, "trial")) == ["lenet5-mnist seed 1"]
    assert cursors.pending(project.spool, sender.uri) == []


def test_one_damaged_evaluation_holds_back_nothing_else(local: Path) -> None:
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    project.trial("linear-mnist", "mnist", 0, epochs=2, at=1000)
    (local / "evaluations/lenet5-mnist/trials/seed-0/confusion.csv").write_text("1,2\n")
    sender = deliver(project.spool)
    assert len(sender.sent) == 5
    (problem,) = helper.sync(project.spool).problems
    assert "seed-0/confusion.csv holds 1x2 counts that sum to 3; expected 10x10" in problem
    run = runs_of(sender.client, "trial")["lenet5-mnist seed 0"]  # what is not damaged arrives
    assert run.info.status == "FINISHED" and "cost/wall_s" in run.data.metrics and "test/error" not in run.data.metrics
    assert len(sender.client.get_metric_history(run.info.run_id, "train/loss")) == 10


def test_damaged_images_hold_back_the_evaluation_alone(local: Path) -> None:
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    (local / "evaluations/lenet5-mnist/examples.npz").write_text("no archive")
    sender = Sender(project.spool, cursors.tracking_uri(local))
    assert sender.round()
    assert [why.partition(":")[0] for why in sender.refused.values()] == [
        *("lenet5-mnist (laptop)", "lenet5-mnist seed 0"),
    ]
    assert all("examples.npz is damaged" in why for why in sender.refused.values())
    run = runs_of(sender.client, "trial")["lenet5-mnist seed 0"]
    assert run.info.status == "FINISHED" and "cost/wall_s" in run.data.metrics and "test/error" not in run.data.metrics


def test_a_diverged_trial_and_a_long_one(local: Path) -> None:
    """A loss that is no number, and more epochs than one call takes."""
    project = Project(local)
    key = project.trial("lenet5-mnist", "mnist", 0, epochs=400)
    path = local / f"store/{key}/curve.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1]["loss"] = float("nan")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    client = deliver(project.spool).client
    (run,) = runs_of(client, "trial").values()
    assert len(client.get_metric_history(run.info.run_id, "train/lr")) == 400
    assert np.isnan(client.get_metric_history(run.info.run_id, "train/loss")[-1].value)


# A real server, which is stopped, killed and brought back.


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
        until(self.healthy, 90)

    def healthy(self) -> bool:
        try:
            probe.probe(self.uri)
        except AwayError:
            return False
        return True

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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, schema: Path) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("server")
    shutil.copy(schema, root / "server.db")
    server = Server(root)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def remote(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that tracks to the server; credentials in the address must do no harm and never show."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("//", "//me:s3cret@"))
    return Project(tmp_path)


@pytest.mark.alone
def test_a_server_killed_in_the_middle_loses_and_doubles_nothing(
    remote: Project, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    for place, name in enumerate(("linear-middle", "lenet5-middle")):
        remote.benchmark(name, "middle", 5.0, 4, at=100.0 * place)
    remote.ledger()
    results: list[helper.SyncResult] = []
    thread = threading.Thread(target=lambda: results.append(helper.sync(remote.spool)))
    thread.start()
    cursors = remote.root / "store/tracking"
    until(lambda: any(len(json.loads(p.read_text())["runs"]) >= 3 for p in cursors.glob("*.json")), 60)
    with server.down():
        killed = time.monotonic()
        thread.join()
        assert time.monotonic() - killed < 15
        (result,) = results
        assert result.away == "is away (the connection broke off)" and 3 <= result.trials_waiting < 8
        assert f"MLflow at {server.uri} is away (the connection broke off): {result.trials_waiting} trials" in (
            result.line or ""
        )
        again = time.monotonic()
        later = helper.sync(remote.spool)  # still away: quickly found out
        assert (later.away, later.trials_waiting) == ("is away (no connection)", result.trials_waiting)
        assert time.monotonic() - again < 8
    result = helper.sync(remote.spool)
    assert (result.trials_waiting, result.benchmarks_waiting, result.line) == (0, 0, None)
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
    """In the middle of the first run."""
    remote.benchmark("lenet5-hangs", "hangs", 1.0, 1)
    gate = Gate(server.uri, passes=12)
    with opened(gate) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        result = helper.sync(remote.spool, deadline_s=90)  # of which it takes what importing MLflow takes, and 2.5 s
        assert result.line == (
            f"MLflow at {uri} gives no answer within 2.5 s: "
            "1 trial and 1 benchmark wait in the spool; they are sent by the next stage"
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
        assert sent is not None and int(sent[1]) == result.sent == 8 - result.trials_waiting - result.benchmarks_waiting


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
            helper.replay(remote.spool)
        assert str(raised.value) == f"{line}: {left}"
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
        result = helper.sync(remote.spool)
        assert (result.sent, result.line) == (2, None)


def test_two_at_once_the_second_leaves_it_to_the_first(remote: Project) -> None:
    remote.trial("lenet5-busy", "busy", 0, epochs=2)
    with cursors.alone(cursors.Cursor.of(remote.spool, cursors.tracking_uri(remote.root))):
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

    with helper.follow(remote.spool, interval_s=0.2) as results:
        until(lambda: seen("RUNNING", 1), 30)
        remote.curve(key, range(1, 4), NOW)
        until(lambda: seen("RUNNING", 3), 10)
        remote.trial("lenet5-follow", "follow", 0, epochs=5)
    assert seen("FINISHED", 5)
    assert results[0].line is None and results[0].trials_waiting == 0


FOLLOWER = """
import pathlib, sys, time
from pipelines.tracking import helper
from pipelines.tracking.spool import Spool
with helper.follow(Spool.below(pathlib.Path(sys.argv[1]))):
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
    cursor = cursors.Cursor.of(remote.spool, cursors.tracking_uri(remote.root))
    with cursors.alone(cursor), pytest.raises(UserError, match="another process is sending"):
        helper.replay(remote.spool)


def test_the_default_store_is_made_by_the_first_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = Project(tmp_path)
    project.trial("lenet5-mnist", "mnist", 0, epochs=2)
    result = helper.sync(project.spool, deadline_s=60)
    assert (result.sent, result.line) == (2, None)
    assert sorted(p.name for p in tmp_path.iterdir() if "mlflow" in p.name) == ["mlflow.db"]
