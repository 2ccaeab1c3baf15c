"""Guards the figures of each class, and the answers of an evaluation that lacks some."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.command.files import DamagedError
from pipelines.results import arrays
from pipelines.results.arrays import Array
from pipelines.results.reader import per_class, read_evaluation

ABOUT = {"classes": ["a", "b"], "dataset": "mnist", "shape": [1, 28, 28], "protocol": "single view", "test": 3}
ANSWERS: dict[str, Array] = dict.fromkeys(("labels", "predicted", "confidence"), np.ones(3))


def test_where_there_is_nothing_to_divide_by_a_class_has_no_figure() -> None:
    of_three = per_class(np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]]))
    assert of_three == [(60.0, 75.0, 66.67, 4), (80.0, 66.67, 72.73, 6), (None, None, None, 0)]
    assert per_class(np.array([[0, 0], [3, 0]])) == [(0.0, None, 0.0, 0), (None, 0.0, 0.0, 3)]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({}, "labels is missing"),
        ({key: ANSWERS[key] for key in ("labels", "predicted")}, "confidence is missing"),
        (dict.fromkeys(ANSWERS, np.ones(0)), r"labels is of shape \(0,\)"),
        ({**ANSWERS, "predicted": np.ones(2)}, r"predicted is of shape \(2,\)"),
        ({**ANSWERS, "confidence": np.ones((3, 2))}, r"confidence is of shape \(3, 2\)"),
    ],
)
def test_an_evaluation_that_lacks_answers_is_one_line(tmp_path: Path, answers: dict[str, Array], words: str) -> None:
    folder = tmp_path / "trials/seed-0"
    folder.mkdir(parents=True)
    (tmp_path / "classes.json").write_text(json.dumps(ABOUT))
    (folder / "metrics.json").write_text(json.dumps({"key": "k", "error": 0.0, "accuracy": 100.0}))
    table = folder / "predictions.npz"
    arrays.write(table, **ANSWERS)
    assert len(read_evaluation(folder).labels) == 3
    arrays.write(table, **answers)
    with pytest.raises(DamagedError, match=rf"^{table}: {words}; expected shape \(3,\): run dvc repro, with -f"):
        read_evaluation(folder)
