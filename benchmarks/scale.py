"""What 1,000 trials on 100 nodes cost the driver, as ratios of the ways before and now, on a store that is made here.

    python -m benchmarks.scale --trials 1000

- looks: at the progress of all trials, a tenth of which has changed since the last look;
- progress: writing one trial's file, with and without waiting for the disk;
- collecting: finished trials, one after the other and side by side;
- lengths: of all trials, each reckoned by itself and what seeds have in common reckoned once.

Then how the driver's time for placing all of them compares with that for one look.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import train
from pipelines.cluster import estimate, placement
from pipelines.cluster.placement import Job, Need, Node
from pipelines.command import arguments
from pipelines.command.errors import guard
from pipelines.command.files import write_bytes, write_json
from pipelines.config.params import load_params
from pipelines.data import datasets
from pipelines.training import spec, status
from pipelines.training.spec import Spec

ROUNDS = 5
WEIGHTS = b"w" * 250_000  # about LeNet-5's
PROGRESS: dict[str, Any] = {
    "state": "running",
    "epoch": 1.5,
    "epochs": 20,
    "loss": 0.1,
    "images_per_s": 5e3,
    "eta_s": 9,
}
NODES = [Node(cpus=96, gpus=8, id=f"node-{number}") for number in range(100)]


def timed(*contenders: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """The median over rounds of each one's time over the last one's in the same round."""
    ratios = []
    for _ in range(rounds):
        times = []
        for contender in contenders:
            began = time.perf_counter()
            contender()
            times.append(time.perf_counter() - began)
        ratios.append([one / times[-1] for one in times])
    return [statistics.median(column) for column in zip(*ratios, strict=True)]


def made(root: Path, count: int) -> list[Spec]:
    """Finished trials of LeNet-5 in a store."""
    images = np.zeros((60_000, 1, 28, 28), np.uint8)
    labels = np.arange(60_000) % 10
    classes = [str(number) for number in range(10)]
    datasets.write_dataset(root, name="mnist", classes=classes, train=(images, labels), test=(images[:10], labels[:10]))
    first = spec.plan(load_params().benchmark("lenet5-mnist"), "paper", 0, data=root, root=root / "store", threads=1)
    trials = [dataclasses.replace(first, seed=seed) for seed in range(count)]
    for trial in trials:
        write_bytes(trial.files.weights, WEIGHTS, lasting=False)
        write_bytes(trial.files.curve, b"{}\n", lasting=False)
        tell(trial)
        trial.files.write_result({"key": trial.key})
    return trials


def tell(trial: Spec) -> None:
    """Write a trial's progress."""
    write_json(trial.files.progress, PROGRESS | {"time": time.time()}, lasting=False)


def looks(trials: Sequence[Spec]) -> float:
    """Reading all files against reading what has changed."""
    overview = status.Overview(trials, since=0)
    overview.look()
    times = []
    for _ in range(ROUNDS):
        for trial in trials[::10]:
            tell(trial)
        times.append(timed(lambda: read_all(trials), overview.look, rounds=1)[0])
    return statistics.median(times)


def read_all(trials: Sequence[Spec]) -> None:
    """As a look was before."""
    for trial in trials:
        status.read(trial.files.progress, since=0)


def writes(trial: Spec) -> float:
    """Waiting for the disk against not."""
    path = trial.files.progress
    return timed(lambda: write_json(path, PROGRESS), lambda: write_json(path, PROGRESS, lasting=False))[0]


def collecting(trials: Sequence[Spec], runs: Path) -> float:
    """One after the other against side by side."""

    def one_by_one() -> None:
        for trial in trials:
            train.collect([trial], runs / "before" / str(trial.seed))

    return timed(one_by_one, lambda: train.collect(trials, runs / "now"))[0]


def lengths(trials: Sequence[Spec]) -> float:
    """Each by itself against kinds of trials."""
    write_json(estimate.path(), {estimate.rate_key(trials[0]): 5000.0})
    return timed(lambda: [estimate.trial_seconds(one) for one in trials], lambda: estimate.trials_seconds(trials))[0]


def placing(trials: Sequence[Spec]) -> float:
    """All of a training's placing against one look at all trials' files."""
    jobs = [Job(key=one.key, need=Need(gpus=0.25), seconds=1000.0 + one.seed) for one in trials]
    return timed(lambda: placement.simulate(jobs, NODES), lambda: read_all(trials))[0]


def main() -> None:
    """Print a ratio for each."""
    parser = arguments.Parser(prog="python -m benchmarks.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["RUN_STORE"] = str(root / "store")
        trials = made(root, args.trials)
        print(f"{args.trials:,} trials; before / now:")
        print(f"  looks       {looks(trials):6.1f}")
        print(f"  progress    {writes(trials[0]):6.1f}")
        print(f"  collecting  {collecting(trials, root / 'runs'):6.1f}")
        print(f"  lengths     {lengths(trials):6.1f}")
        print(f"placing all on {len(NODES)} nodes takes {placing(trials):.1f} of such looks before")


if __name__ == "__main__":
    guard(main)
