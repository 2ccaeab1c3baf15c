"""Trials, evaluations and ledger rows to track, read from the run store and the stages' outputs.

These files are the spool: nothing else is written for MLflow but the cursor of each server. A missing or damaged file
counts as absent; a damaged file is a line in ``problems`` and holds back nothing else.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil

from pipelines.command.errors import UserError
from pipelines.command.files import MissingError, read_json, read_list
from pipelines.command.progress import is_number
from pipelines.config.schema import convert
from pipelines.config.values import Text
from pipelines.results import reader
from pipelines.results.evidence import COMMITTED
from pipelines.results.reader import LATEST, CurveLine, Identity, Result, Trial
from pipelines.results.rows import LedgerRow
from pipelines.training import store

SILENT_S = 900.0  # without a report: such a trial counts as ended
Found = TypeVar("Found")
Evaluations = dict[tuple[str, str], Trial]  # by benchmark and key of the trial


@dataclass(frozen=True, kw_only=True)
class Spool:
    """Where the files are."""

    project: Path  # holds runs/, evaluations/ and report/; mlflow.db and mlartifacts/ where no server is named
    store: Path

    @classmethod
    def here(cls) -> Spool:
        """The spool of the working directory, with the run store that ``$RUN_STORE`` names."""
        return cls(project=Path.cwd(), store=store.default())


@dataclass(frozen=True, kw_only=True)
class SpooledTrial:
    """One benchmark trained once from one seed, finished or under way."""

    folder: Path
    key: str
    benchmark: str
    trained_as: str  # the benchmark that trained it; others may share its weights
    budget: str
    seed: int
    dataset: str
    dataset_digest: str
    config: dict[str, Any]
    curve: list[CurveLine]
    progress: dict[str, Any] | None
    result: Result | None
    evaluation: Trial | None = None

    @property
    def status(self) -> str:
        """MLflow's status: FINISHED, FAILED, RUNNING, or KILLED when the process is gone."""
        if self.result is not None:
            return "FINISHED"
        begun = modified(self.folder / "trial.json")  # written anew where a training resumes
        if self.progress is None or begun > modified(self.folder / "progress.json"):
            return "RUNNING" if time.time() - begun <= SILENT_S else "KILLED"  # it reads data, and fits transforms
        if self.progress.get("state") == "failed":
            return "FAILED"
        return "RUNNING" if alive(self.progress) else "KILLED"

    @property
    def started(self) -> float:
        """Unix seconds, as precisely as the files allow."""
        if self.result is not None:
            return max(self.result.finished - self.result.wall_s, 0.0)
        if self.curve:
            return max(self.curve[0].time - self.curve[0].seconds, 0.0)
        return modified(self.folder / "trial.json") or modified(self.folder)

    @property
    def ended(self) -> float | None:
        """Unix seconds; None while it runs."""
        if self.result is not None:
            return self.result.finished
        if self.status == "RUNNING":
            return None
        last = (self.progress or {}).get("time")
        if is_number(last) and 0 <= last <= LATEST:
            return float(last)
        return self.curve[-1].time if self.curve else self.started


@dataclass(frozen=True, kw_only=True)
class SpooledBenchmark:
    """A benchmark at one budget: its trials, their evaluations and its row of the ledger."""

    name: str
    budget: str
    dataset: str
    trials: tuple[SpooledTrial, ...]
    row: LedgerRow | None
    row_time: float  # when the row was written, unix seconds; 0 without one

    @property
    def evaluations(self) -> tuple[Trial, ...]:
        """The evaluations of its trials by seed; they are of the current configuration."""
        return tuple(trial.evaluation for trial in self.trials if trial.evaluation)

    @property
    def evaluated_time(self) -> float:
        """When the last of its evaluations was written, unix seconds; 0 without one."""
        return max((modified(evaluation.folder / "metrics.json") for evaluation in self.evaluations), default=0.0)

    @property
    def status(self) -> str:
        """RUNNING while a trial runs; FINISHED with any result; otherwise FAILED or KILLED like its trials."""
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
        """When the last of its files was written, unix seconds; None while a trial runs."""
        if self.status == "RUNNING":
            return None
        return max([*(trial.ended or 0.0 for trial in self.trials), self.evaluated_time, self.row_time])


def read(spool: Spool) -> tuple[list[SpooledBenchmark], list[str]]:
    """Everything to track, benchmarks in the order of their first trial; and a line for each unreadable file."""
    problems: list[str] = []
    evaluations, trials = _evaluations(spool, problems), _trials(spool, problems)
    path = spool.project / "report/ledger.json"
    rows = _try(problems, _ledger, path, problems) or {}
    # The ledger lists every benchmark; those that never ran have nothing to show. It qualifies the name of a subset.
    datasets = {key: row.dataset for key, row in rows.items() if row.n}
    datasets |= {(t.benchmark, t.budget): t.dataset for t in trials}
    benchmarks = []
    for (name, budget), dataset in datasets.items():
        own = _evaluated(name, [t for t in trials if (t.benchmark, t.budget) == (name, budget)], evaluations)
        row = rows.get((name, budget))
        at = modified(path) if row else 0.0
        benchmarks.append(SpooledBenchmark(name=name, budget=budget, dataset=dataset, trials=own, row=row, row_time=at))
    return sorted(benchmarks, key=lambda b: (b.started, b.name)), problems


def _trials(spool: Spool, problems: list[str]) -> list[SpooledTrial]:
    """Each trial once a benchmark: from the store, else from runs/, where a stage or ``dvc pull`` put it."""
    trials: dict[tuple[str, str], SpooledTrial] = {}
    collected = [path for path in (spool.project / reader.RUNS).glob("*/seed-*/result.json") if _of_seed(path)]
    for path in [*sorted(spool.store.glob("*/trial.json")), *sorted(collected)]:
        identity = _try(problems, reader.read, Identity, path)
        if identity is None:
            continue
        name = identity.benchmark if path.name == "trial.json" else path.parents[1].name
        if (name, identity.key) not in trials:
            trial = _try(problems, _trial, path, name, identity, problems)
            trials |= {(name, trial.key): trial} if trial else {}
    return sorted(trials.values(), key=lambda t: (t.benchmark, t.budget, t.seed, t.started))


def _evaluated(name: str, trials: list[SpooledTrial], evaluations: Evaluations) -> tuple[SpooledTrial, ...]:
    """The trials with their evaluations as the benchmark **name**, or else as the only one that was evaluated.

    Rows may share weights; the store names the row that trained them, and another may be the only one evaluated.
    """
    keys = {trial.key for trial in trials}
    rows = {row for row, key in evaluations if key in keys}
    row = name if name in rows or len(rows) != 1 else rows.pop()
    pairs = [(trial, evaluations.get((row, trial.key))) for trial in trials]
    return tuple(replace(t, evaluation=made and replace(made, curve=t.curve, result=t.result)) for t, made in pairs)


def _trial(path: Path, name: str, identity: Identity, problems: list[str]) -> SpooledTrial:
    named: Mapping[str, Any] = identity.dataset or {}
    dataset = convert(Text, named.get("name", identity.config.get("dataset")), f"{path}: dataset.name", strict=False)
    digest = convert(Text, named.get("digest", identity.dataset_digest), f"{path}: dataset.digest", strict=False)
    return SpooledTrial(
        **vars(identity) | {"benchmark": name, "dataset": dataset, "dataset_digest": digest},
        folder=path.parent,
        trained_as=identity.benchmark,
        curve=_try(problems, reader.read_curve, path.parent / "curve.jsonl") or [],
        progress=_try(problems, read_json, path.parent / "progress.json"),
        result=_try(problems, lambda: reader.read_result(path.parent, weights=False)),
    )


def _of_seed(path: Path) -> bool:
    """Whether a file lies in a trial's folder: ``seed-0.bak`` is a copy of one."""
    return path.parent.name.removeprefix("seed-").isdecimal()


def _evaluations(spool: Spool, problems: list[str]) -> Evaluations:
    paths = sorted(filter(_of_seed, (spool.project / reader.EVALUATIONS).glob("*/trials/seed-*/metrics.json")))
    trials = [_try(problems, reader.read_evaluation, path.parent) for path in paths]
    return {(trial.folder.parents[1].name, trial.metrics.key): trial for trial in trials if trial}


def _ledger(path: Path, problems: list[str]) -> dict[tuple[str, str], LedgerRow]:
    """The rows of this checkout by benchmark and budget; committed evidence was tracked where it ran."""
    places = {f"{path} row {place}": row for place, row in enumerate(read_list(path), 1) if _own(row)}
    rows = [_try(problems, reader.parsed, LedgerRow, row, place) for place, row in places.items()]
    return {(row.benchmark, row.budget): row for row in rows if row and row.budget}


def _own(row: Any) -> bool:
    """Whether a row may be of this checkout's own runs: others are not tracked, whatever is in them."""
    return not isinstance(row, dict) or (row.get("budget") is not None and row.get("origin") != COMMITTED)


def _try(problems: list[str], read: Callable[..., Found], *arguments: Any) -> Found | None:
    """The result of **read**; None where a file is missing or damaged, the latter with a line in **problems**."""
    try:
        return read(*arguments)
    except MissingError:
        return None
    except UserError as error:
        problems.append(str(error))
        return None


def modified(path: Path) -> float:
    """When the file was written, unix seconds; 0 when there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def alive(progress: Mapping[str, Any]) -> bool:
    """Whether the process that wrote ``progress`` still trains, as far as this machine can tell."""
    last, pid = progress.get("time"), progress.get("pid")
    if not is_number(last) or time.time() - float(last) > SILENT_S:
        return False
    if progress.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return True  # on another machine: silence will end it
    return pid < 2**31 and psutil.pid_exists(pid)  # larger ids do not exist
