"""Errors of work that lost its worker process or its node, and how often a trial is tried again."""

from __future__ import annotations

from collections import Counter

from pipelines.command.errors import PREEMPTED, HeldError, UserError, brief

RETRIES = 3  # of a trial whose worker process died; it goes on at its checkpoint
NODE_DIED = "node has died"  # in Ray's message about an actor
NODES_LOST = 20  # until the trial itself is suspected


class LostError(UserError):
    """Work ended with its node, and is not to blame."""


class UnfitError(LostError):
    """A node that joined later lacks something, or was lost before its work began: others get the work."""

    def __init__(self, line: str, nodes: tuple[str, ...]) -> None:
        super().__init__(line, nodes)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The node's id; several ids where only the machine is known."""
        found: tuple[str, ...] = self.args[1]
        return found


class Losses:
    """How often each trial lost its worker, and how often its node: a trial that keeps ending either is given up."""

    def __init__(self) -> None:
        self._lost: Counter[tuple[str, bool]] = Counter()

    def forgives(self, trial: str, error: UserError) -> bool:
        """Whether ``error`` is a loss, and not one too many: the trial goes on elsewhere."""
        gone = isinstance(error, (LostError, HeldError)) or error.status == PREEMPTED
        if not gone and not isinstance(error, LostWorkerError):
            return False
        self._lost[trial, gone] += 1
        return self._lost[trial, gone] <= (NODES_LOST if gone else RETRIES)


class LostWorkerError(UserError):
    """A worker process ended in the middle of its work, which may be the reason."""


def lost_worker(what: str, *errors: BaseException) -> UserError:
    """The error of a trial, or of a step before it, that lost its worker process or node."""
    import ray

    gone = (ray.exceptions.NodeDiedError, ray.exceptions.ActorUnschedulableError, ray.exceptions.TaskUnschedulableError)
    for error in errors:
        if isinstance(error, gone) or NODE_DIED in str(error):
            return LostError(f"{what}: its node is gone")
    if isinstance(errors[0], ray.exceptions.OutOfMemoryError):  # its own text is a page
        why = "out of memory: fewer trials run at once where each asks for more resources.cpus"
    else:
        why = brief(" ".join(str(errors[0]).split()), 200) or type(errors[0]).__name__
    return LostWorkerError(f"{what}: its worker was lost ({why})")


def given_up(error: Exception) -> Exception:
    """The error to end with after a loss that is not forgiven: its cause, where it has one, may be a bug."""
    if isinstance(error.__cause__, Exception):
        return error.__cause__
    if isinstance(error, (LostError, LostWorkerError)):
        return UserError(f"{error}; run the same command again, it goes on at the last checkpoint")
    return error
