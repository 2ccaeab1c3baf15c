"""Stage evaluate: open the test split, once a trial, and write what the trained networks make of it.

    python -m pipelines.evaluate lenet5-mnist

The only stage that reads test images. It looks at them as the claim's protocol did (once, as several random views, or
as ten crops, whose probabilities are averaged) and reports the state after the last epoch: nothing is selected on it.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines import benchmarks, datasets, orphan, progress, spec, store, trial, verdicts
from pipelines.batches import stream
from pipelines.benchmarks import Benchmark
from pipelines.datasets import Dataset
from pipelines.errors import UserError, guard
from pipelines.views import views

EVALUATIONS = Path("evaluations")
DATA = Path("datasets")
RUNS = Path("runs")
BATCH = 250  # images at a time; fixed, since random views are drawn by the batch
TOP = 5
EXAMPLES_A_CELL = 12
EXAMPLE_PIXELS = 64  # larger images are shrunk to this side before they are kept as examples


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a trained network says of the test images: ``probabilities`` (N, classes) float32, ``labels`` (N,) int64."""

    probabilities: Tensor
    labels: Tensor
    loss: float  # mean negative log-likelihood of the averaged probabilities
    single_view_error: float  # per cent
    seconds: float

    @property
    def predicted(self) -> Tensor:
        """(N,) int64."""
        return self.probabilities.argmax(1)

    @property
    def error(self) -> float:
        """Per cent."""
        return 100 * (self.predicted != self.labels).double().mean().item()

    @property
    def top_error(self) -> float:
        """Per cent of images whose class is not among the five most probable."""
        top = self.probabilities.topk(min(TOP, self.probabilities.shape[1]), 1).indices
        return 100 * (top != self.labels[:, None]).all(1).double().mean().item()

    def confusion(self) -> NDArray[np.int64]:
        """(classes, classes): rows actual, columns predicted."""
        classes = self.probabilities.shape[1]
        cells = torch.bincount(self.labels * classes + self.predicted, minlength=classes * classes)
        return cells.view(classes, classes).numpy()


def load_network(benchmark: Benchmark, dataset: Dataset, weights: Path) -> nn.Module:
    """The trained network in ``weights``; UserError when the file is damaged or another network's."""
    model = trial.build_model(benchmark, dataset, trial.image_shape(benchmark, dataset))
    state = trial.load_tensors(weights, f"the weights of {benchmark.name}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{weights} does not hold the weights of {benchmark.name}: {reason}") from None
    return model.eval()


@torch.inference_mode()
def predict(benchmark: Benchmark, dataset: Dataset, model: nn.Module, seed: int, device: str) -> Predictions:
    """Look at every test image once a view; ``seed`` draws the random views."""
    began = time.monotonic()
    preprocess, augment = trial.fitted(benchmark, dataset, store.default())
    preprocess, augment, model = preprocess.to(device), augment.to(device), model.to(device)
    if benchmark.recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = dataset.split("test")
    half = benchmark.recipe.precision == "bf16"
    chosen = benchmark.evaluation
    kept, wrong_single = [], 0

    def look(batch: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            outputs: Tensor = model(batch)
        return outputs.float().softmax(1)

    for start in range(0, len(images), BATCH):
        batch = preprocess(torch.from_numpy(np.array(images[start : start + BATCH])).to(device))
        actual = torch.from_numpy(np.array(labels[start : start + BATCH]))
        single = look(next(views(batch, "single", augment=augment))).cpu()
        wrong_single += int((single.argmax(1) != actual).sum())
        if chosen.views == "single":
            kept.append(single)
            continue
        generator = torch.Generator().manual_seed(stream(seed, "views", start))
        seen = [
            look(view).cpu()
            for view in views(
                batch, chosen.views, augment=augment, generator=generator, count=chosen.count, size=chosen.crop
            )
        ]
        kept.append(torch.stack(seen).mean(0))
    probabilities, actual = torch.cat(kept), torch.from_numpy(np.array(labels))
    likelihood = probabilities.gather(1, actual[:, None]).clamp(min=1e-12)
    return Predictions(
        probabilities=probabilities,
        labels=actual,
        loss=-likelihood.log().mean().item(),
        single_view_error=100 * wrong_single / len(images),
        seconds=time.monotonic() - began,
    )


def per_class(confusion: NDArray[np.int64], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall and F1 (fractions) and support of each class; 0 where nothing was predicted."""
    right = np.diag(confusion).astype(float)
    predicted, actual = confusion.sum(0), confusion.sum(1)
    precision = np.divide(right, predicted, out=np.zeros_like(right), where=predicted > 0)
    recall = np.divide(right, actual, out=np.zeros_like(right), where=actual > 0)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(right), where=total > 0)
    return [
        {"class": name, "precision": p, "recall": r, "f1": f, "support": int(n)}
        for name, p, r, f, n in zip(classes, precision.tolist(), recall.tolist(), f1.tolist(), actual, strict=True)
    ]


def evaluate(benchmark: Benchmark, planned: Sequence[spec.Spec], device: str) -> Path:
    """Write ``evaluations/<benchmark>/`` for the benchmark's trials; returns that folder."""
    dataset = datasets.open_dataset(DATA, benchmark.dataset)
    trial.check_views(benchmark, dataset)
    dataset.verify("test")
    target = EVALUATIONS / benchmark.name
    planned = sorted(planned, key=lambda one: one.seed)
    models = [_trained(benchmark, dataset, one) for one in planned]
    shutil.rmtree(target, ignore_errors=True)
    errors, tops, total = [], [], np.zeros((len(dataset.classes),) * 2, dtype=np.int64)
    for number, (one, model) in enumerate(zip(planned, models, strict=True)):
        found = predict(benchmark, dataset, model, one.seed, device)
        confusion = found.confusion()
        _write_seed(target / "trials" / f"seed-{one.seed}", one.key, found, confusion, dataset)
        if number == 0:
            _write_examples(target / "examples.npz", found, dataset)
            _write_first_layer(target / "first_layer.npz", model, dataset)
        errors.append(found.error)
        tops.append(found.top_error)
        total += confusion
        print(f"{one.name}: test error {found.error:.2f} % in {progress.duration(found.seconds)}", flush=True)
    _write_aggregate(target, benchmark, dataset, errors, tops, total)
    return target


def _trained(benchmark: Benchmark, dataset: Dataset, one: spec.Spec) -> nn.Module:
    """The network that the stage train collected for this trial, and not for another one."""
    folder = RUNS / benchmark.name / f"seed-{one.seed}"
    if store.read_json(folder / "result.json").get("key") != one.key:
        raise UserError(f"{folder} holds another trial than params.yaml describes; run the stage train first")
    return load_network(benchmark, dataset, folder / "weights.pt")


def _write_seed(folder: Path, key: str, found: Predictions, confusion: NDArray[np.int64], dataset: Dataset) -> None:
    folder.mkdir(parents=True)
    metrics = {
        "key": key,
        "error": found.error,
        "accuracy": 100 - found.error,
        "top5_error": found.top_error,
        "loss": found.loss,
        "single_view_error": found.single_view_error,
        "seconds": found.seconds,
        "per_class": per_class(confusion, dataset.classes),
    }
    store.write_json(folder / "metrics.json", metrics)
    np.savetxt(folder / "confusion.csv", confusion, fmt="%d", delimiter=",")
    np.savez_compressed(
        folder / "predictions.npz",
        labels=found.labels.numpy().astype(np.uint16),
        predicted=found.predicted.numpy().astype(np.uint16),
        confidence=found.probabilities.max(1).values.numpy().astype(np.float16),
    )


def _write_examples(path: Path, found: Predictions, dataset: Dataset) -> None:
    """Images behind the cells of the confusion matrix: of each cell the first few, in the order of the test file."""
    cells = found.labels * len(dataset.classes) + found.predicted
    index = torch.cat([(cells == cell).nonzero()[:EXAMPLES_A_CELL, 0] for cell in cells.unique()]).sort().values
    images = torch.from_numpy(np.array(dataset.split("test")[0][index.numpy()]))
    if max(images.shape[2:]) > EXAMPLE_PIXELS:
        small = nn.functional.interpolate(images.float(), size=EXAMPLE_PIXELS, mode="bilinear", antialias=True)
        images = small.round().clamp(0, 255).to(torch.uint8)
    np.savez_compressed(
        path,
        images=images.numpy(),
        actual=found.labels[index].numpy(),
        predicted=found.predicted[index].numpy(),
        confidence=found.probabilities[index].max(1).values.numpy(),
        index=index.numpy(),
    )


def _write_first_layer(path: Path, model: nn.Module, dataset: Dataset) -> None:
    """The filters of a first convolution (O, I, kH, kW), or the templates of a linear net (classes, C, H, W)."""
    first = next((m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))), None)
    arrays: dict[str, NDArray[np.float32]] = {}
    if isinstance(first, nn.Conv2d):
        arrays["filters"] = first.weight.detach().cpu().float().numpy()
    elif first is not None and first.weight.shape == (len(dataset.classes), int(np.prod(dataset.shape))):
        arrays["templates"] = first.weight.detach().cpu().float().numpy().reshape(-1, *dataset.shape)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def _write_aggregate(
    folder: Path,
    benchmark: Benchmark,
    dataset: Dataset,
    errors: Sequence[float],
    tops: Sequence[float],
    confusion: NDArray[np.int64],
) -> None:
    mean = float(np.mean(errors))
    interval = verdicts.shown(errors)
    metrics = {
        "error": mean,
        "error_ci95_low": interval[0] if interval else None,
        "error_ci95_high": interval[1] if interval else None,
        "accuracy": 100 - mean,
        "top5_error": float(np.mean(tops)),
        "seeds": len(errors),
    }
    store.write_json(folder / "metrics.json", metrics)
    with (folder / "confusion.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("actual", "predicted", "count"))
        for actual, row in zip(dataset.classes, confusion.tolist(), strict=True):
            writer.writerows((actual, predicted, n) for predicted, n in zip(dataset.classes, row, strict=True))
    about = {
        "classes": list(dataset.classes),
        "shape": list(dataset.shape),
        "dataset": dataset.name,
        "protocol": benchmark.evaluation.protocol,
        "test": dataset.test,
    }
    (folder / "classes.json").write_text(json.dumps(about, indent=1) + "\n")


def main() -> None:
    """Evaluate the benchmarks named on the command line, or the active suite."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.evaluate", description="Test what was trained.")
    parser.add_argument("benchmarks", nargs="*", help="names from params.yaml; by default the active suite")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None)
    args = parser.parse_args()
    orphan.follow_dvc()
    params = benchmarks.load()
    device = args.device or trial.default_device()
    names = list(dict.fromkeys(args.benchmarks)) or list(params.suite.benchmarks)
    for name in names:
        planned = spec.trials(params, name, data=DATA, root=store.default())
        print(f"{name}: {len(planned)} trials, {params.benchmark(name).evaluation.protocol}, on {device}", flush=True)
        evaluate(params.benchmark(name), planned, device)


if __name__ == "__main__":
    guard(main)
