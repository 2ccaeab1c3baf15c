"""Stochastic diagonal Levenberg-Marquardt against sums over connections, written out one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import convnetjs, lenet, lenet1989, linear, mlp
from pipelines.command.errors import UserError
from pipelines.command.files import read_json, read_lines
from pipelines.config.params import load_params
from pipelines.config.recipes import MAP_CONSTANT, Optimiser, Schedule
from pipelines.data import transforms
from pipelines.data.batches import Batches
from pipelines.training import checkpoint, checks, losses, schedules, spec, speed, trainer
from pipelines.training.inputs import Inputs
from pipelines.training.losses import CrossEntropy, Loss, MaximumAPosteriori, MeanSquaredError
from pipelines.training.optimisers import build_optimiser
from pipelines.training.sdlm import SDLM, curvature
from tests.conftest import ROOT, THREADS, edit_params
from tests.disturbed import on_two_workers

Array = npt.NDArray[np.float64]
Network = TypeVar("Network", bound=nn.Module)
PUBLISHED = Optimiser(name="sdlm", lr=0.0005)
LOSSES: dict[str, Loss] = {
    "cross_entropy": CrossEntropy(),
    "mse": MeanSquaredError(),
    "map, near": MaximumAPosteriori(0.5),
    "map, far": MaximumAPosteriori(30.0),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def digits(count: int, classes: int = 10) -> Tensor:
    return torch.arange(count) * 7 % classes


def enlarged(model: Network) -> Network:
    """In double precision and with weights so large that squashing bends."""
    model = model.double()
    for number, p in enumerate(model.parameters()):
        p.data = 0.5 * drawn(*p.shape, seed=number)
    return model


# --- where it begins ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_a_losss_curvature_is_its_hessians_diagonal(name: str) -> None:
    loss, outputs = LOSSES[name], 2 * drawn(5, 4)
    found = loss.curvature(outputs)
    for row, label, ours in zip(outputs, digits(5, 4), found, strict=True):
        hessian = torch.autograd.functional.hessian(lambda o, c=label: loss(o[None], c[None]), row)
        torch.testing.assert_close(ours, hessian.diagonal())


def test_of_a_linear_layer_under_squared_error_it_is_the_hessians_diagonal() -> None:
    model, images, labels = enlarged(nn.Linear(4, 3)), drawn(250, 4), digits(250, 3)  # more than fit at once
    found = curvature(model, MeanSquaredError(), images, labels)

    def of(weight: Tensor, bias: Tensor) -> Tensor:
        return MeanSquaredError()(F.linear(images, weight, bias), labels)

    (of_weight, _), (_, of_bias) = torch.autograd.functional.hessian(of, (model.weight, model.bias))
    torch.testing.assert_close(found["weight"].flatten(), of_weight.reshape(12, 12).diagonal())
    torch.testing.assert_close(found["bias"], of_bias.diagonal())


@pytest.mark.parametrize("name", LOSSES)
def test_the_rbf_units_own_rule_is_the_hessian_but_for_what_mixes_two_units(name: str) -> None:
    head, loss = lenet.RBF().double(), LOSSES[name]
    between = (head.centres[[3, 5, 1]] + head.centres[[8, 6, 7]]) / 2 + 0.1 * drawn(3, 84)  # no q of 0 or 1
    for x, label in zip((between / lenet.AMPLITUDE)[:, None], digits(3)[:, None], strict=True):
        outputs = head(x).requires_grad_()
        (first,) = torch.autograd.grad(loss(outputs, label), outputs)
        found = head.curvature(x, first, loss.curvature(outputs.detach()))[0]
        assert (found >= 0).all()
        hessian = torch.autograd.functional.hessian(lambda o, c=label: loss(o, c), outputs.detach())[0, :, 0]
        mixed = hessian - hessian.diagonal().diag()
        slopes = torch.autograd.functional.jacobian(head, x)[0, :, 0]  # (10, 84)
        exact = torch.autograd.functional.hessian(lambda t, c=label: loss(head(t), c), x)[0, :, 0].diagonal()
        expected = exact - torch.einsum("ij,ik,kj->j", slopes, mixed, slopes)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_far_from_every_digit_a_code_unit_sees_one_parabola() -> None:
    """Beyond j the criterion is the distance to the class alone: h = 2 for each unit of F6, amplitude apart."""
    head, x = lenet.RBF(), torch.zeros(1, 84)
    loss = MaximumAPosteriori(1.0)
    outputs = head(x).requires_grad_()
    (first,) = torch.autograd.grad(loss(outputs, torch.tensor([3])), outputs)
    found = head.curvature(x, first, loss.curvature(outputs.detach()))
    torch.testing.assert_close(found, torch.full((1, 84), 2 * lenet.AMPLITUDE**2))


# --- the recursion -----------------------------------------------------------------------------------------------


def f(a: Array) -> Array:
    found: Array = 1.7159 * np.tanh(2 * a / 3)
    return found


def slope(a: Array) -> Array:
    found: Array = 1.7159 * 2 / 3 * (1 - np.tanh(2 * a / 3) ** 2)
    return found


def test_two_layers_against_the_recursion_written_out() -> None:
    model = enlarged(mlp.mlp(hidden=(5,), output="tanh", classes=3, in_shape=(1, 2, 2)))
    w1, b1, w2, b2 = (p.detach().numpy() for p in model.parameters())
    images, labels = drawn(6, 1, 2, 2), digits(6, 3)
    expected: list[list[Array]] = []
    for x0 in images.flatten(1).numpy():
        a1 = w1 @ x0 + b1
        x1 = f(a1)
        a2 = w2 @ x1 + b2
        h_a2 = slope(a2) ** 2 * 2
        h_a1 = slope(a1) ** 2 * ((w2**2).T @ h_a2)
        expected.append([np.outer(h_a1, x0**2), h_a1, np.outer(h_a2, x1**2), h_a2])
    found = curvature(model, MeanSquaredError(), images, labels)
    for ours, each in zip(found.values(), zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(ours.numpy(), np.mean(each, axis=0), rtol=1e-12)


Connection = tuple[int, int, int]  # unit, the unit below that feeds it (-1: the bias's 1), its parameter's number


class Shared:
    """C1, S2, C3 and a squashed full layer as lists of connections; parameters are shared, numbered across layers."""

    TABLE = ((0,), (0, 1))

    def __init__(self) -> None:
        self.c1 = lenet.Convolution(1, 2, 2)  # (1, 5, 5) -> (2, 4, 4)
        self.s2 = lenet.Subsampling(2)  # (2, 2, 2)
        self.c3 = lenet.SparseConvolution(self.TABLE, 2)  # (2, 1, 1)
        self.model = enlarged(nn.Sequential(self.c1, self.s2, self.c3, nn.Flatten(), lenet.Full(2, 3)))
        self.parameters = np.concatenate([p.detach().numpy().ravel() for p in self.model.parameters()])
        sizes = [p.numel() for p in self.model.parameters()]
        self.firsts = np.cumsum([0, *sizes])[:-1].tolist()

    def layers(self) -> Iterator[tuple[int, list[Connection]]]:
        """For each layer the number of units below and the connections; S2's are from the sums of 2 x 2 units."""
        w, b = self.firsts[0:2]
        c1 = [(16 * m + 4 * r + c, -1, b + m) for m in range(2) for r in range(4) for c in range(4)]
        for m, r, c, y, x in np.ndindex(2, 4, 4, 2, 2):
            c1.append((16 * m + 4 * r + c, 5 * (r + y) + c + x, w + 4 * m + 2 * y + x))
        yield 25, c1
        w, b = self.firsts[2:4]
        yield 8, [(4 * m + i, j, k) for m in range(2) for i in range(4) for j, k in ((4 * m + i, w + m), (-1, b + m))]
        w, b = self.firsts[4:6]
        kernels = [(m, source) for m, sources in enumerate(self.TABLE) for source in sources]
        c3 = [(m, -1, b + m) for m in range(2)]
        for number, (m, source) in enumerate(kernels):
            c3 += [(m, 4 * source + place, w + 4 * number + place) for place in range(4)]
        yield 8, c3
        w, b = self.firsts[6:8]
        yield 2, [(i, j, b + i if j < 0 else w + 2 * i + j) for i in range(3) for j in (-1, 0, 1)]

    def h(self, image: Array) -> Array:
        """The second derivative of each parameter: forward, then back, one connection after the other."""
        layers, x, trace = list(self.layers()), image.ravel(), []
        for number, (below, connections) in enumerate(layers):
            if number == 1:
                x = self.sums(x)
            a = np.zeros(1 + max(i for i, _, _ in connections))
            for i, j, k in connections:
                a[i] += self.parameters[k] * (1.0 if j < 0 else x[j])
            trace.append((below, connections, x, a))
            x = f(a)
        h_x = np.full(len(x), 2 / 1.7159**2)  # the model's outputs are tanh(2a/3), without the amplitude
        h = np.zeros(len(self.parameters))
        for number, (below, connections, x, a) in reversed(list(enumerate(trace))):
            h_a, h_x = slope(a) ** 2 * h_x, np.zeros(below)
            for i, j, k in connections:
                h[k] += h_a[i] * (1.0 if j < 0 else x[j] ** 2)
                if j >= 0:
                    h_x[j] += h_a[i] * self.parameters[k] ** 2
            if number == 1:  # each of 2 x 2 units feeds one sum with weight 1
                h_x = h_x.reshape(2, 2, 2).repeat(2, axis=1).repeat(2, axis=2).ravel()
        return h

    @staticmethod
    def sums(units: Array) -> Array:
        found: Array = units.reshape(2, 2, 2, 2, 2).sum((2, 4)).ravel()
        return found


def test_shared_weights_against_a_sum_over_connections() -> None:
    net, images = Shared(), drawn(3, 1, 5, 5)
    found = curvature(net.model, MeanSquaredError(), images, digits(3, 3))
    ours = torch.cat([value.flatten() for value in found.values()]).numpy()
    np.testing.assert_allclose(ours, np.mean([net.h(image) for image in images.numpy()], axis=0), rtol=1e-10)


class Branching(nn.Module):
    """A strided, grouped convolution beside a pooled branch: 8 units and 9 outputs, the first unit feeds two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, stride=3, groups=2)  # (2, 6, 6) -> (2, 2, 2)
        self.full = nn.Linear(4, 9)

    def forward(self, images: Tensor) -> Tensor:
        units = torch.sigmoid(self.conv(images)).flatten(1)
        out: Tensor = self.full(self.pooled(images)) + torch.cat([units, units[:, :1]], 1)
        return out

    def pooled(self, images: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(1.0 - images[:, :1]), 3).flatten(1)


def test_strides_groups_choices_and_units_that_feed_several() -> None:
    net, images = enlarged(Branching()), drawn(4, 2, 6, 6)
    found = curvature(net, MeanSquaredError(), images, digits(4, 9))
    a = F.conv2d(images, net.conv.weight, net.conv.bias, stride=3, groups=2).detach()  # (4, 2, 2, 2)
    h_a = 2 * (torch.sigmoid(a) * (1 - torch.sigmoid(a))) ** 2
    h_a[:, 0, 0, 0] *= 2
    fields = images.view(4, 2, 2, 3, 2, 3)  # no two overlap
    torch.testing.assert_close(found["conv.bias"], h_a.sum((2, 3)).mean(0))
    expected = torch.einsum("ngrc,ngrycx->gyx", h_a, fields.square()) / 4
    torch.testing.assert_close(found["conv.weight"][:, 0], expected)
    torch.testing.assert_close(found["full.weight"], (2 * net.pooled(images).square()).mean(0).expand(9, 4))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], Loss]] = {
    "lenet5, rbf": (lambda: lenet.lenet5(head="rbf"), (1, 32, 32), MaximumAPosteriori(1.0)),
    "lenet5, softmax": (lenet.lenet5, (1, 32, 32), CrossEntropy()),
    "lenet4": (lenet.lenet4, (1, 32, 32), CrossEntropy()),
    "lenet1": (lenet.lenet1, (1, 28, 28), CrossEntropy()),
    "mlp": (lambda: mlp.mlp(hidden=(30, 20), output="tanh"), (1, 28, 28), MeanSquaredError()),
    "lenet1989": (lenet1989.lenet1989, (1, 16, 16), MeanSquaredError()),
    "linear": (linear.linear, (1, 28, 28), CrossEntropy()),
    "convnetjs": (lambda: convnetjs.mnist(in_shape=(1, 24, 24)), (1, 24, 24), CrossEntropy()),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_network_has_a_second_derivative_for_each_parameter(name: str) -> None:
    build, shape, loss = MODELS[name]
    torch.manual_seed(0)
    model = build()
    found = curvature(model, loss, torch.randn(8, *shape), digits(8))
    assert {name: h.shape for name, h in found.items()} == {name: p.shape for name, p in model.named_parameters()}
    for name, h in found.items():
        assert h.isfinite().all() and (h >= 0).all() and h.max() > 0, name
        assert not h.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_what_is_not_trained_has_none() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    assert set(curvature(model, CrossEntropy(), torch.randn(2, 3), digits(2, 2))) == {"1.weight", "1.bias"}


@pytest.mark.parametrize(
    ("computes", "told"),
    [
        (lambda x: x.exp(), "exp"),
        (lambda x: torch.add(x, x, alpha=2), "add"),
        (lambda x: x.mul_(2.0), "mul_"),
        (lambda x: x / x.norm(), "norm"),
    ],
)
def test_an_operation_without_a_rule_is_one_line(computes: Callable[[Tensor], Tensor], told: str) -> None:
    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return computes(super().forward(x))

    with pytest.raises(ValueError, match=f"^name is sdlm; expected another: it has .* for {told}, with"):
        curvature(Net(3, 2), CrossEntropy(), torch.randn(2, 3), digits(2, 2))


# --- the optimiser -----------------------------------------------------------------------------------------------


def test_a_minibatch_makes_the_sum_of_its_patterns_steps() -> None:
    model, images, labels = enlarged(nn.Linear(4, 3)), drawn(5, 4), digits(5, 3)
    chosen = dataclasses.replace(PUBLISHED, mu=0.3)
    optimiser = build_optimiser(chosen, model)
    assert isinstance(optimiser, SDLM)
    h = curvature(model, CrossEntropy(), drawn(9, 4, seed=1), digits(9, 3))
    optimiser.estimate(model, CrossEntropy(), drawn(9, 4, seed=1), digits(9, 3))
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    for i in range(5):  # each pattern's own step from the same weights
        loss = CrossEntropy()(model(images[i : i + 1]), labels[i : i + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] -= 0.0005 / (0.3 + h[name]) * gradient
    CrossEntropy()(model(images), labels).backward()
    optimiser.examples = 5
    optimiser.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-15)


def test_the_published_rates_are_what_a_schedule_gives() -> None:
    """0.0005 twice, 0.0002 three times, 0.0001 three times, 0.00005 four times, then 0.00001: 20 passes."""
    schedule = Schedule(points=((0, 1.0), (2, 0.4), (5, 0.2), (8, 0.1), (12, 0.02)))
    rates = [PUBLISHED.lr * schedules.factor(schedule, epoch) for epoch in range(20)]
    assert rates == pytest.approx([5e-4] * 2 + [2e-4] * 3 + [1e-4] * 3 + [5e-5] * 4 + [1e-5] * 8)


# --- the samples -------------------------------------------------------------------------------------------------

COUNT = 40
IMAGES = np.broadcast_to(np.arange(COUNT, dtype=np.uint8)[:, None, None, None], (COUNT, 1, 4, 4))


def loader(augment: Any = (), **settings: Any) -> Batches:
    preprocess, fitted = transforms.build_preprocess([{"raw": {}}]), transforms.build_augment(augment)
    transforms.fit(preprocess, IMAGES, np.arange(len(IMAGES)), fitted)
    given: dict[str, Any] = {"batch": 8, "seed": 0, "preprocess": preprocess, "augment": fitted} | settings
    return Batches(IMAGES, np.arange(COUNT), torch.arange(5, COUNT), **given)


def test_samples_are_trained_on_and_a_function_of_seed_and_epoch_alone() -> None:
    images, labels = loader().samples(10, 3)
    assert torch.equal(images[:, 0, 0, 0].long(), labels) and images.dtype == torch.float32
    assert len(set(labels.tolist())) == 10 and labels.min() >= 5  # as the subset says
    used = loader(workers=2, rank=1, batch=2)
    next(iter(used))
    assert torch.equal(used.samples(10, 3)[1], labels)
    assert not torch.equal(loader().samples(10, 4)[1], labels)
    assert not torch.equal(loader(seed=1).samples(10, 3)[1], labels)
    assert sorted(loader().samples(500, 0)[1].tolist()) == list(range(5, COUNT))  # all, where there are fewer


def test_samples_look_as_what_is_trained_on() -> None:
    crop = [{"crop": {"size": 3}}]
    images, _ = loader(crop).samples(10, 0)
    assert images.shape == (10, 1, 3, 3)
    assert torch.equal(loader(crop).samples(10, 0)[0], images)


# --- trials ------------------------------------------------------------------------------------------------------

SDLM_RECIPE: dict[str, Any] = {
    "model.options": {"head": "rbf", "init": "sqrt_fan_in"},
    "recipe.loss": "map",
    "recipe.optimiser": {"name": "sdlm", "lr": 0.0005, "samples": 50},
    "recipe.schedule": {"points": [[0, 1.0], [10, 0.4]]},
    "recipe.batch": 16,
    "recipe.subset": {"first": 300},  # the last minibatch has 12
    "budgets.laptop": {"epochs": 3, "seeds": [0]},
}


def planned(root: str, **changes: Any) -> spec.Spec:
    params = edit_params(Path("params.yaml"), lenet5_mnist=SDLM_RECIPE | changes)
    benchmark = params.benchmark("lenet5-mnist")
    return spec.plan(benchmark, "laptop", 0, data=Path("datasets"), root=Path(root), threads=THREADS)


class Killed(Exception):
    """In place of a signal: nothing of the trial runs after it."""


@pytest.mark.parametrize("stop_at", [0.4, 1.0, 1.2])
def test_a_trial_that_is_stopped_goes_on_with_the_same_second_derivatives(
    project: Path, stop_at: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = trainer.run(planned("undisturbed"))
    one, save = planned("stopped"), checkpoint.CheckpointCallback._save

    def save_and_stop(self: checkpoint.CheckpointCallback, trainer: Any) -> None:
        save(self, trainer)
        if self.loader.epoch + self.loader.done / len(self.loader) >= stop_at:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "CHECKPOINT_EVERY_S", 0.0)
        patched.setattr(checkpoint.CheckpointCallback, "_agree", lambda self, now, batch: True)
        patched.setattr(checkpoint.CheckpointCallback, "_save", save_and_stop)
        with pytest.raises(Killed):
            trainer.run(one)
    assert one.files.checkpoint.exists() and not one.files.finished
    trainer.run(one)
    assert read_json(one.files.result)["resumed"] == 1
    first, second = (torch.load(files.weights, weights_only=True) for files in (one.files, undisturbed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_lines(one.files.curve)[2]["loss"] == read_lines(undisturbed.curve)[2]["loss"]


def test_each_pass_of_a_trial_begins_with_an_estimate_and_each_step_knows_its_patterns(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int | str] = []
    estimate, step = SDLM.estimate, SDLM.step

    def noted(self: SDLM, model: nn.Module, loss: Loss, images: Tensor, labels: Tensor) -> None:
        assert isinstance(loss, MaximumAPosteriori) and loss.constant == 2.5
        seen.append(f"{len(images)} samples")
        estimate(self, model, loss, images, labels)

    def counted(self: SDLM, closure: Any = None) -> None:
        seen.append(self.examples)
        step(self)

    monkeypatch.setattr(SDLM, "estimate", noted)
    monkeypatch.setattr(SDLM, "step", counted)
    trainer.run(planned("store", **{"recipe.map_constant": 2.5}))
    assert seen == ["50 samples", *[16] * 18, 12] * 3


@pytest.mark.numeric
def test_it_learns_and_its_speed_can_be_measured(project: Path) -> None:
    one = planned("store", **{"recipe.subset": {}, "budgets.laptop": {"epochs": 2, "seeds": [0]}})
    assert speed.measure(one, 0.05) > 0
    curve = read_lines(trainer.run(one).curve)
    assert curve[1]["train_error"] < curve[0]["train_error"] < 80


def test_two_workers_train_as_one_does(project: Path) -> None:
    """The same estimate, and steps of the same examples, sharded: but for the order of sums, the same curve."""
    alone = trainer.run(planned("alone"))
    both = planned("both", resources={"workers": 2})
    on_two_workers(both)
    assert read_json(both.files.result)["workers"] == 2
    curve = read_lines(both.files.curve)
    for ours, theirs in zip(curve, read_lines(alone.curve), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def test_a_trial_of_a_model_without_second_derivatives_is_one_line(project: Path) -> None:
    model = {"family": "allcnn", "name": "allcnn", "options": {"base": "A", "variant": "base"}}
    one = planned("store", **{"model": model, "recipe.loss": "cross_entropy"})
    with pytest.raises(UserError, match=r"lenet5-mnist\.recipe\.optimiser: name is sdlm; expected another"):
        checks.check(Inputs.of(one), "laptop")


def test_the_loss_of_a_recipe_has_the_recipes_constant() -> None:
    recipe = dataclasses.replace(load_params(ROOT / "params.yaml").benchmark("lenet5-mnist").recipe, loss="map")
    assert losses.build_loss(recipe) == MaximumAPosteriori(MAP_CONSTANT)
    assert losses.build_loss(dataclasses.replace(recipe, map_constant=7.0)) == MaximumAPosteriori(7.0)
