"""The run store under everything that can happen to it: kills at any moment, two writers at once, damaged files."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pipelines.command import errors, locks
from pipelines.command.errors import UserError
from pipelines.config.params import load_params
from pipelines.training import store
from tests.conftest import ROOT, environment

CODE = {"models.lenet": "0" * 64}
CONFIG = load_params(ROOT / "params.yaml").benchmark("lenet5-mnist").resolved("laptop")


@contextmanager
def child(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Another process with the store at hand; gone at the end, with all that it started."""
    prelude = (
        "import os, signal, subprocess, sys, time\nfrom pathlib import Path\nfrom pipelines.command import locks\n"
        "from pipelines.training import store\n"
    )
    command = [sys.executable, "-c", prelude + textwrap.dedent(code), *map(str, args)]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def hears(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None and process.stdout.readline().strip() == word


# --- keys --------------------------------------------------------------------------------------------------------


def test_a_key_is_16_hex_digits_of_config_data_seed_and_code() -> None:
    base = store.key(CONFIG, "digest", 0, CODE)
    assert len(base) == 16 and int(base, 16) >= 0
    assert base == store.key(copy.deepcopy(CONFIG), "digest", 0, CODE)
    others = [
        store.key(CONFIG | {"epochs": 9}, "digest", 0, CODE),
        store.key(CONFIG | {"recipe": CONFIG["recipe"] | {"batch": 96}}, "digest", 0, CODE),
        store.key(CONFIG, "another digest", 0, CODE),
        store.key(CONFIG, "digest", 1, CODE),
        store.key(CONFIG, "digest", 0, {"models.lenet": "1" * 64}),
    ]
    assert len({base, *others}) == 6


def test_a_key_does_not_depend_on_the_order_of_what_was_written() -> None:
    backwards = dict(reversed(CONFIG.items())) | {"recipe": dict(reversed(CONFIG["recipe"].items()))}
    assert list(backwards) != list(CONFIG)
    assert store.key(backwards, "digest", 0, CODE) == store.key(CONFIG, "digest", 0, CODE)


def test_the_store_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUN_STORE", raising=False)
    assert store.default() == tmp_path / "store"
    monkeypatch.setenv("RUN_STORE", "elsewhere")
    assert store.default() == tmp_path / "elsewhere"  # absolute: Ray's workers run in other directories


# --- writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "half", "written"])
def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "result.json"
    store.write_json(path, {"old": 1})
    code = """
        path, moment = Path(sys.argv[1]), sys.argv[2]
        with store.replacing(path) as temporary:
            if moment != "before":
                temporary.write_bytes(b'{"new"' if moment == "half" else b'{"new": 2}')
            os.kill(os.getpid(), signal.SIGKILL)
    """
    with child(code, path, moment) as writer:
        assert writer.wait() == -signal.SIGKILL
    assert store.read_json(path) == {"old": 1}
    store.write_json(path, {"new": 2})  # what the dead writer left is in nobody's way
    assert store.read_json(path) == {"new": 2}


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """Two processes rewrite the file as fast as they can, until they are killed in the middle of it."""
    path = tmp_path / "progress.json"
    store.write_json(path, {"text": ""})
    code = """
        n = 0
        while True:
            n += 1
            store.write_json(Path(sys.argv[1]), {"text": "x" * (n % 7) * 20_000})
            if n == 5:
                print("writing", flush=True)
    """
    with child(code, path) as first, child(code, path) as second:
        hears(first, "writing")
        hears(second, "writing")
        lengths: set[int] = set()
        reads, deadline = 0, time.monotonic() + 30
        while reads < 300 or (len(lengths) < 3 and time.monotonic() < deadline):
            lengths.add(len(store.read_json(path)["text"]))
            reads += 1
    assert len(lengths) >= 3  # it was rewritten meanwhile
    assert len(store.read_json(path)["text"]) % 20_000 == 0


def test_an_error_while_writing_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    store.write_bytes(path, b"old")

    def fail() -> None:
        with store.replacing(path) as temporary:
            temporary.write_bytes(b"ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pt"]


def test_a_disk_without_room_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    """The kernel refuses what goes beyond a file size, half way through the write, as it does on a full disk."""
    path = tmp_path / "weights.pt"
    store.write_bytes(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError):
            store.write_bytes(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pt"]


def test_folders_are_made(tmp_path: Path) -> None:
    store.write_json(tmp_path / "a/b/c.json", {"d": 1})
    assert store.read_json(tmp_path / "a/b/c.json") == {"d": 1}


def test_a_trial_is_finished_when_its_provenance_vouches_for_what_is_there(tmp_path: Path) -> None:
    files = store.TrialFiles(tmp_path / "key")
    for path in (files.trial, files.progress, files.curve, files.checkpoint, files.weights):
        store.write_bytes(path, b"{}")
    assert not files.finished
    store.write_json(files.result, {"key": "key"})
    assert not files.finished
    files.write_result({"key": "key", "config": {"rate": 0.1, "options": None}, "digest": "an older one"})
    assert store.TrialFiles(tmp_path / "key").finished
    assert files.read_result("key")["config"] == {"rate": 0.1, "options": None}
    with pytest.raises(store.DamagedError, match=r"result.json is of another trial \(key key\); expected another$"):
        files.read_result("another")
    assert len(list((tmp_path / "key").iterdir())) == 6  # no two of them share a name


def test_a_sealed_file_ends_in_its_digest_and_half_of_one_in_none(tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"
    with store.sealing(path) as file:
        file.write(b"as it ")
        file.write(b"is")
    assert path.read_bytes() == b"as it is\nsha256 " + hashlib.sha256(b"as it is").hexdigest().encode()
    store.check_seal(path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[1:], whole + b"\n", whole.replace(b"is", b"it"), b"", whole[8:], whole.upper()):
        path.write_bytes(damaged)
        with pytest.raises(store.DamagedError, match=r"does not end in its sha256$"):
            store.check_seal(path)


def test_a_kill_while_a_file_is_sealed_leaves_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with store.sealing(path) as file:
        file.write(b"the last one")
    code = """
        with store.sealing(Path(sys.argv[1])) as file:
            file.write(b"the new one")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    with child(code, path) as writer:
        assert writer.wait() == -signal.SIGKILL
    store.check_seal(path)
    assert path.read_bytes().startswith(b"the last one\n")


# --- reading -----------------------------------------------------------------------------------------------------

DAMAGED: dict[str, tuple[bytes, str]] = {
    "half": (b'{"epochs": 3, "wal', "is damaged ("),
    "empty": (b"", "is damaged ("),
    "no text": (b"\x80\x02}q\x00", "is damaged ("),
    "a list": (b"[1, 2]", "is damaged: it holds a list; expected an object"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_json_file_is_one_line(tmp_path: Path, name: str) -> None:
    content, words = DAMAGED[name]
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        store.read_json(path)
    assert str(caught.value).startswith(f"{path} {words}") and "\n" not in str(caught.value)


def test_a_missing_json_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"result.json is missing; expected a file that an earlier stage writes$"):
        store.read_json(tmp_path / "result.json")


def test_lines_are_read_up_to_the_one_still_being_written(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    assert store.read_lines(path) == []
    path.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert store.read_lines(path) == [{"epoch": 1}, {"epoch": 2}]
    path.write_text('{"epoch": 1}\n{"epoch": 2}')  # whole, but not known to be
    assert store.read_lines(path) == [{"epoch": 1}]


@pytest.mark.parametrize("content", [b'{"epoch": 1}\n{"epo\n{"epoch": 3}\n', b"\xff\n", b"1\n", b"null\n", b"\n"])
def test_damaged_lines_are_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        store.read_lines(path)
    assert str(caught.value).startswith(f"{path} is damaged") and "\n" not in str(caught.value)


# --- locks -------------------------------------------------------------------------------------------------------

HOLD = """
    with locks.held(Path(sys.argv[1]), "linear-mnist seed 0"):
        subprocess.Popen(["sleep", "30"]) if len(sys.argv) > 2 else None
        print("held", flush=True)
        time.sleep(30)
"""


def test_a_held_lock_names_its_holder(tmp_path: Path) -> None:
    with child(HOLD, tmp_path / "lock") as holder:
        hears(holder, "held")
        words = f"^linear-mnist seed 0 is already being run by process {holder.pid} on "
        with pytest.raises(UserError, match=words), locks.held(tmp_path / "lock", "linear-mnist seed 0", patience_s=0):
            raise AssertionError("two hold it")


def test_a_killed_holder_lets_go_at_once(tmp_path: Path) -> None:
    with child(HOLD, tmp_path / "lock") as holder:
        hears(holder, "held")
        began = time.monotonic()
        threading.Timer(0.3, holder.kill).start()
        with locks.held(tmp_path / "lock", "another", patience_s=20):
            waited = time.monotonic() - began
            assert (tmp_path / "lock").read_text().startswith(f"{os.getpid()} on ")
    assert 0.2 < waited < 10


def test_a_killed_holders_children_do_not_keep_the_lock(tmp_path: Path) -> None:
    with child(HOLD, tmp_path / "lock", "with a child that outlives it") as holder:
        hears(holder, "held")
        holder.kill()
        holder.wait()
        with locks.held(tmp_path / "lock", "another", patience_s=1):
            pass


def test_a_lock_is_held_alone(tmp_path: Path) -> None:
    """Three processes add to one number under the lock; an addition is lost where two hold it at once."""
    code = """
        folder = Path(sys.argv[1])
        for _ in range(15):
            with locks.held(folder / "lock", "the number"):
                number = int((folder / "number").read_text())
                time.sleep(0.002)
                (folder / "number").write_text(str(number + 1))
            time.sleep(0.05)
    """
    (tmp_path / "number").write_text("0")
    with child(code, tmp_path) as first, child(code, tmp_path) as second, child(code, tmp_path) as third:
        assert [process.wait(timeout=60) for process in (first, second, third)] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "45"


def test_a_lock_is_let_go_when_its_work_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with locks.held(tmp_path / "lock", "first"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with locks.held(tmp_path / "lock", "second", patience_s=0):
        pass


# --- how a command ends ------------------------------------------------------------------------------------------


def full_disk() -> None:
    with open("/dev/full", "w") as file:
        file.write("x")


def user_error() -> None:
    raise UserError("batch is 0; expected at least 1")


def no_folder() -> None:
    Path("/dev/null/store").mkdir(parents=True)


@pytest.mark.parametrize(
    ("main", "status", "words"),
    [
        (user_error, 2, "error: batch is 0; expected at least 1\n"),
        (full_disk, 2, "error: no space left on the disk that holds "),
        (no_folder, 2, "error: /dev/null/store: Not a directory; expected a place that can be read and written\n"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_a_status(
    main: Callable[[], None], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        errors.guard(main)
    assert ended.value.code == status
    said = capsys.readouterr().err
    assert said.startswith(words) and said.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [("SIGINT", 130, "interrupted; "), ("SIGUSR1", 75, "ended by SIGUSR1; the same command goes on")],
)
@pytest.mark.parametrize("command", ["trial", "train"])
def test_a_signal_while_a_command_is_imported_is_one_line(
    tmp_path: Path, number: str, status: int, words: str, command: str
) -> None:
    """The first import that takes long sends it."""
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
        import os, signal, sys

        class Press:
            def find_spec(self, name, path, target=None):
                if name in ("numpy", "pytorch_lightning"):
                    os.kill(os.getpid(), signal.{number})

        sys.meta_path.insert(0, Press())
        """)
    )
    done = subprocess.run(
        [sys.executable, "-m", f"pipelines.{command}", "lenet5-mnist"],
        env=environment() | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert done.stderr.startswith(f"error: {words}")


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    def bug() -> None:
        raise PermissionError(13, "a bug")

    with pytest.raises(PermissionError):
        errors.guard(bug)


def test_what_is_written_is_plain_json(tmp_path: Path) -> None:
    value: dict[str, Any] = {"b": [1, 2.5, None, True], "a": {"c": "ä"}}
    store.write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == value and text.endswith("\n") and text.index('"a"') < text.index('"b"')
