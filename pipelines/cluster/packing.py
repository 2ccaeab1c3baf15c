"""Run planned trials on a cluster, as many side by side as it holds, and show their progress."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipelines.cluster import connection, distributed, estimate, failures, nodes, readiness
from pipelines.cluster.placement import Job, Node, Place, Placing, Start
from pipelines.command import errors
from pipelines.command.errors import FULL, LONGEST_LINE, PREEMPTED, HeldError, UserError, reason
from pipelines.command.progress import becomes, say
from pipelines.training import status
from pipelines.training.spec import Spec

if TYPE_CHECKING:
    from pipelines.training.checkpoint import Worker

STUCK_S = 600.0  # without progress of a trial in another process
LIVE_EVERY_S = 1.0
AGAIN_IDLE_S = 0.2  # while nothing runs
LINES_EVERY_S = 15.0  # where the output is no terminal
LINES_AT_ONCE = 20  # of running trials
ASKING_S = 8.0  # to ask other nodes to save, where this machine is taken away
SAVING_S = 15.0  # to wait for their checkpoints
Failure = tuple[Spec, Exception]
Tasks = Mapping[Any, tuple[Spec, float]]  # by task of Ray: its trial, and when it began


def run(placed: Sequence[Spec], cluster: connection.Cluster) -> None:
    """Train all, as many side by side as fit.

    One that fails ends no other; raises an error for those that failed once all have ended. Where SIGUSR1 asks this
    process to end, all trials save their checkpoints first.
    """
    with _saving_when_preempted(placed):
        _run_all(placed, cluster)


def _run_all(placed: Sequence[Spec], cluster: connection.Cluster) -> None:
    failed: list[Failure] = []
    for trial, error in _Packing(placed, cluster).failed():
        failed.append((trial, error))
        if len(placed) > 1:
            say(f"{trial.name} failed: {reason(error, LONGEST_LINE).removeprefix(f'{trial.name}: ')}")
    if failed:
        raise _summary(failed)


def _summary(failed: Sequence[Failure]) -> Exception:
    """The error to raise once all trials have ended: a bug of ours as it is, otherwise one line for the user."""
    (_, first), *others = failed
    for _, error in failed:
        if not isinstance(error, UserError):
            return error
    names = ", ".join(trial.name for trial, _ in others)
    summary = UserError(f"{first} (and {len(others)} more failed: {names})" if others else str(first))
    if all(getattr(error, "status", None) == PREEMPTED for _, error in failed):
        summary.status = PREEMPTED
    return summary


class _Packing:
    """Running and waiting trials: each begins where the placing seats it, and again elsewhere after losing its place.

    A trial of one worker is a task of Ray's; one of several is an attempt of Ray Train's, with a task to wait for.
    """

    def __init__(self, placed: Sequence[Spec], cluster: connection.Cluster) -> None:
        self.cluster = cluster
        self.trials = {trial.key: trial for trial in placed}
        self.placing = Placing(estimate.in_order(placed, cluster), cluster.nodes)
        self.shared = SharedGPUs(cluster)
        self.tasks: dict[Any, tuple[Spec, float]] = {}  # and when they began
        self.attempts: dict[Any, distributed.Attempt] = {}  # by task of Ray; Ray Train notices lost nodes itself
        self.losses = failures.Losses()
        self.held: dict[str, str] = {}  # by trial's key: the line about the process that trains it
        self.alive = {node.id: node.host for node in cluster.nodes}
        self.looked = self.checked = time.monotonic()  # when: at the nodes; for cut-off trials
        self.requested: list[dict[str, float]] = []  # from an autoscaler

    def failed(self) -> Iterator[Failure]:
        """Train all to their ends; yields each failure as it happens."""
        try:
            while self.placing.waiting or self.placing.running:
                for start in self.placing.starts(time.monotonic()):
                    self._begin(start)
                for trial, error in self._ended():
                    self.shared.left(self.placing.running[trial.key])
                    job = self.placing.ended(trial.key)
                    if isinstance(error, failures.UnfitError):
                        self._without(error)
                        self.placing.again(job)
                    elif isinstance(error, HeldError) and self._waits_for(trial, error):
                        self.placing.again(job, last=True)
                    elif isinstance(error, UserError) and self.losses.forgives(trial.key, error):
                        say(f"{error.fact}; it goes on elsewhere")
                        self.placing.again(job)
                    elif error is not None:
                        yield trial, failures.given_up(error)
                self._look()
        finally:
            self._request([])

    def _waits_for(self, trial: Spec, error: HeldError) -> bool:
        """Whether to wait for the process with the trial's lock: it makes progress, or may after being cut off."""
        gets_on = status.read(trial.files.progress, since=time.time() - STUCK_S) is not None
        waits = gets_on or self.losses.forgives(trial.key, error)
        if waits and self.held.get(trial.key) != error.fact:
            say(f"{error.fact}; this run waits for it")
            self.held[trial.key] = error.fact
        return waits

    def _without(self, error: failures.UnfitError) -> None:
        """Keep the remaining trials from nodes that lack something or are gone."""
        self.cluster = self.shared.cluster = self.cluster.without(error)
        self._see(connection.living())

    def _see(self, living: Sequence[Node]) -> None:
        self.placing.now_on([node for node in living if node.id not in self.cluster.refused])

    def _begin(self, start: Start) -> None:
        import ray

        trial, need, seat = self.trials[start.job.key], start.job.need, start.seats[0]
        if start.job.counts[0] > 1:
            attempt = distributed.Attempt(trial, self.cluster, need, len(start.seats), work)
            self.attempts[attempt.begin()] = attempt
            return
        if 0 < need.gpus < 1:
            where = self.shared.option(start, self.placing.floor.reserved_cpus(seat))
        else:
            where = self.cluster.near(seat.node)
        remote = ray.remote(max_retries=0)(_train_one)
        task = remote.options(**need.options, **where, name=trial.name).remote(trial, self.cluster.question)
        self.tasks[task] = trial, time.time()

    def _ended(self) -> Iterator[tuple[Spec, Exception | None]]:
        """The trials that end within a second, perhaps none."""
        import ray

        under_way = [*self.tasks, *self.attempts]
        done = ray.wait(under_way, num_returns=1, timeout=1.0)[0] if under_way else []
        for task in done:
            if task in self.attempts:
                attempt = self.attempts.pop(task)
                yield attempt.spec, attempt.error(task)
            else:
                trial, _ = self.tasks.pop(task)
                yield trial, _error_of(task, trial, self.cluster)
        if self.cluster.address is not None and time.monotonic() - self.checked > connection.CUT_OFF_S / 4:
            self.checked = time.monotonic()
            before, self.alive = self.alive, {node.id: node.host for node in connection.living()}
            gone = before.keys() - self.alive.keys()
            for task, error in [*_cut_off(self.tasks, self.alive.values()), *_promised(self.tasks, gone)]:
                yield self.tasks.pop(task)[0], error
        if not self.placing.running:
            time.sleep(AGAIN_IDLE_S)  # for a node

    def _look(self) -> None:
        """Notice new and lost nodes; request from an autoscaler what the remaining trials take."""
        if self.cluster.address is None or time.monotonic() - self.looked < connection.NODES_EVERY_S:
            return
        self.looked = time.monotonic()
        self._see(connection.living())
        running = [start.job for start in self.placing.running.values()]
        self._request([*running, *self.placing.waiting] if self.placing.waiting else [])

    def _request(self, jobs: Sequence[Job]) -> None:
        from ray.autoscaler.sdk import request_resources

        bundles = [job.need.bundle for job in jobs for _ in range(job.counts[0])]
        if bundles != self.requested:
            self.requested = bundles
            request_resources(bundles=bundles)


class SharedGPUs:
    """Reservations of GPUs that several trials share, one reservation a GPU.

    Ray fills one GPU with fractions before it takes the next: within the reservation of a GPU, it has no choice.
    """

    def __init__(self, cluster: connection.Cluster) -> None:
        self.cluster = cluster
        self.held: dict[Place, tuple[Any, set[str]]] = {}  # and the keys of the trials in it

    def option(self, start: Start, cpus: int) -> dict[str, Any]:
        """The option that puts a Ray task onto its GPU; with the GPU come ``cpus`` for all trials that share it."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        (seat,) = start.seats
        if seat not in self.held:
            selector = [chosen] if (chosen := self.cluster.placing.get("label_selector")) else None
            bundle = {"GPU": 1.0, "CPU": float(cpus)}
            near: dict[str, Any] = {"_soft_target_node_id": seat.node, "bundle_label_selector": selector}
            self.held[seat] = placement_group([bundle], strategy="STRICT_PACK", **near), set()
        group, keys = self.held[seat]
        keys.add(start.job.key)
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, 0)}

    def left(self, start: Start) -> None:
        """A trial has ended; the last trial on a GPU releases it."""
        from ray.util.placement_group import remove_placement_group

        for seat in start.seats:
            group, keys = self.held.get(seat, (None, set()))
            keys.discard(start.job.key)
            if group is not None and not keys:
                remove_placement_group(group)
                del self.held[seat]


def _cut_off(tasks: Tasks, hosts: Collection[str]) -> Iterator[tuple[Any, Exception | None]]:
    """Tasks that Ray still awaits though their nodes are gone: finished in the store all the same, or lost.

    Without a connection to a node, Ray takes its tasks for running long after it took the node for dead.
    """
    for task, (trial, began) in tasks.items():
        state = status.read(trial.files.progress, since=began)
        if state is not None and state.get("host") not in hosts and time.time() - state["time"] > connection.CUT_OFF_S:
            lost = failures.LostError(f"{trial.name}: its node {state['host']} is cut off")
            yield task, None if trial.files.finished else lost


def _promised(tasks: Tasks, dead: Collection[str]) -> Iterator[tuple[Any, Exception]]:
    """Tasks that had not begun when nodes were lost; each is to start again without these nodes.

    Ray may have asked one of them for a place, and without a connection waits for its answer for ever; with another
    selector of nodes, a task comes into another of Ray's queues.
    """
    import ray

    for task, (trial, began) in tasks.items() if dead else ():
        if status.read(trial.files.progress, since=began) is None:
            ray.cancel(task, force=True)  # with its process: an import that is interrupted would fail the next task
            yield task, failures.UnfitError(f"{trial.name}: its node is gone", tuple(dead))


def _error_of(task: Any, trial: Spec, cluster: connection.Cluster) -> Exception | None:
    """The error of an ended task, a UserError unless it is a bug of ours; None where it succeeded."""
    import ray

    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OSError) and error.cause.errno in FULL:
            return UserError(f"{trial.name}: no space left in {trial.store}; make room and run this again")
        return error.cause if isinstance(error.cause, UserError) else nodes.lacks_project(error, cluster) or error
    except (ray.exceptions.RayError, OSError) as error:
        return failures.lost_worker(trial.name, error)
    return None


def _train_one(trial: Spec, question: readiness.Question | None) -> None:
    """Runs in the main thread of a Ray worker process, so that the process can handle a signal."""
    connection.end_with_raylet()
    readiness.join(question)
    from pipelines.training.checkpoint import Worker

    work(trial, Worker(preempted_by=(signal.SIGUSR1,)))


def work(trial: Spec, worker: Worker) -> None:
    """Runs in a Ray worker process, or in each of a trial's several."""
    from pipelines.training import trainer

    trainer.run(trial, worker)


@contextmanager
def _saving_when_preempted(placed: Sequence[Spec]) -> Iterator[None]:
    """Where this machine is taken away, let all trials save their checkpoints before the driver ends."""
    began = time.time()
    try:
        yield
    except KeyboardInterrupt:
        if errors.preempted():
            since, keys = time.time(), _ask_everywhere(placed, began)
            saving = [trial for trial in placed if trial.key in keys]
            becomes(lambda: all(_saved(trial, since) for trial in saving), within_s=SAVING_S, every_s=0.1)
        raise


def _ask_everywhere(placed: Sequence[Spec], began: float) -> set[str]:
    """Ask all nodes, this one first, to let their trials save and end; returns the keys of these trials."""
    saving = set(_ask_to_save(placed, began))
    with contextlib.suppress(Exception):  # the cluster may be ending, too
        others = [node for node in connection.living() if node.id != nodes.own()]
        for _, keys in nodes.ask(_ask_to_save, placed, began, among=others, patience_s=ASKING_S):
            saving.update(keys if isinstance(keys, list) else ())
    return saving


def _ask_to_save(placed: Sequence[Spec], began: float) -> list[str]:
    """Runs on each node: ask the processes that train there to save and end; the keys of their trials."""
    saving = []
    for trial in placed:
        state = status.read(trial.files.progress, since=began)
        if state is not None and state["state"] == "running" and state.get("host") == socket.gethostname():
            with contextlib.suppress(ProcessLookupError, TypeError):  # it has ended; the file is damaged
                os.kill(state["pid"], signal.SIGUSR1)
                saving.append(trial.key)
    return saving


def _saved(trial: Spec, since: float) -> bool:
    """Whether a trial's checkpoint is newer than ``since``, or no longer needed."""
    try:
        return trial.files.checkpoint.stat().st_mtime >= since
    except OSError:
        return trial.files.result.exists()


@contextmanager
def shown(placed: Sequence[Spec]) -> Iterator[None]:
    """Show each trial's progress: live lines on a terminal, plain lines in a log."""
    stop = threading.Event()

    def show() -> None:
        with contextlib.suppress(BrokenPipeError):  # without a reader, the trials go on
            _show(placed, stop)

    thread = threading.Thread(target=show, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _show(placed: Sequence[Spec], stop: threading.Event) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    overview, console = status.Overview(placed, since=time.time()), Console(highlight=False)
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with live or contextlib.nullcontext():
        ended = False
        while not ended:
            ended = stop.wait(LIVE_EVERY_S if live else LINES_EVERY_S)
            if live is None:
                _log(overview)
            else:
                lines = overview.board(max(1, console.height - 2))
                live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)


def _log(overview: status.Overview) -> None:
    """Log each trial that has ended since the last look, and a few of those running."""
    changed, running = [(name, overview.states[name]) for name in overview.look()], 0
    for name, state in changed:
        running += state is not None and state["state"] == "running"
        if state is not None and (state["state"] != "running" or running <= LINES_AT_ONCE):
            say(status.line(name, state))
    if running > LINES_AT_ONCE:
        say(f"… and {running - LINES_AT_ONCE} more running")
