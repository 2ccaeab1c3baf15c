"""One function called with many arguments in Ray workers, where each call stands alone and can be made again."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pipelines.cluster import connection, nodes, readiness
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
    on: connection.Cluster | None = None,
) -> Iterator[tuple[Name, Any]]:
    """Call ``function``, a dotted name, with each tuple of arguments; yields names and results as calls end.

    A call whose worker dies is made again, ``connection.RETRIES`` times. Each takes ``need`` of a node. At most
    ``in_flight`` are under way at once, and further ones are taken as those end: their arguments and results need not
    all fit into memory. ``on`` has the nodes that can do it. Raises what a call raises, as a UserError where it is
    one, and ends the other calls. ``what`` names the work in an error.
    """
    import ray

    remote = ray.remote(max_retries=connection.RETRIES)(_call)
    left = iter(calls.items() if isinstance(calls, Mapping) else calls)
    waiting: dict[Any, tuple[Name, tuple[Any, ...]]] = {}

    def begin(name: Name, arguments: tuple[Any, ...]) -> None:
        options = {**need.options, "name": what, **(on.placing if on else {})}
        waiting[remote.options(**options).remote(on and on.question, function, *arguments)] = name, arguments

    try:
        begun = in_flight  # how many calls to begin next; None for all
        while True:
            for name, arguments in itertools.islice(left, begun):
                begin(name, arguments)
            if not waiting:
                return
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=1.0)
            for task in done:
                name, arguments = waiting.pop(task)
                try:
                    found = result(task, what, on)
                except connection.UnfitError as error:
                    on = on and on.without(error)
                    begin(name, arguments)
                else:
                    yield name, found
            begun = len(done)
    finally:
        for task in waiting:
            ray.cancel(task, force=True)


def result(task: Any, what: str, on: connection.Cluster | None = None) -> Any:
    """What a task returns; UserError where it raises one, or its worker is lost."""
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if unfit := error.cause if isinstance(error.cause, connection.UnfitError) else on and nodes.unfit(error, on):
            raise unfit from None
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        if lacking := nodes.lacks_module(error):
            raise UserError(f"{what}, a node of the cluster: {lacking}") from None
        raise
    except (ray.exceptions.RayError, OSError) as error:
        raise connection.given_up(connection.lost_worker(what, error)) from None


def _call(question: readiness.Question | None, function: str, *arguments: Any) -> Any:
    """Runs in a Ray worker process."""
    connection.end_with_raylet()
    readiness.join(question)
    module, _, name = function.rpartition(".")
    return getattr(importlib.import_module(module), name)(*arguments)
