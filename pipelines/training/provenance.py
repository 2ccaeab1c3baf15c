"""The provenance of a number: machine, libraries, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.command.errors import UserError
from pipelines.training.fingerprint import ROOT

UNCOUNTED = (":!suite.yaml", ":!results")  # of the tree's changes
ARCHIVED = ".git_archival.txt"  # filled in by `git archive` (.gitattributes)


def chosen_device(asked: str | None) -> str:
    """The device asked for, or by default the GPU, if there is one; UserError for a GPU that is not there."""
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise UserError("--device is cuda; torch finds no GPU here, expected cpu")
    return asked or ("cuda" if there else "cpu")


def hardware(device: str) -> str:
    """The model of the GPU or CPU that trained."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    with suppress(OSError):
        for text in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if text.startswith("model name"):
                return f"{text.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def versions() -> dict[str, str | None]:
    """Python's and the libraries' versions; None for a library that took no part."""
    ray = sys.modules.get("ray")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch_lightning": importlib.metadata.version("pytorch-lightning"),
        "numpy": np.__version__,
        "ray": getattr(ray, "__version__", None),
    }


def git_state() -> dict[str, Any]:
    """The commit of the source tree and whether it was changed since; None where that is unknown.

    An archive made by ``git archive``, as in a cluster's image, names its commit in a file. Another active suite does
    not count as a change, nor do files below results/: a record of ``tune`` or evidence would make the next one dirty.
    """

    def git(*words: str) -> str | None:
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, timeout=20)
            return done.stdout.decode(errors="replace").rstrip()
        return None

    commit = git("rev-parse", "HEAD") or _archived()
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *UNCOUNTED)
    return {"git_commit": commit, "git_dirty": None if changed is None else bool(changed)}


def _archived() -> str | None:
    with suppress(OSError):
        node = re.search(r"node: ([0-9a-f]{40})\b", (ROOT / ARCHIVED).read_text(encoding="utf-8", errors="replace"))
        return node and node[1]
    return None
