"""How near a GPU's training comes to what the GPU can do; torch, Lightning, NumPy and PyYAML suffice, in four minutes.

    python benchmarks/gpu.py                        # on a GPU
    python benchmarks/gpu.py --device cpu --seconds 1 --side-by-side 1 2      # a rehearsal

For LeNet-5, All-CNN-C and AlexNet, on images that are made here, one table line each:

- pipeline: images a second of a trial as ``pipelines.trial`` trains it, the epochs after the first;
- eager: the barest loop over the same network, batch and precision: index, forward, backward, step;
- graph: that loop as a replayed CUDA graph;
- of peak: the share of the rate of a large bf16 matrix product that the pipeline's multiplications reach;
- side by side: images a second of 2, 4 and 8 trials at once, a process each, all together.

Then a trace of the pipeline: for how long the device was busy, and what the host did while it waited.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from pipelines.command import arguments
from pipelines.command.errors import guard
from pipelines.command.files import read_lines
from pipelines.config.benchmarks import Benchmark, Budget
from pipelines.config.params import load_params
from pipelines.data import datasets
from pipelines.training import provenance, spec, store, trainer
from pipelines.training.inputs import Inputs

# The images of an epoch: enough for a GPU's epoch to take a second, and for a CPU's in a rehearsal not to take minutes.
EPOCH_IMAGES = {"cuda": {"lenet5-mnist": 60_000, "allcnn-c-cifar10": 50_000, "alexnet-imagenette": 9_469}}
EPOCH_IMAGES["cpu"] = {"lenet5-mnist": 4_096, "allcnn-c-cifar10": 256, "alexnet-imagenette": 128}
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "imagenette": (3, 256, 256)}
MATRIX = {"cuda": 8192, "cpu": 1024}  # rows and columns
FEW_STEPS = 3  # before a measurement, before a graph is captured, and between two looks at the clock
GAP_S = 20e-6  # a device without work for longer waits for something


@dataclass(frozen=True)
class Row:
    """One benchmark, the device it is measured on, and where its images lie."""

    name: str
    device: str
    data: Path
    images: int  # of an epoch
    seconds: float = 0.0  # of each measurement

    @property
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

    def images_per_s(self, files: store.TrialFiles) -> float:
        """The rate of a finished trial, its first epoch aside, which warms up."""
        curve = read_lines(files.curve)
        return self.images * (len(curve) - 1) / float(curve[-1]["seconds"] - curve[0]["seconds"])

    @property
    def autocast(self) -> AbstractContextManager[None]:
        """The recipe's precision."""
        half = self.benchmark.recipe.precision.on(self.device, fast_bf16=spec.has_fast_bf16()) == "bf16"
        return torch.autocast(self.device, torch.bfloat16, enabled=half)


def make_images(root: Path, name: str, count: int) -> None:
    """A data set of noise in the shape of the real one, its labels random."""
    random = np.random.Generator(np.random.PCG64(0))
    pairs = [(random.integers(0, 256, (n, *SHAPES[name]), np.uint8), random.integers(0, 10, n)) for n in (count, 10)]
    datasets.write_dataset(root, name, classes=[str(n) for n in range(10)], train=pairs[0], test=pairs[1])


def pipeline(row: Row, epochs: int, seed: int = 0) -> float:
    """Images a second of a trial that is trained for one epoch more."""
    with tempfile.TemporaryDirectory() as folder:
        return row.images_per_s(trainer.run(row.planned(Path(folder), epochs + 1, seed)))


def side_by_side(row: Row, count: int, epochs: int) -> float:
    """Images a second of ``count`` trials at once, a process each, all together."""
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        return sum(pool.starmap(pipeline, [(row, epochs, seed) for seed in range(count)]))


class Loop:
    """The barest training loop over a row's network, on images that are on the device as the network wants them."""

    def __init__(self, row: Row) -> None:
        benchmark = row.benchmark
        inputs = Inputs(benchmark, datasets.open_dataset(row.data, benchmark.dataset), row.data)
        self.row, self.batch = row, benchmark.recipe.batch
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
        with self.row.autocast:
            outputs = self.model(self.images[self.order])
        loss: Tensor = self.loss(outputs.float(), self.labels[self.order])
        self.optimiser.zero_grad(set_to_none=False)
        loss.backward()
        self.optimiser.step()
        return loss

    def multiplications(self) -> float:
        """Floating-point operations of one image's forward and backward pass."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        return float(counter.get_total_flops()) / self.batch

    def captured(self) -> Callable[[], object]:
        """The step as a CUDA graph, to be replayed."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(FEW_STEPS):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay


def rate(step: Callable[[], object], device: str, seconds: float) -> float:
    """Steps a second; the device has finished the last one."""
    for _ in range(FEW_STEPS):
        step()
    _wait(device)
    began, steps = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        for _ in range(FEW_STEPS):
            step()
        steps += FEW_STEPS
        _wait(device)
    return steps / (time.monotonic() - began)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak(device: str, seconds: float) -> float:
    """Floating-point operations a second of a large bf16 matrix product."""
    side = MATRIX[device]
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return 2 * side**3 * rate(lambda: matrix @ matrix, device, seconds)


def trace(row: Row) -> str:
    """How busy the device was while a trial trained, and the host's work during the gaps, most time first."""
    with tempfile.TemporaryDirectory() as folder:
        planned = row.planned(Path(folder), 2)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            trainer.run(planned)
    events = [(e.time_range.start * 1e-6, e.time_range.end * 1e-6, e.name, e.device_type.name) for e in seen.events()]
    kernels = sorted((start, end) for start, end, _, where in events if where == "CUDA")
    if not kernels:
        return "no kernels on a device were seen"
    host = [(start, end, name) for start, end, name, where in events if where == "CPU"]
    return summary(kernels, host)


def summary(kernels: Sequence[tuple[float, float]], host: Iterable[tuple[float, float, str]]) -> str:
    """The share of time in which a kernel ran, and which host events fill the gaps; starts and ends in seconds."""
    gaps, busy, ended = list[tuple[float, float]](), 0.0, kernels[0][0]
    for start, end in kernels:
        if start - ended > GAP_S:
            gaps.append((ended, start))
        busy += max(0.0, end - max(start, ended))
        ended = max(ended, end)
    waited: Counter[str] = Counter()
    for start, end, name in host:
        overlap = sum(max(0.0, min(end, after) - max(start, before)) for before, after in gaps)
        if overlap:
            waited[name] += overlap  # type: ignore[assignment]  # seconds
    whole = max(ended - kernels[0][0], 1e-9)
    told = ", ".join(f"{name} {seconds / whole:.1%}" for name, seconds in waited.most_common(6))
    return f"the device was busy {busy / whole:.1%} of the time; in its {len(gaps)} gaps the host was in: {told or '–'}"


def measured(row: Row, most: float, counts: Sequence[int]) -> str:
    """One line of the table."""
    loop = Loop(row)
    eager = loop.batch * rate(loop.step, row.device, row.seconds)
    multiplications = loop.multiplications()
    graph = loop.batch * rate(loop.captured(), row.device, row.seconds) if row.device == "cuda" else None
    del loop  # and its memory on the device
    epochs = max(1, round(row.seconds * eager / row.images))
    alone = pipeline(row, epochs)
    together = [f"{side_by_side(row, count, epochs):,.0f}" for count in counts if count > 1]
    cells = [f"{alone:,.0f}", f"{eager:,.0f}", f"{graph:,.0f}" if graph else "–", f"{alone / eager:.2f}"]
    cells += [f"{alone / graph:.2f}" if graph else "–", f"{alone * multiplications / most:.1%}", *together]
    return f"| {row.name} | {' | '.join(cells)} |"


def main() -> None:
    """Measure, and print the table and the trace."""
    parser = arguments.Parser(prog="python benchmarks/gpu.py", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rows", nargs="+", default=list(EPOCH_IMAGES["cuda"]), choices=list(EPOCH_IMAGES["cuda"]))
    parser.add_argument("--side-by-side", type=int, nargs="+", default=[2, 4, 8])
    args = parser.parse_args()
    device = provenance.chosen_device(args.device)
    torch.set_num_threads(1)
    most = peak(device, args.seconds)
    print(f"{provenance.hardware(device)}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"a bf16 matrix product of {MATRIX[device]}: {most / 1e12:,.1f} TFLOP/s\n", flush=True)
    counts = [f"{count} side by side" for count in args.side_by_side if count > 1]
    heads = ["row", "pipeline", "eager", "graph", "pipeline / eager", "pipeline / graph", "of peak", *counts]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    with tempfile.TemporaryDirectory() as folder:
        rows = [Row(name, device, Path(folder), EPOCH_IMAGES[device][name], args.seconds) for name in args.rows]
        for row in rows:
            make_images(row.data, row.dataset, row.images)
            print(measured(row, most, args.side_by_side), flush=True)
        for row in rows:
            print(f"\n{row.name}: {trace(row)}", flush=True)


if __name__ == "__main__":
    guard(main)
