"""One function called with many arguments in Ray workers, where each call stands alone and can be made again."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pipelines.cluster import connection
from pipelines.command.errors import UserError

Name = TypeVar("Name")


def spread(
    function: str, calls: Mapping[Name, tuple[Any, ...]], *, what: str, cpus: int = 1, gpus: float = 0.0
) -> Iterator[tuple[Name, Any]]:
    """Call ``function``, a dotted name, with each tuple of arguments; yields names and results as calls end.

    A call whose worker dies is made again, ``connection.RETRIES`` times. Raises what a call raises, as a UserError
    where it is one, and ends the other calls. ``what`` names the work in an error.
    """
    import ray

    remote = ray.remote(max_retries=connection.RETRIES, num_cpus=cpus, num_gpus=gpus)(_call)
    waiting = {remote.options(name=what).remote(function, *arguments): name for name, arguments in calls.items()}
    try:
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=1.0)
            for task in done:
                yield waiting.pop(task), _result(task, what)
    finally:
        for task in waiting:
            ray.cancel(task, force=True)


def _result(task: Any, what: str) -> Any:
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    except (ray.exceptions.RayError, OSError) as error:
        raise connection.lost_worker(what, error) from None


def _call(function: str, *arguments: Any) -> Any:
    """Runs in a Ray worker process."""
    connection.end_with_raylet()
    module, _, name = function.rpartition(".")
    return getattr(importlib.import_module(module), name)(*arguments)
