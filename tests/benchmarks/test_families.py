"""Guards the benchmark of every family: it names one at least of each, and its table can be read."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from benchmarks import families
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
    assert re.search(
        r"^\| ordinary-cifar10 \| fp32 \|( [\d,]+ \|){4}( \d+\.\d\d \|){4} [\d.]+ \|$", done.stdout, re.MULTILINE
    )
