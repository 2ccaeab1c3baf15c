"""Short trials of LeNet-5 on the slice of MNIST, and their weights compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipelines.training import spec, store
from pipelines.training.spec import Spec
from tests import projects
from tests.conftest import THREADS, edit_params

NAME = "lenet5-mnist"


SMALL: dict[str, Any] = {"recipe.subset": {"first": 300}, "budgets.laptop": {"epochs": 3, "seeds": [0]}}


def planned(changes: Mapping[str, Any] | None = None, *, name: str = NAME, seed: int = 0, root: str = "store") -> Spec:
    projects.copy_params(Path())
    params = edit_params(Path("params.yaml"), **{name: {**SMALL, **(changes or {})}})
    return spec.plan(params.benchmark(name), "laptop", seed, data=Path("datasets"), root=Path(root), threads=THREADS)


def weights(files: store.TrialFiles) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(files.weights, weights_only=True)
    return found


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
