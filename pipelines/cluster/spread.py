"""``map`` over the processes and machines of Ray, for work that is many small jobs rather than trials."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pipelines.cluster import connection

Item = TypeVar("Item")
Result = TypeVar("Result")
JOBS_A_CPU = 2  # one that runs, one that waits


@dataclass(frozen=True)
class Spread:
    """Jobs spread over a cluster."""

    ray_cluster: connection.Cluster

    @property
    def in_flight(self) -> int:
        """How many jobs are under way at once."""
        return JOBS_A_CPU * max(1, self.ray_cluster.cpus)

    def over(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """``function`` of each item, a CPU each, as the results come; items are taken as jobs end.

        A job whose process dies is run again. Raises the error of the first that fails, and UserError where its process
        died once too often.
        """
        import ray

        remote = ray.remote(max_retries=connection.RETRIES)(_run)
        waiting: list[Any] = []
        try:
            for item in items:
                waiting.append(remote.remote(function, item))
                if len(waiting) >= self.in_flight:
                    (done,), waiting = ray.wait(waiting)
                    yield ray.get(done)
            while waiting:
                (done,), waiting = ray.wait(waiting)
                yield ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise connection.lost_worker("spreading jobs over Ray", error) from None


def _run(function: Callable[[Item], Result], item: Item) -> Result:
    """Run in a Ray worker process."""
    connection.end_with_raylet()
    return function(item)
