"""How much there is to train: what the estimates of a trial and of a suite are made from. Without torch."""

from __future__ import annotations

from pipelines.data import datasets, subsets
from pipelines.training import spec

CANDIDATE = 1.2  # training images: one member's answer to a candidate of boosting and two members' to another, measured


def images(one: spec.Spec) -> float:
    """Training images of a trial from its start to its end, and what takes as long as some."""
    return one.epochs * _an_epoch(one) + _searched(one)


def passes(one: spec.Spec) -> float:
    """Passes of a trial over the images that its recipe trains on: fewer than its budget's, where that cuts them."""
    return one.epochs * _an_epoch(one) / _of_recipe(one)


def _an_epoch(one: spec.Spec) -> int:
    count = _of_recipe(one)
    return min(count, one.benchmark.budgets[one.budget].train_images or count)


def _of_recipe(one: spec.Spec) -> int:
    whole = datasets.open_dataset(one.data, one.benchmark.dataset).train
    return len(subsets.positions(whole, one.benchmark.recipe.subset))


def _searched(one: spec.Spec) -> float:
    """Looking for the patterns of a committee's later members."""
    boosting = one.benchmark.recipe.boosting
    if boosting is None:
        return 0.0
    return CANDIDATE * boosting.candidates * one.epochs / one.benchmark.budgets["paper"].epochs
