"""Ray on this machine for this process alone: in a private folder, and reachable only from this machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import Any

import psutil

from pipelines.command.children import end_children
from pipelines.command.errors import UserError

STARTS = 3  # attempts at starting Ray
OBJECT_STORE_BYTES = 80 * 2**20  # a bit more than Ray's minimum: trials pass files, not objects
SOCKET_BYTES = 107  # of a Unix socket's path
# The longest path of a socket below Ray's folder.
SOCKET = "/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store"
TOKEN = "expected RAY_AUTH_MODE=token, and its token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def prepare() -> Path:
    """Set what Ray reads during its import, and choose its folder; UserError where there can be none."""
    folder = _folder()
    _guard()
    # This machine is not preempted with a notice, and the watcher is a process more.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    return folder


def start(folder: Path, common: dict[str, Any]) -> None:
    """Start Ray in ``folder``, with ``common`` for ``ray.init``; UserError where it does not come up.

    Ray gives its processes 15 s to come up, too little on a busy machine.
    """
    import ray

    others = psutil.Process().children(recursive=True)
    for left in reversed(range(STARTS)):
        try:
            # An explicit "local": a bare init may join somebody else's cluster on this machine.
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(folder),
                **common,
            )
        except ray.exceptions.AuthenticationError as error:
            raise no_token(error) from None
        except Exception as error:  # Ray has no class for it
            if "timed out during startup" not in str(error):
                raise
            end_children(but=others)
        else:
            return
        if left:
            print("Ray's processes did not come up in time; trying again", flush=True)
    line = f"Ray's processes did not come up in time on this machine, tried {STARTS} times"
    raise UserError(f"{line}; expected it less busy, or without what stopped them: see {folder}/session_latest/logs")


def _guard() -> None:
    """Shut others out: other machines can't connect, and other users of this machine lack the token.

    This process and its children share the token; Ray would write one into a file that everybody can read.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # for Ray, on any system: listen on loopback alone
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if not any(os.environ.get(name) for name in TOKENS):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _folder() -> Path:
    """Ray's folder for sockets and logs: below $RAY_TMPDIR, or a private one.

    Ray lets everybody write into its folder, sockets included. Raises UserError where there can be none.
    """
    named = os.environ.get("RAY_TMPDIR")
    if not named:
        return _own()
    folder = Path(named).absolute() / "ray"
    if not _fits(folder):
        size, most = len(os.fsencode(folder.parent)), SOCKET_BYTES - len(SOCKET) - len("/ray")
        why = f"Ray's sockets lie below it, and a socket's path has at most {SOCKET_BYTES}"
        raise UserError(f"RAY_TMPDIR: its path has {size} bytes; expected at most {most}, all ASCII: {why}")
    try:
        _check_writable(folder)
    except OSError as error:
        raise UserError(f"RAY_TMPDIR is {named}: {error.strerror}; expected a folder that can be written") from None
    return folder


def _own() -> Path:
    """A private folder among the system's temporary files, or in /tmp where Ray can't use their path."""
    expected = "expected a folder of this user's, or RAY_TMPDIR to name another place"
    try:
        own = Path(tempfile.gettempdir(), f"ray-{os.getuid()}")
        if not _fits(own / "ray"):  # a batch system may have a folder for each job
            own = Path("/tmp", own.name)
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise UserError(f"{own} is none; {expected}")
        own.chmod(0o700)
        _check_writable(own / "ray")
    except OSError as error:
        raise UserError(f"{error.filename or 'temporary files'}: {error.strerror}; {expected}") from None
    return own / "ray"


def _fits(folder: Path) -> bool:
    return str(folder).isascii() and len(str(folder)) + len(SOCKET) <= SOCKET_BYTES


def _check_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def no_token(error: Exception) -> UserError:
    """The error for a token that is named and can't be read."""
    return UserError(f"{str(error).partition('. ')[0]}; {TOKEN}")


def tighten() -> None:
    """Withdraw the right of others to read the token in this user's home, which Ray leaves readable."""
    with contextlib.suppress(OSError, RuntimeError):  # no token, no home, or another's
        token = os.open(Path.home() / ".ray/auth_token", os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fchmod(token, 0o600)
        finally:
            os.close(token)
