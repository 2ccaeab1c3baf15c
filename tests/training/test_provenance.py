"""What is said of the commit: a change is a change, but another active suite is none, nor a choice."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pipelines import suite
from pipelines.training import provenance
from tests import projects


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of its own that holds params.yaml, code, and results, all committed."""
    projects.copy_params(tmp_path)
    (tmp_path / "model.py").write_text("LAYERS = 5\n")
    for name in ("evidence", "choices"):
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / f"results/{name}/linear-mnist.json").write_text("[]\n")
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "Begin")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


def test_a_fresh_tree_is_clean_and_names_its_commit(tree: Path) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, capture_output=True, text=True, check=True)
    assert provenance.git_state() == {"git_commit": head.stdout.strip(), "git_dirty": False}


def test_another_active_suite_is_no_change(tree: Path) -> None:
    suite.switch("mnist", tree / "params.yaml")
    assert '  name: "mnist"\n' in (tree / "suite.yaml").read_text()
    assert provenance.git_state()["git_dirty"] is False


@pytest.mark.parametrize("name", ["choices", "evidence"])
def test_what_was_measured_is_no_change(tree: Path, name: str) -> None:
    (tree / f"results/{name}/linear-mnist.json").write_text("{}\n")
    assert provenance.git_state()["git_dirty"] is False
    suite.switch("mnist", tree / "params.yaml")
    assert provenance.git_state()["git_dirty"] is False


def test_anything_else_is_one(tree: Path) -> None:
    suite.switch("mnist", tree / "params.yaml")
    rows = tree / "models/mlp.yaml"
    text = rows.read_text()
    rows.write_text(text.replace("lr: 0.1}", "lr: 0.2}", 1))
    assert provenance.git_state()["git_dirty"] is True
    rows.write_text(text)
    (tree / "model.py").write_text("LAYERS = 6\n")
    assert provenance.git_state()["git_dirty"] is True


def test_an_archive_names_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The committed attributes have ``git archive`` write it: the image of a cluster has no repository."""
    home, there = tmp_path / "home", tmp_path / "there"
    there.mkdir()
    shutil.copytree(
        projects.ROOT, home, ignore=lambda _, names: {name for name in names if name[:4] != ".git"} | {".git"}
    )
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "Begin")):
        subprocess.run(["git", *words], cwd=home, check=True)
    packed = subprocess.run(["git", "archive", "HEAD"], cwd=home, capture_output=True, check=True)
    subprocess.run(["tar", "-x"], cwd=there, input=packed.stdout, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=home, capture_output=True, text=True, check=True)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr(provenance, "ROOT", there)
    assert provenance.git_state() == {"git_commit": head.stdout.strip(), "git_dirty": None}
    shutil.copy(projects.ROOT / provenance.ARCHIVED, there)  # as it is in a checkout
    assert provenance.git_state() == {"git_commit": None, "git_dirty": None}


def test_outside_git_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_state() == {"git_commit": None, "git_dirty": None}
