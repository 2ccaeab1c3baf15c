"""Start or join Ray, and match a benchmark's resources with the cluster's."""

from __future__ import annotations

import functools
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import psutil

from pipelines.cluster import failures, local
from pipelines.cluster.placement import Need, Node
from pipelines.command import ending
from pipelines.command.children import end_children
from pipelines.command.errors import USER_ERROR, UserError, brief, reason
from pipelines.command.progress import say

if TYPE_CHECKING:
    from pipelines.config.benchmarks import Benchmark

Endpoint = tuple[str, int]  # host and port
KIND_OF_GPU = "accelerator_type:"  # start of the resource's name, before the kind of GPU
OF_ACCELERATOR = 0.001  # of a node's one such resource, for each worker that asks for the kind
ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[\w.-]+):(?P<port>[0-9]{1,5})")
CONNECT_S = 5.0
HEAD_ANSWER_S = 20.0  # the head may be busy
LOST_S = 1.0  # without an answer, on this machine
LOST_ELSEWHERE_S = 30.0  # a cluster's head may be restarting; Ray gives up after 60 s
LEAVE_S = 15.0  # for leaving a lost cluster; after that the process ends at once
FOLLOW_EVERY_S = 0.5
NODES_EVERY_S = 2.0  # between looks at the nodes
CUT_OFF_S = 20.0  # without progress on a node that Ray takes for dead


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A connected Ray cluster."""

    address: str | None  # None: started here, for this process alone
    nodes: tuple[Node, ...]
    refused: tuple[str, ...] = ()  # ids of nodes that can't train
    question: Any = field(default=None, compare=False)  # readiness.Question, for a node that joins later

    @property
    def placing(self) -> dict[str, dict[str, str]]:
        """The options of a Ray task, or of Ray Train's workers, that exclude the refused nodes."""
        return {"label_selector": {"ray.io/node-id": f"!in({','.join(self.refused)})"}} if self.refused else {}

    def near(self, node: str) -> dict[str, Any]:
        """The options of a Ray task for one node, or for another if that is gone or full."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return {
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True),
            **self.placing,
        }

    def without(self, error: failures.UnfitError) -> Cluster:
        """The cluster without the error's nodes, which joined later; prints a line for each new one."""
        news = {node.id: node.name for node in living() if node.id in error.nodes} if self.address else {}
        for node in news.keys() - set(self.refused):
            say(f"node {news[node]} takes no part: {error}")
        nodes = tuple(node for node in self.nodes if node.id not in error.nodes)
        return replace(self, nodes=nodes, refused=tuple(sorted({*self.refused, *error.nodes})))

    @property
    def cpus(self) -> int:
        """CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    @property
    def accelerators(self) -> list[str]:
        """The kinds of GPUs by Ray's names, without unknown ones."""
        found = {name.partition(KIND_OF_GPU)[2] for node in self.nodes if node.gpus for name in node.others}
        return sorted(found - {""})

    def __str__(self) -> str:
        where = "Ray started here" if self.address is None else f"Ray cluster at {self.address}"
        nodes = "" if len(self.nodes) == 1 else f"{len(self.nodes)} nodes, "
        return f"{where}: {nodes}{self.cpus} CPUs, {self.gpus} GPUs"

    def gpus_for(self, benchmark: Benchmark) -> float:
        """GPUs for one worker of the benchmark here: required ones, or optional ones where there are any."""
        resources = benchmark.resources
        return resources.gpus or (resources.gpus_if_any if self.gpus else 0.0)

    def need(self, benchmark: Benchmark) -> Need:
        """The needs of one worker of the benchmark here."""
        resources, gpus = benchmark.resources, self.gpus_for(benchmark)
        others = dict(resources.custom)
        if resources.memory is not None:
            others["memory"] = resources.memory * 1e9
        if resources.accelerator_type is not None and gpus:
            others[f"{KIND_OF_GPU}{resources.accelerator_type}"] = OF_ACCELERATOR
        return Need(cpus=resources.cpus, gpus=gpus, others=tuple(sorted(others.items())))

    def require(self, benchmark: Benchmark) -> None:
        """Raise UserError where the benchmark could never be placed here: Ray would wait for ever.

        A worker runs on one node: the cluster may have enough in total, and yet no node that holds it.
        """
        need, least, fits = self.need(benchmark), benchmark.resources.counts[-1], self._fits(benchmark)
        if fits >= least:
            return
        each = f"{benchmark.where}.resources: {f'{least} workers of ' if least > 1 else ''}"
        for name, amount in need.others:
            there = max((node.others.get(name, 0.0) for node in self.nodes), default=0.0)
            if amount > there:
                raise UserError(f"{each}{_lacking(name, amount, there)}")
        kinds = Counter(map(str, sorted(self.nodes, key=lambda node: (-node.gpus, -node.cpus))))
        have = ", ".join(f"{times} of {kind}" for kind, times in kinds.items())
        expected = f"at most {fits} of them, as fit on the nodes" if fits else "no more than one node has"
        raise UserError(f"{each}{need}; expected {expected}: {have}")

    def side_by_side(self, benchmark: Benchmark) -> int:
        """How many trials of the benchmark the cluster holds at once."""
        return self._fits(benchmark) // benchmark.resources.counts[-1]

    def _fits(self, benchmark: Benchmark) -> int:
        need = self.need(benchmark)
        return sum(node.holds(need) for node in self.nodes)


def _lacking(name: str, amount: float, there: float) -> str:
    """The amount that is asked for and the most that one node has, in words."""
    kind, _, which = name.partition(":")
    if kind == "accelerator_type":
        return f"a GPU of type {which}; expected one that a node has"
    unit, what = (1e9, "GB of memory") if name == "memory" else (1, name)
    return f"{amount / unit:g} {what}; expected at most the {there / unit:g} {what} that one node has"


def living() -> tuple[Node, ...]:
    """The current nodes of the connected cluster."""
    import ray

    found = [node for node in ray.nodes() if node["Alive"]]
    times = Counter(node["NodeManagerHostname"] for node in found)
    return tuple(
        Node(
            cpus=int(node["Resources"].get("CPU", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
            others={name: amount for name, amount in node["Resources"].items() if name not in ("CPU", "GPU")},
            id=node["NodeID"],
            host=(host := node["NodeManagerHostname"]),
            name=host if times[host] == 1 else f"{host} ({node['NodeID'][:6]})",
        )
        for node in found
    )


@contextmanager
def connect() -> Iterator[Cluster]:
    """Join the cluster that ``RAY_ADDRESS`` names, or start one on this machine; leave or end it afterwards.

    Raises UserError when ``RAY_ADDRESS`` can't be reached, when Ray does not come up here, and when the cluster is lost
    in the meantime.
    """
    address = named_address()
    local.tighten()
    others = psutil.Process().children(recursive=True)
    try:
        with _native_output_dropped():
            _start(address)
            with _watched(address) as cluster:
                yield cluster
    except KeyboardInterrupt:
        if address is None:  # also while Ray starts or shuts down
            end_children(but=others)
        raise


def named_address() -> str | None:
    """The address in ``RAY_ADDRESS``; None where Ray is to be started here.

    Raises UserError for a malformed address, and for none in a SLURM job on several nodes: a Ray that is started here
    would leave the others idle.
    """
    named = os.environ.get("RAY_ADDRESS", "").strip()
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    if not named and nodes != "1":
        job = f"this is SLURM job {os.environ.get('SLURM_JOB_ID')} on {nodes} nodes, and RAY_ADDRESS is not set"
        raise UserError(f"{job}; expected the Ray of all of them (pipelines.submit slurm starts it), or local")
    if named in ("", "local"):
        return None
    if named != "auto":
        _host_port(named)
    return named


@contextmanager
def _watched(address: str | None) -> Iterator[Cluster]:
    import ray

    watch = _Watch(address, _endpoints())
    try:
        yield Cluster(address=address, nodes=living())
    except UserError:
        raise
    except Exception:
        if watch.finds_lost():
            raise UserError(watch.line) from None
        raise
    except KeyboardInterrupt:
        if watch.lost.is_set():
            raise UserError(watch.line) from None
        raise
    finally:
        with watch.ending():
            ray.shutdown()
        if watch.lost.is_set():
            ending.dealt_with()


def _start(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # Ray Train polls its workers every 2 s otherwise
    # Ray Train waits a minute for its workers: a cluster may be busy for longer, and impossible needs were refused.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(24 * 3600))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray would restart a worker for ever that it ends for want of memory.
    os.environ.setdefault("RAY_task_oom_retries", str(failures.RETRIES))
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": False}
    try:
        if address is None:
            folder = local.prepare()
        elif address != "auto":
            _probe(address, _host_port(address))
        _silence()
        if address is None:
            local.start(folder, common)
        else:
            _join(address, common)
    except SystemExit:  # Ray raises it on SIGTERM
        raise KeyboardInterrupt from None
    ending.heed(signal.SIGTERM)


def _silence() -> None:
    """Keep Ray's own output from the terminal, such as 130 lines about a dead raylet: Ray's logs have it."""
    import ray

    logging.getLogger("ray").setLevel(logging.CRITICAL)
    ray._private.worker.print_to_stdstream = lambda *told, **how: None


@contextmanager
def _native_output_dropped() -> Iterator[None]:
    """Let only ``sys.stderr`` write to the error output, to which Ray's C++ code also complains."""
    stream = sys.stderr
    if stream is None:  # closed: nothing to keep clean
        yield
        return
    shown = os.dup(2)
    encoding, errors = (getattr(stream, name, None) for name in ("encoding", "errors"))
    with open(os.devnull, "wb") as away, open(shown, "w", buffering=1, encoding=encoding, errors=errors) as ours:
        stream.flush()
        os.dup2(away.fileno(), 2)
        if stream is sys.__stderr__:
            sys.stderr = ours
        try:
            yield
        finally:
            sys.stderr = stream
            os.dup2(shown, 2)


def _join(address: str, common: dict[str, Any]) -> None:
    import ray

    try:
        if address == "auto":  # a Ray on this machine, now or earlier
            _probe(address, _host_port(ray._private.services.get_ray_address_from_environment(address, None)))
        else:
            _ask(address)
        ray.init(address=address, **common)
    except UserError:
        raise
    except ray.exceptions.AuthenticationError as error:
        raise local.no_token(error) from None
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _unreachable(address, reason(error, 200)) from None


def _ask(address: str) -> None:
    """UserError unless a Ray of this version answers there and accepts the token in use here.

    Ray itself would try for minutes and fill the terminal meanwhile.
    """
    import grpc
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_service_pb2 import CheckAliveReply

    options = [("grpc.enable_http_proxy", 0)]  # as Ray has it
    with init_grpc_channel(address, options) as channel:
        try:
            answer = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=HEAD_ANSWER_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise UserError(f"RAY_ADDRESS is {address}, a cluster with another token; {local.TOKEN}") from None
            raise _unreachable(address, f"no Ray cluster answers there: {error.code().name.lower()}") from None
    version = CheckAliveReply.FromString(answer).ray_version
    if version != ray.__version__:
        raise _unreachable(address, f"it runs Ray {version}, not {ray.__version__}")


def _endpoints() -> tuple[Endpoint, ...]:
    """The addresses that this process depends on: the cluster's head and the raylet of its own node."""
    import ray

    context = ray.get_runtime_context()
    mine = [node for node in ray.nodes() if node["NodeID"] == context.get_node_id()]
    raylets = ((node["NodeManagerAddress"], node["NodeManagerPort"]) for node in mine)
    return _host_port(context.gcs_address), *raylets


class _Watch(threading.Thread):
    """Ends this process's work when the cluster is lost.

    Ray itself waits for ever for a lost raylet, and aborts the process a minute after its head is lost.
    """

    def __init__(self, address: str | None, endpoints: tuple[Endpoint, ...]) -> None:
        super().__init__(daemon=True, name="watch-cluster")
        self.address, self.endpoints = address, endpoints
        self.over, self.lost, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.start()

    @property
    def line(self) -> str:
        """The error line."""
        which = "that was started here" if self.address is None else f"at {self.address}"
        return f"the Ray cluster {which} was lost; run the same command again, trials go on at their last checkpoints"

    def run(self) -> None:
        """Interrupt the main thread when nothing has answered for some time; end the process if that does not help."""
        patience = LOST_S if self.address is None else LOST_ELSEWHERE_S
        answered = time.monotonic()
        while not self.over.wait(patience / 4):
            if all(map(_answers, self.endpoints)):
                answered = time.monotonic()
            elif time.monotonic() - answered > patience:
                self.lost.set()
                os.kill(os.getpid(), signal.SIGTERM)
                break
        if self.lost.is_set() and not self.ended.wait(LEAVE_S):
            end_children()
            print(f"error: {self.line}", file=sys.stderr, flush=True)
            os._exit(USER_ERROR)

    def finds_lost(self) -> bool:
        """Whether the cluster is gone: Ray's exceptions may come before the patience is over."""
        if not self.lost.is_set() and not all(map(_answers, self.endpoints)):
            self.lost.set()
        return self.lost.is_set()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Stop watching; the end of the block must come in time where the cluster is lost."""
        self.over.set()
        try:
            yield
        finally:
            self.ended.set()


def _answers(endpoint: Endpoint) -> bool:
    try:
        socket.create_connection(endpoint, timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


@functools.cache  # a worker runs several tasks
def end_with_raylet() -> None:
    """End this process, a Ray worker, as soon as the raylet that started it is gone.

    Ray lets a busy worker go on and starts its task again elsewhere: two processes would train the same trial. Call it
    before any import: once the raylet is gone, the parent is another process.
    """
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True, name="follow-raylet").start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(FOLLOW_EVERY_S)
    os._exit(1)


def _probe(address: str, endpoint: Endpoint) -> None:
    """Try a TCP connection first: Ray tries a dead address for a minute."""
    try:
        socket.create_connection(endpoint, timeout=CONNECT_S).close()
    except OSError as error:
        raise _unreachable(address, error.strerror or str(error)) from None


def _host_port(address: str) -> Endpoint:
    found = ADDRESS.fullmatch(address)
    try:
        host, port = (found["host"].strip("[]"), int(found["port"])) if found else ("", 0)
        host.encode("idna")  # as a connection would, with a traceback for "head..cluster"
    except ValueError:
        port = 0
    if not 0 < port < 2**16:
        raise UserError(f"RAY_ADDRESS is {brief(address, 200)}; expected host:port, auto, or nothing")
    return host, port


def _unreachable(address: str, why: str) -> UserError:
    expected = "expected a running Ray cluster, or unset it"
    return UserError(f"RAY_ADDRESS is {brief(address, 200)}, which can't be reached ({why}); {expected}")
