"""Damage to what the store and ``runs/`` hold: said in one line, set aside, made anew, and never a result."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import evaluate, train, trial
from pipelines.cluster import campaign, estimate
from pipelines.command import files
from pipelines.command.errors import UserError
from pipelines.command.files import TEMPORARY, DamagedError, read_json, read_lines, write_bytes, write_json
from pipelines.config.benchmarks import Budget
from pipelines.config.params import load_params
from pipelines.config.recipes import Optimiser, Recipe, Subset
from pipelines.data.transforms import Preprocess
from pipelines.training import checkpoint, spec, status, store, tensors, trainer
from pipelines.training.inputs import Inputs
from tests import projects
from tests.conftest import ROOT
from tests.disturbed import same_weights
from tests.processes import environment

NAME = "linear-mnist"
BENCHMARK = dataclasses.replace(
    load_params(ROOT / "params.yaml").benchmark(NAME),
    recipe=Recipe(
        batch=128,
        optimiser=Optimiser(name="sgd", lr=1e-6),
        preprocess=({"raw": {}}, {"mean_subtract": {"per": "pixel"}}),
        subset=Subset(first=300),
    ),
    budgets={name: Budget(epochs=2, seeds=(0, 1)) for name in ("paper", "laptop")},
)
DEEP = "[" * 100_000
Damage = Callable[[Path], None]


@pytest.fixture
def place(tmp_path: Path, mnist_slice: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with datasets and nothing else; the test runs in it."""
    (tmp_path / "datasets").symlink_to(mnist_slice)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUN_STORE", raising=False)
    return tmp_path


@pytest.fixture
def planned(place: Path) -> list[spec.Spec]:
    """Two trials of two epochs."""
    where: dict[str, Any] = {"data": Path("datasets"), "root": Path("store"), "threads": 1}
    return [spec.plan(BENCHMARK, "laptop", seed, **where) for seed in (0, 1)]


def lowest_bits(path: Path) -> None:
    """Of every 100th weight: it loads as before, and nearly all answers are the same."""
    found = torch.load(path, weights_only=True)
    for value in found.values():
        bits = value.view(-1).view(torch.int32)
        bits[::100] ^= 1
    torch.save(found, path)


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "something").touch()


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def nowhere(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")


def ring(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def text(content: str) -> Damage:
    def damage(path: Path) -> None:
        path.write_text(content)

    return damage


def another_number(path: Path) -> None:
    path.write_text(path.read_text().replace('"final_loss": ', '"final_loss": 1'))


def other_seeds(path: Path) -> None:
    """What another seed left, whole in itself."""
    (other,) = (one for one in path.parent.parent.glob(f"*/{path.name}") if one != path)
    shutil.copy(other, path)


def all_of_the_other_seed(path: Path) -> None:
    for name in ("weights.pt", "curve.jsonl", "result.json"):
        other_seeds(path.parent / name)


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *(("weights.pt", damage) for damage in (lowest_bits, other_seeds, half, folder, pipe, nowhere, gone)),
        *(("curve.jsonl", damage) for damage in (one_bit, other_seeds, pipe, text(DEEP))),
        *(("result.json", damage) for damage in (another_number, all_of_the_other_seed, half, folder, pipe, ring)),
        *(("result.json", text(content)) for content in ("{}", "[]", "null", DEEP, '{"files": null, "digest": NaN}')),
    ],
)
def test_a_damaged_result_is_set_aside_and_its_trial_trained_again(
    planned: list[spec.Spec], file: str, damage: Damage, capsys: pytest.CaptureFixture[str]
) -> None:
    one = planned[0]
    for each in planned:
        trainer.run(each)
    shutil.copytree(one.files.folder, "whole")
    damage(one.files.folder / file)
    assert [each.files.finished for each in planned] == [False, True]
    capsys.readouterr()
    trainer.run(one)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(str(one.files.folder)) and line.endswith(
        "set aside, and linear-mnist seed 0 is trained again"
    )
    assert one.files.finished and same_weights(one.files.weights, Path("whole/weights.pt"))
    kept = sorted(path.name for path in one.files.folder.glob("*.damaged"))
    assert set(kept) <= {"curve.jsonl.damaged", "result.json.damaged", "weights.pt.damaged"} and kept
    damage(one.files.folder / file)
    trainer.run(one)
    assert sorted(path.name for path in one.files.folder.glob("*.damaged")) == kept  # however often it happens


class StoppedError(Exception):
    """By the test."""


@pytest.fixture
def halfway(planned: list[spec.Spec], monkeypatch: pytest.MonkeyPatch) -> spec.Spec:
    """A trial that ended after the first of its two epochs, and ``whole/weights.pt``, where it should come to."""

    one, _ = planned

    def stop(told: Any) -> None:
        if one.files.checkpoint.exists():
            raise StoppedError

    trainer.run(one)
    Path("whole").mkdir()
    one.files.weights.rename("whole/weights.pt")
    shutil.rmtree(one.files.folder)
    with monkeypatch.context() as often:
        often.setattr(checkpoint.CheckpointCallback, "_agree", lambda self, now, number: True)
        often.setattr(checkpoint, "PROGRESS_EVERY_S", 0.0)
        with pytest.raises(StoppedError):
            trainer.run(one, watch=stop)
    return one


def sealed(change: Callable[[dict[str, Any]], None]) -> Damage:
    """A whole file, of other content."""

    def damage(path: Path) -> None:
        found = torch.load(path, weights_only=True)
        change(found)
        tensors.save_sealed(path, found)

    return damage


def other_shape(found: dict[str, Any]) -> None:
    found["state_dict"]["model.1.weight"] = torch.zeros(10, 783)


def other_state(found: dict[str, Any]) -> None:
    found["optimizer_states"][0]["state"] = {0: {"momentum_buffer": torch.zeros(10, 783)}}


def other_key(found: dict[str, Any]) -> None:
    found["callbacks"]["CheckpointCallback"]["key"] = "f" * 16


def no_callbacks(found: dict[str, Any]) -> None:
    found["callbacks"] = None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        *((damage, "it does not end in its sha256") for damage in (one_bit, half, text(""), text("no checkpoint"))),
        *((damage, "is no regular file") for damage in (folder, pipe)),
        (ring, "Too many levels of symbolic links"),
        (sealed(other_key), f"belongs to another trial (key {'f' * 16})"),
        *((sealed(change), "holds tensors of other shapes than linear") for change in (other_shape, other_state)),
        (sealed(no_callbacks), "is foreign"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_its_trial_begins_again(
    halfway: spec.Spec, damage: Damage, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(halfway.files.checkpoint)
    trainer.run(halfway)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{halfway.files.checkpoint} ") and words in line
    assert line.endswith("set aside, and linear-mnist seed 0 is trained from the start")
    assert halfway.files.checkpoint.with_name("last.ckpt.damaged").is_symlink() or damage is not ring
    assert read_json(halfway.files.result)["resumed"] == 0
    assert same_weights(halfway.files.weights, Path("whole/weights.pt"))


def test_a_whole_checkpoint_is_gone_on_from(halfway: spec.Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    as_ever = files.reading

    def noted(path: Path) -> Any:
        opened.append(path)
        return as_ever(path)

    monkeypatch.setattr(files, "reading", noted)
    (halfway.files.folder / f".last.ckpt.{TEMPORARY}.host.1").touch()  # a killed writer's
    trainer.run(halfway)
    assert opened.count(halfway.files.checkpoint) == 1  # large ones are slow to read
    assert read_json(halfway.files.result)["resumed"] == 1
    assert same_weights(halfway.files.weights, Path("whole/weights.pt"))
    assert sorted(path.name for path in halfway.files.folder.iterdir()) == [
        *("curve.jsonl", "lock", "progress.json", "result.json", "trial.json", "weights.pt")
    ]


def mean(preprocess: Preprocess) -> torch.Tensor:
    found: torch.Tensor = preprocess.state_dict()["1.mean"]
    return found


@pytest.mark.parametrize(
    "damage",
    [
        *(one_bit, half, text(""), folder, pipe, sealed(lambda found: found.clear())),
        sealed(lambda found: found.update(of=["another recipe"])),
    ],
)
def test_what_was_fitted_and_is_damaged_is_fitted_again(
    planned: list[spec.Spec], damage: Damage, capsys: pytest.CaptureFixture[str]
) -> None:
    one = planned[0]
    before, _ = Inputs.of(one).transforms
    (path,) = (one.store / "fitted").glob("*.pt")
    damage(path)
    after, _ = Inputs.of(one).transforms
    assert capsys.readouterr().out.endswith("set aside, and fitted again\n")
    assert torch.equal(mean(before), mean(after))
    again, _ = Inputs.of(one).transforms
    assert capsys.readouterr().out == "" and torch.equal(mean(again), mean(after))


def test_the_stage_finds_all_damage_before_it_trains(
    planned: list[spec.Spec], capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker of Ray's says it to nobody."""
    for each in planned:
        trainer.run(each)
    (fitted,) = (planned[0].store / "fitted").glob("*.pt")
    one_bit(fitted)
    lowest_bits(planned[0].files.weights)
    planned[1].files.result.unlink()
    planned[1].files.checkpoint.write_bytes(b"torn")
    campaign.inspect(planned)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.endswith("set aside, and linear-mnist seed 0 is trained again")
    assert second.endswith("set aside, and linear-mnist seed 1 is trained from the start")
    assert third.startswith(str(fitted)) and third.endswith("set aside, and made again where it is needed")
    campaign.inspect(planned)
    assert capsys.readouterr().out == "" and not any(each.files.finished for each in planned)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *(("weights.pt", damage) for damage in (lowest_bits, other_seeds, gone)),
        *(("result.json", damage) for damage in (another_number, all_of_the_other_seed, text(DEEP), folder)),
        ("curve.jsonl", one_bit),
    ],
)
def test_no_damaged_copy_is_evaluated_and_train_collects_it_anew(
    planned: list[spec.Spec], file: str, damage: Damage
) -> None:
    for each in planned:
        trainer.run(each)
    train.collect(planned)
    damage(Path("runs/linear-mnist/seed-0") / file)
    with pytest.raises(UserError) as caught:
        evaluate.evaluate(BENCHMARK, planned, "cpu")
    line = str(caught.value)
    assert line.startswith("runs/linear-mnist/seed-0") and line.endswith(
        "run the stage train, which collects it anew: python -m pipelines.train linear-mnist, or dvc repro"
    )
    assert not Path("evaluations/linear-mnist").exists()
    train.collect(planned)
    evaluate.evaluate(BENCHMARK, planned, "cpu")


# --- other things where files and folders are expected -----------------------------------------------------------


@pytest.mark.parametrize("make", [text("a file"), pipe, nowhere])
@pytest.mark.parametrize("path", ["store", "store/fitted", "runs", "runs/linear-mnist", "store/{key}"])
def test_a_place_that_is_no_folder_is_found_before_anything_is_trained(
    planned: list[spec.Spec], path: str, make: Damage
) -> None:
    wrong = Path(path.format(key=planned[0].key))
    wrong.parent.mkdir(exist_ok=True)
    make(wrong)
    with pytest.raises(UserError, match=rf"{wrong} is no folder; expected one"):
        train.require_places([NAME])
        campaign.inspect(planned)


def test_a_run_store_that_is_a_file_is_found_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    projects.copy_params(place)
    monkeypatch.setenv("RUN_STORE", "/etc/passwd")
    for main, words in ((train.main, ["train", NAME]), (trial.main, ["trial", NAME])):
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(UserError, match=r"^/etc/passwd is no folder; expected one$"):
            main()
    monkeypatch.setenv("RUN_STORE", "/etc/passwd/store")
    with pytest.raises(UserError, match=r"^/etc/passwd is no folder; expected one, to hold store$"):
        train.require_places([])


@pytest.mark.parametrize(("make", "words"), [(folder, "Is a directory"), (pipe, "no regular file"), (ring, "Too many")])
@pytest.mark.parametrize("file", ["{key}/lock", "fitted/{fitted}.lock"])
def test_a_lock_that_is_no_file_is_one_line(planned: list[spec.Spec], file: str, make: Damage, words: str) -> None:
    one = planned[0]
    assert Inputs.of(one).transforms
    (fitted,) = (one.store / "fitted").glob("*.pt")
    path = one.store / file.format(key=one.key, fitted=fitted.stem)
    path.parent.mkdir(exist_ok=True)
    make(path)
    with pytest.raises(UserError, match=rf"^{path}.*{words}.*or none$"):
        trainer.run(one)


@pytest.mark.parametrize("file", ["trial.json", "progress.json", "curve.jsonl"])
def test_a_folder_where_a_trial_writes_is_one_line(planned: list[spec.Spec], file: str) -> None:
    one = planned[0]
    one.files.folder.mkdir(parents=True)
    folder(one.files.folder / file)
    with pytest.raises(UserError, match=rf"{file} is a folder; expected a file$"):
        trainer.run(one)


def test_a_folder_that_is_read_only_is_found_before_anything_is_trained(place: Path) -> None:
    Path("runs").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "runs"], capture_output=True).returncode:
        pytest.skip("a file system of its own can't be mounted here")
    try:
        with pytest.raises(UserError, match=r"^runs can't be written to; expected a folder that can$"):
            train.require_places([NAME])
    finally:
        subprocess.run(["umount", "-l", "runs"], check=True)


NOT_NUMBERS = ["null", '"0.5"', "[1]", "{}", "NaN", "Infinity", "-1", "true", "1" + "0" * 400]


@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_a_rate_that_is_no_number_counts_as_unknown(planned: list[spec.Spec], value: str) -> None:
    one = planned[0]
    path = store.default() / "rates.json"
    write_bytes(path, f'{{"{estimate.rate_key(one)}": {value}, "another": 3}}'.encode())
    assert estimate.rates() == {"another": 3.0} and estimate.trial_seconds(one) == 0.0


@pytest.mark.parametrize("key", ["time", "epoch", "epochs", "loss", "images_per_s", "eta_s"])
@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_progress_that_makes_no_sense_counts_as_none(planned: list[spec.Spec], key: str, value: str) -> None:
    one = planned[0]
    told = {"state": "running", "time": 5, "epoch": 1, "epochs": 2, "loss": 0.1, "images_per_s": 9.0, "eta_s": 1}
    content = json.dumps(told | {key: "?"}).replace('"?"', value)
    write_bytes(one.files.progress, content.encode())
    absent = key in ("loss", "images_per_s", "eta_s") and value in ("null", "-1")
    assert (status.read(one.files.progress, since=0.0) is not None) == absent
    write_json(store.default() / "rates.json", {estimate.rate_key(one): 150.0})
    assert estimate.trial_seconds(one) in (2.0, 4.0)  # of 2 epochs of 300 images
    assert status.line(one.name, status.read(one.files.progress, since=0.0))


@pytest.mark.parametrize("content", [DEEP, "null", "3", '"text"', "NaN", "{" * 9, b"\xff\xfe".decode("latin-1")])
def test_json_of_another_kind_is_damage(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(content + "\n", encoding="latin-1")
    for read in (read_json, read_lines):
        with pytest.raises(DamagedError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path} is damaged") and len(str(caught.value)) < 300 + len(str(path))
    assert status.read(path, since=0.0) is None


# --- two users ---------------------------------------------------------------------------------------------------

TWO_USERS = """
    import os, pickle, sys
    from pipelines.training import checkpoint, trainer
    one = pickle.load(open(sys.argv[1], "rb"))
    checkpoint.CheckpointCallback._agree = lambda self, now, number: True
    checkpoint.PROGRESS_EVERY_S = 0.0

    def stop(told):
        if one.files.checkpoint.exists():
            os._exit(0)

    for user, watch in ((65533, stop), (65534, print)):
        if not os.fork():
            os.setgroups([])
            os.setgid(4242)
            os.setuid(user)
            os.umask(0o002)
            trainer.run(one, watch=watch)
            os._exit(0)
        assert os.wait()[1] == 0
"""


def test_a_store_serves_two_users_of_a_group(halfway: spec.Spec, mnist_slice: Path) -> None:
    """One begins a trial, the other goes on with it, both with umask 002."""
    if os.getuid() != 0:
        pytest.skip("only root can be two others")
    with tempfile.TemporaryDirectory() as shared:  # pytest's own folders are closed to others
        home = Path(shared)
        os.chown(home, -1, 4242)
        home.chmod(0o2775)
        shutil.copytree(mnist_slice / "mnist", home / "datasets/mnist")
        one = dataclasses.replace(halfway, data=home / "datasets", store=home / "store")
        (home / "spec").write_bytes(pickle.dumps(one))
        (home / "spec").chmod(0o644)
        code = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(TWO_USERS), str(home / "spec")]
        subprocess.run(code, env=environment(), cwd=home, check=True, stdout=subprocess.DEVNULL)
        assert read_json(one.files.result)["resumed"] == 1
        assert same_weights(one.files.weights, Path("whole/weights.pt"))
        for path in (home / "store").rglob("*"):
            about = path.stat()
            assert (about.st_gid, about.st_mode & 0o060) == (4242, 0o060), path
