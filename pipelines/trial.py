"""Train trials on this machine, each a benchmark from one seed.

    python -m pipelines.trial lenet5-mnist
    python -m pipelines.trial strided-a-cifar10 allcnn-c-cifar10 --seeds 0 1 --side-by-side 4

Needs only torch, Lightning, NumPy and PyYAML, not Ray, MLflow or DVC, so it runs under any of them or under none. A
trial lives in the run store under its key: a finished trial returns at once, a killed trial resumes at its last
checkpoint, and on a CPU ends with the weights of an undisturbed run, bit for bit. Several trials share the device; if
one fails, the others go on, and the command ends with status 1.

On SIGUSR1 or SIGTERM, by which a scheduler such as SLURM takes a machine away, and on Ctrl-C the command saves a
checkpoint after the current minibatches and ends, with status 75 (EX_TEMPFAIL, "run it again") for SIGUSR1, 130 for the
others. The same command resumes from there, so a batch script may put itself back in the queue:

    srun python -m pipelines.trial allcnn-c-cifar10 || [ $? -ne 75 ] || scontrol requeue $SLURM_JOB_ID
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from pipelines.command import arguments, progress
from pipelines.command.errors import UserError, guard
from pipelines.command.files import read_json, require_folder
from pipelines.config.params import load_params
from pipelines.data.datasets import DATA
from pipelines.training import checks, fingerprint, provenance, speed, status, store, trainer
from pipelines.training.checkpoint import PreemptedError, Worker
from pipelines.training.inputs import Inputs
from pipelines.training.side_by_side import ENDED_BY, Seats
from pipelines.training.spec import Spec, plan

FAILED = 1  # exit status where trials failed


def main() -> None:
    """Train the trials that the command line names."""
    args = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends this as Ctrl-C does
    planned = _planned(args)
    for spec in planned:
        length = f"{round(spec.recipe_epochs(), 3):g} epochs in {spec.precision}"
        state = "finished before" if spec.files.finished else f"on {provenance.hardware(spec.device)}"
        print(f"{spec.name}: {spec.budget} budget, {length}, {state}", flush=True)
    if len(planned) == 1:
        _train_alone(*planned)
    else:
        _train_several(planned, args.side_by_side)


def _train_alone(spec: Spec) -> None:
    """Train in this process, which receives Ctrl-C and a scheduler's signals."""
    if not spec.files.finished:
        seconds = spec.images() / speed.measure(spec)
        print(f"{spec.name}: about {progress.duration(seconds)} from its start to its end", flush=True)
    worker, board = Worker(preempted_by=ENDED_BY), progress.Board()
    try:
        trainer.run(
            spec,
            worker,
            watch=lambda state: board.show([status.line(spec.name, state)], final=state["state"] == "done"),
        )
    except SystemExit:  # Lightning's own answer to a Ctrl-C before the first step, and to a second one
        raise KeyboardInterrupt from None
    except PreemptedError as error:
        if error.number != signal.SIGUSR1:
            raise KeyboardInterrupt from None
        raise
    print(_outcome(spec))


def _train_several(planned: Sequence[Spec], at_once: int | None) -> None:
    """Train as many side by side as the device holds; exit with ``FAILED`` where any failed."""
    waiting = [spec for spec in planned if not spec.files.finished]
    at_once = at_once or _capacity(waiting or planned)
    done = len(planned) - len(waiting)
    print(f"{len(planned)} trials, {done} of them finished before; {at_once} at once", flush=True)
    failures = Seats(waiting, at_once).run() if waiting else []
    for spec in planned:
        if spec.files.finished:
            print(_outcome(spec))
    if failures:
        raise SystemExit(FAILED)


def _capacity(planned: Sequence[Spec]) -> int:
    """Trials that fit on the device at once, by their rows' shares of a GPU, or by their threads on a CPU."""
    if planned[0].device == "cpu":
        return max(1, len(os.sched_getaffinity(0)) // max(spec.threads or 1 for spec in planned))
    asked = (spec.benchmark.resources for spec in planned)
    return max(1, int(1 / max(each.gpus or each.gpus_if_any or 1.0 for each in asked)))


def _outcome(spec: Spec) -> str:
    result = read_json(spec.files.result)
    took = progress.duration(result["wall_s"])
    return f"{spec.name}: trained in {took}, final loss {result['final_loss']:.4f}, weights in {spec.files.weights}"


def _arguments() -> argparse.Namespace:
    parser = arguments.Parser(
        prog="python -m pipelines.trial",
        description="Train benchmarks on this machine's GPU or CPU, without Ray. Finished trials of the run store are "
        "not trained again; begun ones resume.",
    )
    parser.add_argument("benchmarks", nargs="+", help="benchmarks of models/*.yaml, such as lenet5-mnist")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of each benchmark; by default 0")
    parser.add_argument("--budget", help="laptop or paper; by default the active suite's, or paper outside it")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the datasets")
    parser.add_argument("--store", type=Path, default=None, help="the run store; $RUN_STORE or store/")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="by default the GPU where there is one")
    parser.add_argument("--threads", type=int, help="CPU threads of each trial; by default its row's resources.cpus")
    parser.add_argument(
        "--side-by-side", type=int, metavar="N", help="trials at once; by default what the rows' resources allow"
    )
    return parser.parse_args()


def _planned(args: argparse.Namespace) -> list[Spec]:
    """The trials that the arguments describe, each once, checked; UserError for the first thing that is wrong."""
    params, sources = load_params(), fingerprint.read()
    benchmarks = [params.benchmark(name) for name in dict.fromkeys(args.benchmarks)]
    budgets = [params.budget(benchmark.name, args.budget) for benchmark in benchmarks]
    _check_numbers(args)
    device = provenance.chosen_device(args.device)
    root = args.store or store.default()
    require_folder(root)
    planned: dict[str, Spec] = {}  # by key: two benchmarks may train the same weights
    for benchmark, budget in zip(benchmarks, budgets, strict=True):
        threads = args.threads or benchmark.resources.cpus
        specs = [
            plan(benchmark, budget, seed, data=args.data, root=root, sources=sources, device=device, threads=threads)
            for seed in args.seeds
        ]
        checks.check(Inputs.of(specs[0]), budget)
        planned |= {spec.key: spec for spec in (spec.settled for spec in specs)}
    return list(planned.values())


def _check_numbers(args: argparse.Namespace) -> None:
    for seed in args.seeds:
        if seed < 0:
            raise UserError(f"--seeds has {seed}; expected whole numbers from 0")
    for option, value in (("--threads", args.threads), ("--side-by-side", args.side_by_side)):
        if value is not None and value < 1:
            raise UserError(f"{option} is {value}; expected at least 1")


if __name__ == "__main__":
    guard(main)
