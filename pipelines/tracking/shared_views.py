"""How MLflow's pages open on our experiments: views saved with the experiment, to which an address can lead.

MLflow keeps a shared view as a tag of the experiment, the JSON of the page's state under a key; its "Share" button
writes the same. An address with that key opens the page in that state.
"""

from __future__ import annotations

import json
from typing import Any

from pipelines.tracking.artifacts import EXPLORER, IMAGE_KEY

TRAINING = "workflowType=machine_learning"  # else the page opens in its GenAI mode
CONFUSION, CURVES, LEDGER = "confusion", "curves", "ledger"
EPOCH = "train/epoch"  # the axis of learning curves
LEDGER_METRICS = tuple(f"ledger/{what}" for what in ("mean", "ci95_low", "ci95_high", "claim", "claim_margin", "seeds"))
OURS = f"mlflow.sharedViewState.{LEDGER}"  # the tag by which an experiment is known for one of ours
VIEWS = {
    CONFUSION: "confusion matrices side by side",
    CURVES: "learning curves, mean over seeds",
    LEDGER: "runs and ledger",
}
ALL = {
    "searchFilter": "",
    "orderByKey": "attributes.start_time",
    "orderByAsc": False,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "runsHiddenMode": "SHOW_ALL",
    "isAccordionReordered": True,  # our groups of charts come first, in our order; else MLflow sorts them by name
}


def description(dataset: str) -> str:
    """What is said above an experiment."""
    return (
        f"Benchmarks on {dataset}: one run each, its trials below it (+); `explorer.html` shows what a run confuses."
        f"\n\nAn epoch is one pass over the images that a recipe trains on, `train/epoch` counts them, and a step is a "
        f"thousandth of one."
    )


def experiment_views() -> dict[str, str]:
    """The views, as tags of an experiment."""
    states = {CONFUSION: confusion_view(), CURVES: curves_view(), LEDGER: ledger_view()}
    return {f"mlflow.sharedViewState.{key}": json.dumps(state) for key, state in states.items()}


def confusion_view() -> dict[str, Any]:
    """The benchmarks' confusion matrices as images in one row, and their test errors and figures of the ledger."""
    sections = [
        section("matrices", "Confusion matrices", columns=1, height=500),
        section("ledger", "ledger", columns=3, height=300),
        section("test", "test", columns=3, height=300),
    ]
    image = {**card("IMAGE", "grid", "matrices"), "imageKeys": [IMAGE_KEY], "step": 0, "showRunParams": False}
    bars = [{**card("BAR", key, key.partition("/")[0]), "metricKey": key} for key in (*LEDGER_METRICS, "test/error")]
    only = {"searchFilter": "tags.kind = 'benchmark'", "runListHidden": True}
    return {**ALL, **only, "compareRunCharts": [image, *bars], "compareRunSections": sections}


def curves_view() -> dict[str, Any]:
    """Training loss and error of all trials, one line a benchmark: MLflow averages the seeds."""
    sections = [section("train", "train", columns=2, height=420)]
    lines = [
        {**card("LINE", key, "train"), **LINE, "metricKey": key}
        for key in ("train/loss", "train/error", "train/lr", "train/images_per_s")
    ]
    unseen = {**card("LINE", EPOCH, "train"), **LINE, "metricKey": EPOCH, "deleted": True}  # MLflow would add it
    grouping = {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": "benchmark"}]}
    return {
        **ALL,
        "searchFilter": "tags.kind = 'trial'",
        "groupBy": grouping,
        "useGroupedValuesInCharts": True,
        "compareRunCharts": [*lines, unseen],
        "compareRunSections": sections,
    }


def ledger_view() -> dict[str, Any]:
    """The list of runs with the columns of the ledger; the + of a benchmark shows its trials."""
    metrics = [f"metrics.`{key}`" for key in (*LEDGER_METRICS, "test/error")]
    columns = ["tags.`verdict`", "tags.`label`", "tags.`metric`", *metrics, "params.`seed`"]
    return {**ALL, "selectedColumns": columns, "columnOrder": columns}


LINE: dict[str, Any] = {
    "selectedMetricKeys": None,
    "lineSmoothness": 0,
    "scaleType": "linear",
    "xAxisKey": "metric",
    "selectedXAxisMetricKey": EPOCH,
    "xAxisScaleType": "linear",
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "useGlobalXaxisKey": False,
    "useGlobalLineSmoothing": True,
}


def section(key: str, title: str, *, columns: int, height: int) -> dict[str, Any]:
    """A group of charts: **columns** to a row, **height** of each in pixels."""
    fixed = {"display": True, "isReordered": False, "deleted": False, "isGenerated": False}
    return {"uuid": key, "name": title, "columns": columns, "cardHeight": height, **fixed}


def card(kind: str, key: str, where: str) -> dict[str, Any]:
    """What every chart has."""
    fixed = {"runsCountToCompare": 20, "deleted": False, "isGenerated": False}
    return {"type": kind, "uuid": key, "metricSectionId": where, **fixed}


def view_address(server: str, experiment: str, view: str) -> str:
    """The address of a view of the experiment with that id."""
    mode = "TABLE" if view == LEDGER else "CHART"
    return f"{server}/#/experiments/{experiment}/runs?{TRAINING}&compareRunsMode={mode}&viewStateShareKey={view}"


def explorer_address(server: str, experiment: str, run: str) -> str:
    """The address at which a run's explorer shows inline."""
    return f"{server}/#/experiments/{experiment}/runs/{run}/artifacts/{EXPLORER}?{TRAINING}"
