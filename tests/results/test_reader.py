"""Guards the figures of each class, where a class was never predicted, has no image, or both."""

from __future__ import annotations

import numpy as np

from pipelines.results.reader import ClassFigures, per_class


def test_where_there_is_nothing_to_divide_by_a_class_has_no_figure() -> None:
    first, second, empty = per_class(np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]]))
    assert first == ClassFigures(precision=60.0, recall=75.0, f1=66.67, images=4)
    assert second == ClassFigures(precision=80.0, recall=66.67, f1=72.73, images=6)
    assert empty == ClassFigures(precision=None, recall=None, f1=None, images=0)
    absent, missed = per_class(np.array([[0, 0], [3, 0]]))
    assert absent == ClassFigures(precision=0.0, recall=None, f1=0.0, images=0)
    assert missed == ClassFigures(precision=None, recall=0.0, f1=0.0, images=3)
