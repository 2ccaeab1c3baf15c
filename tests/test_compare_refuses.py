"""One line, and nothing written, for whatever is missing or damaged among the inputs of the ledger."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import compare
from pipelines.command.errors import UserError
from pipelines.command.files import SEAL, SHA256_DIGITS
from pipelines.config.params import load_params
from pipelines.results import arrays
from pipelines.results.ledger import gather
from tests.report_inputs import MADE, SEEDS, claimed_on, edit_arrays, edit_json, make


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("report") / "project", per_cell=2, names=("lenet5-mnist", "ordinary-cifar10"))


@pytest.fixture
def project(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project to damage, as the working directory."""
    shutil.copytree(pristine, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def report() -> None:
    params = load_params()
    compare.write(params, gather(params))


SEED = "evaluations/lenet5-mnist/trials/seed-3"
RUN = "runs/lenet5-mnist/seed-3"
MARKED_SEED, ON = "evaluations/ordinary-cifar10/trials/seed-3", claimed_on(MADE["ordinary-cifar10"])
OTHER = {**ON, "first": 0, "error": 1.0, "accuracy": 99.0}
FILES = [
    *(f"{SEED}/metrics.json", f"{SEED}/predictions.npz", "evaluations/lenet5-mnist/classes.json"),
    *("evaluations/lenet5-mnist/examples.npz", f"{RUN}/result.json", f"{RUN}/curve.jsonl"),
]


def refused(project: Path, file: str) -> str:
    """The line with which compare refuses, having written nothing."""
    with pytest.raises(UserError) as caught:
        report()
    line = str(caught.value)
    assert file in line
    assert "\n" not in line
    assert not (project / "report").exists()
    return line


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(project: Path, file: str) -> None:
    (project / file).unlink()
    assert "missing" in refused(project, file)


@pytest.mark.parametrize("file", [*FILES, "evaluations/lenet5-mnist/first_layer.npz"])
def test_a_damaged_file_is_named(project: Path, file: str) -> None:
    (project / file).write_bytes(b"{torn\n")
    assert "damaged" in refused(project, file)


@pytest.mark.parametrize("file", ["result.json", "curve.jsonl", "weights.pt"])
def test_what_is_not_as_its_trial_left_it_is_named(project: Path, file: str) -> None:
    """Though it reads well."""
    path = project / RUN / file
    path.write_text(path.read_text().replace("8000.0", "8001.0") if file != "weights.pt" else "other weights")
    assert "is damaged" in refused(project, f"{RUN}/{file}")


def test_no_seed_counts_twice(project: Path) -> None:
    """Both folders of a seed hold another seed's files, each of which vouches for itself."""
    first, second = sorted((project / RUN).parent.iterdir())[:2]
    for folder in ("runs/lenet5-mnist", "evaluations/lenet5-mnist/trials"):
        shutil.copytree(project / folder / second.name, project / folder / first.name, dirs_exist_ok=True)
    refused(project, f"runs/lenet5-mnist/{first.name}/result.json: seed is {second.name[5:]}, and {first.name[5:]} in ")


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        (f"{SEED}/metrics.json", {"error": "1.0"}, "error is '1.0'; expected a number, without the quotes"),
        (f"{SEED}/metrics.json", {"accuracy": 101}, "accuracy is 101.0; expected per cent, 0 to 100"),
        (f"{SEED}/metrics.json", {"error": float("nan")}, "error is nan; expected per cent, 0 to 100"),
        (f"{SEED}/metrics.json", {"error": 50.0}, "expected files of one evaluation"),
        (f"{SEED}/metrics.json", {"key": "f" * 16}, f"key is '{'f' * 16}', and '"),
        ("evaluations/lenet5-mnist/classes.json", {"classes": ["one"]}, "expected at least two names"),
        (
            f"{SEED}/metrics.json",
            {"claimed_on": OTHER},
            ", and null in models/lenet.yaml: lenet5-mnist; expected the same",
        ),
        (f"{MARKED_SEED}/metrics.json", {"claimed_on": None}, "is null, and {'split': 'train', 'first': 40000"),
        (f"{MARKED_SEED}/metrics.json", {"claimed_on": OTHER}, "claimed_on.first is 0, and 40000 in models/"),
        (f"{MARKED_SEED}/metrics.json", {"claimed_on": ON}, "claimed_on.error is missing; expected a number"),
        ("evaluations/lenet5-mnist/classes.json", {"classes": ["one", 2]}, "classes[1] is 2; expected text"),
        ("evaluations/lenet5-mnist/classes.json", {"test": 10**400}, "expected a whole number within ±2^63"),
        ("evaluations/lenet5-mnist/classes.json", {"test": 0}, "test is 0; expected at least 1"),
        (
            "evaluations/lenet5-mnist/classes.json",
            {"shape": [1, None, 28]},
            "shape[1] is null; expected a whole",
        ),
        (
            "evaluations/lenet5-mnist/classes.json",
            {"dataset": "cifar10"},
            "dataset is 'cifar10', and 'mnist' in models/lenet.yaml",
        ),
        (f"{RUN}/result.json", {"epochs": None}, "epochs is null; expected a number"),
        (f"{RUN}/result.json", {"finished": 1e300}, "finished is 1e+300; expected a number from 0 to 1e+11"),
        (f"{RUN}/result.json", {"images_per_s": "fast"}, "images_per_s is 'fast'; expected a number"),
        (f"{RUN}/result.json", {"resumed": [1]}, "resumed is [1]; expected a whole number"),
        (f"{RUN}/result.json", {"versions": []}, "versions is []; expected a mapping"),
    ],
)
def test_a_wrong_value_is_named(project: Path, file: str, changes: dict[str, object], words: str) -> None:
    edit_json(project / file, **changes)
    assert words in refused(project, file)


def test_predictions_of_other_images_or_classes_are_named(project: Path) -> None:
    file = f"{SEED}/predictions.npz"
    edit_arrays(project / file, lambda held: held["predicted"].__setitem__(7, 10))
    assert "holds answers up to class 10; expected up to 9" in refused(project, file)
    edit_arrays(project / file, lambda held: held.update({key: held[key][:7] for key in held}))
    assert "labels is of shape (7,); expected shape (400,)" in refused(project, file)


EXAMPLES = "evaluations/lenet5-mnist/examples.npz"


@pytest.mark.parametrize("file", [EXAMPLES, "evaluations/lenet5-mnist/first_layer.npz", f"{SEED}/predictions.npz"])
def test_arrays_that_evaluate_did_not_write_are_one_line(project: Path, file: str) -> None:
    """An archive that NumPy reads, without a digest and with that of other contents."""
    sealed = (project / file).read_bytes()
    np.savez(project / file, filters=np.ones((3, 1, 5, 5)))
    assert "is damaged, or older than digests" in refused(project, file)
    (project / file).write_bytes((project / file).read_bytes() + sealed[-len(SEAL) - SHA256_DIGITS :])
    assert "is damaged" in refused(project, file)


def test_examples_of_another_evaluation_are_one_line(project: Path) -> None:
    """As where DVC checked out this file alone."""
    edit_arrays(project / EXAMPLES, lambda held: held["keys"].__setitem__(3, "0" * 16))
    assert "has nothing of seed 3, trial " in refused(project, EXAMPLES)


def test_the_filters_of_a_diverged_net_are_shown_as_zeros(project: Path) -> None:
    path = project / "evaluations/lenet5-mnist/first_layer.npz"
    edit_arrays(path, lambda held: held["filters"].__setitem__(0, np.nan))
    edit_arrays(path, lambda held: held["filters"].__setitem__(1, np.inf))
    report()
    assert not arrays.first_layer(path)["filters"][:2].any()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "half of it": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "nested": lambda path: path.write_bytes(b"[" * 100_000),
    "null": lambda path: path.write_bytes(b"null\n"),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe\n"),
    "digits": lambda path: path.write_bytes(b"9" * 5_000 + b"\n"),
}
KINDS: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("file", FILES)
def test_whatever_a_file_has_become_is_one_line(project: Path, file: str) -> None:
    path = project / file
    whole = path.read_bytes()
    for damage in DAMAGE.values():
        damage(path)
        check(refused(project, path.parent.name))
        path.write_bytes(whole)
    for become in KINDS.values():
        path.unlink()
        become(path)
        check(refused(project, path.parent.name))
        path.rmdir() if path.is_dir() else path.unlink()
        path.write_bytes(whole)
    report()


def check(line: str) -> None:
    assert line.isprintable() and len(line) < 400


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "a folder"])
def test_a_report_that_is_no_folder_is_one_line(project: Path, kind: str) -> None:
    KINDS[kind](project / "report")
    with pytest.raises(UserError, match=r"^report (is no folder; expected one|can't be made)"):
        report()


def test_a_page_that_is_a_folder_is_one_line_and_the_report_stays(project: Path) -> None:
    report()
    before = (project / "report/ledger.json").read_bytes()
    (project / "report/index.html").unlink()
    (project / "report/index.html").mkdir()
    edit_json(project / "runs/ordinary-cifar10/seed-1/result.json", git_dirty=True)
    with pytest.raises(UserError, match=r"^report/index.html is a folder; expected a file, or nothing$"):
        report()
    assert (project / "report/ledger.json").read_bytes() == before


@pytest.mark.parametrize("key", ["epoch", "loss", "train_error"])
def test_a_point_of_a_curve_that_is_none_is_one_line(project: Path, key: str) -> None:
    path = project / f"{RUN}/curve.jsonl"
    values: list[Any] = ["ten", True, [], {}, -(10**400)]
    for value in values:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines[4][key] = value
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        edit_json(project / f"{RUN}/result.json")  # which vouches for it
        assert f"curve.jsonl line 5: {key} is " in refused(project, f"{RUN}/curve.jsonl")


def test_what_a_trial_says_of_itself_is_no_markup_and_moves_no_cursor(project: Path) -> None:
    """Class names: results/test_page.py and test_evaluate.py; names of params.yaml hold no such characters."""
    for seed in SEEDS:
        said = "\x1b[31m<script>alert(1)</script>|`\u202e\ud800\n## no heading"
        edit_json(project / f"runs/lenet5-mnist/seed-{seed}/result.json", hardware=said)
    report()
    for name in ("ledger.json", "index.html"):
        text = (project / "report" / name).read_text(encoding="utf-8")
        assert name == "ledger.json" or all(line.isprintable() for line in text.split("\n"))
        assert name == "ledger.json" or "<script>alert" not in text
        assert name == "index.html" or "\n## no heading" not in text
    assert json.loads((project / "report/ledger.json").read_text(encoding="utf-8"))
