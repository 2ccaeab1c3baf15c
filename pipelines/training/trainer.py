"""A trial from its start, or its last checkpoint, to its weights."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor

from pipelines.command import locks
from pipelines.command.errors import FULL, UserError
from pipelines.command.files import DamagedError, MissingError, replacing, set_aside, write_json
from pipelines.config import wording
from pipelines.data import datasets
from pipelines.data.batches import Chunks
from pipelines.training import core, fingerprint, memory, provenance, store, tensors
from pipelines.training.checkpoint import CheckpointCallback, Checkpoints, Watch, Worker, chunks_of
from pipelines.training.classifier import Classifier
from pipelines.training.inputs import LOADED, Inputs
from pipelines.training.spec import Spec

NO_SPACE = 2**20  # bytes free at which a failed write counts as a full disk


def run(spec: Spec, worker: Worker | None = None, watch: Watch = lambda progress: None) -> store.TrialFiles:
    """Train ``spec`` to its end, or return at once when the store holds it finished.

    ``watch`` is called with every progress report. Raises UserError for input that can't be trained on, and when the
    loss ends as no number; PreemptedError when a signal of ``worker`` has ended it.
    """
    worker, files = worker or Worker(), spec.files
    if files.finished:
        return files
    if worker.workers not in (counts := spec.benchmark.resources.counts):
        expected = f"expected {wording.listed(counts)}: python -m pipelines.train starts as many"
        raise UserError(f"{spec.benchmark.where}.resources.workers: this is {worker.workers}; {expected}")
    if worker.rank > 0:
        _train(spec, worker, watch)
        return files
    with locks.held(files.folder / "lock", spec.name), _full_disk_reported(spec.store):
        if line := files.inspect(spec.name):
            print(line, flush=True)
        files.sweep()
        if not files.finished:  # another process may have finished it while this one waited
            _train(spec, worker, watch)
    return files


@contextmanager
def _full_disk_reported(root: Path) -> Iterator[None]:
    """UserError for a full disk: torch raises a RuntimeError of its own for it, Python an OSError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno in FULL
        if full or shutil.disk_usage(root).free < NO_SPACE:
            free = shutil.disk_usage(root).free / 1e6
            raise UserError(f"no space left in {root} ({free:.0f} MB free); make room and run this again") from error
        raise


def _train(spec: Spec, worker: Worker, watch: Watch) -> None:
    quieten()
    memory.keep()
    core.settle(spec.threads)
    if spec.device == "cuda":  # memory of this process's earlier trials, in cycles of Lightning's objects
        gc.collect()
        torch.cuda.empty_cache()
    inputs = Inputs.of(spec)
    identity = _identity(spec, inputs.dataset) | provenance.git_state()
    if worker.rank == 0:
        write_json(spec.files.trial, identity)
    loader, module = core.assemble(spec, inputs, rank=worker.rank, workers=worker.workers)
    boosting = spec.benchmark.recipe.boosting
    chunks = Chunks(loader, inputs.flops // (len(boosting.epochs) if boosting else 1))  # one member trains at a time
    callback = CheckpointCallback(spec, chunks, worker, watch)
    checkpoints = Checkpoints()
    trainer = worker.prepare(build_trainer(spec, worker, callback, checkpoints))
    resumed = checkpoint(spec, worker, module, checkpoints)
    trainer.fit(module, train_dataloaders=chunks, ckpt_path=resumed)
    if worker.rank == 0:
        _finish(spec, module, callback, identity)


def quieten() -> None:
    """Silence warnings about choices that we make on purpose."""
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", "The `srun` command is available")  # who has a SLURM need not use it
    pl._logger.setLevel("ERROR")


def build_trainer(spec: Spec, worker: Worker, callback: CheckpointCallback, checkpoints: Checkpoints) -> pl.Trainer:
    """Lightning's Trainer without anything that costs time in every step, with its environment given explicitly.

    Where Lightning detects SLURM by itself, it refuses ``--ntasks``, writes a checkpoint of its own on SIGUSR1, and
    resumes from any trial's such file in its root folder. Hence there is no root folder either.
    """
    settings: dict[str, Any] = {
        "accelerator": "gpu" if spec.device == "cuda" else "cpu",
        "devices": 1,
        "plugins": [LightningEnvironment()],
    } | dict(worker.trainer)
    settings["plugins"] = [*settings["plugins"], checkpoints]
    return pl.Trainer(
        **core.trainer_settings(spec),
        **settings,
        default_root_dir=os.devnull,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


def checkpoint(spec: Spec, worker: Worker, module: Classifier, checkpoints: Checkpoints) -> Path | None:
    """The checkpoint to resume from, or None; one that is damaged, or another trial's, is reported and set aside.

    Every worker reads the file itself and comes to the same answer.
    """
    path = spec.files.checkpoint
    try:
        check_checkpoint(checkpoints.read(path, f"a checkpoint of {spec.name}"), path, spec, module)
    except MissingError:
        return None
    except DamagedError as error:
        checkpoints.loaded.clear()
        if worker.rank == 0:
            set_aside(path)
            print(f"{error}; set aside, and {spec.name} is trained from the start", flush=True)
        return None
    return path


def check_checkpoint(held: dict[str, Any], path: Path, spec: Spec, module: Classifier) -> dict[str, Any]:
    """The callback's state in a checkpoint of ``spec``.

    DamagedError for contents that Lightning would report in many lines, or not at all.
    """
    with tensors.laid_out(path):
        state: dict[str, Any] = held["callbacks"][CheckpointCallback.__qualname__]
        key, _ = state["key"], chunks_of(held)["current"]
        shapes = [value.shape for value in held["state_dict"].values()]
        fits = _fits(held["optimizer_states"][0]["state"], module.configure_optimizers())
        names = list(held["state_dict"])
    expected = module.state_dict()
    if key != spec.key:
        raise DamagedError(f"{path} belongs to another trial (key {key}); expected {spec.key}")
    if names != list(expected) or shapes != [value.shape for value in expected.values()] or not fits:
        raise DamagedError(f"{path} holds tensors of other shapes than {spec.benchmark.model.name} has")
    return state


def _fits(saved: Mapping[int, Mapping[str, Any]], optimiser: torch.optim.Optimizer) -> bool:
    """Whether the saved state of each parameter has the parameter's shape, or is a plain number."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    kept = [(parameters[at], value) for at, state in saved.items() for value in state.values()]
    return all(value.shape in (p.shape, ()) for p, value in kept if isinstance(value, Tensor))


def _identity(spec: Spec, dataset: datasets.Dataset) -> dict[str, Any]:
    """The trial's config, data and code; UserError where code or data were changed after it was planned.

    Hours may pass between plan and start. Weights must not be kept under the key of other code.
    """
    config = spec.config
    code = fingerprint.of_training(config, _loaded(spec.benchmark.model.family))
    if store.key(config, dataset.digest, spec.seed, code) != spec.key:
        raise UserError(f"{spec.name}: the source files or the data were changed after it was planned; run this again")
    return {
        "benchmark": spec.benchmark.name,
        "seed": spec.seed,
        "key": spec.key,
        "budget": spec.budget,
        "config": config,
        "dataset": {"name": dataset.name, "digest": dataset.digest},
        "sources": code,
    }


@functools.cache  # a family's file is imported before its source is read, so that an edit in between is noticed
def _loaded(family: str) -> dict[str, str]:
    name = f"models.{family}"
    importlib.import_module(name)
    return LOADED | {name: fingerprint.read()[name]}


def _finish(spec: Spec, module: Classifier, callback: CheckpointCallback, identity: Mapping[str, Any]) -> None:
    """Write the weights and then the provenance, with which the trial is finished."""
    last, workers = callback.curve[-1], callback.worked_with
    with replacing(spec.files.weights) as temporary:
        torch.save(module.model.state_dict(), temporary)
    images = spec.epochs * len(callback.loader.positions)
    wall = last["seconds"]
    result = {
        **{k: v for k, v in identity.items() if k != "dataset"},
        "dataset_digest": identity["dataset"]["digest"],
        "epochs": round(last["epoch"], 3),  # over the images that the recipe trains on
        "images_seen": images,
        "wall_s": wall,
        "device_s": callback.device_seconds(wall),
        "images_per_s": images / wall,
        "workers": workers[0] if len(workers) == 1 else workers,  # of an elastic trial, in the order of their work
        "hardware": ", then ".join(callback.trained_on),
        "device": spec.device,
        **({"cuda_graph": module.cuda_graph} if module.cuda_graph else {}),
        "threads": torch.get_num_threads(),
        "versions": provenance.versions(),
        "parameters": sum(p.numel() for p in module.model.parameters() if p.requires_grad),
        "resumed": callback.resumed,
        "finished": time.time(),
        "final_loss": last["loss"],
    }
    callback.report("done", last["loss"])
    spec.files.write_result(result)
    spec.files.checkpoint.unlink(missing_ok=True)
