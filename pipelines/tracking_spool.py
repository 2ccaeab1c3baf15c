"""What is there to track: the run store and the stages' outputs, read as they lie on disk.

They are the spool. Nothing is written for MLflow's sake but a cursor, which remembers what one tracking server has got.
A file that is missing, half written or damaged reads as absent: its own stage complains about it, tracking waits.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import store

SILENT_S = 900.0  # a trial tells its progress every second; after this long without it is taken for dead
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Spool:
    """Where the files are; ``benchmarks`` narrows it to those names."""

    project: Path  # holds mlflow.db and mlartifacts/ where no server is named
    store: Path
    runs: Path
    evaluations: Path
    report: Path
    benchmarks: frozenset[str] | None = None

    @classmethod
    def here(cls, only: Iterable[str] | None = None) -> Spool:
        """The spool of the working directory, with the run store where ``$RUN_STORE`` says."""
        return cls.below(Path.cwd(), only, run_store=store.default())

    @classmethod
    def below(cls, project: Path, only: Iterable[str] | None = None, *, run_store: Path | None = None) -> Spool:
        """The spool of the project in the directory **project**."""
        return cls(
            project=project,
            store=run_store or project / "store",
            runs=project / "runs",
            evaluations=project / "evaluations",
            report=project / "report",
            benchmarks=None if only is None else frozenset(only),
        )

    def wants(self, benchmark: str) -> bool:
        """Whether the benchmark is one of those asked for."""
        return self.benchmarks is None or benchmark in self.benchmarks

    def pack(self) -> Json:
        """As plain JSON, for another process."""
        paths = {name: str(getattr(self, name)) for name in ("project", "store", "runs", "evaluations", "report")}
        return {**paths, "benchmarks": None if self.benchmarks is None else sorted(self.benchmarks)}

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Spool:
        """The inverse of ``pack``."""
        chosen = packed["benchmarks"]
        paths = {name: Path(value) for name, value in packed.items() if name != "benchmarks"}
        return cls(**paths, benchmarks=None if chosen is None else frozenset(chosen))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One trial on the test split: ``evaluations/<benchmark>/trials/seed-<n>``."""

    folder: Path
    seed: int
    key: str  # of the trial that was evaluated
    metrics: Json
    classes: tuple[str, ...]
    protocol: str

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """The confusion matrix (C, C): rows actual, columns predicted."""
        rows = list(csv.reader(StringIO((self.folder / "confusion.csv").read_text())))
        return np.array(rows, dtype=np.int64).reshape(len(self.classes), len(self.classes))

    @cached_property
    def digest(self) -> str:
        """Of all that is shown of it."""
        matrix = (self.folder / "confusion.csv").read_bytes()
        return digest(self.metrics, self.classes, self.protocol, hashlib.sha256(matrix).hexdigest())

    @property
    def time(self) -> float:
        """When it was made, unix seconds."""
        return (self.folder / "metrics.json").stat().st_mtime


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One benchmark trained once from one seed, finished or under way."""

    folder: Path
    key: str
    benchmark: str
    budget: str
    seed: int
    dataset: str
    dataset_digest: str
    config: Json
    curve: tuple[Json, ...]
    progress: Json | None
    result: Json | None
    evaluation: Evaluation | None

    @property
    def status(self) -> str:
        """In MLflow's words: FINISHED, FAILED, RUNNING, or KILLED when nobody is at it any more."""
        if self.result is not None:
            return "FINISHED"
        if self.progress is None:
            return "RUNNING"
        if self.progress.get("state") == "failed":
            return "FAILED"
        return "RUNNING" if alive(self.progress) else "KILLED"

    @property
    def started(self) -> float:
        """Unix seconds, as near as the files tell."""
        if self.result is not None:
            return float(self.result["finished"] - self.result["wall_s"])
        if self.curve:
            return float(self.curve[0]["time"] - self.curve[0]["seconds"])
        return next((self.folder / n).stat().st_mtime for n in ("trial.json", ".") if (self.folder / n).exists())

    @property
    def ended(self) -> float | None:
        """Unix seconds; None while it runs."""
        if self.result is not None:
            return float(self.result["finished"])
        if self.status == "RUNNING":
            return None
        return float((self.progress or {}).get("time") or time.time())


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark at one budget: its trials, their evaluations and its row of the ledger."""

    name: str
    budget: str
    dataset: str
    trials: tuple[Trial, ...]
    evaluations: tuple[Evaluation, ...] = ()
    summary: Json = field(default_factory=dict)  # evaluations/<benchmark>/metrics.json
    summary_time: float = 0.0
    row: Json | None = None
    row_time: float = 0.0

    @property
    def status(self) -> str:
        """RUNNING while a trial runs; FINISHED with something to show; else what became of its trials."""
        states = {trial.status for trial in self.trials}
        if "RUNNING" in states:
            return "RUNNING"
        if self.row is not None or self.evaluations or not states or "FINISHED" in states:
            return "FINISHED"
        return "FAILED" if "FAILED" in states else "KILLED"

    @property
    def started(self) -> float:
        """When its first trial began, unix seconds."""
        return min([trial.started for trial in self.trials] or [self.row_time])

    @property
    def ended(self) -> float | None:
        """When the last thing known of it was made; None while a trial runs."""
        if self.status == "RUNNING":
            return None
        ends = [trial.ended or 0.0 for trial in self.trials]
        return max([*ends, self.summary_time, self.row_time])

    @property
    def evaluated(self) -> tuple[Trial, ...]:
        """The trials behind its evaluations: those of the configuration as it is now, by seed."""
        keys = {evaluation.key for evaluation in self.evaluations}
        return tuple(trial for trial in self.trials if trial.key in keys)


def read(spool: Spool) -> tuple[list[Benchmark], list[str]]:
    """Everything to track, benchmarks in the order of their first trial; and one line for each thing that can't be."""
    evaluations, problems = _evaluations(spool)
    trials = _trials(spool, {evaluation.key: evaluation for found in evaluations.values() for evaluation in found})
    rows, row_time = _ledger(spool)
    datasets = {(t.benchmark, t.budget): t.dataset for t in trials} | {key: row["dataset"] for key, row in rows.items()}
    found = []
    for (name, budget), dataset in datasets.items():
        mine = tuple(t for t in trials if (t.benchmark, t.budget) == (name, budget))
        keys = {t.key for t in mine}
        evaluated = tuple(e for e in evaluations.get(name, ()) if e.key in keys)
        summary = spool.evaluations / name / "metrics.json"
        found.append(
            Benchmark(
                name=name,
                budget=budget,
                dataset=dataset,
                trials=mine,
                evaluations=evaluated,
                summary=(load(summary) or {}) if evaluated else {},
                summary_time=summary.stat().st_mtime if evaluated and summary.exists() else 0.0,
                row=rows.get((name, budget)),
                row_time=row_time if (name, budget) in rows else 0.0,
            )
        )
    return sorted(found, key=lambda b: (b.started, b.name)), problems


def _trials(spool: Spool, evaluations: Mapping[str, Evaluation]) -> list[Trial]:
    """Each trial once: as the store has it, else as a stage collected it (and ``dvc pull`` may bring it)."""
    found: dict[str, Trial] = {}
    folders = [*sorted(spool.store.glob("*/trial.json")), *sorted(spool.runs.glob("*/seed-*/result.json"))]
    for path in folders:
        identity = load(path)
        if identity is None or identity.get("key") in found or not spool.wants(identity.get("benchmark", "")):
            continue
        trial = _trial(path.parent, identity, evaluations)
        if trial is not None:
            found[trial.key] = trial
    return sorted(found.values(), key=lambda t: (t.benchmark, t.budget, t.seed, t.started))


def _trial(folder: Path, identity: Json, evaluations: Mapping[str, Evaluation]) -> Trial | None:
    try:
        dataset = identity.get("dataset") or {"digest": identity["dataset_digest"]}
        return Trial(
            folder=folder,
            key=identity["key"],
            benchmark=identity["benchmark"],
            budget=identity["budget"],
            seed=identity["seed"],
            dataset=dataset.get("name") or identity["config"]["dataset"],
            dataset_digest=dataset["digest"],
            config=identity["config"],
            curve=tuple(_curve(folder / "curve.jsonl")),
            progress=load(folder / "progress.json"),
            result=load(folder / "result.json", "finished", "wall_s"),
            evaluation=evaluations.get(identity["key"]),
        )
    except (KeyError, TypeError, AttributeError):
        return None


def _evaluations(spool: Spool) -> tuple[dict[str, list[Evaluation]], list[str]]:
    found: dict[str, list[Evaluation]] = {}
    problems = []
    for path in sorted(spool.evaluations.glob("*/trials/seed-*/metrics.json")):
        name, metrics, about = path.parts[-4], load(path), load(path.parents[2] / "classes.json")
        if not spool.wants(name) or metrics is None or about is None or not (path.parent / "confusion.csv").exists():
            continue
        if "key" not in metrics:
            problems.append(f"{path} has no 'key', so it can't be told which trial was evaluated")
            continue
        found.setdefault(name, []).append(
            Evaluation(
                folder=path.parent,
                seed=int(path.parent.name.removeprefix("seed-")),
                key=metrics["key"],
                metrics=metrics,
                classes=tuple(about["classes"]),
                protocol=str(about.get("protocol", "single view")),
            )
        )
    return {name: sorted(mine, key=lambda e: e.seed) for name, mine in found.items()}, problems


def _ledger(spool: Spool) -> tuple[dict[tuple[str, str], Json], float]:
    path = spool.report / "ledger.json"
    try:
        rows = [row for row in json.loads(path.read_text()) if row["dataset"] and row["claim"].keys()]
        wanted = {(row["benchmark"], row["budget"]): row for row in rows if spool.wants(row["benchmark"])}
        return wanted, path.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, 0.0


def load(path: Path, *needed: str) -> Json | None:
    """The JSON object in ``path``, None when there is none to be read or one of the **needed** keys is missing."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= set(needed) else None


def _curve(path: Path) -> list[Json]:
    try:
        lines = [json.loads(text) for text in path.read_text().splitlines(keepends=True) if text.endswith("\n")]
        return [line for line in lines if {"epoch", "time", "seconds"} <= line.keys()]
    except (OSError, ValueError, AttributeError):
        return []


def alive(progress: Mapping[str, Any]) -> bool:
    """Whether the process that wrote ``progress`` still trains, as far as can be told from here."""
    if time.time() - float(progress.get("time", 0)) > SILENT_S:
        return False
    pid = progress.get("pid")
    if progress.get("host") != socket.gethostname() or not isinstance(pid, int):
        return True  # on another machine: its silence will tell
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def digest(*parts: Any) -> str:
    """A short digest of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
