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

import numpy as np
import pytest
import yaml

from pipelines import benchmarks, compare, store
from pipelines.errors import UserError
from pipelines.page import table3
from pipelines.page.outcomes import LedgerRow
from tests.report_inputs import DIFFERENCE, LABEL, MADE, REMARKS, SEEDS, claimed_on, make

ROOT = Path(__file__).resolve().parent.parent
KEYS = {
    *("benchmark", "dataset", "metric", "claim", "deviations", "budget", "per_seed", "n", "mean", "ci95", "verdict"),
    *("wall_s", "hardware", "git_commit", "epochs", "paper_epochs", "parameters", "margin", "test_set", "difference"),
    *("versions", "remarks", "label", "at_chance", "config", "views"),
}
TEST_SET_KEYS = {"per_seed", "mean", "ci95", "images"}
CLAIM_KEYS = {"value", "unit", "source", "protocol", "certainty"}
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
    return tmp_path / "project"


def report() -> list[LedgerRow]:
    params = benchmarks.load()
    return compare.write(params, compare.gather(params))


def row(ledger: list[LedgerRow], name: str) -> LedgerRow:
    return next(r for r in ledger if r["benchmark"] == name)


def test_ledger_has_a_row_a_benchmark_with_exactly_the_documented_keys(project: Path) -> None:
    report()
    ledger = json.loads((project / "report" / "ledger.json").read_text())
    ran = [name for name, made in MADE.items() if made.error is not None]  # first, and what was not run below them
    assert [r["benchmark"] for r in ledger] == [*ran, *(name for name in MADE if name not in ran)]
    for entry in ledger:
        assert set(entry) == KEYS
        assert set(entry["claim"]) == CLAIM_KEYS
        assert entry["claim"]["unit"] == "%"


def test_figures_come_from_the_seeds(project: Path) -> None:
    ledger = report()
    found = row(ledger, "lenet5-mnist")
    files = [project / f"evaluations/lenet5-mnist/trials/seed-{s}/metrics.json" for s in SEEDS]
    errors = [json.loads(file.read_text())["error"] for file in files]
    assert list(found["per_seed"]) == [str(s) for s in SEEDS]
    assert list(found["per_seed"].values()) == pytest.approx(errors, abs=1e-4)
    half = 2.7764 * np.std(errors, ddof=1) / 5**0.5
    assert found["mean"] == pytest.approx(np.mean(errors), abs=1e-4)
    assert found["ci95"] == pytest.approx([np.mean(errors) - half, np.mean(errors) + half], abs=1e-3)
    assert (found["n"], found["epochs"], found["paper_epochs"]) == (5, 10, 20)
    assert found["wall_s"] == pytest.approx(5 * 75)
    assert found["git_commit"] == "0123456789abcdef0123456789abcdef01234567"


def test_versions_and_remarks_stand_in_every_form_of_the_ledger(project: Path) -> None:
    found = row(report(), "lenet5-mnist")
    assert found["remarks"] == REMARKS and row(report(), "linear-mnist")["remarks"] is None
    assert found["versions"] is not None and "torch 2." in found["versions"]
    text = (project / "report" / "ledger.md").read_text()
    assert f"- Tried, and left to try: {REMARKS}" in text and found["versions"] in text
    assert REMARKS in (project / "report" / "index.html").read_text()


def test_a_label_stands_beside_the_verdict_in_every_form_of_the_ledger(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare.main()
    assert capsys.readouterr().out.count(LABEL) == 1
    found = json.loads((project / "report" / "ledger.json").read_text())
    assert {entry["benchmark"]: entry["label"] for entry in found if entry["label"]} == {"lenet5-mnist": LABEL}
    assert f"[lenet5-mnist](#lenet5-mnist) ({LABEL}) |" in (project / "report" / "ledger.md").read_text()
    assert (project / "report" / "index.html").read_text().count(LABEL) == 2  # the table, and the row's own section


def test_seeds_that_never_left_guessing_are_counted(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seed 1 calls every image a 3, seed 2 is right on one more image in ten than that."""
    for seed, right in ((1, 0), (2, 40)):
        folder = project / f"evaluations/lenet5-mnist/trials/seed-{seed}"
        matrix = np.zeros((10, 10), dtype=int)
        matrix[:, 3] = 40
        matrix[0, 3], matrix[0, 0] = 40 - right, right
        np.savetxt(folder / "confusion.csv", matrix, fmt="%d", delimiter=",")
        error = 90 - right / 4
        edit_json(folder / "metrics.json", error=error, accuracy=100 - error)
    compare.main()
    assert "1 of 5 seeds at chance" in capsys.readouterr().out
    found = json.loads((project / "report" / "ledger.json").read_text())
    assert {entry["benchmark"]: entry["at_chance"] for entry in found if entry["at_chance"]} == {"lenet5-mnist": [1]}
    assert "- At chance: 1 of 5 seeds, no better on the" in (project / "report" / "ledger.md").read_text()
    assert "1 of 5 seeds at chance" in (project / "report" / "index.html").read_text()


def test_the_configuration_that_was_trained_stands_in_the_ledger(project: Path) -> None:
    config = row(report(), "lenet5-mnist")["config"]
    assert config is not None and config["recipe"]["optimiser"]["lr"] == 0.02 and config["epochs"] == 10


def test_figures_of_another_recipe_are_refused(project: Path) -> None:
    """The claim's deviations are of the recipe as it is now."""
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("lr: 0.02", "lr: 0.03", 1))
    line = "result.json: config.recipe.optimiser.lr is 0.02, and 0.03 by params.yaml; expected a trial of what stands"
    with pytest.raises(UserError, match=re.escape(line)):
        report()
    (project / "params.yaml").write_text(text.replace("views: single", "views: ten_crop\n      crop: 24", 1))
    line = (
        "classes.json: protocol is single view, and 10-crop averaged in params.yaml; expected the same: run dvc repro"
    )
    with pytest.raises(UserError, match=re.escape(line)):
        report()


def test_table_3_stands_in_the_markdown_with_every_cell_filled_or_marked(project: Path) -> None:
    report()
    lines = (project / "report" / "ledger.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|  | Model |"))
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start : start + 5]]
    assert table[0] == ["", "Model", "Strided-CNN", "ConvPool-CNN", "All-CNN"]
    cells = {(line[0], name): cell for line in table[2:] for name, cell in zip(table[0][1:], line[1:], strict=True)}
    run = cells.pop(("C", "All-CNN"))
    assert re.fullmatch(r"9\.08; \d\d\.\d\d ± \d\.\d\d, under budget", run)
    published = {
        (base, name): f"{table3.PUBLISHED[base][variant]:.2f}; untested"
        for base in table3.BASES
        for variant, name in table3.VARIANTS.items()
    }
    del published["C", "All-CNN"]
    assert cells == published
    assert lines[start + 6].startswith("Parameters of Model and ")


def test_what_no_verdict_of_table_3_must_be_read_without_stands_below_it(project: Path) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["benchmarks"]["allcnn-c-cifar10"]["label"] = LABEL
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    report()
    for name in ("ledger.md", "index.html"):
        assert f"Ours: {LABEL}. Parameters of Model and " in (project / "report" / name).read_text()


def test_accuracy_claims_are_compared_as_accuracy_on_the_images_of_the_claim(project: Path) -> None:
    found = row(report(), "ordinary-cifar10")
    files = [project / f"evaluations/ordinary-cifar10/trials/seed-{s}/metrics.json" for s in SEEDS]
    metrics = [json.loads(file.read_text()) for file in files]
    accuracies = [m["claimed_on"]["accuracy"] for m in metrics]
    assert found["metric"] == "accuracy"
    assert list(found["per_seed"].values()) == pytest.approx(accuracies, abs=1e-4)
    assert found["mean"] == pytest.approx(np.mean(accuracies), abs=1e-4)
    half = 2.7764 * np.std(accuracies, ddof=1) / 5**0.5
    assert found["ci95"] == pytest.approx([np.mean(accuracies) - half, np.mean(accuracies) + half], abs=1e-3)
    tested = [m["accuracy"] for m in metrics]
    assert found["test_set"] is not None and set(found["test_set"]) == TEST_SET_KEYS
    assert list(found["test_set"]["per_seed"].values()) == pytest.approx(tested, abs=1e-4)
    assert found["test_set"]["mean"] == pytest.approx(np.mean(tested), abs=1e-4) != found["mean"]
    assert found["test_set"]["images"] == 400
    assert found["difference"] == DIFFERENCE


def test_rows_on_the_whole_test_set_have_no_other(project: Path) -> None:
    for entry in report():
        if entry["benchmark"] not in MARKED:
            assert (entry["test_set"], entry["difference"]) == (None, None)


@pytest.mark.parametrize(
    ("claimed", "tested", "verdict"), [(21.0, 33.0, "reproduced"), (33.0, 21.0, "not reproduced"), (9, 33.0, "better")]
)
def test_the_verdict_is_on_the_images_of_the_claim(project: Path, claimed: float, tested: float, verdict: str) -> None:
    """A claim of 79 %: whether the whole test set comes up to it is another question."""
    name = "ml4a-convnet-cifar10"
    for seed in SEEDS:
        folder = project / f"evaluations/{name}/trials/seed-{seed}"
        on = {**claimed_on(MADE[name]), "error": claimed, "accuracy": 100 - claimed}
        edit_json(folder / "metrics.json", error=tested, accuracy=100 - tested, claimed_on=on)
        right = round(400 * (1 - tested / 100))
        matrix = np.zeros((10, 10), dtype=int)
        matrix[0, 0], matrix[0, 1] = right, 400 - right
        np.savetxt(folder / "confusion.csv", matrix, fmt="%d", delimiter=",")
    found = row(report(), name)
    assert found["verdict"] == verdict
    assert found["test_set"] is not None
    assert (found["mean"], found["test_set"]["mean"]) == (100 - claimed, 100 - tested)


def test_a_marked_row_never_run_keeps_its_sentence(project: Path) -> None:
    for folder in ("runs", "evaluations"):
        shutil.rmtree(project / folder / "ordinary-cifar10")
    found = row(report(), "ordinary-cifar10")
    assert (found["verdict"], found["test_set"], found["difference"]) == ("untested", None, DIFFERENCE)
    written = (project / "report" / "ledger.md").read_text()
    assert "| [ordinary-cifar10](#ordinary-cifar10) | cifar10 | accuracy | 37 ± 0.95 | – |" in written


def test_what_the_suite_does_not_run_is_untested(project: Path) -> None:
    # Left over from another suite: not what this run can vouch for, and not even read.
    (project / "evaluations" / "lenet1-mnist").mkdir()
    ledger = report()
    assert {r["benchmark"] for r in ledger if r["verdict"] == "untested"} == UNTESTED
    found = row(ledger, "lenet1-mnist")
    assert found["per_seed"] == {}
    assert found["n"] == 0
    for key in ("mean", "ci95", "budget", "wall_s", "hardware", "git_commit", "epochs", "parameters"):
        assert found[key] is None
    assert found["margin"] > 0


def test_an_active_benchmark_never_run_is_untested(project: Path) -> None:
    for folder in ("runs", "evaluations"):
        shutil.rmtree(project / folder / "linear-mnist")
    found = row(report(), "linear-mnist")
    assert (found["verdict"], found["n"], found["budget"]) == ("untested", 0, "laptop")


def test_a_shorter_trial_that_falls_short_is_under_budget(project: Path) -> None:
    assert row(report(), "allcnn-c-cifar10")["verdict"] == "under budget"


def test_a_changed_tree_is_marked(project: Path) -> None:
    edit_json(project / "runs/linear-mnist/seed-1/result.json", git_dirty=True)
    commit = row(report(), "linear-mnist")["git_commit"]
    assert commit == "0123456789abcdef0123456789abcdef01234567, 0123456789abcdef0123456789abcdef01234567-dirty"


def test_only_the_budgets_seeds_count(project: Path) -> None:
    text = yaml.safe_load((project / "params.yaml").read_text())
    text["benchmarks"]["linear-mnist"]["budgets"]["laptop"]["seeds"] = [3, 1]
    (project / "params.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    assert list(row(report(), "linear-mnist")["per_seed"]) == ["1", "3"]


def test_the_same_input_gives_the_same_bytes(project: Path) -> None:
    names = ("ledger.json", "ledger.md", "index.html")
    report()
    first = {name: (project / "report" / name).read_bytes() for name in names}
    shutil.rmtree(project / "report")
    report()
    assert {name: (project / "report" / name).read_bytes() for name in names} == first
    assert sorted(p.name for p in (project / "report").iterdir()) == sorted(names)


def test_markdown_sets_claim_beside_ours(project: Path) -> None:
    text = yaml.safe_load((project / "params.yaml").read_text())
    text["benchmarks"]["linear-mnist"]["deviations"] = ["A pipe | and a\nline break."]
    (project / "params.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    ledger = report()
    written = (project / "report" / "ledger.md").read_text()
    lines = [line for line in written.splitlines() if line.startswith("| [")]
    assert len(lines) == len(MADE)
    for line in lines:
        assert len(re.findall(r"(?<!\\)\|", line)) == 9  # eight columns
    by_name = {line[3 : line.index("]")]: line for line in lines}
    assert "| 0.95 ± 0.19 |" in by_name["lenet5-mnist"]
    assert f"{row(ledger, 'lenet5-mnist')['mean']:.2f} [" in by_name["lenet5-mnist"]
    assert "| 80 ± 2.48* |" in by_name["convnetjs-cifar10"]  # recalled, and marked so
    for name in MARKED:
        found = row(ledger, name)
        assert found["test_set"] is not None
        line = next(line for line in lines if line.startswith(f"| [{name}]"))
        low, high = found["test_set"]["ci95"] or (0, 0)
        assert f"†; test set {found['test_set']['mean']:.2f} [{low:.2f}, {high:.2f}] |" in line
    assert f"- Measured † on images 40,001 to 50,000 of the training file: {DIFFERENCE}" in written
    assert f"- Measured † on images 1 to 1,000 of the test file: {DIFFERENCE}" in written
    assert written.count("- On the whole test set (400 images): ") == written.count("†; test set ") == len(MARKED)
    assert "- Deviation: A pipe | and a line break." in written
    assert written.count("- Deviation: ") == 1 + 2 * (len(MADE) - 1)


def test_terminal_table_fits_eighty_columns(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = report()
    compare.main()
    shown = capsys.readouterr().out
    assert "not in" not in shown
    untested = [name for name, made in MADE.items() if made.error is None]
    assert f"{len(untested)} other benchmarks are untested; the report lists them" in shown
    for name, made in MADE.items():
        if name in untested:
            assert name not in shown
            continue
        line = next(line for line in shown.splitlines() if line.strip().startswith(name + " "))
        assert f"{made.claim:g}" in line
        assert ("†" in line) is (name in MARKED)
    assert "† on the images of the claim; below it, on the whole test set" in shown
    mean = row(ledger, MARKED[0])["test_set"]
    assert mean is not None and f" {mean['mean']:.2f} ± " in shown
    assert shown.rstrip().endswith("report/index.html")
    assert max(map(len, (line.rstrip() for line in shown.splitlines()))) <= 84


def edit_json(path: Path, **changes: object) -> None:
    changed = {**json.loads(path.read_text()), **changes}
    if path.name == "result.json":  # as its trial would have written it
        store.TrialFiles(path.parent).write_result(changed)
    else:
        path.write_text(json.dumps(changed))


SEED = "evaluations/lenet5-mnist/trials/seed-3"
RUN = "runs/lenet5-mnist/seed-3"
MARKED_SEED, ON = "evaluations/ordinary-cifar10/trials/seed-3", claimed_on(MADE["ordinary-cifar10"])
FILES = [
    *(f"{SEED}/metrics.json", f"{SEED}/confusion.csv", "evaluations/lenet5-mnist/classes.json"),
    *("evaluations/lenet5-mnist/examples.npz", f"{RUN}/result.json", f"{RUN}/curve.jsonl"),
]


def refused(project: Path, file: str) -> str:
    """The line with which compare refuses, having written nothing."""
    params = benchmarks.load()
    with pytest.raises(UserError) as caught:
        compare.write(params, compare.gather(params))
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


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        (f"{SEED}/metrics.json", {"error": "1.0"}, "error is '1.0'; expected per cent, 0 to 100"),
        (f"{SEED}/metrics.json", {"accuracy": 101}, "accuracy is 101; expected per cent, 0 to 100"),
        (f"{SEED}/metrics.json", {"error": float("nan")}, "error is nan; expected per cent, 0 to 100"),
        (f"{SEED}/metrics.json", {"error": 50.0}, "expected files of one evaluation"),
        (f"{SEED}/metrics.json", {"key": "f" * 16}, "expected the same trial"),
        ("evaluations/lenet5-mnist/classes.json", {"classes": ["one"]}, "expected a list of at least two names"),
        (f"{SEED}/metrics.json", {"claimed_on": ON}, "expected none, the whole test split: run dvc repro"),
        (f"{MARKED_SEED}/metrics.json", {"claimed_on": None}, "claimed_on is null; expected the images 40,001 to"),
        (f"{MARKED_SEED}/metrics.json", {"claimed_on": {**ON, "first": 0}}, "of the training file: run dvc repro"),
        (f"{MARKED_SEED}/metrics.json", {"claimed_on": ON}, "claimed_on.error is null; expected per cent, 0 to 100"),
        (f"{RUN}/result.json", {"epochs": None}, "epochs is null; expected a number"),
        (f"{RUN}/result.json", {"versions": []}, "versions is []; expected an object"),
    ],
)
def test_a_wrong_value_is_named(project: Path, file: str, changes: dict[str, object], words: str) -> None:
    edit_json(project / file, **changes)
    assert words in refused(project, file)


def drop_a_row(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def lose_a_key(path: Path) -> None:
    with np.load(path) as found:
        kept = {key: found[key] for key in found.files if key != "index"}
    np.savez(path, **kept)


def foreign_class(path: Path) -> None:
    with np.load(path) as found:
        arrays = {key: found[key] for key in found.files}
    arrays["predicted"] = arrays["predicted"] + 5
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        (f"{SEED}/confusion.csv", drop_a_row, "holds 9x10 counts"),
        ("evaluations/lenet5-mnist/examples.npz", lose_a_key, "lacks index"),
        ("evaluations/lenet5-mnist/examples.npz", foreign_class, "expected 0 to 9"),
    ],
)
def test_an_inconsistent_file_is_named(project: Path, file: str, damage: Callable[[Path], None], words: str) -> None:
    damage(project / file)
    assert words in refused(project, file)


def run_stage(project: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-m", "pipelines.compare"]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=60)


def test_the_stage_runs_and_fails_in_one_line(project: Path) -> None:
    done = run_stage(project)
    assert (done.returncode, done.stderr) == (0, "")
    assert "under budget" in done.stdout
    (project / SEED / "metrics.json").unlink()
    done = run_stage(project)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {SEED}/metrics.json is missing")
    assert done.stderr.count("\n") == 1


def test_the_stage_loads_nothing_heavy() -> None:
    heavy = "torch", "ray", "mlflow", "pytorch_lightning", "matplotlib", "scipy.stats"
    code = f"import sys, pipelines.compare; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
