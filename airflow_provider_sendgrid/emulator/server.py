"""A listener: a port, a thread that accepts, and a thread for each connection.

Knows threads and sockets. Must not know HTTP (that is `connection.py`).
"""

from __future__ import annotations

import contextlib
import socket
import threading
from http.client import HTTPException

from .connection import Connection, ConnectionClosedError, Respond


class Listener:
    """A port that is open from construction to `close`."""

    def __init__(self, host: str, port: int, respond: Respond) -> None:
        self._socket = socket.create_server((host, port), backlog=256)
        self.host, self.port = self._socket.getsockname()[:2]
        self.respond = respond
        self._ended = threading.Event()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._acceptor = threading.Thread(target=self._accept, name=f"emulator-{self.port}", daemon=True)
        self._acceptor.start()

    @property
    def url(self) -> str:
        """Where a client on this machine finds it."""
        return f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"  # noqa: S104

    def close(self) -> None:
        """End every connection and wait for its thread."""
        self._ended.set()
        address = ("127.0.0.1", self.port) if self.host == "0.0.0.0" else (self.host, self.port)  # noqa: S104
        with contextlib.suppress(OSError):
            socket.create_connection(address, timeout=1).close()  # wakes accept()
        self._acceptor.join()
        self._socket.close()
        with self._lock:
            still_open = dict(self._open)
        for connection in still_open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in still_open.values():
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                continue
            if self._ended.is_set():
                connection.close()
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            with self._lock:
                self._open[connection] = thread
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection.makefile("rb") as incoming:
                Connection(connection, incoming, self.respond, self._ended).serve()
        except (OSError, ConnectionClosedError, HTTPException):
            pass
        finally:
            with self._lock:
                del self._open[connection]
            connection.close()
