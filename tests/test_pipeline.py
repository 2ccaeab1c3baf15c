"""The main job, end to end, on a slice of real MNIST: real DVC, Ray, Lightning and MLflow, as a user runs them."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import projects
from tests.checkout import SUITE, Checkout

LEDGER_KEYS = {
    *("benchmark", "dataset", "metric", "claim", "deviations", "budget", "per_seed", "n", "mean", "ci95", "verdict"),
    *("wall_s", "hardware", "git_commit"),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, mirror: Path) -> Checkout:
    """A checkout in which the small suite has been reproduced once."""
    found = Checkout(tmp_path_factory.mktemp("checkout"), mirror)
    found.small()
    found.run("dvc", "repro")
    return found


def test_one_command_gives_a_ledger_with_honest_verdicts(checkout: Checkout) -> None:
    rows = json.loads((checkout.folder / "report/ledger.json").read_text())
    ledger = {row["benchmark"]: row for row in rows if row["origin"] != "committed"}
    assert all(row.keys() >= LEDGER_KEYS for row in ledger.values())
    for name in SUITE:
        row = ledger[name]
        assert row["n"] == 2 and set(row["per_seed"]) == {"0", "1"}
        assert 2 < row["mean"] < 60  # learnt something, on 20,000 images
        assert row["mean"] == pytest.approx(sum(row["per_seed"].values()) / 2, abs=1e-3)
        assert row["ci95"] is None and row["verdict"] == "under budget"  # 2 seeds conclude nothing
        assert row["epochs"] == pytest.approx(2 * 20_000 / 60_000, abs=1e-3)
    assert ledger["allcnn-c-cifar10"]["verdict"] == "untested"
    page = (checkout.folder / "report/index.html").read_text()
    assert "lenet5-mnist" in page and "under budget" in page
    assert any(row["origin"] == "committed" and row["best"] for row in rows) and "this checkout" in page


def test_afterwards_nothing_is_left_to_do(checkout: Checkout) -> None:
    assert "up to date" in checkout.run("dvc", "status", "dvc.yaml")
    again = checkout.run("dvc", "repro")
    assert "Running stage" not in again and "up to date" in again


def test_dvc_shows_the_table_and_the_confusion_matrices(checkout: Checkout) -> None:
    shown = checkout.json("dvc", "metrics", "show", "--json")
    metrics = shown[""]["data"]["evaluations/lenet5-mnist/metrics.json"]["data"]
    assert metrics["seeds"] == 2 and metrics["test_accuracy"] == pytest.approx(100 - metrics["test_error"])
    plots = checkout.json("dvc", "plots", "show", "--json")
    (plot,) = plots["data"]["evaluations/lenet5-mnist/confusion.csv"]
    cells = json.loads(plot["content"])["data"]["values"] if isinstance(plot["content"], str) else plot["content"]
    cells = cells["data"]["values"] if isinstance(cells, dict) else cells
    assert len(cells) == 100 and sum(int(cell["count"]) for cell in cells) == 2 * 10_000


def test_an_evaluation_that_fails_leaves_the_one_before(checkout: Checkout) -> None:
    """DVC would have deleted it before the stage began."""
    folder, code = checkout.folder / "evaluations/linear-mnist", checkout.folder / "pipelines/evaluate.py"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    whole = code.read_text(encoding="utf-8")
    assert folder / "metrics.json" in before and folder / "trials/seed-1/metrics.json" in before
    code.write_text(whole.replace("    _write_aggregate(folder,", "    1 / 0\n    _write_aggregate(folder,", 1))
    try:
        assert "ZeroDivisionError" in checkout.run("dvc", "repro", "evaluate@linear-mnist", ok=False)
        assert {path: path.read_bytes() for path in before} == before
        assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    finally:
        code.write_text(whole, encoding="utf-8")
    assert "up to date" in checkout.run("dvc", "repro")


def test_a_claim_or_another_family_retrains_nothing(checkout: Checkout) -> None:
    checkout.edit(lambda found: found["benchmarks"]["lenet5-mnist"]["claim"].update(protocol="another wording"))
    ran = checkout.run("dvc", "repro")
    assert (
        "Running stage 'compare'" in ran and "Running stage 'train" not in ran and "Running stage 'evaluate" not in ran
    )
    (checkout.folder / "models/mlp.py").write_text((checkout.folder / "models/mlp.py").read_text() + "\n")
    ran = checkout.run("dvc", "repro")
    assert "Running stage 'train" not in ran and "Running stage 'evaluate" not in ran


def test_one_benchmarks_recipe_retrains_that_one_alone(checkout: Checkout) -> None:
    linear = checkout.folder / "runs/linear-mnist/seed-0/weights.pt"
    before = linear.stat().st_mtime_ns
    ran = checkout.run("dvc", "exp", "run", "-S", "models/lenet.yaml:lenet5-mnist.recipe.optimiser.lr=0.01")
    assert "Running stage 'train@lenet5-mnist'" in ran and "Running stage 'train@linear" not in ran
    assert linear.stat().st_mtime_ns == before
    result = json.loads((checkout.folder / "runs/lenet5-mnist/seed-0/result.json").read_text())
    assert result["config"]["recipe"]["optimiser"]["lr"] == 0.01


def test_mlflow_has_a_parent_a_benchmark_and_a_child_a_trial(checkout: Checkout) -> None:
    checkout.run("python", "-m", "pipelines.tracking")
    ask = """
        import json
        from mlflow.tracking import MlflowClient
        client = MlflowClient("sqlite:///mlflow.db")
        runs = client.search_runs([client.get_experiment_by_name("mnist").experiment_id])
        print(json.dumps([[r.info.run_id, r.info.run_name, r.data.tags.get("mlflow.parentRunId")] for r in runs]))
    """
    # In a process of its own: MLflow's database layer warns while it is imported, and warnings are errors here.
    said = checkout.run("python", "-W", "ignore", "-c", textwrap.dedent(ask))
    runs = next(json.loads(line) for line in said.splitlines() if line.startswith("[["))
    parents = {run: name for run, name, parent in runs if parent is None}
    children = [parent for _, _, parent in runs if parent is not None]
    assert set(SUITE) <= {name.split()[0] for name in parents.values()}
    assert all(parent in parents for parent in children)
    assert len(children) == 2 + 2 + 2  # two seeds each, and LeNet-5's two of the first recipe


def test_the_raw_files_travel_through_a_remote(checkout: Checkout, tmp_path: Path) -> None:
    checkout.run("dvc", "remote", "add", "--local", "-d", "team", str(tmp_path / "remote"))
    pushed = checkout.run("dvc", "push", "data.dvc", ok=True)
    assert "pushed" in pushed
    file = checkout.folder / "data/mnist/t10k-labels-idx1-ubyte"
    file.unlink()
    shutil.rmtree(checkout.folder / ".dvc/cache/files/md5/27")
    checkout.run("dvc", "pull", str(file))
    assert file.stat().st_size == 10_008


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda p: p["benchmarks"]["lenet5-mnist"]["recipe"].update(bach=3),
            "recipe.bach is not known; did you mean batch?",
        ),
        (
            lambda p: p["benchmarks"]["lenet5-mnist"]["recipe"]["optimiser"].update(lr=-1),
            "lr is -1.0; expected a number above 0",
        ),
        (
            lambda p: p["benchmarks"]["lenet5-mnist"]["budgets"]["laptop"].update(seeds=[1, 1]),
            "seeds is [1, 1]; expected each once, without a second 1",
        ),
    ],
)
def test_bad_params_end_dvc_repro_before_anything_trains(
    checkout: Checkout,
    change: Callable[[dict[str, Any]], None],
    words: str,
) -> None:
    kept = projects.read(checkout.folder)
    trials = sorted(checkout.folder.glob("store/*/trial.json"))
    try:
        checkout.edit(change)
        said = checkout.run("dvc", "repro", ok=False)
        assert words in said and "Traceback" not in said
    finally:
        projects.write(checkout.folder, kept)
    assert sorted(checkout.folder.glob("store/*/trial.json")) == trials
