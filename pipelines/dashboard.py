"""Show the results in MLflow.

    python -m pipelines.dashboard [--port 5000] [--open]

Starts an MLflow server on 127.0.0.1 over the project's store, sends it the spool's waiting results, and prints the
addresses of its views. Where ``MLFLOW_TRACKING_URI`` names an HTTP server, none is started, and the addresses lead
there. Ctrl-C, or any other end of this process, ends the server and all its processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlencode

from pipelines.command import arguments, ending
from pipelines.command.errors import UserError, guard
from pipelines.command.progress import becomes
from pipelines.tracking import database, delivery, helper
from pipelines.tracking.addresses import clean, is_remote, safe, sqlite_file, tracking_uri
from pipelines.tracking.probe import AwayError, RefusedError, answers, be_patient, probe
from pipelines.tracking.records import EXPLORER
from pipelines.tracking.spool import Spool

HOST = "127.0.0.1"
HEALTHY_WITHIN_S = 120.0  # importing MLflow's server takes 8 s on an idle machine
SERVER = "--server"  # the process that is started, where MLflow runs
SERVER_ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a queue and its workers, for MLflow's GenAI features alone
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONWARNINGS": "ignore",
}
BENCHMARKS = "tags.kind = 'benchmark'"
WORKFLOW = {"workflowType": "machine_learning"}  # else MLflow's pages open in the GenAI mode
CONFUSION, CURVES, LEDGER_TABLE = "confusion matrices side by side, and errors", "learning curves", "runs and ledger"


def addresses(server: str, client: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    """The titles and addresses of the views of each of our experiments that holds a benchmark, by its name."""
    out = []
    experiments = [e for e in client.search_experiments() if delivery.OURS in e.tags]
    for experiment in sorted(experiments, key=lambda e: int(e.experiment_id)):
        identity, begun = experiment.experiment_id, ["attributes.start_time ASC"]
        benchmarks = [*delivery.every_run(client, identity, filter_string=BENCHMARKS, order_by=begun)]
        trials = delivery.every_run(client, identity, filter_string="tags.kind = 'trial'")
        explored = [run for run in benchmarks if "test/error" in run.data.metrics]
        trained = [run.info.run_id for run in trials if "train/error" in run.data.metrics]
        page = f"{server}/#/experiments/{identity}/runs"
        views = []
        if explored:
            views.append((CONFUSION, _address(page, compareRunsMode="CHART", searchFilter=BENCHMARKS)))
        if trained:
            views.append((CURVES, _curves(server, identity, trained)))
        views.append((LEDGER_TABLE, _address(page, compareRunsMode="TABLE")))
        for run in explored:
            explorer = _address(f"{page}/{run.info.run_id}/artifacts/{EXPLORER}")
            views.append((f"explorer of {run.info.run_name}", explorer))
        if benchmarks:
            out.append((experiment.name, views))
    return out


def _curves(server: str, experiment: str, runs: list[str]) -> str:
    """The address of MLflow's page that compares a metric of several runs, which must come first in it."""
    metric = json.dumps("train/error")
    query = {"runs": json.dumps(runs), "metric": metric, "experiments": json.dumps([experiment])}
    return _address(f"{server}/#/metric", **query, plot_metric_keys=f"[{metric}]", x_axis="step")


def _address(page: str, **query: str) -> str:
    return f"{page}?{urlencode({**query, **WORKFLOW}, quote_via=quote)}"


def show(server: str, uri: str, *, browse: bool) -> None:
    """Print the addresses of the server at **uri**, which **server** names without a login; **browse** opens the first.

    UserError when there is nothing to see, or the server refuses or can't be reached.
    """
    try:
        probe(uri)
        with answers(uri):
            experiments = addresses(server, delivery.connect(uri))
    except (AwayError, RefusedError) as error:
        raise UserError(f"MLflow at {server} {error}") from None
    if not experiments:
        raise UserError(f"MLflow at {server} has no benchmark to show; run `make repro` first")
    for name, views in experiments:
        print(f"\n{name}")
        for title, address in views:
            print(f"  {title}\n    {address}")
    sys.stdout.flush()
    if browse:
        webbrowser.open(experiments[0][1][0][1])


@contextlib.contextmanager
def serving(uri: str, spool: Spool, port: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """An MLflow server on **port**, healthy; gone with all its processes when the block is left, however."""
    artifacts = database.artifacts(sqlite_file(uri) or spool.project / "mlflow.db")
    environment = {**os.environ, **SERVER_ENVIRONMENT, "MLFLOW_BACKEND_STORE_URI": uri}  # out of sight of `ps`
    environment.pop("MLFLOW_TRACKING_URI", None)
    root = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pipelines.dashboard", SERVER, "--host", HOST, "--port", str(port)]
    command += ["--workers", "1", "--artifacts-destination", artifacts.as_uri()]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            address = f"http://{HOST}:{port}"
            _await_health(address, process, log, uri)
            yield address, process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()  # waits, and closes the pipe


def _serve() -> None:
    """MLflow's server, in the process that ``serving`` starts.

    When its standard input closes, however the dashboard ended, it kills its process group: all that MLflow started.
    """

    def follow() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()
    sys.argv = ["mlflow", "server", *sys.argv[2:]]
    runpy.run_module("mlflow", run_name="__main__")


def _await_health(address: str, process: subprocess.Popen[bytes], log: IO[bytes], uri: str) -> None:
    def healthy() -> bool:
        if process.poll() is not None:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines() or ["without a word"]
            raise UserError(f"MLflow's server ended at once: {clean(lines[-1], uri)}")
        try:
            probe(address)
        except AwayError:
            return False
        return True

    if not becomes(healthy, within_s=HEALTHY_WITHIN_S):
        raise UserError(f"MLflow's server at {address} was not ready within {HEALTHY_WITHIN_S:.0f} s")


def require_free(port: int) -> None:
    """UserError unless a server could listen on **port**."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port is {port}; expected a number from 1 to 65535")
    try:
        socket.create_server((HOST, port)).close()
    except PermissionError:
        raise UserError(f"--port is {port}; that one needs root's rights, expected 1024 or higher") from None
    except OSError:
        mend = "end what listens there or choose another by --port"
        raise UserError(f"port {port} is taken on {HOST}; {mend}") from None


def main() -> None:
    """Serve until Ctrl-C; or, where a server runs already, print its addresses."""
    parser = arguments.Parser(prog="python -m pipelines.dashboard", description="Serve the results in MLflow.")
    parser.add_argument("--port", type=int, default=5000, help="of the server on this machine; by default 5000")
    parser.add_argument("--open", action="store_true", help="open the first address in a browser")
    args = parser.parse_args()
    spool = Spool.here()
    uri = tracking_uri(spool.project)
    be_patient()
    ending.follow()
    ending.heed(signal.SIGHUP)  # the terminal is closed
    if not is_remote(uri):
        require_free(args.port)
    sent = helper.sync(spool, deadline_s=120)
    if sent.away:
        raise UserError(str(sent.line))
    if sent.line:
        print(sent.line, flush=True)
    if is_remote(uri):
        show(safe(uri).rstrip("/"), uri, browse=args.open)
        return
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise UserError(f"{file} is not there, so there is nothing to show; run `make repro` first")
    print("starting MLflow's server, a moment ...", flush=True)
    with serving(uri, spool, args.port) as (address, process):
        show(address, address, browse=args.open)
        print("\nCtrl-C ends the server.", flush=True)
        try:
            status = process.wait()
        except KeyboardInterrupt:
            print("\nended")
            return
        raise UserError(f"MLflow's server ended by itself, with status {status}")


if __name__ == "__main__":
    guard(_serve if sys.argv[1:2] == [SERVER] else main)
