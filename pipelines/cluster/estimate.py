"""How long trials take and how much disk they need, from a table of measured rates."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

from pipelines.cluster import connection, placement
from pipelines.cluster.placement import Job
from pipelines.command import progress
from pipelines.command.errors import UserError
from pipelines.command.files import read_json
from pipelines.training import status, store
from pipelines.training.spec import Alike, Spec

SMALL_FILES = 300_000  # bytes: curve, progress and provenance, and what surrounds the tensors in two checkpoints
Sized = tuple[Spec, int]  # and the bytes of its weights


def seconds(specs: Sequence[Spec], cluster: connection.Cluster) -> float:
    """Seconds until all are trained, by a simulation of their placing; trials of unknown length are left out."""
    known = [job for job in in_order(specs, cluster) if job.seconds < math.inf]
    return placement.simulate(known, cluster.nodes).seconds


def in_order(specs: Sequence[Spec], cluster: connection.Cluster) -> list[Job]:
    """The trials in the order in which they should begin."""
    lengths = trials_seconds(specs)
    jobs = (
        Job(
            key=trial.key,
            need=cluster.need(trial.benchmark),
            seconds=lengths[trial.key] or math.inf,
            counts=trial.benchmark.resources.counts,
        )
        for trial in specs
    )
    return placement.in_order(jobs, cluster.nodes)


def trial_seconds(trial: Spec) -> float:
    """Remaining seconds of one trial by the measured rate; 0 without one."""
    return trials_seconds([trial])[trial.key]


def trials_seconds(specs: Sequence[Spec]) -> dict[str, float]:
    """The same for each trial, by its key; seeds that are alike are reckoned once."""
    table, whole = rates(), dict[Alike, float]()
    for trial in specs:
        if trial.alike not in whole:
            rate = table.get(rate_key(trial), 0.0) * trial.benchmark.resources.most
            whole[trial.alike] = trial.images() / rate if rate else 0.0
    return {trial.key: whole[trial.alike] * _left(trial) for trial in specs}


def _left(trial: Spec) -> float:
    """The share of a trial that is still to train."""
    state = status.read(trial.files.progress, since=0.0)
    return 1 - min(1.0, state["epoch"] / state["epochs"]) if state else 1.0


def disk_bytes(sized: Sequence[Sized], cluster: connection.Cluster) -> int:
    """The most bytes that trials need in the store, beside their checkpoints there; fitted preprocessing aside.

    The weights of all are kept. A running trial also has a checkpoint, and at times the next one beside it: weights,
    and up to two values of the optimiser for each.
    """
    needed = (2 * 3 * weights + SMALL_FILES - _bytes(trial.files.checkpoint) for trial, weights in sized)
    spare = sorted(needed, reverse=True)
    together = max((cluster.side_by_side(trial.benchmark) for trial, _ in sized), default=0)
    return sum(weights for _, weights in sized) + sum(spare[:together])


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def rate_key(trial: Spec) -> str:
    """Model, recipe, code and device decide a trial's speed; so does the machine, but those of a store are alike.

    The learning rate and mu don't: each candidate of ``tune`` would be measured.
    """
    config = trial.config
    optimiser = {key: value for key, value in config["recipe"]["optimiser"].items() if key not in ("lr", "mu")}
    recipe = config["recipe"] | {"optimiser": optimiser}
    identity = [config["model"], recipe, trial.device, trial.threads, dict(trial.code)]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def path() -> Path:
    """The table of rates: images a second by ``rate_key``."""
    return store.default() / "rates.json"


def rates() -> dict[str, float]:
    """The table. Damaged entries count as unknown: an estimate must never stop a run."""
    try:
        table = read_json(path())
    except UserError:
        return {}
    return {key: float(rate) for key, rate in table.items() if progress.is_number(rate) and rate > 0}
