"""Throughput of a trial, as ratios of things measured side by side in one run, since machines are shared and noisy.

    make benchmark            or: python benchmarks/throughput.py --rounds 5

Every contender trains LeNet-5 on MNIST as the benchmark lenet5-mnist does (its batch, loss, optimiser, preprocessing;
one thread a process), and counts training images a second, start-up aside:

- pipeline: a trial through ``pipelines.trial``: Lightning, checkpoints, progress, curve;
- bare loop: the least torch code that does the same work on the same device-resident images;
- DataLoader: the usual Dataset whose ``__getitem__`` transforms one image at a time;
- packed: two seeds at once as Ray tasks, against one, both through ``pipelines.train``'s path;
- ten crops: AlexNet's evaluation of made photographs, against the least torch code for the same ten views.

Rounds alternate the contenders; a ratio is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pipelines.cluster import connection
from pipelines.command.errors import guard
from pipelines.command.files import read_lines
from pipelines.config.benchmarks import Benchmark, Budget
from pipelines.config.params import load_params
from pipelines.data import datasets
from pipelines.data.datasets import DATA
from pipelines.training import provenance, spec, store, trainer
from pipelines.training.inputs import Inputs
from pipelines.training.losses import CrossEntropy
from pipelines.training.optimisers import build_optimiser
from pipelines.training.predictions import Examiner, predict

BENCHMARK = "lenet5-mnist"
IMAGES = 20_000  # an epoch of every contender
PHOTOGRAPHS = 50  # of an evaluation in ten crops
TARGETS = {
    **{"pipeline / bare loop": 0.95, "pipeline / DataLoader": 1.7, "two packed seeds / one": 1.8},
    "ten crops / bare crops": 0.95,
}


def benchmark(epochs: int) -> Benchmark:
    """The benchmark at a budget of ``epochs`` over the first ``IMAGES``."""
    found = load_params().benchmark(BENCHMARK)
    budgets = found.budgets | {"laptop": Budget(epochs=epochs, seeds=(0, 1), train_images=IMAGES)}
    return dataclasses.replace(found, budgets=budgets)


def planned(root: Path, seed: int, epochs: int) -> spec.Spec:
    """A trial nobody has trained yet."""
    return spec.plan(benchmark(epochs), "laptop", seed, data=DATA, root=root, threads=1)


def images_per_s(files: store.TrialFiles) -> float:
    """Images a second of the epochs after the first, which warms up."""
    curve = read_lines(files.curve)
    return IMAGES * (len(curve) - 1) / float(curve[-1]["seconds"] - curve[0]["seconds"])


def pipeline(epochs: int) -> float:
    """One trial, start to weights."""
    with tempfile.TemporaryDirectory() as folder:
        return images_per_s(trainer.run(planned(Path(folder), 0, epochs)))


def timed(epochs: int, epoch: Callable[[], None]) -> float:
    """Images a second over ``epochs`` calls, after one to warm up."""
    epoch()
    began = time.monotonic()
    for _ in range(epochs):
        epoch()
    return IMAGES * epochs / (time.monotonic() - began)


def bare_loop(epochs: int) -> float:
    """The barest loop: index, pad, scale, forward, backward, step."""
    chosen = benchmark(epochs)
    whole = datasets.open_dataset(DATA, "mnist")
    pixels, digits = (torch.from_numpy(np.array(part[:IMAGES])) for part in whole.split("train"))
    model = Inputs(chosen, whole, Path()).build()
    optimiser, loss_of, size = (
        build_optimiser(chosen.recipe.optimiser, model),
        CrossEntropy(),
        chosen.recipe.batch,
    )

    def epoch() -> None:
        for batch in torch.randperm(IMAGES).split(size):
            images = torch.nn.functional.pad(pixels[batch], (2, 2, 2, 2)).float() * (1.275 / 255) - 0.1
            loss = loss_of(model(images), digits[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return timed(epochs, epoch)


class PadPicture(nn.Module):
    """Frame a picture with two black lines."""

    def forward(self, picture: Image.Image) -> Image.Image:
        return ImageOps.expand(picture, border=(2, 2, 2, 2), fill=0)


class ToTensor(nn.Module):
    """A picture (H, W) of 0..255 as a tensor (1, H, W) of 0..1."""

    def forward(self, picture: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(picture, np.uint8, copy=True)).view(picture.size[1], picture.size[0], 1)
        return pixels.permute(2, 0, 1).contiguous().to(torch.get_default_dtype()).div(255)


class Normalise(nn.Module):
    """Subtract a mean, divide by a deviation; checked and copied each time, as a general library has to."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = image.clone()
        mean = torch.as_tensor([0.1 / 1.275], dtype=image.dtype, device=image.device)
        std = torch.as_tensor([1 / 1.275], dtype=image.dtype, device=image.device)
        if (std == 0).any():
            raise ValueError("a deviation is 0")
        return image.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


class OneByOne(Dataset[tuple[torch.Tensor, int]]):
    """MNIST an image at a time, as tutorials have it: picture, Pad(2), ToTensor, Normalize.

    The steps are those of torchvision's dataset and transforms, which are no dependency of ours. Theirs (0.28) took
    106 us an image where these took a tenth less.
    """

    def __init__(self) -> None:
        images, digits = datasets.open_dataset(DATA, "mnist").split("train")
        self.images = torch.from_numpy(np.array(images[:IMAGES, 0]))
        self.digits = torch.from_numpy(np.array(digits[:IMAGES]))
        self.transforms = (PadPicture(), ToTensor(), Normalise())

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image: Any = Image.fromarray(self.images[index].numpy())
        for transform in self.transforms:
            image = transform(image)
        return image, int(self.digits[index])


def data_loader(epochs: int) -> float:
    """The bare loop over a DataLoader, in one process as every contender is."""
    chosen = benchmark(epochs)
    whole = datasets.open_dataset(DATA, "mnist")
    model = Inputs(chosen, whole, Path()).build()
    optimiser, loss_of = build_optimiser(chosen.recipe.optimiser, model), CrossEntropy()
    loader = DataLoader(OneByOne(), batch_size=chosen.recipe.batch, shuffle=True)

    def epoch() -> None:
        for images, digits in loader:
            loss = loss_of(model(images), digits)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return timed(epochs, epoch)


def on_ray(seeds: int, epochs: int) -> float:
    """Images a second of ``seeds`` trials at once, as Ray tasks of one CPU each; together, while all of them train."""
    import ray

    with tempfile.TemporaryDirectory() as folder:
        specs = [planned(Path(folder), seed, epochs) for seed in range(seeds)]
        task = ray.remote(num_cpus=1)(_train)
        ray.get([task.remote(one) for one in specs])
        curves = [read_lines(one.files.curve) for one in specs]
    # From when the last of them has warmed up to when the first ends, all of them train.
    began, ended = max(curve[0]["time"] for curve in curves), min(curve[-1]["time"] for curve in curves)
    seen = sum(_seen(curve, ended) - _seen(curve, began) for curve in curves)
    return seen / float(ended - began)


def _seen(curve: list[dict[str, Any]], at: float) -> float:
    """Images that a trial has seen at a moment, between the ends of its epochs."""
    return float(np.interp(at, [point["time"] for point in curve], [IMAGES * (n + 1) for n in range(len(curve))]))


def _train(one: spec.Spec) -> None:
    trainer.run(one)


def photographs(root: Path) -> Inputs:
    """AlexNet's inputs, on noise in place of photographs."""
    random = np.random.default_rng(0)
    part = random.integers(0, 256, (PHOTOGRAPHS, 3, 256, 256), dtype=np.uint8), np.arange(PHOTOGRAPHS) % 10
    chosen = load_params().benchmark("alexnet-imagenette")
    made = datasets.write_dataset(root, chosen.dataset, classes=list("0123456789"), train=part, test=part)
    return Inputs(chosen, made, root / "store")


def ten_crops(inputs: Inputs) -> float:
    """Photographs a second through ``predict``, as ``evaluate`` calls it."""
    model = inputs.build().eval()
    return PHOTOGRAPHS / predict(Examiner(inputs, model, 0, "cpu", "fp32"), "test").seconds


@torch.inference_mode()
def bare_crops(inputs: Inputs) -> float:
    """The barest loop: subtract the mean, cut, turn, forward, softmax, average."""
    model = inputs.build().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    (_, mean), pixels = inputs.transforms[0], torch.from_numpy(np.array(inputs.dataset.split("test")[0]))
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


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python benchmarks/throughput.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2, help="timed epochs of each contender a round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, float]] = []
    with connection.connect() as found, tempfile.TemporaryDirectory() as folder:
        alexnet = photographs(Path(folder))
        print(f"{provenance.hardware('cpu')}, torch {torch.__version__}, Python {platform.python_version()}; {found}")
        on_ray(2, 2)  # starts the workers
        for number in range(args.rounds):
            row = {
                "pipeline": pipeline(args.epochs + 1),
                "bare loop": bare_loop(args.epochs),
                "DataLoader": data_loader(args.epochs),
                "one seed on Ray": on_ray(1, args.epochs + 1),
                "two seeds on Ray": on_ray(2, args.epochs + 1),
                "ten crops": ten_crops(alexnet),
                "bare crops": bare_crops(alexnet),
            }
            rows.append(row)
            print(f"round {number + 1}: " + ", ".join(f"{k} {v:,.0f}" for k, v in row.items()), flush=True)
    pairs = {
        "pipeline / bare loop": ("pipeline", "bare loop"),
        "pipeline / DataLoader": ("pipeline", "DataLoader"),
        "two packed seeds / one": ("two seeds on Ray", "one seed on Ray"),
        "ten crops / bare crops": ("ten crops", "bare crops"),
    }
    print("\n| ratio | median | lowest | highest | target |\n|---|---|---|---|---|")
    for name, (above, below) in pairs.items():
        ratios = sorted(row[above] / row[below] for row in rows)
        median = statistics.median(ratios)
        print(f"| {name} | {median:.2f} | {ratios[0]:.2f} | {ratios[-1]:.2f} | {TARGETS[name]} |")


if __name__ == "__main__":
    guard(main)
