"""MLflow for the tests of tracking: its sqlite store, made once, and a server over it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.tracking import delivery
from tests.tracking.projects import Project, Server


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty sqlite store, made as the default one is; the migrations take seconds, so once for all tests."""
    path = tmp_path_factory.mktemp("schema") / "mlflow.db"
    delivery.connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def local(tmp_path: Path, schema: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with an empty default store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(schema, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, schema: Path) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("server")
    shutil.copy(schema, root / "server.db")
    server = Server(root)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def remote(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that tracks to the server; credentials in the address must do no harm and never show."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("//", "//me:s3cret@"))
    return Project(tmp_path)
