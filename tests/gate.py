"""What stands between a client and a real MLflow server in the tests: a gate that asks for a login, delays or hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import create_server, socket
from typing import Any

import requests

HOPS = ("transfer-encoding", "connection", "content-length", "content-encoding", "host", "date", "server")


class Gate:
    """Hands requests on to the server at **behind**; after **passes** of them it takes no more, and answers none."""

    def __init__(self, behind: str, *, login: str | None = None, delay_s: float = 0, passes: int = 10**9) -> None:
        self.behind, self.login, self.delay_s, self.passes = behind, login, delay_s, passes
        self.denial = 401, "You are not authenticated."
        self.over = threading.Event()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """One request."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if self.login is not None and handler.headers.get("Authorization") != self.login:
            return self._reply(handler, self.denial[0], {"Content-Type": "text/plain"}, self.denial[1].encode())
        self.passes -= 1
        if self.passes < 0:
            self.over.wait()
            return None
        time.sleep(self.delay_s)
        headers = {key: value for key, value in handler.headers.items() if key.lower() not in (*HOPS, "authorization")}
        with requests.Session() as session:
            session.trust_env = False
            found = session.request(handler.command, self.behind + handler.path, headers=headers, data=body, timeout=60)
        kept = {key: value for key, value in found.headers.items() if key.lower() not in HOPS}
        return self._reply(handler, found.status_code, kept, found.content)

    def _reply(self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
        handler.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(body)


@contextmanager
def opened(gate: Gate) -> Iterator[str]:
    """The address of the gate, which stands while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            gate.answer(self)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # a client that is killed

    with Quiet(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            gate.over.set()
            server.shutdown()


@contextmanager
def listening(talk: Callable[[socket, threading.Event], None]) -> Iterator[int]:
    """A port at which **talk** has the word, with an event that is set when the block ends."""
    over = threading.Event()

    def serve(listener: socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=converse, args=(connection,), daemon=True).start()

    def converse(connection: socket) -> None:
        with connection, suppress(OSError):  # the other side has hung up
            talk(connection, over)

    with create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
        over.set()
