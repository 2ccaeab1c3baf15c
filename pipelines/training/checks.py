"""Checks of a benchmark against its data and its network, before training."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from pipelines.command.errors import UserError, reason
from pipelines.config.benchmarks import Benchmark
from pipelines.data import subsets
from pipelines.data.datasets import Dataset
from pipelines.training import boosting, sdlm
from pipelines.training.inputs import LONGEST_REASON, Inputs
from pipelines.training.losses import build_loss
from pipelines.training.optimisers import build_optimiser


def check(inputs: Inputs, budget: str) -> int:
    """UserError for the first fault; returns the bytes of a trial's weights."""
    benchmark, dataset = inputs.benchmark, inputs.dataset
    dataset.verify("train")
    check_counts(benchmark, budget, dataset)
    check_views(inputs)
    check_claimed_on(benchmark, dataset)
    model = inputs.build().eval()
    check_ensemble(benchmark, model)
    _check_outputs(inputs, model)
    check_optimiser(benchmark, model, inputs.shape)
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def check_counts(benchmark: Benchmark, budget: str, dataset: Dataset) -> None:
    """UserError where a recipe or budget asks for more images than there are."""
    where, recipe, chosen = benchmark.where, benchmark.recipe, benchmark.recipe.subset
    whole = f"the {dataset.train:,} training images of {dataset.name}"
    rest = len(subsets.positions(dataset.train, dataclasses.replace(chosen, sample=None)))
    kept = min(rest, chosen.sample or rest)
    cut = benchmark.budgets[budget].train_images
    samples = recipe.optimiser.samples if recipe.optimiser.name == "sdlm" else None
    for key, value, most, of in (
        ("recipe.subset.first", chosen.first, dataset.train, whole),
        ("recipe.subset.hold_out", chosen.hold_out, dataset.train - 1, f"{dataset.train - 1:,}, one less than {whole}"),
        ("recipe.subset.sample", chosen.sample, rest, f"the {rest:,} that the rest of the subset leaves of {whole}"),
        ("recipe.optimiser.samples", samples, kept, f"{kept:,} of {whole}"),
        (f"budgets.{budget}.train_images", cut, kept, f"{kept:,} of {whole}"),
    ):
        if value is not None and value > most:
            raise UserError(f"{where}.{key} is {value}; expected at most {of}")
    if not rest:
        raise UserError(f"{where}.recipe.subset leaves none of {whole}; expected at least one")
    count = min(kept, cut or kept)
    if recipe.batch > count:
        expected = f"expected at most the {count} training images of {dataset.name}"
        raise UserError(f"{where}.recipe.batch is {recipe.batch}; {expected}")


def check_views(inputs: Inputs) -> None:
    """UserError where the evaluation's views would not have the size of the network's input."""
    side, crop = inputs.shape[1], inputs.benchmark.evaluation.crop
    if crop not in (None, side):
        where = f"{inputs.benchmark.where}.evaluation.crop"
        raise UserError(f"{where} is {crop}; expected {side}, the side of the images it is trained on")


def check_claimed_on(benchmark: Benchmark, dataset: Dataset) -> None:
    """UserError where the images that the claim was measured on lie beyond the end of their split."""
    on = benchmark.evaluation.claimed_on
    if on is None:
        return
    have = dataset.train if on.split == "train" else dataset.test
    if on.end > have:
        where = f"{benchmark.where}.evaluation.claimed_on"
        raise UserError(f"{where} is {on.words}; expected images among the {have:,} that {dataset.name} has there")


def check_ensemble(benchmark: Benchmark, model: nn.Module) -> None:
    """UserError for an ensemble without boosting, or boosting without an ensemble."""
    where, name = f"{benchmark.where}.recipe.boosting", benchmark.model.name
    wanted, have = boosting.MEMBERS if benchmark.recipe.boosting else 0, len(boosting.members(model))
    if have and not wanted:
        raise UserError(f"{where} is missing; expected with {name}, an ensemble")
    if have != wanted:
        raise UserError(f"{where} needs an ensemble of {wanted}; {name} has {have or 'no'} members")


def _check_outputs(inputs: Inputs, model: nn.Module) -> None:
    benchmark, shape, expected = inputs.benchmark, inputs.shape, (1, len(inputs.dataset.classes))
    where, name = f"{benchmark.where}.model", benchmark.model.name
    try:
        with torch.inference_mode():
            outputs = model(torch.zeros(1, *shape))
    except RuntimeError as error:
        raise UserError(f"{where}: {name} does not take images of {shape}: {reason(error, LONGEST_REASON)}") from None
    if tuple(outputs.shape) != expected:
        raise UserError(f"{where}: {name} gives {tuple(outputs.shape)}; expected {expected}")


def check_optimiser(benchmark: Benchmark, model: nn.Module, shape: tuple[int, ...]) -> None:
    """UserError where the optimiser names layers that the model lacks, or has no rule for the model's operations."""
    try:
        optimiser = build_optimiser(benchmark.recipe.optimiser, model)
        if isinstance(optimiser, sdlm.SDLM):
            images, labels = torch.zeros(1, *shape), torch.zeros(1, dtype=torch.long)
            sdlm.curvature(model, build_loss(benchmark.recipe), images, labels)
    except (UserError, ValueError) as error:
        raise UserError(f"{benchmark.where}.recipe.optimiser: {error}") from None
