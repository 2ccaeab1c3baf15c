"""Trials in a parcel: out of a run store, and, once they are checked, into another.

A finished trial is packed with its weights, curve and provenance, an unfinished trial with its checkpoint. A trial is
taken in only if it agrees with a plan made here, from this checkout's rows, code and data; nothing in the parcel is
trusted. Tensors are loaded as plain data, never unpickled.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.command import locks
from pipelines.command.errors import UserError, brief
from pipelines.command.files import DamagedError, check_seal, read_json, read_lines, remove
from pipelines.config import wording
from pipelines.config.params import Params
from pipelines.data import datasets
from pipelines.data.parcels import Writer
from pipelines.training import fingerprint, status, tensors, trainer
from pipelines.training.classifier import Classifier
from pipelines.training.inputs import Inputs
from pipelines.training.spec import Spec, plan
from pipelines.training.store import TrialFiles

JSON_FILES = ("trial.json", "progress.json", "curve.jsonl", "result.json")
TENSOR_FILES = ("weights.pt", "last.ckpt")
MOST_JSON = 2**28  # bytes: the curve of a million epochs


@dataclass(frozen=True)
class Found:
    """A trial in a store: the content of its trial.json, and its plan where a row of this checkout has its key."""

    files: TrialFiles
    identity: dict[str, Any]
    spec: Spec | None

    @property
    def state(self) -> str:
        """How far it is, in words."""
        if self.files.result.exists():
            return "finished"
        progress = status.read(self.files.progress, since=0)
        if progress is None or not self.files.checkpoint.exists():
            return "begun"
        return f"epoch {progress['epoch']:.1f} of {progress['epochs']:g}"

    @property
    def bytes(self) -> int:
        """Its size on disk."""
        return sum(path.stat().st_size for path in self.files.folder.iterdir() if path.is_file())


class Plans:
    """The trials that this checkout's rows describe."""

    def __init__(self, params: Params, data: Path, root: Path) -> None:
        self.params, self.data, self.root, self.sources = params, data, root, fingerprint.read()

    def spec(self, identity: Mapping[str, Any]) -> Spec:
        """The trial that a trial.json describes, planned here; UserError where no row of this checkout has its key."""
        name, budget, seed = (identity.get(key) for key in ("benchmark", "budget", "seed"))
        if not (isinstance(name, str) and isinstance(budget, str) and type(seed) is int and seed >= 0):
            raise UserError("its trial.json names no benchmark, budget and seed")
        benchmark = self.params.benchmark(name)
        if budget not in benchmark.budgets:
            raise UserError(wording.unknown("budget", budget, benchmark.budgets))
        planned = plan(benchmark, budget, seed, data=self.data, root=self.root, sources=self.sources)
        spec = next((variant for variant in planned.variants if variant.key == identity.get("key")), None)
        if spec is None:
            raise UserError(f"no row of this checkout has its key: {_difference(identity, planned)}")
        return spec

    def found(self, names: Collection[str] = (), seeds: Collection[int] = ()) -> Iterator[Found]:
        """The store's trials, of these benchmarks and seeds where any are named, in the order of a ledger."""
        folders = self.root.glob("[0-9a-f]" * 16)
        read = [trial for trial in map(self._read, folders) if trial is not None]
        known = {name: number for number, name in enumerate(self.params.benchmarks)}
        for trial in sorted(read, key=lambda trial: _place(known, trial)):
            name, seed = trial.identity.get("benchmark"), trial.identity.get("seed")
            # rows that differ only in their evaluation share weights
            named = not names or name in names or any(self._here(trial.identity | {"benchmark": n}) for n in names)
            if named and (not seeds or seed in seeds):
                yield trial

    def _here(self, identity: Mapping[str, Any]) -> Spec | None:
        with contextlib.suppress(UserError):
            return self.spec(identity)
        return None

    def _read(self, folder: Path) -> Found | None:
        files = TrialFiles(folder)
        with contextlib.suppress(UserError):
            identity = read_json(files.trial)
            return Found(files, identity, self._here(identity))
        return None


def _place(known: Mapping[str, int], trial: Found) -> tuple[int, str, int, str]:
    name, seed = str(trial.identity.get("benchmark")), trial.identity.get("seed")
    return known.get(name, len(known)), name, seed if isinstance(seed, int) else -1, trial.files.folder.name


def _difference(identity: Mapping[str, Any], spec: Spec) -> str:
    """The first difference between a trial's settings, data and code and those here."""
    data, code = identity.get("dataset"), identity.get("sources")
    dataset = datasets.open_dataset(spec.data, spec.benchmark.dataset)
    if identity.get("config") not in [variant.config for variant in spec.variants]:
        return f"its settings are not those of {spec.benchmark.where}"
    if data != {"name": dataset.name, "digest": dataset.digest}:
        return f"its data set is not the one in {dataset.path}"
    if code != spec.code:
        theirs = code if isinstance(code, dict) else {}
        modules = [name for name in spec.code if theirs.get(name) != spec.code[name]]
        return f"its code is not that of {modules[0] if modules else 'this checkout'} here"
    return "it is misnamed"


def pack(trial: Found, spec: Spec, writer: Writer) -> bool:
    """Add a trial to a parcel; False where it has neither weights nor a checkpoint. Only under the trial's lock."""
    files = trial.files
    if files.finished:
        added = [files.trial, *files.kept]
    elif files.checkpoint.exists():
        check_seal(files.checkpoint)
        added = [files.trial, files.progress, files.checkpoint]
    else:
        return False
    for path in added:
        if path.exists():
            writer.add(f"{spec.key}/{path.name}", path)
    return True


def take(folder: Path, plans: Plans) -> str:
    """Move the trial in ``folder``, whose name is its key, into the store; returns the outcome in words.

    A trial that is finished here stays, and so does one that is as far or further. Raises UserError for a trial of no
    row here, one that is damaged or differs from its plan, and one that is being trained at this moment.
    """
    new = TrialFiles(folder)
    identity = read_json(new.trial)
    if identity.get("key") != folder.name:
        raise UserError(f"its trial.json has the key {brief(str(identity.get('key')))}")
    spec = plans.spec(identity)
    with locks.held(spec.files.folder / "lock", spec.name, patience_s=0):
        if spec.files.finished:
            return f"{spec.name}: finished here before; it stays"
        if new.result.exists():
            _check_finished(new, spec)
            return f"{spec.name}: finished; {_move(new, spec, new.kept)}"
        theirs = _position(new.checkpoint, spec)
        with contextlib.suppress(DamagedError):  # there is none, or it is not whole
            if _position(spec.files.checkpoint, spec) >= theirs:
                return f"{spec.name}: as far here before, or further; it stays"
        return f"{spec.name}: unfinished; {_move(new, spec, (new.progress, new.checkpoint))}"


def _check_finished(new: TrialFiles, spec: Spec) -> None:
    """DamagedError unless files agree with their digests, and the result with the plan."""
    result, inputs = new.read_result(spec.key), Inputs.of(spec)
    planned = {
        "benchmark": spec.benchmark.name,
        "seed": spec.seed,
        "budget": spec.budget,
        "config": spec.config,
        "sources": spec.code,
        "dataset_digest": inputs.dataset.digest,
    }
    for key, value in planned.items():
        if result.get(key) != value:
            raise DamagedError(f"{new.result.name} has another {key} than its row")
    read_lines(new.curve)
    inputs.load(new.weights)


def _position(path: Path, spec: Spec) -> tuple[int, int]:
    """A checkpoint's position in epochs and minibatches; DamagedError unless the trial can continue from it."""
    held = tensors.load_sealed(path, f"a checkpoint of {spec.name}")
    module = Classifier(Inputs.of(spec).build(), spec.benchmark.recipe, steps=1)
    position = trainer.check_checkpoint(held, path, spec, module)["position"]
    return int(position["epoch"]), int(position["done"])


def _move(new: TrialFiles, spec: Spec, paths: Sequence[Path]) -> str:
    """Move files into the trial's folder; the last of them makes the trial finished, or resumable."""
    home = spec.files.folder
    for path in (new.trial, *paths):
        if path.exists():
            remove(home / path.name)
            path.replace(home / path.name)
    if paths[-1] == new.result:
        spec.files.checkpoint.unlink(missing_ok=True)
    return f"taken into {home}"


@contextlib.contextmanager
def receiving(root: Path) -> Iterator[Path]:
    """Give a folder in the store for files that are not checked yet; it is removed in the end."""
    incoming = root / ".importing"
    with locks.held(root / ".importing.lock", "an import", patience_s=0):
        remove(incoming)
        incoming.mkdir()
        try:
            yield incoming
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
