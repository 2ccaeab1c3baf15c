"""Guards the CIFAR-10 and ImageNet families: layers, shapes, and their special layers against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import alexnet, allcnn, convnetjs, krizhevsky, ml4a, mlp
from models.normalisation import ResponseNorm


def named_counts(model: nn.Module) -> dict[str, int]:
    """Parameters of each child that has any."""
    sums = {name: sum(weight.numel() for weight in child.parameters()) for name, child in model.named_children()}
    return {name: count for name, count in sums.items() if count}


def named_shapes(model: nn.Module, shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """The output of each child of a Sequential, without the batch."""
    x, shapes = torch.zeros(1, *shape, device="meta"), {}  # shapes alone, without the arithmetic
    for name, child in model.to("meta").named_children():
        x = child(x)
        shapes[name] = tuple(x.shape[1:])
    return shapes


def test_convnetjs_layers() -> None:
    assert list(named_counts(convnetjs.cifar10()).values()) == [1_216, 8_020, 10_020, 3_210]
    assert list(named_counts(convnetjs.mnist()).values()) == [208, 3_216, 2_570]
    shapes = list(named_shapes(convnetjs.cifar10(), (3, 32, 32)).values())
    assert shapes[2::3] == [(16, 16, 16), (20, 8, 8), (20, 4, 4)]
    assert list(named_shapes(convnetjs.mnist(), (1, 24, 24)).values())[2::3] == [(8, 12, 12), (16, 4, 4)]


def test_convnetjs_starts_as_its_code_does() -> None:
    torch.manual_seed(0)
    convs = [layer for layer in convnetjs.cifar10() if isinstance(layer, nn.Conv2d)]  # type: ignore[attr-defined]
    for conv in convs:
        assert conv.bias is not None and (conv.bias == 0.1).all()
        assert conv.weight.std().item() == pytest.approx((conv.in_channels * 25) ** -0.5, rel=0.05)
    softmax = list(convnetjs.cifar10().children())[-1]
    assert isinstance(softmax, nn.Linear) and (softmax.bias == 0).all()


def test_ml4a_and_mlp_layers() -> None:
    assert list(named_counts(ml4a.ordinary()).values()) == [30_730, 110]
    assert list(named_counts(mlp.mlp(hidden=(300, 100))).values()) == [235_500, 30_100, 1_010]
    out = mlp.mlp(output="tanh")(100 * torch.randn(64, 1, 28, 28))
    assert out.abs().max() <= 1.7159
    torch.testing.assert_close(
        mlp.ScaledTanh()(torch.tensor([-1.0, 1.0])), torch.tensor([-1.0, 1.0]), atol=1e-4, rtol=0
    )


def test_krizhevsky_pooled_layers() -> None:
    expected = {"conv1": 2_432, "conv2": 25_632, "conv3": 51_264, "fc64": 65_600, "fc10": 650}
    assert named_counts(krizhevsky.layers_80sec()) == expected
    expected = {"conv1": 2_432, "conv2": 25_632, "conv3": 51_264, "fc10": 10_250}
    assert named_counts(krizhevsky.layers_19pct()) == named_counts(krizhevsky.layers_18pct()) == expected
    shapes = named_shapes(krizhevsky.layers_18pct(), (3, 32, 32))
    assert (shapes["pool1"], shapes["pool2"], shapes["pool3"]) == ((32, 16, 16), (32, 8, 8), (64, 4, 4))
    assert shapes["rnorm1"] == (32, 16, 16) and shapes["rnorm2"] == (32, 8, 8)
    order = [name for name, _ in krizhevsky.layers_18pct().named_children()]
    assert order[:5] == ["conv1", "pool1", "relu1", "rnorm1", "conv2"]
    assert "rnorm1" not in dict(krizhevsky.layers_19pct().named_children())


def test_krizhevsky_local_layers() -> None:
    expected = {"conv1": 4_864, "conv2": 102_464, "local3": 664_704, "local4": 332_928, "fc10": 11_530}
    assert named_counts(krizhevsky.conv_local_13pct()) == expected
    expected |= {"local3": 1_329_408, "local4": 664_704}
    assert named_counts(krizhevsky.conv_local_11pct()) == expected
    shapes = named_shapes(krizhevsky.conv_local_11pct(), (3, 24, 24))
    assert (shapes["pool1"], shapes["pool2"], shapes["local3"]) == ((64, 12, 12), (64, 6, 6), (64, 6, 6))
    order = [name for name in shapes if name.startswith(("pool", "rnorm", "relu"))]
    assert order == ["relu1", "pool1", "rnorm1", "relu2", "rnorm2", "pool2", "relu3", "relu4"]


def test_krizhevsky_starts_with_the_files_deviations() -> None:
    torch.manual_seed(0)
    stds = {
        krizhevsky.layers_80sec: {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc64": 0.1, "fc10": 0.1},
        krizhevsky.layers_18pct: {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc10": 0.01},
        krizhevsky.conv_local_11pct: {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc10": 0.01},
    }
    for build, layers in stds.items():
        weights = dict(build().named_parameters())
        for name, std in layers.items():
            assert weights[f"{name}.weight"].std().item() == pytest.approx(std, rel=0.1), name
            assert (weights[f"{name}.bias"] == 0).all()


def test_a_pooling_that_hangs_over_the_border_averages_what_is_inside() -> None:
    pool = dict(krizhevsky.layers_80sec().named_children())["pool2"]
    assert torch.equal(pool(torch.ones(1, 1, 16, 16)), torch.ones(1, 1, 8, 8))


def test_locally_connected_equals_a_loop() -> None:
    torch.manual_seed(0)
    layer = krizhevsky.LocallyConnected(3, 4, (5, 6))
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 5, 6)
    weight = layer.weight.detach().numpy().reshape(5, 6, 3, 3, 3, 4)  # row, column, map, kernel row, column, filter
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.empty((2, 4, 5, 6), np.float32)
    for r in range(5):
        for c in range(6):
            window = padded[:, :, r : r + 3, c : c + 3].reshape(2, -1)
            expected[:, :, r, c] = window @ weight[r, c].reshape(27, 4) + layer.bias.detach().numpy()[r * 6 + c]
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def across_maps(x: np.ndarray, size: int, alpha: float, beta: float, k: float) -> np.ndarray:
    """b_i = a_i / (k + alpha sum_j a_j^2)^beta, j within ``size // 2`` of i, in double precision."""
    maps, half = x.shape[1], size // 2
    out = np.empty(x.shape)
    for i in range(maps):
        near = x[:, max(0, i - half) : min(maps, i + half + 1)].astype(float)
        out[:, i] = x[:, i] / (k + alpha * (near**2).sum(1)) ** beta
    return out


def test_alexnet_normalises_by_the_papers_formula() -> None:
    x = np.random.default_rng(0).normal(scale=50, size=(2, 12, 5, 5)).astype(np.float32)
    norm = dict(alexnet.alexnet(in_shape=(3, 67, 67), classes=10).named_children())["norm1"]
    out = norm(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(out, across_maps(x, size=5, alpha=1e-4, beta=0.75, k=2), rtol=1e-5)
    divided = across_maps(x, size=5, alpha=1e-4 / 5, beta=0.75, k=2)  # what dividing alpha by n would give
    assert np.abs(out / divided - 1).max() > 0.1


def test_krizhevsky_normalises_as_cuda_convnet() -> None:
    x = np.random.default_rng(0).normal(scale=200, size=(2, 12, 6, 5)).astype(np.float32)
    across = dict(krizhevsky.conv_local_11pct().named_children())["rnorm1"]
    expected = across_maps(x, size=9, alpha=1e-3 / 9, beta=0.75, k=1)
    np.testing.assert_allclose(across(torch.from_numpy(x)).numpy(), expected, rtol=1e-5)
    same_map = np.empty(x.shape)
    for r in range(6):
        for c in range(5):
            near = x[:, :, max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].astype(float)
            same_map[:, :, r, c] = x[:, :, r, c] / (1 + 5e-5 / 9 * (near**2).sum((2, 3))) ** 0.75
    np.testing.assert_allclose(krizhevsky.SameMapNorm()(torch.from_numpy(x)).numpy(), same_map, rtol=1e-5)


def test_alexnet_layers() -> None:
    with torch.device("meta"):
        model = alexnet.alexnet()
    expected = {"conv1": 34_944, "conv2": 307_456, "conv3": 885_120, "conv4": 663_936, "conv5": 442_624}
    expected |= {"fc6": 37_752_832, "fc7": 16_781_312, "fc8": 4_097_000}
    assert named_counts(model) == expected


def test_one_tower_has_torchvisions_layers() -> None:
    with torch.device("meta"):
        model = alexnet.one_tower()
    expected = {"conv1": 23_296, "conv2": 307_392, "conv3": 663_936, "conv4": 884_992, "conv5": 590_080}
    expected |= {"fc6": 37_752_832, "fc7": 16_781_312, "fc8": 4_097_000}
    assert named_counts(model) == expected
    order = [name for name, _ in model.named_children()]
    assert order[-8:] == ["flatten", "drop6", "fc6", "relu6", "drop7", "fc7", "relu7", "fc8"]
    assert not any(isinstance(layer, ResponseNorm) for layer in model.modules())


ABLATIONS: list[tuple[dict[str, Any], str, int]] = [
    ({"normalise": False}, "norm1 norm2", 60_965_224),
    ({"overlap": False}, "pool1 pool2 pool5", 60_965_224),
    ({"dropout": 0.0}, "drop6 drop7", 60_965_224),
    ({"towers": 1}, "conv1 conv2 conv3 conv4 conv5", 59_798_312),
]


@pytest.mark.parametrize(("options", "changed", "count"), ABLATIONS)
def test_an_ablation_changes_one_part_and_no_side(options: dict[str, Any], changed: str, count: int) -> None:
    with torch.device("meta"):
        whole, without = alexnet.alexnet().eval(), alexnet.alexnet(**options).eval()
        sides = [[shape[1:] for shape in named_shapes(net, (3, 227, 227)).values()] for net in (whole, without)]
    ours, theirs = (dict(net.named_children()) for net in (without, whole))
    assert [name for name in theirs if repr(ours[name]) != repr(theirs[name])] == changed.split()
    assert sides[0] == sides[1]
    assert sum(weight.numel() for weight in without.parameters()) == count


@pytest.mark.parametrize("side", [227, 224])
def test_alexnet_shapes(side: int) -> None:
    with torch.device("meta"):
        shapes = named_shapes(alexnet.alexnet(in_shape=(3, side, side)).eval(), (3, side, side))
    assert [shapes[name] for name in ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")] == [
        *((96, 55, 55), (96, 27, 27), (256, 27, 27), (256, 13, 13)),
        *((384, 13, 13), (384, 13, 13), (256, 13, 13), (256, 6, 6)),
    ]


def test_alexnet_towers_meet_in_conv3_alone() -> None:
    layers = dict(alexnet.alexnet(in_shape=(3, 67, 67), classes=10).named_children())
    for name, joined in (("conv2", False), ("conv3", True), ("conv4", False), ("conv5", False)):
        conv = layers[name]
        assert isinstance(conv, nn.Conv2d)
        x = torch.randn(1, conv.in_channels, 3, 3, requires_grad=True)
        out: Tensor = conv(x)
        torch.autograd.backward(out[:, : conv.out_channels // 2].sum())
        assert x.grad is not None
        assert bool(x.grad[:, conv.in_channels // 2 :].any()) is joined, name


def test_alexnet_starts_as_the_paper_or_as_bvlc() -> None:
    torch.manual_seed(0)
    starts: list[tuple[dict[str, Any], float, float]] = [
        ({}, 1.0, 0.01),
        ({"bias": 0.1, "fc_std": 0.005}, 0.1, 0.005),
    ]
    for options, bias, fc_std in starts:
        layers = dict(alexnet.alexnet(in_shape=(3, 67, 67), classes=10, **options).named_children())
        for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
            layer = layers[name]
            assert isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None
            expected = bias if name in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0
            assert (layer.bias == expected).all(), name
            std = fc_std if name in ("fc6", "fc7") else 0.01
            assert layer.weight.std().item() == pytest.approx(std, rel=0.05), name


def test_alexnet_drops_after_the_first_two_full_layers() -> None:
    with torch.device("meta"):
        order = [name for name, _ in alexnet.alexnet().named_children()]
    assert order[-7:] == ["fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8"]


def outline(model: nn.Module) -> list[str]:
    """A short word for each layer."""
    words = []
    for layer in model.children():
        if isinstance(layer, nn.Conv2d):
            stride = f"/{layer.stride[0]}" if layer.stride[0] > 1 else ""
            words.append(f"c{layer.kernel_size[0]}x{layer.out_channels}{stride}")
        else:
            words.append({nn.Dropout: "drop", nn.ReLU: "relu", nn.MaxPool2d: "pool"}.get(type(layer), "mean"))
    return words


def convolutions_and_pools(base: Any, variant: Any) -> str:
    return " ".join(word for word in outline(allcnn.allcnn(base=base, variant=variant)) if word[0] in "cp")


TAIL = "c3x192 c1x192 c1x10"


@pytest.mark.parametrize(
    ("base", "variant", "layers"),
    [
        ("A", "base", "c5x96 pool c5x192 pool"),
        ("A", "strided", "c5x96/2 c5x192/2"),
        ("A", "convpool", "c5x96 c3x96 pool c5x192 c3x192 pool"),
        ("A", "allcnn", "c5x96 c3x96/2 c5x192 c3x192/2"),
        ("B", "base", "c5x96 c1x96 pool c5x192 c1x192 pool"),
        ("B", "strided", "c5x96 c1x96/2 c5x192 c1x192/2"),
        ("B", "convpool", "c5x96 c1x96 c3x96 pool c5x192 c1x192 c3x192 pool"),
        ("B", "allcnn", "c5x96 c1x96 c3x96/2 c5x192 c1x192 c3x192/2"),
        ("C", "base", "c3x96 c3x96 pool c3x192 c3x192 pool"),
        ("C", "strided", "c3x96 c3x96/2 c3x192 c3x192/2"),
        ("C", "convpool", "c3x96 c3x96 c3x96 pool c3x192 c3x192 c3x192 pool"),
        ("C", "allcnn", "c3x96 c3x96 c3x96/2 c3x192 c3x192 c3x192/2"),
    ],
)
def test_the_twelve_cells_of_table_3(base: str, variant: str, layers: str) -> None:
    assert convolutions_and_pools(base, variant) == f"{layers} {TAIL}"


def test_all_cnn_c_in_full() -> None:
    assert " ".join(outline(allcnn.allcnn())) == (
        "drop c3x96 relu c3x96 relu c3x96/2 relu drop c3x192 relu c3x192 relu c3x192/2 relu drop "
        "c3x192 relu c1x192 relu c1x10 relu mean"
    )
    rates = [layer.p for layer in allcnn.allcnn().children() if isinstance(layer, nn.Dropout)]
    assert rates == [0.2, 0.5, 0.5]
    assert "drop" not in outline(allcnn.allcnn(dropout=False))


@pytest.mark.parametrize("variant", ["base", "strided", "convpool", "allcnn"])
@pytest.mark.parametrize("logits_relu", [True, False])
def test_every_convolution_has_a_relu_and_the_last_one_by_choice(variant: Any, logits_relu: bool) -> None:
    words = outline(allcnn.allcnn(variant=variant, logits_relu=logits_relu))
    after = [words[i + 1] for i, word in enumerate(words) if word[0] == "c"]
    assert after == ["relu"] * (len(after) - 1) + ["relu" if logits_relu else "mean"]


@pytest.mark.parametrize("variant", ["base", "strided", "convpool", "allcnn"])
@pytest.mark.parametrize(("padding", "side"), [(0, 6), (1, 8)])
def test_the_side_that_is_averaged(variant: Any, padding: int, side: int) -> None:
    bases: tuple[Any, ...] = ("A", "B", "C")
    for base in bases:
        shapes = list(
            named_shapes(allcnn.allcnn(base=base, variant=variant, conv7_padding=padding), (3, 32, 32)).values()
        )
        assert shapes[-2:] == [(10, side, side), (10,)]
        assert (96, 16, 16) in shapes and (192, 8, 8) in shapes


@pytest.mark.parametrize(
    ("init", "std"),
    [
        ("he", math.sqrt(2 / 864)),
        ("xavier", math.sqrt(2 / (864 + 864))),
        ("caffe", math.sqrt(1 / 864)),
        ("normal005", 0.05),
    ],
)
def test_all_cnn_initial_weights(init: Any, std: float) -> None:
    torch.manual_seed(0)
    second = [layer for layer in allcnn.allcnn(init=init).children() if isinstance(layer, nn.Conv2d)][1]  # 3x3x96 -> 96
    assert second.weight.std().item() == pytest.approx(std, rel=0.02)
    assert second.bias is not None and (second.bias == 0).all()


@pytest.mark.parametrize("logits_relu", [True, False])
def test_all_logits_at_zero_are_a_plateau_for_the_relu_alone(logits_relu: bool) -> None:
    """The trap behind 2.303: with table 1's last ReLU, logits that fell below zero have no gradient to come back by."""
    torch.manual_seed(0)
    model = allcnn.allcnn(logits_relu=logits_relu, dropout=False)
    last = [layer for layer in model.children() if isinstance(layer, nn.Conv2d)][-1]
    assert last.bias is not None
    nn.init.constant_(last.bias, -1e3)  # alike for all classes: the softmax does not see it, a ReLU does
    loss = F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    moved = [weight.grad is not None and bool((weight.grad != 0).any()) for weight in model.parameters()]
    assert (loss.item() == pytest.approx(math.log(10), abs=1e-6)) is logits_relu
    assert not any(moved) if logits_relu else all(moved)


def test_all_cnn_in_bfloat16_and_channels_last() -> None:
    torch.manual_seed(0)
    model = allcnn.allcnn(dropout=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x)
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)
    rough.float().sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
