"""The ledger: its schema, its figures, and one line for whatever is missing or damaged among its inputs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipelines import compare
from pipelines.command.errors import UserError
from pipelines.command.files import SEAL, SHA256_DIGITS
from pipelines.config.claims import Claim
from pipelines.config.params import load_params
from pipelines.results import arrays
from pipelines.results.ledger import gather
from pipelines.results.reader import parsed
from pipelines.results.rows import LedgerRow, claimed_error
from pipelines.tracking import records
from pipelines.training import store
from tests import projects
from tests.conftest import edit_params
from tests.report_inputs import DIFFERENCE, LABEL, MADE, REMARKS, SEEDS, claimed_on, make, write_matrix

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


def edit_arrays(path: Path, change: Callable[[dict[str, Array]], object]) -> None:
    with np.load(path) as found:
        held = dict(found)
    change(held)
    arrays.write(path, **held)


def keep_no_examples(folder: Path) -> None:
    """For a test that gives a seed another confusion matrix."""

    def empty(held: dict[str, Array]) -> None:
        for key in ("images", "index"):
            held[key] = held[key][:0]

    edit_arrays(folder / "examples.npz", empty)


def edit_json(path: Path, **changes: object) -> None:
    changed = {**json.loads(path.read_text()), **changes}
    if path.name == "result.json":  # as its trial would have written it
        store.TrialFiles(path.parent).write_result(changed)
    else:
        path.write_text(json.dumps(changed))


SEED = "evaluations/lenet5-mnist/trials/seed-3"
RUN = "runs/lenet5-mnist/seed-3"
MARKED_SEED, ON = "evaluations/ordinary-cifar10/trials/seed-3", claimed_on(MADE["ordinary-cifar10"])
OTHER = {**ON, "first": 0, "error": 1.0, "accuracy": 99.0}
FILES = [
    *(f"{SEED}/metrics.json", f"{SEED}/predictions.npz", "evaluations/lenet5-mnist/classes.json"),
    *("evaluations/lenet5-mnist/examples.npz", f"{RUN}/result.json", f"{RUN}/curve.jsonl"),
]


def refused(project: Path, file: str) -> str:
    """The line with which compare refuses, having written nothing."""
    params = load_params()
    with pytest.raises(UserError) as caught:
        compare.write(params, gather(params))
    line = str(caught.value)
    assert file in line
    assert "\n" not in line
    assert not (project / "report").exists()
    return line


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(project: Path, file: str) -> None:
    (project / file).unlink()
    assert "missing" in refused(project, file)


@pytest.mark.parametrize("file", [*FILES, "evaluations/lenet5-mnist/first_layer.npz"])
def test_a_damaged_file_is_named(project: Path, file: str) -> None:
    (project / file).write_bytes(b"{torn\n")
    assert "damaged" in refused(project, file)


@pytest.mark.parametrize("file", ["result.json", "curve.jsonl", "weights.pt"])
def test_what_is_not_as_its_trial_left_it_is_named(project: Path, file: str) -> None:
    """Though it reads well."""
    path = project / RUN / file
    path.write_text(path.read_text().replace("8000.0", "8001.0") if file != "weights.pt" else "other weights")
    assert "is damaged" in refused(project, f"{RUN}/{file}")


def test_no_seed_counts_twice(project: Path) -> None:
    """Both folders of a seed hold another seed's files, each of which vouches for itself."""
    first, second = sorted((project / RUN).parent.iterdir())[:2]
    for folder in ("runs/lenet5-mnist", "evaluations/lenet5-mnist/trials"):
        shutil.copytree(project / folder / second.name, project / folder / first.name, dirs_exist_ok=True)
    refused(project, f"runs/lenet5-mnist/{first.name}/result.json: seed is {second.name[5:]}, and {first.name[5:]} in ")


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        (f"{SEED}/metrics.json", {"error": "1.0"}, "error is '1.0'; expected a number, without the quotes"),
        (f"{SEED}/metrics.json", {"accuracy": 101}, "accuracy is 101.0; expected per cent, 0 to 100"),
        (f"{SEED}/metrics.json", {"error": float("nan")}, "error is nan; expected per cent, 0 to 100"),
        (f"{SEED}/metrics.json", {"error": 50.0}, "expected files of one evaluation"),
        (f"{SEED}/metrics.json", {"key": "f" * 16}, f"key is '{'f' * 16}', and '"),
        ("evaluations/lenet5-mnist/classes.json", {"classes": ["one"]}, "expected at least two names"),
        (
            f"{SEED}/metrics.json",
            {"claimed_on": OTHER},
            ", and null in models/lenet.yaml: lenet5-mnist; expected the same",
        ),
        (f"{MARKED_SEED}/metrics.json", {"claimed_on": None}, "is null, and {'split': 'train', 'first': 40000"),
        (f"{MARKED_SEED}/metrics.json", {"claimed_on": OTHER}, "claimed_on.first is 0, and 40000 in models/"),
        (f"{MARKED_SEED}/metrics.json", {"claimed_on": ON}, "claimed_on.error is missing; expected a number"),
        ("evaluations/lenet5-mnist/classes.json", {"classes": ["one", 2]}, "classes[1] is 2; expected text"),
        ("evaluations/lenet5-mnist/classes.json", {"test": 10**400}, "expected a whole number within ±2^63"),
        ("evaluations/lenet5-mnist/classes.json", {"test": 0}, "test is 0; expected at least 1"),
        (
            "evaluations/lenet5-mnist/classes.json",
            {"shape": [1, None, 28]},
            "shape[1] is null; expected a whole",
        ),
        (
            "evaluations/lenet5-mnist/classes.json",
            {"dataset": "cifar10"},
            "dataset is 'cifar10', and 'mnist' in models/lenet.yaml",
        ),
        (f"{RUN}/result.json", {"epochs": None}, "epochs is null; expected a number"),
        (f"{RUN}/result.json", {"finished": 1e300}, "finished is 1e+300; expected a number from 0 to 1e+11"),
        (f"{RUN}/result.json", {"images_per_s": "fast"}, "images_per_s is 'fast'; expected a number"),
        (f"{RUN}/result.json", {"resumed": [1]}, "resumed is [1]; expected a whole number"),
        (f"{RUN}/result.json", {"versions": []}, "versions is []; expected a mapping"),
    ],
)
def test_a_wrong_value_is_named(project: Path, file: str, changes: dict[str, object], words: str) -> None:
    edit_json(project / file, **changes)
    assert words in refused(project, file)


def test_predictions_of_other_images_or_classes_are_named(project: Path) -> None:
    file = f"{SEED}/predictions.npz"
    edit_arrays(project / file, lambda held: held["predicted"].__setitem__(7, 10))
    assert "holds answers up to class 10; expected up to 9" in refused(project, file)
    edit_arrays(project / file, lambda held: held.update({key: held[key][:7] for key in held}))
    assert "labels is of shape (7,); expected shape (400,)" in refused(project, file)


EXAMPLES = "evaluations/lenet5-mnist/examples.npz"


@pytest.mark.parametrize("file", [EXAMPLES, "evaluations/lenet5-mnist/first_layer.npz", f"{SEED}/predictions.npz"])
def test_arrays_that_evaluate_did_not_write_are_one_line(project: Path, file: str) -> None:
    """An archive that NumPy reads, without a digest and with that of other contents."""
    sealed = (project / file).read_bytes()
    np.savez(project / file, filters=np.ones((3, 1, 5, 5)))
    assert "is damaged, or older than digests" in refused(project, file)
    (project / file).write_bytes((project / file).read_bytes() + sealed[-len(SEAL) - SHA256_DIGITS :])
    assert "is damaged" in refused(project, file)


def test_examples_of_another_evaluation_are_one_line(project: Path) -> None:
    """As where DVC checked out this file alone."""
    edit_arrays(project / EXAMPLES, lambda held: held["keys"].__setitem__(3, "0" * 16))
    assert "has nothing of seed 3, trial " in refused(project, EXAMPLES)


def test_the_filters_of_a_diverged_net_are_shown_as_zeros(project: Path) -> None:
    path = project / "evaluations/lenet5-mnist/first_layer.npz"
    edit_arrays(path, lambda held: held["filters"].__setitem__(0, np.nan))
    edit_arrays(path, lambda held: held["filters"].__setitem__(1, np.inf))
    report()
    assert not arrays.first_layer(path)["filters"][:2].any()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "half of it": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "nested": lambda path: path.write_bytes(b"[" * 100_000),
    "null": lambda path: path.write_bytes(b"null\n"),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe\n"),
    "digits": lambda path: path.write_bytes(b"9" * 5_000 + b"\n"),
}
KINDS: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("file", FILES)
def test_whatever_a_file_has_become_is_one_line(project: Path, file: str) -> None:
    path = project / file
    whole = path.read_bytes()
    for damage in DAMAGE.values():
        damage(path)
        check(refused(project, path.parent.name))
        path.write_bytes(whole)
    for become in KINDS.values():
        path.unlink()
        become(path)
        check(refused(project, path.parent.name))
        path.rmdir() if path.is_dir() else path.unlink()
        path.write_bytes(whole)
    report()


def check(line: str) -> None:
    assert line.isprintable() and len(line) < 400


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "a folder"])
def test_a_report_that_is_no_folder_is_one_line(project: Path, kind: str) -> None:
    KINDS[kind](project / "report")
    with pytest.raises(UserError, match=r"^report (is no folder; expected one|can't be made)"):
        report()


def test_a_page_that_is_a_folder_is_one_line_and_the_report_stays(project: Path) -> None:
    report()
    before = (project / "report/ledger.json").read_bytes()
    (project / "report/index.html").unlink()
    (project / "report/index.html").mkdir()
    edit_json(project / "runs/linear-mnist/seed-1/result.json", git_dirty=True)
    with pytest.raises(UserError, match=r"^report/index.html is a folder; expected a file, or nothing$"):
        report()
    assert (project / "report/ledger.json").read_bytes() == before


@pytest.mark.parametrize("key", ["epoch", "loss", "train_error"])
def test_a_point_of_a_curve_that_is_none_is_one_line(project: Path, key: str) -> None:
    path = project / f"{RUN}/curve.jsonl"
    values: list[Any] = ["ten", True, [], {}, -(10**400)]
    for value in values:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines[4][key] = value
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        edit_json(project / f"{RUN}/result.json")  # which vouches for it
        assert f"curve.jsonl line 5: {key} is " in refused(project, f"{RUN}/curve.jsonl")


def test_what_a_trial_says_of_itself_is_no_markup_and_moves_no_cursor(project: Path) -> None:
    """Class names: results/test_page.py and test_evaluate.py; names of params.yaml hold no such characters."""
    for seed in SEEDS:
        said = "\x1b[31m<script>alert(1)</script>|`\u202e\ud800\n## no heading"
        edit_json(project / f"runs/lenet5-mnist/seed-{seed}/result.json", hardware=said)
    report()
    for name in ("ledger.json", "index.html"):
        text = (project / "report" / name).read_text(encoding="utf-8")
        assert name == "ledger.json" or all(line.isprintable() for line in text.split("\n"))
        assert name == "ledger.json" or "<script>alert" not in text
        assert name == "index.html" or "\n## no heading" not in text
    assert json.loads((project / "report/ledger.json").read_text(encoding="utf-8"))


def run_stage(project: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
    command = [sys.executable, "-W", "error", "-m", "pipelines.compare"]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_the_stage_runs_and_fails_in_one_line(project: Path) -> None:
    done = run_stage(project, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "under budget" in done.stdout and " +- " in done.stdout and "\\" not in done.stdout
    (project / SEED / "metrics.json").unlink()
    done = run_stage(project)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {SEED}/metrics.json is missing")
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
