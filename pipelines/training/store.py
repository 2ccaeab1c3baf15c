"""The run store: trials during and after their training, each in a folder named by its key.

The key stands for all that decides a trial's weights: a finished trial never trains twice, a killed one continues at
its last checkpoint. The store lies outside DVC's outs, which DVC deletes before a stage runs. It may be a shared
directory of a cluster: ``$RUN_STORE``.

Every file behind a result carries a sha256 that each reader checks: ``result.json`` holds its own and those of the
weights and the curve, in the store and where a stage copies them; checkpoints and fitted preprocessing end in theirs
(``files.sealing``). A damaged file is renamed to ``<name>.damaged`` and made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.command.files import TEMPORARY, DamagedError, check_seal, file_sha256, read_json, set_aside, write_json


def default() -> Path:
    """``$RUN_STORE``, or ``store/`` in the working directory; absolute, since Ray's workers run elsewhere."""
    return Path(os.environ.get("RUN_STORE") or "store").absolute()


def key(config: Mapping[str, Any], dataset_digest: str, seed: int, code: Mapping[str, str]) -> str:
    """The trial's key: 16 hex digits of the hash of its config, data, seed and code (``fingerprint.of_training``)."""
    identity = {"config": config, "dataset": dataset_digest, "sources": code, "seed": seed}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


class TrialFiles:
    """The files of one trial."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trial = folder / "trial.json"  # what is trained: benchmark, seed, resolved config, digests
        self.progress = folder / "progress.json"  # how far it is, rewritten every few seconds
        self.curve = folder / "curve.jsonl"  # one JSON object a line, one line a finished epoch
        self.checkpoint = folder / "last.ckpt"  # Lightning's: weights, optimiser, position in the data, curve so far
        self.weights = folder / "weights.pt"  # the state dict at the end of the last epoch
        self.result = folder / "result.json"  # the provenance; written last: where it is, the trial is finished
        self.kept = (self.weights, self.curve, self.result)  # of a finished trial, which later stages read

    @property
    def finished(self) -> bool:
        """Whether the trial is trained to its end, and its files are whole."""
        with suppress(DamagedError):
            self.read_result(self.folder.name)
            return True
        return False

    def read_result(self, key: str | None, *, weights: bool = True) -> dict[str, Any]:
        """The provenance of the trial ``key`` (None: of any), with its digest and those of its files checked.

        Without ``weights`` the weights are not read, for callers that do not need them.

        Raises DamagedError for a result that is missing, differs from its digest, or belongs to another trial.
        """
        result = read_json(self.result)
        digests = result.get("files")
        if result.get("digest", "") != _own_digest(result) or not isinstance(digests, dict):
            raise DamagedError(f"{self.result} is damaged, or older than digests: it does not hold its own")
        if key is not None and result.get("key") != key:
            raise DamagedError(f"{self.result} is of another trial (key {result.get('key')}); expected {key}")
        for path in (self.weights, self.curve) if weights else (self.curve,):
            if file_sha256(path) != digests.get(path.name):
                raise DamagedError(f"{path} is damaged: its sha256 is not the one in {self.result.name}")
        return result

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the provenance with the digests of weights and curve, which makes the trial finished."""
        files = {path.name: file_sha256(path) for path in (self.weights, self.curve)}
        whole = json.loads(json.dumps({**result, "files": files}))
        write_json(self.result, whole | {"digest": _own_digest(whole)})

    def inspect(self, name: str) -> str | None:
        """Set aside a damaged result, so that the trial called ``name`` trains again; returns a line about it, or None.

        Only under the trial's lock.
        """
        try:
            if os.path.lexists(self.result):
                self.read_result(self.folder.name)
        except DamagedError as error:
            for path in self.kept:
                set_aside(path)
            return f"{error}; set aside, and {name} is trained again"
        return None

    def inspect_checkpoint(self, name: str) -> str | None:
        """The same for a damaged checkpoint; a resuming trial checks its own when it reads it."""
        try:
            if os.path.lexists(self.checkpoint):
                check_seal(self.checkpoint)
        except DamagedError as error:
            set_aside(self.checkpoint)
            return f"{error}; set aside, and {name} is trained from the start"
        return None

    def sweep(self) -> None:
        """Remove the temporary files of killed writers. Only under the trial's lock."""
        for path in self.folder.glob(f".*.{TEMPORARY}.*"):
            with suppress(OSError):
                path.unlink()


def _own_digest(result: Mapping[str, Any]) -> str | None:
    """The correct value of ``digest``; None where the rest is nested too deep to be ours."""
    rest = {key: value for key, value in result.items() if key != "digest"}
    try:
        return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    except RecursionError:
        return None
