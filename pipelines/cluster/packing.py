"""Run planned trials on a cluster, as many side by side as it holds, and show their progress."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pipelines.cluster import connection, distributed, estimate, nodes, readiness
from pipelines.command import errors
from pipelines.command.errors import FULL, PREEMPTED, UserError
from pipelines.command.progress import say
from pipelines.training import status
from pipelines.training.spec import Spec

CUT_OFF_S = 20.0  # without progress from a node that Ray takes for dead
LIVE_EVERY_S = 0.5
LINES_EVERY_S = 15.0  # where the output is no terminal
ASKING_S = 8.0  # for other nodes to pass on that the machine is taken away
SAVING_S = 15.0  # for checkpoints then
Failure = tuple[Spec, Exception]
Tasks = Mapping[Any, tuple[Spec, float]]  # of Ray: what it trains, and since when


def run(placed: Sequence[Spec], ray_cluster: connection.Cluster) -> None:
    """Train all, the longest first, so that none is left to run alone at the end.

    One that fails ends no other; raises an error for those that failed once all have ended. Where SIGUSR1 asks this
    process to end, all trials save their checkpoints first.
    """
    with _saving_when_preempted(placed):
        _run_all(placed, ray_cluster)


def _run_all(placed: Sequence[Spec], ray_cluster: connection.Cluster) -> None:
    order = sorted(placed, key=lambda trial: -estimate.trial_seconds(trial))
    failed: list[Failure] = []
    # First the distributed ones, while no task of ours keeps Ray Train from placing all their workers at once.
    for trial, error in itertools.chain(_run_distributed(order, ray_cluster), _run_packed(order, ray_cluster)):
        failed.append((trial, error))
        if len(placed) > 1:
            say(f"{trial.name} failed: {_first_line(error).removeprefix(f'{trial.name}: ')}")
    if failed:
        raise _summary(failed)


def _summary(failed: Sequence[Failure]) -> Exception:
    """The error to raise when all trials have ended: a bug of ours as it is, else one line for the user."""
    (_, first), *others = failed
    for _, error in failed:
        if not isinstance(error, UserError):
            return error
    names = ", ".join(trial.name for trial, _ in others)
    summary = UserError(f"{first} (and {len(others)} more failed: {names})" if others else str(first))
    if all(getattr(error, "status", None) == PREEMPTED for _, error in failed):
        summary.status = PREEMPTED
    return summary


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _run_distributed(order: Sequence[Spec], ray_cluster: connection.Cluster) -> Iterator[Failure]:
    """Run the trials of several workers one after the other; yields those that fail."""
    for trial in order:
        if trial.benchmark.resources.workers > 1:
            try:
                distributed.train(trial, ray_cluster)
            except Exception as error:
                yield trial, error


def _run_packed(order: Sequence[Spec], ray_cluster: connection.Cluster) -> Iterator[Failure]:
    """Run the trials of one worker, as many side by side as the cluster holds; yields those that fail, as they do.

    A trial whose node or worker is lost goes on elsewhere, at its checkpoint.
    """
    import ray

    remote = ray.remote(max_retries=0)(_train_one)

    def start(trial: Spec) -> Any:
        gpus = ray_cluster.gpus_for(trial.benchmark)
        asked = {"num_cpus": trial.benchmark.resources.cpus, "num_gpus": gpus, **ray_cluster.placing}
        return remote.options(**asked, name=trial.name).remote(trial, ray_cluster.question)

    packed = [trial for trial in order if trial.benchmark.resources.workers == 1]
    tasks = {start(trial): (trial, time.time()) for trial in packed}
    losses, alive = connection.Losses(), {node.id: node.host for node in ray_cluster.nodes}
    while tasks:
        done, _ = ray.wait(list(tasks), num_returns=1, timeout=1.0)
        ended = [(task, _error_of(task, tasks[task][0], ray_cluster)) for task in done]
        if not done and ray_cluster.address is not None:
            before, alive = alive, {node.id: node.host for node in connection.living()}
            ended = [*_cut_off(tasks, alive.values()), *_promised(tasks, before.keys() - alive.keys())]
        for task, error in ended:
            trial, _ = tasks.pop(task)
            if isinstance(error, connection.UnfitError):
                ray_cluster = ray_cluster.without(error)
                tasks[start(trial)] = trial, time.time()
            elif error is not None and losses.forgives(trial.key, error):
                say(f"{error}; it goes on elsewhere")
                tasks[start(trial)] = trial, time.time()
            elif error is not None:
                yield trial, connection.given_up(error)


def _cut_off(tasks: Tasks, hosts: Collection[str]) -> Iterator[tuple[Any, Exception | None]]:
    """Tasks that Ray awaits, though their nodes are gone: finished in the store all the same, or lost.

    Without a connection to a node, Ray takes its tasks for running long after it took the node for dead.
    """
    for task, (trial, began) in tasks.items():
        state = status.read(trial.files.progress, since=began)
        if state is not None and state.get("host") not in hosts and time.time() - state["time"] > CUT_OFF_S:
            lost = connection.LostError(f"{trial.name}: its node {state['host']} is cut off")
            yield task, None if trial.files.finished else lost


def _promised(tasks: Tasks, dead: Collection[str]) -> Iterator[tuple[Any, Exception]]:
    """Tasks that have not begun, where nodes are gone, each to be started again without these.

    Ray may have asked one of them for a place, and without a connection waits for its answer for ever; with another
    selector of nodes, a task comes into another of Ray's queues.
    """
    import ray

    for task, (trial, began) in tasks.items() if dead else ():
        if status.read(trial.files.progress, since=began) is None:
            ray.cancel(task)
            yield task, connection.UnfitError(f"{trial.name}: its node is gone", tuple(dead))


def _error_of(task: Any, trial: Spec, ray_cluster: connection.Cluster) -> Exception | None:
    """The error that a task ended with, a UserError unless it is a bug of ours; None where it succeeded."""
    import ray

    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OSError) and error.cause.errno in FULL:
            return UserError(f"{trial.name}: no space left in {trial.store}; make room and run this again")
        return error.cause if isinstance(error.cause, UserError) else nodes.unfit(error, ray_cluster) or error
    except (ray.exceptions.RayError, OSError) as error:
        return connection.lost_worker(trial.name, error)
    return None


def _train_one(trial: Spec, question: readiness.Question | None) -> None:
    """Runs in the main thread of a Ray worker process, so that the process can handle a signal."""
    connection.end_with_raylet()
    readiness.join(question)
    from pipelines.training import trainer
    from pipelines.training.checkpoint import Worker

    trainer.run(trial, Worker(preempted_by=(signal.SIGUSR1,)))


@contextmanager
def _saving_when_preempted(placed: Sequence[Spec]) -> Iterator[None]:
    """Where this machine is taken away, let the trials save their checkpoints first: the others end with the driver."""
    began = time.time()
    try:
        yield
    except KeyboardInterrupt:
        if errors.preempted():
            asked = time.time()
            saving = _asked_everywhere(placed, began)
            while time.time() - asked < SAVING_S and not all(
                _saved(trial, asked) for trial in placed if trial.key in saving
            ):
                time.sleep(0.1)
        raise


def _asked_everywhere(placed: Sequence[Spec], began: float) -> set[str]:
    """Ask on each node, this one first, for the trials there to save and end; the keys of those that were."""
    asked = set(_ask_to_save(placed, began))
    with contextlib.suppress(Exception):  # the cluster may be on its way out, too
        others = [node for node in connection.living() if node.id != nodes.own()]
        for _, keys in nodes.ask(_ask_to_save, placed, began, among=others, patience_s=ASKING_S):
            asked.update(keys if isinstance(keys, list) else ())
    return asked


def _ask_to_save(placed: Sequence[Spec], began: float) -> list[str]:
    """Runs on each node."""
    return [trial.key for trial in placed if _asked_to_save(trial, began)]


def _asked_to_save(trial: Spec, began: float) -> bool:
    """Ask the process that trains it on this machine to save and end; False where there is none."""
    state = status.read(trial.files.progress, since=began)
    if state is None or state["state"] != "running" or state.get("host") != socket.gethostname():
        return False
    with contextlib.suppress(ProcessLookupError, TypeError):  # it has ended; the file is damaged
        os.kill(state["pid"], signal.SIGUSR1)
        return True
    return False


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

    began, console = time.time(), Console(highlight=False)

    def board() -> Text:
        return Text("\n".join(status.board(placed, since=began)), no_wrap=True, overflow="ellipsis")

    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while not stop.wait(LIVE_EVERY_S):
                live.update(board(), refresh=True)
            live.update(board(), refresh=True)
        return
    shown: set[str] = set()
    ended = False
    while not ended:
        ended = stop.wait(LINES_EVERY_S)
        for line in _lines(placed, began):
            if line not in shown and not line.endswith("waiting"):
                shown.add(line)
                say(line)


def _lines(placed: Sequence[Spec], began: float) -> list[str]:
    return [status.line(trial.name, status.read(trial.files.progress, since=began)) for trial in placed]
