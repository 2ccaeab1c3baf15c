"""Trials and benchmarks as runs of MLflow: names, params, tags, metrics, files. No server is asked here."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from io import StringIO
from typing import Any

from pipelines.command.files import MissingError
from pipelines.config.values import plain
from pipelines.results import arrays, explorer, reader, verdicts, words
from pipelines.results.figures import FIGURES
from pipelines.results.page.html import render
from pipelines.results.reader import Metrics, Outcome, Result, Trial, per_class
from pipelines.results.rows import DIGITS, LedgerRow, Summary, claimed_error
from pipelines.results.words import figure, over_seeds, stuck
from pipelines.tracking import limits, spool
from pipelines.tracking.cursors import MakeFiles, Point, RunRecord, mark_of
from pipelines.tracking.spool import Spool, SpooledBenchmark, SpooledTrial, modified

FORMAT = 7  # raise it with a change of figures or texts: each run is then sent again, over the old one
IDENTITY_TAG = "track_id"  # the tag of a run: trial:<key>[/<name>] or benchmark:<name>/<budget>
LONGEST_PROBLEM = 400  # characters, of a problem with a file
TEST_ERROR = "test error in %"
EXPLORER, LEDGER, CLASSES = "explorer.html", "ledger.json", "per_class.csv"
CURVE_METRICS = ("loss", "train_error", "lr", "images_per_s", "epoch")
REACHED = "train/epoch"  # a run with this point has the whole line of the curve
# MLflow's steps are whole numbers and a budget may end within an epoch; few data sets have more than a million images.
STEPS_AN_EPOCH = 1_000_000
STEP = "millionths of an epoch, which is one pass over the images that the recipe trains on"
TEST_METRICS = ("error", "accuracy", "top5_error", "single_view_error", "loss")
COST = ("wall_s", "device_s", "images_per_s", "images_seen", "parameters")
PROVENANCE = ("hardware", "device", "cuda_graph", "workers", "resumed", "git_commit", "git_dirty")


def all_runs(where: Spool) -> tuple[list[RunRecord], list[str]]:
    """All runs, each benchmark before its trials; and a line for each file that can't be tracked."""
    runs, (benchmarks, problems) = [], spool.read(where)
    for benchmark in benchmarks:
        runs += [benchmark_record(benchmark), *(trial_record(trial, benchmark) for trial in benchmark.trials)]
    lines = [limits.name(problem, LONGEST_PROBLEM) for problem in problems]
    return runs, list(dict.fromkeys(lines))  # several runs may share a file


def step(epochs: float) -> int:
    """MLflow's step after so many epochs."""
    return round(STEPS_AN_EPOCH * epochs)


def trial_record(trial: SpooledTrial, benchmark: SpooledBenchmark) -> RunRecord:
    """The child run of one trial, restarts included."""
    params = {"benchmark": trial.benchmark, "budget": trial.budget, "seed": str(trial.seed), **flatten(trial.config)}
    tags = {
        "kind": "trial",
        "mlflow.source.name": f"python -m pipelines.trial {trial.benchmark} --seeds {trial.seed}",
        "mlflow.source.type": "LOCAL",
        "trial_key": trial.key,
        "dataset_digest": trial.dataset_digest,
        "step": STEP,
    }
    if trial.progress is not None:
        tags["host"] = str(trial.progress.get("host"))
    points: list[Point] = []
    files: list[MakeFiles] = []
    if trial.result is not None:
        tags |= _provenance(trial, trial.result)
        costs = {f"cost/{key}": getattr(trial.result, key) for key in COST}
        points += _points(costs, trial.result.finished)
    if (evaluation := trial.evaluation) is not None:
        tags |= {"stuck_at_chance": "true"} if evaluation.at_chance else {}
        points += _points(_trial_figures(evaluation.metrics), modified(evaluation.folder / "metrics.json"))
        title = f"{trial.benchmark}, seed {trial.seed}"
        facts = {TEST_ERROR: f"{evaluation.metrics.error:.2f}"}
        if on := evaluation.metrics.claimed_on:
            facts["error in % on the images of the claim"] = f"{on.error:.2f}"
        facts |= {"budget": trial.budget, "trial": trial.key}
        files = [partial(_files, title, facts[TEST_ERROR], facts, benchmark, (evaluation,))]
    own = trial.benchmark == trial.trained_as  # otherwise another row has the same weights
    return RunRecord(
        identity=limits.name(f"trial:{trial.key}" + ("" if own else f"/{trial.benchmark}"), limits.TAG),
        experiment=limits.name(trial.dataset, limits.EXPERIMENT),
        name=limits.name(f"{trial.benchmark} seed {trial.seed}"),
        parent=_identity(benchmark),
        started=trial.started,
        status=trial.status,
        ended=trial.ended,
        params=params,
        tags=tags,
        points=points,
        curve=_curve(trial),
        files=files,
        mark=mark_of(
            *(FORMAT, params, tags, trial.status, len(trial.curve)),
            *(trial.result, _files_digest(trial.evaluation), _claimed(benchmark)),
        ),
    )


def _identity(benchmark: SpooledBenchmark) -> str:
    return limits.name(f"benchmark:{benchmark.name}/{benchmark.budget}", limits.TAG)


def _curve(trial: SpooledTrial) -> list[Point]:
    return [
        Point(f"train/{key.removeprefix('train_')}", float(getattr(line, key)), step(line.epoch), line.time)
        for line in trial.curve
        for key in CURVE_METRICS
        if getattr(line, key) is not None
    ]


def _provenance(trial: SpooledTrial, result: Result) -> dict[str, str]:
    tags = {key: text(getattr(result, key)) for key in PROVENANCE if getattr(result, key) is not None}
    tags["checkpoint"] = str(trial.folder / "weights.pt")
    tags |= {f"version.{name}": str(version) for name, version in result.versions.items() if version}
    return tags | ({"mlflow.source.git.commit": result.commit} if result.git_commit else {})


def _files_digest(of: Trial | None) -> str:
    """A digest of all that the files of a run show of a trial; of nothing where it is not evaluated."""
    return mark_of(of and [of.seed, of.curve, of.metrics, of.confusion.tolist(), vars(of.about)])


def benchmark_record(benchmark: SpooledBenchmark) -> RunRecord:
    """The parent run of a benchmark at one budget: all seeds together, and the row of the ledger."""
    params = {"benchmark": benchmark.name, "budget": benchmark.budget, "dataset": benchmark.dataset}
    tags = {"kind": "benchmark", "mlflow.source.name": "dvc repro", "mlflow.source.type": "LOCAL"}
    points: list[Point] = []
    files: list[MakeFiles] = []
    facts: dict[str, str] = {}
    if (row := benchmark.row) is not None:
        tags |= _row_tags(row)
        points += _points(_row_figures(row), benchmark.row_time)
        facts = {"verdict": f"{row.verdict} ({row.label})" if row.label else row.verdict, **_row_facts(row)}
        files.append(lambda: {LEDGER: (json.dumps(plain(row), indent=1, sort_keys=True) + "\n").encode()})
    if benchmark.evaluations:
        points += _points(_mean_figures(benchmark.evaluations), benchmark.evaluated_time)
        errors = over_seeds(Summary.of({str(trial.seed): trial.metrics.error for trial in benchmark.evaluations}))
        facts = facts or {TEST_ERROR: errors}
        files.append(partial(_files, benchmark.name, errors, facts, benchmark, benchmark.evaluations))
    return RunRecord(
        identity=_identity(benchmark),
        experiment=limits.name(benchmark.dataset, limits.EXPERIMENT),
        name=limits.name(f"{benchmark.name} ({benchmark.budget})"),
        started=benchmark.started,
        status=benchmark.status,
        ended=benchmark.ended,
        params=params,
        tags=tags,
        points=points,
        files=files,
        mark=mark_of(FORMAT, params, tags, benchmark.status, row, [*map(_files_digest, benchmark.evaluations)]),
    )


def _files(
    title: str, errors: str, facts: Mapping[str, str], benchmark: SpooledBenchmark, trials: tuple[Trial, ...]
) -> dict[str, bytes]:
    """The explorer, the figures and the table of the classes, over **trials** with these **errors** in %."""
    outcome = _outcome(benchmark, trials)
    page = explorer.artifact(
        title=title, facts={**facts, "protocol": outcome.protocol}, outcome=outcome, claimed_error=_claimed(benchmark)
    )
    subtitle = f"{TEST_ERROR}: {errors}, {outcome.protocol}; cells: % of row"
    drawn = {name: draw(outcome, title=title, subtitle=subtitle) for name, draw in FIGURES.items()}
    return {
        EXPLORER: page.encode(errors="backslashreplace"),
        CLASSES: _classes(outcome),
        **{f"{name}.png": picture for name, picture in drawn.items() if picture is not None},
    }


def _outcome(benchmark: SpooledBenchmark, trials: tuple[Trial, ...]) -> Outcome:
    """Some evaluated **trials** of a benchmark, with their test images where these were kept."""
    folder, examples = trials[0].folder.parents[1], None
    with suppress(MissingError):
        examples = reader.read_examples(folder / "examples.npz", trials)
    lowest = trials[0].folder == benchmark.evaluations[0].folder  # the seed whose first layer is kept
    layer = arrays.first_layer(folder / "first_layer.npz") if lowest else {}
    return Outcome(**vars(trials[0].about), trials=trials, examples=examples, **layer)


def _classes(outcome: Outcome) -> bytes:
    """Precision, recall and F1 of each class and seed as a CSV file; empty where undefined."""
    file = StringIO()
    writer = csv.writer(file)
    writer.writerow(("class", "seed", "precision %", "recall %", "F1 %", "images"))
    by_seed = {trial.seed: per_class(trial.confusion) for trial in outcome.trials}
    for place, name in enumerate(outcome.classes):
        writer.writerows((name, seed, *figures[place]) for seed, figures in by_seed.items())
    return file.getvalue().encode(errors="backslashreplace")


def _claimed(benchmark: SpooledBenchmark) -> float | None:
    """The source's error in %, where the ledger has one."""
    row = benchmark.row
    return claimed_error(row.metric, row.claim.value) if row else None


def _row_figures(row: LedgerRow) -> dict[str, float | None]:
    """The figures of a row of the ledger, in the claim's own unit."""
    values: dict[str, float | None] = {"seeds": row.n, "claim": row.claim.value, "claim_margin": row.margin}
    for prefix, found in (("", row), ("test_set_", row.test_set)):
        if found:
            low, high = found.ci95 or (None, None)
            values |= {f"{prefix}mean": found.mean, f"{prefix}ci95_low": low, f"{prefix}ci95_high": high}
    return {f"ledger/{key}": value for key, value in values.items()}


def _row_tags(row: LedgerRow) -> dict[str, str]:
    """A row of the ledger as tags: verdict, claim and provenance, and the run's description."""
    tags = {
        "verdict": row.verdict,
        "metric": row.metric,
        "claim": _claim(row),
        "claim_source": text(row.claim.source),
        "mlflow.note.content": note(row),
    }
    tags |= {key: text(getattr(row, key)) for key in ("label", "hardware", "git_commit") if getattr(row, key)}
    if row.at_chance:
        tags["stuck_at_chance"] = f"{stuck(row)}: {', '.join(map(str, row.at_chance))}"
    if row.git_commit:
        tags["mlflow.source.git.commit"] = text(row.git_commit)
    return tags


def _claim(row: LedgerRow) -> str:
    if row.ablation:
        return f"{words.claim(row)}, in points"
    value = row.claim.value
    return "none" if value is None else f"{value} %"


def note(row: LedgerRow) -> str:
    """The run's description in Markdown: the verdict and its grounds."""
    return render("note.md", row=row, facts=_row_facts(row)).rstrip()


def _row_facts(row: LedgerRow) -> dict[str, str]:
    """Our figures and the claim in words, for the run's description and the head of its explorer."""
    metric = row.metric
    ours = "not measured" if row.mean is None else over_seeds(row)
    facts = {f"our {metric} in %{' on the images of the claim' if row.test_set else ''}": ours}
    if row.test_set:
        facts[f"our {metric} in % on the whole test set"] = figure(row.test_set)
    return {**facts, f"claimed {metric} in {'points' if row.ablation else '%'}": words.claim(row)}


def _trial_figures(metrics: Metrics) -> dict[str, float | None]:
    """A trial's figures on the test set and, where the claim was measured on other images, on those."""
    splits = {"test": metrics, "claimed_on": metrics.claimed_on}
    return {f"{split}/{key}": getattr(figures, key, None) for split, figures in splits.items() for key in TEST_METRICS}


def _mean_figures(trials: Sequence[Trial]) -> dict[str, float | None]:
    """The mean figures of a benchmark's seeds, each with its interval."""
    figures = verdicts.summary("test/", [trial.metrics.error for trial in trials])
    top5 = [trial.metrics.top5_error for trial in trials if trial.metrics.top5_error is not None]
    figures |= {"test/top5_error": statistics.fmean(top5)} if top5 else {}
    on = [trial.metrics.claimed_on.error for trial in trials if trial.metrics.claimed_on]
    return figures | (verdicts.summary("claimed_on/", on) if on else {})


def _points(figures: Mapping[str, float | None], time: float) -> list[Point]:
    """The known figures as points, to the decimals of the ledger."""
    return [Point(key, round(float(value), DIGITS), 0, time) for key, value in figures.items() if value is not None]


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
