"""Servers that are dead in each of the ways there are, and words for what they say; no MLflow is needed."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from PIL import Image

from pipelines.tracking import helper
from pipelines.tracking.probe import AwayError, Bounded, probe, reach_local, within
from tests.conftest import ROOT
from tests.gate import listening
from tests.tracking.projects import Project

Talk = Callable[[socket.socket, threading.Event], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def silent(connection: socket.socket, over: threading.Event) -> None:
    over.wait()


def dripping(beginning: bytes, drop: bytes) -> Talk:
    """After its beginning, one drop after another and no end."""

    def talk(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(beginning)
        while not over.wait(0.05):
            connection.sendall(drop)

    return talk


def saying(answer: bytes) -> Talk:
    def talk(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    return talk


SLOW_HEADER = dripping(b"HTTP/1.1 200 OK\r\nX-Header: ", b"x")
SLOW_BODY = dripping(OK + b"Content-Length: 1000000\r\n\r\n{", b" ")
SLOW_CHUNKS = dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n")
IN_CIRCLES = saying(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
DEATHS: dict[str, tuple[str, Talk, str]] = {
    "silent": ("http", silent, r"gives no answer within 0\.6 s"),
    "silent before TLS": ("https", silent, r"gives no answer within 0\.6 s"),
    "dripping a header": ("http", SLOW_HEADER, r"gives no answer within 0\.6 s"),
    "dripping a body": ("http", SLOW_BODY, r"gives no answer within 0\.6 s"),
    "dripping chunks": ("http", SLOW_CHUNKS, r"gives no answer within 0\.6 s"),
    "no TLS": ("https", saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"), r"is away \(TLS fails.*\)"),
    "nothing": ("http", saying(b""), r"is away \(no connection\)"),
    "no HTTP": ("http", saying(b"\x00\x1b[2J\xff nonsense\r\n\r\n"), r"is away \(.*\)"),
    "circles": ("http", IN_CIRCLES, r"is away \(Exceeded 30 redirects\.\)|gives no answer within 0\.6 s"),
    "to nowhere": (
        "http",
        saying(b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n"),
        r"is away \(.*\)",
    ),
    "another service": (
        "http",
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"),
        r"is away \(what answers there, with status 200, is not MLflow\)",
    ),
    "deep JSON": (
        "http",
        saying(OK + b"Content-Length: 100000\r\n\r\n" + b"[" * 100_000),
        r"is away \(what answers there, with status 200, is not MLflow\)",
    ),
    "no such page": (
        "http",
        saying(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"),
        r"is away \(what answers there, with status 404, is not MLflow\)",
    ),
    "a gateway": ("http", saying(GATEWAY), r"answers with status 502"),
}


@pytest.mark.parametrize("way", DEATHS)
def test_a_dead_server_is_given_up_whichever_way_it_is_dead(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme, talk, says = DEATHS[way]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "0.6")
    with listening(talk) as port, pytest.raises(AwayError, match=f"^(?:{says})$") as raised:
        probe(f"{scheme}://127.0.0.1:{port}")
    assert str(raised.value).isprintable()


def test_a_name_whose_look_up_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def look_up(*_: object) -> None:
        over.wait()
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "0.2")
    with pytest.raises(AwayError, match=r"^gives no answer within 0\.2 s$"):
        probe("http://mlflow.example.org:5000")
    over.set()


def test_a_login_is_an_answer() -> None:
    for status in (b"401 Unauthorized", b"403 Forbidden"):
        with listening(saying(b"HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\nno" % status)) as port:
            probe(f"http://127.0.0.1:{port}")


def test_what_is_called_in_time_returns_or_raises() -> None:
    assert within(5, lambda: 1) == 1

    def late() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        within(5, late)


class SlowLine:
    """A client that takes a second for each upload."""

    def log_image(self, run: str, image: Image.Image, *, key: str) -> str:
        time.sleep(1)
        return key

    log_artifact = log_image


def test_an_upload_has_time_by_its_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Noise, which no format makes smaller."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "0.1")
    noise = Image.effect_noise((600, 600), 100)
    noise.save(tmp_path / "noise.png")
    client = Bounded(SlowLine())
    assert client.log_image("run", noise, key="figures/noise") == "figures/noise"
    assert client.log_artifact("run", tmp_path / "noise.png", key="noise.png") == "noise.png"
    with pytest.raises(AwayError):
        client.log_image("run", Image.new("RGB", (600, 600)), key="figures/blank")


@pytest.mark.alone
@pytest.mark.parametrize("way", DEATHS)
def test_a_dead_server_costs_a_stage_five_seconds_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    scheme, talk, says = DEATHS[way]
    with listening(talk) as port:
        line = given_up_in_time(tmp_path, monkeypatch, f"{scheme}://127.0.0.1:{port}")
    assert re.fullmatch(rf"(?:{says})", line.replace("within 2.5 s", "within 0.6 s"))


@pytest.mark.alone
def test_a_server_that_hangs_after_its_first_answer_costs_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is the probe's; what hangs is MLflow's own client, whose import takes most of the time."""
    answered = threading.Event()

    def talk(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        if answered.is_set():
            over.wait()
        answered.set()
        connection.sendall(OK + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}")

    with listening(talk) as port:
        assert given_up_in_time(tmp_path, monkeypatch, f"http://127.0.0.1:{port}") == "gives no answer within 2.5 s"


@pytest.mark.alone
def test_a_server_that_refuses_costs_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert given_up_in_time(tmp_path, monkeypatch, "http://127.0.0.1:9") == "is away (no connection)"


def given_up_in_time(folder: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> str:
    """Why a stage gave up the server at **uri**, within five seconds."""
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    project = Project(folder)
    project.trial("lenet5-mnist", "mnist", 0, epochs=2)
    began = time.monotonic()
    line = helper.sync(project.spool).line or ""
    assert time.monotonic() - began < 5
    waits = ": 1 trial and 1 benchmark wait in the spool; they are sent by the next stage"
    assert line.startswith(f"MLflow at {uri} ") and line.endswith(waits)
    return line.removeprefix(f"MLflow at {uri} ").removesuffix(waits)


def test_a_command_whose_purpose_is_to_send_waits_longer(tmp_path: Path) -> None:
    """``python -m pipelines.tracking`` and the dashboard: a person waits for them, and no stage."""
    for command in ("tracking", "dashboard"):
        with listening(late(3.5)) as port:
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
            environment.pop("MLFLOW_HTTP_REQUEST_TIMEOUT", None)
            project = Project(tmp_path / command)
            project.trial("lenet5-mnist", "mnist", 0, epochs=2)
            command_line = [sys.executable, "-m", f"pipelines.{command}"]
            done = subprocess.run(
                command_line, cwd=project.root, env=environment, capture_output=True, text=True, timeout=60, check=False
            )
        assert done.returncode == 2 and "answers with status 502" in done.stderr, done.stderr


def late(seconds: float) -> Talk:
    """A gateway that takes its time to say that nothing is behind it."""

    def talk(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        over.wait(seconds)
        connection.sendall(GATEWAY)

    return talk


PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("named", [None, "example.org"])
def test_no_proxy_is_asked_for_a_server_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, host: str, named: str | None
) -> None:
    for variable in PROXIES:
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", named or "")
    with listening(saying(OK + b"Content-Length: 2\r\n\r\n{}")) as port:
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://{host}:{port}", timeout=5)
        probe(f"http://{host}:{port}")
    assert os.environ["no_proxy"] == ",".join([*([named] if named else []), "localhost,127.0.0.1,::1"])
    reach_local()
    assert os.environ["no_proxy"].count("localhost") == 1


def test_a_user_who_wants_no_proxy_at_all_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    reach_local()
    assert os.environ["no_proxy"] == "*"


def test_a_name_that_cannot_be_looked_up_is_away() -> None:
    with pytest.raises(AwayError, match="empty or too long"):
        probe("http://a..b:5000")
