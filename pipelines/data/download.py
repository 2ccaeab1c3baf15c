"""Download of one file over HTTP, with time-outs, a progress bar and resumption."""

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

CHUNK = 1 << 14  # bytes at a time; a broken connection loses no more
REDIRECTS = 5  # in a row


class SourceError(Exception):
    """A source does not have this file; the text is the reason, in one line."""


class SourceDown(SourceError):
    """A source has no other file either."""


class SourceSlow(SourceDown):
    """A source is so slow that others are worth trying first."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for a server before trying the next source."""

    connect: float = 5.0  # seconds, name resolution included
    read: float = 30.0  # seconds without a byte
    attempts: int = 3  # connections for a file, as long as each delivers bytes
    floor: float = 0.0  # bytes a second, below which a transfer is put off
    floor_after: float = 15.0  # seconds before the rate is judged


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file behind a URL, with its size and md5 where they are known."""

    url: str
    size: int | None = None  # bytes
    md5: str | None = None
    most: int | None = None  # most bytes of a file of unknown size


def download(remote: Remote, part: Path, patience: Patience, label: str) -> None:
    """Download ``remote`` to the file ``part``, continuing a broken transfer.

    Raises ``SourceError`` where the server does not have the file, or its size or md5 is wrong; ``part`` then remains
    only if a later call can continue it.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    while True:
        continued = part.exists()
        if not continued or part.stat().st_size != remote.size:  # else it was whole, and perhaps could not be unpacked
            _complete(remote, part, patience, label)
        problem = mismatch(part, remote.size, remote.md5)
        if problem is None:
            return
        part.unlink()
        if not continued:  # or the old bytes may be at fault: once more from the start
            raise SourceError(problem)


def mismatch(path: Path, size: int | None, md5: str | None) -> str | None:
    """Compare a file with its expected size and md5; None where both agree, else both values in words."""
    found_size = path.stat().st_size
    if md5 is None or (size is not None and found_size > size):  # a file too large need not be read
        return None if size in (None, found_size) else f"expected {size} bytes, found {found_size}"
    found_md5 = md5_of(path)
    if found_md5 == md5:
        return None
    expected_size = "" if size is None else f" ({size} bytes)"
    return f"expected md5 {md5}{expected_size}, found {found_md5} ({found_size} bytes)"


def md5_of(path: Path) -> str:
    """The md5 of a file in 32 hex digits, as DVC and publishers use it."""
    with counting(f"fetch: {printable(path.name)}: md5", path.stat().st_size) as advance:
        return hashed(path, "md5", advance)


def shown(url: str) -> str:
    """A URL, or any text, for the log: without user, password and query."""
    without_user = re.sub(r"(?<=://)([^/?#]*:[^/]*|[^/?#]*)@", "", url)  # first: a password may contain ? or #
    return re.split("[?#]", without_user)[0].rstrip("/")


def is_url(place: str) -> bool:
    """Whether a mirror is a URL, not a directory."""
    return place.lower().startswith(("http://", "https://"))


def _reach(url: str, session: requests.Session, seconds: float) -> None:
    """Fail within ``seconds`` where no connection can be made; a dead resolver alone would take minutes."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        (host or "").encode("idna")  # the resolver's first step
    except ValueError:  # whose text may contain a part of a password
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
    """Whether ``host`` is this machine, which a proxy would not reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Session(requests.Session):
    """Leaves redirections to ``_opened``: requests would read each one's body to its end, however long."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


@contextmanager
def _opened(url: str, headers: dict[str, str], patience: Patience) -> Iterator[requests.Response]:
    """The response at the end of all redirections."""
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
    """Transfer until the server has sent all of the file, over several connections if need be."""
    for attempt in range(patience.attempts):
        before = _size(part)
        try:
            if _transfer(remote, part, patience, label):
                return
            cause = "the server has nothing from there on"  # part is gone: the next attempt starts anew
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:  # odd headers
            cause = _reason(error)
            if _size(part) <= before:
                if not attempt and not before:
                    raise SourceDown(f"unreachable ({cause})") from None
                break
    total = "" if remote.size is None else f" of {remote.size}"
    expected = "" if remote.md5 is None else f"; expected md5 {remote.md5}, found none"
    raise SourceError(f"broke off at {_size(part)}{total} bytes ({cause}){expected}")


def _transfer(remote: Remote, part: Path, patience: Patience, label: str) -> bool:
    """Append one response to ``part``; False where the server has nothing from that offset on."""
    offset = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    with _opened(remote.url, headers, patience) as response:
        if offset and response.status_code == requests.codes.requested_range_not_satisfiable:
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
            started = time.monotonic()
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                file.write(chunk)
                advance(len(chunk))
                if total is not None:
                    _check_rate(patience, time.monotonic() - started, file.tell() - offset, total - file.tell())
                limit = remote.most if remote.size is None else remote.size
                if limit is not None and file.tell() > limit:
                    expected = f"{'at most ' * (remote.size is None)}{limit} bytes"
                    raise SourceError(f"expected {expected}, the server sends more")
    return True


def _continues(response: requests.Response, offset: int) -> bool:
    """Whether the response begins at ``offset``; a server may ignore the requested range."""
    if response.status_code != requests.codes.partial_content:
        return offset == 0
    place = response.headers.get("Content-Range", "")
    start = re.match(r"bytes ([0-9]{1,18})-", place)
    if start is None or int(start[1]) != offset:
        raise SourceError(f"HTTP 206 from the wrong place ({brief(place, 80)})")
    return True


def _check_rate(patience: Patience, seconds: float, done: int, left: int) -> None:
    """SourceSlow for a transfer whose rate is below the floor while much of the file is left."""
    if patience.floor and seconds >= patience.floor_after:
        rate = done / seconds
        left_s = left / max(rate, 1.0)
        if rate < patience.floor and left_s > 2 * patience.floor_after:
            raise SourceSlow(f"only {rate / 1000:.0f} kB/s, {left_s / 60:.0f} min to go; put off")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words: requests wraps urllib3, which wraps the socket's error."""
    if isinstance(error, urllib3.exceptions.NewConnectionError) and error.__cause__ is not None:
        return _reason(error.__cause__)  # urllib3 calls every socket error a time-out
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
