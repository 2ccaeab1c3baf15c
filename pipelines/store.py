"""The run store: where trials live while they train and after, under the key of all that decides their weights.

A finished trial is found again by its key and never trained twice; a killed one goes on at its last checkpoint. The
store lies outside DVC's outs, which DVC deletes before a stage runs. It may be a shared directory of a cluster:
``$RUN_STORE``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
# The source files that decide a trial's weights, beside its family's own; dvc.yaml's train stage names the same.
SOURCES = (
    "pipelines/batches.py",
    "pipelines/boosting.py",
    "pipelines/losses.py",
    "pipelines/optimisers.py",
    "pipelines/recipe.py",
    "pipelines/schedules.py",
    "pipelines/sdlm.py",
    "pipelines/subsets.py",
    "pipelines/transforms.py",
    "pipelines/trial.py",
)


def default() -> Path:
    """``$RUN_STORE``, or ``store/`` in the working directory; absolute, since Ray's workers run elsewhere."""
    return Path(os.environ.get("RUN_STORE") or "store").absolute()


def key(config: Mapping[str, Any], dataset_digest: str, seed: int, behind: Mapping[str, str] | None = None) -> str:
    """The trial's key: 16 hex digits of the hash of its config, its data, the source files behind it and its seed.

    The files are hashed as they are now, unless ``behind`` has what ``sources`` returned when they were loaded.
    """
    identity = {
        "config": config,
        "dataset": dataset_digest,
        "sources": sources(config["model"]["family"]) if behind is None else behind,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def sources(family: str | None) -> dict[str, str]:
    """sha256 of each source file that decides the weights of a trial of this model family, or of any."""
    names = (*([f"models/{family}.py"] if family else []), *SOURCES)
    return {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in names}


@dataclass(frozen=True)
class TrialFiles:
    """The files of one trial."""

    folder: Path

    @property
    def trial(self) -> Path:
        """What is trained: benchmark, seed, resolved config, digests."""
        return self.folder / "trial.json"

    @property
    def progress(self) -> Path:
        """How far it is, rewritten about once a second."""
        return self.folder / "progress.json"

    @property
    def curve(self) -> Path:
        """One JSON object a line, one line a finished epoch."""
        return self.folder / "curve.jsonl"

    @property
    def checkpoint(self) -> Path:
        """Lightning's checkpoint: weights, optimiser, position in the data, curve so far."""
        return self.folder / "last.ckpt"

    @property
    def weights(self) -> Path:
        """The state dict at the end of the last epoch."""
        return self.folder / "weights.pt"

    @property
    def result(self) -> Path:
        """The provenance; written last, so that its presence means the trial is finished."""
        return self.folder / "result.json"

    @property
    def kept(self) -> tuple[Path, Path, Path]:
        """What a finished trial leaves for the stages after it."""
        return self.weights, self.curve, self.result

    @property
    def finished(self) -> bool:
        """Whether the trial is trained to its end."""
        return self.result.exists()


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` in one step, so that a reader sees the old or the new whole, also after a crash."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` in one step."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on a clean exit it takes that name, otherwise it goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; UserError when the file is missing or damaged."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; expected a file that an earlier stage writes") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); expected JSON; delete it and run the stage again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds a {type(found).__name__}; expected an object")
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, [] when there is none; a last line without an end is one still being written."""
    if not path.exists():
        return []
    try:
        found = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); expected one JSON object a line") from None
    others = {type(line).__name__ for line in found} - {"dict"}
    if others:
        raise UserError(f"{path} is damaged: it holds a {others.pop()}; expected one JSON object a line")
    return found


@contextmanager
def lock(path: Path, what: str, *, patience_s: float = 30.0) -> Iterator[None]:
    """Hold ``path`` alone; the kernel releases it when the process dies, however it dies.

    Raises UserError when another live process holds it longer than ``patience_s``: a killed run's children need a
    moment to follow it, anything longer is a second run of the same thing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    holder = path.read_text().strip() or "unknown"
                    raise UserError(f"{what} is already being run by process {holder}; wait for it or end it") from None
                time.sleep(0.2)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
