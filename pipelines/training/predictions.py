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
EXAMINERS: dict[tuple[str, Path, Split], Examiner] = {}  # the network that ``answer`` keeps
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

    def confusion(self) -> NDArray[np.int64]:
        """(classes, classes): rows actual, columns predicted."""
        classes = self.probabilities.shape[1]
        cells = torch.bincount(self.labels * classes + self.predicted, minlength=classes * classes)
        return cells.view(classes, classes).numpy()

    def part(self, places: NDArray[np.int64]) -> Predictions:
        """Those of the images at these positions."""
        at = torch.from_numpy(places)
        return Predictions(
            probabilities=self.probabilities[at], labels=self.labels[at], single=self.single[at], seconds=0.0
        )


class Examiner:
    """A trained network and its way of looking at images, asked for one piece of them after another.

    With ten crops the network runs channels-last, whose poolings take a tenth of the time on a CPU, and the centre crop
    is the single view too, where training saw crops of that size. A view goes through the network in parts of at most
    ``VALUES_A_PASS`` pixel values, whose maps a cache can hold.
    """

    def __init__(
        self, inputs: Inputs, model: nn.Module, seed: int, device: str, precision: str, split: Split, how: Evaluation
    ) -> None:
        memory.keep()
        recipe = inputs.benchmark.recipe
        self.seed, self.device, self.split, self.how = seed, device, split, how
        self.images, _ = inputs.dataset.split(split)
        preprocess, augment = inputs.transforms
        self.preprocess, self.augment = preprocess.to(device), augment.to(device)
        last = recipe.channels_last or how.views == "ten_crop"
        self.layout = torch.channels_last if last else torch.contiguous_format
        self.model = model.to(device).to(memory_format=self.layout)  # type: ignore[call-overload]
        self.half = precision == "bf16"
        self.centre_is_single = how.views == "ten_crop" and how.crop == self.augment.crop_size

    def pieces(self, _: Split, pieces: Mapping[int, NDArray[np.int64]]) -> Iterator[tuple[int, Piece]]:
        """One after the other."""
        return ((start, self.piece(start, places)) for start, places in pieces.items())

    @torch.inference_mode()
    def piece(self, start: int, places: NDArray[np.int64]) -> Piece:
        """Averaged probabilities (n, classes) of the images at ``places``, and classes (n,) from a single view.

        ``start``, how many images come before them, is part of the stream that draws random views.
        """
        batch = self.preprocess(torch.from_numpy(np.array(self.images[places])).to(self.device))
        named = ("views",) if self.split == "test" else ("views", self.split)  # of a random stream
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
    inputs: Inputs,
    model: nn.Module,
    seed: int,
    device: str,
    *,
    precision: str,
    split: Split,
    places: NDArray[np.int64] | None = None,
    evaluation: Evaluation | None = None,
    ask: Ask | None = None,
) -> Predictions:
    """Predict the images of ``split`` at ``places``, by default all, as ``evaluation``, by default the benchmark's.

    ``seed`` draws random views; ``precision`` is that of the training, fp32 or bf16. ``ask`` has the pieces answered
    elsewhere, several at a time; by default they are answered here, one after the other.
    """
    began, how = time.monotonic(), evaluation or inputs.benchmark.evaluation
    _, labels = inputs.dataset.split(split)
    places = np.arange(len(labels)) if places is None else places
    pieces = {start: places[start : start + BATCH] for start in range(0, len(places), BATCH)}
    ask = ask or Examiner(inputs, model, seed, device, precision, split, how).pieces
    found: dict[int, Piece] = {}
    with progress.counting(f"{inputs.benchmark.name} seed {seed}", len(places), "images") as advance:
        for start, piece in ask(split, pieces):
            found[start] = piece
            advance(len(pieces[start]))
    averaged, single = zip(*(found[start] for start in pieces), strict=True)
    return Predictions(
        probabilities=torch.cat(averaged),
        labels=torch.from_numpy(np.array(labels[places])),
        single=torch.cat(single),
        seconds=time.monotonic() - began,
    )


def answer(trial: Spec, weights: Path, split: Split, start: int, places: NDArray[np.int64]) -> Piece:
    """A piece of ``predict``, in a process of its own, which keeps the trial's network for the next one."""
    wanted = (trial.key, weights, split)
    if wanted not in EXAMINERS:
        EXAMINERS.clear()  # a network and its transforms may take a gigabyte
        if trial.threads is not None:
            torch.set_num_threads(trial.threads)
        inputs, how = Inputs.of(trial), trial.benchmark.evaluation
        model, seed = inputs.load(weights), trial.seed
        EXAMINERS[wanted] = Examiner(inputs, model, seed, trial.device, trial.precision, split, how)
    return EXAMINERS[wanted].piece(start, places)


def flops(inputs: Inputs) -> int:
    """Floating-point operations that the benchmark's evaluation takes for one image, about."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        inputs.build().eval()(torch.empty(1, *inputs.shape))
    times = {"single": 1, "random": 1 + inputs.benchmark.evaluation.count, "ten_crop": 10}
    return int(counter.get_total_flops()) * times[inputs.benchmark.evaluation.views]


def as_claimed(
    inputs: Inputs,
    model: nn.Module,
    seed: int,
    device: str,
    *,
    precision: str,
    on: ClaimedOn,
    tested: Predictions,
    ask: Ask | None = None,
) -> Predictions:
    """Predictions of the images that the claim was measured on.

    Those of a part of the test split are taken from ``tested``, the whole split's, so that no view is computed twice.
    """
    if on.split == "test":
        return tested.part(subsets.claimed_on(inputs.dataset.test, on))
    places = subsets.claimed_on(inputs.dataset.train, on)
    return predict(inputs, model, seed, device, precision=precision, split=on.split, places=places, ask=ask)
