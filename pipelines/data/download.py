"""One file over HTTP: time-outs, a progress bar, resumption; unfinished bytes never have a final name."""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.utils import get_environ_proxies

from pipelines.command.errors import brief, printable, reason
from pipelines.command.files import hashed
from pipelines.command.progress import counting

CHUNK = 1 << 14  # bytes; also the most that a broken connection loses
REDIRECTS = 5  # in a row


class SourceError(Exception):
    """A source cannot give this file; the text is the reason, in one line."""


class SourceDown(SourceError):
    """The source gives no other file either."""


class SourceSlow(SourceDown):
    """The source answers, but at a rate that makes another one worth trying first."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for a server before the next source gets its turn."""

    connect: float = 5.0  # seconds, name resolution included
    read: float = 30.0  # seconds without a byte
    attempts: int = 3  # connections a file, as long as each brings bytes
    floor: float = 0.0  # bytes a second; a slower transfer is put off
    floor_after: float = 15.0  # seconds before the rate is judged


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file behind a URL, with its size and md5 where they are known."""

    url: str
    size: int | None = None  # bytes
    md5: str | None = None
    most: int | None = None  # bytes to take where the size is not known


def download(remote: Remote, part: Path, patience: Patience, label: str) -> None:
    """Bring ``remote`` into the file ``part``, continuing a broken transfer.

    Raises ``SourceError`` where the server cannot give the file or its size or md5 are wrong; ``part`` then remains
    only if a later call can continue it.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    while True:
        continued = part.exists()
        _complete(remote, part, patience, label)
        problem = mismatch(part, remote.size, remote.md5)
        if problem is None:
            return
        part.unlink()
        if not continued:  # the old bytes may be to blame: once more from the start
            raise SourceError(problem)


def mismatch(path: Path, size: int | None, md5: str | None) -> str | None:
    """Compare a file with the size and md5 it should have; None where both agree, else expected and found."""
    found_size = path.stat().st_size
    if md5 is None or (size is not None and found_size > size):  # too large: no need to read it
        return None if size in (None, found_size) else f"expected {size} bytes, found {found_size}"
    found_md5 = md5_of(path)
    if found_md5 == md5:
        return None
    expected_size = "" if size is None else f" ({size} bytes)"
    return f"expected md5 {md5}{expected_size}, found {found_md5} ({found_size} bytes)"


def md5_of(path: Path) -> str:
    """The md5 of a file, as 32 hex digits; DVC and the publishers identify files by it."""
    with counting(f"fetch: {printable(path.name)}: md5", path.stat().st_size) as advance:
        return hashed(path, "md5", advance)


def shown(url: str) -> str:
    """A URL for the log, without user, password and query; ``url`` may be any text."""
    return re.sub(r"(?<=://)[^/]*@", "", re.split("[?#]", url)[0]).rstrip("/")


def is_url(place: str) -> bool:
    """Whether a mirror is an address; else it is a directory."""
    return place.lower().startswith(("http://", "https://"))


def _reach(url: str, session: requests.Session, seconds: float) -> None:
    """Fail within ``seconds`` where no connection can be made; dead resolvers and dropped packets take minutes."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        (host or "").encode("idna")  # the resolver's first step
    except ValueError:  # its text may hold a part of a password
        host = None
    if host is None or not is_url(url):
        raise SourceDown("not an address; expected one like http://host:8000/data")
    session.trust_env = not _is_here(host)
    if session.trust_env and get_environ_proxies(url):  # the connection goes to the proxy
        return
    address = (host, port)
    failure: list[str] = [f"no answer within {seconds:g} s"]

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=seconds).close()
            failure.clear()
        except OSError as error:
            failure[:] = [_reason(error)]

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise SourceDown(f"unreachable ({failure[0]})")


def _is_here(host: str) -> bool:
    """Whether ``host`` is this machine, which no proxy leads back to."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Session(requests.Session):
    """Does not follow redirections by itself: requests would read each to its end first, however long."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


@contextmanager
def _opened(url: str, headers: dict[str, str], patience: Patience) -> Iterator[requests.Response]:
    """The answer behind all redirections."""
    wait = (patience.connect, patience.read)
    with _Session() as session:
        for turn in range(1 + REDIRECTS):
            try:
                _reach(url, session, patience.connect)
            except SourceDown as error:
                raise SourceDown(f"redirected to {brief(shown(url), 80)}: {error}" if turn else error) from None
            with session.get(url, headers=headers, stream=True, timeout=wait) as response:
                onward = super(_Session, session).get_redirect_target(response)
                if onward is None:
                    yield response
                    return
            try:
                url = urljoin(url, onward)
            except ValueError:
                raise SourceDown(f"redirected to {brief(onward, 80)}, which is no address") from None
    raise SourceDown(f"redirected more than {REDIRECTS} times")


def _complete(remote: Remote, part: Path, patience: Patience, label: str) -> None:
    """Transfer until ``part`` is complete by the server's account, over several connections if need be."""
    for attempt in range(patience.attempts):
        before = _size(part)
        try:
            if _transfer(remote, part, patience, label):
                return
            continue  # the server refused the range; part is gone
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:  # odd headers
            reason = _reason(error)
        if _size(part) <= before:
            if not attempt and not before:
                raise SourceDown(f"unreachable ({reason})")
            break
    total = "" if remote.size is None else f" of {remote.size}"
    expected = "" if remote.md5 is None else f"; expected md5 {remote.md5}, found none"
    raise SourceError(f"broke off at {_size(part)}{total} bytes ({reason}){expected}")


def _transfer(remote: Remote, part: Path, patience: Patience, label: str) -> bool:
    """Read one response into ``part``; False where the server has nothing from that offset on."""
    offset = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    with _opened(remote.url, headers, patience) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()
            return False
        if response.status_code not in (requests.codes.ok, requests.codes.partial_content):
            raise SourceError(brief(f"HTTP {response.status_code} {response.reason or ''}".rstrip(), 120))
        if not _continues(response, offset):
            offset = 0
        length = response.headers.get("Content-Length", "")
        total = offset + int(length) if re.fullmatch("[0-9]{1,18}", length) else remote.size
        if remote.size is not None and total is not None and total > remote.size:
            raise SourceError(f"expected {remote.size} bytes, the server offers {total}")
        with part.open("r+b" if offset else "wb") as file, counting(f"fetch: {printable(label)}", total) as advance:
            file.seek(offset)
            file.truncate()
            advance(offset)
            rate = _RateJudge(patience, total, offset)
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                file.write(chunk)
                advance(len(chunk))
                rate.judge(file.tell())
                limit = remote.most if remote.size is None else remote.size
                if limit is not None and file.tell() > limit:
                    expected = f"{'at most ' * (remote.size is None)}{limit} bytes"
                    raise SourceError(f"expected {expected}, the server sends more")
    return True


def _continues(response: requests.Response, offset: int) -> bool:
    """Whether the response's first byte is the one at ``offset``; a server may ignore the range asked for."""
    if response.status_code != requests.codes.partial_content:
        return offset == 0
    place = response.headers.get("Content-Range", "")
    start = re.match(r"bytes ([0-9]{1,18})-", place)
    if start is None or int(start[1]) != offset:
        raise SourceError(f"HTTP 206 from the wrong place ({brief(place, 80)})")
    return True


class _RateJudge:
    """Calls a transfer off when its rate stays below the floor and much is left."""

    def __init__(self, patience: Patience, total: int | None, offset: int) -> None:
        self.patience, self.total, self.offset = patience, total, offset
        self.started = time.monotonic()

    def judge(self, position: int) -> None:
        seconds = time.monotonic() - self.started
        if not self.patience.floor or self.total is None or seconds < self.patience.floor_after:
            return
        rate = (position - self.offset) / seconds
        left = (self.total - position) / max(rate, 1.0)
        if rate < self.patience.floor and left > 2 * self.patience.floor_after:
            raise SourceSlow(f"only {rate / 1000:.0f} kB/s, {left / 60:.0f} min to go; put off")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words: requests wraps urllib3, which wraps the socket's error."""
    if isinstance(error, urllib3.exceptions.NewConnectionError) and error.__cause__ is not None:
        return _reason(error.__cause__)  # urllib3 calls it a time-out, whatever the socket's error
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError | TimeoutError):
        return "timed out"
    if isinstance(error, urllib3.exceptions.IncompleteRead):
        return f"the connection ended {error.expected} bytes early"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    inner = getattr(error, "reason", None) or next((a for a in reversed(error.args) if isinstance(a, Exception)), None)
    if isinstance(inner, BaseException):
        return _reason(inner)
    return reason(error)
