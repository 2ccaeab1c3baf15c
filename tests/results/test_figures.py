"""Guards figures as pictures: any text, no rounding away of an error, the same everywhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest

from pipelines.results.figures import confusion, drawable, percentage
from tests.tracking.projects import ODD


def flawless(classes: list[str]) -> Any:
    """What the figure of the confusion matrix reads of an outcome without errors."""
    return SimpleNamespace(classes=classes, trials=[SimpleNamespace(confusion=np.eye(len(classes), dtype=np.int64))])


def test_figure_never_rounds_an_error_away() -> None:
    assert [percentage(v) for v in (100, 99.98, 12.34, 0.04)] == ["100", "99.9", "12.3", "<0.1"]
    png = confusion(flawless([f"class {i}" for i in range(30)]), title="a", subtitle="b")
    assert png.startswith(b"\x89PNG")


@pytest.mark.parametrize("classes", [20, 21])  # with names and without
def test_a_figure_takes_any_text(classes: int) -> None:
    """No formula is read into a name, no letter is missed; a warning would fail this."""
    names = [*ODD, *map(str, range(classes - len(ODD)))]
    for name in ODD[:4]:
        png = confusion(flawless(names), title=name, subtitle=name)
        assert png.startswith(b"\x89PNG")
    assert drawable("$x^2$", 20) == "$x^2$" and drawable("a\n猫\udcff", 20) == "a\\n\\u732b\\udcff"
    assert drawable("x" * 300, 21) == f"{'x' * 10}…{'x' * 10}"


def test_a_figure_is_not_what_a_matplotlibrc_makes_of_it() -> None:
    def draw() -> bytes:
        return confusion(flawless(["a_b", "$c$"]), title="a", subtitle="b")

    plain = draw()
    with matplotlib.rc_context({"text.usetex": True, "font.family": "serif"}):
        assert draw() == plain
