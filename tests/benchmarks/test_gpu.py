"""Guards the GPU benchmark: its reading of curves and a trace, and that it runs to its end, rehearsed on a CPU."""

from __future__ import annotations

import math
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from benchmarks import gpu
from pipelines.training import spec
from tests.conftest import ROOT

# As on a machine with torch, Lightning, NumPy and PyYAML alone, where the project is not installed.
BARE = """
import sys
missing = ["ray", "mlflow", "dvc", "psutil", "requests", "jinja2", "sklearn", "filelock"]
sys.modules.update(dict.fromkeys(missing))
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
"""


def test_a_trace_names_what_the_host_did_while_the_device_waited() -> None:
    kernels = [(0.0, 1.0), (0.5, 1.5), (2.0, 3.0), (3.00001, 4.0)]  # one gap of half a second, one too short to count
    host = [(1.5, 1.6, "item"), (0.0, 1.0, "launch"), (1.4, 1.9, "copy"), (3.5, 4.0, "launch"), (1.5, 1.6, "wait")]
    assert gpu.summary(kernels, host) == (
        "the device was busy 87.5% of the time; in its 1 gaps the host was in: copy 7.5%, Python 2.5%, wait 2.5%"
    )
    assert gpu.summary([], host) == "no kernels on a device were seen"


def test_a_rate_of_several_is_that_of_the_time_in_which_all_train() -> None:
    """Of trials that begin one after the other each had the device for itself, and their rates were added."""
    row = gpu.Row("lenet5-mnist", "cuda", Path(), images=100)
    early, late = ([{"time": at} for at in times] for times in ((1.0, 2.0, 4.0, 6.0), (3.0, 4.0, 6.0, 7.0)))
    assert row.images_per_s(early) == pytest.approx(300 / 5)
    assert row.images_per_s(early, late) == pytest.approx((150 + 200) / 3)  # from 3 to 6
    assert math.isnan(row.images_per_s(early, [{"time": 6.0}, {"time": 7.0}]))


def test_a_step_of_the_barest_loop_does_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It read params.yaml, which took ten times as long as the step."""
    row = gpu.Row("lenet5-mnist", "cpu", tmp_path, images=8)
    gpu.make_images(row.data, row.dataset, row.images)
    loop = gpu.Loop(row)
    monkeypatch.delattr(gpu, "load_params")
    monkeypatch.delattr(spec, "has_fast_bf16")
    assert loop.step().isfinite()


@pytest.mark.numeric
def test_it_can_be_rehearsed_on_a_bare_cpu(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE)  # which every process runs first
    words = ["--device=cpu", "--seconds=0.1", "--rows=lenet5-mnist", "--side-by-side", "2"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("| lenet5-mnist")]
    _, eager, graph, pipeline, *_, beside = [cell.strip() for cell in row.strip("|").split("|")]
    assert graph == "nan" and min(float(cell.replace(",", "")) for cell in (eager, pipeline, beside)) > 0
    assert f"lenet5-mnist: pipeline {pipeline}\n" in done.stdout  # as it came


def die() -> None:
    os._exit(1)


def test_a_lost_process_costs_its_own_figure_alone(tmp_path: Path) -> None:
    row = gpu.Row("lenet5-mnist", "cpu", tmp_path, 128)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(BrokenProcessPool):
            pool.submit(die).result()
        assert gpu.together(row, pool, 1, 1).startswith("failed: ")
