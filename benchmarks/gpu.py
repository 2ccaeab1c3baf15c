"""How near a GPU's training comes to what the GPU can do; torch, Lightning, NumPy and PyYAML suffice, in four minutes.

    python -m benchmarks.gpu                        # on a GPU
    python -m benchmarks.gpu --device cpu --seconds 1 --side-by-side 1 2      # a rehearsal

For LeNet-5, All-CNN-C and AlexNet, on images that are made here, each figure as it comes, then one table line each:

- eager: images a second of the barest loop over the network, its batch and precision: index, forward, backward, step;
- graph: that loop as a replayed CUDA graph;
- pipeline: a trial as ``pipelines.trial`` trains it, the epochs after the first;
- of peak: the share of the rate of a large bf16 matrix product that the pipeline's multiplications reach. Of an image
  these are three times those of the forward pass, though the first layer needs no gradient of its input;
- side by side: 2, 4 and 8 trials at once, a process each, all together, while all of them train.

Then a trace of some steps: for how long the device was busy, and what the host did while it waited.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import multiprocessing
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback
from torch import Tensor, nn
from torch.profiler import profile

from pipelines.command import arguments
from pipelines.command.errors import guard, reason
from pipelines.command.files import read_json, read_lines
from pipelines.config.benchmarks import Benchmark, Budget
from pipelines.config.params import load_params
from pipelines.data import datasets
from pipelines.training import core, graphs, provenance, spec, speed, trainer
from pipelines.training.checkpoint import Worker
from pipelines.training.inputs import Inputs

# The images of an epoch, multiples of the batch: some tenths of a second on a GPU, which eight trials may share; on a
# CPU few enough for a rehearsal not to take minutes.
EPOCH_IMAGES = {"cuda": {"lenet5-mnist": 59_904, "allcnn-c-cifar10": 25_600, "alexnet-imagenette": 3_840}}
EPOCH_IMAGES["cpu"] = {"lenet5-mnist": 4_096, "allcnn-c-cifar10": 256, "alexnet-imagenette": 128}
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "imagenette": (3, 256, 256)}
MATRIX = {"cuda": 8192, "cpu": 1024}  # rows and columns
FEW_STEPS = 3  # before a measurement
LOOK_S = 0.05  # of steps between two looks at the clock, for which the host waits for the device
FEWEST_EPOCHS = 3  # of trials side by side, after the first: they do not begin at the same moment
GAP_S = 20e-6  # a device without work for longer waits for the host
TICK_S = 1e-6  # resolution of a trace
Curve = list[dict[str, Any]]  # of a trial, a point an epoch


@dataclass(frozen=True)
class Row:
    """One benchmark, the device it is measured on, and where its images lie."""

    name: str
    device: str
    data: Path
    images: int  # of an epoch
    seconds: float = 0.0  # of each measurement

    @functools.cached_property
    def benchmark(self) -> Benchmark:
        """The row as it is committed."""
        return load_params().benchmark(self.name)

    @property
    def dataset(self) -> str:
        """The name of its data set."""
        return self.benchmark.dataset

    def planned(self, root: Path, epochs: int, seed: int = 0) -> spec.Spec:
        """A trial of so many epochs that nobody has trained yet."""
        benchmark = self.benchmark
        budgets = benchmark.budgets | {"speed": Budget(epochs=epochs, seeds=(seed,))}
        return spec.plan(
            dataclasses.replace(benchmark, budgets=budgets),
            "speed",
            seed,
            data=self.data,
            root=root,
            device=self.device,
            threads=1,
        )

    def images_per_s(self, *curves: Curve) -> float:
        """The rate of trials at once, from when the last has warmed up for an epoch to when the first ends.

        NaN where there was no such time.
        """
        began: float = max(curve[0]["time"] for curve in curves)
        ended: float = min(curve[-1]["time"] for curve in curves)
        if began >= ended:
            return math.nan

        def epochs(curve: Curve, at: float) -> float:
            return float(np.interp(at, [point["time"] for point in curve], range(len(curve))))

        return self.images * sum(epochs(curve, ended) - epochs(curve, began) for curve in curves) / (ended - began)


def make_images(root: Path, name: str, count: int) -> None:
    """A data set of noise in the shape of the real one, its labels random."""
    random = np.random.Generator(np.random.PCG64(0))
    pairs = [(random.integers(0, 256, (n, *SHAPES[name]), np.uint8), random.integers(0, 10, n)) for n in (count, 10)]
    datasets.write_dataset(root, name, classes=[str(n) for n in range(10)], train=pairs[0], test=pairs[1])


def pipeline(row: Row, epochs: int) -> float:
    """Images a second of a trial that is trained for one epoch more."""
    return row.images_per_s(trained(row, epochs)[0])


def trained(row: Row, epochs: int, seed: int = 0, worker: Worker | None = None) -> tuple[Curve, str | None]:
    """The curve of a trial that is trained for one epoch more, and whether its passes were replayed.

    What is fitted on the images stays beside them. Lines that the trial prints go to stderr.
    """
    fitted = row.data / "fitted"
    fitted.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        Path(folder, "fitted").symlink_to(fitted)
        files = trainer.run(row.planned(Path(folder), epochs + 1, seed), worker)
        return read_lines(files.curve), read_json(files.result).get("cuda_graph")


def side_by_side(row: Row, pool: Executor, count: int, epochs: int) -> float:
    """Images a second of ``count`` trials at once, a process each, all together, while all of them train."""
    found = pool.map(trained, itertools.repeat(row), itertools.repeat(epochs), range(count))
    return row.images_per_s(*(curve for curve, _ in found))


def together(row: Row, pool: Executor, count: int, epochs: int) -> str:
    """The same as a cell of the table; the other figures are worth having where memory or a process is lost."""
    try:
        return f"{side_by_side(row, pool, count, epochs):,.0f}"
    except RuntimeError as error:
        return f"failed: {reason(error)}"


class Loop:
    """The barest training loop over a row's network, on images that are on the device as the network wants them."""

    def __init__(self, row: Row) -> None:
        benchmark = row.benchmark
        inputs = Inputs(benchmark, datasets.open_dataset(row.data, benchmark.dataset), row.data)
        self.row, self.batch, self.flops = row, benchmark.recipe.batch, 3 * inputs.flops
        self.half = benchmark.recipe.precision.on(row.device, fast_bf16=spec.has_fast_bf16()) == "bf16"
        self.model = inputs.build().to(row.device)
        self.images = torch.randn(4 * self.batch, *inputs.shape, device=row.device)
        if benchmark.recipe.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(10, (4 * self.batch,), device=row.device)
        self.order = torch.randperm(4 * self.batch, device=row.device)[: self.batch]
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)
        self.loss = nn.CrossEntropyLoss()

    def step(self) -> Tensor:
        """Index, forward, backward, update."""
        with torch.autocast(self.row.device, torch.bfloat16, enabled=self.half):
            outputs = self.model(self.images[self.order])
        loss: Tensor = self.loss(outputs.float(), self.labels[self.order])
        self.optimiser.zero_grad(set_to_none=False)
        loss.backward()
        self.optimiser.step()
        return loss

    def replay(self) -> Callable[[], object] | None:
        """The step as a replayed CUDA graph, after steps without; None on a CPU and where it can't be captured."""
        if self.row.device == "cpu":
            return None
        try:
            return graphs.CudaCapture()(self.step)
        except RuntimeError as error:
            print(f"{self.row.name}: the loop's step was not captured: {error}", file=sys.stderr)
            return None


def rate(step: Callable[[], object], device: str, seconds: float) -> float:
    """Steps a second, after some that warm up; the device has finished the last one."""

    def run(count: int) -> float:
        began = time.monotonic()
        for _ in range(count):
            step()
        speed.wait(device)
        return time.monotonic() - began

    run(FEW_STEPS)
    at_once = max(FEW_STEPS, round(FEW_STEPS * LOOK_S / run(FEW_STEPS)))
    steps, spent = 0, 0.0
    while spent < seconds:
        spent += run(at_once)
        steps += at_once
    return steps / spent


def peak(device: str, seconds: float) -> float:
    """Floating-point operations a second of a large bf16 matrix product."""
    side = MATRIX[device]
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return 2 * side**3 * rate(lambda: matrix @ matrix, device, seconds)


def trace(row: Row) -> str:
    """How busy the device was while a trial took some steps, and the host's work during the gaps, most time first."""
    seen = profile()

    def begin(trainer: pl.Trainer, module: pl.LightningModule, chunk: object, index: int) -> None:
        if (trainer.current_epoch, index) == (1, 0):
            seen.start()

    def end(trainer: pl.Trainer, module: pl.LightningModule, outputs: object, chunk: object, index: int) -> None:
        if (trainer.current_epoch, index) == (1, 0):
            seen.stop()

    def watched(trainer: pl.Trainer) -> pl.Trainer:
        trainer.callbacks.append(LambdaCallback(on_train_batch_start=begin, on_train_batch_end=end))
        return trainer

    with profile():
        pass  # a graph that is captured before the first profile may be missing in all
    trained(row, 1, worker=Worker(prepare=watched))
    kernels, host = list[tuple[float, float]](), list[tuple[float, float, str]]()
    for event in seen.events():
        start, end_ = event.time_range.start * 1e-6, event.time_range.end * 1e-6
        if event.device_type.name == "CPU":
            host.append((start, end_, event.name))
        elif not event.is_user_annotation:  # such as a step's, from its first kernel to its last
            kernels.append((start, end_))
    return summary(kernels, host)


def summary(kernels: Sequence[tuple[float, float]], host: Iterable[tuple[float, float, str]]) -> str:
    """The share of time in which a kernel ran, and which host events fill the gaps; starts and ends in seconds.

    Of nested events the innermost counts; outside of all the host was in Python.
    """
    if not kernels:
        return "no kernels on a device were seen"
    kernels = sorted(kernels)
    gaps, busy, first, ended = list[tuple[float, float]](), 0.0, kernels[0][0], kernels[0][0]
    for start, end in kernels:
        if start - ended > GAP_S:
            gaps.append((ended, start))
        busy += max(0.0, end - max(start, ended))
        ended = max(ended, end)

    def ticks(start: float, end: float) -> slice:
        return slice(*(max(0, round((at - first) / TICK_S)) for at in (start, end)))

    names, inside = ["Python"], np.zeros(round((ended - first) / TICK_S) + 1, np.int64)
    for start, end, name in sorted(host, key=lambda event: (event[0], -event[1])):  # the inner ones last
        inside[ticks(start, end)] = len(names)
        names.append(name)
    waited = Counter[str]()
    for gap in gaps:
        for at, count in zip(*np.unique(inside[ticks(*gap)], return_counts=True), strict=True):
            waited[names[at]] += int(count)
    whole = max(ended - first, 1e-9)
    told = ", ".join(f"{name} {count * TICK_S / whole:.1%}" for name, count in waited.most_common(6))
    return f"the device was busy {busy / whole:.1%} of the time; in its {len(gaps)} gaps the host was in: {told or '–'}"


def measured(row: Row, most: float, pool: Executor, counts: Sequence[int]) -> Iterator[tuple[str, str]]:
    """The cells of a row's line, by the heads of their columns."""
    loop = Loop(row)
    eager, flops = loop.batch * rate(loop.step, row.device, row.seconds), loop.flops
    yield "eager", f"{eager:,.0f}"
    replay = loop.replay()
    graph = loop.batch * rate(replay, row.device, row.seconds) if replay else math.nan
    yield "graph", f"{graph:,.0f}"
    del loop, replay  # and their memory on the device
    curve, replayed = trained(row, max(2, round(row.seconds * eager / row.images)))
    alone = row.images_per_s(curve)
    yield "pipeline", f"{alone:,.0f}"
    yield "its passes", replayed or "–"
    yield "pipeline / eager", f"{alone / eager:.2f}"
    yield "pipeline / graph", f"{alone / graph:.2f}"
    yield "of peak", f"{alone * flops / most:.1%}"
    for count in counts:
        epochs = max(FEWEST_EPOCHS, round(2 * row.seconds * alone / (count * row.images)))
        yield f"{count} side by side", together(row, pool, count, epochs)


def main() -> None:
    """Measure, and print the figures and the table."""
    parser = arguments.Parser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rows", nargs="+", default=list(EPOCH_IMAGES["cuda"]), choices=list(EPOCH_IMAGES["cuda"]))
    parser.add_argument("--side-by-side", type=int, nargs="+", default=[2, 4, 8])
    args, began = parser.parse_args(), time.monotonic()
    device, counts = provenance.chosen_device(args.device), [count for count in args.side_by_side if count > 1]
    core.settle(1)
    most = peak(device, args.seconds)
    print(f"{provenance.hardware(device)}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"a bf16 matrix product of {MATRIX[device]}: {most / 1e12:,.1f} TFLOP/s\n", flush=True)
    lines: list[dict[str, str]] = []
    spawn = multiprocessing.get_context("spawn")  # a GPU does not survive a fork
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(max(args.side_by_side), spawn) as pool:
        rows = [Row(name, device, Path(folder), EPOCH_IMAGES[device][name], args.seconds) for name in args.rows]
        for row in rows:
            make_images(row.data, row.dataset, row.images)
            if row == rows[0] and counts:  # starts the processes
                side_by_side(row, pool, max(counts), 1)
            lines.append({"row": row.name})
            for head, cell in measured(row, most, pool, counts):
                lines[-1][head] = cell
                print(f"{row.name}: {head} {cell}", flush=True)
            print(f"after {time.monotonic() - began:.0f} s\n", flush=True)
        print(f"| {' | '.join(lines[0])} |\n|{'---|' * len(lines[0])}")
        for line in lines:
            print(f"| {' | '.join(line.values())} |", flush=True)
        for row in rows:  # after all measurements, which a profiler may slow down
            print(f"\n{row.name}: {trace(row)}", flush=True)


if __name__ == "__main__":
    guard(main)
