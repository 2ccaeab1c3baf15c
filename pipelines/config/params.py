"""The project's settings, checked: params.yaml, the rows of models/*.yaml, and the active suite in suite.yaml.

Imports nothing heavy, so that a misspelt key is reported at once. Checks that need torch or the data (does
the model exist, does the batch fit the data) are in ``training.checks``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pipelines.command.errors import UserError
from pipelines.config import schema, wording, yamlfile
from pipelines.config.benchmarks import Benchmark
from pipelines.config.origins import DatasetName, Origin
from pipelines.config.values import AT_LEAST_ONE, EACH_ONCE, Name

PARAMS = Path("params.yaml")
SUITE = Path("suite.yaml")  # beside params.yaml
MODELS = Path("models")  # beside params.yaml
SENTENCES = "sentences"  # key in a file of rows: text that rows share by anchor and alias


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite of params.yaml: which benchmarks, at which budget."""

    name: str
    budget: str
    benchmarks: Annotated[tuple[str, ...], AT_LEAST_ONE, EACH_ONCE]


@dataclass(frozen=True, kw_only=True)
class Written:
    """The content of the files, not checked yet."""

    params: Mapping[Any, Any]
    families: Mapping[str, Mapping[Any, Any]]  # models/<family>.yaml, by family


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Data sets, benchmarks (in the order of the ledger) and suites."""

    datasets: dict[str, Origin]
    benchmarks: dict[str, Benchmark]
    suites: dict[str, Suite]

    def benchmark(self, name: str) -> Benchmark:
        """The benchmark ``name``; UserError with the known ones otherwise."""
        if name not in self.benchmarks:
            raise UserError(wording.unknown("benchmark", name, self.benchmarks))
        return self.benchmarks[name]

    def as_active(self, name: str) -> dict[str, Any]:
        """What suite.yaml holds where the suite ``name`` is active; UserError when there is no such suite."""
        if name not in self.suites:
            raise UserError(wording.unknown("suite", name, self.suites))
        suite = self.suites[name]
        rows = [self.benchmarks[benchmark] for benchmark in suite.benchmarks]
        return {
            "name": name,
            "datasets": list(dict.fromkeys(row.dataset for row in rows)),
            "benchmarks": {
                row.name: {"family": row.model.family, "dataset": row.dataset, "budget": suite.budget} for row in rows
            },
        }


@dataclass(frozen=True, kw_only=True)
class Params(Catalogue):
    """The catalogue and its active suite."""

    suite: Suite

    def budget(self, name: str, asked: str | None = None) -> str:
        """The budget ``asked`` for, or the active suite's, or the paper's; UserError for an unknown one."""
        benchmark = self.benchmark(name)
        budget = asked or (self.suite.budget if name in self.suite.benchmarks else "paper")
        if budget not in benchmark.budgets:
            raise UserError(wording.unknown(f"--budget: {name}: budget", budget, benchmark.budgets))
        return budget


def load_params(path: Path = PARAMS) -> Params:
    """Read and check params.yaml at ``path`` and the files beside it; UserError for the first fault."""
    written = read_files(path)
    place = path.with_name(SUITE.name)
    if not place.exists():
        raise UserError(f"{place} does not exist; write it with: python -m pipelines.suite laptop")
    return build_params(written, yamlfile.read(place))


def load_catalogue(path: Path = PARAMS) -> Catalogue:
    """As ``load_params``, whatever suite.yaml holds."""
    return build_catalogue(read_files(path))


def load_origins(path: Path = PARAMS) -> dict[str, Origin]:
    """The datasets that params.yaml at ``path`` names, whatever else the project's files hold."""
    params = yamlfile.read(path)
    _check_keys(params, path.name, "datasets", "suites")
    return _read_origins(params["datasets"])


def read_files(path: Path = PARAMS) -> Written:
    """params.yaml at ``path`` and the rows beside it, unchecked; UserError when one is absent or no YAML."""
    params = yamlfile.read(path)
    rows = sorted((path.parent / MODELS).glob("*.yaml"))
    return Written(params=params, families={file.stem: yamlfile.read(file) for file in rows})


def build_params(written: Written, active: Mapping[Any, Any]) -> Params:
    """Check the project's files, and suite.yaml's mapping ``active``; UserError for the first fault."""
    catalogue = build_catalogue(written)
    _check_keys(active, SUITE.name, "suite")
    return Params(**vars(catalogue), suite=_active_suite(active["suite"], catalogue))


def build_catalogue(written: Written) -> Catalogue:
    """Check the project's files; UserError for the first fault."""
    _check_keys(written.params, PARAMS.name, "datasets", "suites")
    origins = _read_origins(written.params["datasets"])
    benchmarks: dict[str, Benchmark] = {}
    for family, rows in written.families.items():
        for benchmark in _read_rows(family, rows, origins):
            if benchmark.name in benchmarks:
                other = benchmarks[benchmark.name].model.family
                raise UserError(f"{benchmark.where} stands in {MODELS}/{other}.yaml too; expected each name once")
            benchmarks[benchmark.name] = benchmark
    _check_ablations(benchmarks)
    suites = _read_suites(written.params["suites"], benchmarks)
    return Catalogue(datasets=origins, benchmarks=_in_order(benchmarks, suites), suites=suites)


def _read_origins(value: Any) -> dict[str, Origin]:
    origins: dict[str, Origin] = schema.convert(dict[DatasetName, Origin], value, f"{PARAMS}: datasets")
    return origins


def _check_ablations(benchmarks: Mapping[str, Benchmark]) -> None:
    """UserError for an ablation of anything but a benchmark with a claimed value of the same metric."""
    for benchmark in benchmarks.values():
        if (ablation := benchmark.claim.ablation) is None:
            continue
        of, metric, where = ablation.of, benchmark.claim.metric, f"{benchmark.where}.claim.ablation.of"
        if of not in benchmarks:
            raise UserError(wording.unknown(f"{where}: benchmark", of, benchmarks))
        if benchmarks[of].claim.value is None or benchmarks[of].claim.metric != metric:
            raise UserError(f"{where} is {of}; expected a benchmark that claims a value of {metric}")


def _in_order(benchmarks: Mapping[str, Benchmark], suites: Mapping[str, Suite]) -> dict[str, Benchmark]:
    """In the ledger's order: as the suites name them, the longest suite first; then those of no suite."""
    longest_first = sorted(suites.values(), key=lambda suite: -len(suite.benchmarks))
    named = (name for suite in longest_first for name in suite.benchmarks)
    return {name: benchmarks[name] for name in dict.fromkeys((*named, *benchmarks))}


def _check_keys(content: Mapping[Any, Any], where: str, *keys: str) -> None:
    """UserError unless ``content`` of the file ``where`` has exactly these keys, each with a mapping."""
    for key in content:
        if key not in keys:
            given = key if isinstance(key, str) else wording.show(key)
            raise UserError(wording.unknown(f"{where}: the key", given, keys))
    for key in keys:
        if not isinstance(content.get(key), Mapping):
            state = f"is {wording.show(content[key])}" if key in content else "is missing"
            raise UserError(f"{where}: {key} {state}; expected a mapping")


def _read_rows(family: str, rows: Mapping[Any, Any], origins: Mapping[str, Origin]) -> Iterator[Benchmark]:
    """The benchmarks of models/<family>.yaml."""
    where = f"{MODELS / family}.yaml"
    if not (Path(__file__).parents[2] / MODELS / f"{family}.py").is_file():
        raise UserError(f"{where}: no networks stand beside it; expected {MODELS / family}.py")
    schema.check_keys(Name, rows, where)
    schema.convert(tuple[str, ...], rows.get(SENTENCES, ()), f"{where}: {SENTENCES}")
    for name, row in rows.items():
        if name != SENTENCES:
            yield _read_row(family, name, row, f"{where}: {wording.name(name)}", origins)


def _read_row(family: str, name: str, row: Any, where: str, origins: Mapping[str, Origin]) -> Benchmark:
    model = row.get("model") if isinstance(row, Mapping) else None
    if isinstance(model, Mapping):
        if "family" in model:
            given = f"{where}.model.family is {wording.show(model['family'])}"
            raise UserError(f"{given}; expected none: the file names it")
        row = {**row, "model": {**model, "family": family}}
    benchmark = schema.parse(Benchmark, row, where, name=name)
    if benchmark.dataset not in origins:
        raise UserError(wording.unknown(f"{where}.dataset: dataset", benchmark.dataset, origins))
    return benchmark


def _read_suites(written: Mapping[Any, Any], benchmarks: Mapping[str, Benchmark]) -> dict[str, Suite]:
    """The suites of params.yaml; UserError for an unknown benchmark or budget."""
    where, suites = f"{PARAMS}: suites", dict[str, Suite]()
    schema.check_keys(Name, written, where)
    for name, row in written.items():
        suite = suites[name] = schema.parse(Suite, row, wording.place(where, name), name=name)
        for benchmark in suite.benchmarks:
            if benchmark not in benchmarks:
                raise UserError(wording.unknown(f"{where}.{name}.benchmarks: benchmark", benchmark, benchmarks))
            budgets = benchmarks[benchmark].budgets
            if suite.budget not in budgets:
                raise UserError(wording.unknown(f"{where}.{name}.budget: {benchmark}: budget", suite.budget, budgets))
    return suites


def _active_suite(active: Mapping[Any, Any], catalogue: Catalogue) -> Suite:
    """The active suite; UserError where ``pipelines.suite`` would write another file now.

    DVC reads the file as it is, and would run a suite or a benchmark that was edited since as it was before.
    """
    given = active.get("name")
    name = given if isinstance(given, str) else wording.show(given)
    if name not in catalogue.suites:
        raise UserError(wording.unknown(f"{SUITE}: suite.name: suite", name, catalogue.suites))
    wanted = catalogue.as_active(name)
    if active != wanted or list(active["benchmarks"]) != list(wanted["benchmarks"]):
        again = f"run `python -m pipelines.suite {name}` to bring the file up to date"
        raise UserError(f"{SUITE}: suite is not what params.yaml and the rows make of {name}; {again}")
    return catalogue.suites[name]
