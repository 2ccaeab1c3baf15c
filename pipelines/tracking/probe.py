"""Talk to a tracking server that may be dead, hang, drip bytes, want a login or be something else: it has ANSWER_S."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from io import BytesIO
from typing import Any, TypeVar

from pipelines.command.errors import UserError
from pipelines.tracking import database
from pipelines.tracking.addresses import clean, is_remote

# For one answer. A dead server costs a stage 5 s at most: this, and the time to start a process and import MLflow.
ANSWER_S = 2.5
PATIENT_S = 30.0  # in commands that only talk to a server
TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"  # set by a user, and followed by MLflow too
METRICS_A_REQUEST = 1000  # of a batch, by MLflow's client
BYTES_A_SECOND = 100_000  # adds time for an upload over a slow line
ASKED = "/api/2.0/mlflow/experiments/search?max_results=1"  # only MLflow answers it, unlike /health
LONGEST_ANSWER = 10_000_000  # bytes of the answer: one experiment and its tags
LOCAL = ("localhost", "127.0.0.1", "::1")
SET_LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
ENVIRONMENT = {  # a user's own settings win
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "60",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
OTHER_LOGIN = "expected the login of a user who may edit there"
LATER = (408, 429)  # statuses below 500 that mean try again
Answer = TypeVar("Answer")


class AwayError(Exception):
    """The server does not answer in time; the rest stays in the spool. The text is a predicate."""


class RefusedError(Exception):
    """The server refused; the text is the reason."""


class LoginError(RefusedError):
    """The server wants a login, or another login; the text is a predicate."""


def patience() -> float:
    """Seconds for one answer; a user may give MLflow more."""
    try:
        return float(os.environ.get(TIMEOUT_VARIABLE, ANSWER_S))
    except ValueError:
        return ANSWER_S


def be_patient() -> None:
    """Let this process and its children wait longer for each answer: a person waits, and no stage."""
    os.environ.setdefault(TIMEOUT_VARIABLE, f"{PATIENT_S:g}")


def within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """Return or raise the outcome of **call**, or AwayError after **seconds**.

    The timeout of requests counts from byte to byte and excludes the look-up of the name. A hanging thread stays
    behind and ends with the process.
    """
    future: Future[Answer] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise AwayError(_late(seconds))
    return future.result()


def _late(seconds: float) -> str:
    return f"gives no answer within {round(seconds, 1):g} s"


class Bounded:
    """MLflow's client; each call returns in time or raises AwayError."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def bounded(*args: Any, **kwargs: Any) -> Any:
            requests = 1 + len(args[1]) // METRICS_A_REQUEST if name == "log_batch" else 1
            seconds = requests * patience() + _upload(name, args) / BYTES_A_SECOND
            return within(seconds, lambda: call(*args, **kwargs))

        return bounded


def _upload(name: str, args: Sequence[Any]) -> int:
    """The bytes that a call uploads; a picture goes as a PNG."""
    if name == "log_image":
        args[1].save(picture := BytesIO(), "PNG")
        return picture.tell()
    return os.path.getsize(args[1]) if name == "log_artifact" else 0


def reach_local() -> None:
    """Let this process and its children use no proxy for servers on this machine."""
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in named.split(",") if host.strip()]
    if hosts != ["*"]:
        os.environ["no_proxy"] = ",".join(dict.fromkeys([*hosts, *LOCAL]))


def probe(uri: str) -> None:
    """Raise AwayError unless MLflow answers at **uri** in time; asking for a login is an answer.

    MLflow's own client takes two seconds to be imported, and a dead server may cost 5 s: its silence takes ANSWER_S.
    """
    reach_local()
    status, body = within(patience(), lambda: _ask(uri))
    if status >= 500 or status in LATER:
        raise AwayError(f"answers with status {status}")
    try:
        mlflow = status in (401, 403) or isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        mlflow = False
    if not mlflow:
        raise AwayError(f"is away (what answers there, with status {status}, is not MLflow)")


def _ask(uri: str) -> tuple[int, bytes]:
    """The status and the beginning of the answer. Raises AwayError."""
    import requests
    import urllib3

    trusted: bool | str = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        trusted = False
    identity = os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH") or None
    asked = uri.rstrip("/") + ASKED
    try:
        with requests.get(asked, timeout=patience(), verify=trusted, cert=identity, stream=True) as answer:
            return answer.status_code, answer.raw.read(LONGEST_ANSWER, decode_content=True)
    except Exception as error:  # an unknown host, a redirect to nowhere, a bad certificate
        raise AwayError(_lost(error, uri) or f"is away ({clean(str(error), uri)})") from None


@contextmanager
def answers(uri: str) -> Iterator[None]:
    """Turn errors of MLflow, requests and databases into AwayError (try later) or RefusedError (do not)."""
    try:
        yield
    except (AwayError, RefusedError, UserError):
        raise
    except Exception as error:
        raise _meaning(error, uri) from error


def _meaning(error: Exception, uri: str) -> AwayError | RefusedError:
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status: int | None = int(error.get_http_status_code())
    else:
        status = getattr(getattr(error, "response", None), "status_code", None)  # of an upload
    if status in (401, 403):
        body = re.search(r"Response body: '([^'<]{1,80})'", str(error))
        reply = f", {body[1]}" if body else ""
        words = f"wants a login (401; {SET_LOGIN})" if status == 401 else f"denies access (403{reply}; {OTHER_LOGIN})"
        return LoginError(clean(words, uri))
    if status is not None and status < 500 and status not in LATER:
        return RefusedError(clean(str(error), uri))
    fault = None if is_remote(uri) else database.reason(error)
    if fault is None and (lost := _lost(error, uri)):
        return AwayError(lost)
    if fault is not None or isinstance(error, MlflowException | OSError):
        return AwayError(f"can't be used ({clean(fault or str(error), uri)})")
    return RefusedError(clean(f"{type(error).__name__}: {error}", uri))


def _lost(error: Exception, uri: str) -> str | None:
    """The predicate of a server that gave no answer, by the error of requests behind **error**; None without one."""
    import requests

    for cause in database.chain(error):
        match cause:
            case requests.exceptions.RetryError():
                return "answers with errors of its own"
            case requests.Timeout():
                return _late(patience())
            case requests.exceptions.SSLError():
                why = re.search(r"\] ([^()]+) \(_ssl", str(cause))
                return f"is away (TLS fails{': ' + clean(why[1], uri) if why else ''})"
            case requests.ConnectionError():
                return "is away (no connection)"
            case requests.RequestException():
                return f"is away ({clean(str(cause), uri)})"
    return None
