"""Where a number comes from: machine, libraries, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from pipelines.config.params import CHOICES, SUITE
from pipelines.training import store


def hardware(device: str) -> str:
    """The model of the GPU or CPU that trained."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        for text in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if text.startswith("model name"):
                return f"{text.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def versions() -> dict[str, str | None]:
    """What trained: Python and the libraries, None for one that took no part."""
    ray = sys.modules.get("ray")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch_lightning": pl.__version__,
        "numpy": np.__version__,
        "ray": getattr(ray, "__version__", None),
    }


def git_state() -> dict[str, Any]:
    """The commit of the source tree and whether it was changed since; None outside Git.

    Another active suite is no change: it says which benchmarks run, and nothing about one of them. Nor is the record of
    a choice: it would say so of the next one.
    """

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=store.ROOT, capture_output=True, encoding="utf-8", errors="replace", timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.rstrip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{CHOICES}", f":!{SUITE}")
    return {"git_commit": commit, "git_dirty": None if changed is None else bool(changed)}
