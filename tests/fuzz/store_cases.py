"""A run store after random damage, read by all that read it: no damaged file is ever taken for a result."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import io
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines import evaluate, train
from pipelines.cluster import campaign, estimate
from pipelines.command.errors import UserError
from pipelines.command.files import read_json, read_lines, write_json
from pipelines.config.benchmarks import Benchmark, Budget
from pipelines.config.params import load_params
from pipelines.config.recipes import Optimiser, Recipe
from pipelines.data import datasets
from pipelines.training import checkpoint, core, spec, status, trainer
from pipelines.training.checkpoint import Checkpoints, Worker
from pipelines.training.inputs import Inputs
from tests.conftest import ROOT

CLASSES = [str(digit) for digit in range(10)]


@functools.cache
def template() -> Path:
    """Two trials of 40 images, one of them unfinished, and their fitted preprocessing; made once."""
    home = Path(tempfile.mkdtemp(prefix="fuzz-store-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 1, 6, 6)).astype(np.uint8), np.arange(40) % 10
    datasets.write_dataset(home / "datasets", "mnist", classes=CLASSES, train=(images, labels), test=(images, labels))
    finished, unfinished = trials(home)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.run(finished)

        def stop(told: Any) -> None:
            if unfinished.files.checkpoint.exists():
                raise InterruptedError

        agree, every = checkpoint.CheckpointCallback._agree, checkpoint.PROGRESS_EVERY_S
        checkpoint.CheckpointCallback._agree, checkpoint.PROGRESS_EVERY_S = lambda *_: True, 0.0  # type: ignore[method-assign]
        try:
            with contextlib.suppress(InterruptedError):
                trainer.run(unfinished, watch=stop)
        finally:
            checkpoint.CheckpointCallback._agree, checkpoint.PROGRESS_EVERY_S = agree, every  # type: ignore[method-assign]
    assert finished.files.finished and unfinished.files.checkpoint.exists()
    write_json(home / "store/rates.json", {estimate.rate_key(finished): 100.0})
    return home


@functools.cache
def benchmark() -> Benchmark:
    """A linear net with a fitted mean."""
    found = load_params(ROOT / "params.yaml").benchmark("linear-mnist")
    recipe = Recipe(
        batch=20,
        optimiser=Optimiser(name="sgd", lr=0.001, momentum=0.9),
        preprocess=({"mean_subtract": {"per": "pixel"}},),
    )
    budgets = {name: Budget(epochs=2, seeds=(0, 1)) for name in ("paper", "laptop")}
    return dataclasses.replace(found, recipe=recipe, budgets=budgets)


def trials(home: Path) -> list[spec.Spec]:
    where: dict[str, Any] = {"data": home / "datasets", "root": home / "store", "threads": 1}
    return [spec.plan(benchmark(), "laptop", seed, **where) for seed in (0, 1)]


def case(rng: random.Random, folder: Path) -> None:
    """Damage one file, or several; then read everything as the stages would."""
    home = template()
    shutil.copytree(home / "store", folder / "store")
    planned = [dataclasses.replace(one, store=folder / "store") for one in planned_once()]
    files = sorted(path for path in (folder / "store").rglob("*") if path.is_file() and path.name != "lock")
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        damage(rng, rng.choice(files), files)
    intact = {path: same(path, home / path.relative_to(folder)) for path in files}
    rng.choice((collect_and_evaluate, go_on))(planned, folder, intact)


def same(path: Path, original: Path) -> bool:
    """Whether a file says what it did; JSON may be laid out otherwise."""
    if not path.is_file():
        return False
    if path.read_bytes() == original.read_bytes():
        return True
    if path.name != "result.json":
        return False
    with contextlib.suppress(ValueError, RecursionError):
        now, then = (json.dumps(json.loads(one.read_text()), sort_keys=True) for one in (path, original))
        return now == then
    return False


@functools.cache
def planned_once() -> list[spec.Spec]:
    return trials(template())


def collect_and_evaluate(planned: list[spec.Spec], folder: Path, intact: dict[Path, bool]) -> None:
    """As train and evaluate do with what is finished; each by itself, as what one refuses the next must meet too."""
    finished, unfinished = planned
    inputs = Inputs.of(finished)
    whole = all(intact[path] for path in finished.files.kept)
    assert finished.files.finished == whole and not unfinished.files.finished
    assert readable(lambda: inputs.load(finished.files.weights)) or not whole
    with contextlib.chdir(folder):
        assert whole == readable(lambda: train.collect([finished]))
        assert whole == readable(lambda: evaluate._collected(finished.benchmark, finished))
    readable(lambda: read_json(unfinished.files.trial))
    readable(lambda: read_lines(unfinished.files.curve))


def go_on(planned: list[spec.Spec], folder: Path, intact: dict[Path, bool]) -> None:
    """As train does with what is not."""
    finished, unfinished = planned
    inputs = Inputs.of(unfinished)
    with using(folder / "store"):
        for one in planned:
            assert status.line(one.name, status.read(one.files.progress, since=0.0))
            assert 0 <= estimate.trial_seconds(one) < float("inf")
        campaign.inspect(planned)
    assert finished.files.result.exists() == all(intact[path] for path in finished.files.kept)
    loader, module = core.assemble(unfinished, inputs)  # fits again what is damaged
    mean = torch.from_numpy(inputs.dataset.split("train")[0].mean(0, dtype=np.float64)[None]).float()
    assert torch.equal(loader.preprocess.state_dict()["0.mean"], mean)
    found = trainer.checkpoint(unfinished, Worker(), module, Checkpoints())
    assert (found is not None) == intact[unfinished.files.checkpoint]


def readable(read: Callable[[], object]) -> bool:
    """Whether it reads; a line for the user is right, too."""
    try:
        read()
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 500, error
        return False
    return True


@contextlib.contextmanager
def using(root: Path) -> Any:
    """As $RUN_STORE."""
    before = os.environ.get("RUN_STORE")
    os.environ["RUN_STORE"] = str(root)
    try:
        yield
    finally:
        del os.environ["RUN_STORE"]
        if before is not None:
            os.environ["RUN_STORE"] = before


# --- damage ------------------------------------------------------------------------------------------------------


def damage(rng: random.Random, path: Path, files: list[Path]) -> None:
    """Change one file, or replace it."""
    kinds: list[Callable[[random.Random, Path], None]] = [flipped, cut, grown, garbled, nested, other_thing]
    if path.suffix in (".json", ".jsonl"):
        kinds += [mutated] * 4
    if rng.random() < 0.1:
        other = rng.choice(files)
        if other.is_file() and not path.is_dir() and other != path:
            path.unlink(missing_ok=True)
            shutil.copy(other, path)
    elif path.is_file() and not path.is_symlink():
        rng.choice(kinds)(rng, path)


def flipped(rng: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 3, 100))):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(rng: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size + 1)])


def grown(rng: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes() + rng.choice((b"\n", b"\0" * 512, rng.randbytes(9))))


def garbled(rng: random.Random, path: Path) -> None:
    path.write_bytes(rng.choice((b"", rng.randbytes(200), b"null", b"\xff\xfe{}", b"PK\x05\x06" + bytes(18))))


def nested(rng: random.Random, path: Path) -> None:
    depth = rng.choice((900, 1_100, 100_000))
    path.write_text(rng.choice(("[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth)))


def other_thing(rng: random.Random, path: Path) -> None:
    path.unlink()
    kind = rng.randrange(6)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind < 5:
        path.symlink_to(("nowhere", path.name, "/dev/zero")[kind - 2])


VALUES: list[Any] = [
    None,
    True,
    "text",
    "\x1b[2J",
    [],
    {},
    [[1]],
    -1,
    0,
    1.5,
    1e308,
    10**400,
    float("nan"),
    float("inf"),
    "x" * 999,
]


def mutated(rng: random.Random, path: Path) -> None:
    """Values of other kinds somewhere in it."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else None
        found = lines if lines is not None else json.loads(path.read_text())
    except (ValueError, RecursionError):
        return
    at = found
    while isinstance(at, (dict, list)) and at:
        key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[key], (dict, list)) or not at[key] or rng.random() < 0.3:
            if isinstance(at, dict) and rng.random() < 0.2:
                del at[key]
            else:
                at[key] = rng.choice(VALUES)
            break
        at = at[key]
    text = "\n".join(map(json.dumps, lines)) + "\n" if lines is not None else json.dumps(found)
    path.write_text(text)
