"""Guards files: what may be opened, one step from old to new, kills and damage at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.command.errors import UserError
from pipelines.command.files import (
    DamagedError,
    check_seal,
    expect_file,
    intruder,
    read_json,
    read_lines,
    replacing,
    sealing,
    write_bytes,
    write_json,
)
from tests.processes import child, hears


def test_what_stands_in_a_files_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    Path("file").touch()
    Path("folder").mkdir()
    os.mkfifo("fifo")
    Path("link").symlink_to("fifo")
    Path("dangling").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    found = {name: intruder(Path(name)) for name in ("file", "nothing", "dangling", "folder", "fifo", "link", "socket")}
    assert list(found.values()) == [None, None, None, "a folder", "a FIFO", "a FIFO", "a socket"]
    assert intruder(Path("/dev/null")) == "a device"
    expect_file(Path("nothing"))
    with pytest.raises(UserError, match=r"^fifo: a FIFO stands where a file belongs; move it away$"):
        expect_file(Path("fifo"))


@pytest.mark.parametrize("moment", ["before", "half", "written"])
def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"old": 1})
    code = """
        path, moment = Path(sys.argv[1]), sys.argv[2]
        with replacing(path) as temporary:
            if moment != "before":
                temporary.write_bytes(b'{"new"' if moment == "half" else b'{"new": 2}')
            os.kill(os.getpid(), signal.SIGKILL)
    """
    with child(code, path, moment) as writer:
        assert writer.wait() == -signal.SIGKILL
    assert read_json(path) == {"old": 1}
    write_json(path, {"new": 2})  # what the dead writer left is in nobody's way
    assert read_json(path) == {"new": 2}


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """Two processes rewrite the file as fast as they can, until they are killed in the middle of it."""
    path = tmp_path / "progress.json"
    write_json(path, {"text": ""})
    code = """
        n = 0
        while True:
            n += 1
            write_json(Path(sys.argv[1]), {"text": "x" * (n % 7) * 20_000})
            if n == 5:
                print("writing", flush=True)
    """
    with child(code, path) as first, child(code, path) as second:
        hears(first, "writing")
        hears(second, "writing")
        lengths: set[int] = set()
        reads, deadline = 0, time.monotonic() + 30
        while reads < 300 or (len(lengths) < 3 and time.monotonic() < deadline):
            lengths.add(len(read_json(path)["text"]))
            reads += 1
    assert len(lengths) >= 3  # it was rewritten meanwhile
    assert len(read_json(path)["text"]) % 20_000 == 0


def test_an_error_while_writing_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    write_bytes(path, b"old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pt"]


def test_a_disk_without_room_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    """The kernel refuses what goes beyond a file size, half way through the write, as it does on a full disk."""
    path = tmp_path / "weights.pt"
    write_bytes(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError):
            write_bytes(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pt"]


def test_folders_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "a/b/c.json", {"d": 1})
    assert read_json(tmp_path / "a/b/c.json") == {"d": 1}


def test_what_is_written_is_plain_json(tmp_path: Path) -> None:
    value: dict[str, Any] = {"b": [1, 2.5, None, True], "a": {"c": "ä"}}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == value and text.endswith("\n") and text.index('"a"') < text.index('"b"')


def test_a_sealed_file_ends_in_its_digest_and_half_of_one_in_none(tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"
    with sealing(path) as file:
        file.write(b"as it ")
        file.write(b"is")
    assert path.read_bytes() == b"as it is\nsha256 " + hashlib.sha256(b"as it is").hexdigest().encode()
    check_seal(path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[1:], whole + b"\n", whole.replace(b"is", b"it"), b"", whole[8:], whole.upper()):
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=r"does not end in its sha256$"):
            check_seal(path)


def test_a_kill_while_a_file_is_sealed_leaves_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with sealing(path) as file:
        file.write(b"the last one")
    code = """
        with sealing(Path(sys.argv[1])) as file:
            file.write(b"the new one")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    with child(code, path) as writer:
        assert writer.wait() == -signal.SIGKILL
    check_seal(path)
    assert path.read_bytes().startswith(b"the last one\n")


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
        read_json(path)
    assert str(caught.value).startswith(f"{path} {words}") and "\n" not in str(caught.value)


def test_a_missing_json_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"result.json is missing; expected a file that an earlier stage writes$"):
        read_json(tmp_path / "result.json")


def test_lines_are_read_up_to_the_one_still_being_written(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    assert read_lines(path) == []
    path.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert read_lines(path) == [{"epoch": 1}, {"epoch": 2}]
    path.write_text('{"epoch": 1}\n{"epoch": 2}')  # whole, but not known to be
    assert read_lines(path) == [{"epoch": 1}]


@pytest.mark.parametrize("content", [b'{"epoch": 1}\n{"epo\n{"epoch": 3}\n', b"\xff\n", b"1\n", b"null\n", b"\n"])
def test_damaged_lines_are_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_lines(path)
    assert str(caught.value).startswith(f"{path} is damaged") and "\n" not in str(caught.value)
