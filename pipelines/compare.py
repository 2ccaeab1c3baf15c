"""Stage compare: every claim and our figure, as a ledger for programs and as a page for a browser.

``python -m pipelines.compare`` reads params.yaml, suite.yaml, models/*.yaml, the evidence below results/ and the
outputs of ``train`` and ``evaluate`` for the active suite, and writes report/ledger.json and report/index.html.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.command import arguments, ending
from pipelines.command.errors import UserError, guard, printable
from pipelines.command.files import require_folder, write_bytes
from pipelines.config import values
from pipelines.config.params import Params, load_params
from pipelines.results import evidence
from pipelines.results.evidence import COMMITTED, EVIDENCE, HERE, Evidence
from pipelines.results.ledger import gather, make_ledger, quoted
from pipelines.results.page import report
from pipelines.results.reader import Outcome
from pipelines.results.rows import LedgerRow
from pipelines.results.verdicts import Verdict
from pipelines.results.words import MARK, NONE, mean_and_interval, plus_minus, stuck
from pipelines.tracking import helper

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


def terminal_table(ledger: Sequence[LedgerRow], *, plain: bool = False) -> Table:
    """The ledger after ``dvc repro``, eighty columns wide; ``plain`` for a terminal of ASCII."""
    signs = str.maketrans({"±": "+-", MARK: "*", NONE: "-"} if plain else {})
    ran = {row.benchmark for row in ledger if row.origin == HERE}
    shown = sorted(quoted(ledger), key=lambda row: row.benchmark not in ran)
    table = Table(
        title="Claims and ours, %",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption="\n".join(_notes(ledger, shown)).translate(signs) or None,
        caption_justify="left",
    )
    for words in ("benchmark", "", "claim", "ours", "n", "epochs", "verdict"):
        table.add_column(words, justify="right" if words in ("claim", "n", "epochs") else "left", overflow="fold")
    for row in shown:
        table.add_row(*(Text(words.translate(signs), style=style) for words, style in _cells(row)))
    return table


def _notes(ledger: Sequence[LedgerRow], shown: Sequence[LedgerRow]) -> Iterator[str]:
    """The lines below the table."""
    if any(row.test_set for row in shown):
        yield f"{MARK} on the images of the claim; below it, on the whole test set"
    if any(row.origin == COMMITTED for row in shown):
        own = any(row.origin == HERE for row in shown)
        yield f"{'yours: run in this checkout; the others' if own else 'all'}: committed in {EVIDENCE}/"
    agreements = [row.agrees for row in shown if row.agrees is not None]
    if agreements:
        yield f"{sum(agreements)} of {len(agreements)} of yours agree with committed evidence at the same budget"
    untested = {row.benchmark for row in ledger} - {row.benchmark for row in shown}
    if untested:
        yield f"{len(untested)} other benchmarks were not run; the report lists them"


def _cells(row: LedgerRow) -> list[tuple[str, str]]:
    """A line of the table, each cell with its style, since rich reads markup in a plain str."""
    beside = f"{MARK}\n{plus_minus(row.test_set)}" if row.test_set else ""
    beside += f"\n{mean_and_interval(row.ablation)} more" if row.ablation else ""
    value, ablation = row.claim.value, row.ablation
    claimed = f"+{ablation.claimed:g}" if ablation else NONE if value is None else f"{value:g}"
    length = f"{NONE if row.epochs is None else format(row.epochs, 'g')}/{row.paper_epochs}"
    words = (_name(row), row.metric[:3], claimed, f"{plus_minus(row)}{beside}", str(row.n), length)
    return [*((cell, "") for cell in words), (row.verdict, COLOURS[Verdict(row.verdict)])]


def _name(row: LedgerRow) -> str:
    """The benchmark and the words that qualify its verdict; below its best row, only how this row differs."""
    yours = "yours" if row.origin == HERE else None
    stuck_at_chance = f"{stuck(row)} stuck at chance" if row.at_chance else None
    disagrees = row.agreement if row.agrees is False else None
    head = (row.benchmark, row.label, yours) if row.best else ("  yours",)
    return "\n".join(printable(note) for note in (*head, stuck_at_chance, disagrees) if note)


def write(
    params: Params,
    outcomes: Mapping[str, Outcome],
    folder: Path = REPORT,
    committed: Mapping[str, Sequence[Evidence]] | None = None,
) -> list[LedgerRow]:
    """Write both files of the report, each in one step, after making both; return the ledger."""
    ledger = make_ledger(params, outcomes, committed)
    files = {
        "ledger.json": json.dumps(values.plain(ledger), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "index.html": report.build(params, ledger, outcomes, committed),
    }
    require_folder(folder)
    for name in files:
        if (folder / name).is_dir():
            raise UserError(f"{folder / name} is a folder; expected a file, or nothing")
    for name, content in files.items():
        write_bytes(folder / name, content.encode(errors="backslashreplace"))  # JSON's own escape of a surrogate
    return ledger


def main() -> None:
    """Write the report of the active suite and show the ledger."""
    arguments.Parser(
        prog="python -m pipelines.compare",
        description="Write report/ from what train and evaluate left of the active suite, and show the ledger.",
    ).parse_args()
    ending.follow()
    params = load_params()
    ledger = write(params, gather(params), committed=evidence.read(params.benchmarks))
    console = Console()
    if not console.is_terminal:  # a log has no width to fit the table to
        console = Console(width=110)
    console.print(terminal_table(ledger, plain=console.options.ascii_only))
    console.print(f"The report: {(REPORT / 'index.html').as_posix()}", soft_wrap=True, highlight=False)
    sent = helper.sync(deadline_s=60)
    if sent.line:
        print(sent.line, flush=True)


if __name__ == "__main__":
    guard(main)
