"""Predictions of a trained network, over the views that an evaluation averages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.command import progress
from pipelines.config.claims import ClaimedOn, Evaluation
from pipelines.data import subsets
from pipelines.data.datasets import Split
from pipelines.data.streams import stream
from pipelines.data.views import CENTRE, SINGLE, views
from pipelines.training import memory
from pipelines.training.inputs import Inputs
from pipelines.training.spec import Spec

BATCH = 250  # images of a piece; fixed, since random views are drawn by the piece
VALUES_A_PASS = 2**22  # pixel values that go through a network at a time: 27 images of 3 x 224 x 224
TOP = 5
EXAMINERS: dict[tuple[str, Path], Examiner] = {}  # the network that ``answer`` keeps
Piece = tuple[Tensor, Tensor]  # averaged probabilities (n, classes), and classes (n,) by a single view
# Answers pieces of a split, each named by its start, in any order.
Ask = Callable[[Split, Mapping[int, NDArray[np.int64]]], Iterable[tuple[int, Piece]]]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Class ``probabilities`` (N, classes) float32 of images, averaged over their views.

    ``labels`` (N,) int64 are the true classes, ``single`` (N,) int64 the classes predicted from a single view.
    """

    probabilities: Tensor
    labels: Tensor
    single: Tensor
    seconds: float

    @property
    def predicted(self) -> Tensor:
        """The most probable classes, (N,) int64."""
        return self.probabilities.argmax(1)

    @property
    def error(self) -> float:
        """Per cent."""
        return 100 * (self.predicted != self.labels).double().mean().item()

    @property
    def single_view_error(self) -> float:
        """Per cent."""
        return 100 * (self.single != self.labels).double().mean().item()

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of the averaged probabilities."""
        likelihood = self.probabilities.gather(1, self.labels[:, None]).clamp(min=1e-12)
        return -likelihood.log().mean().item()

    @property
    def top_error(self) -> float:
        """Per cent of images whose class is not among the five most probable."""
        top = self.probabilities.topk(min(TOP, self.probabilities.shape[1]), 1).indices
        return 100 * (top != self.labels[:, None]).all(1).double().mean().item()

    def part(self, places: NDArray[np.int64]) -> Predictions:
        """The predictions of the images at these positions."""
        at = torch.from_numpy(places)
        return Predictions(
            probabilities=self.probabilities[at], labels=self.labels[at], single=self.single[at], seconds=0.0
        )


class Examiner:
    """A trained network that classifies images by an evaluation's protocol, piece by piece.

    With ten crops the network runs channels-last, because its poolings then take a tenth of the time on a CPU; the
    centre crop also serves as the single view where training saw crops of that size. A view passes the network in
    parts of at most ``VALUES_A_PASS`` pixel values, whose maps fit a cache.
    """

    def __init__(
        self, inputs: Inputs, model: nn.Module, seed: int, device: str, precision: str, how: Evaluation | None = None
    ) -> None:
        """``seed`` draws random views; ``precision`` is the training's; ``how`` is by default the benchmark's."""
        memory.keep()
        torch.backends.cudnn.allow_tf32 = False  # as in training (``core.settle``, whose import takes seconds)
        self.inputs, self.seed, self.device = inputs, seed, device
        self.how = how = how or inputs.benchmark.evaluation
        preprocess, augment = inputs.transforms
        self.preprocess, self.augment = preprocess.to(device), augment.to(device)
        last = inputs.benchmark.recipe.channels_last or how.views == "ten_crop"
        self.layout = torch.channels_last if last else torch.contiguous_format
        self.model = model.to(device).to(memory_format=self.layout)  # type: ignore[call-overload]
        self.half = precision == "bf16"
        self.images: dict[Split, NDArray[np.uint8]] = {}  # as pieces ask for them
        self.centre_is_single = how.views == "ten_crop" and how.crop == self.augment.crop_size

    def pieces(self, split: Split, pieces: Mapping[int, NDArray[np.int64]]) -> Iterator[tuple[int, Piece]]:
        """One after the other."""
        return ((start, self.piece(split, start, places)) for start, places in pieces.items())

    @torch.inference_mode()
    def piece(self, split: Split, start: int, places: NDArray[np.int64]) -> Piece:
        """Averaged probabilities (n, classes) of the images at ``places``, and classes (n,) from a single view.

        ``start``, the number of images before them, is part of the name of the stream that draws random views.
        """
        if split not in self.images:
            self.images[split], _ = self.inputs.dataset.split(split)
        batch = self.preprocess(torch.from_numpy(np.array(self.images[split][places])).to(self.device))
        named = ("views",) if split == "test" else ("views", split)  # of a random stream
        generator = torch.Generator().manual_seed(stream(self.seed, *named, start))
        alone = None
        if not self.centre_is_single:
            alone = self._probabilities(next(views(batch, SINGLE, self.augment, generator)))
            if self.how.views == "single":
                return alone, alone.argmax(1)
        each = [self._probabilities(view) for view in views(batch, self.how, self.augment, generator)]
        return torch.stack(each).mean(0), (each[CENTRE] if alone is None else alone).argmax(1)

    def _probabilities(self, view: Tensor) -> Tensor:
        parts = view.split(max(1, VALUES_A_PASS // view[0].numel()))
        return torch.cat([self._of(part.contiguous(memory_format=self.layout)) for part in parts])

    def _of(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            outputs: Tensor = self.model(images)
        return outputs.float().softmax(1).cpu()


def predict(
    examiner: Examiner, split: Split, places: NDArray[np.int64] | None = None, ask: Ask | None = None
) -> Predictions:
    """Predict the images of ``split`` at ``places``, by default all.

    ``ask`` has the pieces answered elsewhere, several at a time; by default the examiner answers them one by one.
    """
    began, inputs = time.monotonic(), examiner.inputs
    _, labels = inputs.dataset.split(split)
    places = np.arange(len(labels)) if places is None else places
    pieces = {start: places[start : start + BATCH] for start in range(0, len(places), BATCH)}
    answers: dict[int, Piece] = {}
    with progress.counting(f"{inputs.benchmark.name} seed {examiner.seed}", len(places), "images") as advance:
        for start, piece in (ask or examiner.pieces)(split, pieces):
            answers[start] = piece
            advance(len(pieces[start]))
    averaged, single = zip(*(answers[start] for start in pieces), strict=True)
    return Predictions(
        probabilities=torch.cat(averaged),
        labels=torch.from_numpy(np.array(labels[places])),
        single=torch.cat(single),
        seconds=time.monotonic() - began,
    )


def as_claimed(examiner: Examiner, on: ClaimedOn, tested: Predictions, ask: Ask | None = None) -> Predictions:
    """Predictions of the images that the claim was measured on.

    For a part of the test split they are taken from ``tested``, those of the whole split: no view is computed twice.
    """
    dataset = examiner.inputs.dataset
    if on.split == "test":
        return tested.part(subsets.claimed_on(dataset.test, on))
    return predict(examiner, on.split, subsets.claimed_on(dataset.train, on), ask)


def answer(trial: Spec, weights: Path, split: Split, start: int, places: NDArray[np.int64]) -> Piece:
    """A piece of ``predict``, in a process of its own, which keeps the trial's network for the next piece."""
    wanted = (trial.key, weights)
    if wanted not in EXAMINERS:
        EXAMINERS.clear()  # a network and its transforms may take a gigabyte
        if trial.threads is not None:
            torch.set_num_threads(trial.threads)
        inputs = Inputs.of(trial)
        EXAMINERS[wanted] = Examiner(inputs, inputs.load(weights), trial.seed, trial.device, trial.precision)
    return EXAMINERS[wanted].piece(split, start, places)


def flops(inputs: Inputs) -> int:
    """Floating-point operations, about, of the benchmark's evaluation for each image."""
    times = {"single": 1, "random": 1 + inputs.benchmark.evaluation.count, "ten_crop": 10}
    return inputs.flops * times[inputs.benchmark.evaluation.views]
