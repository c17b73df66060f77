"""A minimal, fast HTTP server for benchmarks; its users read and write the bodies.

One thread for each connection, reused buffers, few copies. Listens on 127.0.0.1, prints its port on the first line of
its output, and exits when its standard input is closed.
"""

from __future__ import annotations

import argparse
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_BUFFER_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Request:
    """The head of a request; header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]

    @property
    def keeps_alive(self) -> bool:
        return self.headers.get("connection", "").lower() != "close"


class Stream:
    """One connection, with a buffer of received bytes."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

    def read_request(self) -> Request | None:
        """The next request's head, or None if the client has disconnected."""
        if (head := self._read_until(b"\r\n\r\n")) is None:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Request(method, target, headers)

    def read_line(self) -> bytes:
        if (line := self._read_until(b"\r\n")) is None:
            raise ConnectionError("the client disconnected within a line")
        return line

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes, in pieces; each is only valid until the next one."""
        while size > 0:
            if self._start == self._end:
                self._receive()
            end = min(self._end, self._start + size)
            piece = self._view[self._start : end]
            self._start = end
            size -= len(piece)
            yield piece

    def drop(self, size: int) -> None:
        """Discard the next `size` bytes; without TLS the kernel does not copy them."""
        flags = 0 if isinstance(self.connection, ssl.SSLSocket) else socket.MSG_TRUNC
        buffered = min(size, self._end - self._start)
        self._start += buffered
        size -= buffered
        while size > 0:
            count = self.connection.recv_into(self._view, min(size, _BUFFER_BYTES), flags)
            if not count:
                raise ConnectionError("the client has disconnected")
            size -= count

    def _read_until(self, mark: bytes) -> bytes | None:
        while (end := self._buffer.find(mark, self._start, self._end)) < 0:
            try:
                self._receive()
            except ConnectionError:
                return None
        found = bytes(self._view[self._start : end])
        self._start = end + len(mark)
        return found

    def _receive(self) -> None:
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._buffer):
            rest = bytes(self._view[self._start : self._end])
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        count = self.connection.recv_into(self._view[self._end :])
        if not count:
            raise ConnectionError("the client has disconnected")
        self._end += count

    def send_head(self, status: str, *headers: str) -> None:
        self.connection.sendall("\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode())


Respond = Callable[[Request, Stream], None]


@dataclass(frozen=True)
class Tls:
    """A certificate and its key, as PEM files."""

    certificate: str
    key: str

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


class Server:
    """Accepts connections and serves their requests."""

    def __init__(self, respond: Respond, tls: Tls | None = None) -> None:
        self.connections = 0
        self._respond = respond
        self._tls = tls.context() if tls else None
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]

    def start(self) -> Server:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            stream = Stream(connection)
            while (request := stream.read_request()) is not None:
                self._respond(request, stream)
                if not request.keeps_alive:
                    return
        except OSError:
            return  # clients may disconnect at any time
        finally:
            connection.close()


def tls_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    parser.add_argument("--latency-seconds", type=float, default=0.0, help="for each request")


def tls_of(options: argparse.Namespace) -> Tls | None:
    return Tls(options.certificate, options.key) if options.certificate else None


def run(server: Server) -> None:
    """Serve until standard input ends."""
    print(server.start().port, flush=True)
    while os.read(sys.stdin.fileno(), 1024):
        pass
