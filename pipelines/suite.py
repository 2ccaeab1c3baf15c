"""Choose what ``dvc repro`` runs: write the ``suite`` block at the end of params.yaml.

    python -m pipelines.suite          list the suites
    python -m pipelines.suite laptop   switch to one

DVC can't look one parameter up by another, so the block repeats what a stage needs to know of each benchmark; that it
agrees with the benchmarks is checked whenever params.yaml is read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path

import yaml

from pipelines.command.errors import UserError, guard
from pipelines.config import schema, yamlfile
from pipelines.config.params import PARAMS, SUITE_BLOCK, Params, build_params, load_params
from pipelines.training import store


def block(params: Params, name: str) -> str:
    """The ``suite`` block for the suite ``name``; UserError when there is no such suite."""
    if name not in params.suites:
        raise schema.unknown("suite", name, params.suites)
    plan = params.suites[name]
    chosen = [params.benchmarks[benchmark] for benchmark in plan.benchmarks]
    datasets = dict.fromkeys(scalar(benchmark.dataset) for benchmark in chosen)
    lines = ["suite:", f"  name: {scalar(name)}", f"  datasets: [{', '.join(datasets)}]", "  benchmarks:"]
    for one in chosen:
        family, dataset, budget = (scalar(text) for text in (one.model.family, one.dataset, plan.budget))
        lines.append(f"    {scalar(one.name)}: {{family: {family}, dataset: {dataset}, budget: {budget}}}")
    return "\n".join(lines) + "\n"


def scalar(name: str) -> str:
    """A name as it stands in YAML: in quotes where 1.1 or 1.2 reads a number, a date or the like in it.

    DVC's reader takes 1_0 and 1e5_0 for numbers too, so that whatever begins with a digit is quoted.
    """
    plain = name[:1].isalpha() and yaml.safe_load(name) == name == yamlfile.scalar(name)
    return name if plain else json.dumps(name)


def switch(name: str, path: Path = PARAMS) -> None:
    """Rewrite the block in ``path``; everything else in the file, comments and line ends too, stays as it is."""
    text = yamlfile.read_text(path)
    before = yamlfile.parse(text, str(path))
    # Whatever the block says now: one that no longer fits the benchmarks is what this is for.
    empty = {"name": name, "datasets": [], "benchmarks": {}}
    params = build_params(before | {"suite": empty}, str(path), switching=True)
    found = SUITE_BLOCK.search(text)
    if not found:
        raise UserError(f"{path} does not end in a block `suite:`; expected it last, since it is rewritten as a whole")
    written = block(params, name)
    after = text[: found.start()] + written.replace("\n", found[1])
    wanted = before | yamlfile.parse(written, "the block")
    if yamlfile.parse(after, str(path)) != wanted:  # the block lay in a text, say
        raise UserError(f"{path} could not be rewritten; expected one block `suite:`, the last, in lines of its own")
    build_params(wanted, str(path))
    _replace(path, after)


def _replace(path: Path, text: str) -> None:
    """Write ``text`` in place of the file behind ``path``, a link perhaps; its mode and, where allowed, owner stay."""
    target = Path(os.path.realpath(path))
    status = target.stat()
    with store.replacing(target) as temporary:
        temporary.write_bytes(text.encode())
        with contextlib.suppress(PermissionError):
            os.chown(temporary, status.st_uid, status.st_gid)
        temporary.chmod(status.st_mode & 0o7777)


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
    params = load_params()
    for name, plan in params.suites.items():
        mark = "*" if name == params.suite.name else " "
        noun = "benchmark " if len(plan.benchmarks) == 1 else "benchmarks"
        print(f"{mark} {name:<12} {len(plan.benchmarks):>3} {noun} at the {plan.budget} budget")


if __name__ == "__main__":
    guard(main)
