"""How long trials take and how much disk they need: a table of measured rates, and a division."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipelines.cluster import connection
from pipelines.command import progress
from pipelines.command.errors import UserError
from pipelines.command.files import read_json, write_json
from pipelines.data import datasets
from pipelines.training import status, store
from pipelines.training.spec import Sizes, Spec

SMALL_FILES = 300_000  # bytes: curve, progress and provenance, and what surrounds the tensors in two checkpoints
Sized = tuple[Spec, Sizes]


def seconds(specs: Sequence[Spec], ray_cluster: connection.Cluster) -> float:
    """Seconds until all are trained; measures the rates that are not yet known.

    Trials of several workers run one after the other; the others share the cluster, and the longest bounds them.
    """
    _measure_unknown(specs, ray_cluster)
    distributed = sum(trial_seconds(trial) for trial in specs if trial.benchmark.resources.workers > 1)
    packed = [(trial_seconds(trial), trial.benchmark) for trial in specs if trial.benchmark.resources.workers == 1]
    shared = sum(length / ray_cluster.side_by_side(benchmark) for length, benchmark in packed)
    return distributed + max([shared, *(length for length, _ in packed)])


def trial_seconds(trial: Spec) -> float:
    """Seconds left of one trial, by the measured rate; 0 when it was never measured."""
    rate = rates().get(_rate_key(trial), 0.0)
    if not rate:
        return 0.0
    state = status.read(trial.files.progress, since=0.0)
    share = 1 - min(1.0, state["epoch"] / state["epochs"]) if state else 1.0
    return share * trial.images() / (rate * trial.benchmark.resources.workers)


def disk_bytes(sized: Sequence[Sized], ray_cluster: connection.Cluster) -> int:
    """Bytes that trials need in the store at most, beside those that they have there.

    The weights of all are kept. Each that trains has a checkpoint of weights and the optimiser's state, and for a
    moment that checkpoint's successor beside it.
    """
    spare = [2 * sum(size) + SMALL_FILES - _bytes(trial.files.checkpoint) for trial, size in sized]
    together = max((ray_cluster.side_by_side(trial.benchmark) for trial, _ in sized), default=0)
    kept = sum(size.weights for _, size in sized)
    return kept + sum(sorted(spare, reverse=True)[:together]) + _fitted_bytes(trial for trial, _ in sized)


def _fitted_bytes(specs: Iterable[Spec]) -> int:
    """ZCA's matrix, kept in the store for all seeds; other fitted preprocessing is small."""
    whitened = {
        (trial.data, trial.benchmark.dataset, str(trial.benchmark.recipe.preprocess))
        for trial in specs
        if any("zca" in op for op in trial.benchmark.recipe.preprocess)
    }
    return sum(4 * math.prod(datasets.open_dataset(data, name).shape) ** 2 for data, name, _ in whitened)


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _measure_unknown(specs: Sequence[Spec], ray_cluster: connection.Cluster) -> None:
    """Measure one after the other, on one worker; side by side they would slow each other down.

    A rate that can't be measured stays unknown: an estimate must never stop a run, and the trial itself reports its
    fault.
    """
    import ray

    known = rates()
    for key, trial in {_rate_key(trial): trial for trial in specs}.items():
        if key not in known:
            asked = trial.benchmark.resources
            options = {"num_cpus": asked.cpus, "num_gpus": int(trial.device == "cuda"), **ray_cluster.placing}
            with contextlib.suppress(ray.exceptions.RayError):
                rate = ray.get(ray.remote(max_retries=0)(_measure).options(**options).remote(trial))
                write_json(path(), rates() | {key: rate})


def _measure(trial: Spec) -> float:
    """Runs in a Ray worker process."""
    connection.end_with_raylet()
    from pipelines.training import speed

    return speed.measure(trial)


def _rate_key(trial: Spec) -> str:
    """Model, recipe, code and device decide a trial's speed; so does the machine, but a store serves machines alike.

    The learning rate and mu do not: the candidates of ``tune`` would each be measured.
    """
    config = trial.config
    optimiser = {key: value for key, value in config["recipe"]["optimiser"].items() if key not in ("lr", "mu")}
    recipe = config["recipe"] | {"optimiser": optimiser}
    identity = [config["model"], recipe, trial.device, trial.threads, dict(trial.code)]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def path() -> Path:
    """The table of rates: images a second by ``_rate_key``."""
    return store.default() / "rates.json"


def rates() -> dict[str, float]:
    """The table. An estimate must never stop a run: damaged entries count as unknown."""
    try:
        table = read_json(path())
    except UserError:
        return {}
    return {key: float(rate) for key, rate in table.items() if progress.is_number(rate) and rate > 0}
