"""Guards the check before training: whatever cannot be trained is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.command.errors import UserError
from pipelines.training import checks
from pipelines.training.inputs import Inputs
from tests.training.trials import planned

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "batch larger than the data": ({"recipe.batch": 4000}, "recipe.batch is 4000; expected at most the 300"),
    "unknown model": ({"model.name": "lenet6"}, "model lenet6 is not known; did you mean lenet"),
    "unknown option": ({"model.options": {"haed": "softmax"}}, "option haed is not known; did you mean head"),
    "bad name": ({"model.options": {"head": "svm"}}, ".model.options.head is 'svm'; allowed: rbf, softmax"),
    "unit too few": (
        {"model": {"family": "mlp", "name": "mlp", "options": {"hidden": [0]}}},
        ".model: mlp: hidden [0]",
    ),
    "first beyond the data": ({"recipe.subset": {"first": 2001}}, "first is 2001; expected at most the 2,000 training"),
    "hold_out of all": (
        {"recipe.subset": {"hold_out": 2000}},
        "hold_out is 2000; expected at most 1,999, one less than",
    ),
    "sample beyond the rest": (
        {"recipe.subset": {"skip_every": 2, "sample": 1001}},
        "sample is 1001; expected at most the 1,000 that the rest of the subset leaves of the 2,000 training images of",
    ),
    "a rest of none": ({"recipe.subset": {"first": 1, "skip_every": 2}}, "recipe.subset leaves none of the 2,000"),
    "budget beyond the recipe's": (
        {"budgets.laptop": {"epochs": 1, "seeds": [0], "train_images": 301}},
        "budgets.laptop.train_images is 301; expected at most 300 of the 2,000 training images of mnist",
    ),
    "samples beyond the data": (
        {"recipe.optimiser": {"name": "sdlm", "lr": 0.01, "samples": 301}},
        "recipe.optimiser.samples is 301; expected at most 300 of the 2,000 training images of mnist",
    ),
    "impossible size": (
        {"model": {"family": "mlp", "name": "mlp", "options": {"hidden": [10**12]}}},
        "it is too large for",
    ),
    "unknown transform": ({"recipe.preprocess": [{"skale": {}}]}, "operation skale is not known"),
    "misspelt argument": ({"recipe.preprocess": [{"scale": {"lo": 0, "high": 1}}]}, "scale.lo is not known"),
    "misfitting shape": ({"recipe.preprocess": [{"scale": {"low": 0, "high": 1}}, {"pad": {"pixels": 1}}]}, "pad"),
    "crop too large": ({"recipe.augment": [{"crop": {"size": 40}}]}, "size is 40; expected at most 32"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_trained_is_said_in_one_line_before_it_starts(project: Path, name: str) -> None:
    changes, words = BAD[name]
    one = planned(changes)
    with pytest.raises(UserError) as caught:
        checks.check(Inputs.of(one), "laptop")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert ".yaml: lenet5-mnist" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"recipe.optimiser": {"name": "sgd", "lr": 0.1, "layer_decay": {"hed": 0.1}}},
            "models/lenet.yaml: lenet5-mnist.recipe.optimiser: layer_decay names hed; expected layers of the model: c1",
        ),
        (
            {"recipe.optimiser": {"name": "sgd", "lr": 0.1, "layer_lr": {"hed": 0.1}}},
            "models/lenet.yaml: lenet5-mnist.recipe.optimiser: layer_lr names hed; expected layers of the model: c1",
        ),
        (  # a container has no weights of its own
            {"recipe.optimiser": {"name": "sgd", "lr": 0.1, "layer_decay": {"full": 0.1}}},
            "models/lenet.yaml: lenet5-mnist.recipe.optimiser: layer_decay names full; expected layers of the model: ",
        ),
        (
            {
                "model": {"family": "alexnet", "name": "alexnet"},
                "recipe.preprocess": [{"resize": {"size": 224}}],
                "recipe.optimiser": {"name": "sdlm", "lr": 0.1, "samples": 100},
            },
            "models/alexnet.yaml: lenet5-mnist.recipe.optimiser: ",
        ),
    ],
)
def test_an_optimiser_that_does_not_fit_the_model_is_one_line(
    project: Path, changes: dict[str, Any], line: str
) -> None:
    one = planned(changes)
    with pytest.raises(UserError) as caught:
        checks.check(Inputs.of(one), "laptop")
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
