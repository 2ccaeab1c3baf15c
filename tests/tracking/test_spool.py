"""Guards what tracking reads: the files of the stages, each of which may be missing, damaged or another's."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.results import arrays
from pipelines.tracking import cursors, records
from pipelines.tracking import spool as spools
from tests.tracking.projects import DIGITS, NOW, Project, change, rewrite, suite


def test_reads_what_stages_write(tmp_path: Path) -> None:
    project = suite(tmp_path, seeds=2)
    found, problems = spools.read(project.spool)
    assert problems == []
    assert [b.name for b in found][:3] == ["linear-mnist", "mlp300-mnist", "lenet5-mnist"]  # by their first trial
    assert all(len(b.trials) == len(b.evaluations) == 2 and b.row is not None for b in found)


def test_damaged_files_read_as_absent(tmp_path: Path) -> None:
    project = Project(tmp_path)
    key = project.trial("lenet5-mnist", "mnist", 0, epochs=3)
    with (tmp_path / f"store/{key}/curve.jsonl").open("a") as curve:
        curve.write('{"epoch": 4, "loss"')  # being written
    project.write(f"store/{key}/result.json", "{")
    project.write("store/0000/trial.json", '{"benchmark": "lenet5-mnist"}')
    project.write("report/ledger.json", "[1]")
    (benchmark,) = spools.read(project.spool)[0]
    (trial,) = benchmark.trials
    assert [line.epoch for line in trial.curve] == [1, 2, 3]
    assert trial.result is None and benchmark.row is None


def test_an_evaluation_of_an_unknown_trial_is_told(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    path = tmp_path / "evaluations/lenet5-mnist/trials/seed-0/metrics.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "key"}))
    (benchmark,), problems = spools.read(project.spool)
    assert benchmark.evaluations == () and len(problems) == 1 and str(path) in problems[0]


def test_an_evaluation_goes_to_the_trial_it_was_made_of(tmp_path: Path) -> None:
    """After a change of the recipe the old evaluation lies there until evaluate runs again."""
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    new = project.trial("lenet5-mnist", "mnist", 7, epochs=2)
    (benchmark,) = spools.read(project.spool)[0]
    assert {trial.key: trial.evaluation is not None for trial in benchmark.trials}[new] is False
    assert [trial.seed for trial in benchmark.evaluations] == [0]


def test_rows_that_share_their_weights_have_runs_and_evaluations_of_their_own(tmp_path: Path) -> None:
    """As an error and a top-5 error of the same net: one trial in the store, collected twice."""
    project = Project(tmp_path)
    key = project.trial("lenet5-mnist", "mnist", 0, epochs=2)
    for name, error in (("lenet5-mnist", 1.0), ("another-mnist", 30.0)):
        project.evaluation(name, "mnist", {0: key}, error, DIGITS)
        shutil.copytree(tmp_path / "store" / key, tmp_path / "runs" / name / "seed-0")
    project.ledger()
    found, problems = records.all_runs(project.spool)
    trials = {record.identity: record for record in found if record.tags["kind"] == "trial"}
    assert problems == [] and trials.keys() == {f"trial:{key}", f"trial:{key}/another-mnist"}
    errors = [p.value for one in trials.values() for p in one.points if p.key == "test/error"]
    assert 0 < min(errors) < 5 < 20 < max(errors) and len(errors) == 2
    parents = {record.identity for record in found if record.tags["kind"] == "benchmark"}
    assert {one.parent for one in trials.values()} == parents


def test_a_row_borrows_all_its_evaluations_from_one_row_or_none(tmp_path: Path) -> None:
    """An evaluation of one row has no test images of another's, and may look at them in another way."""
    project = Project(tmp_path)
    keys = {seed: project.trial("lenet5-mnist", "mnist", seed, epochs=2) for seed in (0, 1)}
    for name, seeds in (("lenet5-mnist", (0,)), ("another-mnist", (0, 1))):
        evaluated = {seed: keys[seed] for seed in seeds}
        project.evaluation(name, "mnist", evaluated, 1.0, DIGITS)
        arrays.write(
            tmp_path / f"evaluations/{name}/examples.npz",
            images=np.zeros((1, 1, 28, 28), dtype=np.uint8),
            index=np.zeros(1, dtype=np.int64),
            keys=np.array([*evaluated.values()]),
        )

    def evaluated_as() -> list[set[tuple[str, int]]]:
        found = spools.read(project.spool)[0]
        return [{(one.folder.parents[1].name, one.seed) for one in of.evaluations} for of in found]

    assert evaluated_as() == [{("lenet5-mnist", 0)}]
    for record in records.all_runs(project.spool)[0]:
        for make in record.files:
            assert make()
    shutil.rmtree(tmp_path / "evaluations/lenet5-mnist")
    assert evaluated_as() == [{("another-mnist", 0), ("another-mnist", 1)}]
    project.evaluation("third-mnist", "mnist", {1: keys[1]}, 1.0, DIGITS)
    assert evaluated_as() == [set()]


def test_a_subset_that_the_ledger_names_is_no_other_experiment(tmp_path: Path) -> None:
    """The ledger says which classes a data set is cut to; a trial names the data set alone."""
    project = Project(tmp_path)
    project.benchmark("alexnet-ilsvrc100", "ilsvrc100", 40.0, 2)
    project.rows[0]["dataset"] = "ilsvrc100: the first 100 classes"
    project.ledger()
    found, problems = records.all_runs(project.spool)
    assert problems == [] and [one.tags["kind"] for one in found] == ["benchmark", "trial", "trial"]
    assert {one.experiment for one in found} == {"ilsvrc100"} and found[0].params["dataset"] == "ilsvrc100"


def test_collected_runs_stand_in_for_a_missing_store(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    (folder,) = (tmp_path / "store").iterdir()
    shutil.move(folder, tmp_path / "runs/lenet5-mnist/seed-0")
    (tmp_path / "runs/lenet5-mnist/seed-0/trial.json").unlink()
    (benchmark,) = spools.read(project.spool)[0]
    assert benchmark.dataset == "mnist" and len(benchmark.trials) == len(benchmark.evaluations) == 1


def test_status_of_a_trial_whose_process_is_gone(tmp_path: Path) -> None:
    project = Project(tmp_path)
    key = project.trial("lenet5-mnist", "mnist", 0, epochs=9, done=2)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for state, pid, status in (
        ("running", os.getpid(), "RUNNING"),
        ("running", gone.pid, "KILLED"),
        ("failed", 1, "FAILED"),
    ):
        project.progress(key, state, 2, 9, pid)
        assert spools.read(project.spool)[0][0].trials[0].status == status


@pytest.mark.parametrize("progress", [None, "{"])
def test_a_trial_that_was_killed_before_its_first_report_does_not_run_for_ever(
    tmp_path: Path, progress: str | None
) -> None:
    """Before that it reads the data and fits ZCA, which takes minutes at most."""
    project = Project(tmp_path)
    key = project.trial("lenet5-mnist", "mnist", 0, epochs=9, done=0)
    folder = tmp_path / "store" / key
    (folder / "progress.json").unlink()
    if progress is not None:
        project.write(f"store/{key}/progress.json", progress)
    (benchmark,) = spools.read(project.spool)[0]
    assert (benchmark.status, benchmark.trials[0].status, benchmark.ended) == ("RUNNING", "RUNNING", None)
    last = time.time() - spools.SILENT_S - 1
    os.utime(folder / "trial.json", (last, last))
    (benchmark,) = spools.read(project.spool)[0]
    assert (benchmark.status, benchmark.trials[0].status) == ("KILLED", "KILLED")
    assert benchmark.ended == benchmark.trials[0].ended == pytest.approx(last, abs=1)


def test_a_resumed_trial_runs_though_it_has_not_reported_yet(tmp_path: Path) -> None:
    """Its progress.json is a killed run's; its training has written trial.json again."""
    project = Project(tmp_path)
    key = project.trial("lenet5-mnist", "mnist", 0, epochs=9, done=2)
    folder = tmp_path / "store" / key
    for state in ("running", "failed"):
        project.progress(key, state, 2, 9, 2**22 - 1)
        written = (folder / "progress.json").stat().st_mtime
        for seconds, status in ((-1, "KILLED" if state == "running" else "FAILED"), (1, "RUNNING")):
            os.utime(folder / "trial.json", (written + seconds, written + seconds))
            assert spools.read(project.spool)[0][0].trials[0].status == status
        last = written - spools.SILENT_S
        for name, seconds in (("progress.json", -2), ("trial.json", -1)):
            os.utime(folder / name, (last + seconds, last + seconds))
        assert spools.read(project.spool)[0][0].trials[0].status == "KILLED"


NO_TIMES: dict[str, Any] = {
    "null": None,
    "text": "soon",
    "list": [],
    "nan": float("nan"),
    "infinite": float("inf"),
    "huge": 10**400,
}


@pytest.mark.parametrize("told", NO_TIMES.values(), ids=NO_TIMES)
def test_progress_at_no_time_is_of_no_living_process(tmp_path: Path, told: Any) -> None:
    here = {"pid": os.getpid(), "host": socket.gethostname()}
    assert spools.alive({**here, "time": time.time()})
    assert not spools.alive({**here, "time": told})
    assert not spools.alive({**here, "time": time.time(), "pid": 2**70})
    project = Project(tmp_path)
    key = project.trial("lenet5-mnist", "mnist", 0, epochs=9, done=2)
    project.write(f"store/{key}/progress.json", {**here, "state": "running", "time": told})
    record = next(r for r in records.all_runs(project.spool)[0] if r.identity == f"trial:{key}")
    assert (record.status, record.ended) == ("KILLED", NOW + 14)  # the end of its second epoch


def test_a_copy_beside_the_trials_is_not_one_of_them(tmp_path: Path) -> None:
    """``cp -r seed-0 seed-0.bak``, below evaluations/ and runs/, with a key of its own."""
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 2)
    before = records.all_runs(project.spool)
    identity = json.loads(next((tmp_path / "store").glob("*/result.json")).read_text())
    for stray in ("seed-0.bak", "seed-", "seed-x"):
        folder = tmp_path / "evaluations/lenet5-mnist/trials"
        shutil.copytree(folder / "seed-0", folder / stray)
        project.write(f"runs/lenet5-mnist/{stray}/result.json", {**identity, "key": f"of {stray}"})
    after = records.all_runs(project.spool)
    assert after[1] == before[1] == []
    assert [r.mark for r in after[0]] == [r.mark for r in before[0]] and len(after[0]) == 3


def replaced_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


SEED_0 = "evaluations/a-mnist/trials/seed-0"


LINE = {"epoch": 1, "time": 1, "seconds": 1}


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("store/{key}/trial.json", lambda path: change(path, seed="0"), "seed is '0'; expected a whole number"),
    ("store/{key}/trial.json", lambda path: change(path, key=[1]), "key is [1]; expected text"),
    ("store/{key}/trial.json", lambda path: change(path, benchmark={}), "benchmark is {}; expected text"),
    ("store/{key}/trial.json", lambda path: change(path, dataset={"name": 1}), "dataset.name is 1; expected text"),
    ("store/{key}/trial.json", lambda path: path.write_bytes(b"\xff"), "can't decode"),
    ("store/{key}/trial.json", lambda path: path.write_text("[" * 10**5), "recursion"),
    ("store/{key}/trial.json", replaced_by_a_folder, "is no regular file"),
    ("store/{key}/trial.json", replaced_by_a_pipe, "is no regular file"),
    (
        "store/{key}/result.json",
        lambda path: change(path, finished="now"),
        "finished is 'now'; expected a number",
    ),
    ("store/{key}/result.json", lambda path: change(path, wall_s=None), "wall_s is null; expected a number"),
    ("store/{key}/result.json", lambda path: change(path, versions="all"), "versions is 'all'; expected a mapping"),
    (
        "store/{key}/result.json",
        lambda path: change(path, parameters="60"),
        "parameters is '60'; expected a whole",
    ),
    ("store/{key}/result.json", lambda path: path.write_text(path.read_text().replace("8571", "8572")), "is damaged"),
    ("store/{key}/progress.json", lambda path: path.write_text("[]"), "it holds a list; expected an object"),
    ("store/{key}/curve.jsonl", lambda path: rewrite(path, "epoch 1\n"), "is damaged"),
    ("store/{key}/curve.jsonl", lambda path: rewrite(path, "1\n"), "it holds a int; expected one JSON object a line"),
    ("store/{key}/curve.jsonl", lambda path: rewrite(path, '{"epoch": 0}\n'), " line 1: epoch is 0"),
    ("store/{key}/curve.jsonl", lambda path: rewrite(path, json.dumps({**LINE, "time": -1}) + "\n"), "1: time is -1"),
    (
        "store/{key}/curve.jsonl",
        lambda path: rewrite(path, json.dumps({**LINE, "loss": "low"}) + "\n"),
        "loss is 'low'",
    ),
    (f"{SEED_0}/metrics.json", lambda path: change(path, key={}), "key is {}"),
    (f"{SEED_0}/metrics.json", lambda path: change(path, error="1"), "error is '1'; expected a number"),
    (f"{SEED_0}/metrics.json", lambda path: change(path, error=99.0), "expected files of one evaluation"),
    (f"{SEED_0}/metrics.json", lambda path: change(path, claimed_on=[1]), "claimed_on is [1]; expected a mapping"),
    (f"{SEED_0}/predictions.npz", replaced_by_a_folder, "is no regular file"),
    (f"{SEED_0}/predictions.npz", replaced_by_a_pipe, "is no regular file"),
    ("evaluations/a-mnist/classes.json", lambda path: change(path, classes=None), "classes is null; expected a list"),
    ("report/ledger.json", lambda path: change(path, claim=None), " row 1: claim is null; expected a mapping"),
    ("report/ledger.json", lambda path: change(path, dataset=[1]), " row 1: dataset is [1]; expected text"),
    ("report/ledger.json", lambda path: change(path, mean="1"), " row 1: mean is '1'; expected a number"),
    ("report/ledger.json", lambda path: change(path, ci95=[1]), " row 1: ci95 is [1]; expected a list of 2"),
    (
        "report/ledger.json",
        lambda path: path.write_text("[1, " + path.read_text()[1:]),
        " row 1 is 1; expected a",
    ),
]


@pytest.mark.parametrize(("file", "damage", "says"), DAMAGES, ids=[f"{file} {says}" for file, _, says in DAMAGES])
def test_a_damaged_file_costs_itself_and_one_line(
    tmp_path: Path, file: str, damage: Callable[[Path], object], says: str
) -> None:
    project = Project(tmp_path)
    project.benchmark("a-mnist", "mnist", 1.0, 2)
    project.benchmark("b-mnist", "mnist", 5.0, 2, at=1000)
    project.ledger()
    before, problems = records.all_runs(project.spool)
    assert problems == [] and len(before) == 6
    key = next(r for r in before if r.name == "a-mnist seed 0").identity.partition(":")[2]
    path = tmp_path / file.format(key=key)
    damage(path)
    after, (problem,) = records.all_runs(project.spool)
    assert problem.startswith(str(path)) and says in problem and "\n" not in problem
    marks = {r.identity: r.mark for r in after}
    assert all(marks[r.identity] == r.mark for r in before if r.name.startswith("b-mnist"))
    lost = sum(map(kept, before)) - sum(map(kept, after))
    all_of_it = {"trial.json": 4, "classes.json": 3}  # a trial; the evaluations of two seeds, and that of both
    assert lost <= all_of_it.get(path.name, 2)


def kept(record: cursors.RunRecord) -> int:
    """How much of a run is there: itself, its curve, its provenance, its evaluation, its row of the ledger."""
    keys = {point.key for point in record.points}
    return 1 + bool(record.curve) + sum(key in keys for key in ("cost/wall_s", "test/error", "ledger/mean"))
