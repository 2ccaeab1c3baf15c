"""A checkout of the project that a test may change, and reproduce as a user does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import projects
from tests.projects import ROOT

BIN = Path(sys.executable).parent
SUITE = ["linear-mnist", "lenet5-mnist"]


class Checkout:
    """A copy of the project's files in a Git repository of its own, with a small suite."""

    def __init__(self, folder: Path, mirror: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        )
        names = listed.stdout.splitlines() if listed.returncode == 0 else []
        for name in names or [
            str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file() and ".venv" not in p.parts
        ]:
            if (
                (ROOT / name).is_file()
                and not name.startswith(("tests/", "evaluations/", "report/"))
                and name != "dvc.lock"
            ):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        self.environment = {k: v for k, v in os.environ.items() if k not in ("RUN_STORE", "RAY_ADDRESS", "PYTHONPATH")}
        self.environment |= {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "DATA_MIRROR": str(mirror),
            "PYTHONPATH": str(folder),  # an editable install points at the checkout under test, not at this copy
        }
        self.environment.pop("MLFLOW_TRACKING_URI", None)
        self.git("init", "-q")
        self.git("add", "-A")
        self.git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "start")

    def git(self, *words: str) -> None:
        subprocess.run(["git", *words], cwd=self.folder, check=True, capture_output=True)

    def run(self, *words: str, ok: bool = True) -> str:
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:]], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout + done.stderr

    def json(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.JSONDecoder().raw_decode(self.run(*words))[0]
        return found

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        found = projects.read(self.folder)
        change(found)
        projects.write(self.folder, found)

    def small(self, epochs: int = 2, images: int = 20_000) -> None:
        def change(found: dict[str, Any]) -> None:
            for name in SUITE:
                found["benchmarks"][name]["budgets"]["laptop"] = {
                    "epochs": epochs,
                    "train_images": images,
                    "seeds": [0, 1],
                }
            found["suites"]["laptop"]["benchmarks"] = SUITE

        self.edit(change)
