"""Small raw files, their pins, and web servers that serve them with every fault one meets."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from pipelines import fetch
from pipelines.command.errors import UserError
from pipelines.config.params import load_origins
from pipelines.data.datasets import open_dataset
from pipelines.data.download import Patience
from pipelines.data.sources import Source
from tests.projects import ROOT

ORIGINS = load_origins(ROOT / "params.yaml")


MNIST, CIFAR10 = ORIGINS["mnist"], ORIGINS["cifar10"]


QUICK = Patience(connect=20.0, read=20.0, attempts=3)  # of a machine that is busy with other tests


def idx(array: npt.NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def tiny_mnist(seed: int = 0) -> dict[str, bytes]:
    random = np.random.default_rng(seed)
    files = {}
    for part, count in (("train", 40), ("t10k", 20)):
        files[f"{part}-images-idx3-ubyte"] = idx(random.integers(0, 256, (count, 28, 28), np.uint8))
        files[f"{part}-labels-idx1-ubyte"] = idx(random.integers(0, 10, count, np.uint8))
    return files


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


FILES = tiny_mnist()


IMAGES = "train-images-idx3-ubyte"  # the largest, and the first to be fetched


def write_pins(root: Path, files: dict[str, bytes], **more: object) -> None:
    """data.dvc, which pins ``files`` below data/; ``more`` of each."""
    outs = [
        {"md5": md5(content), "size": len(content), "hash": "md5", **more, "path": f"data/{file}"}
        for file, content in files.items()
    ]
    (root / "data.dvc").write_text(yaml.safe_dump({"outs": outs}, sort_keys=False))


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    shutil.copy(ROOT / "params.yaml", tmp_path / "project")
    write_pins(tmp_path / "project", as_mirror(FILES))
    return tmp_path / "project"


@dataclass
class Server:
    """A web server of the kind one meets: its faults are set by path."""

    files: dict[str, bytes] = field(default_factory=dict)
    ends_after: dict[str, list[int]] = field(default_factory=dict)  # bytes sent a request before it hangs up
    hangs: set[str] = field(default_factory=set)  # after the headers
    ignores_range: bool = False
    pause: float = 0.0  # seconds between pieces of 1000 bytes
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range of each request
    closing: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.lstrip("/")
        wanted = handler.headers.get("Range")
        self.asked.append((path, wanted))
        content = self.files.get(path)
        if content is None:
            handler.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and not self.ignores_range else 0
        if start and start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        if path in self.hangs:
            self.closing.wait(20)
            return
        limits = self.ends_after.get(path)
        body = content[start : start + limits.pop(0)] if limits else content[start:]
        for piece in range(0, len(body), 1000):
            if self.closing.wait(self.pause):
                return
            handler.wfile.write(body[piece : piece + 1000])


@pytest.fixture
def serve() -> Iterator[Callable[[Server], Server]]:
    running: list[tuple[Server, ThreadingHTTPServer]] = []

    def start(server: Server) -> Server:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                try:
                    server.answer(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        server.url = f"http://127.0.0.1:{http.server_port}"
        running.append((server, http))
        return server

    yield start
    for server, http in running:
        server.closing.set()
        http.shutdown()
        http.server_close()


def as_mirror(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"mnist/{file}": content for file, content in files.items()}


def run(root: Path, sources: Sequence[Source], patience: Patience = QUICK) -> list[str]:
    """Fetch mnist into ``root`` from ``sources`` alone; the log."""
    log: list[str] = []
    fetch.fetch_from(sources, root, "mnist", MNIST, patience, log.append)
    return log


def refused(root: Path, source: Source) -> list[str]:
    """The log of a fetch from a source that has not all of mnist."""
    log: list[str] = []
    with pytest.raises(UserError):
        fetch.fetch_from([source], root, "mnist", MNIST, QUICK, log.append)
    return log


def assert_complete(root: Path) -> None:
    for file, content in FILES.items():
        assert (root / "data" / "mnist" / file).read_bytes() == content
    assert sorted(path.name for path in (root / "data" / "mnist").iterdir()) == sorted(FILES)
    dataset = open_dataset(root / "datasets", "mnist")
    dataset.verify()
    assert (dataset.train, dataset.test, dataset.shape) == (40, 20, (1, 28, 28))


def line_about(log: Sequence[str], *words: str) -> str:
    """The one line of the log that has all of these words."""
    found = [line for line in log if all(word in line for word in words)]
    assert len(found) == 1, log
    assert "\n" not in found[0]
    return found[0]


def nothing_final(root: Path) -> bool:
    return not any((root / "data" / "mnist" / file).exists() for file in FILES)


def packed_tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


KINDS: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


def answering(serve: Callable[[Server], Server], answer: Callable[[BaseHTTPRequestHandler], None]) -> str:
    server = Server()
    server.answer = answer  # type: ignore[assignment, method-assign]
    return serve(server).url
