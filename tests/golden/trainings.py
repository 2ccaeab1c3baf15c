"""The short trainings behind the golden files: real recipes, one seed, on images that are made here."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path

import numpy as np
import torch

from pipelines.command.files import read_lines
from pipelines.config.benchmarks import Budget
from pipelines.config.params import load_params
from pipelines.config.recipes import Precision
from pipelines.data import datasets
from pipelines.training import spec, trainer

FOLDER = Path(__file__).parent
PARAMS = FOLDER.parent.parent / "params.yaml"
IMAGES = 512  # of which the rows train on fewer
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "imagenette": (3, 256, 256)}
# One row for each family of nets, optimiser, loss, precision and kind of transform that a suite uses: images and batch.
ROWS = {
    "linear-mnist": (256, 32),
    "mlp300-mnist": (256, 32),
    "lenet5-mnist": (256, 32),
    "lenet5-rbf-mnist": (128, 16),  # SDLM, MAP
    "lenet5-distorted-mnist": (128, 16),  # affine
    "lenet4-boosted-mnist": (512, 4),
    "lenet1989-mnist": (64, 1),
    "ordinary-cifar10": (256, 20),  # Adadelta
    "convnetjs-cifar10": (128, 4),
    "layers-80sec-cifar10": (128, 32),
    "conv-local-13pct-cifar10": (64, 16),  # locally connected, crops and flips
    "strided-a-cifar10": (64, 16),  # GCN and ZCA
    "allcnn-c-cifar10": (32, 16),
    "alexnet-imagenette": (8, 4),  # colour noise, response normalisation, dropout
}
HALF = {"allcnn-c-cifar10"}  # trained here in bf16, as the row is on a GPU
EPOCHS = 3
CANDIDATES = 4096  # of boosting, which looks through ten of each image by default


def platform() -> str:
    """What decides a CPU's rounding, as a folder's name: its make, family and model, vector instructions, torch."""
    found = dict(re.findall(r"^(vendor_id|cpu family|model)\s*:\s*(\S+)$", _cpuinfo(), re.MULTILINE))
    words = [found.get(key, "unknown") for key in ("vendor_id", "cpu family", "model")]
    return "-".join([*words, torch.backends.cpu.get_cpu_capability(), f"torch{torch.__version__}"]).lower()


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def write_images(root: Path, name: str) -> None:
    """A dataset under ``name``: each class is a blob of its own place and colour, in noise.

    One label in four is random: without those, members of an ensemble would have nothing to disagree on.
    """
    channels, height, width = SHAPES[name]
    count = IMAGES if height < 100 else 16
    random = np.random.Generator(np.random.PCG64(0))
    shown = np.arange(count) % 10
    labels = np.where(np.arange(count) % 4 == 3, random.integers(0, 10, count), shown)
    rows, columns = np.mgrid[:height, :width] / height
    angle = shown * 2 * np.pi / 10
    y, x = 0.5 + 0.3 * np.sin(angle), 0.5 + 0.3 * np.cos(angle)
    blobs = (np.hypot(rows - y[:, None, None], columns - x[:, None, None]) < 0.15)[:, None]
    colours = 80 + 15 * ((shown[:, None] + 3 * np.arange(channels)) % 10)
    images = blobs * colours[:, :, None, None] + random.integers(0, 60, (count, channels, height, width))
    pair = (images.astype(np.uint8), labels)
    datasets.write_dataset(root, name, classes=[str(n) for n in range(10)], train=pair, test=pair)


def train(name: str, home: Path) -> str:
    """Train the row in ``home``, and put what it came to into words: the golden file."""
    images, batch = ROWS[name]
    benchmark = load_params(PARAMS).benchmark(name)
    budget = Budget(epochs=EPOCHS, seeds=(0,), train_images=images)
    half = Precision(cpu=benchmark.recipe.precision.cuda) if name in HALF else Precision()
    recipe = dataclasses.replace(benchmark.recipe, batch=batch, precision=half)
    if recipe.boosting is not None:
        recipe = dataclasses.replace(recipe, boosting=dataclasses.replace(recipe.boosting, candidates=CANDIDATES))
    benchmark = dataclasses.replace(benchmark, recipe=recipe, budgets=benchmark.budgets | {"golden": budget})
    data = home / "datasets"
    if not (data / benchmark.dataset).exists():
        write_images(data, benchmark.dataset)
    files = trainer.run(spec.plan(benchmark, "golden", 0, data=data, root=home / "store", threads=1))
    lines = [f"{name}, seed 0, {images} made images, batch {batch}, one thread: mean loss and error (%) of each epoch"]
    lines += [f"{point['loss']!r} {point['train_error']!r}" for point in read_lines(files.curve)]
    weights = torch.load(files.weights, weights_only=True)
    digest = hashlib.sha256(b"".join(weights[key].contiguous().numpy().tobytes() for key in sorted(weights)))
    return "\n".join([*lines, f"sha256 of the weights: {digest.hexdigest()}"]) + "\n"
