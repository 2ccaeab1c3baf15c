"""Table 3 of "Striving for Simplicity" with our figures: twelve nets on CIFAR-10 without augmentation.

Source: Springenberg, Dosovitskiy, Brox, Riedmiller 2014, arXiv:1412.6806, Table 3, test error in %.
A benchmark fills a cell by its model's options ``base`` (A, B, C) and ``variant``, when its data set is CIFAR-10 and
nothing is augmented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.config.benchmarks import Benchmark
from pipelines.results.rows import LedgerRow

BASES = ("A", "B", "C")
VARIANTS = {"base": "Model", "strided": "Strided-CNN", "convpool": "ConvPool-CNN", "allcnn": "All-CNN"}

Cell = tuple[str, str]  # base, variant


def cells(benchmarks: Mapping[str, Benchmark], ledger: Sequence[LedgerRow]) -> dict[Cell, LedgerRow]:
    """The row in each cell that a benchmark fills; of two rows, the one with evidence."""
    best = sorted((row for row in ledger if row.best), key=lambda row: row.n > 0)
    found = {_cell(benchmarks[row.benchmark]): row for row in best}
    return {cell: row for cell, row in found.items() if cell is not None}


def _cell(benchmark: Benchmark) -> Cell | None:
    options = benchmark.model.options
    cell = (str(options.get("base", "C")), str(options.get("variant", "allcnn")))  # the builder's defaults
    fits = benchmark.model.family == "allcnn" and benchmark.dataset == "cifar10" and not benchmark.recipe.augment
    return cell if fits and cell[0] in BASES and cell[1] in VARIANTS else None


def labels(found: Mapping[Cell, LedgerRow]) -> list[str]:
    """The words that qualify our figures in the table."""
    return sorted({row.label for row in found.values() if row.label})


def measured(found: Mapping[Cell, LedgerRow]) -> int:
    """The number of cells that were trained as long as in the paper."""
    return sum(row.n > 0 and (row.epochs or 0) >= row.paper_epochs for row in found.values())
