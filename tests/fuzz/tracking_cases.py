"""Files of a trial, its evaluation and the ledger, some of them damaged, read as tracking reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from pipelines.tracking import cursors, limits, outcome, records
from pipelines.tracking.spool import Spool
from tests.report_inputs import write_matrix

KEY, HASH = "0123456789abcdef", "d" * 64
ROW = {"class": "a", "precision": 0.5, "recall": None, "f1": 0.5, "support": 2}
CLAIM = {
    **{"metric": "error", "value": 25.0, "certainty": "read", "test_images": 4},
    **{"source": "a paper", "protocol": "one view", "unit": "%"},
}
CLAIMED_ON = {"split": "train", "count": 10, "error": 1.0, "accuracy": 99.0}
FILES: dict[str, Any] = {
    f"store/{KEY}/trial.json": {
        **{"benchmark": "lenet5-mnist", "seed": 0, "key": KEY, "budget": "laptop"},
        "config": {"model": {"family": "lenet", "options": {"head": "softmax"}}, "epochs": 2, "steps": [1, {"a": 2}]},
        "dataset": {"name": "mnist", "digest": HASH},
    },
    f"store/{KEY}/result.json": {
        **{
            "finished": 1.79e9,
            "wall_s": 7.0,
            "device_s": 7.0,
            "parameters": 6,
            "images_seen": 60,
            "versions": {"a": "1"},
        },
        **{"hardware": "a CPU", "git_commit": "0123", "git_dirty": False, "epochs": 2, "dataset_digest": HASH},
        **{"benchmark": "lenet5-mnist", "seed": 0, "key": KEY, "budget": "laptop", "config": {"dataset": "mnist"}},
    },
    f"store/{KEY}/progress.json": {"state": "done", "time": 1.79e9, "pid": 1, "host": "here"},
    "evaluations/lenet5-mnist/trials/seed-0/metrics.json": {
        **{"key": KEY, "error": 25.0, "accuracy": 75.0, "loss": 0.1, "claimed_on": CLAIMED_ON},
        "per_class": [ROW, ROW],
    },
    "evaluations/lenet5-mnist/classes.json": {
        **{"classes": ["a", "b"], "protocol": "single view", "dataset": "mnist", "shape": [1, 28, 28], "test": 4},
    },
    "evaluations/lenet5-mnist/metrics.json": {"test_error": 25.0, "test_error_ci95_low": None, "seeds": 1},
    "report/ledger.json": [
        {
            **{
                "benchmark": "lenet5-mnist",
                "dataset": "mnist",
                "budget": "laptop",
                "n": 1,
                "mean": 25.0,
                "margin": 0.1,
                "metric": "error",
                "paper_epochs": 20,
            },
            **{"ci95": [24.0, 26.0], "verdict": "reproduced", "per_seed": {"0": 25.0}, "deviations": ["none"]},
            "claim": CLAIM,
        }
    ],
}
LINE = {
    "epoch": 0.256,
    "loss": 2.3,
    "train_error": 60.0,
    "lr": 0.1,
    "images_per_s": 8.0,
    "seconds": 7.0,
    "time": 1.79e9,
}
ODD: list[Any] = [
    *(None, True, 0, -1, 0.5, 10**400, -(10**19), 1e308, float("nan"), float("inf"), "", " ", "a\nb", "\x1b[31m\x00"),
    *(
        "\udcff",
        "猫",
        "\u2028",
        "x" * 9000,
        "$\\frac{$",
        "../..",
        "/",
        "a/../b",
        "|",
        [],
        {},
        [[]],
        {"": {"": None}},
        [None] * 3,
    ),
]


def case(random: Random, folder: Path) -> None:
    """Whatever the files hold, it becomes runs, and one line for each file that can't be tracked.

    MLflow takes the runs, but for params of another name than any checked row has: these it refuses itself.
    """
    for name, value in FILES.items():
        _write(random, folder / name, json.dumps(_changed(random, value) if random.random() < 0.3 else value))
    lines = [_changed(random, LINE) if random.random() < 0.2 else {**LINE, "epoch": 0.256 * (n + 1)} for n in range(3)]
    _write(random, folder / f"store/{KEY}/curve.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_matrix(folder / "evaluations/lenet5-mnist/trials/seed-0", np.array([[1, 1], [0, 2]]))
    cursor = {"sent": {f"trial:{KEY}": "0123456789abcdef"}}
    spool = Spool(project=folder, store=folder / "store")
    uri = "http://127.0.0.1:9"
    _write(random, cursors.Cursor.of(spool.store, uri).path, json.dumps(_changed(random, cursor)))
    gathered, problems = records.all_runs(spool)
    assert all(limits.name(problem, 400).isprintable() for problem in problems)
    for record in gathered:
        _check(record)
    result = outcome.SyncResult(uri=uri)
    result.count(filter(cursors.Cursor.of(spool.store, uri).lacks, gathered))


def _check(record: cursors.RunRecord) -> None:
    assert record.name.isprintable() and len(record.name) <= 250 and len(record.experiment) <= 500
    assert 0 <= record.started <= 1e11 and (record.ended is None or 0 <= record.ended <= 1e11)
    assert all(re.fullmatch(r"[/\w.\- :]{1,250}", key) for key in record.tags if not key.startswith("version."))
    for value in (*record.params.values(), *record.tags.values()):
        limits.value(value, limits.TAG).encode()
    for point in (*record.points, *record.curve):
        assert abs(point.step) < 2**63 and 0 <= point.time <= 1e11 and isinstance(point.value, float)


def _changed(random: Random, value: Any) -> Any:
    """With one thing in it, however deep, replaced, left out, or put under an odd key."""
    if isinstance(value, dict) and value and random.random() < 0.8:
        key = random.choice(list(value))
        how = random.random()
        if how < 0.1:
            return {name: one for name, one in value.items() if name != key}
        if how < 0.2:
            return {**value, str(random.choice(ODD)): value[key]}
        return {**value, key: _changed(random, value[key])}
    if isinstance(value, list) and value and random.random() < 0.8:
        place = random.randrange(len(value))
        return [*value[:place], _changed(random, value[place]), *value[place + 1 :]]
    return random.choice(ODD)


def _write(random: Random, path: Path, text: str) -> None:
    """A file, or now and then none, a directory, half of it, or with bytes that are not UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    how = random.random()
    if how < 0.03:
        return
    if how < 0.05:
        path.mkdir()
        return
    content = text.encode()
    if how < 0.10:
        place = random.randrange(len(content))
        content = content[:place] + random.choice([b"", b"\xff", b"\x00", b"[" * 2000]) + content[place + 1 :]
    path.write_bytes(content[: random.randrange(len(content))] if how > 0.97 else content)
