"""Figures as pictures for MLflow. A figure is one function and one line in ``FIGURES``.

``page/page.js`` lists the figures that a browser draws, on the page and in MLflow's explorer.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np

from pipelines.command.errors import printable
from pipelines.results.page import images
from pipelines.results.reader import Outcome

FILTERS_WIDTH = 960  # pixels, about
LABELLED = 20  # the most classes with a figure in each cell and names at the axes
LONGEST, LONGEST_TITLE = 20, 52  # the most characters of a class name and of the title
FONT = "DejaVu Sans"  # part of matplotlib
# A dollar sign starts no formula, and a user's matplotlibrc is without effect.
PLAIN_TEXT = {"text.parse_math": False, "text.usetex": False, "font.family": FONT, "axes.titlelocation": "left"}


def filters(outcome: Outcome, *, title: str, subtitle: str) -> bytes | None:
    """The first layer's filters of the lowest seed as a PNG, towers apart; None without filters."""
    if outcome.filters is None:
        return None
    from PIL import Image

    sheet = images.filter_sheet(outcome.filters, outcome.towers)
    picture, buffer = Image.fromarray(sheet), BytesIO()
    times = max(1, round(FILTERS_WIDTH / picture.width))
    picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST).save(buffer, "png")
    return buffer.getvalue()


def confusion(outcome: Outcome, *, title: str, subtitle: str) -> bytes:
    """The confusion matrix of all seeds together, of 800 x 800 pixels, as a PNG; class names of any characters.

    Each cell shows its share of its row in per cent, so the diagonal reads as recall and rows of different support
    compare. The shade is the square root of the share: 1 % stays visible beside a diagonal of 99 %.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    counts, classes = np.sum([trial.confusion for trial in outcome.trials], axis=0), outcome.classes
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    labelled, buffer = len(classes) <= LABELLED, BytesIO()
    with rc_context(PLAIN_TEXT):
        figure = Figure(figsize=(6.4, 6.4), dpi=125, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        drawn = ConfusionMatrixDisplay(share, display_labels=[drawable(name, LONGEST) for name in classes])
        slanted = any(len(name) > 2 for name in classes)
        drawn.plot(
            ax=axes, cmap="Blues", colorbar=False, include_values=labelled, xticks_rotation=35.0 if slanted else 0.0,
            im_kw={"norm": PowerNorm(0.5, 0, 100)},
        )  # fmt: skip
        for cell, text in np.ndenumerate(drawn.text_) if labelled else ():
            text.set(text=percentage(share[cell]), color="white" if share[cell] > 30 else "black", size=9)
        axes.set(xlabel="predicted", ylabel="actual", **({} if labelled else {"xticks": [], "yticks": []}))
        axes.set_title(drawable(subtitle, 2 * LONGEST_TITLE), size=11)
        figure.suptitle(drawable(title, LONGEST_TITLE), size=15, weight="bold", x=0.01, ha="left")
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def drawable(name: str, limit: int) -> str:
    """At most ``limit`` characters of a text; characters that the font lacks are written as their codes."""
    from matplotlib.font_manager import findfont, get_font

    letters = get_font(findfont(FONT)).get_charmap()
    shown = printable(name, lambda letter: letter.isprintable() and ord(letter) in letters)
    half = (limit - 1) // 2
    return shown if len(shown) <= limit else f"{shown[:half]}…{shown[-half:]}"


def percentage(value: float) -> str:
    """Per cent in at most four characters; neither a small error nor a near miss is rounded away, and 0 is blank."""
    if value == 0 or value == 100:
        return f"{value:.0f}" if value else ""
    return "99.9" if value >= 99.95 else f"{value:.1f}" if value >= 0.05 else "<0.1"


FIGURES: dict[str, Callable[..., bytes | None]] = {"confusion": confusion, "filters": filters}  # by its file's name
