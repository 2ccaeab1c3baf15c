"""Choose what ``dvc repro`` runs: write the ``suite`` block at the end of params.yaml.

    python -m pipelines.suite          list the suites
    python -m pipelines.suite laptop   switch to one

DVC can't look one parameter up by another, so the block repeats what a stage needs to know of each benchmark; that it
agrees with the benchmarks is checked whenever params.yaml is read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import benchmarks, schema, store
from pipelines.errors import UserError, guard


def block(params: benchmarks.Params, name: str) -> str:
    """The ``suite`` block for the suite ``name``; UserError when there is no such suite."""
    if name not in params.suites:
        raise schema.unknown("suite", name, params.suites)
    plan = params.suites[name]
    chosen = [params.benchmarks[benchmark] for benchmark in plan.benchmarks]
    datasets = dict.fromkeys(benchmark.dataset for benchmark in chosen)
    lines = ["suite:", f"  name: {name}", f"  datasets: [{', '.join(datasets)}]", "  benchmarks:"]
    lines += [
        f"    {one.name}: {{family: {one.model.family}, dataset: {one.dataset}, budget: {plan.budget}}}"
        for one in chosen
    ]
    return "\n".join(lines) + "\n"


def switch(name: str, path: Path = benchmarks.PARAMS) -> None:
    """Rewrite the block in ``path``; everything else in the file, comments too, stays as it is."""
    # Whatever the block says now: one that no longer fits the benchmarks is what this is for.
    empty = {"name": name, "datasets": [], "benchmarks": {}}
    params = benchmarks.build(benchmarks.read(path) | {"suite": empty}, str(path), switching=True)
    text = path.read_text(encoding="utf-8")
    if not benchmarks.SUITE_BLOCK.search(text):
        raise UserError(f"{path} does not end in a block `suite:`; expected it last, since it is rewritten as a whole")
    store.write_bytes(path, benchmarks.SUITE_BLOCK.sub(lambda _: block(params, name), text).encode())


def main() -> None:
    """List the suites, or switch to one."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.suite",
        description="List the suites of benchmarks, * before the active one, or make another the active one: "
        "what dvc repro and make repro run. Only the block `suite` at the end of params.yaml is written.",
    )
    parser.add_argument("name", nargs="?", help="the suite to switch to, such as mnist; `laptop` is the default")
    args = parser.parse_args()
    if args.name:
        switch(args.name)
    params = benchmarks.load()
    for name, plan in params.suites.items():
        mark = "*" if name == params.suite.name else " "
        noun = "benchmark " if len(plan.benchmarks) == 1 else "benchmarks"
        print(f"{mark} {name:<12} {len(plan.benchmarks):>3} {noun} at the {plan.budget} budget")


if __name__ == "__main__":
    guard(main)
