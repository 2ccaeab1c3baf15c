"""One function called with many arguments in Ray workers; each call stands alone and can be repeated."""

from __future__ import annotations

import importlib
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pipelines.cluster import connection, failures, nodes, readiness
from pipelines.cluster.placement import Need
from pipelines.command.errors import UserError

ONE_CPU = Need()
Name = TypeVar("Name")


def spread(
    function: str,
    calls: Mapping[Name, tuple[Any, ...]] | Iterable[tuple[Name, tuple[Any, ...]]],
    *,
    what: str,
    need: Need = ONE_CPU,
    in_flight: int | None = None,
    cluster: connection.Cluster | None = None,
) -> Iterator[tuple[Name, Any]]:
    """Call ``function``, a dotted name, with each tuple of arguments; yields names and results as calls end.

    A call whose worker dies is repeated, ``failures.RETRIES`` times, and so are running calls when a node is lost,
    since Ray waits for ever for a node that is cut off. Each takes ``need`` of a node. At most ``in_flight`` calls run
    at once and further ones are taken as these end: arguments and results need not all fit into memory. ``cluster`` has
    the nodes that can do it. Raises the error of a call, a UserError as such, and cancels the others. ``what`` names
    the work.
    """
    left = iter(calls.items() if isinstance(calls, Mapping) else calls)
    under_way = _Calls[Name](function, what, need, cluster)
    try:
        begun = in_flight  # how many calls to begin next; None for all
        while True:
            for call in itertools.islice(left, begun):
                under_way.begin(Call(*call))
            if not under_way.tasks:
                return
            ended = list(under_way.ended())
            yield from ended
            begun = len(ended)
    finally:
        under_way.cancel()


@dataclass(frozen=True, eq=False)
class Call(Generic[Name]):
    """One call; equal only to itself, since calls may share a name."""

    name: Name
    arguments: tuple[Any, ...]


class _Calls(Generic[Name]):
    """Running calls, each with a Ray task, or several after a node was lost."""

    def __init__(self, function: str, what: str, need: Need, cluster: connection.Cluster | None) -> None:
        import ray

        self.remote = ray.remote(max_retries=failures.RETRIES)(_call)
        self.function, self.what, self.need, self.cluster = function, what, need, cluster
        self.tasks: dict[Any, Call[Name]] = {}
        self.alive = {node.id for node in cluster.nodes} if cluster and cluster.address else set()
        self.gone: dict[str, float] = {}  # nodes, and since when
        self.looked = time.monotonic()

    def begin(self, call: Call[Name]) -> None:
        """Begin a call wherever there is room."""
        options = {**self.need.options, "name": self.what, **(self.cluster.placing if self.cluster else {})}
        question = self.cluster.question if self.cluster else None
        task = self.remote.options(**options).remote(question, self.function, *call.arguments)
        self.tasks[task] = call

    def ended(self) -> Iterator[tuple[Name, Any]]:
        """The calls that end within a second, perhaps none."""
        import ray

        for task in ray.wait(list(self.tasks), num_returns=1, timeout=1.0)[0]:
            call = self.tasks.pop(task)
            try:
                found = result(task, self.what, self.cluster)
            except failures.UnfitError as error:
                self.cluster = self.cluster and self.cluster.without(error)
                self.begin(call)
            else:
                self.cancel([copy for copy, other in self.tasks.items() if other is call])
                yield call.name, found
        self._look()

    def cancel(self, tasks: Iterable[Any] | None = None) -> None:
        """Cancel some tasks, or all."""
        import ray

        for task in list(self.tasks if tasks is None else tasks):
            ray.cancel(task, force=True)
            del self.tasks[task]

    def _look(self) -> None:
        """Repeat the running calls some time after a node was lost: they may have run there."""
        now = time.monotonic()
        if self.cluster is None or not self.alive or now - self.looked < connection.NODES_EVERY_S:
            return
        self.looked, before = now, self.alive
        self.alive = {node.id for node in connection.living()}
        self.gone |= dict.fromkeys(before - self.alive, now)
        due = tuple(node for node, since in self.gone.items() if now - since >= connection.CUT_OFF_S)
        if due:
            self.gone |= dict.fromkeys(due, math.inf)
            # Ray may be waiting for a place on a lost node; another selector makes another queue (packing._promised).
            self.cluster = self.cluster.without(failures.UnfitError(f"{self.what}: a node is gone", due))
            for call in dict.fromkeys(self.tasks.values()):
                self.begin(call)


def result(task: Any, what: str, cluster: connection.Cluster | None = None) -> Any:
    """The result of a task; UserError where it raises one, or its worker is lost."""
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, failures.UnfitError):
            raise error.cause from None
        if cluster and (unfit := nodes.lacks_project(error, cluster)):
            raise unfit from None
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        if lacking := nodes.lacks_module(error):
            raise UserError(f"{what}, a node of the cluster: {lacking}") from None
        raise
    except (ray.exceptions.RayError, OSError) as error:
        raise failures.given_up(failures.lost_worker(what, error)) from None


def _call(question: readiness.Question | None, function: str, *arguments: Any) -> Any:
    """Runs in a Ray worker process."""
    connection.end_with_raylet()
    readiness.join(question)
    module, _, name = function.rpartition(".")
    return getattr(importlib.import_module(module), name)(*arguments)
