"""What the sources say against the blocks of params.yaml and the models they build.

The tables are written from the papers, layer files and demos, not from our code; a test compares what can be compared,
and where a block departs from its source it must say so under `deviations`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipelines import benchmarks, optimisers, subsets, trial
from pipelines.benchmarks import Benchmark
from pipelines.datasets import Dataset
from tests.conftest import ROOT

PARAMS = benchmarks.load(ROOT / "params.yaml")
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "imagenette": (3, 256, 256)}
SIZES = {"mnist": 60_000, "cifar10": 50_000, "imagenette": 9_469}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row as its source has it."""

    metric: str
    claim: float  # per cent
    parameters: int  # trained
    layers: str  # sides of the trained kernels, "5x5x1x6" or "784x10", in order; "" where another test has them
    epochs: int | None = None
    optimiser: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[float, float] = field(default_factory=dict)  # epoch: factor on the rate
    preprocess: tuple[str, ...] = ()
    augment: tuple[str, ...] = ()
    views: str = "single"


def error(claim: float, parameters: int, layers: str, **rest: Any) -> Published:
    return Published(metric="error", claim=claim, parameters=parameters, layers=layers, **rest)


def accuracy(claim: float, parameters: int, layers: str, **rest: Any) -> Published:
    return Published(metric="accuracy", claim=claim, parameters=parameters, layers=layers, **rest)


# --- LeCun et al. 1998, 1989 --------------------------------------------------------------------------------------

RAW = {"preprocess": ("scale",)}
PADDED = {"preprocess": ("pad", "scale"), "epochs": 20}
LENET5 = "5x5x1x6 6 60x5x5 16 400x120 120x84"  # C1, S2, the 60 kernels of C3, S4, C5, F6
LENET4 = "5x5x1x4 8 48x5x5 16 400x120 120x10"
SDLM = {  # section III.B: 0.0005 for two passes, 0.0002 for three, 0.0001 for three, 0.00005 for four, then 0.00001
    "optimiser": {"name": "sdlm", "lr": 0.0005, "mu": 0.02, "samples": 500},
    "factors": {0: 1, 1: 1, 2: 0.4, 4: 0.4, 5: 0.2, 7: 0.2, 8: 0.1, 11: 0.1, 12: 0.02, 19: 0.02},
}
MNIST = {
    "linear-mnist": error(12.0, 7_850, "784x10", **RAW),
    "mlp300-mnist": error(4.7, 238_510, "784x300 300x10", **RAW),
    "mlp1000-mnist": error(4.5, 795_010, "784x1000 1000x10", **RAW),
    "mlp300-100-mnist": error(3.05, 266_610, "784x300 300x100 100x10", **RAW),
    "mlp500-150-mnist": error(2.95, 469_160, "784x500 500x150 150x10", **RAW),
    "lenet1-mnist": error(1.7, 2_578, "5x5x1x4 4 20x5x5 12 192x10", preprocess=("resize", "pad", "scale"), epochs=20),
    "lenet4-mnist": error(1.1, 50_698, LENET4, **PADDED),
    "lenet5-mnist": error(0.95, 60_850, f"{LENET5} 84x10", **PADDED),
    "lenet5-rbf-mnist": error(0.95, 60_000, LENET5, **PADDED, **SDLM),
    "lenet5-distorted-mnist": error(0.8, 60_000, LENET5, **PADDED, **SDLM, augment=("affine",)),
    "lenet4-boosted-mnist": error(
        0.7, 3 * 50_698, " ".join([LENET4] * 3), preprocess=("pad", "scale"), augment=("affine",)
    ),
    "lenet1989-mnist": error(5.0, 9_760, "5x5x1x12 5x5x8x12 192x30 30x10", epochs=23, preprocess=("resize", "scale")),
}

# --- ml4a, ConvNetJS ----------------------------------------------------------------------------------------------

ADADELTA = {"name": "adadelta", "rho": 0.95, "eps": 1e-8, "decay_biases": False}
ML4A = {"epochs": 10, "optimiser": ADADELTA | {"weight_decay": 0.001 / 20}, "preprocess": ("scale",)}
CONVNETJS = "5x5x3x16 5x5x16x20 5x5x20x20 320x10"
DEMOS = {
    "ordinary-cifar10": accuracy(37.0, 30_840, "3072x10 10x10", **ML4A),
    "ordinary-mnist": accuracy(91.28, 7_960, "784x10 10x10", **ML4A),
    "convnet-mnist": accuracy(97.81, 5_994, "5x5x1x8 5x5x8x16 256x10", **ML4A, augment=("crop",)),
    "ml4a-convnet-cifar10": accuracy(79.0, 22_466, CONVNETJS, **ML4A),
    "convnetjs-cifar10": accuracy(
        80.0,
        22_466,
        CONVNETJS,
        optimiser=ADADELTA | {"weight_decay": 1e-4 / 4},
        preprocess=("scale",),
        augment=("shift", "flip"),
        views="random",
    ),
}

# --- cuda-convnet's layer files -----------------------------------------------------------------------------------

KRIZHEVSKY = {"name": "sgd", "lr": 0.001, "bias_lr": 2.0, "momentum": 0.9, "decay_biases": False}
CONV = {"conv1": 0.004, "conv2": 0.004, "conv3": 0.004}
POOLED = "5x5x3x32 5x5x32x32 5x5x32x64"
LAST_STEPS = {0: 1, 499: 1, 500: 0.1, 509: 0.1, 510: 0.01, 519: 0.01}


def krizhevsky(claim: float, parameters: int, layers: str, decay: Mapping[str, float], **rest: Any) -> Published:
    optimiser = KRIZHEVSKY | {"layer_decay": decay}
    return error(claim, parameters, layers, optimiser=optimiser, preprocess=("raw", "mean_subtract"), **rest)


LOCAL = {"epochs": 520, "factors": LAST_STEPS, "augment": ("crop", "flip"), "views": "ten_crop"}
LAYER_FILES = {
    "layers-80sec-cifar10": krizhevsky(
        26.0, 145_578, f"{POOLED} 1024x64 64x10", {**CONV, "fc64": 0.03, "fc10": 0.03}, factors={0: 1, 7: 1, 8: 0.1}
    ),
    "layers-18pct-cifar10": krizhevsky(
        18.0,
        89_578,
        f"{POOLED} 1024x10",
        {**CONV, "fc10": 1.0},
        epochs=140,
        factors={0: 1, 119: 1, 120: 0.1, 129: 0.1, 130: 0.01},
    ),
    "conv-local-13pct-cifar10": krizhevsky(
        13.0,
        1_116_490,
        "5x5x3x64 5x5x64x64 36x576x32 36x288x32 1152x10",
        {"local3": 0.004, "local4": 0.004, "fc10": 0.004},
        **LOCAL,
    ),
    "conv-local-11pct-cifar10": krizhevsky(
        11.0,
        2_112_970,
        "5x5x3x64 5x5x64x64 36x576x64 36x576x32 1152x10",
        {"local3": 0.004, "local4": 0.004, "fc10": 0.01},
        **LOCAL,
    ),
}

# --- Springenberg et al. 2015, tables 1 to 3 ----------------------------------------------------------------------

RATES = (0.25, 0.1, 0.05, 0.01)
STRIVING = {
    "epochs": 350,
    "optimiser": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.001},
    "factors": {0: 1, 199: 1, 200: 0.1, 249: 0.1, 250: 0.01, 299: 0.01, 300: 0.001, 349: 0.001},
    "preprocess": ("raw", "gcn", "zca"),
}
TABLE3 = {  # base: (kernels of a stage), then Model, Strided-CNN, ConvPool-CNN, All-CNN in per cent
    "a": ((5,), (12.47, 13.46, 10.21, 10.30), (839_242, 1_254_250)),
    "b": ((5, 1), (10.20, 10.98, 9.33, 9.10), (885_610, 1_300_618)),
    "c": ((3, 3), (9.74, 10.19, 9.31, 9.08), (954_730, 1_369_738)),
}


def striving(kernels: tuple[int, ...], extra: bool) -> str:
    sides, channels, found = (*kernels, *((3,) if extra else ())), 3, []
    for width in (96, 192):
        for side in sides:
            found.append(f"{side}x{side}x{channels}x{width}")
            channels = width
    return " ".join([*found, "3x3x192x192", "1x1x192x192", "1x1x192x10"])


CELLS = {
    f"{variant}-{base}-cifar10": error(claims[i], counts[i > 1], striving(kernels, i > 1), **STRIVING)
    for base, (kernels, claims, counts) in TABLE3.items()
    for i, variant in enumerate(("model", "strided", "convpool", "allcnn"))
}
AUGMENTED = {
    "allcnn-c-augmented-cifar10": error(7.25, 1_369_738, striving((3, 3), True), **STRIVING, augment=("shift", "flip"))
}
ALEXNET = {
    # Krizhevsky et al. 2012, section 3.5: 60,965,224 in two towers, with 10 in place of 1000 outputs of 4096 inputs
    "alexnet-imagenette": accuracy(
        79.09,
        60_965_224 - 990 * (4096 + 1),
        "",
        epochs=90,
        optimiser={"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0005},
        preprocess=("raw", "mean_subtract"),
        augment=("crop", "flip", "pca_colour"),
        views="ten_crop",
    )
}
PUBLISHED = MNIST | DEMOS | LAYER_FILES | CELLS | AUGMENTED | ALEXNET


def dataset(name: str) -> Dataset:
    """The dataset as published, without its files."""
    shape = SHAPES[name]
    none = (0.0,) * shape[0]
    classes = tuple("0123456789")
    return Dataset(
        path=Path(name), name=name, classes=classes, shape=shape, train=0, test=0, mean=none, std=none, digests={}
    )


def build(benchmark: Benchmark) -> nn.Module:
    data = dataset(benchmark.dataset)
    with torch.device("meta"):  # counted, not filled
        return trial.build_model(benchmark, data, trial.image_shape(benchmark, data))


def names(ops: tuple[benchmarks.Op, ...]) -> tuple[str, ...]:
    return tuple(name for op in ops for name in op)


def kernel(weight: torch.Tensor) -> str:
    """As the tables above write it: a convolution's side x side x in x out, a full layer's in x out."""
    sides: list[int] = [side for side in weight.shape if weight.dim() != 3 or side > 1] or [1]
    if weight.dim() == 4:
        sides = [*weight.shape[2:], weight.shape[1], weight.shape[0]]
    elif weight.dim() == 2:
        sides.reverse()
    return "x".join(map(str, sides))


# --- the tests ----------------------------------------------------------------------------------------------------


def test_every_row_of_the_sources_is_a_benchmark_and_no_other() -> None:
    assert {name: (b.claim.metric, b.claim.value) for name, b in PARAMS.benchmarks.items()} == {
        name: (row.metric, row.claim) for name, row in PUBLISHED.items()
    }
    for benchmark in PARAMS.benchmarks.values():
        assert len(benchmark.claim.source) > 10 and len(benchmark.claim.protocol) > 10, benchmark.name
        assert benchmark.deviations and all(benchmark.deviations), benchmark.name
        assert len(benchmark.budgets["paper"].seeds) >= 5, benchmark.name


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_model_is_the_published_one(name: str) -> None:
    row, model = PUBLISHED[name], build(PARAMS.benchmark(name))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == row.parameters
    weights = [p for n, p in model.named_parameters() if n.endswith("weight")]
    assert " ".join(map(kernel, weights)) == row.layers or not row.layers


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipe_is_the_published_one(name: str) -> None:
    row, benchmark = PUBLISHED[name], PARAMS.benchmark(name)
    recipe = benchmark.recipe
    assert row.epochs in (None, benchmark.budgets["paper"].epochs)
    assert names(recipe.preprocess) == row.preprocess
    assert names(recipe.augment) == row.augment
    assert benchmark.evaluation.views == row.views
    said = dataclasses.asdict(recipe.optimiser)
    for key, value in row.optimiser.items():
        assert said[key] == (pytest.approx(value) if isinstance(value, float) else value), key
    assert {epoch: recipe.schedule.factor(epoch) for epoch in row.factors} == pytest.approx(dict(row.factors))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_trained_parameter_reaches_the_optimiser_with_its_own_decay(name: str) -> None:
    benchmark = PARAMS.benchmark(name)
    model = build(benchmark)
    chosen = benchmark.recipe.optimiser
    groups = optimisers.parameter_groups(chosen, model)
    held = {id(p): group for group in groups for p in group["params"]}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert held.keys() == {id(p) for p in trained.values()}
    for layer, decay in chosen.layer_decay.items():
        assert held[id(trained[f"{layer}.weight"])]["weight_decay"] == decay
        bias = held[id(trained[f"{layer}.bias"])]
        assert (bias["weight_decay"], bias["initial_lr"]) == (0.0, chosen.lr * chosen.bias_lr)


# what a block may do otherwise than its source, and the words that must then stand among its deviations
DEPARTURES: dict[str, tuple[Any, str]] = {
    "half precision": (lambda b: b.recipe.precision == "bf16", "bf16"),
    "no ReLU on the logits": (lambda b: b.model.options.get("logits_relu") is False, "no ReLU on the logits"),
    "a softmax head": (lambda b: b.model.options.get("head") == "softmax", "softmax head"),
    "minibatches": (
        lambda b: "LeCun" in b.claim.source and b.recipe.batch > 1 and b.model.family != "linear",
        "minibatch",
    ),
    "a rate that the paper does not give": (lambda b: b.model.family == "allcnn", "rate"),
    "a stand-in for the zip codes": (lambda b: b.model.family == "lenet1989", "stands in for the zip-code digits"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_departures_from_the_source_are_written_down(name: str) -> None:
    benchmark = PARAMS.benchmark(name)
    written = " ".join(benchmark.deviations).lower()
    for what, (departs, words) in DEPARTURES.items():
        if departs(benchmark):
            assert words.lower() in written, what


def test_details_that_names_do_not_tell() -> None:
    by_name = {name: PARAMS.benchmark(name).recipe for name in PUBLISHED}
    for name in MNIST:  # LeCun et al. 1998, section II.B: background -0.1, ink 1.175
        if name not in ("linear-mnist", "lenet1989-mnist"):
            assert by_name[name].preprocess[-1] == {"scale": {"low": -0.1, "high": 1.175}}, name
    for name in CELLS | AUGMENTED:
        assert by_name[name].preprocess[1:] == ({"gcn": {"scale": 55}}, {"zca": {"bias": 0.1}})
        assert by_name[name].optimiser.lr in RATES
        choice = PARAMS.benchmark(name).choice
        assert choice is not None and choice.rates == RATES
    assert by_name["allcnn-c-augmented-cifar10"].augment[0] == {"shift": {"pixels": 5}}
    assert by_name["convnetjs-cifar10"].augment[0] == {"shift": {"pixels": 2}}
    for name in LAYER_FILES:
        assert by_name[name].batch == 128
        assert by_name[name].preprocess == ({"raw": {}}, {"mean_subtract": {"per": "pixel"}})
    for name in ("conv-local-13pct-cifar10", "conv-local-11pct-cifar10"):
        assert by_name[name].augment[0] == {"crop": {"size": 24}}
    assert len(subsets.positions(60_000, by_name["lenet1989-mnist"].subset)) == 7_291


# --- figures that were measured on other images than the test set -------------------------------------------------

TRAINED_ON = {  # of the images of a claim that lie in the training file: how many the recipe trains on
    "ordinary-cifar10": 0,
    "ml4a-convnet-cifar10": 10_000,
    "ordinary-mnist": 0,
    "convnet-mnist": 0,
}


def test_figures_on_the_training_file_are_of_images_held_out_or_trained_on_as_their_sentence_says() -> None:
    found = {}
    for name, benchmark in PARAMS.benchmarks.items():
        on = benchmark.evaluation.claimed_on
        if on is not None and on.split == "train":
            assert on.end <= SIZES[benchmark.dataset]
            trained = subsets.positions(SIZES[benchmark.dataset], benchmark.recipe.subset)
            found[name] = int(((trained >= on.first) & (trained < on.end)).sum())
            words = "held out of training" if found[name] == 0 else "trained on these very images"
            assert words in (benchmark.claim.difference or ""), name
    assert found == TRAINED_ON


@pytest.mark.parametrize("name", TRAINED_ON)
def test_ml4as_nets_are_trained_as_its_page_does(name: str) -> None:
    """confusion_matrix.js, createModel: batch 20, in the order of the file."""
    recipe = PARAMS.benchmarks[name].recipe
    assert (recipe.batch, recipe.shuffle) == (20, False)


# --- suites -------------------------------------------------------------------------------------------------------


def test_the_suites_are_the_promised_ones() -> None:
    assert set(PARAMS.suites["mnist"].benchmarks) == {n for n, b in PARAMS.benchmarks.items() if b.dataset == "mnist"}
    assert set(PARAMS.suites["paper"].benchmarks) == set(PARAMS.benchmarks) - set(ALEXNET)
    for name in ("mnist", "cifar10", "paper"):
        assert PARAMS.suites[name].budget == "paper"
    reachable = {"ordinary-cifar10", "convnetjs-cifar10", "layers-80sec-cifar10"}  # on a CPU
    assert reachable <= set(PARAMS.suites["cifar10"].benchmarks)
    laptop = PARAMS.suites["laptop"]
    for name in laptop.benchmarks:
        assert len(PARAMS.benchmarks[name].budgets[laptop.budget].seeds) > 1, name
    promised = "linear-mnist mlp300-mnist lenet5-mnist ordinary-cifar10 convnetjs-cifar10 allcnn-c-cifar10"
    assert set(promised.split()) <= set(laptop.benchmarks)


def test_the_page_has_a_benchmark_for_every_cell_of_table_3() -> None:
    text = (ROOT / "pipelines/page/table3.py").read_text()
    figures = {float(word) for word in re.findall(r"\d+\.\d\d", text)}
    assert {row.claim for row in CELLS.values()} <= figures
