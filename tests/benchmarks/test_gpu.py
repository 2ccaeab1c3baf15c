"""Guards the GPU benchmark: its reading of a trace, and that it runs to its end, rehearsed on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks import gpu
from tests.conftest import ROOT


def test_a_trace_names_what_the_host_did_while_the_device_waited() -> None:
    kernels = [(0.0, 1.0), (0.5, 1.5), (2.0, 3.0), (3.00001, 4.0)]  # one gap of half a second, one too short to count
    host = [(0.0, 1.0, "launch"), (1.4, 1.9, "copy"), (1.5, 1.6, "item"), (3.5, 4.0, "launch")]
    assert gpu.summary(kernels, host) == (
        "the device was busy 87.5% of the time; in its 1 gaps the host was in: copy 10.0%, item 2.5%"
    )


@pytest.mark.numeric
def test_it_can_be_rehearsed_on_a_cpu() -> None:
    command = [sys.executable, "-W", "ignore", "benchmarks/gpu.py", "--device=cpu", "--seconds=0.1", "--side-by-side=1"]
    done = subprocess.run(
        [*command, "--rows=lenet5-mnist"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("| lenet5-mnist")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 7 and float(cells[1].replace(",", "")) > 0
