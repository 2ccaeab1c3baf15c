"""Stage compare: every benchmark's claim and our figure, as a ledger for programs, for readers and for a browser.

``python -m pipelines.compare`` reads params.yaml, suite.yaml, models/*.yaml and what ``train`` and ``evaluate`` left of
the active suite, and writes report/ledger.json, report/ledger.md and report/index.html. Benchmarks outside the suite
stay in the ledger as untested.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.command import arguments, ending
from pipelines.command.errors import UserError, guard, printable
from pipelines.command.folders import require_folder
from pipelines.config.params import Params, load_params
from pipelines.results.ledger import LedgerRow, gather, make_ledger
from pipelines.results.page import report, table3
from pipelines.results.page.html import render
from pipelines.results.reader import Outcome
from pipelines.results.verdicts import Verdict
from pipelines.results.words import MARK, NONE, plus_minus, stuck
from pipelines.tracking import helper
from pipelines.training import store

REPORT = Path("report")
COLOURS = {
    Verdict.REPRODUCED: "bold green",
    Verdict.BETTER: "bold cyan",
    Verdict.NOT_REPRODUCED: "bold red",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.UNDER_BUDGET: "magenta",
    Verdict.UNTESTED: "dim",
    Verdict.NO_CLAIM: "dim",
}


def epochs(row: LedgerRow) -> str:
    """How long we trained, and how long the source did."""
    if row["epochs"] is None:
        return f"{NONE} of {row['paper_epochs']}"
    return f"{row['epochs']:g} of {row['paper_epochs']} ({row['budget']})"


def markdown(params: Params, ledger: Sequence[LedgerRow]) -> str:
    """report/ledger.md: the table, then source, protocol and deviations of each row."""
    grid = table3.cells(params.benchmarks, ledger)
    return render(
        "ledger.md",
        suite=params.suite.name,
        ledger=ledger,
        on={name: benchmark.evaluation.claimed_on for name, benchmark in params.benchmarks.items()},
        table3=[Markup(line) for line in table3.markdown(grid)] if grid else [],
        epochs=epochs,
    )


def terminal_table(ledger: Sequence[LedgerRow], *, plain: bool = False) -> Table:
    """The ledger for the end of ``dvc repro``, narrow enough for eighty columns; ``plain`` for a terminal of ASCII."""
    signs = str.maketrans({"±": "+-", MARK: "*", NONE: "-"} if plain else {})
    measured = [row for row in ledger if row["n"]]
    marked = any(row["test_set"] for row in measured)
    notes = [f"{MARK} on the images of the claim; below it, on the whole test set"] if marked else []
    if len(measured) < len(ledger):
        notes.append(f"{len(ledger) - len(measured)} other benchmarks are untested; the report lists them")
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
    for row in measured:
        table.add_row(*(Text(words.translate(signs), style=style) for words, style in _cells(row)))
    return table


def _cells(row: LedgerRow) -> list[tuple[str, str]]:
    """A line of the table, each cell with its style; a plain str would be read for rich's markup."""
    tested = f"{MARK}\n{plus_minus(row['test_set'])}" if row["test_set"] else ""
    length = f"{NONE if row['epochs'] is None else format(row['epochs'], 'g')}/{row['paper_epochs']}"
    words = (
        _name(row),
        row["metric"][:3],
        NONE if row["claim"]["value"] is None else f"{row['claim']['value']:g}",
        f"{plus_minus(row)}{tested}",
    )
    return [
        *((cell, "") for cell in (*words, str(row["n"]), length)),
        (row["verdict"], COLOURS[Verdict(row["verdict"])]),
    ]


def _name(row: LedgerRow) -> str:
    """The benchmark, and below it what qualifies its verdict."""
    notes = (row["label"], f"{stuck(row)} at chance" if row["at_chance"] else None)
    return "\n".join([row["benchmark"], *(printable(note) for note in notes if note)])


def write(params: Params, outcomes: Mapping[str, Outcome], folder: Path = REPORT) -> list[LedgerRow]:
    """Write the three files of the report, each in one step and none before all are made; return the ledger."""
    ledger = make_ledger(params, outcomes)
    files = {
        "ledger.json": json.dumps(ledger, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "ledger.md": markdown(params, ledger),
        "index.html": report.build(params, ledger, outcomes),
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
    arguments.Parser(
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
