"""Table 3 of "Striving for Simplicity" beside ours: twelve nets on CIFAR-10 without augmentation.

Source: Springenberg, Dosovitskiy, Brox, Riedmiller 2014, arXiv:1412.6806, Table 3, test error in %.
A benchmark fills a cell by its model's options ``base`` (A, B, C) and ``variant``, when its data set is CIFAR-10 and
nothing is augmented; a cell that no benchmark fills stays untested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.config.benchmarks import Benchmark
from pipelines.results.page.markup import Html, joined, prose, tag
from pipelines.results.page.outcomes import LedgerRow
from pipelines.results.page.words import plus_minus
from pipelines.results.verdicts import Verdict

BASES = ("A", "B", "C")
VARIANTS = {"base": "Model", "strided": "Strided-CNN", "convpool": "ConvPool-CNN", "allcnn": "All-CNN"}
PUBLISHED = {
    "A": {"base": 12.47, "strided": 13.46, "convpool": 10.21, "allcnn": 10.30},
    "B": {"base": 10.20, "strided": 10.98, "convpool": 9.33, "allcnn": 9.10},
    "C": {"base": 9.74, "strided": 10.19, "convpool": 9.31, "allcnn": 9.08},
}
# Of Model and Strided-CNN, then of ConvPool-CNN and All-CNN: what the layers have, and what the table says they have.
PARAMETERS = {
    "A": ((839_242, "0.9 M"), (1_254_250, "1.28 M")),
    "B": ((885_610, "1 M"), (1_300_618, "1.35 M")),
    "C": ((954_730, "1.3 M"), (1_369_738, "1.4 M")),
}

MARK = "†"  # of a figure that was measured, like its claim, on other images than the whole test set
Cell = tuple[str, str]  # base, variant


def cells(benchmarks: Mapping[str, Benchmark], ledger: Sequence[LedgerRow]) -> dict[Cell, LedgerRow] | None:
    """The row that stands in each cell; None when no benchmark belongs to the table."""
    rows = {row["benchmark"]: row for row in ledger}
    found: dict[Cell, LedgerRow] = {}
    for name, benchmark in benchmarks.items():
        cell = _cell(benchmark)
        if cell is None:
            continue
        earlier = found.get(cell)
        if earlier is None or (earlier["n"] == 0 and rows[name]["n"] > 0):
            found[cell] = rows[name]
    return found or None


def _cell(benchmark: Benchmark) -> Cell | None:
    options = benchmark.model.options
    cell = (str(options.get("base", "C")), str(options.get("variant", "allcnn")))  # the builder's defaults
    fits = benchmark.model.family == "allcnn" and benchmark.dataset == "cifar10" and not benchmark.recipe.augment
    return cell if fits and cell[0] in BASES and cell[1] in VARIANTS else None


def grid(found: Mapping[Cell, LedgerRow]) -> Html:
    """The table, in the paper's order: a row a base net, a column a way of doing without pooling."""
    head = tag("tr", tag("td"), *(tag("th", words, scope="col") for words in VARIANTS.values()))
    body = (
        tag("tr", tag("th", base, scope="row"), *(_square(base, variant, found) for variant in VARIANTS))
        for base in BASES
    )
    return tag("table", tag("thead", head), tag("tbody", *body), class_="table3")


def markdown(found: Mapping[Cell, LedgerRow]) -> list[str]:
    """The same table as the lines of a Markdown section: the paper's figure, ours, and the verdict in each cell."""
    lines = [
        "## Table 3 of “Striving for Simplicity”",
        "",
        "Test error in % on CIFAR-10 without augmentation: the paper's figure, then ours.",
        "",
        f"|  | {' | '.join(VARIANTS.values())} |",
        f"|{' --- |' * (len(VARIANTS) + 1)}",
    ]
    for base in BASES:
        squares = (_words(base, variant, found.get((base, variant))) for variant in VARIANTS)
        lines.append(f"| {base} | {' | '.join(squares)} |")
    return [*lines, "", prose(f"{labels(found)}{counts()}")]


def labels(found: Mapping[Cell, LedgerRow]) -> str:
    """What no verdict of the table must be read without, in a sentence; empty where there is nothing."""
    told = sorted({row["label"] for row in found.values() if row["label"]})
    return f"Ours: {'; '.join(told)}. " if told else ""


def counts() -> str:
    """The column of parameters in a sentence: the paper has one, and one of its figures does not fit its layers."""
    pairs = (
        f"{base} {plain[0]:,} ({plain[1]}) and {longer[0]:,} ({longer[1]})"
        for base, (plain, longer) in PARAMETERS.items()
    )
    return (
        "Parameters of Model and Strided-CNN, and of ConvPool-CNN and All-CNN, counted here (and printed there): "
        f"{', '.join(pairs)}. The 1.3 M of Model C does not fit the paper's own layers."
    )


def _words(base: str, variant: str, row: LedgerRow | None) -> str:
    if row is None or not row["n"]:
        return f"{row['claim']['value'] if row else PUBLISHED[base][variant]:.2f}; {Verdict.UNTESTED.value}"
    return f"{row['claim']['value']:.2f}; {plus_minus(row)}, {row['verdict']}"


def _square(base: str, variant: str, found: Mapping[Cell, LedgerRow]) -> Html:
    row = found.get((base, variant))
    claim = row["claim"]["value"] if row else PUBLISHED[base][variant]
    verdict = row["verdict"] if row else Verdict.UNTESTED.value
    published = tag("span", f"{claim:.2f}", class_="published")
    ours = tag("span", plus_minus(row), class_="ours") if row and row["n"] else Html("")
    return tag("td", published, ours, badge(verdict))


SIGNS = {
    Verdict.REPRODUCED: "✓",
    Verdict.BETTER: "▲",
    Verdict.NOT_REPRODUCED: "✕",
    Verdict.INCONCLUSIVE: "?",
    Verdict.UNDER_BUDGET: "◔",
    Verdict.UNTESTED: "–",
}


def badge(verdict: str) -> Html:
    """A verdict as a coloured word with a sign, so that it is not told by colour alone."""
    sign = tag("span", SIGNS[Verdict(verdict)], aria_hidden="true")
    return tag("span", joined([sign, " ", verdict]), class_=f"badge {verdict.replace(' ', '-')}")
