"""One trial on several workers: Ray Train places them, Lightning's DDP averages their gradients.

gloo on CPUs, NCCL on GPUs. A restarted attempt goes on from the trial's own checkpoint in the store, which all nodes
share; Ray Train keeps none.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil

from pipelines.cluster import connection, failures, nodes, readiness
from pipelines.cluster.placement import Need
from pipelines.command.errors import AdvisedError, UserError
from pipelines.command.progress import becomes
from pipelines.training.spec import Spec

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

    from pipelines.training.checkpoint import Worker

NOTICED_S = 30.0  # until Ray takes a silent node for dead
NETWORK = ("GLOO_", "NCCL_")  # variables that workers get from the driver
SETTINGS = (*NETWORK, "RAY_TRAIN_")
Training = Callable[["Spec", "Worker"], None]  # the work of each worker


def _settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}


@dataclass(frozen=True)
class Attempt:
    """One attempt at ``training`` of ``spec`` to its end, on so many workers, each with ``need``.

    A Ray task on this node waits for Ray Train. In this process's main thread, Ray Train would handle Ctrl-C itself,
    slowly and with status 0; in another thread it would still use Ray when Ctrl-C shuts Ray down, which ends a process
    with status 1 and without a word.
    """

    spec: Spec
    cluster: connection.Cluster
    need: Need
    workers: int
    training: Training
    settings: Mapping[str, str] = field(default_factory=_settings)  # of the driver's environment

    def begin(self) -> Any:
        """Begin, and return the task."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(nodes.own(), soft=False)
        # A process of its own: Ray Train leaves behind a handler of Ctrl-C, which keeps its controller.
        remote = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(_fit)
        return remote.options(scheduling_strategy=here, name=self.spec.name).remote(self)

    def error(self, task: Any) -> Exception | None:
        """The error of the ended ``task``; None without one.

        A worker's UserError, one of ``failures``' errors where workers or nodes are lost or taken away, or a bug.
        Raises UserError where no other trial may ever find a place.
        """
        import ray

        try:
            ray.get(task)
        except ray.exceptions.RayTaskError as error:
            return _failure(self.spec, list(_causes(error.cause))) or error
        except ray.exceptions.RayError as error:
            lost = failures.lost_worker(self.spec.name, error)
            if self.cluster.address is None:  # without the cleaner, the CPUs of its workers stay reserved
                raise failures.given_up(lost) from None
            return lost
        return None


def _failure(spec: Spec, causes: Sequence[BaseException]) -> UserError | None:
    """The error of an ended attempt, in a line; None for a bug, which would show again."""
    from ray.exceptions import RayError, RayTaskError

    for cause in causes:
        if isinstance(cause, UserError):
            kept = isinstance(cause, AdvisedError | failures.LostError)
            failure = type(cause)(*cause.args) if kept else UserError(str(cause))
            failure.status = cause.status
            return failure
    lost = [cause for cause in causes if isinstance(cause, RayError) and not isinstance(cause, RayTaskError)]
    if lost:
        return failures.lost_worker(spec.name, *lost)
    # Where a worker is lost, the others fail in a collective operation, perhaps before Ray notices: a RuntimeError.
    raised = (cause for cause in causes if not isinstance(cause, RayTaskError))
    broken = next((cause for cause in raised if isinstance(cause, (RuntimeError, OSError))), None)
    if broken is None:
        return None
    failure = failures.lost_worker(spec.name, broken)
    failure.__cause__ = broken  # perhaps a bug all the same
    return failure


def _fit(attempt: Attempt) -> None:
    """Runs in a Ray worker process; raises the errors of workers, or one of ``failures``' for a node to blame."""
    connection.end_with_raylet()
    os.environ.update(attempt.settings)
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    before = {node.id for node in connection.living()}
    spec, cluster, trainer = attempt.spec, attempt.cluster, _trainer(attempt)
    try:
        trainer.fit()
    except (TrainingFailedError, RayError) as error:
        failure = _failure(spec, list(_causes(error)))
        lost = isinstance(failure, failures.LostWorkerError)
        if (lost or failure is None) and (unfit := readiness.latecomers_fault(cluster)):
            raise unfit from None  # no worker process can begin where the project is missing
        # The workers that a node leaves behind fail long before Ray takes the node for dead.
        if lost and cluster.address and becomes(partial(_gone, before), within_s=NOTICED_S, every_s=1.0):
            raise failures.LostError(f"{spec.name}: a node is gone") from None
        raise  # as it is: on its way to the driver, an error of ours would lose its cause, perhaps a bug
    finally:
        shutil.rmtree(spec.store / "ray" / str(trainer.run_config.name), ignore_errors=True)


def _gone(before: set[str]) -> bool:
    """Whether one of these nodes is gone."""
    return not before <= {node.id for node in connection.living()}


def _trainer(attempt: Attempt) -> TorchTrainer:
    """Ray Train, which must repeat nothing: it would also repeat a damaged checkpoint, for minutes."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    spec, need = attempt.spec, attempt.need
    trainer = TorchTrainer(
        _train_rank,
        train_loop_config={"training": attempt.training, "spec": spec, "question": attempt.cluster.question},
        scaling_config=ScalingConfig(
            num_workers=attempt.workers,
            use_gpu=bool(need.gpus),
            resources_per_worker=need.bundle,
            **attempt.cluster.placing,
        ),
        run_config=RunConfig(
            # A run of a new name: Ray Train would take a finished one of the same name for the result.
            name=f"{spec.key}-{time.time_ns()}",
            storage_path=str(spec.store / "ray"),
            worker_runtime_env={"env_vars": _variables(attempt.settings)},
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=failures.RETRIES),
        ),
    )
    if attempt.cluster.address is None:
        _leave_out_cleaner(trainer)
    return trainer


def _variables(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of each worker process: the driver's network settings and a hook that runs first.

    Ray takes ``worker_process_setup_hook`` only from ``ray.init`` and silently ignores a ``RunConfig``'s.
    """
    from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

    network = {name: value for name, value in settings.items() if name.startswith(NETWORK)}
    return network | {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: f"{__name__}.{prepare_worker.__name__}"}


def _leave_out_cleaner(trainer: Any) -> None:
    """Remove the cleaner of a dead controller's reservations, which asks the dashboard for the controller.

    A cluster that was started here has no dashboard: the cleaner would wait ten seconds for it after each trial.
    """
    usual = trainer._create_default_callbacks

    def others() -> list[Any]:
        return [callback for callback in usual() if type(callback).__name__ != "PlacementGroupCleanerCallback"]

    trainer._create_default_callbacks = others


_preempted_by: int | None = None  # in a worker process: the signal by which it is preempted


def prepare_worker() -> None:
    """Runs in the main thread of each worker process; the trial trains in another, which can't handle signals."""
    signal.signal(signal.SIGUSR1, _preempt)
    interface = _interface()
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if interface is not None:
            os.environ.setdefault(name, interface)


def _interface() -> str | None:
    """The network interface with this node's address in Ray; None where none has it.

    Gloo itself offers the address of the host's name, which may be 127.0.1.1, and silently tries again.
    """
    import ray

    own = ray.get_runtime_context().get_node_id()
    address = next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == own)
    found = psutil.net_if_addrs().items()
    return next((name for name, ends in found if any(end.address == address for end in ends)), None)


def _preempt(number: int, frame: FrameType | None) -> None:
    global _preempted_by
    _preempted_by = number


def _train_rank(config: dict[str, Any]) -> None:
    """One worker of a distributed trial; runs in a Ray Train worker process."""
    connection.end_with_raylet()
    readiness.join(config["question"])
    import ray.train
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, prepare_trainer

    from pipelines.training.checkpoint import Worker

    context = ray.train.get_context()
    worker = Worker(
        rank=context.get_world_rank(),
        workers=context.get_world_size(),
        trainer={"strategy": RayDDPStrategy(), "plugins": [RayLightningEnvironment()], "devices": "auto"},
        prepare=prepare_trainer,
        preempted=lambda: _preempted_by,
    )
    config["training"](config["spec"], worker)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception of Ray's, then the exceptions of its workers and its causes."""
    while error is not None:
        yield error
        for failure in (getattr(error, "worker_failures", None) or {}).values():
            yield from _causes(failure)
        below = (getattr(error, name, None) for name in ("controller_failure", "health_check_failure", "cause"))
        error = next((cause for cause in below if isinstance(cause, BaseException)), error.__cause__)
