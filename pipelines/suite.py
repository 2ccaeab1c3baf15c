"""Choose what ``dvc repro`` runs: write suite.yaml.

    python -m pipelines.suite          list the suites
    python -m pipelines.suite laptop   switch to one

DVC cannot look up one parameter by another, so the file repeats each benchmark's values that a stage needs. The loader
checks that they are up to date.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.command import arguments
from pipelines.command.errors import guard
from pipelines.command.files import write_bytes
from pipelines.config.params import PARAMS, SUITE, load_catalogue, load_params

HEAD = "# What `dvc repro` runs, as written by `python -m pipelines.suite NAME`: edit params.yaml and models/*.yaml.\n"


def text(active: Mapping[str, Any]) -> str:
    """The content of suite.yaml, names in quotes: YAML 1.1, 1.2 or DVC's mixture of both reads some as numbers."""
    lines = ["suite:", f"  name: {json.dumps(active['name'])}"]
    lines += [f"  datasets: {json.dumps(active['datasets'])}", "  benchmarks:"]
    lines += [f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in active["benchmarks"].items()]
    return HEAD + "\n".join(lines) + "\n"


def switch(name: str, params: Path = PARAMS) -> None:
    """Write suite.yaml beside ``params``, whatever it holds now; UserError when there is no such suite."""
    active = load_catalogue(params).as_active(name)
    write_bytes(params.with_name(SUITE.name), text(active).encode())


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
    for name, suite in params.suites.items():
        mark = "*" if name == params.suite.name else " "
        noun = "benchmark " if len(suite.benchmarks) == 1 else "benchmarks"
        print(f"{mark} {name:<12} {len(suite.benchmarks):>3} {noun} at the {suite.budget} budget")


if __name__ == "__main__":
    guard(main)
