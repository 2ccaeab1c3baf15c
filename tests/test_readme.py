"""Guards the README: its ledger and results/index.html are made of the evidence, links lead to files; it is short."""

from __future__ import annotations

import re

import pytest

from pipelines import publish
from pipelines.command.errors import UserError
from pipelines.config.params import load_params
from tests.conftest import ROOT

TEXT = (ROOT / "README.md").read_text()


def test_the_ledger_and_the_page_are_those_of_the_evidence() -> None:
    for path, text in publish.made(load_params(ROOT / "params.yaml"), ROOT).items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, "run: python -m pipelines.publish"


def test_the_page_is_small_and_names_no_machine() -> None:
    page = (ROOT / publish.PAGE).read_text(encoding="utf-8")
    assert len(page.encode()) < 1_000_000
    assert str(ROOT) not in page and "/tmp/" not in page


def test_a_readme_without_a_place_for_the_ledger_is_refused() -> None:
    with pytest.raises(UserError, match="expected <!-- ledger -->"):
        publish.rewritten("# nothing", [])


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_every_link_leads_to_a_file_of_the_repository(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{name} links to {target}"


def test_the_readme_is_read_in_a_sitting() -> None:
    assert len(TEXT.splitlines()) <= 150
