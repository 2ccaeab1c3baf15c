"""Guards delivery to a real MLflow, its sqlite store: everything once, again after a crash, and nothing twice."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest

from pipelines import dashboard
from pipelines.tracking import addresses, helper, probe
from pipelines.tracking import spool as spools
from pipelines.tracking.delivery import Sender, connect
from tests.gate import listening
from tests.tracking.projects import NOW, ODD, Project, deliver, files, pending, runs_of, suite

pytestmark = pytest.mark.filterwarnings("ignore:::(?!pipelines|tests)")  # what MLflow's libraries warn about


def test_an_experiment_that_is_refused_holds_back_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path)
    project.trial("lenet5-mnist", "mnist", 0, epochs=2)
    project.trial("lenet5-odd", "what?", 0, epochs=2)
    sender = Sender(project.spool, "http://127.0.0.1:9")

    def experiment(name: str) -> str:
        if name == "what?":
            raise probe.RefusedError("no such name")
        return "1"

    sent: list[str] = []
    monkeypatch.setattr(sender, "_connect", lambda _: None)
    monkeypatch.setattr(sender, "_experiment", experiment)
    monkeypatch.setattr(sender, "_list", lambda *_: {})
    monkeypatch.setattr(sender, "_deliver", lambda record, *_: sent.append(record.identity))
    result = sender.round()
    assert result.sent == len(sent) == 2 and sent[0] == "benchmark:lenet5-mnist/laptop"
    assert result.refused == ["lenet5-odd (laptop): no such name", "lenet5-odd seed 0: no such name"]


def test_a_server_that_refuses_all_of_us_says_why_in_one_line(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.trial("lenet5-mnist", "mnist", 0, epochs=2)
    answer = json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": "no such workspace"}).encode()
    head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n"

    def refuse(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(head.encode() + answer)

    with listening(refuse) as port:
        uri = f"http://127.0.0.1:{port}"
        line = Sender(project.spool, uri).round().line
    assert line == (
        f"MLflow at {uri} refuses our requests (INVALID_PARAMETER_VALUE: no such workspace): "
        "1 trial and 1 benchmark wait in the spool; they are sent by the next stage"
    )


def test_a_run_of_others_is_nobodys_parent(local: Path) -> None:
    client = connect(addresses.tracking_uri(local))
    client.create_run(client.create_experiment("mnist"), run_name="by hand")
    client, _ = deliver(suite(local, seeds=1).spool)
    for run in runs_of(client, "benchmark").values():
        assert "mlflow.parentRunId" not in run.data.tags, run.info.run_name


def test_an_experiment_that_lacks_nothing_is_not_listed(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = suite(local, seeds=1)
    deliver(project.spool)
    project.trial("lenet5-mnist", "mnist", 7, epochs=2)
    listed: list[str] = []
    experiment = Sender._experiment

    def listing(sender: Sender, name: str) -> str:
        listed.append(name)
        return experiment(sender, name)

    monkeypatch.setattr(Sender, "_experiment", listing)
    _, sent = deliver(project.spool)
    assert listed == ["mnist"] and sent >= 1


def test_everything_of_a_finished_suite(local: Path) -> None:
    project = suite(local, seeds=2)
    client, _ = deliver(project.spool)
    assert {e.name for e in client.search_experiments()} == {"Default", "mnist", "cifar10"}
    parents, children = runs_of(client, "benchmark"), runs_of(client, "trial")
    assert len(parents) == 6 and len(children) == 12
    parent, child = parents["lenet5-mnist (laptop)"], children["lenet5-mnist seed 1"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params["recipe.optimiser.lr"] == "0.02" and child.data.params["seed"] == "1"
    assert child.data.tags["git_commit"] == project.rows[2]["git_commit"]
    assert child.data.tags["checkpoint"].endswith("weights.pt") and child.data.tags["version.torch"] == "2.13.0"
    assert child.inputs.dataset_inputs[0].dataset.name == "mnist"
    assert (child.info.status, child.info.end_time) == ("FINISHED", int(1000 * (NOW + 2001 + 70)))
    assert child.data.metrics["test/error"] == pytest.approx(project.rows[2]["per_seed"]["1"])
    history = client.get_metric_history(child.info.run_id, "train/loss")
    lines = spools.read(project.spool)[0][2].trials[1].curve
    assert [(m.step, m.value, m.timestamp) for m in history] == [
        (1_000_000 * line.epoch, line.loss, int(1000 * line.time)) for line in lines
    ]
    row = project.rows[2]
    assert parent.data.metrics["ledger/mean"] == pytest.approx(row["mean"], abs=1e-4)
    assert parent.data.metrics["ledger/ci95_low"] == pytest.approx(row["ci95"][0], abs=1e-4)
    assert (parent.data.metrics["ledger/claim"], parent.data.metrics["ledger/seeds"]) == (0.95, 2)
    assert parent.data.tags["verdict"] == "reproduced" and "softmax head" in parent.data.tags["mlflow.note.content"]
    shown = files(client, parent)
    assert {"confusion.png", "per_class.csv", "explorer.html", "ledger.json"} <= set(shown)
    assert len([path for path in shown if path.startswith("images/")]) == 2  # as drawn, and a small copy
    assert (local / "mlartifacts").is_dir()


def test_nothing_is_sent_twice(local: Path) -> None:
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    project.ledger()
    assert deliver(project.spool)[1] == 3
    before = (local / "mlflow.db").read_bytes()
    assert deliver(project.spool)[1] == 0
    assert helper.sync(project.spool).sent == 0
    assert (local / "mlflow.db").read_bytes() == before


def test_a_crash_before_the_cursor_is_written_doubles_nothing(local: Path) -> None:
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    client, _ = deliver(project.spool)
    before = {name: (run.info.run_id, files(client, run)) for name, run in runs_of(client, "trial").items()}
    (cursor,) = (local / "store/tracking").glob("*.json")
    known = json.loads(cursor.read_text())
    known["sent"] = {k: v for k, v in known["sent"].items() if not k.startswith("trial:")}
    cursor.write_text(json.dumps(known))  # as if it had died after each run was made and filled
    assert deliver(project.spool)[1] == 2
    after = runs_of(client, "trial")
    assert {name: (run.info.run_id, files(client, run)) for name, run in after.items()} == before
    for run in after.values():
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 10
        assert len(client.get_metric_history(run.info.run_id, "test/error")) == 1
        assert len(run.inputs.dataset_inputs) == 1


def test_a_trial_is_followed_from_start_to_end(local: Path) -> None:
    project = Project(local)
    key = project.trial("lenet5-mnist", "mnist", 0, epochs=6, done=2)
    client, _ = deliver(project.spool)
    (run,) = runs_of(client, "trial").values()
    assert run.info.status == "RUNNING" and run.info.end_time is None
    project.progress(key, "running", 4, 6, 2**22 - 1)  # killed after epoch 4 ...
    project.curve(key, range(1, 5), NOW)
    deliver(project.spool)
    assert client.get_run(run.info.run_id).info.status == "KILLED"
    project.progress(key, "running", 3, 6, os.getpid())  # ... resumed at a checkpoint before it, so with other times
    project.curve(key, range(1, 4), NOW + 500)
    deliver(project.spool)
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    project.trial("lenet5-mnist", "mnist", 0, epochs=6, at=500)
    deliver(project.spool)
    (run,) = runs_of(client, "trial").values()
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train/error")
    assert [m.step for m in history] == [1_000_000 * epoch for epoch in range(1, 7)]


def test_a_new_seed_updates_the_benchmark(local: Path) -> None:
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    project.ledger()
    client, _ = deliver(project.spool)
    (parent,) = runs_of(client, "benchmark").values()
    assert parent.data.metrics["ledger/seeds"] == 1
    project.rows.clear()
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    project.rows[0]["verdict"] = "inconclusive"
    project.ledger()
    os.utime(local / "report/ledger.json", (time.time() + 5, time.time() + 5))
    deliver(project.spool)
    (after,) = runs_of(client, "benchmark").values()
    assert after.info.run_id == parent.info.run_id
    assert (after.data.metrics["ledger/seeds"], after.data.tags["verdict"]) == (2, "inconclusive")
    sent = "sent.figures/confusion"  # the grid shows the last one
    assert after.data.tags[sent] != parent.data.tags[sent]


def test_a_new_database_at_the_old_place_gets_everything(local: Path, schema: Path) -> None:
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    deliver(project.spool)
    shutil.copy(schema, local / "mlflow.new")
    (local / "mlflow.db").unlink()
    assert len(pending(project.spool, addresses.tracking_uri(local))) == 2
    (local / "mlflow.new").rename(local / "mlflow.db")  # nor does it matter that the cursor has not seen it gone
    project.trial("lenet5-mnist", "mnist", 1, epochs=1)
    result = helper.sync(project.spool, deadline_s=120)
    assert (result.sent, result.waits, result.line) == (3, 0, None)


def test_only_what_ran_is_sent(local: Path) -> None:
    """The ledger lists every benchmark there is; those outside the suite have no budget, others no figures yet."""
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    untested: dict[str, Any] = {"n": 0, "mean": None, "ci95": None, "per_seed": {}, "verdict": "untested"}
    for name, dataset, budget in (
        ("mlp1000-mnist", "mnist", None),
        ("alexnet-imagenette", "imagenette", None),
        ("allcnn-c-cifar10", "cifar10", "laptop"),
    ):
        project.rows.append({**project.rows[0], **untested, "benchmark": name, "dataset": dataset, "budget": budget})
    project.ledger()
    client, _ = deliver(project.spool)
    assert {e.name for e in client.search_experiments()} == {"Default", "mnist"}
    assert list(runs_of(client, "benchmark")) == ["lenet5-mnist (laptop)"]
    ((name, addresses),) = dashboard.addresses("http://x", client)
    assert name == "mnist" and [title for title, _ in addresses] == [
        *(dashboard.CONFUSION, dashboard.CURVES, dashboard.LEDGER_TABLE),
        "explorer of lenet5-mnist (laptop)",
    ]
    # Its trial trains: there is a curve and a run to see, and no confusion matrix.
    project.trial("allcnn-c-cifar10", "cifar10", 0, epochs=9, done=2)
    deliver(project.spool)
    _, (name, addresses) = dashboard.addresses("http://x", client)
    seen = [dashboard.CURVES, dashboard.LEDGER_TABLE]
    assert name == "cifar10" and [title for title, _ in addresses] == seen


def test_the_views_show_all_runs_however_many_pages_they_fill(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(local)
    for name in ("lenet5-mnist", "linear-mnist", "mlp300-mnist"):
        project.benchmark(name, "mnist", 1.0, 1)
    client, _ = deliver(project.spool)
    search = client.search_runs

    def two_a_page(*args: Any, max_results: int = 2, **more: Any) -> Any:
        return search(*args, max_results=min(max_results, 2), **more)

    monkeypatch.setattr(client, "search_runs", two_a_page)
    ((_, views),) = dashboard.addresses("http://x", client)
    assert sum(title.startswith("explorer of") for title, _ in views) == 3
    (curves,) = (where for title, where in views if title == dashboard.CURVES)
    assert len(json.loads(parse_qs(urlsplit(curves).fragment.partition("?")[2])["runs"][0])) == 3


def test_a_lost_cursor_doubles_nothing_of_a_report_that_was_written_again(local: Path) -> None:
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    project.ledger()
    client, _ = deliver(project.spool)
    key = next(iter(runs_of(client, "trial").values())).data.tags["trial_key"]

    def points() -> dict[str, int]:
        return {
            f"{run.info.run_name} {metric}": len(client.get_metric_history(run.info.run_id, metric))
            for run in (*runs_of(client, "trial").values(), *runs_of(client, "benchmark").values())
            for metric in run.data.metrics
        }

    before = points()
    shutil.rmtree(local / "store/tracking")
    for place, path in enumerate([*local.glob("report/*"), *local.glob("evaluations/**/*.json")]):
        os.utime(path, (time.time() + place, time.time() + place))
    project.curve(key, range(1, 11), NOW + 5000)  # resumed, without a checkpoint: the same losses at other times
    assert deliver(project.spool)[1] == 3
    assert points() == before
    # A wording alone: the figures stay what they were. Another figure is another point.
    project.rows[0].update(remarks="another wording", mean=1.25)
    project.ledger()
    os.utime(local / "report/ledger.json", (time.time() + 60, time.time() + 60))
    deliver(project.spool)
    after = points()
    assert {key for key in after if after[key] != before[key]} == {"lenet5-mnist (laptop) ledger/mean"}


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_whatever_text_there_is_reaches_mlflow(local: Path, name: str) -> None:
    """As name of a benchmark, dataset and class, as source of a claim, as value of an option."""
    project = Project(local)
    classes = [*ODD, *"123", name]
    project.trial("mlp300-mnist", "mnist", 0, epochs=1)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    for path in (*local.glob("store/*/*.json"), *local.glob("evaluations/**/classes.json")):
        found = json.loads(path.read_text())
        if found.get("benchmark", "lenet5-mnist") == "lenet5-mnist":
            if "config" in found:
                found["config"]["model"]["options"] = {"head": name, "tail": ""}
                found |= {"benchmark": name, "dataset": {"name": name, "digest": "d" * 64}, "hardware": name}
            path.write_text(json.dumps({**found, **({"classes": classes} if "classes" in found else {})}))
    row = project.rows[0]
    row.update(
        benchmark=name, dataset=name, claim={**row["claim"], "source": f"A, {name}"}, deviations=[name, "y" * 9000]
    )
    project.ledger()
    client, sent = deliver(project.spool)
    assert sent == 4
    odd = next(run for run in runs_of(client, "trial").values() if run.info.run_name != "mlp300-mnist seed 0")
    assert {"confusion.png", "explorer.html", "per_class.csv"} <= set(files(client, odd))
    assert odd.data.params["model.options.head"] and odd.data.params["model.options.tail"] == ""
    place = Path(unquote(urlsplit(odd.info.artifact_uri).path))
    assert place.resolve().is_relative_to((local / "mlartifacts").resolve()) and place.is_dir()


@pytest.mark.parametrize("name", ["a$b", "a//b", "x" * 300])
def test_a_param_whose_name_mlflow_refuses_costs_its_run_and_a_line(local: Path, name: str) -> None:
    """No checked row has one: options are named after the arguments of a function."""
    project = Project(local)
    project.trial("linear-mnist", "mnist", 0, epochs=1)
    path = local / "store" / project.trial("lenet5-mnist", "mnist", 0, epochs=1) / "trial.json"
    found = json.loads(path.read_text())
    found["config"]["model"]["options"] = {name: 1}
    path.write_text(json.dumps(found))
    result = Sender(project.spool, addresses.tracking_uri(local)).round()
    assert result.sent == 3 and result.waiting == {"trial": 1, "benchmark": 0}
    (line,) = result.refused
    assert line.startswith("lenet5-mnist seed 0: ") and line in str(result.line)


def test_a_run_deleted_in_mlflow_stays_deleted(local: Path) -> None:
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    client, _ = deliver(project.spool)
    client.delete_run(runs_of(client, "trial")["lenet5-mnist seed 0"].info.run_id)
    (local / "store/tracking").rename(local / "lost")
    assert deliver(project.spool)[1] == 2  # the other trial and the benchmark
    assert list(runs_of(client, "trial")) == ["lenet5-mnist seed 1"]
    assert pending(project.spool, addresses.tracking_uri(local)) == []


def test_one_damaged_evaluation_holds_back_nothing_else(local: Path) -> None:
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    project.trial("linear-mnist", "mnist", 0, epochs=2, at=1000)
    (local / "evaluations/lenet5-mnist/trials/seed-0/predictions.npz").write_text("1,2\n")
    client, sent = deliver(project.spool)
    assert sent == 5
    (problem,) = helper.sync(project.spool).problems
    assert "seed-0/predictions.npz is damaged" in problem
    run = runs_of(client, "trial")["lenet5-mnist seed 0"]  # what is not damaged arrives
    assert run.info.status == "FINISHED" and "cost/wall_s" in run.data.metrics and "test/error" not in run.data.metrics
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 10


def test_damaged_images_hold_back_the_explorer_alone(local: Path) -> None:
    project = Project(local)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    project.ledger()
    (local / "evaluations/lenet5-mnist/examples.npz").write_text("no archive")
    sender = Sender(project.spool, addresses.tracking_uri(local))
    refused = sender.round().refused
    assert [why.partition(":")[0] for why in refused] == ["lenet5-mnist (laptop)", "lenet5-mnist seed 0"]
    assert all("examples.npz is damaged" in why for why in refused)
    run = runs_of(sender.client, "trial")["lenet5-mnist seed 0"]
    assert run.info.status == "FINISHED" and {"cost/wall_s", "test/error"} <= run.data.metrics.keys()
    assert files(sender.client, run) == []
    (parent,) = runs_of(sender.client, "benchmark").values()
    assert files(sender.client, parent) == ["ledger.json"] and "test/top5_error" in parent.data.metrics


def test_a_diverged_trial_and_a_long_one(local: Path) -> None:
    """A loss that is no number, and more epochs than one call takes."""
    project = Project(local)
    key = project.trial("lenet5-mnist", "mnist", 0, epochs=400)
    path = local / f"store/{key}/curve.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1]["loss"] = float("nan")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    client, _ = deliver(project.spool)
    (run,) = runs_of(client, "trial").values()
    assert len(client.get_metric_history(run.info.run_id, "train/lr")) == 400
    assert np.isnan(client.get_metric_history(run.info.run_id, "train/loss")[-1].value)
