"""Guards dvc.yaml: each stage depends on what decides its output, names what exists, and on no more."""

from __future__ import annotations

import configparser
import functools
import json
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml

from pipelines import suite
from pipelines.config import yamlfile
from pipelines.config.params import load_params
from pipelines.training import fingerprint
from tests import projects
from tests.config.test_params import B, changed
from tests.conftest import ROOT
from tests.test_house import imports

PARAMS = load_params(ROOT / "params.yaml")
STAGES: dict[str, Any] = yamlfile.read(ROOT / "dvc.yaml")["stages"]


def stage(name: str, benchmark: str, budget: str | None = None) -> dict[str, Any]:
    """One stage of dvc.yaml for a benchmark, its placeholders filled in; at its laptop budget where it has one."""
    entry = PARAMS.benchmark(benchmark)
    budget = budget or ("laptop" if "laptop" in entry.budgets else "paper")
    text = json.dumps(STAGES[name]["do"])
    filled = {"key": benchmark, "item.family": entry.model.family, "item.dataset": entry.dataset, "item.budget": budget}
    for placeholder, value in filled.items():
        text = text.replace(f"${{{placeholder}}}", value)
    assert "${" not in text
    found: dict[str, Any] = json.loads(text)
    return found


def parameters(name: str, benchmark: str) -> list[tuple[str, str]]:
    """File and dotted key of each parameter of a stage."""
    return [(file, key) for one in stage(name, benchmark)["params"] for file, keys in one.items() for key in keys]


def look(found: Any, dotted: str) -> Any:
    """The value at ``dotted``; KeyError where there is none, upon which DVC would refuse to run the stage."""
    for key in dotted.split("."):
        found = found[key]
    return found


def covered(path: str, dependencies: list[str]) -> bool:
    """Whether a file is one of the dependencies, or lies in one."""
    return any(PurePosixPath(path).is_relative_to(one) for one in dependencies)


@pytest.mark.parametrize("name", PARAMS.benchmarks)
def test_the_train_stage_depends_on_what_the_key_hashes(name: str) -> None:
    benchmark = PARAMS.benchmark(name)
    dependencies = stage("train", name)["deps"]
    assert f"datasets/{benchmark.dataset}" in dependencies
    code = fingerprint.of_training(benchmark.resolved("paper"), fingerprint.read())
    for module in code:
        assert covered(f"{module.replace('.', '/')}.py", dependencies), module


def test_the_fetch_stage_depends_on_the_code_of_data_that_it_imports() -> None:
    """On all of it and on no more; entries of params.yaml stand for the rest of ``config``."""
    reached, waiting = set[str](), ["pipelines.fetch"]
    counted = ("pipelines.data.", "pipelines.config.meaning")
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting += [other for other in imports(module) - reached if other.startswith(counted)]
    assert sorted(STAGES["fetch"]["do"]["deps"]) == sorted(f"{module.replace('.', '/')}.py" for module in reached)


@pytest.mark.parametrize("name", PARAMS.benchmarks)
@pytest.mark.parametrize("which", ["train", "evaluate"])
def test_dvc_finds_every_parameter_that_a_stage_names(which: str, name: str) -> None:
    """DVC fails a stage at its end when a parameter it names is not in the file."""
    for plan, benchmarks in ((plan, one.benchmarks) for plan, one in PARAMS.suites.items()):  # whichever is active
        if name in benchmarks:
            for file, key in parameters(which, name):
                look(switched(plan) if file == "suite.yaml" else content(file), key)


@functools.cache
def switched(plan: str) -> Any:
    """suite.yaml as ``pipelines.suite`` would write it."""
    return yaml.safe_load(suite.text(PARAMS.as_active(plan)))


@functools.cache
def content(file: str) -> dict[str, Any]:
    return yamlfile.read(ROOT / file)


DECISIVE: dict[str, Any] = {
    "model/options": {"head": "rbf"},
    "recipe/batch": 32,
    "recipe/shuffle": False,
    "budgets/laptop/epochs": 3,
    "budgets/laptop/train_images": 5000,
    "budgets/paper/epochs": 30,  # stretches the schedule of the shorter budget
    "resources/workers": 2,
}


def moved(place: str, value: Any) -> list[str]:
    """The parameters of the train stage of lenet5-mnist that a change at ``place`` of its row changes."""
    before, after = (found["benchmarks"] for found in (projects.read(ROOT), changed(f"{B}/{place}", value)))
    keys = [key for file, key in parameters("train", "lenet5-mnist") if file == "models/lenet.yaml"]
    return [key for key in keys if look(before, key) != look(after, key)]


@pytest.mark.parametrize("place", DECISIVE)
def test_what_decides_the_weights_is_a_parameter_of_the_train_stage(place: str) -> None:
    """Otherwise `dvc repro` keeps the old trial, and evaluate refuses it for ever as another than the row's."""
    after = projects.build(changed(f"{B}/{place}", DECISIVE[place])).benchmarks["lenet5-mnist"]
    assert PARAMS.benchmarks["lenet5-mnist"].resolved("laptop") != after.resolved("laptop")
    assert moved(place, DECISIVE[place])


def test_what_does_not_decide_the_weights_retrains_nothing() -> None:
    crop = {"views": "ten_crop", "crop": 32}
    for place, value in {"claim/value": 1.0, "deviations": ["x"], "evaluation": crop, "parameters": 5}.items():
        assert moved(place, value) == [], place


def test_every_file_that_a_stage_names_exists() -> None:
    named = [
        path for name in PARAMS.benchmarks for which in ("train", "evaluate") for path in stage(which, name)["deps"]
    ]
    named += [*STAGES["fetch"]["do"]["deps"], *STAGES["compare"]["deps"]]
    made = ("datasets/", "runs", "evaluations")
    assert [path for path in named if not path.startswith(made) and not (ROOT / path).exists()] == []


def test_a_claim_is_a_dependency_of_compare_and_so_is_a_family_that_is_added() -> None:
    """Without an edit of dvc.yaml: it names the folder."""
    assert "models" in STAGES["compare"]["deps"]


def test_what_dvc_parses_for_every_stage_is_small() -> None:
    """Its reader, pure Python, takes 0.2 ms a line and reads params.yaml and suite.yaml some twenty times."""
    lines = [line for name in ("params.yaml", "suite.yaml") for line in (ROOT / name).read_text().splitlines()]
    assert len(lines) <= 140


def test_dvc_looks_for_no_updates_and_reports_nothing() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / ".dvc/config")
    assert not config.getboolean("core", "check_update") and not config.getboolean("core", "analytics")
