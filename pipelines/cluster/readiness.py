"""Before training on a cluster: wait for missing nodes, and check that each node can train."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import math
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipelines.cluster import connection, failures, nodes
from pipelines.cluster.connection import Cluster
from pipelines.cluster.placement import Node
from pipelines.command.errors import UserError, brief, reason
from pipelines.command.progress import becomes, duration, say
from pipelines.config.benchmarks import Benchmark
from pipelines.data import datasets
from pipelines.training import fingerprint
from pipelines.training.spec import Spec

WAIT = "RAY_WAIT_S"
WAIT_S = 600.0  # for nodes of an autoscaler: a cloud takes minutes for a machine and its image
LOOK_EVERY_S = 2.0
ANSWER_WITHIN_S = 120.0  # a node imports torch meanwhile, perhaps from a slow disk
FETCH_S = 3600.0
GPU_S = 90.0  # to look for GPUs, in a process that imports torch; below ANSWER_WITHIN_S
SEEN_S = 10.0  # until one node's file shows on another: NFS caches for some seconds
LEAST_FREE = 200 * 10**6  # bytes among a node's temporary files, for Ray's logs and sockets
COMPARED = ("torch", "pytorch-lightning", "numpy")  # their releases must agree
DECODING = ("pillow", "numpy")  # the same
ABSENT = "no data yet"  # the answer of a node that has the project without its datasets/
SHARED = "expected a run store that every node shares ($RUN_STORE)"


@contextmanager
def ready(cluster: Cluster, planned: Sequence[Spec]) -> Iterator[Cluster]:
    """The nodes that can train, once they hold all these trials; UserError where they don't.

    A node that joins during the block is checked when it gets its first work (``join``).
    """
    benchmarks = [trial.benchmark for trial in planned]
    with admitted(awaited(cluster, benchmarks), lambda: training(planned)) as cluster:
        for benchmark in benchmarks:
            cluster.require(benchmark)
        yield cluster


def awaited(cluster: Cluster, benchmarks: Collection[Benchmark]) -> Cluster:
    """The cluster once it holds each benchmark; UserError for a benchmark that it does not hold in time.

    An autoscaler gets a request for what is missing. A cluster that was started here does not grow.
    """
    deadline = time.monotonic() + (0.0 if cluster.address is None else _patience())
    requested = False
    try:
        while (lacking := _lacking(cluster, benchmarks)) is not None:
            line, benchmark = lacking
            if time.monotonic() >= deadline:
                raise UserError(f"{line}; none came in {duration(_patience())} ({WAIT})" if requested else line)
            if not requested:
                what = line.partition("; expected")[0]
                say(f"{cluster}; waiting up to {duration(_patience())} for nodes that hold {what}")
                _request(cluster, benchmark)
                requested = True
            time.sleep(LOOK_EVERY_S)
            cluster = dataclasses.replace(cluster, nodes=connection.living())
    finally:
        if requested:
            _request(cluster, None)
    return cluster


def _patience() -> float:
    named = os.environ.get(WAIT) or str(WAIT_S)
    try:
        seconds = float(named)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise UserError(f"{WAIT} is {brief(named)}; expected seconds, such as 600")
    return seconds


def _lacking(cluster: Cluster, benchmarks: Collection[Benchmark]) -> tuple[str, Benchmark] | None:
    """The first benchmark that the cluster does not hold, and the reason."""
    for benchmark in benchmarks:
        try:
            cluster.require(benchmark)
        except UserError as error:
            return str(error), benchmark
    return None


def _request(cluster: Cluster, benchmark: Benchmark | None) -> None:
    """Request nodes that hold all workers of a trial from the autoscaler, if any; None withdraws the request."""
    from ray.autoscaler.sdk import request_resources

    bundles = [] if benchmark is None else [cluster.need(benchmark).bundle] * benchmark.resources.most
    request_resources(bundles=bundles)


@dataclass(frozen=True, kw_only=True)
class Question:
    """Requirements of a node: the driver's code and libraries; to train, also its data and its run store."""

    code: dict[str, str]  # sha256 by module
    libraries: dict[str, str]  # releases by name
    data: Path = Path()
    digests: dict[str, str] = field(default_factory=dict)  # by dataset
    store: Path | None = None
    cuda: bool = False  # whether a trial takes GPUs, if there are any
    token: str = field(default_factory=lambda: secrets.token_hex(8))  # names a file in the store and its answers
    asked: frozenset[str] = frozenset()  # ids of nodes

    @property
    def seen(self) -> Path | None:
        """The file that the driver writes."""
        return None if self.store is None else self.store / "seen" / self.token

    def answer(self, node: str) -> Path | None:
        """The file that a node writes."""
        return None if self.seen is None else self.seen.with_name(f"{self.token}.{node}")


def training(planned: Sequence[Spec]) -> Question:
    """The requirements for training and evaluating."""
    data, names = planned[0].data, {trial.benchmark.dataset for trial in planned}
    return Question(
        code=_code(),
        libraries=_libraries(COMPARED),
        data=data,
        digests={name: datasets.open_dataset(data, name).digest for name in sorted(names)},
        store=planned[0].store,
        cuda=any(trial.benchmark.resources.gpus or trial.benchmark.resources.gpus_if_any for trial in planned),
    )


def decoding() -> Question:
    """The requirements for decoding photographs."""
    return Question(code=_code(), libraries=_libraries(DECODING))


@contextmanager
def admitted(cluster: Cluster, question: Callable[[], Question]) -> Iterator[Cluster]:
    """The cluster without nodes that can't do the work, each with a line; UserError where none can.

    Each node with a CPU is asked once. A node that has the code but not the data fetches it.
    """
    if cluster.address is None:
        yield cluster
        return
    candidates = [node for node in cluster.nodes if node.cpus]
    with _shown(question()) as shown:
        lacking = _faults(shown, candidates)
        refused = {node.id for node, _ in lacking}
        if candidates and len(refused) == len(candidates):
            faults = "; ".join(f"{node.name}: {fault}" for node, fault in lacking)
            raise UserError(f"no node can {'train' if shown.store else 'decode'}: {faults}")
        for node, fault in lacking:
            say(f"node {node.name} takes no part: {fault}")
        others = tuple(node for node in cluster.nodes if node.id not in refused)
        known = dataclasses.replace(shown, asked=frozenset(node.id for node in cluster.nodes))
        yield dataclasses.replace(cluster, nodes=others, refused=tuple(sorted(refused)), question=known)


@contextmanager
def _shown(question: Question) -> Iterator[Question]:
    """The question, whose file lies in the store during the block."""
    if question.seen is None:
        yield question
        return
    question.seen.parent.mkdir(parents=True, exist_ok=True)
    question.seen.touch()
    try:
        yield question
    finally:
        for path in question.seen.parent.glob(f"{question.token}*"):
            path.unlink(missing_ok=True)


_joined: set[str] = set()  # in a worker process: tokens of the questions that its node has answered


def join(question: Question | None) -> None:
    """Check the own node, in a Ray worker before its work; UnfitError where it joined later and lacks something."""
    if question is None or question.token in _joined or (own := nodes.own()) in question.asked:
        return
    fault = _inspect(question)
    fault = _fetch(question) if fault == ABSENT else fault
    if fault is not None:
        raise failures.UnfitError(fault, (own,))
    _joined.add(question.token)


def latecomers_fault(cluster: Cluster) -> failures.UnfitError | None:
    """The first of the nodes that joined later that lacks something; None without one."""
    if cluster.question is None:
        return None
    known = {*cluster.question.asked, *cluster.refused}
    lacking = _faults(cluster.question, [node for node in connection.living() if node.id not in known])
    return failures.UnfitError(lacking[0][1], (lacking[0][0].id,)) if lacking else None


def _faults(question: Question, among: Sequence[Node]) -> list[tuple[Node, str]]:
    """The nodes that can't train, each with its first fault."""
    patience = dict.fromkeys((node.id for node in among), ANSWER_WITHIN_S)
    answers = nodes.ask(_inspect, question, among=among, patience_s=ANSWER_WITHIN_S)
    absent = [node for node, answer in answers if answer == ABSENT]
    if absent:
        say(f"fetching the data on {', '.join(node.name for node in absent)}")
        answers = [(node, answer) for node, answer in answers if answer != ABSENT]
        answers += nodes.ask(_fetch, question, among=absent, patience_s=FETCH_S + ANSWER_WITHIN_S)
        patience |= dict.fromkeys((node.id for node in absent), FETCH_S + ANSWER_WITHIN_S)
    faults = [(node, _in_words(answer, patience[node.id])) for node, answer in answers if answer is not None]
    able = [(node, question.answer(node.id)) for node, answer in answers if answer is None]
    unseen = (node for node, path in able if path and not becomes(partial(_lists, path), within_s=SEEN_S))
    return faults + [(node, f"what it writes into {question.store} does not show here; {SHARED}") for node in unseen]


def _in_words(answer: str | Exception, patience_s: float) -> str:
    """A node's answer, or the reason for none."""
    from ray.exceptions import GetTimeoutError

    if isinstance(answer, str):
        return answer
    if isinstance(answer, GetTimeoutError):
        return f"it does not answer within {duration(patience_s)}"
    return nodes.lacks_module(answer) or f"it can't be asked: {type(answer).__name__}: {reason(answer)}"


def _lists(path: Path) -> bool:
    """Whether the folder lists a file; NFS may answer for the file alone from its cache."""
    return path.name in os.listdir(path.parent)


def _inspect(question: Question) -> str | None:
    """Runs on each node: its first fault, ABSENT where only data is missing, None where it can train."""
    for fault in (_code_fault(question), _store_fault(question), _library_fault(question), _space_fault()):
        if fault:
            return fault
    project = all((question.data.parent / name).exists() for name in ("data.dvc", "params.yaml"))
    if project and not all((question.data / name).exists() for name in question.digests):
        return ABSENT
    try:
        for name, digest in question.digests.items():
            found = datasets.open_dataset(question.data, name)
            if found.digest != digest:
                return f"{found.path} is another than the driver's (digest {found.digest[:8]}); expected {digest[:8]}"
            found.split("train")
    except UserError as error:
        return str(error)
    if answer := question.answer(nodes.own()):
        answer.touch()
    return None


def _code_fault(question: Question) -> str | None:
    code = _code()
    other = sorted(name for name in code.keys() | question.code.keys() if code.get(name) != question.code.get(name))
    if not other:
        return None
    more = f" and {len(other) - 1} more" if len(other) > 1 else ""
    return f"its {other[0]}{more} in {fingerprint.ROOT} differs from the driver's; expected the same code on every node"


def _store_fault(question: Question) -> str | None:
    if question.seen is None or question.seen.exists():
        return None
    return f"it does not see what the driver wrote into {question.store}; {SHARED}"


def _library_fault(question: Question) -> str | None:
    here = _libraries(question.libraries)
    for name, release in question.libraries.items():
        if here[name] != release:
            return f"it has {name} {here[name]}; expected {release}, as the driver has"
    gpus = next(node.gpus for node in connection.living() if node.id == nodes.own())
    return _gpu_fault(gpus) if question.cuda and gpus else None


def _gpu_fault(gpus: int) -> str | None:
    """Whether torch finds the GPUs that Ray counts: asked in another process, since Ray may hide them from this one."""
    import torch

    promised = f"Ray has {gpus} GPU{'s' * (gpus > 1)} on it, and"
    if torch.version.cuda is None and torch.version.hip is None:
        return f"{promised} a torch that is built for CPUs alone ({torch.__version__})"
    unhidden = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    quiet = subprocess.DEVNULL
    looking = subprocess.Popen([sys.executable, "-c", code], env=unhidden, stdout=quiet, stderr=quiet)
    try:
        status = looking.wait(GPU_S)
    except subprocess.TimeoutExpired:
        looking.kill()  # without waiting: a process within a broken driver does not end
        return f"{promised} torch {torch.__version__} does not find them within {duration(GPU_S)}"
    return f"{promised} torch {torch.__version__} finds none: is its driver in order?" if status else None


def _space_fault() -> str | None:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    return f"{folder} has {free // 10**6} MB free; expected {LEAST_FREE // 10**6}" if free < LEAST_FREE else None


def _fetch(question: Question) -> str | None:
    """Runs on a node without data: fetch it and look again."""
    command = [sys.executable, "-m", "pipelines.fetch", *question.digests]
    try:
        subprocess.run(
            command, cwd=question.data.parent, capture_output=True, encoding="utf-8", timeout=FETCH_S, check=True
        )
    except subprocess.TimeoutExpired:
        return f"it can't fetch the data within {duration(FETCH_S)}"
    except subprocess.CalledProcessError as error:
        return f"it can't fetch the data: {reason(UserError(error.stderr.strip()))}"
    return _inspect(question)


def _code() -> dict[str, str]:
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in fingerprint.read().items()}


def _libraries(names: Iterable[str]) -> dict[str, str]:
    """Releases, without the local part: a node with GPUs has another build of torch."""
    return {name: _release(name) for name in names}


def _release(name: str) -> str:
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "missing"
