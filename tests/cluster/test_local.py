"""Ray on this machine alone: where it keeps its files, who can reach it, and what the environment may do to it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipelines.cluster import local
from pipelines.command.errors import UserError
from tests.processes import environment, started_by

pytestmark = pytest.mark.usefixtures("ends_all")
LONG = "a" * 30  # one more than RAY_TMPDIR may have below /tmp/ray-test


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No word of where files go, and none remembered."""
    for name in ("RAY_TMPDIR", "TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", None)


def test_rays_folder_is_its_users_alone(surroundings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SOCKET_BYTES", 300)  # a test's folder has a long path
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    own = tmp_path / f"ray-{os.getuid()}"
    assert local._folder() == own / "ray"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    own.chmod(0o755)
    assert local._folder() == own / "ray" and stat.S_IMODE(own.stat().st_mode) == 0o700


@pytest.mark.parametrize("made", ["file", "link"])
def test_a_folder_of_somebody_elses_is_one_line(
    surroundings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    monkeypatch.setattr(local, "SOCKET_BYTES", 300)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    own = tmp_path / f"ray-{os.getuid()}"
    own.touch() if made == "file" else own.symlink_to(tmp_path)
    with pytest.raises(UserError, match=rf"^{own}.*; expected a folder of this user's, or RAY_TMPDIR to name another"):
        local._folder()


@pytest.mark.parametrize(
    "place", [f"/tmp/{'a' * 60}", "/proc/none", "/etc/passwd", "/tmp/gr\u00f6\u00dfe", "relative", ""]
)
def test_a_tmpdir_that_does_not_suit_ray_is_not_used(
    surroundings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """As Python passes over one that it can't write: others chose it, for others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", place)
    monkeypatch.setenv("RAY_TMPDIR", "")  # set to nothing is not set
    assert local._folder() == Path(f"/tmp/ray-{os.getuid()}/ray")


def test_ray_tmpdir_may_be_as_long_as_a_sockets_path_allows(
    surroundings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_check_writable", lambda folder: None)
    most = Path("/tmp") / ("a" * 34)
    monkeypatch.setenv("RAY_TMPDIR", str(most))
    folder = local._folder()
    assert folder == most / "ray" and len(str(folder) + local.SOCKET) == 107
    monkeypatch.setenv("RAY_TMPDIR", f"{most}a")
    with pytest.raises(UserError, match=r"^RAY_TMPDIR: its path has 40 bytes; expected at most 39, all ASCII: Ray's"):
        local._folder()


@pytest.mark.parametrize(
    ("place", "why"), [("/etc/passwd", "Not a directory"), ("/proc/none", "No such file or directory")]
)
def test_a_ray_tmpdir_that_can_hold_nothing_is_one_line(
    surroundings: None, monkeypatch: pytest.MonkeyPatch, place: str, why: str
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", place)
    line = f"^RAY_TMPDIR is {place}: {why}; expected a folder that can be written$"
    with pytest.raises(UserError, match=line):
        local._folder()


def test_a_relative_ray_tmpdir_is_below_the_working_directory(
    surroundings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's processes would each look below their own."""
    monkeypatch.setattr(local, "SOCKET_BYTES", 300)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", "here")
    assert local._folder() == tmp_path / "here/ray"


def test_a_token_that_ray_left_for_everybody_is_taken_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    local.tighten()  # there is none
    (tmp_path / ".ray").mkdir()
    token = tmp_path / ".ray/auth_token"
    token.write_text("abc")
    token.chmod(0o644)
    local.tighten()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and token.read_text() == "abc"
    other = tmp_path / "other"
    token.rename(other)
    other.chmod(0o644)
    token.symlink_to(other)
    local.tighten()
    assert stat.S_IMODE(other.stat().st_mode) == 0o644  # a link leads who knows where


STARTED = """
    import sys
    from pipelines.cluster import connection
    from pipelines.command import errors

    def main():
        with connection.connect() as found:
            import ray
            assert ray.get(ray.remote(lambda: 6 * 7).remote()) == 42
            print(found)
            print(ray.get_runtime_context().gcs_address, flush=True)
            sys.stdin.readline()

    errors.guard(main)
"""


def connecting(**extra: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    words = [sys.executable, "-c", textwrap.dedent(STARTED)]
    given = {name: value for name, value in environment().items() if not name.startswith("RAY_")}
    return subprocess.Popen(words, env=given | extra, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@contextmanager
def started(**extra: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command with a Ray of its own, and the address of that; the command ends well, and says nothing."""
    command = connecting(**extra)
    assert command.stdout is not None
    said = command.stdout.readline()
    address = command.stdout.readline().strip()
    assert said.startswith("Ray started here: "), command.communicate()
    yield command, address
    out, err = command.communicate("\n", timeout=60)
    assert (command.returncode, out, err) == (0, "", "")


def test_nobody_else_reaches_a_ray_of_ours_whatever_the_environment(tmp_path: Path) -> None:
    """Without a home, through a proxy that answers nobody, with a TMPDIR too long: and still one that works."""
    nobody = "http://127.0.0.1:9"
    odd = {
        name: nobody for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "grpc_proxy")
    }
    (tmp_path / LONG).mkdir()
    (tmp_path / "home").touch()
    with started(**odd, HOME=str(tmp_path / "home"), TMPDIR=str(tmp_path / LONG)) as (command, address):
        family = [psutil.Process(command.pid), *started_by(command.pid)]
        assert {where for process in family for where in listening(process)} == {"127.0.0.1", "::ffff:127.0.0.1"}
        assert {"gcs_server", "raylet"} <= {process.name() for process in family}

        for token in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "guessed"}):
            other = connecting(RAY_ADDRESS=address, HOME=str(tmp_path), **token)
            out, err = other.communicate("\n", timeout=60)
            line = (
                f"error: RAY_ADDRESS is {address}, a cluster with another token; expected RAY_AUTH_MODE=token, and its"
            )
            assert (other.returncode, out, len(err.splitlines())) == (2, "", 1) and err.startswith(line)
    assert not (tmp_path / ".ray").exists()  # nor has Ray written a token


def listening(process: psutil.Process) -> set[str]:
    """The addresses at which it waits for connections; none where it has ended."""
    try:
        return {one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
    except psutil.NoSuchProcess:
        return set()
