"""DVC ended in the middle of training, by Ctrl-C and by kill -9: what it started ends too, and is continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from tests.checkout import BIN, Checkout
from tests.disturbed import OFTEN
from tests.processes import name_of, started_by

pytestmark = pytest.mark.usefixtures("ends_all")


@contextmanager
def training(found: Checkout) -> Iterator[tuple[subprocess.Popen[bytes], list[psutil.Process]]]:
    """DVC with LeNet-5's stage, in a process group of its own, once both trials have saved; and all it started."""
    before = {path: path.stat().st_mtime_ns for path in found.folder.glob("store/*/last.ckpt")}
    with (found.folder / "log").open("wb") as log:
        dvc = subprocess.Popen(
            [str(BIN / "dvc"), "repro", "train@lenet5-mnist"],
            cwd=found.folder,
            env=found.environment,
            stdout=log,
            stderr=log,
            process_group=0,  # for a Ctrl-C that reaches these processes alone
        )
    try:
        deadline = time.monotonic() + 240
        while sum(p.stat().st_mtime_ns != before.get(p) for p in found.folder.glob("store/*/last.ckpt")) < 2:
            assert time.monotonic() < deadline and dvc.poll() is None, (found.folder / "log").read_text()
            time.sleep(0.1)
        yield dvc, [p for p in started_by(dvc.pid) if not name_of(p).endswith("Agent")]
    finally:
        if dvc.poll() is None:
            os.killpg(dvc.pid, signal.SIGKILL)
            dvc.wait()


def test_a_dvc_that_ends_takes_its_stage_along_and_is_continued(tmp_path: Path, mirror: Path) -> None:
    """Ctrl-C, which a terminal sends to all that runs there, and kill -9, of which only DVC hears."""
    found = Checkout(tmp_path / "killed", mirror)
    found.small(epochs=10, images=8_000)
    (found.folder / "sitecustomize.py").write_text(OFTEN)
    (found.folder / "slow").touch()
    found.run("dvc", "repro", "fetch@mnist")

    with training(found) as (dvc, family):
        os.killpg(dvc.pid, signal.SIGINT)
        assert dvc.wait(timeout=120) != 0
    assert not psutil.wait_procs(family, timeout=60)[1]
    said = (found.folder / "log").read_text()
    assert "error: interrupted" in said and "Traceback" not in said

    with training(found) as (dvc, family):
        dvc.kill()
        dvc.wait()
    assert not psutil.wait_procs(family, timeout=60)[1]

    (found.folder / "slow").unlink()
    found.run("dvc", "repro", "train@lenet5-mnist")
    for seed in (0, 1):
        result = json.loads((found.folder / f"runs/lenet5-mnist/seed-{seed}/result.json").read_text())
        assert result["resumed"] == 2
    # One of them undisturbed, elsewhere: the same weights.
    words = ("--seeds=0", "--store=elsewhere", "--threads=1", "--device=cpu")
    found.run("python", "-m", "pipelines.trial", "lenet5-mnist", *words)
    (other,) = found.folder.glob("elsewhere/*/weights.pt")
    both = (found.folder / "runs/lenet5-mnist/seed-0/weights.pt", other)
    ours, theirs = (torch.load(path, weights_only=True) for path in both)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
