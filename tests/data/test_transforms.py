"""Transforms against independent references: NumPy, SciPy, Pillow, closed forms and plain slicing."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.command.errors import UserError
from pipelines.data import transforms
from pipelines.data.transforms import (
    AUGMENT,
    PREPROCESS,
    Augment,
    Preprocess,
    build_augment,
    build_preprocess,
    fit,
    output_shape,
)
from pipelines.training.inputs import check_operations
from tests.conftest import ROOT

Pixels = NDArray[np.uint8]


def photos(count: int, shape: tuple[int, int, int] = (3, 6, 6), seed: int = 0) -> Pixels:
    """Random images whose neighbouring pixels and channels are correlated, as those of photographs are."""
    noise = np.random.default_rng(seed).normal(size=(count, *shape))
    smooth: NDArray[np.float64] = scipy.ndimage.gaussian_filter(noise, sigma=(0, 0.7, 1.0, 1.0)) * 120 + 120
    return np.clip(smooth, 0, 255).astype(np.uint8)


def fitted(spec: Any, images: Any, positions: Any = None) -> Preprocess:
    """``spec`` fitted on ``images``, or on those at ``positions``."""
    chain = build_preprocess(spec)
    fit(chain, images, np.arange(len(images)) if positions is None else positions)
    return chain


def preprocess(spec: Any, images: Pixels) -> NDArray[np.float32]:
    """Fit ``spec`` on ``images`` and apply it to them."""
    result: NDArray[np.float32] = fitted(spec, images)(torch.from_numpy(images)).numpy()
    return result


def augmenter(*spec: dict[str, Any]) -> Augment:
    """The augmentation ``spec``, which must have nothing to measure."""
    chain = build_augment(list(spec))
    assert not list(chain.buffers())
    return chain


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- preprocessing -----------------------------------------------------------------------------------------------


def test_lenet_input_is_padded_with_background_and_scaled() -> None:
    images = np.full((2, 1, 28, 28), 255, np.uint8)
    result = preprocess([{"pad": {"pixels": 2}}, {"scale": {"low": -0.1, "high": 1.175}}], images)
    assert result.shape == (2, 1, 32, 32) and result.dtype == np.float32
    np.testing.assert_allclose(result[:, :, 2:30, 2:30], 1.175, atol=1e-6)
    frame = result.copy()
    frame[:, :, 2:30, 2:30] = -0.1
    np.testing.assert_allclose(frame, -0.1, atol=1e-6)


@pytest.mark.parametrize("spec", [[], [{"raw": {}}]])
def test_raw_keeps_every_pixel_value(spec: Any) -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    np.testing.assert_array_equal(preprocess(spec, images), images.astype(np.float32))


@pytest.mark.parametrize(("per", "axes"), [("pixel", (0,)), ("channel", (0, 2, 3))])
def test_mean_subtract_is_numpys_mean(per: str, axes: tuple[int, ...]) -> None:
    images = photos(50)
    expected = images - images.mean(axes, keepdims=True, dtype=np.float64)
    np.testing.assert_allclose(preprocess([{"mean_subtract": {"per": per}}], images), expected, atol=1e-4)


def test_standardise_is_numpys_mean_and_std_over_all_pixels() -> None:
    images = photos(50)
    images[:, 2] = 7  # a constant channel has no standard deviation to divide by
    values = images.astype(np.float64)
    mean, std = values.mean((0, 2, 3), keepdims=True), values.std((0, 2, 3), keepdims=True)
    result = preprocess([{"standardise": {}}], images)
    np.testing.assert_allclose(result[:, :2], ((values - mean) / np.where(std == 0, 1, std))[:, :2], atol=1e-5)
    np.testing.assert_array_equal(result[:, 2], 0)


@pytest.mark.parametrize("scale", [1.0, 55.0])
def test_gcn_is_centred_with_norm_scale(scale: float) -> None:
    images = photos(20)
    images[3] = 200  # a flat image has no contrast: it becomes 0, not a NaN
    result = preprocess([{"gcn": {"scale": scale}}], images).reshape(20, -1).astype(np.float64)
    centred = images.reshape(20, -1) - images.reshape(20, -1).mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    expected = scale * centred / np.where(norm == 0, 1, norm)
    np.testing.assert_allclose(result, expected, atol=1e-5 * scale)
    np.testing.assert_allclose(np.delete(np.linalg.norm(result, axis=1), 3), scale, rtol=1e-5)


def whitening_reference(rows: NDArray[np.float64], bias: float) -> NDArray[np.float64]:
    """Whitened rows, by the inverse of a matrix square root in place of an eigendecomposition."""
    covariance = np.cov(rows, rowvar=False, ddof=0)
    root = scipy.linalg.sqrtm(covariance + bias * np.eye(len(covariance)))
    return np.asarray((rows - rows.mean(0)) @ np.linalg.inv(root.real))


@pytest.mark.parametrize("bias", [0.1, 0.01])
def test_gcn_then_zca_matches_scipy(bias: float) -> None:
    images = photos(400)
    contrast = preprocess([{"gcn": {"scale": 55}}], images).reshape(400, -1).astype(np.float64)
    result = preprocess([{"gcn": {"scale": 55}}, {"zca": {"bias": bias}}], images).reshape(400, -1)
    np.testing.assert_allclose(result, whitening_reference(contrast, bias), atol=2e-4)


def test_zca_whitens_where_variance_dwarfs_its_bias() -> None:
    images = photos(2000, (3, 4, 4))
    bias = 0.1
    values, vectors = np.linalg.eigh(np.cov(images.reshape(2000, -1), rowvar=False, ddof=0))
    result = preprocess([{"zca": {"bias": bias}}], images).reshape(2000, -1).astype(np.float64)
    spectrum = np.diag(vectors.T @ np.cov(result, rowvar=False, ddof=0) @ vectors)
    np.testing.assert_allclose(spectrum, values / (values + bias), atol=1e-4)  # closed form
    well = vectors[:, values > 100 * bias]
    assert well.shape[1] >= 20
    np.testing.assert_allclose(well.T @ np.cov(result, rowvar=False, ddof=0) @ well, np.eye(well.shape[1]), atol=0.01)


@pytest.mark.parametrize("bias", [0.1, 1e-14])
def test_zca_of_fewer_images_than_values_stays_finite(bias: float) -> None:
    assert np.isfinite(preprocess([{"gcn": {}}, {"zca": {"bias": bias}}], photos(5))).all()


def test_zca_is_not_rounded_under_autocast() -> None:
    images = photos(100)
    chain = fitted([{"gcn": {}}, {"zca": {}}], images)
    expected = chain(torch.from_numpy(images))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(chain(torch.from_numpy(images)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [16, 20, 40])
def test_resize_matches_pillow(size: int) -> None:
    images = photos(3, (1, 28, 28))
    result = preprocess([{"resize": {"size": size}}], images)
    for image, resized in zip(images, result, strict=True):
        expected = Image.fromarray(image[0].astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(resized[0], np.asarray(expected), atol=1e-3)  # of 0..255


def test_halving_weighs_four_neighbours_1_3_3_1() -> None:
    line = photos(1, (1, 1, 32))[0, 0, 0].astype(np.float64)
    image = np.broadcast_to(line.astype(np.uint8), (1, 1, 32, 32)).copy()
    result = preprocess([{"resize": {"size": 16}}], image)[0, 0]
    inner = [(line[i - 1] + 3 * line[i] + 3 * line[i + 1] + line[i + 2]) / 8 for i in range(2, 30, 2)]
    np.testing.assert_allclose(result[:, 1:-1], np.broadcast_to(inner, (16, 14)), atol=1e-3)


def test_center_crop_is_a_slice() -> None:
    images = photos(4, (3, 9, 9))
    np.testing.assert_array_equal(preprocess([{"center_crop": {"size": 4}}], images), images[:, :, 2:6, 2:6])


def test_deslant_shifts_lines_until_the_principal_axis_is_vertical() -> None:
    """As plain loops do it; a slanted stroke comes to stand upright, and an empty image stays empty."""
    images = (photos(4, (3, 12, 10)) // 2 + 70).astype(np.uint8)
    images[3] = 0
    result = preprocess([{"deslant": {}}], images)
    for image, straight in zip(images, result, strict=True):
        rows, columns = np.nonzero(image.mean(0) >= 128)
        covariance = np.cov(rows, columns, bias=True) if len(rows) else np.ones((2, 2))
        for channel, y in np.ndindex(3, 12):
            at = np.arange(10) + covariance[0, 1] / covariance[0, 0] * (y - (rows.mean() if len(rows) else 0))
            expected = np.interp(at, np.arange(-1, 11), [0, *image[channel, y], 0])
            np.testing.assert_allclose(straight[channel, y], expected, atol=1e-2)  # of 0..255
    stroke = np.zeros((1, 1, 12, 12), np.uint8)
    stroke[0, 0, np.arange(2, 10), 11 - np.arange(2, 10)] = 255
    np.testing.assert_allclose(preprocess([{"deslant": {}}], stroke)[0, 0, 2:10, 5:7], 127.5, atol=1e-2)


# --- fitting -----------------------------------------------------------------------------------------------------

MEASURING: list[Any] = [
    [{"mean_subtract": {"per": "pixel"}}],
    [{"scale": {"low": 0, "high": 1}}, {"standardise": {}}],
    [{"pad": {"pixels": 1}}, {"gcn": {}}, {"zca": {}}, {"standardise": {}}],
]


@pytest.mark.parametrize("spec", MEASURING)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_fit_does_not_depend_on_the_chunk(spec: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = photos(60)
    whole = fitted(spec, images).state_dict()
    monkeypatch.setattr(transforms, "CHUNK_VALUES", chunk * 3 * 6 * 6)
    parts = fitted(spec, images).state_dict()
    assert whole and whole.keys() == parts.keys()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", MEASURING)
def test_fit_reads_only_its_indices(spec: Any) -> None:
    images = photos(60)
    indices = np.arange(0, 60, 3)
    poisoned = images.copy()
    poisoned[np.setdiff1d(np.arange(60), indices)] = 255
    alone = fitted(spec, images[indices]).state_dict()
    found = fitted(spec, poisoned, indices).state_dict()
    assert all(torch.equal(found[name], alone[name]) for name in alone)


class Recorder(np.ndarray[Any, np.dtype[np.uint8]]):
    """An array that notes how many images each read asks for."""

    reads: list[int]

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key).view(np.ndarray)
        self.reads.append(len(part))
        return part


def test_fit_reads_bounded_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "CHUNK_VALUES", 8 * 3 * 6 * 6)
    images = photos(60).view(Recorder)
    images.reads = []
    fitted([{"gcn": {}}, {"zca": {}}], images, np.arange(50))
    assert sum(images.reads) == 50
    assert max(images.reads) <= 8


def test_fit_reads_nothing_for_what_measures_nothing() -> None:
    images = photos(10).view(Recorder)
    images.reads = []
    chain = build_preprocess([{"pad": {"pixels": 2}}, {"scale": {"low": 0, "high": 1}}])
    fit(chain, images, np.arange(10), build_augment([{"flip": {}}, {"shift": {"pixels": 2}}]))
    assert images.reads == []


def test_fit_takes_a_memmap_opened_for_reading(tmp_path: Path) -> None:
    images = photos(30)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    mapped_state, state = (fitted([{"standardise": {}}], source).state_dict() for source in (mapped, images))
    assert all(torch.equal(mapped_state[name], state[name]) for name in state)


def test_state_survives_a_checkpoint() -> None:
    images, spec = photos(40), MEASURING[2][1:3]
    chain = fitted(spec, images)
    assert sorted(chain.state_dict()) == ["1.mean", "1.whiten"]
    file = io.BytesIO()
    torch.save(chain.state_dict(), file)
    file.seek(0)
    restored = build_preprocess(spec).restore(torch.load(file, weights_only=True)).to("cpu")
    batch = torch.from_numpy(images)
    assert torch.equal(restored(batch), chain(batch))
    with pytest.raises(ValueError, match=r"the state holds \['1.mean'\]; expected"):
        restored.restore({"1.mean": torch.zeros(108)})


def test_a_chain_that_was_not_fitted_is_not_applied() -> None:
    """Or images would be taken for preprocessed."""
    with pytest.raises((RuntimeError, ValueError)):
        build_preprocess([{"mean_subtract": {"per": "pixel"}}])(torch.from_numpy(photos(2)))


# --- augmentation ------------------------------------------------------------------------------------------------


def distinct(count: int, shape: tuple[int, int, int]) -> Tensor:
    """Random images without symmetries, so that a result tells which variant it is; no pixel is a fill value."""
    return torch.from_numpy(np.random.default_rng(1).uniform(1, 2, (count, *shape)).astype(np.float32))


def translated(image: NDArray[np.float32], down: int, right: int, fill: float) -> NDArray[np.float32]:
    """``np.roll``, with what rolled over the edge replaced by ``fill``."""
    rolled = np.roll(image, (down, right), axis=(1, 2))
    height, width = image.shape[1:]
    rows, columns = np.arange(height) - down, np.arange(width) - right
    outside = ((rows < 0) | (rows >= height))[:, None] | ((columns < 0) | (columns >= width))[None, :]
    return np.where(outside, np.float32(fill), rolled)


@pytest.mark.parametrize("fill", [0.0, -0.1])
def test_shift_is_a_roll_with_fill_and_uniform(fill: float) -> None:
    images = distinct(1000, (2, 5, 7))
    result = augmenter({"shift": {"pixels": 2, "fill": fill}})(images, seeded()).numpy()
    seen: Counter[tuple[int, int]] = Counter()
    for image, shifted in zip(images.numpy(), result, strict=True):
        found = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if np.array_equal(shifted, translated(image, down, right, fill))
        ]
        assert len(found) == 1
        seen[found[0]] += 1
    assert len(seen) == 25
    chi_squared = sum((count - 40) ** 2 / 40 for count in seen.values())
    assert chi_squared < 52  # 24 degrees of freedom: exceeded once in 1,000 seeds


def test_flip_mirrors_half_the_images() -> None:
    images = distinct(1000, (3, 4, 4))
    result = augmenter({"flip": {}})(images, seeded())
    mirrored = (result == images.flip(3)).flatten(1).all(1)
    kept = (result == images).flatten(1).all(1)
    assert torch.equal(mirrored, ~kept)
    assert 440 < int(mirrored.sum()) < 560  # 500 +- 3.8 standard deviations


def test_crop_is_a_slice_at_every_place() -> None:
    images = distinct(300, (2, 7, 6))
    result = augmenter({"crop": {"size": 4}})(images, seeded())
    places: set[tuple[int, int]] = set()
    for image, crop in zip(images, result, strict=True):
        found = [
            (top, left)
            for top in range(4)
            for left in range(3)
            if torch.equal(crop, image[:, top : top + 4, left : left + 4])
        ]
        assert len(found) == 1
        places.update(found)
    assert len(places) == 12


RANGES = {"translate": 2.0, "scale": 0.1, "squeeze": 0.2, "shear": 0.3}


@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 20, 30)])
@pytest.mark.parametrize("only", [*RANGES, "all"])
def test_affine_matches_scipy(shape: tuple[int, int, int], only: str) -> None:
    ranges = RANGES if only == "all" else {name: RANGES[name] if name == only else 0 for name in RANGES}
    fill = -0.1
    images = torch.from_numpy(photos(8, shape) / 255).float()
    result = augmenter({"affine": {"fill": fill, **ranges}})(images, seeded(3)).numpy()
    draws = torch.rand((5, 8), generator=seeded(3), dtype=torch.float64).numpy() * 2 - 1
    for i, image in enumerate(images.double().numpy()):
        right, down = draws[:2, i] * ranges["translate"]
        a, q = (1 + ranges["scale"]) ** draws[2, i], (1 + ranges["squeeze"]) ** draws[3, i]
        forward = np.array([[1, draws[4, i] * ranges["shear"]], [0, 1]]) @ np.diag([a * q, a / q])  # of (x, y)
        inverse = np.linalg.inv(forward)[::-1, ::-1]  # of (row, column), from the result to the image
        centre = (np.array(shape[1:]) - 1) / 2
        offset = centre - inverse @ (centre + np.array([down, right]))
        for channel in range(shape[0]):
            expected = scipy.ndimage.affine_transform(
                image[channel], inverse, offset, order=1, mode="grid-constant", cval=fill
            )
            np.testing.assert_allclose(result[i, channel], expected, atol=2e-5)


def test_affine_of_no_range_is_the_identity() -> None:
    images = distinct(4, (1, 9, 11))
    still = augmenter({"affine": {"fill": 0, "translate": 0, "scale": 0, "squeeze": 0, "shear": 0}})
    torch.testing.assert_close(still(images, seeded()), images, rtol=0, atol=2e-6)


def test_affine_leaves_a_share_of_originals_to_the_bit() -> None:
    images = distinct(2000, (1, 8, 8))
    distorted = augmenter({"affine": {"fill": 0}})(images, seeded())
    mixed = augmenter({"affine": {"fill": 0, "originals": 0.1}})(images, seeded())
    left = (mixed == images).flatten(1).all(1)
    assert 150 < int(left.sum()) < 250  # 200 +- 3.7 standard deviations
    assert torch.equal(mixed[~left], distorted[~left])  # the draws of the distortions are the same
    assert not (distorted == images).flatten(1).all(1).any()
    assert torch.equal(augmenter({"affine": {"fill": 0, "originals": 1}})(images, seeded()), images)


@pytest.mark.parametrize("by", ["deviation", "eigenvalue"])
def test_pca_colour_adds_noise_along_the_rgb_axes(by: str) -> None:
    """Its covariance is std^2 times RGB's; by the eigenvalue, times RGB's squared, of pixels of 0..1 scaled back."""
    images = photos(200, seed=5)
    raw, augment = build_preprocess([{"raw": {}}]), build_augment([{"pca_colour": {"std": 0.1, "by": by}}])
    fit(raw, images, np.arange(len(images)), augment)
    batch = raw(torch.from_numpy(images)).repeat(100, 1, 1, 1)
    noise = augment(batch, seeded()) - batch
    torch.testing.assert_close(noise, noise[:, :, :1, :1].expand_as(noise), rtol=0, atol=1e-4)  # one colour an image
    pixels = np.cov(images.transpose(1, 0, 2, 3).reshape(3, -1) / 255)
    expected = (0.1 * 255) ** 2 * (pixels if by == "deviation" else pixels @ pixels)
    measured = np.cov(noise[:, :, 0, 0].T.double().numpy())
    # 20,000 draws: each entry is off by about 1 % of the largest variance.
    np.testing.assert_allclose(measured, expected, atol=0.04 * expected.max())


ALL_AUGMENTS: list[dict[str, Any]] = [
    {"shift": {"pixels": 2}},
    {"flip": {}},
    {"crop": {"size": 5}},
    {"affine": {"fill": 0.0, "originals": 0.1}},
    {"pca_colour": {"std": 0.1}},
]


def fitted_augment(spec: list[dict[str, Any]]) -> tuple[Augment, Tensor]:
    images = photos(32)
    scaled, augment = build_preprocess([{"scale": {"low": 0, "high": 1}}]), build_augment(spec)
    fit(scaled, images, np.arange(len(images)), augment)
    return augment, scaled(torch.from_numpy(images))


@pytest.mark.parametrize("spec", [*([item] for item in ALL_AUGMENTS), ALL_AUGMENTS])
def test_augmentation_is_the_generators_alone(spec: list[dict[str, Any]]) -> None:
    augment, images = fitted_augment(spec)
    untouched, world = images.clone(), torch.get_rng_state()
    generator = seeded(1)
    first, state = augment(images, generator), generator.get_state()
    second = augment(images, generator)
    assert torch.equal(first, augment(images, seeded(1)))
    assert not torch.equal(first, second)  # the stream moves on
    generator.set_state(state)
    assert torch.equal(second, augment(images, generator))  # and resumes
    assert torch.equal(images, untouched)
    assert torch.equal(torch.get_rng_state(), world)
    assert first.shape[1:] == output_shape(augment, (3, 6, 6))
    assert first.dtype == images.dtype


@pytest.mark.parametrize("spec", [[item] for item in ALL_AUGMENTS])
def test_augmentation_keeps_bfloat16(spec: list[dict[str, Any]]) -> None:
    augment, images = fitted_augment(spec)
    assert augment(images.bfloat16(), seeded()).dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_same_images() -> None:
    augment, images = fitted_augment(ALL_AUGMENTS)
    expected = augment(images, seeded())
    result = augment.to("cuda")(images.cuda(), seeded()).cpu()
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


# --- specifications ----------------------------------------------------------------------------------------------

ALL_PREPROCESS: list[dict[str, Any]] = [
    {"pad": {"pixels": 1}},
    {"resize": {"size": 7}},
    {"deslant": {}},
    {"center_crop": {"size": 5}},
    {"raw": {}},
    {"scale": {"low": 0, "high": 1}},
    {"mean_subtract": {"per": "pixel"}},
    {"standardise": {}},
    {"gcn": {"scale": 55}},
    {"zca": {"bias": 0.1}},
]


def test_a_chain_of_everything_has_the_announced_shape() -> None:
    assert {name for item in ALL_PREPROCESS for name in item} == set(PREPROCESS)
    images = photos(30)
    untouched = images.copy()
    result = preprocess(ALL_PREPROCESS, images)
    assert result.shape == (30, *output_shape(build_preprocess(ALL_PREPROCESS), (3, 6, 6))) == (30, 3, 5, 5)
    np.testing.assert_array_equal(images, untouched)


def test_every_operation_is_among_these() -> None:
    """A new one takes one line above: its name, and arguments that it works with."""
    assert set(PREPROCESS) == {name for item in ALL_PREPROCESS for name in item}
    assert set(AUGMENT) == {name for item in ALL_AUGMENTS for name in item}


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ([{"gnc": {}}], "operation gnc is not known; expected one of center_crop, deslant, "),
        ([{"flip": {}}], "operation flip is not known"),
        ([{"scale": {"low": 0, "hi": 1}}], "scale.hi is not known; did you mean high? (allowed: high, low)"),
        ([{"raw": {"pixels": 1}}], "raw.pixels is not known; there is none"),
        ([{"scale": {"low": 0}}], "scale.high is missing; expected a number"),
        ([{"scale": {"low": "0", "high": 1}}], "scale.low is '0'; expected a number, without the quotes"),
        ([{"scale": {"low": 0, "high": math.inf}}], "scale.high is inf; expected a finite number"),
        ([{"scale": {"low": 1, "high": 1}}], "scale.high is 1.0; expected a number above low (1.0)"),
        ([{"pad": {"pixels": 2.0}}], "pad.pixels is 2.0; expected a whole number"),
        ([{"pad": {"pixels": 0}}], "pad.pixels is 0; expected 1 to 4,096"),
        ([{"resize": {"size": 5000}}], "resize.size is 5000; expected 1 to 4,096"),
        ([{"mean_subtract": {"per": "image"}}], "mean_subtract.per is 'image'; allowed: channel, pixel"),
        ([{"gcn": {"scale": -55}}], "gcn.scale is -55.0; expected a number above 0"),
        ([{"zca": {"bias": 0}}], "zca.bias is 0.0; expected a number above 0"),
        ([{"gcn": {}}, {"pad": {"pixels": 2}}], "pad comes after gcn; expected before it"),
        ([{"scale": {"low": 0, "high": 1}}] * 2, "scale comes after scale"),
    ],
)
def test_a_wrong_preprocess_list_says_what_is_allowed(spec: Any, line: str) -> None:
    with pytest.raises((UserError, ValueError)) as caught:
        check_operations(spec, PREPROCESS)
        build_preprocess(spec)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ([{"gcn": {}}], "operation gcn is not known; expected one of affine, crop, flip, pca_colour, shift"),
        ([{"affine": {}}], "affine.fill is missing; expected a number"),
        ([{"affine": {"fill": 0, "shear": -0.1}}], "affine.shear is -0.1; expected at least 0"),
        ([{"affine": {"fill": 0, "originals": 1.5}}], "affine.originals is 1.5; expected 0 to 1"),
        ([{"shift": {"pixels": -1}}], "shift.pixels is -1; expected 1 to 4,096"),
        ([{"flip": {"p": 0.5}}], "flip.p is not known; there is none"),
    ],
)
def test_a_wrong_augment_list_says_what_is_allowed(spec: Any, line: str) -> None:
    with pytest.raises((UserError, ValueError), match=line):
        check_operations(spec, AUGMENT)


@pytest.mark.parametrize(
    ("ops", "shape", "line"),
    [
        (build_augment([{"crop": {"size": 33}}]), (3, 32, 32), "crop: size is 33; expected at most 32"),
        (
            build_preprocess([{"center_crop": {"size": 29}}]),
            (1, 28, 30),
            "center_crop: size is 29; expected at most 28",
        ),
        (build_augment([{"shift": {"pixels": 8}}]), (3, 8, 9), "shift: pixels is 8; expected less than 8"),
        (build_augment([{"pca_colour": {}}]), (1, 28, 28), "pca_colour: the images have 1 channels; expected 3"),
        (build_preprocess([{"zca": {}}]), (3, 224, 224), "zca: the images have 150528 values; expected at most 12288"),
    ],
)
def test_images_that_do_not_fit_an_operation_are_refused(ops: Any, shape: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        output_shape(ops, shape)


FIT = """
from pipelines.data import transforms
import hashlib, numpy
images = numpy.random.Generator(numpy.random.PCG64(0)).integers(0, 256, (600, 3, 32, 32), numpy.uint8)
whitening = transforms.build_preprocess([{"zca": {}}])
transforms.fit(whitening, images, numpy.arange(600))
print(hashlib.sha256(whitening[0].whiten.numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow  # two processes with torch
def test_whitening_is_fitted_to_the_same_bits_with_any_number_of_threads() -> None:
    """Ray gives a worker one, a shell as many as there are cores."""
    fitted = {
        subprocess.run(
            [sys.executable, "-c", FIT],
            env=os.environ | {"OMP_NUM_THREADS": threads},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(fitted) == 1
