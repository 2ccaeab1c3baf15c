"""Choose a learning rate on a validation slice of the training images. The test images are not opened.

SDLM's mu, which bounds its rates from above, the MAP criterion's constant and the batch are chosen together with it
where the block `choice` lists some.

    python -m pipelines.tune strided-c-cifar10                       the grid of the benchmark's block `choice`
    python -m pipelines.tune mlp300-mnist --rates 0.01 0.03 --epochs 5

Each candidate is trained without the slice (fixed for all benchmarks of a dataset) and judged on it after the last
epoch. Among batches the slice decides only as far as it can tell: of the candidates within one standard error of the
best, those of the largest batch remain, which cost the least, and of these the best is chosen. What was found is kept
in results/choices/<benchmark>.json; the choice is then written into params.yaml by hand, where a test holds the two
together.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import train
from pipelines.command import ending, progress
from pipelines.command.errors import UserError, guard
from pipelines.command.folders import require_folder
from pipelines.config import schema
from pipelines.config.params import CHOICES, Benchmark, Budget, Choice, Evaluation, Params, load_params
from pipelines.data import subsets
from pipelines.training import provenance, spec, store
from pipelines.training.inputs import Inputs
from pipelines.training.predictions import predict

DATA = Path("datasets")


def grid(choice: Choice) -> list[dict[str, float]]:
    """The candidates: every rate, with every mu, constant and batch where ``choice`` lists any."""
    axes = {"lr": choice.rates, "mu": choice.mus, "map_constant": choice.map_constants, "batch": choice.batches}
    named = {name: values for name, values in axes.items() if values}
    return [dict(zip(named, values, strict=True)) for values in itertools.product(*named.values())]


def candidate(benchmark: Benchmark, values: Mapping[str, float], choice: Choice, epochs: int) -> Benchmark:
    """The benchmark with a candidate's ``values``, without the validation slice, for ``epochs``.

    The paper's schedule is run through in these.
    """
    optimiser: dict[str, Any] = {name: value for name, value in values.items() if name in ("lr", "mu")}
    recipe = dataclasses.replace(
        benchmark.recipe,
        optimiser=dataclasses.replace(benchmark.recipe.optimiser, **optimiser),
        batch=int(values.get("batch", benchmark.recipe.batch)),
        map_constant=values.get("map_constant", benchmark.recipe.map_constant),
        subset=dataclasses.replace(benchmark.recipe.subset, hold_out=choice.hold_out),
    )
    budget = Budget(epochs=epochs, seeds=choice.seeds)
    return dataclasses.replace(benchmark, recipe=recipe, budgets=benchmark.budgets | {"choice": budget})


def in_use(benchmark: Benchmark, choice: Choice) -> dict[str, float]:
    """The values that params.yaml has, of those that the grid varies."""
    recipe = benchmark.recipe
    have = {"lr": recipe.optimiser.lr, "mu": recipe.optimiser.mu}
    have |= {"map_constant": recipe.map_constant, "batch": recipe.batch}
    return {name: have[name] for name in grid(choice)[0]}


def validation_error(one: spec.Spec, choice: Choice, device: str) -> float:
    """Error in per cent of the finished trial on the slice; one view an image."""
    inputs = Inputs.of(one)
    places = subsets.validation(inputs.dataset.train, choice.hold_out)
    model, single = inputs.load(one.files.weights), Evaluation()
    answers = predict(inputs, model, one.seed, device, split="train", places=places, evaluation=single)
    return round(answers.error, 4)


def choose(params: Params, benchmark: Benchmark, choice: Choice, epochs: int) -> dict[str, Any]:
    """Train and judge every candidate; the record that is kept."""
    candidates = grid(choice)
    planned = [
        [
            dataclasses.replace(
                spec.plan(candidate(benchmark, one, choice, epochs), "choice", seed, data=DATA, root=store.default()),
                label=_named(one),
            )
            for seed in choice.seeds
        ]
        for one in candidates
    ]
    require_folder(store.default())
    train.inspect([one for specs in planned for one in specs])
    waiting = [one for specs in planned for one in specs if not one.files.finished]
    try:
        if waiting:
            train.train(params, waiting)
    except UserError as error:  # a candidate at which the loss diverges is an answer too; nothing else is
        diverged = all(_diverged(one) for one in waiting if not one.files.finished)
        if not diverged or not any(all(one.files.finished for one in specs) for specs in planned):
            raise
        print(error, flush=True)
    device = provenance.chosen_device(None)
    found: list[dict[str, Any]] = []
    for one, specs in zip(candidates, planned, strict=True):
        whole = all(each.files.finished for each in specs)
        errors = {str(each.seed): validation_error(each, choice, device) for each in specs} if whole else None
        print(f"{benchmark.name} at {_named(one)}: {_words(errors)}", flush=True)
        mean = float(np.mean(list(errors.values()))) if errors else None
        found.append({**one, "per_seed": errors, "mean": mean})
    return {
        "benchmark": benchmark.name,
        "hold_out": choice.hold_out,
        "epochs": epochs,
        "paper_epochs": benchmark.budgets["paper"].epochs,
        "seeds": list(choice.seeds),
        "validation_error": found,
        "chosen": pick(found, candidates, choice.hold_out),
        "config": candidate(benchmark, in_use(benchmark, choice), choice, epochs).resolved("choice"),
        "hardware": provenance.hardware(device),
        "versions": provenance.versions(),
        **provenance.git_state(),
    }


def pick(found: Sequence[Mapping[str, Any]], candidates: Sequence[dict[str, float]], images: int) -> dict[str, float]:
    """The candidate that is chosen, by the mean errors in % that each had on as many ``images``; None has none."""
    judged = [(one["mean"], values) for one, values in zip(found, candidates, strict=True) if one["mean"] is not None]
    best = min(mean for mean, _ in judged)
    near = [(mean, values) for mean, values in judged if mean <= best + math.sqrt(best * (100 - best) / images)]
    largest = max(values.get("batch", 0) for _, values in near)
    return min((one for one in near if one[1].get("batch", 0) == largest), key=lambda one: one[0])[1]


def _diverged(one: spec.Spec) -> bool:
    told = progress.read(one.files.progress, since=0)
    return told is not None and told["state"] == "failed"


def _named(values: Mapping[str, float]) -> str:
    words = {"lr": "rate", "map_constant": "constant"}
    return " ".join(f"{words.get(name, name)} {value:g}" for name, value in values.items())


def _words(errors: dict[str, float] | None) -> str:
    if errors is None:
        return "not trained to its end"
    return ", ".join(f"{error:.2f}" for error in errors.values()) + " % wrong of the validation slice"


def wanted(benchmark: Benchmark, rates: Sequence[float] | None) -> Choice:
    """What the benchmark says of its choice, with the rates of the command line if there are any.

    UserError for a benchmark whose claim is of training images: the slice would hold some of them.
    """
    on = benchmark.evaluation.claimed_on
    if on is not None and on.split == "train":
        line = f"{benchmark.name}: its claim is of {on.words}"
        raise UserError(f"{line}; expected another benchmark: a rate is never chosen on what is judged")
    if not rates:
        if benchmark.choice is None:
            raise UserError(f"benchmarks.{benchmark.name}.choice is missing; expected it there, or --rates")
        return benchmark.choice
    numbers = schema.convert(tuple[float, ...], rates, "--rates")
    return dataclasses.replace(benchmark.choice, rates=numbers) if benchmark.choice else Choice(rates=numbers)


def main() -> None:
    """Choose among one benchmark's candidates."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.tune",
        description="Train a benchmark at each of some learning rates (and at each of SDLM's mus, of the MAP "
        "criterion's constants and of the batches, where its block `choice` lists some) without a slice of the "
        "training images, judge each on that slice, and keep the errors in results/choices/. The test images are not "
        "opened, and params.yaml is not written.",
    )
    parser.add_argument("benchmark", help="a name from params.yaml, such as mlp1000-mnist")
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        help="in place of those of the benchmark's block `choice`; its other values stay",
    )
    parser.add_argument("--epochs", type=int, help="passes for each candidate; by default those of its `paper` budget")
    args = parser.parse_args()
    ending.follow()
    params = load_params()
    benchmark = params.benchmark(args.benchmark)
    try:
        choice = wanted(benchmark, args.rates)
        epochs = benchmark.budgets["paper"].epochs if args.epochs is None else args.epochs
        for one in grid(choice):
            candidate(benchmark, one, choice, epochs)
    except ValueError as error:  # what a dataclass says of its values
        raise UserError(f"{benchmark.name}: {error}") from None
    record = choose(params, benchmark, choice, epochs)
    path = CHOICES / f"{benchmark.name}.json"
    store.write_bytes(path, (json.dumps(record, indent=1) + "\n").encode())
    chosen, have = _named(record["chosen"]), _named(in_use(benchmark, choice))
    print(f"chosen: {chosen} (params.yaml has {have}); kept in {path.as_posix()}")


if __name__ == "__main__":
    guard(main)
