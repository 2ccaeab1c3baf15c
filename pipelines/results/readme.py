"""Write the ledger of README.md from the evidence below results/; a test keeps the two equal.

    python -m pipelines.results.readme

The table stands between the comments ``<!-- ledger -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from pipelines.command import arguments
from pipelines.command.errors import UserError, guard
from pipelines.results.ledger import LedgerRow
from pipelines.results.words import NONE, claim, figure, ours

README = Path("README.md")
LEDGER_BLOCK = re.compile(r"(<!-- ledger -->\n).*?(<!-- end -->)", re.DOTALL)
HEADINGS = ("benchmark", "metric", "claim", "ours [95 %]", "verdict", "`make repro`")


def read_evidence(folder: Path) -> tuple[dict[str, LedgerRow], dict[str, LedgerRow]]:
    """The measured rows below ``folder``, in their order: those of the paper's budget, and those of a shorter one."""
    ledgers = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"), reverse=True)]
    order = [row["benchmark"] for row in ledgers[0]]  # of MNIST's, which has every benchmark, measured or not
    rows = sorted(
        (row for ledger in ledgers for row in ledger if row["n"]), key=lambda row: order.index(row["benchmark"])
    )
    paper = {row["benchmark"]: row for row in rows if row["budget"] == "paper"}
    return paper, {row["benchmark"]: row for row in rows if row["budget"] != "paper"}


def ledger(paper: Mapping[str, LedgerRow], short: Mapping[str, LedgerRow]) -> str:
    """Every measured claim as a Markdown table; figures in per cent."""
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    for name in [*paper, *(name for name in short if name not in paper)]:
        row = paper.get(name) or short[name]
        label = f" ({row['label']})" if row["label"] else ""
        measured = (ours(paper[name]), paper[name]["verdict"]) if name in paper else (NONE, "untested")
        lines.append((name + label, row["metric"], claim(row), *measured, _short(short.get(name))))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _short(row: LedgerRow | None) -> str:
    """What the default suite comes to, and how many of the paper's epochs it takes."""
    if row is None:
        return NONE
    return f"{figure(row)} at {row['epochs']:g} of {row['paper_epochs']} epochs"


def rewritten(text: str, folder: Path) -> str:
    """``text`` with the ledger as the evidence in ``folder`` has it; UserError where it has no place for one."""
    match = LEDGER_BLOCK.search(text)
    if match is None:
        raise UserError(f"{README} has no place for the ledger; expected <!-- ledger --> and, below it, <!-- end -->")
    return text[: match.end(1)] + ledger(*read_evidence(folder)) + text[match.start(2) :]


def main() -> None:
    """Rewrite the table in place."""
    arguments.Parser(prog="python -m pipelines.results.readme", description=__doc__.splitlines()[0]).parse_args()
    README.write_text(rewritten(README.read_text(encoding="utf-8"), Path("results")), encoding="utf-8")


if __name__ == "__main__":
    guard(main)
