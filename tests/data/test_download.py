"""Guards downloads over real HTTP on 127.0.0.1: broken, endless, slow, redirected, resumed."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pipelines import fetch
from pipelines.command.errors import UserError
from pipelines.config.origins import Packed
from pipelines.data import sources
from pipelines.data.download import Remote, SourceError, SourceSlow, download, is_url, mismatch, shown
from tests.data.hosts import (
    FILES,
    IMAGES,
    MNIST,
    QUICK,
    Server,
    answering,
    as_mirror,
    assert_complete,
    idx,
    line_about,
    md5,
    refused,
    run,
    write_files,
    write_pins,
)
from tests.processes import soon


def test_a_truncated_file_on_a_server(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files=as_mirror(FILES | {IMAGES: FILES[IMAGES][:5000]})))
    with pytest.raises(UserError) as caught:
        log: list[str] = []
        fetch.fetch_from([sources.mirror(server.url)], root, "mnist", MNIST, QUICK, log.append)
    line = line_about(log, IMAGES, server.url)
    assert md5(FILES[IMAGES]) in line and md5(FILES[IMAGES][:5000]) in line and "(5000 bytes)" in line
    assert f"data/mnist/{IMAGES}" in str(caught.value) and server.url in str(caught.value)
    assert not (root / "data" / "mnist" / IMAGES).exists()
    assert (root / "data" / "mnist" / "t10k-labels-idx1-ubyte").exists()  # what did arrive is kept
    assert not list((root / "datasets").iterdir())


def test_a_file_that_is_too_long_is_not_read_to_its_end(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files=as_mirror(FILES | {IMAGES: bytes(10_000_000)}), pause=0.001))
    log = refused(root, sources.mirror(server.url))
    assert line_about(log, IMAGES, f"expected {len(FILES[IMAGES])} bytes, the server offers 10000000")


def test_a_broken_transfer_is_continued(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files=as_mirror(FILES), ends_after={f"mnist/{IMAGES}": [9000, 9000]}))
    # More than one chunk has to arrive before the break for there to be anything to continue.
    big = FILES | {IMAGES: idx(np.random.default_rng(1).integers(0, 256, (400, 28, 28), np.uint8))}
    server.files = as_mirror(big)
    server.ends_after = {f"mnist/{IMAGES}": [150_000, 100_000]}
    write_pins(root, as_mirror(big | {"train-labels-idx1-ubyte": idx(np.zeros(400, np.uint8))}))
    server.files["mnist/train-labels-idx1-ubyte"] = idx(np.zeros(400, np.uint8))
    log = run(root, [sources.mirror(server.url)])
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
    log = run(root, [sources.mirror(server.url), sources.mirror(str(mirror))], replace(QUICK, read=0.4))
    assert line_about(log, f"{IMAGES} and 3 more: not from", server.url, "unreachable (timed out)")
    assert_complete(root)


def test_an_unreachable_server_and_an_absent_directory_are_one_line_each(root: Path, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as http:
        url = f"http://127.0.0.1:{http.server_port}"
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    nowhere = f"{tmp_path}/nowhere"
    log = run(root, [sources.mirror(url), sources.mirror(nowhere), sources.mirror(str(mirror))])
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
    log = run(root, [sources.mirror(with_secret), sources.mirror(str(mirror))])
    line = line_about(log, f"{IMAGES} and 3 more: not from $DATA_MIRROR {address}: not an address; expected one like ")
    assert "s3cret" not in line
    assert "Traceback" not in capfd.readouterr().err  # of a thread
    assert_complete(root)


@pytest.mark.parametrize(
    ("url", "logged"),
    [
        ("http://user:se#c?ret@host/file.gz?token=s3cret", "http://host/file.gz"),
        ("https://user@host/file.gz", "https://host/file.gz"),
        ("https://host?mail=me@example.org", "https://host"),
        ("https://host/a@b/file.gz", "https://host/a@b/file.gz"),
    ],
)
def test_a_log_names_the_host_and_no_login(url: str, logged: str) -> None:
    assert shown(url) == logged


def test_a_slow_host_is_put_off_but_not_given_up(tmp_path: Path, root: Path, serve: Callable[[Server], Server]) -> None:
    packed = {f"{file}.gz": gzip.compress(content) for file, content in FILES.items()}
    server = serve(Server(files=packed, pause=0.02))
    table = {name: Packed(bytes=len(content), md5=md5(content)) for name, content in packed.items()}
    # 50 kB/s at best; the largest file is 31 kB.
    patience = replace(QUICK, floor=1e6, floor_after=0.05)
    log: list[str] = []
    fetch.fetch_from(
        [sources.gzips(server.url, table), sources.mirror("nowhere")], root, "mnist", MNIST, patience, log.append
    )
    assert "put off" in log[1] and server.url in log[1]
    assert "nowhere" in log[2]
    assert line_about(log, IMAGES, server.url, "md5 ok")
    assert_complete(root)
    with pytest.raises(SourceSlow, match="kB/s"):
        download(Remote(url=f"{server.url}/{IMAGES}.gz"), tmp_path / "x.part", patience, IMAGES)


def test_a_larger_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(10**12)
    assert mismatch(tmp_path / "x", 1000, "0" * 32) == f"expected 1000 bytes, found {10**12}"


def redirecting(place: str, status: int = 302) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(f"HTTP/1.0 {status} Found\r\nLocation: {place}\r\n\r\n".encode("latin-1"))

    return answer


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_mirror_may_redirect(root: Path, serve: Callable[[Server], Server], status: int) -> None:
    target = serve(Server(files=as_mirror(FILES)))

    def answer(handler: BaseHTTPRequestHandler) -> None:
        redirecting(f"{target.url}{handler.path}", status)(handler)

    log = run(root, [sources.mirror(answering(serve, answer))])
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
        log = run(root, [sources.mirror(url), sources.mirror(str(mirror))])
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

    run(root, [sources.mirror(answering(serve, answer))])
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
            fetch.fetch_from([sources.mirror(url)], root, "mnist", MNIST, QUICK, log.append)
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


def test_a_range_that_nobody_asked_for_is_refused_by_its_status(root: Path, serve: Callable[[Server], Server]) -> None:
    log = run_or_refuse(root, answering(serve, lambda handler: handler.send_error(416, "No range")))
    assert line_about(log, IMAGES, "HTTP 416 No range")


@pytest.mark.parametrize("variable", ["http_proxy", "ALL_PROXY"])
def test_no_proxy_leads_back_to_this_machine(
    root: Path, serve: Callable[[Server], Server], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    server = serve(Server(files=as_mirror(FILES)))
    run(root, [sources.mirror(server.url.replace("127.0.0.1", "localhost"))])
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
    run(root, [sources.mirror(here)])
    assert_complete(root)
    assert asked[0] == f"http://mirror.invalid/mnist/{IMAGES}"


def test_a_scheme_may_be_in_capitals() -> None:
    assert is_url("HTTP://host/data") and not is_url("ftp://host/data")
