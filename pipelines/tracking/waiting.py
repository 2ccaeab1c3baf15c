"""What is there to track: the run store and the stages' outputs, read as they lie on disk.

They are the spool. Nothing is written for MLflow's sake but a cursor, which remembers what one tracking server has got.
A file that is missing or damaged reads as absent; the latter costs a line that names it, and nothing else its tracking.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.command.progress import is_number
from pipelines.training import store

SILENT_S = 900.0  # a trial tells its progress every second; after this long without it is taken for dead
SEED = re.compile(r"seed-(\d+)")  # a trial's folder below runs/ and evaluations/; another beside it is not ours
MEASURED = ("loss", "train_error", "lr", "images_per_s")  # of an epoch; None or NaN, too
SHARES = ("precision", "recall", "f1")  # of a class in metrics.json, fractions or null
LATEST = 1e11  # unix seconds; MLflow takes milliseconds in 64 bits
Json = dict[str, Any]
T = TypeVar("T")


class ClassFigures(NamedTuple):
    """What evaluate reckoned of one class, per cent; None where there is nothing to divide by."""

    precision: float | None
    recall: float | None
    f1: float | None
    images: int


class DamagedError(Exception):
    """A file that is there and can't be tracked; its text is the line a user reads, and names the file."""


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
        path, size = self.folder / "confusion.csv", len(self.classes)
        try:
            rows = list(csv.reader(StringIO(_bytes(path).decode())))
            return np.array(rows, dtype=np.int64).reshape(size, size)
        except (OSError, ValueError, OverflowError, csv.Error):
            raise DamagedError(f"{path} is damaged; expected {size} rows of {size} counts") from None

    @cached_property
    def per_class(self) -> tuple[ClassFigures, ...]:
        """The figures of each class, as evaluate wrote them."""
        path, found = self.folder / "metrics.json", self.metrics.get("per_class")
        if not isinstance(found, list) or len(found) != len(self.classes):
            raise DamagedError(f"{path} is damaged: 'per_class' is no list of {len(self.classes)} classes")
        rows = []
        for place, row in enumerate(found, 1):
            what = f"class {place}'s "
            if not isinstance(row, dict):
                raise DamagedError(f"{path} is damaged: {what}figures are a {type(row).__name__}; expected an object")
            need(path, row, NUMBER, *(key for key in SHARES if row.get(key) is not None), what=what)
            need(path, row, WHOLE, "support", what=what)
            shares = {key: None if row.get(key) is None else round(100 * row[key], 2) for key in SHARES}
            rows.append(ClassFigures(**shares, images=row["support"]))
        return tuple(rows)

    @cached_property
    def digest(self) -> str:
        """Of all that is shown of it."""
        path = self.folder / "confusion.csv"
        try:
            matrix = _bytes(path)
        except OSError as error:
            raise DamagedError(f"{path} can't be read ({error.strerror})") from None
        return digest(self.metrics, self.classes, self.protocol, hashlib.sha256(matrix).hexdigest())

    @property
    def time(self) -> float:
        """When it was made, unix seconds."""
        return modified(self.folder / "metrics.json")


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
            return _time(self.result["finished"] - self.result["wall_s"])
        if self.curve:
            return _time(self.curve[0]["time"] - self.curve[0]["seconds"])
        return modified(self.folder / "trial.json") or modified(self.folder)

    @property
    def ended(self) -> float | None:
        """Unix seconds; None while it runs."""
        if self.result is not None:
            return float(self.result["finished"])
        if self.status == "RUNNING":
            return None
        told = (self.progress or {}).get("time")
        return float(told) if is_time(told) else time.time()


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark at one budget: its trials, their evaluations and its row of the ledger."""

    name: str
    budget: str
    dataset: str
    trials: tuple[Trial, ...]
    evaluations: tuple[Evaluation, ...] = ()
    summary_file: Path  # evaluations/<benchmark>/metrics.json
    summary: Json = field(default_factory=dict)
    ledger_file: Path
    row: Json | None = None

    @property
    def summary_time(self) -> float:
        """When its evaluations were summed up, unix seconds; 0 where they are not."""
        return modified(self.summary_file) if self.evaluations else 0.0

    @property
    def row_time(self) -> float:
        """When its row of the ledger was written, unix seconds; 0 where there is none."""
        return 0.0 if self.row is None else modified(self.ledger_file)

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
    problems: list[str] = []
    evaluations = _evaluations(spool, problems)
    by_key = {evaluation.key: evaluation for found in evaluations.values() for evaluation in found}
    trials = _trials(spool, by_key, problems)
    rows = _ledger(spool, problems)
    datasets = {(t.benchmark, t.budget): t.dataset for t in trials}
    # The ledger lists every benchmark there is: of those that never ran there is nothing to show.
    datasets |= {key: row["dataset"] for key, row in rows.items() if key in datasets or row.get("n")}
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
                summary_file=summary,
                summary=(_try(problems, load, summary) or {}) if evaluated else {},
                ledger_file=spool.report / "ledger.json",
                row=rows.get((name, budget)),
            )
        )
    return sorted(found, key=lambda b: (b.started, b.name)), problems


def _trials(spool: Spool, evaluations: Mapping[str, Evaluation], problems: list[str]) -> list[Trial]:
    """Each trial once: as the store has it, else as a stage collected it (and ``dvc pull`` may bring it)."""
    found: dict[str, Trial] = {}
    collected = [path for path in spool.runs.glob("*/seed-*/result.json") if SEED.fullmatch(path.parent.name)]
    for path in [*sorted(spool.store.glob("*/trial.json")), *sorted(collected)]:
        try:
            identity = load(path)
            if identity is not None:
                need(path, identity, TEXT, "key", "benchmark", "budget")
                if identity["key"] not in found and spool.wants(identity["benchmark"]):
                    found[identity["key"]] = _trial(path, identity, evaluations, problems)
        except DamagedError as error:
            problems.append(str(error))
    return sorted(found.values(), key=lambda t: (t.benchmark, t.budget, t.seed, t.started))


def _trial(path: Path, identity: Json, evaluations: Mapping[str, Evaluation], problems: list[str]) -> Trial:
    need(path, identity, WHOLE, "seed")
    need(path, identity, OBJECT, "config", *(["dataset"] if identity.get("dataset") else []))
    data = identity.get("dataset") or {"digest": identity.get("dataset_digest")}
    about = {"name": data.get("name") or identity["config"].get("dataset"), "digest": data.get("digest")}
    need(path, about, TEXT, "name", "digest", what="dataset's ")
    folder = path.parent
    return Trial(
        folder=folder,
        key=identity["key"],
        benchmark=identity["benchmark"],
        budget=identity["budget"],
        seed=identity["seed"],
        dataset=about["name"],
        dataset_digest=about["digest"],
        config=identity["config"],
        curve=tuple(_try(problems, _curve, folder / "curve.jsonl") or ()),
        progress=_try(problems, load, folder / "progress.json"),
        result=_try(problems, _result, folder / "result.json"),
        evaluation=evaluations.get(identity["key"]),
    )


def _result(path: Path) -> Json | None:
    found = load(path)
    if found is not None:
        need(path, found, TIME, "finished")
        need(path, found, NUMBER, "wall_s")
    return found


def _evaluations(spool: Spool, problems: list[str]) -> dict[str, list[Evaluation]]:
    found: dict[str, list[Evaluation]] = {}
    for path in sorted(spool.evaluations.glob("*/trials/seed-*/metrics.json")):
        name = path.parts[-4]
        evaluation = _try(problems, _evaluation, path) if spool.wants(name) else None
        if evaluation is not None:
            found.setdefault(name, []).append(evaluation)
    return {name: sorted(mine, key=lambda e: e.seed) for name, mine in found.items()}


def _evaluation(path: Path) -> Evaluation | None:
    seed, beside = SEED.fullmatch(path.parent.name), path.parents[2] / "classes.json"
    if seed is None:
        return None
    metrics, about = load(path), load(beside)
    if metrics is None or about is None or not os.path.exists(path.parent / "confusion.csv"):
        return None
    if "key" not in metrics:
        raise DamagedError(f"{path} has no 'key', so it can't be told which trial was evaluated")
    need(path, metrics, TEXT, "key")
    need(beside, about, TEXTS, "classes")
    return Evaluation(
        folder=path.parent,
        seed=int(seed[1]),
        key=metrics["key"],
        metrics=metrics,
        classes=tuple(about["classes"]),
        protocol=str(about.get("protocol", "single view")),
    )


def _ledger(spool: Spool, problems: list[str]) -> dict[tuple[str, str], Json]:
    path = spool.report / "ledger.json"
    found: dict[tuple[str, str], Json] = {}  # by benchmark and budget
    for place, row in enumerate(_try(problems, _rows, path) or [], 1):
        try:
            if not isinstance(row, dict):
                raise DamagedError(f"{path} is damaged: its row {place} is a {type(row).__name__}; expected an object")
            what = f"row {place}'s "
            need(path, row, TEXT, "benchmark", what=what)
            if row.get("budget") is not None and spool.wants(row["benchmark"]):  # it has none outside the suite
                need(path, row, TEXT, "dataset", "budget", what=what)
                need(path, row, OBJECT, "claim", what=what)
                found[row["benchmark"], row["budget"]] = row
        except DamagedError as error:
            problems.append(str(error))
    return found


def _rows(path: Path) -> list[Any] | None:
    found: list[Any] | None = _read(path, list, "a list")
    return found


def load(path: Path) -> Json | None:
    """The JSON object in ``path``, None when there is no such file. Raises DamagedError."""
    found: Json | None = _read(path, dict, "an object")
    return found


def _read(path: Path, kind: type, expected: str) -> Any:
    try:
        found = json.loads(_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DamagedError(f"{path} can't be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error}); expected JSON") from None
    if not isinstance(found, kind):
        raise DamagedError(f"{path} is damaged: it holds a {type(found).__name__}; expected {expected}")
    return found


def _bytes(path: Path) -> bytes:
    """The contents of a file. OSError also for what is no file: a FIFO would keep its reader waiting for ever."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "Is no file", str(path))
        return file.read()


def _try(problems: list[str], read: Callable[[Path], T | None], path: Path) -> T | None:
    """What **read** makes of the file, or None and a line in **problems**."""
    try:
        return read(path)
    except DamagedError as error:
        problems.append(str(error))
        return None


def need(path: Path, found: Json, kind: str, *keys: str, what: str = "") -> None:
    """Raise DamagedError unless each of the **keys** has a value of that kind."""
    for key in keys:
        if not KINDS[kind](found.get(key)):
            is_now = f"is {found[key]!r:.60}" if found.get(key) is not None else "is missing"
            raise DamagedError(f"{path} is damaged: {what}'{key}' {is_now}; expected {kind}")


def is_time(value: object) -> TypeGuard[float]:
    """Whether a value from JSON can be a time in unix seconds."""
    return is_number(value) and 0 <= value <= LATEST


def _time(reckoned: float) -> float:
    return min(max(float(reckoned), 0.0), LATEST)


TEXT, TEXTS, WHOLE, NUMBER, OBJECT = "a text", "a list of texts", "a whole number", "a number", "an object"
TIME, EPOCH = "a time in unix seconds", "a number above 0, the epochs done"
KINDS: Mapping[str, Callable[[Any], bool]] = {
    TEXT: lambda value: isinstance(value, str) and value != "",
    TEXTS: lambda value: isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value),
    WHOLE: lambda value: isinstance(value, int) and is_number(value),
    NUMBER: is_number,
    TIME: is_time,
    EPOCH: lambda value: is_number(value) and 0 < value < 1e12,
    OBJECT: lambda value: isinstance(value, dict),
}


def modified(path: Path) -> float:
    """When the file was written, unix seconds; 0 when there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _curve(path: Path) -> list[Json]:
    """The curve's lines; one without an end is still being written."""
    try:
        written = _bytes(path).decode().splitlines(keepends=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} can't be read ({error})") from None
    lines = []
    for place, text in enumerate((text for text in written if text.endswith("\n")), 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"{path} is damaged in line {place} ({error}); expected JSON") from None
        if not isinstance(line, dict):
            raise DamagedError(f"{path} is damaged: line {place} is a {type(line).__name__}; expected an object")
        what = f"line {place}'s "
        need(path, line, EPOCH, "epoch", what=what)
        need(path, line, TIME, "time", what=what)
        measured = [key for key in MEASURED if line.get(key) is not None and not isinstance(line[key], float)]
        need(path, line, NUMBER, "seconds", *measured, what=what)
        lines.append(line)
    return lines


def alive(progress: Mapping[str, Any]) -> bool:
    """Whether the process that wrote ``progress`` still trains, as far as can be told from here."""
    told, pid = progress.get("time"), progress.get("pid")
    if not is_number(told) or time.time() - float(told) > SILENT_S:
        return False
    if progress.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return True  # on another machine: its silence will tell
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def digest(*parts: Any) -> str:
    """A short digest of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
