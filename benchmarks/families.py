"""The training rate of rows of each family, over that of the barest loop that does the same work.

    python -m benchmarks.families --rounds 3

On one thread and on images that are made here, counted from a trial's second epoch on:

- pipeline: a trial through ``pipelines.trial``: Lightning, checkpoints, progress, curve;
- bare loop: index, preprocess, augment, forward, backward, update, with the row's own network, loss and optimiser;
- minibatches: those of the trial, from the memory map, with nothing that trains on them.

LeNet-5 is in throughput.py. Rounds alternate the three; a ratio is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path

import torch

from benchmarks.gpu import Row, make_images, pipeline
from pipelines.command import arguments
from pipelines.command.errors import guard
from pipelines.data.batches import Batches
from pipelines.training import core, provenance
from pipelines.training.classifier import Classifier
from pipelines.training.inputs import Inputs
from pipelines.training.optimisers import build_optimiser
from pipelines.training.spec import Spec

LEAST_RATIO = 0.95
ROWS = {  # with the images of an epoch, about a second's
    "linear-mnist": 60_000,
    "mlp300-mnist": 20_000,
    "lenet1989-mnist": 10_000,
    "lenet5-distorted-mnist": 4_000,
    "ordinary-cifar10": 20_000,
    "convnetjs-cifar10": 4_000,
    "layers-80sec-cifar10": 1_024,
    "strided-a-cifar10": 512,
    "alexnet-imagenette": 128,
}


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


def bare_loop(row: Row, epochs: int) -> float:
    """Images a second of the barest loop, its first epoch aside."""
    spec, loader, module = prepare(row, epochs + 1)
    model, positions, generator = module.model, loader.positions, torch.Generator().manual_seed(0)
    optimiser = build_optimiser(spec.benchmark.recipe.optimiser, model)
    module.prepare_epoch(optimiser, loader, 0)
    began = 0.0
    for epoch in range(epochs + 1):
        began = time.monotonic() if epoch == 1 else began
        for chosen in positions[torch.randperm(len(positions))].split(loader.batch):
            images = loader.augment(loader.preprocess(loader.images[chosen]), generator)
            if loader.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bf16"):
                outputs = model(images)
            optimiser.zero_grad()
            module.loss(outputs.float(), loader.labels[chosen]).backward()
            optimiser.step()
    return epochs * len(positions) / (time.monotonic() - began)


def main() -> None:
    """Measure and print the table."""
    parser = arguments.Parser(prog="python -m benchmarks.families", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs of each contender a round")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{provenance.hardware('cpu')}, torch {torch.__version__}, Python {platform.python_version()}\n")
    heads = ["row", "precision", "pipeline", "bare loop", "minibatches", "pipeline / bare loop", "lowest", "highest"]
    heads += ["target", "minibatches / pipeline"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.rows:
            row = Row(name, "cpu", Path(folder) / name, ROWS[name])
            make_images(row.data, row.dataset, row.images)
            contenders = (pipeline, bare_loop, minibatches)
            rounds = [[rate(row, args.epochs) for rate in contenders] for _ in range(args.rounds)]
            ratios = sorted(ours / bare for ours, bare, _ in rounds)
            input_ratio = statistics.median(alone / ours for ours, _, alone in rounds)
            shown = (
                row.planned(Path(folder), 1).precision,
                *(f"{statistics.median(side):,.0f}" for side in zip(*rounds, strict=True)),
                *(f"{ratio:.2f}" for ratio in (statistics.median(ratios), ratios[0], ratios[-1], LEAST_RATIO)),
                f"{input_ratio:.1f}",
            )
            print(f"| {name} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    guard(main)
