"""Guards tuning: rates are chosen on a slice of train: it is held out of training, and the test images stay closed."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import tune
from pipelines.cluster import campaign
from pipelines.command import errors
from pipelines.command.errors import UserError
from pipelines.config import schema
from pipelines.config.params import load_params
from pipelines.config.recipes import Recipe
from pipelines.data import datasets, subsets
from tests.conftest import ROOT, edit_params
from tests.processes import environment

NAME = "linear-mnist"
SMALL: dict[str, Any] = {
    "choice": {"rates": [1e-7, 0.1], "batches": [64], "hold_out": 400, "seeds": [0, 1]},
    "budgets.paper": {"epochs": 2, "seeds": [0]},
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.tune", *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)


def test_the_better_rate_is_chosen_with_the_test_images_closed(project: Path) -> None:
    edit_params(project / "params.yaml", linear_mnist=SMALL)
    whole = project / "closed"
    whole.mkdir()
    for file in (project / "datasets/mnist").iterdir():  # whoever opened them would fail
        if not file.name.startswith("test_"):
            (whole / file.name).symlink_to(file.resolve())
    (project / "datasets").unlink()
    (project / "datasets").mkdir()
    whole.rename(project / "datasets/mnist")
    done = run(NAME)
    assert done.returncode == 0, done.stderr
    record = json.loads((project / "results/choices/linear-mnist.json").read_text())
    assert record["chosen"] == {"lr": 0.1, "batch": 64}
    found = {one["lr"]: one for one in record["validation_error"]}
    assert found[0.1]["mean"] < 40 < found[1e-7]["mean"]
    assert found[0.1]["mean"] == np.mean(list(found[0.1]["per_seed"].values()))
    assert found[0.1]["per_seed"].keys() == {"0", "1"}
    assert record["config"]["recipe"]["subset"]["hold_out"] == 400
    assert (record["device"], record["config"]["recipe"]["precision"]) in {("cpu", "fp32"), ("cuda", "fp32")}
    chosen = "chosen: rate 0.1 batch 64 (models/linear.yaml: linear-mnist has rate 1 batch 128)"
    assert f"{chosen}; kept in results/choices/linear-mnist.json" in done.stdout


def test_of_what_the_slice_cannot_tell_apart_the_largest_batch_is_chosen() -> None:
    """10,000 images at 4 % have a standard error of 0.196 points."""
    grid: list[dict[str, float]] = [{"lr": lr, "batch": batch} for batch in (8, 32, 128) for lr in (0.1, 0.2)]

    def chosen(*means: float | None) -> dict[str, float]:
        return tune.pick([{"mean": mean} for mean in means], grid, 10_000)

    assert chosen(4.0, 4.1, 4.19, 4.15, 4.2, 5.0) == {"lr": 0.2, "batch": 32}
    assert chosen(4.0, 4.1, 4.21, 4.3, 4.2, 5.0) == {"lr": 0.1, "batch": 8}
    assert chosen(4.0, 4.1, None, None, 4.19, None) == {"lr": 0.1, "batch": 128}
    assert tune.pick([{"mean": 4.05}, {"mean": 4.0}], [{"lr": 0.1}, {"lr": 0.2}], 10_000) == {"lr": 0.2}


def test_the_slice_is_not_trained_on(project: Path) -> None:
    params = edit_params(project / "params.yaml", linear_mnist=SMALL)
    benchmark = params.benchmark(NAME)
    assert benchmark.choice is not None
    one = tune.candidate(benchmark, {"lr": 0.5}, benchmark.choice, 1)
    assert one.recipe.optimiser.lr == 0.5 and one.budgets["choice"].epochs == 1
    data = datasets.open_dataset(Path("datasets"), "mnist")
    trained = set(subsets.positions(data.train, one.recipe.subset).tolist())
    assert len(trained) == 1600 and not trained & set(subsets.validation(2000, 400).tolist())


def test_a_rate_that_diverges_is_an_answer_and_no_other_failure_is(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = edit_params(
        project / "params.yaml", linear_mnist=SMALL | {"recipe.loss": "mse", "choice.rates": [1e30, 0.01]}
    )
    benchmark = params.benchmark(NAME)
    assert benchmark.choice is not None
    record = tune.search(params, benchmark, benchmark.choice, 1)
    assert [one["mean"] is None for one in record["validation_error"]] == [True, False]
    assert record["chosen"] == {"lr": 0.01, "batch": 64}

    def lose(*_: object) -> None:
        raise UserError("the Ray cluster was lost")

    monkeypatch.setattr(campaign, "train", lose)
    more = dataclasses.replace(benchmark.choice, rates=(0.01, 0.02))
    with pytest.raises(UserError, match="the Ray cluster was lost"):
        tune.search(params, benchmark, more, 1)


def test_mu_constant_and_batch_are_chosen_with_the_rate(project: Path) -> None:
    params = edit_params(
        project / "params.yaml",
        lenet5_rbf_mnist={
            "recipe.optimiser": {"name": "sdlm", "lr": 1e-3},
            "recipe.map_constant": 0.1,
            "choice": {"rates": [1e-4, 1e-3], "mus": [0.02, 0.1], "map_constants": [0.3], "batches": [8]},
        },
    )
    benchmark = params.benchmark("lenet5-rbf-mnist")
    choice = benchmark.choice
    assert choice is not None
    pairs = [(1e-4, 0.02), (1e-4, 0.1), (1e-3, 0.02), (1e-3, 0.1)]
    assert tune.grid(choice) == [{"lr": lr, "mu": mu, "map_constant": 0.3, "batch": 8} for lr, mu in pairs]
    assert tune.in_use(benchmark, choice) == {"lr": 1e-3, "mu": 0.02, "map_constant": 0.1, "batch": 16}
    recipe = tune.candidate(benchmark, tune.grid(choice)[1], choice, 1).recipe
    assert (recipe.optimiser.lr, recipe.optimiser.mu, recipe.map_constant, recipe.batch) == (1e-4, 0.1, 0.3, 8)
    # what is not in the grid stays as it is
    assert tune.candidate(benchmark, {"lr": 1e-4}, choice, 1).recipe.map_constant == 0.1
    line = r"choice.mus is \[0.02, 0.1\]; expected nothing: recipe.optimiser.name is sgd$"
    with pytest.raises(UserError, match=line):
        edit_params(project / "params.yaml", lenet5_rbf_mnist={"recipe.optimiser": {"name": "sgd", "lr": 0.1}})


@pytest.mark.parametrize("rate", [math.inf, -math.inf, math.nan, 1e308])
def test_a_rate_of_the_command_line_is_a_number_that_a_float32_holds(rate: float) -> None:
    for name in ("mlp300-mnist", "lenet5-distorted-mnist"):  # with a block `choice`, and without
        with pytest.raises(UserError, match=r"^--rates\[1\] is [-a-z0-9+]*; expected (0, or|a finite number)"):
            tune.wanted(PARAMS.benchmark(name), [0.1, rate])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((NAME,), "error: models/linear.yaml: linear-mnist.choice is missing; expected it there, or --rates\n"),
        ((NAME, "--rates", "-1"), "error: --rates[0] is -1.0; expected a number above 0\n"),
        ((NAME, "--rates", "0.1", "--epochs", "0"), "error: linear-mnist.epochs is 0; expected 1 to 1,000,000\n"),
        (
            ("ordinary-mnist", "--rates", "0.1"),
            "error: ordinary-mnist: its claim is of images 50,001 to 60,000 of the training file; expected another ben",
        ),
        (("liner-mnist",), "error: benchmark liner-mnist is not known; did you mean linear-mnist?"),
    ],
)
def test_bad_input_is_one_line(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    line: str,
) -> None:
    short = {"budgets.laptop": {"epochs": 1, "seeds": [0]}, "choice": None}
    edit_params(project / "params.yaml", linear_mnist=short)
    monkeypatch.setattr(sys, "argv", ["tune", *words])
    with pytest.raises(SystemExit) as ended:
        errors.guard(tune.main)
    said = capsys.readouterr().err
    assert (ended.value.code, said.startswith(line), said.count("\n")) == (2, True, 1), said


# --- the records committed below results/choices ------------------------------------------------------------------

PARAMS = load_params(ROOT / "params.yaml")
RECORDS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / tune.CHOICES).glob("*.json"))}


@pytest.mark.parametrize("name", RECORDS)
def test_the_rates_in_use_are_those_that_were_chosen(name: str) -> None:
    """results/choices keeps what a choice found; params.yaml must not drift from it."""
    record, benchmark = RECORDS[name], PARAMS.benchmark(name)
    choice = benchmark.choice
    assert choice is not None
    assert (record["benchmark"], record["chosen"]) == (name, tune.in_use(benchmark, choice))
    assert (record["hold_out"], tuple(record["seeds"])) == (choice.hold_out, choice.seeds)
    tried = [{k: v for k, v in one.items() if k not in ("per_seed", "mean")} for one in record["validation_error"]]
    assert tried == tune.grid(choice)
    whole = [one for one in record["validation_error"] if one["mean"] is not None]  # None: the loss diverged
    best = min(one["mean"] for one in whole)
    near = [
        one for one in whole if one["mean"] <= best + 100 * ((best / 100) * (1 - best / 100) / choice.hold_out) ** 0.5
    ]
    if choice.batches:
        near = [one for one in near if one["batch"] == max(one["batch"] for one in near)]
        assert record["chosen"].items() <= min(near, key=lambda one: one["mean"]).items()
    else:
        assert record["chosen"].items() <= min(whole, key=lambda one: one["mean"]).items()
    for one in whole:
        assert one["mean"] == np.mean([one["per_seed"][str(seed)] for seed in choice.seeds])


@pytest.mark.parametrize("name", RECORDS)
def test_a_rate_was_chosen_for_the_model_and_recipe_of_today(name: str) -> None:
    benchmark, config = PARAMS.benchmark(name), RECORDS[name]["config"]
    # read as params.yaml is, so that a field which is new since then has its default
    precision = benchmark.recipe.precision
    assert config["recipe"]["precision"] in precision.choices
    then = schema.parse(Recipe, config["recipe"] | {"precision": dataclasses.asdict(precision)}, name)
    assert then.subset.hold_out == RECORDS[name]["hold_out"]
    used = RECORDS[name]["chosen"]
    optimiser: dict[str, Any] = {key: value for key, value in used.items() if key in ("lr", "mu")}
    now = dataclasses.replace(
        then,
        optimiser=dataclasses.replace(then.optimiser, **optimiser),
        batch=used.get("batch", then.batch),
        map_constant=used.get("map_constant", then.map_constant),
        subset=dataclasses.replace(then.subset, hold_out=benchmark.recipe.subset.hold_out),
    )
    assert now == benchmark.recipe
    assert (config["dataset"], config["model"]) == (benchmark.dataset, dataclasses.asdict(benchmark.model))
    # a schedule is stretched from the paper's length to that of the choice
    assert config["paper_epochs"] == benchmark.budgets["paper"].epochs
    assert not RECORDS[name]["git_dirty"], "expected a choice by committed code"


@pytest.mark.parametrize("name", [name for name, benchmark in PARAMS.benchmarks.items() if benchmark.choice])
def test_a_rate_has_its_record_or_says_that_it_was_not_chosen(name: str) -> None:
    """One of the two: neither leaves a rate from nowhere, both a sentence that the choice has overtaken."""
    says_so = any(re.search("not (yet )?(chosen|tuned)", one) for one in PARAMS.benchmark(name).deviations)
    assert says_so != (name in RECORDS)
