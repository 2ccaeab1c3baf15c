"""How well trials fill a cluster: the placing of a training, with Ray replaced by a clock. Needs no GPU and no data.

    python -m benchmarks.placement                       # the suite paper, five seeds, on 1, 8, 64 and 1,024 GPUs
    python -m benchmarks.placement --suite ilsvrc2012 --gpus 16

A trial's length is reckoned from its multiplications, at a rate that a GPU might have: what counts is that lengths
differ by orders of magnitude, as they really do. Makespan is set beside the bound that no placing can beat: the longest
trial, or all work shared out evenly.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipelines.cluster import placement
from pipelines.cluster.connection import Cluster
from pipelines.cluster.placement import Job, Node, Simulated
from pipelines.command import arguments
from pipelines.command.errors import UserError, guard
from pipelines.command.progress import duration
from pipelines.config import wording
from pipelines.config.benchmarks import Benchmark
from pipelines.config.params import Params, load_params
from pipelines.data import subsets, transforms
from pipelines.training.inputs import build_network, forward_flops

IMAGES_OF = {"mnist": 60_000, "cifar10": 50_000, "imagenette": 9_469, "imagenette-224": 9_469, "ilsvrc2012": 1_281_167}
SIDES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
PHOTOGRAPH = (3, 256, 256)
CLASSES = {"ilsvrc2012": 1000}
A_NODE = (96, 8)  # CPUs and GPUs, at most
FLOPS, CPU_FLOPS = 20e12, 50e9  # a second, of a whole GPU and of a core
LAUNCH_S = 5e-4  # of a step, however small the net


@dataclass(frozen=True)
class Use:
    """What a placing came to."""

    devices: float  # the share of their time for which they work
    makespan: float  # seconds
    bound: float  # seconds

    @property
    def ratio(self) -> float:
        """1 where no placing could be better."""
        return self.bound / self.makespan


def cluster(gpus: int) -> Cluster:
    """Nodes with so many GPUs in all."""
    cpus, most = A_NODE
    sizes = [most] * (gpus // most) + [gpus % most] * (gpus % most > 0)
    nodes = (Node(cpus=cpus * size // most, gpus=size, id=f"node-{n}") for n, size in enumerate(sizes))
    return Cluster(address="head", nodes=tuple(nodes))


def seconds(benchmark: Benchmark) -> float:
    """A trial's length on what it asks for; UserError for a data set of unknown size."""
    if benchmark.dataset not in IMAGES_OF:
        expected = f"expected one whose size is known here: {wording.listed(IMAGES_OF)}"
        raise UserError(f"{benchmark.where}.dataset is {benchmark.dataset}; {expected}")
    recipe, shape = benchmark.recipe, SIDES.get(benchmark.dataset, PHOTOGRAPH)
    for build, ops in ((transforms.build_preprocess, recipe.preprocess), (transforms.build_augment, recipe.augment)):
        shape = transforms.output_shape(build(ops), shape)
    images = len(subsets.positions(IMAGES_OF[benchmark.dataset], recipe.subset)) * benchmark.budgets["paper"].epochs
    asked = benchmark.resources
    rate = FLOPS * (asked.gpus or asked.gpus_if_any) or CPU_FLOPS * asked.cpus
    network = functools.partial(build_network, benchmark, CLASSES.get(benchmark.dataset, 10), shape)
    flops = 3 * images * forward_flops(network, shape)  # forward once, backward twice
    return max(flops / (rate * asked.most), images / recipe.batch * LAUNCH_S)


def jobs(params: Params, names: Iterable[str], where: Cluster) -> Iterator[Job]:
    """The trials of these benchmarks at the paper's budget."""
    for name in names:
        benchmark = params.benchmark(name)
        length = seconds(benchmark)
        for seed in benchmark.budgets["paper"].seeds:
            need = where.need(benchmark)
            yield Job(key=f"{name} {seed}", need=need, seconds=length, counts=benchmark.resources.counts)


def use(outcome: Simulated, gpus: int) -> Use:
    """What a simulated placing came to, on so many GPUs."""
    done = [start.job for start in outcome.starts]
    work = sum(job.seconds * job.counts[0] * job.need.gpus for job in done)
    bound = max(work / gpus, *(job.seconds for job in done))
    return Use(devices=work / gpus / outcome.seconds, makespan=outcome.seconds, bound=bound)


def main() -> None:
    """Print a line for each size of cluster."""
    parser = arguments.Parser(prog="python -m benchmarks.placement", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", default="paper", help="of params.yaml")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 1024])
    args, params = parser.parse_args(), load_params()
    if args.suite not in params.suites:
        raise UserError(wording.unknown("--suite: suite", args.suite, params.suites))
    if min(args.gpus) < 1:
        raise UserError(f"--gpus has {min(args.gpus)}; expected at least 1")
    names = params.suites[args.suite].benchmarks
    waiting = list(jobs(params, names, cluster(max(args.gpus))))
    print(f"{args.suite}: {len(names)} benchmarks at the paper budget\n")
    print("   GPUs  trials  devices used     makespan        bound  bound / makespan")
    for gpus in args.gpus:
        nodes = cluster(gpus).nodes
        outcome = placement.simulate(placement.in_order(waiting, nodes), nodes)
        found = use(outcome, gpus)
        times = f"{duration(found.makespan):>12} {duration(found.bound):>12}"
        print(f"{gpus:>7,}{len(outcome.starts):>8}{found.devices:>13.0%} {times}{found.ratio:>18.3f}")


if __name__ == "__main__":
    guard(main)
