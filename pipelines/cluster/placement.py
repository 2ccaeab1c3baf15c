"""Where and when trials run: a function of the waiting trials, the free devices and the clock, without Ray.

The longest trial starts first, so that none runs alone at the end; where one still does, simulations look for a better
order. A trial that does not fit yet lets others pass: they are finite in number. Fractions of GPUs spread over all GPUs
before two share one, but spare the GPUs that other trials need whole.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ROUNDING = 1e-6  # of fractions of a GPU: ten times 0.1 fit on one
MOST_WORKERS = 2**31  # more than any node holds
TRIES, SIMULATED = 50, 10_000  # the most simulations for a better order, and trials in all of them


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one worker takes of its node."""

    cpus: int = 1
    gpus: float = 0.0  # a share of one, or 1
    others: tuple[tuple[str, float], ...] = ()  # amounts by Ray's names, such as memory; none beside a share of a GPU

    @property
    def bundle(self) -> dict[str, float]:
        """The need for Ray's placement groups, Ray Train and the autoscaler."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {}), **dict(self.others)}

    @property
    def options(self) -> dict[str, Any]:
        """The need as options of a Ray task."""
        others = dict(self.others)
        memory = others.pop("memory", 0)
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": memory, "resources": others}

    def __str__(self) -> str:
        return devices(self.cpus, self.gpus)


@dataclass(frozen=True, kw_only=True)
class Node:
    """The resources of one machine of a cluster, taken or free."""

    cpus: int
    gpus: int = 0
    others: Mapping[str, float] = field(default_factory=dict, compare=False)  # by Ray's names
    id: str = field(default="", compare=False)
    host: str = field(default="", compare=False)
    name: str = field(default="", compare=False)  # the host, and the start of the id where hosts are alike

    def holds(self, need: Need) -> int:
        """How many such workers fit side by side; a fraction is of one GPU."""
        on_gpus = [self.gpus * int(1 / need.gpus + ROUNDING)] if need.gpus else []
        return min(self.cpus // need.cpus, *on_gpus, *_times(need, self.others))

    def __str__(self) -> str:
        return devices(self.cpus, self.gpus)


def _times(need: Need, others: Mapping[str, float]) -> list[int]:
    """How many workers fit by each resource beside CPUs and GPUs."""
    return [int(others.get(name, 0.0) / amount + ROUNDING) for name, amount in need.others] or [MOST_WORKERS]


def devices(cpus: int, gpus: float) -> str:
    """CPUs and GPUs, if any, in words."""
    return counted(cpus, "CPU") + (f" and {counted(gpus, 'GPU')}" if gpus else "")


def counted(number: float, what: str) -> str:
    """A number of things in words."""
    return f"{number:g} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A trial, reduced to what its place and time depend on."""

    key: str
    need: Need
    seconds: float = math.inf  # with the most workers; inf if unknown
    counts: tuple[int, ...] = (1,)  # allowed numbers of workers, the largest first

    @property
    def least(self) -> int:
        """The fewest workers that it can begin with."""
        return self.counts[-1]


@dataclass(frozen=True)
class Place:
    """A worker's place."""

    node: str  # its id
    gpu: int | None = None  # which of the node's


@dataclass(frozen=True)
class Start:
    """A job that begins."""

    job: Job
    seats: tuple[Place, ...]
    begin: float

    @property
    def end(self) -> float:
        """Its expected end."""
        return self.begin + self.job.seconds * self.job.counts[0] / len(self.seats)


@dataclass
class Free:
    """The free resources of one node.

    Trials that share a GPU also share its part of the node's CPUs, which is set aside with the GPU: both are one
    reservation in Ray, the only way to choose a trial's GPU.
    """

    node: Node
    cpus: int = field(init=False)
    gpus: list[float] = field(init=False)  # the free share of each
    others: dict[str, float] = field(init=False)
    reserved: dict[int, int] = field(init=False, default_factory=dict)  # CPUs set aside with each GPU that is shared
    unused: dict[int, int] = field(init=False, default_factory=dict)  # those of them that no trial has

    def __post_init__(self) -> None:
        self.cpus, self.gpus, self.others = self.node.cpus, [1.0] * self.node.gpus, dict(self.node.others)

    @property
    def whole(self) -> int:
        """The number of unused GPUs."""
        return self.gpus.count(1.0)

    def cpus_beside(self, need: Need) -> int:
        """CPUs to reserve with a GPU that trials of ``need`` are to share."""
        return min(self.cpus, max(need.cpus, self.node.cpus // max(1, self.node.gpus)))

    def room(self, need: Need) -> int:
        """How many workers fit now, each without a GPU or with one of its own."""
        return min(self.cpus // need.cpus, *([self.whole] if need.gpus else []), *_times(need, self.others))

    def shared(self, need: Need) -> Iterator[int]:
        """Shared GPUs with room for one more worker."""
        for gpu, left in self.unused.items():
            if left >= need.cpus and self.gpus[gpu] >= need.gpus - ROUNDING:
                yield gpu

    def take(self, need: Need, gpu: int | None) -> None:
        """Seat a worker."""
        for name, amount in need.others:
            self.others[name] = self.others.get(name, 0.0) - amount
        if gpu is None or need.gpus == 1:
            self.cpus -= need.cpus
        else:
            if gpu not in self.reserved:
                self.reserved[gpu] = self.unused[gpu] = self.cpus_beside(need)
                self.cpus -= self.reserved[gpu]
            self.unused[gpu] -= need.cpus
        if gpu is not None:
            self.gpus[gpu] -= need.gpus

    def give(self, need: Need, gpu: int | None) -> None:
        """Free a worker's seat."""
        for name, amount in need.others:
            self.others[name] += amount
        if gpu is not None and self.gpus[gpu] + need.gpus > 1 - ROUNDING:
            self.gpus[gpu] = 1.0
            self.unused.pop(gpu, None)
            self.cpus += self.reserved.pop(gpu, need.cpus)
        elif gpu is not None:
            self.gpus[gpu] += need.gpus
            self.unused[gpu] += need.cpus
        else:
            self.cpus += need.cpus


class Floor:
    """The free resources of all nodes."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.free = {node.id: Free(node) for node in nodes}

    def seats(self, job: Job, sparing: int = 0) -> tuple[Place, ...] | None:
        """Seat the job's workers where they fit now; None where they don't fit.

        ``sparing`` GPUs are left whole, as far as a shared one has room.
        """
        need = job.need
        if 0 < need.gpus < 1:
            seat = self._share(need, sparing)
            seats = [] if seat is None else [seat]
        else:
            seats = list(self._seats(need, job.counts[0]))
        fits = next((count for count in job.counts if count <= len(seats)), None)
        if fits is None:
            return None
        del seats[fits:]
        self.take(job, seats)
        return tuple(seats)

    def _seats(self, need: Need, workers: int) -> Iterator[Place]:
        """Several workers on as few nodes as possible; one where the fewest GPUs, then the most CPUs are left."""
        rooms = [(free, room) for free in self.free.values() if (room := free.room(need))]
        if workers > 1:
            rooms.sort(key=lambda found: -found[1])
        elif rooms:
            rooms = [min(rooms, key=lambda found: (found[0].whole, -found[0].cpus))]
        for free, room in rooms:
            gpus: list[int | None] = [gpu for gpu, share in enumerate(free.gpus) if share == 1]
            for gpu in (gpus if need.gpus else [None] * room)[: min(room, workers)]:
                yield Place(free.node.id, gpu)
                workers -= 1

    def _share(self, need: Need, sparing: int) -> Place | None:
        """The emptiest GPU; among equals one on the node with the most free CPUs."""
        frees = self.free.values()
        opened = [(free.gpus[gpu], free.cpus, free.node.id, gpu) for free in frees for gpu in free.shared(need)]
        unused = (free for free in frees if free.whole and free.cpus >= need.cpus)
        whole = [(1.0, free.cpus, free.node.id, free.gpus.index(1.0)) for free in unused]
        if opened and sum(free.whole for free in frees) <= sparing:
            whole = []
        best = max(opened + whole, default=None)
        return None if best is None else Place(best[2], best[3])

    def reserved_cpus(self, seat: Place) -> int:
        """CPUs that are set aside with a shared GPU; 0 for an unshared one."""
        return self.free[seat.node].reserved.get(seat.gpu, 0) if seat.gpu is not None else 0

    def take(self, job: Job, seats: Iterable[Place]) -> None:
        """Seat the job's workers."""
        for seat in seats:
            if seat.node in self.free:
                self.free[seat.node].take(job.need, seat.gpu)

    def give(self, job: Job, seats: Iterable[Place]) -> None:
        """Free the job's seats; their nodes may be gone."""
        for seat in seats:
            if seat.node in self.free:
                self.free[seat.node].give(job.need, seat.gpu)


class Placing:
    """Waiting and running jobs on a set of nodes."""

    def __init__(self, jobs: Iterable[Job], nodes: Iterable[Node]) -> None:
        """``jobs`` in the order in which they should begin (``in_order``)."""
        self.waiting = list(jobs)
        self.running: dict[str, Start] = {}
        self.floor = Floor(nodes)

    def starts(self, clock: float) -> list[Start]:
        """Begin all jobs that can begin now, and return them."""
        begun: list[Start] = []
        refused: set[tuple[Need, int]] = set()
        sparing = sum(job.least for job in self.waiting if job.need.gpus == 1)
        for job in self.waiting:
            if (job.need, job.least) in refused:
                continue
            seats = self.floor.seats(job, sparing)
            if seats is None:
                refused.add((job.need, job.least))
            else:
                sparing -= job.least * (job.need.gpus == 1)
                self.running[job.key] = Start(job, seats, clock)
                begun.append(self.running[job.key])
        self.waiting = [job for job in self.waiting if job.key not in self.running]
        return begun

    def ended(self, key: str) -> Job:
        """Remove a job from the running ones, done or not."""
        start = self.running.pop(key)
        self.floor.give(start.job, start.seats)
        return start.job

    def again(self, job: Job, *, last: bool = False) -> None:
        """Queue a job that has lost its place, first or last."""
        self.waiting.insert(len(self.waiting) if last else 0, job)

    def now_on(self, nodes: Sequence[Node]) -> None:
        """Replace the nodes: some have come, some have gone."""
        there = self.floor.free
        self.floor.free = {node.id: there.get(node.id) or Free(node) for node in nodes}


@dataclass(frozen=True)
class Simulated:
    """The course of a simulation."""

    seconds: float  # until the last has ended
    starts: tuple[Start, ...]


def simulate(jobs: Iterable[Job], nodes: Iterable[Node]) -> Simulated:
    """Place jobs in their order as a training does, with a clock that jumps from end to end."""
    placing = Placing(jobs, nodes)
    starts: list[Start] = []
    ends: list[tuple[float, str]] = []
    clock = 0.0
    while True:
        for start in placing.starts(clock):
            starts.append(start)
            heapq.heappush(ends, (start.end, start.job.key))
        if not ends:
            return Simulated(clock, tuple(starts))
        clock, key = heapq.heappop(ends)
        placing.ended(key)
        while ends and ends[0][0] == clock:
            placing.ended(heapq.heappop(ends)[1])


def in_order(jobs: Iterable[Job], nodes: Sequence[Node]) -> list[Job]:
    """The order in which jobs should begin: the longest first, unless simulations find an order that ends earlier.

    Each try moves the job that ended last to an earlier, random place; the same jobs always give the same order.
    """
    order = sorted(jobs, key=lambda job: -job.seconds)
    found, draw = simulate(order, nodes), random.Random(0)
    for _ in range(min(TRIES, SIMULATED // max(1, len(order)))):
        last = max(found.starts, key=lambda start: start.end)
        before = [start.job for start in found.starts if start.begin < last.begin]
        if not before:  # no order ends before the longest job
            break
        other = [job for job in order if job.key != last.job.key]
        other.insert(other.index(draw.choice(before)), last.job)
        outcome = simulate(other, nodes)
        if outcome.seconds <= found.seconds:
            found, order = outcome, other
    return order
