"""Guards the benchmark of every family: it names one at least of each, and its table can be read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import families
from benchmarks.gpu import Row, make_images
from pipelines.config.params import load_params
from tests.conftest import ROOT
from tests.processes import environment


def test_every_family_has_a_row() -> None:
    benchmarks = load_params(ROOT / "params.yaml").benchmarks
    assert {benchmarks[name].model.family for name in families.ROWS} == {
        one.model.family for one in benchmarks.values()
    }


@pytest.mark.slow
def test_a_row_is_measured() -> None:
    command = [sys.executable, "-m", "benchmarks.families", "--rounds=1", "--epochs=1", "--rows", "ordinary-cifar10"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    figures = r"( [\d,]+ \|){3} \d+\.\d\d \(\d+\.\d\d to \d+\.\d\d\) \| [\d.]+ \|"
    assert re.search(rf"^\| ordinary-cifar10 \| fp32 \|{figures}$", done.stdout, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [families.LOADED, families.CROPPED])
def test_two_rows_have_one_more_ratio(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "PHOTOGRAPHS", 2)
    row = Row(name, "cpu", tmp_path, 16)
    make_images(row.data, row.dataset, row.images)
    line = families.also(row, 1, 1)
    assert line and re.match(rf"{name}: .* / .* \d+\.\d\d \(.*\); expected at least \d", line)
