"""Figures as pictures, for MLflow's artifacts and its image grid. A figure is one function and one line in ``FIGURES``.

Those that a browser draws, on the page and in MLflow's explorer, are listed in ``page/page.js``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.results.page import images
from pipelines.results.reader import Outcome

FILTERS_WIDTH = 960  # pixels, about
INCHES = 6.4  # edge of the picture
DPI = 125  # 800 × 800 pixels
LABELLED = 20  # classes up to which every cell carries its figure and every row its name
DARK = 0.55  # shade above which the figure in a cell is written in white
INK = "#16202b"
LONGEST, LONGEST_TITLE = 20, 52  # characters of a class name, and of the title
FONT = "DejaVu Sans"  # part of matplotlib
# A dollar sign starts no formula, and a user's matplotlibrc changes no letter.
PLAIN_TEXT = {"text.parse_math": False, "text.usetex": False, "font.family": FONT}


def confusion(outcome: Outcome, *, title: str, subtitle: str) -> bytes:
    """The confusion matrix of all seeds together, as the bytes of a PNG."""
    counts: NDArray[np.int64] = np.sum([trial.confusion for trial in outcome.trials], axis=0)
    return confusion_figure(counts, outcome.classes, title=title, subtitle=subtitle)


def filters(outcome: Outcome, *, title: str, subtitle: str) -> bytes | None:
    """The first layer's filters of the lowest seed, its towers apart, as the bytes of a PNG; None where it has none."""
    if outcome.filters is None:
        return None
    from PIL import Image

    sheet = images.filter_pixels(outcome.filters, outcome.towers)
    picture, buffer = Image.fromarray(sheet), BytesIO()
    times = max(1, round(FILTERS_WIDTH / picture.width))
    picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST).save(buffer, "png")
    return buffer.getvalue()


FIGURES: dict[str, Callable[..., bytes | None]] = {"confusion": confusion, "filters": filters}  # by its file's name


def confusion_figure(counts: NDArray[np.int64], classes: Sequence[str], *, title: str, subtitle: str) -> bytes:
    """
    Draw a confusion matrix and return it as the bytes of a PNG.

    **counts** (C, C): rows actual, columns predicted. **classes**: C names in that order, of any characters.

    Each cell shows its share of its row in per cent, so the diagonal reads as recall and rows of different support
    compare. The shade is the square root of the share: a confusion of 1 % stays visible beside a diagonal of 99 %.
    """
    from matplotlib import rc_context

    with rc_context(PLAIN_TEXT):
        return _draw(counts, [drawable(name, LONGEST) for name in classes], drawable(title, LONGEST_TITLE), subtitle)


def _draw(counts: NDArray[np.int64], classes: Sequence[str], title: str, subtitle: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(INCHES, INCHES), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    support = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(support, 1)
    shade = np.sqrt(share)
    named = len(classes) <= LABELLED
    left, bottom = margins(longest(classes) if named else 4)
    axes = figure.add_axes((left, bottom, 0.985 - left, 0.895 - bottom))
    filled = np.ma.masked_equal(shade, 0)  # an empty cell stays white
    axes.imshow(filled, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xlabel("predicted", fontsize=13, color=INK)
    axes.set_ylabel("actual", fontsize=13, color=INK)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    if named:
        label_cells(axes, share, shade, classes)
    figure.text(0.02, 0.975, title, fontsize=17, fontweight="bold", color=INK, va="top")
    figure.text(0.02, 0.935, drawable(subtitle, 2 * LONGEST_TITLE), fontsize=12.5, color="#51606f", va="top")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def label_cells(axes: Any, share: NDArray[np.float64], shade: NDArray[np.float64], classes: Sequence[str]) -> None:
    """Write class names along both axes and the row's share in per cent into each cell that is not empty."""
    size = len(classes)
    width = 72 * INCHES * axes.get_position().width / size  # of a cell, in points; four figures take 2.5 of a letter's
    slanted, letters = longest(classes) > 2, 13 if size <= 12 else 9
    axes.set_xticks(
        range(size), classes, fontsize=letters, rotation=35 if slanted else 0, ha="right" if slanted else "center"
    )
    axes.set_yticks(range(size), classes, fontsize=letters)
    edges = np.arange(size + 1) - 0.5
    for lines in (axes.hlines, axes.vlines):  # one collection each; minor ticks with a grid cost twice the time
        lines(edges, -0.5, size - 0.5, color="#e7ecf1", linewidth=1)
    for row, column in zip(*np.nonzero(share), strict=True):
        axes.text(
            column,
            row,
            percentage(100 * share[row, column]),
            ha="center",
            va="center",
            fontsize=min(13, width / 2.5),
            color="white" if shade[row, column] > DARK else INK,
        )


def drawable(name: str, limit: int) -> str:
    """A text of at most **limit** characters; those that the font lacks are written by their number."""
    from matplotlib.font_manager import findfont, get_font

    letters = get_font(findfont(FONT)).get_charmap()
    shown = "".join(
        letter if letter.isprintable() and ord(letter) in letters else letter.encode("unicode_escape").decode("ascii")
        for letter in name
    )
    half = (limit - 1) // 2
    return shown if len(shown) <= limit else f"{shown[:half]}…{shown[-half:]}"


def percentage(value: float) -> str:
    """Per cent in at most four characters, rounding neither an error to none nor a near miss to all."""
    if value >= 99.95:
        return "100" if value == 100 else "99.9"
    return f"{value:.1f}" if value >= 0.05 else "<0.1"


def longest(classes: Sequence[str]) -> int:
    """Length of the longest class name."""
    return max(map(len, classes), default=0)


def margins(letters: int) -> tuple[float, float]:
    """Shares of the edge that names of that many letters need to the left of the matrix and below it."""
    width = 0.0155 * letters  # of a 13-point letter
    return min(0.07 + width, 0.4), min(0.09 + (0.6 * width if letters > 2 else 0), 0.3)
