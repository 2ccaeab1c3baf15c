"""Choose what ``dvc repro`` runs: write suite.yaml.

    python -m pipelines.suite          list the suites
    python -m pipelines.suite laptop   switch to one

DVC cannot look one parameter up by another, so the file repeats what a stage needs of each benchmark. The loader checks
that it agrees with the benchmarks.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from pipelines.command import arguments
from pipelines.command.errors import guard
from pipelines.command.files import write_bytes
from pipelines.config.params import PARAMS, SUITE, Suite, load_catalogue, load_params, plan_suite

HEAD = "# What `dvc repro` runs, as written by `python -m pipelines.suite NAME`: edit params.yaml and models/*.yaml.\n"


def text(suite: Suite) -> str:
    """The content of suite.yaml."""
    lines = ["suite:", f"  name: {scalar(suite.name)}"]
    lines += [f"  datasets: [{', '.join(map(scalar, suite.datasets))}]", "  benchmarks:"]
    for name, entry in suite.benchmarks.items():
        fields = ", ".join(f"{key}: {scalar(value)}" for key, value in vars(entry).items())
        lines.append(f"    {scalar(name)}: {{{fields}}}")
    return HEAD + "\n".join(lines) + "\n"


def scalar(name: str) -> str:
    """A name as it stands in YAML: in quotes where 1.1 or 1.2 reads a number, a date or the like in it.

    DVC's reader takes 1_0 and 1e5_0 for numbers too, so that whatever begins with a digit is quoted.
    """
    plain = name[:1].isalpha() and yaml.safe_load(name) == name
    return name if plain else json.dumps(name)


def switch(name: str, params: Path = PARAMS) -> None:
    """Write suite.yaml beside ``params``, whatever it holds now; UserError when there is no such suite."""
    catalogue = load_catalogue(params)
    suite = plan_suite(name, catalogue.suites, catalogue.benchmarks)
    write_bytes(params.with_name(SUITE.name), text(suite).encode())


def main() -> None:
    """List the suites, or switch to one."""
    parser = arguments.Parser(
        prog="python -m pipelines.suite",
        description="List the suites of benchmarks, the active one marked by *, or switch to another. dvc repro and "
        "make repro run the active suite, which suite.yaml holds.",
    )
    parser.add_argument("name", nargs="?", help="the suite to switch to, such as mnist; `laptop` is the default")
    args = parser.parse_args()
    if args.name:
        switch(args.name)
    params = load_params()
    for name, plan in params.suites.items():
        mark = "*" if name == params.suite.name else " "
        noun = "benchmark " if len(plan.benchmarks) == 1 else "benchmarks"
        print(f"{mark} {name:<12} {len(plan.benchmarks):>3} {noun} at the {plan.budget} budget")


if __name__ == "__main__":
    guard(main)
