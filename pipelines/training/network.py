"""Networks: built from a benchmark's family, name and options, and loaded from a finished trial's weights."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from pipelines.command.errors import UserError, reason
from pipelines.config import schema, wording
from pipelines.config.benchmarks import Benchmark
from pipelines.training import tensors

LONGEST_REASON = 300  # characters of an error of torch's


def build(benchmark: Benchmark, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """The network for images of ``shape`` (C, H, W) as preprocessed and augmented; UserError when it can't be built."""
    make = _builder(benchmark)
    options = _options(benchmark, make)
    where, name = f"{benchmark.where}.model", benchmark.model.name
    try:
        model: nn.Module = make(classes=classes, in_shape=shape, **options)
    except ValueError as error:
        raise UserError(f"{where}: {name}: {reason(error, LONGEST_REASON)}") from None
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:  # torch's own, for a size or a deviation
        line = reason(error, LONGEST_REASON)
        if not isinstance(error, RuntimeError) or "allocate" in line:  # a size that fits no memory, or no number
            line = "it is too large for this machine"
        raise UserError(f"{where}: {name} with the options {wording.show(options)}: {line}") from None
    return model


def load(benchmark: Benchmark, classes: int, shape: tuple[int, ...], weights: Path) -> nn.Module:
    """The trained network in ``weights``, in evaluation mode; UserError when the file is damaged or another's."""
    model = build(benchmark, classes, shape)
    state = tensors.load(weights, f"the weights of {benchmark.name}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        differs = " ".join(str(error).split())[:160]
        raise UserError(f"{weights} does not hold the weights of {benchmark.name}: {differs}") from None
    return model.eval()


def builders(family: str) -> dict[str, Callable[..., nn.Module]]:
    """The public functions of ``models/<family>.py``, by name."""
    module = importlib.import_module(f"models.{family}")
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def _builder(benchmark: Benchmark) -> Callable[..., nn.Module]:
    known, name = builders(benchmark.model.family), benchmark.model.name
    if name not in known:
        raise wording.unknown(f"{benchmark.where}.model.name: model", name, known)
    return known[name]


def _options(benchmark: Benchmark, make: Callable[..., nn.Module]) -> dict[str, Any]:
    """The options, converted to the types of the builder's signature; UserError for one of another name or type."""
    where = f"{benchmark.where}.model.options"
    hints, options = typing.get_type_hints(make), benchmark.model.options
    allowed = set(inspect.signature(make).parameters) - {"classes", "in_shape"}
    for option in options:
        if option not in allowed:
            raise wording.unknown(f"{where}: {benchmark.model.name}: option", option, allowed)
    return {name: schema.convert(hints[name], value, f"{where}.{name}") for name, value in options.items()}
