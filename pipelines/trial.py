"""One trial, start to checkpoint to weights: a benchmark trained once from one seed.

    python -m pipelines.trial lenet5-mnist --seed 0

Needs torch, Lightning, NumPy and PyYAML alone; knows nothing of Ray, MLflow or DVC, so it runs under any of them or
under none. The trial lives in the run store under its key: a finished one is returned at once, a killed one goes on at
its last checkpoint, and on a CPU it then ends at the very weights of an undisturbed run.

SIGUSR1 and SIGTERM, by which a scheduler such as SLURM takes a machine away, save a checkpoint after the minibatches at
hand and end the command: with status 75 (EX_TEMPFAIL, "run it again") for SIGUSR1, 130 for SIGTERM. The same command
then goes on from there, so a batch script may put itself back in the queue:

    srun python -m pipelines.trial allcnn-c-cifar10 || [ $? -ne 75 ] || scontrol requeue $SLURM_JOB_ID
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import itertools
import os
import shutil
import signal
import sys
import time
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor, nn

from pipelines.cluster import workload
from pipelines.command import arguments, progress
from pipelines.command.errors import FULL, UserError, fail, guard
from pipelines.config import schema, wording
from pipelines.config.benchmarks import Benchmark
from pipelines.config.params import load_params
from pipelines.config.schema import plain
from pipelines.data import datasets, subsets, transforms
from pipelines.data.batches import Batches, Chunks, stream
from pipelines.training import boosting, provenance, sdlm, store, tensors
from pipelines.training.classifier import Classifier
from pipelines.training.journal import Journal, PreemptedError, Worker
from pipelines.training.losses import build_loss
from pipelines.training.optimisers import build_optimiser
from pipelines.training.spec import Spec, plan, usual_budget

NO_SPACE = 2**20  # bytes free at which a failed write counts as a full disk
WARM_UP = 2  # steps before a measurement begins
PREEMPTED = 75  # exit status: what is not done can be done later (EX_TEMPFAIL)
LOADED = store.sources(None)  # of what this process runs, whatever becomes of the files


def build_model(benchmark: Benchmark, dataset: datasets.Dataset, shape: tuple[int, ...]) -> nn.Module:
    """The model for images of ``shape`` (C, H, W) as preprocessed and augmented; UserError when it can't be built."""
    where = f"{benchmark.where}.model"
    module = importlib.import_module(f"models.{benchmark.model.family}")
    known = {n: f for n, f in vars(module).items() if _is_builder(f, module.__name__)}
    if benchmark.model.name not in known:
        raise wording.unknown(f"{where}.name: model", benchmark.model.name, known)
    build = known[benchmark.model.name]
    options = _options(benchmark, build)
    try:
        model: nn.Module = build(classes=len(dataset.classes), in_shape=shape, **options)
    except ValueError as error:
        line = str(error).partition("\n")[0]
        raise UserError(f"{where}: {benchmark.model.name}: {line}") from None
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:  # torch's own, for a size or a deviation
        line = str(error).partition("\n")[0]
        if not isinstance(error, RuntimeError) or "allocate" in line:  # a size that fits no memory, or no number
            line = "it is too large for this machine"
        raise UserError(f"{where}: {benchmark.model.name} with the options {wording.show(options)}: {line}") from None
    return model


def _options(benchmark: Benchmark, build: Callable[..., Any]) -> dict[str, Any]:
    """The model's options, as the builder's signature wants them; UserError for one of another name or type."""
    where = f"{benchmark.where}.model.options"
    hints = typing.get_type_hints(build)
    allowed = set(inspect.signature(build).parameters) - {"classes", "in_shape"}
    for option in benchmark.model.options:
        if option not in allowed:
            raise wording.unknown(f"{where}: {benchmark.model.name}: option", option, allowed)
    given = benchmark.model.options
    return {name: schema.convert(hints[name], value, f"{where}.{name}") for name, value in given.items()}


def _is_builder(value: Any, module: str) -> bool:
    return inspect.isfunction(value) and value.__module__ == module and not value.__name__.startswith("_")


def check(benchmark: Benchmark, budget: str, data: Path) -> int:
    """Everything that can be wrong with a benchmark and is found without training; UserError for the first thing.

    Returns the bytes of the model's weights, parameters and buffers.
    """
    dataset = datasets.open_dataset(data, benchmark.dataset)
    dataset.verify("train")
    where = benchmark.where
    check_counts(benchmark, budget, dataset)
    count = len(budgeted(benchmark, budget, dataset))
    batch = benchmark.recipe.batch
    if batch > count:
        raise UserError(
            f"{where}.recipe.batch is {batch}; expected at most the {count} training images of {dataset.name}"
        )
    shape = image_shape(benchmark, dataset)
    check_views(benchmark, dataset)
    check_claimed_on(benchmark, dataset)
    model = build_model(benchmark, dataset, shape).eval()
    check_committee(benchmark, model)
    try:
        with torch.inference_mode():
            outputs = model(torch.zeros(1, *shape))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{where}.model: {benchmark.model.name} does not take images of {shape}: {reason}") from None
    if tuple(outputs.shape) != (1, len(dataset.classes)):
        got = tuple(outputs.shape)
        raise UserError(f"{where}.model: {benchmark.model.name} gives {got}; expected (1, {len(dataset.classes)})")
    check_optimiser(benchmark, model, shape)
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def check_counts(benchmark: Benchmark, budget: str, dataset: datasets.Dataset) -> None:
    """UserError where more images are asked for than there are."""
    where, chosen = benchmark.where, benchmark.recipe.subset
    whole = f"the {dataset.train:,} training images of {dataset.name}"
    rest = len(subsets.positions(dataset.train, dataclasses.replace(chosen, sample=None)))
    kept = min(rest, chosen.sample or rest)
    for key, value, most, of in (
        ("recipe.subset.first", chosen.first, dataset.train, whole),
        ("recipe.subset.hold_out", chosen.hold_out, dataset.train - 1, f"{dataset.train - 1:,}, one less than {whole}"),
        ("recipe.subset.sample", chosen.sample, rest, f"the {rest:,} that the rest of the subset leaves of {whole}"),
        ("recipe.optimiser.samples", _samples(benchmark), kept, f"{kept:,} of {whole}"),
        (f"budgets.{budget}.train_images", benchmark.budgets[budget].train_images, kept, f"{kept:,} of {whole}"),
    ):
        if value is not None and value > most:
            raise UserError(f"{where}.{key} is {value}; expected at most {of}")
    if not rest:
        raise UserError(f"{where}.recipe.subset leaves none of {whole}; expected at least one")


def _samples(benchmark: Benchmark) -> int | None:
    """Images from which second derivatives are estimated; None for an optimiser without any."""
    chosen = benchmark.recipe.optimiser
    return chosen.samples if chosen.name == "sdlm" else None


def check_optimiser(benchmark: Benchmark, model: nn.Module, shape: tuple[int, ...]) -> None:
    """UserError where the optimiser names layers that the model lacks, or has no rule for what the model computes."""
    where = f"{benchmark.where}.recipe.optimiser"
    try:
        optimiser = build_optimiser(benchmark.recipe.optimiser, model)
        if isinstance(optimiser, sdlm.SDLM):
            sdlm.curvature(
                model, build_loss(benchmark.recipe), torch.zeros(1, *shape), torch.zeros(1, dtype=torch.long)
            )
    except (UserError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def check_committee(benchmark: Benchmark, model: nn.Module) -> None:
    """UserError where a committee is not boosted, or boosting has no committee."""
    where, wanted = benchmark.where, boosting.MEMBERS if benchmark.recipe.boosting else 0
    have = len(boosting.members(model))
    if have and not wanted:
        raise UserError(f"{where}.recipe.boosting is missing; expected with {benchmark.model.name}, a committee")
    if have != wanted:
        raise UserError(
            f"{where}.recipe.boosting needs a committee of {wanted}; {benchmark.model.name} has {have or 'no'} members"
        )


def check_views(benchmark: Benchmark, dataset: datasets.Dataset) -> None:
    """UserError where the views of the evaluation would not be of the size that the network takes."""
    side, crop = image_shape(benchmark, dataset)[1], benchmark.evaluation.crop
    if crop not in (None, side):
        where = f"{benchmark.where}.evaluation.crop"
        raise UserError(f"{where} is {crop}; expected {side}, the side of the images it is trained on")


def check_claimed_on(benchmark: Benchmark, dataset: datasets.Dataset) -> None:
    """UserError where the images that the claim was measured on lie beyond the end of their split."""
    on = benchmark.evaluation.claimed_on
    if on is None:
        return
    have = dataset.train if on.split == "train" else dataset.test
    if on.end > have:
        where = f"{benchmark.where}.evaluation.claimed_on"
        raise UserError(f"{where} is {on.words}; expected images among the {have:,} that {dataset.name} has there")


def positions(benchmark: Benchmark, dataset: datasets.Dataset) -> Tensor:
    """Positions (n,) int64 in the training file of the images that the recipe trains on."""
    return torch.from_numpy(subsets.positions(dataset.train, benchmark.recipe.subset))


def budgeted(benchmark: Benchmark, budget: str, dataset: datasets.Dataset) -> Tensor:
    """Those of them that a budget leaves."""
    kept = subsets.positions(dataset.train, benchmark.recipe.subset)
    return torch.from_numpy(subsets.cut(kept, benchmark.budgets[budget].train_images))


def image_shape(benchmark: Benchmark, dataset: datasets.Dataset) -> tuple[int, int, int]:
    """(C, H, W) of what the model sees; UserError for a transform that is unknown or does not fit the images."""
    where = f"{benchmark.where}.recipe"
    shape: tuple[int, int, int] = dataset.shape
    try:
        shape = transforms.output_shape(transforms.build_preprocess(benchmark.recipe.preprocess), shape)
    except ValueError as error:
        raise UserError(f"{where}.preprocess: {error}") from None
    try:
        return transforms.output_shape(transforms.build_augment(benchmark.recipe.augment), shape)
    except ValueError as error:
        raise UserError(f"{where}.augment: {error}") from None


def fitted(
    benchmark: Benchmark, dataset: datasets.Dataset, root: Path
) -> tuple[transforms.FittedPreprocess, transforms.FittedAugment]:
    """The recipe's transforms, fitted on its training images, or as an earlier trial left them in the store.

    Fitting GCN and ZCA on CIFAR-10 took 18 s on one core, and every seed would repeat it.
    """
    recipe, places = benchmark.recipe, positions(benchmark, dataset)
    first, second = transforms.build_preprocess(recipe.preprocess), transforms.build_augment(recipe.augment)
    identity = [dataset.digest, *map(str, plain((recipe.preprocess, recipe.augment, recipe.subset)))]
    identity += [LOADED["pipelines/data/subsets.py"], LOADED["pipelines/data/transforms.py"]]
    cached = root / "fitted" / f"{stream(*identity):016x}.pt"
    with store.lock(cached.with_suffix(".lock"), f"fitting the preprocessing of {benchmark.name}", patience_s=600):
        try:
            state = tensors.load_sealed(cached, f"the fitted preprocessing of {benchmark.name}")
            with _foreign_said(cached):
                if state["of"] != identity:
                    raise ValueError("another recipe's")
                preprocess = transforms.FittedPreprocess.restore(first, state["preprocess"])
                return preprocess, transforms.FittedAugment.restore(second, state["augment"])
        except store.MissingError:
            pass
        except store.DamagedError as error:
            store.set_aside(cached)
            print(f"{error}; set aside, and fitted again", flush=True)
        images, _ = dataset.split("train")
        preprocess = transforms.fit(first, images, places)
        augment = transforms.fit_augment(second, preprocess, images, places)
        kept = {"of": identity, "preprocess": preprocess.state_dict(), "augment": augment.state_dict()}
        tensors.save_sealed(cached, kept)
    return preprocess, augment


@contextmanager
def _foreign_said(path: Path) -> Iterator[None]:
    """DamagedError where a file of tensors is laid out otherwise than ours."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise store.DamagedError(f"{path} is foreign: {type(error).__name__} {error!s:.80}") from None


def run(
    spec: Spec, worker: Worker | None = None, watch: Callable[[Mapping[str, Any]], None] = lambda told: None
) -> store.TrialFiles:
    """Train ``spec`` to its end, or return at once when the store holds it finished.

    ``watch`` is called with every progress report. Raises UserError for input that can't be trained on, and when the
    loss ends as no number.
    """
    worker = worker or Worker()
    files = spec.files
    if files.finished:
        return files
    if worker.rank > 0:
        _train(spec, worker, watch)
        return files
    with store.lock(files.folder / "lock", spec.name), _full_disk_said(spec.store):
        for line in files.inspect(spec.name):
            print(line, flush=True)
        files.sweep()
        if not files.finished:  # another process may have finished it while this one waited
            _train(spec, worker, watch)
    return files


@contextmanager
def _full_disk_said(root: Path) -> Iterator[None]:
    """A full disk is the user's to mend: torch raises a RuntimeError of its own for it, Python an OSError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno in FULL
        if full or shutil.disk_usage(root).free < NO_SPACE:
            free = shutil.disk_usage(root).free / 1e6
            raise UserError(f"no space left in {root} ({free:.0f} MB free); make room and run this again") from error
        raise


def _train(spec: Spec, worker: Worker, watch: Callable[[Mapping[str, Any]], None]) -> None:
    _settle(spec)
    dataset = datasets.open_dataset(spec.data, spec.benchmark.dataset)
    identity = _identity(spec, dataset) | provenance.git_state()
    if worker.rank == 0:
        store.write_json(spec.files.trial, identity)
    loader, module = prepare(spec, dataset, worker)
    journal = Journal(spec, loader, worker, watch, len(positions(spec.benchmark, dataset)))
    trainer = worker.prepare(build_trainer(spec, worker, journal))
    checkpoint = _checkpoint(spec, worker, module, journal)
    trainer.fit(module, train_dataloaders=Chunks(loader), ckpt_path=checkpoint)
    if worker.rank == 0:
        _finish(spec, module, journal, identity)


def _checkpoint(spec: Spec, worker: Worker, module: Classifier, journal: Journal) -> Path | None:
    """The checkpoint to go on from; one that is damaged, or of another trial, is said and set aside.

    All workers come to the same answer, each from the file itself.
    """
    path = spec.files.checkpoint
    try:
        _check_checkpoint(path, spec, module, journal)
    except store.MissingError:
        return None
    except store.DamagedError as error:
        if worker.rank == 0:
            store.set_aside(path)
            print(f"{error}; set aside, and {spec.name} is trained from the start", flush=True)
        return None
    return path


def _check_checkpoint(path: Path, spec: Spec, module: Classifier, journal: Journal) -> None:
    """DamagedError for a file that Lightning would say so of in many lines, or not at all."""
    found = tensors.load_sealed(path, f"a checkpoint of {spec.name}")
    with _foreign_said(path):
        key = found["callbacks"][journal.state_key]["key"]
        have = [value.shape for value in found["state_dict"].values()]
        fits = _fits(found["optimizer_states"][0]["state"], module.configure_optimizers())
        names = list(found["state_dict"])
    expected = module.state_dict()
    if key != spec.key:
        raise store.DamagedError(f"{path} belongs to another trial (key {key}); expected {spec.key}")
    if names != list(expected) or have != [value.shape for value in expected.values()] or not fits:
        raise store.DamagedError(f"{path} holds tensors of other shapes than {spec.benchmark.model.name} has")


def _fits(saved: Mapping[int, Mapping[str, Any]], optimiser: torch.optim.Optimizer) -> bool:
    """Whether what an optimiser remembered of each parameter has its shape, or is a plain number."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    kept = [(parameters[at], value) for at, state in saved.items() for value in state.values()]
    return all(value.shape in (p.shape, ()) for p, value in kept if isinstance(value, Tensor))


def _settle(spec: Spec) -> None:
    """Make the process repeatable: threads, determinism, and silence about what is meant."""
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", "The `srun` command is available")  # who has a SLURM need not use it
    pl._logger.setLevel("ERROR")
    torch.backends.cudnn.benchmark = False
    # Lightning's determinism has torch fill every new tensor with NaN, to show what reads it unset: a twentieth of the
    # time of a small network.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")  # fp32 is fp32; who wants speed says bf16


def prepare(spec: Spec, dataset: datasets.Dataset, worker: Worker) -> tuple[Batches, Classifier]:
    """The trial's minibatches and its freshly initialised module."""
    benchmark, recipe = spec.benchmark, spec.benchmark.recipe
    device = torch.device(spec.device)
    shape = image_shape(benchmark, dataset)
    preprocess, augment = fitted(benchmark, dataset, spec.store)
    torch.manual_seed(stream(spec.seed, "weights"))
    model = build_model(benchmark, dataset, shape)
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stretch = benchmark.budgets["paper"].epochs / spec.epochs  # a shorter budget runs through the paper's schedule
    kind: Callable[..., Batches] = Batches
    if recipe.boosting is not None:
        kind = functools.partial(
            boosting.BoostedBatches,
            boosting=recipe.boosting,
            members=boosting.members(model),
            stretch=stretch,
            where=f"{benchmark.where}.recipe.boosting",
        )
    images, labels = dataset.split("train")
    loader = kind(
        images,
        labels,
        budgeted(benchmark, spec.budget, dataset),
        batch=recipe.batch,
        seed=spec.seed,
        preprocess=preprocess.to(device),
        augment=augment.to(device),
        shuffle=recipe.shuffle,
        channels_last=recipe.channels_last,
        device=device,
        rank=worker.rank,
        workers=worker.workers,
    )
    module = Classifier(model, recipe, steps=len(loader), stretch=stretch, seed=spec.seed, rank=worker.rank)
    return loader, module


def build_trainer(spec: Spec, worker: Worker, journal: Journal) -> pl.Trainer:
    """Lightning's Trainer with nothing that costs time in every step.

    It is told where it runs. Where it finds a SLURM by itself, it refuses ``--ntasks``, writes a checkpoint of its own
    on SIGUSR1, and goes on from any such file in its folder, whichever trial's; so it is given none to look into.
    """
    settings: dict[str, Any] = {
        "accelerator": "gpu" if spec.device == "cuda" else "cpu",
        "devices": 1,
        "deterministic": spec.device == "cpu",
        "plugins": [LightningEnvironment()],
    } | dict(worker.trainer)
    settings["plugins"] = [*settings["plugins"], tensors.Checkpoints()]
    return pl.Trainer(
        **settings,
        default_root_dir=os.devnull,
        max_epochs=spec.epochs,
        precision="bf16-mixed" if spec.benchmark.recipe.precision == "bf16" else "32-true",
        callbacks=[journal],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


def _identity(spec: Spec, dataset: datasets.Dataset) -> dict[str, Any]:
    """What is trained, by which code; UserError where this is not the code that the trial was planned with.

    Hours may lie between the two, and the files be edited in them: weights must not be kept under another's key.
    """
    config, family = spec.benchmark.resolved(spec.budget), spec.benchmark.model.family
    behind = _behind(family)
    if store.key(config, dataset.digest, spec.seed, behind) != spec.key:
        raise UserError(f"{spec.name}: the source files or the data were changed after it was planned; run this again")
    return {
        "benchmark": spec.benchmark.name,
        "seed": spec.seed,
        "key": spec.key,
        "budget": spec.budget,
        "config": config,
        "dataset": {"name": dataset.name, "digest": dataset.digest},
        "sources": behind,
    }


@functools.cache  # a family's file, too, is loaded once, and before it is hashed: an edit in between must be seen
def _behind(family: str) -> dict[str, str]:
    importlib.import_module(f"models.{family}")
    return store.sources(family) | LOADED


def _finish(spec: Spec, module: Classifier, journal: Journal, identity: Mapping[str, Any]) -> None:
    """Weights, provenance, and last of all the mark that the trial is finished."""
    last = journal.curve[-1]
    with store.replacing(spec.files.weights) as temporary:
        torch.save(module.model.state_dict(), temporary)
    images = spec.epochs * len(journal.loader.positions)
    wall = last["seconds"]
    result = {
        **{k: v for k, v in identity.items() if k != "dataset"},
        "dataset_digest": identity["dataset"]["digest"],
        # Passes over the images that the recipe trains on: fewer than counted where the budget cuts the data.
        "epochs": round(last["epoch"], 3),
        "images_seen": images,
        "wall_s": wall,
        "device_s": wall * journal.worker.workers,
        "images_per_s": images / wall,
        "workers": journal.worker.workers,
        "hardware": provenance.hardware(spec.device),
        "device": spec.device,
        "threads": torch.get_num_threads(),
        "versions": provenance.versions(),
        "parameters": sum(p.numel() for p in module.model.parameters() if p.requires_grad),
        "resumed": journal.resumed,
        "finished": time.time(),
        "final_loss": last["loss"],
    }
    journal.tell("done", last["loss"])
    spec.files.write_result(result)
    spec.files.checkpoint.unlink(missing_ok=True)


def measure(spec: Spec, budget_s: float) -> float:
    """Images a second, from a few plain training steps; leaves nothing behind."""
    _settle(spec)
    # Of a committee the first member, whose patterns need not be looked for.
    recipe = dataclasses.replace(spec.benchmark.recipe, boosting=None)
    spec = dataclasses.replace(spec, benchmark=dataclasses.replace(spec.benchmark, recipe=recipe))
    dataset = datasets.open_dataset(spec.data, spec.benchmark.dataset)
    loader, module = prepare(spec, dataset, Worker())
    module.to(spec.device)
    optimiser = build_optimiser(spec.benchmark.recipe.optimiser, module.model)
    module.prepare_epoch(optimiser, loader, 0)
    half = spec.benchmark.recipe.precision == "bf16"
    began, images = 0.0, 0
    for step, (batch, labels) in enumerate(itertools.chain.from_iterable(itertools.repeat(loader))):
        with torch.autocast(spec.device, torch.bfloat16, enabled=half):
            outputs = module.model(batch)
        optimiser.zero_grad()
        module.loss(outputs.float(), labels).backward()
        optimiser.step()
        if step == WARM_UP:
            began = time.monotonic()
        elif step > WARM_UP:
            images += len(labels)
            if time.monotonic() - began > budget_s:
                break
    return images / (time.monotonic() - began)


def chosen_device(asked: str | None) -> str:
    """The device asked for, or the GPU where there is one; UserError for one that is not there."""
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise UserError("--device is cuda; torch finds no GPU here, expected cpu")
    return asked or ("cuda" if there else "cpu")


def main() -> None:
    """Run one trial from the command line."""
    parser = arguments.Parser(prog="python -m pipelines.trial", description="Train one benchmark from one seed.")
    parser.add_argument("benchmark", help="a benchmark of models/*.yaml, such as lenet5-mnist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", help="laptop or paper; by default the active suite's, and paper outside it")
    parser.add_argument("--data", type=Path, default=Path("datasets"), help="where the datasets are")
    parser.add_argument("--store", type=Path, default=None, help="the run store; $RUN_STORE or store/")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="by default the GPU where there is one")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends this as Ctrl-C does
    signal.signal(signal.SIGUSR1, _end_preempted)
    params = load_params()
    benchmark = params.benchmark(args.benchmark)
    budget = args.budget or usual_budget(params, benchmark.name)
    if budget not in benchmark.budgets:
        raise wording.unknown(f"--budget: {benchmark.name}: budget", budget, benchmark.budgets)
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; expected a whole number from 0")
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads is {args.threads}; expected at least 1")
    device = chosen_device(args.device)
    root = args.store or store.default()
    store.require_folder(root)
    check(benchmark, budget, args.data)
    spec = plan(
        benchmark,
        budget,
        args.seed,
        data=args.data,
        root=root,
        device=device,
        threads=args.threads,
    )
    length = f"{round(workload.passes(spec), 3):g} epochs"
    print(f"{spec.name}: {budget} budget, {length}, on {provenance.hardware(spec.device)}", flush=True)
    if not spec.files.finished:
        expected = workload.images(spec) / measure(spec, 1.0)
        print(f"{spec.name}: about {progress.duration(expected)} from its start to its end", flush=True)
    worker = Worker(preempted_by=(signal.SIGUSR1, signal.SIGTERM))
    try:
        files = run(spec, worker, watch=_printer(spec.name))
    except SystemExit:  # Lightning's own answer to Ctrl-C
        raise KeyboardInterrupt from None
    except PreemptedError as error:
        if error.number == signal.SIGTERM:
            raise KeyboardInterrupt from None
        fail(str(error), PREEMPTED)
    result = store.read_json(files.result)
    took = progress.duration(result["wall_s"])
    print(f"{spec.name}: trained in {took}, final loss {result['final_loss']:.4f}, weights in {files.weights}")


def _end_preempted(number: int, frame: FrameType | None) -> NoReturn:
    """End the process at once: it does not train at the moment, and there is nothing to save."""
    os.write(2, b"error: ended by SIGUSR1 while it did not train; the same command goes on at its last checkpoint\n")
    os._exit(PREEMPTED)


def _printer(name: str) -> Callable[[Mapping[str, Any]], None]:
    """One live line on a terminal; elsewhere a plain line every ten seconds."""
    live, last = sys.stdout.isatty(), [0.0]

    def show(told: Mapping[str, Any]) -> None:
        if live:
            print("\r\x1b[K" + progress.line(name, told), end="\n" if told["state"] == "done" else "", flush=True)
        elif told["state"] == "done" or time.monotonic() - last[0] > 10:
            last[0] = time.monotonic()
            print(progress.line(name, told), flush=True)

    return show


if __name__ == "__main__":
    guard(main)
