"""Guards what a network is built and fitted from: its options, and the images that it trains on alone."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import shutil
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.cluster import estimate
from pipelines.command.errors import UserError
from pipelines.command.files import read_lines, sealing
from pipelines.config import schema
from pipelines.config.benchmarks import Model
from pipelines.data import datasets, subsets, transforms
from pipelines.training import inputs, trainer
from pipelines.training.checkpoint import Worker
from pipelines.training.inputs import Inputs
from pipelines.training.spec import Spec
from tests.conftest import ROOT
from tests.training.trials import planned, same, weights


def test_what_is_fitted_is_kept_under_the_code_that_fitted_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not under the file as it has become since."""
    one = planned()
    name, loaded = "pipelines.data.transforms", inputs.LOADED["pipelines.data.transforms"]
    for source, kept in ((loaded, 1), (loaded + "# a word", 1), (loaded.replace(" / 255)", " / 256)"), 2)):
        monkeypatch.setattr(inputs, "LOADED", inputs.LOADED | {name: source})
        assert Inputs.of(one).transforms
        assert len(list((one.store / "fitted").glob("*.pt"))) == kept


def test_preprocessing_is_fitted_on_the_images_that_are_trained_on(project: Path) -> None:
    """A mean, or ZCA, that has seen the validation slice would have been told of it."""
    changes = {"recipe.preprocess": [{"raw": {}}, {"mean_subtract": {"per": "pixel"}}]}
    one = planned({**changes, "recipe.subset": {"hold_out": 400}})
    dataset = datasets.open_dataset(one.data, "mnist")
    images = np.array(dataset.split("train")[0])
    kept = np.setdiff1d(np.arange(2000), subsets.validation(2000, 400))
    fitted, _ = Inputs.of(one).transforms
    seen = fitted(torch.from_numpy(images[:5])).numpy()
    np.testing.assert_allclose(seen, images[:5] - images[kept].mean(0, dtype=np.float64), atol=1e-3)
    assert np.abs(images.mean(0, dtype=np.float64) - images[kept].mean(0, dtype=np.float64)).max() > 0.1


# --- preprocessing that is dear, done once ---

WHITENED: dict[str, Any] = {
    "recipe.preprocess": [{"raw": {}}, {"center_crop": {"size": 10}}, {"gcn": {}}, {"zca": {}}],
    "recipe.batch": 200,
    "recipe.subset": {"skip_every": 2},  # so that positions are not places
    "budgets.laptop": {"epochs": 2, "seeds": [0]},  # as many images as there are
}


def whitened(changes: Mapping[str, Any] | None = None, *, seed: int = 0, root: str = "store") -> Spec:
    return planned({**WHITENED, **(changes or {})}, name="linear-mnist", seed=seed, root=root)


def kept(one: Spec) -> list[Path]:
    return sorted((one.store / "fitted").glob("*.npy"))


def test_images_that_are_preprocessed_once_train_to_the_very_same_weights(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = whitened(), whitened(seed=1)
    trainer.run(one)
    (images,) = kept(one)
    made = images.stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(transforms.ZCA, "forward", None)  # the second seed does without
        with pytest.raises(TypeError):  # but for the check of bits
            trainer.run(other)
        patched.setattr(inputs, "_alike", lambda *_: True)
        trainer.run(other)
    assert kept(one) == [images] and images.stat().st_mtime_ns == made
    monkeypatch.setattr(transforms.ZCA, "dear", False)
    for once in (one, other):
        shutil.rmtree("each", ignore_errors=True)
        each = whitened(seed=once.seed, root="each")
        shutil.copytree(once.store / "fitted", each.store / "fitted", ignore=shutil.ignore_patterns("*.npy"))
        trainer.run(each)
        assert same(weights(once.files), weights(each.files))
        losses = [[point["loss"] for point in read_lines(files.curve)] for files in (once.files, each.files)]
        assert losses[0] == losses[1]
    assert kept(each) == []


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_share_what_is_preprocessed_once(project: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(inputs, "_alike", lambda *_: True)  # a product of 50 rows may have bits of its own
    one = whitened({"resources.workers": workers})
    found, parts = Inputs.of(one), []
    alone, _ = trainer.prepare(one, found, Worker())
    for rank in range(workers):
        loader, _ = trainer.prepare(one, found, Worker(rank=rank, workers=workers))
        assert loader.images.dtype == torch.float32 and len(loader.preprocess) == 0
        parts.append(list(loader))
    for number, (images, labels) in enumerate(alone):
        assert torch.equal(images, torch.cat([part[number][0] for part in parts]))
        assert torch.equal(labels, torch.cat([part[number][1] for part in parts]))


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe.preprocess": [{"raw": {}}, {"gcn": {}}]},  # cheap
        {"budgets.laptop": {"epochs": 1, "seeds": [0]}},  # shorter than the preparation
        {"budgets.laptop": {"epochs": 2, "seeds": [0], "train_images": 999}},
    ],
)
def test_what_does_not_pay_is_not_done_once(project: Path, changes: dict[str, Any]) -> None:
    one = whitened(changes)
    assert Inputs.of(one).preprocessed(one) is None and kept(one) == []


@pytest.mark.parametrize(("batch", "size"), [(200, 200), (300, 100)])
def test_images_of_other_bits_are_not_trained_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, batch: int, size: int
) -> None:
    """Several threads divide a product; few rows, as in a last batch, are multiplied otherwise on some processors."""
    one = whitened()
    for threads in (None, 2):
        assert Inputs.of(one).preprocessed(dataclasses.replace(one, threads=threads)) is None
    assert kept(one) == []
    assert Inputs.of(one).preprocessed(one) is not None and len(kept(one)) == 1
    one, whiten = whitened({"recipe.batch": batch}), transforms.ZCA.forward
    monkeypatch.setattr(transforms.ZCA, "forward", lambda self, some: whiten(self, some) + (len(some) == size) / 64)
    assert Inputs.of(one).preprocessed(one) is None and len(kept(one)) == 1


def test_a_rest_is_preprocessed_among_as_many_as_the_others(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2,000 images by the 600."""
    one, whiten, sizes = whitened({"recipe.batch": 600}), transforms.ZCA.forward, list[int]()
    found = Inputs.of(one)
    monkeypatch.setattr(inputs, "_alike", lambda *_: True)
    preprocess, _ = found.transforms

    def noted(self: transforms.ZCA, some: torch.Tensor) -> torch.Tensor:
        sizes.append(len(some))
        return whiten(self, some)

    monkeypatch.setattr(transforms.ZCA, "forward", noted)
    images = found.preprocessed(one)
    assert images is not None and sizes == [600] * 4
    expected = preprocess(torch.from_numpy(np.array(found.dataset.split("train")[0])))
    torch.testing.assert_close(torch.from_numpy(np.array(images)), expected)


def one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def other_shape(path: Path) -> None:
    with sealing(path) as file:
        np.save(file, np.zeros((2000, 1, 28, 27), np.float32))


@pytest.mark.parametrize("damage", [one_bit, other_shape, lambda path: os.truncate(path, 2000), Path.unlink])
def test_preprocessed_images_that_are_damaged_are_made_again(
    project: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    one = whitened()
    found = Inputs.of(one)
    before = np.array(found.preprocessed(one))
    (path,) = kept(one)
    damage(path)
    np.testing.assert_array_equal(found.preprocessed(one), before)
    said = capsys.readouterr().out
    assert said == "" if damage is Path.unlink else said.endswith("set aside, and made again\n")


def test_the_estimate_of_the_disk_counts_what_is_preprocessed_once(project: Path) -> None:
    once, short = whitened(), whitened({"budgets.laptop": {"epochs": 1, "seeds": [0]}})
    matrix = 4 * 784 * 784
    assert estimate._fitted_bytes([short]) == matrix
    assert estimate._fitted_bytes([once, short, once]) == matrix + 4 * 784 * 2000


# --- the network's options ---

NO_BOOLEANS = ["no", "false", "off", "0", 0, 1, 1.0, math.nan, {}, [], {"a": True}, None]


OPTIONS: list[tuple[str, dict[str, Any], str, Sequence[Any], str]] = [
    ("allcnn", {}, "logits_relu", NO_BOOLEANS, "expected true or false"),
    ("allcnn", {}, "dropout", NO_BOOLEANS, "expected true or false"),
    ("allcnn", {}, "conv7_padding", [True, "1", 1.0, None, {}], "expected a whole number"),
    ("allcnn", {}, "base", [True, "D", 3, None, {}, ["A"]], "allowed: A, B, C"),
    ("allcnn", {}, "variant", ["pooled"], "allowed: allcnn, base, convpool, strided"),
    ("allcnn", {}, "init", ["lsuv"], "allowed: caffe, he, normal005, xavier"),
    ("alexnet", {}, "towers", [3, "2"], "allowed: 1, 2"),
    ("alexnet", {}, "bias", ["1", True, None, {}, [0.1]], "expected a number"),
    ("alexnet", {}, "bias", [math.nan, math.inf, -math.inf, 10**400], "expected a finite number"),
    ("lenet1989", {}, "output", ["relu"], "allowed: linear, tanh"),
    ("lenet1989", {}, "init", ["he"], "allowed: fan_in, sqrt_fan_in"),
    ("mlp", {}, "output", ["softmax"], "allowed: linear, tanh"),
    ("mlp", {}, "hidden", ["300", 300, None, {}], "expected a list"),
    ("mlp", {}, "hidden[1]", [[300, "100"], [300, 1.0], [300, True], [300, None]], "expected a whole number"),
]


@pytest.mark.parametrize(("name", "given", "option", "values", "words"), OPTIONS)
def test_an_option_of_another_type_is_one_line(
    project: Path, name: str, given: dict[str, Any], option: str, values: Sequence[Any], words: str
) -> None:
    """YAML 1.2's "no" is text, and would be true to a network."""
    one = planned({})
    for value in values:
        options = {**given, option.partition("[")[0]: value}
        model = Model(family=name, name=name, options=options)
        with pytest.raises(UserError) as caught:
            inputs.build_network(dataclasses.replace(one.benchmark, model=model), 10, (1, 227, 227))
        line = str(caught.value)
        assert line.startswith(f"models/{name}.yaml: lenet5-mnist.model.options.{option} is "), value
        assert words in line and "\n" not in line


def test_a_builder_says_what_the_range_of_an_option_is(project: Path) -> None:
    one = planned({})
    for option, value in (("dropout", 1.5), ("dropout", -0.1), ("fc_std", -1.0), ("bias", 1e39)):
        model = Model(family="alexnet", name="alexnet", options={option: value})
        with pytest.raises(UserError, match=r"^models/alexnet\.yaml: lenet5-mnist\.model(: alexnet|\.options\.)"):
            inputs.build_network(dataclasses.replace(one.benchmark, model=model), 10, (1, 67, 67))


def test_every_option_of_every_builder_can_be_checked() -> None:
    """Its annotation is one that a value from params.yaml is held to."""
    for path in (ROOT / "models").glob("[a-z]*.py"):
        for name, build in inputs.builders(path.stem).items():
            if "in_shape" in inspect.signature(build).parameters:
                for option, hint in typing.get_type_hints(build).items():
                    if option not in ("classes", "in_shape", "return"):
                        with pytest.raises(UserError, match=f"^{name} is "):
                            schema.convert(hint, {"a": "mapping"}, name)
