"""Guards each row of models/*.yaml as it stands: its model, loss, optimiser, preprocessing and views work together.

Two steps on invented images of the right shape, in small batches, with no test image in reach; whether a net learns is
not asked here. An ensemble must learn, or its members would not disagree: tests/training/test_boosting.py trains it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pipelines.command.files import read_lines
from pipelines.config.benchmarks import Budget
from pipelines.config.params import load_params
from pipelines.data import datasets
from pipelines.training import spec, store, trainer
from pipelines.training.inputs import Inputs
from pipelines.training.predictions import Examiner, predict
from tests import projects
from tests.conftest import ROOT, THREADS

PARAMS = load_params(ROOT / "params.yaml")
SHAPES = {one.dataset: projects.shape(PARAMS.datasets[one.dataset]) for one in PARAMS.benchmarks.values()}
TEST, BATCH = 3, 8  # at most


def few(shape: tuple[int, int, int]) -> int:
    """Training images to invent: of photographs, the usual number would be too much."""
    return 520 if shape[1] < 64 else 40


def kinds() -> Iterator[str]:
    """A row of each net and recipe: those that differ in the data, or in the way of testing, are trained once."""
    seen = []
    for name, row in PARAMS.benchmarks.items():
        kind = (row.model, row.recipe, SHAPES[row.dataset])
        if row.recipe.boosting is None and kind not in seen:
            seen.append(kind)
            yield name


@pytest.fixture(scope="module")
def invented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, random = tmp_path_factory.mktemp("invented"), np.random.default_rng(0)

    def split(name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        return random.integers(0, 256, (count, *SHAPES[name]), dtype=np.uint8), np.arange(count) % 10

    for name in SHAPES:
        classes = [str(number) for number in range(projects.classes(name))]
        datasets.write_dataset(
            root, name=name, classes=classes, train=split(name, few(SHAPES[name])), test=split(name, TEST)
        )
    return root


@contextmanager
def hidden(root: Path) -> Iterator[None]:
    """Take every file of a test split away, and bring it back."""
    files = list(root.glob("*/test_*"))
    assert len(files) == 2 * len(SHAPES)
    for file in files:
        file.rename(file.with_name(f"hidden_{file.name}"))
    try:
        yield
    finally:
        for file in files:
            file.with_name(f"hidden_{file.name}").rename(file)


@pytest.mark.parametrize("name", list(kinds()))
def test_it_trains_and_is_evaluated_as_its_block_says(
    name: str, invented: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(invented)  # one store for all: ZCA is fitted once
    benchmark = PARAMS.benchmarks[name]
    recipe = dataclasses.replace(benchmark.recipe, batch=min(benchmark.recipe.batch, BATCH))
    short = Budget(epochs=1, seeds=(0,), train_images=2 * recipe.batch)
    alone = dataclasses.replace(benchmark.resources, workers=1)  # several workers: tests/cluster/test_distributed.py
    budgets = benchmark.budgets | {"short": short}
    benchmark = dataclasses.replace(benchmark, recipe=recipe, budgets=budgets, resources=alone)
    one = spec.plan(benchmark, "short", 0, data=invented, root=store.default(), threads=THREADS)
    with hidden(invented):
        files = trainer.run(one)
    (point,) = read_lines(files.curve)
    assert np.isfinite(point["loss"]) and point["lr"] > 0
    inputs = Inputs.of(one)
    model = inputs.load(files.weights)
    assert all(weight.isfinite().all() for weight in model.parameters())
    found = predict(Examiner(inputs, model, 0, "cpu", one.precision), "test")
    assert round(found.error * TEST / 100, 6) in range(TEST + 1)  # whole images
