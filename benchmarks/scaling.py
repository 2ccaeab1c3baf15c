"""What more workers bring: measured here, simulated beyond, as a table, a page and a run of MLflow.

    python -m benchmarks.scaling --workers 1 2

- distributed: one trial of LeNet-5 on so many workers of one core each, the minibatch shared out among them;
- side by side: as many trials at once, as ``train`` packs them; two have an efficiency of at least 0.9.

The images are made here.

The page is report/scaling.html. The run goes to the MLflow that ``MLFLOW_TRACKING_URI`` names, or to this checkout's,
into the experiment ``scaling``.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import Row, make_images
from benchmarks.placement import Use, cluster, jobs, use
from pipelines.cluster import connection, distributed, packing, placement
from pipelines.cluster.connection import Cluster
from pipelines.command import arguments
from pipelines.command.errors import UserError, guard
from pipelines.command.files import read_lines, write_bytes
from pipelines.config.params import load_params
from pipelines.results.page.html import render
from pipelines.tracking import addresses
from pipelines.training import provenance

IMAGES = 20_000  # of an epoch
SIMULATED, SUITE_PLACED = (1, 8, 64, 1024), "paper"  # GPUs
PAGE = Path("report/scaling.html")


@dataclass(frozen=True)
class Measured:
    """The rate of so many workers, in images a second, and over as many times the rate of one."""

    kind: str
    workers: int
    rate: float
    efficiency: float


def packed(row: Row, seeds: int, epochs: int) -> float:
    """Images a second of so many trials at once, as Ray tasks of one CPU each; together, while all of them train."""
    import ray

    with tempfile.TemporaryDirectory() as folder:
        specs = [row.planned(Path(folder), epochs, seed) for seed in range(seeds)]
        task = ray.remote(num_cpus=1)(packing.work)
        ray.get([task.remote(one, None) for one in specs])
        curves = [read_lines(one.files.curve) for one in specs]
    return row.images_per_s(*curves)


def shared_out(row: Row, cluster: Cluster, workers: int, epochs: int) -> float:
    """Images a second of one trial on so many workers, more than one."""
    with tempfile.TemporaryDirectory() as folder:
        one = row.planned(Path(folder), epochs)
        resources = dataclasses.replace(one.benchmark.resources, workers=workers)
        one = dataclasses.replace(one, benchmark=dataclasses.replace(one.benchmark, resources=resources))
        attempt = distributed.Attempt(one, cluster, cluster.need(one.benchmark), workers, packing.work)
        if error := attempt.error(attempt.begin()):
            raise error
        return row.images_per_s(read_lines(one.files.curve))


def measure(row: Row, cluster: Cluster, counts: Sequence[int], rounds: int, epochs: int) -> list[Measured]:
    """Both kinds at each number of workers, in turn; medians over the rounds."""
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for workers in counts:
            beside = packed(row, workers, epochs)
            shared = beside if workers == 1 else shared_out(row, cluster, workers, epochs)  # one is one either way
            rates.setdefault(("distributed", workers), []).append(shared)
            rates.setdefault(("side by side", workers), []).append(beside)
    middle = {key: statistics.median(values) for key, values in rates.items()}
    one = {kind: middle[kind, 1] for kind, _ in middle}
    return [Measured(kind, n, rate, rate / (n * one[kind])) for (kind, n), rate in sorted(middle.items())]


def simulate() -> dict[int, Use]:
    """What the placing of a suite comes to, by the number of GPUs."""
    params, uses = load_params(), dict[int, Use]()
    waiting = list(jobs(params, params.suites[SUITE_PLACED].benchmarks, cluster(max(SIMULATED))))
    for gpus in SIMULATED:
        nodes = cluster(gpus).nodes
        uses[gpus] = use(placement.simulate(placement.in_order(waiting, nodes), nodes), gpus)
    return uses


def track(scales: Sequence[Measured], uses: dict[int, Use], hardware: str) -> str:
    """One run, a step for each number of workers or GPUs; returns the address of the server or database."""
    import mlflow

    uri = addresses.tracking_uri(Path())
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("scaling")
    with mlflow.start_run(run_name="scaling"):
        mlflow.log_params({"hardware": hardware, "torch": torch.__version__, "images": IMAGES})
        for one in scales:
            kind = one.kind.replace(" ", "_")
            mlflow.log_metrics(
                {f"{kind}_images_per_s": one.rate, f"{kind}_efficiency": one.efficiency}, step=one.workers
            )
        for gpus, found in uses.items():
            mlflow.log_metrics({"simulated_devices_used": found.devices, "simulated_ratio": found.ratio}, step=gpus)
        mlflow.log_artifact(str(PAGE))
    return addresses.place(addresses.safe(uri))


def main() -> None:
    """Measure, simulate, print, write and track."""
    parser = arguments.Parser(prog="python -m benchmarks.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of each measurement, the first aside")
    args = parser.parse_args()
    if 1 not in args.workers:
        named = ", ".join(map(str, args.workers))
        raise UserError(f"--workers has {named}; expected 1 among them, which the others are compared with")
    with connection.connect() as cluster, tempfile.TemporaryDirectory() as folder:
        if max(args.workers) > cluster.cpus:
            raise UserError(f"--workers has {max(args.workers)}; expected at most the {cluster.cpus} CPUs of {cluster}")
        row = Row("lenet5-mnist", "cpu", Path(folder), IMAGES)
        make_images(row.data, row.dataset, row.images)
        packed(row, min(2, max(args.workers)), 2)  # starts the workers
        scales = measure(row, cluster, args.workers, args.rounds, args.epochs + 1)
    uses, hardware = simulate(), provenance.hardware("cpu")
    print(f"{hardware}, torch {torch.__version__}\n\n| measured | workers | images/s | efficiency |\n|---|---|---|---|")
    for one in scales:
        print(f"| {one.kind} | {one.workers} | {one.rate:,.0f} | {one.efficiency:.2f} |")
    print(f"\n| GPUs, {SUITE_PLACED} simulated | devices used | bound / makespan |\n|---|---|---|")
    for gpus, of in uses.items():
        print(f"| {gpus:,} | {of.devices:.0%} | {of.ratio:.3f} |")
    simulated: list[dict[str, Any]] = [{"gpus": n, "devices": of.devices, "ratio": of.ratio} for n, of in uses.items()]
    about = {"benchmark": "LeNet-5", "hardware": hardware, "rounds": args.rounds, "suite": SUITE_PLACED}
    page = render("scaling.html", title="Scaling", measured=scales, simulated=simulated, **about)
    write_bytes(PAGE, page.encode())
    print(f"\n{PAGE}, and the experiment scaling of {track(scales, uses, hardware)}")


if __name__ == "__main__":
    guard(main)
