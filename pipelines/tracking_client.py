"""The MLflow side of tracking: sends what a server lacks, and remembers what it has got.

Runs in a process of its own (see ``pipelines.tracking``), so it may hang or be killed at any moment. Whatever is sent
twice lands where it landed before: a run is found again by its tag, a metric has the time of its file, a param its
value, an artifact its path.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipelines import tracking_content, tracking_views
from pipelines.tracking_content import IDENTITY, Part, Point, Record
from pipelines.tracking_cursor import Cursor, alone, arrived, clean, is_remote, sqlite_file
from pipelines.tracking_spool import DamagedError, Spool

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
}


class AwayError(Exception):
    """The server does not answer, or not in time; what is not sent stays in the spool."""


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
                everything = tracking_content.gather(self.spool)[0]
                if everything and (verify or any(map(cursor.lacks, everything))):
                    try:
                        self._connect()
                        for record in self._lacking(cursor, everything):
                            self._send(cursor, record, told)
                    except AwayError:
                        self.experiments.clear()  # it may come back as another server
                        raise
                    if self.refused:
                        self.experiments.clear()  # somebody may have changed the server: look again next time
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
                mine = [record for record in everything if record.experiment == name]
                try:
                    with answers(self.uri):
                        found = self._experiment(name)
                        self._recall(cursor, found, mine)
                except RefusedError as error:  # of this experiment alone: a dataset whose name the server won't have
                    self.refused |= {record.identity: f"{record.name}: {error}" for record in mine}
                else:
                    self.experiments[name] = found
        return [record for record in everything if record.identity not in self.refused and cursor.lacks(record)]

    def _experiment(self, name: str) -> str:
        """The id of the experiment, which is made when it is not there and has the views that the dashboard links."""
        file, views = sqlite_file(self.uri), tracking_views.experiment_views()
        place = None if file is None else file.absolute().parent / "mlartifacts" / name
        found = self.client.get_experiment_by_name(name)
        if found is None:
            where = None if place is None else place.as_uri()
            about = {"mlflow.note.content": tracking_views.description(name)}
            tags = {"mlflow.experimentKind": "custom_model_development", **about, **views}
            return str(self.client.create_experiment(name, artifact_location=where, tags=tags))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        was = Path(unquote(urlsplit(found.artifact_location).path))
        if place is not None and was != place and not was.parent.is_dir():  # MLflow keeps the absolute path
            raise AwayError(f"it was made elsewhere, with artifacts in {was.parent}; delete it and it is made anew")
        for key, value in views.items():
            if found.tags.get(key) != value:
                self.client.set_experiment_tag(found.experiment_id, key, value)
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

    def _send(self, cursor: Cursor, record: Record, told: Callable[[str], None]) -> None:
        try:
            with answers(self.uri):
                self._deliver(cursor, record)
        except AwayError:
            raise
        except Exception as error:  # of this run alone: the server says no, or a file behind it is damaged
            self.refused[record.identity] = clean(f"{record.name}: {error}", self.uri)
        else:
            self.sent.append(record.identity)
            told(record.name)

    def _deliver(self, cursor: Cursor, record: Record) -> None:
        entry = cursor.runs.get(record.identity)
        if entry is None:
            entry = cursor.runs[record.identity] = {"run_id": self._create(cursor, record), "sent": {}}
            cursor.save()
        run_id, sent = entry["run_id"], entry["sent"]
        parts: list[Part] = []
        files: dict[str, bytes] = {}
        damaged: str | None = None
        for part in record.parts:
            if not arrived(part.name, part.mark, sent.get(part.name)):
                try:
                    files |= part.files()
                except Exception as error:  # of this part alone: a file behind it is damaged
                    damaged = damaged or str(error)
                else:
                    parts.append(part)
        if any(part.name == "head" for part in parts):
            self._log_dataset(run_id, record)
        if parts:
            self._log(run_id, record, parts, int(sent.get("curve") or 0))
            self._log_files(run_id, files)
        if sent.get("status") != record.status or record.status == "FINISHED":
            self._end(run_id, record)
        entry["sent"] = {**sent, **{part.name: part.mark for part in parts}, "status": record.status}
        cursor.save()
        if damaged is not None:
            raise DamagedError(damaged)

    def _create(self, cursor: Cursor, record: Record) -> str:
        tags = {IDENTITY: record.identity, **record.tags, "mlflow.user": user()}
        if record.parent is not None and record.parent in cursor.runs:
            tags["mlflow.parentRunId"] = cursor.runs[record.parent]["run_id"]
        experiment = self.experiments[record.experiment]
        run = self.client.create_run(experiment, int(1000 * record.started), tags, record.name)
        return str(run.info.run_id)

    def _log_dataset(self, run_id: str, record: Record) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if record.dataset_digest is not None:
            source = f"datasets/{record.experiment}"
            used = Dataset(record.experiment, record.dataset_digest[:16], source_type="local", source=source)
            context = InputTag("mlflow.data.context", "train")
            self.client.log_inputs(run_id, datasets=[DatasetInput(used, tags=[context])])

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

    def _log_files(self, run_id: str, files: Mapping[str, bytes]) -> None:
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
        if isinstance(error.__cause__ or error.__context__, requests.RequestException):
            raise AwayError("the connection broke off") from error
        kind = RefusedError if error.get_http_status_code() < 500 else AwayError
        raise kind(clean(str(error), uri)) from error
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 500
        kind = RefusedError if status < 500 else AwayError
        raise kind(clean(str(error), uri)) from error
    except requests.RequestException as error:
        raise AwayError("the connection broke off") from error
    except OSError as error:
        raise AwayError(clean(str(error), uri)) from error


def probe(uri: str) -> None:
    """Raise AwayError unless the HTTP server at **uri** answers, with whatever short of a server's error, in time."""
    import requests

    try:
        status = requests.get(f"{uri.rstrip('/')}/health", timeout=PROBE_S).status_code
    except requests.Timeout:
        raise AwayError(f"no answer within {PROBE_S:.0f} s") from None
    except requests.ConnectionError:
        raise AwayError("no connection") from None
    except (requests.RequestException, ValueError) as error:  # the latter: a name that can't be looked up
        raise AwayError(clean(str(error), uri)) from None
    if status >= 500:
        raise AwayError(f"it answers with status {status}")


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

    file = file.absolute()
    for left in file.parent.glob(f"{file.name}.new.*"):  # of a process that was killed
        left.unlink(missing_ok=True)
    temporary = file.with_name(f"{file.name}.new.{os.getpid()}")
    made = SqlAlchemyStore(f"sqlite:///{temporary}", str(file.parent / "mlartifacts"))
    made.engine.dispose()
    os.replace(temporary, file)


def user() -> str:
    """Who runs this, for MLflow's column of that name."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
