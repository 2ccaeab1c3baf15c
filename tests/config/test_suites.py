"""Guards suites: the active one is what pipelines.suite would write, or one line says what to run."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.config.test_params import NOTHING, changed, complaint, shown

LENET = "suite/benchmarks/lenet5-mnist"
ENTRY = {"family": "lenet", "dataset": "mnist", "budget": "laptop"}
WRONG_PLANS: list[tuple[str, Any, str]] = [
    ("benchmarks", ["lenet5"], ".benchmarks: benchmark lenet5 is not known; did you mean lenet5-mnist?"),
    ("budget", "papper", ".budget: linear-mnist: budget papper is not known; did you mean paper?"),
    ("benchmarks", ["linear-mnist"] * 2, ".benchmarks names linear-mnist more than once; "),
    ("benchmarks", [], ".benchmarks is []; expected at least one benchmark"),
]


@pytest.mark.parametrize(("key", "value", "rest"), WRONG_PLANS)
def test_a_suite_of_what_there_is_not_is_one_line(key: str, value: Any, rest: str) -> None:
    assert complaint(changed(f"suites/laptop/{key}", value)).startswith(shown("suites/laptop") + rest)


STALE: list[tuple[str, Any, str]] = [
    (f"{LENET}/family", "mlp", ".benchmarks.lenet5-mnist.family is mlp; expected lenet"),
    (f"{LENET}/dataset", "cifar10", ".benchmarks.lenet5-mnist.dataset is cifar10; expected mnist"),
    (f"{LENET}/budget", "paper", ".benchmarks.lenet5-mnist.budget is paper; expected laptop"),
    (LENET, NOTHING, ".benchmarks is not suites.laptop.benchmarks (lenet5-mnist)"),
    ("suite/benchmarks/lenet5-mnits", ENTRY, ".benchmarks is not suites.laptop.benchmarks (lenet5-mnits)"),
    ("suite/datasets", ["mnist"], ".datasets is ['mnist']; expected ['mnist', 'cifar10']"),
    ("suite/datasets", ["cifar10", "mnist"], ".datasets is ['cifar10', 'mnist']; expected ['mnist', 'cifar10']"),
    (
        "suites/laptop/benchmarks",
        ["linear-mnist", "lenet5-mnist", "mlp300-mnist", "ordinary-cifar10", "convnetjs-cifar10", "strided-a-cifar10"],
        ".benchmarks has another order than suites.laptop",
    ),
]


@pytest.mark.parametrize(("place", "value", "rest"), STALE)
def test_an_active_suite_that_was_edited_or_is_old_is_one_line(place: str, value: Any, rest: str) -> None:
    again = "run `python -m pipelines.suite laptop` to bring the file up to date"
    assert complaint(changed(place, value)) == f"suite.yaml: suite{rest}; {again}"


def test_an_active_suite_of_another_shape_is_one_line() -> None:
    assert complaint(changed(LENET, None)) == "suite.yaml: suite.benchmarks.lenet5-mnist is null; expected a mapping"
    assert complaint(changed("suite/name", "labtop")).startswith(
        "suite.yaml: suite.name: suite labtop is not known; did you mean laptop?"
    )


def test_a_long_difference_is_cut() -> None:
    found = changed("suite/benchmarks", {})
    found["suites"]["laptop"] = {"budget": "paper", "benchmarks": list(found["benchmarks"])}
    assert re.search(r"\.\.\. and \d\d more", complaint(found)) and len(complaint(found)) < 500
