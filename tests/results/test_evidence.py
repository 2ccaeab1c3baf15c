"""Evidence: its files, what the command that writes them refuses, and the ledger of it beside our own trials."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines import compare, publish
from pipelines.command.errors import UserError
from pipelines.command.files import read_json, write_bytes
from pipelines.config.params import load_params
from pipelines.results import evidence
from pipelines.results.evidence import COMMITTED, EVIDENCE, HERE, Evidence
from pipelines.results.ledger import gather, make_ledger, quoted
from pipelines.results.page import report
from pipelines.results.rows import LedgerRow
from pipelines.training import provenance, status, store
from tests import projects
from tests.conftest import edit_params
from tests.report_inputs import SEEDS, make

NAMES = ("linear-mnist", "lenet5-mnist", "ordinary-cifar10", "lenet1-mnist")
FILE = EVIDENCE / "linear-mnist.json"
README = "# A project\n\n<!-- ledger -->\n<!-- end -->\n"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make(tmp_path_factory.mktemp("evidence") / "project", per_cell=1, names=NAMES)
    (folder / "README.md").write_text(README)
    (folder / "results").mkdir()
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    for words in (("init", "-q"), ("add", "README.md", "models"), (*who, "commit", "-q", "-m", "Begin")):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


@pytest.fixture
def project(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed project whose trials are evaluated, as the working directory."""
    shutil.copytree(pristine, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "project")
    return tmp_path / "project"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["publish", *words])
    publish.main()


def rows(name: str = "linear-mnist") -> list[LedgerRow]:
    """The rows of one benchmark, from this project's trials and the evidence committed in it."""
    params = load_params()
    ledger = make_ledger(params, gather(params), evidence.read(params.benchmarks))
    return [row for row in ledger if row.benchmark == name]


def own() -> Evidence:
    params = load_params()
    return evidence.of_outcome(gather(params)["linear-mnist"], "laptop", None)


def commit(*bodies: Evidence) -> None:
    write_bytes(FILE, evidence.text({body.budget: body for body in bodies}).encode())


def shifted(body: Evidence, points: float) -> Evidence:
    """The same with every error higher by so many points, and no matrices to contradict it."""
    seeds = {key: replace(seed, error=seed.error + points, confusion=None) for key, seed in body.seeds.items()}
    return replace(body, seeds=seeds)


def test_what_is_recorded_is_read_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = own()
    run(monkeypatch, "linear-mnist", "ordinary-cifar10")
    (again,) = evidence.read(["linear-mnist"])["linear-mnist"]
    assert again == replace(found, origin=COMMITTED)
    on = evidence.read(["ordinary-cifar10"])["ordinary-cifar10"][0]
    assert on.claimed_on is not None and all(seed.claimed_error is not None for seed in on.seeds.values())
    ledger = (project / "README.md").read_text()
    assert "| linear-mnist | error | 12 ± 0.64 | – | better | " in ledger
    page = (project / "results/index.html").read_text()
    assert "linear-mnist (laptop budget)" in page and str(project) not in page
    run(monkeypatch)
    assert (project / "results/index.html").read_text() == page, "the same bytes without a date of its own"


def test_evidence_is_added_by_budget_and_of_the_first_seeds(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer budget's evidence stays, and seeds count from the first on, as far as they are evaluated."""
    longer = replace(own(), budget="paper", git_commit="a" * 40)
    commit(longer)
    shutil.rmtree(project / "evaluations/linear-mnist/trials/seed-2")
    run(monkeypatch, "linear-mnist")
    bodies = {body.budget: body for body in evidence.read(["linear-mnist"])["linear-mnist"]}
    assert list(bodies["laptop"].seeds) == ["0", "1"] and bodies["paper"].git_commit == "a" * 40


def dirty_trial(project: Path) -> None:
    files = store.TrialFiles(project / "runs/linear-mnist/seed-1")
    files.write_result(read_json(files.result) | {"git_dirty": True})


def another_recipe(project: Path) -> None:
    params = projects.read(project)
    params["benchmarks"]["linear-mnist"]["budgets"]["laptop"]["train_images"] = 100
    projects.write(project, params)
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run(["git", *who, "commit", "-qam", "Cut"], cwd=project, check=True)


def fewer_seeds(project: Path) -> None:
    commit(own())
    shutil.rmtree(project / "evaluations/linear-mnist/trials/seed-4")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a dirty trial": (dirty_trial, "trained at 0123456789abcdef0123456789abcdef01234567-dirty; expected a clean tree"),
    "a dirty tree": (lambda project: (project / "README.md").write_text("x"), "this tree has uncommitted changes"),
    "no Git": (lambda project: shutil.rmtree(project / ".git"), "this tree is not in Git; expected a clean one"),
    "another recipe": (another_recipe, "config.train_images is null, and 100 in models/"),
    "fewer seeds": (fewer_seeds, "linear-mnist has 4 evaluated seeds at the budget laptop; expected at least the 5 of"),
    "no trials": (lambda project: shutil.rmtree(project / "evaluations"), "expected an evaluated trial: run dvc repro"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_evidence_is_refused_in_one_line(project: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    damage, words = REFUSED[name]
    damage(project)
    before = FILE.read_bytes() if FILE.exists() else None
    with pytest.raises(UserError) as caught:
        run(monkeypatch, "linear-mnist")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert (FILE.read_bytes() if FILE.exists() else None) == before
    assert not (project / "results/index.html").exists()


WRONG: dict[str, tuple[Callable[[Any], object], str]] = {
    "unknown key": (lambda body: body.update(sees=1), "laptop.sees is not known"),
    "no commit": (lambda body: body.pop("git_commit"), "laptop.git_commit is missing; expected text"),
    "per cent": (lambda body: body["seeds"]["0"].update(error=101.0), "error is 101.0; expected per cent, 0 to 100"),
    "another error": (lambda body: body["seeds"]["0"].update(error=1.0), "right; expected an error of 1.00 %"),
    "a torn matrix": (lambda body: body["seeds"]["0"]["confusion"].pop(), "confusion is no square of counts"),
    "a torn curve": (lambda body: body["seeds"]["0"]["curve"]["loss"].pop(), "differ in length, or are empty"),
    "other classes": (lambda body: body["classes"].pop(), "a confusion matrix has not the size of classes"),
    "a late year": (
        lambda body: body.update(finished=1e15),
        "finished is 1000000000000000.0; expected a number from 0 to 1e+11",
    ),
    "a seed that is none": (
        lambda body: body.update(seeds={"first": body["seeds"]["0"]}),
        "seeds has the key 'first'; expected a whole number",
    ),
    "no seeds": (lambda body: body.update(seeds={}), "laptop.seeds is {}; expected at least one"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_contradicts_itself_is_one_line(project: Path, name: str) -> None:
    commit(own())
    change, words = WRONG[name]
    found = json.loads(FILE.read_text())
    change(found["laptop"])
    FILE.write_text(json.dumps(found))
    with pytest.raises(UserError) as caught:
        rows()
    assert str(caught.value).startswith(str(FILE)) and words in str(caught.value)


def test_the_best_evidence_is_of_the_full_recipe_then_of_more_seeds(project: Path) -> None:
    params = projects.read(project)
    params["benchmarks"]["linear-mnist"]["budgets"]["paper"]["epochs"] = 20
    projects.write(project, params)
    for path in (project / "runs/linear-mnist").glob("seed-*"):  # as the longer schedule would have left them
        files = store.TrialFiles(path)
        result = read_json(files.result)
        files.write_result(result | {"config": {**result["config"], "paper_epochs": 20}})
    mine = own()
    few = {seed: mine.seeds[seed] for seed in ("0", "1", "2")}
    config = {**mine.config, "epochs": 20}
    full = replace(mine, budget="paper", epochs=20.0, config=config, seeds=few)
    assert [row.origin for row in rows()] == [HERE]
    commit(replace(mine, seeds=few))  # of fewer seeds
    assert [(row.origin, row.best) for row in rows()] == [(HERE, True), (COMMITTED, False)]
    commit(full)  # of the full recipe
    found = rows()
    assert [(row.origin, row.budget, row.best) for row in found] == [
        (COMMITTED, "paper", True), (HERE, "laptop", False),
    ]  # fmt: skip
    assert quoted(found) == found, "both stand in the table"


@pytest.mark.parametrize(
    ("points", "agrees", "words"),
    [
        (0.0, True, "equals the committed figures, seed by seed"),
        (0.1, True, "agrees with the committed "),
        (9.0, False, "does not agree with the committed "),
    ],
)
def test_ours_agrees_within_the_committed_interval_widened_by_ours(
    project: Path, points: float, agrees: bool, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(shifted(own(), points))
    found = next(row for row in rows() if row.origin == HERE)
    assert found.agrees is agrees and found.agreement is not None and found.agreement.startswith(words)
    params = load_params()
    ledger = compare.write(params, gather(params), committed=evidence.read(params.benchmarks))
    assert found.agreement in (project / "report/index.html").read_text()
    table = compare.terminal_table(ledger)
    assert f"{int(agrees)} of 1 of yours agree with committed evidence" in str(table.caption)


def test_an_interval_of_few_seeds_cannot_disagree(project: Path) -> None:
    body = shifted(own(), 9.0)
    commit(replace(body, seeds={seed: body.seeds[seed] for seed in ("0", "1")}))
    found = next(row for row in rows() if row.origin == HERE)
    assert (found.agrees, (found.agreement or "")[:26]) == (None, "too few seeds to compare w")


def test_evidence_of_a_changed_recipe_is_shown_as_such_and_is_never_the_best(project: Path) -> None:
    body = own()
    commit(replace(body, config={**body.config, "recipe": {**body.config["recipe"], "batch": 64}}))
    shutil.rmtree(project / "runs/linear-mnist")
    shutil.rmtree(project / "evaluations/linear-mnist")
    untested, old = rows()
    assert (untested.verdict, untested.best, untested.budget) == ("untested", True, "laptop")
    assert (old.best, old.changed) == (False, "config.recipe.batch was 64, now 32")
    assert quoted([untested, old]) == []
    params = load_params()
    ledger = make_ledger(params, {}, evidence.read(params.benchmarks))
    page = report.build(params, ledger, {}, evidence.read(params.benchmarks))
    assert "Of another recipe, so no evidence for this row: config.recipe.batch was 64, now 32." in page
    assert "linear-mnist (" not in page, "no matrix of it in the explorer"
    assert publish.ledger(ledger).count("\n") == 2, "nor a line in the README"


def test_evidence_and_ledger_name_two_precisions_of_a_rows_seeds(project: Path) -> None:
    """As a checkout has them whose GPU came while its CPU trained."""
    assert own().precision == "fp32" and own().by_precision == {"fp32": [*map(str, SEEDS)]}
    edit_params(project / "params.yaml", linear_mnist={"recipe.precision": {"cuda": "bf16"}})
    for seed in SEEDS[:2]:
        files = store.TrialFiles(project / f"runs/linear-mnist/seed-{seed}")
        result = read_json(files.result)
        config = {**result["config"], "recipe": {**result["config"]["recipe"], "precision": "bf16"}}
        files.write_result({**result, "config": config, "device": "cuda"})
    found = own()
    assert (found.device, found.changed(load_params().benchmark("linear-mnist"))) == ("cuda, cpu", None)
    FILE.parent.mkdir(parents=True)
    FILE.write_text(publish.evidence_text(load_params(), "linear-mnist", "laptop", project))
    (committed,) = evidence.read(["linear-mnist"])["linear-mnist"]
    assert committed.by_precision == found.by_precision and committed.by_precision["bf16"] == ["0", "1"]
    params = load_params()
    ledger = make_ledger(params, gather(params), {"linear-mnist": [committed]})
    for row in (row for row in ledger if row.benchmark == "linear-mnist"):
        assert row.label and row.label.endswith("two precisions")
        assert row.precision and row.precision.startswith("bf16 (seeds 0, 1), fp32 (seeds 2")
    page = report.build(params, ledger, gather(params), {"linear-mnist": [committed]})
    assert page.count("bf16 (seeds 0, 1), fp32 (seeds 2") >= 1


@pytest.mark.parametrize("config", [{}, {"recipe": None}, {"recipe": {}}, {"recipe": {"precision": 1}}])
def test_evidence_that_does_not_name_its_precision_is_one_line(project: Path, config: dict[str, Any]) -> None:
    commit(own())
    bodies = read_json(FILE)
    FILE.write_text(json.dumps({"laptop": {**bodies["laptop"], "config": config}}))
    with pytest.raises(UserError, match=r"linear-mnist\.json: laptop\.config\.recipe\.precision is .*; expected fp32"):
        rows()


def test_evidence_without_a_top5_error_is_one_line_where_that_is_claimed(project: Path) -> None:
    commit(replace(own(), seeds={seed: replace(one, top5_error=None) for seed, one in own().seeds.items()}))
    edit_params(project / "params.yaml", linear_mnist={"claim.metric": "top-5 error"})
    with pytest.raises(UserError, match="linear-mnist, committed: a seed has no top5_error; expected it: "):
        rows()


def test_a_short_run_of_a_row_without_a_claim_has_no_claim(project: Path) -> None:
    edit_params(project / "params.yaml", linear_mnist={"claim.value": None})
    (line,) = (line for line in publish.ledger(rows()).splitlines() if "linear-mnist" in line)
    assert "| error | – | – | no claim |" in line


def test_committed_evidence_is_not_tracked(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was, where it was run: MLflow gets this checkout's rows alone."""
    from pipelines.tracking import spool

    commit(replace(own(), budget="paper"))
    params = load_params()
    compare.write(params, gather(params), committed=evidence.read(params.benchmarks))
    benchmarks, problems = spool.read(spool.Spool(project=project, store=project / "store"))
    assert problems == [] and {one.budget for one in benchmarks} == {"laptop"}
    assert {one.name for one in benchmarks if one.row} == {"linear-mnist", "lenet5-mnist", "ordinary-cifar10"}


def test_a_long_curve_is_thinned_to_its_end(project: Path) -> None:
    outcome = gather(load_params())["linear-mnist"]
    trial = outcome.trials[0]
    curve = [replace(trial.curve[0], epoch=epoch, train_error=float(epoch)) for epoch in range(1, 351)]
    body = evidence.of_outcome(replace(outcome, trials=(replace(trial, curve=curve),)), "laptop", None)
    kept = body.seeds["0"].curve
    assert kept is not None and len(kept.epoch) == evidence.MOST_POINTS
    assert (kept.epoch[0], kept.epoch[-1], kept.train_error[-1]) == (1, 350, 350.0)
    assert len(evidence.text({"laptop": body})) < 20_000


def test_the_time_of_a_trial_whose_result_is_gone_is_unknown(project: Path) -> None:
    outcome = gather(load_params())["linear-mnist"]
    first, *others = outcome.trials
    seeds = evidence.seeds_of(replace(outcome, trials=(*others, replace(first, result=None))))
    assert seeds["0"].wall_s is None and seeds["1"].wall_s == 75.0


@pytest.mark.parametrize(
    ("loss", "losses", "stuck"),
    [
        ("cross_entropy", [2.31, 2.3024], True),
        ("cross_entropy", [2.3024], False),  # one epoch says little
        ("cross_entropy", [2.3024, 2.1], False),
        ("cross_entropy", [2.3024, None], False),
        ("cross_entropy", [2.3024, float("nan")], False),
        ("mse", [2.3024, 2.3024], False),
    ],
)
def test_a_loss_that_stays_at_that_of_a_guess_is_stuck_at_chance(
    loss: str, losses: list[float | None], stuck: bool
) -> None:
    assert status.at_plateau(loss, losses, 10) is stuck


def test_a_trial_on_the_plateau_is_named_in_the_ledger(project: Path) -> None:
    outcome = gather(load_params())["linear-mnist"]
    first, *others = outcome.trials
    assert first.result and first.result.config["recipe"]["loss"] == "cross_entropy" and not first.at_chance
    flat = replace(first, curve=[replace(line, loss=2.3026) for line in first.curve])
    body = evidence.of_outcome(replace(outcome, trials=(flat, *others)), "laptop", None)
    assert [seed for seed, one in body.seeds.items() if one.at_chance] == ["0"]
    assert len(body.seeds) == len(SEEDS), "and it counts"
