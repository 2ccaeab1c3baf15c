"""Hand a suite to a cluster, as a job of SLURM's, of Ray's or of Kubernetes'.

    python -m pipelines.submit slurm --nodes 2 --gpus-per-node 8 --suite paper
    python -m pipelines.submit ray --address http://127.0.0.1:8265 --suite paper
    python -m pipelines.submit kuberay --image registry/convnets --gpus 1 --suite paper | kubectl apply -f -

The job trains the suite on all nodes and writes the report; ``--print`` shows it. When it is submitted again, by you or
by the cluster, trials resume at their checkpoints, and finished trials are not trained again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2

from pipelines.cluster import jobs
from pipelines.command import arguments, ending
from pipelines.command.errors import UserError, guard
from pipelines.command.files import require_folder
from pipelines.config.params import load_catalogue, load_params
from pipelines.data.datasets import DATA, META
from pipelines.tracking.addresses import URI_VARIABLE, safe
from pipelines.training import store

BIN = Path(sys.executable).parent  # of the environment, which all nodes share with the checkout
SCRIPTS = Path(__file__).resolve().parents[1] / "cluster"
TIME = re.compile(r"(\d+-)?\d+(:\d\d?){0,2}")  # days-hours:minutes:seconds, and SLURM's shorter forms


def slurm(args: argparse.Namespace) -> None:
    """Write the batch script of a suite, and submit or print it."""
    _expect_at_least(args, nodes=1, gpus_per_node=0)
    if not TIME.fullmatch(args.time):
        raise UserError(f"--time is {args.time}; expected days-hours:minutes:seconds, such as 1-00:00:00")
    root = args.store.absolute()
    script = filled(
        "slurm.sbatch",
        **{name: getattr(args, name) for name in ("suite", "nodes", "gpus_per_node", "time", "options")},
        **{"project": Path.cwd(), "bin": BIN, "scratch": args.scratch.absolute()},
        **{"store": root, "logs": root / "logs", "command": _script("checkout", args)},
    )
    if args.print:
        print(script)
        return
    _require_data(args)
    require_folder(root / "logs")
    number = _sbatch(script)
    print(f"job {number} is in the queue; its log: {root}/logs/slurm-{number}.log")
    print(f"scancel {number} ends it, scontrol requeue {number} has it go on at the checkpoints")


def _sbatch(script: str) -> str:
    """Hand the script to SLURM; the job's number."""
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on the PATH; expected a machine of a SLURM cluster, or --print")
    done = subprocess.run(["sbatch", "--parsable"], input=script, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise UserError(f"sbatch refused the job: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]


def ray(args: argparse.Namespace) -> None:
    """Run the suite as a job of a Ray cluster, from a checkout shared by its nodes or a copy shipped by Ray."""
    variables = {"RUN_STORE": str(args.store.absolute())} | _tracking()
    if args.data:
        variables["DATASETS"] = str(args.data.absolute())
    environment: dict[str, Any] = {"env_vars": variables}
    if args.working_dir:
        if not args.working_dir.is_dir():
            raise UserError(f"--working-dir: {args.working_dir} is no folder; expected the project's")
        environment["working_dir"] = str(args.working_dir.absolute())
        entrypoint = _script("copy", args)
    else:
        place, path = shlex.quote(str(Path.cwd())), shlex.quote(str(BIN))
        entrypoint = f"cd {place} && PATH={path}:$PATH {_script('checkout', args)}"
    if args.print:
        print(f"{entrypoint}\n# runtime_env: {environment}")
        return
    jobs.run(args.address, entrypoint, {"suite": args.suite, **variables}, environment, stop=args.stop)


def kuberay(args: argparse.Namespace) -> None:
    """Print the manifest of a suite's RayJob; its image holds the code, its volume all else."""
    _expect_at_least(args, workers=1, cpus=1, gpus=0, memory=1)
    variables = {"RUN_STORE": f"{args.shared}/store", "DATASETS": f"{args.shared}/datasets"} | _tracking()
    names = ("image", "secret", "claim", "shared", "workers", "cpus", "gpus", "memory")
    script = filled(
        "rayjob.yaml",
        **{name: getattr(args, name) for name in names},
        **{"variables": variables, "entrypoint": _script("copy", args)},
        job=re.sub("[^a-z0-9]", "-", f"convnets-{args.suite}".lower()),
        ray=importlib.metadata.version("ray"),
    )
    print(script)


def _tracking() -> dict[str, str]:
    """MLflow's address for the job, if any; UserError if it contains a login, which the cluster would show."""
    uri = os.environ.get(URI_VARIABLE, "")
    if uri != safe(uri):
        raise UserError(f"{URI_VARIABLE} holds a login; expected that in ~/.mlflow/credentials, where the job runs")
    return {URI_VARIABLE: uri} if uri else {}


def _script(where: str, args: argparse.Namespace) -> str:
    """The command of a job in a ``checkout`` or a ``copy``."""
    return shlex.join(["bash", "cluster/suite.sh", where, args.suite, *args.datasets])


def _expect_at_least(args: argparse.Namespace, **least: int) -> None:
    for name, number in least.items():
        if getattr(args, name) < number:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is {getattr(args, name)}; expected a whole number from {number}")


def filled(name: str, **values: Any) -> str:
    """A template of ``cluster/`` with its values filled in; its filter ``quote`` quotes for a shell."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(SCRIPTS), undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    return environment.get_template(name).render(**values)


def _require_data(args: argparse.Namespace) -> None:
    """UserError where a dataset of the suite is not in ``datasets/``: compute nodes may have no network."""
    for name in args.datasets:
        if not (DATA / name / META).exists():
            first = f"python -m pipelines.suite {args.suite} && dvc repro fetch"
            raise UserError(f"{DATA / name} is not there; expected it before a job that needs it: {first}")


def main() -> None:
    """Submit the suite as the command line says."""
    parser = arguments.Parser(
        prog="python -m pipelines.submit",
        description="Hand a suite to a cluster as a job. Submitted again, trials go on at their checkpoints.",
    )
    ways = parser.add_subparsers(required=True, metavar="slurm|ray|kuberay")
    suite, own = arguments.Parser(add_help=False), arguments.Parser(add_help=False)
    suite.add_argument("--suite", help="by default the active one")
    own.add_argument("--store", type=Path, default=store.default(), help="the run store, shared by all nodes")
    own.add_argument("--print", action="store_true", help="show what would be submitted, and do nothing")
    _add_slurm(ways.add_parser("slurm", parents=[suite, own], help="whole nodes of a SLURM cluster"))
    _add_ray(ways.add_parser("ray", parents=[suite, own], help="a Ray cluster, through its dashboard's address"))
    _add_kuberay(ways.add_parser("kuberay", parents=[suite], help="Kubernetes with KubeRay: print a manifest"))
    args = parser.parse_args()
    ending.follow()
    args.suite = args.suite or load_params().suite.name
    args.datasets = load_catalogue().as_active(args.suite)["datasets"]
    args.run(args)


def _add_slurm(way: argparse.ArgumentParser) -> None:
    way.set_defaults(run=slurm)
    way.add_argument("--nodes", type=int, default=1)
    way.add_argument("--gpus-per-node", type=int, default=0)
    way.add_argument("--time", default="24:00:00", help="the job's time limit; it is queued again until it is done")
    way.add_argument("--scratch", type=Path, default=Path("/tmp"), help="for Ray's files, a short path on each node")
    way.add_argument("options", nargs="*", help="after --: further options of sbatch, such as --partition=gpu")


def _add_ray(way: argparse.ArgumentParser) -> None:
    way.set_defaults(run=ray)
    way.add_argument("--address", default="http://127.0.0.1:8265", help="of the cluster's dashboard")
    way.add_argument("--working-dir", type=Path, help="ship this folder's code: the nodes share no checkout")
    way.add_argument("--data", type=Path, help="where the datasets are on every node ($DATASETS there)")
    way.add_argument("--stop", action="store_true", help="Ctrl-C ends the job, too")


def _add_kuberay(way: argparse.ArgumentParser) -> None:
    way.set_defaults(run=kuberay)
    way.add_argument("--image", required=True, help="of head and workers, built from cluster/Dockerfile")
    way.add_argument("--workers", type=int, default=8, help="pods at most")
    way.add_argument("--cpus", type=int, default=8, help="of each worker")
    way.add_argument("--gpus", type=int, default=0, help="of each worker")
    way.add_argument("--memory", type=int, default=32, help="of each worker, in GiB")
    way.add_argument("--claim", default="shared", help="the PersistentVolumeClaim that all pods mount, ReadWriteMany")
    way.add_argument("--shared", default="/shared", help="where they mount it; store/ and datasets/ lie in it")
    way.add_argument("--secret", default="convnets-token", help="the Secret with the cluster's auth_token")


if __name__ == "__main__":
    guard(main)
