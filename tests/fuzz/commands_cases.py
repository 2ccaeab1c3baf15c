"""What a shell may pass to a command: words and environment of any content, up to where work begins."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from pipelines import fetch
from pipelines.cluster import connection, local
from pipelines.command import ending
from pipelines.command.files import require_folder
from pipelines.config.params import load_params
from pipelines.tracking import addresses
from pipelines.training import store
from tests.conftest import ROOT

ABSOLUTE = ("/etc/passwd", "/proc/none", "/dev/null", "/dev/fd/0")
WORDS = (
    *("", " ", "0", "-1", "null", "nan", "1e999", "9" * 4400, "a" * 300, "a" * 5000, "\x1b[2J", "a\nb", "\r", "\x7f"),
    *("\u202e", "\u2028", "é", "實", "🐟", "\udcff", "%s", "{}", "$HOME", "`id`", "~", "*", "..", ".", "/", "//", "\\"),
    *("auto", "local", "localhost", "127.0.0.1", "[::1]", "[::1", "::1", "[]", "256.256.256.256", "head..x", "xn--a"),
    *("ray://", "http://", "https://", "file://", "sqlite:///", "ftp://", "://", ":", ":6379", ":0", ":65536", ":x"),
    *("@", "user:secret@", "?q", "#f", "lenet5-mnist", "mnist", "linear-mnist", "mlp1000-mnist", "paper", "laptop"),
    *("--help", "--seeds", "--side-by-side", "--budget", "--device", "--threads", "--rates"),
    *("export", "import", "-o", "--datasets", "--piece-size"),
    *("--epochs", "--port", "--", "-x", "--=", "@a"),
    *("cpu", "cuda", *ABSOLUTE, "file", "folder", "link", "loop", "fifo"),
)
# Those whose work is refused for want of data, which an empty folder does not have.
COMMANDS = ("train", "evaluate", "tune", "suite", "fetch", "trial", "store")
REFUSING = ("compare", "dashboard", "tracking")  # with a word that is none of theirs
MODULES = {name: importlib.import_module(f"pipelines.{name}") for name in (*COMMANDS, *REFUSING[:-1])}
MODULES["tracking"] = importlib.import_module("pipelines.tracking.__main__")
PARAMS = load_params(ROOT / "params.yaml")


def case(random: random.Random, folder: Path) -> None:
    """Check an environment, or call a command, of odd content; UserError where it is refused."""
    folder = folder / "as/deep/as/paths/can/lead/up"
    folder.mkdir(parents=True)
    (folder / "file").touch()
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("folder")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "fifo")
    given = {name: _word(random) for name in CHECKS if random.random() < 0.3}
    argv = [_word(random) for _ in range(random.randrange(5))]
    work: Callable[[], object]
    if random.random() < 0.6:
        checked = random.choice(list(CHECKS))
        given[checked] = _word(random)
        work = CHECKS[checked]
    elif random.random() < 0.9:
        work = functools.partial(_command, random.choice(COMMANDS), argv)
    else:
        work = functools.partial(_command, random.choice(REFUSING), ["--nothing", *argv])
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, given),
        mock.patch("tempfile.tempdir", None),
        mock.patch.object(ending, "follow"),
        contextlib.ExitStack() as patched,
        contextlib.redirect_stderr(io.StringIO()),
    ):
        for module in MODULES.values():
            if hasattr(module, "load_params"):
                patched.enter_context(mock.patch.object(module, "load_params", lambda *path: PARAMS))
        work()


def _word(random: random.Random) -> str:
    """One, or some in a row; none leads out of the case's folder but where nothing can be made."""
    text = "".join(random.choice(WORDS) for _ in range(random.choice((1, 1, 1, 2, 3, 4))))
    return text if not text.startswith("/") or text in ABSOLUTE else f".{text}"


# What commands make of each variable.
CHECKS: dict[str, Callable[[], object]] = {
    "RAY_ADDRESS": connection.named_address,
    "RAY_TMPDIR": local._folder,
    "TMPDIR": local._folder,
    "HOME": local.tighten,
    "RUN_STORE": lambda: require_folder(store.default()),
    "DATA_MIRROR": lambda: [source.label for source in fetch.sources_for(PARAMS.datasets["mnist"])],
    "MLFLOW_TRACKING_URI": lambda: addresses.tracking_uri(Path()),
}


def _command(name: str, argv: list[str]) -> None:
    """Argparse's own refusal is right, too."""
    with mock.patch.object(sys, "argv", [name, *argv]):
        try:
            MODULES[name].main()
        except SystemExit as ended:
            assert ended.code in (0, 2)
