"""A question to each node of a connected Ray cluster."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Any

from pipelines.cluster import connection, failures
from pipelines.cluster.placement import Node
from pipelines.training import fingerprint

WHERE = re.compile(r"\bip=([^),\s]+)")  # in Ray's message about a task's error


def own() -> str:
    """The id of this process's node."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def lacks_module(error: Exception) -> str | None:
    """The missing module of a node, in words, where that is the reason of an error."""
    missing = str(error).partition("No module named ")[2].split()
    expected = f"expected the project at {fingerprint.ROOT}, and its libraries"
    return f"it has no module {missing[0]}; {expected}" if missing else None


def lacks_project(error: Exception, cluster: connection.Cluster) -> failures.UnfitError | None:
    """The error where a task failed on a node that joined after the question and lacks the project; otherwise None."""
    import ray

    lacking, address = lacks_module(error), WHERE.search(str(error))
    if lacking is None or address is None or cluster.question is None:
        return None
    there = (node["NodeID"] for node in ray.nodes() if node["NodeManagerAddress"] == address[1])
    late = tuple(node for node in there if node not in cluster.question.asked)
    return failures.UnfitError(lacking, late) if late else None


def ask(function: Callable[..., Any], *words: Any, among: Iterable[Node], patience_s: float) -> list[tuple[Node, Any]]:
    """Each node with the result of ``function`` there, or with the error where there is none in time.

    The call takes no resources, so it waits for no trial.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(max_retries=0, num_cpus=0)(_answer)
    places = [(node, NodeAffinitySchedulingStrategy(node.id, soft=False)) for node in among]
    tasks = [(node, remote.options(scheduling_strategy=at).remote(function, *words)) for node, at in places]
    deadline, answers = time.monotonic() + patience_s, list[tuple[Node, Any]]()
    for node, task in tasks:
        try:
            answers.append((node, ray.get(task, timeout=max(0.0, deadline - time.monotonic()))))
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            answers.append((node, cause if isinstance(cause, Exception) else error))
    return answers


def _answer(function: Callable[..., Any], *words: Any) -> Any:
    """Runs in a Ray worker process."""
    connection.end_with_raylet()
    return function(*words)
