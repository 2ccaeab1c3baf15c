"""The MLflow side of tracking: sends what a server lacks, and remembers what it has got.

Runs in a process of its own (see ``pipelines.tracking``), so it may hang or be killed at any moment. Whatever is sent
twice lands where it landed before: a run is found again by its tag, a metric has the time of its file, a param its
value, an artifact its path.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pipelines import store, tracking_content, tracking_spool, tracking_views
from pipelines.tracking_content import IDENTITY, Part, Point, Record
from pipelines.tracking_spool import Spool, digest

PROBE_S = 2.0  # what a server may take to say that it is there
REQUEST_S = 5  # what it may take over any later answer
BATCH = 900  # metrics a call; MLflow takes 1000 metrics, params and tags together
ENVIRONMENT = {  # a user's own settings stand
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_S),
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": str(2 * REQUEST_S),
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_TRUNCATE_LONG_VALUES": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "OMP_NUM_THREADS": "1",
}


class AwayError(Exception):
    """The server does not answer, or not in time; what is not sent stays in the spool."""


def tracking_uri(project: Path) -> str:
    """``$MLFLOW_TRACKING_URI``, or the sqlite store in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project.absolute() / 'mlflow.db'}"


def safe(uri: str) -> str:
    """The URI without user and password, fit to be printed."""
    if uri.startswith("sqlite:"):
        return uri
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def is_remote(uri: str) -> bool:
    """Whether the URI names an HTTP server."""
    return uri.startswith(("http://", "https://"))


def sqlite_file(uri: str) -> Path | None:
    """The file behind an sqlite URI."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@dataclass(kw_only=True)
class Cursor:
    """What the server at one URI has got; ``store/tracking/<hash of the URI>.json``."""

    path: Path
    uri: str
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)  # identity: {"run_id", "sent": {part: mark}}
    views: dict[str, str] = field(default_factory=dict)  # experiment: digest of its views

    @classmethod
    def of(cls, spool: Spool, uri: str) -> Cursor:
        """The cursor of **uri**, empty when there is none or when its sqlite file is gone."""
        path = spool.store / "tracking" / f"{digest(safe(uri))}.json"
        cursor, file = cls(path=path, uri=safe(uri)), sqlite_file(uri)
        known = tracking_spool.load(path)
        if known is not None and (file is None or file.exists()):
            cursor.runs, cursor.views = known.get("runs", {}), known.get("views", {})
        return cursor

    def save(self) -> None:
        """Write it, in one step."""
        store.write_json(self.path, {"uri": self.uri, "runs": self.runs, "views": self.views})

    def sent(self, record: Record) -> Mapping[str, str]:
        """The marks of the record's parts that have arrived."""
        found: Mapping[str, str] = self.runs.get(record.identity, {}).get("sent", {})
        return found

    def lacks(self, record: Record) -> bool:
        """Whether there is something to send."""
        sent = self.sent(record)
        return any(not arrived(name, mark, sent.get(name)) for name, mark in record.marks.items())


def arrived(name: str, mark: str, sent: str | None) -> bool:
    """Whether a part is there in this state; of a curve the server may have more than a resumed trial."""
    if name == "curve":
        return int(sent or 0) >= int(mark)
    return sent == mark


def pending(spool: Spool, uri: str) -> list[Record]:
    """What the server at **uri** lacks, as far as is remembered here; nothing is asked of it."""
    cursor = Cursor.of(spool, uri)
    return [record for record in tracking_content.records(tracking_spool.read(spool)[0]) if cursor.lacks(record)]


@contextmanager
def alone(cursor: Cursor) -> Iterator[bool]:
    """Whether this process is the only one sending to that server; the kernel lets go when it dies."""
    path = cursor.path.with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


class Sender:
    """Sends records to one server; keeps the connection and what it learned about the server between rounds."""

    def __init__(self, spool: Spool, uri: str) -> None:
        self.spool, self.uri = spool, uri
        self.client: Any = None
        self.experiments: dict[str, str] = {}  # name: id
        self.refused: dict[str, str] = {}  # identity: why, in this round
        self.sent: list[str] = []  # identities, in this round

    def round(self, *, verify: bool = False, told: Callable[[str], None] = lambda line: None) -> bool:
        """
        Send what is lacking; False when another process is at it. Raises AwayError.

        **verify** asks the server even when by the cursor it has got everything. **told** hears the name of each run.
        """
        self.sent, self.refused = [], {}
        with alone(Cursor.of(self.spool, self.uri)) as mine:
            if mine:
                cursor = Cursor.of(self.spool, self.uri)
                everything = tracking_content.records(tracking_spool.read(self.spool)[0])
                if everything and (verify or any(map(cursor.lacks, everything))):
                    try:
                        self._connect()
                        for record in self._lacking(cursor, everything):
                            self._send(cursor, record, told)
                    except AwayError:
                        self.experiments.clear()  # it may come back as another server
                        raise
            return mine

    def _connect(self) -> None:
        if is_remote(self.uri):
            probe(self.uri)  # every round: a dead server is found out in two seconds and without importing MLflow
        if self.client is None:
            self.client = connect(self.uri)

    def _lacking(self, cursor: Cursor, everything: list[Record]) -> list[Record]:
        """Experiments are made or found, and the cursor is set right, before the first run is."""
        for name in dict.fromkeys(record.experiment for record in everything):
            if name not in self.experiments:
                with answers(self.uri):
                    self.experiments[name] = self._experiment(name)
                    self._recall(cursor, self.experiments[name], [r for r in everything if r.experiment == name])
            self._dress(cursor, name)
        return [record for record in everything if cursor.lacks(record)]

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            file = sqlite_file(self.uri)
            place = None if file is None else (file.absolute().parent / "mlartifacts" / name).as_uri()
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return str(self.client.create_experiment(name, artifact_location=place, tags=tags))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _recall(self, cursor: Cursor, experiment: str, mine: list[Record]) -> None:
        """
        Compare the cursor with the runs that the server has: the server is right.

        A run made just before a crash is taken up again. A run whose server lost it (a new database at the old
        address) is sent anew. A run that somebody deleted in MLflow stays deleted.
        """
        from mlflow.entities import ViewType

        there: dict[str, Any] = {}
        token = None
        while True:
            page = self.client.search_runs([experiment], "", ViewType.ALL, max_results=500, page_token=token)
            for run in page:
                if IDENTITY in run.data.tags:
                    there.setdefault(run.data.tags[IDENTITY], run.info)
            token = page.token
            if not token:
                break
        for record in mine:
            entry, info = cursor.runs.get(record.identity), there.get(record.identity)
            if info is None:
                cursor.runs.pop(record.identity, None)
            elif info.lifecycle_stage == "deleted":
                cursor.runs[record.identity] = {"run_id": info.run_id, "sent": record.marks, "deleted": True}
            elif entry is None or entry["run_id"] != info.run_id or entry.get("deleted"):
                cursor.runs[record.identity] = {"run_id": info.run_id, "sent": {}}
        cursor.save()

    def _dress(self, cursor: Cursor, name: str) -> None:
        """Give the experiment its description and the views that ``pipelines.dashboard`` links to."""
        tags = tracking_views.experiment_tags(name)
        if cursor.views.get(name) != digest(tags):
            with answers(self.uri):
                for key, value in tags.items():
                    self.client.set_experiment_tag(self.experiments[name], key, value)
            cursor.views[name] = digest(tags)
            cursor.save()

    def _send(self, cursor: Cursor, record: Record, told: Callable[[str], None]) -> None:
        try:
            with answers(self.uri):
                self._deliver(cursor, record)
        except RefusedError as error:
            self.refused[record.identity] = str(error)
            self.experiments.clear()  # look again in the next round: somebody may have changed the server
        else:
            self.sent.append(record.identity)
            told(record.name)

    def _deliver(self, cursor: Cursor, record: Record) -> None:
        entry = cursor.runs.get(record.identity)
        if entry is None:
            entry = cursor.runs[record.identity] = {"run_id": self._create(cursor, record), "sent": {}}
            cursor.save()
        run_id, sent = entry["run_id"], entry["sent"]
        parts = [part for part in record.parts if not arrived(part.name, part.mark, sent.get(part.name))]
        if parts:
            self._log(run_id, record, parts, int(sent.get("curve") or 0))
        if sent.get("status") != record.status or record.status == "FINISHED":
            self._end(run_id, record)
        entry["sent"] = {**sent, **{part.name: part.mark for part in parts}, "status": record.status}
        cursor.save()

    def _create(self, cursor: Cursor, record: Record) -> str:
        from mlflow.entities import Dataset as DatasetEntity
        from mlflow.entities import DatasetInput, InputTag

        tags = {IDENTITY: record.identity, **record.tags, "mlflow.user": user()}
        if record.parent is not None and record.parent in cursor.runs:
            tags["mlflow.parentRunId"] = cursor.runs[record.parent]["run_id"]
        experiment = self.experiments[record.experiment]
        run = self.client.create_run(experiment, int(1000 * record.started), tags, record.name)
        if record.dataset_digest is not None:
            dataset = DatasetEntity(
                name=record.experiment,
                digest=record.dataset_digest[:16],
                source_type="local",
                source=f"datasets/{record.experiment}",
            )
            used = DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "train")])
            self.client.log_inputs(run.info.run_id, datasets=[used])
        return str(run.info.run_id)

    def _log(self, run_id: str, record: Record, parts: list[Part], epochs: int) -> None:
        """Send several parts in as few calls as MLflow allows; of a curve only the epochs after **epochs**."""
        from mlflow.entities import Metric, Param, RunTag

        points: list[Point] = []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        for part in parts:
            points += [p for p in part.points if part.name != "curve" or p.step > epochs]
            params |= part.params
            tags |= part.tags
        metrics = [Metric(p.key, p.value, int(1000 * p.time), p.step) for p in points]
        first, rest = metrics[: BATCH - 200], metrics[BATCH - 200 :]
        settings = [Param(key, value) for key, value in params.items()]
        self.client.log_batch(run_id, first, settings[:100], [RunTag(key, value) for key, value in tags.items()])
        for start in range(100, len(settings), 100):
            self.client.log_batch(run_id, params=settings[start : start + 100])
        for start in range(0, len(rest), BATCH):
            self.client.log_batch(run_id, rest[start : start + BATCH])
        files = {path: content for part in parts for path, content in part.files().items()}
        if files:
            with tempfile.TemporaryDirectory() as folder:
                for path, content in files.items():
                    target = Path(folder) / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content)
                self.client.log_artifacts(run_id, folder)

    def _end(self, run_id: str, record: Record) -> None:
        if record.ended is None:
            self.client.update_run(run_id, record.status)
        else:
            self.client.set_terminated(run_id, record.status, int(1000 * record.ended))


class RefusedError(Exception):
    """The server answered, and does not want this."""


@contextmanager
def answers(uri: str) -> Iterator[None]:
    """Turn what MLflow and requests raise into AwayError (try later) or RefusedError (the server said no)."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        kind = RefusedError if error.get_http_status_code() < 500 else AwayError
        raise kind(clean(str(error), uri)) from error
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 500
        kind = RefusedError if status < 500 else AwayError
        raise kind(clean(str(error), uri)) from error
    except (requests.RequestException, OSError) as error:
        raise AwayError(clean(str(error), uri)) from error


def clean(message: str, uri: str) -> str:
    """The first line of a message, without what is secret in the URI."""
    lines = message.strip().splitlines() or ["no reason given"]
    password = "" if uri.startswith("sqlite:") else urlsplit(uri).password or ""
    line = lines[0].replace(uri, safe(uri))
    return (line.replace(password, "***") if password else line)[:200]


def probe(uri: str) -> None:
    """Raise AwayError unless the HTTP server at **uri** answers, with whatever short of a server's error, in time."""
    import requests

    try:
        status = requests.get(f"{uri.rstrip('/')}/health", timeout=PROBE_S).status_code
    except requests.RequestException as error:
        raise AwayError(clean(f"{type(error).__name__}: {error}", uri)) from None
    if status >= 500:
        raise AwayError(f"it answers {status}")


def connect(uri: str) -> Any:
    """A client for **uri**; the sqlite store is made when it is not there. Raises AwayError."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow.tracking import MlflowClient

    file = sqlite_file(uri)
    try:
        if file is not None and not file.exists():
            _create_sqlite(file)
        return MlflowClient(uri)
    except Exception as error:
        raise AwayError(clean(f"{type(error).__name__}: {error}", uri)) from error


def _create_sqlite(file: Path) -> None:
    """Under a temporary name: this takes seconds, and half a schema under the final name would never mend."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with store.replacing(file.absolute()) as temporary:
        made = SqlAlchemyStore(f"sqlite:///{temporary}", str(file.absolute().parent / "mlartifacts"))
        made.engine.dispose()


def user() -> str:
    """Who runs this, for MLflow's column of that name."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
