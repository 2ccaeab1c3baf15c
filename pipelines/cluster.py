"""Start or join Ray, and turn what a benchmark asks for into what the cluster has."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipelines import orphan
from pipelines.benchmarks import Benchmark
from pipelines.errors import UserError
from pipelines.spec import Spec

CONNECT_S = 5.0
RETRIES = 3  # of a trial whose worker process died; it goes on at its checkpoint
OBJECT_STORE_BYTES = 80 * 2**20  # trials pass files, not objects: the least that Ray takes, with room to spare


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A connected Ray cluster."""

    address: str | None  # None: started here, for this process alone
    cpus: int
    gpus: float
    nodes: int

    def __str__(self) -> str:
        where = "Ray started here" if self.address is None else f"Ray cluster at {self.address}"
        nodes = "" if self.nodes == 1 else f"{self.nodes} nodes, "
        return f"{where}: {nodes}{self.cpus} CPUs, {self.gpus:g} GPUs"

    def gpus_for(self, benchmark: Benchmark) -> float:
        """GPUs that one worker of the benchmark takes here: what it requires, or likes to have where there are any."""
        asked = benchmark.resources
        return asked.gpus or (asked.gpus_if_any if self.gpus else 0.0)

    def require(self, benchmark: Benchmark) -> None:
        """Raise UserError when the benchmark could never be placed here, where Ray would wait for ever."""
        asked, where = benchmark.resources, f"benchmarks.{benchmark.name}.resources"
        cpus, gpus = asked.cpus * asked.workers, self.gpus_for(benchmark) * asked.workers
        each = f"{asked.workers} workers of " if asked.workers > 1 else ""
        if cpus > self.cpus:
            raise UserError(f"{where}: {each}{asked.cpus} CPUs; expected at most the {self.cpus} of the cluster")
        if gpus > self.gpus:
            one = self.gpus_for(benchmark)
            raise UserError(f"{where}: {each}{one:g} GPUs; expected at most the {self.gpus:g} of the cluster")


@contextmanager
def connect() -> Iterator[Cluster]:
    """Join the cluster that ``RAY_ADDRESS`` names, or start one on this machine; leave or end it afterwards.

    Raises UserError when ``RAY_ADDRESS`` can't be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # Ray Train polls its workers every 2 s otherwise
    # A cluster may be busy for longer than the minute that Ray Train waits for its workers; what can't ever be placed
    # is refused before.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(24 * 3600))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A cluster of our own is guarded by Ray's token, as it should be; that needs no warning every time.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    import ray

    address = os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": False}
    if address is None:
        # An explicit "local": a bare init may join somebody else's cluster on this machine.
        ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **common)
    else:
        _probe(address)
        try:
            ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise _unreachable(address, " ".join(str(error).split())[:200] or type(error).__name__) from None
    orphan.end_on_sigterm()  # Ray has put a handler of its own in place, which aborts the process
    try:
        found = ray.cluster_resources()
        nodes = sum(1 for node in ray.nodes() if node["Alive"])
        yield Cluster(address=address, cpus=int(found.get("CPU", 0)), gpus=found.get("GPU", 0.0), nodes=nodes)
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """A TCP connection first: Ray itself tries an address that nobody answers for a minute."""
    if address in ("auto", "local"):
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise UserError(f"RAY_ADDRESS is {address}; expected host:port, ray://host:port, auto, or nothing")
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as error:
        raise _unreachable(address, error.strerror or str(error)) from None


def _unreachable(address: str, reason: str) -> UserError:
    return UserError(
        f"RAY_ADDRESS is {address}, which can't be reached ({reason}); expected a running Ray cluster, or unset it"
    )


def train_distributed(spec: Spec, gpus: float) -> None:
    """Train one trial on several workers: Ray Train places them, Lightning's DDP averages their gradients.

    gloo on CPUs, NCCL on GPUs. The trial's own checkpoint in the store (shared storage, where there are several nodes)
    is what a restarted attempt goes on from; Ray Train keeps none.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    asked = spec.benchmark.resources
    each: dict[str, float] = {"CPU": asked.cpus} | ({"GPU": gpus} if gpus else {})
    trainer = TorchTrainer(
        _train_rank,
        train_loop_config={"spec": spec},
        scaling_config=ScalingConfig(num_workers=asked.workers, use_gpu=bool(gpus), resources_per_worker=each),
        run_config=RunConfig(
            # A finished run of the same name would return at once, and the store knows better.
            name=f"{spec.key}-{time.time_ns()}",
            storage_path=str(spec.store / "ray"),
            failure_config=FailureConfig(max_failures=RETRIES, controller_failure_limit=RETRIES),
        ),
    )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit:  # Ray Train's own answer to Ctrl-C, with status 0
        raise KeyboardInterrupt from None
    except Exception as error:
        cause = _user_error(error)
        if cause is None:
            raise
        raise UserError(cause) from None
    finally:
        signal.signal(signal.SIGINT, interrupt)
        shutil.rmtree(spec.store / "ray" / str(trainer.run_config.name), ignore_errors=True)


def _train_rank(config: dict[str, Any]) -> None:
    """One worker of a distributed trial; runs in a Ray Train worker process."""
    import ray.train
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, prepare_trainer

    from pipelines import trial
    from pipelines.journal import Worker

    context = ray.train.get_context()
    settings = {"strategy": RayDDPStrategy(), "plugins": [RayLightningEnvironment()], "devices": "auto"}
    worker = Worker(
        rank=context.get_world_rank(), workers=context.get_world_size(), trainer=settings, prepare=prepare_trainer
    )
    trial.run(config["spec"], worker)


def _user_error(error: BaseException | None) -> str | None:
    """The user's line inside what Ray Train wraps around a worker's exception."""
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        failures = getattr(error, "worker_failures", None) or {}
        for failure in failures.values():
            found = _user_error(failure)
            if found is not None:
                return found
        error = getattr(error, "cause", None) or error.__cause__
    return None
