"""Guards the benchmark of a large suite's upkeep: that it still measures what the driver does, on a few trials."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from benchmarks import placement, scale
from pipelines.command.errors import UserError
from tests.conftest import ROOT


def test_it_prints_a_ratio_for_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RUN_STORE", "")
    monkeypatch.setattr(scale, "ROUNDS", 1)
    monkeypatch.setattr(sys, "argv", ["scale.py", "--trials", "5"])
    scale.main()
    said = capsys.readouterr().out
    assert said.startswith("5 trials; before / now:\n") and len(re.findall(r"^  \w+ +\d+\.\d$", said, re.M)) == 4


def test_the_simulated_placing_of_a_suite_is_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["placement.py", "--suite", "ilsvrc2012", "--gpus", "3", "16"])
    placement.main()
    *_, small, large = capsys.readouterr().out.splitlines()
    assert small.split()[:2] == ["3", "60"] and large.split()[:2] == ["16", "60"]
    assert min(float(line.split()[-1]) for line in (small, large)) > 0.9
    monkeypatch.setattr(sys, "argv", ["placement.py", "--suite", "imagenette-224", "--gpus", "0"])
    with pytest.raises(UserError, match=r"^--gpus has 0; expected at least 1$"):
        placement.main()
    monkeypatch.setattr(sys, "argv", ["placement.py", "--suite", "imagenette-224", "--gpus", "1"])
    placement.main()
    monkeypatch.setattr(placement, "IMAGES_OF", {"mnist": 60_000, "cifar10": 50_000})
    with pytest.raises(UserError, match=r"imagenette-224\.dataset is imagenette-224; expected one whose size is known"):
        placement.main()
