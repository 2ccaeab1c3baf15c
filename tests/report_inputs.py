"""A project as train and evaluate leave it, small and invented, for the tests of the report.

``python -m tests.report_inputs FOLDER [DATASETS]`` writes one to look at, with the real test images of DATASETS.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipelines.config.benchmarks import Benchmark
from pipelines.config.claims import ClaimedOn
from pipelines.config.params import load_params
from pipelines.results import arrays, examples
from pipelines.training import store
from tests import projects

Array = npt.NDArray[Any]

CLASSES = {
    "mnist": [str(digit) for digit in range(10)],
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
}
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
SEEDS = (0, 1, 2, 3, 4)
LABEL = "softmax variant"
REMARKS = "Rates were tried on a validation slice; a longer run is left."
DIFFERENCE = "The figure is of images that the net was trained on, so it says nothing about new ones."


@dataclass(frozen=True, kw_only=True)
class Made:
    """An invented benchmark: what is claimed, and about how well "we" do."""

    dataset: str
    claim: float
    error: float | None  # of our seeds, about; None: in no suite
    metric: str = "error"
    certainty: str = "read"
    family: str = "lenet"
    options: tuple[tuple[str, str], ...] = ()
    epochs: int = 10
    paper_epochs: int = 10
    layer: str | None = None  # what first_layer.npz holds
    protocol: str = "single view"
    parameters: int = 60000
    claimed_on: tuple[Literal["train", "test"], int, int] | None = None  # split, first, count
    claimed_error: float | None = None  # of our seeds there, about


MADE = {
    "linear-mnist": Made(dataset="mnist", claim=12.0, error=8.1, family="linear", layer="templates", parameters=7850),
    "mlp300-mnist": Made(dataset="mnist", claim=4.7, error=4.6),
    "lenet5-mnist": Made(dataset="mnist", claim=0.95, error=1.05, layer="filters", epochs=10, paper_epochs=20),
    "lenet1-mnist": Made(dataset="mnist", claim=1.7, error=None),
    "ordinary-cifar10": Made(
        dataset="cifar10", claim=37.0, error=66.0, metric="accuracy", layer="templates",
        claimed_on=("train", 40000, 10000), claimed_error=62.0,
    ),
    "convnetjs-cifar10": Made(
        dataset="cifar10", claim=80.0, error=21.0, metric="accuracy", certainty="recalled", layer="filters",
        claimed_on=("test", 0, 1000), claimed_error=22.0,
    ),
    "ml4a-convnet-cifar10": Made(
        dataset="cifar10", claim=79.0, error=33.0, metric="accuracy", layer="filters",
        claimed_on=("train", 1, 10000), claimed_error=21.0,
    ),
    "allcnn-c-cifar10": Made(
        dataset="cifar10", claim=9.08, error=38.0, family="allcnn", options=(("base", "C"), ("variant", "allcnn")),
        epochs=2, paper_epochs=350, layer="filters",
    ),
    "allcnn-a-strided-cifar10": Made(
        dataset="cifar10", claim=13.46, error=None, family="allcnn", options=(("base", "A"), ("variant", "strided"))
    ),
}  # fmt: skip


def make(
    folder: Path,
    *,
    test_images: int = 400,
    datasets: Path | None = None,
    per_cell: int = 12,
    names: Sequence[str] = tuple(MADE),
    seeds: Sequence[int] = SEEDS,
) -> Path:
    """Write params.yaml, runs/ and evaluations/ of the benchmarks ``names`` below ``folder`` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    written = load_params(projects.write(folder, params(names, seeds)))
    tests = {name: _test_split(name, test_images, datasets) for name in CLASSES}
    for name in names:
        made = MADE[name]
        if made.error is not None:
            split = tests[made.dataset]
            _write_benchmark(folder, written.benchmarks[name], made, *split, per_cell=per_cell, seeds=seeds)
    return folder


def params(names: Sequence[str] = tuple(MADE), seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """A params.yaml with these benchmarks; the active suite runs those that have an error."""
    active = [name for name in names if MADE[name].error is not None]
    return {
        "datasets": {name: {"kind": "idx", "classes": list(classes)} for name, classes in CLASSES.items()},
        "benchmarks": {name: _benchmark(name, MADE[name], list(seeds)) for name in names},
        "suites": {"laptop": {"budget": "laptop", "benchmarks": active}},
        "suite": {"name": "laptop"},
    }


def _benchmark(name: str, made: Made, seeds: list[int]) -> dict[str, Any]:
    return {
        "dataset": made.dataset,
        "model": {"family": made.family, "name": name.split("-")[0], "options": dict(made.options)},
        "recipe": {"batch": 32, "optimiser": {"name": "sgd", "lr": 0.02}},
        "evaluation": {"views": "single"} | ({"claimed_on": claimed_on(made)} if made.claimed_on else {}),
        "resources": {"cpus": 1},
        "budgets": {
            "paper": {"epochs": made.paper_epochs, "seeds": seeds},
            "laptop": {"epochs": made.epochs, "seeds": seeds},
        },
        "claim": {
            "metric": made.metric, "value": made.claim, "source": "LeCun et al. 1998, Proc. IEEE 86(11), fig. 9",
            "protocol": "60,000 training and 10,000 test images, error after the last pass",
            "certainty": made.certainty, "test_images": made.claimed_on[2] if made.claimed_on else 10000,
            **({"difference": DIFFERENCE} if made.claimed_on else {}),
        },
        "deviations": ["Minibatches of 32, not one pattern at a time.", "A softmax head in place of the RBF units."],
        **({"label": LABEL, "remarks": REMARKS} if name == "lenet5-mnist" else {}),
    }  # fmt: skip


def claimed_on(made: Made) -> dict[str, Any]:
    """The images of the claim as params.yaml and the evaluation name them."""
    assert made.claimed_on is not None
    split, first, count = made.claimed_on
    return dataclasses.asdict(ClaimedOn(split=split, first=first, count=count))


def _test_split(name: str, count: int, datasets: Path | None) -> tuple[Array, Array]:
    if datasets is not None:
        images = np.load(datasets / name / "test_images.npy")[:count]
        return images, np.load(datasets / name / "test_labels.npy")[:count]
    random = np.random.default_rng(len(name))
    return (
        random.integers(0, 256, (count, *SHAPES[name]), dtype=np.uint8),
        np.arange(count, dtype=np.int64) % len(CLASSES[name]),
    )


def _write_benchmark(
    folder: Path,
    benchmark: Benchmark,
    made: Made,
    images: Array,
    labels: Array,
    *,
    per_cell: int,
    seeds: Sequence[int],
) -> None:
    name = benchmark.name
    assert made.error is not None
    random = np.random.default_rng(sum(name.encode()))
    # Some pairs of classes look alike and some do not, the same ones for every seed.
    alike = random.gamma(0.35, size=(10, 10))
    np.fill_diagonal(alike, 0)
    alike /= alike.sum(axis=1, keepdims=True)
    total = np.zeros((10, 10), dtype=np.int64)
    errors, said = [], []
    for seed in seeds:
        rate = made.error / 100 * (1 + 0.04 * random.standard_normal())
        predicted = np.where(random.random(len(labels)) < rate, [random.choice(10, p=alike[i]) for i in labels], labels)
        confidence = np.clip(random.beta(8, 1.5, len(labels)), 0.11, 1).astype(np.float16)
        matrix = np.zeros((10, 10), dtype=np.int64)
        np.add.at(matrix, (labels, predicted), 1)
        total += matrix
        errors.append(_write_seed(folder, name, seed, made=made, matrix=matrix, predicted=predicted, labels=labels,
                                  confidence=confidence))  # fmt: skip
        _write_run(folder / "runs" / name / f"seed-{seed}", benchmark, made, seed, random)
        said.append(predicted)
    _write_examples(folder / "evaluations" / name, images, labels, [f"{seed:016x}" for seed in seeds], said, per_cell)
    _write_summary(folder / "evaluations" / name, made, total, errors, len(labels))
    _write_first_layer(folder / "evaluations" / name, made, images, labels, random)


def _write_seed(
    folder: Path, name: str, seed: int, *, made: Made, matrix: Array, predicted: Array, labels: Array, confidence: Array
) -> float:
    place = folder / "evaluations" / name / "trials" / f"seed-{seed}"
    place.mkdir(parents=True)
    error = 100 * (1 - float(np.trace(matrix)) / len(labels))
    metrics = {"key": f"{seed:016x}", "error": error, "accuracy": 100 - error, "top5_error": error / 8,
               "loss": error / 30, "single_view_error": error, "seconds": 1.5}  # fmt: skip
    if made.claimed_error is not None:
        figure = made.claimed_error + 0.1 * (seed - 2)
        metrics["claimed_on"] = {**claimed_on(made), "error": figure, "accuracy": 100 - figure,
                                 "single_view_error": figure}  # fmt: skip
    (place / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    arrays.write(place / "predictions.npz", labels=labels.astype(np.uint16), predicted=predicted.astype(np.uint16),
                 confidence=confidence)  # fmt: skip
    return error


def write_matrix(folder: Path, matrix: Array) -> None:
    """Write a seed's predictions that come to a confusion matrix of counts."""
    labels, predicted = np.repeat(np.indices(matrix.shape).reshape(2, -1), matrix.ravel(), axis=1).astype(np.uint16)
    confidence = np.full(len(labels), 0.5, dtype=np.float16)
    arrays.write(folder / "predictions.npz", labels=labels, predicted=predicted, confidence=confidence)


def read_matrix(folder: Path) -> Array:
    """The confusion matrix (10, 10) of a seed's predictions."""
    found = arrays.read(folder / "predictions.npz")
    return arrays.confusion(found["labels"], found["predicted"], 10)


def _write_summary(place: Path, made: Made, total: Array, errors: Sequence[float], test: int) -> None:
    classes = CLASSES[made.dataset]
    mean = float(np.mean(errors))
    (place / "metrics.json").write_text(json.dumps({"test_error": mean, "seeds": len(errors)}), encoding="utf-8")
    about = {"classes": classes, "shape": SHAPES[made.dataset], "dataset": made.dataset, "protocol": made.protocol,
             "test": test}  # fmt: skip
    (place / "classes.json").write_text(json.dumps(about), encoding="utf-8")
    with (place / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("actual", "predicted", "count"))
        writer.writerows((a, p, total[i, j]) for i, a in enumerate(classes) for j, p in enumerate(classes))


def _write_examples(
    place: Path,
    images: Array,
    labels: Array,
    keys: Sequence[str],
    said: Sequence[Array],
    per_cell: int,
) -> None:
    kept = examples.behind(labels * 10 + np.stack(said), per_cell)
    arrays.write(place / "examples.npz", images=images[kept], index=kept, keys=np.array(keys))


def _write_first_layer(place: Path, made: Made, images: Array, labels: Array, random: np.random.Generator) -> None:
    weights: dict[str, Array] = {}
    channels = SHAPES[made.dataset][0]
    if made.layer == "filters":
        wave = np.linspace(-2, 2, 5)
        turns = random.uniform(0, np.pi, (16, channels))
        grids = np.cos(turns)[..., None, None] * wave + np.sin(turns)[..., None, None] * wave[:, None]
        weights["filters"] = np.sin(grids).astype(np.float32)
    elif made.layer == "templates":
        means = np.stack([images[labels == c].mean(axis=0) for c in range(10)])
        weights["templates"] = ((means - means.mean(axis=0)) / 255).astype(np.float32)
    arrays.write(place / "first_layer.npz", **weights)


def _write_run(place: Path, benchmark: Benchmark, made: Made, seed: int, random: np.random.Generator) -> None:
    place.mkdir(parents=True)
    assert made.error is not None
    lines = []
    for epoch in range(1, made.epochs + 1):
        train = made.error * (0.7 + 3 / epoch**1.3) * (1 + 0.03 * random.standard_normal())
        train = min(train, 90.0)
        line = {"epoch": epoch, "loss": train / 30, "train_error": train, "lr": 0.02, "images_per_s": 8000.0,
                "seconds": 7.5 * epoch, "time": 1.7e9 + 7.5 * epoch}  # fmt: skip
        lines.append(json.dumps(line))
    (place / "curve.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = {
        "benchmark": benchmark.name, "seed": seed, "key": f"{seed:016x}", "budget": "laptop",
        "dataset_digest": "ab" * 32, "config": benchmark.resolved("laptop"), "epochs": made.epochs,
        "images_seen": 60000 * made.epochs,
        "wall_s": 7.5 * made.epochs, "device_s": 7.5 * made.epochs, "images_per_s": 8000.0, "workers": 1,
        "hardware": "Example CPU 3000, 2 cores", "device": "cpu",
        "versions": {"python": "3.11.9", "torch": "2.13.0", "pytorch_lightning": "2.6.6", "ray": None},
        "git_commit": "0123456789abcdef0123456789abcdef01234567", "git_dirty": False, "parameters": made.parameters,
        "resumed": 0, "finished": 1.7e9 + seed, "final_loss": 0.05,
    }  # fmt: skip
    (place / "weights.pt").write_bytes(b"")
    store.TrialFiles(place).write_result(result)


def edit_arrays(path: Path, change: Callable[[dict[str, Array]], object]) -> None:
    with np.load(path) as found:
        held = dict(found)
    change(held)
    arrays.write(path, **held)


def keep_no_examples(folder: Path) -> None:
    """For a test that gives a seed another confusion matrix."""

    def empty(held: dict[str, Array]) -> None:
        for key in ("images", "index"):
            held[key] = held[key][:0]

    edit_arrays(folder / "examples.npz", empty)


def edit_json(path: Path, **changes: object) -> None:
    changed = {**json.loads(path.read_text()), **changes}
    if path.name == "result.json":  # as its trial would have written it
        store.TrialFiles(path.parent).write_result(changed)
    else:
        path.write_text(json.dumps(changed))


if __name__ == "__main__":
    make(Path(sys.argv[1]), test_images=10_000, datasets=Path(sys.argv[2]) if len(sys.argv) > 2 else None)
