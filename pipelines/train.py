"""Stage train: run the trials of one benchmark, or of the whole suite, on Ray, and collect their results.

    python -m pipelines.train lenet5-mnist     one benchmark, as the stage train@lenet5-mnist does
    python -m pipelines.train                  the active suite at once: seeds and benchmarks packed side by side

Trials train in the run store; finished ones are collected into ``runs/<benchmark>/seed-<n>/``. A trial of one worker
is a plain Ray task (3 ms on a warm worker), a trial of several runs under Ray Train with Lightning's DDP.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines.cluster import campaign
from pipelines.command import arguments, ending
from pipelines.command.errors import UserError, guard
from pipelines.command.files import MissingError, remove, require_folder
from pipelines.command.progress import say
from pipelines.config.params import Params, load_params
from pipelines.data.datasets import DATA
from pipelines.results.reader import RUNS
from pipelines.tracking import helper
from pipelines.training import spec, store

COLLECTED_AT_ONCE = 16  # trials that are collected side by side


def require_places(names: Sequence[str], runs: Path = RUNS) -> None:
    """UserError, before training starts, where the run store or ``runs/`` can't be written."""
    for folder in (store.default(), store.default() / "fitted", runs):
        require_folder(folder)
    for path in (runs / name for name in names):
        if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
            raise UserError(f"{path} is no folder; expected one, which the trials are collected in, or nothing")


def collect(planned: Sequence[spec.Spec], runs: Path = RUNS) -> None:
    """Copy finished trials from the store to ``runs/<benchmark>/``, for the later stages and DVC."""
    with ThreadPoolExecutor(COLLECTED_AT_ONCE) as pool:  # reading, hashing and copying release Python's lock
        planned = list(pool.map(_whole, planned))
        for name in {trial.benchmark.name for trial in planned}:
            fresh = runs / f".{name}.new"  # the old folder stays until the new one is whole
            remove(fresh)
            list(pool.map(_copy, [trial for trial in planned if trial.benchmark.name == name], itertools.repeat(fresh)))
            remove(runs / name)
            fresh.rename(runs / name)


def _whole(trial: spec.Spec) -> spec.Spec:
    """The variant that is finished in the store."""
    settled = trial.settled
    try:
        settled.files.read_result(settled.key)
    except MissingError as error:
        line = str(error).partition(";")[0]
        raise UserError(f"{line}; expected a run store that every node shares ($RUN_STORE)") from None
    return settled


def _copy(trial: spec.Spec, runs: Path) -> None:
    target = runs / f"seed-{trial.seed}"
    target.mkdir(parents=True)
    for file in trial.files.kept:
        shutil.copyfile(file, target / file.name)


def main() -> None:
    """Train the benchmarks named on the command line, or the active suite."""
    parser = arguments.Parser(
        prog="python -m pipelines.train",
        description="Train every seed of the benchmarks on Ray, as many trials at once as fit: here, or on the cluster "
        "that RAY_ADDRESS names. Finished trials of the run store are not trained again; begun ones resume.",
    )
    parser.add_argument("benchmarks", nargs="*", help="benchmarks of models/*.yaml; by default the active suite")
    parser.add_argument("--budget", help="for the benchmarks named: laptop or paper; by default the suite's")
    args = parser.parse_args()
    ending.follow()
    params = load_params()
    if args.budget and not args.benchmarks:
        raise UserError(f"--budget is {args.budget}; expected it beside names of benchmarks: a suite has its own")
    names = list(dict.fromkeys(args.benchmarks)) or list(params.suite.benchmarks)
    root, budget = store.default(), args.budget
    by_name = {name: spec.trials(params, name, data=DATA, root=root, budget=budget) for name in names}
    planned = [trial for trials in by_name.values() for trial in trials]
    require_places(names)
    campaign.inspect(planned)
    waiting = [trial for trial in planned if not trial.finished]
    if len(waiting) < len(planned):
        say(f"{len(planned) - len(waiting)} of {len(planned)} trials are in the store already")
    try:
        if waiting:
            campaign.train(params, waiting, helper.follow)
    except UserError:  # of one trial, perhaps: other benchmarks may be complete
        _keep(params, {name: trials for name, trials in by_name.items() if all(trial.finished for trial in trials)})
        raise
    _keep(params, by_name)
    sent = helper.sync()
    if sent.line:
        say(sent.line)


def _keep(params: Params, by_name: Mapping[str, Sequence[spec.Spec]]) -> None:
    """Collect trials for the later stages, which read each benchmark only at its usual budget."""
    for name, trials in by_name.items():
        budget, usual = trials[0].budget, params.budget(name)
        if budget == usual:
            collect(trials)
        else:
            say(f"{name}: the trials at the {budget} budget stay in the store; runs/ is for the {usual} budget")


if __name__ == "__main__":
    guard(main)
