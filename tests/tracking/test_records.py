"""Guards what a run of MLflow is made of: params, metrics, tags, the explorer and the tables."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.config.claims import Claim
from pipelines.results import arrays
from pipelines.results.figures import FIGURES
from pipelines.results.reader import Outcome
from pipelines.results.rows import LedgerRow, OnTestSet
from pipelines.tracking import cursors, records
from pipelines.tracking import spool as spools
from tests.report_inputs import read_matrix, write_matrix
from tests.tracking.projects import NOW, Project, change

pytestmark = pytest.mark.filterwarnings("ignore:::(?!pipelines|tests)")  # what MLflow's libraries warn about


def evaluation_files(record: cursors.RunRecord) -> dict[str, bytes]:
    """The files of a run."""
    return {name: content for make in record.files for name, content in make().items()}


def test_figures_of_the_classes_are_those_of_the_matrix(tmp_path: Path) -> None:
    """Class 0 is never predicted, class 1 has no image."""
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    for seed in (0, 1):
        folder = tmp_path / f"evaluations/lenet5-mnist/trials/seed-{seed}"
        counts = read_matrix(folder)
        counts[0] = [0, 30, 970, *([0] * 7)]
        counts[1], counts[:, 0] = 0, 0
        counts[3, 3] += 10_000 - counts.sum()
        write_matrix(folder, counts)
        error = 100 - float(np.trace(counts)) / 100
        change(folder / "metrics.json", error=error, accuracy=100 - error)
    benchmark, trial, _ = records.all_runs(project.spool)[0]
    head, *lines = evaluation_files(benchmark)[records.CLASSES].decode().splitlines()
    assert head == "class,seed,precision %,recall %,F1 %,images"
    for line in lines:
        name, of, *figures, images = line.split(",")
        counts, digit = read_matrix(tmp_path / f"evaluations/lenet5-mnist/trials/seed-{of}"), int(name)
        right, said, there = counts[digit, digit], counts[:, digit].sum(), counts[digit].sum()
        shares = ((right, said), (right, there), (2 * right, said + there))
        expected = [pytest.approx(100 * part / whole, abs=0.01) if whole else None for part, whole in shares]
        assert [float(one) if one else None for one in figures] == expected
        assert int(images) == there
    assert lines[0].startswith("0,0,,0.0,") and lines[2].startswith("1,0,0.0,,")
    assert evaluation_files(trial)[records.CLASSES].decode().splitlines()[1] == lines[0]


def test_a_trial_that_is_stuck_at_chance_has_a_tag(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    folder = tmp_path / "evaluations/lenet5-mnist/trials/seed-1"
    counts = np.zeros((10, 10), dtype=np.int64)
    counts[:, 3] = 1000  # each image is called a 3
    write_matrix(folder, counts)
    change(folder / "metrics.json", error=90.0, accuracy=10.0)
    _, *trials = records.all_runs(project.spool)[0]
    tags = [{k: v for k, v in trial.tags.items() if "stuck" in k} for trial in trials]
    assert tags == [{}, {"stuck_at_chance": "true"}]


def explored(record: cursors.RunRecord) -> Any:
    """What a run's explorer shows."""
    page = evaluation_files(record)[records.EXPLORER].decode()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(data)


def test_the_explorer_has_the_seeds_of_its_run_and_their_test_images(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 3)
    folder = tmp_path / "evaluations/lenet5-mnist"
    matrices = [read_matrix(folder / f"trials/seed-{n}") for n in range(3)]
    arrays.write(
        folder / "examples.npz",
        images=np.zeros((10, 1, 28, 28), dtype=np.uint8),
        index=np.arange(0, 10_000, 1000),
        keys=np.array([json.loads((folder / f"trials/seed-{n}/metrics.json").read_text())["key"] for n in range(3)]),
    )
    benchmark, first, *_ = records.all_runs(project.spool)[0]
    (net,) = explored(benchmark)["benchmarks"]
    assert net["seeds"] == [0, 1, 2] and net["claimed_error"] is None  # there is no ledger yet
    assert [net["matrices"][str(n)] for n in range(3)] == [matrix.tolist() for matrix in matrices]
    assert len(net["examples"]["tiles"]) == 10
    (net,) = explored(first)["benchmarks"]
    assert net["seeds"] == [0] and list(net["curves"]) == ["0"] and set(net["examples"]["predicted"]) == {"0"}
    project.ledger()
    assert explored(records.all_runs(project.spool)[0][0])["benchmarks"][0]["claimed_error"] == 1.0


def test_a_figure_is_one_function_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bars(outcome: Outcome, *, title: str, subtitle: str) -> bytes:
        return f"{title}: {[trial.seed for trial in outcome.trials]}".encode()

    monkeypatch.setitem(FIGURES, "bars", bars)
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    drawn = [evaluation_files(record)["bars.png"].decode() for record in records.all_runs(project.spool)[0]]
    assert drawn == ["lenet5-mnist: [0, 1]", "lenet5-mnist, seed 0: [0]", "lenet5-mnist, seed 1: [1]"]


def test_a_picture_shows_over_how_many_seeds_its_error_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def below(outcome: Outcome, *, title: str, subtitle: str) -> bytes:
        return subtitle.encode()

    monkeypatch.setitem(FIGURES, "bars", below)
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 3)
    benchmark, trial, *_ = [evaluation_files(one)["bars.png"].decode() for one in records.all_runs(project.spool)[0]]
    assert re.match(r"test error in %: \d\.\d\d \[.*\], 3 seeds, ", benchmark)
    assert re.match(r"test error in %: \d\.\d\d, ", trial) and "seed" not in trial


def test_under_three_seeds_the_figures_themselves_are_shown(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 30.0, 2)
    project.rows[0].update(ci95=None, per_seed={"0": 29.5, "1": 30.25}, mean=29.875)
    project.ledger()
    row = spools.read(project.spool)[0][0].row
    assert row is not None
    assert "| our error in % | 29.50, 30.25 (2 seeds) |" in records.note(row) and "29.8" not in records.note(row)
    assert records._row_facts(row) == {"our error in %": "29.50, 30.25 (2 seeds)", "claimed error in %": "30 ± 0.20"}


def test_every_point_of_a_short_budgets_curve_has_a_step_of_its_own(tmp_path: Path) -> None:
    """A budget of one image of MNIST's 60,000 at a time."""
    project = Project(tmp_path)
    key = project.trial("lenet5-mnist", "mnist", 0, epochs=9, done=4)
    lines = [{"epoch": n / 60_000, "loss": 1.0, "time": NOW + n, "seconds": n} for n in range(1, 61)]
    project.write(f"store/{key}/curve.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    _, trial = records.all_runs(project.spool)[0]
    steps = [point.step for point in trial.curve if point.key == "train/loss"]
    assert len(set(steps)) == 60 and steps == sorted(steps) and steps[0] > 0


CLAIM = Claim(metric="accuracy", value=37.0, source="A", protocol="B", certainty="read", test_images=10000)
MARKED = LedgerRow(
    benchmark="ordinary-cifar10",
    dataset="cifar10",
    metric="accuracy",
    claim=CLAIM,
    verdict="reproduced",
    budget="laptop",
    paper_epochs=10,
    n=5,
    per_seed={str(seed): 38.0 for seed in range(5)},
    mean=38.0,
    ci95=(37.8, 38.2),
    test_set=OnTestSet(mean=33.4, ci95=(33.1, 33.7), images=10000, per_seed={}),
    difference="They are images of the training file.",
)


def test_a_ledger_row_on_other_images_has_the_whole_test_set_beside_it() -> None:
    values = records._row_figures(MARKED)
    assert (values["ledger/mean"], values["ledger/ci95_low"], values["ledger/claim"]) == (38.0, 37.8, 37.0)
    ends = ("ledger/test_set_mean", "ledger/test_set_ci95_low", "ledger/test_set_ci95_high")
    assert tuple(values[key] for key in ends) == (33.4, 33.1, 33.7)
    note = records._row_tags(MARKED)["mlflow.note.content"]
    assert "| our accuracy in % on the images of the claim | 38.00 [37.80, 38.20], 5 seeds |" in note
    assert "| our accuracy in % on the whole test set | 33.40 [33.10, 33.70] |" in note
    assert note.endswith("The images of the claim are not the whole test set. They are images of the training file.")
    plain = replace(MARKED, test_set=None, difference=None, label="a variant", at_chance=(0, 3))
    assert not [key for key in records._row_figures(plain) if "test_set" in key]
    note = records.note(plain)
    assert "claim |" not in note and "on the whole test set" not in note
    assert note.startswith("**reproduced (a variant)**\n")
    assert note.endswith("2 of 5 seeds stuck at chance: no better than guessing.")
    assert "\n1 of 1 seed stuck at chance" in records.note(replace(plain, at_chance=(0,), n=1))
    assert list(records._row_facts(plain)) == ["our accuracy in %", "claimed accuracy in %"]
    assert records._row_tags(plain)["stuck_at_chance"] == "2 of 5 seeds: 0, 3"
    assert "stuck_at_chance" not in records._row_tags(MARKED)


def test_figures_on_the_images_of_the_claim_stand_beside_the_test_figures(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 60.0, 3)
    benchmark, *_ = spools.read(project.spool)[0]
    plain = records._mean_figures(benchmark.evaluations)
    names = ("error", "accuracy", "error_ci95_low", "error_ci95_high", "top5_error")
    assert plain.keys() == {f"test/{key}" for key in names}
    for seed, error in enumerate((61.0, 61.5, 62.0)):
        on = {"split": "train", "first": 0, "count": 100, "error": error, "accuracy": 100 - error}
        on |= {"single_view_error": 61.6}
        change(tmp_path / f"evaluations/lenet5-mnist/trials/seed-{seed}/metrics.json", claimed_on=on)
    benchmark, *_ = spools.read(project.spool)[0]
    both = records._mean_figures(benchmark.evaluations)
    assert {key: value for key, value in both.items() if key.startswith("test/")} == plain
    assert (both["claimed_on/error"], both["claimed_on/accuracy"]) == (61.5, 38.5)
    trial = benchmark.evaluations[0]
    figures = records._trial_figures(trial.metrics)
    assert (figures["test/error"], figures["claimed_on/error"]) == (trial.metrics.error, 61.0)
    assert figures["claimed_on/single_view_error"] == 61.6 and figures["test/single_view_error"] is None


def test_params_are_flat() -> None:
    flat = records.flatten({"recipe": {"lr": 0.1, "augment": [{"flip": {}}], "subset": {}}, "x": None})
    assert flat == {"recipe.lr": "0.1", "recipe.augment": '[{"flip": {}}]', "recipe.subset": "{}", "x": ""}
