"""What a trial and a benchmark look like in MLflow: names, params, tags, metrics, files. Knows nothing of a server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.results.explorer import Curve, Matrix, explorer_page
from pipelines.tracking import limits, waiting
from pipelines.tracking.artifacts import EXPLORER, LEDGER, matrix_files, table_tags
from pipelines.tracking.waiting import Benchmark, ClassFigures, DamagedError, Evaluation, Json, Spool, Trial, digest

FORMAT = 2  # raise it when what is drawn or written changes: every part is then sent again, over the old one
IDENTITY = "track_id"  # the tag by which a run is found again: trial:<key> or benchmark:<name>/<budget>
CURVE_METRICS = {
    "epoch": "train/epoch",  # passes over the images that the recipe trains on; the axis of our charts
    "loss": "train/loss",
    "train_error": "train/error",
    "lr": "train/lr",
    "images_per_s": "train/images_per_s",
}
STEPS_AN_EPOCH = 1000  # MLflow's steps are whole numbers, and a budget may end within an epoch
STEP = "thousandths of an epoch, which is one pass over the images that the recipe trains on"
TEST_METRICS = ("error", "accuracy", "top5_error", "single_view_error", "loss", "error_ci95_low", "error_ci95_high")
CLAIMED_ON = "claimed_on"  # the figures on the images of the claim, where those are not the whole test set


class Point(NamedTuple):
    """One value of one metric; **time** in unix seconds."""

    key: str
    value: float
    step: int
    time: float


def no_files() -> dict[str, bytes]:
    """For a part without any."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of what a run shows, sent together; **mark** changes when it has to be sent again."""

    name: str
    mark: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    points: Sequence[Point] = ()
    files: Callable[[], Mapping[str, bytes]] = no_files  # path below the run's artifacts: contents


@dataclass(frozen=True, kw_only=True)
class Record:
    """What becomes one run of MLflow."""

    identity: str
    experiment: str
    name: str
    parent: str | None  # identity of the run above it
    started: float
    status: str
    ended: float | None
    dataset_digest: str | None
    tags: Mapping[str, str]
    parts: tuple[Part, ...]

    @property
    def marks(self) -> dict[str, str]:
        """What a server that has got everything would have got."""
        return {**{part.name: part.mark for part in self.parts}, "status": self.status}


def gather(spool: Spool) -> tuple[list[Record], list[str]]:
    """All runs, each benchmark's right before its trials'; and one line for each file that can't be tracked."""
    benchmarks, problems = waiting.read(spool)
    found = records(benchmarks, problems)
    return found, list(dict.fromkeys(problems))  # one file may be behind several runs


def records(benchmarks: Iterable[Benchmark], problems: list[str]) -> list[Record]:
    """The runs of the benchmarks; what a damaged file would have given is a line in **problems** instead."""
    out = []
    for benchmark in benchmarks:
        out.append(benchmark_record(benchmark, problems))
        out += [trial_record(trial, problems) for trial in benchmark.trials]
    return out


def _part(file: Path | str, problems: list[str], build: Callable[[], Part]) -> list[Part]:
    """The part that **build** makes of the file; none, and a line in **problems**, when the file does not serve."""
    try:
        return [build()]
    except DamagedError as error:
        problems.append(str(error))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        problems.append(f"{file} is damaged ({type(error).__name__}: {error})")
    return []


def step(epochs: float) -> int:
    """MLflow's step of a point of a curve after so many epochs."""
    return round(STEPS_AN_EPOCH * epochs)


def trial_record(trial: Trial, problems: list[str]) -> Record:
    """The child run of one trial, restarts included."""
    parts = [_trial_head(trial)]
    if trial.curve:
        points = [
            Point(name, float(line[key]), step(line["epoch"]), float(line["time"]))
            for line in trial.curve
            for key, name in CURVE_METRICS.items()
            if line.get(key) is not None
        ]
        parts.append(Part(name="curve", mark=str(max(line["epoch"] for line in trial.curve)), points=points))
    result, evaluation = trial.result, trial.evaluation
    if result is not None:
        parts += _part(trial.folder / "result.json", problems, lambda: _trial_result(trial, result))
    if evaluation is not None:
        parts += _part(evaluation.folder / "metrics.json", problems, lambda: _trial_evaluation(trial, evaluation))
    return Record(
        identity=_identity("trial", trial.key),
        experiment=limits.name(trial.dataset, limits.EXPERIMENT),
        name=limits.name(f"{trial.benchmark} seed {trial.seed}"),
        parent=_identity("benchmark", f"{trial.benchmark}/{trial.budget}"),
        started=trial.started,
        status=trial.status,
        ended=trial.ended,
        dataset_digest=trial.dataset_digest,
        tags={
            "kind": "trial",
            "mlflow.source.name": f"python -m pipelines.trial {trial.benchmark} --seed {trial.seed}",
            "mlflow.source.type": "LOCAL",
        },
        parts=tuple(parts),
    )


def _identity(kind: str, what: str) -> str:
    return limits.name(f"{kind}:{what}", limits.TAG)


def _trial_head(trial: Trial) -> Part:
    params = {"benchmark": trial.benchmark, "budget": trial.budget, "seed": str(trial.seed), **flatten(trial.config)}
    tags = {"trial_key": trial.key, "dataset_digest": trial.dataset_digest, "step": STEP}
    if trial.progress is not None:
        tags["host"] = str(trial.progress.get("host"))
    return Part(name="head", mark=digest(FORMAT, params, tags), params=params, tags=tags)


def _trial_result(trial: Trial, result: Json) -> Part:
    """Provenance as tags, cost as metrics."""
    tags = {
        key: text(result.get(key))
        for key in ("hardware", "device", "workers", "resumed", "git_commit", "git_dirty")
        if result.get(key) is not None
    }
    tags["checkpoint"] = str(trial.folder / "weights.pt")
    tags |= {f"version.{name}": str(version) for name, version in result.get("versions", {}).items() if version}
    if result.get("git_commit"):
        tags["mlflow.source.git.commit"] = text(result["git_commit"])
    time = float(result["finished"])
    named = {
        "cost/wall_s": "wall_s",
        "cost/device_s": "device_s",
        "cost/images_per_s": "images_per_s",
        "cost/images_seen": "images_seen",
        "cost/parameters": "parameters",
    }
    points = [Point(name, figure(result[key]), 0, time) for name, key in named.items() if result.get(key) is not None]
    return Part(name="result", mark=digest(FORMAT, result, tags), tags=tags, points=points)


def _trial_evaluation(trial: Trial, evaluation: Evaluation) -> Part:
    def files() -> dict[str, bytes]:
        facts = {
            "test error": percent(evaluation.metrics.get("error")),
            **_claimed_facts(evaluation.metrics),
            "protocol": evaluation.protocol,
            "budget": trial.budget,
            "trial": trial.key,
        }
        title = f"{trial.benchmark}, seed {trial.seed}"
        page = explorer_page(
            title=title,
            facts=facts,
            classes=evaluation.classes,
            matrices=[_matrix(evaluation)],
            curves=[_curve(trial)],
        )
        subtitle = f"test error {percent(evaluation.metrics.get('error'))}, {evaluation.protocol}; cells: % of row"
        return {
            **matrix_files(
                _identity("trial", trial.key),
                evaluation.counts,
                evaluation.classes,
                evaluation.per_class,
                title,
                subtitle,
            ),
            EXPLORER: page.encode(errors="backslashreplace"),
        }

    return Part(
        name="evaluation",
        mark=digest(FORMAT, evaluation.digest, trial.curve),
        tags=table_tags(),
        points=_test_points(evaluation.metrics, evaluation.time),
        files=files,
    )


def _claimed_facts(metrics: Json) -> dict[str, str]:
    found = metrics.get(CLAIMED_ON)
    return {"error on the images of the claim": percent(found.get("error"))} if found else {}


def benchmark_record(benchmark: Benchmark, problems: list[str]) -> Record:
    """The parent run of a benchmark at one budget."""
    params = {"benchmark": benchmark.name, "budget": benchmark.budget, "dataset": benchmark.dataset}
    parts = [Part(name="head", mark=digest(FORMAT, params), params=params)]
    row, told, ledger = benchmark.row, benchmark, []
    if row is not None:
        where = f"{benchmark.ledger_file}, row of {benchmark.name},"
        ledger = _part(where, problems, lambda: _benchmark_ledger(row, benchmark.row_time))
        told = benchmark if ledger else replace(benchmark, row=None)
    if benchmark.evaluations:
        parts += _part(benchmark.summary_file, problems, lambda: _benchmark_evaluation(told))
    parts += ledger
    return Record(
        identity=_identity("benchmark", f"{benchmark.name}/{benchmark.budget}"),
        experiment=limits.name(benchmark.dataset, limits.EXPERIMENT),
        name=limits.name(f"{benchmark.name} ({benchmark.budget})"),
        parent=None,
        started=benchmark.started,
        status=benchmark.status,
        ended=benchmark.ended,
        dataset_digest=None,
        tags={"kind": "benchmark", "mlflow.source.name": "dvc repro", "mlflow.source.type": "LOCAL"},
        parts=tuple(parts),
    )


def _benchmark_evaluation(benchmark: Benchmark) -> Part:
    """The aggregate over seeds: figure, tables, and an explorer in which each seed can be chosen."""
    evaluations, row = benchmark.evaluations, benchmark.row or {}
    classes, n = evaluations[0].classes, len(evaluations)

    def files() -> dict[str, bytes]:
        total = np.sum([evaluation.counts for evaluation in evaluations], axis=0)
        error = 100 * (1 - float(np.trace(total)) / max(float(total.sum()), 1))
        seeds, figures = f"{n} seed{'s' if n > 1 else ''}", mean_figures([one.per_class for one in evaluations])
        subtitle = f"test error {percent(error)}, {seeds}, {evaluations[0].protocol}; cells: % of row"
        page = explorer_page(
            title=benchmark.name,
            facts={**(_row_facts(row) or {"mean test error": percent(error)}), "protocol": evaluations[0].protocol},
            classes=classes,
            matrices=[
                *([Matrix(name=f"all {seeds}", counts=total, figures=figures)] if n > 1 else []),
                *map(_matrix, evaluations),
            ],
            curves=[_curve(trial) for trial in benchmark.evaluated],
        )
        identity = _identity("benchmark", f"{benchmark.name}/{benchmark.budget}")
        return {
            **matrix_files(identity, total, classes, figures, benchmark.name, subtitle),
            EXPLORER: page.encode(errors="backslashreplace"),
        }

    shown = [[evaluation.seed, evaluation.digest] for evaluation in evaluations]
    curves = [trial.curve for trial in benchmark.evaluated]
    return Part(
        name="evaluation",
        mark=digest(FORMAT, shown, curves, benchmark.summary, _row_facts(row)),
        tags=table_tags(),
        points=_test_points(benchmark.summary, benchmark.summary_time),
        files=files,
    )


def _benchmark_ledger(row: Json, time: float) -> Part:
    """The row of the ledger: metrics in the claim's own unit, verdict as a tag, the whole as JSON and in words."""
    claim, interval = row["claim"], row.get("ci95") or (None, None)
    tested = row.get("test_set") or {}
    around = tested.get("ci95") or (None, None)
    values = {
        "ledger/mean": row.get("mean"),
        "ledger/ci95_low": interval[0],
        "ledger/ci95_high": interval[1],
        "ledger/test_set_mean": tested.get("mean"),
        "ledger/test_set_ci95_low": around[0],
        "ledger/test_set_ci95_high": around[1],
        "ledger/seeds": row.get("n"),
        "ledger/claim": claim.get("value"),
        "ledger/claim_margin": row.get("margin"),
    }
    points = [Point(key, tidy(value), 0, time) for key, value in values.items() if value is not None]
    tags = {
        "verdict": text(row.get("verdict")),
        "metric": text(row.get("metric")),
        "claim": f"{claim.get('value')} {claim.get('unit', '%')} {row.get('metric')}",
        "claim_source": text(claim.get("source")),
        "mlflow.note.content": note(row),
    }
    tags |= {key: text(row[key]) for key in ("label", "hardware", "git_commit") if row.get(key)}
    if row.get("git_commit"):
        tags["mlflow.source.git.commit"] = text(row["git_commit"])
    return Part(
        name="ledger",
        mark=digest(FORMAT, row),
        tags=tags,
        points=points,
        files=lambda: {LEDGER: (json.dumps(row, indent=1, sort_keys=True) + "\n").encode()},
    )


def note(row: Json) -> str:
    """The run's description, in Markdown: the verdict and what it rests on."""
    claim, metric = row["claim"], row.get("metric", "error")
    mean = "not measured" if row.get("mean") is None else f"{_figure(row)}, {row.get('n')} seeds"
    tested = row.get("test_set")
    lines = [
        f"**{_verdict(row)}**",
        "",
        "| | |",
        "|---|---|",
        f"| our {metric}{', on the images of the claim' if tested else ''} | {mean} |",
        *([f"| our {metric} on the whole test set | {_figure(tested)} |"] if tested else []),
        f"| claimed {metric} | {claim.get('value')} {claim.get('unit', '%')} |",
        f"| source | {_cell(claim.get('source'))} |",
        f"| protocol | {_cell(claim.get('protocol'))} |",
        f"| budget | {row.get('budget')}: {row.get('epochs')} epochs, published {row.get('paper_epochs')} |",
        f"| hardware | {_cell(row.get('hardware'))} |",
    ]
    seeds = ", ".join(f"{seed}: {value:.2f}" for seed, value in (row.get("per_seed") or {}).items())
    lines.append(f"| per seed, % | {seeds} |")
    if row.get("at_chance"):
        lines += ["", f"{len(row['at_chance'])} of {row.get('n')} seeds end no better on the test set than guessing."]
    if row.get("difference"):
        lines += ["", f"The images of the claim are not the whole test set. {row['difference']}"]
    if row.get("deviations"):
        lines += ["", "Deviations from the source:", "", *(f"- {deviation}" for deviation in row["deviations"])]
    if row.get("remarks"):
        lines += ["", f"Tried, and left to try: {row['remarks']}"]
    return "\n".join(lines)


def _cell(words: object) -> str:
    """Within a table of Markdown."""
    return " ".join(str(words).split()).replace("|", "\\|")


def _verdict(row: Json) -> str:
    """The verdict, and what it must not be read without."""
    return text(row.get("verdict")) + (f" ({row['label']})" if row.get("label") else "")


def _figure(found: Json) -> str:
    """Mean and interval of a ledger row, or of its test set."""
    interval = found.get("ci95")
    spread = f", 95 % interval {interval[0]:.2f} to {interval[1]:.2f} %" if interval else ""
    return f"{found['mean']:.2f} %{spread}"


def _row_facts(row: Json) -> dict[str, str]:
    if not row:
        return {}
    interval = row.get("ci95")
    facts = {"verdict": _verdict(row), "claimed": f"{row['claim'].get('value')} % {row.get('metric')}"}
    if row.get("mean") is not None:
        spread = f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
        facts["measured"] = f"{row['mean']:.2f} % {row.get('metric')}{spread}"
        if row.get("test_set"):
            facts["measured"] += ", on the images of the claim"
            facts["on the test set"] = f"{row['test_set']['mean']:.2f} % {row.get('metric')}"
    return facts


def _matrix(evaluation: Evaluation) -> Matrix:
    return Matrix(name=f"seed {evaluation.seed}", counts=evaluation.counts, figures=evaluation.per_class)


def mean_figures(seeds: Sequence[Sequence[ClassFigures]]) -> list[ClassFigures]:
    """The figures of each class, mean over seeds; None where a seed has none."""

    def mean(values: list[float | None]) -> float | None:
        found = [value for value in values if value is not None]
        return round(sum(found) / len(found), 2) if len(found) == len(values) else None

    return [
        ClassFigures(
            precision=mean([one.precision for one in same]),
            recall=mean([one.recall for one in same]),
            f1=mean([one.f1 for one in same]),
            images=same[0].images,
        )
        for same in zip(*seeds, strict=True)
    ]


def _curve(trial: Trial) -> Curve:
    return Curve(
        name=f"seed {trial.seed}",
        epochs=[line["epoch"] for line in trial.curve],
        loss=[line.get("loss") for line in trial.curve],
        error=[line.get("train_error") for line in trial.curve],
    )


def _test_points(metrics: Json, time: float) -> list[Point]:
    """The figures of a trial or a benchmark, and those on the images of the claim, which the latter names flatly."""
    claimed = metrics.get(CLAIMED_ON) or {key: metrics.get(f"{CLAIMED_ON}_{key}") for key in TEST_METRICS}
    named = {f"test/{key}": metrics.get(key, metrics.get(f"test_{key}")) for key in TEST_METRICS}
    named |= {f"{CLAIMED_ON}/{key}": claimed.get(key) for key in TEST_METRICS}
    return [Point(name, tidy(value), 0, time) for name, value in named.items() if value is not None]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``recipe.optimiser.lr``; lists and empty mappings as compact JSON, None as an empty text."""
    out: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = text(value)
    return out


def text(value: Any) -> str:
    """A value as a param or tag."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def tidy(value: float) -> float:
    """A figure to four decimals, which no table of MLflow's has to cut off; test sets give no more."""
    return round(figure(value), 4)


def figure(value: Any) -> float:
    """A number from JSON; TypeError for what is none, a text of digits among it."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{value!r:.60} is no number")
    return float(value)


def percent(value: float | None) -> str:
    """A share given in per cent."""
    return "not measured" if value is None else f"{value:.2f} %"
