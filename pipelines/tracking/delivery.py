"""The MLflow side of tracking: sends missing runs to a server, and keeps the cursor.

Below ``helper`` it may hang or be killed at any moment. Sending twice doubles nothing: a tag identifies a run, an
artifact replaces the one at its path, and of metrics and params only those are sent that the server's run lacks.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipelines.command import locks
from pipelines.command.files import TEMPORARY, DamagedError, replacing
from pipelines.tracking import database, limits, records
from pipelines.tracking.addresses import is_remote, safe, sqlite_file
from pipelines.tracking.cursors import DELETED, Cursor, RunRecord, mark_of
from pipelines.tracking.outcome import SyncResult
from pipelines.tracking.probe import ENVIRONMENT, Bounded, RefusedError, answers, probe, reach_local
from pipelines.tracking.records import IDENTITY_TAG, REACHED
from pipelines.tracking.spool import Spool

if TYPE_CHECKING:
    from mlflow.entities import Run

OURS = "convnet_benchmarks"  # the tag of an experiment of ours
RUNS_A_PAGE = 500  # runs in one answer
DESCRIPTION = (
    "Benchmarks on {dataset}: one run each, its trials below it (+). `explorer.html` of a run shows its confusion "
    "matrices, its learning curves and the figures of each class.\n\nThe step of a metric counts "
    f"{records.STEP}; `train/epoch` counts epochs."
)


class Sender:
    """Sends records to one server, over one connection."""

    def __init__(self, spool: Spool, uri: str, report: Callable[[str], object] = lambda name: None) -> None:
        """**report** gets the name of each run that is sent."""
        self.spool, self.uri, self.report = spool, uri, report
        self.client: Any = None
        self.result = SyncResult(uri=safe(uri))  # of the latest round, so far

    def round(self, *, verify: bool = False) -> SyncResult:
        """Send all missing runs. Never raises. **verify** asks the server even if the cursor lacks nothing."""
        result = self.result = SyncResult(uri=safe(self.uri))
        with (
            result.keeping_errors(self.uri),
            locks.held(Cursor.of(self.spool.store, self.uri).path.with_suffix(".lock"), "tracking", patience_s=0),
        ):
            everything, result.problems = records.all_runs(self.spool)
            cursor = Cursor.of(self.spool.store, self.uri)
            result.count(filter(cursor.lacks, everything))
            if everything and (verify or result.waits):
                self._connect(result)
                for name in dict.fromkeys(record.experiment for record in everything):
                    group = [record for record in everything if record.experiment == name]
                    if verify or any(map(cursor.lacks, group)):
                        for record in self._send(name, group, cursor, result):
                            result.count(filter(cursor.lacks, everything))
                            self.report(record.name)
                result.count(filter(cursor.lacks, everything))
        return result

    def _connect(self, result: SyncResult) -> None:
        if is_remote(self.uri):
            probe(self.uri)  # every round: a dead server costs no import of MLflow
        if self.client is None:
            file = sqlite_file(self.uri)
            with answers(self.uri):
                if file is not None and file.exists() and (old := database.bring_home(file, OURS)):
                    result.came_from = str(old)
                client = connect(self.uri)
                client.search_experiments(max_results=1)  # raises faults of all runs, such as a login
            self.client = client

    def _send(self, name: str, group: list[RunRecord], cursor: Cursor, result: SyncResult) -> Iterator[RunRecord]:
        """Send the missing runs of an experiment; yields each that is sent."""
        try:
            with answers(self.uri):
                experiment = self._experiment(name)
                runs = self._list(experiment, group, cursor)
        except RefusedError as error:  # of this experiment alone
            result.refused += [f"{record.name}: {error}" for record in group]
            return
        for record in filter(cursor.lacks, group):
            try:
                with answers(self.uri):
                    self._deliver(record, experiment, runs)
            except (RefusedError, DamagedError) as error:  # of this run alone
                result.refused.append(f"{record.name}: {error}")
            else:
                cursor.sent[record.identity] = record.mark
                cursor.save()
                result.sent += 1
                yield record

    def _experiment(self, name: str) -> str:
        """The id of the experiment; a missing one is made, a deleted one restored."""
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            file = sqlite_file(self.uri)
            plain = re.fullmatch(r"[\w-]{1,100}", name, re.ASCII)
            folder = name if plain else mark_of(name)  # which file systems take
            place = None if file is None else (database.artifacts(file) / folder).as_uri()
            tags = {OURS: "true", "mlflow.note.content": DESCRIPTION.format(dataset=limits.name(name))}
            return str(self.client.create_experiment(name, artifact_location=place, tags=tags))
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        if OURS not in experiment.tags:
            self.client.set_experiment_tag(experiment.experiment_id, OURS, "true")
        return str(experiment.experiment_id)

    def _list(self, experiment: str, group: list[RunRecord], cursor: Cursor) -> dict[str, Run]:
        """The server's runs, by identity; corrects the cursor by them.

        A run made just before a crash is continued. A run that the server lost (a new database at the old address) is
        sent again. A run that somebody deleted in MLflow stays deleted.
        """
        from mlflow.entities import ViewType

        known: dict[str, Run] = {}
        for run in every_run(self.client, experiment, run_view_type=ViewType.ALL):
            if IDENTITY_TAG in run.data.tags:  # others in this experiment are not ours
                known.setdefault(run.data.tags[IDENTITY_TAG], run)
        for identity in (record.identity for record in group):
            if identity in known and known[identity].info.lifecycle_stage == "deleted":
                cursor.sent[identity] = DELETED
            elif identity not in known or cursor.sent.get(identity) == DELETED:
                cursor.sent.pop(identity, None)
        cursor.save()
        return known

    def _deliver(self, record: RunRecord, experiment: str, runs: dict[str, Run]) -> None:
        """Make or update the run. Raises DamagedError where some of its files can't be made, after sending the rest."""
        files: dict[str, bytes] = {}
        failure = None
        for make in record.files:
            try:
                files |= make()
            except Exception as error:
                failure = DamagedError(str(error))
        run = self._run(record, experiment, runs)
        self._log(run, record)
        self._log_files(run, files)
        if record.ended is not None:
            self.client.set_terminated(run.info.run_id, record.status, int(1000 * record.ended))
        elif run.info.status != record.status:  # it was killed, and runs again
            self.client.update_run(run.info.run_id, record.status)
        if failure is not None:
            raise failure

    def _run(self, record: RunRecord, experiment: str, runs: dict[str, Run]) -> Run:
        """The server's run; a missing one is made, and joins **runs**."""
        if record.identity in runs:
            return runs[record.identity]
        tags = {IDENTITY_TAG: record.identity, "mlflow.user": psutil.Process().username()}
        if record.parent in runs:
            tags["mlflow.parentRunId"] = runs[record.parent].info.run_id
        runs[record.identity] = self.client.create_run(experiment, int(1000 * record.started), tags, record.name)
        return runs[record.identity]

    def _log(self, run: Run, record: RunRecord) -> None:
        """Send the dataset, and the rest in one call, which MLflow divides; its times are milliseconds.

        A param can't change: the first value stays. Of the curve later epochs are sent alone: a resumed trial repeats
        some at another time, and MLflow would show both.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

        run_id, held = run.info.run_id, run.data
        digest = record.tags.get("dataset_digest")
        if digest is not None and not (run.inputs and run.inputs.dataset_inputs):
            version, source = limits.name(digest[:16]), f"datasets/{record.experiment}"
            used = Dataset(record.experiment, version, source_type="local", source=source)
            self.client.log_inputs(run_id, [DatasetInput(used, tags=[InputTag("mlflow.data.context", "train")])])
        reached = records.step(held.metrics.get(REACHED, 0.0))
        points = [
            *(point for point in record.points if held.metrics.get(point.key) != point.value),
            *(point for point in record.curve if point.step > reached),
        ]
        params = {key: value for key, value in record.params.items() if key not in held.params}
        self.client.log_batch(
            run_id,
            [Metric(p.key, p.value, int(1000 * p.time), p.step) for p in points],
            [Param(key, limits.value(value, limits.PARAM)) for key, value in params.items()],
            [RunTag(key, limits.value(value, limits.TAG)) for key, value in record.tags.items()],
        )

    def _log_files(self, run: Run, files: Mapping[str, bytes]) -> None:
        """Upload the files, and add figures to the image grid, which shows the latest figure of each key.

        ``log_image`` gives each upload a new name, so a tag of ours names the run's figure.
        """
        from PIL import Image

        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder) / name
                path.write_bytes(content)
                self.client.log_artifact(run.info.run_id, str(path))
                key, version = f"figures/{path.stem}", hashlib.sha256(content).hexdigest()[:16]
                if path.suffix == ".png" and run.data.tags.get(f"sent.{key}") != version:
                    with Image.open(path) as image:
                        self.client.log_image(run.info.run_id, image.convert("RGB"), key=key)
                    self.client.set_tag(run.info.run_id, f"sent.{key}", version)


def every_run(client: Any, experiment: str, **search: Any) -> Iterator[Run]:
    """The runs of an experiment that ``search_runs`` finds, however many pages they fill."""
    token = None
    while True:
        page = client.search_runs([experiment], max_results=RUNS_A_PAGE, page_token=token, **search)
        yield from page
        if not (token := page.token):
            return


def connect(uri: str) -> Any:
    """A client for **uri**; the sqlite store is made when it is not there. Raises AwayError."""
    reach_local()
    os.environ |= {**ENVIRONMENT, **os.environ}
    file = sqlite_file(uri)
    with answers(uri):
        from mlflow.tracking import MlflowClient

        if file is not None and not file.exists():
            for half in file.parent.glob(f".{file.name}.{TEMPORARY}.*"):  # of a killed process
                half.unlink(missing_ok=True)
            with replacing(file.absolute()) as temporary:  # this takes seconds; nothing would repair half a schema
                MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)
        client = MlflowClient(uri)
    return Bounded(client) if is_remote(uri) else client
