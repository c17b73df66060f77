"""A proxy between a client and a plain HTTP server that damages request bodies: one bit of a mark is flipped."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_CHUNK_BYTES = 256 * 1024


@dataclass
class FlippingProxy:
    """Passes everything on, but damages `times` occurrences of `mark` on their way to the server, None for all.

    Attributes:
        port: where it listens, on 127.0.0.1.
        flipped: how many occurrences it has damaged.
    """

    server_port: int
    mark: bytes
    times: int | None = 1
    flipped: int = 0
    port: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    @contextmanager
    def running(self) -> Iterator[FlippingProxy]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            yield self
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self.server_port))
                for source, target, damage in ((client, server, self._damaged), (server, client, bytes)):
                    threading.Thread(target=_pump, args=(source, target, damage), daemon=True).start()

    def _damaged(self, data: bytes) -> bytes:
        with self._lock:
            while self.mark in data and (self.times is None or self.flipped < self.times):
                data = data.replace(self.mark, self.mark[:-1] + bytes([self.mark[-1] ^ 1]), 1)
                self.flipped += 1
        return data


def _pump(source: socket.socket, target: socket.socket, damage) -> None:
    with suppress(OSError):
        while data := source.recv(_CHUNK_BYTES):
            target.sendall(damage(data))
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
