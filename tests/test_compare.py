"""The ledger: its schema and its figures, in each of its forms."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipelines import compare
from pipelines.command.errors import UserError
from pipelines.config.claims import Claim
from pipelines.config.params import load_params
from pipelines.results.ledger import gather
from pipelines.results.reader import parsed
from pipelines.results.rows import LedgerRow, claimed_error
from pipelines.tracking import records
from tests import projects
from tests.conftest import edit_params
from tests.report_inputs import (
    DIFFERENCE,
    LABEL,
    MADE,
    REMARKS,
    SEEDS,
    claimed_on,
    edit_json,
    keep_no_examples,
    make,
    write_matrix,
)

Array = npt.NDArray[Any]
ROOT = Path(__file__).resolve().parents[1]
KEYS = {
    *("benchmark", "dataset", "metric", "claim", "deviations", "budget", "per_seed", "n", "mean", "ci95", "verdict"),
    *("wall_s", "hardware", "git_commit", "epochs", "paper_epochs", "parameters", "margin", "test_set", "difference"),
    *(
        "versions",
        "remarks",
        "label",
        "at_chance",
        "precision",
        "config",
        "views",
        "origin",
        "best",
        "changed",
        "agrees",
    ),
    *("ablation", "agreement", "train_error", "seconds", "device", "dataset_digest", "images_per_s", "finished"),
}
TEST_SET_KEYS = {"per_seed", "mean", "ci95", "images"}
CLAIM_KEYS = set(Claim.__annotations__)
UNTESTED = {name for name, made in MADE.items() if made.error is None}
MARKED = [name for name, made in MADE.items() if made.claimed_on]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("report") / "project", per_cell=2)


@pytest.fixture
def project(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project to damage, as the working directory."""
    shutil.copytree(pristine, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr("sys.argv", ["compare"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # refuses at once: the report is what is tested
    return tmp_path / "project"


def report() -> list[LedgerRow]:
    params = load_params()
    return compare.write(params, gather(params))


def row(ledger: list[LedgerRow], name: str) -> LedgerRow:
    return next(r for r in ledger if r.benchmark == name)


def test_ledger_has_a_row_a_benchmark_with_exactly_the_documented_keys(project: Path) -> None:
    report()
    ledger = json.loads((project / "report" / "ledger.json").read_text())
    ran = [name for name, made in MADE.items() if made.error is not None]  # first, and what was not run below them
    names = [row["benchmark"] for row in ledger]
    assert names[: len(ran)] == ran and sorted(names) == sorted(MADE)
    for entry in ledger:
        assert set(entry) == KEYS
        assert set(entry["claim"]) == CLAIM_KEYS


def test_figures_come_from_the_seeds(project: Path) -> None:
    ledger = report()
    found = row(ledger, "lenet5-mnist")
    files = [project / f"evaluations/lenet5-mnist/trials/seed-{s}/metrics.json" for s in SEEDS]
    errors = [json.loads(file.read_text())["error"] for file in files]
    assert list(found.per_seed) == [str(s) for s in SEEDS]
    assert list(found.per_seed.values()) == pytest.approx(errors, abs=1e-4)
    half = 2.7764 * np.std(errors, ddof=1) / 5**0.5
    assert found.mean == pytest.approx(np.mean(errors), abs=1e-4)
    assert found.ci95 == pytest.approx([np.mean(errors) - half, np.mean(errors) + half], abs=1e-3)
    assert (found.n, found.epochs, found.paper_epochs) == (5, 10, 20)
    assert found.wall_s == pytest.approx(5 * 75)
    assert found.git_commit == "0123456789abcdef0123456789abcdef01234567"


def test_a_net_without_a_figure_to_compare_with_has_no_claim_and_shows_its_own(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In terminal, JSON and page; and a claim of a top-5 error is compared with ours."""
    edit_params(Path("params.yaml"), lenet5_mnist={"claim.value": None}, mlp300_mnist={"claim.metric": "top-5 error"})
    compare.main()
    assert "no claim" in capsys.readouterr().out
    ledger = json.loads((project / "report" / "ledger.json").read_text())
    found, top = (next(r for r in ledger if r["benchmark"] == name) for name in ("lenet5-mnist", "mlp300-mnist"))
    assert (found["verdict"], found["claim"]["value"], found["margin"], found["n"]) == ("no claim", None, None, 5)
    assert "lenet5-mnist: error in %, no claim; ours" in (project / "report" / "index.html").read_text()
    files = [project / f"evaluations/mlp300-mnist/trials/seed-{seed}/metrics.json" for seed in SEEDS]
    assert list(top["per_seed"].values()) == [round(json.loads(file.read_text())["top5_error"], 6) for file in files]
    assert claimed_error("top-5 error", 4.7) is claimed_error("error", None) is None  # no line among training errors
    assert "claimed error in % | – |" in records.note(parsed(LedgerRow, found, "a row"))


def test_versions_and_remarks_stand_in_every_form_of_the_ledger(project: Path) -> None:
    found = row(report(), "lenet5-mnist")
    assert found.remarks == REMARKS and row(report(), "linear-mnist").remarks is None
    assert found.versions is not None and "torch 2." in found.versions
    text = (project / "report" / "index.html").read_text()
    assert REMARKS in text and found.versions in text


def test_a_label_stands_beside_the_verdict_in_every_form_of_the_ledger(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare.main()
    assert capsys.readouterr().out.count(LABEL) == 1
    found = json.loads((project / "report" / "ledger.json").read_text())
    assert {entry["benchmark"]: entry["label"] for entry in found if entry["label"]} == {"lenet5-mnist": LABEL}
    assert (project / "report" / "index.html").read_text().count(LABEL) == 2  # the table, and the row's own section


def test_seeds_that_never_left_guessing_are_counted(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seed 1 calls every image a 3, seed 2 is right on one more image in ten than that."""
    keep_no_examples(project / "evaluations/lenet5-mnist")
    for seed, right in ((1, 0), (2, 40)):
        folder = project / f"evaluations/lenet5-mnist/trials/seed-{seed}"
        matrix = np.zeros((10, 10), dtype=int)
        matrix[:, 3] = 40
        matrix[0, 3], matrix[0, 0] = 40 - right, right
        write_matrix(folder, matrix)
        error = 90 - right / 4
        edit_json(folder / "metrics.json", error=error, accuracy=100 - error)
    compare.main()
    assert "1 of 5 seeds stuck at chance" in capsys.readouterr().out
    found = json.loads((project / "report" / "ledger.json").read_text())
    assert {entry["benchmark"]: entry["at_chance"] for entry in found if entry["at_chance"]} == {"lenet5-mnist": [1]}
    assert "1 of 5 seeds stuck at chance" in (project / "report" / "index.html").read_text()


def test_the_configuration_that_was_trained_stands_in_the_ledger(project: Path) -> None:
    config = row(report(), "lenet5-mnist").config
    assert config is not None and config["recipe"]["optimiser"]["lr"] == 0.02 and config["epochs"] == 10


def test_figures_of_another_recipe_are_refused(project: Path) -> None:
    """The claim's deviations are of the recipe as it is now."""
    rows = project / "models/lenet.yaml"
    text = rows.read_text()
    rows.write_text(text.replace("lr: 0.02", "lr: 0.03", 1))
    row = "models/lenet.yaml: mlp300-mnist"
    line = f"result.json: config.recipe.optimiser.lr is 0.02, and 0.03 in {row}; expected the same: run dvc repro"
    with pytest.raises(UserError, match=re.escape(line)):
        report()
    rows.write_text(text.replace("views: single", "views: ten_crop\n    crop: 24", 1))
    line = f"classes.json: protocol is 'single view', and '10-crop averaged' in {row}; expected the same: run dvc repro"
    with pytest.raises(UserError, match=re.escape(line)):
        report()


def test_what_no_verdict_of_table_3_must_be_read_without_stands_below_it(project: Path) -> None:
    params = projects.read(project)
    params["benchmarks"]["allcnn-c-cifar10"]["label"] = LABEL
    projects.write(project, params)
    report()
    assert f"Ours: {LABEL}. Parameters of Model and " in (project / "report/index.html").read_text()


def test_accuracy_claims_are_compared_as_accuracy_on_the_images_of_the_claim(project: Path) -> None:
    found = row(report(), "ordinary-cifar10")
    files = [project / f"evaluations/ordinary-cifar10/trials/seed-{s}/metrics.json" for s in SEEDS]
    metrics = [json.loads(file.read_text()) for file in files]
    accuracies = [m["claimed_on"]["accuracy"] for m in metrics]
    assert found.metric == "accuracy"
    assert list(found.per_seed.values()) == pytest.approx(accuracies, abs=1e-4)
    assert found.mean == pytest.approx(np.mean(accuracies), abs=1e-4)
    half = 2.7764 * np.std(accuracies, ddof=1) / 5**0.5
    assert found.ci95 == pytest.approx([np.mean(accuracies) - half, np.mean(accuracies) + half], abs=1e-3)
    tested = [m["accuracy"] for m in metrics]
    assert found.test_set is not None and set(vars(found.test_set)) == TEST_SET_KEYS
    assert list(found.test_set.per_seed.values()) == pytest.approx(tested, abs=1e-4)
    assert found.test_set.mean == pytest.approx(np.mean(tested), abs=1e-4) != found.mean
    assert found.test_set.images == 400
    assert found.difference == DIFFERENCE


def test_rows_on_the_whole_test_set_have_no_other(project: Path) -> None:
    for entry in report():
        if entry.benchmark not in MARKED:
            assert (entry.test_set, entry.difference) == (None, None)


@pytest.mark.parametrize(
    ("claimed", "tested", "verdict"), [(21.0, 33.0, "reproduced"), (33.0, 21.0, "not reproduced"), (9, 33.0, "better")]
)
def test_the_verdict_is_on_the_images_of_the_claim(project: Path, claimed: float, tested: float, verdict: str) -> None:
    """A claim of 79 %: whether the whole test set comes up to it is another question."""
    name = "ml4a-convnet-cifar10"
    keep_no_examples(project / "evaluations" / name)
    for seed in SEEDS:
        folder = project / f"evaluations/{name}/trials/seed-{seed}"
        on = {**claimed_on(MADE[name]), "error": claimed, "accuracy": 100 - claimed}
        edit_json(folder / "metrics.json", error=tested, accuracy=100 - tested, claimed_on=on)
        right = round(400 * (1 - tested / 100))
        matrix = np.zeros((10, 10), dtype=int)
        matrix[0, 0], matrix[0, 1] = right, 400 - right
        write_matrix(folder, matrix)
    found = row(report(), name)
    assert found.verdict == verdict
    assert found.test_set is not None
    assert (found.mean, found.test_set.mean) == (100 - claimed, 100 - tested)


def test_a_marked_row_never_run_keeps_its_sentence(project: Path) -> None:
    for folder in ("runs", "evaluations"):
        shutil.rmtree(project / folder / "ordinary-cifar10")
    found = row(report(), "ordinary-cifar10")
    assert (found.verdict, found.test_set, found.difference) == ("untested", None, DIFFERENCE)
    assert DIFFERENCE in (project / "report/index.html").read_text()


def test_what_the_suite_does_not_run_is_untested(project: Path) -> None:
    # Left over from another suite: not what this run can vouch for, and not even read.
    (project / "evaluations" / "lenet1-mnist").mkdir()
    ledger = report()
    assert {r.benchmark for r in ledger if r.verdict == "untested"} == UNTESTED
    found = row(ledger, "lenet1-mnist")
    assert found.per_seed == {}
    assert found.n == 0
    for key in ("mean", "ci95", "budget", "wall_s", "hardware", "git_commit", "epochs", "parameters"):
        assert getattr(found, key) is None
    assert found.margin is not None and found.margin > 0


def test_an_active_benchmark_never_run_is_untested(project: Path) -> None:
    for folder in ("runs", "evaluations"):
        shutil.rmtree(project / folder / "linear-mnist")
    found = row(report(), "linear-mnist")
    assert (found.verdict, found.n, found.budget) == ("untested", 0, "laptop")


def test_a_shorter_trial_that_falls_short_is_under_budget(project: Path) -> None:
    assert row(report(), "allcnn-c-cifar10").verdict == "under budget"


def test_a_changed_tree_is_marked(project: Path) -> None:
    edit_json(project / "runs/linear-mnist/seed-1/result.json", git_dirty=True)
    commit = row(report(), "linear-mnist").git_commit
    assert commit == "0123456789abcdef0123456789abcdef01234567, 0123456789abcdef0123456789abcdef01234567-dirty"


def test_only_the_budgets_seeds_count(project: Path) -> None:
    text = projects.read(project)
    text["benchmarks"]["linear-mnist"]["budgets"]["laptop"]["seeds"] = [3, 1]
    projects.write(project, text)
    assert list(row(report(), "linear-mnist").per_seed) == ["1", "3"]


def test_the_same_input_gives_the_same_bytes(project: Path) -> None:
    names = ("ledger.json", "index.html")
    report()
    first = {name: (project / "report" / name).read_bytes() for name in names}
    shutil.rmtree(project / "report")
    report()
    assert {name: (project / "report" / name).read_bytes() for name in names} == first
    assert sorted(p.name for p in (project / "report").iterdir()) == sorted(names)


def test_terminal_table_fits_eighty_columns(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = report()
    compare.main()
    shown = capsys.readouterr().out
    assert "not in" not in shown
    untested = [name for name, made in MADE.items() if made.error is None]
    assert f"{len(untested)} other benchmarks were not run; the report lists them" in shown
    for name, made in MADE.items():
        if name in untested:
            assert name not in shown
            continue
        line = next(line for line in shown.splitlines() if line.strip().startswith(name + " "))
        assert f"{made.claim:g}" in line
        assert ("†" in line) is (name in MARKED)
    assert "† on the images of the claim; below it, on the whole test set" in shown
    mean = row(ledger, MARKED[0]).test_set
    assert mean is not None and f" {mean.mean:.2f} ± " in shown
    assert "\nThe report: report/index.html\n" in shown
    table = shown.partition("The report: ")[0]
    assert max(map(len, (line.rstrip() for line in table.splitlines()))) <= 84


def run_stage(project: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
    command = [sys.executable, "-W", "error", "-m", "pipelines.compare"]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_the_stage_runs_and_fails_in_one_line(project: Path) -> None:
    done = run_stage(project, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "under budget" in done.stdout and " +- " in done.stdout and "\\" not in done.stdout
    seed = "evaluations/lenet5-mnist/trials/seed-3"
    (project / seed / "metrics.json").unlink()
    done = run_stage(project)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {seed}/metrics.json is missing")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("place", ["runs", "evaluations"])
def test_what_a_killed_stage_left_is_no_dependency_of_compare(place: str) -> None:
    """New trials and evaluations are made beside the old ones, so that a rename puts them in their place."""
    command = [sys.executable, "-m", "dvc", "check-ignore", f"{place}/.lenet5-mnist.new/x", f"{place}/lenet5-mnist"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == [f"{place}/.lenet5-mnist.new/x"], done.stderr


def test_the_stage_loads_nothing_heavy() -> None:
    heavy = "torch", "ray", "mlflow", "pytorch_lightning", "matplotlib", "scipy.stats", "sklearn"
    code = f"import sys, pipelines.compare; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
