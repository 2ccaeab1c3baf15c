"""Guards what a network is built and fitted from: its options, and the images that it trains on alone."""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.command.errors import UserError
from pipelines.config import schema
from pipelines.config.benchmarks import Model
from pipelines.data import datasets, subsets
from pipelines.training import core, inputs
from pipelines.training.inputs import Inputs
from tests.conftest import ROOT
from tests.training.trials import planned


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


@pytest.mark.parametrize(
    ("images", "workers", "kept"), [(1999, 1, torch.uint8), (2000, 1, torch.float32), (2000, 4, torch.float32)]
)
def test_a_trial_that_sees_as_many_images_as_there_are_whitens_each_once(
    project: Path, images: int, workers: int, kept: torch.dtype
) -> None:
    """Each of several workers then has what one has."""
    budget = {"epochs": 1, "seeds": [0], "train_images": images}
    changes = {"recipe.preprocess": [{"raw": {}}, {"zca": {}}], "recipe.subset": {}, "budgets.laptop": budget}
    one = planned(changes, name="linear-mnist")
    loader, _ = core.assemble(one, Inputs.of(one), workers=workers)
    assert loader.images.dtype == kept
    assert core.assemble(one, Inputs.of(one), once=False)[0].images.dtype == torch.uint8


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


class Thresholded(torch.nn.Module):
    """Looks at the values of its images, which the meta device has not."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) if images.max() > 0 else -images.flatten(1)


def test_a_network_that_looks_at_values_counts_as_a_large_one() -> None:
    assert inputs.forward_flops(Thresholded, (1, 4, 4)) == inputs.UNKNOWN_FLOPS
    assert (
        inputs.forward_flops(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 10)), (1, 4, 4)) == 320
    )
