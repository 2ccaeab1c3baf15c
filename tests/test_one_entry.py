"""Guards that one entry adds one thing: a net with its row, a data set; and that DVC's -S changes a row."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from pipelines import suite
from pipelines.config import yamlfile
from pipelines.config.params import load_params
from tests import projects
from tests.checkout import Checkout
from tests.conftest import ROOT
from tests.data.hosts import Server, tiny_mnist  # serve is a fixture

NET = '''
"""A net of one layer: 7,850 parameters."""

from torch import nn


def toy(*, classes: int = 10, in_shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Module:
    """Build it: (N, 1, 28, 28) -> (N, classes)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(in_shape[0] * in_shape[1] * in_shape[2], classes))
'''
FILLED = {"FAMILY": "toy", "NAME": "toy-mnist", "DATASET": "mnist", "NET": "toy", "COUNT": "7850", "VALUE": "12.0"}


def filled() -> str:
    """The template for a row, with each word in capitals replaced."""
    text = (ROOT / "models/TEMPLATE.yaml.txt").read_text()
    for word, value in FILLED.items():
        text = re.sub(rf"\b{word}\b", value, text)
    return text


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A copy of the project."""
    return Checkout(tmp_path, tmp_path / "mirror")


def test_a_net_and_its_row_are_two_files(checkout: Checkout, mnist_slice: Path) -> None:
    shutil.rmtree(checkout.folder / "datasets", ignore_errors=True)
    (checkout.folder / "datasets").symlink_to(mnist_slice)
    (checkout.folder / "models/toy.py").write_text(NET)
    (checkout.folder / "models/toy.yaml").write_text(filled())
    said = checkout.run("python", "-m", "pipelines.trial", "toy-mnist", "--seeds", "0", "--budget", "laptop")
    (result,) = (json.loads(path.read_text()) for path in checkout.folder.glob("store/*/result.json"))
    assert result["config"]["model"] == {"family": "toy", "name": "toy", "options": {}}, said
    assert "laptop" in checkout.run("python", "-m", "pipelines.suite", "laptop")  # the suites need not name it


def test_the_template_is_a_row_that_says_what_each_key_is(tmp_path: Path) -> None:
    projects.copy_params(tmp_path)
    (tmp_path / "models/linear.yaml").write_text(filled().replace("name: toy", "name: linear"))
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["suites"] = {"laptop": {"budget": "laptop", "benchmarks": ["toy-mnist"]}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "suite.yaml").unlink()
    suite.switch("laptop", tmp_path / "params.yaml")
    row = load_params(tmp_path / "params.yaml").benchmark("toy-mnist")
    assert (row.parameters, row.claim.value, row.model.family) == (7850, 12.0, "linear")


def test_a_data_set_of_idx_files_is_an_entry_and_its_pins(
    checkout: Checkout,
    serve: Callable[[Server], Server],
) -> None:
    files = tiny_mnist(1)
    server = serve(Server(files={f"fashion/{name}.gz": gzip.compress(content) for name, content in files.items()}))
    entry = {"kind": "idx", "classes": [f"piece {n}" for n in range(10)], "gzips": [f"{server.url}/fashion"]}
    params = checkout.folder / "params.yaml"
    text = params.read_text().replace("datasets:\n", f"datasets:\n  fashion: {json.dumps(entry)}\n", 1)
    params.write_text(text)
    with (checkout.folder / "data.dvc").open("a") as pins:
        for name, content in files.items():
            digest = hashlib.md5(content).hexdigest()
            pins.write(f"- md5: {digest}\n  size: {len(content)}\n  hash: md5\n  path: data/fashion/{name}\n")
    said = checkout.run("python", "-m", "pipelines.fetch", "fashion")
    assert "datasets/fashion: 40 training and 20 test images, 1x28x28, 10 classes" in said
    meta = json.loads((checkout.folder / "datasets/fashion/meta.json").read_text())
    assert meta["classes"] == entry["classes"]


@pytest.mark.slow  # starts DVC
def test_dvc_overrides_one_row_and_nothing_else(tmp_path: Path) -> None:
    """As `dvc exp run -S 'models/allcnn.yaml:allcnn-c-cifar10.recipe.optimiser.lr=0.01'` does before it runs."""
    path = projects.copy_params(tmp_path).parent / "models/allcnn.yaml"
    wanted = yamlfile.read(path)
    wanted["allcnn-c-cifar10"]["recipe"]["optimiser"]["lr"] = 0.01
    apply_overrides(str(path), ["allcnn-c-cifar10.recipe.optimiser.lr=0.01"])
    assert yamlfile.read(path) == wanted
    assert load_params(tmp_path / "params.yaml").benchmark("allcnn-c-cifar10").recipe.optimiser.lr == 0.01


def test_no_row_takes_a_key_through_a_merge() -> None:
    """DVC's -S would change nothing on it, and not say so."""
    assert [path.name for path in (ROOT / "models").glob("*.yaml") if "<<" in path.read_text()] == []


def test_the_fourteen_all_convolutional_rows_take_at_most_190_lines() -> None:
    path = ROOT / "models/allcnn.yaml"
    assert len(yamlfile.read(path)) - 1 == 14
    assert len(path.read_text().splitlines()) <= 190
