"""Stage train: fan the trials of one benchmark, or of the whole suite, out on Ray, and collect what they leave.

    python -m pipelines.train lenet5-mnist     one benchmark, as the stage train@lenet5-mnist does
    python -m pipelines.train                  the active suite at once: seeds and benchmarks packed side by side

Trials train into the run store; a finished one is only collected, into ``runs/<benchmark>/seed-<n>/``. Trials of one
worker are plain Ray tasks (3 ms on a warm worker), trials of several are Ray Train with Lightning's DDP.
"""

from __future__ import annotations

import argparse
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines import benchmarks, cluster, estimate, orphan, progress, spec, store, tracking
from pipelines.errors import UserError, guard

DATA = Path("datasets")
RUNS = Path("runs")
LIVE_EVERY_S = 0.5
LINES_EVERY_S = 15.0  # where the output is no terminal


def train(params: benchmarks.Params, planned: Sequence[spec.Spec]) -> None:
    """Bring every planned trial to its end; UserError for what can't be trained, before anything starts."""
    from pipelines import trial  # torch and Lightning: not needed where all is trained already

    for benchmark, budget in {(s.benchmark.name, s.budget): (s.benchmark, s.budget) for s in planned}.values():
        trial.check(benchmark, budget, DATA)
    _require_space(planned)
    with cluster.connect() as ray_cluster:
        for one in planned:
            ray_cluster.require(one.benchmark)
        placed = [_place(s, ray_cluster) for s in planned]
        _announce(params, placed, ray_cluster)
        with _watching(placed), tracking.follow():
            _run_all(placed, ray_cluster)


def _place(one: spec.Spec, ray_cluster: cluster.Cluster) -> spec.Spec:
    device = "cuda" if ray_cluster.gpus_for(one.benchmark) else "cpu"
    return one.on(device, threads=one.benchmark.resources.cpus)


def _require_space(planned: Sequence[spec.Spec]) -> None:
    """A checkpoint, its successor and the weights of each trial must fit; better said now than after hours."""
    root = store.default()
    root.mkdir(parents=True, exist_ok=True)
    free, need = shutil.disk_usage(root).free, sum(estimate.disk_bytes(one) for one in planned)
    if need > free:
        raise UserError(f"{root} has {free / 1e9:.2f} GB free; expected {need / 1e9:.2f} GB for {len(planned)} trials")


def _announce(params: benchmarks.Params, placed: Sequence[spec.Spec], ray_cluster: cluster.Cluster) -> None:
    """Device, resources, and how long it will take; the suite's other benchmarks as far as their data is there."""
    from pipelines import provenance

    devices = " and ".join(sorted({one.device for one in placed}))
    say(f"{ray_cluster}; training on {devices}, this machine: {provenance.hardware('cpu')}")
    here = estimate.seconds(placed, ray_cluster)
    budgets = " and ".join(sorted({one.budget for one in placed}))
    say(f"{len(placed)} trials to train at the {budgets} budget, about {progress.duration(here)}")
    rest = [_place(s, ray_cluster) for s in _unfinished_elsewhere(params, placed, ray_cluster)]
    if rest:
        whole = estimate.seconds([*placed, *rest], ray_cluster)
        say(f"whole suite {params.suite.name}: {len(placed) + len(rest)} trials, about {progress.duration(whole)}")


def _trainable(params: benchmarks.Params, name: str, ray_cluster: cluster.Cluster) -> bool:
    """Whether another benchmark can be measured for the estimate; what is wrong with it, its own stage will say."""
    from pipelines import trial

    try:
        ray_cluster.require(params.benchmarks[name])
        trial.check(params.benchmarks[name], params.suite.benchmarks[name].budget, DATA)
    except UserError:
        return False
    return True


def _unfinished_elsewhere(
    params: benchmarks.Params, placed: Sequence[spec.Spec], ray_cluster: cluster.Cluster
) -> list[spec.Spec]:
    names = set(params.suite.benchmarks) - {one.benchmark.name for one in placed}
    there = [name for name in sorted(names) if _trainable(params, name, ray_cluster)]
    return [
        one
        for name in there
        for one in spec.trials(params, name, data=DATA, root=store.default())
        if not one.files.finished
    ]


def _run_all(placed: Sequence[spec.Spec], ray_cluster: cluster.Cluster) -> None:
    """Longest trials first, so that no long one is left to run alone at the end."""
    import ray

    order = sorted(placed, key=lambda one: -estimate.trial_seconds(one))
    remote = ray.remote(max_retries=cluster.RETRIES)(_train_one)
    tasks: dict[Any, spec.Spec] = {}
    for one in order:  # first, as nothing of ours then keeps Ray Train from placing all its workers at once
        if one.benchmark.resources.workers > 1:
            cluster.train_distributed(one, ray_cluster.gpus_for(one.benchmark))
    for one in order:
        if one.benchmark.resources.workers == 1:
            gpus = ray_cluster.gpus_for(one.benchmark)
            tasks[remote.options(num_cpus=one.benchmark.resources.cpus, num_gpus=gpus, name=one.name).remote(one)] = one
    while tasks:
        done, _ = ray.wait(list(tasks), num_returns=1, timeout=1.0)
        for task in done:
            _finish(task, tasks.pop(task))


def _finish(task: Any, one: spec.Spec) -> None:
    """Turn what a task ended with into one line; a bug of ours stays a traceback."""
    import ray

    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    except (ray.exceptions.RayError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{one.name}: its worker was lost ({reason}); run the same command again, it goes on at the last checkpoint"
        ) from None


def _train_one(one: spec.Spec) -> None:
    """Runs in a Ray worker process."""
    from pipelines import trial

    trial.run(one)


@contextmanager
def _watching(placed: Sequence[spec.Spec]) -> Iterator[None]:
    """Show each trial's progress: live lines on a terminal, plain lines in a log."""
    stop = threading.Event()
    thread = threading.Thread(target=_show, args=(placed, stop), daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _show(placed: Sequence[spec.Spec], stop: threading.Event) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    began, console = time.time(), Console(highlight=False)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while not stop.wait(LIVE_EVERY_S):
                live.update(Text(_board(placed, began), no_wrap=True, overflow="ellipsis"), refresh=True)
            live.update(Text(_board(placed, began), no_wrap=True, overflow="ellipsis"), refresh=True)
        return
    said: set[str] = set()
    ended = False
    while not ended:
        ended = stop.wait(LINES_EVERY_S)
        for line in _lines(placed, began):
            if line not in said and not line.endswith("waiting"):
                said.add(line)
                say(line)


def _board(placed: Sequence[spec.Spec], began: float) -> str:
    """The trials that run, a line each, and how many others there are: a suite has more than a terminal has rows."""
    told = {one.name: progress.read(one.files.progress, since=began) for one in placed}
    running = [progress.line(name, state) for name, state in told.items() if state and state["state"] == "running"]
    ended = sum(1 for state in told.values() if state and state["state"] != "running")
    return "\n".join([*running, f"{ended} of {len(told)} trials done, {len(told) - ended - len(running)} waiting"])


def _lines(placed: Sequence[spec.Spec], began: float) -> list[str]:
    return [progress.line(one.name, progress.read(one.files.progress, since=began)) for one in placed]


def collect(planned: Sequence[spec.Spec], runs: Path = RUNS) -> None:
    """Copy finished trials from the store to ``runs/<benchmark>/``, which is what later stages and DVC see."""
    for file in (file for one in planned for file in one.files.kept):
        if not file.exists():
            raise UserError(f"{file} is missing; expected a run store that every node shares ($RUN_STORE)")
    for name in {one.benchmark.name for one in planned}:
        shutil.rmtree(runs / name, ignore_errors=True)
    for one in planned:
        target = runs / one.benchmark.name / f"seed-{one.seed}"
        target.mkdir(parents=True)
        for file in one.files.kept:
            shutil.copyfile(file, target / file.name)


def say(line: str) -> None:
    """A line of the log, at once."""
    print(line, flush=True)


def main() -> None:
    """Train the benchmarks named on the command line, or the active suite."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.train", description="Train benchmarks on Ray.")
    parser.add_argument("benchmarks", nargs="*", help="names from params.yaml; by default the active suite")
    args = parser.parse_args()
    orphan.follow_dvc()
    params = benchmarks.load()
    names = list(dict.fromkeys(args.benchmarks)) or list(params.suite.benchmarks)
    planned = [one for name in names for one in spec.trials(params, name, data=DATA, root=store.default())]
    waiting = [one for one in planned if not one.files.finished]
    if len(waiting) < len(planned):
        say(f"{len(planned) - len(waiting)} of {len(planned)} trials are in the store already")
    if waiting:
        train(params, waiting)
    collect(planned)
    sent = tracking.sync()
    if sent.line:
        say(sent.line)


if __name__ == "__main__":
    guard(main)
