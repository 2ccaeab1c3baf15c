"""params.yaml: whatever is wrong with it is one line naming the key, the value and what is allowed."""

from __future__ import annotations

import configparser
import copy
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.serialize import load_yaml, parse_yaml

from pipelines import suite
from pipelines.command import errors
from pipelines.command.errors import UserError
from pipelines.config import schema
from pipelines.config.params import Entry, build_params, load_params, plain, read_params
from pipelines.training import fingerprint
from tests.conftest import ROOT, environment

COMMITTED = ROOT / "params.yaml"
NOTHING = object()  # as a value: take the key away


def changed(place: str, value: Any) -> dict[str, Any]:
    """The committed params.yaml with one change; ``place`` is a path of keys like a/b/c."""
    found = copy.deepcopy(read_params(COMMITTED))
    *parents, last = place.split("/")
    target: Any = found
    for parent in parents:
        target = target.setdefault(parent, {})
    if value is NOTHING:
        del target[last]
    else:
        target[last] = value
    return found


def complaint(found: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        build_params(found)
    line = str(caught.value)
    assert "\n" not in line
    return line


# --- what a user may have got wrong ------------------------------------------------------------------------------

B = "benchmarks/lenet5-mnist"
ON = f"{B}/evaluation/claimed_on"
OPTIMISER, SCHEDULE, LAPTOP = f"{B}/recipe/optimiser", f"{B}/recipe/schedule", f"{B}/budgets/laptop"
BEGINS = "; expected points that begin at epoch 0, as in [[0, 1.0], [20, 0.1]]"
RISING = "; expected rising epochs"
PER_CENT = "; expected per cent, 0 to 100"
WHOLE = "; expected a whole number"
FLOAT32 = "; expected 0, or 1.2e-38 to 3.4e+38 in size"
BOOL = "; expected true or false"

# where it is wrong, the value there, and the rest of the line after "benchmarks.lenet5-mnist.…"
WRONG_VALUES: list[tuple[str, Any, str]] = [
    # names
    (
        f"{B}/dataset",
        "mnits",
        ": dataset mnits is not known; did you mean mnist? (allowed: cifar10, imagenette, mnist)",
    ),
    (f"{B}/dataset", 5, " is 5; expected text"),
    (f"{B}/dataset", None, " is null; expected text"),
    (
        f"{B}/model/family",
        "lenett",
        ": model family lenett is not known; did you mean lenet? (allowed: alexnet, allcnn,",
    ),
    (f"{B}/model/family", "__init__", ": model family __init__ is not known; allowed: alexnet, allcnn, convnetjs,"),
    (f"{B}/model/family", ["lenet"], " is ['lenet']; expected text"),
    (f"{B}/model/options", [1], " is [1]; expected a mapping"),
    (f"{OPTIMISER}/name", "sdg", " is 'sdg'; did you mean sgd? (allowed: adadelta, sdlm, sgd)"),
    (f"{OPTIMISER}/name", "adam", " is 'adam'; allowed: adadelta, sdlm, sgd"),
    (f"{OPTIMISER}/name", None, " is null; allowed: adadelta, sdlm, sgd"),
    (f"{OPTIMISER}/name", NOTHING, " is missing; expected one of sgd, adadelta"),
    (f"{B}/recipe/loss", "hinge", " is 'hinge'; allowed: cross_entropy, map, mse"),
    (f"{B}/recipe/precision", "fp16", " is 'fp16'; did you mean bf16? (allowed: bf16, fp32)"),
    (f"{B}/claim/metric", "eror", " is 'eror'; did you mean error? (allowed: accuracy, error)"),
    (f"{B}/claim/certainty", "sure", " is 'sure'; allowed: computed, read, recalled"),
    (f"{B}/evaluation/views", "six", " is 'six'; allowed: random, single, ten_crop"),
    ("datasets/mnist/kind", "minst", " is 'minst'; did you mean mnist? (allowed: cifar10, imagefolder, mnist)"),
    # rates
    (f"{OPTIMISER}/lr", -0.1, " is -0.1; expected a number above 0"),
    (f"{OPTIMISER}/lr", 0, " is 0.0; expected a number above 0"),
    (f"{OPTIMISER}/lr", math.nan, " is nan; expected a finite number"),
    (f"{OPTIMISER}/lr", math.inf, " is inf; expected a finite number"),
    (f"{OPTIMISER}/lr", 10**400, " is 1" + "0" * 56 + "...; expected a finite number"),
    (f"{OPTIMISER}/lr", "fast", " is 'fast'; expected a number"),
    (f"{OPTIMISER}/lr", "0.02", " is '0.02'; expected a number, without the quotes"),
    (f"{OPTIMISER}/lr", True, " is true; expected a number"),
    (f"{OPTIMISER}/lr", "0,02", " is '0,02'; expected a number, with a decimal point"),
    # what YAML reads in {name: sgd, lr: 0,02}
    (OPTIMISER, {"name": "sgd", "lr": 0, 2: None}, ".2 is not known; expected a decimal point, if a number before it "),
    (f"{OPTIMISER}/lr", [0.1], " is [0.1]; expected a number"),
    (f"{OPTIMISER}/lr", NOTHING, " is missing; expected a number"),
    (f"{OPTIMISER}/lr", 1e308, f" is 1e+308{FLOAT32}"),
    (f"{OPTIMISER}/lr", 1e-300, f" is 1e-300{FLOAT32}"),
    (f"{OPTIMISER}/lr", "1_0", " is '1_0'; expected a number, without underscores"),
    (f"{OPTIMISER}/momentum", 1.0, " is 1.0; expected at least 0 and below 1"),
    (f"{OPTIMISER}/momentum", -0.9, " is -0.9; expected at least 0 and below 1"),
    (f"{OPTIMISER}/weight_decay", -0.001, " is -0.001; expected at least 0"),
    (f"{OPTIMISER}/rho", 1.5, " is 1.5; expected a number between 0 and 1"),
    (f"{OPTIMISER}/eps", 0.0, " is 0.0; expected a number above 0"),
    (f"{OPTIMISER}/nesterov", 1, f" is 1{BOOL}"),
    (f"{OPTIMISER}/nesterov", "false", f" is 'false'{BOOL}, without the quotes"),
    (f"{OPTIMISER}/decay_biases", "off", f" is 'off'{BOOL}; YAML 1.2 reads off as text"),
    (OPTIMISER, {"name": "sgd", "lr": 1, "nesterov": True}, ".nesterov is true; expected it beside a momentum above 0"),
    (f"{B}/recipe/shuffle", "no", f" is 'no'{BOOL}; YAML 1.2 reads no as text"),
    (f"{B}/recipe/channels_last", "Yes", f" is 'Yes'{BOOL}; YAML 1.2 reads Yes as text"),
    (f"{B}/recipe/channels_last", "maybe", f" is 'maybe'{BOOL}"),
    (f"{B}/recipe/channels_last", math.nan, f" is nan{BOOL}"),
    (f"{B}/recipe/channels_last", {}, f" is {{}}{BOOL}"),
    (f"{B}/recipe/channels_last", 0, f" is 0{BOOL}"),
    (f"{B}/recipe/channels_last", None, f" is null{BOOL}"),
    (f"{ON}", {"split": "test", "count": 9, "drawn": "on"}, f".drawn is 'on'{BOOL}; YAML 1.2 reads on as text"),
    (f"{B}/recipe/loss", False, " is false; allowed: cross_entropy, map, mse"),
    (f"{B}/label", False, " is false; expected text, in quotes"),
    (f"{B}/label", 1998, " is 1998; expected text, in quotes"),
    (f"{OPTIMISER}/layer_decay", {5: 0.1}, " has the key 5; expected text, in quotes where YAML reads something"),
    (f"{OPTIMISER}/layer_decay", {"a\x1b\n": -1}, ".'a\\x1b\\n' is -1.0; expected at least 0"),
    # what no model and no transform may be given, whatever it is called
    (f"{B}/model/options", {"bias": math.inf}, ".bias is inf; expected a finite number"),
    (f"{B}/model/options", {"bias": -math.nan}, ".bias is nan; expected a finite number"),
    (f"{B}/model/options", {"bias": 10**400}, f".bias is 1{'0' * 56}...; expected a whole number within ±2^63"),
    (f"{B}/model/options", {"bias": [0, {"a": [1e39]}]}, ".bias is [0, {'a': [1e+39]}]; expected 0, or 1.2e-38 to 3.4"),
    (f"{B}/model/options", {"bias": [{None: 1}]}, ".bias is [{null: 1}]; expected text for a key, not null"),
    (f"{B}/model/options", {"head": "a\x1b[31m"}, ".head is 'a\\x1b[31m'; expected text without control characters"),
    (f"{B}/model/options", {1: 1}, " has the key 1; expected text, in quotes"),
    (f"{B}/recipe/augment", [{"shift": {"pixels": math.inf}}], "[0].shift.pixels is inf; expected a finite number"),
    (f"{B}/recipe/augment", [{"flip": None}], "[0].flip is null; expected a mapping"),
    (f"{B}/recipe/augment", [{}], "[0] is {}; expected one transform"),
    (f"{OPTIMISER}/mu", 0, " is 0.0; expected a number above 0"),
    (f"{OPTIMISER}/samples", 0, " is 0; expected at least 1"),
    (f"{OPTIMISER}/samples", 0.5, f" is 0.5{WHOLE}"),
    (f"{B}/recipe/map_constant", 0, " is 0.0; expected a number above 0"),
    (f"{B}/recipe/map_constant", "far", " is 'far'; expected a number"),
    # what is counted
    (f"{B}/recipe/batch", 0, " is 0; expected at least 1"),
    (f"{B}/recipe/batch", -32, " is -32; expected at least 1"),
    (f"{B}/recipe/batch", 32.5, " is 32.5; expected a whole number"),
    (f"{B}/recipe/batch", "32", " is '32'; expected a whole number, without the quotes"),
    (f"{B}/recipe/batch", True, " is true; expected a whole number"),
    (f"{LAPTOP}/epochs", 0, " is 0; expected at least 1"),
    (f"{LAPTOP}/epochs", 10**400, f" is 1{'0' * 56}...; expected a whole number within ±2^63"),
    (f"{LAPTOP}/epochs", 2**63, " is 9223372036854775808; expected a whole number within ±2^63"),
    (f"{LAPTOP}/epochs", 10**9, " is 1000000000; expected at most 1,000,000"),
    (f"{LAPTOP}/epochs", 1.5, f" is 1.5{WHOLE}"),
    (f"{LAPTOP}/epochs", "ten", f" is 'ten'{WHOLE}"),
    (f"{LAPTOP}/train_images", 0, " is 0; expected at least 1, or nothing for all"),
    (f"{B}/budgets/paper/train_images", 5000, " is 5000; expected nothing: the paper's budget is never cut"),
    (f"{LAPTOP}/seeds", [], " is []; expected at least one seed"),
    (f"{LAPTOP}/seeds", [0, 1, 1, 0], " names 0, 1 more than once; expected distinct seeds"),
    (f"{LAPTOP}/seeds", [0, -1], " is [0, -1]; expected whole numbers from 0"),
    (f"{LAPTOP}/seeds", [0, 0.5], f"[1] is 0.5{WHOLE}"),
    (f"{LAPTOP}/seeds", [False, 2], f"[0] is false{WHOLE}"),
    (f"{LAPTOP}/seeds", ["a"], f"[0] is 'a'{WHOLE}"),
    (f"{LAPTOP}/seeds", 5, " is 5; expected a list"),
    (f"{LAPTOP}/seeds", "0, 1", " is '0, 1'; expected a list"),
    (f"{B}/recipe/subset", {"skip_every": 1}, ".skip_every is 1; expected 2 or more"),
    (f"{B}/recipe/subset", {"first": 0}, ".first is 0; expected 1 or more"),
    (
        f"{B}/recipe/subset",
        {"first": 9, "sample": 10},
        ".sample is 10; expected at most 9, the images that first leaves",
    ),
    (f"{B}/evaluation", {"views": "random", "count": 0}, ".count is 0; expected at least 1"),
    (f"{B}/evaluation", {"views": "random", "count": 10**6}, ".count is 1000000; expected at most 1,000"),
    (f"{B}/evaluation", {"views": "ten_crop"}, ".crop is missing; expected the pixels of the ten crops"),
    (f"{B}/evaluation", {"views": "ten_crop", "crop": 0}, ".crop is 0; expected at least 1 pixel"),
    (f"{B}/evaluation", {"views": "single", "crop": 28}, ".crop is 28; expected it beside views: ten_crop alone"),
    (f"{B}/evaluation", {"views": "single", "count": 3}, ".count is 3; expected it beside views: random alone"),
    (f"{B}/evaluation", {"views": "ten_crop", "crop": 24, "count": 10}, ".count is 10; expected it beside views: rand"),
    (f"{ON}", {"split": "val", "count": 9}, ".split is 'val'; allowed: test, train"),
    (f"{ON}", {"split": "test"}, ".count is missing; expected a whole number"),
    (f"{ON}", {"count": 9}, ".split is missing; expected one of train, test"),
    (f"{ON}", {"split": "test", "count": 0}, ".count is 0; expected at least 1"),
    (f"{ON}", {"split": "test", "first": -1, "count": 9}, ".first is -1; expected at least 0"),
    (f"{ON}", {"split": "test", "first": 0.5, "count": 9}, f".first is 0.5{WHOLE}"),
    (f"{ON}", {"split": "test", "last": 9}, ".last is not known; "),
    (f"{ON}", [0, 9], " is [0, 9]; expected a mapping"),
    (f"{B}/claim/difference", " ", " is ' '; expected one sentence, or nothing"),
    (f"{B}/claim/difference", "Other images.", " is 'Other images.'; expected it beside evaluation.claimed_on alone"),
    (f"{B}/claim/value", -0.95, f" is -0.95{PER_CENT}"),
    (f"{B}/claim/value", 100.5, f" is 100.5{PER_CENT}"),
    (f"{B}/claim/value", "0.95 %", " is '0.95 %'; expected a number"),
    (f"{B}/claim/test_images", 0, " is 0; expected at least 1"),
    (f"{B}/claim/test_images", 10**12, " is 1000000000000; expected at most 1,000,000,000"),
    (f"{B}/claim/source", " ", " is ' '; expected where the figure stands"),
    (f"{B}/claim/source", "\x9b1m", " is '\\x9b1m'; expected text without control characters"),
    (
        f"{B}/claim/source",
        "a table (place recalled)",
        " says 'recalled'; expected that in certainty, or in protocol, al",
    ),
    (f"{B}/claim/source", "a\u202eb", " is 'a\\u202eb'; expected text without control characters"),
    (f"{B}/claim/protocol", "", " is ''; expected how it was measured"),
    (f"{B}/label", "two\nlines", " is 'two\\nlines'; expected one line"),
    (f"{B}/deviations", ["a", ""], "[1] is ''; expected a sentence"),
    (f"{B}/deviations", ["a", "b", "a"], " has 'a' more than once; expected each once"),
    (f"{B}/claim/source", NOTHING, " is missing; expected text"),
    (f"{B}/claim", NOTHING, " is missing; expected a mapping"),
    (f"{B}/deviations", "none", " is 'none'; expected a list"),
    # schedules
    (f"{SCHEDULE}/points", [], f" is []{BEGINS}"),
    (f"{SCHEDULE}/points", [[1, 1.0]], f" is [[1.0, 1.0]]{BEGINS}"),
    (f"{SCHEDULE}/points", [[0, 1.0], [5, 0.1], [3, 0.01]], f" is [[0.0, 1.0], [5.0, 0.1], [3.0, 0.01]]{RISING}"),
    (f"{SCHEDULE}/points", [[0, 1.0], [5, 0.1], [5, 0.01]], f" is [[0.0, 1.0], [5.0, 0.1], [5.0, 0.01]]{RISING}"),
    (f"{SCHEDULE}/points", [[0, 1.0], [5, -0.1]], " is [[0.0, 1.0], [5.0, -0.1]]; expected factors of at least 0"),
    (f"{SCHEDULE}/points", [[0, 0.0], [5, 0]], " is [[0.0, 0.0], [5.0, 0.0]]; expected a factor above 0"),
    (f"{SCHEDULE}/points", [[0, 1.0], [20, 0.5], [21, 0.0], [90, 0.0]], " has epoch 90; expected none behind 20, budg"),
    (
        SCHEDULE,
        {"points": [[0, 1.0], [21, 0.5]]},
        ".points has epoch 21; expected none behind 20, budgets.paper.epochs",
    ),
    (f"{SCHEDULE}/points", [[0, math.inf]], "[0][1] is inf; expected a finite number"),
    (f"{SCHEDULE}/points", [[0, 1.0, 2.0]], "[0] is [0, 1.0, 2.0]; expected a list of 2"),
    (f"{SCHEDULE}/points", [[0, "1"]], "[0][1] is '1'; expected a number, without the quotes"),
    (f"{SCHEDULE}/between", "step", " is 'step'; allowed: hold, linear"),
    # transforms: their arguments are checked against the images, by training.checks
    (f"{B}/recipe/augment", "flip", " is 'flip'; expected a list"),
    (f"{B}/recipe/augment", ["flip"], "[0] is 'flip'; expected a mapping"),
    (f"{B}/recipe/augment", [{"flip": {}, "shift": {}}], "[0] is {'flip': {}, 'shift': {}}; expected one transform"),
    # resources
    (f"{B}/resources", {"workers": 0}, ".workers is 0; expected at least 1"),
    (f"{B}/resources", {"cpus": 0}, ".cpus is 0; expected at least 1"),
    (f"{B}/resources", {"cpus": 0.5}, f".cpus is 0.5{WHOLE}"),
    (f"{B}/resources", {"gpus": -1}, ".gpus is -1.0; expected at least 0"),
    (f"{B}/resources", {"gpus": 1.5}, ".gpus is 1.5; expected a fraction up to 1, or a whole number"),
    (f"{B}/resources", {"gpus": 1e-9}, ".gpus is 1e-09; expected 0, or at least 0.01"),
    (f"{B}/resources", {"gpus": 1e308}, f".gpus is 1e+308{FLOAT32}"),
    (f"{B}/resources", {"gpus": 1, "gpus_if_any": 1}, ".gpus is 1.0 and gpus_if_any 1.0; expected at most one of the"),
    (f"{B}/resources", {"gpus": 0.5, "workers": 2}, ".gpus is 0.5; expected 0 or a whole number with several workers"),
    (f"{B}/resources", {"gpus_if_any": 0.5, "workers": 2}, ".gpus_if_any is 0.5; expected 0 or a whole number"),
    # the grid of a choice
    (f"{B}/choice", {"rates": []}, ".rates is []; expected at least one rate"),
    (f"{B}/choice", {"rates": [0.1], "mus": [0.1]}, ".mus is [0.1]; expected nothing: recipe.optimiser.name is sgd"),
    (
        f"{B}/choice",
        {"rates": [0.1], "map_constants": [1]},
        ".map_constants is [1.0]; expected nothing: recipe.loss is cross_entropy",
    ),
    (f"{B}/choice", {"rates": [0.1], "batches": [8, 8]}, ".batches is [8, 8]; expected each once"),
    (f"{B}/choice", {"rates": [0.1], "seeds": [-1]}, ".seeds is [-1]; expected whole numbers from 0"),
    (f"{B}/choice", {"rates": [0.1], "seeds": [0, 0]}, ".seeds names 0 more than once; expected distinct seeds"),
    (f"{B}/choice", {"rates": [0.1], "seeds": []}, ".seeds is []; expected at least one seed"),
    (
        f"{B}/choice",
        {"rates": [1.0 + i for i in range(101)], "batches": list(range(1, 11))},
        ".rates, mus, map_constants and batches make 1,010 candidates; expected at most 1,000",
    ),
    (f"{B}/choice", {"rates": [0.1], "batches": [0]}, ".batches is [0]; expected numbers above 0"),
    # datasets
    ("datasets/imagenette/archive", NOTHING, " is null and folder null; expected exactly one of the two"),
    ("datasets/imagenette/archive", "a\0", " is 'a\\x00'; expected text without control characters"),
    ("datasets/imagenette/archive", " ", " is ' '; expected a name"),
    ("datasets/imagenette/train", "", " is ''; expected a name"),
    ("datasets/imagenette/val", "a\nb", " is 'a\\nb'; expected a name"),
    ("datasets/imagenette/size", 4, " is 4; expected at least 8 pixels"),
    ("datasets/imagenette/size", 20000, " is 20000; expected at most 1,024 pixels"),
    (
        "datasets/imagenette",
        {"kind": "imagefolder", "folder": "x", "md5": "0" * 32},
        f".md5 is '{'0' * 32}'; expected it beside archive alone",
    ),
    (
        "datasets/imagenette",
        {"kind": "imagefolder", "folder": "x", "bytes": 5},
        ".bytes is 5; expected it beside archive alone",
    ),
    ("datasets/imagenette/md5", "xyz", " is 'xyz'; expected 32 hexadecimal digits"),
    ("datasets/imagenette/bytes", -4, " is -4; expected at least 1"),
    ("datasets/mnist/archive", "x.tar", " is 'x.tar'; expected none with kind: mnist"),
    ("datasets/mnist/size", 64, " is 64; expected none with kind: mnist"),
    ("datasets/mnist/md5", "0" * 32, f" is '{'0' * 32}'; expected none with kind: mnist"),
    ("datasets/mnist/bytes", 5, " is 5; expected none with kind: mnist"),
    ("datasets/cifar10/train", "a", " is 'a'; expected none with kind: cifar10"),
    ("datasets/cifar10/val", "b", " is 'b'; expected none with kind: cifar10"),
    ("datasets/mnist/kind", "cifar10", " is 'cifar10'; expected mnist, or the name cifar10"),
    ("datasets/mnist", {"kind": "imagefolder", "folder": "x"}, ".kind is 'imagefolder'; expected mnist, or another na"),
    ("datasets/cifar", {"kind": "cifar10"}, ".kind is 'cifar10'; expected imagefolder, or the name cifar10"),
]


@pytest.mark.parametrize(("place", "value", "rest"), WRONG_VALUES)
def test_a_wrong_value_is_one_line_with_its_place_and_what_is_allowed(place: str, value: Any, rest: str) -> None:
    assert complaint(changed(place, value)).startswith(place.replace("/", ".") + rest)


def test_misspelt_keys_are_found_at_every_depth() -> None:
    depths = {
        "suits": "params.yaml: the key suits is not known; did you mean suites?",
        "datasets/imagenette/achive": "datasets.imagenette.achive is not known; did you mean archive?",
        f"{B}/recepe": "benchmarks.lenet5-mnist.recepe is not known; did you mean recipe?",
        f"{B}/model/familly": "benchmarks.lenet5-mnist.model.familly is not known; did you mean family?",
        f"{B}/recipe/optimizer": "benchmarks.lenet5-mnist.recipe.optimizer is not known; did you mean optimiser?",
        f"{OPTIMISER}/momentun": "benchmarks.lenet5-mnist.recipe.optimiser.momentun is not known; did you mean moment",
        f"{B}/recipe/subset/skip_evry": "benchmarks.lenet5-mnist.recipe.subset.skip_evry is not known; did you mean sk",
        f"{LAPTOP}/epocs": "benchmarks.lenet5-mnist.budgets.laptop.epocs is not known; did you mean epochs?",
        f"{B}/resources/cpu": "benchmarks.lenet5-mnist.resources.cpu is not known; did you mean cpus?",
        f"{B}/claim/sorce": "benchmarks.lenet5-mnist.claim.sorce is not known; did you mean source?",
        "suites/laptop/benchmark": "suites.laptop.benchmark is not known; did you mean benchmarks?",
        "suite/nam": "suite.nam is not known; did you mean name?",
        "suite/benchmarks/lenet5-mnist/famly": "suite.benchmarks.lenet5-mnist.famly is not known; did you mean family?",
    }
    for place, expected in depths.items():
        line = complaint(changed(place, {}))
        assert line.startswith(expected)
        assert "(allowed: " in line
    # nothing alike is known: no guess, but the list
    assert complaint(changed(f"{B}/zzz", 1)).startswith(
        "benchmarks.lenet5-mnist.zzz is not known; allowed: budgets, ch"
    )
    # the name is the block's key, not a value in it
    assert complaint(changed(f"{B}/name", "x")).startswith("benchmarks.lenet5-mnist.name is not known; ")


def test_values_that_do_not_go_together() -> None:
    assert complaint(changed(f"{B}/resources", {"workers": 3})) == (
        "benchmarks.lenet5-mnist.recipe.batch is 128; expected a multiple of the 3 workers"
    )
    adadelta = {"name": "adadelta", "lr": 1.0}
    assert complaint(changed(OPTIMISER, adadelta | {"momentum": 0.9})) == (
        "benchmarks.lenet5-mnist.recipe.optimiser.momentum is 0.9; expected none with adadelta"
    )
    assert complaint(changed(OPTIMISER, adadelta | {"nesterov": True})) == (
        "benchmarks.lenet5-mnist.recipe.optimiser.nesterov is true; expected none with adadelta"
    )
    sdlm, others = {"name": "sdlm", "lr": 0.0005}, {"momentum": 0.9, "weight_decay": 0.1, "rho": 0.9, "eps": 1e-6}
    for field, value in others.items():
        line = complaint(changed(OPTIMISER, sdlm | {field: value}))
        assert line == f"benchmarks.lenet5-mnist.recipe.optimiser.{field} is {value}; expected none with sdlm"
    assert complaint(changed(OPTIMISER, sdlm | {"layer_decay": {"full.0": 0.1}})).endswith("; expected none with sdlm")
    assert complaint(changed(OPTIMISER, {"name": "sgd", "lr": 0.1, "mu": 0.1})) == (
        "benchmarks.lenet5-mnist.recipe.optimiser.mu is 0.1; expected none with sgd"
    )
    assert complaint(changed("benchmarks/linear-mnist/recipe/map_constant", 5)) == (
        "benchmarks.linear-mnist.recipe.map_constant is 5.0; expected none with loss: cross_entropy"
    )
    # six identical views would be put on record as "6 random views averaged"
    assert complaint(changed(f"{B}/evaluation", {"views": "random"})) == (
        "benchmarks.lenet5-mnist.evaluation.views is 'random'; "
        "expected recipe.augment to say what the views are drawn from"
    )
    # a figure on other images needs its sentence, and its own count for the claim's sampling error
    assert complaint(changed(ON, {"split": "test", "count": 10000})) == (
        "benchmarks.lenet5-mnist.claim.difference is missing; "
        "expected one sentence on what evaluation.claimed_on changes"
    )
    assert complaint(changed("benchmarks/convnetjs-cifar10/claim/test_images", 10000)) == (
        "benchmarks.convnetjs-cifar10.claim.test_images is 10000; expected 1000, the count of evaluation.claimed_on"
    )
    assert complaint(changed(f"{B}/budgets/paper", NOTHING)) == (
        "benchmarks.lenet5-mnist.budgets.paper is missing; expected the length and seeds as published"
    )
    assert complaint(changed("datasets/imagenette/folder", "x")) == (
        "datasets.imagenette.archive is 'imagenette2-224px.tar' and folder 'x'; expected exactly one of the two"
    )


@pytest.mark.parametrize("name", ["LeNet5", "lenet5_mnist", "lenet5 mnist", "-mnist", "../mnist", ""])
def test_a_benchmark_is_named_as_its_folder_may_be(name: str) -> None:
    block = read_params(COMMITTED)["benchmarks"]["lenet5-mnist"]
    found = changed("benchmarks", {name: block})
    assert complaint(found).startswith(
        f"benchmarks.{name or repr('')}: expected a name of small letters, digits and hyphens"
    )


PAPER = {"epochs": 20, "seeds": [0]}
WRONG_NAMES: list[tuple[str, dict[Any, Any], str]] = [
    ("benchmarks", {"a" * 61: {}}, f"benchmarks.'{'a' * 56}...: expected a name of at most 60 characters"),
    ("benchmarks", {"a\x1b[31m\nb": {}}, "benchmarks.'a\\x1b[31m\\nb': expected a name of small letters"),
    ("benchmarks", {123: {}}, "benchmarks has the key 123; expected text, in quotes where YAML reads something else"),
    ("benchmarks", {None: {}}, "benchmarks has the key null; expected text"),
    ("datasets", {True: {}}, "datasets has the key true; expected text"),
    ("datasets", {"a" * 61: {}}, f"datasets.'{'a' * 56}...: expected a name of small letters"),
    ("suites", {"a: b": {"budget": "paper", "benchmarks": ["linear-mnist"]}}, "suites.a: b: expected a name of small"),
    (
        "suites",
        {1e5: {"budget": "paper", "benchmarks": ["linear-mnist"]}},
        "suites has the key 100000.0; expected text",
    ),
    (f"{B}/budgets", {None: PAPER, "paper": PAPER}, "benchmarks.lenet5-mnist.budgets has the key null; expected text"),
    (
        f"{B}/budgets",
        {"": PAPER, "paper": PAPER},
        "benchmarks.lenet5-mnist.budgets.'': expected a name of small letters",
    ),
    (
        f"{B}/budgets",
        {"a.b": PAPER, "paper": PAPER},
        "benchmarks.lenet5-mnist.budgets.a.b: expected a name of small le",
    ),
]


@pytest.mark.parametrize(("place", "value", "line"), WRONG_NAMES)
def test_what_is_called_by_a_name_has_one_that_every_tool_takes(place: str, value: Any, line: str) -> None:
    assert complaint(changed(place, value)).startswith(line)


@pytest.mark.parametrize("name", ["Pets", "my pets", "-pets", "../data", ".hidden", "a/b", ""])
def test_a_dataset_is_named_as_its_folder_may_be(name: str) -> None:
    line = complaint(changed("datasets", {name: {"kind": "imagefolder", "folder": "pictures"}}))
    assert line.startswith(
        f"datasets.{name or repr('')}: expected a name of small letters, digits, hyphens and underscores"
    )


@pytest.mark.parametrize(
    "folder",
    [
        "datasets/imagenette",
        "./data/../datasets/imagenette/",
        "datasets/imagenette/raw",
        "datasets",
        ".",
        "datasets/mnist",
        "{cwd}/datasets/imagenette",
        "{link}/imagenette",
    ],
)
def test_pictures_do_not_lie_where_fetch_would_replace_them(folder: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(Path("datasets").absolute())
    place = folder.format(cwd=Path.cwd(), link=tmp_path / "link")
    line = complaint(changed("datasets/imagenette", {"kind": "imagefolder", "folder": place}))
    assert line.startswith(f"datasets.imagenette.folder is {schema.show(place)}; expected one apart from datasets/")
    assert line.endswith(", which fetch replaces")


def test_an_archive_does_not_lie_where_fetch_would_replace_it() -> None:
    line = complaint(changed("datasets/imagenette/archive", "../datasets/imagenette/all.tar"))
    assert line.endswith("/all.tar'; expected one apart from datasets/imagenette, which fetch replaces")


@pytest.mark.parametrize("folder", ["pictures", "data/imagenette", "datasets-raw/imagenette", "datasets/imagenette2"])
def test_pictures_may_lie_elsewhere(folder: str) -> None:
    found = build_params(changed("datasets/imagenette", {"kind": "imagefolder", "folder": folder}))
    assert found.datasets["imagenette"].folder == folder


def test_where_nothing_is_declared_no_names_are_listed() -> None:
    assert complaint(changed("suites", {})) == "suite.name: suite laptop is not known; there is none"


def test_a_missing_block_is_named() -> None:
    for key in ("datasets", "benchmarks", "suites", "suite"):
        assert complaint(changed(key, NOTHING)) == f"params.yaml: {key} is missing; expected a mapping"
        assert complaint(changed(key, [1])) == f"params.yaml: {key} is [1]; expected a mapping"


def test_an_unknown_benchmark_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        UserError, match=r"^benchmark lenet6-mnist is not known; did you mean lenet5-mnist\? \(allowed: a"
    ):
        load_params(COMMITTED).benchmark("lenet6-mnist")


# --- the file itself ---------------------------------------------------------------------------------------------


def edited(tmp_path: Path, old: str, new: str) -> Path:
    text = COMMITTED.read_text()
    assert old in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


def line_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_params(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_scalars_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    """As DVC's own reader takes them; to YAML 1.1, 010 is eight, 1:30 is ninety, and `on` is true."""
    path = tmp_path / "some.yaml"
    path.write_text(
        "[010, 0o10, 0x1F, 1:30, on, yes, No, true, +3, .inf, 1_0, 1., ~, 2020-02-30, 2020-01-01 10:00:00, =, <<, 0b1]"
    )
    with pytest.raises(UserError, match="holds"):
        read_params(path)
    path.write_text("a: " + path.read_text())
    expected = [10, 8, 31, "1:30", "on", "yes", "No", True, 3, float("inf"), "1_0", 1.0, None]
    assert read_params(path)["a"] == [*expected, "2020-02-30", "2020-01-01 10:00:00", "=", "<<", "0b1"]
    path.write_text(
        '[!!str 1, "1", ! 1, !!int 010, !!float 5, !!null "", !!bool True, !!seq [], !!map {}, -.INF, .5e3]'
    )
    path.write_text("a: " + path.read_text())
    assert read_params(path)["a"] == ["1", "1", "1", 10, 5.0, None, True, [], {}, -math.inf, 500.0]
    assert complaint(changed(f"{OPTIMISER}/lr", "1:30")).endswith("lr is '1:30'; expected a number")


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    """PyYAML alone takes 1e-3 for text; DVC, which compares the file with its lock, takes it for a number."""
    for text, value in {"1e-3": 1e-3, "1E-3": 1e-3, "2e1": 20.0, "1.e-3": 1e-3, "+1e-2": 0.01, ".5e-1": 0.05}.items():
        path = edited(tmp_path, "lr: 0.08", f"lr: {text}")
        lr = load_params(path).benchmarks["lenet5-mnist"].recipe.optimiser.lr
        assert lr == value == parse_yaml(text, "text")
    path = edited(tmp_path, "lr: 0.08", "lr: -1e-3")
    assert line_of(path) == "benchmarks.lenet5-mnist.recipe.optimiser.lr is -0.001; expected a number above 0"


def test_dvc_reads_the_same_from_the_committed_file() -> None:
    assert load_yaml(str(COMMITTED)) == read_params(COMMITTED)


def test_anchors_and_merges_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: &a {b: 1, c: 2}\nd: {<<: *a, c: 3}\n")
    assert read_params(path) == load_yaml(str(path)) == {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}
    path.write_text(
        "a: &a {b: 1, c: 2}\nd: &d {c: 4, e: 5}\nf: {c: 3, <<: *a}\ng: {<<: [*a, *d], '<<': 6}\nh: [*a, *a]\n"
    )
    found = read_params(path)
    assert (found["f"], found["g"]) == ({"b": 1, "c": 3}, {"b": 1, "c": 2, "e": 5, "<<": 6})
    assert found["h"] == [found["a"], found["a"]]
    path.write_text("a: &a {b: 1, c: 2}\nd: &d {c: 4, e: 5}\nf: {c: 3, <<: *a}\ng: {<<: [*a, *d]}\n")
    assert read_params(path) == load_yaml(str(path))
    path.write_text("# as below\n%YAML 1.2\n---\na: no\n")
    assert read_params(path) == load_yaml(str(path)) == {"a": "no"}
    path.write_bytes(b"\xef\xbb\xbfa: b\r\nc: d\r\n")
    assert read_params(path) == load_yaml(str(path)) == {"a": "b", "c": "d"}


def test_a_key_given_twice_is_found_with_its_line(tmp_path: Path) -> None:
    path = edited(tmp_path, "      batch: 32\n", "      batch: 32\n      batch: 64\n")
    number = path.read_text().splitlines().index("      batch: 64") + 1
    assert line_of(path) == f"{path} line {number} is not valid YAML: the key batch stands twice"
    path = edited(tmp_path, "  mlp300-mnist:\n", "  linear-mnist:\n")
    assert "the key linear-mnist stands twice" in line_of(path)


BROKEN: dict[str, tuple[bytes, str]] = {
    "a tab": (b"datasets:\n\tmnist: {kind: mnist}\n", " line 2 is not valid YAML: found character "),
    "an open bracket": (b"a: 1\nb: [1, 2\nc: 3\n", " line 3 is not valid YAML: "),
    "a template's braces": (b"a: {{ b }}\n", " line 1 is not valid YAML: "),
    "a list as a key": (b"a: 1\n? [b, c]\n: 1\n", " line 2 is not valid YAML: "),
    "an unknown alias": (b"a: *b\n", " line 1 is not valid YAML: the alias *b names nothing above it"),
    "an alias in what it names": (
        b"a: &a [1, *a]\n",
        " line 1 is not valid YAML: the alias *a stands in what it names",
    ),
    "a foreign tag": (
        b"a: !!python/object/apply:os.getcwd []\n",
        " line 1 is not valid YAML: the tag !!python/object/apply:os.getcwd is not known; expected none, or one of !!",
    ),
    "a set": (b"a: !!set {b, c}\n", " line 1 is not valid YAML: the tag !!set is not known; expected none, or one of"),
    "bytes": (b"a: !!binary aGVsbG8=\n", " line 1 is not valid YAML: the tag !!binary is not known; expected none"),
    "a tag of one's own": (b"a: !<\x41%1B> b\n", " line 1 is not valid YAML: "),
    "a tag that does not fit": (b"a:\n  !!int abc\n", " line 2 is not valid YAML: the tag !!int stands before 'abc'"),
    "a bool that is none": (b"a: !!bool no\n", " line 1 is not valid YAML: the tag !!bool stands before 'no'"),
    "a mapping that is none": (b"a: !!map [1]\n", " line 1 is not valid YAML: the tag !!map is not known; "),
    "two documents": (b"a: 1\n---\nb: 2\n", " line 2 is not valid YAML: another document begins; expected one"),
    "another version": (b"%YAML 1.1\n---\na: no\n", " line 1 is not valid YAML: the directive '%YAML 1.1'; expected"),
    "thousands of directives": (
        b"# a\n" + b"".join(b"%%TAG !a%d! x\n" % i for i in range(40_000)) + b"--- 1",
        " line 2 is not valid YAML: the directive '%TAG !a0! x'; expected %YAML 1.2, or none",
    ),
    "no text": (b"a: 1\nb: \xff\xfe\x00", " line 2 is not valid YAML: expected text in UTF-8"),
    "UTF-16": ("a: 1\n".encode("utf-16"), " line 1 is not valid YAML: expected text in UTF-8"),
    "a zero byte": (b"a: 1\nb: \x00\n", " line 2 is not valid YAML: it holds the control character U+0000"),
    "an escape": (b"a: \x1b[31m\n", " line 1 is not valid YAML: it holds the control character U+001B"),
    "half a character": (b'a: "\\ud800"\n', " line 1 is not valid YAML: "),
    "no character": (b'a: "\\UFFFFFFFF"\n', " line 1 is not valid YAML: "),
    "4,301 digits": (
        b"a: " + b"1" * 4301,
        " line 1 is not valid YAML: a number of 4,301 digits; expected at most 1,000",
    ),
    "4,301 digits of 16": (
        b"a: 0x" + b"f" * 4299,
        " line 1 is not valid YAML: a number of 4,301 digits; expected at m",
    ),
    "900 in one another": (
        b"a: " + b"[" * 900 + b"]" * 900,
        " line 1 is not valid YAML: mappings and lists lie more th",
    ),
    "100,000 in one another": (
        b"a: " + b"{a: " * 10**5,
        " line 1 is not valid YAML: mappings and lists lie more than 50",
    ),
    "100,000 dashes": (b"a:\n" + b"- " * 10**5, " line 2 is not valid YAML: mappings and lists lie more than 50"),
    "aliases of aliases": (
        b"a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + b"".join(b"%c: &%c [%s]\n" % (i + 1, i + 1, b", ".join([b"*%c" % i] * 10)) for i in range(97, 110)),
        " line 5 is not valid YAML: it comes to more than 100,000 values, aliases counted as what they stand for",
    ),
    "aliases of a long text": (
        b"a: &a " + b"x" * 200_000 + b"\nb: [" + b"*a, " * 1000 + b"]\n",
        " line 2 is not valid YAML: it comes to more than 100,000 values",
    ),
    "<< twice": (
        b"a: &a {b: 1}\nc: {<<: *a, <<: *a}\n",
        " line 2 is not valid YAML: the key << stands twice; expected",
    ),
    "<< of a number": (
        b"a: {<<: 5}\n",
        " line 1 is not valid YAML: << is 5; expected a mapping, or a list of mappings",
    ),
    "a key twice in what is merged": (b"a: {<<: {b: 1, b: 2}}\n", " line 1 is not valid YAML: the key b stands twice"),
    "a key that a terminal obeys, twice": (
        b'a: {"\\e[31m": 1, "\\e[31m": 2}\n',
        " line 1 is not valid YAML: the key '\\x1b[31m' stands twice",
    ),
    "too much": (b"a: 1\n" + b"#" * 10**6, " is longer than 1,000,000 bytes; expected a file written by hand"),
    "nothing": (b"", " holds null; expected a mapping"),
    "a list": (b"- a\n- b\n", " holds ['a', 'b']; expected a mapping"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_yaml_mapping_is_one_line(tmp_path: Path, name: str) -> None:
    content, rest = BROKEN[name]
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    assert line_of(path).startswith(f"{path}{rest}")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    absent = tmp_path / "absent.yaml"
    assert line_of(absent) == f"{absent} does not exist; run this where the project's params.yaml lies"
    assert line_of(tmp_path) == f"{tmp_path} cannot be read: Is a directory"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert line_of(pipe) == f"{pipe} cannot be read: it is no file"


# --- suites ------------------------------------------------------------------------------------------------------

ENTRY, LENET = {"family": "lenet", "dataset": "mnist", "budget": "laptop"}, "suite/benchmarks/lenet5-mnist"
WRONG_SUITES: list[tuple[str, Any, str]] = [
    (f"{LENET}/family", "mlp", "suite.benchmarks.lenet5-mnist.family is mlp; benchmarks.lenet5-mnist says lenet"),
    (
        f"{LENET}/dataset",
        "cifar10",
        "suite.benchmarks.lenet5-mnist.dataset is cifar10; benchmarks.lenet5-mnist says mn",
    ),
    (f"{LENET}/budget", "labtop", "suite.benchmarks.lenet5-mnist.budget: budget labtop is not known; did you mean lap"),
    (LENET, None, "suite.benchmarks.lenet5-mnist is null; expected a mapping"),
    ("suite/name", "labtop", "suite.name: suite labtop is not known; did you mean laptop?"),
    (f"{LENET}/budget", "paper", "suite.benchmarks.lenet5-mnist.budget is paper; suites.laptop says laptop; ru"),
    (LENET, NOTHING, "suite.benchmarks is not what suites.laptop says (lenet5-mnist); run `python -m pipelin"),
    ("suite/benchmarks/lenet5-mnits", ENTRY, "suite.benchmarks: benchmark lenet5-mnits is not known; did you mean le"),
    ("suite/datasets", ["mnist"], "suite.datasets lacks cifar10, which suite.benchmarks.ordinary-cifar10 needs"),
    ("suite/datasets", ["mnist", "cifar"], "suite.datasets: dataset cifar is not known; did you mean cifar10?"),
    (
        "suites/laptop/benchmarks",
        ["lenet5"],
        "suites.laptop.benchmarks: benchmark lenet5 is not known; did you mean le",
    ),
    (
        "suites/laptop/budget",
        "papper",
        "suites.laptop.budget: linear-mnist: budget papper is not known; did you mean pa",
    ),
    ("suites/laptop/benchmarks", ["linear-mnist"] * 2, "suites.laptop.benchmarks names linear-mnist more than once; "),
    ("suites/laptop/benchmarks", [], "suites.laptop.benchmarks is []; expected at least one benchmark"),
]


@pytest.mark.parametrize(("place", "value", "line"), WRONG_SUITES)
def test_a_suite_that_contradicts_the_benchmarks_is_one_line(place: str, value: Any, line: str) -> None:
    assert complaint(changed(place, value)).startswith(line)


@pytest.fixture
def switched(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    shutil.copy(COMMITTED, path)
    return path


def test_switching_a_suite_and_back_leaves_every_byte(switched: Path) -> None:
    for name in ("imagenette", "laptop"):
        suite.switch(name, switched)
        assert load_params(switched).suite.name == name
    assert switched.read_bytes() == COMMITTED.read_bytes()
    suite.switch("imagenette", switched)
    params = load_params(switched)
    assert params.suite.datasets == ("imagenette",)
    assert params.suite.benchmarks == {
        "alexnet-imagenette": Entry(family="alexnet", dataset="imagenette", budget="laptop")
    }
    head = COMMITTED.read_text().partition("\nsuite:\n")[0]
    assert switched.read_text().startswith(head + "\nsuite:\n")


def test_the_committed_block_is_what_switching_writes() -> None:
    params = load_params(COMMITTED)
    assert COMMITTED.read_text().endswith("\n" + suite.block(params, params.suite.name))


def test_a_suite_that_cannot_be_switched_to_leaves_the_file(switched: Path) -> None:
    with pytest.raises(UserError, match=r"^suite labtop is not known; did you mean laptop\? \(allowed: cifar10, im"):
        suite.switch("labtop", switched)
    assert switched.read_bytes() == COMMITTED.read_bytes()
    longer = COMMITTED.read_text() + "# what is below the block would be lost\n"
    switched.write_text(longer)
    with pytest.raises(UserError, match=r"params.yaml does not end in a block `suite:`; expected it last"):
        suite.switch("imagenette", switched)
    assert switched.read_text() == longer


ODD_NAMES = (
    *("123", "1e5", "1-2", "0x1f", "0o7", "010", "2020-01-01", "2020-02-30", "12e03", "0b1", "1e400", "0", "9" * 60),
    *("true", "false", "null", "yes", "no", "on", "off", "y", "n", "inf", "nan", "e1", "suite", "name"),
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_that_looks_like_something_else_is_quoted(switched: Path, name: str) -> None:
    """A suite, its budget, its benchmark and its dataset are all called by it."""
    found = read_params(switched)
    row = copy.deepcopy(found["benchmarks"]["lenet5-mnist"])
    row["budgets"][name], row["dataset"] = row["budgets"]["laptop"], name
    found["benchmarks"] = {"linear-mnist": found["benchmarks"]["linear-mnist"], name: row}
    found["datasets"][name] = {"kind": "imagefolder", "folder": "pictures"}
    found["suites"] = {name: {"budget": name, "benchmarks": [name]}}
    head = {key: found[key] for key in ("datasets", "benchmarks", "suites")}
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in head.items()]  # PyYAML would write 1e5 without quotes
    switched.write_text("".join(lines) + "suite:\n  name: laptop\n")
    suite.switch(name, switched)
    entry = {"family": "lenet", "dataset": name, "budget": name}
    wanted = head | {"suite": {"name": name, "datasets": [name], "benchmarks": {name: entry}}}
    assert read_params(switched) == load_yaml(str(switched)) == wanted
    params = load_params(switched)
    assert list(params.suite.benchmarks) == [name] == [params.suite.name]


def test_a_dataset_with_underscores_between_digits_is_quoted() -> None:
    """Numbers to DVC's reader, which takes 1.1's underscores with 1.2's exponents."""
    for name in ("1_0", "1_0e5", "1e5_0"):
        assert suite.scalar(name) == f'"{name}"'
    assert [suite.scalar(name) for name in ("mnist", "my_photos", "all-cnn", "l1e5")] == [
        *("mnist", "my_photos", "all-cnn", "l1e5")
    ]


def test_switching_keeps_link_mode_and_line_ends(switched: Path, tmp_path: Path) -> None:
    target = tmp_path / "shared" / "real.yaml"
    target.parent.mkdir()
    target.write_bytes(COMMITTED.read_bytes().replace(b"\n", b"\r\n"))
    target.chmod(0o640)
    switched.unlink()
    switched.symlink_to(Path("shared") / "real.yaml")
    suite.switch("imagenette", switched)
    assert switched.is_symlink() and os.readlink(switched) == "shared/real.yaml"
    assert target.stat().st_mode & 0o7777 == 0o640
    assert b"\n" not in target.read_bytes().replace(b"\r\n", b"")
    assert load_params(switched).suite.name == "imagenette"
    suite.switch("laptop", switched)
    assert target.read_bytes() == COMMITTED.read_bytes().replace(b"\n", b"\r\n")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["params.yaml", "real.yaml", "shared"]


def test_a_file_without_an_end_of_line_is_switched(switched: Path) -> None:
    switched.write_text(COMMITTED.read_text().rstrip("\n"))
    suite.switch("laptop", switched)
    assert switched.read_bytes() == COMMITTED.read_bytes()


def test_a_block_that_only_looks_like_one_is_left(switched: Path) -> None:
    """The text would end in quotes, which the block would close no more."""
    text = COMMITTED.read_text().replace("\nsuite:\n", '\nsuite: {"name": "\nsuite:\n') + ' "}\n'
    switched.write_text(text)
    with pytest.raises(UserError, match=r"params.yaml"):
        suite.switch("imagenette", switched)
    assert switched.read_text() == text


def test_the_command_says_one_line_and_exits_2(switched: Path) -> None:
    command = [sys.executable, "-m", "pipelines.suite"]
    where, env = switched.parent, environment()
    done = subprocess.run([*command, "imagnette"], cwd=where, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (errors.USER_ERROR, "")
    allowed = "(allowed: cifar10, imagenette, laptop, mnist, paper)"
    assert done.stderr == f"error: suite imagnette is not known; did you mean imagenette? {allowed}\n"
    done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].split() == ["*", "laptop", "6", "benchmarks", "at", "the", "laptop", "budget"]


# --- the committed benchmarks ------------------------------------------------------------------------------------

PARAMS = load_params(COMMITTED)


def test_the_imports_of_params_stay_light() -> None:
    """A misspelt key must be said at once, not after the seconds that torch takes to load."""
    code = "import sys; from pipelines import suite; assert not {'torch', 'numpy', 'ray', 'dvc'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


# --- dvc.yaml against what decides a trial -----------------------------------------------------------------------


def stage(name: str, benchmark: str, budget: str | None = None) -> dict[str, Any]:
    """One stage of dvc.yaml for a benchmark, its placeholders filled in; at its laptop budget where it has one."""
    entry = PARAMS.benchmark(benchmark)
    budget = budget or ("laptop" if "laptop" in entry.budgets else "paper")
    text = yaml.safe_dump(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][name]["do"])
    filled = {"key": benchmark, "item.family": entry.model.family, "item.dataset": entry.dataset, "item.budget": budget}
    for placeholder, value in filled.items():
        text = text.replace(f"${{{placeholder}}}", value)
    assert "${" not in text
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def look(found: Any, dotted: str) -> Any:
    """The value at ``dotted``; KeyError where there is none, upon which DVC would refuse to run the stage."""
    for key in dotted.split("."):
        found = found[key]
    return found


@pytest.mark.parametrize("name", PARAMS.benchmarks)
def test_the_train_stage_depends_on_what_the_key_hashes(name: str) -> None:
    benchmark = PARAMS.benchmark(name)
    code = fingerprint.of_training(benchmark.resolved("paper"), fingerprint.read())
    hashed = {f"{module.replace('.', '/')}.py" for module in code}
    deps = set(stage("train", name)["deps"])
    assert hashed | {f"datasets/{benchmark.dataset}"} <= deps
    optional = ("pipelines/training/boosting.py", "pipelines/training/sdlm.py")  # of some recipes alone
    assert deps <= {*hashed, f"datasets/{benchmark.dataset}", *optional}


@pytest.mark.parametrize("name", PARAMS.benchmarks)
@pytest.mark.parametrize("which", ["train", "evaluate"])
def test_dvc_finds_every_parameter_that_a_stage_names(which: str, name: str) -> None:
    """DVC fails a stage at its end when a parameter it names is not in params.yaml."""
    found = read_params(COMMITTED)
    for plan in PARAMS.suites:  # whichever suite is active
        found["suite"] = yaml.safe_load(suite.block(PARAMS, plan))["suite"]
        if name in found["suite"]["benchmarks"]:
            for parameter in stage(which, name)["params"]:
                look(found, parameter)


DECISIVE: dict[str, Any] = {
    "model/options": {"head": "rbf"},
    "recipe/batch": 32,
    "recipe/shuffle": False,
    "budgets/laptop/epochs": 3,
    "budgets/laptop/train_images": 5000,
    "budgets/paper/epochs": 30,  # stretches the schedule of the shorter budget
    "resources/workers": 2,
}


@pytest.mark.parametrize("place", DECISIVE)
def test_what_decides_the_weights_is_a_parameter_of_the_train_stage(place: str) -> None:
    """Otherwise `dvc repro` keeps the old trial, and evaluate refuses it for ever as another than params.yaml's."""
    before, after = read_params(COMMITTED), changed(f"{B}/{place}", DECISIVE[place])
    old, new = (build_params(found).benchmarks["lenet5-mnist"].resolved("laptop") for found in (before, after))
    assert old != new
    assert [p for p in stage("train", "lenet5-mnist")["params"] if look(before, p) != look(after, p)]


def test_what_does_not_decide_the_weights_retrains_nothing() -> None:
    before = read_params(COMMITTED)
    for place, value in {
        "claim/value": 1.0,
        "deviations": ["x"],
        "evaluation": {"views": "ten_crop", "crop": 32},
    }.items():
        after = changed(f"{B}/{place}", value)
        assert all(look(before, p) == look(after, p) for p in stage("train", "lenet5-mnist")["params"]), place


def test_every_source_and_family_that_is_named_exists() -> None:
    for name in PARAMS.benchmarks:
        for which in ("train", "evaluate"):
            for path in stage(which, name)["deps"]:
                assert path.startswith(("datasets/", "runs/")) or (ROOT / path).is_file(), path


def test_dvc_looks_for_no_updates_and_reports_nothing() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / ".dvc/config")
    assert not config.getboolean("core", "check_update") and not config.getboolean("core", "analytics")


# --- the reader of mappings --------------------------------------------------------------------------------------


def test_nothing_in_a_file_is_changed_by_reading_it() -> None:
    """What was read says again what was written: no value is dropped, rounded or taken for another."""
    written = read_params(COMMITTED)["benchmarks"]
    for name, benchmark in PARAMS.benchmarks.items():
        _contains(plain(benchmark), written[name], name)


def _contains(read: Any, written: Any, where: str) -> None:
    if isinstance(written, dict):
        for key, value in written.items():
            _contains(read[key], value, f"{where}.{key}")
    else:
        assert read == written, where


def test_a_number_with_more_digits_than_python_writes_is_cut_in_an_error() -> None:
    assert schema.show(-(10**5000)).startswith("-0x") and len(schema.show([10**5000])) == 60


def test_a_long_list_of_names_is_cut_in_an_error() -> None:
    names = [f"benchmark-{i}" for i in range(40)]
    line = str(schema.unknown("benchmark", "x" * 10**6, names))
    assert line.startswith(f"benchmark '{'x' * 56}... is not known; allowed: benchmark-0, benchmark-1, benchmark-10, ")
    assert line.endswith("benchmark-17 ... and 30 more") and len(line) < 300
    found = changed("suite/benchmarks", {})
    found["suites"]["laptop"]["benchmarks"] = list(found["benchmarks"])
    found["suites"]["laptop"]["budget"] = "paper"
    assert "... and 3" in complaint(found) and len(complaint(found)) < 500


def test_a_value_is_shown_in_yamls_words() -> None:
    assert schema.show({"a": [None, True, "b\x1b", -1.5]}) == "{'a': [null, true, 'b\\x1b', -1.5]}"
    endless: list[Any] = []
    endless.append(endless)
    assert schema.show(endless) == "[" * 57 + "..."


def test_a_long_value_is_cut_in_an_error() -> None:
    line = complaint(changed(f"{B}/recipe/loss", "x" * 1000))
    assert len(line) < 200 and "...; allowed: cross_entropy, map, mse" in line
