"""A web server on this machine for a folder, which goes wrong where a test wants it to."""

import functools
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from fsspec.asyn import sync

from adaptkit.data import connections, patience

Fault = int | bytes | str  # a status; other content; "reset", "silent" or "cut"


@dataclass
class Served:
    """What a test knows of its server.

    Args:
        url: of the folder, with a slash at its end.
        asked: the paths that were asked for, in order, as names without "%20" and such.
        faults: path -> what goes wrong in the first answers, one after the other; where the last
            one is "always", what stands before it goes on for ever.
        headers: of answers that are no success.
        most: how many requests were being answered at a time.
        together: where each request waits for others, if anywhere.
    """

    url: str
    asked: list[str] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    most: int = 0
    together: threading.Barrier | None = None

    def fault(self, path: str) -> Fault | None:
        """Return what goes wrong next with a path."""
        due = self.faults.get(path, [])
        if len(due) == 2 and due[1] == "always":
            return due[0]
        return due.pop(0) if due else None


class _Handler(SimpleHTTPRequestHandler):
    served: Served
    protocol_version = "HTTP/1.1"
    lock = threading.Lock()
    now = 0
    done = threading.Event()
    connections: list[socket.socket]

    def setup(self) -> None:
        super().setup()
        with self.lock:
            self.connections.append(self.connection)

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0], errors="surrogateescape")
        kind = type(self)
        with self.lock:
            self.served.asked.append(path)
            kind.now += 1
            self.served.most = max(self.served.most, kind.now)
            fault = self.served.fault(path)
        try:
            if self.served.together:
                self.served.together.wait(20)
            self._answer(fault)
        finally:
            with self.lock:
                kind.now -= 1

    def _answer(self, fault: Fault | None) -> None:
        if fault is None:
            super().do_GET()
        elif isinstance(fault, int):
            self.send_response(fault)
            for name, value in self.served.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif isinstance(fault, bytes):
            self._send(fault, len(fault))
        elif fault == "silent":
            self.done.wait(20)
            self.close_connection = True
        elif fault == "cut":
            self._send(b"\x89PNG half of it", 1000)
            self.close_connection = True
        else:
            # Closes with a reset, and not in good order.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

    def _send(self, content: bytes, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):  # of a connection that was reset on purpose
            self.rfile.close()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that went away."""


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    """Serve a folder by HTTP for the time of a block."""
    found = Served("")
    own = {"served": found, "done": threading.Event(), "connections": []}
    handler = type("Handler", (_Handler,), own)
    server = _Server(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    found.url = f"http://127.0.0.1:{server.server_address[1]}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield found
    finally:
        handler.done.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()
        for connection in handler.connections:  # type: ignore[attr-defined]
            with suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()


@contextmanager
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let what fails be tried again at once, over connections that no other test has used."""
    monkeypatch.setattr(patience, "WAITS", (0.01,) * 4)
    monkeypatch.setattr(patience, "_failed", 0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(connections, "_connections", {})
    yield
    for found in connections._connections.values():
        if session := getattr(found.system, "_session", None):
            sync(found.system.loop, session.close)
