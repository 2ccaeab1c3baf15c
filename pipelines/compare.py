"""Stage compare: every benchmark's claim beside ours, as a ledger for programs, for readers and for a browser.

``python -m pipelines.compare`` reads params.yaml and what ``train`` and ``evaluate`` left of the active suite, and
writes report/ledger.json, report/ledger.md and report/index.html. Benchmarks outside the suite stay in the ledger as
untested.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.command import ending
from pipelines.command.errors import UserError, guard, printable
from pipelines.command.folders import require_folder
from pipelines.config.params import Benchmark, Params, load_params
from pipelines.results.page import outcomes, page, table3
from pipelines.results.page.markup import prose
from pipelines.results.page.outcomes import EVALUATIONS, RUNS, LedgerRow, Outcome, TestSet
from pipelines.results.page.table3 import MARK
from pipelines.results.page.tables import CERTAINTY, commit, each, stuck, versions
from pipelines.results.page.words import NONE, figure, plus_minus
from pipelines.results.verdicts import MEANING, MIN_SPREAD, Verdict, claim_margin, judge, shown
from pipelines.tracking import helper
from pipelines.training import store

REPORT = Path("report")
DIGITS = 4  # of a figure in %; the verdict is reached on unrounded ones

COLOURS = {
    Verdict.REPRODUCED: "bold green",
    Verdict.BETTER: "bold cyan",
    Verdict.NOT_REPRODUCED: "bold red",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.UNDER_BUDGET: "magenta",
    Verdict.UNTESTED: "dim",
}


def gather(params: Params, *, evaluations: Path = EVALUATIONS, runs: Path = RUNS) -> dict[str, Outcome]:
    """The outcomes of the active suite's benchmarks, in the order of params.yaml, without those never run."""
    found: dict[str, Outcome] = {}
    for name, benchmark in params.benchmarks.items():
        entry = params.suite.benchmarks.get(name)
        if entry is None:
            continue  # left by another suite, or never run: not what this run can vouch for
        outcome = outcomes.load(benchmark, budget=entry.budget, evaluations=evaluations, runs=runs)
        if outcome is not None:
            found[name] = outcome
    for first, (name, outcome) in itertools.product(found.values(), found.items()):
        if first.dataset == outcome.dataset and first.shape != outcome.shape:
            told = f"images of {outcome.shape} from {outcome.dataset}, another benchmark of {first.shape}"
            raise UserError(f"{evaluations / name} has {told}; expected the same: run dvc repro")
    return found


def make_ledger(params: Params, found: Mapping[str, Outcome]) -> list[LedgerRow]:
    """One row a benchmark, in the order of params.yaml; what was not run stands below what was."""
    rows = [
        make_row(benchmark, budget=_budget(params, name), outcome=found.get(name))
        for name, benchmark in params.benchmarks.items()
    ]
    return sorted(rows, key=lambda row: row["n"] == 0)


def _budget(params: Params, name: str) -> str | None:
    entry = params.suite.benchmarks.get(name)
    return entry.budget if entry else None


def make_row(benchmark: Benchmark, *, budget: str | None, outcome: Outcome | None) -> LedgerRow:
    """The ledger's row of one benchmark; without an outcome it is untested."""
    claim = benchmark.claim
    trials = outcome.trials if outcome else ()
    values = {str(t.seed): t.compared(claim.metric) for t in trials}
    figures = list(values.values())
    epochs = min((float(t.result["epochs"]) for t in trials), default=None)
    paper_epochs = benchmark.budgets["paper"].epochs
    verdict = judge(
        metric=claim.metric,
        claim=claim.value,
        test_images=claim.test_images,
        values=figures,
        short=epochs is not None and epochs < paper_epochs,
    )
    return {
        "benchmark": benchmark.name,
        "label": benchmark.label,
        "dataset": benchmark.dataset,
        "metric": claim.metric,
        "claim": {
            "value": claim.value,
            "unit": "%",
            "source": claim.source,
            "protocol": claim.protocol,
            "certainty": claim.certainty,
        },
        "deviations": list(benchmark.deviations),
        "budget": budget,
        "per_seed": _per_seed(values),
        "n": len(figures),
        "mean": _mean(figures) if figures else None,
        "ci95": _ci95(figures),
        "views": outcome.protocol if outcome else None,
        "verdict": verdict.value,
        "at_chance": [trial.seed for trial in trials if trial.at_chance],
        "wall_s": round(sum(float(t.result["wall_s"]) for t in trials), 2) if trials else None,
        "hardware": each(t.result["hardware"] for t in trials) if trials else None,
        "versions": versions(t.result for t in trials) if trials else None,
        "git_commit": each(commit(t.result) for t in trials) if trials else None,
        "epochs": epochs,
        "paper_epochs": paper_epochs,
        "parameters": int(trials[0].result["parameters"]) if trials else None,
        "config": trials[0].result["config"] if trials else None,
        "margin": round(claim_margin(claim.value, claim.test_images), DIGITS),
        "test_set": _test_set(benchmark, outcome) if outcome else None,
        "difference": claim.difference,
        "remarks": benchmark.remarks,
    }


def _test_set(benchmark: Benchmark, outcome: Outcome) -> TestSet | None:
    """Our figures on the whole test split, where the claim is not of it."""
    if benchmark.evaluation.claimed_on is None:
        return None
    values = {str(t.seed): t.tested(benchmark.claim.metric) for t in outcome.trials}
    figures = list(values.values())
    return {"per_seed": _per_seed(values), "mean": _mean(figures), "ci95": _ci95(figures), "images": outcome.test}


def _per_seed(values: Mapping[str, float]) -> dict[str, float]:
    return {seed: round(value, DIGITS) for seed, value in values.items()}


def _mean(figures: Sequence[float]) -> float:
    return round(statistics.fmean(figures), DIGITS)


def _ci95(figures: Sequence[float]) -> list[float] | None:
    spread = shown(figures)
    return [round(end, DIGITS) for end in spread] if spread else None


def ours(row: LedgerRow) -> str:
    """Our figure as a reader's table shows it; a marked one has the test set's beside it."""
    beside = f"{MARK}; test set {figure(row['test_set'])}" if row["test_set"] else ""
    return f"{figure(row)}{beside}"


def budget(row: LedgerRow) -> str:
    """How long we trained beside how long the source did."""
    if row["epochs"] is None:
        return f"{NONE} of {row['paper_epochs']}"
    return f"{row['epochs']:g} of {row['paper_epochs']} ({row['budget']})"


def markdown(params: Params, ledger: Sequence[LedgerRow]) -> str:
    """report/ledger.md: the table, then source, protocol and deviations of each row."""
    head = ("Benchmark", "Data", "Metric", "Claim, %", "Ours, % [95 %]", "Seeds", "Epochs", "Verdict")
    beside = "Each claim beside our mean over seeds, on the whole test set unless marked."
    lines = ["# Ledger", "", f"Suite `{params.suite.name}`. {beside}"]
    lines += ["", _table_line(head), _table_line(["---"] * len(head))]
    for row in ledger:
        recalled = "*" if row["claim"]["certainty"] == "recalled" else ""
        claim = f"{row['claim']['value']:g} ± {row['margin']:.2f}{recalled}"
        label = f" ({row['label']})" if row["label"] else ""
        name = f"[{row['benchmark']}](#{row['benchmark']}){label}"
        cells = (name, row["dataset"], row["metric"], claim, ours(row), str(row["n"]), budget(row), row["verdict"])
        lines.append(_table_line(cells))
    lines += [
        "",
        "± is half the claim's own 95 % interval, binomial, on the images it was measured on; the interval of ours is "
        f"Student's t over seeds, and of fewer than {MIN_SPREAD} seeds the figures themselves stand there. "
        "* marks a claim recalled, not confirmed against its source. "
        f"{MARK} marks a figure measured on images chosen like those of its claim, which are not the whole test set; "
        "what that means stands below, at the benchmark.",
        "",
        f"What the verdicts mean: {'; '.join(f'*{verdict}*, {MEANING[verdict]}' for verdict in Verdict)}.",
        "",
    ]
    lines += [*table3.markdown(grid), ""] if (grid := table3.cells(params.benchmarks, ledger)) else []
    for row in ledger:
        lines += _markdown_details(row, params.benchmarks[row["benchmark"]])
    return "\n".join(lines).rstrip() + "\n"


def _markdown_details(row: LedgerRow, benchmark: Benchmark) -> list[str]:
    claim = row["claim"]
    lines = [f"## {row['benchmark']}", ""]
    source = f"{prose(claim['source'])} ({CERTAINTY[claim['certainty']]})"
    lines.append(f"- Claim: {source}; {prose(claim['protocol'])}")
    on = benchmark.evaluation.claimed_on
    if on is not None:
        lines.append(f"- Measured {MARK} on {on.words}: {prose(row['difference'] or '')}")
    if row["test_set"]:
        lines.append(f"- On the whole test set ({row['test_set']['images']:,} images): {figure(row['test_set'])} %")
    if row["at_chance"]:
        lines.append(f"- At chance: {stuck(row)}, no better on the test set than guessing")
    if row["n"]:
        where = prose(f"{row['hardware']}, {row['versions']}, commit {row['git_commit']}")
        lines.append(f"- Run on {where}, {row['wall_s']:.0f} s in all")
    lines += [f"- Deviation: {prose(deviation)}" for deviation in row["deviations"]]
    lines += [f"- Tried, and left to try: {prose(row['remarks'])}"] if row["remarks"] else []
    return [*lines, ""]


def _table_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(prose(cell).replace("|", "\\|") for cell in cells) + " |"


def _marked(ledger: Sequence[LedgerRow]) -> bool:
    return any(row["test_set"] for row in ledger)


def terminal_table(ledger: Sequence[LedgerRow], *, plain: bool = False) -> Table:
    """The ledger for the end of ``dvc repro``, narrow enough for eighty columns; ``plain`` for a terminal of ASCII."""
    signs = str.maketrans({"±": "+-", MARK: "*", NONE: "-"} if plain else {})
    shown = [row for row in ledger if row["n"]]
    notes = [f"{MARK} on the images of the claim; below it, on the whole test set"] if _marked(shown) else []
    if len(shown) < len(ledger):
        notes.append(f"{len(ledger) - len(shown)} other benchmarks are untested; the report lists them")
    table = Table(
        title="Claims and ours, %",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption="\n".join(notes).translate(signs) or None,
        caption_justify="left",
    )
    for words in ("benchmark", "", "claim", "ours", "n", "epochs", "verdict"):
        table.add_column(words, justify="right" if words in ("claim", "n", "epochs") else "left", overflow="fold")
    for row in shown:
        verdict = Text(row["verdict"], style=COLOURS[Verdict(row["verdict"])])  # a plain str would be read for markup
        epochs = f"{NONE if row['epochs'] is None else format(row['epochs'], 'g')}/{row['paper_epochs']}"
        claim = f"{row['claim']['value']:g}"
        found = plus_minus(row)
        if row["test_set"]:
            found += f"{MARK}\n{plus_minus(row['test_set'])}"
        figures = (Text(words.translate(signs)) for words in (found, str(row["n"]), epochs))
        table.add_row(_name(row), row["metric"][:3], claim, *figures, verdict)
    return table


def _name(row: LedgerRow) -> Text:
    """The benchmark, and below it what must stand beside its verdict."""
    name = Text(row["benchmark"])
    for note in filter(None, (row["label"], f"{stuck(row)} at chance" if row["at_chance"] else None)):
        name.append(f"\n{printable(note)}", style="dim")
    return name


def write(params: Params, found: Mapping[str, Outcome], folder: Path = REPORT) -> list[LedgerRow]:
    """Write the three files of the report, each in one step and none before all are made; return the ledger."""
    ledger = make_ledger(params, found)
    files = {
        "ledger.json": json.dumps(ledger, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "ledger.md": markdown(params, ledger),
        "index.html": page.build(params, ledger, found),
    }
    require_folder(folder)
    for name in files:
        if (folder / name).is_dir():
            raise UserError(f"{folder / name} is a folder; expected a file, or nothing")
    for name, content in files.items():
        store.write_bytes(folder / name, content.encode(errors="backslashreplace"))  # JSON's own escape of a surrogate
    return ledger


def main() -> None:
    """Write the report of the active suite and show the ledger."""
    argparse.ArgumentParser(
        prog="python -m pipelines.compare",
        description="Write report/ from what train and evaluate left of the active suite, and show the ledger.",
    ).parse_args()
    ending.follow()
    params = load_params()
    ledger = write(params, gather(params))
    console = Console()
    if not console.is_terminal:  # a log has no width of its own to cut the table to
        console = Console(width=110)
    console.print(terminal_table(ledger, plain=console.options.ascii_only))
    console.print(f"The report: {(REPORT / 'index.html').as_posix()}", soft_wrap=True, highlight=False)
    sent = helper.sync(deadline_s=60)
    if sent.line:
        print(sent.line, flush=True)


if __name__ == "__main__":
    guard(main)
