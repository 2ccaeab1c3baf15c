"""Guards the README: its ledger is that of the committed evidence, its links lead somewhere, and it stays short."""

from __future__ import annotations

import re

import pytest

from pipelines.command.errors import UserError
from pipelines.results import readme
from tests.conftest import ROOT

TEXT = (ROOT / "README.md").read_text()


def test_the_ledger_is_that_of_the_evidence() -> None:
    assert readme.rewritten(TEXT, ROOT / "results") == TEXT, "run: python -m pipelines.results.readme"


def test_a_readme_without_a_place_for_the_ledger_is_refused() -> None:
    with pytest.raises(UserError, match="expected <!-- ledger -->"):
        readme.rewritten("# nothing", ROOT / "results")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_every_link_leads_to_a_file_of_the_repository(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{name} links to {target}"


def test_the_readme_is_read_in_a_sitting() -> None:
    assert len(TEXT.splitlines()) <= 150
