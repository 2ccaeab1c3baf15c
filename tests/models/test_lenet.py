"""Guards the LeNets and the 1989 network: against independent forms of the papers' own definitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from models import lenet, lenet1989, linear, ml4a, mlp

# Table I of the paper, as rows: for each S2 map the C3 maps it feeds.
TABLE = {
    0: {0, 4, 5, 6, 9, 10, 11, 12, 14, 15},
    1: {0, 1, 5, 6, 7, 10, 11, 12, 13, 15},
    2: {0, 1, 2, 6, 7, 8, 11, 13, 14, 15},
    3: {1, 2, 3, 6, 7, 8, 9, 12, 14, 15},
    4: {2, 3, 4, 7, 8, 9, 10, 12, 13, 15},
    5: {3, 4, 5, 8, 9, 10, 11, 13, 14, 15},
}


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a LeNet by the names of the docstring's tables."""
    named = dict(model.named_children())
    full = named.pop("full")
    assert isinstance(full, nn.ModuleList)
    return named | dict(zip(("c5", "f6"), full, strict=False))


def counts(model: nn.Module) -> dict[str, int]:
    return {name: sum(p.numel() for p in layer.parameters()) for name, layer in layers(model).items()}


def shapes(model: nn.Module, x: Tensor) -> dict[str, tuple[int, ...]]:
    seen: dict[str, tuple[int, ...]] = {}
    for name, layer in layers(model).items():
        layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: tuple(out.shape[1:])}))
    model(x)
    return seen


def connections(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Of each layer: for each unit the inputs that move it, and a bias; a map's units have as many as its first."""
    found: dict[str, int] = {}

    def count(name: str, layer: nn.Module, fed: Tensor) -> None:
        maps = layer.forward(fed).flatten(2) if fed.dim() == 4 else layer.forward(fed)[..., None]  # not this hook again
        moved = torch.func.jacrev(lambda x: layer.forward(x).reshape(maps.shape)[..., 0])(fed).reshape(
            maps.shape[1], -1
        )
        found[name] = int((moved != 0).sum() + maps.shape[1]) * maps.shape[2]

    for name, layer in layers(model).items():
        layer.register_forward_hook(lambda layer, fed, _, name=name: count(name, layer, fed[0].detach()))
    with torch.no_grad():
        model(x)
    return found


def test_lenet5_layers() -> None:
    model = lenet.lenet5(head="rbf")
    assert counts(model) == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164, "head": 0}
    expected = {"c1": (6, 28, 28), "s2": (6, 14, 14), "c3": (16, 10, 10), "s4": (16, 5, 5), "c5": (120,), "f6": (84,)}
    assert shapes(model, torch.randn(2, 1, 32, 32)) == {**expected, "head": (10,)}
    found = connections(model, torch.randn(1, 1, 32, 32))
    assert (found["c1"], found["s2"], found["c3"], found["s4"]) == (122_304, 5_880, 151_600, 2_000)


def test_lenet1_layers_give_the_published_parameters_and_connections() -> None:
    model = lenet.lenet1()
    assert counts(model) == {"c1": 104, "s2": 8, "c3": 512, "s4": 24, "head": 1930}
    expected = {"c1": (4, 24, 24), "s2": (4, 12, 12), "c3": (12, 8, 8), "s4": (12, 4, 4), "head": (10,)}
    assert shapes(model, torch.randn(2, 1, 28, 28)) == expected
    assert sum(connections(model, torch.randn(1, 1, 28, 28)).values()) == 98_442


def test_lenet4_layers() -> None:
    model = lenet.lenet4()
    assert counts(model) == {"c1": 104, "s2": 16, "c3": 1216, "s4": 32, "c5": 48120, "head": 1210}
    seen = shapes(model, torch.randn(2, 1, 32, 32))
    assert (seen["s2"], seen["c3"], seen["s4"], seen["c5"]) == ((8, 14, 14), (16, 10, 10), (16, 5, 5), (120,))
    assert len({frozenset(inputs) for inputs in lenet.LENET4_MAPS}) == 16
    assert all(len({i // 2 for i in inputs}) == 3 for inputs in lenet.LENET4_MAPS), "one first-level map seen twice"
    assert set(Counter(i for inputs in lenet.LENET4_MAPS for i in inputs).values()) == {6}
    assert sum(connections(model, torch.randn(1, 1, 32, 32)).values()) == 262_306  # the paper: about 260,000


def test_lenet4_pairs_share_a_first_level_map() -> None:
    layer = lenet.Subsampling(8, copies=2)
    lenet._start(layer, "fan_in")
    x = torch.zeros(1, 4, 4, 4)
    x[0, 1] = 1.0
    changed = (layer(x) != layer(torch.zeros_like(x))).flatten(2).any(2)[0]
    assert changed.nonzero().flatten().tolist() == [2, 3]


def test_boosted_lenet4_is_three_lenet4s_that_vote() -> None:
    torch.manual_seed(0)
    model = lenet.boosted_lenet4()
    assert isinstance(model, lenet.Ensemble)
    assert [sum(p.numel() for p in net.parameters()) for net in model.members] == [50_698] * 3
    assert sum(p.numel() for p in model.parameters()) == 152_094
    with torch.no_grad():
        for weight in model.parameters():  # the paper's start says nearly the same of every image
            weight.copy_(torch.randn_like(weight) * 0.3)
    x = torch.randn(5, 1, 32, 32)
    alone = [net(x) for net in model.members]
    for number in range(3):
        model.train().member = number
        assert torch.equal(model(x), alone[number])
    votes = sum(logits.softmax(1) for logits in alone)
    torch.testing.assert_close(model.eval()(x).softmax(1), votes / 3)
    with torch.no_grad():
        dict(model.members[0].named_parameters())["head.bias"][3] += 1e4  # certain to the last digit
    found = model(x)
    assert found.isfinite().all()
    torch.testing.assert_close(found.exp().sum(1), torch.ones(5))


def test_c3_sees_what_table_1_lists() -> None:
    torch.manual_seed(0)
    model = lenet.lenet5()
    c3 = layers(model)["c3"]
    s2 = torch.randn(1, 6, 14, 14)
    before = c3(s2)
    for i, fed in TABLE.items():
        moved = s2.clone()
        moved[0, i] += torch.randn(14, 14)
        changed = (c3(moved) != before).flatten(2).any(2)[0].nonzero().flatten().tolist()
        assert set(changed) == fed, f"S2 map {i}"
    assert sum(map(len, TABLE.values())) == 60


@pytest.mark.parametrize("options", [{}, {"head": "rbf"}, {"init": "sqrt_fan_in"}])
def test_lenet5_equals_the_paper_written_out(options: dict[str, Any]) -> None:
    """Amplitude that rides on the next layer's weights changes nothing: against f(a) = 1.7159 tanh(2a/3)."""
    torch.manual_seed(0)
    model = lenet.lenet5(**options).double()
    with torch.no_grad():  # the paper's start squeezes the signal: larger weights test more
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.3)
    p = {name: weight.detach() for name, weight in model.named_parameters()}
    x = torch.randn(3, 1, 32, 32, dtype=torch.float64)

    def f(a: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(2 * a / 3)

    c1 = f(F.conv2d(x, p["c1.weight"], p["c1.bias"]))
    s2 = f(4 * F.avg_pool2d(c1, 2) * p["s2.weight"] + p["s2.bias"])
    kernels = iter(p["c3.weight"])
    maps = []
    for j in range(16):
        feeding = [i for i in lenet.C3_MAPS[j]]
        assert set(feeding) == {i for i, fed in TABLE.items() if j in fed}
        total = sum(F.conv2d(s2[:, i : i + 1], next(kernels)[None, None]) for i in feeding)
        maps.append(f(total + p["c3.bias"][j]))
    s4 = f(4 * F.avg_pool2d(torch.cat(maps, 1), 2) * p["s4.weight"] + p["s4.bias"])
    c5 = f(s4.flatten(1) @ p["full.0.weight"].T + p["full.0.bias"])
    f6 = f(c5 @ p["full.1.weight"].T + p["full.1.bias"])
    if options.get("head") == "rbf":
        centres = lenet.digit_bitmaps().flatten(1).numpy()
        expected = torch.from_numpy(-((f6.numpy()[:, None] - centres[None]) ** 2).sum(-1))
    else:
        expected = f6 @ p["head.weight"].T + p["head.bias"]
    torch.testing.assert_close(model(x).detach(), expected, rtol=1e-10, atol=1e-10)


def test_rbf_is_the_squared_distance_to_fixed_bitmaps() -> None:
    head = lenet.RBF()
    assert not list(head.parameters())
    assert set(head.state_dict()) == {"centres"}
    f6 = np.random.default_rng(0).uniform(-1.7159, 1.7159, (5, 84)).astype(np.float32)
    expected = -((f6[:, None].astype(np.float64) - head.centres.numpy()[None]) ** 2).sum(-1)
    out = head(torch.from_numpy(f6 / np.float32(1.7159))).numpy()
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    exact = head(head.centres / lenet.AMPLITUDE)
    assert exact.argmax(1).tolist() == list(range(10))
    assert exact.diagonal().abs().max() < 1e-3


def test_the_bitmaps_are_ten_different_pictures_of_7_by_12() -> None:
    pictures = lenet.digit_bitmaps()
    assert pictures.shape == (10, 12, 7)
    assert set(pictures.flatten().tolist()) == {-1.0, 1.0}
    holes = [ndimage.label(np.pad(picture, 1, constant_values=-1) < 0)[1] - 1 for picture in pictures.numpy()]
    assert dict(enumerate(holes)) == {0: 1, 1: 0, 2: 0, 3: 0, 4: 1, 5: 0, 6: 1, 7: 0, 8: 2, 9: 1}  # that digits have
    ink = pictures.numpy() > 0
    left, right = ink[:, :, 0].sum(1), ink[:, :, -1].sum(1)
    assert left[6] > right[6] and left[9] < right[9]  # a six is closed below, a nine above
    assert ink[2, -2].all() and ink[7, 1].all() and ink[5, 1].all()  # the bars of 2, 7 and 5
    assert ink[5, 2:6, 0].all() and not ink[7, 2:, 0].any() and ink[1].sum() == ink.sum((1, 2)).min()
    differing = (pictures.flatten(1)[:, None] != pictures.flatten(1)[None]).sum(-1)
    assert (differing + 84 * torch.eye(10, dtype=torch.long)).min() >= 5  # pixels between any two digits


@pytest.mark.parametrize(("init", "power"), [("fan_in", 1.0), ("sqrt_fan_in", 0.5)])
def test_initial_weights_fill_their_range(init: Any, power: float) -> None:
    torch.manual_seed(0)
    p = dict(lenet.lenet5(init=init).named_parameters())
    fan_in = {"c1.weight": 25, "full.0.weight": 400, "full.1.weight": 120, "head.weight": 84}
    for name, inputs in fan_in.items():
        assert 0.9 * 2.4 / inputs**power < p[name].abs().max() <= 2.4 / inputs**power, name
    first, last = p["c3.weight"][:3], p["c3.weight"][-6:]  # maps of three inputs and of six
    assert 0.9 * 2.4 / 75**power < first.abs().max() <= 2.4 / 75**power
    assert 0.9 * 2.4 / 150**power < last.abs().max() <= 2.4 / 150**power
    assert p["s4.weight"].abs().max() <= 2.4 / 4**power
    assert all((weight == 0).all() for name, weight in p.items() if name.endswith("bias"))


@pytest.mark.parametrize(
    ("build", "fan_in", "power"),
    [
        (linear.linear, {"1.weight": 784}, 1.0),
        (lambda: mlp.mlp(hidden=(300, 100)), {"1.weight": 784, "3.weight": 300, "5.weight": 100}, 1.0),
        (lambda: mlp.mlp(init="sqrt_fan_in"), {"1.weight": 784, "3.weight": 300}, 0.5),
        (lenet1989.lenet1989, {"h1_weight": 25, "h2_weight": 200, "h3.weight": 192, "output.weight": 30}, 0.5),
    ],
    ids=["linear", "mlp", "mlp by the root", "lenet1989"],
)
def test_initial_weights_of_the_others_fill_theirs(
    build: Callable[[], nn.Module], fan_in: dict[str, int], power: float
) -> None:
    torch.manual_seed(0)
    model = build()
    p = dict(model.named_parameters())
    assert {name for name in p if name.endswith("weight")} == fan_in.keys()
    for name, inputs in fan_in.items():
        assert 0.9 * 2.4 / inputs**power < p[name].abs().max() <= 2.4 / inputs**power, name
    biases = {name: bias for name, bias in p.items() if name.endswith("bias")}
    if isinstance(model, lenet1989.LeNet1989):  # karpathy/lecun1989-repro: most outputs' targets are -1
        assert (biases.pop("output.bias") == -1).all()
    assert biases and all((bias == 0).all() for bias in biases.values())


def test_ml4as_ordinary_net_starts_as_convnetjs_does() -> None:
    torch.manual_seed(0)
    p = dict(ml4a.ordinary().named_parameters())
    assert p["1.weight"].std().item() == pytest.approx(3072**-0.5, rel=0.05)
    assert p["3.weight"].std().item() == pytest.approx(10**-0.5, rel=0.3)  # 100 weights
    assert (p["1.bias"] == 0).all() and (p["3.bias"] == 0).all()


def test_lenet1989_layers() -> None:
    model = lenet1989.lenet1989()
    shapes_of = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert shapes_of == {
        "h1_weight": (12, 1, 5, 5),
        "h1_bias": (12, 8, 8),  # a bias for each unit
        "h2_weight": (12, 8, 5, 5),
        "h2_bias": (12, 4, 4),
        "h3.weight": (30, 192),
        "h3.bias": (30,),
        "output.weight": (10, 30),
        "output.bias": (10,),
    }
    # a unit for each of its biases, which has a connection to each weight of its map and one to the bias
    kernels = [(shapes_of[f"h{i}_bias"], shapes_of[f"h{i}_weight"]) for i in (1, 2)]
    kernels += [(shapes_of[f"{name}.bias"], shapes_of[f"{name}.weight"]) for name in ("h3", "output")]
    assert 16 * 16 + sum(int(np.prod(units)) for units, _ in kernels) == 1_256
    assert sum(int(np.prod(units)) * (int(np.prod(weights[1:])) + 1) for units, weights in kernels) == 64_660


def test_lenet1989_equals_a_loop_over_planes_and_places() -> None:
    torch.manual_seed(0)
    model = lenet1989.lenet1989().double()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    p = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64)

    def planes(image: np.ndarray, weight: np.ndarray, bias: np.ndarray, sources: list[list[int]]) -> np.ndarray:
        side = bias.shape[1]
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), constant_values=-1.0)
        out = np.empty_like(bias)
        for k, source in enumerate(sources):
            for r in range(side):
                for c in range(side):
                    window = padded[source, 2 * r : 2 * r + 5, 2 * c : 2 * c + 5]
                    out[k, r, c] = np.tanh((window * weight[k]).sum() + bias[k, r, c])
        return out

    thirds = [list(range(0, 8)), list(range(4, 12)), [0, 1, 2, 3, 8, 9, 10, 11]]
    h1 = planes(x[0].numpy(), p["h1_weight"], p["h1_bias"], [[0]] * 12)
    h2 = planes(h1, p["h2_weight"], p["h2_bias"], [thirds[k // 4] for k in range(12)])
    h3 = np.tanh(p["h3.weight"] @ h2.ravel() + p["h3.bias"])
    expected = np.tanh(p["output.weight"] @ h3 + p["output.bias"])
    np.testing.assert_allclose(model(x)[0].detach().numpy(), expected, rtol=1e-10)


def test_lenet1989_linear_output_is_before_the_squashing() -> None:
    torch.manual_seed(0)
    squashed = lenet1989.lenet1989()
    raw = lenet1989.lenet1989(output="linear")
    raw.load_state_dict(squashed.state_dict())
    x = torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(torch.tanh(raw(x)), squashed(x))
