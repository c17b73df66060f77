"""A TCP proxy that forwards slowly to a server, until it is set to full speed.

with throttling_proxy(s3_port) as proxy:
    proxy.throttle(500_000)
    ...
    proxy.release()
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LOCALHOST = "127.0.0.1"
_CHUNK_BYTES = 64 * 1024


class ThrottlingProxy:
    """The proxy; its methods may be called from any thread.

    Attributes:
        received_bytes: how many bytes all clients have sent so far.
    """

    def __init__(self, port: int, listener: socket.socket) -> None:
        self.received_bytes = 0
        self._port = port
        self._listener = listener
        self._bytes_per_second = 0
        self._released = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://{LOCALHOST}:{self._listener.getsockname()[1]}"

    def throttle(self, bytes_per_second: int) -> None:
        """Forward only so many bytes per second from each client; responses keep their speed."""
        self._released = threading.Event()
        self._bytes_per_second = bytes_per_second

    def release(self) -> None:
        """Forward at full speed."""
        self._bytes_per_second = 0
        self._released.set()

    def serve(self) -> None:
        """Accept clients until the listener is closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with client, socket.create_connection((LOCALHOST, self._port)) as server:
            back = threading.Thread(target=_forward, args=(server, client), daemon=True)
            back.start()
            self._forward_slowly(client, server)
            back.join()

    def _forward_slowly(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while chunk := client.recv(_CHUNK_BYTES):
                with self._lock:
                    self.received_bytes += len(chunk)
                if speed := self._bytes_per_second:
                    self._released.wait(len(chunk) / speed)
                server.sendall(chunk)
        _end(server)


def _forward(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(_CHUNK_BYTES):
            target.sendall(chunk)
    _end(target)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)


@contextmanager
def throttling_proxy(port: int) -> Iterator[ThrottlingProxy]:
    """A proxy in front of a server at this port of this machine, at full speed at first."""
    listener = socket.socket()
    # Accepted connections inherit it: a client that sends more than is forwarded has to wait.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _CHUNK_BYTES)
    listener.bind((LOCALHOST, 0))
    listener.listen(64)
    proxy = ThrottlingProxy(port, listener)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.release()
        # Closing alone does not wake a thread that accepts.
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
