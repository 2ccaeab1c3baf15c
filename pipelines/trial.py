"""One trial, start to checkpoint to weights: a benchmark trained once from one seed.

    python -m pipelines.trial lenet5-mnist --seed 0

Needs torch, Lightning, NumPy and PyYAML alone, not Ray, MLflow or DVC, so it runs under any of them or under none. The
trial lives in the run store under its key: a finished one returns at once, a killed one resumes at its last checkpoint,
and on a CPU it then ends at the very weights of an undisturbed run.

SIGUSR1 and SIGTERM, by which a scheduler such as SLURM takes a machine away, save a checkpoint after the current
minibatches and end the command: with status 75 (EX_TEMPFAIL, "run it again") for SIGUSR1, 130 for SIGTERM. The same
command resumes from there, so a batch script may put itself back in the queue:

    srun python -m pipelines.trial allcnn-c-cifar10 || [ $? -ne 75 ] || scontrol requeue $SLURM_JOB_ID
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.command import arguments, progress
from pipelines.command.errors import UserError, guard
from pipelines.command.folders import require_folder
from pipelines.config import wording
from pipelines.config.params import load_params
from pipelines.data.datasets import DATA
from pipelines.training import checks, provenance, speed, status, store, trainer
from pipelines.training.checkpoint import PreemptedError, Worker
from pipelines.training.inputs import Inputs
from pipelines.training.spec import Spec, plan, usual_budget

STATUS_EVERY_S = 10.0  # where the output is no terminal


def main() -> None:
    """Run one trial from the command line."""
    args = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends this as Ctrl-C does
    spec = _planned(args)
    length = f"{round(spec.recipe_epochs(), 3):g} epochs"
    print(f"{spec.name}: {spec.budget} budget, {length}, on {provenance.hardware(spec.device)}", flush=True)
    if not spec.files.finished:
        seconds = spec.images() / speed.measure(spec)
        print(f"{spec.name}: about {progress.duration(seconds)} from its start to its end", flush=True)
    worker = Worker(preempted_by=(signal.SIGUSR1, signal.SIGTERM))
    try:
        files = trainer.run(spec, worker, watch=_printer(spec.name))
    except SystemExit:  # Lightning's own answer to Ctrl-C
        raise KeyboardInterrupt from None
    except PreemptedError as error:
        if error.number == signal.SIGTERM:
            raise KeyboardInterrupt from None
        raise
    result = store.read_json(files.result)
    took = progress.duration(result["wall_s"])
    print(f"{spec.name}: trained in {took}, final loss {result['final_loss']:.4f}, weights in {files.weights}")


def _arguments() -> argparse.Namespace:
    parser = arguments.Parser(prog="python -m pipelines.trial", description="Train one benchmark from one seed.")
    parser.add_argument("benchmark", help="a benchmark of models/*.yaml, such as lenet5-mnist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", help="laptop or paper; by default the active suite's, and paper outside it")
    parser.add_argument("--data", type=Path, default=DATA, help="where the datasets are")
    parser.add_argument("--store", type=Path, default=None, help="the run store; $RUN_STORE or store/")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="by default the GPU where there is one")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    return parser.parse_args()


def _planned(args: argparse.Namespace) -> Spec:
    """The trial that the arguments describe, checked; UserError for the first thing that is wrong."""
    params = load_params()
    benchmark = params.benchmark(args.benchmark)
    budget = args.budget or usual_budget(params, benchmark.name)
    if budget not in benchmark.budgets:
        raise wording.unknown(f"--budget: {benchmark.name}: budget", budget, benchmark.budgets)
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; expected a whole number from 0")
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads is {args.threads}; expected at least 1")
    device = provenance.chosen_device(args.device)
    root = args.store or store.default()
    require_folder(root)
    spec = plan(benchmark, budget, args.seed, data=args.data, root=root, device=device, threads=args.threads)
    checks.check(Inputs.of(spec), budget)
    return spec


def _printer(name: str) -> Callable[[Mapping[str, Any]], None]:
    """One live line on a terminal; elsewhere a plain line every ten seconds."""
    live, last = sys.stdout.isatty(), [0.0]

    def show(state: Mapping[str, Any]) -> None:
        if live:
            print("\r\x1b[K" + status.line(name, state), end="\n" if state["state"] == "done" else "", flush=True)
        elif state["state"] == "done" or time.monotonic() - last[0] > STATUS_EVERY_S:
            last[0] = time.monotonic()
            print(status.line(name, state), flush=True)

    return show


if __name__ == "__main__":
    guard(main)
