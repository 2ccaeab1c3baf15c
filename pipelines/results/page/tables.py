"""The parts of the page that need no script: the ledger, each row's details, and what the first layers learned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pipelines.config.benchmarks import Benchmark
from pipelines.config.claims import ClaimedOn
from pipelines.results.page import images, plots
from pipelines.results.page.markup import Html, joined, tag
from pipelines.results.page.outcomes import LedgerRow, Outcome, TestSet, Trial
from pipelines.results.page.table3 import MARK, badge
from pipelines.results.page.words import NONE, centre, ends, seeds

CERTAINTY = {
    "read": "read in a public source",
    "recalled": "recalled, not confirmed against the source",
    "computed": "computed from the definition",
}
FILTER_PIXELS = 44  # screen pixels a filter, about
TEMPLATE_PIXELS = 96  # screen pixels a class template


def ledger(rows: Sequence[LedgerRow]) -> Html:
    """Every benchmark: the claim beside ours, both on one axis, and the verdict."""
    axis = plots.ledger_axis(rows)
    plot_head = joined(["error, %, logarithmic; left is better", plots.ticks(axis)])
    words = ("Benchmark", "Claim", "Ours", plot_head, "Verdict", "Epochs")
    head = tag("tr", *(tag("th", w, scope="col", role="columnheader") for w in words), role="row")
    body = (_ledger_row(row, axis) for row in rows)
    return tag(
        "table",
        tag("thead", head, role="rowgroup"),
        tag("tbody", *body, role="rowgroup"),
        class_="ledger",
        role="table",
        aria_label="Every claim beside ours",
    )


def _ledger_row(row: LedgerRow, axis: plots.Axis) -> Html:
    name = tag("a", row["benchmark"], href=f"#row-{row['benchmark']}")
    claim = row["claim"]
    recalled = tag("em", " recalled", title=CERTAINTY["recalled"]) if claim["certainty"] == "recalled" else Html("")
    value = tag("strong", f"{claim['value']:g} %", title=f"± {row['margin']:.2f}, the claim's sampling error")
    alone = tag("div", plots.ticks(axis), class_="alone")
    return tag(
        "tr",
        tag("th", name, tag("small", row["dataset"]), _label(row), scope="row", role="rowheader"),
        _cell("Claim", tag("span", value, f" {row['metric']}", recalled), tag("small", claim["source"])),
        _cell("Ours", *_ours(row)),
        _cell("Error, %", plots.ledger_plot(row, axis), alone, class_="plotted"),
        _cell("Verdict", badge(row["verdict"]), *_at_chance(row)),
        _cell("Epochs", *_epochs(row)),
        role="row",
    )


def _label(row: LedgerRow) -> Html:
    return tag("small", row["label"], class_="label") if row["label"] else Html("")


def _at_chance(row: LedgerRow) -> list[Html]:
    return [tag("small", f"{stuck(row)} at chance")] if row["at_chance"] else []


def stuck(row: LedgerRow) -> str:
    """How many of a row's seeds did no better on the test set than guessing, in words."""
    return f"{len(row['at_chance'])} of {seeds(row['n'])}"


def _cell(label: str, *children: Html, class_: str | None = None) -> Html:
    return tag("td", tag("div", *children), data_label=label, class_=class_, role="cell")


def _ours(row: LedgerRow) -> list[Html]:
    """Mean and interval, or each of few seeds; what is not of the whole test set is marked and has that below it."""
    if row["mean"] is None:
        return [tag("span", NONE)]
    mark = tag("a", MARK, href=f"#row-{row['benchmark']}", title=row["difference"]) if row["test_set"] else Html("")
    figure = [tag("strong", f"{centre(row)} %"), mark, tag("small", f"{_interval(row)}{seeds(row['n'])}")]
    if row["test_set"]:
        figure.append(tag("small", tag("b", f"{centre(row['test_set'])} %"), " on the test set"))
    return figure


def _interval(found: LedgerRow | TestSet) -> str:
    return f"{ends(found, ' to ')}, " if found["ci95"] else ""


def _epochs(row: LedgerRow) -> list[Html]:
    if row["epochs"] is None:
        return [tag("span", f"{NONE} of {row['paper_epochs']}")]
    return [tag("span", f"{row['epochs']:g} of {row['paper_epochs']}"), tag("small", f"{row['budget']} budget")]


def details(rows: Sequence[LedgerRow], benchmarks: Mapping[str, Benchmark], outcomes: Mapping[str, Outcome]) -> Html:
    """A section to open for each row: protocols, deviations, seeds and provenance."""
    return joined(_details(row, benchmarks[row["benchmark"]], outcomes.get(row["benchmark"])) for row in rows)


def _details(row: LedgerRow, benchmark: Benchmark, outcome: Outcome | None) -> Html:
    label = f", {row['label']}" if row["label"] else ""
    summary = tag("summary", tag("span", f"{row['benchmark']}{label}", class_="name"), badge(row["verdict"]))
    left = [plots.zoomed_plot(row), _protocols(row, benchmark), _deviations(row), _remarks(row)]
    right = [tag("p", "Not run in this suite.")]
    if outcome:
        right = [_per_seed(outcome, row["metric"], benchmark.evaluation.claimed_on), _provenance(outcome)]
    columns = tag("div", tag("div", *left), tag("div", *right), class_="columns")
    return tag("details", summary, columns, id=f"row-{row['benchmark']}", class_="row")


def _protocols(row: LedgerRow, benchmark: Benchmark) -> Html:
    claim, on, tested = row["claim"], benchmark.evaluation.claimed_on, row["test_set"]
    reported = f"{claim['value']:g} % {row['metric']}, ± {row['margin']:.2f} by chance alone"
    images = "whole test set" if on is None else on.words
    facts = {
        "Claim": f"{reported} on its {benchmark.claim.test_images:,} images",
        "Source": f"{claim['source']} ({CERTAINTY[claim['certainty']]})",
        "Its protocol": claim["protocol"],
        f"Ours{MARK if on else ''}": f"{benchmark.evaluation.protocol}, {images}, last epoch, once",
    }
    if tested:
        facts["On the test set"] = (
            f"{centre(tested)} % {row['metric']} ({_interval(tested)}all {tested['images']:,} images)"
        )
    if row["difference"]:
        facts["The difference"] = row["difference"]
    return _list(facts | {"Model": f"{benchmark.model.name} ({_parameters(row)})"})


def _parameters(row: LedgerRow) -> str:
    return "not built in this run" if row["parameters"] is None else f"{row['parameters']:,} parameters"


def _deviations(row: LedgerRow) -> Html:
    if not row["deviations"]:
        return tag("p", "No deviations recorded.", class_="muted")
    return joined([tag("h4", "Deviations"), tag("ul", *(tag("li", d) for d in row["deviations"]))])


def _remarks(row: LedgerRow) -> Html:
    if not row["remarks"]:
        return Html("")
    return joined([tag("h4", "Tried, and left to try"), tag("p", row["remarks"])])


def _per_seed(outcome: Outcome, metric: str, on: ClaimedOn | None) -> Html:
    words = ["Seed", *([f"{metric.capitalize()}{MARK}"] if on else []), f"Test {metric}", "Training error", "Time"]
    head = tag("tr", *(tag("th", w, scope="col") for w in words))
    body = (_seed_row(trial, metric, on) for trial in outcome.trials)
    return tag("table", tag("thead", head), tag("tbody", *body), class_="seeds")


def _seed_row(trial: Trial, metric: str, on: ClaimedOn | None) -> Html:
    training = trial.curve[-1].get("train_error")
    words = [
        *([f"{trial.compared(metric):.2f} %"] if on else []),
        f"{trial.tested(metric):.2f} %",
        NONE if training is None else f"{training:.2f} %",
        duration(float(trial.result["wall_s"])),
    ]
    return tag("tr", tag("th", trial.seed, scope="row"), *(tag("td", w) for w in words))


def _provenance(outcome: Outcome) -> Html:
    results = [trial.result for trial in outcome.trials]
    config = json.dumps(results[0].get("config"), indent=2, sort_keys=True)
    facts = {
        "Commit": each(commit(r) for r in results),
        "Hardware": each(r["hardware"] for r in results),
        "Device": each(f"{r.get('device')}, {r.get('workers', 1)} worker(s)" for r in results),
        "Versions": versions(results),
        "Data": f"{outcome.dataset}, digest {each(str(r.get('dataset_digest'))[:16] for r in results)}",
        "Speed": _speed(results),
        "Resumed": f"{sum(int(r.get('resumed') or 0) for r in results)} times, over all seeds",
        "Finished": max(day(float(r["finished"])) for r in results),
    }
    whole = tag("details", tag("summary", "Resolved configuration"), tag("pre", config), class_="config")
    return joined([tag("h4", "Provenance"), _list(facts), whole])


def _speed(results: Sequence[Mapping[str, object]]) -> str:
    speeds = [float(str(r["images_per_s"])) for r in results if r.get("images_per_s") is not None]
    return f"{sum(speeds) / len(speeds):,.0f} images/s a trial" if speeds else NONE


def _list(facts: Mapping[str, object]) -> Html:
    return tag("dl", *(joined([tag("dt", k), tag("dd", v)]) for k, v in facts.items()))


def each(values: Iterable[object]) -> str:
    """The distinct values in their order, as text."""
    return ", ".join(dict.fromkeys(str(v) for v in values))


def versions(results: Iterable[Mapping[str, Any]]) -> str:
    """Python and the libraries that trained, each with its version or versions."""
    return each(f"{name} {version}" for r in results for name, version in r["versions"].items() if version)


def commit(result: Mapping[str, object]) -> str:
    """The commit of a trial, marked -dirty as git describe does when the tree had uncommitted changes."""
    known = result.get("git_commit")
    return f"{known}{'-dirty' if result.get('git_dirty') else ''}" if known else "unknown"


def day(unix: float) -> str:
    """A moment as date and minute, UTC."""
    return datetime.fromtimestamp(unix, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def first_layers(outcomes: Mapping[str, Outcome]) -> Html:
    """Filters of the convolutional nets and class templates of the linear ones, from each one's lowest seed."""
    parts = []
    for name, outcome in outcomes.items():
        seed = outcome.trials[0].seed
        if outcome.templates is not None:
            parts.append(_templates(name, seed, outcome))
        if outcome.filters is not None:
            parts.append(_filters(name, seed, outcome))
    return joined(parts) if parts else tag("p", "No first layer was left by a run.", class_="muted")


def _templates(name: str, seed: int, outcome: Outcome) -> Html:
    assert outcome.templates is not None
    pictures = images.template_pictures(outcome.templates)
    linear = _is_linear(outcome)
    labels = outcome.classes if linear else [f"unit {i}" for i in range(len(pictures))]
    shown = (_template(p, label) for p, label in zip(pictures, labels, strict=True))
    owner = "class" if linear else "hidden unit"
    caption = f"{name}, seed {seed}: the weights of each {owner}, laid out as the image they look at"
    return tag("figure", tag("figcaption", caption), tag("div", *shown, class_="templates"))


def _is_linear(outcome: Outcome) -> bool:
    """Whether the templates are all there is: a net with ten hidden units leaves ten that belong to no class."""
    assert outcome.templates is not None
    weights, biases = outcome.templates.size, len(outcome.classes)
    return len(outcome.templates) == biases and outcome.trials[0].result["parameters"] <= weights + biases


def _template(picture: images.Picture, label: str) -> Html:
    image = tag("img", src=picture.source, alt=f"weights for {label}", width=TEMPLATE_PIXELS, class_="pixels")
    return tag("figure", image, tag("figcaption", label))


def _filters(name: str, seed: int, outcome: Outcome) -> Html:
    assert outcome.filters is not None
    count, channels, height, width = outcome.filters.shape
    picture = images.filter_sheet(outcome.filters)
    caption = f"{name}, seed {seed}: {count} filters of {height} × {width}, {'colour' if channels == 3 else 'grey'}"
    image = tag(
        "img",
        src=picture.source,
        alt=caption,
        width=picture.width * max(3, round(FILTER_PIXELS / width)),
        class_="pixels",
    )
    return tag("figure", tag("figcaption", caption), image)
