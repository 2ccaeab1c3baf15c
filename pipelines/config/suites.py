"""The suites of params.yaml, and the active one in suite.yaml, which ``pipelines.suite`` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.command.errors import UserError
from pipelines.config import schema, wording
from pipelines.config.benchmarks import Benchmark
from pipelines.config.schema import require


@dataclass(frozen=True, kw_only=True)
class SuitePlan:
    """A suite of params.yaml: which benchmarks, at which budget."""

    budget: str
    benchmarks: tuple[str, ...]

    def __post_init__(self) -> None:
        require(len(self.benchmarks) > 0, "benchmarks is []; expected at least one benchmark")
        double = schema.repeated(self.benchmarks)
        require(not double, f"benchmarks names {wording.listed(double)} more than once; expected each once")


@dataclass(frozen=True, kw_only=True)
class SuiteEntry:
    """A benchmark as the active suite runs it."""

    family: str
    dataset: str
    budget: str


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What ``dvc repro`` runs."""

    name: str
    datasets: tuple[str, ...]
    benchmarks: dict[str, SuiteEntry]


def plan_suite(name: str, plans: Mapping[str, SuitePlan], benchmarks: Mapping[str, Benchmark]) -> Suite:
    """The suite ``name`` with what DVC needs to know of its benchmarks; UserError when there is no such suite."""
    if name not in plans:
        raise wording.unknown("suite", name, plans)
    plan = plans[name]
    rows = [benchmarks[benchmark] for benchmark in plan.benchmarks]
    entries = {row.name: SuiteEntry(family=row.model.family, dataset=row.dataset, budget=plan.budget) for row in rows}
    return Suite(name=name, datasets=tuple(dict.fromkeys(row.dataset for row in rows)), benchmarks=entries)


def read_plans(value: Any, where: str, benchmarks: Mapping[str, Benchmark]) -> dict[str, SuitePlan]:
    """The suites that the mapping ``value`` describes; UserError for one that names an unknown benchmark or budget."""
    plans: dict[str, SuitePlan] = schema.convert(dict[str, SuitePlan], value, where)
    for name, plan in plans.items():
        schema.check_name(name, wording.place(where, name), "laptop")
        for benchmark in plan.benchmarks:
            if benchmark not in benchmarks:
                raise wording.unknown(f"{where}.{name}.benchmarks: benchmark", benchmark, benchmarks)
            budgets = benchmarks[benchmark].budgets
            if plan.budget not in budgets:
                raise wording.unknown(f"{where}.{name}.budget: {benchmark}: budget", plan.budget, budgets)
    return plans


def read_suite(value: Any, where: str, plans: Mapping[str, SuitePlan], benchmarks: Mapping[str, Benchmark]) -> Suite:
    """The active suite; UserError where it is not what ``pipelines.suite`` would write now.

    DVC reads the file as it is, so that a suite or a benchmark that was edited since would run as it was before.
    """
    suite = schema.parse(Suite, value, where)
    if suite.name not in plans:
        raise wording.unknown(f"{where}.name: suite", suite.name, plans)
    wanted = plan_suite(suite.name, plans, benchmarks)
    if suite != wanted or list(suite.benchmarks) != list(wanted.benchmarks):
        again = f"run `python -m pipelines.suite {suite.name}` to bring the file up to date"
        raise UserError(f"{where}{_difference(suite, wanted)}; {again}")
    return suite


def _difference(suite: Suite, wanted: Suite) -> str:
    """The first difference, as the end of an error line."""
    strange = set(suite.benchmarks) ^ set(wanted.benchmarks)
    if strange:
        return f".benchmarks is not suites.{wanted.name}.benchmarks ({wording.listed(sorted(strange))})"
    for name, entry in wanted.benchmarks.items():
        for key, want in vars(entry).items():
            have = getattr(suite.benchmarks[name], key)
            if have != want:
                return f".benchmarks.{name}.{key} is {wording.name(have)}; expected {want}"
    if suite.datasets != wanted.datasets:
        return f".datasets is {wording.show(suite.datasets)}; expected {wording.show(wanted.datasets)}"
    return f".benchmarks has another order than suites.{wanted.name}"
