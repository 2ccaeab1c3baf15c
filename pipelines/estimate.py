"""How long trials will take and how much disk they need, from a short measurement on the machine that trains them."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines import cluster, datasets, spec, store, subsets
from pipelines.errors import UserError

MEASURE_S = 1.0  # of training steps a benchmark, after two to warm up
STATES = 4  # copies of the weights that a trial may have on disk: checkpoint with momentum, its successor, the result


def seconds(specs: Sequence[spec.Spec], ray_cluster: cluster.Cluster) -> float:
    """Seconds until all are trained, packed on the cluster by their CPUs and GPUs; measures what is not yet known."""
    _measure_unknown(specs)
    lanes = [0.0] * max(1, min(_side_by_side(one, ray_cluster) for one in specs))
    for duration in sorted((trial_seconds(one) for one in specs), reverse=True):
        heapq.heapreplace(lanes, lanes[0] + duration)
    return max(lanes)


def _side_by_side(one: spec.Spec, ray_cluster: cluster.Cluster) -> int:
    asked = one.benchmark.resources
    lanes = ray_cluster.cpus // (asked.cpus * asked.workers)
    gpus = ray_cluster.gpus_for(one.benchmark) * asked.workers
    return min(lanes, int(ray_cluster.gpus / gpus)) if gpus else lanes


def trial_seconds(one: spec.Spec) -> float:
    """Seconds that are left of one trial, by the measured rate; 0 when it was never measured."""
    rate = float(_known().get(_rate_key(one), {}).get("images_per_s", 0.0))
    if not rate:
        return 0.0
    told = _read(one.files.progress)
    share = 1 - min(1.0, float(told.get("epoch", 0.0)) / one.epochs)
    return share * one.epochs * images(one) / (rate * one.benchmark.resources.workers)


def images(one: spec.Spec) -> int:
    """Training images an epoch."""
    whole = datasets.open_dataset(one.data, one.benchmark.dataset).train
    count = len(subsets.positions(whole, one.benchmark.recipe.subset))
    return min(count, one.benchmark.budgets[one.budget].train_images or count)


def disk_bytes(one: spec.Spec) -> int:
    """Bytes that a trial needs in the store at most."""
    return STATES * int(_known().get(_rate_key(one), {}).get("weight_bytes", 10_000_000))


def _measure_unknown(specs: Sequence[spec.Spec]) -> None:
    """One after the other, on one worker; a measurement beside others would say what the contention says."""
    import ray

    unknown = {_rate_key(one): one for one in specs if _rate_key(one) not in _known()}
    for key, one in unknown.items():
        asked = one.benchmark.resources
        gpus = 1 if one.device == "cuda" else 0
        task = ray.remote(_measure).options(num_cpus=asked.cpus, num_gpus=gpus).remote(one, MEASURE_S)
        try:
            found = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        store.write_json(_path(), _known() | {key: found})


def _measure(one: spec.Spec, budget_s: float) -> dict[str, float]:
    from pipelines import trial

    return trial.measure(one, budget_s)


def _rate_key(one: spec.Spec) -> str:
    """Model, recipe and device decide the rate; so does the machine, but a shared store serves machines alike."""
    config = one.benchmark.resolved(one.budget)
    identity = [config["model"], config["recipe"], one.device, one.threads, store.sources(one.benchmark.model.family)]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _path() -> Path:
    return store.default() / "rates.json"


def _known() -> dict[str, Any]:
    return _read(_path())


def _read(path: Path) -> dict[str, Any]:
    """An estimate must never stop a run: what can't be read counts as unknown."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
