"""A Ray job: submit it, follow its log, and end with it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipelines.cluster import local
from pipelines.command.errors import UserError, reason
from pipelines.command.progress import becomes, say

AGAIN_S = 1.0  # between looks at a job
QUIET_S = 30.0  # a log that is silent for so long may have lost its connection
STOPPED_S = 30.0  # for a job to end when it is asked to
LOST = 60  # failed looks in a row until the cluster counts as lost


def run(address: str, entrypoint: str, what: Mapping[str, str], environment: Mapping[str, Any], *, stop: bool) -> None:
    """Run ``entrypoint`` as a job to its end, or follow a running job of the same ``what``.

    With ``stop``, Ctrl-C also ends the job. Raises UserError for an unreachable cluster and for a failed job.
    """
    with _understood(address):
        client = _client(address)
        job = next((found.submission_id for found in client.list_jobs() if _same(found, what)), None)
        if job is None:
            job = _submit(client, entrypoint=entrypoint, runtime_env=dict(environment), metadata=dict(what))
            say(f"job {job} is submitted to {address}")
        else:
            say(f"job {job} is at work on it already; this is its log")
    try:
        _follow(client, address, job)
    except KeyboardInterrupt:
        print()
        if stop:
            _stop(client, job)
        else:
            say(f"job {job} goes on; the same command follows it again, and `ray job stop {job}` ends it")
        raise


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)  # each has a level of its own
    os.environ.pop("RAY_ADDRESS", None)  # Ray would prefer it
    return JobSubmissionClient(address)


def _submit(client: Any, **job: Any) -> str:
    """The new job's id; a cluster that has just started has no agent for it yet."""
    for _ in range(LOST):
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
        time.sleep(AGAIN_S)
    return str(client.submit_job(**job))


@contextmanager
def _understood(address: str) -> Iterator[None]:
    """UserError for errors of Ray and its HTTP clients where a cluster can't be asked."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise UserError(f"--address is {address}, a cluster with another token; {local.TOKEN}") from None
    except (OSError, RuntimeError, ValueError) as error:
        expected = "expected the address of a Ray dashboard, such as http://127.0.0.1:8265"
        raise UserError(f"--address is {address}, which can't be asked ({reason(error)}); {expected}") from None


def _same(job: Any, what: Mapping[str, str]) -> bool:
    return job.submission_id is not None and not job.status.is_terminal() and job.metadata == what


def _follow(client: Any, address: str, job: str) -> None:
    """Print the job's log to its end; UserError where it failed or the cluster was lost meanwhile."""
    shown, lost = 0, 0
    while True:
        shown = asyncio.run(_show(client, job, shown))
        try:
            found = client.get_job_info(job)
            lost = 0
        except (OSError, RuntimeError) as error:
            lost += 1
            if lost > LOST:
                raise UserError(f"{address} does not answer any more ({reason(error)}); run this again") from None
        else:
            if found.status.is_terminal():
                break
        time.sleep(AGAIN_S)
    if str(found.status) != "SUCCEEDED":
        again = "the same command goes on at the checkpoints"
        raise UserError(f"job {job} ended as {str(found.status).lower()}: {_why(found)}; {again}")


def _why(found: Any) -> str:
    """A job's message, without the end of its log."""
    return " ".join(re.split("last available logs", str(found.message), flags=re.IGNORECASE)[0].split()).rstrip(",. ")


async def _show(client: Any, job: str, shown: int) -> int:
    """Print what is new in the log after ``shown`` characters; their number when the connection ends."""
    from aiohttp import ClientError

    seen, parts = 0, client.tail_job_logs(job)
    try:
        while True:
            part = await asyncio.wait_for(anext(parts), QUIET_S)
            print(part[max(0, shown - seen) :], end="", flush=True)
            seen += len(part)
    except (ClientError, OSError, RuntimeError, StopAsyncIteration):  # a TimeoutError is an OSError
        return max(shown, seen)  # the caller asks again


def _stop(client: Any, job: str) -> None:
    client.stop_job(job)
    becomes(lambda: bool(client.get_job_status(job).is_terminal()), within_s=STOPPED_S, every_s=AGAIN_S)
    say(f"job {job} is stopped")
