"""The rates that the estimates lack, measured on the cluster before training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from pipelines.cluster import connection, estimate
from pipelines.cluster.placement import Node
from pipelines.command.files import write_json
from pipelines.training.spec import Spec

MEASURING_S = 30.0  # of all unknown rates together


def measure(specs: Sequence[Spec], cluster: connection.Cluster) -> None:
    """Measure unknown rates, for ``MEASURING_S`` at most: on all nodes, one trial at a time on each.

    Side by side they would slow each other down. A rate that can't be measured in time stays unknown: an estimate must
    never stop a run, and the trial itself reports its fault.
    """
    import ray

    kinds, known = {trial.alike: trial for trial in specs}.values(), estimate.rates()
    waiting = {key: trial for trial in kinds if (key := estimate.rate_key(trial)) not in known}
    idle, busy, found = list(cluster.nodes), dict[Any, tuple[str, Node]](), dict[str, float]()
    deadline = time.monotonic() + MEASURING_S
    while time.monotonic() < deadline:
        for key, trial in list(waiting.items()):
            need = cluster.need(trial.benchmark)
            node = next((one for one in idle if one.holds(need)), None)
            if node is not None:
                idle.remove(node)
                busy[_measuring(waiting.pop(key), node, cluster)] = key, node
        if not busy:
            break
        for task in ray.wait(list(busy), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))[0]:
            key, node = busy.pop(task)
            idle.append(node)
            with contextlib.suppress(ray.exceptions.RayError):
                found[key] = ray.get(task)
    for task in busy:
        ray.cancel(task, force=True)
    if found:
        write_json(estimate.path(), estimate.rates() | found)


def _measuring(trial: Spec, node: Node, cluster: connection.Cluster) -> Any:
    import ray

    options = cluster.need(trial.benchmark).options | {"num_gpus": int(trial.device == "cuda")}  # a whole one
    return ray.remote(max_retries=0)(_measure).options(**options, **cluster.near(node.id)).remote(trial)


def _measure(trial: Spec) -> float:
    """Runs in a Ray worker process."""
    connection.end_with_raylet()
    from pipelines.training import speed

    return speed.measure(trial)
