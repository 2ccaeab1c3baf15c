"""The MLflow side of tracking: sends missing runs to a server, and keeps the cursor.

Runs in its own process (see ``helper``), which may hang or be killed at any moment. Sending twice doubles nothing: a
tag identifies a run, an artifact replaces the one at its path, and the server lists a run's metrics and params.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipelines.command import locks
from pipelines.command.errors import HeldError
from pipelines.command.files import DamagedError
from pipelines.tracking import database, limits, records
from pipelines.tracking.addresses import is_remote, sqlite_file
from pipelines.tracking.cursors import Cursor, Point, Record, arrived
from pipelines.tracking.probe import ENVIRONMENT, AwayError, Bounded, RefusedError, answers, probe, reach_local
from pipelines.tracking.records import IDENTITY_TAG
from pipelines.tracking.spool import Spool

if TYPE_CHECKING:
    from mlflow.entities import RunData  # metrics, params and tags of a run

OURS = "convnet_benchmarks"  # the tag of an experiment of ours
DESCRIPTION = (
    "Benchmarks on {dataset}: one run each, its trials below it (+). `explorer.html` of a run shows its confusion "
    "matrices, its learning curves and the figures of each class.\n\nThe step of a metric counts "
    f"{records.STEP}; `train/epoch` counts epochs."
)


class Sender:
    """Sends records to one server; keeps the connection and the server's state between rounds."""

    def __init__(self, spool: Spool, uri: str) -> None:
        self.spool, self.uri = spool, uri
        self.client: Any = None
        self.experiments: dict[str, str] = {}  # name: id
        self.refused: dict[str, str] = {}  # identity: why, in this round
        self.sent: list[str] = []  # identities, in this round
        self.served: set[str] = set()  # ids of runs whose cursor entry agrees with the server
        self.came_from: Path | None = None  # where a copied database kept its artifacts until now

    def round(
        self, *, verify: bool = False, announce: Callable[[str, str], None] = lambda identity, name: None
    ) -> bool:
        """
        Send all missing runs; False when another process is sending. Raises AwayError, and RefusedError where the
        server takes nothing.

        **verify** asks the server even if the cursor lacks nothing. **announce** gets the identity and the name of each
        run that is sent.
        """
        self.sent, self.refused = [], {}
        lock = Cursor.of(self.spool.store, self.uri).path.with_suffix(".lock")
        try:
            with locks.held(lock, "tracking", patience_s=0):
                self._round(verify, announce)
        except HeldError:
            return False
        return True

    def _round(self, verify: bool, announce: Callable[[str, str], None]) -> None:
        cursor, everything = Cursor.of(self.spool.store, self.uri), records.gather(self.spool)[0]
        if everything and (verify or any(map(cursor.lacks, everything))):
            try:
                self._connect()
                for record in self._lacking(cursor, everything):
                    self._send(cursor, record, announce)
            except AwayError:
                self._forget()  # another server may come back
                raise
            if self.refused:
                self._forget()  # ask again next time: somebody may have mended it

    def _forget(self) -> None:
        self.experiments.clear()
        self.served.clear()

    def _connect(self) -> None:
        if is_remote(self.uri):
            probe(self.uri)  # every round: a dead server costs no import of MLflow
        if self.client is None:
            client, file = connect(self.uri), sqlite_file(self.uri)
            with answers(self.uri):
                client.search_experiments(max_results=1)  # raises faults of all runs, such as a login
                if file is not None:
                    self.came_from = database.bring_home(file, OURS)
            self.client = client

    def _lacking(self, cursor: Cursor, everything: list[Record]) -> list[Record]:
        """The records to send; makes their experiments and brings the cursor in line with the server."""
        for name in dict.fromkeys(record.experiment for record in everything):
            if name not in self.experiments:
                mine = [record for record in everything if record.experiment == name]
                try:
                    with answers(self.uri):
                        found = self._experiment(name)
                        self._recall(cursor, found, mine)
                except RefusedError as error:  # of this experiment alone
                    self.refused |= {record.identity: f"{record.name}: {error}" for record in mine}
                else:
                    self.experiments[name] = found
        return [record for record in everything if record.identity not in self.refused and cursor.lacks(record)]

    def _experiment(self, name: str) -> str:
        """The id of the experiment; a missing one is made, a deleted one restored."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            file = sqlite_file(self.uri)
            where = None if file is None else (database.artifacts(file) / limits.folder(name)).as_uri()
            tags = {OURS: "true", "mlflow.note.content": DESCRIPTION.format(dataset=limits.name(name))}
            return str(self.client.create_experiment(name, artifact_location=where, tags=tags))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        if OURS not in found.tags:
            self.client.set_experiment_tag(found.experiment_id, OURS, "true")
        return str(found.experiment_id)

    def _recall(self, cursor: Cursor, experiment: str, mine: list[Record]) -> None:
        """Correct the cursor by the runs on the server.

        A run made just before a crash is continued. A run that the server lost (a new database at the old address) is
        sent again. A run that somebody deleted in MLflow stays deleted.
        """
        from mlflow.entities import ViewType

        there: dict[str, Any] = {}
        token = None
        while True:
            page = self.client.search_runs([experiment], "", ViewType.ALL, max_results=500, page_token=token)
            for run in page:
                if IDENTITY_TAG in run.data.tags:
                    there.setdefault(run.data.tags[IDENTITY_TAG], run.info)
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

    def _send(self, cursor: Cursor, record: Record, announce: Callable[[str, str], None]) -> None:
        try:
            with answers(self.uri):
                self._deliver(cursor, record)
        except (RefusedError, DamagedError) as error:  # of this run alone
            self.refused[record.identity] = f"{record.name}: {error}"
        else:
            self.sent.append(record.identity)
            announce(record.identity, record.name)

    def _deliver(self, cursor: Cursor, record: Record) -> None:
        from mlflow.entities import RunData

        entry = cursor.runs.get(record.identity)
        if entry is None:
            entry = cursor.runs[record.identity] = {"run_id": self._create(cursor, record), "sent": {}}
            self.served.add(entry["run_id"])
            cursor.save()
            held = RunData()
        else:
            held = self.client.get_run(entry["run_id"]).data
        run_id, sent, fresh = entry["run_id"], entry["sent"], entry["sent"].get("mark") != record.mark
        files: dict[str, bytes] = {}
        marks, failure = record.marks, None
        if fresh:
            for make in record.files:
                try:
                    files |= make()
                except Exception as error:
                    marks, failure = {**marks, "mark": ""}, DamagedError(str(error))
            self._log_dataset(run_id, record)
        points = self._lacks(run_id, held, record, float(sent.get("curve", 0)))
        if fresh or points:
            self._log(run_id, record, points, held)
            self._log_files(run_id, files, held)
        if sent.get("status") != record.status or record.status == "FINISHED":
            self._end(run_id, record)
        lacking = {name: mark for name, mark in marks.items() if not arrived(name, mark, sent.get(name))}
        entry["sent"] = {**sent, **lacking}
        self.served.add(run_id)
        cursor.save()
        if failure is not None:
            raise failure

    def _lacks(self, run_id: str, held: RunData, record: Record, done: float) -> list[Point]:
        """The points that the run lacks; ``done`` epochs of its curve were sent, by the cursor.

        A file that is written again has another time, and a resumed trial repeats some epochs: MLflow would show both.
        """
        later = [point for point in record.curve if point.step > records.step(done)]
        steps, times = set(), set()
        if run_id not in self.served:  # the cursor may be lost or behind
            for key in {point.key for point in later} & held.metrics.keys():
                history = self.client.get_metric_history(run_id, key)
                steps |= {(key, one.step) for one in history}
                times |= {(key, one.timestamp) for one in history}
        return [
            *(point for point in record.points if held.metrics.get(point.key) != point.value),
            *(p for p in later if (p.key, p.step) not in steps and (p.key, milliseconds(p.time)) not in times),
        ]

    def _create(self, cursor: Cursor, record: Record) -> str:
        tags = {IDENTITY_TAG: record.identity, "mlflow.user": psutil.Process().username()}
        if record.parent is not None and record.parent in cursor.runs:
            tags["mlflow.parentRunId"] = cursor.runs[record.parent]["run_id"]
        experiment = self.experiments[record.experiment]
        run = self.client.create_run(experiment, milliseconds(record.started), tags, record.name)
        return str(run.info.run_id)

    def _log_dataset(self, run_id: str, record: Record) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if record.dataset_digest is not None:
            source = f"datasets/{record.experiment}"
            digest = limits.name(record.dataset_digest[:16])
            used = Dataset(record.experiment, digest, source_type="local", source=source)
            context = InputTag("mlflow.data.context", "train")
            self.client.log_inputs(run_id, datasets=[DatasetInput(used, tags=[context])])

    def _log(self, run_id: str, record: Record, points: Sequence[Point], held: RunData) -> None:
        """Send all in one call, which MLflow divides. A param can't change: the first value stays."""
        from mlflow.entities import Metric, Param, RunTag

        params = {limits.key(key): limits.value(value, limits.PARAM) for key, value in record.params.items()}
        tags = {limits.key(key): limits.value(value, limits.TAG) for key, value in record.tags.items()}
        metrics = [Metric(limits.key(p.key), p.value, milliseconds(p.time), p.step) for p in points]
        settings = [Param(key, value) for key, value in params.items() if key not in held.params]
        self.client.log_batch(run_id, metrics, settings, [RunTag(key, value) for key, value in tags.items()])

    def _log_files(self, run_id: str, files: Mapping[str, bytes], held: RunData) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder) / name
                path.write_bytes(content)
                self.client.log_artifact(run_id, str(path))
                if path.suffix == ".png":
                    self._log_picture(run_id, path, held)

    def _log_picture(self, run_id: str, path: Path, held: RunData) -> None:
        """Add a figure to the image grid, which shows the latest figure of each key.

        ``log_image`` gives each upload a new name, so a tag of ours names the run's figure.
        """
        from PIL import Image

        key, version = f"figures/{path.stem}", hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        if held.tags.get(f"sent.{key}") != version:
            with Image.open(path) as image:
                self.client.log_image(run_id, image.convert("RGB"), key=key)
            self.client.set_tag(run_id, f"sent.{key}", version)

    def _end(self, run_id: str, record: Record) -> None:
        if record.ended is None:
            self.client.update_run(run_id, record.status)
        else:
            self.client.set_terminated(run_id, record.status, milliseconds(record.ended))


def milliseconds(seconds: float) -> int:
    """A time in MLflow's unit."""
    return int(1000 * seconds)


def connect(uri: str) -> Any:
    """A client for **uri**; the sqlite store is made when it is not there. Raises AwayError."""
    reach_local()
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    file = sqlite_file(uri)
    if file is not None and file.exists():
        try:
            database.check(file)
        except sqlite3.Error as error:
            raise AwayError(f"can't be used ({database.reason(error) or error})") from None
    with answers(uri):
        from mlflow.tracking import MlflowClient

        if file is not None and not file.exists():
            _create_sqlite(file)
        client = MlflowClient(uri)
    return Bounded(client) if is_remote(uri) else client


def _create_sqlite(file: Path) -> None:
    """Make it under a temporary name: this takes seconds, and nothing would repair half a schema."""
    from mlflow.tracking import MlflowClient

    file = file.absolute()
    for left in file.parent.glob(f"{file.name}.new.*"):  # by a killed process
        left.unlink(missing_ok=True)
    temporary = file.with_name(f"{file.name}.new.{os.getpid()}")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.touch()  # fails at once, where MLflow would try for minutes
    MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)
    os.replace(temporary, file)
