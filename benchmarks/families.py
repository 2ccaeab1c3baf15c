"""The training rate of rows of each family, over that of the barest loop that does the same work.

    make benchmark            or: python -m benchmarks.families --rounds 3

On one thread and on images that are made here, counted from a trial's second epoch on:

- pipeline: a trial through ``pipelines.trial``: Lightning, checkpoints, progress, curve;
- bare loop: index, preprocess, augment, forward, backward, update, with the row's own network, loss and optimiser;
- minibatches: those of the trial, from the memory map, with nothing that trains on them.

Then LeNet-5 over that loop on torch's DataLoader, which transforms one image at a time, as tutorials do, and AlexNet's
evaluation in ten crops, over the least torch code for the same views. Rounds alternate the contenders; a ratio is the
median over rounds of the ratio within a round.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.gpu import Row, make_images, pipeline
from pipelines.command import arguments
from pipelines.command.errors import guard
from pipelines.data.batches import Batches
from pipelines.training import core, provenance
from pipelines.training.classifier import Classifier
from pipelines.training.inputs import Inputs
from pipelines.training.optimisers import build_optimiser
from pipelines.training.predictions import Examiner, predict
from pipelines.training.spec import Spec

LEAST_RATIO = 0.95
LEAST_OVER_DATALOADER = 1.7  # of LeNet-5
ROWS = {  # with the images of an epoch, about a second's
    "linear-mnist": 60_000,
    "mlp300-mnist": 20_000,
    "lenet5-mnist": 10_000,
    "lenet1989-mnist": 10_000,
    "lenet5-distorted-mnist": 4_000,
    "ordinary-cifar10": 20_000,
    "convnetjs-cifar10": 4_000,
    "layers-80sec-cifar10": 1_024,
    "strided-a-cifar10": 512,
    "alexnet-imagenette": 128,
}
LOADED, CROPPED = "lenet5-mnist", "alexnet-imagenette"  # rows of the last two ratios
PHOTOGRAPHS = 50  # of an evaluation in ten crops
Pairs = Iterable[tuple[Tensor, Tensor]]  # an epoch's images and labels; iterated over once an epoch


def prepare(row: Row, epochs: int) -> tuple[Spec, Batches, Classifier]:
    """A trial of so many epochs, its minibatches and its module."""
    with tempfile.TemporaryDirectory() as folder:
        spec = row.planned(Path(folder), epochs)
        return spec, *core.assemble(spec, Inputs.of(spec))


def minibatches(row: Row, epochs: int) -> float:
    """Images a second of the minibatches alone, the first epoch aside."""
    _, loader, _ = prepare(row, epochs + 1)
    deque(loader, maxlen=0)
    began = time.monotonic()
    for _ in range(epochs):
        deque(loader, maxlen=0)
    return epochs * len(loader.positions) / (time.monotonic() - began)


class Images(Dataset[tuple[Tensor, Tensor]]):
    """A trial's training images and labels, transformed when they are asked for: one, or a minibatch."""

    def __init__(self, loader: Batches) -> None:
        self.loader, self.generator = loader, torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return len(self.loader.positions)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.at(torch.tensor([index]))
        return images[0], labels[0]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Minibatches in a random order."""
        return map(self.at, torch.randperm(len(self)).split(self.loader.batch))

    def at(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) and labels (n,)."""
        loader, chosen = self.loader, self.loader.positions[indices]
        return loader.augment(loader.preprocess(loader.images[chosen]), self.generator), loader.labels[chosen]


def bare_loop(row: Row, epochs: int) -> float:
    """Images a second of the barest loop."""
    return loop(row, epochs, Images)


def data_loader(row: Row, epochs: int) -> float:
    """Images a second of the same over a DataLoader, in one process as every contender is."""
    return loop(row, epochs, lambda loader: DataLoader(Images(loader), batch_size=loader.batch, shuffle=True))


def loop(row: Row, epochs: int, pairs_of: Callable[[Batches], Pairs]) -> float:
    """Images a second of a plain loop, its first epoch aside."""
    spec, loader, module = prepare(row, epochs + 1)
    optimiser = build_optimiser(spec.benchmark.recipe.optimiser, module.model)
    module.prepare_epoch(optimiser, loader, 0)
    pairs, began = pairs_of(loader), 0.0
    for epoch in range(epochs + 1):
        began = time.monotonic() if epoch == 1 else began
        for images, labels in pairs:
            if loader.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bf16"):
                outputs = module.model(images)
            optimiser.zero_grad()
            module.loss(outputs.float(), labels).backward()
            optimiser.step()
    return epochs * len(loader.positions) / (time.monotonic() - began)


def ten_crops(inputs: Inputs) -> float:
    """Photographs a second through ``predict``, as ``evaluate`` calls it."""
    examiner = Examiner(inputs, inputs.build().eval(), 0, "cpu", "fp32")
    return PHOTOGRAPHS / predict(examiner, "train", np.arange(PHOTOGRAPHS)).seconds


@torch.inference_mode()
def bare_crops(inputs: Inputs) -> float:
    """The barest loop: subtract the mean, cut, turn, forward, softmax, average."""
    model = inputs.build().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    (_, mean), pixels = inputs.transforms[0], torch.from_numpy(inputs.dataset.split("train")[0][:PHOTOGRAPHS].copy())
    began = time.monotonic()
    for batch in pixels.split(25):
        images = (batch.float() - mean.mean).contiguous(memory_format=torch.channels_last)
        total = torch.zeros(len(images), 10)
        for top, left in ((0, 0), (0, 32), (32, 0), (32, 32), (16, 16)):
            crop = images[:, :, top : top + 224, left : left + 224]
            for view in (crop, crop.flip(3)):
                total += model(view).softmax(1)
        (total / 10).argmax(1)
    return PHOTOGRAPHS / (time.monotonic() - began)


def spread_of(ratios: Sequence[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def measured(row: Row, rounds: int, epochs: int) -> str:
    """The line of a row in the table."""
    rates = [[rate(row, epochs) for rate in (pipeline, bare_loop, minibatches)] for _ in range(rounds)]
    shown = (
        row.planned(row.data, 1).precision,
        *(f"{statistics.median(side):,.0f}" for side in zip(*rates, strict=True)),
        spread_of([ours / bare for ours, bare, _ in rates]),
        f"{statistics.median(alone / ours for ours, _, alone in rates):.1f}",
    )
    return f"| {row.name} | {' | '.join(shown)} |"


def also(row: Row, rounds: int, epochs: int) -> str | None:
    """A line about a row that has one more ratio."""
    if row.name == LOADED:
        ratios = [pipeline(row, epochs) / data_loader(row, epochs) for _ in range(rounds)]
        return f"{row.name}: pipeline / DataLoader {spread_of(ratios)}; expected at least {LEAST_OVER_DATALOADER}"
    if row.name == CROPPED:
        inputs = Inputs.of(row.planned(row.data, 1))
        ratios = [ten_crops(inputs) / bare_crops(inputs) for _ in range(rounds)]
        return f"{row.name}: ten crops / bare crops {spread_of(ratios)}; expected at least {LEAST_RATIO}"
    return None


def main() -> None:
    """Measure and print the table."""
    parser = arguments.Parser(prog="python -m benchmarks.families", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs of each contender a round")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{provenance.hardware('cpu')}, torch {torch.__version__}, Python {platform.python_version()}\n")
    compared = ("pipeline / bare loop", "minibatches / pipeline")
    heads = ("row", "precision", "pipeline", "bare loop", "minibatches", *compared)
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    lines = [f"pipeline / bare loop: expected at least {LEAST_RATIO}"]
    with tempfile.TemporaryDirectory() as folder:
        for name in args.rows:
            row = Row(name, "cpu", Path(folder) / name, ROWS[name])
            make_images(row.data, row.dataset, row.images)
            print(measured(row, args.rounds, args.epochs), flush=True)
            line = also(row, args.rounds, args.epochs)
            lines += [line] if line else []
    print("", *lines, sep="\n")


if __name__ == "__main__":
    guard(main)
