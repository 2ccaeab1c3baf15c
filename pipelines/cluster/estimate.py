"""How long trials will take and how much disk they need, from a short measurement on the machine that trains them."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.cluster import connection, workload
from pipelines.command import progress
from pipelines.command.errors import UserError
from pipelines.config.recipes import Optimiser
from pipelines.data import datasets
from pipelines.training import spec, store

MEASURE_S = 1.0  # of training steps a benchmark, after two to warm up
STATES = {"sdlm": 1, "adadelta": 2}  # tensors of the size of the weights that an optimiser keeps
SMALL_FILES = 300_000  # bytes: curve, progress and provenance, and what surrounds the tensors in two checkpoints


def seconds(specs: Sequence[spec.Spec], ray_cluster: connection.Cluster) -> float:
    """Seconds until all are trained, placed as ``train`` places them; measures the rates that are not yet known."""
    _measure_unknown(specs)
    packed = [one for one in specs if one.benchmark.resources.workers == 1]
    distributed = [one for one in specs if one.benchmark.resources.workers > 1]  # one after the other
    return sum(map(trial_seconds, distributed)) + _packed_seconds(packed, ray_cluster)


def _packed_seconds(specs: Sequence[spec.Spec], ray_cluster: connection.Cluster) -> float:
    """Longest first, each as soon as a node has room for it."""
    waiting = sorted(specs, key=trial_seconds, reverse=True)
    rooms = [_Room(cpus=node.cpus, gpus=[1.0] * node.gpus) for node in ray_cluster.nodes]
    running: list[tuple[float, int, Callable[[], None]]] = []  # when it ends, a number that keeps the order, leave
    number, now = itertools.count(), 0.0
    while waiting or running:
        late = []
        for one in waiting:
            cpus, gpus = one.benchmark.resources.cpus, ray_cluster.gpus_for(one.benchmark)
            leave = next(filter(None, (room.take(cpus, gpus) for room in rooms)), None)
            if leave is None:
                late.append(one)
            else:
                heapq.heappush(running, (now + trial_seconds(one), next(number), leave))
        if not running:
            break  # what no node holds is refused before
        waiting = late
        now, _, leave = heapq.heappop(running)
        leave()
    return now


@dataclass
class _Room:
    """What is free on a node; of each of its GPUs a share."""

    cpus: int
    gpus: list[float]

    def take(self, cpus: int, gpus: float) -> Callable[[], None] | None:
        """Place a worker; what to call when it leaves, or None where there is no room."""
        share, count = min(gpus, 1.0), math.ceil(gpus)
        free = [at for at, left in enumerate(self.gpus) if left > share - connection.ROUNDING][:count] if count else []
        if cpus > self.cpus or len(free) < count:
            return None
        self._add(-cpus, -share, free)
        return lambda: self._add(cpus, share, free)

    def _add(self, cpus: int, share: float, places: Sequence[int]) -> None:
        self.cpus += cpus
        for at in places:
            self.gpus[at] += share


def trial_seconds(one: spec.Spec) -> float:
    """Seconds that are left of one trial, by the measured rate; 0 when it was never measured."""
    rate = _known().get(_rate_key(one), 0.0)
    if not rate:
        return 0.0
    told = progress.read(one.files.progress, since=0.0)
    share = 1 - min(1.0, told["epoch"] / told["epochs"]) if told else 1.0
    return share * workload.images(one) / (rate * one.benchmark.resources.workers)


def disk_bytes(sized: Sequence[tuple[spec.Spec, int]], ray_cluster: connection.Cluster) -> int:
    """Bytes that trials, with the bytes of their weights, need in the store at most, beside what they have there.

    The weights of all are kept. Each that trains has a checkpoint of weights and the optimiser's state, and for a
    moment that checkpoint's successor beside it.
    """
    spare = [
        2 * (1 + _states(one.benchmark.recipe.optimiser)) * size + SMALL_FILES - _bytes(one.files.checkpoint)
        for one, size in sized
    ]
    together = max((ray_cluster.side_by_side(one.benchmark) for one, _ in sized), default=0)
    kept = sum(size for _, size in sized)
    return kept + sum(sorted(spare, reverse=True)[:together]) + _fitted_bytes(one for one, _ in sized)


def _states(optimiser: Optimiser) -> int:
    return int(optimiser.momentum > 0) if optimiser.name == "sgd" else STATES[optimiser.name]


def _fitted_bytes(specs: Iterable[spec.Spec]) -> int:
    """ZCA's matrix, kept in the store for all seeds; other fitted preprocessing is small."""
    whitened = {
        (one.data, one.benchmark.dataset, str(one.benchmark.recipe.preprocess))
        for one in specs
        if any("zca" in op for op in one.benchmark.recipe.preprocess)
    }
    return sum(4 * math.prod(datasets.open_dataset(data, name).shape) ** 2 for data, name, _ in whitened)


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _measure_unknown(specs: Sequence[spec.Spec]) -> None:
    """One after the other, on one worker; a measurement beside others would say what the contention says.

    What can't be measured stays unknown: an estimate must never stop a run, and the trial itself says what is wrong.
    """
    import ray

    unknown = {_rate_key(one): one for one in specs if _rate_key(one) not in _known()}
    for key, one in unknown.items():
        asked = one.benchmark.resources
        gpus = 1 if one.device == "cuda" else 0
        task = ray.remote(_measure).options(num_cpus=asked.cpus, num_gpus=gpus, max_retries=0).remote(one, MEASURE_S)
        with contextlib.suppress(ray.exceptions.RayError):
            store.write_json(_path(), _known() | {key: ray.get(task)})


def _measure(one: spec.Spec, budget_s: float) -> float:
    connection.end_with_raylet()
    from pipelines import trial

    return trial.measure(one, budget_s)


def _rate_key(one: spec.Spec) -> str:
    """Model, recipe and device decide the speed of a trial; so does the machine, but a store serves machines alike.

    The learning rate and mu do not: the candidates of ``choose`` would each be measured.
    """
    config = one.benchmark.resolved(one.budget)
    optimiser = {key: value for key, value in config["recipe"]["optimiser"].items() if key not in ("lr", "mu")}
    recipe = config["recipe"] | {"optimiser": optimiser}
    identity = [config["model"], recipe, one.device, one.threads, store.sources(one.benchmark.model.family)]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _path() -> Path:
    return store.default() / "rates.json"


def _known() -> dict[str, float]:
    """Rates by their keys. An estimate must never stop a run: what is damaged counts as unknown."""
    try:
        found = store.read_json(_path())
    except UserError:
        return {}
    return {key: float(rate) for key, rate in found.items() if progress.is_number(rate) and rate > 0}
