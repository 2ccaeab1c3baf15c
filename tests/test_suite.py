"""Guards the command that switches suites: it writes suite.yaml whole, as DVC reads it, or one line and exit 2."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.utils.serialize import load_yaml

from pipelines import suite
from pipelines.command import errors
from pipelines.command.errors import UserError
from pipelines.config import yamlfile
from pipelines.config.params import load_params
from tests import projects
from tests.conftest import ROOT
from tests.processes import environment

COMMITTED = ROOT / "suite.yaml"


@pytest.fixture
def params(tmp_path: Path) -> Path:
    """The params.yaml of a project that can be switched."""
    return projects.copy_params(tmp_path)


def test_switching_writes_suite_yaml_alone_and_back_leaves_every_byte(params: Path) -> None:
    before = {path: path.read_bytes() for path in params.parent.rglob("*.yaml") if path.name != "suite.yaml"}
    suite.switch("imagenette", params)
    active = load_params(params).suite
    assert (active.name, active.budget, active.benchmarks) == ("imagenette", "laptop", ("alexnet-imagenette",))
    assert yamlfile.read(params.parent / "suite.yaml")["suite"] == {
        "name": "imagenette",
        "datasets": ["imagenette"],
        "benchmarks": {"alexnet-imagenette": {"family": "alexnet", "dataset": "imagenette", "budget": "laptop"}},
    }
    suite.switch("laptop", params)
    assert (params.parent / "suite.yaml").read_bytes() == COMMITTED.read_bytes()
    assert {path: path.read_bytes() for path in before} == before
    assert set(params.parent.rglob("*.yaml")) == {*before, params.parent / "suite.yaml"}


@pytest.mark.parametrize("content", [b"", b"suite: {name: laptop}\n", b"[", b"suite: {name: gone}\n", None])
def test_whatever_the_file_holds_it_can_be_switched(params: Path, content: bytes | None) -> None:
    path = params.parent / "suite.yaml"
    path.unlink() if content is None else path.write_bytes(content)
    suite.switch("laptop", params)
    assert path.read_bytes() == COMMITTED.read_bytes()


def test_a_suite_that_there_is_not_leaves_the_file(params: Path) -> None:
    with pytest.raises(UserError, match=r"^suite labtop is not known; did you mean laptop\? \(allowed: cifar10, il"):
        suite.switch("labtop", params)
    assert (params.parent / "suite.yaml").read_bytes() == COMMITTED.read_bytes()


def test_a_fault_in_a_row_is_said_and_leaves_the_file(params: Path) -> None:
    rows = params.parent / "models/lenet.yaml"
    rows.write_text(rows.read_text().replace("batch: 128", "bach: 128", 1))
    with pytest.raises(UserError, match=r"^models/lenet.yaml: lenet5-mnist.recipe.bach is not known; did you mean"):
        suite.switch("mnist", params)
    assert (params.parent / "suite.yaml").read_bytes() == COMMITTED.read_bytes()


ODD_NAMES = (
    *("123", "1e5", "1-2", "0x1f", "0o7", "010", "2020-01-01", "2020-02-30", "12e03", "0b1", "1e400", "0", "9" * 60),
    *("true", "false", "null", "yes", "no", "on", "off", "y", "n", "inf", "nan", "e1", "suite", "name"),
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_that_looks_like_something_else_is_quoted(params: Path, name: str) -> None:
    """A suite, its budget, its benchmark and its data set are all called by it."""
    found = projects.read(params.parent)
    row = copy.deepcopy(found["benchmarks"]["lenet5-mnist"])
    row["budgets"][name], row["dataset"] = row["budgets"]["laptop"], name
    found["benchmarks"][name] = row
    found["datasets"][name] = {"kind": "imagefolder", "folder": "pictures"}
    found["suites"] = {name: {"budget": name, "benchmarks": [name]}}
    found["suite"] = {"name": name}
    written, active = projects.apart(found | {"suite": projects.active(found)})
    shutil.rmtree(params.parent / "models")
    (params.parent / "models").mkdir()
    params.write_text(quoted(written.params))
    (params.parent / "models/lenet.yaml").write_text(quoted(written.families["lenet"]))
    suite.switch(name, params)
    path = params.parent / "suite.yaml"
    assert yamlfile.read(path) == load_yaml(str(path)) == active
    active_suite = load_params(params).suite
    assert list(active_suite.benchmarks) == [name] == [active_suite.name]


def quoted(value: object) -> str:
    """As JSON, which is YAML with every name in quotes: PyYAML would write 1e5 without."""
    return json.dumps(value)


def test_a_dataset_with_underscores_between_digits_is_quoted() -> None:
    """Numbers to DVC's reader, which takes 1.1's underscores with 1.2's exponents."""
    names = ("1_0", "1_0e5", "1e5_0", "my_photos")
    assert f"datasets: {json.dumps(names)}" in suite.text({"name": "one", "datasets": names, "benchmarks": {}})


def test_the_command_says_one_line_and_exits_2(params: Path) -> None:
    command = [sys.executable, "-m", "pipelines.suite"]
    where, env = params.parent, environment()
    done = subprocess.run([*command, "imagnette"], cwd=where, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (errors.USER_ERROR, "")
    allowed = "(allowed: cifar10, ilsvrc2012, imagenette, imagenette-224, laptop, mnist, paper)"
    assert done.stderr == f"error: suite imagnette is not known; did you mean imagenette? {allowed}\n"
    done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].split() == ["*", "laptop", "6", "benchmarks", "at", "the", "laptop", "budget"]


def test_the_imports_stay_light() -> None:
    """A misspelt key must be said at once, not after the seconds that torch takes to load."""
    code = "import sys; from pipelines import suite; assert not {'torch', 'numpy', 'ray', 'dvc'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
