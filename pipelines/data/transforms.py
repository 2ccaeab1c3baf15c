"""Batched image transforms on any device: preprocessing fitted on train, augmentation drawn from a seeded generator.

A recipe names both as lists of one-key mappings, applied in the list's order:

    preprocess: [{pad: {pixels: 2}}, {scale: {low: -0.1, high: 1.175}}]
    augment: [{shift: {pixels: 2, fill: 0}}, {flip: {}}]

Images are tensors (N, C, H, W). ``build_preprocess`` and ``build_augment`` return a list's operations as one module,
``Preprocess`` or ``Augment``; ``training.inputs.check_operations`` checks their arguments. ``fit`` measures what they
need on the training images, one bounded chunk at a time, and keeps it in buffers. Every random number comes from the
CPU generator that the caller passes, so the same generator state gives the same images on a CPU and on a GPU up to
rounding, and bit for bit on the same device. What an augmentation draws does not depend on pixels, so it can be drawn
and sent to a device long before the images.

One entry in ``PREPROCESS`` or ``AUGMENT`` adds one operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, dataclass_transform

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from pipelines.config.registry import Registry
from pipelines.config.values import NotNegative, Positive, within

Shape = tuple[int, int, int]  # (C, H, W)
Drawn = tuple[Tensor, ...]  # random numbers of one operation for a batch; the first dimension is the image
Images = NDArray[np.uint8]  # (N, C, H, W); a memmap counts as an array
Pixels = Annotated[int, within(1, 4096)]  # of a side

CHUNK_VALUES = 2**22  # values of a chunk of a fit: 32 MiB as float64
ZCA_VALUES = 12288  # values of an image under zca, whose matrices have their square (1.2 GB in float64)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """``values``, on a CPU, sent to ``device``; to a GPU from pinned memory, so that the host need not wait."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


# --- what operations share ---------------------------------------------------------------------------------------


@dataclass_transform(kw_only_default=True, eq_default=False)
class Op(nn.Module):
    """One operation, a dataclass whose fields are its arguments in a recipe.

    Its measurements of the training images are buffers, without a value until ``fit``.
    """

    name: ClassVar[str]  # in a recipe
    measures: ClassVar[tuple[str, ...]] = ()  # names of the buffers

    def __init_subclass__(cls) -> None:
        dataclass(kw_only=True, eq=False, repr=False)(cls)

    def __new__(cls, **_: Any) -> Self:
        """A module before the dataclass sets its fields."""
        op = super().__new__(cls)
        nn.Module.__init__(op)
        return op

    def __post_init__(self) -> None:
        for measure in self.measures:
            self.register_buffer(measure, UninitializedBuffer())

    def output_shape(self, shape: Shape) -> Shape:
        """(C, H, W) of the result for images of ``shape``; ValueError when they do not fit."""
        return shape

    def fit(self, batches: Iterator[Tensor]) -> None:
        """Measure the training images as this operation receives them; without measures it reads none."""


class PreprocessOp(Op):
    """A deterministic operation; never in place."""

    reads_pixels: ClassVar[bool] = False  # the input must be pixels of 0..255
    changes_values: ClassVar[bool] = False  # the output is not 0..255
    dear: ClassVar[bool] = False  # worth applying once to each image and keeping the result

    def forward(self, images: Tensor) -> Tensor:
        """The transformed batch."""
        raise NotImplementedError


class Draws:
    """Random numbers for the images ``own`` of a batch of ``count``, however workers share the batch."""

    def __init__(self, generator: torch.Generator, count: int, own: slice = slice(None)) -> None:
        self.generator, self.count, self.own = generator, count, own

    def integers(self, choices: int) -> Tensor:
        """Whole numbers (n,) from 0 to ``choices`` - 1."""
        return torch.randint(choices, (self.count,), generator=self.generator)[self.own]

    def uniform(self, *rows: int) -> Tensor:
        """Numbers (*rows, n) from 0 to 1, float64."""
        return torch.rand((*rows, self.count), generator=self.generator, dtype=torch.float64)[..., self.own]

    def normal(self, columns: int) -> Tensor:
        """Numbers (n, columns) of mean 0 and deviation 1."""
        return torch.randn((self.count, columns), generator=self.generator)[self.own]


class AugmentOp(Op):
    """A random operation, drawn anew for each image; never in place."""

    def draw(self, draws: Draws, shape: Shape) -> Drawn:
        """Random numbers for images of ``shape``, on the CPU."""
        raise NotImplementedError

    def forward(self, images: Tensor, drawn: Drawn) -> Tensor:
        """The batch, transformed by its random numbers on the same device; the host need not wait for it."""
        raise NotImplementedError


OpT = TypeVar("OpT", bound=Op)


class Operations(Registry[type[OpT]]):
    """Operations by name, which each has for error lines."""

    def entry(self, name: str) -> Callable[[type[OpT]], type[OpT]]:  # noqa: D102
        add = super().entry(name)

        def named(op: type[OpT]) -> type[OpT]:
            op.name = name
            return add(op)

        return named


PREPROCESS: Operations[PreprocessOp] = Operations("operation", __name__)
AUGMENT: Operations[AugmentOp] = Operations("operation", __name__)


def _cropped_shape(op: Op, size: int, shape: Shape) -> Shape:
    channels, height, width = shape
    if size > min(height, width):
        raise ValueError(f"{op.name}: size is {size}; expected at most {min(height, width)}, the images' shorter side")
    return channels, size, size


def center_crop(images: Tensor, size: int) -> Tensor:
    """The central (N, C, size, size) of (N, C, H, W); an odd margin has its extra line below and right."""
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]


# --- preprocessing -----------------------------------------------------------------------------------------------


@PREPROCESS.entry("pad")
class Pad(PreprocessOp):
    """Frame the image with ``pixels`` lines of background (pixel value 0) on each side."""

    reads_pixels = True
    pixels: Pixels

    def output_shape(self, shape: Shape) -> Shape:  # noqa: D102
        channels, height, width = shape
        return channels, height + 2 * self.pixels, width + 2 * self.pixels

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        return F.pad(images, (self.pixels,) * 4)


@PREPROCESS.entry("center_crop")
class CenterCrop(PreprocessOp):
    """Keep the central ``size`` x ``size`` pixels."""

    size: Pixels

    def output_shape(self, shape: Shape) -> Shape:  # noqa: D102
        return _cropped_shape(self, self.size, shape)

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        return center_crop(images, self.size)


@PREPROCESS.entry("resize")
class Resize(PreprocessOp):
    """Resample to ``size`` x ``size`` pixels: bilinear, the triangle filter widened when shrinking, as PIL does."""

    size: Pixels

    def output_shape(self, shape: Shape) -> Shape:  # noqa: D102
        return shape[0], self.size, self.size

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        return F.interpolate(images.float(), size=(self.size, self.size), mode="bilinear", antialias=True)


@PREPROCESS.entry("deslant")
class Deslant(PreprocessOp):
    """Shear each image horizontally, about the centre of its foreground, until the principal axis is vertical.

    LeCun et al. 1998, section III.A: the axis is that of the second moments of inertia, where a pixel of the foreground
    counts as 1 and one of the background as 0. The paper does not say how it divided the grey levels: foreground is
    from 128. Lines are shifted by fractions of a pixel, bilinearly; background (0) comes into view.
    """

    reads_pixels = True
    dear = True

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        height, width = images.shape[2:]
        ink = (images.float().mean(1) >= 128).float()  # (N, H, W)
        y, x = (torch.arange(side, device=ink.device) - (side - 1) / 2 for side in (height, width))
        count = ink.sum((1, 2)).clamp(min=1)
        y_mean, x_mean = ink.sum(2) @ y / count, ink.sum(1) @ x / count
        slant = torch.einsum("nhw,h,w->n", ink, y, x) / count - y_mean * x_mean
        slant = slant / (ink.sum(2) @ y.square() / count - y_mean.square()).clamp(min=1e-6)
        # affine_grid measures in half widths and half heights from the centre.
        one, zero = torch.ones_like(slant), torch.zeros_like(slant)
        first = torch.stack([one, slant * height / width, -2 / width * slant * y_mean], dim=1)
        theta = torch.stack([first, torch.stack([zero, one, zero], dim=1)], dim=1)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images.float(), grid, align_corners=False)  # outside the image: 0


@PREPROCESS.entry("raw")
class Raw(PreprocessOp):
    """Keep 0..255, as float. cuda-convnet and AlexNet train at this scale, less the mean."""

    reads_pixels = True

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        return images.float()


@PREPROCESS.entry("scale")
class Scale(PreprocessOp):
    """Map 0..255 linearly to ``low``..``high``: -0.1..1.175 in LeCun et al. 1998, -0.5..0.5 in ConvNetJS."""

    reads_pixels = True
    changes_values = True
    low: float
    high: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high <= self.low:
            raise ValueError(f"high is {self.high}; expected a number above low ({self.low})")

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        return images.float() * ((self.high - self.low) / 255) + self.low


@PREPROCESS.entry("mean_subtract")
class MeanSubtract(PreprocessOp):
    """Subtract the training set's mean image (``pixel``) or the mean of each channel (``channel``)."""

    changes_values = True
    measures = ("mean",)
    per: Literal["pixel", "channel"]

    def fit(self, batches: Iterator[Tensor]) -> None:  # noqa: D102
        axes = (0,) if self.per == "pixel" else (0, 2, 3)
        total, count = torch.zeros((), dtype=torch.float64), 0
        for batch in batches:
            total = total + batch.double().sum(axes, keepdim=True)
            count += math.prod(batch.shape[axis] for axis in axes)
        self.mean = (total / count).float()  # (1, C, H, W) or (1, C, 1, 1)

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        return images.float() - self.mean


@PREPROCESS.entry("standardise")
class Standardise(PreprocessOp):
    """Subtract each channel's mean over train, divide by its standard deviation (over all pixels; 1 where constant)."""

    changes_values = True
    measures = ("mean", "std")

    def fit(self, batches: Iterator[Tensor]) -> None:  # noqa: D102
        total, squares, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
        for batch in batches:
            values = batch.double()
            total = total + values.sum((0, 2, 3), keepdim=True)
            squares = squares + values.square().sum((0, 2, 3), keepdim=True)
            count += values.numel() // values.shape[1]
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        self.mean, self.std = mean.float(), torch.where(std < 1e-6, 1.0, std).float()  # (1, C, 1, 1) each

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        return (images.float() - self.mean) / self.std


@PREPROCESS.entry("gcn")
class GCN(PreprocessOp):
    """Global contrast normalisation: x - mean(x), then times scale / ||x||, over all values of each image.

    As pylearn2's ``global_contrast_normalize`` with its defaults, and neon's: the Euclidean norm rather than the
    standard deviation, nothing added under the root, and a divisor (norm / scale) below 1e-8 left out. ``scale`` is 55
    in Goodfellow et al. 2013 (pylearn2's ``make_cifar10_gcn_whitened``), whom All-CNN follows.
    """

    changes_values = True
    scale: Positive = 55.0

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        images = images.float()
        images = images - images.mean((1, 2, 3), keepdim=True)
        divisor = images.square().sum((1, 2, 3), keepdim=True).sqrt() / self.scale
        return images / torch.where(divisor < 1e-8, 1.0, divisor)


@PREPROCESS.entry("zca")
class ZCA(PreprocessOp):
    """Whitening by the symmetric matrix W = U diag(1 / sqrt(s + bias)) U^T, where U diag(s) U^T is train's covariance.

    As pylearn2's ``ZCA``: the covariance is divided by n, and ``bias`` is its ``filter_bias`` (0.1), added to
    every eigenvalue. The covariance and its eigenvectors are computed in float64, W is kept in float32.
    """

    changes_values = True
    dear = True  # a product of D x D, 19 MFLOP for an image of CIFAR-10
    measures = ("mean", "whiten")
    bias: Positive = 0.1

    def output_shape(self, shape: Shape) -> Shape:  # noqa: D102
        if math.prod(shape) > ZCA_VALUES:
            raise ValueError(f"zca: the images have {math.prod(shape)} values; expected at most {ZCA_VALUES}")
        return shape

    def fit(self, batches: Iterator[Tensor]) -> None:  # noqa: D102
        mean, covariance = _covariance(batch.flatten(1) for batch in batches)
        values, vectors = _eigen(covariance)
        whiten = (vectors / torch.sqrt(values + self.bias)) @ vectors.T
        self.mean, self.whiten = mean.float(), whiten.float()  # (D,), (D, D)

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        return ((images.float().flatten(1) - self.mean) @ self.whiten).view(images.shape)


def _covariance(rows: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), divided by n, of batches (n, D), accumulated in float64."""
    total = products = torch.zeros((), dtype=torch.float64)
    count = 0
    for batch in rows:
        values = batch.double().cpu()
        total = total + values.sum(0)
        products = products + values.T @ values
        count += len(values)
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)


def _eigen(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (D,) and, as columns, eigenvectors (D, D)."""
    values, vectors = torch.linalg.eigh(covariance)
    return values.clamp(min=0), vectors  # rounding can make those of a singular covariance slightly negative


# --- augmentation ------------------------------------------------------------------------------------------------


def _windows(images: Tensor, height: int, width: int, top: Tensor, left: Tensor) -> Tensor:
    """One window (C, height, width) of each image, at its own ``top`` and ``left`` (N,)."""
    number = torch.arange(len(images), device=images.device)
    return images.unfold(2, height, 1).unfold(3, width, 1)[number, :, top, left]


@AUGMENT.entry("shift")
class Shift(AugmentOp):
    """Translate by a whole number of pixels, uniform in -pixels..pixels on each axis; ``fill`` what comes into view."""

    pixels: Pixels
    fill: float = 0.0

    def output_shape(self, shape: Shape) -> Shape:  # noqa: D102
        if self.pixels >= min(shape[1:]):
            raise ValueError(f"shift: pixels is {self.pixels}; expected less than {min(shape[1:])}, the shorter side")
        return shape

    def draw(self, draws: Draws, shape: Shape) -> Drawn:  # noqa: D102
        return draws.integers(2 * self.pixels + 1), draws.integers(2 * self.pixels + 1)

    def forward(self, images: Tensor, drawn: Drawn) -> Tensor:  # noqa: D102
        _, _, height, width = images.shape
        return _windows(F.pad(images, (self.pixels,) * 4, value=self.fill), height, width, *drawn)


@AUGMENT.entry("flip")
class Flip(AugmentOp):
    """Mirror left to right with probability one half."""

    def draw(self, draws: Draws, shape: Shape) -> Drawn:  # noqa: D102
        return (draws.integers(2).bool(),)

    def forward(self, images: Tensor, drawn: Drawn) -> Tensor:  # noqa: D102
        (flipped,) = drawn
        return torch.where(flipped[:, None, None, None], images.flip(3), images)


@AUGMENT.entry("crop")
class Crop(AugmentOp):
    """Cut ``size`` x ``size`` pixels at a uniformly random place."""

    size: Pixels

    def output_shape(self, shape: Shape) -> Shape:  # noqa: D102
        return _cropped_shape(self, self.size, shape)

    def draw(self, draws: Draws, shape: Shape) -> Drawn:  # noqa: D102
        _, height, width = shape
        return draws.integers(height - self.size + 1), draws.integers(width - self.size + 1)

    def forward(self, images: Tensor, drawn: Drawn) -> Tensor:  # noqa: D102
        return _windows(images, self.size, self.size, *drawn)


@AUGMENT.entry("affine")
class Affine(AugmentOp):
    """The planar distortions of LeCun et al. 1998: translation, scaling, squeezing, horizontal shear.

    About the image's centre, an input pixel (x, y) goes to [[1, k], [0, 1]] diag(a q, a / q) (x, y) + t, where

    - t is uniform in -translate..translate pixels on each axis, not rounded;
    - a, the scaling, is log-uniform in 1 / (1 + scale)..1 + scale;
    - q, the squeezing (wider and lower, or narrower and higher), is log-uniform in 1 / (1 + squeeze)..1 + squeeze;
    - k, the shear, is uniform in -shear..shear.

    The result is sampled bilinearly; everything outside the image is ``fill``, which should be the background *after*
    preprocessing (-0.1 for ``scale: {low: -0.1, ...}``). The paper names the four kinds and not their ranges: the
    defaults are our choice. Its training set was 60,000 originals and 540,000 distorted patterns: ``originals``, the
    share of images left exactly as they are, drawn for each, is then 0.1.
    """

    fill: float
    translate: NotNegative = 2.0  # pixels
    scale: NotNegative = 0.1
    squeeze: NotNegative = 0.1
    shear: NotNegative = 0.2
    originals: Annotated[float, within(0, 1)] = 0.0

    def draw(self, draws: Draws, shape: Shape) -> Drawn:  # noqa: D102
        theta = self.sampling_matrices(draws.uniform(5) * 2 - 1, *shape[1:]).float()
        return (theta, draws.uniform() < self.originals) if self.originals else (theta,)

    def forward(self, images: Tensor, drawn: Drawn) -> Tensor:  # noqa: D102
        theta, *left = drawn
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        sampled = F.grid_sample(images.float() - self.fill, grid, align_corners=False)  # outside the image: 0
        distorted = (sampled + self.fill).to(images.dtype)
        return torch.where(left[0][:, None, None, None], images, distorted) if left else distorted

    def sampling_matrices(self, numbers: Tensor, height: int, width: int) -> Tensor:
        """Turn ``numbers`` (5, N) in -1..1 into the (N, 2, 3) inverse maps that ``torch.affine_grid`` takes."""
        right, down = numbers[0] * self.translate, numbers[1] * self.translate
        scaling = torch.exp(numbers[2] * math.log1p(self.scale))
        squeezing = torch.exp(numbers[3] * math.log1p(self.squeeze))
        shear = numbers[4] * self.shear
        xx, xy, yy = 1 / (scaling * squeezing), -shear / (scaling * squeezing), squeezing / scaling
        # affine_grid measures in half widths and half heights from the centre.
        first = torch.stack([xx, xy * height / width, -2 / width * (xx * right + xy * down)], dim=1)
        second = torch.stack([torch.zeros_like(yy), yy, -2 / height * yy * down], dim=1)
        return torch.stack([first, second], dim=1)


@AUGMENT.entry("pca_colour")
class PCAColour(AugmentOp):
    """AlexNet's colour noise (section 4.1): add sum_i a_i s_i p_i to every pixel, with a_i ~ N(0, std) per image.

    p_i and lambda_i are the eigenvectors and eigenvalues of train's RGB covariance, after preprocessing. The paper
    multiplies ``by: eigenvalue``, which depends on the unit of the pixels and would swamp them at 0..255: s_i is
    lambda_i / white, the eigenvalue of pixels of 0..1 in the unit at hand, where pixel 255 is ``white`` above pixel 0.
    Krizhevsky's cuda-convnet2 multiplies by the ``deviation``, the root of lambda_i, whatever the unit.
    """

    measures = ("axes",)
    std: Positive = 0.1
    by: Literal["deviation", "eigenvalue"] = "deviation"
    white: Positive = 255.0

    def output_shape(self, shape: Shape) -> Shape:  # noqa: D102
        if shape[0] != 3:
            raise ValueError(f"pca_colour: the images have {shape[0]} channels; expected 3")
        return shape

    def fit(self, batches: Iterator[Tensor]) -> None:  # noqa: D102
        _, covariance = _covariance(batch.transpose(0, 1).flatten(1).T for batch in batches)
        values, vectors = _eigen(covariance)
        # An eigenvector's sign is arbitrary: make its largest component positive.
        vectors = vectors * torch.sign(vectors[vectors.abs().argmax(0), torch.arange(3)])
        lengths = torch.sqrt(values) if self.by == "deviation" else values / self.white
        self.axes = (vectors * lengths).float()  # columns s_i p_i

    def draw(self, draws: Draws, shape: Shape) -> Drawn:  # noqa: D102
        return (draws.normal(3) * self.std,)

    def forward(self, images: Tensor, drawn: Drawn) -> Tensor:  # noqa: D102
        (noise,) = drawn
        colour = noise @ self.axes.T
        return images + colour[:, :, None, None].to(images.dtype)


# --- chains of operations ----------------------------------------------------------------------------------------


class Chain(nn.ModuleList):
    """Operations, one after the other; their buffers are named ``<position>.<measure>``."""

    def __iter__(self) -> Iterator[Any]:
        return super().__iter__()

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Take the buffers from a state dict instead of fitting; ValueError where its names differ."""
        names = sorted(name for name, _ in self.named_buffers())
        if sorted(state) != names:
            raise ValueError(f"the state holds {sorted(state)}; expected {names}")
        self.load_state_dict(dict(state), assign=True)
        return self


class Preprocess(Chain):
    """``preprocess(images)``: uint8 (N, C, H, W) to float32 (N, C, H', W'), on the images' device."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Apply the operations; float32 even under autocast, where the whitening matrix would lose its digits."""
        with torch.autocast(images.device.type, enabled=False):
            for op in self:
                images = op(images)
            return images.float()

    @property
    def dear(self) -> bool:
        """Whether one of its operations is dear."""
        return any(op.dear for op in self)


class Augment(Chain):
    """``augment(images, generator)``: a random variant of each preprocessed image; the generator is a CPU one.

    ``draw`` and ``transform`` are its two halves, for a caller that draws ahead.
    """

    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw, and transform."""
        _, channels, height, width = images.shape
        drawn = self.draw(Draws(generator, len(images)), (channels, height, width))
        return self.transform(images, [tuple(sent(one, images.device) for one in part) for part in drawn])

    def draw(self, draws: Draws, shape: Shape) -> list[Drawn]:
        """Each operation's random numbers for images of ``shape``; as many for the same shape and batch size."""
        drawn = []
        for op in self:
            drawn.append(op.draw(draws, shape))
            shape = op.output_shape(shape)
        return drawn

    @torch.no_grad()
    def transform(self, images: Tensor, drawn: Sequence[Drawn]) -> Tensor:
        """Apply the operations with their random numbers, which are on the images' device."""
        with torch.autocast(images.device.type, enabled=False):
            for op, numbers in zip(self, drawn, strict=True):
                images = op(images, numbers)
            return images

    @property
    def crop_size(self) -> int | None:
        """Side of the training crop, or None where training uses whole images."""
        sizes = [op.size for op in self if isinstance(op, Crop)]
        return sizes[-1] if sizes else None


Spec = Sequence[Mapping[str, Mapping[str, Any]]]  # a recipe's: one key each


def build_preprocess(spec: Spec) -> Preprocess:
    """The operations of a ``preprocess`` list, not fitted yet; ValueError for a wrong order."""
    ops = [PREPROCESS[name](**arguments) for item in spec for name, arguments in item.items()]
    changed_by = None
    for op in ops:
        if changed_by and op.reads_pixels:
            raise ValueError(f"{op.name} comes after {changed_by}; expected before it, as it reads pixels 0..255")
        if op.changes_values:
            changed_by = op.name
    return Preprocess(ops)


def build_augment(spec: Spec) -> Augment:
    """The operations of an ``augment`` list, not fitted yet."""
    return Augment(AUGMENT[name](**arguments) for item in spec for name, arguments in item.items())


def output_shape(ops: Chain, shape: Shape) -> Shape:
    """(C, H, W) after ``ops`` in turn; ValueError where the shape does not fit an operation."""
    for op in ops:
        shape = op.output_shape(shape)
    return shape


# --- fitting on the training images ------------------------------------------------------------------------------


def fit(preprocess: Preprocess, images: Images, positions: NDArray[np.int64], augment: Augment | None = None) -> None:
    """Fit ``preprocess``, then ``augment`` on its results, on the images at ``positions``.

    Each operation that measures reads these images once, through the operations before it, in chunks of at most
    ``CHUNK_VALUES``. All of it happens on the CPU, whatever device trains, and on one thread, as the bits of a product
    depend on the number of threads; ``.to(device)`` comes afterwards.
    """
    with _one_thread():
        for number, op in enumerate(preprocess):
            op.fit(_batches(images, positions, Preprocess(preprocess[:number])))
        for op in augment or ():
            op.fit(_batches(images, positions, preprocess))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _batches(images: Images, positions: NDArray[np.int64], preprocess: Preprocess) -> Iterator[Tensor]:
    """The images at ``positions``, in their order, preprocessed; lazy, so unread where nothing measures."""
    _, channels, height, width = images.shape
    chunk = max(1, CHUNK_VALUES // math.prod(output_shape(preprocess, (channels, height, width))))
    for start in range(0, len(positions), chunk):
        yield preprocess(torch.from_numpy(images[positions[start : start + chunk]]))
