"""Stage evaluate: open the test split, once a trial, and write the trained networks' predictions and errors.

    python -m pipelines.evaluate lenet5-mnist

The only stage that reads test images. It classifies them by the claim's protocol (once, or averaged over several random
views or ten crops) with the weights after the last epoch: nothing is selected on the test split. Where the source
measured its figure on other images (``evaluation.claimed_on``), these are classified too, in the same way; confusion
matrix, examples and figures a class are always those of the test split.

Much work on CPUs, such as ten crops of photographs, is spread over Ray like training.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.cluster import connection, readiness, spreading
from pipelines.command import arguments, ending, locks, progress
from pipelines.command.errors import UserError, guard
from pipelines.command.files import DamagedError, remove, replace_folder, require_folder, restore_folder, write_json
from pipelines.config.benchmarks import Benchmark
from pipelines.config.params import load_params
from pipelines.data import datasets
from pipelines.data.datasets import DATA, Dataset, Split
from pipelines.results import arrays, examples, verdicts
from pipelines.results.reader import EVALUATIONS, RUNS
from pipelines.training import checks, provenance, spec, store
from pipelines.training.inputs import Inputs
from pipelines.training.predictions import BATCH, Ask, Examiner, Piece, Predictions, as_claimed, flops, predict

Arrays = dict[str, NDArray[Any]]
MUCH = 10**13  # floating-point operations, some two minutes of a core, from which it pays to start Ray


def evaluate(
    benchmark: Benchmark,
    planned: Sequence[spec.Spec],
    device: str,
    connect: Callable[[], connection.Cluster] | None = None,
) -> Path:
    """Write ``evaluations/<benchmark>/`` for the benchmark's trials; returns that folder.

    An earlier evaluation stays in place until the new one is whole. Much work on a CPU is spread over the cluster that
    ``connect`` returns.
    """
    dataset = datasets.open_dataset(DATA, benchmark.dataset)
    inputs = Inputs(benchmark, dataset, store.default())
    checks.check_views(inputs)
    checks.check_claimed_on(benchmark, dataset)
    on = benchmark.evaluation.claimed_on
    dataset.verify(*({"test"} if on is None else {"test", on.split}))
    target = EVALUATIONS / benchmark.name
    with _replacing(target) as fresh:
        much = device == "cpu" and len(planned) * dataset.test * flops(inputs) >= MUCH
        with readiness.ready(connect(), planned[:1]) if connect and much else nullcontext() as cluster:
            ask = functools.partial(_elsewhere, cluster) if cluster else None
            _evaluate(fresh, inputs, sorted(planned, key=lambda trial: trial.seed), device, ask)
    return target


def _elsewhere(cluster: connection.Cluster, trial: spec.Spec) -> Ask:
    """Have images classified by Ray workers, piece by piece, each with the resources of a training worker."""
    need = cluster.need(trial.benchmark)
    placed = dataclasses.replace(trial, device="cuda" if need.gpus else "cpu", threads=need.cpus)
    # The nodes of a job share the run store; a copy of the code, and so runs/, lies on one of them alone.
    weights = (trial.files if trial.files.finished else _files(trial)).weights.absolute()

    def ask(split: Split, pieces: Mapping[int, NDArray[np.int64]]) -> Iterator[tuple[int, Piece]]:
        calls = {start: (placed, weights, split, start, places) for start, places in pieces.items()}
        what = f"the evaluation of {trial.name}"
        place = "pipelines.training.predictions.answer"
        return spreading.spread(place, calls, what=what, need=need, cluster=cluster)

    return ask


def _evaluate(
    folder: Path,
    inputs: Inputs,
    planned: Sequence[spec.Spec],
    device: str,
    elsewhere: Callable[[spec.Spec], Ask] | None,
) -> None:
    benchmark, dataset, on = inputs.benchmark, inputs.dataset, inputs.benchmark.evaluation.claimed_on
    seeds: list[dict[str, Any]] = []
    answers: dict[str, Arrays] = {}  # by the trial's key
    for trial in [_collected(benchmark, trial) for trial in planned]:
        model = inputs.load(_files(trial).weights)
        if not seeds:
            _write_first_layer(folder / "first_layer.npz", model, dataset)
        ask, examiner = elsewhere and elsewhere(trial), Examiner(inputs, model, trial.seed, device, trial.precision)
        found = predict(examiner, "test", ask=ask)
        metrics = {
            "key": trial.key,
            **_errors(found),
            "top5_error": found.top_error,
            "loss": found.loss,
            "seconds": found.seconds,
        }
        line = f"{trial.name}: test error {found.error:.2f} % in {progress.duration(found.seconds)}"
        if on is not None:
            other = as_claimed(examiner, on, found, ask)
            metrics["claimed_on"] = dataclasses.asdict(on) | _errors(other)
            line += f"; {other.error:.2f} % on {on.words}"
        answers[trial.key] = _write_seed(folder / "trials" / f"seed-{trial.seed}", metrics, found)
        seeds.append(metrics)
        print(line, flush=True)
    _write_examples(folder / "examples.npz", answers, dataset)
    classes = len(dataset.classes)
    matrices = [arrays.confusion(one["labels"], one["predicted"], classes) for one in answers.values()]
    _write_aggregate(folder, benchmark, dataset, seeds, np.sum(matrices, axis=0))


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Give a new folder beside ``target``; on a clean exit it takes that name, otherwise ``target`` stays as it was."""
    require_folder(target.parent)
    if os.path.lexists(target) and (target.is_symlink() or not target.is_dir()):
        raise UserError(f"{target} is no folder; expected one that an earlier evaluation wrote, or nothing")
    new = target.with_name(f".{target.name}.new")
    place = hashlib.sha256(os.fsencode(target.absolute())).hexdigest()[:16]  # a store may serve several checkouts
    with locks.held(store.default() / "evaluating" / f"{place}.lock", f"the evaluation of {target.name}"):
        restore_folder(target)
        remove(new)
        new.mkdir()
        try:
            yield new
            replace_folder(new, target)
        finally:
            remove(new)


def _collected(benchmark: Benchmark, trial: spec.Spec) -> spec.Spec:
    """The trial in the precision that it was trained in; UserError unless the stage train collected it, whole."""
    files, name = _files(trial), benchmark.name
    again = f"run the stage train, which collects it anew: python -m pipelines.train {name}, or dvc repro"
    try:
        key = files.read_result(None).get("key")
    except DamagedError as error:
        raise UserError(f"{error}; {again}") from None
    variants = {variant.key: variant for variant in trial.variants}
    if key not in variants:
        raise UserError(f"{files.folder} holds another trial than {benchmark.where} describes; {again}")
    return variants[key]


def _files(trial: spec.Spec) -> store.TrialFiles:
    return store.TrialFiles(RUNS / trial.benchmark.name / f"seed-{trial.seed}")


def _errors(found: Predictions) -> dict[str, float]:
    return {"error": found.error, "accuracy": 100 - found.error, "single_view_error": found.single_view_error}


def _write_seed(folder: Path, metrics: dict[str, Any], found: Predictions) -> Arrays:
    """Write a seed's metrics and its answers to the N test images; returns the answers.

    ``labels`` and ``predicted`` are (N,) uint16, ``confidence`` (N,) float16 is the probability of the class predicted.
    """
    answers: Arrays = {
        "labels": found.labels.numpy().astype(np.uint16),
        "predicted": found.predicted.numpy().astype(np.uint16),
        "confidence": found.probabilities.max(1).values.numpy().astype(np.float16),
    }
    folder.mkdir(parents=True)
    write_json(folder / "metrics.json", metrics)
    arrays.write(folder / "predictions.npz", **answers)
    return answers


def _write_examples(path: Path, answers: Mapping[str, Arrays], dataset: Dataset) -> None:
    """Write the test images behind the cells of every trial's confusion matrix."""
    images, labels = dataset.split("test")
    actual = np.array(labels, dtype=np.int64)
    predicted = np.stack([answer["predicted"] for answer in answers.values()]).astype(np.int64)
    index = examples.bounded(actual, predicted, len(dataset.classes))
    parts = [_small(np.array(images[index[i : i + BATCH]])) for i in range(0, len(index), BATCH)]
    arrays.write(path, images=np.concatenate(parts), index=index, keys=np.array(list(answers)))


def _small(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (N, C, H, W) as they are kept: larger ones are shrunk to a square."""
    if max(images.shape[2:]) <= examples.KEPT_SIDE:
        return images
    whole, size = torch.from_numpy(images).float(), (examples.KEPT_SIDE, examples.KEPT_SIDE)
    small = nn.functional.interpolate(whole, size=size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8).numpy()


def _write_first_layer(path: Path, model: nn.Module, dataset: Dataset) -> None:
    """The filters of a first convolution (O, I, kH, kW), or the templates of a linear net (classes, C, H, W).

    ``towers`` is in how many groups the next layer takes the filters' maps: two in AlexNet.
    """
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    first, second = (*layers, None, None)[:2]
    kept: Arrays = {}
    if isinstance(first, nn.Conv2d):
        kept["filters"] = first.weight.detach().cpu().float().numpy()
        kept["towers"] = np.array(second.groups if isinstance(second, nn.Conv2d) else 1)
    elif first is not None and first.weight.shape == (len(dataset.classes), int(np.prod(dataset.shape))):
        kept["templates"] = first.weight.detach().cpu().float().numpy().reshape(-1, *dataset.shape)
    arrays.write(path, **kept)


def _write_aggregate(
    folder: Path,
    benchmark: Benchmark,
    dataset: Dataset,
    seeds: Sequence[dict[str, Any]],
    confusion: NDArray[np.int64],
) -> None:
    # No key is called just "error": DVC would take the file for one that it could not read.
    metrics = verdicts.summary("test_", [seed["error"] for seed in seeds])
    metrics |= {"top5_error": float(np.mean([seed["top5_error"] for seed in seeds])), "seeds": len(seeds)}
    if benchmark.evaluation.claimed_on is not None:
        metrics |= verdicts.summary("claimed_on_", [seed["claimed_on"]["error"] for seed in seeds])
    write_json(folder / "metrics.json", metrics)
    with (folder / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
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
    write_json(folder / "classes.json", about)


def main() -> None:
    """Evaluate the benchmarks named on the command line, or the active suite."""
    parser = arguments.Parser(prog="python -m pipelines.evaluate", description="Test what was trained.")
    parser.add_argument("benchmarks", nargs="*", help="benchmarks of models/*.yaml; by default the active suite")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="by default the GPU where there is one")
    args = parser.parse_args()
    ending.follow()
    params = load_params()
    device = provenance.chosen_device(args.device)
    names = list(dict.fromkeys(args.benchmarks)) or list(params.suite.benchmarks)
    with contextlib.ExitStack() as stack:

        @functools.cache
        def connect() -> connection.Cluster:
            cluster = stack.enter_context(connection.connect())
            print(f"spread over {cluster}", flush=True)
            return cluster

        for name in names:
            planned = spec.trials(params, name, data=DATA, root=store.default())
            print(f"{name}: {params.benchmark(name).evaluation.protocol}, on {device}", flush=True)
            evaluate(params.benchmark(name), planned, device, connect)


if __name__ == "__main__":
    guard(main)
