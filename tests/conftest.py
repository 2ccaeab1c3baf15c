"""Real data for the tests: a slice of MNIST, fetched once a session and laid out as a project of its own."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.command import ending
from pipelines.config.params import Params, load_params
from pipelines.data import datasets
from tests import processes, projects
from tests.data.hosts import root, serve  # noqa: F401  # fixtures
from tests.projects import ROOT as ROOT

# A shell starts a background job with Ctrl-C ignored, and children inherit that: tests that press it would wait.
signal.signal(signal.SIGINT, signal.default_int_handler)
TRAIN, TEST = 2000, 500  # images of the slice
THREADS = int(os.environ.get("OMP_NUM_THREADS") or 1)  # of trainings here; `make test THREADS=2` sets it
# Minutes each, most of it waiting for Ray and DVC.
LONGEST = ("test_pipeline", "test_pipeline_ended", "test_distributed", "test_train")


# Files that run whole commands, DVC, Ray or a server, or that import Lightning, which takes five seconds.
SYSTEMS = {
    *("test_batches", "test_boosting", "test_classifier", "test_commands", "test_connection", "test_damage"),
    *("test_dashboard", "test_data_dvc", "test_database", "test_delivery", "test_distributed", "test_download"),
    *("test_evaluate", "test_every_benchmark", "test_families", "test_fetch", "test_fetch_photographs", "test_fuzz"),
    *("test_golden", "test_gpu", "test_graphs", "test_helper", "test_inputs", "test_interrupted", "test_jobs"),
    *("test_local", "test_pipeline", "test_pipeline_ended", "test_preempted", "test_probe", "test_readiness"),
    *("test_scale", "test_sdlm", "test_side_by_side", "test_slurm", "test_sources", "test_spec", "test_speed"),
    *("test_spreading", "test_store", "test_train", "test_trainer", "test_trial", "test_tune", "test_waiting"),
}
# Fixtures that only those tests request that train on real images, or that start processes.
HEAVY = {"mnist", "ends_all"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: one that begins last would keep one process at work when the others have ended.

    Marks as ``slow`` what trains, or starts DVC, Ray or a server: ``make quick`` leaves it out.
    """
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    for item in items:
        requested = set(getattr(item, "fixturenames", ()))
        if item.path.stem in SYSTEMS or requested & HEAVY or item.get_closest_marker("numeric"):
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Spare the garbage collector what the imports brought: it would go through it again and again."""
    gc.freeze()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """``make quick`` does not even import what it leaves out."""
    return (config.option.markexpr == "not slow" and collection_path.stem in SYSTEMS) or None


@pytest.fixture(autouse=True)
def stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``main`` that is called here takes over no signals: they are this process's."""
    monkeypatch.setattr(ending, "follow", lambda: None)


@pytest.fixture
def ends_all() -> Iterator[None]:
    """For a test that starts, ends or kills: none of its processes is there for the next one to meet."""
    with processes.nothing_left():
        yield


@pytest.fixture(scope="session")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of datasets with the whole of MNIST, from the checkout's own files or from wherever fetch finds it."""
    if (ROOT / "datasets/mnist/meta.json").exists():
        return ROOT / "datasets"
    home = tmp_path_factory.mktemp("fetched")
    for name in ("data.dvc", "params.yaml"):
        shutil.copy(ROOT / name, home)
    subprocess.run(
        [sys.executable, "-m", "pipelines.fetch", "mnist"], cwd=home, env=processes.environment(), check=True
    )
    return home / "datasets"


@pytest.fixture(scope="session")
def mirror(mnist: Path) -> Path:
    """MNIST's raw files, laid out as $DATA_MIRROR is."""
    return mnist.parent / "data"


@pytest.fixture(scope="session")
def mnist_slice(mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of datasets with the first images of MNIST's two files, under MNIST's own name."""
    folder, whole = tmp_path_factory.mktemp("slice"), datasets.open_dataset(mnist, "mnist")
    (images, labels), (test_images, test_labels) = whole.split("train"), whole.split("test")
    datasets.write_dataset(
        folder,
        name="mnist",
        classes=whole.classes,
        train=(np.array(images[:TRAIN]), np.array(labels[:TRAIN])),
        test=(np.array(test_images[:TEST]), np.array(test_labels[:TEST])),
    )
    return folder


@pytest.fixture
def project(tmp_path: Path, mnist_slice: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the committed benchmarks and the slice as its datasets; the test runs in it."""
    projects.copy_params(tmp_path)
    (tmp_path / "datasets").symlink_to(mnist_slice)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUN_STORE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def hide_test_images(project: Path, mnist_slice: Path) -> None:
    """Leave the project no file of the test split that it could open."""
    (project / "datasets").unlink()
    shutil.copytree(mnist_slice, project / "datasets", ignore=shutil.ignore_patterns("test_*"))
    assert not list((project / "datasets").rglob("test_*")) and list((project / "datasets").rglob("train_*"))


def edit_params(path: Path, **benchmark_changes: dict[str, Any]) -> Params:
    """Rewrite a project's files with ``name={"recipe.batch": 7}`` applied to benchmarks (hyphens as underscores)."""
    found = projects.read(path.parent)
    for name, changes in benchmark_changes.items():
        block = found["benchmarks"][name.replace("_", "-")]
        for dotted, value in changes.items():
            *parents, last = dotted.split(".")
            target = block
            for parent in parents:
                target = target.setdefault(parent, {})
            target[last] = value
    return load_params(projects.write(path.parent, found))
