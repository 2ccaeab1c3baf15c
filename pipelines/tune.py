"""Tune a learning rate on a validation slice of the training images. The test images are not opened.

SDLM's mu, which bounds its rates from above, the MAP criterion's constant and the batch are tuned together with it
where the block `choice` lists values for them.

    python -m pipelines.tune strided-c-cifar10                       the grid of the benchmark's block `choice`
    python -m pipelines.tune mlp300-mnist --rates 0.01 0.03 --epochs 5

Each candidate trains without the slice (the same for all benchmarks of a dataset) and is judged by its error on the
slice after the last epoch. Of the candidates within one standard error of the best, those with the largest batch
remain, since they are the cheapest, and the best of these is chosen. The record is written to
results/choices/<benchmark>.json; a person then copies the chosen values into the recipe, and a test compares the two.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.cluster import campaign
from pipelines.command import arguments, ending
from pipelines.command.errors import UserError, guard
from pipelines.command.files import read_json, require_folder, write_bytes
from pipelines.config import schema
from pipelines.config.benchmarks import Benchmark, Budget, Choice, Rates
from pipelines.config.claims import Evaluation
from pipelines.config.params import Params, load_params
from pipelines.data import subsets
from pipelines.data.datasets import DATA
from pipelines.tracking import helper
from pipelines.training import provenance, spec, status, store
from pipelines.training.inputs import Inputs
from pipelines.training.predictions import Examiner, predict

CHOICES = Path("results/choices")  # one record a benchmark


def grid(choice: Choice) -> list[dict[str, float]]:
    """The candidates: every rate, with every mu, constant and batch where ``choice`` lists any."""
    axes = {"lr": choice.rates, "mu": choice.mus, "map_constant": choice.map_constants, "batch": choice.batches}
    named = {name: values for name, values in axes.items() if values}
    return [dict(zip(named, values, strict=True)) for values in itertools.product(*named.values())]


def candidate(benchmark: Benchmark, values: Mapping[str, float], choice: Choice, epochs: int) -> Benchmark:
    """The benchmark with a candidate's ``values``, without the validation slice.

    It runs through the whole of the paper's schedule in ``epochs``.
    """
    optimiser: dict[str, Any] = {name: value for name, value in values.items() if name in ("lr", "mu")}
    recipe = dataclasses.replace(
        benchmark.recipe,
        optimiser=dataclasses.replace(benchmark.recipe.optimiser, **optimiser),
        batch=int(values.get("batch", benchmark.recipe.batch)),
        map_constant=values.get("map_constant", benchmark.recipe.map_constant),
        subset=dataclasses.replace(benchmark.recipe.subset, hold_out=choice.hold_out),
    )
    budget = schema.parse(Budget, {"epochs": epochs, "seeds": choice.seeds}, benchmark.name)
    return dataclasses.replace(benchmark, recipe=recipe, budgets=benchmark.budgets | {"choice": budget})


def in_use(benchmark: Benchmark, choice: Choice) -> dict[str, float]:
    """The recipe's present values of all that the grid varies."""
    recipe = benchmark.recipe
    have = {"lr": recipe.optimiser.lr, "mu": recipe.optimiser.mu}
    have |= {"map_constant": recipe.map_constant, "batch": recipe.batch}
    return {name: have[name] for name in grid(choice)[0]}


def validation_error(trial: spec.Spec, choice: Choice, device: str) -> float:
    """Error in per cent of the finished trial on the slice, with a single view of each image."""
    inputs = Inputs.of(trial)
    model = inputs.load(trial.files.weights)
    examiner = Examiner(inputs, model, trial.seed, device, trial.precision, Evaluation())
    return round(predict(examiner, "train", subsets.validation(inputs.dataset.train, choice.hold_out)).error, 4)


def search(params: Params, benchmark: Benchmark, choice: Choice, epochs: int) -> dict[str, Any]:
    """Train every candidate and measure its validation error; returns the record."""
    candidates = grid(choice)
    planned = [_trials(benchmark, values, choice, epochs) for values in candidates]
    _train(params, planned)
    device = provenance.chosen_device(None)
    results: list[dict[str, Any]] = []
    trained: list[spec.Spec] = []
    for values, trials in zip(candidates, planned, strict=True):
        whole = all(trial.finished for trial in trials)
        judged = [trial.settled for trial in trials] if whole else []
        trained += judged
        errors = {str(trial.seed): validation_error(trial, choice, device) for trial in judged} or None
        print(f"{benchmark.name} at {_named(values)}: {_words(errors)}", flush=True)
        mean = float(np.mean(list(errors.values()))) if errors else None
        results.append({**values, "per_seed": errors, "mean": mean})
    first = trained[0]
    return {
        "benchmark": benchmark.name,
        "hold_out": choice.hold_out,
        "epochs": epochs,
        "paper_epochs": benchmark.budgets["paper"].epochs,
        "seeds": list(choice.seeds),
        "validation_error": results,
        "chosen": pick(results, candidates, choice.hold_out),
        "config": candidate(benchmark, in_use(benchmark, choice), choice, epochs).resolved("choice", first.precision),
        "device": read_json(first.files.result)["device"],
        "hardware": provenance.hardware(device),
        "versions": provenance.versions(),
        **provenance.git_state(),
    }


def _trials(benchmark: Benchmark, values: Mapping[str, float], choice: Choice, epochs: int) -> list[spec.Spec]:
    """A candidate's trials, one from each seed."""
    changed, root = candidate(benchmark, values, choice, epochs), store.default()
    planned = [spec.plan(changed, "choice", seed, data=DATA, root=root) for seed in choice.seeds]
    return [dataclasses.replace(trial, label=_named(values)) for trial in planned]


def _train(params: Params, planned: Sequence[Sequence[spec.Spec]]) -> None:
    """Train unfinished trials; a candidate that diverges is a result, any other failure an error."""
    require_folder(store.default())
    campaign.inspect([trial for trials in planned for trial in trials])
    waiting = [trial for trials in planned for trial in trials if not trial.finished]
    try:
        if waiting:
            campaign.train(params, waiting, helper.follow)
    except UserError as error:
        diverged = all(_diverged(trial) for trial in waiting if not trial.finished)
        if not diverged or not any(all(trial.finished for trial in trials) for trials in planned):
            raise
        print(error, flush=True)


def pick(results: Sequence[Mapping[str, Any]], candidates: Sequence[dict[str, float]], images: int) -> dict[str, float]:
    """The best candidate by its mean error in % on ``images`` images; the mean is None where it diverged."""
    judged = [(result["mean"], values) for result, values in zip(results, candidates, strict=True)]
    trained = [(mean, values) for mean, values in judged if mean is not None]
    best = min(mean for mean, _ in trained)
    margin = math.sqrt(best * (100 - best) / images)  # a standard error
    near = [(mean, values) for mean, values in trained if mean <= best + margin]
    largest = max(values.get("batch", 0) for _, values in near)
    cheapest = [(mean, values) for mean, values in near if values.get("batch", 0) == largest]
    return min(cheapest, key=lambda pair: pair[0])[1]


def _diverged(trial: spec.Spec) -> bool:
    """Whether it failed, under the key of whichever device trained it."""
    states = (status.read(variant.files.progress, since=0) for variant in trial.variants)
    return any(state is not None and state["state"] == "failed" for state in states)


def _named(values: Mapping[str, float]) -> str:
    words = {"lr": "rate", "map_constant": "constant"}
    return " ".join(f"{words.get(name, name)} {value:g}" for name, value in values.items())


def _words(errors: dict[str, float] | None) -> str:
    if errors is None:
        return "not trained to its end"
    return ", ".join(f"{error:.2f}" for error in errors.values()) + " % wrong of the validation slice"


def wanted(benchmark: Benchmark, rates: Sequence[float] | None) -> Choice:
    """The benchmark's block ``choice``, with the rates of the command line if there are any.

    UserError for a benchmark whose claim is about training images: the slice would hold some of them.
    """
    on = benchmark.evaluation.claimed_on
    if on is not None and on.split == "train":
        line = f"{benchmark.name}: its claim is of {on.words}"
        raise UserError(f"{line}; expected another benchmark: a rate is never tuned on the images of a claim")
    if not rates:
        if benchmark.choice is None:
            raise UserError(f"{benchmark.where}.choice is missing; expected it there, or --rates")
        return benchmark.choice
    numbers = schema.convert(Rates, rates, "--rates")
    return dataclasses.replace(benchmark.choice, rates=numbers) if benchmark.choice else Choice(rates=numbers)


def main() -> None:
    """Tune one benchmark."""
    parser = arguments.Parser(
        prog="python -m pipelines.tune",
        description="Tune a benchmark on a slice of its training images: train on the others at each learning rate of "
        "its block `choice`, and at each mu of SDLM, constant of the MAP criterion and batch that the block lists. The "
        "errors on the slice go to results/choices/. No test image is opened, and no recipe is changed.",
    )
    parser.add_argument("benchmark", help="a benchmark of models/*.yaml, such as mlp1000-mnist")
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        help="learning rates in place of those in `choice`; its other lists stay",
    )
    parser.add_argument("--epochs", type=int, help="of each candidate; by default those of the paper budget")
    args = parser.parse_args()
    ending.follow()
    params = load_params()
    benchmark = params.benchmark(args.benchmark)
    try:
        choice = wanted(benchmark, args.rates)
        epochs = benchmark.budgets["paper"].epochs if args.epochs is None else args.epochs
        for values in grid(choice):
            candidate(benchmark, values, choice, epochs)
    except ValueError as error:  # of a dataclass, about its values
        raise UserError(f"{benchmark.name}: {error}") from None
    record = search(params, benchmark, choice, epochs)
    path = CHOICES / f"{benchmark.name}.json"
    write_bytes(path, (json.dumps(record, indent=1) + "\n").encode())
    chosen, have = _named(record["chosen"]), _named(in_use(benchmark, choice))
    print(f"chosen: {chosen} ({benchmark.where} has {have}); kept in {path.as_posix()}")


if __name__ == "__main__":
    guard(main)
