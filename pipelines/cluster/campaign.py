"""Planned trials on a cluster: what is checked and announced before they train."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from pipelines.cluster import connection, estimate, measuring, packing, readiness, spreading
from pipelines.cluster.placement import Need
from pipelines.command import locks, progress
from pipelines.command.errors import HeldError, UserError
from pipelines.command.files import DamagedError, check_seal, set_aside
from pipelines.command.progress import say
from pipelines.config.params import Params
from pipelines.data.datasets import DATA
from pipelines.training import spec, store

CHECK, HARDWARE = f"{__name__}._check", "pipelines.training.provenance.hardware"  # called in Ray workers


def train(params: Params, planned: Sequence[spec.Spec], beside: Callable[[], AbstractContextManager[object]]) -> None:
    """Train every planned trial to its end; UserError, before any starts, for one that can't be trained.

    A trial that fails does not stop the others; once all have ended, UserError names those that failed. ``beside`` runs
    while they train.
    """
    kinds = {trial.alike: trial for trial in planned}
    with connection.connect() as joined, readiness.ready(joined, list(kinds.values())) as cluster:
        sizes = dict(zip(kinds, _on_worker(cluster, CHECK, list(kinds.values())), strict=True))
        # By key on the device: two benchmarks may train the same weights.
        sized = {(trial := _place(s, cluster)).key: (trial, sizes[s.alike]) for s in planned}
        placed = [trial for trial, _ in sized.values()]
        _require_space(list(sized.values()), cluster)
        _announce(params, placed, cluster)
        with packing.shown(placed), beside():
            packing.run(placed, cluster)


def _on_worker(cluster: connection.Cluster, function: str, *words: Any) -> Any:
    """Call a function in a Ray worker, which needs torch and Lightning anyway; this process never loads them."""
    called = spreading.spread(function, {0: words}, what="before training", need=Need(cpus=0), cluster=cluster)
    return dict(called)[0]


def _check(planned: Sequence[spec.Spec]) -> list[int]:
    """UserError for a trial that can't be trained; the bytes of each one's weights. Runs in a Ray worker process."""
    from pipelines.training import checks
    from pipelines.training.inputs import Inputs

    return [checks.check(Inputs.of(trial), trial.budget) for trial in planned]


def _place(trial: spec.Spec, cluster: connection.Cluster) -> spec.Spec:
    device = "cuda" if cluster.gpus_for(trial.benchmark) else "cpu"
    return trial.on(device, threads=trial.benchmark.resources.cpus).settled


def _require_space(sized: Sequence[estimate.Sized], cluster: connection.Cluster) -> None:
    """UserError, before training starts, where the store has less room than the trials need."""
    root = store.default()
    root.mkdir(parents=True, exist_ok=True)
    free, need = shutil.disk_usage(root).free, estimate.disk_bytes(sized, cluster)
    if need > free:
        have, wanted = f"{free // 10**6:,} MB free", f"{-(-need // 10**6):,} MB for {len(sized)} trials"
        raise UserError(f"{root} has {have}; expected {wanted}")


def _announce(params: Params, placed: Sequence[spec.Spec], cluster: connection.Cluster) -> None:
    """Report device, resources and expected time; also of the whole suite, as far as its data is there."""
    devices = " and ".join(sorted({f"{trial.device} in {trial.precision}" for trial in placed}))
    names = cluster.accelerators if any(trial.device == "cuda" for trial in placed) else []
    if any(trial.device == "cpu" for trial in placed):
        names = [_on_worker(cluster, HARDWARE, "cpu"), *names]
    say(f"{cluster}; training on {devices}{': ' if names else ''}{', '.join(names)}")
    others = [_place(s, cluster) for s in _unfinished_elsewhere(params, placed, cluster)]
    measuring.measure([*placed, *others], cluster)
    here = estimate.seconds(placed, cluster)
    budgets = " and ".join(sorted({trial.budget for trial in placed}))
    count = "1 trial" if len(placed) == 1 else f"{len(placed)} trials"
    say(f"{count} to train at the {budgets} budget, about {progress.duration(here)}")
    for name, trials in _by_kind(placed).items():
        each = estimate.trial_seconds(trials[0])
        say(f"  {name}: {len(trials)} of {f'about {progress.duration(each)}' if each else 'unknown length'} each")
    whole = {trial.key: trial for trial in (*placed, *others)}
    if len(whole) > len(placed):
        seconds = estimate.seconds(list(whole.values()), cluster)
        say(f"whole suite {params.suite.name}: {len(whole)} trials, about {progress.duration(seconds)}")


def _by_kind(placed: Sequence[spec.Spec]) -> dict[str, list[spec.Spec]]:
    groups: dict[str, list[spec.Spec]] = {}
    for trial in placed:
        groups.setdefault(" ".join(filter(None, (trial.benchmark.name, trial.label))), []).append(trial)
    return groups


def _unfinished_elsewhere(params: Params, placed: Sequence[spec.Spec], cluster: connection.Cluster) -> list[spec.Spec]:
    """The suite's other trials that can be trained; the rest report their faults in their own stages."""
    others: list[spec.Spec] = []
    for name in sorted(set(params.suite.benchmarks) - {trial.benchmark.name for trial in placed}):
        with contextlib.suppress(UserError):
            trials = spec.trials(params, name, data=DATA, root=store.default())
            cluster.require(params.benchmarks[name])
            _on_worker(cluster, CHECK, trials[:1])
            others += [trial for trial in trials if not trial.finished]
    return others


def inspect(planned: Sequence[spec.Spec]) -> None:
    """Set aside damaged files of the run store, with a line for each, as the output of Ray's workers is not shown.

    Files that another process has locked are left to it.
    """
    for trial in itertools.chain.from_iterable(trial.variants for trial in planned):
        if os.path.lexists(trial.files.folder):
            with (
                contextlib.suppress(HeldError),
                locks.held(trial.files.folder / "lock", trial.name, patience_s=0),
            ):
                for line in (trial.files.inspect(trial.name), trial.files.inspect_checkpoint(trial.name)):
                    if line:
                        say(line)
    fitted = store.default() / "fitted"
    for path in sorted(fitted.glob("*.pt")):
        with contextlib.suppress(HeldError), locks.held(path.with_suffix(".lock"), str(path), patience_s=0):
            try:
                check_seal(path)
            except DamagedError as error:
                set_aside(path)
                say(f"{error}; set aside, and made again where it is needed")
