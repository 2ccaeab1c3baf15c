"""Guards what may be opened: a file, and nothing that would be waited for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pipelines.command.errors import UserError
from pipelines.command.files import expect_file, intruder


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
