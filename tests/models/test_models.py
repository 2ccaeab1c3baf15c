"""Guards what every builder promises: shapes, counts, errors, determinism, and that it can learn."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import models
from models import alexnet, allcnn, convnetjs, krizhevsky, lenet, lenet1989, linear, ml4a, mlp
from pipelines.config.params import load_params
from pipelines.data.datasets import Dataset
from pipelines.training.inputs import Inputs
from tests import projects
from tests.conftest import ROOT, THREADS

Builder = Callable[..., nn.Module]


def builds(builder: Builder, count: int, shape: tuple[int, int, int], **options: Any) -> Any:
    """One net of the tests: the builder, its published or derived count, the shape of its images, the options."""
    name = f"{builder.__module__.split('.')[-1]}.{builder.__name__}"
    return pytest.param(builder, count, shape, options, id=f"{name}-{options}" if options else name)


def nets() -> Iterator[Any]:
    """Each net that a row of models/*.yaml builds, once, with the row's own count: a new row needs no entry here."""
    seen: list[Any] = []
    for row in PARAMS.benchmarks.values():
        builder = getattr(importlib.import_module(f"models.{row.model.family}"), row.model.name)
        shape = Inputs(row, made(row.dataset), Path()).shape
        seen_by = {"in_shape": shape, "classes": projects.classes(row.dataset)}
        usual = {name: inspect.signature(builder).parameters[name].default for name in seen_by}
        options = dict(row.model.options) | {name: seen_by[name] for name in usual if usual[name] != seen_by[name]}
        if row.recipe.boosting is None and (builder, options) not in seen:
            seen.append((builder, options))
            yield builds(builder, row.parameters or 0, shape, **options)


def made(name: str) -> Dataset:
    """The data set ``name`` as published, without its files."""
    shape = projects.shape(PARAMS.datasets[name])
    return Dataset(path=Path(name), name=name, classes=(), shape=shape, train=0, test=0, digests={})


PARAMS = load_params(ROOT / "params.yaml")
NETS = list(nets())
LARGE = 9_000_000  # parameters, which take a while to fill
ROWS = [net for net in NETS if net.values[1] < LARGE]
HUNDRED = builds(allcnn.allcnn, 1_387_108, (3, 32, 32), classes=100)
IMAGENET = [
    builds(alexnet.alexnet, 60_965_224, (3, 227, 227)),
    builds(alexnet.one_tower, 61_100_840, (3, 224, 224)),
    builds(allcnn.imagenet, 9_372_840, (3, 227, 227)),
]
SMALL_ALEXNET = {"in_shape": (3, 67, 67), "classes": 10, "bias": 0.1, "fc_std": 0.005}
SMALL = [
    pytest.param(alexnet.alexnet, 0, (3, 67, 67), SMALL_ALEXNET, id="alexnet-67"),
    pytest.param(alexnet.one_tower, 0, (3, 63, 63), {"in_shape": (3, 63, 63), "classes": 10}, id="one-tower-63"),
]


@pytest.fixture(autouse=True, scope="module")
def _few_threads() -> Iterator[None]:
    """Nets this small run slower on many threads, more so beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(threads)


def classes_of(builder: Builder) -> int:
    """How many outputs it makes unless it is told."""
    return int(inspect.signature(builder).parameters["classes"].default)


def parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(("builder", "count", "shape", "options"), [*NETS, HUNDRED, *IMAGENET])
def test_parameters_and_shape_are_the_sources(
    builder: Builder, count: int, shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    with torch.device("meta" if count > LARGE else "cpu"), torch.no_grad():
        model = builder(**options).eval()
        assert model(torch.randn(3, *shape)).shape == (3, options.get("classes", classes_of(builder)))
    assert parameters(model) == count
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in model.parameters())


@pytest.mark.parametrize("name", PARAMS.benchmarks)
def test_each_row_states_how_many_parameters_it_trains(name: str) -> None:
    row = PARAMS.benchmarks[name]
    with torch.device("meta"):  # counted, not filled
        classes = tuple(map(str, range(projects.classes(row.dataset))))
        data = dataclasses.replace(made(row.dataset), classes=classes)
        model = Inputs(row, data, Path()).build()
    assert parameters(model) == row.parameters


PUBLISHED = [net for net in [*ROWS, HUNDRED, *IMAGENET] if "in_shape" not in net.values[3]]


@pytest.mark.parametrize(("builder", "count", "shape", "options"), PUBLISHED)
def test_the_text_states_the_count(
    builder: Builder, count: int, shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    module = sys.modules[builder.__module__]
    stated = {
        int(figure.replace(",", "")) for figure in re.findall(r"\d[\d,]*\d", f"{module.__doc__}{builder.__doc__}")
    }
    head = {lenet.lenet5: 850 if options.get("head") != "rbf" else 0}.get(builder, 0)  # stated apart from the 60,000
    other_classes = {100: 90 * 193}.get(options.get("classes", 0), 0)  # the last 1x1 convolution's
    assert count - head - other_classes in stated


def stated(text: str | None, which: int) -> list[tuple[str, int]]:
    """Output and parameters of each layer that has some, from a text's table number ``which``.

    Of a sum ("784 x 10 + 10 = 7,850") the result is taken, of several nets' counts ("650 or 10,250") the first.
    """
    lines = [line.strip() for line in (text or "").splitlines()]
    blocks = "\n".join(line if line.startswith("|") else "" for line in lines).strip("\n")
    header, _, *rows = re.split(r"\n{2,}", blocks)[which].splitlines()
    titles = [cell.strip() for cell in header.strip("|").split("|")]
    output = titles.index("output")
    parameters = next(i for i, title in enumerate(titles) if title.startswith("parameters"))
    found = []
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        count = re.match(r"\d[\d,]*", cells[parameters].split("= ")[-1])
        if count and count[0] != "0" and cells[0] != "total":
            found.append((cells[output], int(count[0].replace(",", ""))))
    return found


TABLES = [
    pytest.param(linear, 0, linear.linear, (1, 28, 28), id="linear"),
    pytest.param(ml4a, 0, ml4a.ordinary, (3, 32, 32), id="ml4a"),
    pytest.param(lenet, 0, lenet.lenet5, (1, 32, 32), id="lenet5"),
    pytest.param(lenet.lenet1, 0, lenet.lenet1, (1, 28, 28), id="lenet1"),
    pytest.param(lenet.lenet4, 0, lenet.lenet4, (1, 32, 32), id="lenet4"),
    pytest.param(convnetjs, 0, convnetjs.cifar10, (3, 32, 32), id="convnetjs-cifar10"),
    pytest.param(convnetjs, 1, convnetjs.mnist, (1, 24, 24), id="convnetjs-mnist"),
    pytest.param(krizhevsky, 0, krizhevsky.layers_80sec, (3, 32, 32), id="layers-80sec"),
    pytest.param(krizhevsky, 1, krizhevsky.conv_local_13pct, (3, 24, 24), id="conv-local-13pct"),
    pytest.param(allcnn, 1, allcnn.allcnn, (3, 32, 32), id="allcnn-c"),
    pytest.param(alexnet, 0, alexnet.alexnet, (3, 227, 227), id="alexnet"),
    pytest.param(alexnet.one_tower, 0, alexnet.one_tower, (3, 224, 224), id="one-tower"),
    pytest.param(allcnn.imagenet, 0, allcnn.imagenet, (3, 227, 227), id="allcnn-imagenet"),
]


@pytest.mark.parametrize(("text", "which", "builder", "shape"), TABLES)
def test_the_table_of_layers_is_the_models(
    text: Any, which: int, builder: Builder, shape: tuple[int, int, int]
) -> None:
    """Layer by layer, of those with parameters: what comes out, and how many there are."""
    found: list[tuple[str, int]] = []
    with torch.device("meta"):
        model = builder()

    def note(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        sides = "x".join(map(str, out.shape[1:]))
        found.append((sides, sum(weight.numel() for weight in layer.parameters())))

    for layer in model.modules():
        if list(layer.parameters(recurse=False)):
            layer.register_forward_hook(note)
    with torch.no_grad():
        model.eval()(torch.zeros(1, *shape, device="meta"))
    # LeNet-5's C5 is a convolution whose maps are one unit each: a full layer
    table = [(output.replace("120x1x1", "120"), count) for output, count in stated(text.__doc__, which)]
    assert found == table != []


@pytest.mark.parametrize(("builder", "count", "shape", "options"), ROWS)
def test_the_seed_decides_the_weights(
    builder: Builder, count: int, shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(torch.cat([weight.detach().flatten() for weight in builder(**options).parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert states[0].isfinite().all()


@pytest.mark.parametrize(
    ("builder", "count", "shape", "options"),
    [*ROWS, *SMALL],
)
def test_training_and_evaluation_differ_by_dropout_alone(
    builder: Builder, count: int, shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model, x = builder(**options), torch.randn(2, *shape)
    drops = [layer for layer in model.modules() if isinstance(layer, nn.Dropout)]
    with torch.no_grad():
        evaluated, trained = model.eval()(x), model.train()(x)
        assert torch.equal(evaluated, trained) is not bool(drops)
        for layer in drops:
            layer.p = 0.0
        assert torch.equal(evaluated, model(x))


@pytest.mark.parametrize(
    ("builder", "count", "shape", "options"),
    [*ROWS, SMALL[0]],
)
@pytest.mark.numeric
def test_gradient_steps_lower_the_loss_on_a_fixed_batch(
    builder: Builder, count: int, shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    if builder is allcnn.allcnn:  # a small image is as good, and quicker
        shape = (3, 16, 16)
        options = {**options, "in_shape": shape}
    model = builder(**options)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    scale = 60.0 if builder.__module__ in ("models.krizhevsky", "models.alexnet") else 1.0  # theirs are raw 0..255
    x, y = scale * nn.functional.interpolate(torch.randn(8, shape[0], 4, 4), shape[1:]), torch.arange(8)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range({alexnet.alexnet: 10, allcnn.allcnn: 14}.get(builder, 30)):  # ConvPool-CNN-C is the last to move
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        torch.autograd.backward(loss)
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: lenet.lenet5(in_shape=(1, 30, 30)), r"\(1, 30, 30\).* 30 is not 12"),
        (lambda: lenet.lenet5(in_shape=(1, 12, 12)), r"\(1, 12, 12\).*from 16"),
        (lambda: lenet.lenet5(head="rbf", classes=26), "10 digits, not 26"),
        (lambda: mlp.mlp(hidden=(300, 0)), r"\[300, 0\] must hold at least 1"),
        (lambda: convnetjs.cifar10(in_shape=(3, 7, 32)), r"\(3, 7, 32\).*\(2, 2, 2\): it leaves 0x4"),
        (lambda: convnetjs.mnist(in_shape=(1, 5, 5)), r"\(1, 5, 5\) is too small"),
        (lambda: krizhevsky.layers_80sec(in_shape=(3, 11, 32)), r"\(3, 11, 32\).* 11 leaves 2"),
        (lambda: krizhevsky.conv_local_11pct(in_shape=(3, 24, 5)), r"\(3, 24, 5\).* 5 leaves 2"),
        (lambda: allcnn.allcnn(in_shape=(3, 11, 11)), r"\(3, 11, 11\).* 11 is below 12"),
        (lambda: allcnn.imagenet(in_shape=(3, 66, 227)), r"\(3, 66, 227\).* 66 is below 67"),
        (lambda: allcnn.allcnn(conv7_padding=2), "conv7_padding 2 must be 0 or 1"),
        (lambda: alexnet.alexnet(bias=1e30), r"bias 1e\+30 must be from -10 to 10"),
        (lambda: alexnet.alexnet(fc_std=0.0), "fc_std 0 must be from 1e-06 to 1"),
        (lambda: alexnet.alexnet(dropout=-1), "dropout -1 must be from 0 to 0.99"),
        (lambda: alexnet.alexnet(in_shape=(3, 66, 227)), r"\(3, 66, 227\).* 66 is below 67"),
        (lambda: alexnet.alexnet(overlap=False, in_shape=(3, 34, 227)), r"\(3, 34, 227\).* 34 is below 39"),
        (lambda: alexnet.one_tower(dropout=1), "dropout 1 must be from 0 to 0.99"),
        (lambda: alexnet.one_tower(in_shape=(3, 62, 227)), r"\(3, 62, 227\).* 62 is below 63"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("builder", "shape"),
    [
        (linear.linear, (3, 8, 8)),
        (mlp.mlp, (1, 20, 20)),
        (lenet.lenet5, (3, 28, 28)),
        (lenet.lenet1, (1, 32, 24)),
        (lenet1989.lenet1989, (1, 15, 28)),
        (convnetjs.cifar10, (1, 28, 28)),
        (krizhevsky.layers_18pct, (3, 24, 24)),
        (krizhevsky.conv_local_11pct, (3, 32, 28)),
        (allcnn.allcnn, (1, 28, 28)),
        (allcnn.allcnn, (3, 12, 13)),
        (krizhevsky.layers_80sec, (3, 12, 12)),
        (krizhevsky.conv_local_13pct, (3, 6, 6)),
    ],
)
def test_other_shapes_and_classes(builder: Builder, shape: tuple[int, int, int]) -> None:
    model = builder(in_shape=shape, classes=7).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, *shape)).shape == (2, 7)


def test_the_families_import_nothing_but_torch_and_one_another() -> None:
    allowed = {"models", "torch", "__future__", "collections", "functools", "itertools", "math", "typing"}
    for path in Path(models.__path__[0]).glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        named |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        assert {name.split(".")[0] for name in named} <= allowed, path.name


def test_the_table_of_the_mlps_is_the_models() -> None:
    """Each row a net: its units, and the parameters of each layer."""
    rows = re.findall(r"\| ([\d-]+-10) +\| ([\d,+ ]+) = ([\d,]+) +\|", str(mlp.__doc__))
    assert len(rows) == 4
    for units, sums, total in rows:
        pixels, *hidden, classes = map(int, units.split("-"))
        model = mlp.mlp(hidden=tuple(hidden))
        layers = [layer for layer in model.modules() if list(layer.parameters(recurse=False))]
        assert (pixels, classes) == (784, 10)
        assert [parameters(layer) for layer in layers] == [int(part.replace(",", "")) for part in sums.split("+")]
        assert parameters(model) == int(total.replace(",", ""))
