"""The page: well formed, self-contained, deaf to markup in its data, and drawn without an error by a real browser."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines import publish
from pipelines.config.params import Params, load_params
from pipelines.results import evidence, examples, explorer, reader, words
from pipelines.results.evidence import Evidence
from pipelines.results.ledger import gather, make_ledger
from pipelines.results.page import images, plots, report
from pipelines.results.page.html import TEMPLATES
from pipelines.results.reader import ClassifiedExamples, Outcome, per_class
from pipelines.results.rows import LedgerRow, Summary, as_error
from pipelines.results.verdicts import Verdict
from pipelines.results.words import figure
from tests import projects
from tests.conftest import ROOT
from tests.report_inputs import CLASSES, DIFFERENCE, MADE, SEEDS, make, params

RUN = [name for name, made in MADE.items() if made.error is not None]
VOID = {"img", "input", "meta"}  # elements that HTML never closes
NASTY = "</script><img src=x onerror=alert(1)> \"&amp;' {{data}} <!-- `|` "
MOVING = "\x1b[31m\x9b\u202e"  # moves a terminal's cursor, or turns the line round; params.yaml may hold no such text


class Reader(HTMLParser):
    """Checks that elements nest, and keeps attributes, text and the JSON of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.data = ""
        self.words: list[str] = []
        self.tags: Counter[str] = Counter()

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[name] += 1
        self.attributes += [(name, key, value or "") for key, value in attrs]
        self.ids += [value for key, value in attrs if key == "id" and value]
        if name not in VOID:
            self.open.append(name if dict(attrs).get("id") != "data" else "data")

    def handle_endtag(self, name: str) -> None:
        if name in VOID:  # the parser reports <x/> as opened and closed
            return
        assert self.open, f"</{name}> closes nothing"
        opened = self.open.pop()
        assert name == ("script" if opened == "data" else opened), f"</{name}> closes <{opened}>"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "data":
            self.data += data
        elif self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


Inputs = tuple[Params, list[LedgerRow], dict[str, Outcome]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = make(tmp_path_factory.mktemp("page") / "project", per_cell=3)
    found_params = load_params(folder / "params.yaml")
    found = gather(found_params, folder)
    return found_params, make_ledger(found_params, found), found


@pytest.fixture(scope="module")
def html(inputs: Inputs) -> str:
    return report.build(*inputs)


def test_page_nests_and_holds_every_row(html: str) -> None:
    reader = read(html)
    assert len(reader.ids) == len(set(reader.ids))
    assert {f"row-{name}" for name in MADE} <= set(reader.ids)
    targets = {value[1:] for name, key, value in reader.attributes if name == "a" and key == "href"}
    assert targets <= set(reader.ids)


def test_page_loads_nothing_from_anywhere(html: str) -> None:
    reader = read(html)
    assert "link" not in reader.tags
    assert reader.tags["script"] == 2
    for name, key, value in reader.attributes:
        if key in ("src", "srcset", "poster", "xlink:href", "action"):
            assert value.startswith("data:image/"), (name, key, value)
        if key == "href":
            assert value.startswith("#"), (name, value)
        assert not key.startswith("on"), (name, key)
    assert not re.search(r"url\(|@import", html)
    assert "default-src 'none'" in html


def test_data_says_what_the_files_said(html: str, inputs: Inputs) -> None:
    data = json.loads(read(html).data)
    assert [b["name"] for b in data["benchmarks"]] == RUN
    for entry in data["benchmarks"]:
        outcome = inputs[2][entry["name"]]
        assert entry["seeds"] == list(SEEDS)
        assert entry["classes"] == CLASSES[entry["dataset"]]
        for trial in outcome.trials:
            assert entry["matrices"][str(trial.seed)] == trial.confusion.tolist()
            assert entry["errors"][str(trial.seed)] == pytest.approx(trial.metrics.error)
            assert len(entry["curves"][str(trial.seed)]["loss"]) == len(trial.curve)
    by_name = {b["name"]: b for b in data["benchmarks"]}
    assert by_name["ordinary-cifar10"]["claimed_error"] == pytest.approx(63.0)


def test_marked_rows_show_both_figures(html: str, inputs: Inputs) -> None:
    reader = read(html)
    data = {b["name"]: b for b in json.loads(reader.data)["benchmarks"]}
    words = " ".join(" ".join(reader.words).split())
    for row in inputs[1]:
        name, made = row.benchmark, MADE[row.benchmark]
        if name in data:
            assert (data[name]["compared_errors"] is None) is (made.claimed_on is None)
        if row.test_set is None:
            continue
        assert f"{figure(row)} † " in words
        assert f"{figure(row.test_set)} on the test set" in words
        assert f"accuracy in %, {figure(row.test_set)}, on all " in words
        compared, errors = (list(data[name][key].values()) for key in ("compared_errors", "errors"))
        assert np.mean(compared) == pytest.approx(made.claimed_error)
        assert np.mean(errors) == pytest.approx(100 - (row.test_set.mean or 0), abs=1e-3)
        assert f"; on the whole test set {figure(row.test_set)}" in plots.describe(row)
    marked = [name for name in RUN if MADE[name].claimed_on]
    assert words.count("] † ") == words.count("] on the test set") == words.count(DIFFERENCE) == len(marked)
    assert words.count("Accuracy† Test accuracy") == len(marked)
    assert "single view, images 40,001 to 50,000 of the training file, evaluated once, after the last epoch" in words
    assert words.count("single view, whole test set, evaluated once, after the last epoch") == len(MADE) - len(marked)
    assert rings(reader) == 2 * len(marked)  # in the ledger and in the row's details


def rings(reader: Reader) -> int:
    """How often the whole test set is drawn beside the images of the claim."""
    return reader.attributes.count(("circle", "class", "tested"))


def test_the_mark_is_explained_only_where_it_is_used(html: str, inputs: Inputs) -> None:
    whole, ledger, found = inputs
    assert (
        html.count("† measured on images chosen like those of the claim; the ring is ours on the whole test set") == 1
    )
    plain = {name: b for name, b in whole.benchmarks.items() if not MADE[name].claimed_on}
    rows = [row for row in ledger if row.benchmark in plain]
    built = report.build(replace(whole, benchmarks=plain), rows, {n: o for n, o in found.items() if n in plain})
    assert "†" not in built


def test_verdicts_are_counted_with_those_that_are_qualified(html: str, inputs: Inputs) -> None:
    ledger = inputs[1]
    tally = " ".join(" ".join(read(html).words).split()).partition("Ledger Table 3")[0]
    verdict = next(row.verdict for row in ledger if row.label)
    assert f"{verdict} (1 qualified)" in tally and tally.count("qualified)") == 1
    for one in Verdict:
        rows = [row for row in ledger if row.verdict == one]
        assert not rows or re.search(rf"\b{len(rows)} \S {one}\b", tally), one


def decode(source: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))


@pytest.mark.parametrize(("name", "tolerance"), [("lenet5-mnist", 0), ("convnetjs-cifar10", 25)])
def test_tiles_show_the_images_of_their_cell(html: str, inputs: Inputs, name: str, tolerance: float) -> None:
    data = json.loads(read(html).data)
    entry = next(b for b in data["benchmarks"] if b["name"] == name)
    kept = examples_of(inputs[2][name])
    sheet, tiles = data["sheets"][entry["dataset"]], entry["examples"]["tiles"]
    pixels = decode(sheet["source"])
    assert [sheet["index"][tile] for tile in tiles] == kept.index.tolist()
    assert [sheet["actual"][tile] for tile in tiles] == kept.actual.tolist()
    for seed, predicted, confidence in zip(SEEDS, kept.predicted, kept.confidence, strict=True):
        assert entry["examples"]["predicted"][str(seed)] == predicted.tolist()
        assert entry["examples"]["confidence"][str(seed)] == [round(100 * one) for one in confidence]
    for tile, image in zip(tiles, kept.images, strict=True):
        y, x = (tile // data["columns"]) * sheet["height"], (tile % data["columns"]) * sheet["width"]
        got = pixels[y : y + sheet["height"], x : x + sheet["width"]].astype(float)
        want = image.transpose(1, 2, 0).squeeze().astype(float)
        assert np.abs(got - want).mean() <= tolerance  # JPEG of noise, the worst case, for colour


def noise(count: int, side: int = 32, channels: int = 3, cells: int = 1, seeds: int = 1) -> ClassifiedExamples:
    random = np.random.default_rng(0)
    return ClassifiedExamples(
        images=random.integers(0, 256, (count, channels, side, side), dtype=np.uint8),
        actual=np.arange(count) % cells,
        predicted=np.zeros((seeds, count), dtype=np.int64),
        confidence=np.full((seeds, count), 0.5),
        index=np.arange(count),
    )


def test_sheets_keep_to_their_budget_with_fewer_images_a_cell() -> None:
    whole, per_cell = images.sheets({"d": [noise(120, cells=10)]})
    assert (per_cell, len(whole["d"].index)) == (examples.A_CELL, 10 * examples.A_CELL)
    budget = len(whole["d"].source) // 3
    small, per_cell = images.sheets({"d": [noise(120, cells=10)]}, budget)
    assert len(small["d"].source) <= budget
    assert 1 <= per_cell <= 4
    assert len(small["d"].index) == 10 * per_cell


def test_no_image_is_no_error() -> None:
    sheets, _ = images.sheets({"some": [noise(3, side=64)], "none": [noise(0)]})
    assert (sheets["some"].width, sheets["some"].height) == (64, 64)
    assert decode(sheets["some"].source).shape == (64, 192, 3)
    assert sheets["none"].index == ()


def test_an_image_shared_by_benchmarks_is_stored_once() -> None:
    sheets, _ = images.sheets({"d": [noise(30, cells=10), noise(30, cells=10)]})
    assert len(sheets["d"].index) == 30


def test_towers_stand_one_below_the_other() -> None:
    """AlexNet's 96 filters, 48 of each tower in three lines of sixteen, and half a filter between the towers."""
    filters = np.concatenate([np.full((48, 3, 11, 11), 1.0), np.full((48, 3, 11, 11), -1.0)]).astype(np.float32)
    sheet = images.filter_sheet(filters, 2)
    assert sheet.shape == (2 * (3 * 12 - 1) + 5, 16 * 12 - 1, 4)
    assert (sheet[:11, :11, :3] == 255).all() and (sheet[-11:, -11:, :3] == 0).all()
    assert (sheet[35:40, :, 3] == 0).all() and sheet[34, 0, 3] == sheet[40, 0, 3] == 255


def test_filters_are_blue_below_zero_and_red_above() -> None:
    filters = np.zeros((2, 1, 3, 3), dtype=np.float32)
    filters[0], filters[1] = -1, 1
    sheet = images.filter_sheet(filters)
    assert sheet.shape == (3, 7, 4)
    assert sheet[0, 0, :3].tolist() == images.NEGATIVE.tolist()
    assert sheet[0, 4, :3].tolist() == images.POSITIVE.tolist()
    assert sheet[0, 3, 3] == 0  # the gap between two filters


def test_hidden_units_are_not_called_classes(html: str) -> None:
    words = "".join(read(html).words)
    assert "linear-mnist, seed 0: the weights of each class" in words
    assert "ordinary-cifar10, seed 0: the weights of each hidden unit" in words


def nasty_params() -> Params:
    found = params()
    for name in MADE:
        block = found["benchmarks"][name]
        block["deviations"] = [NASTY]
        block["claim"] |= {"source": NASTY, "protocol": NASTY}
        if MADE[name].claimed_on:
            block["claim"]["difference"] = NASTY
    return projects.build(found)


def test_markup_in_the_files_stays_text(inputs: Inputs) -> None:
    _, _, outcomes = inputs
    classes = tuple(f"{NASTY}{MOVING}{i}" for i in range(10))
    found = {name: replace(o, classes=classes) for name, o in outcomes.items()}
    nasty = nasty_params()
    built = report.build(nasty, make_ledger(nasty, found), found)
    reader = read(built)
    assert "<img src=x" not in built
    assert not any(key == "onerror" for _, key, _ in reader.attributes)
    assert json.loads(reader.data)["benchmarks"][0]["classes"][0] == f"{NASTY}\\x1b[31m\\x9b\\u202e0"
    assert NASTY in "".join(reader.words)
    assert all(character.isprintable() or character == "\n" for character in built)


def test_embedded_json_cannot_end_its_element() -> None:
    value = {"</script>": "<!-- <script> ]]> & \u2028"}
    written = TEMPLATES.from_string("{{ data | tojson }}").render(data=value)
    assert not set("<>&\u2028") & set(written)
    assert json.loads(written) == value


def test_an_explorer_of_its_own_escapes_its_facts_and_needs_no_claim(inputs: Inputs) -> None:
    """As MLflow gets it before there is a ledger."""
    built = explorer.artifact(
        title=NASTY, facts={NASTY: f"{NASTY}{MOVING}"}, outcome=inputs[2]["linear-mnist"], claimed_error=None
    )
    reader = read(built)
    assert "<img src=x" not in built and NASTY in reader.words
    assert all(character.isprintable() or character == "\n" for character in built)
    (net,) = json.loads(reader.data)["benchmarks"]
    assert (net["claimed_error"], net["name"]) == (None, NASTY)


def part(call: str, **values: object) -> str:
    """What a macro of the page makes of these values."""
    return TEMPLATES.from_string('{% import "macros.html" as part %}{{ part.' + call + " }}").render(values)


def test_table_3_fills_what_is_known_and_marks_the_rest(inputs: Inputs) -> None:
    found = report.table3(inputs[0].benchmarks, inputs[1])
    assert set(found) == {("C", "allcnn"), ("A", "strided")}
    built = part("table3_section(found)", found=found)
    reader = read(built)
    assert reader.tags["td"] == 12 + 1  # and the corner
    words = "".join(reader.words)
    assert words.count("untested") == 1
    assert words.count("under budget") == 1
    printed = re.findall(r'class="published">([\d.]+)<', built)
    assert printed == [f"{MADE[name].claim:.2f}" for name in ("allcnn-a-strided-cifar10", "allcnn-c-cifar10")]
    assert "<details" in built and "0 of its 12 nets are measured" in words


def test_table_3_stands_open_once_half_of_it_is_measured(inputs: Inputs) -> None:
    row = replace(inputs[1][0], epochs=350.0, paper_epochs=350)
    cells = list(itertools.product("ABC", ("base", "strided", "convpool", "allcnn")))
    for count in (5, 6):
        found = dict.fromkeys(cells[:count], row)
        assert ("<details" in part("table3_section(found)", found=found)) is (count < 6)


def test_table_3_is_left_out_where_no_net_belongs_to_it(inputs: Inputs) -> None:
    whole, ledger, found = inputs
    kept = {name: b for name, b in whole.benchmarks.items() if b.model.family != "allcnn"}
    fewer = replace(whole, benchmarks=kept)
    rows = [r for r in ledger if r.benchmark in kept]
    built = report.build(fewer, rows, {name: o for name, o in found.items() if name in kept})
    assert 'id="table3"' not in built
    read(built)


def few(found: Inputs, count: int) -> tuple[LedgerRow, str]:
    """The row of linear-mnist with so many seeds, and the page."""
    whole, _, outcomes = found
    outcome = outcomes["linear-mnist"]
    kept = replace(
        examples_of(outcome),
        predicted=examples_of(outcome).predicted[:count],
        confidence=examples_of(outcome).confidence[:count],
    )
    fewer = {**outcomes, "linear-mnist": replace(outcome, trials=outcome.trials[:count], examples=kept)}
    ledger = make_ledger(whole, fewer)
    row = next(row for row in ledger if row.benchmark == "linear-mnist")
    return row, report.build(whole, ledger, fewer)


@pytest.mark.parametrize("count", [1, 2])
def test_of_fewer_than_three_seeds_the_figures_themselves_stand_there(inputs: Inputs, count: int) -> None:
    row, built = few(inputs, count)
    values = ", ".join(f"{value:.2f}" for value in row.per_seed.values())
    assert row.ci95 is None and row.mean == pytest.approx(np.mean(list(row.per_seed.values())), abs=1e-3)
    assert words.figure(row) == f"{values} ({count} seed{'s' if count > 1 else ''})"
    assert words_of(row) == values
    reader = read(built)
    assert words.figure(row) in reader.words
    assert plots.describe(row).endswith(f"ours {words.figure(row)}")
    axis = plots.ledger_axis([row])
    drawn = read(part("plot(row, axis, 26, 26, 13, plots.as_error)", row=row, axis=axis)).attributes
    assert [kind for _, key, kind in drawn if key == "class"].count("mean") == count


def words_of(row: LedgerRow) -> str:
    """Our figure as the terminal's table has it."""
    return words.plus_minus(row)


def test_of_three_seeds_an_interval_stands_there(inputs: Inputs) -> None:
    row, _ = few(inputs, 3)
    assert row.ci95 and words.figure(row) == f"{row.mean:.2f} [{row.ci95[0]:.2f}, {row.ci95[1]:.2f}]"
    assert words_of(row) == f"{row.mean:.2f} ± {row.ci95[1] - (row.mean or 0):.2f}"


@pytest.mark.parametrize("ci95", [(0.0, 6.30), (76.11, 100.0)])
def test_an_interval_that_is_cut_is_not_written_as_plus_minus(inputs: Inputs, ci95: tuple[float, float]) -> None:
    row = replace(inputs[1][0], mean=88.09, ci95=ci95)
    assert words_of(row) == f"88.09 [{ci95[0]:.2f}, {ci95[1]:.2f}]"


def test_an_augmented_net_fills_no_cell_of_table_3() -> None:
    found = params()
    for name in ("allcnn-c-cifar10", "allcnn-a-strided-cifar10"):
        found["benchmarks"][name]["recipe"]["augment"] = [{"flip": {}}]
    built = projects.build(found)
    assert report.table3(built.benchmarks, make_ledger(built, {})) == {}


def test_the_ledgers_axis_has_room_for_every_figure(inputs: Inputs) -> None:
    axis = plots.ledger_axis(inputs[1])
    places = [axis.place(t) for t in axis.ticks]
    assert places == sorted(places)
    assert places[0] == pytest.approx(plots.EDGE)
    assert places[-1] == pytest.approx(plots.WIDTH - plots.EDGE)
    for row in inputs[1]:
        error = as_error(row.metric, row.claim.value or 0)
        assert plots.EDGE < axis.place(error) < plots.WIDTH - plots.EDGE


def test_an_axis_of_errors_ends_at_a_hundred() -> None:
    assert plots.log_axis([61.0, 100.0]).ticks == (50.0, 100.0)
    assert plots.log_axis([0.0005]).ticks == (0.001, 0.002)  # below all steps
    assert plots.log_axis([0.9, 47.0]).ticks == (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


def test_a_linear_axis_has_round_ticks_and_survives_a_single_value() -> None:
    axis = plots.linear_axis([0.76, 1.14])
    assert axis.ticks == pytest.approx((0.8, 0.9, 1.0, 1.1))
    assert len(plots.linear_axis([5.0]).ticks) >= 2
    assert plots.linear_axis([0.0, 0.0]).place(0.0) == pytest.approx(plots.EDGE)


def examples_of(outcome: Outcome) -> ClassifiedExamples:
    assert outcome.examples is not None
    return outcome.examples


def many_classes(outcome: Outcome, count: int = 40) -> Outcome:
    """The outcome of a net with more classes than a matrix can show."""
    labels = np.r_[np.repeat(np.arange(count), 8), [3] * 5, [7] * 2]
    predicted = np.r_[labels[: 8 * count], [7] * 5, [3] * 2]
    classes = tuple(f"class {i}" for i in range(count))
    trials = tuple(
        replace(
            trial,
            about=replace(trial.about, classes=classes),
            labels=labels,
            predicted=predicted,
            metrics=replace(trial.metrics, error=100 * 7 / len(labels)),
        )
        for trial in outcome.trials
    )
    said = np.array([[7, 7, 3, 9], [7, 3, 3, 9], [3, 3, 3, 9], [3, 3, 7, 9], [3, 3, 7, 9]])
    kept = replace(noise(4, seeds=5), actual=np.array([3, 3, 7, 9]), predicted=said)
    return replace(outcome, classes=classes, dataset="many", trials=trials, examples=kept)


def awkward(inputs: Inputs) -> str:
    """A page with a diverged seed, a curve of one epoch, a net without errors and one with forty classes."""
    whole, _, found = inputs
    changed = dict(found)
    first = changed["linear-mnist"].trials[0]
    diverged = replace(first, curve=[replace(first.curve[0], loss=float("nan"), train_error=None)])
    kept = examples_of(changed["linear-mnist"])
    alone = replace(kept, predicted=kept.predicted[:1], confidence=kept.confidence[:1])
    changed["linear-mnist"] = replace(changed["linear-mnist"], trials=(diverged,), examples=alone)
    ended = [replace(first.curve[0], loss=0.0, train_error=0.0)]
    perfect = replace(first, metrics=replace(first.metrics, error=0.0), predicted=first.labels, curve=ended)
    changed["mlp300-mnist"] = replace(changed["mlp300-mnist"], trials=(perfect,), examples=noise(0, 28, 1))
    changed["allcnn-c-cifar10"] = many_classes(changed["allcnn-c-cifar10"])
    return report.build(whole, make_ledger(whole, changed), changed)


def test_more_classes_than_fit_are_listed_by_confusion(inputs: Inputs) -> None:
    data = json.loads(read(awkward(inputs)).data)
    entry = next(b for b in data["benchmarks"] if b["dataset"] == "many")
    assert "matrices" not in entry
    assert entry["confusions"] == [[3, 7, 25], [7, 3, 10]]  # over five seeds
    index = data["sheets"]["many"]["index"]
    assert [index[tile] for tile in entry["examples"]["tiles"]] == [0, 1, 2]  # what is right is listed nowhere


# ---- a real browser --------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def browser(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that starts Chromium: slow, and skipped where there is none."""
    missing = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on this machine")
    marked: Callable[..., None] = pytest.mark.slow(missing(test))
    return marked


def drawn(html: str, folder: Path, script: str = "", *, at: str = "", flags: Sequence[str] = ()) -> Reader:
    """The page as the browser left it, opened ``at`` a fragment, after ``script`` ran in it."""
    extra = f"<script>{script}</script>"
    # The page forbids scripts from elsewhere, not inline ones.
    (folder / "index.html").write_text(html.replace("</body>", f"{extra}</body>"))
    command = [
        str(CHROMIUM),
        *FLAGS,
        *flags,
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
        "--virtual-time-budget=3000",
    ]
    done = subprocess.run(
        [*command, (folder / "index.html").as_uri() + at], capture_output=True, text=True, timeout=60, check=True
    )
    reader = Reader()
    reader.feed(done.stdout)
    return reader


def state(reader: Reader) -> str:
    return next((value for name, key, value in reader.attributes if (name, key) == ("html", "data-state")), "not drawn")


def told(html: str, folder: Path, value: str, script: str = "", *, at: str = "", flags: Sequence[str] = ()) -> Any:
    """What an expression of JavaScript is on the page, after ``script`` ran in it."""
    tell = f"{script}; document.querySelector('h1').textContent = 'told ' + JSON.stringify({value});"
    reader = drawn(html, folder, tell, at=at, flags=flags)
    assert state(reader) == "ready", " ".join(reader.words)[-400:]
    return json.loads(next(words for words in reader.words if words.startswith("told ")).removeprefix("told "))


def texts(selector: str) -> str:
    """The expression for the texts of the elements that a selector names."""
    return f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent)"


def choose(selector: str, value: str) -> str:
    """The script that chooses a value in a menu."""
    menu = f"document.querySelectorAll({json.dumps(selector)})"
    return f"{{ const menu = {menu}[0]; menu.value = '{value}'; menu.dispatchEvent(new Event('change')); }}"


@browser
def test_browser_draws_matrices_and_curves(html: str, tmp_path: Path) -> None:
    reader = drawn(html, tmp_path)
    words = " ".join(reader.words)
    assert state(reader) == "ready", words[-400:]
    cells = [value for name, key, value in reader.attributes if (name, key) == ("button", "data-row")]
    assert len(cells) == 2 * 100
    assert reader.tags["polyline"] == len(RUN) * len(SEEDS)
    assert rings(reader) == 3 * sum(MADE[name].claimed_on is not None for name in RUN)
    pressed = [v for name, key, v in reader.attributes if (name, key) == ("button", "aria-pressed") and v == "true"]
    assert len(pressed) == 2


@browser
def test_browser_shows_the_images_behind_a_chosen_cell(html: str, inputs: Inputs, tmp_path: Path) -> None:
    click = 'document.querySelector(\'.pane [data-row="4"][data-column="4"]\').click();'
    key = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft', bubbles: true}));"
    seed = choose(".pane label:nth-of-type(2) select", "3")
    for script, seeds in ((click, SEEDS), (click + seed, (3,))):
        reader = drawn(html, tmp_path, script)
        assert state(reader) == "ready"
        labels = [v for name, k, v in reader.attributes if (name, k) == ("canvas", "aria-label")]
        expected = called(inputs[2]["lenet5-mnist"], 4, 4, seeds)
        assert labels[: len(expected)] == expected  # of the first pane
    assert any(words.startswith("4 recognised as 4: ") for words in reader.words)
    reader = drawn(html, tmp_path, click + key)
    assert state(reader) == "ready"
    assert any(words.startswith("4 taken for 3: ") for words in reader.words)


def called(outcome: Outcome, actual: int, predicted: int, seeds: Sequence[int]) -> list[str]:
    """What stands at the images of a cell, the surest answer first."""
    kept, found = examples_of(outcome), []
    for i in np.flatnonzero(kept.actual == actual):
        said = [(round(100 * kept.confidence[seed, i]), seed) for seed in seeds if kept.predicted[seed, i] == predicted]
        said.sort(key=lambda one: -one[0])
        if said:
            sure = ", ".join(f"{confidence} % by seed {seed}" for confidence, seed in said)
            found.append((-said[0][0], f"test image {kept.index[i]}: {actual}, called {predicted} with {sure}"))
    return [words for _, words in sorted(found, key=lambda one: one[0])][: images.MOST_SHOWN]


EVERY_CELL = """
    const told = [], pane = document.querySelector('.pane');
    const seed = pane.querySelectorAll('select')[1];
    for (const value of [...seed.options].map((option) => option.value)) {
      const menu = pane.querySelectorAll('select')[1]; menu.value = value; menu.dispatchEvent(new Event('change'));
      for (const cell of [...pane.querySelectorAll('[data-row]')]) {
        cell.click();
        const count = Number(cell.title.match(/: ([\\d,]+) of/)[1].replace(',', ''));
        const shown = pane.querySelectorAll('.tiles figure').length;
        told.push([value, count, shown, pane.querySelector('.behind small').textContent]);
      }
    }
    document.querySelector('h1').textContent = JSON.stringify(told);
"""


@browser
def test_every_cell_of_every_seed_shows_its_own_images(html: str, tmp_path: Path) -> None:
    reader = drawn(html, tmp_path, EVERY_CELL)
    told = json.loads(next(words for words in reader.words if words.startswith("[[")))
    assert len(told) == (1 + len(SEEDS)) * 100 and {one[0] for one in told} == {"all", *map(str, SEEDS)}
    for seed, count, shown, note in told:
        if seed != "all":
            assert shown <= count and (shown > 0) == (count > 0)
            assert f"seed {seed}" in note
        else:
            assert (shown > 0) == (count > 0) and "seeds 0, 1, 2, 3 and 4" in note


CAPTIONS = texts(".pane caption strong")


@browser
def test_the_report_opens_with_lenet_beside_the_linear_net(html: str, tmp_path: Path) -> None:
    """And the figures of the classes with the first of them; the menus list the nets of each data set, best first."""
    menus = f"[{CAPTIONS}, ...['.pane optgroup', '#classes optgroup'].map((groups) => "
    menus += (
        "[...document.querySelectorAll(groups)].map((one) => [one.label, ...[...one.children].map((o) => o.value)])),"
    )
    menus += f" document.querySelector('#classes select').value, {texts('.pane .choose label')}[0]]"
    shown, panes, classes, chosen, label = told(html, tmp_path, menus)
    assert shown == ["lenet5-mnist", "linear-mnist"] and chosen == shown[0]
    assert label.startswith("Benchmark, best first")
    assert panes == [*classes, *classes]
    for dataset, *names in classes:
        best = sorted((name for name in RUN if MADE[name].dataset == dataset), key=lambda name: MADE[name].error or 0)
        assert names == best


@browser
def test_without_lenet_two_other_nets_are_compared(inputs: Inputs, tmp_path: Path) -> None:
    whole, ledger, found = inputs
    names = ("convnetjs-cifar10", "ml4a-convnet-cifar10", "linear-mnist")
    built = report.build(whole, ledger, {name: found[name] for name in names})
    assert set(told(built, tmp_path, CAPTIONS)) == {"linear-mnist", "convnetjs-cifar10"}
    both = choose(".pane:first-child select", "ml4a-convnet-cifar10") + choose(".pane + .pane select", names[0])
    assert told(built, tmp_path, CAPTIONS, both) == ["ml4a-convnet-cifar10", "convnetjs-cifar10"]


@browser
def test_the_axes_have_names_and_counts_their_seeds(html: str, tmp_path: Path) -> None:
    value = f"[{texts('.pane thead tr:first-child th')}, {texts('.behind h3')}, {texts('caption')}]"
    axes, heads, captions = told(html, tmp_path, value)
    assert axes == 2 * ["true", "the net's answer →"]
    assert all(re.search(r" taken for .*%\), 5 seeds together$", head) for head in heads)
    assert all(caption.endswith("% error, mean of 5 seeds") for caption in captions)
    alone = choose(".pane label:nth-of-type(2) select", "3")
    head, caption = told(html, tmp_path, f"[{texts('.behind h3')}[0], {texts('caption')}[0]]", alone)
    assert head.endswith("%)") and caption.endswith("% error, seed 3")


@browser
def test_a_view_has_an_address(html: str, tmp_path: Path) -> None:
    """Which holds nets, seeds and cells, and opens the page on them; what is unknown there is ignored."""
    value = f"[{CAPTIONS}, {texts('.behind h3')}, location.hash]"
    script = choose(".pane select", "mlp300-mnist") + choose(".pane label:nth-of-type(2) select", "2")
    script += 'document.querySelector(\'.pane [data-row="7"][data-column="2"]\').click()'
    names, heads, address = told(html, tmp_path, value, script)
    assert names == ["mlp300-mnist", "linear-mnist"] and all(head.startswith("7 taken for 2: ") for head in heads)
    assert address.startswith("#confusion?net=mlp300-mnist&seed=2&cell=7%2C2&net=linear-mnist&seed=all&")
    assert told(html, tmp_path, value, at=address) == [names, heads, address]
    later = f"location.hash = '{address}'; window.dispatchEvent(new Event('hashchange'))"
    assert told(html, tmp_path, value, later) == [names, heads, address]
    opened = told(html, tmp_path, value)
    assert opened[2] == ""
    for wrong in ("net=gone&seed=2&cell=1,2", "net=lenet5-mnist&seed=toString&cell=99,0", "net=lenet5-mnist&cell=x"):
        assert told(html, tmp_path, value, at=f"#confusion?{wrong}")[:2] == opened[:2]


@browser
def test_the_focus_stays_where_it_was_and_is_visible(html: str, tmp_path: Path) -> None:
    for selector, value in ((".pane select", "mlp300-mnist"), ("#classes select", "mlp300-mnist")):
        focus = f"document.querySelector('{selector}').focus();" + choose(selector, value)
        same = f"document.activeElement === document.querySelector('{selector}')"
        assert told(html, tmp_path, same, focus) is True
    sort = "const head = document.querySelectorAll('#classes thead button')[1]; head.focus(); head.click()"
    assert told(html, tmp_path, "document.activeElement.textContent", sort) == "precision, % ▴"
    cell = "const cell = document.querySelector('.matrix [aria-pressed=true]'), seen = getComputedStyle(cell);"
    cell += "const before = seen.outlineColor; cell.focus();"
    plain, focused = told(html, tmp_path, "[before, seen.outlineColor]", cell)
    assert plain == "rgb(28, 33, 40)" and focused == "rgb(29, 95, 166)"  # --ink and --link of page.css
    assert told(html, tmp_path, "document.querySelectorAll('[aria-live]').length") == 0


@browser
def test_the_same_cell_in_both_is_chosen_as_it_is_switched_on(html: str, tmp_path: Path) -> None:
    box = "const box = [...document.querySelectorAll('#confusion input')].find((one) => "
    box += "one.parentElement.textContent === 'same cell in both'); box.click();"
    click = 'document.querySelector(\'.pane [data-row="7"][data-column="2"]\').click();'
    first, second = told(html, tmp_path, texts(".behind h3"), box + click)
    assert first.startswith("7 taken for 2: ") and not second.startswith("7 taken for 2: ")
    assert all(
        h.startswith("7 taken for 2: ") for h in told(html, tmp_path, texts(".behind h3"), box + click + "box.click()")
    )


CONTRAST = """
    const channels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((c) => c / (colour[0] === 'r' ? 255 : 1));
    const light = (colour) => channels(colour).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
      .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const contrast = (cell) => { const { color, backgroundColor } = getComputedStyle(cell);
      const [low, high] = [light(color), light(backgroundColor)].sort((a, b) => a - b);
      return (high + 0.05) / (low + 0.05); };
"""


@browser
@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_cells_are_legible_and_coloured_as_in_their_legend(html: str, tmp_path: Path, scheme: int) -> None:
    nets = choose(".pane select", "convnetjs-cifar10") + choose(".pane + .pane select", "ordinary-cifar10")
    swatch = "const swatch = document.querySelectorAll('.scale i')[1], cell = document.querySelector('.matrix .miss');"
    swatch += "cell.style.setProperty('--strength', swatch.style.getPropertyValue('--strength'));"
    value = "[Math.min(...[...document.querySelectorAll('.matrix button')].map(contrast)),"
    value += " getComputedStyle(swatch).backgroundColor, getComputedStyle(cell).backgroundColor]"
    flags = [f"--blink-settings=preferredColorScheme={scheme}"]
    least, shown, same = told(html, tmp_path, value, CONTRAST + nets + swatch, flags=flags)
    assert least >= 4.5 and shown == same


@browser
def test_what_has_evidence_is_unfolded_for_print_alone(html: str, tmp_path: Path) -> None:
    state = "[...document.querySelectorAll('details')].filter((one) => one.open).map((one) => one.id || one.className)"
    script = f"const before = {state}; dispatchEvent(new Event('beforeprint')); const printed = {state};"
    before, printed, after = told(
        html, tmp_path, f"[before, printed, {state}]", script + "dispatchEvent(new Event('afterprint'))"
    )
    assert before == after == []
    assert sorted(printed) == sorted(["folded", *(f"row-{name}" for name in RUN)])


@browser
@pytest.mark.parametrize("count", [2, 3])
def test_an_explorer_of_one_net_has_one_pane_and_lists_the_figures_of_few_seeds(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    outcome = inputs[2]["linear-mnist"]
    undefined = (None, 12.3, 45.6, 7)
    monkeypatch.setattr(explorer, "per_class", lambda matrix: (undefined, *per_class(matrix)[1:]))
    trials = outcome.trials[:count]
    fewer = replace(outcome, trials=trials, examples=None)
    built = explorer.artifact(title="one net", facts={}, outcome=fewer, claimed_error=12.0)
    reader = drawn(built, tmp_path)
    words = " ".join(reader.words)
    assert state(reader) == "ready" and ("section", "id", "classes") in reader.attributes
    assert len([1 for name, key, _ in reader.attributes if (name, key) == ("button", "data-row")]) == 100
    errors = [trial.metrics.error for trial in trials]
    assert f" % error, {'mean of 3' if count == 3 else 2} seeds" in words
    shown = f"{np.mean(errors):.2f}" if count == 3 else f"{errors[0]:.2f}, {errors[1]:.2f}"
    assert f" · {shown} % error" in words
    assert ("12.3 45.6 7" if count == 3 else "12.3, 12.3 45.6, 45.6 7") in words
    assert ("– 12.3" if count == 3 else "–, – 12.3") in words


@browser
def test_a_figure_is_one_function_and_one_line(inputs: Inputs, tmp_path: Path) -> None:
    """In the report, with a link in its navigation, and in the explorer that MLflow gets."""
    line = '["confusion", "Confusion matrices", matrices],'
    new = '["bars", "Bars", (place) => place.append(el("p", {}, `drawn of ${data.benchmarks.length}`))],'
    alone = explorer.artifact(title="one", facts={}, outcome=inputs[2]["lenet5-mnist"], claimed_error=None)
    for built, count in ((report.build(*inputs), len(RUN)), (alone, 1)):
        assert built.count(line) == 1
        reader = drawn(built.replace(line, f"{line} {new}"), tmp_path)
        assert state(reader) == "ready" and f"drawn of {count}" in reader.words
        assert ("section", "id", "bars") in reader.attributes
        assert (("a", "href", "#bars") in reader.attributes) is (count > 1)


@browser
def test_browser_survives_awkward_results(inputs: Inputs, tmp_path: Path) -> None:
    script = (
        choose(".pane select", "allcnn-c-cifar10")
        + "for (const box of document.querySelectorAll('#curves input')) box.click();"
    )
    reader = drawn(awkward(inputs), tmp_path, script)
    assert state(reader) == "ready", " ".join(reader.words)[-400:]
    assert "class 3 taken for class 7: 25" in reader.words


@browser
def test_a_net_without_curves_has_no_chart(inputs: Inputs, tmp_path: Path) -> None:
    whole, ledger, found = inputs
    trials = tuple(replace(trial, curve=[]) for trial in found["linear-mnist"].trials)
    built = report.build(whole, ledger, found | {"linear-mnist": replace(found["linear-mnist"], trials=trials)})
    point = (
        "for (const chart of document.querySelectorAll('.chart svg')) chart.dispatchEvent(new Event('pointermove'));"
    )
    assert told(built, tmp_path, texts(".chart h3"), point) == [name for name in RUN if name != "linear-mnist"]


@browser
def test_a_list_without_confusions_names_none(inputs: Inputs, tmp_path: Path) -> None:
    many = many_classes(inputs[2]["allcnn-c-cifar10"])
    right = tuple(
        replace(trial, predicted=trial.labels, metrics=replace(trial.metrics, error=0.0)) for trial in many.trials
    )
    for outcome, listed in ((many, 2), (replace(many, trials=right), 0)):
        built = explorer.artifact(title="many", facts={}, outcome=outcome, claimed_error=None)
        value = f"[{texts('.pairs li')}.length, {texts('#confusion')}[0]]"
        count, words = told(built, tmp_path, value)
        assert (
            count == listed and (" taken for " in words) is (listed > 0) and ("seeds: none" in words) is (listed == 0)
        )
        assert "Select a confusion to see its test images." in words and "arrow keys" not in words


@browser
def test_damaged_data_is_noticed(html: str, tmp_path: Path) -> None:
    damaged = html.replace('id="data">{', 'id="data">{{')
    reader = drawn(damaged, tmp_path)
    assert state(reader) == "failed" and any("script failed" in words for words in reader.words)


@browser
def test_the_committed_page_agrees_with_the_ledger(tmp_path: Path) -> None:
    """A mean is rounded as in the ledger, each axis has labels, and the jumps of boosting are explained."""
    params = load_params(ROOT / "params.yaml")
    committed = evidence.read(params.benchmarks, ROOT / evidence.EVIDENCE)
    value = "[...document.querySelectorAll('.chart')].map((chart) => [chart.querySelector('h3').textContent,"
    value += " [...chart.querySelectorAll('small')].map((one) => one.textContent).join(' '),"
    value += " chart.querySelectorAll('[text-anchor=end]').length])"
    charts = told((ROOT / "results/index.html").read_text(encoding="utf-8"), tmp_path, value)
    assert charts
    for title, note, labels in charts:
        name, budget = re.fullmatch(r"(\S+) \((\w+) budget\)", title).groups()  # type: ignore[union-attr]
        (body,) = (body for body in committed[name] if body.budget == budget)
        error = words.mean_or_each(Summary.of({seed: one.error for seed, one in body.seeds.items()}))
        assert f"test error {error} %, {words.seeds(len(body.seeds))}" in note
        assert ("Three nets, trained in turn." in note) is ("boosted" in name)
        assert labels >= 3


@browser
def test_the_page_opens_with_matrices_and_what_has_evidence(html: str, tmp_path: Path) -> None:
    """Rows without any are folded, in the ledger and below it; a link to one unfolds it."""
    go = """
        location.hash = '#row-lenet1-mnist'; window.dispatchEvent(new Event('hashchange'));
        const shown = document.getElementById('row-lenet1-mnist');
        document.querySelector('h1').textContent = JSON.stringify(
          [shown.open && shown.parentElement.closest('details').open, ...document.querySelector('main')
            .querySelectorAll(':scope > section, :scope > div > section')].map((part) => part.id ?? part));
    """
    reader = drawn(html, tmp_path, go)
    assert state(reader) == "ready"
    unfolded, *sections = json.loads(next(words for words in reader.words if words.startswith("[")))
    assert unfolded is True
    first, *others = re.findall(r'^    \["(\w+)", "[^"]+", \w+\],$', html, re.MULTILINE)  # FIGURES of page.js
    assert sections == [first, "ledger", "table3", *others, "layers", "rows", "rules"]
    ledger = html[html.index('<section id="ledger">') : html.index('<section id="table3">')]
    shown, folded = ledger.split('<details class="folded without">')
    for name, made in MADE.items():
        assert (f"#row-{name}" in shown, f"#row-{name}" in folded) == (made.error is not None, made.error is None)


def test_committed_evidence_without_matrices_is_named(inputs: Inputs) -> None:
    whole, _, found = inputs
    whole = replace(whole, suite=replace(whole.suite, name="none", benchmarks=()))

    def body(name: str, budget: str, epochs: float) -> Evidence:
        made = evidence.of_outcome(found[name], budget, None)
        return replace(made, epochs=epochs, config=reader.config_as(made.config, whole.benchmarks[name], budget))

    bare = body("linear-mnist", "paper", 10)
    bare = replace(bare, seeds={seed: replace(one, confusion=None) for seed, one in bare.seeds.items()})
    both = [body("lenet5-mnist", "laptop", 10), body("lenet5-mnist", "paper", 20)]
    built = report.build(whole, [], {}, {"lenet5-mnist": both, "linear-mnist": [bare]})
    page = read(built)
    names = [one["name"] for one in json.loads(page.data)["benchmarks"]]
    assert names == ["lenet5-mnist (paper budget)", "lenet5-mnist (laptop budget)"]
    assert "No confusion matrix is kept for: linear-mnist (paper budget)." in page.words
    assert "No confusion matrix is kept" not in report.build(*inputs)


def test_readme_and_page_have_one_verdict_and_the_claims_error(html: str, inputs: Inputs) -> None:
    shown, readme = " ".join(" ".join(read(html).words).split()), publish.ledger(inputs[1]).splitlines()
    for row in inputs[1]:
        assert f" {words.claim(row)} {row.metric}" in shown
        lines = [line for line in readme if line.startswith(f"| {row.benchmark} ")]
        assert len(lines) == bool(row.n)
        assert all(f"| {row.metric} | {words.claim(row)} |" in line and f"| {row.verdict} |" in line for line in lines)
    assert shown.count("Dots: seeds.") == shown.count("Upper line: our mean and 95 % interval.") == len(RUN)


@browser
def test_browser_draws_an_empty_ledger(inputs: Inputs, tmp_path: Path) -> None:
    reader = drawn(report.build(inputs[0], make_ledger(inputs[0], {}), {}), tmp_path)
    assert state(reader) == "ready"
    assert "No benchmark was run yet." in reader.words
