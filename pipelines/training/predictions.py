"""Predictions of a trained network, over the views that an evaluation averages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.command import progress
from pipelines.config.claims import ClaimedOn, Evaluation
from pipelines.data import subsets
from pipelines.data.batches import stream
from pipelines.data.transforms import Augment
from pipelines.data.views import views
from pipelines.training.inputs import Inputs

BATCH = 250  # images at a time; fixed, since random views are drawn by the batch
TOP = 5


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


@torch.inference_mode()
def predict(
    inputs: Inputs,
    model: nn.Module,
    seed: int,
    device: str,
    *,
    precision: str,
    split: Literal["train", "test"],
    places: NDArray[np.int64] | None = None,
    evaluation: Evaluation | None = None,
) -> Predictions:
    """Predict the images of ``split`` at ``places``, by default all, as ``evaluation``, by default the benchmark's.

    ``seed`` draws random views; ``precision`` is that of the training, fp32 or bf16.
    """
    began, benchmark, how = time.monotonic(), inputs.benchmark, evaluation or inputs.benchmark.evaluation
    preprocess, augment = inputs.transforms
    preprocess, augment, model = preprocess.to(device), augment.to(device), model.to(device)
    if benchmark.recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = inputs.dataset.split(split)
    places = np.arange(len(images)) if places is None else places
    named = ("views",) if split == "test" else ("views", split)  # of a random stream
    averaged, single = [], []

    def probabilities(batch: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            outputs: Tensor = model(batch)
        return outputs.float().softmax(1).cpu()

    with progress.counting(f"{benchmark.name} seed {seed}", len(places), "images") as advance:
        for start in range(0, len(places), BATCH):
            batch = preprocess(torch.from_numpy(np.array(images[places[start : start + BATCH]])).to(device))
            alone = probabilities(next(views(batch, "single", augment=augment)))
            single.append(alone.argmax(1))
            if how.views == "single":
                averaged.append(alone)
            else:
                generator = torch.Generator().manual_seed(stream(seed, *named, start))
                each = [probabilities(view) for view in _views(batch, how, augment, generator)]
                averaged.append(torch.stack(each).mean(0))
            advance(len(batch))
    return Predictions(
        probabilities=torch.cat(averaged),
        labels=torch.from_numpy(np.array(labels[places])),
        single=torch.cat(single),
        seconds=time.monotonic() - began,
    )


def _views(batch: Tensor, how: Evaluation, augment: Augment, generator: torch.Generator) -> Iterator[Tensor]:
    return views(batch, how.views, augment=augment, generator=generator, count=how.count, size=how.crop)


def as_claimed(
    inputs: Inputs, model: nn.Module, seed: int, device: str, *, precision: str, on: ClaimedOn, tested: Predictions
) -> Predictions:
    """Predictions of the images that the claim was measured on.

    Those of a part of the test split are taken from ``tested``, the whole split's, so that no view is computed twice.
    """
    if on.split == "test":
        return tested.part(subsets.claimed_on(inputs.dataset.test, on))
    places = subsets.claimed_on(inputs.dataset.train, on)
    return predict(inputs, model, seed, device, precision=precision, split=on.split, places=places)
