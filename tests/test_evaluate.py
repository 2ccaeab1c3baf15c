"""Evaluation of really trained networks on real test images, every figure computed again in NumPy."""

from __future__ import annotations

import ast
import csv
import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from pipelines import evaluate
from pipelines.cluster import connection
from pipelines.command.errors import UserError
from pipelines.command.files import write_json
from pipelines.config.claims import ClaimedOn
from pipelines.config.params import load_params
from pipelines.data import datasets, subsets
from pipelines.results import examples
from pipelines.results.reader import per_class
from pipelines.train import collect
from pipelines.training import checks, spec, store, trainer
from pipelines.training.inputs import Inputs
from pipelines.training.predictions import Examiner, Predictions, as_claimed, predict
from tests import projects
from tests.conftest import ROOT, TEST, THREADS, edit_params
from tests.processes import environment
from tests.report_inputs import read_matrix

Array = npt.NDArray[Any]
SHORT = {"recipe.subset": {"first": 600}}
# One benchmark a protocol.
CHANGES: dict[str, dict[str, object]] = {
    "linear-mnist": {  # single view
        "budgets.laptop": {"epochs": 1, "seeds": [3, 5, 6]},
        "evaluation.claimed_on": {"split": "train", "first": 700, "count": 310},
        "claim.test_images": 310,
        "claim.difference": "These images are others.",
    },
    "lenet5-mnist": {
        "recipe.augment": [{"shift": {"pixels": 3, "fill": -0.1}}],
        "recipe.batch": 8,
        "recipe.optimiser.lr": 0.005,  # a third wrong on any processor; with 0.04 it is chance that decides
        "model.options": {"init": "sqrt_fan_in"},  # off the plateau at once
        "evaluation": {"views": "random", "count": 4, "claimed_on": {"split": "test", "first": 130, "count": 200}},
        "claim.test_images": 200,
        "claim.difference": "These images are fewer.",
        "budgets.laptop": {"epochs": 2, "seeds": [0]},
    },
    "mlp300-mnist": {
        "recipe.augment": [{"crop": {"size": 24}}],
        "evaluation": {"views": "ten_crop", "crop": 24},
        "budgets.laptop": {"epochs": 2, "seeds": [0]},
    },
}


@pytest.fixture(scope="module")
def evaluated(mnist_slice: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose benchmarks were trained, collected and evaluated; the tests run in it and leave it as it is."""
    root = tmp_path_factory.mktemp("evaluated")
    projects.copy_params(root)
    (root / "datasets").symlink_to(mnist_slice)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("RUN_STORE", raising=False)
        edit_params(Path("params.yaml"), **{name: SHORT | changes for name, changes in CHANGES.items()})
        for name in CHANGES:
            for one in planned(name):
                trainer.run(one.on("cpu", threads=THREADS))
            collect(planned(name))
            run(name)
        yield root


def planned(name: str) -> list[spec.Spec]:
    return spec.trials(load_params(), name, data=Path("datasets"), root=store.default())


def run(name: str) -> Path:
    return evaluate.evaluate(load_params().benchmark(name), planned(name), "cpu")


def published() -> tuple[Array, Array]:
    images, labels = datasets.open_dataset(Path("datasets"), "mnist").split("test")
    return np.array(images), np.array(labels)


def weights(name: str, seed: int) -> dict[str, Array]:
    found = torch.load(Path("runs") / name / f"seed-{seed}" / "weights.pt", weights_only=True)
    return {key: tensor.double().numpy() for key, tensor in found.items()}


def softmax(outputs: Array) -> Array:
    powers = np.exp(outputs - outputs.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def linear(images: Array, seed: int) -> Array:
    """Class probabilities (N, 10) of the linear net: pixels to 0..1, one layer."""
    found = weights("linear-mnist", seed)
    return softmax(images.reshape(len(images), -1) / 255 @ found["1.weight"].T + found["1.bias"])


def mlp(images: Array) -> Array:
    """Class probabilities (N, 10) of the 300-unit net on 24 x 24 crops: pixels to -0.1..1.175, 1.7159 tanh(2a/3)."""
    first, second = ((w, b) for w, b in _layers(weights("mlp300-mnist", 0)))
    pixels = images.reshape(len(images), -1) * (1.275 / 255) - 0.1
    hidden = 1.7159 * np.tanh((pixels @ first[0].T + first[1]) * 2 / 3)
    return softmax(1.7159 * np.tanh((hidden @ second[0].T + second[1]) * 2 / 3))


def _layers(found: dict[str, Array]) -> list[tuple[Array, Array]]:
    names = [key.removesuffix(".weight") for key in found if key.endswith(".weight")]
    return [(found[f"{name}.weight"], found[f"{name}.bias"]) for name in names]


def seeds() -> list[tuple[str, int]]:
    return [("linear-mnist", 3), ("linear-mnist", 6), ("lenet5-mnist", 0), ("mlp300-mnist", 0)]


def folder(name: str, seed: int) -> Path:
    return Path("evaluations") / name / "trials" / f"seed-{seed}"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def arrays(path: Path) -> dict[str, Array]:
    with np.load(path) as found:
        return dict(found)


# --- figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "seed"), seeds())
@pytest.mark.numeric
def test_all_files_of_a_trial_tell_of_the_same_predictions(evaluated: Path, name: str, seed: int) -> None:
    labels = published()[1]
    found = arrays(folder(name, seed) / "predictions.npz")
    assert np.array_equal(found["labels"], labels) and len(labels) == TEST
    confusion = np.zeros((10, 10), dtype=int)
    for actual, predicted in zip(labels, found["predicted"], strict=True):
        confusion[actual, predicted] += 1
    assert np.array_equal(read_matrix(folder(name, seed)), confusion)
    metrics = read(folder(name, seed) / "metrics.json")
    wrong = int((found["predicted"] != labels).sum())
    assert 0 < wrong < TEST  # it learnt something, and not all
    assert metrics["error"] == pytest.approx(100 * wrong / TEST)
    assert metrics["accuracy"] == pytest.approx(100 - 100 * wrong / TEST)
    assert 0 <= metrics["top5_error"] < metrics["error"]
    assert metrics["key"] == read(Path("runs") / name / f"seed-{seed}" / "result.json")["key"]


@pytest.mark.parametrize(("name", "seed"), seeds())
@pytest.mark.numeric
def test_precision_recall_and_f1_of_each_class(evaluated: Path, name: str, seed: int) -> None:
    found = arrays(folder(name, seed) / "predictions.npz")
    table = per_class(read_matrix(folder(name, seed)))
    for digit, (precision, recall, f1, images) in enumerate(table):
        said, is_one = found["predicted"] == digit, found["labels"] == digit
        hits = int((said & is_one).sum())
        assert images == is_one.sum()
        assert precision == (pytest.approx(100 * hits / said.sum(), abs=0.006) if said.any() else None)
        assert recall == pytest.approx(100 * hits / is_one.sum(), abs=0.006)
        assert f1 == pytest.approx(200 * hits / (said.sum() + is_one.sum()), abs=0.006)


@pytest.mark.parametrize("seed", [3, 5])
@pytest.mark.numeric
def test_a_single_view_is_the_network_on_each_test_image(evaluated: Path, seed: int) -> None:
    images, labels = published()
    probabilities = linear(images, seed)
    found, metrics = (
        arrays(folder("linear-mnist", seed) / "predictions.npz"),
        read(folder("linear-mnist", seed) / "metrics.json"),
    )
    assert np.array_equal(found["predicted"], probabilities.argmax(1))
    np.testing.assert_allclose(found["confidence"], probabilities.max(1), atol=1e-3)  # kept as float16
    assert metrics["loss"] == pytest.approx(-np.log(probabilities[np.arange(TEST), labels]).mean(), rel=1e-5)
    better = (probabilities > probabilities[np.arange(TEST), labels][:, None]).sum(1)
    assert metrics["top5_error"] == pytest.approx(100 * (better >= 5).mean())
    assert metrics["single_view_error"] == pytest.approx(metrics["error"])


@pytest.mark.numeric
def test_ten_crops_are_averaged_as_probabilities(evaluated: Path) -> None:
    images, labels = published()
    crops = [images[:, :, top : top + 24, left : left + 24] for top, left in [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]]
    probabilities = np.mean([mlp(view) for crop in crops for view in (crop, crop[..., ::-1])], axis=0)
    found, metrics = (
        arrays(folder("mlp300-mnist", 0) / "predictions.npz"),
        read(folder("mlp300-mnist", 0) / "metrics.json"),
    )
    assert np.array_equal(found["predicted"], probabilities.argmax(1))
    np.testing.assert_allclose(found["confidence"], probabilities.max(1), atol=1e-3)
    assert metrics["single_view_error"] == pytest.approx(100 * (mlp(crops[4]).argmax(1) != labels).mean())
    assert abs(metrics["single_view_error"] - metrics["error"]) > 0.1
    assert read(Path("evaluations/mlp300-mnist/classes.json"))["protocol"] == "10-crop averaged"


@pytest.mark.numeric
def test_random_views_are_on_record_beside_the_single_view(evaluated: Path) -> None:
    assert read(Path("evaluations/lenet5-mnist/classes.json"))["protocol"] == "4 random views averaged"
    assert read(Path("evaluations/linear-mnist/classes.json"))["protocol"] == "single view"
    metrics = read(folder("lenet5-mnist", 0) / "metrics.json")
    benchmark, data = load_params().benchmark("lenet5-mnist"), datasets.open_dataset(Path("datasets"), "mnist")
    inputs = Inputs(benchmark, data, store.default())
    model = inputs.load(Path("runs/lenet5-mnist/seed-0/weights.pt"))
    images, labels = published()
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2))) * np.float32(1.275 / 255) - np.float32(0.1)
    with torch.inference_mode():
        single = model(torch.from_numpy(padded)).softmax(1).numpy()
    assert metrics["single_view_error"] == pytest.approx(100 * (single.argmax(1) != labels).mean())
    confidence = arrays(folder("lenet5-mnist", 0) / "predictions.npz")["confidence"]
    assert np.abs(confidence - single.max(1)).mean() > 0.005  # shifted by up to 3 pixels, it is another's answer
    seen: list[Tensor] = []
    model.register_forward_hook(lambda _, __, out: seen.append(out.double().softmax(1)))
    predict(Examiner(inputs, model, 0, "cpu", "fp32"), "test")
    first = seen[: 1 + 4]  # of the first piece: the image as it is, then four views
    assert len(seen) == len(first) * -(-TEST // len(first[0]))
    averaged = torch.stack(first[1:]).mean(0).max(1).values.numpy()
    np.testing.assert_allclose(confidence[: len(averaged)], averaged, atol=1e-3)


@pytest.mark.numeric
def test_the_images_of_the_claim_are_looked_at_where_they_lie(evaluated: Path) -> None:
    images, labels = (array[700:1010] for array in datasets.open_dataset(Path("datasets"), "mnist").split("train"))
    for seed in (3, 5):
        found = read(folder("linear-mnist", seed) / "metrics.json")["claimed_on"]
        error = 100 * (linear(images, seed).argmax(1) != labels).mean()
        assert found == {
            **{"split": "train", "first": 700, "count": 310, "drawn": False},
            **{"error": pytest.approx(error), "accuracy": pytest.approx(100 - error)},
            "single_view_error": pytest.approx(error),
        }
        assert abs(error - read(folder("linear-mnist", seed) / "metrics.json")["error"]) > 0.01


@pytest.mark.numeric
def test_a_part_of_the_test_split_is_what_was_said_of_the_whole(evaluated: Path) -> None:
    """The views of an image must not depend on the range it is asked for in: 130 to 330 spans two batches."""
    found = read(folder("lenet5-mnist", 0) / "metrics.json")
    said = arrays(folder("lenet5-mnist", 0) / "predictions.npz")
    wrong = said["predicted"] != said["labels"]
    assert found["claimed_on"]["error"] == pytest.approx(100 * wrong[130:330].mean())
    assert (found["error"], found["claimed_on"]["split"]) == (pytest.approx(100 * wrong.mean()), "test")


@pytest.mark.numeric
def test_spread_over_ray_every_image_has_the_same_answer(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers take pieces in any order, and weights from the store; where those are gone, it is a line."""
    monkeypatch.setattr(evaluate, "MUCH", 1)
    names, benchmark = ("mlp300-mnist", "linear-mnist"), load_params().benchmark("linear-mnist")
    before = {path: arrays(path) for name in names for path in (Path("evaluations") / name).rglob("predictions.npz")}
    figures = {path: read(path)["claimed_on"] for path in Path("evaluations/linear-mnist").rglob("seed-*/metrics.json")}
    with connection.connect() as ray_cluster:
        for name in names:
            evaluate.evaluate(load_params().benchmark(name), planned(name), "cpu", lambda: ray_cluster)
        one, pieces = planned("linear-mnist")[0], {0: np.arange(5)}
        Path("runs/linear-mnist/seed-3/weights.pt").unlink()  # as on a node that has no such copy of the code
        assert [len(piece[1]) for _, piece in evaluate._elsewhere(ray_cluster, one)("test", pieces)] == [5]
        one.files.weights.unlink()
        with pytest.raises(UserError, match=r"weights\.pt is missing"):
            list(evaluate._elsewhere(ray_cluster, one)("test", pieces))
    assert len(before) == 4 and len(figures) == len(benchmark.budgets["laptop"].seeds)
    for path, found in before.items():
        again = arrays(path)
        assert np.array_equal(again["predicted"], found["predicted"])
        np.testing.assert_allclose(again["confidence"], found["confidence"], atol=1e-3)
    assert {path: read(path)["claimed_on"] for path in figures} == figures


class Reader(torch.nn.Module):
    """Says what is written in the first pixel of an image of pixels 0 to 1."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot((images[:, 0, 0, 0] * 255).round().long(), 10).float()


@pytest.mark.parametrize(
    ("split", "first", "count", "wrong"),
    [
        ("train", 260, 250, 0),  # exactly the images that tell their class
        ("train", 259, 250, 1),
        ("train", 261, 250, 1),
        ("train", 0, 600, 350),
        ("test", 40, 10, 0),
        ("test", 39, 10, 1),
    ],
)
def test_exactly_the_named_images_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: Any, first: int, count: int, wrong: int
) -> None:
    monkeypatch.chdir(tmp_path)

    def telling(total: int, start: int, end: int) -> tuple[Array, Array]:
        labels = np.arange(total) % 10
        images = np.zeros((total, 1, 4, 4), dtype=np.uint8)
        right = (np.arange(total) >= start) & (np.arange(total) < end)
        images[:, 0, 0, 0] = np.where(right, labels, (labels + 1) % 10)
        return images, labels

    train, test = telling(600, 260, 510), telling(70, 40, 50)
    data = datasets.write_dataset(tmp_path, "mnist", classes=list("0123456789"), train=train, test=test)
    benchmark = load_params(ROOT / "params.yaml").benchmark("linear-mnist")  # pixels to 0 to 1, single view
    on = ClaimedOn(split=split, first=first, count=count)
    inputs = Inputs(benchmark, data, tmp_path / "store")
    examiner = Examiner(inputs, Reader(), 0, "cpu", "fp32")
    tested = predict(examiner, "test")
    found = as_claimed(examiner, on, tested)
    assert len(found.labels) == len(found.single) == count
    assert found.error == found.single_view_error == pytest.approx(100 * wrong / count)
    assert tested.error == pytest.approx(100 * 60 / 70)


def test_images_drawn_for_a_claim_are_the_same_for_every_seed() -> None:
    on = ClaimedOn(split="test", count=2007, drawn=True)
    places = subsets.claimed_on(10_000, on)
    assert len(set(places.tolist())) == 2007 and places.max() > 9_000  # not the first ones: the easier half of MNIST's
    assert np.array_equal(places, subsets.claimed_on(10_000, on))
    assert on.words == "2,007 images drawn from the test file"


@pytest.mark.numeric
def test_random_views_of_training_images_are_drawn_again(evaluated: Path) -> None:
    benchmark, data = load_params().benchmark("lenet5-mnist"), datasets.open_dataset(Path("datasets"), "mnist")
    inputs = Inputs(benchmark, data, store.default())
    model = inputs.load(Path("runs/lenet5-mnist/seed-0/weights.pt"))
    examiners = (Examiner(inputs, model, seed, "cpu", "fp32") for seed in (0, 0, 1))
    first, again, other = (predict(examiner, "train", np.arange(260)) for examiner in examiners)
    assert torch.equal(first.probabilities, again.probabilities)
    assert not torch.equal(first.probabilities, other.probabilities)
    assert torch.equal(first.single, other.single)


@pytest.mark.numeric
def test_the_same_views_are_drawn_again(evaluated: Path) -> None:
    before = arrays(folder("lenet5-mnist", 0) / "predictions.npz")
    torch.manual_seed(7)
    run("lenet5-mnist")
    again = arrays(folder("lenet5-mnist", 0) / "predictions.npz")
    assert before.keys() == again.keys() and all(np.array_equal(again[key], before[key]) for key in before)


@pytest.mark.numeric
def test_the_aggregate_is_of_all_seeds(evaluated: Path) -> None:
    each = [read(folder("linear-mnist", seed) / "metrics.json") for seed in (3, 5, 6)]
    errors = [metrics["error"] for metrics in each]
    total = read(Path("evaluations/linear-mnist/metrics.json"))
    assert total["seeds"] == 3 and len(set(errors)) > 1
    assert total["test_error"] == pytest.approx(sum(errors) / 3)
    assert total["test_accuracy"] == pytest.approx(100 - sum(errors) / 3)
    assert total["top5_error"] == pytest.approx(sum(metrics["top5_error"] for metrics in each) / 3)
    half = 4.3027 * np.std(errors, ddof=1) / 3**0.5  # Student's t at 95 %, two degrees of freedom
    assert total["test_error_ci95_low"] == pytest.approx(total["test_error"] - half, rel=1e-3)
    assert total["test_error_ci95_high"] == pytest.approx(total["test_error"] + half, rel=1e-3)
    alone = read(Path("evaluations/lenet5-mnist/metrics.json"))  # one seed has no interval
    assert alone["test_error_ci95_low"] is None and alone["test_error_ci95_high"] is None and alone["seeds"] == 1


def test_the_aggregate_has_the_images_of_the_claim_beside_the_test_set(evaluated: Path) -> None:
    errors = [read(folder("linear-mnist", seed) / "metrics.json")["claimed_on"]["error"] for seed in (3, 5, 6)]
    total = read(Path("evaluations/linear-mnist/metrics.json"))
    assert all(isinstance(value, (int, float)) for value in total.values())  # DVC's metrics are flat
    mean, half = sum(errors) / 3, 4.3027 * np.std(errors, ddof=1) / 3**0.5
    assert total["claimed_on_error"] == pytest.approx(mean)
    assert total["claimed_on_accuracy"] == pytest.approx(100 - mean)
    assert total["claimed_on_error_ci95_low"] == pytest.approx(mean - half, rel=1e-3)
    assert total["claimed_on_error_ci95_high"] == pytest.approx(mean + half, rel=1e-3)
    assert read(Path("evaluations/lenet5-mnist/metrics.json"))["claimed_on_error_ci95_low"] is None
    assert not [key for key in read(Path("evaluations/mlp300-mnist/metrics.json")) if "claimed" in key]
    assert "claimed_on" not in read(folder("mlp300-mnist", 0) / "metrics.json")


def test_the_aggregate_confusion_is_the_sum_with_names(evaluated: Path) -> None:
    with Path("evaluations/linear-mnist/confusion.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = {(row["actual"], row["predicted"]): int(row["count"]) for row in rows}
    assert len(rows) == len(cells) == 100
    each = [read_matrix(folder("linear-mnist", seed)) for seed in (3, 5, 6)]
    assert all(cells[str(i), str(j)] == sum(one[i, j] for one in each) for i in range(10) for j in range(10))
    about = read(Path("evaluations/linear-mnist/classes.json"))
    assert about["classes"] == list("0123456789")
    assert (about["shape"], about["dataset"], about["test"]) == ([1, 28, 28], "mnist", TEST)


# --- what a page shows of it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGES)
def test_examples_are_the_test_images_behind_the_cells(evaluated: Path, name: str) -> None:
    images, labels = published()
    found = arrays(Path("evaluations") / name / "examples.npz")
    index = found["index"]
    assert found["images"].dtype == np.uint8 and np.array_equal(found["images"], images[index])
    assert found["keys"].tolist() == [one.key for one in planned(name)]
    for one in planned(name):
        cell = labels * 10 + arrays(folder(name, one.seed) / "predictions.npz")["predicted"]
        cells, kept = (np.bincount(at, minlength=100) for at in (cell, cell[index]))
        assert (kept >= np.minimum(cells, examples.A_CELL)).all()  # of every cell of every seed's matrix


def test_examples_are_few_since_they_serve_all_seeds() -> None:
    actual = np.zeros(40, dtype=np.int64)
    first = np.zeros(40, dtype=np.int64)
    second = np.r_[np.zeros(20, dtype=np.int64), np.ones(20, dtype=np.int64)]
    third = np.r_[np.ones(10, dtype=np.int64), np.zeros(30, dtype=np.int64)]
    cells = actual * 2 + np.stack([first, second, third])
    # Of cell 0 the ten that all three put there come first, then the first of the file; of cell 1 there are few.
    assert examples.behind(cells[:1], 3).tolist() == [0, 1, 2]
    assert examples.behind(cells, 12).tolist() == [*range(10), *range(10, 20), *range(20, 32)]
    assert examples.behind(cells, 2).tolist() == [0, 1, 10, 11, 20, 21]


def test_examples_are_bounded() -> None:
    random = np.random.default_rng(0)
    actual, predicted = random.integers(10, size=6000), random.integers(10, size=(5, 6000))
    found = examples.bounded(actual, predicted, 10)
    cells = actual * 10 + predicted
    fewest = min(np.bincount(one[found], minlength=100).min() for one in cells)
    assert 1500 < len(found) <= examples.MOST_KEPT and fewest >= 5  # fewer of each, and some of all
    few = examples.bounded(actual, np.stack([(actual + 1) % 10, actual]), 10, most=7)  # ten classes, two cells each
    assert len(few) == 7 and len(set(actual[few].tolist())) == 7


def test_large_photographs_are_kept_small(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    bright = (random.integers(0, 2, (4, 3, 2, 2), dtype=np.uint8) * 255).repeat(40, 2).repeat(40, 3)  # 80 x 80
    labels = np.array([0, 1, 1, 0])
    data = datasets.write_dataset(tmp_path, "large", classes=["a", "b"], train=(bright, labels), test=(bright, labels))
    likely = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]])
    found = Predictions(
        probabilities=likely, labels=torch.from_numpy(labels), single=torch.from_numpy(labels), seconds=0.0
    )
    answers = evaluate._write_seed(tmp_path / "seed-4", {}, found)
    evaluate._write_examples(tmp_path / "examples.npz", {"4": answers}, data)
    kept = arrays(tmp_path / "examples.npz")
    assert kept["images"].shape == (4, 3, 64, 64) and kept["images"].dtype == np.uint8
    corners = kept["images"][:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.array_equal(corners, bright[:, :, [0, 0, -1, -1], [0, -1, 0, -1]])
    assert answers["predicted"].tolist() == [0, 1, 0, 0] and kept["keys"].tolist() == ["4"]


def test_the_first_layer_is_the_trained_one(evaluated: Path) -> None:
    linear_net = arrays(Path("evaluations/linear-mnist/first_layer.npz"))
    assert list(linear_net) == ["templates"]
    expected = weights("linear-mnist", 3)["1.weight"].reshape(10, 1, 28, 28)
    np.testing.assert_allclose(linear_net["templates"], expected)
    lenet = arrays(Path("evaluations/lenet5-mnist/first_layer.npz"))
    assert list(lenet) == ["filters", "towers"] and lenet["towers"] == 1
    np.testing.assert_allclose(lenet["filters"], weights("lenet5-mnist", 0)["c1.weight"])
    assert lenet["filters"].shape == (6, 1, 5, 5)
    assert arrays(Path("evaluations/mlp300-mnist/first_layer.npz")) == {}  # 300 hidden units are no class templates


# --- by hand -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "top"), [(6, 50.0), (3, 0.0)])
def test_top_5_of_few_classes(classes: int, top: float) -> None:
    likely = torch.arange(classes, 0, -1).float().repeat(2, 1)
    labels = torch.tensor([0, classes - 1])  # the likeliest and the least likely
    found = Predictions(probabilities=likely, labels=labels, single=labels, seconds=0.0)
    assert (found.error, found.top_error, found.single_view_error) == (50.0, top, 0.0)
    assert (found.part(np.array([0])).error, found.part(np.array([1])).error) == (0.0, 100.0)


# --- what may be wrong -------------------------------------------------------------------------------------------


@pytest.fixture
def copied(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the evaluated project that a test may damage; it runs there."""
    shutil.copytree(evaluated, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def vouched(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """A change of the weights with which the trial itself would have ended."""

    def changed(path: Path) -> None:
        change(path)
        files = store.TrialFiles(path.parent)
        files.write_result(read(files.result))

    return changed


RUN = "runs/linear-mnist/seed-3"
UNLIKE = " is damaged: its sha256 is not the one in result.json; run the stage train, which collects it anew"
OTHER = "runs/lenet5-mnist/seed-0/weights.pt"
DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "another seed's weights": (
        f"{RUN}/weights.pt",
        lambda path: shutil.copy("runs/linear-mnist/seed-5/weights.pt", path),
        UNLIKE,
    ),
    "truncated weights": (f"{RUN}/weights.pt", truncate, UNLIKE),
    "no weights": (f"{RUN}/weights.pt", Path.unlink, " is missing; expected a file that an earlier stage writes; run"),
    "another network's": (f"{RUN}/weights.pt", lambda path: shutil.copy(OTHER, path), UNLIKE),
    "another network": (f"{RUN}/weights.pt", vouched(lambda path: shutil.copy(OTHER, path)), " does not hold the weig"),
    "something else": (f"{RUN}/weights.pt", vouched(lambda path: torch.save([1, 2], path)), " holds a list; expected "),
    "text": (f"{RUN}/weights.pt", vouched(lambda path: path.write_text("hello")), " is damaged or foreign; expected"),
    "no runs": ("runs", shutil.rmtree, "/linear-mnist/seed-3/result.json is missing; expected a file that an earlier"),
    "damaged provenance": (f"{RUN}/result.json", truncate, " is damaged ("),
    "another trial": (
        RUN,
        lambda path: shutil.copytree("runs/linear-mnist/seed-5", path, dirs_exist_ok=True),
        " holds another trial than models/linear.yaml: linear-mnist describes; run the stage train",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_not_the_trained_network_is_one_line(copied: Path, name: str) -> None:
    path, damage, words = DAMAGE[name]
    before = tree(Path("evaluations"))
    damage(Path(path))
    with pytest.raises(UserError) as caught:
        run("linear-mnist")
    assert str(caught.value).startswith(path + words) and str(caught.value).isprintable()
    assert tree(Path("evaluations")) == before


def test_few_nets_are_in_memory_at_a_time(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten of AlexNet would take 2.4 GB."""
    load, nets, alive = Inputs.load, list[weakref.ref[nn.Module]](), list[int]()

    def watched(inputs: Inputs, path: Path) -> nn.Module:
        model = load(inputs, path)
        nets.append(weakref.ref(model))
        alive.append(sum(net() is not None for net in nets))
        return model

    monkeypatch.setattr(Inputs, "load", watched)
    run("linear-mnist")
    assert alive == [1, 2, 2], "the last one, while the next is loaded"


def test_a_trial_of_other_parameters_is_not_evaluated_as_these(copied: Path) -> None:
    edit_params(Path("params.yaml"), linear_mnist={"recipe.optimiser.lr": 0.05})
    with pytest.raises(
        UserError,
        match=r"^runs/linear-mnist/seed-3 holds another trial than models/linear\.yaml: linear-mnist describes; run",
    ):
        run("linear-mnist")


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file below, hidden ones too, with its contents."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_an_evaluation_that_fails_half_way_leaves_the_one_before(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(Path("evaluations"))
    write, written = evaluate._write_seed, list[Path]()

    def fail(folder: Path, *found: Any) -> Any:
        answers = write(folder, *found)
        written.append(folder)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        return answers

    monkeypatch.setattr(evaluate, "_write_seed", fail)
    with pytest.raises(OSError, match="No space left"):
        run("linear-mnist")
    assert len(written) == 2 and tree(Path("evaluations")) == before


@pytest.mark.parametrize("left", [[".linear-mnist.new"], [".linear-mnist.new", ".linear-mnist.old"]])
def test_what_a_killed_evaluation_left_is_put_in_order(copied: Path, left: list[str]) -> None:
    """The second: it was killed between the two renames that put a new evaluation in the old one's place."""
    before = tree(Path("evaluations"))
    for name in left:
        shutil.copytree("evaluations/linear-mnist", f"evaluations/{name}")
    if len(left) == 2:
        shutil.rmtree("evaluations/linear-mnist")
    Path(RUN, "weights.pt").unlink()
    with pytest.raises(UserError):
        run("linear-mnist")
    assert tree(Path("evaluations")) == before


@pytest.mark.parametrize("place", ["evaluations", "evaluations/linear-mnist"])
@pytest.mark.parametrize("kind", ["file", "pipe", "dangling"])
def test_an_evaluation_that_can_be_written_nowhere_is_one_line_at_once(
    copied: Path, monkeypatch: pytest.MonkeyPatch, place: str, kind: str
) -> None:
    shutil.rmtree(place)
    make: dict[str, Callable[[Path], object]] = {
        "file": Path.touch, "pipe": os.mkfifo, "dangling": lambda path: path.symlink_to("nothing")
    }  # fmt: skip
    make[kind](Path(place))
    monkeypatch.setattr(evaluate, "predict", None)
    with pytest.raises(UserError, match=rf"^{place} is no folder; expected one"):
        run("linear-mnist")
    assert os.path.lexists(place) and not Path(place).is_dir()


@pytest.fixture
def read_only(copied: Path) -> Iterator[Path]:
    """The evaluations on a file system of their own that can't be written to."""
    folder = Path("evaluations").absolute()
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode:
        pytest.skip("a file system of its own can't be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_evaluations_that_are_read_only_are_one_line_at_once(read_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "predict", None)
    with pytest.raises(UserError, match=r"^evaluations can't be written to; expected a folder that can$"):
        run("linear-mnist")


def test_classes_that_no_report_could_name_are_refused_before_anything_is_lost(copied: Path, mnist_slice: Path) -> None:
    before = tree(Path("evaluations"))
    Path("datasets").unlink()
    shutil.copytree(mnist_slice, "datasets")
    about = read(Path("datasets/mnist/meta.json"))
    about["classes"][3] = "t\udcf6r"  # Latin-1's ö in a folder's name
    write_json(Path("datasets/mnist/meta.json"), about)
    with pytest.raises(UserError, match=r"classes\[3\] is 't\\udcf6r'; expected text without control characters"):
        run("linear-mnist")
    assert tree(Path("evaluations")) == before


def test_names_of_classes_are_any_text(tmp_path: Path) -> None:
    names = ["a,b", "<script>", "a|b`c", 'a "b"']
    image = np.zeros((4, 1, 4, 4), dtype=np.uint8)
    data = datasets.write_dataset(
        tmp_path, "odd", classes=names, train=(image, np.arange(4)), test=(image, np.arange(4))
    )
    evaluate._write_aggregate(
        tmp_path,
        load_params(ROOT / "params.yaml").benchmark("linear-mnist"),
        data,
        [{"error": 0.0, "top5_error": 0.0, "claimed_on": {"error": 0.0}}],
        np.eye(4, dtype=np.int64),
    )
    with (tmp_path / "confusion.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["actual"] for row in rows[::4]] == names
    assert read(tmp_path / "classes.json")["classes"] == names


@pytest.mark.parametrize("crop", [23, 29])
def test_crops_that_the_network_was_not_trained_on_are_one_line(copied: Path, crop: int) -> None:
    edit_params(Path("params.yaml"), mlp300_mnist={"evaluation": {"views": "ten_crop", "crop": crop}})
    with pytest.raises(UserError) as caught:
        run("mlp300-mnist")
    line = (
        f"models/mlp.yaml: mlp300-mnist.evaluation.crop is {crop}; expected 24, the side of the images it is trained on"
    )
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("on", "have"),
    [
        ({"split": "train", "first": 1990, "count": 11}, "images 1,991 to 2,001 of the training file; expected images"),
        ({"split": "test", "first": 500, "count": 1}, "images 501 to 501 of the test file; expected images among the"),
    ],
)
def test_images_of_the_claim_that_are_not_there_are_one_line(copied: Path, on: dict[str, Any], have: str) -> None:
    changes = {"evaluation.claimed_on": on, "claim.test_images": on["count"]}
    edit_params(Path("params.yaml"), linear_mnist=changes)
    for check in (
        lambda: run("linear-mnist"),
        lambda: checks.check(Inputs.of(planned("linear-mnist")[0]), "laptop"),  # before training
    ):
        with pytest.raises(UserError) as caught:
            check()
        assert str(caught.value).startswith(f"models/linear.yaml: linear-mnist.evaluation.claimed_on is {have}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_damaged_split_is_one_line(copied: Path, mnist_slice: Path, split: str) -> None:
    Path("datasets").unlink()
    shutil.copytree(mnist_slice, "datasets")
    truncate(Path(f"datasets/mnist/{split}_images.npy"))
    line = rf"^datasets/mnist/{split}_images.npy: expected sha256 \w+, found \w+; "
    with pytest.raises(UserError, match=line) as caught:
        run("linear-mnist")
    assert "\n" not in str(caught.value)


def test_a_seed_that_is_gone_leaves_nothing_behind(copied: Path) -> None:
    edit_params(Path("params.yaml"), linear_mnist={"budgets.laptop": {"epochs": 1, "seeds": [5]}})
    run("linear-mnist")
    assert [path.name for path in Path("evaluations/linear-mnist/trials").iterdir()] == ["seed-5"]
    assert read(Path("evaluations/linear-mnist/metrics.json"))["seeds"] == 1
    templates = arrays(Path("evaluations/linear-mnist/first_layer.npz"))["templates"]
    np.testing.assert_allclose(templates, weights("linear-mnist", 5)["1.weight"].reshape(10, 1, 28, 28))


def test_the_command_says_one_line_and_exits_2(copied: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pipelines.evaluate", "linear-mnits"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: benchmark linear-mnits is not known; did you mean linear-mnist? (allowed: ")
    assert done.stderr.count("\n") == 1


# --- the test split ----------------------------------------------------------------------------------------------


def opens_test(path: Path) -> bool:
    """Whether a module asks for ``split("test")``."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "split"]
    return any(isinstance(arg, ast.Constant) and arg.value == "test" for call in named for arg in call.args)


LOADED = """
    import sys
    from pathlib import Path
    from pipelines import evaluate
    from pipelines.config.params import load_params
    from pipelines.training import spec, store
    from pipelines.training.inputs import Inputs
    one, *_ = spec.trials(load_params(), "linear-mnist", data=Path("datasets"), root=store.default())
    assert not Inputs.of(one).load(evaluate._files(one).weights).training
    assert not {"pytorch_lightning", "pipelines.training.trainer", "pipelines.training.core"} & set(sys.modules)
"""


def test_a_network_is_loaded_without_the_trainer(evaluated: Path) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(LOADED)], env=environment(), check=True)


def test_evaluate_alone_opens_the_test_split() -> None:
    assert [path.name for path in sorted((ROOT / "pipelines").glob("*.py")) if opens_test(path)] == ["evaluate.py"]
